/* machine.c - see machine.h: outliving memory, the replica's start and death, the loop. */
#define _GNU_SOURCE
#include "machine.h"
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define GIB (1ull << 30)
enum { PRIVATE_SIZE = 64 << 20 };

/* ---- memory that outlives a replica: pieces of one reservation of address space ---- */

#define QP_AT (1 * GIB)
#define PUB_AT(i) ((2 + 800 * (uint64_t)(i)) * GIB)
#define CHANNELS_AT(i) (PUB_AT(i) + GIB / 2)
#define CHANNEL_OF(i) (offsetof(struct neat_channels, ch) + (i) * sizeof(struct neat_channel))
#define SEG_AT(i) (PUB_AT(i) + GIB)
#define SPAN_SIZE PUB_AT(APPS)

struct piece { uint64_t at, size; };

static uint64_t page_up(uint64_t n) { return (n + NEAT_PAGE - 1) & ~(uint64_t)(NEAT_PAGE - 1); }

/* The parts of a segment that the few slots of a scenario can touch; the rest faults. */
static unsigned pieces(const struct machine *m, struct piece *out)
{
	unsigned n = 0;

	out[n++] = (struct piece){ 0, page_up(m->arena_size) };
	out[n++] = (struct piece){ QP_AT, page_up(NEAT_QP_SIZE) };
	for (uint32_t i = 0; i < m->nprocs; i++) {
		const uint64_t half = NEAT_SLOT_APP_FIRST, small = (uint64_t)SLOTS_USED * NEAT_PAGE;
		const uint64_t large = SLOTS_USED * NEAT_SLOT_LARGE;

		out[n++] = (struct piece){ PUB_AT(i), page_up(sizeof(struct neat_seg_pub)) };
		out[n++] = (struct piece){ CHANNELS_AT(i), page_up(CHANNEL_OF(i + 1)) };
		out[n++] = (struct piece){ SEG_AT(i), NEAT_SEG_SMALL + small };
		out[n++] = (struct piece){ SEG_AT(i) + NEAT_SEG_SMALL + half * NEAT_PAGE, small };
		out[n++] = (struct piece){ SEG_AT(i) + NEAT_SEG_LARGE, large };
		out[n++] = (struct piece){ SEG_AT(i) + NEAT_SEG_LARGE + half * NEAT_SLOT_LARGE, large };
	}
	return n;
}

static uint8_t *reserve(void *at, size_t size)
{
	int fixed = at ? MAP_FIXED : 0;
	void *p = mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);

	if (p == MAP_FAILED)
		abort();
	return p;
}

static void *commit(void *at, size_t size)
{
	if (mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
	    MAP_FAILED)
		abort();
	return at;
}

static void views(struct machine *m)
{
	m->arena = m->base;
	m->qp = (void *)(m->base + QP_AT);
	for (uint32_t i = 0; i < m->nprocs; i++) {
		m->proc[i].pub = (void *)(m->base + PUB_AT(i));
		m->proc[i].seg = (void *)(m->base + SEG_AT(i));
		m->proc[i].channels = (void *)(m->base + CHANNELS_AT(i));
		m->proc[i].ch = &m->proc[i].channels->ch[i];
	}
	stores.lo = (uintptr_t)m->base;
	stores.hi = stores.lo + SPAN_SIZE;
}

static void outliving_make(struct machine *m)
{
	struct piece p[2 + 6 * APPS];
	unsigned n = pieces(m, p);

	m->base = reserve(NULL, SPAN_SIZE);
	for (unsigned i = 0; i < n; i++)
		commit(m->base + p[i].at, p[i].size);
	views(m);
	m->qp->h = (struct neat_header){ NEAT_ABI_MAGIC, NEAT_ABI_VERSION, NEAT_OBJ_QUEUE_PAIR, 0, NEAT_QP_SIZE, 1 };
	m->qp->mtu = 1500;
	m->qp->addr = HERE;
	m->qp->prefix = 24;
	memcpy(m->qp->mac, (const uint8_t[]){ 2, 0, 0, 0, 0, 1 }, 6);
}

