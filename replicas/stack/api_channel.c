/*
 * api_channel.c - channels of processes: which are open, events into them, who is woken (L1, L6).
 *
 * A process opens its channel by itself (neat_channels.open). Newcomers are taken up between units
 * of work, when the change counter moved, or in the middle of one when an event is for them.
 */
#include "api_slots.h"

enum {
	REPAIR_US = 100000,
	WORDS = NEAT_CMD_ENTRIES,	/* commands of the dead in one turn of the loop, of all channels of a program */
};

static const uint64_t SHARED_BIT = 1ull << NEAT_CHANNELS_EXACT;

static uint32_t number_of(const struct channel *c) { return (uint32_t)(c - c->app->channel); }

/* ---- open and closed ---- */

/* The generation, not 0, in which a channel is or was open last. */
static uint32_t last_opened(uint32_t gen) { return (gen - 1) | 1; }

static void channel_begin(struct app *app, uint32_t n, uint32_t gen)
{
	struct channel *c = &app->channel[n];

	/* A successor goes on where its predecessor stopped: head moves only after the effect (W15). */
	if (!c->mem) {
		uint64_t tail;

		c->app = app;
		c->mem = &app->channels->ch[n];
		c->cmd_head = a64_relaxed(&c->mem->cmd_head);
		tail = a64_acquire(&c->mem->cmd_tail);
		if (tail - c->cmd_head > NEAT_CMD_ENTRIES)
			c->cmd_head = tail;	/* overwritten, one of them */
	}
	c->gen = gen;
	c->eventfd = -1;
	a32_release(&c->mem->eventfd_known, 0);	/* until R_CHANNEL */
	app->open[app->nopen++] = (uint8_t)n;
}

static void untouch(struct api *a, struct channel *c)
{
	struct channel **at = &a->touched;

	if (!c->touched)
		return;
	while (*at != c)
		at = &(*at)->next_touched;
	*at = c->next_touched;
	c->touched = false;
}

static void channel_end(struct api *a, struct channel *c)
{
	struct app *app = c->app;

	untouch(a, c);
	for (uint32_t i = 0; i < app->nopen; i++)
		if (app->open[i] == number_of(c))
			app->open[i] = app->open[--app->nopen];
}

/*
 * What a process asked for before it died is done; it may have filled its ring once. False: `budget` does not reach.
 * Whoever comes to the channel before all is said starts behind these words, and has as many.
 */
static bool last_words(struct api *a, struct channel *c, uint32_t gen, uint32_t *budget)
{
	if (c->turning != gen)
		c->said = 0;
	c->turning = gen;
	while (c->said < NEAT_CMD_ENTRIES && !c->app->gone) {
		uint32_t n, cost;

		if (!*budget)
			return false;
		n = channel_commands(a, c);
		if (!n)
			break;
		c->said += n;
		cost = a->stack->walked ? a->batch : n;
		*budget -= cost < *budget ? cost : *budget;
	}
	c->said = 0;
	return true;
}

/* An open channel got another process, or an end. False: not yet, see last_words(). */
static bool channel_turn(struct api *a, struct channel *c, uint32_t gen, uint32_t *budget)
{
	if (!a->started && !neat_channel_open(gen))
		return true;	/* its last words are for a replica that works: api_start() looks again */
	if (a->started && !last_words(a, c, gen, budget))
		return false;
	a->ops.forget(a->ops.world, c);
	c->gen = gen;
	c->eventfd = -1;
	if (!neat_channel_open(gen))
		channel_end(a, c);
	/* It may have taken a connection out of a queue and not made it its own; that may be dead by now. Or it was about
	 * to kick. */
	c->app->repush |= a->started;
	return true;
}

/* Once for all channels: a walk through all accept queues and connections, as long as the program makes them. */
static void repush_owed(struct api *a, struct app *app)
{
	if (!app->repush || app->owed)
		return;
	app->repush = false;
	if (app->gone)
		return;
	api_repush(a, app);
	api_unmute(a, app);
	api_worked(a, a->batch);
}

