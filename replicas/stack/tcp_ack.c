/*
 * tcp_ack.c - what an acknowledgement means: round-trip time (RFC 6298), window, loss recovery
 * (RFC 8985, 6675, 6582), the end of our FIN.
 *
 * Owns snd_una and its published copy, the RTT variables, the recovery state. It decides that
 * something must be sent again; tcp_out.c sends it. First read: tcp_in.c, which calls tcp_ack() as
 * step 5 of RFC 9293 3.10.7.4.
 */
#include "tcp.h"

/* RFC 6298 2.2, 2.3. The variance term has a floor, so that a steady path keeps some margin. */
void tcp_rtt_sample(struct tcb *t, uint64_t rtt_us)
{
	uint32_t r = rtt_us < 1 ? 1 : (uint32_t)u64_min(rtt_us, TCP_RTO_MAX_US), d;

	if (t->srtt_us == 0) {
		t->srtt_us = r;
		t->rttvar_us = r / 2;
	} else {
		d = t->srtt_us > r ? t->srtt_us - r : r - t->srtt_us;
		t->rttvar_us += d / 4 - t->rttvar_us / 4;
		t->srtt_us += r / 8 - t->srtt_us / 8;
		if (t->srtt_us == 0)
			t->srtt_us = 1;
	}
	t->rto_us = u32_min(t->srtt_us + u32_max(4 * t->rttvar_us, TCP_RTO_MIN_US), TCP_RTO_MAX_US);
}

/* One sample runs at a time; a retransmission ends it (Karn), after that the timestamp echo tells. */
static void rtt_update(struct stack *s, struct tcb *t, uint64_t ack, const struct tcp_seg *g)
{
	if (t->rtt_seq && seq_leq(t->rtt_seq, ack)) {
		tcp_rtt_sample(t, s->now_us - t->rtt_start_us);
		t->rtt_seq = 0;
	} else if (t->flags & TCB_RETRANSMITTED && g->has & TCP_OPT_TS && g->ts_ecr) {
		uint32_t ms = tcp_now_ts(s, t->ts_offset) - g->ts_ecr;

		if (ms < TCP_RTO_MAX_US / 1000)
			tcp_rtt_sample(t, (uint64_t)ms * 1000);
	}
}

/*
 * Wake a writer. It may wait for a third of its buffer or for one byte, so tell it whenever enough
 * was queued that it may have stopped; a small exchange never gets here.
 */
void tcp_notify_room(struct stack *s, struct tcb *t, uint64_t una_before)
{
	/* It may have stopped at a limit that autotuning has raised since: count from the first one. */
	if (tx_tail(t) - una_before > u32_min(t->sndbuf, TCP_SNDBUF_FIRST) / 4)
		sock_notify(s, &t->ref, SOCK_WRITABLE);
}

/* Send buffer autotuning: two windows, so that the application can refill while one is in flight. */
static void sndbuf_tune(struct stack *s, struct tcb *t)
{
	uint32_t want;

	if (t->sndbuf >= s->cfg.sndbuf || t->sndbuf / 2 >= t->cwnd)
		return;
	want = u32_min(t->cwnd > s->cfg.sndbuf / 2 ? s->cfg.sndbuf : 2 * t->cwnd, s->cfg.sndbuf);
	want = u32_min(want, neat_ring_max(NEAT_TX));
	if (want <= t->sndbuf)
		return;
	want = share_buffer(s, t, t->sndbuf, want);
	if (want == t->sndbuf)
		return;
	t->sndbuf = want;
	if (t->ref.mem)
		a32_release(&t->ref.pub->tx_limit, want);
}

void tcp_advance_una(struct stack *s, struct tcb *t, uint64_t ack)
{
	uint64_t before = tx_una(t), now;

	e_snd_una(&t->e, ack);
	if (seq_lt(t->snd_nxt, ack))
		t->snd_nxt = ack;
	now = tx_una(t);
	if (t->holes && t->holes->sacked.n)
		ranges_cut(&t->holes->sacked, ack);
	t->backoff = 0;
	t->rtx_first_us = 0;
	if (ack == t->snd_nxt) {
		t->rtx_at_us = 0;
		t->rtx_kind = TCP_RTX_NONE;
		t->flags &= ~(uint32_t)TCB_RETRANSMITTED;
	} else {
		tcp_arm_rtx(s, t);	/* RFC 6298 5.3, RFC 8985 7.2 */
	}
	if (now == before || !t->ref.mem)
		return;
	a64_release(&t->ref.pub->tx_una, now);	/* W4: after E.snd_una */
	if (!(t->flags & TCB_SNDBUF_FIXED))
		sndbuf_tune(s, t);
	tcp_notify_room(s, t, before);
}

