/*
 * tcp.c - TCP's memory and the commands of applications: connect, listen, kick, close, abort.
 *
 * api.c has validated what applications wrote; nothing here reads their words except where said.
 * Segments are tcp_in.c and tcp_out.c. First read: tcp.h, arena.h.
 */
#include "tcp.h"
#include <errno.h>

bool tcp_numbers_ok(const struct tcb *t)
{
	uint64_t fin = fin_rx_seq(t), next = rcv_nxt(t), una = snd_una(t);
	enum tcp_state state = tcp_state(t);
	uint32_t log2 = (uint32_t)(rx_ring(t) & 0xff);

	if (una > snd_max(t) || snd_max(t) > snd_end(t) || tx_tail(t) - tx_una(t) > neat_ring_max(NEAT_TX))
		return false;
	if (fin && (fin > next || next > fin + 1))
		return false;
	if (state == TCP_SYN_SENT ? next > 1 : next < 1 && state != TCP_CLOSED)
		return false;
	if (next && rx_head(t) - rx_tail(t) > neat_ring_max(NEAT_RX))
		return false;
	return (una >= 1 || state == TCP_SYN_SENT || state == TCP_SYN_RCVD || state == TCP_CLOSED) &&
	       log2 >= NEAT_RING_LOG2_MIN && log2 <= NEAT_RX_LOG2_MAX;
}

/* ---- memory ---- */

static uint32_t time_wait_slots(const struct stack_config *cfg)
{
	return u32_min(u32_max(cfg->connections_max, 1024), 65536);
}

/* Only connections that lose segments right now need one; without one they fall back (tcp_sack.c). */
static uint32_t holes_count(const struct stack_config *cfg)
{
	return u32_min(u32_max(cfg->connections_max / 8, 64), 2048);
}

static size_t round64(size_t n) { return (n + 63) & ~(size_t)63; }

/* Only connections with something in flight to the wire need one. */
static uint32_t sent_count(const struct stack_config *cfg) { return u32_min(cfg->connections_max, 16384); }

/* In front of the records of what was sent, which are as they come: zero when never used. */
static size_t memory_fixed(void)
{
	return round64(sizeof(struct tcp)) + round64(TCP_LISTENERS * sizeof(struct listener));
}

size_t tcp_memory(const struct stack_config *cfg)
{
	return memory_fixed() + sent_count(cfg) * sizeof(struct tcp_sent);
}

size_t tcp_arena(const struct stack_config *cfg)
{
	return sizeof(struct arena_header) + (size_t)cfg->connections_max * sizeof(struct tcb) +
	       (size_t)cfg->syn_backlog * sizeof(struct tcp_request) +
	       (size_t)time_wait_slots(cfg) * sizeof(struct tcp_time_wait) +
	       (size_t)holes_count(cfg) * sizeof(struct tcp_holes);
}

/* A high mark of zero makes an arena empty. What is above it must be free all the same: a record counts from
 * the moment the mark passes it, before whoever took it fills it in. */
static void wipe(struct tcp *tcp)
{
	struct arena_header *h = tcp->arena;

	for (uint32_t i = 0; i < a32_relaxed(&h->high_tcb) && i < tcp->ntcbs; i++)
		a64_store(&tcp->tcbs[i].e.state, 0);
	for (uint32_t i = 0; i < a32_relaxed(&h->high_request) && i < tcp->nrequests; i++)
		a32_store(&tcp->requests[i].state, 0);
	for (uint32_t i = 0; i < a32_relaxed(&h->high_time_wait) && i < tcp->ntime_waits; i++)
		a32_store(&tcp->time_waits[i].state, 0);
	for (uint32_t i = 0; i < a32_relaxed(&h->high_holes) && i < tcp->nholes; i++)
		tcp->holes[i].owner = 0;
}

/*
 * An arena of another layout differs in version or in several counts, one of another kind in nearly all words; in
 * which half agree, ours was written over.
 */
