/*
 * tcp_syn.c - passive open: listeners' SYNs, half-open connections in 64-byte request slots (W7'),
 * initial sequence numbers (RFC 6528).
 *
 * A request slot is whole and committed before its SYN-ACK leaves; the control block is made when
 * the handshake completes and the listener has room, else the final ACK is ignored like on Linux
 * and the SYN-ACK comes again. When slots or backlog are full, a SYN is dropped; no cookies.
 */
#include "hash.h"
#include "tcp.h"
#include <errno.h>

/* ---- numbers nobody can guess ---- */

static uint64_t tuple_hash(const struct stack *s, const struct flow_key *k, uint64_t purpose)
{
	const uint64_t in[3] = {
		(uint64_t)k->laddr << 32 | k->raddr, (uint64_t)k->lport << 16 | k->rport, purpose,
	};

	return siphash24(s->cfg.secret, in, sizeof(in));
}

/* RFC 6528 3: ISN = M + F(tuple, secret), M ticks every 4 us. */
uint32_t tcp_isn(const struct stack *s, const struct flow_key *k)
{
	return (uint32_t)(s->now_us / 4) + (uint32_t)tuple_hash(s, k, 1);
}

/* RFC 7323 7.1; by addresses and ports, so that a reused tuple sees time go on (RFC 6191). */
uint32_t tcp_ts_offset(const struct stack *s, const struct flow_key *k)
{
	return (uint32_t)tuple_hash(s, k, 2);
}

/* RFC 6691: what we tell the peer; options are not deducted. */
uint16_t tcp_mss_for(const struct stack *s, const struct flow_key *k, const struct neat_opts *o)
{
	uint32_t mtu = ip_mtu_for(s, k->raddr), mss = mtu > 40 + TCP_MSS_MIN ? mtu - 40 : TCP_MSS_MIN;

	if (o->w[NEAT_OPT_MAXSEG] && o->w[NEAT_OPT_MAXSEG] < mss)
		mss = u32_max(o->w[NEAT_OPT_MAXSEG], TCP_MSS_MIN);
	return (uint16_t)u32_min(mss, TCP_MSS_MAX);
}

/* The smallest shift that can tell the largest window this connection may ever have. */
uint8_t tcp_wscale_for(const struct stack *s, const struct neat_opts *o)
{
	uint32_t max = u32_min(s->cfg.rcvbuf, TCP_RCVBUF_MAX);
	uint8_t shift = 0;

	max = u32_max(max, u32_min(o->w[NEAT_OPT_RCVBUF] / 2, TCP_RCVBUF_MAX));
	while (shift < 14 && max >> shift > 0xffff)
		shift++;
	return shift;
}

/* ---- lists of equal back-off ---- */

static void list_add(struct tcp *tcp, struct tcp_request *r, uint8_t level)
{
	struct tcp_list *q = &tcp->req_level[level];
	uint32_t i = (uint32_t)(r - tcp->requests) + 1;

	r->level = level;
	r->next = 0;
	r->prev = q->tail;
	if (q->tail)
		tcp->requests[q->tail - 1].next = i;
	else
		q->head = i;
	q->tail = i;
}

static void list_del(struct tcp *tcp, struct tcp_request *r)
{
	struct tcp_list *q = &tcp->req_level[r->level];

	if (r->prev)
		tcp->requests[r->prev - 1].next = r->next;
	else
		q->head = r->next;
	if (r->next)
		tcp->requests[r->next - 1].prev = r->prev;
	else
		q->tail = r->prev;
}

static void arm(struct stack *s)
{
	struct tcp *tcp = s->tcp;
	uint64_t first = UINT64_MAX;

	for (unsigned i = 0; i < TCP_REQ_LEVELS; i++)
		if (tcp->req_level[i].head)
			first = u64_min(first, tcp->requests[tcp->req_level[i].head - 1].deadline_us);
	if (first == UINT64_MAX)
		return;
	if (!timer_armed(&tcp->req_timer) || tcp->req_timer.deadline_us > first)
		timer_set(&s->wheel, &tcp->req_timer, first);
}

/* ---- request slots ---- */

static struct flow_key request_key(const struct tcp_request *r)
{
	return (struct flow_key){ .laddr = r->laddr, .raddr = r->raddr, .lport = r->lport, .rport = r->rport };
}

static struct listener *request_listener(struct stack *s, const struct tcp_request *r)
{
	struct listener *l = r->listener < TCP_LISTENERS ? &s->tcp->listeners[r->listener] : NULL;

	return l && l->used ? l : NULL;
}

