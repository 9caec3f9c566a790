/* wire.c - see wire.h. Not responsible for: the socket that joins two instances (wire_io.c). */
#include "wire.h"
#include <stdlib.h>
#include <string.h>

enum { DRAW_LOSS, DRAW_DUPLICATE, DRAW_REORDER, DRAW_CORRUPT, DRAW_JITTER, DRAW_BIT, DRAWS = 8 };

/* Counter-based splitmix64 (Steele, Lea, Flood 2014): no state, so frame n is the same in every run. */
static uint64_t draw(const struct neat_wire *p, uint64_t n, uint64_t what)
{
	uint64_t z = p->seed + (n * DRAWS + what + 1) * 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* Uniform in [0, bound). */
static uint32_t below(uint64_t r, uint32_t bound) { return (uint32_t)((r >> 32) * bound >> 32); }

struct wire_choice wire_choose(const struct neat_wire *p, uint64_t n, uint32_t len)
{
	const uint32_t million = 1000000;

	return (struct wire_choice){
		.lose = below(draw(p, n, DRAW_LOSS), million) < p->loss_ppm,
		.duplicate = below(draw(p, n, DRAW_DUPLICATE), million) < p->duplicate_ppm,
		.reorder = below(draw(p, n, DRAW_REORDER), million) < p->reorder_ppm,
		.corrupt = below(draw(p, n, DRAW_CORRUPT), million) < p->corrupt_ppm,
		.jitter_us = p->jitter_us ? below(draw(p, n, DRAW_JITTER), p->jitter_us + (p->jitter_us != ~0u)) : 0,
		.bit = below(draw(p, n, DRAW_BIT), len * 8),
	};
}

bool wire_impaired(const struct neat_wire *p)
{
	return p->rate_bps || p->delay_us || p->jitter_us || p->loss_ppm || p->reorder_ppm || p->duplicate_ppm ||
	       p->corrupt_ppm;
}

void wire_set(struct wire *w, const struct neat_wire *p) { w->p = *p; }

/* ---- heap ---- */

static bool before(const struct wire_frame *a, const struct wire_frame *b)
{
	return a->release_us != b->release_us ? a->release_us < b->release_us : a->order < b->order;
}

static void heap_up(struct wire *w, uint32_t i)
{
	struct wire_frame *f = w->heap[i];

	for (; i && before(f, w->heap[(i - 1) / 2]); i = (i - 1) / 2)
		w->heap[i] = w->heap[(i - 1) / 2];
	w->heap[i] = f;
}

static void heap_down(struct wire *w, struct wire_frame *f)
{
	uint32_t i = 0, child;

	while ((child = 2 * i + 1) < w->frames) {
		if (child + 1 < w->frames && before(w->heap[child + 1], w->heap[child]))
			child++;
		if (!before(w->heap[child], f))
			break;
		w->heap[i] = w->heap[child];
		i = child;
	}
	w->heap[i] = f;
}

/* ---- frames ---- */

static struct wire_frame *add(struct wire *w, const uint8_t *bytes, const struct frame_meta *m, uint64_t release_us)
{
	struct wire_frame *f = NULL;

	if (w->frames < WIRE_FRAMES && m->len <= WIRE_BYTES - w->bytes)
		f = malloc(sizeof(*f) + m->len);
	if (!f) {
		w->full++;
		return NULL;
	}
	f->release_us = release_us;
	f->order = w->order++;
	f->m = *m;
	memcpy(f->bytes, bytes, m->len);
	w->heap[w->frames] = f;
	w->bytes += m->len;
	heap_up(w, w->frames++);
	return f;
}

/* When the last bit has arrived at the other end, had the frame kept its place. */
static uint64_t arrival(struct wire *w, uint32_t len, uint32_t jitter_us, uint64_t now_us)
{
	uint64_t at;

	if (w->busy_ns < now_us * 1000)
		w->busy_ns = now_us * 1000;
	if (w->p.rate_bps)
		w->busy_ns += (uint64_t)len * 8 * 1000000000ull / w->p.rate_bps;
	at = w->busy_ns / 1000 + w->p.delay_us + jitter_us;
	return at > w->last_us ? at : w->last_us;
}

void wire_offer(struct wire *w, const uint8_t *bytes, const struct frame_meta *m, uint64_t now_us)
{
	struct wire_choice c = wire_choose(&w->p, w->n++, m->len);
	struct wire_frame *f;
	uint64_t at;

	/* A queue that is full takes no time of the wire. */
	if (w->frames >= WIRE_FRAMES || m->len > WIRE_BYTES - w->bytes) {
		w->full++;
		return;
	}
	at = arrival(w, m->len, c.jitter_us, now_us);
	if (c.lose) {
		w->lost++;
		return;
	}
	if (c.reorder) {
		w->reordered++;
		at += WIRE_LATE_US + w->p.delay_us / 2;
	} else {
		w->last_us = at;
	}
	f = add(w, bytes, m, at);
	if (f && c.duplicate && add(w, bytes, m, at))
		w->duplicated++;
	if (f && c.corrupt && m->len) {
		w->corrupted++;
		f->bytes[c.bit / 8] ^= (uint8_t)(1u << c.bit % 8);
	}
}

const struct wire_frame *wire_due(const struct wire *w, uint64_t now_us)
{
	return w->frames && w->heap[0]->release_us <= now_us ? w->heap[0] : NULL;
}

void wire_sent(struct wire *w)
{
	struct wire_frame *f = w->heap[0];

	w->bytes -= f->m.len;
	w->frames--;
	if (w->frames)
		heap_down(w, w->heap[w->frames]);
	free(f);
}

uint64_t wire_deadline(const struct wire *w) { return w->frames ? w->heap[0]->release_us : UINT64_MAX; }
