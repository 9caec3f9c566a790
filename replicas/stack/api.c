/*
 * api.c - applications, their slots, and what TCP tells them. Commands are in api_cmd.c, channels in
 * api_channel.c.
 *
 * Not responsible for: mapping memory, sleeping and waking (main.c), TCP. Read L1, L4, L6 of
 * docs/rules.md first. Whatever lies in a neat_seg_app is hostile.
 */
#include "api.h"
#include "api_slots.h"
#include "bytering.h"
#include <errno.h>

enum { ACCEPT_LOOK_US = 100000 };

/* ---- applications ---- */

struct app *api_app_find(struct api *a, uint32_t app_id)
{
	for (uint32_t i = 0; i < a->napps; i++)
		if (a->apps[i]->app_id == app_id)
			return a->apps[i];
	return NULL;
}

void slot_publish_reset(struct neat_slot_pub *pub)
{
	uint64_t status = a64_relaxed(&pub->status);
	uint32_t flags = neat_status_flags(status) & ~(uint32_t)NEAT_SLOT_CONNECTING;

	a32_store(&pub->err_seq, a32_relaxed(&pub->err_seq) + 1);
	flags |= NEAT_SLOT_ERROR | NEAT_SLOT_HUP | NEAT_SLOT_RX_EOF | NEAT_SLOT_TX_SHUT | NEAT_SLOT_DEAD;
	a64_release(&pub->status, neat_status(neat_status_gen(status), ECONNRESET, flags));
}

/*
 * Stateless recovery (paper 6.3.6): whatever our predecessor had in this slot is gone. Bytes that
 * were published stay readable; then the application sees ECONNRESET.
 */
void slot_reset(struct api *a, struct app *app, uint32_t slot)
{
	struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
	uint64_t status = a64_relaxed(&pub->status);
	uint32_t flags = neat_status_flags(status);
	struct slot_user *u = &app->slots[slot];

	u->gen = (uint16_t)neat_status_gen(status);
	if (flags == 0 || flags & NEAT_SLOT_LISTENING)
		return;		/* a listener's slot is taken again by its R_LISTEN */
	if (flags & NEAT_SLOT_DATAGRAM && slot_udp_again(a, app, slot))
		return;
	if (flags & NEAT_SLOT_CLOSED) {
		u->gen++;
		a64_release(&pub->status, neat_status(u->gen, 0, 0));
		return;
	}
	u->kind = SLOT_ZOMBIE;
	app->mem.live++;
	if (flags & NEAT_SLOT_DEAD)
		return;
	slot_publish_reset(pub);
}

int api_app_add(struct api *a, struct app *app)
{
	uint32_t born = a32_relaxed(&app->mem.pub->high_born);
	uint32_t claimed = a32_relaxed(&app->mem.pub->high_claimed);

	if (a->napps == API_APPS_MAX)
		return -ENOSPC;
	app->mem.owner = app;
	app->mem.app_id = app->app_id;
	/* A mark that makes no sense was overwritten: then all of them may have been in use. */
	app->high_born = born > NEAT_SLOT_APP_FIRST ? NEAT_SLOT_APP_FIRST : born < 1 ? 1 : born;
	for (uint32_t i = 1; i < app->high_born && !a->adopting; i++) {
		slot_reset(a, app, i);
		if (app->slots[i].kind == SLOT_FREE &&
		    !(neat_status_flags(a64_relaxed(&app->mem.pub->slots[i].status)) & NEAT_SLOT_LISTENING))
			app->free[app->nfree++] = i;
	}
	if (claimed > NEAT_SLOTS)
		claimed = NEAT_SLOTS;
	for (uint32_t i = NEAT_SLOT_APP_FIRST; i < claimed && !a->adopting; i++)
		slot_reset(a, app, i);
	a32_release(&app->mem.pub->epoch, a->stack->cfg.epoch);
	a->apps[a->napps++] = app;
	channels_inherit(a, app);
	api_door_open(app);
	return 0;
}

/* Connections that nobody can accept any more, and listeners whose R_LISTEN did not come: their
 * application closed them during the outage. */
static void free_left(struct app *app)
{
	api_free_unaccepted(app);
	for (uint32_t slot = 1; slot < app->high_born; slot++) {
		uint64_t status = a64_relaxed(&app->mem.pub->slots[slot].status);

		if (app->slots[slot].kind != SLOT_FREE || !(neat_status_flags(status) & NEAT_SLOT_LISTENING))
			continue;
		slot_take(app, slot, SLOT_ZOMBIE, NULL, neat_status_gen(status));
		slot_free(app, slot);
	}
}

