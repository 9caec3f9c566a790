/*
 * api_adopt.c - a successor's applications: which connection sits in which slot, what became of slots
 * without one, and connections that wait to be accepted.
 *
 * The slots' own words say all (contract W15): rings of commands and events are hints. What TCP does with
 * its control blocks is in tcp_adopt.c.
 */
#include "api_slots.h"
#include <errno.h>

bool sock_adopt(struct stack *s, uint32_t app_id, struct tcb *t, bool closed, struct sockref *ref)
{
	struct app *app = api_app_find(s->api, app_id);
	uint32_t slot = ref->slot & (NEAT_SLOTS - 1), applied = tcp_optgen(t), now;
	struct slot_user *u;
	uint64_t status;

	if (!app)
		return false;
	u = &app->slots[slot];
	status = a64_relaxed(&app->mem.pub->slots[slot].status);
	if (u->kind != SLOT_FREE || neat_status_gen(status) != (ref->gen & 0xffff) ||
	    neat_status_flags(status) & (NEAT_SLOT_DEAD | NEAT_SLOT_LISTENING))
		return false;
	slot_take(app, slot, SLOT_TCB, t, ref->gen);
	u->closed = closed;
	now = a32_relaxed(&app->mem.app->slots[slot].optgen);
	u->optgen = (uint16_t)now == applied ? now : now - 1;	/* not the same: the next look applies them */
	*ref = slot_ref(app, slot);
	return true;
}

void sock_expect(const struct stack *s, uint32_t app_id, uint32_t slot)
{
	const struct app *app = api_app_find(s->api, app_id);

	if (!app || slot >= NEAT_SLOTS)
		return;
	__builtin_prefetch(&app->slots[slot], 1);
	__builtin_prefetch(&app->mem.pub->slots[slot].status);
	__builtin_prefetch(&app->mem.app->slots[slot].optgen);
}

/* ---- connections nobody has accepted ---- */

struct slot_set { uint64_t bits[NEAT_SLOT_APP_FIRST / 64]; };

static bool in_set(const struct slot_set *q, uint32_t slot) { return q->bits[slot / 64] >> slot % 64 & 1; }

static void queued(const struct app *app, struct slot_set *q)
{
	memset(q, 0, sizeof(*q));
	for (uint32_t slot = 1; slot < app->high_born; slot++) {
		const struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
		uint64_t tail = a64_relaxed(&pub->accept_tail);

		if (app->slots[slot].kind != SLOT_LISTENER)
			continue;
		for (uint64_t i = accept_head(app, slot, tail); i != tail; i++) {
			const struct neat_accept_ring *ring = &app->mem.pub->accept[pub->accept_ring];
			uint64_t e = a64_relaxed(&ring->entry[i & (NEAT_ACCEPT_ENTRIES - 1)]);
			uint32_t child = neat_entry_slot(e);

			/* An entry of an earlier life of the slot is none. */
			if (child < NEAT_SLOT_APP_FIRST && app->slots[child].gen == neat_entry_gen(e))
				q->bits[child / 64] |= 1ull << child % 64;
		}
	}
}

/* Listeners of several applications may share the port (SO_REUSEPORT): the next one of this one's. */
static struct listener *listener_for(const struct api *a, const struct app *app, uint32_t slot)
{
	const struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
	uint32_t hash = slot * 2654435761u;

	for (unsigned i = 0; i < FLOW_GROUP; i++, hash += UINT32_MAX / FLOW_GROUP + 1) {
		struct listener *l = flow_listener(a->stack, pub->laddr, pub->lport, hash);

		if (!l || tcp_listener_ref(l)->mem == &app->mem)
			return l;
	}
	return NULL;
}