static bool same_layout(const struct arena_header *h, const struct arena_header *want)
{
	const uint32_t *is = &h->magic, *ought = &want->magic;
	unsigned same = 0, words = offsetof(struct arena_header, journal) / sizeof(*is);

	for (unsigned i = 0; i < words; i++)
		same += is[i] == ought[i];
	return same == words || (same >= words / 2 && h->version == want->version);
}

/* A mark that makes no sense was written over: all records may be in use. */
static void mark_bounds(neat_a32 *high, uint32_t records)
{
	if (a32_relaxed(high) > records)
		a32_release(high, records);
}

static int header_init(struct tcp *tcp, bool fresh)
{
	struct arena_header *h = tcp->arena;
	const struct arena_header want = {
		.magic = ARENA_MAGIC, .version = ARENA_VERSION, .tcbs = tcp->ntcbs,
		.requests = tcp->nrequests, .time_waits = tcp->ntime_waits, .holes = tcp->nholes,
	};

	if (fresh) {
		wipe(tcp);
		compiler_fence();
		*h = want;
		return 0;
	}
	if (!same_layout(h, &want))
		return -EINVAL;
	memcpy(h, &want, offsetof(struct arena_header, journal));
	mark_bounds(&h->high_tcb, h->tcbs);
	mark_bounds(&h->high_request, h->requests);
	mark_bounds(&h->high_time_wait, h->time_waits);
	mark_bounds(&h->high_holes, h->holes);
	return 0;
}

static int carve(struct stack *s, uint8_t *arena, bool fresh)
{
	struct tcp *tcp = s->tcp;
	const struct stack_config *cfg = &s->cfg;

	tcp->ntcbs = cfg->connections_max;
	tcp->nrequests = cfg->syn_backlog;
	tcp->ntime_waits = time_wait_slots(cfg);
	tcp->nholes = holes_count(cfg);
	tcp->arena = (struct arena_header *)(void *)arena;
	arena += sizeof(struct arena_header);
	tcp->tcbs = (struct tcb *)(void *)arena;
	arena += tcp->ntcbs * sizeof(struct tcb);
	tcp->requests = (struct tcp_request *)(void *)arena;
	arena += tcp->nrequests * sizeof(struct tcp_request);
	tcp->time_waits = (struct tcp_time_wait *)(void *)arena;
	arena += tcp->ntime_waits * sizeof(struct tcp_time_wait);
	tcp->holes = (struct tcp_holes *)(void *)arena;
	return header_init(tcp, fresh);
}

static void timer_ran_out(void *ctx, struct timer *t) { tcp_timer(ctx, t); }

int tcp_init(struct stack *s, void *memory, void *arena, bool fresh)
{
	struct tcp *tcp = memory;
	int err;

	memset(memory, 0, memory_fixed());
	s->tcp = tcp;
	tcp->listeners = (struct listener *)(void *)((uint8_t *)memory + round64(sizeof(*tcp)));
	tcp->sent = (struct tcp_sent *)(void *)((uint8_t *)memory + memory_fixed());
	tcp->nsent = sent_count(&s->cfg);
	err = carve(s, arena, fresh);
	if (err)
		return err;
	tcp->req_timer.kind = TIMER_TCP_REQUEST;
	tcp->tw_timer.kind = TIMER_TCP_TIME_WAIT;
	for (unsigned kind = TIMER_TCB; kind <= TIMER_TCP_TIME_WAIT; kind++)
		s->wheel.handler[kind] = timer_ran_out;
	return 0;
}

uint32_t tcp_take(uint32_t *free, uint32_t next_of_free, neat_a32 *high, uint32_t n)
{
	uint32_t i = *free;

	if (i) {
		*free = next_of_free;
		return i;
	}
	i = a32_relaxed(high);
	if (i >= n)
		return 0;
	a32_release(high, i + 1);
	return i + 1;
}

