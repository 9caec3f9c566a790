/*
 * tcp_timer.c - what each timer of a connection does when it runs out.
 *
 * A control block has several deadlines and one timer in the wheel, set to the earliest or earlier:
 * a deadline that moves away costs one store, and the timer finds out when it fires. Deadlines are
 * class D: adoption starts them again.
 */
#include "tcp.h"
#include <errno.h>

/* ---- retransmission (RFC 6298), zero window (RFC 9293 3.8.6.1) ---- */

static uint64_t rto_backed_off(const struct tcb *t)
{
	uint64_t rto = (uint64_t)t->rto_us << (t->backoff > 20 ? 20 : t->backoff);

	return u64_min(rto, TCP_RTO_MAX_US);
}

void tcp_arm_rtx(struct stack *s, struct tcb *t)
{
	uint64_t pto_us;

	if (t->snd_nxt != snd_una(t)) {
		pto_us = tcp_pto_us(t);
		t->rtx_kind = pto_us ? TCP_RTX_PTO : TCP_RTX_RTO;
		t->rtx_at_us = s->now_us + (pto_us ? pto_us : rto_backed_off(t));
	} else if (tcp_needs_persist(t)) {
		t->rtx_kind = TCP_RTX_PERSIST;
		t->rtx_at_us = s->now_us + rto_backed_off(t);
	} else {
		t->rtx_kind = TCP_RTX_NONE;
		t->rtx_at_us = 0;
	}
}

/* RFC 5482 and tcp(7): TCP_USER_TIMEOUT bounds the time without any acknowledgement; it keeps no orphan. */
static bool out_of_patience(const struct stack *s, const struct tcb *t, unsigned limit)
{
	if (t->user_timeout_ms && s->now_us - t->rtx_first_us >= t->user_timeout_ms * 1000ull)
		return true;
	return (!t->user_timeout_ms || tcp_app_closed(t)) && t->backoff >= limit;
}

static unsigned retry_limit(const struct stack *s, const struct tcb *t)
{
	enum tcp_state state = tcp_state(t);

	if (state == TCP_SYN_SENT)
		return t->syn_retries;
	if (state == TCP_SYN_RCVD)
		return TCP_SYNACK_RETRIES;
	if (share_exceeded(s, t))
		return 0;
	return tcp_app_closed(t) ? TCP_ORPHAN_RETRIES : TCP_RETRIES2;
}

static void give_up(struct stack *s, struct tcb *t)
{
	if (tcp_state(t) != TCP_SYN_SENT)
		tcp_send_rst(s, t);
	tcp_done(s, t, t->soft_error ? t->soft_error : ETIMEDOUT);
}

static void rto_expired(struct stack *s, struct tcb *t)
{
	enum tcp_state state = tcp_state(t);

	if (!t->rtx_first_us)
		t->rtx_first_us = s->now_us;
	if (out_of_patience(s, t, retry_limit(s, t))) {
		give_up(s, t);
		return;
	}
	s->count.rto++;
	if (t->backoff < UINT8_MAX)
		t->backoff++;		/* RFC 6298 5.5 */
	t->rtt_seq = 0;
	t->rtx_at_us = s->now_us + rto_backed_off(t);
	if (state == TCP_SYN_SENT || state == TCP_SYN_RCVD) {
		s->count.retransmits++;
		t->total_retrans++;
		tcp_send_syn(s, t);
		t->rtx_at_us = s->now_us + rto_backed_off(t);
		return;
	}
	tcp_cc_timeout(s, t);
	t->recovery = TCP_LOSS;
	t->recover = t->snd_nxt;
	t->high_rxt = snd_una(t);
	t->dupacks = 0;
	/* RFC 2018 8: SACKed bytes right at snd_una that were not acknowledged were reneged on. */
	if (t->holes && t->holes->sacked.n && seq_leq(t->holes->sacked.r[0].start, snd_una(t)))
		t->holes->sacked.n = 0, t->holes->sacked.total = 0;
	tcp_rack_timeout(s, t);
	t->flags |= TCB_RETRANS_DUE;
	tcp_output(s, t);
}

/* RFC 8985 6.2 step 5: what came too late to be only reordered is lost; the RTO runs again. */
static void reordering_expired(struct stack *s, struct tcb *t)
{
	t->rtx_kind = TCP_RTX_NONE;
	tcp_find_losses(s, t);
	if (t->recovery == TCP_FAST_RECOVERY && t->sent)
		tcp_cc_prr(t, 0, false);
	tcp_output(s, t);
}

static void persist_expired(struct stack *s, struct tcb *t)
{
	if (snd_wnd(t) && tcp_needs_persist(t)) {
		tcp_send_override(s, t);
		return;
	}
	if (!t->rtx_first_us)
		t->rtx_first_us = s->now_us;
	/* An answered probe resets `probes`: a peer may keep its window shut for ever, but an orphan
	 * is not kept alive by one (sockstress, CVE-2008-4609). */
	if ((t->user_timeout_ms && t->probes && out_of_patience(s, t, TCP_ORPHAN_RETRIES)) ||
	    t->probes >= retry_limit(s, t) || (tcp_app_closed(t) && t->backoff >= TCP_ORPHAN_RETRIES)) {
		give_up(s, t);
		return;
	}
	t->probes++;
	if (t->backoff < 20)
		t->backoff++;
	t->rtx_at_us = s->now_us + rto_backed_off(t);
	if (!tcp_send_probe(s, t))
		t->rtx_at_us = s->now_us + TCP_RTO_MIN_US;
}

