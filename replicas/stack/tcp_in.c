/*
 * tcp_in.c - a segment arrives: RFC 9293 3.10.7, step by step, with RFC 5961 and 7323 where they
 * changed it; in front of it the predicted path for a connection in which nothing unusual happens.
 *
 * Each step takes the parsed segment and says whether to go on. What an ACK means is in tcp_ack.c,
 * where payload goes in tcp_reass.c, segments for half-open connections and listeners in tcp_syn.c.
 */
#include "tcp.h"
#include <errno.h>

/* ---- header ---- */

/* Fixed header; false if the bytes are not there or the offset points outside. */
static bool parse_header(struct tcp_seg *g, struct pkt *p, const struct ip_meta *m, struct flow_key *k)
{
	const struct wire_tcp *h = pkt_get(p, 0, sizeof(*h));
	uint32_t hdr_len;

	if (!h)
		return false;
	hdr_len = (uint32_t)(h->offset >> 4) * 4;
	if (hdr_len < sizeof(*h) || hdr_len > p->len)
		return false;
	g->p = p;
	g->m = m;
	g->hdr_len = (uint16_t)hdr_len;
	g->wire_seq = be32_get(h->seq);
	g->wire_ack = be32_get(h->ack);
	g->flags = h->flags;
	g->wnd = be16_get(h->window);
	g->len = pkt_total(p) - hdr_len;
	g->skip = 0;
	g->nsack = 0;
	g->has = 0;
	g->mss = 0;
	g->wscale = 0;
	g->ts_val = g->ts_ecr = 0;
	g->dsack_end = 0;
	k->laddr = m->daddr;
	k->raddr = m->saddr;
	k->lport = be16_get(h->dport);
	k->rport = be16_get(h->sport);
	return true;
}

/* The layout every sender uses for a segment with timestamps only (RFC 7323 appendix A). */
static bool parse_timestamps_only(struct tcp_seg *g)
{
	const uint8_t *o = g->p->data + sizeof(struct wire_tcp);
	uint32_t w[3];

	if (g->hdr_len != sizeof(struct wire_tcp) + TCP_TS_LEN)
		return false;
	memcpy(w, o, sizeof(w));
	if (w[0] != __builtin_bswap32(0x0101080a))
		return false;
	g->has = TCP_OPT_TS;
	g->ts_val = __builtin_bswap32(w[1]);
	g->ts_ecr = __builtin_bswap32(w[2]);
	return true;
}

static bool parse_options(struct tcp_seg *g)
{
	const uint32_t fixed = sizeof(struct wire_tcp);

	if (g->hdr_len == fixed || parse_timestamps_only(g))
		return true;
	return tcp_parse_options(g, g->p->data + fixed, g->hdr_len - fixed);
}

/* ---- acknowledging ---- */

/*
 * RFC 9293 3.8.6.3: at once for more than a full-sized segment, in a one-sided connection while it is
 * young and whenever the sender has nothing more (Nagle may hold its next one back; Linux waits for the
 * program to read it), and when the delay ran out; otherwise wait for a reply to ride on.
 */
static void ack_policy(struct stack *s, struct tcb *t, uint32_t seg_size, uint8_t flags)
{
	bool one_sided = !(t->flags & TCB_PINGPONG);
	uint64_t unacked = rcv_nxt(t) - t->rcv_wup;

	if (seg_size > t->rcv_mss)
		t->rcv_mss = (uint16_t)u32_min(seg_size, TCP_MSS_MAX);
	if (t->quick && one_sided) {
		t->quick--;
		t->flags |= TCB_ACK_NOW;
	} else if (unacked > t->rcv_mss || (one_sided && flags & TCP_PSH)) {
		t->flags |= TCB_ACK_NOW;
	} else if (!t->ack_at_us) {
		t->ack_at_us = s->now_us + TCP_DELACK_US;
	}
}

static uint32_t seg_size(const struct tcp_seg *g)
{
	return g->p->gso_size ? u32_min(g->p->gso_size, g->len) : g->len;
}