struct tcb *tcb_alloc(struct stack *s)
{
	struct tcp *tcp = s->tcp;
	uint32_t next = tcp->free_tcb ? tcp->tcbs[tcp->free_tcb - 1].next_free : 0;
	uint32_t i = tcp_take(&tcp->free_tcb, next, &tcp->arena->high_tcb, tcp->ntcbs);
	struct tcb *t;

	if (!i)
		return NULL;
	t = &tcp->tcbs[i - 1];
	memset(t, 0, sizeof(*t));
	t->timer.kind = TIMER_TCB;
	tcp->used++;
	return t;
}

static void resume_unlink(struct tcp *tcp, struct tcb *t, uint32_t index)
{
	uint32_t prev = 0, i = tcp->resume_head;

	while (i && i != index) {
		prev = i;
		i = tcp->tcbs[i - 1].resume_next;
	}
	if (!i)
		return;
	if (prev)
		tcp->tcbs[prev - 1].resume_next = t->resume_next;
	else
		tcp->resume_head = t->resume_next;
	if (tcp->resume_tail == index)
		tcp->resume_tail = prev;
}

void tcb_free(struct stack *s, struct tcb *t)
{
	struct tcp *tcp = s->tcp;
	uint32_t i = tcb_index(s, t) + 1;

	if (t->flags & TCB_ON_RESUME)
		resume_unlink(tcp, t, i);
	timer_del(&s->wheel, &t->timer);
	tcb_holes_free(s, t);
	tcp_sent_free(s, t);
	e_state(&t->e, TCP_FREE, 0, 0, 0);
	t->next_free = tcp->free_tcb;
	tcp->free_tcb = i;
	tcp->used--;
	tcp->orphans -= (t->flags & TCB_ORPHAN) != 0;
}

/* Interval sets, made when first needed; NULL = none left. */
struct tcp_holes *tcb_holes(struct stack *s, struct tcb *t)
{
	struct tcp *tcp = s->tcp;
	uint32_t next = tcp->free_holes ? tcp->holes[tcp->free_holes - 1].next_free : 0;
	uint32_t i;

	if (t->holes)
		return t->holes;
	i = tcp_take(&tcp->free_holes, next, &tcp->arena->high_holes, tcp->nholes);
	if (!i)
		return NULL;
	t->holes = &tcp->holes[i - 1];
	t->holes->ooo.n = t->holes->sacked.n = 0;
	t->holes->ooo.total = t->holes->sacked.total = 0;
	memset(t->holes->recent, 0, sizeof(t->holes->recent));
	t->holes->owner = tcb_index(s, t) + 1;
	return t->holes;
}

void tcb_holes_free(struct stack *s, struct tcb *t)
{
	struct tcp *tcp = s->tcp;

	if (!t->holes)
		return;
	t->holes->owner = 0;
	t->holes->next_free = tcp->free_holes;
	tcp->free_holes = (uint32_t)(t->holes - tcp->holes) + 1;
	t->holes = NULL;
}

/* ---- options ---- */

/* getsockopt() reports twice what was asked for (socket(7)); half of it is for payload. */
uint32_t tcp_rcvbuf_for(const struct stack *s, const struct neat_opts *o)
{
	uint32_t rcv = o->w[NEAT_OPT_RCVBUF] / 2;

	if (rcv)
		return u32_min(u32_max(rcv, 2048), TCP_RCVBUF_MAX);
	return u32_min(TCP_RCVBUF_MIN, u32_max(s->cfg.rcvbuf, 4096));
}

static void buffer_options(struct stack *s, struct tcb *t, const struct neat_opts *o)
{
	uint32_t snd = o->w[NEAT_OPT_SNDBUF] / 2;

	if (o->w[NEAT_OPT_RCVBUF] / 2)
		t->flags |= TCB_RCVBUF_FIXED;
	if (t->flags & TCB_RCVBUF_FIXED || !t->rcvbuf)
		t->rcvbuf = share_buffer(s, t, t->rcvbuf, tcp_rcvbuf_for(s, o));
	if (snd) {
		t->flags |= TCB_SNDBUF_FIXED;
		t->sndbuf = share_buffer(s, t, t->sndbuf, u32_min(u32_max(snd, 2048), neat_ring_max(NEAT_TX)));
	} else if (!t->sndbuf) {
		t->sndbuf = u32_min(TCP_SNDBUF_FIRST, u32_max(s->cfg.sndbuf, 4096));
	}
	if (t->ref.mem)
		a32_release(&t->ref.pub->tx_limit, t->sndbuf);
}

