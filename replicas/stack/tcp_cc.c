/*
 * tcp_cc.c - congestion control: slow start, NewReno (RFC 5681, 6582) and CUBIC (RFC 9438).
 *
 * Owns cwnd, ssthresh and the cub_ words of the control block. When loss happened is decided in
 * tcp_ack.c and tcp_timer.c. All windows in bytes, all times in microseconds unless named otherwise.
 */
#include "tcp.h"

enum { CC_RENO = 1 };

static bool is_reno(const struct tcb *t) { return t->cc == CC_RENO; }

/* RFC 6928 2: min(10 * MSS, max(2 * MSS, 14600)); ten segments whatever their size on lo. */
uint32_t tcp_initial_window(const struct tcb *t)
{
	uint32_t mss = t->mss;

	if (t->flags & TCB_LOCAL)
		return 10 * mss;
	return u32_min(10 * mss, u32_max(2 * mss, 14600));
}

void tcp_cc_init(struct tcb *t)
{
	t->cwnd = tcp_initial_window(t);
	t->ssthresh = UINT32_MAX;
	t->cub_wmax = 0;
	t->cub_epoch_us = 0;
	t->cwnd_acked = 0;
}

static uint64_t cube_root(uint64_t x)
{
	uint64_t lo = 0, hi = 1u << 21;

	while (lo < hi) {
		uint64_t mid = (lo + hi + 1) / 2;

		if (mid * mid * mid <= x)
			lo = mid;
		else
			hi = mid - 1;
	}
	return lo;
}

/* RFC 9438 4.2: K = cubic_root((W_max - cwnd_epoch) / C) seconds, C = 0.4, windows in segments. */
static uint32_t cubic_k_ms(uint32_t wmax, uint32_t cwnd, uint32_t mss)
{
	uint64_t gap = wmax > cwnd ? wmax - cwnd : 0;

	/* (gap/mss / 0.4) s^3 = gap * 2.5e9 / mss ms^3 */
	return (uint32_t)cube_root(gap * 2500000000ull / mss);
}

static void cubic_epoch(struct stack *s, struct tcb *t)
{
	t->cub_epoch_us = s->now_us;
	if (t->cub_wmax < t->cwnd)
		t->cub_wmax = t->cwnd;
	t->cub_k_ms = cubic_k_ms(t->cub_wmax, t->cwnd, t->mss);
	t->cub_west = t->cwnd;
	t->cwnd_acked = 0;
}

/* W_cubic(t) = C * (t - K)^3 + W_max (RFC 9438 4.2), bytes. */
static uint64_t cubic_window(const struct tcb *t, uint64_t at_ms)
{
	bool before = at_ms < t->cub_k_ms;
	uint64_t d = before ? t->cub_k_ms - at_ms : at_ms - t->cub_k_ms;
	uint64_t delta;

	if (d > 500000)
		d = 500000;
	/* 0.4 * (d/1000)^3 * mss; d^3 <= 1.25e17, scaled before the multiplication */
	delta = d * d * d / 1000000 * t->mss / 2500;
	if (!before)
		return t->cub_wmax + delta;
	return t->cub_wmax > delta ? t->cub_wmax - delta : 0;
}

static void cubic_avoid(struct stack *s, struct tcb *t, uint32_t acked)
{
	uint64_t at_ms, target, step;

	if (!t->cub_epoch_us)
		cubic_epoch(s, t);
	at_ms = (s->now_us - t->cub_epoch_us + t->srtt_us) / 1000;
	target = cubic_window(t, at_ms);
	/* 4.2: at most 1.5 windows per round trip. */
	target = u64_min(u64_max(target, t->cwnd), (uint64_t)t->cwnd * 3 / 2);
	step = (target - t->cwnd) * acked / t->cwnd;
	/* 4.3, Reno-friendly region: alpha = 3 * (1 - beta) / (1 + beta) = 9/17 with beta = 0.7. */
	t->cwnd_acked += acked;
	if ((uint64_t)t->cwnd_acked * 9 / 17 >= t->cub_west) {
		t->cwnd_acked = 0;
		t->cub_west += t->mss;
	}
	t->cwnd += (uint32_t)step;
	if (t->cwnd < t->cub_west)
		t->cwnd = t->cub_west;
}