/* Global and per-second, with a random part: a fixed limit was itself a side channel (CVE-2016-5696). */
bool tcp_challenge_allowed(struct stack *s)
{
	struct tcp *tcp = s->tcp;

	if (s->now_us - tcp->challenge_window_us >= 1000000) {
		tcp->challenge_window_us = s->now_us;
		tcp->challenge_left = TCP_CHALLENGE_PER_S / 2 +
				      (uint32_t)(s->ops.random(s->ops.world) % TCP_CHALLENGE_PER_S);
	}
	if (!tcp->challenge_left) {
		stack_drop(s, DROP_TCP_RATE);
		return false;
	}
	tcp->challenge_left--;
	return true;
}

void tcp_challenge(struct stack *s, struct tcb *t)
{
	if (s->now_us - t->oow_ack_us < TCP_OOW_ACK_US && t->oow_ack_us)
		return;
	if (!tcp_challenge_allowed(s))
		return;
	t->oow_ack_us = s->now_us;
	tcp_send_ack(s, t);
}

/* ---- the predicted path ---- */

/*
 * ESTABLISHED, nothing lost or out of order, next segment in sequence, an ACK in range, timestamps
 * where they always are. Everything else takes the steps below.
 */
static bool predicted(struct tcb *t, struct tcp_seg *g)
{
	uint64_t una = snd_una(t), next = rcv_nxt(t);

	if ((uint32_t)a64_relaxed(&t->e.state) != TCP_ESTABLISHED ||
	    (g->flags & ~TCP_PSH) != TCP_ACK || t->recovery != TCP_OPEN || t->holes ||
	    t->flags & (TCB_FIN_OOO | TCB_RETRANSMITTED))
		return false;
	if (g->wire_seq != t->irs + (uint32_t)next || g->len > t->rcv_adv - next)
		return false;
	if (t->options & TCP_OPT_TS) {
		if (!parse_timestamps_only(g) || wire_lt(g->ts_val, ts_recent(t)))
			return false;
	} else if (g->hdr_len != sizeof(struct wire_tcp)) {
		return false;
	}
	g->seq = next;
	g->ack = seq_extend(g->wire_ack, t->iss, una);
	if (seq_lt(g->ack, una) || seq_lt(t->snd_nxt, g->ack))
		return false;
	/* A bare ACK that moves nothing is a duplicate or a window update. */
	return g->len || g->ack != una;
}

static void fast_ack(struct stack *s, struct tcb *t, struct tcp_seg *g)
{
	uint64_t una = snd_una(t), flight = t->snd_nxt - una;

	if (t->rtt_seq && seq_leq(t->rtt_seq, g->ack)) {
		tcp_rtt_sample(t, s->now_us - t->rtt_start_us);
		t->rtt_seq = 0;
	}
	if (tcp_sent_any(t)) {
		tcp_tlp_ack(s, t, g);
		if (t->sent)
			tcp_sent_acked(s, t, g, g->ack);
	}
	tcp_advance_una(s, t, g->ack);
	t->dupacks = 0;
	t->probes = 0;
	if (2 * flight >= t->cwnd)
		tcp_cc_acked(s, t, (uint32_t)(g->ack - una));
}

static void fast_path(struct stack *s, struct tcb *t, struct tcp_seg *g)
{
	uint32_t wnd = g->wnd << t->snd_wscale, ts = ts_recent(t);

	/* RFC 7323 4.3: only a segment that covers what we acknowledged last may set TS.Recent. */
	if (g->has & TCP_OPT_TS && seq_leq(g->seq, t->rcv_wup))
		ts = g->ts_val;
	e_wnd(&t->e, wnd, ts);
	t->snd_wl1 = g->seq;
	t->snd_wl2 = g->ack;
	if (wnd > t->snd_wnd_max)
		t->snd_wnd_max = wnd;
	t->last_rx_us = s->now_us;
	if (g->ack != snd_una(t))
		fast_ack(s, t, g);
	if (g->len) {
		tcp_deliver(s, t, g);
		ack_policy(s, t, seg_size(g), g->flags);
	}
	if (t->flags & TCB_ACK_NOW || tx_tail(t) + 1 != t->snd_nxt)
		tcp_output(s, t);
	tcp_arm(s, t);
	unit_end(t);
}

/* ---- RFC 9293 3.10.7.3: SYN-SENT ---- */

