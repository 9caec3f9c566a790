/*
 * wire.h - the simulated wire, sending direction: rate, delay, loss, duplication, reordering and
 * corruption, decided by a seeded generator.
 *
 * Pure. What happens to the n-th frame depends on the seed, n and its length only; when it leaves
 * depends on when frames came, too.
 */
#ifndef NEAT_WIRE_SIM_H
#define NEAT_WIRE_SIM_H

#include "queue.h"

enum {
	WIRE_FRAMES = 4096,		/* waiting; more are lost like at a full switch port */
	WIRE_BYTES = 32 << 20,
	WIRE_LATE_US = 1000,		/* a reordered frame is at least this late */
};

struct wire_choice {
	bool lose, duplicate, reorder, corrupt;
	uint32_t jitter_us;
	uint32_t bit;			/* to flip, if corrupt */
};
struct wire_choice wire_choose(const struct neat_wire *p, uint64_t n, uint32_t len);

struct wire_frame {
	uint64_t release_us, order;
	struct frame_meta m;
	uint8_t bytes[];
};

struct wire {
	struct neat_wire p;
	uint64_t n;			/* frames ever offered */
	uint64_t order;
	uint64_t busy_ns;		/* the wire transmits until then */
	uint64_t last_us;		/* latest release of a frame that keeps its place */
	uint32_t frames, bytes;
	uint64_t lost, duplicated, reordered, corrupted, full;
	struct wire_frame *heap[WIRE_FRAMES];	/* by (release_us, order) */
};

/* Anything but a perfect wire: then frames must be whole wire segments with real checksums. */
bool wire_impaired(const struct neat_wire *p);
/* New parameters; what waits keeps its times. */
void wire_set(struct wire *w, const struct neat_wire *p);
void wire_offer(struct wire *w, const uint8_t *bytes, const struct frame_meta *m, uint64_t now_us);
/* First frame that is due, or NULL; wire_sent() removes and frees it. */
const struct wire_frame *wire_due(const struct wire *w, uint64_t now_us);
void wire_sent(struct wire *w);
uint64_t wire_deadline(const struct wire *w);	/* UINT64_MAX: nothing waits */

#endif
