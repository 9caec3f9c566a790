/*
 * tcp_reass.c - payload into the receive ring: in order, or at its final offset behind a hole.
 *
 * Owns rcv_nxt, the published rx_head and rx_ring, and the out-of-order intervals. Order of stores
 * (W2): payload, E.rcv_nxt, ring word, rx_head; the ACK is sent later by the caller. Whether the
 * segment is acceptable was decided in tcp_in.c; bounds are checked here again, since a wrong one
 * would write into memory.
 */
#include "tcp.h"

/* Copy payload bytes [off, off + len) of the packet to where `to` says. All inside, or false. */
static bool payload_copy(struct stack *s, const struct pkt *p, uint32_t off, const struct neat_span *to)
{
	uint32_t len = to->len[0] + to->len[1];
	const uint8_t *src[3] = { p->data, p->frag[0].p, p->frag[1].p };
	const uint32_t have[3] = { p->len, p->frag[0].len, p->frag[1].len };
	unsigned piece = 0;
	uint32_t pos = 0, i = 0;

	if (off > pkt_total(p) || len > pkt_total(p) - off)
		return false;
	while (len) {
		uint32_t n;

		while (i < 3 && off >= have[i])
			off -= have[i++];
		while (piece < 2 && pos == to->len[piece]) {
			piece++;
			pos = 0;
		}
		if (i == 3 || piece == 2)
			return false;	/* frag_len promised more than the pieces hold */
		n = u32_min(u32_min(have[i] - off, to->len[piece] - pos), len);
		if (s->ops.copy)
			s->ops.copy(s->ops.world, to->p[piece] + pos, src[i] + off, n);
		else
			memcpy(to->p[piece] + pos, src[i] + off, n);
		off += n;
		pos += n;
		len -= n;
	}
	return true;
}

/* The application's word, when it says more than we knew; an illegal value is the kick's business. */
static void rx_tail_refresh(struct tcb *t)
{
	uint64_t v = a64_acquire(&t->ref.app->rx_tail);

	if (v > rx_tail(t) && v <= rx_head(t))
		e_rx_tail(&t->e, v);
}

/* End of the highest byte held, as a stream offset. */
static uint64_t rx_live_end(const struct tcb *t)
{
	const struct tcp_ranges *o;

	if (!tcp_has_ooo(t))
		return rx_head(t);
	o = &t->holes->ooo;
	return o->r[o->n - 1].end - 1;
}

/* Room in the ring up to stream offset `end`; the word is published with rx_head, not here. */
static bool rx_reserve(struct tcb *t, uint64_t end)
{
	uint64_t from = rx_tail(t), live = rx_live_end(t), word;

	if (end - from > neat_ring_max(NEAT_RX))
		return false;
	if (live != from && end - from <= neat_ringword_size(rx_ring(t), NEAT_RX))
		return true;
	word = neat_ring_reserve(sockref_seg(&t->ref), t->ref.slot, NEAT_RX, rx_ring(t), from, live,
				 end > live ? end - live : 0);
	if (word != rx_ring(t))
		e_rx_ring(t, word);
	return true;
}

static bool rx_write(struct stack *s, struct tcb *t, const struct tcp_seg *g)
{
	uint64_t off = g->seq - 1;	/* sequence number 1 is stream offset 0 */
	struct neat_span to;

	if (!t->ref.mem || !rx_reserve(t, off + g->len))
		return false;
	to = neat_ring_span(sockref_seg(&t->ref), t->ref.slot, NEAT_RX, rx_ring(t), off, g->len);
	return payload_copy(s, g->p, g->hdr_len + g->skip, &to);
}

static void publish_head(struct stack *s, struct tcb *t)
{
	struct neat_slot_pub *pub = t->ref.pub;

	if (a64_relaxed(&pub->rx_ring) != rx_ring(t))
		a64_release(&pub->rx_ring, rx_ring(t));
	a64_release(&pub->rx_head, rx_head(t));
	sock_notify(s, &t->ref, SOCK_READABLE);
}

/* In order and nothing out of order is held: the case that matters. g->seq == rcv_nxt. */
void tcp_deliver(struct stack *s, struct tcb *t, const struct tcp_seg *g)
{
	if (t->ref.mem)
		rx_tail_refresh(t);
	if (!rx_write(s, t, g)) {
		stack_drop(s, DROP_TCP_MEMORY);
		return;
	}
	e_rcv_nxt(&t->e, g->seq + g->len);
	s->count.bytes_in += g->len;
	publish_head(s, t);
}

/* The hole is filled: take what lies behind it. */
static void ooo_merge(struct tcb *t)
{
	struct tcp_ranges *o = &t->holes->ooo;

	ranges_cut(o, rcv_nxt(t));
	if (o->n && o->r[0].start == rcv_nxt(t)) {
		e_rcv_nxt(&t->e, o->r[0].end);
		ranges_cut(o, rcv_nxt(t));
	}
}