static void negotiate(struct stack *s, struct tcb *t, const struct tcp_seg *g)
{
	uint16_t peer = g->mss ? g->mss : TCP_MSS_DEFAULT;

	t->irs = g->wire_seq;
	t->options &= g->has;
	if (t->options & TCP_OPT_WS)
		t->snd_wscale = g->wscale;
	else
		t->rcv_wscale = 0;
	if (peer < TCP_MSS_MIN)
		peer = TCP_MSS_MIN;
	if (peer < t->pmss)
		t->pmss = peer;
	t->mss = (uint16_t)(t->pmss - (t->options & TCP_OPT_TS ? TCP_TS_LEN : 0));
	t->rcv_mss = (uint16_t)u32_min(t->mss, TCP_MSS_DEFAULT);
	e_rcv_nxt(&t->e, 1);
	t->rcv_wup = 1;
	t->rcv_adv = 1 + u32_min(t->rcvbuf, 0xffff);
	t->snd_wnd_max = g->wnd;	/* the window of a SYN is never scaled (RFC 7323 2.2) */
	t->snd_wl1 = 0;
	t->snd_wl2 = g->ack;
	e_wnd(&t->e, g->wnd, g->has & TCP_OPT_TS ? g->ts_val : 0);
	seal_identity(t);
	(void)s;
}

/* Our SYN arrived; if it went out once only, that is the first sample (Karn). */
static void syn_acked(struct stack *s, struct tcb *t)
{
	if (t->rtt_seq && t->backoff == 0)
		tcp_rtt_sample(t, s->now_us - t->rtt_start_us);
	t->rtt_seq = 0;
	e_snd_una(&t->e, 1);
	if (t->snd_nxt < 1)
		t->snd_nxt = 1;
}

static void syn_sent(struct stack *s, struct tcb *t, struct tcp_seg *g, const struct flow_key *k)
{
	bool ack_ok = g->flags & TCP_ACK && g->ack == 1 && snd_max(t) >= 1;

	if (g->flags & TCP_ACK && !ack_ok) {
		if (!(g->flags & TCP_RST))
			tcp_refuse(s, g, k);
		stack_drop(s, DROP_TCP_ACK);
		return;
	}
	if (g->flags & TCP_RST) {
		if (ack_ok) {
			s->count.resets_in++;
			tcp_done(s, t, ECONNREFUSED);
		}
		return;
	}
	if (!(g->flags & TCP_SYN)) {
		stack_drop(s, DROP_TCP_STATE);
		return;
	}
	negotiate(s, t, g);
	t->flags |= TCB_ACK_NOW;
	if (!ack_ok) {
		/* Simultaneous open (3.5, figure 8). */
		tcp_set_state(s, t, TCP_SYN_RCVD);
		t->backoff = 0;
		tcp_send_syn(s, t);
		return;
	}
	syn_acked(s, t);
	tcp_established(s, t);
	g->seq = 1;
	if (g->len || g->flags & TCP_FIN)
		tcp_receive(s, t, g);		/* text on a SYN-ACK is legal */
	if (tcp_state(t) != TCP_FREE && tcp_state(t) != TCP_CLOSED)
		tcp_output(s, t);
}

/* ---- RFC 9293 3.10.7.4: all other states, as steps ---- */

/* RFC 7323 5.3 R1. After 24 days of silence ts_recent means nothing (5.5). */
static bool paws_ok(struct stack *s, struct tcb *t, const struct tcp_seg *g)
{
	const uint64_t outdated_us = 24ull * 86400 * 1000000;

	if (!(t->options & TCP_OPT_TS) || !(g->has & TCP_OPT_TS) || g->flags & TCP_RST)
		return true;
	if (!wire_lt(g->ts_val, ts_recent(t)) || s->now_us - t->last_rx_us > outdated_us)
		return true;
	stack_drop(s, DROP_TCP_PAWS);
	if (g->len || g->flags & (TCP_SYN | TCP_FIN)) {
		t->flags |= TCB_ACK_NOW;
		tcp_output(s, t);
	}
	return false;
}

