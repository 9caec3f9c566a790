/*
 * tcp_out.c - what to send now, and the bytes of each segment.
 *
 * Owns snd_nxt, snd_max and the advertised right edge. Payload is never copied: a packet refers to
 * the application's send ring, which keeps [tx_una, tx_tail) unchanged (W4). Sender's side of
 * silly-window avoidance and Nagle: RFC 9293 3.8.6.2.1, 3.7.4, with Minshall's modification (as
 * Linux): only an unacknowledged *small* segment holds the next small one back.
 */
#include "tcp.h"

enum { SEG_ROOM = 144 };	/* PKT_HEADROOM + what the alignment below needs */

/* ---- the receive window ---- */

/*
 * Right edge to tell (W5): what the buffer allows, moved only in steps worth telling (RFC 9293
 * 3.8.6.2.2), never back. Returns the window field. Rounding to the scale may take back less than
 * one unit of it, which RFC 7323 2.4 allows as long as rcv_adv still decides what is accepted;
 * rounding up instead would promise a little more than the buffer holds with every ACK.
 */
static uint16_t window_field(struct tcb *t)
{
	uint64_t next = rcv_nxt(t), limit = rx_tail(t) + 1 + t->rcvbuf, edge = limit, room;
	uint32_t step = u32_min(t->rcvbuf / 2, t->rcv_mss), unit = 1u << t->rcv_wscale;

	if (seq_lt(edge, t->rcv_adv + step))
		edge = t->rcv_adv;
	room = edge - next;
	if (seq_leq(next + ((room + unit - 1) & ~(uint64_t)(unit - 1)), limit))
		room += unit - 1;
	room = u64_min(room >> t->rcv_wscale, 0xffff);
	if (seq_lt(t->rcv_adv, next + (room << t->rcv_wscale)))
		t->rcv_adv = next + (room << t->rcv_wscale);
	return (uint16_t)room;
}

bool tcp_window_opened(const struct tcb *t)
{
	uint64_t edge = rx_tail(t) + 1 + t->rcvbuf, left = t->rcv_adv - rcv_nxt(t);
	uint32_t step = u32_min(t->rcvbuf / 2, 2u * t->rcv_mss);

	if (!tcp_receives(tcp_state(t)))
		return false;
	return !seq_lt(edge, t->rcv_adv + step) && left < u32_max(t->rcvbuf / 2, step);
}

/* ---- building ---- */

struct seg_buf { _Alignas(16) uint8_t room[SEG_ROOM]; };

static struct wire_tcp *seg_start(struct pkt *p, struct seg_buf *b, uint32_t hdr_len)
{
	p->buf = b->room;
	p->data = b->room + SEG_ROOM - hdr_len;
	p->len = hdr_len;
	p->frag_len = 0;
	p->frag[0].p = p->frag[1].p = NULL;
	p->frag[0].len = p->frag[1].len = 0;
	p->flags = 0;
	p->gso_size = 0;
	p->l4_offset = 0;
	p->sent_id = 0;
	p->sent = 0;
	return (struct wire_tcp *)(void *)p->data;
}

static void put_timestamps(uint8_t *o, uint32_t val, uint32_t ecr)
{
	const uint32_t w[3] = { __builtin_bswap32(0x0101080a), __builtin_bswap32(val), __builtin_bswap32(ecr) };

	memcpy(o, w, sizeof(w));
}

/* Hand over to IP; lo needs no checksum, elsewhere the field starts with the pseudo-header. */
static bool seg_out(struct stack *s, struct pkt *p, const struct flow_key *k, bool local, uint32_t tos_ttl)
{
	struct wire_tcp *h = (struct wire_tcp *)(void *)p->data;
	const struct ip_meta m = {
		.saddr = k->laddr, .daddr = k->raddr, .proto = IP_PROTO_TCP,
		.ttl = tos_ttl & 0xff ? (uint8_t)tos_ttl : 64, .tos = (uint8_t)(tos_ttl >> 8),
	};

	if (local) {
		h->csum.v = 0;
		p->flags = PKT_LOCAL | PKT_CSUM_OK;
	} else {
		h->csum.v = 0;
		h->csum = be16_put(ip_pseudo_sum(k->laddr, k->raddr, IP_PROTO_TCP, pkt_total(p)));
		p->flags = PKT_CSUM_PARTIAL;
	}
	if (!ip_output(s, p, &m))
		return false;
	s->count.segments_out++;
	return true;
}