/* `o` may be the application's own memory: every word is read once and clamped. */
void tcb_options(struct stack *s, struct tcb *t, const struct neat_opts *from)
{
	const struct neat_opts o = *from;
	uint32_t ttl = o.w[NEAT_OPT_TTL], mss = o.w[NEAT_OPT_MAXSEG];

	t->opt_flags = o.w[NEAT_OPT_FLAGS];
	t->keepidle_s = (uint16_t)u32_min(o.w[NEAT_OPT_KEEPIDLE_S] ? o.w[NEAT_OPT_KEEPIDLE_S] : 7200, 32767);
	t->keepintvl_s = (uint16_t)u32_min(o.w[NEAT_OPT_KEEPINTVL_S] ? o.w[NEAT_OPT_KEEPINTVL_S] : 75, 32767);
	t->keepcnt = (uint8_t)u32_min(o.w[NEAT_OPT_KEEPCNT] ? o.w[NEAT_OPT_KEEPCNT] : 9, 127);
	t->user_timeout_ms = o.w[NEAT_OPT_USER_TIMEOUT_MS];
	t->syn_retries = (uint8_t)u32_min(o.w[NEAT_OPT_SYNCNT] ? o.w[NEAT_OPT_SYNCNT] : TCP_SYN_RETRIES, 127);
	t->linger2_ms = (uint16_t)(o.w[NEAT_OPT_LINGER2_S] ? u32_min(o.w[NEAT_OPT_LINGER2_S] - 1, 60) * 1000 :
							     TCP_FIN_TIMEOUT_MS);
	t->cc = (uint8_t)u32_min(o.w[NEAT_OPT_CONGESTION], UINT8_MAX);
	t->tos_ttl = (uint16_t)((o.w[NEAT_OPT_TOS] & 0xff) << 8 | (ttl > 255 ? 0 : ttl));
	t->flags &= ~(uint32_t)TCB_LINGER0;
	if (t->opt_flags & NEAT_OPTF_LINGER && o.w[NEAT_OPT_LINGER_S] == 0)
		t->flags |= TCB_LINGER0;
	if (mss && t->mss)
		t->mss = (uint16_t)u32_min(t->mss, u32_max(mss, TCP_MSS_MIN));
	if (t->opt_flags & NEAT_OPTF_QUICKACK_OFF) {
		t->quick = 0;
		t->flags |= TCB_PINGPONG;	/* as Linux: until a delay runs out */
	}
	buffer_options(s, t, &o);
}

/* ---- connect ---- */

static int choose_tuple(struct stack *s, struct flow_key *k)
{
	void *v;

	if (k->raddr == 0)
		k->raddr = 0x7f000001;		/* Linux: INADDR_ANY as destination is this host */
	if (k->laddr == 0)
		k->laddr = ip_source_for(s, k->raddr);
	if (k->laddr == 0)
		return -ENETUNREACH;
	if (k->lport == 0) {
		k->lport = flow_choose_port(s, k->laddr, k->raddr, k->rport);
		return k->lport ? 0 : -EADDRNOTAVAIL;
	}
	v = flow_find(s, k);
	if (!v)
		return 0;
	if (v >= (void *)s->tcp->time_waits && v < (void *)(s->tcp->time_waits + s->tcp->ntime_waits) &&
	    tcp_tw_reusable(s, v)) {
		tcp_tw_free(s, v);
		return 0;
	}
	return -EADDRNOTAVAIL;
}

void tcb_bind(struct tcb *t, const struct sockref *ref)
{
	t->ref = *ref;
	t->app_id = ref->mem ? ref->mem->app_id : 0;
	seal_identity(t);
}

