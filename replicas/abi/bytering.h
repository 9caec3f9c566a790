/*
 * bytering.h - payload positions: where the byte at a stream offset lives in shared memory (L5).
 *
 * A direction of a slot has a half page in the dense small area (2 KiB, so that an idle connection costs
 * one page) and, in the large area, separate memory for each larger ring size up to its largest. The ring word names the one in use,
 * its wrap size, and the stream offset `base` that sits at position 0. Because the place follows
 * from the slot number there is no allocator and no offset to distrust: any word, however hostile,
 * addresses only that slot's own memory.
 *
 * The producer alone changes the word:
 *  - when the ring is empty: any size, base = current offset (so small traffic stays in one page);
 *  - when it is not: to a larger size, after copying every live byte to its new position. Readers
 *    that loaded the old word, and frames of `lo` that refer to it, keep reading the old memory. No
 *    two sizes share memory, so it stays intact until the ring has been empty once.
 * Publication order: payload, ring word (release), head/tail (release). A reader loads the
 * head/tail first (acquire), then the word: the word it sees holds all bytes below that head.
 */
#ifndef NEAT_BYTERING_H
#define NEAT_BYTERING_H

#include "ring.h"
#include <string.h>

enum neat_dir { NEAT_RX = 0, NEAT_TX = 1 };

static inline uint64_t neat_ringword(uint64_t base, uint32_t log2) { return base << 8 | log2; }
static inline uint64_t neat_ringword_base(uint64_t w) { return w >> 8; }
static inline uint32_t neat_ring_log2_max(enum neat_dir dir) { return dir == NEAT_RX ? NEAT_RX_LOG2_MAX : NEAT_TX_LOG2_MAX; }
static inline uint32_t neat_ring_max(enum neat_dir dir) { return 1u << neat_ring_log2_max(dir); }
/* Clamped, so that a hostile word stays inside the slot's memory. */
static inline uint32_t neat_ringword_log2(uint64_t w, enum neat_dir dir)
{
	uint32_t log2 = (uint32_t)(w & 0xff), max = neat_ring_log2_max(dir);

	return log2 < NEAT_RING_LOG2_MIN ? NEAT_RING_LOG2_MIN : log2 > max ? max : log2;
}
static inline uint32_t neat_ringword_size(uint64_t w, enum neat_dir dir) { return 1u << neat_ringword_log2(w, dir); }

/* Memory of one direction of one slot. `seg` is the mapping of the neat_seg_app object. */
static inline uint8_t *neat_ring_memory(void *seg, uint32_t slot, enum neat_dir dir, uint32_t log2)
{
	if (log2 == NEAT_RING_LOG2_MIN)
		return (uint8_t *)seg + NEAT_SEG_SMALL + (uint64_t)slot * NEAT_PAGE + (uint64_t)dir * (NEAT_PAGE / 2);
	return (uint8_t *)seg + NEAT_SEG_LARGE + slot * NEAT_SLOT_LARGE + (dir == NEAT_RX ? 0 : 2ull << NEAT_RX_LOG2_MAX) +
	       (1ull << log2);
}

/* One or two pieces of contiguous memory. */
struct neat_span {
	uint8_t *p[2];
	uint32_t len[2];
};

/* Pieces that hold [off, off + len); len must be <= the ring's size (clamped otherwise). */
static inline struct neat_span neat_ring_span(void *seg, uint32_t slot, enum neat_dir dir, uint64_t word,
					      uint64_t off, uint32_t len)
{
	uint32_t size = neat_ringword_size(word, dir);
	uint8_t *mem = neat_ring_memory(seg, slot, dir, neat_ringword_log2(word, dir));
	uint32_t pos = (uint32_t)(off - neat_ringword_base(word)) & (size - 1);
	uint32_t first = size - pos;
	struct neat_span s;

	if (len > size)
		len = size;
	if (first > len)
		first = len;
	s.p[0] = mem + pos;
	s.len[0] = first;
	s.p[1] = mem;
	s.len[1] = len - first;
	return s;
}

static inline void neat_span_write(const struct neat_span *s, const void *from)
{
	memcpy(s->p[0], from, s->len[0]);
	if (s->len[1])
		memcpy(s->p[1], (const uint8_t *)from + s->len[0], s->len[1]);
}

static inline void neat_span_read(const struct neat_span *s, void *to)
{
	memcpy(to, s->p[0], s->len[0]);
	if (s->len[1])
		memcpy((uint8_t *)to + s->len[0], s->p[1], s->len[1]);
}

/* Smallest log2 whose ring holds `need` bytes; the largest ring if none does. */
static inline uint32_t neat_ring_log2_for(uint64_t need, enum neat_dir dir)
{
	uint32_t log2 = NEAT_RING_LOG2_MIN;

	/* 2 KiB or at least 64 KiB: every growth is a copy, so grow seldom. */
	if (need > 1u << NEAT_RING_LOG2_MIN)
		log2 = 16;
	while (log2 < neat_ring_log2_max(dir) && need > 1ull << log2)
		log2++;
	return log2;
}

/*
 * Producer only: the word with which [live_from, live_to) and `need` more bytes fit, live bytes
 * moved where they belong. The caller publishes the result if it differs. When nothing is live the
 * ring restarts at position 0.
 */
static inline uint64_t neat_ring_reserve(void *seg, uint32_t slot, enum neat_dir dir, uint64_t word,
					 uint64_t live_from, uint64_t live_to, uint64_t need)
{
	uint32_t log2 = neat_ringword_log2(word, dir);
	uint64_t live = live_to - live_from;
	uint32_t want = neat_ring_log2_for(live + need, dir);

	if (live == 0) {
		if (log2 == NEAT_RING_LOG2_MIN && want == log2)
			return word;
		/* Only what fits a small ring comfortably gives the large one up. */
		if (want < log2 && (want > NEAT_RING_LOG2_MIN || need > (1u << NEAT_RING_LOG2_MIN) / 2))
			want = log2;
		return neat_ringword(live_to, want);
	}
	if (want <= log2)
		return word;
	uint64_t grown = neat_ringword(live_from, want);
	struct neat_span to = neat_ring_span(seg, slot, dir, grown, live_from, (uint32_t)live);
	struct neat_span from = neat_ring_span(seg, slot, dir, word, live_from, (uint32_t)live);

	memcpy(to.p[0], from.p[0], from.len[0]);
	if (from.len[1])
		memcpy(to.p[0] + from.len[0], from.p[1], from.len[1]);
	return grown;
}

#endif