/* A segment of a connection: header, timestamps, optionally SACK blocks. */
static void seg_header(struct stack *s, struct tcb *t, struct pkt *p, struct seg_buf *b, uint64_t seq,
		       uint8_t flags, unsigned nsack, uint32_t (*sack)[2])
{
	uint32_t opt_len = (t->options & TCP_OPT_TS ? (uint32_t)TCP_TS_LEN : 0) + (nsack ? 4 + 8 * nsack : 0);
	struct wire_tcp *h = seg_start(p, b, sizeof(*h) + opt_len);
	uint8_t *o = (uint8_t *)(h + 1);

	h->sport = be16_put(t->key.lport);
	h->dport = be16_put(t->key.rport);
	h->seq = be32_put(t->iss + (uint32_t)seq);
	h->ack = be32_put(t->irs + (uint32_t)rcv_nxt(t));
	h->offset = (uint8_t)((sizeof(*h) + opt_len) / 4 << 4);
	h->flags = flags;
	h->window = be16_put(window_field(t));
	h->urgent.v = 0;
	if (t->options & TCP_OPT_TS) {
		put_timestamps(o, tcp_now_ts(s, t->ts_offset), ts_recent(t));
		o += TCP_TS_LEN;
	}
	if (nsack) {
		*o++ = TCP_KIND_NOP;
		*o++ = TCP_KIND_NOP;
		*o++ = TCP_KIND_SACK;
		*o++ = (uint8_t)(2 + 8 * nsack);
		for (unsigned i = 0; i < nsack; i++, o += 8) {
			const uint32_t w[2] = { __builtin_bswap32(sack[i][0]), __builtin_bswap32(sack[i][1]) };

			memcpy(o, w, sizeof(w));
		}
	}
}

/* Whatever left carries our acknowledgement. */
static void acked_by_output(struct tcb *t)
{
	t->rcv_wup = rcv_nxt(t);
	t->ack_at_us = 0;
	t->flags &= ~(uint32_t)(TCB_ACK_NOW | TCB_DSACK);
}

void tcp_put_off(struct stack *s, struct tcb *t)
{
	struct tcp *tcp = s->tcp;
	uint32_t i = tcb_index(s, t) + 1;

	if (t->flags & TCB_ON_RESUME)
		return;
	t->flags |= TCB_ON_RESUME;
	t->resume_next = 0;
	if (tcp->resume_tail)
		tcp->tcbs[tcp->resume_tail - 1].resume_next = i;
	else
		tcp->resume_head = i;
	tcp->resume_tail = i;
}

/*
 * Send [seq, seq + len) and perhaps a FIN. W1: snd_max first. False: no room, nothing changed but
 * snd_max, which only says "may have been sent".
 */
static bool send_data(struct stack *s, struct tcb *t, uint64_t seq, uint32_t len, uint8_t flags)
{
	struct seg_buf b;
	struct pkt p;
	uint64_t end = seq + len + !!(flags & TCP_FIN);

	if (seq_lt(snd_max(t), end))
		e_snd_max(&t->e, end);
	seg_header(s, t, &p, &b, seq, flags, 0, NULL);
	if (len) {
		/* Acquire: the ring word is at least as new as the tx_tail that promised these bytes. */
		uint64_t word = a64_acquire(&t->ref.app->tx_ring);
		struct neat_span f = neat_ring_span(sockref_seg(&t->ref), t->ref.slot, NEAT_TX, word, seq - 1, len);

		p.frag[0].p = f.p[0];
		p.frag[0].len = f.len[0];
		p.frag[1].p = f.p[1];
		p.frag[1].len = f.len[1];
		p.frag_len = f.len[0] + f.len[1];
		if (p.frag_len > t->mss)
			p.gso_size = t->mss;
	}
	if (!seg_out(s, &p, &t->key, t->flags & TCB_LOCAL, t->tos_ttl)) {
		tcp_put_off(s, t);
		return false;
	}
	acked_by_output(t);
	if (tcp_racks(t))
		tcp_sent_note(s, t, seq, end);
	s->count.bytes_out += len;
	return true;
}