/* The old addresses stay reserved: what points there faults. */
static void outliving_move(struct machine *m)
{
	struct piece p[2 + 6 * APPS];
	unsigned n = pieces(m, p);
	uint8_t *to = reserve(NULL, SPAN_SIZE);

	for (unsigned i = 0; i < n; i++)
		if (mremap(m->base + p[i].at, p[i].size, p[i].size, MREMAP_MAYMOVE | MREMAP_FIXED, to + p[i].at) ==
		    MAP_FAILED)
			abort();
	reserve(m->base, SPAN_SIZE);
	m->base = to;
	views(m);
}

/* ---- memory that dies with the replica ---- */

static void private_renew(struct machine *m)
{
	if (m->private)
		reserve(m->private_end - PRIVATE_SIZE, PRIVATE_SIZE);
	m->private = reserve(NULL, PRIVATE_SIZE);
	commit(m->private, PRIVATE_SIZE);
	m->private_end = m->private + PRIVATE_SIZE;
}

static void *private_alloc(struct machine *m, size_t size)
{
	void *p = m->private;

	m->private += page_up(size);
	if (m->private > m->private_end)
		abort();
	return p;
}

/* ---- the replica: what main.c and main_control.c do ---- */

static void on_wake(void *world, struct channel *c, uint32_t how)
{
	struct machine *m = world;
	(void)how;

	stores_action((uintptr_t)__builtin_return_address(0));
	if (!forget_wake(m))
		app_wake(m, c->mem);
}

static uint64_t machine_random(void *world)
{
	struct machine *m = world;

	m->rng += 0x9e3779b97f4a7c15ull;
	uint64_t z = m->rng;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	return z ^ z >> 29;
}

static bool replica_tx(void *world, const struct pkt *p)
{
	struct machine *m = world;

	return nicq_transmit(m->r, p);
}

static void replica_make(struct machine *m)
{
	struct stack_ops ops = { .tx = replica_tx, .random = machine_random, .world = m };
	struct replica *r = m->r;
	int err;

	m->cfg.epoch = m->epoch;
	r->cfg = m->cfg;
	r->arena = m->arena;
	r->queue = m->qp;
	r->nic_eventfd = -1;
	r->nic_rx_head = a64_relaxed(&m->qp->rx.head);
	r->api.ops.wake = on_wake;
	r->api.ops.world = m;
	r->api.batch = 64;
	r->stack.api = &r->api;
	r->api.stack = &r->stack;
	r->api.registry = m->registry;
	/* The keeper has a successor adopt once a predecessor was ready. */
	r->api.adopting = m->was_ready && !m->stateless;
	err = stack_init(&r->stack, &r->cfg, &ops, private_alloc(m, stack_memory(&r->cfg)), m->arena,
			 !r->api.adopting, m->now_us);
	if (err)
		machine_fail(m, "stack_init: %d", err);
	r->have_stack = true;
}

static void replica_app(struct machine *m, struct proc *p)
{
	struct app *app = private_alloc(m, sizeof(*app));

	app->app_id = p->app_id;
	app->mem.pub = p->pub;
	app->mem.app = p->seg;
	app->slots = private_alloc(m, sizeof(*app->slots) * NEAT_SLOTS);
	app->free = private_alloc(m, sizeof(*app->free) * NEAT_SLOT_APP_FIRST);
	app->channels = p->channels;
	a32_store(&p->channels->open[p->index], 1);
	if (api_app_add(&m->r->api, app))
		machine_fail(m, "an application cannot attach");
}

static void replica_install(struct machine *m, struct install *i)
{
	struct neat_msg_r_listen msg = i->m;
	int err = api_listen(&m->r->api, api_app_find(&m->r->api, msg.app_id), &msg);

	if (err) {
		machine_fail(m, "R_LISTEN port %u slot %u: %d", msg.port, msg.slot, err);
		return;
	}
	if (i->answered && (msg.slot != i->m.slot || msg.gen != i->who->gen))
		machine_fail(m, "the listener of port %u came back as slot %u.%u, was %u.%u", msg.port, msg.slot,
			     msg.gen, i->m.slot, i->who->gen);
	i->m.slot = msg.slot;
	i->m.gen = msg.gen;
	i->who->slot = msg.slot;
	i->who->gen = msg.gen;
	if (!i->answered)
		app_tell(m, i->who->proc);
	i->answered = true;
}

