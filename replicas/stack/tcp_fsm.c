/*
 * tcp_fsm.c - the only writer of a connection's state, and what each transition tells the
 * application.
 *
 * Not responsible for sending: the callers run tcp_output() afterwards. Order at an end (W6): state
 * word, published status, notification, then the slot is let go.
 */
#include "tcp.h"
#include <errno.h>

void tcp_set_state(struct stack *s, struct tcb *t, enum tcp_state state)
{
	(void)s;
	e_state(&t->e, state, tcp_flags_e(t), t->ref.gen, 0);
	if (t->ref.mem)
		t->ref.pub->tcp_state = (uint8_t)state;
}

void tcp_set_flag_e(struct tcb *t, uint32_t flag)
{
	e_state(&t->e, tcp_state(t), tcp_flags_e(t) | flag, t->ref.gen, tcp_err_e(t));
}

/* TCP_INFO; plain stores, the reader takes what it finds. */
void tcp_publish_info(struct stack *s, struct tcb *t)
{
	struct neat_slot_pub *p = t->ref.pub;
	const struct tcp_ranges *r = tcp_sacked(t);

	(void)s;
	if (!t->ref.mem)
		return;
	p->rtt_us = t->srtt_us;
	p->rttvar_us = t->rttvar_us;
	p->rto_us = t->rto_us;
	p->snd_cwnd = t->cwnd / t->mss;
	p->snd_ssthresh = t->ssthresh == UINT32_MAX ? INT32_MAX : t->ssthresh / t->mss;
	p->snd_mss = t->mss;
	p->rcv_mss = t->rcv_mss;
	p->advmss = t->pmss;
	p->pmtu = t->pmss + 40u;
	p->unacked = (uint32_t)((t->snd_nxt - snd_una(t) + t->mss - 1) / t->mss);
	p->sacked = r ? (uint32_t)(r->total / t->mss) : 0;
	p->lost = t->recovery != TCP_OPEN;
	p->retrans = t->recovery != TCP_OPEN && seq_lt(snd_una(t), t->high_rxt);
	p->total_retrans = t->total_retrans;
	p->tcp_state = (uint8_t)tcp_state(t);
	p->snd_wscale = t->snd_wscale;
	p->rcv_wscale = t->rcv_wscale;
	/* TCPI_OPT_TIMESTAMPS 1, SACK 2, WSCALE 4: our own numbers agree */
	p->options = t->options;
}

void tcp_established(struct stack *s, struct tcb *t)
{
	s->count.connections++;
	tcp_cc_init(t);
	if (t->ref.mem)
		a32_release(&t->ref.pub->tx_limit, t->sndbuf);
	tcp_set_state(s, t, tcp_fin_queued(t) ? TCP_FIN_WAIT_1 : TCP_ESTABLISHED);
	t->rtx_at_us = 0;
	t->rtx_kind = TCP_RTX_NONE;
	t->backoff = 0;
	t->probes = 0;
	if (!t->srtt_us)
		t->rto_us = TCP_RTO_FALLBACK_US;
	t->quick = TCP_QUICK_ACKS;
	t->last_rx_us = t->drs_start_us = s->now_us;
	tcp_keepalive_restart(s, t);
	tcp_publish_info(s, t);
	if (t->flags & TCB_OPEN_PASSIVE)
		return;		/* sock_accept() did the rest */
	s->count.connected++;
	sock_status(s, &t->ref, NEAT_SLOT_CONNECTED, NEAT_SLOT_CONNECTING, 0);
	sock_notify(s, &t->ref, SOCK_STATE | SOCK_WRITABLE);
}

/* close() or shutdown(SHUT_WR): tx_tail is final from here on (W8). */
void tcp_queue_fin(struct stack *s, struct tcb *t)
{
	enum tcp_state state = tcp_state(t);

	if (tcp_fin_queued(t))
		return;
	tcp_set_flag_e(t, TCB_E_FIN_TX);
	if (state == TCP_ESTABLISHED)
		tcp_set_state(s, t, TCP_FIN_WAIT_1);
	else if (state == TCP_CLOSE_WAIT)
		tcp_set_state(s, t, TCP_LAST_ACK);
	sock_status(s, &t->ref, NEAT_SLOT_TX_SHUT |
		    (state == TCP_CLOSE_WAIT ? NEAT_SLOT_HUP : 0), 0, 0);
	sock_notify(s, &t->ref, SOCK_STATE);
}