int tcp_connect(struct stack *s, const struct tcp_connect *c, struct tcb **out)
{
	struct flow_key k = c->key;
	int err;
	struct tcb *t;

	unit_begin(s, UNIT_COMMAND, NULL);
	err = choose_tuple(s, &k);
	if (err)
		return err;
	t = share_block(s, c->ref.mem->live) ? tcb_alloc(s) : NULL;
	if (!t)
		return -ENOBUFS;
	err = flow_insert(s, &k, t);
	if (err) {
		tcb_free(s, t);
		return err == -EADDRINUSE ? -EADDRNOTAVAIL : -ENOBUFS;
	}
	unit_names(s, t);
	t->key = k;
	t->ref = c->ref;	/* tcb_options() publishes through it */
	t->iss = tcp_isn(s, &k);
	t->ts_offset = tcp_ts_offset(s, &k);
	t->options = TCP_OPT_TS | TCP_OPT_SACK | TCP_OPT_WS;
	t->rcv_wscale = tcp_wscale_for(s, &c->opts);
	t->flags = (ip_is_local(s, k.raddr) ? TCB_LOCAL : 0) | (c->key.lport ? 0 : TCB_PORT_DRAWN);
	t->pmss = tcp_mss_for(s, &k, &c->opts);
	t->mss = t->pmss;
	t->rto_us = TCP_RTO_INIT_US;
	e_rx_ring(t, neat_ringword(0, NEAT_RING_LOG2_MIN));
	tcb_options(s, t, &c->opts);
	t->optgen = c->optgen;
	tcb_bind(t, &c->ref);
	t->ref.pub->laddr = k.laddr;
	t->ref.pub->raddr = k.raddr;
	t->ref.pub->lport = k.lport;
	t->ref.pub->rport = k.rport;
	tcp_set_state(s, t, TCP_SYN_SENT);
	tcp_send_syn(s, t);
	tcp_arm(s, t);
	unit_end(t);
	*out = t;
	return 0;
}

/* ---- the nic gives a SYN back: another replica has the tuple ---- */

/*
 * A new tuple for a connection of which nothing has left the machine. Port, number and clock change one by one, and
 * a successor may find any of them old: the peer knows none, and a SYN with any of them is right.
 */
static bool draw_again(struct stack *s, struct tcb *t)
{
	struct flow_key k = t->key;

	k.lport = 0;
	if (!(t->flags & TCB_PORT_DRAWN) || t->probes >= TCP_PORT_REDRAWS || choose_tuple(s, &k) ||
	    flow_insert(s, &k, t))
		return false;
	t->probes++;
	flow_remove(s, &t->key);
	t->key.lport = k.lport;
	t->iss = tcp_isn(s, &k);
	t->ts_offset = tcp_ts_offset(s, &k);
	seal_identity(t);
	t->ref.pub->lport = k.lport;
	return true;
}

/*
 * A bucket that moved (N_ACTIVE) took along the ports of connections that stay where they are; their owner goes on
 * unseen. The frame is our own copy, yet it went through shared memory: only one that is our last SYN counts.
 */
void tcp_returned(struct stack *s, const struct pkt *p, const struct ip_meta *m)
{
	const struct wire_tcp *h = pkt_get(p, 0, sizeof(*h));
	struct tcp *tcp = s->tcp;
	struct flow_key k = { .laddr = m->saddr, .raddr = m->daddr };
	void *v = NULL;
	struct tcb *t;

	if (h) {
		k.lport = be16_get(h->sport);
		k.rport = be16_get(h->dport);
		v = flow_find(s, &k);
	}
	if (v < (void *)tcp->tcbs || v >= (void *)(tcp->tcbs + tcp->ntcbs)) {
		stack_drop(s, DROP_TCP_NO_SOCKET);
		return;
	}
	t = v;
	unit_names(s, t);
	if (tcp_state(t) != TCP_SYN_SENT || be32_get(h->seq) != t->iss) {
		stack_drop(s, DROP_TCP_STATE);
		return;
	}
	if (!t->ref.mem || !draw_again(s, t)) {
		tcp_done(s, t, EADDRNOTAVAIL);
		return;
	}
	tcp_send_syn(s, t);
	tcp_arm(s, t);
	unit_end(t);
}

