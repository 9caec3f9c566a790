/*
 * tcp_adopt.c - a successor takes over the arena of a dead replica: established connections, half-open
 * ones, TIME_WAIT. Rules and why they suffice: docs/rules.md "Recovery".
 *
 * The journal names the one control block that may be half changed (arena.h). Of that one only classes E
 * and I count, finished or undone here by their own order of stores; of all others class D is used too, within
 * bounds. What was on its way on lo or to the nic is lost: TCP sends again, at once.
 *
 * Everything here may be cut short by a kill and run again: E changes only in ordinary units of work,
 * which the journal names, after the half-changed block has been made whole.
 */
#include "tcp.h"
#include <errno.h>

enum {
	STRIKE_WINDOW_S = 10,	/* faults further apart than this have nothing to do with each other */
	STRIKES_RESET = 3,	/* this many, and the connection is given up */
	STRIKES_COMMAND = 2,
	RECENT_US = 3000000,	/* a connection that moved within this time may have lost an ACK with us */
	AHEAD = 8,		/* records whose memory is on its way while one is worked on */
};

struct adoption {
	struct stack *s;
	struct stack_adopted *out;
	struct tcb *torn;		/* half changed, or NULL */
	enum arena_unit unit;
	bool fault;
};

/* Stands in t->holes for "had some" while the records are searched for their owners. */
static struct tcp_holes *const holes_unclaimed = (void *)1;

/* ---- is it a connection at all? ---- */

static bool state_known(enum tcp_state state)
{
	switch (state) {
	case TCP_ESTABLISHED:
	case TCP_SYN_SENT:
	case TCP_SYN_RCVD:
	case TCP_FIN_WAIT_1:
	case TCP_FIN_WAIT_2:
	case TCP_CLOSED:
	case TCP_CLOSE_WAIT:
	case TCP_LAST_ACK:
	case TCP_CLOSING:
		return true;
	case TCP_FREE:
		break;
	}
	return false;
}

static bool identity_ok(const struct tcb *t)
{
	return t->key.lport && t->key.rport && t->snd_wscale <= 14 && t->rcv_wscale <= 14 &&
	       !(t->options & ~(TCP_OPT_TS | TCP_OPT_SACK | TCP_OPT_WS)) && t->ref.slot < NEAT_SLOTS;
}

static bool record_ok(const struct adoption *a, const struct tcb *t)
{
	if (!state_known(tcp_state(t)) || !identity_ok(t) || !tcp_numbers_ok(t))
		return false;
	return t == a->torn || (t->seal_e == seal_e(t) && t->seal_i == seal_i(t));
}

/* ---- class D ---- */

/* Ascending, disjoint, inside [from, to]; the total is counted again. */
static bool ranges_ok(struct tcp_ranges *r, uint64_t from, uint64_t to)
{
	uint64_t total = 0, at = from;

	if (r->n > TCP_RANGES)
		return false;
	for (uint32_t i = 0; i < r->n; i++) {
		if (seq_lt(r->r[i].start, at) || !seq_lt(r->r[i].start, r->r[i].end) || seq_lt(to, r->r[i].end))
			return false;
		total += r->r[i].end - r->r[i].start;
		at = r->r[i].end + 1;
	}
	r->total = total;
	return true;
}

static void claim_holes(const struct adoption *a)
{
	struct tcp *tcp = a->s->tcp;

	for (uint32_t i = 0; i < a32_relaxed(&tcp->arena->high_holes); i++) {
		struct tcp_holes *h = &tcp->holes[i];
		struct tcb *t = h->owner && h->owner <= a32_relaxed(&tcp->arena->high_tcb) ?
				&tcp->tcbs[h->owner - 1] : NULL;

		if (t && t != a->torn && t->holes == holes_unclaimed && record_ok(a, t) &&
		    ranges_ok(&h->ooo, rcv_nxt(t) + 1, rx_tail(t) + 1 + neat_ringword_size(rx_ring(t), NEAT_RX)) &&
		    ranges_ok(&h->sacked, snd_una(t), snd_max(t))) {
			t->holes = h;
			continue;
		}
		h->owner = 0;
		h->next_free = tcp->free_holes;
		tcp->free_holes = i + 1;
	}
}

static uint64_t deadline_within(const struct stack *s, uint64_t at_us, uint64_t longest_us)
{
	return at_us ? u64_min(at_us, s->now_us + longest_us) : 0;
}