void api_start(struct api *a, uint32_t death, struct stack_adopted *out)
{
	*out = (struct stack_adopted){ 0 };
	if (a->adopting)
		api_adopt(a, death, out);
	else
		for (uint32_t i = 0; i < a->napps; i++)
			free_left(a->apps[i]);
	a->started = true;
	/* All that adoption published before the look at open[]: a process that opens its channel now, and is not told
	 * below, finds it when it looks (Dekker; it opens, fences, looks at words). */
	neat_fence();
	for (uint32_t i = 0; i < a->napps; i++)
		api_channels_look(a, a->apps[i]);
	channels_wake(a);
}

void api_app_gone(struct api *a, struct app *app)
{
	app->gone = true;
	api_channels_look(a, app);
	for (uint32_t i = 1; i < NEAT_SLOTS && app->mem.live; i++)
		if (app->slots[i].kind != SLOT_FREE && !app->slots[i].closed)
			slot_close(a, app, i);
}

void api_app_remove(struct api *a, struct app *app)
{
	for (uint32_t i = 0; i < a->napps; i++)
		if (a->apps[i] == app)
			a->apps[i] = a->apps[--a->napps];
}

/* ---- slots ---- */

static uint32_t slot_alloc(struct app *app)
{
	if (app->nfree)
		return app->free[--app->nfree];
	if (app->high_born >= NEAT_SLOT_APP_FIRST)
		return 0;
	app->high_born++;
	a32_store(&app->mem.pub->high_born, app->high_born);
	return app->high_born - 1;
}

void slot_take(struct app *app, uint32_t slot, enum slot_kind kind, void *obj, uint32_t gen)
{
	struct slot_user *u = &app->slots[slot];

	u->obj = obj;
	u->kind = (uint8_t)kind;
	u->gen = (uint16_t)gen;
	u->closed = 0;
	u->optgen = 0;		/* as neat_slot_app_reset() leaves the word */
	app->mem.live++;
	if (slot >= NEAT_SLOT_APP_FIRST && slot >= a32_relaxed(&app->mem.pub->high_claimed))
		a32_store(&app->mem.pub->high_claimed, slot + 1);
	/* A predecessor's mark was overwritten: what is in use is not given out again. */
	if (slot < NEAT_SLOT_APP_FIRST && slot >= app->high_born) {
		app->high_born = slot + 1;
		a32_store(&app->mem.pub->high_born, app->high_born);
	}
}

/* The status word without flags is the commit: from here on the slot may be taken again. */
void slot_free(struct app *app, uint32_t slot)
{
	struct slot_user *u = &app->slots[slot];

	u->kind = SLOT_FREE;
	u->obj = NULL;
	u->gen++;
	app->mem.live--;
	a64_release(&app->mem.pub->slots[slot].status, neat_status(u->gen, 0, 0));
	if (slot < NEAT_SLOT_APP_FIRST)
		app->free[app->nfree++] = slot;
}

struct sockref slot_ref(struct app *app, uint32_t slot)
{
	return (struct sockref){
		.mem = &app->mem,
		.pub = &app->mem.pub->slots[slot],
		.app = &app->mem.app->slots[slot],
		.slot = slot,
		.gen = app->slots[slot].gen,
	};
}

/* Words of a newborn slot, ours and (nobody else has it yet) the application's. */
static void slot_words_reset(struct app *app, uint32_t slot)
{
	struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
	struct neat_slot_app *w = &app->mem.app->slots[slot];

	pub_words_reset(pub);
	neat_slot_app_reset(w);
	a64_store(&w->accepted, neat_owned(app->slots[slot].gen, 0));
	memset(&w->opts, 0, sizeof(w->opts));
}

void pub_words_reset(struct neat_slot_pub *pub)
{
	a64_store(&pub->rx_head, 0);
	a64_store(&pub->rx_ring, neat_ringword(0, NEAT_RING_LOG2_MIN));
	a64_store(&pub->tx_una, 0);
	a64_store(&pub->accept_tail, 0);
	a32_store(&pub->err_seq, 0);
	memset(&pub->rtt_us, 0, sizeof(*pub) - offsetof(struct neat_slot_pub, rtt_us));
}

/* ---- listeners ---- */

