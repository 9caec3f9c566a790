/* abi_lib.c - exports of the inline helpers of replicas/abi for tests/unit. */
#define _GNU_SOURCE
#include "bytering.h"
#include <stdlib.h>
#include <sys/mman.h>

void *seg_new(void);
void seg_free(void *seg);
uint64_t ring_write(void *seg, uint32_t slot, int dir, uint64_t word, uint64_t una, uint64_t tail,
		    const uint8_t *from, uint32_t len);
void ring_read(void *seg, uint32_t slot, int dir, uint64_t word, uint64_t off, uint8_t *to, uint32_t len);
uint32_t ring_log2(uint64_t word, int dir);
uint32_t ring_max(int dir);
int span_inside(void *seg, uint32_t slot, int dir, uint64_t word, uint64_t off, uint32_t len);
struct neat_channel *channel_new(void);
int channel_push(struct neat_channel *c, uint64_t e);
uint32_t channel_ready(struct neat_channel *c);
uint64_t channel_pop(struct neat_channel *c);
void channel_set(struct neat_channel *c, uint64_t head, uint64_t tail);

void *seg_new(void)
{
	void *p = mmap(NULL, NEAT_SEG_APP_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

void seg_free(void *seg) { munmap(seg, NEAT_SEG_APP_SIZE); }

uint64_t ring_write(void *seg, uint32_t slot, int dir, uint64_t word, uint64_t una, uint64_t tail,
		    const uint8_t *from, uint32_t len)
{
	word = neat_ring_reserve(seg, slot, (enum neat_dir)dir, word, una, tail, len);
	struct neat_span s = neat_ring_span(seg, slot, (enum neat_dir)dir, word, tail, len);

	neat_span_write(&s, from);
	return word;
}

void ring_read(void *seg, uint32_t slot, int dir, uint64_t word, uint64_t off, uint8_t *to, uint32_t len)
{
	struct neat_span s = neat_ring_span(seg, slot, (enum neat_dir)dir, word, off, len);

	neat_span_read(&s, to);
}

uint32_t ring_log2(uint64_t word, int dir) { return neat_ringword_log2(word, (enum neat_dir)dir); }
uint32_t ring_max(int dir) { return neat_ring_max((enum neat_dir)dir); }

/* Both pieces lie in the memory that belongs to (slot, dir) and to nobody else. */
int span_inside(void *seg, uint32_t slot, int dir, uint64_t word, uint64_t off, uint32_t len)
{
	struct neat_span s = neat_ring_span(seg, slot, (enum neat_dir)dir, word, off, len);
	uint8_t *small = (uint8_t *)seg + NEAT_SEG_SMALL + (uint64_t)slot * NEAT_PAGE + (uint64_t)dir * 2048;
	uint8_t *large = (uint8_t *)seg + NEAT_SEG_LARGE + ((uint64_t)slot * 12 + (dir == NEAT_TX ? 8 : 0)) * (1 << 20);
	uint32_t size = dir == NEAT_TX ? 4 << 20 : 8 << 20;

	for (int i = 0; i < 2; i++) {
		int in_small = s.p[i] >= small && s.p[i] + s.len[i] <= small + 2048;
		int in_large = s.p[i] >= large && s.p[i] + s.len[i] <= large + size;

		if (!in_small && !in_large)
			return 0;
	}
	return s.len[0] + s.len[1] <= len;
}

struct neat_channel *channel_new(void) { return calloc(1, sizeof(struct neat_channel)); }

int channel_push(struct neat_channel *c, uint64_t e)
{
	return neat_ring_push(c->cmd, NEAT_CMD_ENTRIES, &c->cmd_tail, &c->cmd_head, e);
}

uint32_t channel_ready(struct neat_channel *c)
{
	return neat_ring_ready(NEAT_CMD_ENTRIES, &c->cmd_tail, a64_relaxed(&c->cmd_head));
}

uint64_t channel_pop(struct neat_channel *c)
{
	uint64_t h = a64_relaxed(&c->cmd_head);
	uint64_t e = a64_relaxed(&c->cmd[h & (NEAT_CMD_ENTRIES - 1)]);

	a64_release(&c->cmd_head, h + 1);
	return e;
}

void channel_set(struct neat_channel *c, uint64_t head, uint64_t tail)
{
	a64_store(&c->cmd_head, head);
	a64_store(&c->cmd_tail, tail);
}