/* Its taker may be alive, between the two steps of accept(): only with its listener the connection ends. */
static void push_again(struct api *a, struct app *app, uint32_t slot)
{
	struct listener *l = listener_for(a, app, slot);
	struct sockref *lref = l ? tcp_listener_ref(l) : NULL, ref = slot_ref(app, slot);

	if (!lref) {
		app->slots[slot].closed = 1;
		tcp_abort(a->stack, app->slots[slot].obj, ECONNRESET);
	} else if (accept_room(app, lref->slot, a64_relaxed(&lref->pub->accept_tail))) {
		sock_accept_push(a->stack, l, &ref);
	} else {
		app->full = lref->slot;
	}
}

void api_full(struct api *a, struct app *app)
{
	uint32_t slot = app->full;

	if (app->slots[slot].kind == SLOT_LISTENER &&
	    !accept_room(app, slot, a64_relaxed(&app->mem.pub->slots[slot].accept_tail)))
		return;
	app->full = 0;
	api_repush(a, app);
	api_worked(a, a->batch);
}

void api_repush(struct api *a, struct app *app)
{
	struct slot_set waiting;

	queued(app, &waiting);
	for (uint32_t slot = 1; slot < app->high_born; slot++) {
		const struct slot_user *u = &app->slots[slot];
		bool alive = u->kind == SLOT_TCB && u->obj && !u->closed;

		if ((!alive && u->kind != SLOT_ZOMBIE) || in_set(&waiting, slot) || slot_owner(app, slot))
			continue;
		if (alive)
			push_again(a, app, slot);
		else
			slot_free(app, slot);
	}
}

static void unmute(struct api *a, struct app *app, uint32_t slot, uint32_t end)
{
	for (; slot < end && slot < NEAT_SLOTS; slot++) {
		const struct slot_user *u = &app->slots[slot];

		if (u->kind != SLOT_FREE && !u->closed && a32_relaxed(&app->mem.app->slots[slot].cmd_pend))
			slot_look(a, app, slot);
	}
}

/*
 * Who ended between the flag and the command (killed, or by an exec of another thread) leaves a connection that its other
 * holders do not kick any more: they take the flag for a command under way.
 */
void api_unmute(struct api *a, struct app *app)
{
	unmute(a, app, 1, app->high_born);
	unmute(a, app, NEAT_SLOT_APP_FIRST, a32_relaxed(&app->mem.pub->high_claimed));
}

void api_free_unaccepted(struct app *app)
{
	struct slot_set waiting;

	queued(app, &waiting);
	for (uint32_t slot = 1; slot < app->high_born; slot++)
		if (app->slots[slot].kind == SLOT_ZOMBIE && !in_set(&waiting, slot) && !slot_owner(app, slot))
			slot_free(app, slot);
}

/* ---- slots without a connection ---- */

/* The CONNECT that our predecessor was about to carry out is still in its ring. */
static bool connect_waits(const struct app *app, uint32_t slot, uint32_t gen)
{
	uint64_t want = neat_entry(NEAT_CMD_CONNECT, app->round, gen, slot);

	for (uint32_t i = 0; i < app->nopen; i++) {
		const struct channel *c = &app->channel[app->open[i]];

		if (neat_ring_ready(NEAT_CMD_ENTRIES, &c->mem->cmd_tail, c->cmd_head) &&
		    a64_relaxed(&c->mem->cmd[c->cmd_head & (NEAT_CMD_ENTRIES - 1)]) == want)
			return true;
	}
	return false;
}

static void settle_slot(struct api *a, struct app *app, uint32_t slot)
{
	struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
	uint64_t status = a64_relaxed(&pub->status);
	uint32_t flags = neat_status_flags(status), gen = neat_status_gen(status);

	if (app->slots[slot].kind != SLOT_FREE)
		return;
	app->slots[slot].gen = (uint16_t)gen;
	if (flags & NEAT_SLOT_CONNECTING && connect_waits(app, slot, gen)) {
		a64_release(&pub->status, neat_status(gen, 0, 0));
		return;
	}
	if (flags & NEAT_SLOT_LISTENING) {	/* its R_LISTEN never came: nobody knows of it */
		app->slots[slot].gen++;
		a64_release(&pub->status, neat_status(app->slots[slot].gen, 0, 0));
		return;
	}
	slot_reset(a, app, slot);
}