/* RFC 5681 3.1 with appropriate byte counting (RFC 3465): one MSS for each acknowledged window. */
static void reno_avoid(struct tcb *t, uint32_t acked)
{
	t->cwnd_acked += acked;
	if (t->cwnd_acked >= t->cwnd) {
		t->cwnd_acked -= t->cwnd;
		t->cwnd += t->mss;
	}
}

void tcp_cc_acked(struct stack *s, struct tcb *t, uint32_t acked)
{
	const uint32_t limit = 1u << 30;

	if (t->cwnd >= limit)
		return;
	if (t->cwnd < t->ssthresh) {
		/* ABC with L = 2 segments for each ACK, but never for less than was acknowledged by a
		 * stretch ACK of a GSO burst: the window limits the burst already. */
		t->cwnd += acked;
		if (t->cwnd > t->ssthresh)
			t->cwnd = t->ssthresh;
	} else if (is_reno(t)) {
		reno_avoid(t, acked);
	} else {
		cubic_avoid(s, t, acked);
	}
}

static uint32_t reduced(struct tcb *t, uint32_t flight)
{
	uint32_t w;

	if (is_reno(t))
		return u32_max(flight / 2, 2u * t->mss);	/* RFC 5681 equation 4 */
	/* RFC 9438 4.6 and 4.7: beta 0.7, fast convergence. */
	w = u32_min(t->cwnd, flight);
	t->cub_wmax = w < t->cub_wlast ? (uint32_t)((uint64_t)w * 17 / 20) : w;
	t->cub_wlast = w;
	return u32_max((uint32_t)((uint64_t)w * 7 / 10), 2u * t->mss);
}

static void save_undo(struct stack *s, struct tcb *t)
{
	t->undo_cwnd = t->cwnd;
	t->undo_ssthresh = t->ssthresh;
	t->rtx_ts = tcp_now_ts(s, t->ts_offset);
	t->flags |= TCB_UNDO;
}

void tcp_cc_loss(struct stack *s, struct tcb *t)
{
	save_undo(s, t);
	t->ssthresh = reduced(t, (uint32_t)u64_min(t->snd_nxt - snd_una(t), UINT32_MAX));
	t->cwnd = t->ssthresh;
	t->cub_epoch_us = 0;
	t->cwnd_acked = 0;
}

/*
 * RFC 9937: in proportion to what is delivered until the flight has come down to ssthresh, then slow start up
 * to it while every ACK is safe. cwnd is that ACK's permission, on top of what is in flight.
 */
void tcp_cc_prr(struct tcb *t, uint32_t delivered, bool safe)
{
	struct tcp_sent *b = t->sent;
	uint64_t pipe = tcp_pipe(t), allowed, out = b->prr_out;

	if (!delivered && b->prr_delivered)
		return;
	b->prr_delivered += delivered;
	if (pipe > t->ssthresh) {
		allowed = ((uint64_t)b->prr_delivered * t->ssthresh + b->prr_flight - 1) / u32_max(b->prr_flight, 1);
		allowed = allowed > out ? allowed - out : 0;
	} else {
		allowed = u64_max(b->prr_delivered > out ? b->prr_delivered - out : 0, delivered) + (safe ? t->mss : 0);
		allowed = u64_min(allowed, t->ssthresh - pipe);
	}
	t->cwnd = u32_max((uint32_t)u64_min(pipe + allowed, 1u << 30), t->mss);
}

void tcp_cc_timeout(struct stack *s, struct tcb *t)
{
	/* RFC 5681 3.1: only the first timeout of a segment halves. */
	if (t->recovery != TCP_LOSS) {
		save_undo(s, t);
		t->ssthresh = reduced(t, (uint32_t)u64_min(t->snd_nxt - snd_una(t), UINT32_MAX));
	}
	t->cwnd = t->mss;
	t->cub_epoch_us = 0;
	t->cwnd_acked = 0;
}

void tcp_cc_undo(struct stack *s, struct tcb *t)
{
	(void)s;
	t->cwnd = u32_max(t->cwnd, t->undo_cwnd);
	t->ssthresh = u32_max(t->ssthresh, t->undo_ssthresh);
	t->cub_epoch_us = 0;
	t->flags &= ~(uint32_t)TCB_UNDO;
}

/* RFC 5681 4.1: after an RTO of silence the ACK clock is gone. */
void tcp_cc_idle(struct stack *s, struct tcb *t)
{
	uint32_t restart = tcp_initial_window(t);

	(void)s;
	if (t->cwnd > restart)
		t->cwnd = restart;
	t->cub_epoch_us = 0;
}