static uint64_t sacked_bytes(const struct tcb *t) { return tcp_sacked(t) ? t->holes->sacked.total : 0; }

static void enter_recovery(struct stack *s, struct tcb *t)
{
	s->count.fast_retransmits++;
	tcp_cc_loss(s, t);
	t->recovery = TCP_FAST_RECOVERY;
	t->recover = t->snd_nxt;
	t->high_rxt = snd_una(t);
	t->flags |= TCB_RETRANS_DUE;	/* RFC 6675 5 step 4.3: the first one whatever pipe says */
	if (t->sent) {
		t->sent->prr_delivered = t->sent->prr_out = 0;
		t->sent->prr_flight = (uint32_t)(t->snd_nxt - snd_una(t) - sacked_bytes(t));
	}
}

static void leave_recovery(struct tcb *t)
{
	if (t->recovery == TCP_FAST_RECOVERY)
		t->cwnd = u32_max(t->ssthresh, 2u * t->mss);
	t->recovery = TCP_OPEN;
	t->dupacks = 0;
	t->flags &= ~(uint32_t)(TCB_RETRANS_DUE | TCB_UNDO);
	tcp_rack_recovered(t);
}

void tcp_find_losses(struct stack *s, struct tcb *t)
{
	uint64_t wait_us, start, end;

	if (!t->sent || !t->sent->n)
		return;
	tcp_rack_detect(s, t, &wait_us);
	if (t->recovery == TCP_OPEN && tcp_sent_hole(t, &start, &end))
		enter_recovery(s, t);
	if (wait_us && (t->rtx_kind != TCP_RTX_RTO || s->now_us + wait_us < t->rtx_at_us)) {
		t->rtx_kind = TCP_RTX_REO;
		t->rtx_at_us = s->now_us + wait_us;
	} else if ((!wait_us && t->rtx_kind == TCP_RTX_REO) || (t->rtx_kind == TCP_RTX_PTO && !tcp_pto_us(t))) {
		tcp_arm_rtx(s, t);
	}
}

static void duplicate_ack(struct stack *s, struct tcb *t)
{
	uint64_t una = snd_una(t);
	bool sack = t->options & TCP_OPT_SACK;

	s->count.dupacks++;
	if (t->dupacks < UINT16_MAX)
		t->dupacks++;
	if (t->recovery != TCP_OPEN || tcp_sent_any(t))
		return;		/* time says what is lost, not their number */
	if (t->dupacks < TCP_DUP_THRESH && !(sack && tcp_is_lost(t, una)))
		return;
	/* RFC 6582 3.2 step 2: duplicates of an earlier episode are no new loss. */
	if (seq_lt(una, t->recover) || (!sack && una == t->recover && t->recover))
		return;
	enter_recovery(s, t);
}

/* RFC 3522: an echo older than the first retransmission acknowledges the original. */
static bool spurious(const struct tcb *t, const struct tcp_seg *g)
{
	return t->flags & TCB_UNDO && g->has & TCP_OPT_TS && g->ts_ecr &&
	       wire_lt(g->ts_ecr, t->rtx_ts);
}

static void new_ack_recovery(struct stack *s, struct tcb *t, uint64_t ack, uint64_t acked,
			     const struct tcp_seg *g)
{
	if (spurious(t, g)) {
		tcp_cc_undo(s, t);
		leave_recovery(t);
		tcp_sent_lose_none(t);
		t->recover = ack;	/* nothing was sent twice: the next duplicates are about a new loss */
		t->cwnd = u32_max(t->cwnd, t->undo_cwnd);
		return;
	}
	t->flags &= ~(uint32_t)TCB_UNDO;	/* RFC 3522: only the first ACK can tell */
	if (seq_leq(t->recover, ack)) {
		leave_recovery(t);
		return;
	}
	if (seq_lt(t->high_rxt, ack))
		t->high_rxt = ack;
	if (t->recovery == TCP_FAST_RECOVERY && !(t->options & TCP_OPT_SACK)) {
		/* RFC 6582 3.2 step 3, partial: what was acknowledged is no duplicate any more. */
		uint32_t n = (uint32_t)(acked / t->mss);

		t->dupacks = (uint16_t)(t->dupacks > n ? t->dupacks - n : 0);
		t->high_rxt = ack;
		t->flags |= TCB_RETRANS_DUE;
	}
}