bool tcp_send_ack(struct stack *s, struct tcb *t)
{
	struct seg_buf b;
	struct pkt p;
	uint32_t sack[4][2];
	unsigned n = 0;

	if (t->options & TCP_OPT_SACK && (t->holes || t->flags & TCB_DSACK))
		n = tcp_sack_blocks(t, sack, t->options & TCP_OPT_TS ? 3 : 4);
	seg_header(s, t, &p, &b, t->snd_nxt, TCP_ACK, n, sack);
	if (!seg_out(s, &p, &t->key, t->flags & TCB_LOCAL, t->tos_ttl)) {
		tcp_put_off(s, t);
		return false;
	}
	acked_by_output(t);
	return true;
}

/* RFC 9293 3.8.6.1, 3.8.4: an old sequence number is not acceptable, so it must be answered. */
bool tcp_send_probe(struct stack *s, struct tcb *t)
{
	struct seg_buf b;
	struct pkt p;

	seg_header(s, t, &p, &b, snd_una(t) - 1, TCP_ACK, 0, NULL);
	return seg_out(s, &p, &t->key, t->flags & TCB_LOCAL, t->tos_ttl);
}

void tcp_send_rst(struct stack *s, struct tcb *t)
{
	struct seg_buf b;
	struct pkt p;

	seg_header(s, t, &p, &b, t->snd_nxt, TCP_RST | TCP_ACK, 0, NULL);
	s->count.resets_out++;
	if (!seg_out(s, &p, &t->key, t->flags & TCB_LOCAL, t->tos_ttl))
		stack_drop(s, DROP_QUEUE_FULL);	/* lost like any other; the peer's next segment gets one */
}

/* ---- segments without a control block ---- */

bool tcp_send_reply(struct stack *s, const struct tcp_reply *r)
{
	uint8_t opt[40];
	uint32_t opt_len = 0;
	struct seg_buf b;
	struct pkt p;
	struct wire_tcp *h;

	if (r->flags & TCP_SYN) {
		opt_len = tcp_build_syn_options(opt, r);
	} else if (r->options & TCP_OPT_TS) {
		put_timestamps(opt, r->ts_val, r->ts_ecr);
		opt_len = TCP_TS_LEN;
	}
	h = seg_start(&p, &b, sizeof(*h) + opt_len);
	h->sport = be16_put(r->key.lport);
	h->dport = be16_put(r->key.rport);
	h->seq = be32_put(r->seq);
	h->ack = be32_put(r->ack);
	h->offset = (uint8_t)((sizeof(*h) + opt_len) / 4 << 4);
	h->flags = r->flags;
	h->window = be16_put(r->wnd);
	h->urgent.v = 0;
	memcpy(h + 1, opt, opt_len);
	return seg_out(s, &p, &r->key, ip_is_local(s, r->key.raddr), (uint32_t)r->tos << 8);
}

void tcp_answer(struct stack *s, const struct flow_key *k, bool used)
{
	const struct ip_meta m = { .saddr = k->laddr, .daddr = k->raddr, .proto = IP_PROTO_TCP, .ttl = 64 };
	struct seg_buf b;
	struct pkt p;
	struct wire_tcp *h = seg_start(&p, &b, sizeof(*h));

	*h = (struct wire_tcp){ .sport = be16_put(k->lport), .dport = be16_put(k->rport),
				.offset = sizeof(*h) / 4 << 4, .flags = TCP_RST };
	p.flags = PKT_RETURNED | (used ? PKT_ASKED : 0);
	if (!ip_output(s, &p, &m))
		stack_drop(s, DROP_QUEUE_FULL);	/* the SYN is sent again, and then given back */
}

/* RFC 9293 3.10.7.1. Bounded per second like challenge ACKs, so that a scan is no amplifier. */
void tcp_refuse(struct stack *s, const struct tcp_seg *g, const struct flow_key *k)
{
	struct tcp_reply r = { .key = *k, .flags = TCP_RST };

	if (g->flags & TCP_RST)
		return;
	if (!ip_is_local(s, k->raddr) && !tcp_challenge_allowed(s))
		return;
	if (g->flags & TCP_ACK) {
		r.seq = g->wire_ack;
	} else {
		r.flags |= TCP_ACK;
		r.ack = g->wire_seq + g->len + g->skip + !!(g->flags & TCP_SYN) + !!(g->flags & TCP_FIN);
	}
	s->count.resets_out++;
	if (!tcp_send_reply(s, &r))
		stack_drop(s, DROP_QUEUE_FULL);
}

/* ---- SYN and SYN-ACK of a control block ---- */