/* Bounds for what is used as it lies there. */
static void soft_bounds(struct stack *s, struct tcb *t)
{
	const uint32_t mss_min = TCP_MSS_MIN - TCP_TS_LEN;
	uint32_t window;

	t->pmss = (uint16_t)u32_min(u32_max(t->pmss, TCP_MSS_MIN), TCP_MSS_MAX);
	t->mss = (uint16_t)u32_min(u32_max(t->mss, mss_min), t->pmss);
	t->rcv_mss = (uint16_t)u32_max(t->rcv_mss, mss_min);
	t->rcvbuf = u32_min(u32_max(t->rcvbuf, 2048), TCP_RCVBUF_MAX);
	t->sndbuf = u32_min(u32_max(t->sndbuf, 2048), neat_ring_max(NEAT_TX));
	window = (uint32_t)u64_min(snd_max(t) - snd_una(t), 1u << 30) + tcp_initial_window(t);
	t->cwnd = u32_min(u32_max(t->cwnd, tcp_initial_window(t)), window);
	t->ssthresh = u32_max(t->ssthresh, 2u * t->mss);
	t->srtt_us = u32_min(t->srtt_us, 60000000);
	t->rttvar_us = u32_min(t->rttvar_us, 60000000);
	t->rto_us = u32_min(u32_max(t->rto_us, TCP_RTO_MIN_US), TCP_RTO_MAX_US);
	t->ack_at_us = deadline_within(s, t->ack_at_us, TCP_DELACK_US);
	t->cork_at_us = deadline_within(s, t->cork_at_us, TCP_CORK_US);
	t->rtx_at_us = deadline_within(s, t->rtx_at_us, TCP_RTO_MAX_US);
	t->aux_at_us = deadline_within(s, t->aux_at_us, 32768ull * 1000000);
	t->last_rx_us = u64_min(t->last_rx_us, s->now_us);
	t->last_tx_us = u64_min(t->last_tx_us, s->now_us);
	/* W5: never left of what the peer may have been told; never beyond what the largest buffer takes. */
	if (seq_lt(t->rcv_adv, rcv_nxt(t)) || seq_lt(rx_tail(t) + 1 + neat_ring_max(NEAT_RX), t->rcv_adv))
		t->rcv_adv = seq_max(rcv_nxt(t), rx_tail(t) + 1 + t->rcvbuf);
}

/* Half changed: only what every single store leaves true counts. */
static void soft_reset(struct tcb *t)
{
	t->flags &= TCB_PINGPONG | TCB_SHUT_RD | TCB_OPEN_PASSIVE | TCB_SNDBUF_FIXED | TCB_RCVBUF_FIXED |
		    TCB_LINGER0 | TCB_PORT_DRAWN;
	t->min_rtt_us = 0;
	t->flags |= TCB_ACK_NOW;
	t->holes = NULL;
	t->ack_at_us = 0;
	t->snd_sml = 0;
	t->snd_wl1 = t->snd_wl2 = 0;	/* W10: the next segment's window counts, whatever its number */
	t->dsack_len = 0;
	t->una_at_kick = 0;
	t->rcv_wup = u64_min(t->rcv_wup, rcv_nxt(t));
}

static void soft(const struct adoption *a, struct tcb *t)
{
	struct stack *s = a->s;
	const uint32_t stale = TCB_ON_RESUME | TCB_RETRANS_DUE | TCB_RETRANSMITTED | TCB_UNDO | TCB_LOCAL | TCB_ORPHAN;

	if (t == a->torn)
		soft_reset(t);
	if (t->holes == holes_unclaimed)
		t->holes = NULL;
	t->sent = NULL;			/* plain memory of our predecessor */
	t->timer = (struct timer){ .kind = TIMER_TCB };
	t->resume_next = 0;
	t->flags &= ~stale;
	if (ip_is_local(s, t->key.raddr))
		t->flags |= TCB_LOCAL;
	t->snd_nxt = snd_max(t);
	t->rtt_seq = 0;
	t->dupacks = 0;
	t->recovery = TCP_OPEN;
	t->recover = t->high_rxt = snd_una(t);
	soft_bounds(s, t);
	unit_end(t);
}

/* ---- first: every record is somebody's or free ---- */

static void record_free(struct tcp *tcp, struct tcb *t)
{
	e_state(&t->e, TCP_FREE, 0, 0, 0);
	t->next_free = tcp->free_tcb;
	tcp->free_tcb = (uint32_t)(t - tcp->tcbs) + 1;
}