/* neatd's messages that came since the last look. */
static void replica_control(struct machine *m)
{
	for (struct install *i = m->install; i < m->install + LISTENS_MAX; i++) {
		if (i->used && i->gone) {
			struct app *app = api_app_find(&m->r->api, i->m.app_id);

			i->used = false;
			api_release(&m->r->api, app, i->m.slot, i->m.gen);
		} else if (i->used && !i->answered) {
			replica_install(m, i);
		}
	}
}

/* R_CONFIG, R_QUEUE, R_SEGMENT.., R_CHANNEL.., R_LISTEN.., R_START. */
static void replica_start(struct machine *m)
{
	struct stack_adopted adopted;

	private_renew(m);
	m->r = private_alloc(m, sizeof(*m->r));
	forget_before(m);
	stores_begin();
	replica_make(m);
	for (uint32_t i = 0; i < m->nprocs; i++)
		replica_app(m, &m->proc[i]);
	for (struct install *i = m->install; i < m->install + LISTENS_MAX; i++)
		if (i->used && !i->gone)
			replica_install(m, i);
	api_start(&m->r->api, m->death_kind, &adopted);
	if (adopted.drop_frame)
		nicq_drop_one(m->r);
	if (adopted.corrupted)
		machine_fail(m, "%u records made no sense to the successor", adopted.corrupted);
	a32_release(&m->qp->announced, m->cfg.epoch);
	stores_end();
	if (m->was_ready)
		forget_after(m);
	m->ready = m->was_ready = true;
}

static bool replica_work(struct machine *m)
{
	struct replica *r = m->r;
	unsigned done;

	r->stack.now_us = m->now_us;
	stores_begin();
	replica_control(m);
	done = api_commands(&r->api);
	done += nicq_receive(r, r->api.batch);
	for (unsigned i = 0; i < 256 && lo_deliver(&r->stack); i++)
		done++;
	tcp_resume(&r->stack);
	udp_resume(&r->stack);
	if (stack_deadline(&r->stack) <= r->stack.now_us) {
		stack_timers(&r->stack, r->api.batch);
		done++;
	}
	stack_units_done(&r->stack);
	api_flush(&r->api);
	stores_end();
	return done != 0;
}

_Noreturn void machine_kill(struct machine *m)
{
	stores.on = false;
	stores.have_torn = false;
	longjmp(m->death, 1);
}

static void bury(struct machine *m)
{
	m->ready = false;
	if (m->trace)
		printf("%8lu death\n", m->now_us - m->start_us);
	remote_death(m);	/* what the NIC took before the fence */
	outliving_move(m);
	m->epoch++;
	m->rng = m->epoch * 0x1234567ull;
}

/* ---- the loop ---- */

void machine_fail(struct machine *m, const char *format, ...)
{
	va_list ap;

	if (m->failure[0])
		return;
	va_start(ap, format);
	vsnprintf(m->failure, sizeof(m->failure), format, ap);
	va_end(ap);
}

static bool all_done(const struct machine *m)
{
	for (uint32_t i = 0; i < m->nactors; i++)
		if (!m->actor[i].done)
			return false;
	return true;
}

static uint64_t next_event(const struct machine *m)
{
	uint64_t at = stack_deadline(&m->r->stack), peer = remote_deadline(m);

	if (peer < at)
		at = peer;
	for (uint32_t i = 0; i < m->nactors; i++)
		if (!m->actor[i].done && m->actor[i].wake_us && m->actor[i].wake_us < at)
			at = m->actor[i].wake_us;
	return at;
}

static bool step(struct machine *m)
{
	bool moved = replica_work(m);

	moved |= remote_run(m);
	for (uint32_t i = 0; i < m->nprocs; i++)
		moved |= app_run(m, &m->proc[i]);
	/* As the replica before it sleeps: an application may have moved in the middle of its work. */
	return moved || api_commands_pending(&m->r->api) || nicq_pending(m->r);
}

