/*
 * turns.h - whether a replica should move to the core of the programs that it serves.
 *
 * Two programs take turns on one core while the replica has another: each of their wakes is an interrupt from core to
 * core, and none of them spins, since another wants the core. On their core the replica hands it over without
 * an interrupt, and the scheduler puts the next one that it wakes on the core that the replica left. Pure: main.c acts.
 */
#ifndef NEAT_TURNS_H
#define NEAT_TURNS_H

#include <stdbool.h>
#include <stdint.h>

enum {
	TURNS_ENOUGH = 64,
	TURNS_PAUSE_US = 20000,	/* a move costs some 50 us; the scheduler may undo it at once */
};

struct turns {
	const void *last;	/* whom we woke; only compared */
	uint32_t cpu;		/* where all of them slept */
	uint32_t n;
	uint64_t moved_us;
};

/* We run on `own` and wake `who`, who slept on `cpu`. True: move there now; counts as moved. */
static inline bool turns_wake(struct turns *t, const void *who, uint32_t cpu, uint32_t own, uint64_t now_us)
{
	if (cpu == own || cpu != t->cpu) {
		t->n = 0;
		t->cpu = cpu;
		t->last = who;
		return false;
	}
	if (who == t->last)
		return false;
	t->last = who;
	if (++t->n < TURNS_ENOUGH || now_us - t->moved_us < TURNS_PAUSE_US)
		return false;
	t->n = 0;
	t->moved_us = now_us;
	return true;
}

#endif
