/*
 * frameq.c - see frameq.h. What the other end wrote is checked like a packet from the wire.
 */
#include "frameq.h"
#include "process.h"

static void open_end(struct frameq *q, struct neat_queue_pair *pair, bool upper, uint32_t entries)
{
	uint8_t *rx = (uint8_t *)pair + NEAT_QP_BUFS, *tx = rx + (uint64_t)NEAT_QP_ENTRIES * NEAT_QP_BUF;

	*q = (struct frameq){
		.pair = pair,
		.in = upper ? &pair->rx : &pair->tx, .out = upper ? &pair->tx : &pair->rx,
		.in_frames = upper ? rx : tx, .out_frames = upper ? tx : rx,
		.doorbell = -1, .entries = entries,
		.owes_wake = true, .inherited = true,
	};
	q->head = neat_frames_resume(entries, q->in);
}

void frameq_open(struct frameq *q, struct neat_queue_pair *pair, bool upper, uint32_t epoch)
{
	open_end(q, pair, upper, FRAMEQ_ENTRIES);
	q->headroom = PKT_HEADROOM;
	q->epoch = epoch;
	q->their_epoch = upper ? &pair->announced_lower : &pair->announced;
	/* From here on what our predecessor left in the ring is dropped (W11). Release: it is gone, so
	 * nothing of it can come after. */
	a32_release(upper ? &pair->announced : &pair->announced_lower, epoch);
}

void frameq_open_nic(struct frameq *q, struct neat_queue_pair *pair, int doorbell, uint32_t epoch)
{
	open_end(q, pair, true, NEAT_QP_ENTRIES);
	q->epoch = epoch;
	q->doorbell = doorbell;
}

static bool fenced(const struct frameq *q, const struct neat_frame_desc *d)
{
	return q->their_epoch && d->epoch != a32_acquire(q->their_epoch);
}

static void retire(struct frameq *q)
{
	q->sent = 0;
	if (neat_frames_retire(q->entries, q->in, q->head++))
		q->owes_wake = true;
}

void frameq_retire(struct frameq *q)
{
	q->waits_for = NULL;
	retire(q);
}

bool frameq_take(struct frameq *q, struct pkt *p, bool *in)
{
	struct neat_frame_desc d;

	for (;; q->fenced++, retire(q)) {
		if (!neat_frames_ready(q->entries, q->in, q->head))
			return false;
		d = q->in->desc[q->head & (q->entries - 1)];
		if (!fenced(q, &d))
			break;
	}
	*p = (struct pkt){ .buf = q->in_frames + (q->head & (q->entries - 1)) * NEAT_QP_BUF, .gso_size = d.gso_size,
			 .sent = q->sent, .sent_id = q->sent_id };
	p->data = p->buf + q->headroom;
	p->len = d.len <= NEAT_QP_BUF - q->headroom ? d.len : 0;
	p->flags = pkt_flags_of(d.flags);
	if (!q->their_epoch)
		p->flags &= PKT_FROM_NIC;
	*in = d.flags & NEAT_FRAME_IN;
	return true;
}

bool frameq_room(const struct frameq *q)
{
	uint64_t tail = a64_relaxed(&q->out->tail);

	return neat_frames_used(q->entries, q->out, &tail) + NEAT_QP_ROOM <= q->entries;
}

bool frameq_put(struct frameq *q, const struct pkt *p, bool in)
{
	uint64_t tail = a64_relaxed(&q->out->tail);
	uint8_t *to;

	if (neat_frames_used(q->entries, q->out, &tail) >= q->entries)
		return false;
	if (pkt_total(p) > NEAT_QP_BUF - q->headroom)
		return true;	/* too long for any frame: lost like on a wire */
	to = q->out_frames + (tail & (q->entries - 1)) * NEAT_QP_BUF + q->headroom;
	memcpy(to, p->data, p->len);
	for (uint32_t i = 0, at = p->len; i < 2 && p->frag_len; at += p->frag[i].len, i++)
		memcpy(to + at, p->frag[i].p, p->frag[i].len);
	q->out->desc[tail & (q->entries - 1)] = (struct neat_frame_desc){
		.len = pkt_total(p),
		.flags = (uint16_t)(pkt_frame_flags(p) | (in ? NEAT_FRAME_IN : 0)),
		.gso_size = p->gso_size,
		.l4_offset = p->l4_offset,
		.epoch = q->epoch,
	};
	/* Release: descriptor and bytes are whole before the index. */
	a64_release(&q->out->tail, tail + 1);
	q->owes_wake = true;
	return true;
}

void frameq_wake(struct frameq *q)
{
	if (!q->owes_wake)
		return;
	if (q->inherited)
		wake_anyway(&q->out->asleep, q->doorbell);
	else
		wake_sleeper(&q->out->asleep, q->doorbell);
	q->owes_wake = q->inherited = false;
}

bool frameq_pending(const struct frameq *q)
{
	return frameq_is_open(q) && neat_frames_ready(q->entries, q->in, q->head) &&
	       (!q->waits_for || frameq_room(q->waits_for));
}

bool frameq_waits_outward(const struct frameq *q)
{
	return frameq_is_open(q) && q->in == &q->pair->tx && neat_frames_ready(q->entries, q->in, q->head);
}

bool packet_header(struct stack *s, struct pkt *p, struct ip_meta *m, uint32_t *ihl)
{
	const struct wire_ip *h = pkt_get(p, 0, sizeof(*h));
	uint32_t total = h ? be16_get(h->total_len) : 0;	/* 0: a super-segment, the frame counts */

	*ihl = h ? (uint32_t)(h->ver_ihl & 15) * 4 : 0;
	if (!h || h->ver_ihl >> 4 != 4 || *ihl < sizeof(*h) || *ihl > p->len || total > p->len ||
	    (total && total < *ihl)) {
		stack_drop(s, DROP_IP_HEADER);
		return false;
	}
	if (total)
		pkt_trim(p, total);
	*m = (struct ip_meta){ be32_get(h->saddr), be32_get(h->daddr), h->proto, h->ttl, h->tos, 0 };
	return true;
}