static int accept_ring_alloc(struct app *app)
{
	for (int i = 0; i < NEAT_LISTENERS_MAX / 64; i++)
		if (~app->accept_used[i]) {
			int bit = __builtin_ctzll(~app->accept_used[i]);

			app->accept_used[i] |= 1ull << bit;
			app->taken[i * 64 + bit] = (struct taken){ 0 };
			return i * 64 + bit;
		}
	return -ENOSPC;
}

static void accept_ring_free(struct app *app, uint32_t ring)
{
	app->accept_used[ring / 64] &= ~(1ull << ring % 64);
}

/*
 * A listener that lived in this slot before our predecessor died keeps ring and queue positions. -ESTALE: the
 * application closed it, and the message that says so to neatd is on its way.
 */
static int listener_again(struct app *app, const struct neat_msg_r_listen *m)
{
	const struct neat_slot_pub *pub = &app->mem.pub->slots[m->slot & (NEAT_SLOTS - 1)];
	uint64_t status = a64_relaxed(&pub->status);

	if (m->slot >= NEAT_SLOT_APP_FIRST || app->slots[m->slot].kind != SLOT_FREE)
		return -EINVAL;
	if (!(neat_status_flags(status) & NEAT_SLOT_LISTENING) || neat_status_gen(status) != (m->gen & 0xffff) ||
	    pub->accept_ring >= NEAT_LISTENERS_MAX)
		return -ESTALE;
	app->slots[m->slot].gen = (uint16_t)m->gen;
	app->accept_used[pub->accept_ring / 64] |= 1ull << pub->accept_ring % 64;
	return 0;
}

static int listener_words(struct app *app, struct neat_msg_r_listen *m)
{
	struct neat_slot_pub *pub;
	uint32_t slot;
	int ring;

	if (m->slot)
		return listener_again(app, m);
	slot = slot_alloc(app);
	if (slot == 0)
		return -ENOBUFS;
	ring = accept_ring_alloc(app);
	if (ring < 0) {
		app->free[app->nfree++] = slot;
		return ring;
	}
	pub = &app->mem.pub->slots[slot];
	slot_words_reset(app, slot);
	pub->accept_ring = (uint32_t)ring;
	pub->laddr = m->addr;
	pub->lport = m->port;
	m->slot = slot;
	return 0;
}

int api_listen(struct api *a, struct app *app, struct neat_msg_r_listen *m)
{
	struct listener *l;
	struct tcp_listen req = { .addr = m->addr, .port = m->port, .backlog = m->backlog, .opts = m->opts };
	int err;

	if (m->slot && m->slot < NEAT_SLOTS && app->slots[m->slot].kind == SLOT_LISTENER) {
		if (app->slots[m->slot].gen != (uint16_t)m->gen)
			return -ESTALE;		/* closed, and another one's by now */
		tcp_relisten(a->stack, app->slots[m->slot].obj, m->backlog);
		m->gen = app->slots[m->slot].gen;
		return 0;
	}
	err = listener_words(app, m);
	if (err)
		return err;
	slot_take(app, m->slot, SLOT_LISTENER, NULL, app->slots[m->slot].gen);
	req.ref = slot_ref(app, m->slot);
	err = tcp_listen(a->stack, &req, &l);
	if (err) {
		accept_ring_free(app, app->mem.pub->slots[m->slot].accept_ring);
		slot_free(app, m->slot);
		return err;
	}
	app->slots[m->slot].obj = l;
	m->gen = app->slots[m->slot].gen;
	a64_release(&app->mem.pub->slots[m->slot].status, neat_status(m->gen, 0, NEAT_SLOT_LISTENING));
	return 0;
}

/* How many entries the application took; a value it cannot have reached counts as none. */
uint64_t accept_head(const struct app *app, uint32_t slot, uint64_t tail)
{
	uint64_t head = a64_acquire(&app->mem.app->slots[slot].accept_head);

	return tail - head <= NEAT_ACCEPT_ENTRIES ? head : tail - NEAT_ACCEPT_ENTRIES;
}

/*
 * Only the library can put right a head that was overwritten, and it looks when it is woken for an entry: refused,
 * the next one would never come. Who overwrites his own could say as well that he took all.
 */
bool accept_room(const struct app *app, uint32_t slot, uint64_t tail)
{
	return tail - a64_acquire(&app->mem.app->slots[slot].accept_head) != NEAT_ACCEPT_ENTRIES;
}

