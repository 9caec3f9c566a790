/*
 * tcp_rack.c - RACK-TLP (RFC 8985): when each segment in flight was sent, what that says about loss, and the
 * probe for the end of a burst.
 *
 * Owns struct tcp_sent. It says what is lost; that recovery begins is decided in tcp_ack.c, what is sent in
 * tcp_out.c. A "segment" of the RFC is here the part of a record that an ACK or SACK block reports.
 */
#include "tcp.h"

static const uint64_t SENT_AT_MASK = (1ull << 62) - 1;	/* what at_us holds: 146,000 years */

/* RFC 8985 6.2: RACK_sent_after(). */
static bool sent_after(uint64_t at, uint64_t end, uint64_t than_at, uint64_t than_end)
{
	return at > than_at || (at == than_at && seq_lt(than_end, end));
}

/* ---- records ---- */

static struct tcp_sent_record *record(struct tcp_sent *b, uint32_t i) { return &b->r[b->first + i]; }
static const struct tcp_sent_record *record_of(const struct tcp_sent *b, uint32_t i) { return &b->r[b->first + i]; }
static uint64_t record_start(const struct tcp_sent *b, uint32_t i)
{
	return i ? record_of(b, i - 1)->end : b->start;
}
static uint64_t records_end(const struct tcp_sent *b) { return record_start(b, b->n); }

static struct tcp_sent *sent_alloc(struct stack *s, struct tcb *t)
{
	struct tcp *tcp = s->tcp;
	uint32_t next = tcp->free_sent ? tcp->sent[tcp->free_sent - 1].next_free : 0;
	uint32_t i = tcp_take(&tcp->free_sent, next, &tcp->high_sent, tcp->nsent);
	struct tcp_sent *b;

	if (!i)
		return NULL;
	b = &tcp->sent[i - 1];
	memset(b, 0, offsetof(struct tcp_sent, r));
	b->rack_rtt_us = t->srtt_us;	/* until this flight has shown its own */
	t->sent = b;
	return b;
}

void tcp_sent_free(struct stack *s, struct tcb *t)
{
	struct tcp *tcp = s->tcp;

	if (!t->sent)
		return;
	t->sent->next_free = tcp->free_sent;
	tcp->free_sent = (uint32_t)(t->sent - tcp->sent) + 1;
	t->sent = NULL;
}

/* Neighbours of the same kind become one with the later time. */
static void merge_pairs(struct tcp_sent *b)
{
	struct tcp_sent_record *r = record(b, 0);
	uint32_t out = 0;
	bool single = false;	/* the last one kept may take a neighbour */

	for (uint32_t i = 0; i < b->n; i++) {
		if (single && r[out - 1].lost == r[i].lost && r[out - 1].again == r[i].again) {
			r[out - 1].end = r[i].end;
			if (r[out - 1].at_us < r[i].at_us)
				r[out - 1].at_us = r[i].at_us;
			single = false;
			continue;
		}
		r[out++] = r[i];
		single = true;
	}
	b->n = (uint8_t)out;
}

/* Room for one more behind the last. */
static bool records_room(struct tcp_sent *b)
{
	if (b->first + b->n < TCP_SENT_RECORDS)
		return true;
	if (b->n > TCP_SENT_RECORDS * 3 / 4)
		merge_pairs(b);
	memmove(&b->r[0], record(b, 0), b->n * sizeof(b->r[0]));
	b->first = 0;
	return b->n < TCP_SENT_RECORDS;
}

static void append(struct tcp_sent *b, uint64_t end, uint64_t now_us)
{
	struct tcp_sent_record *last = b->n ? record(b, b->n - 1u) : NULL;

	if (last && last->at_us == now_us && !last->again && !last->lost) {
		last->end = end;
		return;
	}
	if (!records_room(b)) {
		last = record(b, b->n - 1u);
		last->end = end;
		last->at_us = now_us & SENT_AT_MASK;
		return;
	}
	*record(b, b->n) = (struct tcp_sent_record){ .end = end, .at_us = now_us & SENT_AT_MASK };
	b->n++;
}

