/*
 * timer.h - a hierarchical timing wheel: 1 ms ticks, four levels of 256.
 *
 * A timer runs at its deadline or up to 1 ms later, never earlier. Setting and deleting are O(1).
 * A user with several deadlines keeps the true ones in its own record, sets the timer to the
 * earliest, and on expiry looks what is due and sets it again; so a deadline that moves later costs
 * nothing.
 */
#ifndef NEAT_TIMER_H
#define NEAT_TIMER_H

#include "ring.h"

enum { TIMER_LEVELS = 4, TIMER_SLOTS = 256, TIMER_KINDS = 8 };

struct timer {
	struct timer *next;
	struct timer **prev;	/* what points at us; NULL = not set */
	uint64_t deadline_us;
	uint16_t where;		/* level and slot, valid while set */
	uint8_t kind;		/* index into the wheel's handlers; set by the owner, once */
	uint8_t pad[5];
};

typedef void timer_handler(void *ctx, struct timer *t);

struct timer_wheel {
	uint64_t tick;		/* milliseconds processed so far */
	uint32_t count;
	uint32_t pad;
	uint64_t map[TIMER_LEVELS][TIMER_SLOTS / 64];
	struct timer *slot[TIMER_LEVELS][TIMER_SLOTS];
	timer_handler *handler[TIMER_KINDS];
};

void timer_wheel_init(struct timer_wheel *w, uint64_t now_us);
void timer_set(struct timer_wheel *w, struct timer *t, uint64_t deadline_us);
void timer_del(struct timer_wheel *w, struct timer *t);
static inline bool timer_pending(const struct timer *t) { return t->prev != NULL; }
/* No timer is due before this; UINT64_MAX when none is set. May be early, by a cascade at most. */
uint64_t timer_next(const struct timer_wheel *w);
/* Runs at most `budget` handlers; what is left is still due. A handler may set and delete any timer. */
void timer_run(struct timer_wheel *w, uint64_t now_us, unsigned budget, void *ctx);

#endif
