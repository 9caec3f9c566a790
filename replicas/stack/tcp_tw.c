/*
 * tcp_tw.c - TIME_WAIT (RFC 9293 3.6.1) in 64-byte slots: answers late segments, keeps the tuple.
 *
 * All slots live equally long, so the list in order of (re)start is in order of expiry. A connection
 * with both ends on our own lo leaves at once when both ends are closed (L7): lo delivers in order,
 * so no late segment can exist.
 */
#include "tcp.h"

static uint32_t tw_index(const struct tcp *tcp, const struct tcp_time_wait *w)
{
	return (uint32_t)(w - tcp->time_waits) + 1;
}

static struct flow_key tw_key(const struct tcp_time_wait *w)
{
	return (struct flow_key){ .laddr = w->laddr, .raddr = w->raddr, .lport = w->lport, .rport = w->rport };
}

static void list_del(struct tcp *tcp, struct tcp_time_wait *w)
{
	if (w->prev)
		tcp->time_waits[w->prev - 1].next = w->next;
	else
		tcp->tw.head = w->next;
	if (w->next)
		tcp->time_waits[w->next - 1].prev = w->prev;
	else
		tcp->tw.tail = w->prev;
}

static uint64_t lifetime_us(const struct stack *s) { return s->cfg.time_wait_ms * 1000ull; }

/* At the end of the list: its expiry is the latest. */
static void start(struct stack *s, struct tcp_time_wait *w)
{
	struct tcp *tcp = s->tcp;

	w->next = 0;
	w->prev = tcp->tw.tail;
	if (tcp->tw.tail)
		tcp->time_waits[tcp->tw.tail - 1].next = tw_index(tcp, w);
	else
		tcp->tw.head = tw_index(tcp, w);
	tcp->tw.tail = tw_index(tcp, w);
	if (!timer_armed(&tcp->tw_timer))
		timer_set(&s->wheel, &tcp->tw_timer, a64_relaxed(&w->expiry_us));
}

void tcp_tw_free(struct stack *s, struct tcp_time_wait *w)
{
	struct tcp *tcp = s->tcp;
	struct flow_key k = tw_key(w);

	flow_remove(s, &k);
	list_del(tcp, w);
	a32_release(&w->state, 0);
	w->next = tcp->free_time_wait;
	tcp->free_time_wait = tw_index(tcp, w);
}

static struct tcp_time_wait *tw_find(struct stack *s, const struct flow_key *k)
{
	struct tcp *tcp = s->tcp;
	void *v = flow_find(s, k);

	return v >= (void *)tcp->time_waits && v < (void *)(tcp->time_waits + tcp->ntime_waits) ? v : NULL;
}

static struct flow_key reversed(const struct flow_key *k)
{
	return (struct flow_key){ .laddr = k->raddr, .raddr = k->laddr, .lport = k->rport, .rport = k->lport };
}

void tcp_tw_peer_closed(struct stack *s, const struct flow_key *k)
{
	struct flow_key r = reversed(k);
	struct tcp_time_wait *w = tw_find(s, &r);

	if (w)
		tcp_tw_free(s, w);
}

/* No need to wait: the local peer is closed, or closes as we do. */
static bool both_closed(struct stack *s, const struct tcb *t)
{
	struct flow_key r = reversed(&t->key);

	if (!(t->flags & TCB_LOCAL))
		return false;
	if (memcmp(&r, &t->key, sizeof(r)) == 0)
		return true;	/* connected to itself */
	tcp_tw_peer_closed(s, &t->key);
	return flow_find(s, &r) == NULL;
}

static struct tcp_time_wait *tw_new(struct stack *s)
{
	struct tcp *tcp = s->tcp;
	uint32_t next, i;

	/* Full: the one that has waited longest is the least likely to be needed. */
	if (!tcp->free_time_wait && a32_relaxed(&tcp->arena->high_time_wait) == tcp->ntime_waits && tcp->tw.head)
		tcp_tw_free(s, &tcp->time_waits[tcp->tw.head - 1]);
	next = tcp->free_time_wait ? tcp->time_waits[tcp->free_time_wait - 1].next : 0;
	i = tcp_take(&tcp->free_time_wait, next, &tcp->arena->high_time_wait, tcp->ntime_waits);
	return i ? &tcp->time_waits[i - 1] : NULL;
}