/*
 * After a death in the stateless mode some wait for ever with reason: for a connection that will not
 * come, or (remote) for bytes on one that is forgotten here.
 */
static bool give_up(struct machine *m)
{
	bool any = false;

	for (uint32_t i = 0; m->stateless && m->epoch > 1 && i < m->nactors; i++) {
		struct actor *a = &m->actor[i];

		if (a->done || (a->proc && !a->accepting))
			continue;
		for (int k = 0; k < ENDS_MAX && !a->proc; k++)
			if (a->end[k].open)
				end_abort(&a->end[k]);
		actor_end(a);
		any = true;
	}
	return any;
}

/* Nothing left to do and no timer: is somebody waiting for ever, and for what? */
static void stuck(struct machine *m)
{
	for (uint32_t i = 0; i < m->nactors; i++) {
		struct actor *a = &m->actor[i];
		uint64_t before = a->moves;

		if (a->done)
			continue;
		if (a->proc) {
			actors_run(m, a->proc, true);
			if (a->moves != before || a->done) {
				machine_fail(m, "lost wake-up: %s could go on at line %d but nobody told it", a->name, a->line);
				return;
			}
		}
		machine_fail(m, "%s waits for ever (line %d) %s", a->name, a->line, a->log);
	}
}

static void check_clean(struct machine *m)
{
	const struct tcp *t = m->r->stack.tcp;
	/* The stateless mode forgets what its predecessor had in the arena. */
	uint32_t tcbs = m->stateless ? a32_relaxed(&t->arena->high_tcb) : t->ntcbs;
	uint32_t requests = m->stateless ? a32_relaxed(&t->arena->high_request) : t->nrequests;
	uint32_t time_waits = m->stateless ? a32_relaxed(&t->arena->high_time_wait) : t->ntime_waits;

	for (uint32_t i = 0; i < tcbs; i++)
		if (a64_relaxed(&t->tcbs[i].e.state))
			machine_fail(m, "control block %u is left in state %d", i, tcp_state(&t->tcbs[i]));
	for (uint32_t i = 0; i < requests; i++)
		if (a32_relaxed(&t->requests[i].state))
			machine_fail(m, "request slot %u is left", i);
	for (uint32_t i = 0; i < time_waits; i++)
		if (a32_relaxed(&t->time_waits[i].state))
			machine_fail(m, "TIME_WAIT slot %u is left", i);
	if (t->half_open)
		machine_fail(m, "%u half-open connections are counted, none exists", t->half_open);
	if (m->r->stack.count.connections)
		machine_fail(m, "%lu connections are counted, none exists", m->r->stack.count.connections);
	for (uint32_t i = 0; i < m->nprocs; i++) {
		for (uint32_t slot = 1; slot < NEAT_SLOTS; slot++) {
			uint32_t flags = neat_status_flags(a64_relaxed(&m->proc[i].pub->slots[slot].status));

			if (flags)
				machine_fail(m, "slot %u of application %u is left with flags %#x", slot, i, flags);
			if (slot == SLOTS_USED)
				slot = NEAT_SLOT_APP_FIRST - 1;
			if (slot == NEAT_SLOT_APP_FIRST + SLOTS_USED)
				break;
		}
		if (m->r->api.apps[i]->mem.live)
			machine_fail(m, "application %u has %u live slots, none is used", i, m->r->api.apps[i]->mem.live);
	}
}

static void run_until_quiet(struct machine *m)
{
	for (;;) {
		uint64_t at;

		if (m->failure[0])
			return;
		if (++m->steps > 200000) {
			machine_fail(m, "does not come to an end (time %lu us)", m->now_us - m->start_us);
			return;
		}
		if (!m->ended && all_done(m)) {
			m->ended = true;
			m->end_us = (uint32_t)(m->now_us - m->start_us);
			for (uint32_t i = 0; i < m->nlistening; i++)
				machine_unlisten(m, &m->listening[i]);
		}
		if (step(m))
			continue;
		at = next_event(m);
		if (at == UINT64_MAX && !m->ended && give_up(m))
			continue;
		if (at == UINT64_MAX)
			break;
		m->now_us = at > m->now_us ? at : m->now_us + 1;
	}
	if (!m->ended)
		stuck(m);
	else
		check_clean(m);
}

