/*
 * queue.h - the nic's end of one replica's queue pair: producer of rx, consumer of tx.
 *
 * Pure. The replica is hostile: its indices are checked by difference, its descriptors are copied
 * once, and no index of ours is read back from the shared words.
 */
#ifndef NEAT_QUEUE_H
#define NEAT_QUEUE_H

#include "ring.h"

enum {
	QUEUE_HOLD_US = 2000000,	/* a frame older than that was sent again already (RFC 6298: 1 s) */
};

struct queue {
	struct neat_queue_pair *q;	/* NULL: no such queue */
	uint32_t epoch;			/* current incarnation */
	bool wake;			/* frames were published, or room was made, since the last look at rx.asleep */
	bool inherited;			/* not woken yet by us: a predecessor may have taken rx.asleep, and died */
	uint64_t rx_tail;		/* filled by us */
	uint64_t rx_shown;		/* of these, published; the rest is held for a replica to come */
	uint64_t tx_head;
	uint64_t fenced_at;		/* tx index when this epoch began */
	uint64_t held_since_us;
};

/* What a frame is accompanied by, both ways. */
struct frame_meta {
	uint32_t len;
	uint16_t flags;			/* enum neat_frame_flags */
	uint16_t gso_size;
	uint16_t l4_offset;
};

/* Continues where the words in `q` stand: a restarted nic loses only what it held. */
void queue_attach(struct queue *u, struct neat_queue_pair *q, uint32_t epoch);
/* The replica was replaced: hold frames until `epoch` announces itself, hear no zombie any more. */
void queue_fence(struct queue *u, uint32_t epoch);
bool queue_ready(const struct queue *u);	/* the replica of this epoch announced itself */
/* Copies a frame in and publishes it, or holds it until the replica is ready. False: no room. */
NEAT_CHECKED bool queue_put(struct queue *u, const uint8_t *bytes, const struct frame_meta *m, uint64_t now_us);
/* Publishes what was held if the replica is there now. Returns the frames dropped as too old. */
uint32_t queue_release(struct queue *u, uint64_t now_us);
static inline bool queue_holds(const struct queue *u) { return u->q && u->rx_tail != u->rx_shown; }
/* The replica sleeps and must be woken through q->rx.asleep. */
NEAT_CHECKED bool queue_must_wake(struct queue *u);

uint32_t queue_pending(const struct queue *u);	/* frames the replica wants sent */
/* The frame at tx_head: bytes stay in shared memory until queue_done(). NULL: descriptor is nonsense. */
const uint8_t *queue_peek(const struct queue *u, struct frame_meta *m, uint32_t *epoch);
void queue_done(struct queue *u);
/*
 * The frame at tx_head comes from a zombie (W11). What a replica published before it was fenced is whole and
 * stands in its control blocks: it goes out, above all a reset, which nobody would send again.
 */
static inline bool queue_fenced(const struct queue *u, uint32_t epoch)
{
	return (int32_t)(epoch - u->epoch) < 0 && (int64_t)(u->tx_head - u->fenced_at) >= 0;
}

#endif
