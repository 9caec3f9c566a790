/*
 * api_udp.c - UDP sockets of applications: a slot becomes one by NEAT_CMD_UDP, and again after a
 * death from its words alone.
 *
 * Whether the application may send from, or receive on, the port it names is neatd's decision: the
 * registry page says who holds it and where its home is (contract L8, L9).
 */
#include "api_slots.h"
#include <errno.h>

enum { PROTO_UDP = 17, OWNER_SEVERAL = ~0u };

static int open_slot(struct api *a, struct app *app, uint32_t slot, uint32_t laddr, uint16_t lport, bool again)
{
	const struct neat_port_entry *e = a->registry ? neat_port_entry_of(a->registry, laddr, lport, PROTO_UDP) : NULL;
	struct udp_open o = { .ref = slot_ref(app, slot), .laddr = laddr, .lport = lport,
			      .closed = app->slots[slot].closed, .again = again };
	struct udp_sock *u;
	uint32_t owner;
	int err;

	if (!e)
		return -EADDRNOTAVAIL;
	owner = a32_relaxed(&e->owner);
	if (owner != app->app_id && owner != OWNER_SEVERAL)
		return -EACCES;
	err = udp_open(a->stack, &o, &u);
	if (!err)
		app->slots[slot].obj = u;
	return err;
}

void cmd_udp(struct api *a, struct app *app, uint32_t slot, uint32_t gen)
{
	struct neat_slot_app *w = &app->mem.app->slots[slot];
	struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
	uint32_t laddr = w->laddr;
	uint16_t lport = w->lport;
	struct sockref ref;
	int err;

	if (slot < NEAT_SLOT_APP_FIRST || app->slots[slot].kind != SLOT_FREE || app->gone ||
	    !claimed_in(pub, gen))
		return;
	pub_words_reset(pub);
	pub->laddr = laddr;
	pub->lport = lport;
	slot_take(app, slot, SLOT_UDP, NULL, gen);
	err = open_slot(a, app, slot, laddr, lport, false);
	ref = slot_ref(app, slot);
	if (err) {
		app->slots[slot].kind = SLOT_ZOMBIE;
		sock_status(a->stack, &ref, NEAT_SLOT_HUP | NEAT_SLOT_DEAD, 0, (uint32_t)-err);
	} else {
		/* The commit: from here on a successor finds it. */
		a64_release(&pub->status, neat_status(gen, 0, NEAT_SLOT_DATAGRAM));
		/* A kick that came by another channel found no socket; the exchange as in cmd_kick(). */
		a32_xchg(&w->cmd_pend, 0);
		udp_kick(a->stack, app->slots[slot].obj);
	}
	sock_notify(a->stack, &ref, SOCK_STATE);
}

bool slot_udp_again(struct api *a, struct app *app, uint32_t slot)
{
	struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
	uint64_t status = a64_relaxed(&pub->status);

	if (neat_status_flags(status) & NEAT_SLOT_DEAD)
		return false;
	slot_take(app, slot, SLOT_UDP, NULL, neat_status_gen(status));
	app->slots[slot].closed = (neat_status_flags(status) & NEAT_SLOT_CLOSED) != 0;
	if (open_slot(a, app, slot, pub->laddr, pub->lport, true)) {
		app->slots[slot].kind = SLOT_FREE;
		app->slots[slot].closed = 0;
		app->mem.live--;
		return false;
	}
	/* Our predecessor may have put datagrams off: W15, as if it were kicked. Not before R_START: their
	 * receivers may still be missing. */
	udp_later(a->stack, app->slots[slot].obj);
	return true;
}
