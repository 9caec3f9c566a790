/* queue.c - see queue.h; the other end is stack/nicq.c. */
#include "queue.h"
#include <string.h>

static uint8_t *buffer(const struct queue *u, bool tx, uint64_t index)
{
	return (uint8_t *)u->q + NEAT_QP_BUFS +
	       ((tx ? (uint64_t)NEAT_QP_ENTRIES : 0) + (index & (NEAT_QP_ENTRIES - 1))) * NEAT_QP_BUF;
}

void queue_attach(struct queue *u, struct neat_queue_pair *q, uint32_t epoch)
{
	/* Acquire: the replica has read what it retired, and filled what it published. */
	uint64_t rx_head = a64_acquire(&q->rx.head), tx_tail = a64_acquire(&q->tx.tail);

	*u = (struct queue){ .q = q, .epoch = epoch, .wake = true, .inherited = true };
	u->rx_tail = u->rx_shown = a64_relaxed(&q->rx.tail);
	u->tx_head = a64_relaxed(&q->tx.head);
	/* A replica that ran wild may have left indices that fit no more: then the ring is empty. */
	if (u->rx_tail - rx_head > NEAT_QP_ENTRIES)
		u->rx_tail = u->rx_shown = rx_head;
	if (tx_tail - u->tx_head > NEAT_QP_ENTRIES)
		u->tx_head = tx_tail;
	queue_fence(u, epoch);
}

void queue_fence(struct queue *u, uint32_t epoch)
{
	u->epoch = epoch;
	/* Where we stand, in case the one that ended wrote there: its successor goes by it. */
	if (u->q) {
		a64_release(&u->q->rx.tail, u->rx_shown);
		a64_release(&u->q->tx.head, u->tx_head);
	}
	u->fenced_at = u->tx_head + queue_pending(u);
}

bool queue_ready(const struct queue *u)
{
	/* Acquire: whatever the replica set up before it announced itself. */
	return u->q && u->epoch && a32_acquire(&u->q->announced) == u->epoch;
}

static void publish(struct queue *u)
{
	if (u->rx_shown == u->rx_tail)
		return;
	/* Release: descriptors and bytes are whole before the index. */
	a64_release(&u->q->rx.tail, u->rx_tail);
	u->rx_shown = u->rx_tail;
	u->wake = true;
}

bool queue_put(struct queue *u, const uint8_t *bytes, const struct frame_meta *m, uint64_t now_us)
{
	uint64_t used = u->rx_tail - a64_acquire(&u->q->rx.head);	/* acquire: the buffer was read */

	/* A head ahead of our tail gives a huge difference: no room, which harms only its owner. */
	if (used >= NEAT_QP_ENTRIES || m->len > NEAT_QP_BUF)
		return false;
	memcpy(buffer(u, false, u->rx_tail), bytes, m->len);
	u->q->rx.desc[u->rx_tail & (NEAT_QP_ENTRIES - 1)] = (struct neat_frame_desc){
		.len = m->len, .flags = m->flags, .gso_size = m->gso_size, .l4_offset = m->l4_offset,
		.epoch = u->epoch,
	};
	if (u->rx_tail == u->rx_shown)
		u->held_since_us = now_us;
	u->rx_tail++;
	if (queue_ready(u))
		publish(u);
	return true;
}

uint32_t queue_release(struct queue *u, uint64_t now_us)
{
	uint32_t held = (uint32_t)(u->rx_tail - u->rx_shown);

	if (!u->q || !held)
		return 0;
	if (queue_ready(u)) {
		publish(u);
		return 0;
	}
	if (now_us - u->held_since_us < QUEUE_HOLD_US)
		return 0;
	u->rx_tail = u->rx_shown;
	return held;
}

bool queue_must_wake(struct queue *u)
{
	bool inherited;

	if (!u->wake)
		return false;
	inherited = u->inherited;
	u->wake = u->inherited = false;
	return neat_asleep_take(&u->q->rx.asleep) != NEAT_AWAKE || inherited;
}

uint32_t queue_pending(const struct queue *u)
{
	return u->q ? neat_ring_ready(NEAT_QP_ENTRIES, &u->q->tx.tail, u->tx_head) : 0;
}

const uint8_t *queue_peek(const struct queue *u, struct frame_meta *m, uint32_t *epoch)
{
	const volatile struct neat_frame_desc *d = &u->q->tx.desc[u->tx_head & (NEAT_QP_ENTRIES - 1)];

	/* volatile: each field is read exactly once, whatever the replica does meanwhile. */
	*m = (struct frame_meta){ .len = d->len, .flags = d->flags, .gso_size = d->gso_size,
				  .l4_offset = d->l4_offset };
	*epoch = d->epoch;
	return m->len <= NEAT_QP_BUF ? buffer(u, true, u->tx_head) : NULL;
}

void queue_done(struct queue *u)
{
	uint64_t head = u->tx_head++;

	/* Release: we have read the buffer before the replica fills it again. */
	a64_release(&u->q->tx.head, u->tx_head);
	/* Head before the look at tail: an end whose last frame we do not see yet has not looked for room yet, and finds
	 * this. One that waits for room (nicq_pending(), frameq_room()) looks again when we wake it. */
	neat_fence();
	if (a64_relaxed(&u->q->tx.tail) - head + QUEUE_ROOM > NEAT_QP_ENTRIES)
		u->wake = true;
}
