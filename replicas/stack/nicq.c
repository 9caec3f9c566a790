/*
 * nicq.c - the replica's end of its queue pair with the nic: frames by value, one copy each way.
 *
 * What the nic wrote is checked like a packet from the wire. Wakes are main.c's.
 */
#include "main.h"
#include "tcp.h"

/* Buffers: rx first, then tx, NEAT_QP_BUF apart. */
static uint8_t *nicq_buffer(struct neat_queue_pair *q, bool tx, uint64_t index)
{
	return (uint8_t *)q + NEAT_QP_BUFS +
	       ((tx ? (uint64_t)NEAT_QP_ENTRIES : 0) + (index & (NEAT_QP_ENTRIES - 1))) * NEAT_QP_BUF;
}

/* Room for a frame at *tail. */
static bool nicq_room(const struct replica *r, uint64_t *tail)
{
	*tail = a64_relaxed(&r->queue->tx.tail);
	return neat_frames_used(NEAT_QP_ENTRIES, &r->queue->tx, tail) < NEAT_QP_ENTRIES;
}

/* Somebody was refused for want of room, and there is room now: tcp_resume() has work. */
static bool nicq_unblocked(const struct replica *r)
{
	uint64_t tail;

	return r->have_stack && (r->stack.tcp->resume_head || udp_blocked(&r->stack)) && nicq_room(r, &tail);
}

/* The nic wakes us through rx.asleep after it emptied a ring that was full. */
bool nicq_pending(const struct replica *r)
{
	uint64_t tail;

	if (r->queue && r->nic_rx_waits)
		return nicq_room(r, &tail);
	return r->queue && (neat_frames_ready(NEAT_QP_ENTRIES, &r->queue->rx, r->nic_rx_head) || nicq_unblocked(r));
}

unsigned nicq_receive(struct replica *r, unsigned budget)
{
	struct neat_queue_pair *q = r->queue;
	uint32_t n = q ? neat_frames_ready(NEAT_QP_ENTRIES, &q->rx, r->nic_rx_head) : 0;

	if (n > budget)
		n = budget;
	r->nic_rx_waits = false;
	for (uint32_t i = 0; i < n; i++) {
		struct neat_frame_desc d = q->rx.desc[r->nic_rx_head & (NEAT_QP_ENTRIES - 1)];
		struct pkt p = { .data = nicq_buffer(q, false, r->nic_rx_head), .gso_size = d.gso_size };

		p.buf = p.data;
		p.len = d.len <= NEAT_QP_BUF ? d.len : 0;
		p.flags = pkt_flags_of(d.flags) & PKT_FROM_NIC;
		if (!link_input(&r->stack, &p)) {
			r->nic_rx_waits = true;
			return i;
		}
		r->stack.count.frames_in++;
		/* The descriptor is retired only after the packet's effects are in the control block (W3). */
		r->nic_rx_head++;
		a64_release(&q->rx.head, r->nic_rx_head);
	}
	return n;
}

void nicq_drop_one(struct replica *r)
{
	if (!r->queue || !neat_frames_ready(NEAT_QP_ENTRIES, &r->queue->rx, r->nic_rx_head))
		return;
	r->nic_rx_head++;
	a64_release(&r->queue->rx.head, r->nic_rx_head);
}

bool nicq_transmit(void *world, const struct pkt *p)
{
	struct replica *r = world;
	struct neat_queue_pair *q = r->queue;
	uint64_t tail;
	struct neat_frame_desc *d;
	uint8_t *to;

	if (!q || pkt_total(p) > NEAT_QP_BUF)
		return true;	/* no uplink: the frame is lost like on a dead wire */
	if (!nicq_room(r, &tail))
		return false;
	d = &q->tx.desc[tail & (NEAT_QP_ENTRIES - 1)];
	to = nicq_buffer(q, true, tail);
	memcpy(to, p->data, p->len);
	for (uint32_t i = 0, at = p->len; i < 2 && p->frag_len; at += p->frag[i].len, i++)
		memcpy(to + at, p->frag[i].p, p->frag[i].len);
	*d = (struct neat_frame_desc){
		.len = pkt_total(p),
		.flags = pkt_frame_flags(p),
		.gso_size = p->gso_size,
		.l4_offset = p->l4_offset,
		.epoch = r->cfg.epoch,
	};
	/* Release: descriptor and bytes are whole before the index. E.snd_max was stored earlier (W1). */
	a64_release(&q->tx.tail, tail + 1);
	r->stack.count.frames_out++;
	r->nic_touched = true;
	return true;
}