static void half_open(struct listener *l, uint32_t more)
{
	l->half_open += more;
	if (l->ref.mem)
		l->ref.mem->half_open += more;
}

/* Does not touch the flow table: the caller removes or replaces the entry. */
static void request_release(struct stack *s, struct tcp_request *r)
{
	struct tcp *tcp = s->tcp;
	struct listener *l = request_listener(s, r);

	list_del(tcp, r);
	a32_release(&r->state, 0);
	if (l)
		half_open(l, -1u);
	tcp->half_open--;
	r->next = tcp->free_request;
	tcp->free_request = (uint32_t)(r - tcp->requests) + 1;
}

void tcp_request_free(struct stack *s, struct tcp_request *r)
{
	struct flow_key k = request_key(r);

	flow_remove(s, &k);
	request_release(s, r);
}

static bool send_syn_ack(struct stack *s, const struct tcp_request *r, const struct listener *l)
{
	struct tcp_reply p = {
		.key = request_key(r), .seq = r->iss, .ack = r->irs + 1, .flags = TCP_SYN | TCP_ACK,
		.options = r->options, .tos = (uint8_t)l->opts.w[NEAT_OPT_TOS],
	};

	p.mss = tcp_mss_for(s, &p.key, &l->opts);
	p.wscale = tcp_wscale_for(s, &l->opts);
	p.wnd = (uint16_t)u32_min(tcp_rcvbuf_for(s, &l->opts), 0xffff);
	p.ts_val = tcp_now_ts(s, tcp_ts_offset(s, &p.key));
	p.ts_ecr = r->ts_recent;
	return tcp_send_reply(s, &p);
}

/* Connections that wait in the accept queue; the application's word is checked before use. */
static uint64_t accept_queue(const struct listener *l)
{
	uint64_t tail, n;

	if (!l->ref.mem)
		return 0;
	tail = a64_relaxed(&l->ref.pub->accept_tail);
	n = tail - a64_acquire(&l->ref.app->accept_head);
	return n <= NEAT_ACCEPT_ENTRIES ? n : 0;
}

/* The queue may be full only because its head was overwritten: whoever sleeps in accept() looks, and mends it. */
static void refuse_for_backlog(struct stack *s, struct listener *l)
{
	stack_drop(s, DROP_TCP_BACKLOG);
	sock_notify(s, &l->ref, SOCK_READABLE);
}

static bool one_more(const struct stack *s, const struct listener *l)
{
	return !l->ref.mem || share_block(s, l->ref.mem->live + 1);
}

static struct tcp_request *request_new(struct stack *s, struct listener *l, const struct flow_key *k,
				       const struct tcp_seg *g)
{
	struct tcp *tcp = s->tcp;
	uint32_t next = tcp->free_request ? tcp->requests[tcp->free_request - 1].next : 0;
	uint32_t i = tcp_take(&tcp->free_request, next, &tcp->arena->high_request, tcp->nrequests);
	struct tcp_request *r;

	if (!i)
		return NULL;
	r = &tcp->requests[i - 1];
	if (flow_insert(s, k, r)) {
		r->next = tcp->free_request;
		tcp->free_request = i;
		return NULL;
	}
	r->laddr = k->laddr;
	r->raddr = k->raddr;
	r->lport = k->lport;
	r->rport = k->rport;
	r->iss = tcp_isn(s, k);
	r->irs = g->wire_seq;
	r->ts_recent = g->ts_val;
	r->listener = l->index;
	r->mss = g->mss;
	r->wscale = g->wscale;
	r->options = g->has & (TCP_OPT_TS | TCP_OPT_SACK | TCP_OPT_WS);
	r->acked = 0;
	r->born_ms = (uint32_t)(s->now_us / 1000);
	r->deadline_us = s->now_us + TCP_RTO_INIT_US;
	a32_release(&r->state, 1);	/* W7': committed before the SYN-ACK */
	list_add(tcp, r, 0);
	half_open(l, 1);
	tcp->half_open++;
	return r;
}