/* The nic takes us for the owner of the tuple of another replica's SYN, but does not see how each connection ends. */
void tcp_asked(struct stack *s, const struct pkt *p, const struct ip_meta *m)
{
	const struct wire_tcp *h = pkt_get(p, 0, sizeof(*h));
	struct flow_key k = { .laddr = m->saddr, .raddr = m->daddr };

	if (!h || ip_is_local(s, k.raddr)) {
		stack_drop(s, DROP_TCP_SHORT);
		return;
	}
	k.lport = be16_get(h->sport);
	k.rport = be16_get(h->dport);
	tcp_answer(s, &k, flow_find(s, &k) != NULL);
}

/* ---- listen ---- */

int tcp_listen(struct stack *s, const struct tcp_listen *req, struct listener **out)
{
	struct tcp *tcp = s->tcp;
	uint32_t next = tcp->free_listener ? tcp->listeners[tcp->free_listener - 1].next_free : 0;
	uint32_t i = tcp_take(&tcp->free_listener, next, &tcp->high_listener, TCP_LISTENERS);
	struct listener *l;
	int err;

	if (!i)
		return -ENOBUFS;
	l = &tcp->listeners[i - 1];
	*l = (struct listener){
		.addr = req->addr, .port = req->port, .backlog = u32_min(req->backlog, NEAT_ACCEPT_ENTRIES - 1),
		.index = i - 1, .ref = req->ref, .opts = req->opts, .used = 1,
	};
	err = flow_listen(s, l->addr, l->port, l);
	if (err) {
		l->used = 0;
		l->next_free = tcp->free_listener;
		tcp->free_listener = i;
		return err;
	}
	*out = l;
	return 0;
}

void tcp_relisten(struct stack *s, struct listener *l, uint32_t backlog)
{
	(void)s;
	l->backlog = u32_min(backlog, NEAT_ACCEPT_ENTRIES - 1);
}

/* What was never accepted is reset by api.c, which knows the queue; half-open ones just vanish. */
void tcp_unlisten(struct stack *s, struct listener *l)
{
	struct tcp *tcp = s->tcp;

	flow_unlisten(s, l->addr, l->port, l);
	for (uint32_t i = 0; i < a32_relaxed(&tcp->arena->high_request) && l->half_open; i++) {
		struct tcp_request *r = &tcp->requests[i];

		if (a32_relaxed(&r->state) && r->listener == l->index)
			tcp_request_free(s, r);
	}
	l->used = 0;
	l->ref.mem = NULL;
	l->next_free = tcp->free_listener;
	tcp->free_listener = l->index + 1;
}

/* ---- the application moved its words ---- */

static void take_shutdown(struct stack *s, struct tcb *t, uint32_t shut)
{
	if (shut & 1)
		t->flags |= TCB_SHUT_RD;
	if (shut & 2 && !tcp_fin_queued(t))
		tcp_queue_fin(s, t);
}

/* tcp(7): calls that act once beside what they set, and again whenever they are made again. */
static void option_events(struct tcb *t, uint32_t old, uint32_t new)
{
	const uint32_t events = 0xffu * NEAT_OPTF_QUICKACKS | 0xffu * NEAT_OPTF_PUSHES, moved = old ^ new;

	t->opt_flags = (t->opt_flags & ~events) | (new & events);
	if (moved & 0xffu * NEAT_OPTF_QUICKACKS) {
		t->flags &= ~(uint32_t)TCB_PINGPONG;
		if (t->ack_at_us)
			t->flags |= TCB_ACK_NOW;
	}
	if (moved & 0xffu * NEAT_OPTF_PUSHES && t->snd_nxt != snd_end(t))
		t->flags |= TCB_CORK_DUE;
}

