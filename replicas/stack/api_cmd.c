/*
 * api_cmd.c - commands of applications: read once, validated, handed to TCP.
 *
 * A command is a hint to look at a slot's words; the words are the truth. An application that
 * breaks the rules loses that connection and nothing else (L4). The ring's head moves only after
 * the effects of a command are committed, and every handler may run twice (W15).
 */
#include "api_slots.h"
#include "bytering.h"
#include <errno.h>

/* Linux's answers for a connect() that the stack refuses at once. */
static void connect_failed(struct stack *s, struct app *app, uint32_t slot, int err)
{
	struct sockref ref = slot_ref(app, slot);

	app->slots[slot].kind = SLOT_ZOMBIE;
	sock_status(s, &ref, NEAT_SLOT_HUP | NEAT_SLOT_DEAD, NEAT_SLOT_CONNECTING, (uint32_t)-err);
	sock_notify(s, &ref, SOCK_STATE);
}

/*
 * The claimant saw the slot free, in this generation. An older one: it was closed meanwhile (overtaken()), or the
 * entry was obeyed long ago, and is seen again because an index of the ring was overwritten.
 */
bool claimed_in(const struct neat_slot_pub *pub, uint32_t gen)
{
	uint64_t status = a64_relaxed(&pub->status);

	return !neat_status_flags(status) && (int16_t)(gen - neat_status_gen(status)) >= 0;
}

static void cmd_connect(struct api *a, struct app *app, uint32_t slot, uint32_t gen)
{
	struct neat_slot_app *w = &app->mem.app->slots[slot];
	struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
	struct tcp_connect req = {
		.key = { .laddr = w->laddr, .raddr = w->raddr, .lport = w->lport, .rport = w->rport },
	};
	struct tcb *t;
	int err;

	if (slot < NEAT_SLOT_APP_FIRST || app->slots[slot].kind != SLOT_FREE || app->gone || !claimed_in(pub, gen))
		return;
	pub_words_reset(pub);
	slot_take(app, slot, SLOT_TCB, NULL, gen);
	/* A kick that came by another channel found no connection; the exchange as in slot_look(). */
	a32_xchg(&w->cmd_pend, 0);
	/* Acquire: options that change after this look raise the number again. */
	app->slots[slot].optgen = a32_acquire(&w->optgen);
	req.optgen = (uint16_t)app->slots[slot].optgen;
	req.opts = w->opts;
	pub->raddr = req.key.raddr;
	pub->rport = req.key.rport;
	pub->laddr = req.key.laddr;
	pub->lport = req.key.lport;
	req.ref = slot_ref(app, slot);
	a64_release(&pub->status, neat_status(gen, 0, NEAT_SLOT_CONNECTING));
	err = tcp_connect(a->stack, &req, &t);
	if (err)
		connect_failed(a->stack, app, slot, err);
	else
		app->slots[slot].obj = t;
}

void slot_look(struct api *a, struct app *app, uint32_t slot)
{
	struct slot_user *u = &app->slots[slot];
	struct neat_slot_app *w = &app->mem.app->slots[slot];
	struct tcp_user user;
	struct tcp_bounds b;
	uint32_t optgen;

	/* A locked exchange, since the words must not be read before the flag is seen clear: a
	 * change after our look finds 0 and kicks again. */
	a32_xchg(&w->cmd_pend, 0);
	if (u->kind != SLOT_TCB || !u->obj || u->closed) {
		if (u->kind == SLOT_UDP && !u->closed)
			udp_kick(a->stack, u->obj);
		return;
	}
	optgen = a32_acquire(&w->optgen);
	user.opts_changed = optgen != u->optgen;
	/* Acquire: what these flags push is in the tx_tail that is read next. */
	user.opt_flags = __atomic_load_n(&w->opts.w[NEAT_OPT_FLAGS], __ATOMIC_ACQUIRE);
	user.tx_tail = a64_acquire(&w->tx_tail);
	user.rx_tail = a64_relaxed(&w->rx_tail);
	user.shut = a32_relaxed(&w->shut) & 3;
	b = tcp_bounds(u->obj);
	if (user.tx_tail - b.tx_una > neat_ring_max(NEAT_TX) || user.tx_tail < b.tx_tail ||
	    user.rx_tail > b.rx_head || user.rx_tail < b.rx_tail) {
		tcp_abort(a->stack, u->obj, ECONNRESET);
		return;
	}
	user.optgen = (uint16_t)optgen;
	u->optgen = optgen;
	tcp_kick(a->stack, u->obj, &user);
}

