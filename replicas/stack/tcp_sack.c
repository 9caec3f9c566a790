/*
 * tcp_sack.c - sets of intervals, and what the sender concludes from SACK blocks: which bytes the
 * peer holds, which are lost, how much is in flight (RFC 2018, 2883, 6675).
 *
 * Not responsible for deciding to retransmit (tcp_ack.c, tcp_out.c). Without SACK the same
 * questions are answered from the count of duplicate ACKs (RFC 6582).
 */
#include "tcp.h"

/* First interval that ends at or behind `seq`. */
static uint32_t ranges_at(const struct tcp_ranges *r, uint64_t seq)
{
	uint32_t lo = 0, hi = r->n;

	while (lo < hi) {
		uint32_t mid = (lo + hi) / 2;

		if (seq_lt(r->r[mid].end, seq))
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

bool ranges_add(struct tcp_ranges *r, uint64_t start, uint64_t end, uint64_t *added)
{
	uint32_t i = ranges_at(r, start), j = i;
	uint64_t covered = 0;

	*added = 0;
	/* [i, j) touch or overlap the new one and become one with it. */
	for (; j < r->n && seq_leq(r->r[j].start, end); j++) {
		covered += r->r[j].end - r->r[j].start;
		if (seq_lt(r->r[j].start, start))
			start = r->r[j].start;
		if (seq_lt(end, r->r[j].end))
			end = r->r[j].end;
	}
	if (i == j) {
		if (r->n == TCP_RANGES)
			return false;
		memmove(&r->r[i + 1], &r->r[i], (r->n - i) * sizeof(r->r[0]));
		r->n++;
	} else if (j - i > 1) {
		memmove(&r->r[i + 1], &r->r[j], (r->n - j) * sizeof(r->r[0]));
		r->n -= j - i - 1;
	}
	r->r[i].start = start;
	r->r[i].end = end;
	*added = end - start - covered;
	r->total += *added;
	return true;
}

void ranges_cut(struct tcp_ranges *r, uint64_t below)
{
	uint32_t drop = 0;

	while (drop < r->n && seq_leq(r->r[drop].end, below)) {
		r->total -= r->r[drop].end - r->r[drop].start;
		drop++;
	}
	if (drop) {
		memmove(&r->r[0], &r->r[drop], (r->n - drop) * sizeof(r->r[0]));
		r->n -= drop;
	}
	if (r->n && seq_lt(r->r[0].start, below)) {
		r->total -= below - r->r[0].start;
		r->r[0].start = below;
	}
}

bool ranges_contain(const struct tcp_ranges *r, uint64_t start, uint64_t end)
{
	uint32_t i = ranges_at(r, end);

	return i < r->n && seq_leq(r->r[i].start, start);
}

bool ranges_gap(const struct tcp_ranges *r, uint64_t from, uint64_t limit, uint64_t *start, uint64_t *end)
{
	uint32_t i = r ? ranges_at(r, from + 1) : 0;

	if (r && i < r->n && seq_leq(r->r[i].start, from)) {
		from = r->r[i].end;
		i++;
	}
	if (!seq_lt(from, limit))
		return false;
	*start = from;
	*end = r && i < r->n && seq_lt(r->r[i].start, limit) ? r->r[i].start : limit;
	return true;
}

/* Bytes of the set in [start, end). */
uint64_t ranges_bytes(const struct tcp_ranges *r, uint64_t start, uint64_t end)
{
	uint64_t sum = 0;

	for (uint32_t i = ranges_at(r, start + 1); i < r->n && seq_lt(r->r[i].start, end); i++) {
		uint64_t from = seq_lt(r->r[i].start, start) ? start : r->r[i].start;
		uint64_t to = seq_lt(end, r->r[i].end) ? end : r->r[i].end;

		sum += to - from;
	}
	return sum;
}

/* ---- sender: scoreboard ---- */

/*
 * RFC 2883: the first block reports a duplicate if it lies below the cumulative ACK or inside the
 * second block.
 */
static bool is_dsack(const struct tcp_seg *g, uint64_t start, uint64_t end, uint64_t una)
{
	if (seq_lt(start, seq_max(una, g->ack)) && seq_leq(end, seq_max(una, g->ack)))
		return true;
	return g->nsack > 1 && !wire_lt(g->sack[0].start, g->sack[1].start) &&
	       !wire_lt(g->sack[1].end, g->sack[0].end);
}

static uint64_t sack_block(struct stack *s, struct tcb *t, const struct tcp_seg *g, uint64_t start, uint64_t end)
{
	uint64_t added;

	if (!tcb_holes(s, t))
		return 0;	/* no memory: fewer hints, more retransmission */
	if (tcp_sent_any(t) && t->holes->sacked.n < TCP_RANGES)
		tcp_sent_sacked(s, t, g, start, end);
	return ranges_add(&t->holes->sacked, start, end, &added) ? added : 0;
}

uint64_t tcp_sack_input(struct stack *s, struct tcb *t, struct tcp_seg *g)
{
	uint64_t una = snd_una(t), max = t->snd_nxt, total = 0;

	for (unsigned i = 0; i < g->nsack; i++) {
		uint64_t start = seq_extend(g->sack[i].start, t->iss, una);
		uint64_t end = seq_extend(g->sack[i].end, t->iss, una);

		if (!seq_lt(start, end) || seq_lt(max, end))
			continue;
		if (i == 0 && is_dsack(g, start, end, una)) {
			g->dsack_end = end;
			continue;
		}
		/* Stale: below what is acknowledged (RFC 2018 4). */
		if (!seq_lt(seq_max(una, g->ack), end))
			continue;
		total += sack_block(s, t, g, seq_max(start, una), end);
	}
	return total;
}

bool tcp_dup_thresh(const struct tcb *t)
{
	const struct tcp_ranges *r = tcp_sacked(t);

	return r && (r->n >= TCP_DUP_THRESH || r->total > (TCP_DUP_THRESH - 1) * (uint64_t)t->mss);
}

/*
 * Without times of sending (tcp_rack.c). Everything un-SACKed below this edge counts as lost. RFC 6675 IsLost(): DupThresh separate SACKed
 * intervals above, or more than (DupThresh - 1) * SMSS SACKed bytes above; both only grow towards
 * lower numbers, so one edge says it all.
 */
static uint64_t lost_edge(const struct tcb *t)
{
	const struct tcp_ranges *r = tcp_sacked(t);
	uint64_t edge = snd_una(t), bytes = 0;
	uint32_t count = 0;

	if (t->recovery == TCP_LOSS)
		edge = t->recover;
	else if (t->recovery == TCP_FAST_RECOVERY && !(t->options & TCP_OPT_SACK))
		edge = u64_min(snd_una(t) + t->mss, t->recover);
	else if (t->recovery == TCP_FAST_RECOVERY && !r)
		edge = u64_min(snd_una(t) + t->mss, t->recover);
	for (uint32_t i = r ? r->n : 0; i-- > 0; ) {
		count++;
		bytes += r->r[i].end - r->r[i].start;
		if (count >= TCP_DUP_THRESH || bytes > (TCP_DUP_THRESH - 1) * (uint64_t)t->mss)
			return u64_max(edge, r->r[i].start);
	}
	return edge;
}

bool tcp_is_lost(const struct tcb *t, uint64_t seq)
{
	return seq_lt(seq, lost_edge(t));
}

/* RFC 6675 SetPipe(); with times of sending what RFC 8985 says is neither lost nor SACKed. */
uint64_t tcp_pipe(const struct tcb *t)
{
	const struct tcp_ranges *r = tcp_sacked(t);
	uint64_t una = snd_una(t), out = t->snd_nxt - una, edge, rxt, dup;

	if (tcp_sent_any(t))
		return out - (r ? r->total : 0) - tcp_sent_lost(t);
	if (t->recovery == TCP_OPEN) {
		dup = r ? r->total : t->options & TCP_OPT_SACK ? 0 : (uint64_t)t->dupacks * t->mss;
		return out > dup ? out - dup : 0;
	}
	edge = u64_min(lost_edge(t), t->snd_nxt);
	rxt = u64_min(u64_max(t->high_rxt, una), edge);
	if (!(t->options & TCP_OPT_SACK)) {
		dup = (uint64_t)t->dupacks * t->mss;
		out = t->snd_nxt - edge;
		return (out > dup ? out - dup : 0) + rxt - una;
	}
	out = t->snd_nxt - edge + rxt - una;
	if (r)
		out -= ranges_bytes(r, edge, t->snd_nxt) + ranges_bytes(r, una, rxt);
	return out;
}

bool tcp_next_hole(const struct tcb *t, bool last_resort, uint64_t *start, uint64_t *end)
{
	const struct tcp_ranges *r = tcp_sacked(t);
	uint64_t limit;

	if (tcp_sent_any(t))
		return !last_resort && tcp_sent_hole(t, start, end);
	limit = u64_min(lost_edge(t), t->snd_nxt);
	if (last_resort) {
		if (!r)
			return false;
		limit = r->r[r->n - 1].start;
	}
	return ranges_gap(r, u64_max(t->high_rxt, snd_una(t)), limit, start, end);
}

/* ---- receiver: what to report ---- */

static bool block_known(uint32_t (*out)[2], unsigned n, uint32_t start)
{
	for (unsigned i = 0; i < n; i++)
		if (out[i][0] == start)
			return true;
	return false;
}

/* RFC 2018 4: the block with the newest segment first, then repeat the latest; RFC 2883: a duplicate before all. */
unsigned tcp_sack_blocks(const struct tcb *t, uint32_t (*out)[2], unsigned max)
{
	const struct tcp_ranges *o = t->holes ? &t->holes->ooo : NULL;
	unsigned n = 0, first = 0;

	if (t->flags & TCB_DSACK && max) {
		out[0][0] = t->irs + (uint32_t)t->dsack_start;
		out[0][1] = out[0][0] + t->dsack_len;
		n = first = 1;
	}
	for (unsigned i = 0; o && i < 4 && n < max; i++) {
		uint64_t at = t->holes->recent[i];
		uint32_t k = ranges_at(o, at + 1), start;

		if (k >= o->n || seq_lt(at, o->r[k].start))
			continue;
		start = t->irs + (uint32_t)o->r[k].start;
		if (block_known(out + first, n - first, start))
			continue;
		out[n][0] = start;
		out[n++][1] = t->irs + (uint32_t)o->r[k].end;
	}
	return n;
}