/* RFC 9293 3.10.7.2. */
void tcp_listen_input(struct stack *s, struct listener *l, const struct flow_key *k, struct tcp_seg *g)
{
	struct tcp_request *r;

	if (g->flags & TCP_RST) {
		stack_drop(s, DROP_TCP_RST);
		return;
	}
	if (g->flags & TCP_ACK) {
		stack_drop(s, DROP_TCP_STATE);
		tcp_refuse(s, g, k);
		return;
	}
	/* SYN+FIN never opens anything (as Linux); LAND is a SYN from our own address and port. */
	if (!(g->flags & TCP_SYN) || g->flags & TCP_FIN ||
	    (k->laddr == k->raddr && k->lport == k->rport)) {
		stack_drop(s, DROP_TCP_STATE);
		return;
	}
	if (accept_queue(l) > l->backlog || l->half_open > l->backlog) {
		refuse_for_backlog(s, l);
		return;
	}
	r = share_request(s, l->ref.mem) && one_more(s, l) ? request_new(s, l, k, g) : NULL;
	if (!r) {
		stack_drop(s, DROP_TCP_MEMORY);
		return;
	}
	arm(s);
	if (!send_syn_ack(s, r, l))
		stack_drop(s, DROP_QUEUE_FULL);	/* the timer sends it again */
}

/* ---- completion ---- */

static void child_init(struct stack *s, struct tcb *t, const struct tcp_request *r, const struct listener *l)
{
	uint16_t peer = r->mss ? r->mss : TCP_MSS_DEFAULT;

	t->key = request_key(r);
	t->iss = r->iss;
	t->irs = r->irs;
	t->ts_offset = tcp_ts_offset(s, &t->key);
	t->options = r->options;
	t->snd_wscale = r->options & TCP_OPT_WS ? r->wscale : 0;
	t->rcv_wscale = r->options & TCP_OPT_WS ? tcp_wscale_for(s, &l->opts) : 0;
	t->flags = TCB_OPEN_PASSIVE | (ip_is_local(s, t->key.raddr) ? TCB_LOCAL : 0);
	if (peer < TCP_MSS_MIN)
		peer = TCP_MSS_MIN;
	t->pmss = (uint16_t)u32_min(peer, tcp_mss_for(s, &t->key, &l->opts));
	t->mss = (uint16_t)(t->pmss - (t->options & TCP_OPT_TS ? TCP_TS_LEN : 0));
	t->rcv_mss = (uint16_t)u32_min(t->mss, TCP_MSS_DEFAULT);
	tcb_options(s, t, &l->opts);
	e_rx_ring(t, neat_ringword(0, NEAT_RING_LOG2_MIN));
	t->snd_nxt = 1;
	t->rcv_wup = 1;
	t->rcv_adv = 1 + u32_min(t->rcvbuf, 0xffff);
	t->rto_us = TCP_RTO_INIT_US;
	e_snd_max(&t->e, 1);
	e_snd_una(&t->e, 1);
	e_rcv_nxt(&t->e, 1);
	e_wnd(&t->e, 0, r->ts_recent);
}

/* The third segment of the handshake, and what rides on it. */
static void complete(struct stack *s, struct tcp_request *r, struct listener *l, struct tcp_seg *g)
{
	struct flow_key k = request_key(r);
	struct sockref ref;
	struct tcb *t;
	uint32_t sent = a32_relaxed(&r->state);
	uint64_t born_us = r->deadline_us - TCP_RTO_INIT_US;

	if (accept_queue(l) > l->backlog || !one_more(s, l) || !(t = tcb_alloc(s))) {
		refuse_for_backlog(s, l);
		return;
	}
	child_init(s, t, r, l);
	flow_remove(s, &k);
	if (flow_insert(s, &k, t) || sock_accept(s, l, &k, t, &ref)) {
		refuse_for_backlog(s, l);
		flow_remove(s, &k);
		tcb_free(s, t);
		if (flow_insert(s, &k, r))
			request_release(s, r);
		return;
	}
	unit_names(s, t);
	tcb_bind(t, &ref);
	t->rcvbuf = share_buffer(s, t, 0, t->rcvbuf);
	t->sndbuf = share_buffer(s, t, 0, t->sndbuf);
	/* W6: whole before it is in the accept queue, for whoever takes it may run at once, on another core:
	 * without a send limit it would wait for room that no event announces. The request slot goes
	 * last: until then either of the two answers for the connection. */
	e_state(&t->e, TCP_ESTABLISHED, 0, t->ref.gen, 0);
	if (sent == 1 && r->deadline_us > s->now_us)
		tcp_rtt_sample(t, s->now_us - born_us);
	tcp_established(s, t);
	sock_accept_push(s, l, &t->ref);
	request_release(s, r);
	s->count.accepted++;
	tcp_segment(s, t, g);
}

static bool deferred(struct stack *s, struct tcp_request *r, const struct listener *l, const struct tcp_seg *g)
{
	uint32_t wait_s = l->opts.w[NEAT_OPT_DEFER_ACCEPT_S];
	uint32_t age_ms = (uint32_t)(s->now_us / 1000) - r->born_ms;

	if (!wait_s || g->len || g->flags & TCP_FIN || age_ms / 1000 >= wait_s)
		return false;
	r->acked = 1;
	return true;
}