/* A wild write, or worse. The peer learns of it by the answer to its next segment, the application from
 * its slot, which nobody claims (api_adopt.c). */
static void corrupted(const struct adoption *a, struct tcb *t)
{
	a->out->corrupted++;
	record_free(a->s->tcp, t);
}

static void take_record(const struct adoption *a, struct tcb *t)
{
	struct stack *s = a->s;
	struct sockref ref;

	if (tcp_state(t) == TCP_FREE) {
		record_free(s->tcp, t);
		return;
	}
	if (!record_ok(a, t)) {
		corrupted(a, t);
		return;
	}
	soft(a, t);
	if (tcp_state(t) != TCP_CLOSED && flow_insert(s, &t->key, t)) {
		corrupted(a, t);
		return;
	}
	s->tcp->used++;
	ref = t->ref;
	if (!ref.slot || !sock_adopt(s, t->app_id, t, tcp_app_closed(t), &ref)) {
		unit_repairs(s, UNIT_OUTPUT, t);	/* until the seal fits again */
		share_orphan(s, t);
		ref = (struct sockref){ .gen = ref.gen };
	}
	t->ref = ref;		/* slot and gen as they were, if it has a slot: only pointers are new */
	share_count(t);
	seal_identity(t);
}

/* Thousands of connections in tables larger than any cache: what costs the time is waiting for one line after another. */
void tcp_expect(const struct tcb *t)
{
	for (unsigned line = 0; line < TCB_SIZE / ARENA_LINE; line++)
		__builtin_prefetch((const uint8_t *)t + line * ARENA_LINE, 1);
}

static void expect_take(const struct stack *s, uint32_t i)
{
	const struct tcb *t = s->tcp->tcbs + i;

	if (i < 2 * AHEAD)
		return;
	t -= AHEAD;
	tcp_expect(t - AHEAD);
	if (tcp_state(t) == TCP_FREE)
		return;
	flow_expect(s, &t->key);
	sock_expect(s, t->app_id, t->ref.slot);
}

static void take_records(const struct adoption *a)
{
	struct tcp *tcp = a->s->tcp;
	uint32_t n = a32_relaxed(&tcp->arena->high_tcb);

	for (uint32_t i = 0; i < n; i++)
		if (tcp->tcbs[i].holes)
			tcp->tcbs[i].holes = holes_unclaimed;
	claim_holes(a);
	/* The half-changed one first: as soon as it is whole, the journal may name another. */
	if (a->torn)
		take_record(a, a->torn);
	for (uint32_t i = n; i-- > 0;) {
		expect_take(a->s, i);
		if (&tcp->tcbs[i] != a->torn)
			take_record(a, &tcp->tcbs[i]);
	}
}

/* ---- second: records of 64 bytes ---- */

static void take_requests(const struct adoption *a)
{
	struct tcp *tcp = a->s->tcp;

	for (uint32_t i = 0; i < a32_relaxed(&tcp->arena->high_request); i++) {
		struct tcp_request *r = &tcp->requests[i];

		/* One whose control block exists already is refused by the flow table: it has served. */
		if (a32_relaxed(&r->state) && tcp_request_adopt(a->s, r, a->fault)) {
			a->out->half_open++;
			continue;
		}
		a32_release(&r->state, 0);
		r->next = tcp->free_request;
		tcp->free_request = i + 1;
	}
}

/* The slot was committed: it stands for the connection, whose control block was about to go (tcp_tw.c). */
static void end_predecessor(struct stack *s, const struct tcp_time_wait *w)
{
	struct flow_key k = { .laddr = w->laddr, .raddr = w->raddr, .lport = w->lport, .rport = w->rport };
	void *v = flow_find(s, &k);

	if (v < (void *)s->tcp->tcbs || v >= (void *)(s->tcp->tcbs + s->tcp->ntcbs))
		return;
	unit_begin(s, UNIT_OUTPUT, v);
	((struct tcb *)v)->flags &= ~(uint32_t)TCB_LOCAL;
	tcp_done(s, v, 0);
}