bool tcp_send_syn(struct stack *s, struct tcb *t)
{
	bool rcvd = tcp_state(t) == TCP_SYN_RCVD;
	struct tcp_reply r = {
		.key = t->key, .seq = t->iss, .flags = rcvd ? TCP_SYN | TCP_ACK : TCP_SYN,
		.ack = rcvd ? t->irs + 1 : 0, .mss = t->pmss, .wscale = t->rcv_wscale,
		.options = t->options, .ts_val = tcp_now_ts(s, t->ts_offset), .ts_ecr = ts_recent(t),
		.tos = (uint8_t)(t->tos_ttl >> 8),
	};

	r.wnd = (uint16_t)u32_min(t->rcvbuf, 0xffff);
	if (snd_max(t) < 1)
		e_snd_max(&t->e, 1);
	if (t->backoff == 0) {
		t->rtt_seq = 1;
		t->rtt_start_us = s->now_us;
	}
	t->rtx_kind = TCP_RTX_RTO;
	t->rtx_at_us = s->now_us + t->rto_us;
	t->flags &= ~(uint32_t)TCB_ACK_NOW;
	if (!tcp_send_reply(s, &r))
		return false;	/* the timer tries again */
	t->snd_nxt = 1;
	return true;
}

/* ---- new data ---- */

/* RFC 9293 3.8.6.2.1: half of the largest window is worth a segment (on lo, the MSS may be more than a window). */
static uint32_t full_size(const struct tcb *t) { return u32_min(t->mss, t->snd_wnd_max / 2); }

/*
 * Its writer may be waiting for room (a third of the buffer, nt_writable()), and nothing in flight makes the
 * peer answer at once: what is held would become no fuller. Linux pushes when a writer blocks.
 */
static bool writer_waits(const struct tcb *t)
{
	return 3 * (tx_tail(t) - tx_una(t)) >= 2ull * t->sndbuf && t->snd_nxt - snd_una(t) <= t->mss;
}

/* Is a segment that ends the queue and is not full to wait (RFC 9293 3.7.4)? */
static bool hold_small(struct stack *s, struct tcb *t, uint32_t len)
{
	uint32_t corked = t->opt_flags & (NEAT_OPTF_CORK | NEAT_OPTF_MORE);

	if (len >= full_size(t) || tcp_fin_queued(t) || writer_waits(t))
		return false;
	if (corked && !(t->flags & TCB_CORK_DUE)) {
		if (!(t->flags & TCB_PUSH_HELD)) {
			t->flags |= TCB_PUSH_HELD;
			t->cork_at_us = s->now_us + TCP_CORK_US;
		}
		return true;
	}
	return !(t->opt_flags & NEAT_OPTF_NODELAY) && !(t->flags & (TCB_CORK_DUE | TCB_LOCAL)) &&
	       seq_lt(snd_una(t), t->snd_sml);
}

/* How many bytes of `avail` may go out as one packet now; 0 = none. */
static uint32_t allowed(struct stack *s, struct tcb *t, uint64_t avail, uint64_t cwnd_room)
{
	uint64_t edge = snd_una(t) + snd_wnd(t);
	uint64_t wnd = seq_lt(t->snd_nxt, edge) ? edge - t->snd_nxt : 0;
	uint32_t mss = t->mss;
	uint64_t len = u64_min(u64_min(avail, wnd), u32_max(TCP_SEGMENT_MAX, mss));

	if (len > cwnd_room) {
		if (cwnd_room < mss)
			return 0;	/* ACKs will come: something is in flight */
		len = cwnd_room;
	}
	if (len >= mss)
		return (uint32_t)(len - len % mss);	/* the rest is a segment of its own */
	if (len == avail)
		return hold_small(s, t, (uint32_t)len) ? 0 : (uint32_t)len;
	/*
	 * Cut short by the window: worth it for half of the largest window ever seen. A receiver on lo that has
	 * been given a smaller buffer opens no more of it for being waited for.
	 */
	if (len >= t->snd_wnd_max / 2 || (t->flags & TCB_LOCAL && t->snd_nxt == snd_una(t)))
		return (uint32_t)len;
	return 0;
}

/* The peer's window is shut and nothing is in flight that would bring an ACK. */
static bool window_blocked(const struct tcb *t)
{
	return t->snd_nxt == snd_una(t) && t->snd_nxt != tx_tail(t) + 1 &&
	       !(t->flags & TCB_PUSH_HELD && !(t->flags & TCB_CORK_DUE));
}