/* Nobody can accept it any more: reset (RFC 9293 3.10.4 for a closed listener). */
static void drop_waiting(struct api *a, struct app *app, uint64_t entry)
{
	uint32_t slot = neat_entry_slot(entry);
	struct slot_user *u = &app->slots[slot & (NEAT_SLOTS - 1)];

	/* A second entry of a connection may outlive it: the slot is another one's by now. */
	if (slot == 0 || slot >= NEAT_SLOT_APP_FIRST || u->gen != neat_entry_gen(entry) ||
	    slot_owner(app, slot))
		return;
	if (u->kind == SLOT_TCB) {
		u->closed = 1;
		tcp_abort(a->stack, u->obj, ECONNRESET);
	} else if (u->kind == SLOT_ZOMBIE) {
		slot_free(app, slot);
	}
}

static void listener_close(struct api *a, struct app *app, uint32_t slot)
{
	struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
	struct neat_accept_ring *ring = &app->mem.pub->accept[pub->accept_ring];
	uint64_t tail = a64_relaxed(&pub->accept_tail);

	tcp_unlisten(a->stack, app->slots[slot].obj);
	for (uint64_t i = accept_head(app, slot, tail); i != tail; i++)
		drop_waiting(a, app, a64_relaxed(&ring->entry[i & (NEAT_ACCEPT_ENTRIES - 1)]));
	accept_ring_free(app, pub->accept_ring);
	slot_free(app, slot);
}

void slot_close(struct api *a, struct app *app, uint32_t slot)
{
	struct slot_user *u = &app->slots[slot];
	struct sockref ref = slot_ref(app, slot);

	u->closed = 1;
	if (u->kind == SLOT_TCB) {
		/* For a stateless successor, which has only the slots to go by. */
		sock_status(a->stack, &ref, NEAT_SLOT_CLOSED, 0, 0);
		tcp_close(a->stack, u->obj);
	} else if (u->kind == SLOT_UDP) {
		sock_status(a->stack, &ref, NEAT_SLOT_CLOSED, 0, 0);
		udp_close(a->stack, u->obj);
	} else if (u->kind == SLOT_LISTENER)
		listener_close(a, app, slot);
	else if (u->kind == SLOT_ZOMBIE)
		slot_free(app, slot);
}

uint32_t slot_owner(const struct app *app, uint32_t slot)
{
	return neat_owner(&app->mem.app->slots[slot], app->slots[slot].gen);
}

uint32_t api_owner(const struct app *app, uint32_t slot) { return slot < NEAT_SLOTS ? slot_owner(app, slot) : 0; }

void api_release(struct api *a, struct app *app, uint32_t slot, uint32_t gen)
{
	if (slot == 0 || slot >= NEAT_SLOTS || app->slots[slot].kind == SLOT_FREE ||
	    app->slots[slot].closed || app->slots[slot].gen != (uint16_t)gen)
		return;
	slot_close(a, app, slot);
}

/* ---- what TCP tells the socket layer ---- */

void sock_notify(struct stack *s, struct sockref *r, unsigned what)
{
	uint64_t sub, fresh;
	(void)what;		/* the level words say it all */

	if (!r->mem)
		return;
	/* The level words are visible before sub and ev_pend are read: a library that subscribes, or
	 * clears its bit, and then looks at the words either sees them or is seen here (Dekker). */
	neat_fence();
	sub = a64_relaxed(&r->app->sub);
	fresh = sub & ~a64_relaxed(&r->app->ev_pend);
	if (!fresh)
		return;
	fresh &= ~a64_or(&r->app->ev_pend, fresh);
	channels_post(s->api, r->mem->owner, fresh, neat_entry(NEAT_EV_SLOT, 0, r->gen, r->slot));
}

void sock_status(struct stack *s, struct sockref *r, uint32_t set, uint32_t clear, uint32_t err)
{
	uint64_t status;
	uint32_t flags, code;
	(void)s;

	if (!r->mem)
		return;
	status = a64_relaxed(&r->pub->status);
	flags = (neat_status_flags(status) & ~clear) | set;
	code = neat_status_errno(status);
	if (err) {
		code = err;
		flags |= NEAT_SLOT_ERROR;
		a32_store(&r->pub->err_seq, a32_relaxed(&r->pub->err_seq) + 1);
	}
	a64_release(&r->pub->status, neat_status(r->gen, code, flags));
}

