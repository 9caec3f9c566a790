/*
 * api_lib.c - replicas/stack/api*.c over a TCP that only records what it was told, one application,
 * two channels open at first. The test plays the application by writing the shared words itself.
 */
#define _GNU_SOURCE
#include "api_slots.h"
#include "bytering.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

struct tcb { struct sockref ref; struct tcp_bounds b; struct tcp_user last; int kicks, closed, aborted; };
struct listener { struct sockref ref; int unlistened; uint32_t backlog; };
struct udp_sock { struct sockref ref; struct udp_open open; int kicks, closed, later; };

struct world {
	struct stack stack;
	struct api api;
	struct app app;
	struct tcb tcbs[8192];
	struct listener listeners[8];
	struct udp_sock udps[8];
	struct sockmem other;	/* of an application that shares a port */
	struct neat_registry *registry;
	uint32_t ntcbs, nlisteners, nudps, wakes, forgotten;
	int refuse;
	bool busy;		/* something of TCP is left that has no slot */
};

static void *zeroed(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void wake(void *world, struct channel *c, uint32_t how)
{
	(void)c;
	((struct world *)world)->wakes += how != NEAT_AWAKE;
}

static void forget(void *world, struct channel *c)
{
	(void)c;
	((struct world *)world)->forgotten++;
}

/* ---- the recording TCP ---- */
int tcp_connect(struct stack *s, const struct tcp_connect *c, struct tcb **out)
{
	struct world *w = s->ops.world;

	if (w->refuse)
		return -w->refuse;
	*out = &w->tcbs[w->ntcbs++];
	(*out)->ref = c->ref;
	return 0;
}
int tcp_listen(struct stack *s, const struct tcp_listen *l, struct listener **out)
{
	struct world *w = s->ops.world;

	if (w->refuse)
		return -w->refuse;
	*out = &w->listeners[w->nlisteners++];
	(*out)->ref = l->ref;
	return 0;
}
void tcp_unlisten(struct stack *s, struct listener *l) { (void)s; l->unlistened++; }
/* Adoption is tests/replica's and tests/crash's. */
void stack_adopt(struct stack *s, uint32_t death, struct stack_adopted *out)
{
	(void)s, (void)death;
	*out = (struct stack_adopted){ 0 };
}
void stack_units_done(struct stack *s) { (void)s; }
bool tcp_idle(const struct stack *s) { return !((const struct world *)s->ops.world)->busy; }
uint16_t tcp_optgen(const struct tcb *t) { (void)t; return 0; }
void tcp_expect(const struct tcb *t) { (void)t; }
struct listener *flow_listener(const struct stack *s, uint32_t addr, uint16_t port, uint32_t hash)
{
	struct world *w = s->ops.world;
	(void)addr, (void)port;

	return w->nlisteners ? &w->listeners[(uint64_t)hash * w->nlisteners >> 32] : NULL;
}
void tcp_relisten(struct stack *s, struct listener *l, uint32_t backlog) { (void)s; l->backlog = backlog; }
void tcp_kick(struct stack *s, struct tcb *t, const struct tcp_user *u)
{
	(void)s;
	t->kicks++;
	t->last = *u;
	t->b.tx_tail = u->tx_tail;
	t->b.rx_tail = u->rx_tail;
}
void tcp_close(struct stack *s, struct tcb *t) { t->closed++; sock_detach(s, &t->ref); }
void tcp_abort(struct stack *s, struct tcb *t, int err)
{
	t->aborted = err;
	sock_status(s, &t->ref, NEAT_SLOT_HUP | NEAT_SLOT_RX_EOF, 0, (uint32_t)err);
	sock_detach(s, &t->ref);
}
struct tcp_bounds tcp_bounds(const struct tcb *t) { return t->b; }
struct sockref *tcp_listener_ref(struct listener *l) { return &l->ref; }

/* ---- the recording UDP ---- */
int udp_open(struct stack *s, const struct udp_open *o, struct udp_sock **out)
{
	struct world *w = s->ops.world;

	if (w->refuse)
		return -w->refuse;
	*out = &w->udps[w->nudps++];
	(*out)->ref = o->ref;
	(*out)->open = *o;
	return 0;
}
void udp_kick(struct stack *s, struct udp_sock *u) { (void)s; u->kicks++; }
void udp_later(struct stack *s, struct udp_sock *u) { (void)s; u->later++; }
void udp_skip(struct stack *s, struct udp_sock *u) { (void)s; u->kicks--; }
void udp_close(struct stack *s, struct udp_sock *u) { u->closed++; sock_detach(s, &u->ref); }

/* ---- what the tests drive ---- */
struct world *world_new(void);
struct world *world_reborn(struct world *old);
void world_free(struct world *w);
int listen_on(struct world *w, uint32_t *slot, uint32_t *gen);
int arrive(struct world *w, uint32_t listener);
void command_push(struct world *w, int channel, uint32_t op, uint32_t gen, uint32_t slot);
unsigned run(struct world *w);
uint64_t status(struct world *w, uint32_t slot);
uint32_t events(struct world *w, int channel, uint64_t *out, uint32_t max);
void subscribe(struct world *w, uint32_t slot, uint64_t mask);
void clear_pending(struct world *w, uint32_t slot, uint64_t mask);
void words(struct world *w, uint32_t slot, uint64_t tx_tail, uint64_t rx_tail);
void bounds(struct world *w, uint32_t tcb, uint64_t tx_una, uint64_t tx_tail, uint64_t rx_head, uint64_t rx_tail);
void notify(struct world *w, uint32_t tcb);
uint32_t accept_one(struct world *w, uint32_t listener, uint32_t sock);
int tcb_kicks(struct world *w, uint32_t tcb);
int tcb_options(struct world *w, uint32_t tcb);
void set_options(struct world *w, uint32_t slot);
void kick_flag(struct world *w, uint32_t slot);
void set_info(struct world *w, uint32_t slot, uint32_t value);
uint32_t info(struct world *w, uint32_t slot);
int listen_again(struct world *w, uint32_t slot, uint32_t gen);
int own(struct world *w, uint32_t slot, uint32_t gen, uint32_t sock);
uint32_t owner(struct world *w, uint32_t slot);
int tcb_aborted(struct world *w, uint32_t tcb);
int tcb_closed(struct world *w, uint32_t tcb);
uint32_t tcb_slot(struct world *w, uint32_t tcb);
uint32_t live(struct world *w);
void refuse(struct world *w, int err);
void sleep_channel(struct world *w, int channel, uint32_t cpu);
uint32_t wakes(struct world *w);
void app_gone(struct world *w);
void api_start_world(struct world *w);
void port_entry(struct world *w, uint32_t addr, uint16_t port, uint32_t owner, uint32_t mask);
void udp_words(struct world *w, uint32_t slot, uint32_t laddr, uint16_t lport);
uint32_t udps(struct world *w);
int udp_kicks(struct world *w, uint32_t udp);
int udp_laters(struct world *w, uint32_t udp);
int udp_closes(struct world *w, uint32_t udp);
uint32_t command_pending(struct world *w, uint32_t slot);
void set_open(struct world *w, int channel, uint32_t gen);
void look(struct world *w);
uint32_t forgotten(struct world *w);
uint32_t nopen(struct world *w);
void connect_push(struct world *w, uint32_t round, uint32_t gen, uint32_t slot);
int shut(struct world *w);
void over(struct world *w);
void end(struct world *w);
void tcp_busy(struct world *w, int busy);
uint32_t door(struct world *w);
void nudge(struct world *w);
uint32_t overflow(struct world *w, int channel);
void overwrite(struct world *w, int channel, int what, uint64_t value);
uint64_t index_of(struct world *w, int channel, int what);
void later(struct world *w, uint64_t us);
int pending(struct world *w);
void overwrite_head(struct world *w, uint32_t slot, uint64_t head);
void overwrite_status(struct world *w, uint32_t slot, uint64_t value);
void set_foreign(struct world *w, uint32_t listener, int foreign);
void forget_listeners(struct world *w);
/* ---- end ---- */

static struct world *world_make(struct neat_seg_pub *pub, struct neat_seg_app *app, struct neat_channels *channels,
				uint32_t epoch, struct neat_registry *registry)
{
	struct world *w = zeroed(sizeof(*w));

	w->stack.ops.world = w;
	w->stack.api = &w->api;
	w->stack.cfg.epoch = epoch;
	w->api = (struct api){ .stack = &w->stack, .ops = { .wake = wake, .forget = forget, .world = w }, .batch = 64, .registry = registry };
	w->registry = registry;
	w->app = (struct app){ .app_id = 7, .mem = { .pub = pub, .app = app }, .channels = channels };
	w->app.slots = zeroed(sizeof(struct slot_user) * NEAT_SLOTS);
	w->app.free = zeroed(sizeof(uint32_t) * NEAT_SLOT_APP_FIRST);
	if (api_app_add(&w->api, &w->app))
		return NULL;
	return w;
}

static void open_channel(struct neat_channels *c, uint32_t n, uint32_t gen)
{
	a32_release(&c->open[n], gen);
	a64_add(&c->change, 1);
}

struct world *world_new(void)
{
	struct neat_channels *channels = zeroed(sizeof(*channels));
	struct world *w;

	open_channel(channels, 0, 1);
	open_channel(channels, 1, 1);
	w = world_make(zeroed(sizeof(struct neat_seg_pub)), zeroed(NEAT_SEG_APP_SIZE), channels, 1,
		       zeroed(sizeof(struct neat_registry)));
	api_start_world(w);
	return w;
}

/* A successor over the same shared memory: the predecessor's private state is gone. */
struct world *world_reborn(struct world *old)
{
	return world_make(old->app.mem.pub, old->app.mem.app, old->app.channels, old->stack.cfg.epoch + 1,
			  old->registry);
}

void world_free(struct world *w)
{
	munmap(w->app.mem.pub, sizeof(struct neat_seg_pub));
	munmap(w->app.mem.app, NEAT_SEG_APP_SIZE);
	munmap(w->app.channels, sizeof(struct neat_channels));
}

int listen_on(struct world *w, uint32_t *slot, uint32_t *gen)
{
	struct neat_msg_r_listen m = { .app_id = 7, .port = 80, .backlog = 16, .slot = *slot };
	int err = api_listen(&w->api, &w->app, &m);

	*slot = m.slot;
	*gen = m.gen;
	return err;
}

/* A handshake completes behind the n-th listener; returns the tcb index or -errno. */
int arrive(struct world *w, uint32_t listener)
{
	struct flow_key k = { .laddr = 1, .raddr = 2, .lport = 80, .rport = (uint16_t)(5000 + w->ntcbs) };
	struct tcb *t = &w->tcbs[w->ntcbs];
	int err = sock_accept(&w->stack, &w->listeners[listener], &k, t, &t->ref);

	if (!err)
		sock_accept_push(&w->stack, &w->listeners[listener], &t->ref);

	return err ? err : (int)w->ntcbs++;
}

void command_push(struct world *w, int channel, uint32_t op, uint32_t gen, uint32_t slot)
{
	struct neat_channel *m = &w->app.channels->ch[channel];

	neat_ring_push(m->cmd, NEAT_CMD_ENTRIES, &m->cmd_tail, &m->cmd_head, neat_entry(op, 0, gen, slot));
}

unsigned run(struct world *w)
{
	unsigned n = api_commands(&w->api);

	api_flush(&w->api);
	return n;
}

uint64_t status(struct world *w, uint32_t slot) { return a64_relaxed(&w->app.mem.pub->slots[slot].status); }

uint32_t events(struct world *w, int channel, uint64_t *out, uint32_t max)
{
	struct neat_channel *m = &w->app.channels->ch[channel];
	uint64_t head = a64_relaxed(&m->ev_head);
	uint32_t n = neat_ring_ready(NEAT_EV_ENTRIES, &m->ev_tail, head);

	for (uint32_t i = 0; i < n && i < max; i++)
		out[i] = a64_relaxed(&m->ev[(head + i) & (NEAT_EV_ENTRIES - 1)]);
	a64_release(&m->ev_head, head + n);
	return n;
}

void subscribe(struct world *w, uint32_t slot, uint64_t mask) { a64_or(&w->app.mem.app->slots[slot].sub, mask); }
void clear_pending(struct world *w, uint32_t slot, uint64_t mask)
{
	a64_and(&w->app.mem.app->slots[slot].ev_pend, ~mask);
}
void words(struct world *w, uint32_t slot, uint64_t tx_tail, uint64_t rx_tail)
{
	a64_store(&w->app.mem.app->slots[slot].tx_tail, tx_tail);
	a64_store(&w->app.mem.app->slots[slot].rx_tail, rx_tail);
}
void bounds(struct world *w, uint32_t tcb, uint64_t tx_una, uint64_t tx_tail, uint64_t rx_head, uint64_t rx_tail)
{
	w->tcbs[tcb].b = (struct tcp_bounds){ tx_una, tx_tail, rx_head, rx_tail };
}
void notify(struct world *w, uint32_t tcb) { sock_notify(&w->stack, &w->tcbs[tcb].ref, SOCK_READABLE); }

/* accept(): one CAS on the head, as the library does. 0 = nothing there. */
uint32_t accept_one(struct world *w, uint32_t listener, uint32_t sock)
{
	struct neat_slot_pub *pub = &w->app.mem.pub->slots[listener];
	struct neat_slot_app *app = &w->app.mem.app->slots[listener];
	uint64_t head = a64_relaxed(&app->accept_head), tail = a64_acquire(&pub->accept_tail), e;

	if (head == tail)
		return 0;
	e = a64_relaxed(&w->app.mem.pub->accept[pub->accept_ring].entry[head & (NEAT_ACCEPT_ENTRIES - 1)]);
	if (!a64_cas(&app->accept_head, head, head + 1))
		return 0;
	/* 0: killed before it made the connection its own */
	return !sock || own(w, (uint32_t)e, neat_entry_gen(e), sock) ? (uint32_t)e : 0;
}

int tcb_kicks(struct world *w, uint32_t tcb) { return w->tcbs[tcb].kicks; }
/* Whether its last kick said that options changed. */
int tcb_options(struct world *w, uint32_t tcb) { return w->tcbs[tcb].last.opts_changed; }
void set_options(struct world *w, uint32_t slot) { a32_add(&w->app.mem.app->slots[slot].optgen, 1); }
/* The library's exchange in front of a KICK. */
void kick_flag(struct world *w, uint32_t slot) { a32_store(&w->app.mem.app->slots[slot].cmd_pend, 1); }
/* What TCP_INFO reports of a slot, one word of it. */
void set_info(struct world *w, uint32_t slot, uint32_t value) { w->app.mem.pub->slots[slot].total_retrans = value; }
uint32_t info(struct world *w, uint32_t slot) { return w->app.mem.pub->slots[slot].total_retrans; }
int own(struct world *w, uint32_t slot, uint32_t gen, uint32_t sock)
{
	return neat_own(&w->app.mem.app->slots[slot], gen, sock);
}
uint32_t owner(struct world *w, uint32_t slot) { return api_owner(&w->app, slot); }
/* R_LISTEN for a listener that neatd knows to be in this slot. */
int listen_again(struct world *w, uint32_t slot, uint32_t gen)
{
	struct neat_msg_r_listen m = { .app_id = 7, .port = 80, .backlog = 16, .slot = slot, .gen = gen };

	return api_listen(&w->api, &w->app, &m);
}
int tcb_aborted(struct world *w, uint32_t tcb) { return w->tcbs[tcb].aborted; }
int tcb_closed(struct world *w, uint32_t tcb) { return w->tcbs[tcb].closed; }
uint32_t tcb_slot(struct world *w, uint32_t tcb) { return w->tcbs[tcb].ref.slot; }
uint32_t live(struct world *w) { return w->app.mem.live; }
void refuse(struct world *w, int err) { w->refuse = err; }
void sleep_channel(struct world *w, int channel, uint32_t cpu)
{
	a32_store(&w->app.channels->ch[channel].cpu, cpu);
	a32_store(&w->app.channels->ch[channel].asleep, NEAT_ASLEEP_FUTEX);
}
uint32_t wakes(struct world *w) { return w->wakes; }
void app_gone(struct world *w) { api_app_gone(&w->api, &w->app); }
void api_start_world(struct world *w)
{
	struct stack_adopted none;

	api_start(&w->api, NEAT_DEATH_NONE, &none);
}

void port_entry(struct world *w, uint32_t addr, uint16_t port, uint32_t owner, uint32_t mask)
{
	struct neat_port_entry *e = &w->registry->ports[neat_port_hash(port, 17)];

	e->addr = addr;
	e->port = port;
	e->proto = 17;
	a32_store(&e->owner, owner);
	a32_store(&e->mask, mask);
	a32_release(&e->state, NEAT_PORT_BOUND);
}
void udp_words(struct world *w, uint32_t slot, uint32_t laddr, uint16_t lport)
{
	w->app.mem.app->slots[slot].laddr = laddr;
	w->app.mem.app->slots[slot].lport = lport;
	a32_store(&w->app.mem.app->slots[slot].cmd_pend, 1);
}
uint32_t udps(struct world *w) { return w->nudps; }
int udp_kicks(struct world *w, uint32_t udp) { return w->udps[udp].kicks; }
int udp_laters(struct world *w, uint32_t udp) { return w->udps[udp].later; }
int udp_closes(struct world *w, uint32_t udp) { return w->udps[udp].closed; }
uint32_t command_pending(struct world *w, uint32_t slot) { return a32_relaxed(&w->app.mem.app->slots[slot].cmd_pend); }
void set_open(struct world *w, int channel, uint32_t gen) { open_channel(w->app.channels, (uint32_t)channel, gen); }
void look(struct world *w) { api_channels_look(&w->api, &w->app); }
uint32_t forgotten(struct world *w) { return w->forgotten; }
uint32_t nopen(struct world *w) { return w->app.nopen; }

/* ---- draining ---- */

void connect_push(struct world *w, uint32_t round, uint32_t gen, uint32_t slot)
{
	struct neat_channel *m = &w->app.channels->ch[0];
	uint64_t entry = neat_entry(NEAT_CMD_CONNECT, round, gen, slot);

	neat_ring_push(m->cmd, NEAT_CMD_ENTRIES, &m->cmd_tail, &m->cmd_head, entry);
}
int shut(struct world *w) { return api_shut(&w->api); }
void end(struct world *w) { api_end(&w->api); }
void over(struct world *w) { api_over(&w->api); }
void tcp_busy(struct world *w, int busy) { w->busy = busy; }
uint32_t door(struct world *w) { return a32_relaxed(&w->app.channels->door); }
void nudge(struct world *w)
{
	api_nudge(&w->api);
	api_flush(&w->api);
}
uint32_t overflow(struct world *w, int channel) { return a32_relaxed(&w->app.channels->ch[channel].overflow); }

/* A replica that ran wild: what = 0 cmd_head, 1 cmd_tail, 2 ev_tail, 3 the door. */
static neat_a64 *word_of(struct world *w, int channel, int what)
{
	struct neat_channel *m = &w->app.channels->ch[channel];

	return what == 0 ? &m->cmd_head : what == 1 ? &m->cmd_tail : &m->ev_tail;
}

void overwrite(struct world *w, int channel, int what, uint64_t value)
{
	if (what == 3)
		a32_store(&w->app.channels->door, (uint32_t)value);
	else
		a64_store(word_of(w, channel, what), value);
}

uint64_t index_of(struct world *w, int channel, int what) { return a64_relaxed(word_of(w, channel, what)); }
void later(struct world *w, uint64_t us) { w->stack.now_us += us; }
int pending(struct world *w) { return api_commands_pending(&w->api); }

/* ---- the accept queue ---- */

void overwrite_head(struct world *w, uint32_t slot, uint64_t head)
{
	a64_store(&w->app.mem.app->slots[slot].accept_head, head);
}
void overwrite_status(struct world *w, uint32_t slot, uint64_t value)
{
	a64_store(&w->app.mem.pub->slots[slot].status, value);
}
void set_foreign(struct world *w, uint32_t listener, int foreign)
{
	w->listeners[listener].ref.mem = foreign ? &w->other : &w->app.mem;
}
/* flow_listener() finds none from now on. */
void forget_listeners(struct world *w) { w->nlisteners = 0; }
