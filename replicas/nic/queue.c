/* queue.c - see queue.h; the other end is stack/nicq.c. */
#include "queue.h"
#include <string.h>

static uint8_t *buffer(const struct queue *u, bool tx, uint64_t index)
{
	return (uint8_t *)u->q + NEAT_QP_BUFS +
	       ((tx ? (uint64_t)NEAT_QP_ENTRIES : 0) + (index & (NEAT_QP_ENTRIES - 1))) * NEAT_QP_BUF;
}

/* Places of rx that are taken. What was held is lost with the rest when the replica's word does not fit. */
static uint64_t used(struct queue *u)
{
	uint64_t tail = u->rx_tail;
	uint32_t n = neat_frames_used(NEAT_QP_ENTRIES, &u->q->rx, &tail);

	if (NEAT_UNLIKELY(tail != u->rx_tail))
		u->rx_tail = u->rx_shown = tail;
	return n;
}

void queue_attach(struct queue *u, struct neat_queue_pair *q, uint32_t epoch)
{
	*u = (struct queue){ .q = q, .epoch = epoch, .wake = true, .inherited = true };
	u->rx_shown = u->rx_tail = a64_relaxed(&q->rx.tail);
	(void)used(u);
	u->tx_head = neat_frames_resume(NEAT_QP_ENTRIES, &q->tx);
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
	if (used(u) >= NEAT_QP_ENTRIES || m->len > NEAT_QP_BUF)
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
	return u->q ? neat_frames_ready(NEAT_QP_ENTRIES, &u->q->tx, u->tx_head) : 0;
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
	if (neat_frames_retire(NEAT_QP_ENTRIES, &u->q->tx, u->tx_head++))
		u->wake = true;
}