/* RFC 9293 3.10.7.4 for SYN-RECEIVED after a passive open. */
void tcp_request_input(struct stack *s, struct tcp_request *r, const struct flow_key *k, struct tcp_seg *g)
{
	struct listener *l = request_listener(s, r);
	uint32_t off = g->wire_seq - (r->irs + 1);
	bool in_window = off <= 0xffff;

	if (!l) {
		tcp_request_free(s, r);
		return;
	}
	if (g->flags & TCP_RST) {
		if (off == 0) {		/* RFC 5961 3.2; to LISTEN again */
			s->count.resets_in++;
			tcp_request_free(s, r);
		}
		return;
	}
	if (g->flags & TCP_SYN && !(g->flags & TCP_ACK) && g->wire_seq == r->irs) {
		/* Retransmitted SYN; our answer may be lost. Rate: theirs. */
		if (g->has & TCP_OPT_TS && r->options & TCP_OPT_TS)
			r->ts_recent = g->ts_val;
		if (!send_syn_ack(s, r, l))
			stack_drop(s, DROP_QUEUE_FULL);
		return;
	}
	if (g->flags & TCP_SYN || !in_window ||
	    (r->options & TCP_OPT_TS && g->has & TCP_OPT_TS && wire_lt(g->ts_val, r->ts_recent))) {
		stack_drop(s, DROP_TCP_WINDOW);
		if (tcp_challenge_allowed(s) && !send_syn_ack(s, r, l))
			stack_drop(s, DROP_QUEUE_FULL);
		return;
	}
	if (!(g->flags & TCP_ACK)) {
		stack_drop(s, DROP_TCP_STATE);
		return;
	}
	if (g->wire_ack != r->iss + 1) {
		stack_drop(s, DROP_TCP_ACK);
		tcp_refuse(s, g, k);
		return;
	}
	if (!deferred(s, r, l, g))
		complete(s, r, l, g);
}

/* RFC 6298 5.5 for SYN-ACKs: 1, 2, 4 ... s; lists are in order, so only heads are looked at. */
void tcp_request_timer(struct stack *s)
{
	struct tcp *tcp = s->tcp;

	for (uint8_t level = 0; level < TCP_REQ_LEVELS; level++) {
		while (tcp->req_level[level].head) {
			struct tcp_request *r = &tcp->requests[tcp->req_level[level].head - 1];
			struct listener *l = request_listener(s, r);
			uint32_t sent = a32_relaxed(&r->state);

			if (r->deadline_us > s->now_us)
				break;
			if (!l || sent > TCP_SYNACK_RETRIES) {
				tcp_request_free(s, r);
				continue;
			}
			list_del(tcp, r);
			r->deadline_us = s->now_us + ((uint64_t)TCP_RTO_INIT_US << (level + 1));
			list_add(tcp, r, level + 1 < TCP_REQ_LEVELS ? (uint8_t)(level + 1) : level);
			a32_release(&r->state, sent + 1);
			s->count.retransmits++;
			if (!(r->acked && (uint32_t)(s->now_us / 1000) - r->born_ms <
			      l->opts.w[NEAT_OPT_DEFER_ACCEPT_S] * 1000) && !send_syn_ack(s, r, l))
				stack_drop(s, DROP_QUEUE_FULL);
		}
	}
	arm(s);
}

/*
 * Back-off starts anew: what was on its way is lost, and the peer waits. The SYN-ACK that is sent for it is none of the
 * tries, or some deaths in a row would end the handshake; after a fault it is: the handshake may be the cause.
 */
bool tcp_request_adopt(struct stack *s, struct tcp_request *r, bool fault)
{
	struct tcp *tcp = s->tcp;
	struct flow_key k = request_key(r);
	struct listener *l = flow_listener(s, k.laddr, k.lport, flow_hash(s, &k));
	uint32_t sent = a32_relaxed(&r->state);

	if (!l || sent == 0 || sent > TCP_SYNACK_RETRIES + 1 || r->wscale > TCP_WSCALE_MAX || flow_insert(s, &k, r))
		return false;
	if (!fault && sent > 1)
		a32_release(&r->state, sent - 1);
	r->listener = l->index;
	r->deadline_us = s->now_us;
	list_add(tcp, r, 0);
	half_open(l, 1);
	tcp->half_open++;
	arm(s);
	return true;
}