/* First: is any of it in the window? A zero-length segment may sit on the right edge (as Linux). */
static bool sequence_ok(struct stack *s, struct tcb *t, struct tcp_seg *g)
{
	uint64_t next = rcv_nxt(t);
	uint64_t end = g->seq + g->len + !!(g->flags & TCP_SYN) + !!(g->flags & TCP_FIN);

	if (seq_leq(next, end) && seq_leq(g->seq, t->rcv_adv))
		return true;
	stack_drop(s, seq_lt(end, next) ? DROP_TCP_OLD : DROP_TCP_WINDOW);
	if (g->flags & TCP_RST)
		return false;
	if (g->len || g->seq == next - 1) {
		/* Lost ACK, window probe or keepalive: the sender needs the answer. */
		if (g->len && seq_leq(end, next)) {
			t->flags |= TCB_DSACK;
			t->dsack_start = g->seq;
			t->dsack_len = g->len;
		}
		t->flags |= TCB_ACK_NOW;
		tcp_send_ack(s, t);
	} else {
		tcp_challenge(s, t);
	}
	return false;
}

/* Second: RFC 5961 3.2. */
static bool reset_step(struct stack *s, struct tcb *t, const struct tcp_seg *g)
{
	static const int errors[] = { [TCP_SYN_RCVD] = ECONNREFUSED, [TCP_CLOSE_WAIT] = EPIPE };
	enum tcp_state state = tcp_state(t);
	int err = ECONNRESET;

	if (!(g->flags & TCP_RST))
		return true;
	if (g->seq != rcv_nxt(t)) {
		stack_drop(s, DROP_TCP_RST);
		tcp_challenge(s, t);
		return false;
	}
	s->count.resets_in++;
	/* Linux tcp_reset(): EPIPE after the peer's FIN, ECONNREFUSED while opening. */
	if (state < sizeof(errors) / sizeof(errors[0]) && errors[state])
		err = errors[state];
	else if (state == TCP_LAST_ACK || state == TCP_CLOSING)
		err = 0;
	tcp_done(s, t, err);
	return false;
}

/* Fifth, in SYN-RECEIVED: our SYN must be what it acknowledges. */
static bool syn_rcvd_ack(struct stack *s, struct tcb *t, struct tcp_seg *g, const struct flow_key *k)
{
	if (seq_lt(snd_una(t), g->ack) && seq_leq(g->ack, snd_max(t))) {
		syn_acked(s, t);
		e_wnd(&t->e, g->wnd, ts_recent(t));
		t->snd_wl1 = g->seq;
		t->snd_wl2 = g->ack;
		t->snd_wnd_max = u32_max(t->snd_wnd_max, g->wnd);
		tcp_established(s, t);
		return true;
	}
	tcp_refuse(s, g, k);
	return false;
}

static bool ack_step(struct stack *s, struct tcb *t, struct tcp_seg *g, const struct flow_key *k)
{
	if (!(g->flags & TCP_ACK)) {
		stack_drop(s, DROP_TCP_STATE);
		return false;
	}
	if (tcp_state(t) == TCP_SYN_RCVD && !syn_rcvd_ack(s, t, g, k))
		return false;
	if (!tcp_ack(s, t, g))
		return false;
	if (tcp_fin_acked(t))
		tcp_fin_sent_acked(s, t);
	if (tcp_state(t) == TCP_FREE || tcp_state(t) == TCP_CLOSED)
		return false;
	tcp_detach_if_idle(s, t);
	return true;
}

/* It has closed, or shut down both halves, and only our FIN was sent: what comes now nobody will read. */
static bool reads_no_more(const struct tcb *t)
{
	enum tcp_state state = tcp_state(t);

	return tcp_app_closed(t) ||
	       (t->flags & TCB_SHUT_RD && (state == TCP_FIN_WAIT_1 || state == TCP_FIN_WAIT_2));
}

/* RFC 1122 4.2.2.13: a reset tells the sender. */
static bool refused_data(struct stack *s, struct tcb *t, const struct tcp_seg *g)
{
	if (!reads_no_more(t) || !g->len || seq_leq(g->seq + g->len, rcv_nxt(t)))
		return false;
	tcp_send_rst(s, t);
	tcp_done(s, t, tcp_app_closed(t) ? 0 : ECONNRESET);
	return true;
}