static void hidden(struct stack *s, struct listener *l, struct app *app, uint64_t entry)
{
	const struct sockref *lref = tcp_listener_ref(l);
	uint32_t slot = neat_entry_slot(entry) & (NEAT_SLOTS - 1);
	const struct slot_user *u = &app->slots[slot];
	struct sockref ref = slot_ref(app, slot);

	if (slot >= NEAT_SLOT_APP_FIRST || u->kind != SLOT_TCB || !u->obj || u->closed ||
	    u->gen != neat_entry_gen(entry) || slot_owner(app, slot))
		return;
	if (accept_room(app, lref->slot, a64_relaxed(&lref->pub->accept_tail)))
		sock_accept_push(s, l, &ref);
	else
		app->full = lref->slot;
}

/*
 * Connections whose entry was taken a while ago and that nobody has are queued again: an accept_head that was
 * overwritten, and is too high, has hidden them. Of one whose taker is slow, a second entry does no harm (neat_own()).
 * Each entry is looked at once, if it is still in the ring.
 */
static void look_for_hidden(struct stack *s, struct listener *l, struct app *app)
{
	const struct sockref *lref = tcp_listener_ref(l);
	uint32_t number = lref->pub->accept_ring & (NEAT_LISTENERS_MAX - 1);
	const struct neat_accept_ring *ring = &lref->mem->pub->accept[number];
	struct taken *k = &app->taken[number];
	uint64_t tail = a64_relaxed(&lref->pub->accept_tail), head, i;

	if (s->now_us - k->us < ACCEPT_LOOK_US)
		return;
	head = accept_head(app, lref->slot, tail);
	/* What is pushed here comes behind `to`, in the place of an entry that was looked at. */
	i = tail - k->from <= NEAT_ACCEPT_ENTRIES ? k->from : tail - NEAT_ACCEPT_ENTRIES;
	for (; (int64_t)(k->to - i) > 0 && (int64_t)(head - i) > 0; i++)
		hidden(s, l, app, a64_relaxed(&ring->entry[i & (NEAT_ACCEPT_ENTRIES - 1)]));
	*k = (struct taken){ k->to, head, s->now_us };
}

int sock_accept(struct stack *s, struct listener *l, const struct flow_key *k, struct tcb *t,
		struct sockref *out)
{
	struct sockref *lref = tcp_listener_ref(l);
	struct app *app = lref->mem->owner;
	struct neat_slot_pub *pub;
	uint64_t tail;
	uint32_t slot;

	look_for_hidden(s, l, app);
	tail = a64_relaxed(&lref->pub->accept_tail);
	if (!accept_room(app, lref->slot, tail) || app->gone)
		return -ENOBUFS;
	slot = slot_alloc(app);
	if (slot == 0)
		return -ENOBUFS;
	slot_words_reset(app, slot);
	pub = &app->mem.pub->slots[slot];
	pub->laddr = k->laddr;
	pub->raddr = k->raddr;
	pub->lport = k->lport;
	pub->rport = k->rport;
	slot_take(app, slot, SLOT_TCB, t, app->slots[slot].gen);
	*out = slot_ref(app, slot);
	return 0;
}

void sock_accept_push(struct stack *s, struct listener *l, struct sockref *r)
{
	struct sockref *lref = tcp_listener_ref(l);
	struct neat_accept_ring *ring = &lref->mem->pub->accept[lref->pub->accept_ring];
	uint64_t tail = a64_relaxed(&lref->pub->accept_tail), listening = neat_status(lref->gen, 0, NEAT_SLOT_LISTENING);

	sock_status(s, r, NEAT_SLOT_CONNECTED, 0, 0);
	/* Overwritten, it would be another listener's for the library, and for a successor. */
	if (NEAT_UNLIKELY(a64_relaxed(&lref->pub->status) != listening))
		a64_store(&lref->pub->status, listening);
	a64_store(&ring->entry[tail & (NEAT_ACCEPT_ENTRIES - 1)], (uint64_t)r->gen << 32 | r->slot);
	/* Release: entry and slot are whole before the index says that they exist (W6). */
	a64_release(&lref->pub->accept_tail, tail + 1);
	sock_notify(s, lref, SOCK_READABLE);
}

void sock_detach(struct stack *s, struct sockref *r)
{
	struct app *app;
	struct slot_user *u;
	(void)s;

	if (!r->mem)
		return;
	app = r->mem->owner;
	u = &app->slots[r->slot];
	if (u->closed) {
		slot_free(app, r->slot);
	} else {
		u->kind = SLOT_ZOMBIE;
		u->obj = NULL;
		sock_status(s, r, NEAT_SLOT_DEAD, 0, 0);
	}
	r->mem = NULL;
	r->slot = 0;
}