static void new_ack(struct stack *s, struct tcb *t, const struct tcp_seg *g)
{
	uint64_t una = snd_una(t), ack = g->ack, acked = ack - una;
	uint64_t flight = t->snd_nxt - una;
	uint8_t recovery = t->recovery;

	rtt_update(s, t, ack, g);
	if (tcp_sent_any(t))
		tcp_sent_acked(s, t, g, ack);
	tcp_advance_una(s, t, ack);
	t->probes = 0;
	if (t->recovery != TCP_OPEN)
		new_ack_recovery(s, t, ack, acked, g);
	else
		t->dupacks = 0;
	/* RFC 7661: a window that was not used is no proof that the path carries more. */
	if (recovery != TCP_FAST_RECOVERY && 2 * flight >= t->cwnd)
		tcp_cc_acked(s, t, (uint32_t)u64_min(acked, UINT32_MAX));
}

/* RFC 9293 3.10.7.4: the newest segment decides. */
static bool window_update(struct tcb *t, const struct tcp_seg *g)
{
	uint32_t old = snd_wnd(t);

	if (seq_lt(g->seq, t->snd_wl1) || (g->seq == t->snd_wl1 && seq_lt(g->ack, t->snd_wl2)))
		return false;
	t->snd_wl1 = g->seq;
	t->snd_wl2 = g->ack;
	if (g->wnd > t->snd_wnd_max)
		t->snd_wnd_max = g->wnd;
	if (g->wnd == old)
		return false;
	e_wnd(&t->e, g->wnd, ts_recent(t));
	if (g->wnd && t->rtx_kind == TCP_RTX_PERSIST) {
		t->rtx_kind = TCP_RTX_NONE;
		t->rtx_at_us = 0;
		t->backoff = 0;
		t->probes = 0;
	}
	return true;
}

/* What RFC 8985 and 9937 conclude, once the scoreboard knows all that the ACK says. */
static void recovery_by_time(struct stack *s, struct tcb *t, const struct tcp_seg *g, uint64_t delivered, bool advanced)
{
	uint8_t before = t->recovery;

	if (g->dsack_end)
		tcp_rack_dsack(t);
	tcp_find_losses(s, t);
	if (t->recovery != TCP_FAST_RECOVERY || !t->sent)
		return;
	if (before == TCP_OPEN)
		t->sent->prr_flight += (uint32_t)delivered;	/* it was in flight when the loss happened */
	tcp_cc_prr(t, (uint32_t)delivered, advanced && !tcp_sent_lost(t));
}

bool tcp_ack(struct stack *s, struct tcb *t, struct tcp_seg *g)
{
	uint64_t una = snd_una(t), newly = 0, sacked;
	bool moved;

	if (seq_lt(snd_max(t), g->ack)) {
		/* RFC 9293 3.10.7.4: an ACK for something not sent (also optimistic ACKs). */
		tcp_challenge(s, t);
		stack_drop(s, DROP_TCP_ACK);
		return false;
	}
	if (seq_lt(g->ack + t->snd_wnd_max, una)) {
		tcp_challenge(s, t);		/* RFC 5961 5.2 */
		stack_drop(s, DROP_TCP_ACK);
		return false;
	}
	t->probes = 0;
	sacked = sacked_bytes(t);
	if (g->nsack && t->options & TCP_OPT_SACK)
		newly = tcp_sack_input(s, t, g);
	moved = window_update(t, g);
	if (tcp_sent_any(t))
		tcp_tlp_ack(s, t, g);
	if (seq_lt(una, g->ack))
		new_ack(s, t, g);
	else if (g->ack == una && t->snd_nxt != una &&
		 (newly || (!g->len && !moved && !(g->flags & TCP_FIN) && !(t->options & TCP_OPT_SACK))))
		duplicate_ack(s, t);
	if (tcp_racks(t))
		recovery_by_time(s, t, g, snd_una(t) - una + sacked_bytes(t) - sacked, una != snd_una(t));
	if (t->holes && !t->holes->sacked.n && !t->holes->ooo.n)
		tcb_holes_free(s, t);
	return true;
}