static void sent_new(struct stack *s, struct tcb *t, uint32_t len, uint64_t end)
{
	t->snd_nxt = end;
	if (len < full_size(t))
		t->snd_sml = end;
	if (!t->rtt_seq && !(t->flags & TCB_RETRANSMITTED)) {
		t->rtt_seq = end;
		t->rtt_start_us = s->now_us;
	}
	/* A reply within the delay makes it a conversation: ACKs ride (Linux pingpong mode). */
	if (s->now_us - t->last_rx_us < TCP_DELACK_US)
		t->flags |= TCB_PINGPONG;
	t->last_tx_us = s->now_us;
	t->flags &= ~(uint32_t)TCB_PUSH_HELD;
	if (seq_lt(tx_tail(t), end))	/* a push is of all that was queued */
		t->flags &= ~(uint32_t)TCB_CORK_DUE;
	t->cork_at_us = 0;
	if (t->rtx_kind == TCP_RTX_PERSIST) {	/* from now on it is the RTO that matters */
		t->rtx_kind = TCP_RTX_NONE;
		t->rtx_at_us = 0;
		t->backoff = 0;
	} else if (t->rtx_kind == TCP_RTX_PTO) {	/* RFC 8985 7.2: the tail is another one now */
		tcp_arm_rtx(s, t);
	}
}

static bool send_one_new(struct stack *s, struct tcb *t, uint64_t cwnd_room)
{
	uint64_t last = tx_tail(t) + 1, seq = t->snd_nxt, avail;
	bool fin_left = tcp_fin_queued(t) && seq != last + 1;
	uint8_t flags = TCP_ACK;
	uint32_t len = 0;

	if (seq == last + 1 || (seq == last && !fin_left))
		return false;
	avail = last - seq;
	if (avail) {
		len = allowed(s, t, avail, cwnd_room);
		if (!len)
			return false;
	}
	if (len == avail) {
		flags |= TCP_PSH;
		if (fin_left)
			flags |= TCP_FIN;
	}
	if (!send_data(s, t, seq, len, flags))
		return false;
	sent_new(s, t, len, seq + len + !!(flags & TCP_FIN));
	return true;
}

static void send_new(struct stack *s, struct tcb *t)
{
	uint64_t pipe = tcp_pipe(t);

	/* RFC 5681 4.1. */
	if (t->snd_nxt == snd_una(t) && t->last_tx_us && s->now_us - t->last_tx_us > t->rto_us)
		tcp_cc_idle(s, t);
	for (;;) {
		uint64_t before = t->snd_nxt;

		if (!send_one_new(s, t, t->cwnd > pipe ? t->cwnd - pipe : 0))
			return;
		pipe += t->snd_nxt - before;
	}
}

/* RFC 9293 3.8.6.2.1 (4): a window too small to be worth it is used when nothing better came. */
void tcp_send_override(struct stack *s, struct tcb *t)
{
	uint64_t avail = tx_tail(t) + 1 - t->snd_nxt;
	uint32_t len = (uint32_t)u64_min(avail, u32_min(snd_wnd(t), t->mss));

	if (send_data(s, t, t->snd_nxt, len, TCP_ACK | TCP_PSH))
		sent_new(s, t, len, t->snd_nxt + len);
	tcp_arm_rtx(s, t);
}

/* ---- retransmission ---- */

bool tcp_retransmit(struct stack *s, struct tcb *t, uint64_t start, uint64_t end)
{
	uint64_t last = tx_tail(t) + 1;
	uint8_t flags = TCP_ACK | TCP_PSH;
	uint32_t len;

	if (!t->ref.mem && start != last)
		return false;
	len = (uint32_t)u64_min(u64_min(end, last) - start, t->mss);
	if (seq_lt(last, end) && start + len == last)
		flags |= TCP_FIN;
	t->flags |= TCB_RETRANSMITTED;
	t->rtt_seq = 0;			/* Karn */
	if (!send_data(s, t, start, len, flags))
		return false;
	s->count.retransmits++;
	t->total_retrans++;
	end = start + len + !!(flags & TCP_FIN);
	if (seq_lt(t->high_rxt, end))
		t->high_rxt = end;
	return true;
}

