/*
 * api_drain.c - scale events as the applications see them: how a replica ends without losing a command
 * (contract L8), and how programs hear that another one is there.
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