void machine_run(struct machine *m)
{
	if (setjmp(m->death))
		bury(m);
	if (!m->ready)
		replica_start(m);
	run_until_quiet(m);
}

void machine_race(struct machine *m)
{
	if (!m->was_ready)
		return;
	for (uint32_t i = 0; i < m->nprocs; i++) {
		app_tell(m, &m->proc[i]);
		app_run(m, &m->proc[i]);
	}
}

/* ---- building one ---- */

struct machine *machine_new(const struct scenario *sc, bool stateless)
{
	struct machine *m = mmap(NULL, sizeof(*m), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	m->stateless = stateless;
	m->epoch = 1;
	m->death_kind = NEAT_DEATH_OUTSIDE;
	m->nprocs = APPS;
	m->rng = 1;
	m->now_us = m->start_us = 1000000000;
	m->delay_us = 1000;
	m->cfg = (struct stack_config){
		.epoch = 1, .time_wait_ms = 2000, .syn_backlog = 16, .connections_max = 64, .app_buffers = 1 << 30,
		.rcvbuf = 1u << 20, .sndbuf = 1u << 20, .lo_mtu = 65535,
		.mac = { 2, 0, 0, 0, 0, 1 }, .mtu = 1500, .addr = HERE, .prefix = 24,
	};
	for (unsigned i = 0; i < sizeof(m->cfg.secret); i++)
		m->cfg.secret[i] = (uint8_t)(i * 37 + 11);
	m->arena_size = stack_arena(&m->cfg);
	outliving_make(m);
	for (uint32_t i = 0; i < m->nprocs; i++)
		m->proc[i] = (struct proc){ .index = i, .app_id = i + 1, .pub = m->proc[i].pub, .seg = m->proc[i].seg,
					    .channels = m->proc[i].channels, .ch = m->proc[i].ch };
	/* The replica drained once: its round is not 0, nor does an entry show all of it. */
	for (uint32_t i = 0; i < m->nprocs; i++)
		a32_store(&m->proc[i].channels->door, 0x100 << 8 | NEAT_DOOR_ENDED);
	m->registry = calloc(1, sizeof(*m->registry));
	remote_new(m, 7);
	sc->setup(m);
	return m;
}

struct proc *machine_proc(struct machine *m, uint32_t index) { return &m->proc[index]; }

struct actor *machine_actor(struct machine *m, struct proc *p, const char *name, void (*script)(struct actor *),
			    const void *arg)
{
	struct actor *a = &m->actor[m->nactors++];

	*a = (struct actor){ .name = name, .m = m, .proc = p, .script = script, .arg = arg, .look = true };
	for (int i = 0; i < ENDS_MAX; i++)
		a->end[i] = (struct end){ .m = m, .actor = a, .proc = p };
	return a;
}

struct listening *machine_listen(struct machine *m, struct proc *p, uint16_t port, uint32_t backlog,
				 const struct neat_opts *o)
{
	struct listening *l = &m->listening[m->nlistening++];

	*l = (struct listening){ .proc = p, .port = port };
	if (!p) {
		l->slot = (uint32_t)host_listen(remote_host(m), 0, port, backlog, o ? o->w : NULL);
		return l;
	}
	l->install = (int)(m->nlistening - 1);
	m->install[l->install] = (struct install){
		.used = true, .who = l,
		.m = { .app_id = p->app_id, .port = port, .backlog = backlog },
	};
	if (o)
		m->install[l->install].m.opts = *o;
	return l;
}

/* close() of a listener: straight to the replica, and through neatd, which forgets it. */
void machine_unlisten(struct machine *m, struct listening *l)
{
	if (!l->port)
		return;
	l->port = 0;
	if (!l->proc) {
		host_unlisten(remote_host(m), l->slot);
		return;
	}
	neat_ring_push(l->proc->ch->cmd, NEAT_CMD_ENTRIES, &l->proc->ch->cmd_tail, &l->proc->ch->cmd_head,
		       neat_entry(NEAT_CMD_CLOSE, 0, l->gen, l->slot));
	m->install[l->install].gone = true;
}

void machine_udp_port(struct machine *m, uint32_t app_id, uint16_t port)
{
	uint32_t at = neat_port_hash(port, IPPROTO_UDP);

	while (a32_relaxed(&m->registry->ports[at].state) != NEAT_PORT_FREE)
		at = (at + 1) & (NEAT_REGISTRY_PORTS - 1);
	m->registry->ports[at].port = port;
	m->registry->ports[at].proto = IPPROTO_UDP;
	a32_store(&m->registry->ports[at].owner, app_id);
	a32_store(&m->registry->ports[at].mask, 1);
	a32_release(&m->registry->ports[at].state, NEAT_PORT_BOUND);
}

/* ---- names ---- */

struct field { uint32_t at; const char *name; };
#define F(type, member) { offsetof(struct type, member), #type "." #member }

static const struct field header_fields[] = {
	F(arena_header, magic), F(arena_header, journal), F(arena_header, high_tcb), F(arena_header, high_request),
	F(arena_header, high_time_wait), F(arena_header, high_holes), F(arena_header, strikes), { 64, NULL },
};
static const struct field tcb_fields[] = {
	F(tcb, e.snd_una), F(tcb, e.snd_max), F(tcb, e.rcv_nxt), F(tcb, e.tx_tail), F(tcb, e.rx_tail),
	F(tcb, e.fin_rx_seq), F(tcb, e.wnd), F(tcb, e.state), F(tcb, snd_nxt), F(tcb, rcv_adv), F(tcb, rx_ring),
	F(tcb, rtx_at_us), F(tcb, ack_at_us), F(tcb, flags), F(tcb, cwnd), F(tcb, ssthresh), F(tcb, mss),
	F(tcb, key), F(tcb, iss), F(tcb, irs), F(tcb, ref), F(tcb, snd_wl1), F(tcb, holes), F(tcb, timer), { 512, NULL },
};
static const struct field request_fields[] = {
	F(tcp_request, laddr), F(tcp_request, iss), F(tcp_request, listener), F(tcp_request, state),
	F(tcp_request, next), F(tcp_request, deadline_us), { 64, NULL },
};
static const struct field tw_fields[] = {
	F(tcp_time_wait, laddr), F(tcp_time_wait, snd_nxt), F(tcp_time_wait, state), F(tcp_time_wait, next),
	F(tcp_time_wait, expiry_us), { 64, NULL },
};
static const struct field pub_fields[] = {
	F(neat_slot_pub, status), F(neat_slot_pub, rx_head), F(neat_slot_pub, rx_ring), F(neat_slot_pub, tx_una),
	F(neat_slot_pub, accept_tail), F(neat_slot_pub, tx_limit), F(neat_slot_pub, err_seq),
	F(neat_slot_pub, laddr), F(neat_slot_pub, lport), F(neat_slot_pub, accept_ring), F(neat_slot_pub, rtt_us),
	{ 128, NULL },
};
static const struct field app_fields[] = {
	F(neat_slot_app, tx_tail), F(neat_slot_app, rx_tail), F(neat_slot_app, tx_ring), F(neat_slot_app, cmd_pend),
	F(neat_slot_app, shut), F(neat_slot_app, accept_head), F(neat_slot_app, sub), F(neat_slot_app, ev_pend),
	F(neat_slot_app, err_taken), F(neat_slot_app, tx_lock), F(neat_slot_app, accepted), { 192, NULL },
};
static const struct field channel_fields[] = {
	F(neat_channel, cmd_head), F(neat_channel, ev_tail), F(neat_channel, overflow), F(neat_channels, door),
	F(neat_channel, asleep), F(neat_channel, cmd), F(neat_channel, ev), { UINT32_MAX, NULL },
};
static const struct field qp_fields[] = {
	F(neat_queue_pair, announced), F(neat_queue_pair, rx.tail), F(neat_queue_pair, rx.head),
	F(neat_queue_pair, rx.asleep), F(neat_queue_pair, rx.desc), F(neat_queue_pair, tx.tail),
	F(neat_queue_pair, tx.head), F(neat_queue_pair, tx.asleep), F(neat_queue_pair, tx.desc), { UINT32_MAX, NULL },
};

static const char *field(const struct field *f, uint64_t at)
{
	while (f[1].name && f[1].at <= at)
		f++;
	return f->name;
}

static const char *arena_name(const struct machine *m, uint64_t at, uint64_t *index)
{
	uint64_t tcbs = sizeof(struct arena_header), requests = tcbs + m->cfg.connections_max * sizeof(struct tcb);
	uint64_t tws = requests + m->cfg.syn_backlog * sizeof(struct tcp_request);
	uint64_t holes = tws + 1024 * sizeof(struct tcp_time_wait);

	if (at < tcbs)
		return field(header_fields, at);
	*index = (at - tcbs) / sizeof(struct tcb);
	if (at < requests)
		return field(tcb_fields, (at - tcbs) % sizeof(struct tcb));
	*index = (at - requests) / sizeof(struct tcp_request);
	if (at < tws)
		return field(request_fields, (at - requests) % sizeof(struct tcp_request));
	*index = (at - tws) / sizeof(struct tcp_time_wait);
	if (at < holes)
		return field(tw_fields, (at - tws) % sizeof(struct tcp_time_wait));
	*index = (at - holes) / sizeof(struct tcp_holes);
	return "tcp_holes";
}

static const char *segment_name(uint64_t at, uint64_t *index)
{
	const uint64_t slots = offsetof(struct neat_seg_app, slots);

	if (at >= NEAT_SEG_LARGE) {
		*index = (at - NEAT_SEG_LARGE) / NEAT_SLOT_LARGE;
		return "payload";
	}
	if (at >= NEAT_SEG_SMALL) {
		*index = (at - NEAT_SEG_SMALL) / NEAT_PAGE;
		return "payload";
	}
	if (at < slots)
		return "neat_seg_app.header";
	*index = (at - slots) / sizeof(struct neat_slot_app);
	return field(app_fields, (at - slots) % sizeof(struct neat_slot_app));
}

static const char *pub_name(uint64_t at, uint64_t *index)
{
	const uint64_t slots = offsetof(struct neat_seg_pub, slots), rings = offsetof(struct neat_seg_pub, accept);

	if (at < slots)
		return "neat_seg_pub.header";
	if (at >= rings) {
		*index = (at - rings) / sizeof(struct neat_accept_ring);
		return "accept_ring.entry";
	}
	*index = (at - slots) / sizeof(struct neat_slot_pub);
	return field(pub_fields, (at - slots) % sizeof(struct neat_slot_pub));
}

const char *machine_name(const struct machine *m, uintptr_t addr, char *buf, size_t len)
{
	uint64_t at = addr - (uintptr_t)m->base, index = 0;
	const char *name = "?";

	if (at < QP_AT)
		name = arena_name(m, at, &index);
	else if (at < PUB_AT(0))
		name = at - QP_AT >= NEAT_QP_BUFS ? "frame" : field(qp_fields, at - QP_AT);
	for (uint32_t i = 0; i < m->nprocs && at >= PUB_AT(0); i++) {
		if (at >= PUB_AT(i) && at < CHANNELS_AT(i))
			name = pub_name(at - PUB_AT(i), &index);
		else if (at >= CHANNELS_AT(i) && at < SEG_AT(i))
			name = field(channel_fields, at - CHANNELS_AT(i) - CHANNEL_OF(i));
		else if (at >= SEG_AT(i) && at < PUB_AT(i + 1))
			name = segment_name(at - SEG_AT(i), &index);
	}
	snprintf(buf, len, "%s[%lu]", name, index);
	return buf;
}