/*
 * CLOSE of a connection whose CONNECT is still in the ring of another process: nobody would close it afterwards.
 * The next generation keeps it from being obeyed (cmd_connect()).
 */
static void overtaken(struct app *app, uint32_t slot, uint32_t gen)
{
	struct neat_slot_pub *pub = &app->mem.pub->slots[slot];

	if (slot < NEAT_SLOT_APP_FIRST || a64_relaxed(&pub->status) != neat_status(gen, 0, 0))
		return;
	app->slots[slot].gen = (uint16_t)(gen + 1);
	a64_release(&pub->status, neat_status(gen + 1, 0, 0));
}

static void command(struct api *a, struct app *app, uint64_t e)
{
	uint32_t slot = neat_entry_slot(e), gen = neat_entry_gen(e);
	struct slot_user *u;

	if (slot == 0 || slot >= NEAT_SLOTS)
		return;
	if (neat_entry_op(e) == NEAT_CMD_CONNECT) {
		if (neat_entry_arg(e) == (app->round & 0xff))
			cmd_connect(a, app, slot, gen);
		return;
	}
	if (neat_entry_op(e) == NEAT_CMD_UDP) {
		cmd_udp(a, app, slot, gen);
		return;
	}
	u = &app->slots[slot];
	if (u->kind == SLOT_FREE && neat_entry_op(e) == NEAT_CMD_CLOSE)
		overtaken(app, slot, gen);
	if (u->kind == SLOT_FREE || u->closed)
		return;
	if (u->gen != gen) {
		/* Of an earlier use of the slot: its flag keeps the kicks of this one away until somebody looks. */
		if (neat_entry_op(e) == NEAT_CMD_KICK && a32_relaxed(&app->mem.app->slots[slot].cmd_pend))
			slot_look(a, app, slot);
		return;
	}
	switch (neat_entry_op(e)) {
	case NEAT_CMD_KICK:
		slot_look(a, app, slot);
		break;
	case NEAT_CMD_CLOSE:
		/* What was written before close() must go out before the FIN. */
		slot_look(a, app, slot);
		if (u->kind != SLOT_FREE && !u->closed)
			slot_close(a, app, slot);
		break;
	case NEAT_CMD_ABORT:
		if (u->kind == SLOT_TCB)
			tcp_abort(a->stack, u->obj, ECONNRESET);
		break;
	}
}

void api_worked(struct api *a, uint32_t commands)
{
	a->unbeaten += commands;
	if (a->unbeaten < a->batch)
		return;
	a->unbeaten = 0;
	if (a->ops.beat)
		a->ops.beat(a->ops.world);
}

unsigned channel_commands(struct api *a, struct channel *c)
{
	struct neat_channel *m = c->mem;
	uint32_t n = neat_ring_ready(NEAT_CMD_ENTRIES, &m->cmd_tail, c->cmd_head), done = 0;

	if (n > a->batch)
		n = a->batch;
	/* A walk through all ports takes as long as a batch of anything else, and ends it. */
	for (a->stack->walked = false; done < n && !a->stack->walked; done++) {
		command(a, c->app, a64_relaxed(&m->cmd[c->cmd_head & (NEAT_CMD_ENTRIES - 1)]));
		c->cmd_head++;
		a64_release(&m->cmd_head, c->cmd_head);
	}
	api_worked(a, a->stack->walked ? a->batch : done);
	return done;
}