/* In order of expiry, by merging runs over the links, which are class D: no memory, no recursion. */
static uint32_t merge(struct tcp *tcp, uint32_t x, uint32_t y)
{
	uint32_t head = 0, *at = &head;

	while (x && y) {
		uint32_t *least = a64_relaxed(&tcp->time_waits[y - 1].expiry_us) <
				  a64_relaxed(&tcp->time_waits[x - 1].expiry_us) ? &y : &x;

		*at = *least;
		at = &tcp->time_waits[*least - 1].next;
		*least = *at;
	}
	*at = x ? x : y;
	return head;
}

static uint32_t sorted_time_waits(struct tcp *tcp)
{
	uint32_t run[32] = { 0 }, all = 0;	/* run[k]: 2^k records in order, as in a binary counter */

	for (uint32_t i = 0; i < a32_relaxed(&tcp->arena->high_time_wait); i++) {
		struct tcp_time_wait *w = &tcp->time_waits[i];
		uint32_t carry = i + 1;
		unsigned k = 0;

		if (!a32_relaxed(&w->state)) {
			w->next = tcp->free_time_wait;
			tcp->free_time_wait = i + 1;
			continue;
		}
		w->next = 0;
		for (; k < 31 && run[k]; k++) {
			carry = merge(tcp, run[k], carry);
			run[k] = 0;
		}
		run[k] = carry;
	}
	for (unsigned k = 0; k < 32; k++)
		all = merge(tcp, run[k], all);
	return all;
}

static void take_time_waits(const struct adoption *a)
{
	struct tcp *tcp = a->s->tcp;

	for (uint32_t next, i = sorted_time_waits(tcp); i; i = next) {
		struct tcp_time_wait *w = &tcp->time_waits[i - 1];

		next = w->next;
		end_predecessor(a->s, w);
		if (tcp_tw_adopt(a->s, w)) {
			a->out->time_waits++;
			continue;
		}
		a32_release(&w->state, 0);
		w->next = tcp->free_time_wait;
		tcp->free_time_wait = i;
	}
}

/* ---- third: go on ---- */

/* Our SYN is not acknowledged; in SYN_SENT the peer's has not been seen to be. */
static bool opening(const struct tcb *t)
{
	return tcp_state(t) == TCP_SYN_SENT || (tcp_state(t) == TCP_SYN_RCVD && snd_una(t) == 0);
}

/* The state that the facts in class E call for: each transition commits its fact before its state. */
static enum tcp_state settled_state(const struct tcb *t)
{
	enum tcp_state state = tcp_state(t);
	bool fin_rx = fin_rx_seq(t) && rcv_nxt(t) > fin_rx_seq(t);

	if (!tcp_fin_queued(t))
		return fin_rx ? TCP_CLOSE_WAIT : TCP_ESTABLISHED;
	if (!fin_rx)
		return tcp_fin_acked(t) ? TCP_FIN_WAIT_2 : TCP_FIN_WAIT_1;
	return state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK ? TCP_LAST_ACK : TCP_CLOSING;
}

/* Published copies follow class E (L4). */
static void publish_words(struct stack *s, struct tcb *t)
{
	struct neat_slot_pub *pub = t->ref.pub;

	if (!t->ref.mem)
		return;
	a64_release(&pub->rx_ring, rx_ring(t));
	a64_release(&pub->rx_head, rx_head(t));
	a64_release(&pub->tx_una, tx_una(t));
	a32_release(&pub->tx_limit, t->sndbuf);
	tcp_publish_info(s, t);
}

static void publish_status(struct stack *s, struct tcb *t)
{
	bool eof = fin_rx_seq(t) && rcv_nxt(t) > fin_rx_seq(t), shut = tcp_fin_queued(t);
	uint32_t set = NEAT_SLOT_CONNECTED | (eof ? NEAT_SLOT_RX_EOF : 0) | (shut ? NEAT_SLOT_TX_SHUT : 0) |
		       (eof && shut ? NEAT_SLOT_HUP : 0);

	/* A newborn of a listener is published by sock_accept_push(). */
	if (t->ref.mem &&
	    neat_status_flags(a64_relaxed(&t->ref.pub->status)) & (NEAT_SLOT_CONNECTED | NEAT_SLOT_CONNECTING))
		sock_status(s, &t->ref, set, NEAT_SLOT_CONNECTING, 0);
}

static bool newborn(const struct tcb *t)
{
	return t->ref.mem && neat_status_flags(a64_relaxed(&t->ref.pub->status)) == 0;
}