static void kick(struct stack *s, struct tcb *t, const struct tcp_user *u)
{
	enum tcp_state state = tcp_state(t);
	uint64_t una = tx_una(t);
	uint32_t sndbuf = t->sndbuf, opt_flags = t->opt_flags;

	if (u->tx_tail > tx_tail(t) && !tcp_fin_queued(t))
		e_tx_tail(&t->e, u->tx_tail);
	if (u->rx_tail > rx_tail(t) && u->rx_tail <= rx_head(t))
		e_rx_tail(&t->e, u->rx_tail);
	tcp_rcvbuf_tune(s, t);
	if (u->opts_changed) {
		tcb_options(s, t, &t->ref.app->opts);
		option_events(t, opt_flags, u->opt_flags);
		if (t->sndbuf > sndbuf)		/* socket(7), SO_SNDBUF: a writer may have waited for this */
			sock_notify(s, &t->ref, SOCK_WRITABLE);
		t->optgen = u->optgen;
		tcp_keepalive_restart(s, t);
	}
	take_shutdown(s, t, u->shut);
	/* It may have looked at an older tx_una than ours and be waiting already. */
	if (una != t->una_at_kick) {
		tcp_notify_room(s, t, t->una_at_kick);
		t->una_at_kick = una;
	}
	if (state == TCP_SYN_SENT || state == TCP_SYN_RCVD)
		return;
	if (tcp_window_opened(t))
		t->flags |= TCB_ACK_NOW;
	if (t->snd_nxt != snd_end(t) || t->flags & TCB_ACK_NOW)
		tcp_output(s, t);
	tcp_arm(s, t);
}

void tcp_kick(struct stack *s, struct tcb *t, const struct tcp_user *u)
{
	enum tcp_state state = tcp_state(t);

	if (state == TCP_CLOSED || state == TCP_FREE || tcp_app_closed(t))
		return;
	unit_begin(s, UNIT_COMMAND, t);
	kick(s, t, u);
	unit_end(t);
}

/* ---- the end ---- */

/* Synchronised states have a peer that wants to know. */
static bool reset_wanted(enum tcp_state state)
{
	return state != TCP_SYN_SENT && state != TCP_CLOSED && state != TCP_FREE;
}

void tcp_abort(struct stack *s, struct tcb *t, int err)
{
	enum tcp_state state = tcp_state(t);

	if (state == TCP_CLOSED || state == TCP_FREE)
		return;
	unit_begin(s, UNIT_COMMAND, t);
	if (reset_wanted(state))
		tcp_send_rst(s, t);
	tcp_done(s, t, err);
	unit_end(t);
}

/* A process that died without a last kick: what its words say counts, if it is legal. */
static void last_words(struct tcb *t)
{
	uint64_t tail = a64_acquire(&t->ref.app->tx_tail), read = a64_acquire(&t->ref.app->rx_tail);

	if (!tcp_fin_queued(t) && tail > tx_tail(t) && tail - tx_una(t) <= neat_ring_max(NEAT_TX))
		e_tx_tail(&t->e, tail);
	if (read > rx_tail(t) && read <= rx_head(t))
		e_rx_tail(&t->e, read);
}

void tcp_close_rest(struct stack *s, struct tcb *t)
{
	enum tcp_state state = tcp_state(t);

	last_words(t);
	/* RFC 1122 4.2.2.13, RFC 2525 2.17: unread data means that the peer must not believe it was read. */
	if (state == TCP_SYN_SENT || state == TCP_SYN_RCVD || rx_tail(t) < rx_head(t) || t->flags & TCB_LINGER0) {
		tcp_abort(s, t, 0);
		return;
	}
	if (!tcp_fin_queued(t))
		tcp_queue_fin(s, t);
	t->aux_at_us = 0;
	tcp_detach_if_idle(s, t);
	if (state == TCP_FIN_WAIT_2)
		tcp_linger(s, t);
	tcp_output(s, t);
	tcp_arm(s, t);
}