static void settle_slots(struct api *a, struct app *app)
{
	uint32_t claimed = a32_relaxed(&app->mem.pub->high_claimed);

	app->nfree = 0;		/* stack_adopt() freed some already */
	for (uint32_t i = app->high_born; i-- > 1;) {
		settle_slot(a, app, i);
		if (app->slots[i].kind == SLOT_FREE)
			app->free[app->nfree++] = i;
	}
	for (uint32_t i = NEAT_SLOT_APP_FIRST; i < claimed && i < NEAT_SLOTS; i++)
		settle_slot(a, app, i);
}

/* A command that names no connection killed two of us: it is a connect(), and it fails. */
static void drop_connects(struct api *a, struct app *app)
{
	for (uint32_t i = 0; i < app->nopen; i++) {
		struct channel *c = &app->channel[app->open[i]];
		uint64_t e = a64_relaxed(&c->mem->cmd[c->cmd_head & (NEAT_CMD_ENTRIES - 1)]);
		uint32_t slot = neat_entry_slot(e);

		if (!neat_ring_ready(NEAT_CMD_ENTRIES, &c->mem->cmd_tail, c->cmd_head) ||
		    neat_entry_op(e) != NEAT_CMD_CONNECT)
			continue;
		if (slot >= NEAT_SLOT_APP_FIRST && slot < NEAT_SLOTS && app->slots[slot].kind == SLOT_FREE) {
			struct sockref ref;

			slot_take(app, slot, SLOT_ZOMBIE, NULL, neat_entry_gen(e));
			ref = slot_ref(app, slot);
			sock_status(a->stack, &ref, NEAT_SLOT_HUP | NEAT_SLOT_DEAD, 0, ECONNABORTED);
		}
		c->cmd_head++;
		a64_release(&c->mem->cmd_head, c->cmd_head);
	}
}

static void drop_datagram(struct api *a, uint64_t whose)
{
	struct app *app = whose ? api_app_find(a, (uint32_t)(whose >> 32)) : NULL;
	uint32_t slot = (uint32_t)whose;

	if (app && slot < NEAT_SLOTS && app->slots[slot].kind == SLOT_UDP)
		udp_skip(a->stack, app->slots[slot].obj);
}

/* The words may have moved while nobody looked. */
static void look_at_all(struct api *a, struct app *app)
{
	enum { AHEAD = 8 };

	for (uint32_t slot = 1; slot < NEAT_SLOTS; slot++) {
		uint32_t soon = slot + AHEAD;

		if (soon < NEAT_SLOTS && app->slots[soon].kind == SLOT_TCB) {
			tcp_expect(app->slots[soon].obj);
			__builtin_prefetch(&app->mem.app->slots[soon].tx_tail, 1);
			__builtin_prefetch(&app->mem.app->slots[soon].cmd_pend, 1);
		}
		if (app->slots[slot].kind == SLOT_TCB && !app->slots[slot].closed)
			slot_look(a, app, slot);
	}
}

void api_adopt(struct api *a, uint32_t death, struct stack_adopted *out)
{
	stack_adopt(a->stack, death, out);
	a->adopting = false;
	for (uint32_t i = 0; i < a->napps; i++)
		settle_slots(a, a->apps[i]);
	for (uint32_t i = 0; i < a->napps && out->drop_command; i++)
		drop_connects(a, a->apps[i]);
	drop_datagram(a, out->drop_datagram);
	for (uint32_t i = 0; i < a->napps; i++) {
		struct app *app = a->apps[i];

		api_repush(a, app);
		look_at_all(a, app);
	}
	stack_units_done(a->stack);
}