/* From FIN-WAIT-2 or CLOSING: the control block goes, a slot stays. */
void tcp_time_wait(struct stack *s, struct tcb *t)
{
	struct tcp_time_wait *w = s->cfg.time_wait_ms && !both_closed(s, t) ? tw_new(s) : NULL;

	if (!w) {
		/* The ACK of the peer's FIN is still owed. */
		tcp_send_ack(s, t);
		tcp_done(s, t, 0);
		return;
	}
	w->laddr = t->key.laddr;
	w->raddr = t->key.raddr;
	w->lport = t->key.lport;
	w->rport = t->key.rport;
	w->snd_nxt = t->iss + (uint32_t)t->snd_nxt;
	w->rcv_nxt = t->irs + (uint32_t)rcv_nxt(t);
	w->ts_recent = ts_recent(t);
	w->ts_offset = t->ts_offset;
	w->has_ts = t->options & TCP_OPT_TS;
	tcp_send_ack(s, t);
	w->rcv_wnd = (uint32_t)(t->rcv_adv - rcv_nxt(t)) >> t->rcv_wscale;
	a64_store(&w->expiry_us, s->now_us + lifetime_us(s));
	/* From here on it stands for the connection; a successor ends a control block that is still there. */
	a32_release(&w->state, 1);
	/* tcp_done() frees the tuple and the block; TIME_WAIT of the peer's half must not end here. */
	t->flags &= ~(uint32_t)TCB_LOCAL;
	tcp_done(s, t, 0);
	struct flow_key k = tw_key(w);

	if (flow_insert(s, &k, w)) {
		a32_release(&w->state, 0);
		w->next = s->tcp->free_time_wait;
		s->tcp->free_time_wait = tw_index(s->tcp, w);
		return;
	}
	start(s, w);
}

static void answer(struct stack *s, const struct tcp_time_wait *w)
{
	struct tcp_reply r = {
		.key = tw_key(w), .seq = w->snd_nxt, .ack = w->rcv_nxt, .flags = TCP_ACK,
		.wnd = (uint16_t)u32_min(w->rcv_wnd, 0xffff), .options = w->has_ts ? TCP_OPT_TS : 0,
		.ts_val = tcp_now_ts(s, w->ts_offset), .ts_ecr = w->ts_recent,
	};

	if (tcp_challenge_allowed(s) && !tcp_send_reply(s, &r))
		stack_drop(s, DROP_QUEUE_FULL);
}

bool tcp_tw_input(struct stack *s, struct tcp_time_wait *w, const struct flow_key *k, struct tcp_seg *g)
{
	bool newer = w->has_ts && g->has & TCP_OPT_TS && wire_lt(w->ts_recent, g->ts_val);
	bool older = w->has_ts && g->has & TCP_OPT_TS && wire_lt(g->ts_val, w->ts_recent);

	(void)k;
	if (g->flags & TCP_RST) {
		stack_drop(s, DROP_TCP_RST);	/* RFC 1337: no assassination */
		return false;
	}
	/* RFC 6191 2, RFC 9293 3.10.7.4: clearly a new incarnation. */
	if ((g->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && !older &&
	    (newer || wire_lt(w->rcv_nxt, g->wire_seq))) {
		tcp_tw_free(s, w);
		return true;
	}
	if (g->flags & TCP_FIN && !older && g->wire_seq + g->len + 1 == w->rcv_nxt) {
		if (newer)
			w->ts_recent = g->ts_val;
		list_del(s->tcp, w);	/* retransmitted FIN: restart 2 MSL */
		a64_release(&w->expiry_us, s->now_us + lifetime_us(s));
		start(s, w);
		answer(s, w);
		return false;
	}
	if (g->len || g->flags & (TCP_SYN | TCP_FIN) || g->wire_seq != w->rcv_nxt)
		answer(s, w);
	return false;
}

/* RFC 6191, RFC 9293 3.6.1: our timestamps go on, and our ISN clock outran the old numbers. */
bool tcp_tw_reusable(const struct stack *s, const struct tcp_time_wait *w)
{
	uint64_t left_us = a64_relaxed(&w->expiry_us) - s->now_us;

	return w->has_ts && left_us + 1000000 <= s->cfg.time_wait_ms * 1000ull;
}

void tcp_tw_timer(struct stack *s)
{
	struct tcp *tcp = s->tcp;

	while (tcp->tw.head && a64_relaxed(&tcp->time_waits[tcp->tw.head - 1].expiry_us) <= s->now_us)
		tcp_tw_free(s, &tcp->time_waits[tcp->tw.head - 1]);
	if (tcp->tw.head)
		timer_set(&s->wheel, &tcp->tw_timer,
			  a64_relaxed(&tcp->time_waits[tcp->tw.head - 1].expiry_us));
}

bool tcp_tw_adopt(struct stack *s, struct tcp_time_wait *w)
{
	struct flow_key k = tw_key(w), r = reversed(&k);
	uint64_t latest = s->now_us + lifetime_us(s);

	if (a64_relaxed(&w->expiry_us) > latest)
		a64_release(&w->expiry_us, latest);
	/* A local peer that closed meanwhile cannot tell us any more (L7). */
	if (a32_relaxed(&w->state) != 1 || (ip_is_local(s, k.raddr) && !flow_find(s, &r)) || flow_insert(s, &k, w))
		return false;
	start(s, w);
	return true;
}
