/* frameq_lib.c - both ends of one queue pair in one process; see test_frameq.py. */
#include "frameq.h"
#include "process.h"
#include <stdlib.h>
#include <sys/mman.h>

struct ends {
	struct neat_queue_pair *pair;
	struct frameq end[2];	/* 0 = lower, 1 = upper */
};

enum { WAKE_NONE, WAKE_SLEEPER, WAKE_ANYWAY };

/* ---- what the tests drive ---- */
struct ends *ends_new(void);
void ends_free(struct ends *e);
void ends_open(struct ends *e, uint32_t which, uint32_t epoch);
int ends_put(struct ends *e, uint32_t which, const uint8_t *data, uint32_t len, uint32_t flags, int in);
int ends_take(struct ends *e, uint32_t which, uint8_t *data, uint32_t cap, uint32_t *flags, int *in);
void ends_retire(struct ends *e, uint32_t which);
int ends_room(struct ends *e, uint32_t which);
int ends_pending(struct ends *e, uint32_t which);
int ends_wake(struct ends *e, uint32_t which);
void ends_wait_for(struct ends *e, uint32_t which, uint32_t other);
uint64_t ends_fenced(struct ends *e, uint32_t which);
uint32_t ends_sent(struct ends *e, uint32_t which, uint32_t more);
void ends_lie(struct ends *e, uint32_t which, uint64_t tail, uint32_t len);
void ends_overwrite(struct ends *e, uint32_t which, int head, uint64_t value);
/* ---- end ---- */

/* ---- what frameq.c calls of the process around it ---- */

static int woken;

void wake_sleeper(neat_a32 *asleep, int eventfd) { (void)asleep, (void)eventfd, woken = WAKE_SLEEPER; }
void wake_anyway(neat_a32 *asleep, int eventfd) { (void)asleep, (void)eventfd, woken = WAKE_ANYWAY; }

/* ---- the tests' side ---- */

struct ends *ends_new(void)
{
	struct ends *e = calloc(1, sizeof(*e));

	e->pair = mmap(NULL, NEAT_QP_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return e;
}

void ends_free(struct ends *e)
{
	munmap(e->pair, NEAT_QP_SIZE);
	free(e);
}

void ends_open(struct ends *e, uint32_t which, uint32_t epoch) { frameq_open(&e->end[which], e->pair, which, epoch); }

int ends_put(struct ends *e, uint32_t which, const uint8_t *data, uint32_t len, uint32_t flags, int in)
{
	/* Half of it linear, the rest in two pieces, as TCP has it. */
	uint8_t *head = malloc(PKT_HEADROOM + len + 1);
	uint32_t linear = len / 2, rest = len - linear;
	struct pkt p = { .data = head + PKT_HEADROOM, .buf = head, .len = linear, .frag_len = rest, .flags = (uint16_t)flags };
	bool done;

	memcpy(p.data, data, linear);
	p.frag[0].p = data + linear;
	p.frag[0].len = rest / 2;
	p.frag[1].p = data + linear + rest / 2;
	p.frag[1].len = rest - rest / 2;
	done = frameq_put(&e->end[which], &p, in);
	free(head);
	return done;
}

int ends_take(struct ends *e, uint32_t which, uint8_t *data, uint32_t cap, uint32_t *flags, int *in)
{
	struct pkt p;
	bool inward;

	if (!frameq_take(&e->end[which], &p, &inward))
		return -1;
	if (p.len <= cap)
		memcpy(data, p.data, p.len);
	/* Room for an Ethernet header in front: ip pushes one in place. */
	if (!pkt_push(&p, sizeof(struct wire_eth)))
		return -2;
	*flags = p.flags;
	*in = inward;
	return (int)(p.len - sizeof(struct wire_eth));
}

void ends_retire(struct ends *e, uint32_t which) { frameq_retire(&e->end[which]); }
int ends_room(struct ends *e, uint32_t which) { return frameq_room(&e->end[which]); }
int ends_pending(struct ends *e, uint32_t which) { return frameq_pending(&e->end[which]); }

int ends_wake(struct ends *e, uint32_t which)
{
	woken = WAKE_NONE;
	frameq_wake(&e->end[which]);
	return woken;
}

void ends_wait_for(struct ends *e, uint32_t which, uint32_t other) { e->end[which].waits_for = &e->end[other]; }
uint64_t ends_fenced(struct ends *e, uint32_t which) { return e->end[which].fenced; }

/* Of the oldest frame; so much more of it leaves, as component.c says. */
uint32_t ends_sent(struct ends *e, uint32_t which, uint32_t more)
{
	struct pkt p;
	bool in;

	if (!frameq_take(&e->end[which], &p, &in))
		return UINT32_MAX;
	e->end[which].sent = p.sent + more;
	return p.sent;
}

/* The other end writes nonsense: a tail, and the length of the next frame. */
void ends_lie(struct ends *e, uint32_t which, uint64_t tail, uint32_t len)
{
	struct frameq *q = &e->end[which];

	q->in->desc[q->head & (q->entries - 1)].len = len;
	a64_release(&q->in->tail, tail);
}

/* Of the ring that this end reads. */
void ends_overwrite(struct ends *e, uint32_t which, int head, uint64_t value)
{
	struct neat_frame_ring *in = e->end[which].in;

	a64_store(head ? &in->head : &in->tail, value);
}
