/* timer.c - see timer.h. All state is in the wheel; class D, rebuilt by whoever adopts an arena. */
#include "timer.h"

static uint64_t tick_of(uint64_t deadline_us)
{
	return deadline_us / 1000 + (deadline_us % 1000 != 0);
}

void timer_wheel_init(struct timer_wheel *w, uint64_t now_us)
{
	*w = (struct timer_wheel){ .tick = now_us / 1000 };
}

static void place(struct timer_wheel *w, struct timer *t, uint64_t tick)
{
	uint64_t delta = tick - w->tick;
	unsigned level = delta < 1u << 8 ? 0 : delta < 1u << 16 ? 1 : delta < 1u << 24 ? 2 : 3;
	unsigned slot;
	struct timer **head;

	/* Beyond 49 days: as far as the wheel reaches; the cascade sets it again. */
	if (delta > UINT32_MAX)
		tick = w->tick + UINT32_MAX;
	slot = (unsigned)(tick >> (8 * level)) & (TIMER_SLOTS - 1);
	head = &w->slot[level][slot];
	t->next = *head;
	if (t->next)
		t->next->prev = &t->next;
	t->prev = head;
	*head = t;
	t->where = (uint16_t)(level << 8 | slot);
	w->map[level][slot / 64] |= 1ull << slot % 64;
	w->count++;
}

void timer_del(struct timer_wheel *w, struct timer *t)
{
	unsigned level = t->where >> 8, slot = t->where & 0xff;

	if (!t->prev)
		return;
	*t->prev = t->next;
	if (t->next)
		t->next->prev = t->prev;
	t->prev = NULL;
	if (!w->slot[level][slot])
		w->map[level][slot / 64] &= ~(1ull << slot % 64);
	w->count--;
}

void timer_set(struct timer_wheel *w, struct timer *t, uint64_t deadline_us)
{
	uint64_t tick = tick_of(deadline_us);

	timer_del(w, t);
	t->deadline_us = deadline_us;
	place(w, t, tick > w->tick ? tick : w->tick + 1);
}

/* Distance 1..256 from slot `from` to the next one in use, 0 if none is. */
static unsigned next_slot(const uint64_t map[TIMER_SLOTS / 64], unsigned from)
{
	for (unsigned d = 1; d <= TIMER_SLOTS;) {
		unsigned slot = (from + d) & (TIMER_SLOTS - 1);
		uint64_t rest = map[slot / 64] >> slot % 64;

		if (rest) {
			d += (unsigned)__builtin_ctzll(rest);
			return d <= TIMER_SLOTS ? d : 0;
		}
		d += 64 - slot % 64;
	}
	return 0;
}

static uint64_t next_tick(const struct timer_wheel *w)
{
	uint64_t best = UINT64_MAX;

	for (unsigned level = 0; level < TIMER_LEVELS; level++) {
		uint64_t at = w->tick >> (8 * level);
		unsigned d = next_slot(w->map[level], (unsigned)at & (TIMER_SLOTS - 1));
		uint64_t tick = (at + d) << (8 * level);

		if (d && tick < best)
			best = tick;
	}
	return best;
}

uint64_t timer_next(const struct timer_wheel *w)
{
	uint64_t tick = w->count ? next_tick(w) : UINT64_MAX;

	/* What the budget of the last run left over. */
	if (w->slot[0][w->tick & (TIMER_SLOTS - 1)])
		tick = w->tick;
	return tick == UINT64_MAX ? tick : tick * 1000;
}

static void cascade(struct timer_wheel *w, unsigned level)
{
	unsigned slot = (unsigned)(w->tick >> (8 * level)) & (TIMER_SLOTS - 1);
	struct timer *t;

	while ((t = w->slot[level][slot])) {
		uint64_t tick = tick_of(t->deadline_us);

		timer_del(w, t);
		place(w, t, tick > w->tick ? tick : w->tick);
		/* A deadline beyond the reach of the wheel falls back into the slot being emptied. */
		if (w->slot[level][slot] == t)
			break;
	}
}

/* Moves to `tick`; timers of that tick are then in level 0's current slot. */
static void advance(struct timer_wheel *w, uint64_t tick)
{
	w->tick = tick;
	for (unsigned level = TIMER_LEVELS - 1; level > 0; level--)
		if ((tick & ((1ull << (8 * level)) - 1)) == 0)
			cascade(w, level);
}

void timer_run(struct timer_wheel *w, uint64_t now_us, unsigned budget, void *ctx)
{
	uint64_t now = now_us / 1000;

	for (;;) {
		struct timer *t = w->slot[0][w->tick & (TIMER_SLOTS - 1)];
		uint64_t next;

		if (t) {
			/* Left over from the last call, or of the tick just reached. */
			if (budget-- == 0)
				return;
			timer_del(w, t);
			w->handler[t->kind](ctx, t);
			continue;
		}
		next = w->count ? next_tick(w) : UINT64_MAX;
		if (next > now) {
			if (now > w->tick)
				advance(w, now);
			return;
		}
		advance(w, next);
	}
}