/* Newest first, each once (RFC 2018 4). */
static void ooo_recent(struct tcp_holes *h, uint64_t start)
{
	unsigned i = 0;

	while (i < 3 && h->recent[i] != start)
		i++;
	memmove(&h->recent[1], &h->recent[0], i * sizeof(h->recent[0]));
	h->recent[0] = start;
}

static void ooo_add(struct stack *s, struct tcb *t, const struct tcp_seg *g)
{
	struct tcp_holes *h = tcb_holes(s, t);
	uint64_t added;

	s->count.ooo_in++;
	t->flags |= TCB_ACK_NOW;	/* RFC 5681 4.2: at once, so that the sender sees duplicates */
	if (!h || h->ooo.n == TCP_RANGES) {
		stack_drop(s, DROP_TCP_MEMORY);	/* legal: SACK is advisory, and this one was not SACKed */
		return;
	}
	if (ranges_contain(&h->ooo, g->seq, g->seq + g->len)) {
		t->flags |= TCB_DSACK;
		t->dsack_start = g->seq;
		t->dsack_len = g->len;
		return;
	}
	if (!rx_write(s, t, g)) {
		stack_drop(s, DROP_TCP_MEMORY);
		return;
	}
	if (ranges_add(&h->ooo, g->seq, g->seq + g->len, &added))
		ooo_recent(h, g->seq);
}

/* Cut what was received before and what exceeds the window told to the peer. */
static bool trim(struct tcb *t, struct tcp_seg *g, bool *fin)
{
	uint64_t next = rcv_nxt(t);

	if (seq_lt(g->seq, next)) {
		uint64_t dup = u64_min(next - g->seq, g->len);

		if (dup) {
			t->flags |= TCB_DSACK | TCB_ACK_NOW;
			t->dsack_start = g->seq;
			t->dsack_len = (uint32_t)dup;
		}
		g->skip += (uint32_t)dup;
		g->len -= (uint32_t)dup;
		g->seq += dup;
		if (seq_lt(g->seq, next))
			return false;	/* an old FIN: answered by the caller's ACK */
	}
	if (seq_lt(t->rcv_adv, g->seq + g->len)) {
		g->len = seq_lt(g->seq, t->rcv_adv) ? (uint32_t)(t->rcv_adv - g->seq) : 0;
		*fin = false;
		t->flags |= TCB_ACK_NOW;
	}
	return g->len || *fin;
}

void tcp_receive(struct stack *s, struct tcb *t, struct tcp_seg *g)
{
	bool fin = g->flags & TCP_FIN;
	uint64_t end;

	if (!tcp_receives(tcp_state(t)) || (!g->len && !fin) || !trim(t, g, &fin))
		return;
	end = g->seq + g->len;
	if (g->len && t->ref.mem)
		rx_tail_refresh(t);
	if (g->seq != rcv_nxt(t)) {
		if (g->len)
			ooo_add(s, t, g);
		if (fin) {
			t->fin_ooo = end;
			t->flags |= TCB_FIN_OOO | TCB_ACK_NOW;
		}
		return;
	}
	if (g->len) {
		if (!rx_write(s, t, g)) {
			stack_drop(s, DROP_TCP_MEMORY);
			return;
		}
		e_rcv_nxt(&t->e, end);
		if (tcp_has_ooo(t)) {
			ooo_merge(t);
			t->flags |= TCB_ACK_NOW;	/* RFC 5681 4.2: a hole was filled */
		}
		s->count.bytes_in += g->len;
		publish_head(s, t);
	}
	if (fin && end == rcv_nxt(t))
		tcp_fin_received(s, t);
	else if (t->flags & TCB_FIN_OOO && t->fin_ooo == rcv_nxt(t))
		tcp_fin_received(s, t);
}

/*
 * Receive buffer autotuning (Fisk & Feng's dynamic right-sizing): twice what the application read
 * within one round trip, never less than before.
 */
void tcp_rcvbuf_tune(struct stack *s, struct tcb *t)
{
	uint64_t read, want, ceiling = s->cfg.rcvbuf;
	uint32_t rtt_us = t->srtt_us ? t->srtt_us : 10000;

	if (t->flags & TCB_RCVBUF_FIXED || s->now_us - t->drs_start_us < rtt_us)
		return;
	read = rx_tail(t) - t->drs_tail;
	t->drs_tail = rx_tail(t);
	t->drs_start_us = s->now_us;
	want = 2 * read + 16ull * t->rcv_mss;
	if (ceiling > TCP_RCVBUF_MAX)
		ceiling = TCP_RCVBUF_MAX;
	if (want > ceiling)
		want = ceiling;
	if (read > t->rcvbuf / 4 && want > t->rcvbuf)
		t->rcvbuf = share_buffer(s, t, t->rcvbuf, (uint32_t)want);
}