static void rtx_expired(struct stack *s, struct tcb *t)
{
	switch ((enum tcp_rtx_kind)t->rtx_kind) {
	case TCP_RTX_PERSIST:
		persist_expired(s, t);
		break;
	case TCP_RTX_PTO:
		tcp_send_tlp(s, t);
		break;
	case TCP_RTX_REO:
		reordering_expired(s, t);
		break;
	case TCP_RTX_RTO:
	case TCP_RTX_NONE:
		rto_expired(s, t);
		break;
	}
}

/* ---- keepalive (RFC 9293 3.8.4), FIN-WAIT-2, drain ---- */

void tcp_keepalive_restart(struct stack *s, struct tcb *t)
{
	if (t->opt_flags & NEAT_OPTF_KEEPALIVE && tcp_state(t) != TCP_SYN_SENT)
		t->aux_at_us = s->now_us + t->keepidle_s * 1000000ull;
	else if (!tcp_app_closed(t))
		t->aux_at_us = 0;
}

static void keepalive_expired(struct stack *s, struct tcb *t)
{
	uint64_t idle_us = s->now_us - t->last_rx_us;
	uint64_t idle_max_us = t->keepidle_s * 1000000ull;

	if (!(t->opt_flags & NEAT_OPTF_KEEPALIVE))
		return;
	/* Data in flight or waiting has timers of its own. */
	if (t->snd_nxt != snd_una(t) || t->snd_nxt != snd_end(t)) {
		t->aux_at_us = s->now_us + idle_max_us;
		return;
	}
	if (idle_us < idle_max_us) {
		t->probes = 0;
		t->aux_at_us = t->last_rx_us + idle_max_us;
		return;
	}
	if (t->user_timeout_ms ? t->probes && idle_us >= t->user_timeout_ms * 1000ull :
				 t->probes >= t->keepcnt) {
		give_up(s, t);
		return;
	}
	t->probes++;
	t->aux_at_us = s->now_us + (tcp_send_probe(s, t) ? t->keepintvl_s * 1000000ull : TCP_RTO_MIN_US);
}

static void aux_expired(struct stack *s, struct tcb *t)
{
	enum tcp_state state = tcp_state(t);

	t->aux_at_us = 0;
	if (state == TCP_CLOSED) {
		tcp_detach(s, t);
		tcb_free(s, t);
	} else if (state == TCP_FIN_WAIT_2 && tcp_app_closed(t)) {
		tcp_done(s, t, 0);
	} else {
		keepalive_expired(s, t);
	}
}

/* ---- the wheel ---- */

static uint64_t earliest(const struct tcb *t)
{
	uint64_t at = UINT64_MAX;

	if (t->rtx_at_us)
		at = t->rtx_at_us;
	if (t->ack_at_us && t->ack_at_us < at)
		at = t->ack_at_us;
	if (t->cork_at_us && t->cork_at_us < at)
		at = t->cork_at_us;
	if (t->aux_at_us && t->aux_at_us < at)
		at = t->aux_at_us;
	return at;
}

void tcp_arm(struct stack *s, struct tcb *t)
{
	uint64_t at = earliest(t);

	if (at == UINT64_MAX)
		return;
	if (!timer_armed(&t->timer) || at < t->timer.deadline_us)
		timer_set(&s->wheel, &t->timer, at);
}

static bool alive(const struct tcb *t)
{
	return tcp_state(t) != TCP_FREE && tcp_state(t) != TCP_CLOSED;
}

static void tcb_timer(struct stack *s, struct timer *timer)
{
	struct tcb *t = (struct tcb *)(void *)((uint8_t *)timer - offsetof(struct tcb, timer));
	uint64_t now = s->now_us;

	unit_begin(s, UNIT_TIMER, t);
	if (t->ack_at_us && t->ack_at_us <= now) {
		t->ack_at_us = 0;
		/* The program did not answer in time, so this is no conversation (Linux: leave pingpong). */
		t->flags &= ~(uint32_t)TCB_PINGPONG;
		t->flags |= TCB_ACK_NOW;
		tcp_output(s, t);
	}
	if (t->cork_at_us && t->cork_at_us <= now) {
		t->cork_at_us = 0;
		t->flags |= TCB_CORK_DUE;
		tcp_output(s, t);
	}
	if (t->rtx_at_us && t->rtx_at_us <= now) {
		t->rtx_at_us = 0;
		rtx_expired(s, t);
	}
	if (alive(t) && t->aux_at_us && t->aux_at_us <= now)
		aux_expired(s, t);
	else if (tcp_state(t) == TCP_CLOSED && t->aux_at_us && t->aux_at_us <= now)
		aux_expired(s, t);
	if (tcp_state(t) == TCP_FREE)
		return;
	tcp_arm(s, t);
	unit_end(t);
}

void tcp_timer(struct stack *s, struct timer *timer)
{
	switch (timer->kind) {
	case TIMER_TCB:
		tcb_timer(s, timer);
		break;
	case TIMER_TCP_REQUEST:
		unit_begin(s, UNIT_TIMER, NULL);
		tcp_request_timer(s);
		break;
	case TIMER_TCP_TIME_WAIT:
		unit_begin(s, UNIT_TIMER, NULL);
		tcp_tw_timer(s);
		break;
	}
}