/* First record that ends behind `seq`. */
static uint32_t record_at(const struct tcp_sent *b, uint64_t seq)
{
	uint32_t lo = 0, hi = b->n;

	while (lo < hi) {
		uint32_t mid = (lo + hi) / 2;

		if (seq_leq(record_of(b, mid)->end, seq))
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* A record begins at `seq`, if there is room for one more. */
static void split(struct tcp_sent *b, uint64_t seq)
{
	uint32_t i;
	struct tcp_sent_record *r;

	if (!records_room(b))
		return;
	i = record_at(b, seq);
	if (i == b->n || !seq_lt(record_start(b, i), seq))
		return;
	r = record(b, i);
	memmove(r + 1, r, (b->n - i) * sizeof(*r));
	r->end = seq;
	b->n++;
}

/* Sent again: neither lost any more nor an original. Without room to split, all of a record counts as such. */
static void sent_again(struct tcp_sent *b, uint64_t start, uint64_t end, uint64_t now_us)
{
	split(b, start);
	split(b, end);
	for (uint32_t i = record_at(b, start); i < b->n && seq_lt(record_start(b, i), end); i++) {
		struct tcp_sent_record *r = record(b, i);

		r->at_us = now_us & SENT_AT_MASK;
		r->again = 1;
		r->lost = 0;
	}
}

/* What is in flight without a record counts as sent now. NULL: no memory for it. */
static struct tcp_sent *records_to(struct stack *s, struct tcb *t, uint64_t seq)
{
	struct tcp_sent *b = t->sent ? t->sent : sent_alloc(s, t);

	if (!b)
		return NULL;
	if (!b->n) {
		b->start = b->fack = snd_una(t);
		b->first = 0;
	}
	if (seq_lt(records_end(b), seq))
		append(b, seq, s->now_us);
	return b;
}

void tcp_sent_note(struct stack *s, struct tcb *t, uint64_t start, uint64_t end)
{
	struct tcp_sent *b = records_to(s, t, start);

	if (!b)
		return;
	if (seq_lt(start, records_end(b)))
		sent_again(b, start, end, s->now_us);
	else
		append(b, end, s->now_us);
	if (t->recovery == TCP_FAST_RECOVERY)
		b->prr_out += (uint32_t)(end - start);
}

void tcp_sent_lose_all(struct stack *s, struct tcb *t)
{
	struct tcp_sent *b = tcp_racks(t) ? records_to(s, t, t->snd_nxt) : NULL;

	for (uint32_t i = 0; b && i < b->n; i++)
		record(b, i)->lost = 1;
}

void tcp_sent_lose_none(struct tcb *t)
{
	for (uint32_t i = 0; t->sent && i < t->sent->n; i++)
		record(t->sent, i)->lost = 0;
}

bool tcp_sent_hole(const struct tcb *t, uint64_t *start, uint64_t *end)
{
	const struct tcp_sent *b = t->sent;

	for (uint32_t i = 0; i < b->n; i++)
		if (record_of(b, i)->lost &&
		    ranges_gap(tcp_sacked(t), record_start(b, i), record_of(b, i)->end, start, end))
			return true;
	return false;
}

uint64_t tcp_sent_lost(const struct tcb *t)
{
	const struct tcp_sent *b = t->sent;
	const struct tcp_ranges *r = tcp_sacked(t);
	uint64_t sum = 0;

	for (uint32_t i = 0; i < b->n; i++) {
		uint64_t start = record_start(b, i), end = record_of(b, i)->end;

		if (record_of(b, i)->lost)
			sum += end - start - (r ? ranges_bytes(r, start, end) : 0);
	}
	return sum;
}

/* ---- RACK: steps 1 to 3, for one segment that this ACK reports ---- */

static void min_rtt(const struct stack *s, struct tcb *t, uint32_t rtt_us)
{
	uint16_t now_s = (uint16_t)(s->now_us / 1000000);

	if (t->min_rtt_us && rtt_us > t->min_rtt_us && (uint16_t)(now_s - t->min_rtt_s) <= TCP_MIN_RTT_S)
		return;
	t->min_rtt_us = rtt_us;
	t->min_rtt_s = now_s;
}

/* Step 2: an ACK that came too early for the retransmission is of the original. */
static bool of_original(const struct tcb *t, const struct tcp_seg *g, uint64_t at_us, uint64_t rtt_us)
{
	if (g->has & TCP_OPT_TS && t->options & TCP_OPT_TS && g->ts_ecr &&
	    wire_lt(g->ts_ecr, (uint32_t)(at_us / 1000) + t->ts_offset))
		return true;
	return rtt_us < t->min_rtt_us;
}

static void delivered(struct stack *s, struct tcb *t, const struct tcp_seg *g, const struct tcp_sent_record *r,
		      uint64_t end)
{
	struct tcp_sent *b = t->sent;
	uint64_t rtt_us = u64_max(u64_min(s->now_us - r->at_us, TCP_RTO_MAX_US), 1);

	if (seq_lt(b->fack, end))
		b->fack = end;
	else if (seq_lt(end, b->fack) && !r->again)
		t->flags |= TCB_REORDERING;
	if (r->again && of_original(t, g, r->at_us, rtt_us))
		return;
	if (!r->again)
		min_rtt(s, t, (uint32_t)rtt_us);
	/* Blocks come in any order: RACK.rtt is that of the segment sent last, too. */
	if (sent_after(r->at_us, end, b->rack_at_us, b->rack_end)) {
		b->rack_rtt_us = (uint32_t)rtt_us;
		b->rack_at_us = r->at_us;
		b->rack_end = end;
	}
}

void tcp_sent_sacked(struct stack *s, struct tcb *t, const struct tcp_seg *g, uint64_t start, uint64_t end)
{
	const struct tcp_sent *b = t->sent;
	uint64_t from, to;

	while (ranges_gap(tcp_sacked(t), start, end, &from, &to)) {
		for (uint32_t i = record_at(b, from); i < b->n && seq_lt(record_start(b, i), to); i++)
			delivered(s, t, g, record_of(b, i), seq_lt(to, record_of(b, i)->end) ? to : record_of(b, i)->end);
		start = to;
	}
}

void tcp_sent_acked(struct stack *s, struct tcb *t, const struct tcp_seg *g, uint64_t ack)
{
	struct tcp_sent *b = t->sent;

	tcp_sent_sacked(s, t, g, snd_una(t), ack);
	while (b->n && seq_leq(record_of(b, 0)->end, ack)) {
		b->first++;
		b->n--;
	}
	b->start = ack;
	/* A probe whose outcome is open keeps its record. */
	if (!b->n && !b->tlp_end)
		tcp_sent_free(s, t);
}

/* ---- RACK: steps 4 and 5 ---- */

void tcp_rack_dsack(struct tcb *t)
{
	struct tcp_sent *b = t->sent;

	if (b && b->dsack_round && seq_lt(snd_una(t), b->dsack_round))
		return;
	if (b)
		b->dsack_round = t->snd_nxt;
	if (t->reo_mult < UINT8_MAX)
		t->reo_mult++;
	t->reo_persist = TCP_REO_PERSIST;
}

void tcp_rack_recovered(struct tcb *t)
{
	if (t->reo_persist && --t->reo_persist == 0)
		t->reo_mult = 0;
}

static uint64_t reo_wnd_us(const struct tcb *t)
{
	if (!(t->flags & TCB_REORDERING) && (t->recovery != TCP_OPEN || tcp_dup_thresh(t)))
		return 0;
	return u64_min((t->reo_mult + 1ull) * t->min_rtt_us / 4, t->srtt_us);
}

bool tcp_rack_detect(struct stack *s, struct tcb *t, uint64_t *wait_us)
{
	struct tcp_sent *b = t->sent;
	uint64_t window = b->rack_rtt_us + reo_wnd_us(t);
	bool found = false;

	*wait_us = 0;
	/* A piece of which the end is known to have arrived, its beginning not. */
	if (b->rack_at_us)
		split(b, b->rack_end);
	for (uint32_t i = 0; b->rack_at_us && i < b->n; i++) {
		struct tcp_sent_record *r = record(b, i);
		uint64_t due = r->at_us + window;

		/* One that ends with the segment that arrived last: what is missing of it lies in front of that. */
		if (r->lost || sent_after(r->at_us, r->end, b->rack_at_us, b->rack_end) ||
		    (tcp_sacked(t) && ranges_contain(tcp_sacked(t), record_start(b, i), r->end)))
			continue;
		if (due <= s->now_us) {
			r->lost = 1;
			found = true;
		} else {
			*wait_us = u64_max(*wait_us, due - s->now_us);
		}
	}
	return found;
}

void tcp_rack_timeout(struct stack *s, struct tcb *t)
{
	struct tcp_sent *b = tcp_racks(t) ? records_to(s, t, t->snd_nxt) : NULL;
	uint64_t window;

	if (!b)
		return;
	window = b->rack_rtt_us + reo_wnd_us(t);
	b->tlp_end = 0;
	split(b, snd_una(t) + t->mss);
	for (uint32_t i = 0; i < b->n; i++)
		if (i == 0 || record(b, i)->at_us + window <= s->now_us)
			record(b, i)->lost = 1;
}

/* ---- TLP ---- */

/* 7.2: only when nothing is known to be missing, and one at a time. */
uint64_t tcp_pto_us(const struct tcb *t)
{
	uint64_t pto;

	if (!tcp_sent_any(t) || t->sent->tlp_end || t->recovery != TCP_OPEN || t->backoff || tcp_sacked(t) ||
	    !tcp_sends(tcp_state(t)))
		return 0;
	pto = t->srtt_us ? 2ull * t->srtt_us + TCP_PTO_SLACK_US : 1000000;
	if (t->srtt_us && t->snd_nxt - snd_una(t) <= t->mss)
		pto += TCP_PTO_DELACK_US;
	return u64_min(pto, t->rto_us);
}

/* One loss was repaired by the probe: the window answers as to any other (7.4.2). */
static void repaired(struct stack *s, struct tcb *t)
{
	tcp_cc_loss(s, t);
	t->flags &= ~(uint32_t)TCB_UNDO;
}

void tcp_tlp_ack(struct stack *s, struct tcb *t, const struct tcp_seg *g)
{
	struct tcp_sent *b = t->sent;

	if (!b->tlp_end || seq_lt(g->ack, b->tlp_end))
		return;
	if (b->tlp_retrans && g->dsack_end != b->tlp_end) {
		if (seq_lt(b->tlp_end, g->ack))
			repaired(s, t);
		/* Neither a duplicate of the probe nor an answer to both copies: what arrived is open. */
		else if (g->ack != snd_una(t) || g->len || g->nsack || g->flags & TCP_FIN)
			return;
	}
	b->tlp_end = 0;
	if (!b->n)
		tcp_sent_free(s, t);
}