/* Everything not acknowledged goes out again, in order, with a fresh timer; nobody's window is to blame. */
static void send_again(struct stack *s, struct tcb *t)
{
	t->backoff = 0;
	t->rtx_first_us = 0;
	t->rtx_at_us = 0;
	t->rtx_kind = TCP_RTX_NONE;
	if (t->snd_nxt != snd_una(t)) {
		if (!(t->flags & TCB_LOCAL))
			t->cwnd = u32_min(t->cwnd, tcp_initial_window(t));
		t->recovery = TCP_LOSS;
		t->recover = t->snd_nxt;
		tcp_sent_lose_all(s, t);
		t->flags |= TCB_RETRANS_DUE | TCB_ACK_NOW;
	} else if (tcp_sends(tcp_state(t)) && tcp_needs_persist(t)) {
		/* The update that opened the window may be what was lost: ask now. */
		t->rtx_kind = TCP_RTX_PERSIST;
		t->rtx_at_us = s->now_us;
	}
	if (t->ack_at_us || s->now_us - t->last_rx_us < RECENT_US || s->now_us - t->last_tx_us < RECENT_US)
		t->flags |= TCB_ACK_NOW;
	if (t->flags & TCB_ACK_NOW || t->snd_nxt != snd_end(t))
		tcp_put_off(s, t);
}

static void go_on_opening(struct stack *s, struct tcb *t)
{
	if (t->ref.mem) {
		t->ref.pub->lport = t->key.lport;	/* it may just have been drawn again */
		sock_status(s, &t->ref, NEAT_SLOT_CONNECTING, 0, 0);
	}
	t->snd_nxt = snd_max(t);
	tcp_send_syn(s, t);
}

static void go_on_synchronised(struct stack *s, struct tcb *t)
{
	enum tcp_state state;
	struct listener *l;

	if (fin_rx_seq(t) == rcv_nxt(t))
		e_rcv_nxt(&t->e, rcv_nxt(t) + 1);	/* the FIN was in order and committed */
	state = settled_state(t);
	if (state != tcp_state(t))
		tcp_set_state(s, t, state);
	if (!t->cwnd)
		tcp_cc_init(t);
	s->count.connections++;
	publish_words(s, t);
	if (newborn(t)) {
		l = flow_listener(s, t->key.laddr, t->key.lport, flow_hash(s, &t->key));
		if (!l || l->ref.mem != t->ref.mem) {
			tcp_abort(s, t, ECONNRESET);
			return;
		}
		sock_accept_push(s, l, &t->ref);
	}
	publish_status(s, t);
	if (tcp_fin_acked(t) && state == TCP_CLOSING) {
		tcp_time_wait(s, t);
		return;
	}
	if (tcp_fin_acked(t) && state == TCP_LAST_ACK) {
		tcp_done(s, t, 0);
		return;
	}
	if (tcp_app_closed(t) && !tcp_fin_queued(t))
		tcp_close_rest(s, t);
	if (tcp_state(t) == TCP_FREE || tcp_state(t) == TCP_CLOSED)
		return;
	tcp_detach_if_idle(s, t);
	if (tcp_state(t) == TCP_FIN_WAIT_2 && tcp_app_closed(t) && !t->aux_at_us)
		tcp_linger(s, t);
	send_again(s, t);
	tcp_arm(s, t);
}

/* CLOSED is a commit: the end is published again, then the slot is let go (tcp_fsm.c). */
static void finish_end(struct stack *s, struct tcb *t)
{
	uint32_t ends = NEAT_SLOT_RX_EOF | NEAT_SLOT_TX_SHUT | NEAT_SLOT_HUP, err = tcp_err_e(t);

	if (t->ref.mem) {
		if (neat_status_flags(a64_relaxed(&t->ref.pub->status)) & NEAT_SLOT_ERROR)
			err = 0;	/* told already; twice would be two errors */
		sock_status(s, &t->ref, ends, NEAT_SLOT_CONNECTING, err);
		sock_notify(s, &t->ref, SOCK_STATE | SOCK_READABLE | SOCK_WRITABLE);
		tcp_detach(s, t);
	}
	tcb_free(s, t);
}

/* 3.5: once is nobody's fault, three times is this connection's. */
static bool struck_out(const struct adoption *a, struct tcb *t)
{
	uint16_t now_s = (uint16_t)(a->s->now_us / 1000000);

	if (t != a->torn || !a->fault)
		return false;
	if ((uint16_t)(now_s - t->strike_s) > STRIKE_WINDOW_S)
		t->strikes = 0;
	t->strike_s = now_s;
	t->strikes++;
	return t->strikes >= STRIKES_RESET;
}