/* The peer's FIN is in order: RFC 9293 3.10.7.4 step 8. */
void tcp_fin_received(struct stack *s, struct tcb *t)
{
	enum tcp_state state = tcp_state(t);
	uint32_t hup = tcp_fin_queued(t) ? NEAT_SLOT_HUP : 0;

	t->flags |= TCB_ACK_NOW;
	t->flags &= ~(uint32_t)TCB_FIN_OOO;
	e_fin_rx(&t->e, rcv_nxt(t));
	e_rcv_nxt(&t->e, rcv_nxt(t) + 1);
	if (seq_lt(t->rcv_adv, rcv_nxt(t)))
		t->rcv_adv = rcv_nxt(t);
	sock_status(s, &t->ref, NEAT_SLOT_RX_EOF | hup, 0, 0);
	sock_notify(s, &t->ref, SOCK_READABLE | SOCK_STATE);
	if (state == TCP_ESTABLISHED)
		tcp_set_state(s, t, TCP_CLOSE_WAIT);
	else if (state == TCP_FIN_WAIT_1)
		tcp_set_state(s, t, TCP_CLOSING);
	else if (state == TCP_FIN_WAIT_2)
		tcp_time_wait(s, t);
}

/* Its FIN may be in this very segment, so who has no time left goes with the next tick. */
void tcp_linger(struct stack *s, struct tcb *t)
{
	t->aux_at_us = s->now_us + (share_exceeded(s, t) ? 0 : t->linger2_ms * 1000ull);
}

/* Our FIN is acknowledged: step 5. */
void tcp_fin_sent_acked(struct stack *s, struct tcb *t)
{
	switch (tcp_state(t)) {
	case TCP_FIN_WAIT_1:
		tcp_set_state(s, t, TCP_FIN_WAIT_2);
		if (tcp_app_closed(t))
			tcp_linger(s, t);
		break;
	case TCP_CLOSING:
		tcp_time_wait(s, t);
		break;
	case TCP_LAST_ACK:
		tcp_done(s, t, 0);
		break;
	default:
		break;
	}
}

static void release(struct stack *s, struct tcb *t)
{
	tcp_detach(s, t);
	tcb_free(s, t);
}

/*
 * Unacknowledged local data may still be referred to by frames in the queue of lo. If the slot were
 * free, its next user could overwrite the ring under them, so the block keeps it a little longer.
 */
static bool must_drain(const struct tcb *t)
{
	return t->flags & TCB_LOCAL && t->ref.mem && tx_una(t) < tx_tail(t) &&
	       seq_lt(snd_una(t), snd_max(t));
}

void tcp_done(struct stack *s, struct tcb *t, int err)
{
	uint32_t ends = NEAT_SLOT_RX_EOF | NEAT_SLOT_TX_SHUT | NEAT_SLOT_HUP;
	enum tcp_state state = tcp_state(t);

	flow_remove(s, &t->key);
	if (state != TCP_SYN_SENT && state != TCP_SYN_RCVD && s->count.connections)
		s->count.connections--;
	tcp_publish_info(s, t);
	/* The commit: a successor publishes the end again, with this errno. */
	e_state(&t->e, TCP_CLOSED, tcp_flags_e(t), t->ref.gen, (uint32_t)err);
	if (t->ref.mem)
		t->ref.pub->tcp_state = TCP_CLOSED;
	sock_status(s, &t->ref, ends, NEAT_SLOT_CONNECTING, (uint32_t)err);
	sock_notify(s, &t->ref, SOCK_STATE | SOCK_READABLE | SOCK_WRITABLE);
	if (t->flags & TCB_LOCAL)
		tcp_tw_peer_closed(s, &t->key);
	if (must_drain(t)) {
		t->rtx_at_us = t->ack_at_us = t->cork_at_us = 0;
		t->aux_at_us = s->now_us + TCP_DRAIN_US;
		tcp_arm(s, t);
		return;
	}
	release(s, t);
}

void tcp_detach_if_idle(struct stack *s, struct tcb *t)
{
	if (t->ref.mem && tcp_app_closed(t) && tx_una(t) == tx_tail(t)) {
		tcp_detach(s, t);
		seal_identity(t);
	}
}