/* The last segment's worth of what is in flight: the highest number makes the peer report all holes. */
static void tlp_retransmit(struct stack *s, struct tcb *t)
{
	uint64_t start = snd_una(t), last = tx_tail(t) + 1, end = t->snd_nxt;
	uint64_t data_end = seq_lt(last, end) ? last : end;

	if (seq_lt(start + t->mss, data_end))
		start = data_end - t->mss;
	if (!tcp_retransmit(s, t, start, end) || !t->sent)
		return;
	t->sent->tlp_retrans = true;
	t->sent->tlp_end = end;
}

void tcp_send_tlp(struct stack *s, struct tcb *t)
{
	bool due = t->flags & TCB_CORK_DUE, corked = t->opt_flags & (NEAT_OPTF_CORK | NEAT_OPTF_MORE) && !due;

	s->count.tlp++;
	if (!corked)
		t->flags |= TCB_CORK_DUE;	/* Nagle waits for an ACK, which is what the probe is to bring */
	if (send_one_new(s, t, t->mss) && t->sent) {
		t->sent->tlp_retrans = false;
		t->sent->tlp_end = t->snd_nxt;
	} else {
		tlp_retransmit(s, t);
	}
	if (!corked && !due)
		t->flags &= ~(uint32_t)TCB_CORK_DUE;
	tcp_arm_rtx(s, t);		/* one probe at a time: the RTO (7.3) */
}

/* RFC 6675 5 step C: as long as a segment fits into cwnd - pipe; RETRANS_DUE sends one regardless. */
static void send_recovery(struct stack *s, struct tcb *t)
{
	uint64_t start, end;
	unsigned guard = 0;

	while (guard++ < 1024) {
		bool forced = t->flags & TCB_RETRANS_DUE;

		if (!forced && tcp_pipe(t) + t->mss > t->cwnd)
			return;
		if (!tcp_next_hole(t, false, &start, &end))
			break;
		if (!tcp_retransmit(s, t, start, end))
			return;
		t->flags &= ~(uint32_t)TCB_RETRANS_DUE;
		if (t->recovery == TCP_FAST_RECOVERY && t->rtx_kind != TCP_RTX_REO) {
			t->rtx_kind = TCP_RTX_RTO;	/* RFC 6675 5 step 4.3: restart with the first */
			if (forced)
				t->rtx_at_us = s->now_us + t->rto_us;
		}
	}
	t->flags &= ~(uint32_t)TCB_RETRANS_DUE;
	send_new(s, t);
	/* NextSeg rule 3: nothing new to send, so help along what may be lost. */
	while (t->recovery == TCP_FAST_RECOVERY && t->snd_nxt == snd_end(t) && guard++ < 1024 &&
	       tcp_pipe(t) + t->mss <= t->cwnd && tcp_next_hole(t, true, &start, &end))
		if (!tcp_retransmit(s, t, start, end))
			return;
}

/* ---- entry ---- */

void tcp_output(struct stack *s, struct tcb *t)
{
	if (t->flags & TCB_ON_RESUME)
		return;
	/* Holes and duplicates are told at once; data segments carry no SACK blocks. */
	if (t->flags & TCB_ACK_NOW && t->options & TCP_OPT_SACK && (tcp_has_ooo(t) || t->flags & TCB_DSACK))
		if (!tcp_send_ack(s, t))
			return;
	if (tcp_sends(tcp_state(t))) {
		if (t->recovery != TCP_OPEN)
			send_recovery(s, t);
		else if (t->snd_nxt != snd_end(t))
			send_new(s, t);
		if (!t->rtx_at_us)
			tcp_arm_rtx(s, t);
	}
	if (t->flags & TCB_ACK_NOW)
		tcp_send_ack(s, t);
}

/* Is there unsent data that only a wider window will let out? For tcp_arm_rtx(). */
bool tcp_needs_persist(const struct tcb *t)
{
	return window_blocked(t);
}

void tcp_resume(struct stack *s)
{
	struct tcp *tcp = s->tcp;
	uint32_t i = tcp->resume_head;

	/* Those that find no room again go to a new list. */
	tcp->resume_head = tcp->resume_tail = 0;
	while (i) {
		struct tcb *t = &tcp->tcbs[i - 1];

		i = t->resume_next;
		t->flags &= ~(uint32_t)TCB_ON_RESUME;
		if (tcp_state(t) == TCP_FREE || tcp_state(t) == TCP_CLOSED)
			continue;
		unit_begin(s, UNIT_OUTPUT, t);
		tcp_output(s, t);
		tcp_arm(s, t);
		unit_end(t);
	}
}