/*
 * W14: a RST on lo died with the queue, and whoever sent it with the RST. Who still expects data is told now;
 * in other states our next segment is answered by another RST.
 */
static bool peer_vanished(const struct stack *s, const struct tcb *t)
{
	const struct flow_key r = {
		.laddr = t->key.raddr, .raddr = t->key.laddr, .lport = t->key.rport, .rport = t->key.lport,
	};

	return t->flags & TCB_LOCAL && tcp_receives(tcp_state(t)) && !flow_find(s, &r);
}

/* Its application is gone, and what is not acknowledged cannot be sent without its ring. */
static bool ringless(const struct tcb *t)
{
	return !t->ref.mem && (!tcp_app_closed(t) || tx_una(t) != tx_tail(t));
}

static void expect_go_on(const struct stack *s, uint32_t i)
{
	const struct tcb *t = s->tcp->tcbs + i;

	if (i + 2 * AHEAD >= a32_relaxed(&s->tcp->arena->high_tcb))
		return;
	t += AHEAD;
	tcp_expect(t + AHEAD);
	if (t->flags & TCB_LOCAL)
		flow_expect(s, &(struct flow_key){ .laddr = t->key.raddr, .raddr = t->key.laddr,
						   .lport = t->key.rport, .rport = t->key.lport });
	if (t->ref.mem)
		__builtin_prefetch(t->ref.pub, 1);
}

static void go_on(const struct adoption *a, struct tcb *t)
{
	struct stack *s = a->s;

	unit_begin(s, UNIT_OUTPUT, t);
	if (tcp_state(t) == TCP_CLOSED) {
		finish_end(s, t);
		return;
	}
	a->out->connections++;
	if (struck_out(a, t)) {
		a->out->corrupted++;
		tcp_abort(s, t, ECONNRESET);
	} else if (ringless(t)) {
		tcp_abort(s, t, 0);
	} else if (opening(t)) {
		go_on_opening(s, t);
	} else if (peer_vanished(s, t)) {
		s->count.connections++;
		publish_words(s, t);
		publish_status(s, t);
		tcp_done(s, t, ECONNRESET);
	} else {
		go_on_synchronised(s, t);
	}
	if (tcp_state(t) == TCP_FREE)
		return;
	tcp_arm(s, t);
	unit_end(t);
}

/* ---- entry ---- */

/* What killed the predecessor is not done a second time: the frame never, a command that names no connection
 * and a datagram once more. */
static void judge(const struct adoption *a)
{
	struct arena_header *h = a->s->tcp->arena;
	uint32_t now_s = (uint32_t)(a->s->now_us / 1000000);

	if (!a->fault)
		return;
	a->out->drop_frame = a->unit == UNIT_FRAME;
	if ((a->unit != UNIT_COMMAND || a->torn) && a->unit != UNIT_DATAGRAM)
		return;
	if (now_s - h->strike_s > STRIKE_WINDOW_S)
		h->strikes = 0;
	h->strike_s = now_s;
	h->strikes++;
	if (h->strikes < STRIKES_COMMAND)
		return;
	a->out->drop_command = a->unit == UNIT_COMMAND;
	a->out->drop_datagram = a->unit == UNIT_DATAGRAM ? a64_relaxed(&h->datagram) : 0;
}

void stack_adopt(struct stack *s, uint32_t death, struct stack_adopted *out)
{
	struct tcp *tcp = s->tcp;
	uint64_t journal = a64_relaxed(&tcp->arena->journal);
	uint32_t record = journal_record(journal), n = a32_relaxed(&tcp->arena->high_tcb);
	struct adoption a = {
		.s = s, .out = out, .unit = journal_unit(journal),
		.fault = death == NEAT_DEATH_FAULT || death == NEAT_DEATH_HANG,
	};

	*out = (struct stack_adopted){ 0 };
	if (record && record <= n && a.unit != UNIT_NONE)
		a.torn = &tcp->tcbs[record - 1];
	judge(&a);
	take_records(&a);
	take_requests(&a);
	take_time_waits(&a);
	for (uint32_t i = 0; i < n; i++) {
		expect_go_on(s, i);
		if (tcp_state(&tcp->tcbs[i]) != TCP_FREE)
			go_on(&a, &tcp->tcbs[i]);
	}
	stack_units_done(s);
}