static void look(struct api *a, struct app *app, uint32_t budget)
{
	app->owed = false;
	/* Acquire: open[] is at least as new as the counter. */
	app->change = a64_acquire(&app->channels->change);
	for (uint32_t n = 0; n < NEAT_PROCS_MAX; n++) {
		struct channel *c = &app->channel[n];
		/* Acquire: the process put the words of its channel in order before it opened it. */
		uint32_t gen = app->gone ? 0 : a32_acquire(&app->channels->open[n]);

		if (gen == c->gen)
			continue;
		if (!neat_channel_open(c->gen) && gen)
			channel_begin(app, n, last_opened(gen));
		/* Also of one that came, asked and died since we looked. */
		if (c->gen != gen)
			app->owed |= !channel_turn(a, c, gen, &budget);
	}
	repush_owed(a, app);
}

void api_channels_look(struct api *a, struct app *app) { look(a, app, UINT32_MAX); }

struct channel *api_channel_find(struct app *app, uint32_t number)
{
	if (number >= NEAT_PROCS_MAX || !neat_channel_open(app->channel[number].gen))
		return NULL;
	return &app->channel[number];
}

/* ---- events ---- */

static void channel_touch(struct api *a, struct channel *c)
{
	if (c->touched)
		return;
	c->touched = true;
	c->next_touched = a->touched;
	a->touched = c;
}

static void channel_overflow(struct api *a, struct channel *c)
{
	/* Release: who sees the count sees the words that changed before it. */
	a32_release(&c->mem->overflow, a32_relaxed(&c->mem->overflow) + 1);
	channel_touch(a, c);
}

void channels_overflow(struct api *a, struct app *app)
{
	for (uint32_t k = 0; k < app->nopen; k++)
		channel_overflow(a, &app->channel[app->open[k]]);
}

/*
 * A predecessor may not have heard the last words of a process that died: its channel counts as open
 * until api_start() looks again.
 */
void channels_inherit(struct api *a, struct app *app)
{
	for (uint32_t n = 0; n < NEAT_PROCS_MAX; n++) {
		uint32_t gen = a32_acquire(&app->channels->open[n]);

		if (gen)
			channel_begin(app, n, last_opened(gen));
	}
	api_channels_look(a, app);
}

/* Published before; the library sets its word, fences and looks at ev_tail (L6). */
static void channel_wake(struct api *a, struct channel *c)
{
	uint32_t how = neat_asleep_take(&c->mem->asleep);

	if (how != NEAT_AWAKE)
		a->ops.wake(a->ops.world, c, how);
}

/*
 * W9: a wake that our predecessor owed is lost, whatever the asleep words say, and levels changed without
 * an event: each process looks at all of them. Behind the last word that adoption publishes: who looked
 * earlier would sleep on an older one.
 */
void channels_wake(struct api *a)
{
	for (uint32_t i = 0; i < a->napps; i++)
		for (uint32_t k = 0; k < a->apps[i]->nopen; k++) {
			struct channel *c = &a->apps[i]->channel[a->apps[i]->open[k]];

			channel_overflow(a, c);
			a32_xchg(&c->mem->asleep, NEAT_AWAKE);
			a->ops.wake(a->ops.world, c, NEAT_ASLEEP_BOTH);
		}
}

static void channel_post(struct api *a, struct channel *c, uint64_t entry)
{
	struct neat_channel *m = c->mem;
	uint64_t head = a64_relaxed(&m->ev_head);

	/* Overwritten, by the process or by us: events are hints, so any place where both agree will do. */
	if (NEAT_UNLIKELY(a64_relaxed(&m->ev_tail) - head > NEAT_EV_ENTRIES)) {
		a64_store(&m->ev_tail, head);
		channel_overflow(a, c);
	}
	if (!neat_ring_push(m->ev, NEAT_EV_ENTRIES, &m->ev_tail, &m->ev_head, entry))
		a32_release(&m->overflow, a32_relaxed(&m->overflow) + 1);
	/* A sleeper on another core starts now; one on our own core could not run anyway before the
	 * batch is done. */
	if (a32_relaxed(&m->asleep) != NEAT_AWAKE && a32_relaxed(&m->cpu) != a->cpu)
		channel_wake(a, c);
	else
		channel_touch(a, c);
}