static void timestamp_step(struct tcb *t, const struct tcp_seg *g)
{
	if (g->has & TCP_OPT_TS && t->options & TCP_OPT_TS && seq_leq(g->seq, t->rcv_wup) &&
	    !wire_lt(g->ts_val, ts_recent(t)))
		e_wnd(&t->e, snd_wnd(t), g->ts_val);
}

static void slow_path(struct stack *s, struct tcb *t, struct tcp_seg *g, const struct flow_key *k)
{
	if (!paws_ok(s, t, g) || !sequence_ok(s, t, g) || !reset_step(s, t, g))
		return;
	if (g->flags & TCP_SYN) {		/* fourth: RFC 5961 4.2 */
		stack_drop(s, DROP_TCP_SYN);
		tcp_challenge(s, t);
		return;
	}
	t->last_rx_us = s->now_us;
	if (!ack_step(s, t, g, k) || refused_data(s, t, g))
		return;
	timestamp_step(t, g);
	if (g->len || g->flags & TCP_FIN) {	/* seventh and eighth: text, FIN */
		if (seq_lt(g->seq, rcv_nxt(t)))
			t->flags |= TCB_ACK_NOW;
		uint32_t size = seg_size(g);

		tcp_receive(s, t, g);
		if (tcp_state(t) == TCP_FREE)
			return;
		ack_policy(s, t, size, g->flags);
	}
	tcp_output(s, t);
}

void tcp_segment(struct stack *s, struct tcb *t, struct tcp_seg *g)
{
	struct flow_key k = t->key;

	if (tcp_state(t) == TCP_SYN_SENT) {
		g->seq = 0;
		g->ack = seq_extend(g->wire_ack, t->iss, snd_una(t));
		syn_sent(s, t, g, &k);
	} else {
		g->seq = seq_extend(g->wire_seq, t->irs, rcv_nxt(t));
		g->ack = seq_extend(g->wire_ack, t->iss, snd_una(t));
		if (!(g->flags & TCP_SYN))
			g->wnd <<= t->snd_wscale;
		slow_path(s, t, g, &k);
	}
	if (tcp_state(t) == TCP_FREE)
		return;
	tcp_arm(s, t);
	unit_end(t);
}

/* ---- demultiplexing ---- */

static void no_connection(struct stack *s, struct tcp_seg *g, const struct flow_key *k)
{
	struct listener *l = flow_listener(s, k->laddr, k->lport, flow_hash(s, k));

	if (l) {
		tcp_listen_input(s, l, k, g);
		return;
	}
	stack_drop(s, DROP_TCP_NO_SOCKET);
	if (!(g->flags & TCP_RST))
		tcp_refuse(s, g, k);
}

static void found(struct stack *s, void *v, struct tcp_seg *g, const struct flow_key *k)
{
	struct tcp *tcp = s->tcp;

	if (!parse_options(g)) {
		stack_drop(s, DROP_TCP_OPTIONS);
		return;
	}
	if (v >= (void *)tcp->tcbs && v < (void *)(tcp->tcbs + tcp->ntcbs))
		tcp_segment(s, v, g);
	else if (v >= (void *)tcp->requests && v < (void *)(tcp->requests + tcp->nrequests))
		tcp_request_input(s, v, k, g);
	else if (!v || tcp_tw_input(s, v, k, g))
		no_connection(s, g, k);
}

void tcp_input(struct stack *s, struct pkt *p, const struct ip_meta *m)
{
	struct tcp_seg g;
	struct flow_key k;
	struct tcp *tcp = s->tcp;
	void *v;

	s->count.segments_in++;
	if (!parse_header(&g, p, m, &k)) {
		stack_drop(s, DROP_TCP_SHORT);
		return;
	}
	if (!(p->flags & PKT_CSUM_OK) && !ip_transport_csum_ok(p, m)) {
		stack_drop(s, DROP_TCP_CSUM);
		return;
	}
	v = flow_find(s, &k);
	if (v >= (void *)tcp->tcbs && v < (void *)(tcp->tcbs + tcp->ntcbs)) {
		unit_names(s, v);
		if (predicted(v, &g)) {
			fast_path(s, v, &g);
			return;
		}
	}
	found(s, v, &g, &k);
}