void tcp_close(struct stack *s, struct tcb *t)
{
	enum tcp_state state = tcp_state(t);

	if (state == TCP_FREE || tcp_app_closed(t))
		return;
	unit_begin(s, UNIT_COMMAND, t);
	tcp_set_flag_e(t, TCB_E_APP_CLOSED);
	if (state != TCP_CLOSED)
		tcp_close_rest(s, t);
	unit_end(t);
}

/* ---- ICMP (RFC 1122 4.2.3.9, RFC 5927) ---- */

static void path_mtu(struct stack *s, struct tcb *t, uint32_t mtu)
{
	uint32_t mss = mtu > 40 ? mtu - 40 : 0;

	/* RFC 5927 7: never below the IPv4 minimum, never up. */
	mss = u32_max(mss, TCP_MSS_DEFAULT - TCP_TS_LEN);
	if (mss >= t->pmss)
		return;
	t->pmss = (uint16_t)mss;
	t->mss = (uint16_t)(mss - (t->options & TCP_OPT_TS ? TCP_TS_LEN : 0));
	if (t->snd_nxt == snd_una(t) || !tcp_sends(tcp_state(t)))
		return;
	t->recovery = TCP_LOSS;		/* what is out was too big: send it again, cwnd as it is */
	t->recover = t->snd_nxt;
	t->high_rxt = snd_una(t);
	tcp_sent_lose_all(s, t);
	t->flags |= TCB_RETRANS_DUE;
	tcp_output(s, t);
	tcp_arm(s, t);
}

void tcp_icmp(struct stack *s, const struct flow_key *k, uint32_t seq, uint8_t type, uint8_t code, uint32_t mtu)
{
	static const uint8_t errors[] = {
		ENETUNREACH, EHOSTUNREACH, ENOPROTOOPT, ECONNREFUSED, EMSGSIZE, EOPNOTSUPP,
		ENETUNREACH, EHOSTDOWN, ENONET, ENETUNREACH, EHOSTUNREACH, ENETUNREACH,
		EHOSTUNREACH, EHOSTUNREACH, EHOSTUNREACH, EHOSTUNREACH,
	};
	void *v = flow_find(s, k);
	struct tcb *t = v;
	uint64_t at;

	if (v < (void *)s->tcp->tcbs || v >= (void *)(s->tcp->tcbs + s->tcp->ntcbs))
		return;
	at = seq_extend(seq, t->iss, snd_una(t));
	if (seq_lt(at, snd_una(t)) || seq_lt(snd_max(t), at)) {
		stack_drop(s, DROP_ICMP);	/* RFC 5927 4: not about anything in flight */
		return;
	}
	if (type != ICMP_UNREACHABLE || code >= sizeof(errors))
		return;
	unit_names(s, t);
	/* Hard only while opening (RFC 5461, as Linux); later it explains a timeout. */
	if (code == ICMP_UNREACH_FRAG)
		path_mtu(s, t, mtu);
	else
		t->soft_error = errors[code];
	if (code != ICMP_UNREACH_FRAG && tcp_state(t) == TCP_SYN_SENT)
		tcp_done(s, t, errors[code]);
	unit_end(t);
}

/* ---- small things ---- */

uint16_t tcp_optgen(const struct tcb *t) { return t->optgen; }
struct sockref *tcp_listener_ref(struct listener *l) { return &l->ref; }

struct tcp_bounds tcp_bounds(const struct tcb *t)
{
	return (struct tcp_bounds){
		.tx_una = tx_una(t), .tx_tail = tx_tail(t), .rx_head = rx_head(t), .rx_tail = rx_tail(t),
	};
}

bool tcp_idle(const struct stack *s)
{
	const struct tcp *tcp = s->tcp;

	if (tcp->half_open || tcp->tw.head)
		return false;
	for (uint32_t i = 0; i < a32_relaxed(&tcp->arena->high_tcb); i++)
		if (tcp_state(&tcp->tcbs[i]) != TCP_FREE)
			return false;
	return true;
}