/*
 * A process that subscribed has opened its channel before, perhaps a moment ago. Only newcomers are
 * taken up here: the end of a channel means commands, and we may be in the middle of a unit of work.
 */
static struct channel *subscriber(struct app *app, uint32_t n)
{
	uint32_t gen;

	if (neat_channel_open(app->channel[n].gen))
		return &app->channel[n];
	gen = app->gone ? 0 : a32_acquire(&app->channels->open[n]);
	if (!neat_channel_open(gen))
		return NULL;
	channel_begin(app, n, gen);
	return &app->channel[n];
}

static void post_to(struct api *a, struct app *app, uint32_t n, uint64_t entry)
{
	struct channel *c = subscriber(app, n);

	if (c)
		channel_post(a, c, entry);
}

void channels_post(struct api *a, struct app *app, uint64_t bits, uint64_t entry)
{
	for (; bits & ~SHARED_BIT; bits &= bits - 1)
		post_to(a, app, (uint32_t)__builtin_ctzll(bits), entry);
	if (!bits)
		return;
	for (uint32_t n = NEAT_CHANNELS_EXACT; n < NEAT_PROCS_MAX; n++)
		post_to(a, app, n, entry);
}

void api_flush(struct api *a)
{
	while (a->touched) {
		struct channel *c = a->touched;

		a->touched = c->next_touched;
		c->touched = false;
		channel_wake(a, c);
	}
}

/* ---- commands ---- */

static bool changed(const struct app *app)
{
	return app->owed || a64_relaxed(&app->channels->change) != app->change ||
	       a32_relaxed(&app->channels->door) != app->door;
}

/* Our words in shared memory say what we know better: somebody wrote over them, and a command may have been
 * lost by it. The slots' own words say what is to be done; not all the time, the program may do this to us. */
static void repair(struct api *a, struct app *app)
{
	a32_release(&app->channels->door, app->door);
	for (uint32_t k = 0; k < app->nopen; k++) {
		struct channel *c = &app->channel[app->open[k]];

		a64_release(&c->mem->cmd_head, c->cmd_head);
	}
	if (a->stack->now_us < app->trusted_us)
		return;
	app->suspect = false;
	app->trusted_us = a->stack->now_us + REPAIR_US;
	for (uint32_t slot = 1; slot < NEAT_SLOTS; slot++)
		if (app->slots[slot].kind == SLOT_TCB && !app->slots[slot].closed)
			slot_look(a, app, slot);
}

static bool overwritten(const struct channel *c)
{
	return a64_relaxed(&c->mem->cmd_head) != c->cmd_head;
}

unsigned api_commands(struct api *a)
{
	unsigned done = 0;

	for (uint32_t i = 0; i < a->napps; i++) {
		struct app *app = a->apps[i];

		if (changed(app)) {
			app->suspect |= a32_relaxed(&app->channels->door) != app->door;
			look(a, app, WORDS);
		}
		for (uint32_t k = 0; k < app->nopen; k++) {
			app->suspect |= overwritten(&app->channel[app->open[k]]);
			done += channel_commands(a, &app->channel[app->open[k]]);
		}
		if (NEAT_UNLIKELY(app->suspect))
			repair(a, app);
		if (NEAT_UNLIKELY(app->full))
			api_full(a, app);
	}
	return done;
}

static bool app_pending(const struct app *app)
{
	for (uint32_t k = 0; k < app->nopen; k++) {
		const struct channel *c = &app->channel[app->open[k]];

		if (neat_ring_ready(NEAT_CMD_ENTRIES, &c->mem->cmd_tail, c->cmd_head) || overwritten(c))
			return true;
	}
	return changed(app) || app->suspect;
}

bool api_commands_pending(const struct api *a)
{
	for (uint32_t i = 0; i < a->napps; i++)
		if (app_pending(a->apps[i]))
			return true;
	return false;
}
