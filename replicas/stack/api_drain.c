/*
 * api_drain.c - scale events as the applications see them: how a replica ends without losing a command
 * (contract L8), how programs hear that another one is there, and that the whole instance ends.
 *
 * A replica that drains keeps listeners and connections. Once nothing is left it shuts the door of
 * each application, fences and looks at all command rings once more; who pushed a connect() and
 * fenced before that is found, who did later sees the door and goes elsewhere.
 */
#include "api_slots.h"

static void set_door(struct app *app, enum neat_door state)
{
	app->door = app->round << 8 | (uint32_t)state;
	a32_release(&app->channels->door, app->door);
}

void api_door_open(struct app *app)
{
	uint32_t door = a32_relaxed(&app->channels->door);

	app->round = neat_door_round(door);
	/* What was pushed before the end of an earlier life was retried elsewhere; it must not count again. */
	if (neat_door_state(door) == NEAT_DOOR_ENDED)
		app->round++;
	set_door(app, NEAT_DOOR_OPEN);
}

static uint32_t listeners(const struct app *app)
{
	uint32_t n = 0;

	for (unsigned i = 0; i < NEAT_LISTENERS_MAX / 64; i++)
		n += (uint32_t)__builtin_popcountll(app->accept_used[i]);
	return n;
}

/* Beside listeners no slot is anybody's, and TCP has nothing left to say: TIME_WAIT counts. */
static bool api_idle(const struct api *a)
{
	for (uint32_t i = 0; i < a->napps; i++)
		if (a->apps[i]->mem.live > listeners(a->apps[i]))
			return false;
	return tcp_idle(a->stack);
}

static void doors(struct api *a, enum neat_door state)
{
	for (uint32_t i = 0; i < a->napps; i++)
		set_door(a->apps[i], state);
}

bool api_shut(struct api *a)
{
	if (!api_idle(a))
		return false;
	doors(a, NEAT_DOOR_CLOSING);
	neat_fence();	/* the doors before the look at the rings; the library pushes, fences, looks at its door */
	if (!api_commands_pending(a))
		return true;
	doors(a, NEAT_DOOR_OPEN);
	return false;
}

void api_reopen(struct api *a) { doors(a, NEAT_DOOR_OPEN); }
void api_end(struct api *a) { doors(a, NEAT_DOOR_ENDED); }

void api_nudge(struct api *a)
{
	for (uint32_t i = 0; i < a->napps; i++)
		channels_overflow(a, a->apps[i]);
}

/* ---- the end of the instance ---- */

static void reset_slots(struct app *app, uint32_t first, uint32_t end)
{
	const uint32_t nobody = NEAT_SLOT_LISTENING | NEAT_SLOT_DATAGRAM | NEAT_SLOT_CLOSED | NEAT_SLOT_DEAD;

	for (uint32_t slot = first; slot < end; slot++) {
		struct neat_slot_pub *pub = &app->mem.pub->slots[slot];
		uint32_t flags = neat_status_flags(a64_relaxed(&pub->status));

		if (flags && !(flags & nobody))
			slot_publish_reset(pub);
	}
}

/* By the published words, not by `slots`: a successor that has not adopted yet knows no connection. */
static void reset_all(struct app *app)
{
	uint32_t claimed = a32_relaxed(&app->mem.pub->high_claimed);

	reset_slots(app, 1, app->high_born);
	reset_slots(app, NEAT_SLOT_APP_FIRST, claimed < NEAT_SLOTS ? claimed : NEAT_SLOTS);
}

void api_over(struct api *a)
{
	for (uint32_t i = 0; i < a->napps; i++)
		api_channels_look(a, a->apps[i]);
	doors(a, NEAT_DOOR_CLOSING);
	neat_fence();	/* the doors before the look at the rings, as in api_shut(): a connect() is obeyed or sees the door */
	for (unsigned left = 2 * NEAT_CMD_ENTRIES; a->started && left && api_commands(a); left--)
		;
	for (uint32_t i = 0; i < a->napps; i++)
		reset_all(a->apps[i]);
	doors(a, NEAT_DOOR_ENDED);	/* release: who sees them ENDED sees each connection's end */
	channels_wake(a);
}
