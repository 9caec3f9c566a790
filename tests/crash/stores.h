/*
 * stores.h - every store of the stack into memory that outlives it, seen before it happens.
 *
 * The stack's sources are compiled with -fsanitize=thread and linked with stores.c instead of the
 * sanitizer's library, so the compiler itself finds all stores, plain and atomic; no source is
 * changed. A store counts if it falls into [lo, hi), where the machine keeps the arena, segments,
 * channels and the queue pair.
 *
 * Atomics and plain stores up to 8 bytes are one step each: a process dies between instructions, and
 * an aligned word is never half written. Longer ones (a struct, memcpy, memset) are several
 * instructions in an order that is the compiler's; they give three points: not begun, first half
 * only, last half only. Halves are enough: no code looks at a part of such a range before the
 * word that commits it.
 */
#ifndef CRASH_STORES_H
#define CRASH_STORES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum point_kind {
	POINT_STORE,		/* the store [addr, addr + size) was not done */
	POINT_TORN_FIRST,	/* of that range only the first half was written */
	POINT_TORN_LAST,	/* ... only the last half */
	POINT_ACTION,		/* something outside memory: a wake that was not given */
};

struct point {
	enum point_kind kind;
	uintptr_t addr, pc;
	size_t size;
};

struct stores {
	uintptr_t lo, hi;
	bool on;		/* the replica runs */
	bool atomic;		/* the store that the hook is told of is one */
	void (*begins)(void), (*ends)(void);	/* around the replica's work, or NULL */
	void (*hook)(void *ctx, const struct point *p);
	void *ctx;
	/* The last long store, until the next one: what lay there before. */
	struct point torn;
	bool have_torn;
	uint8_t *before;
	size_t room;
};

extern struct stores stores;

/* Around all work of the replica; at the end, points of a long store that are still owed. */
void stores_begin(void);
void stores_end(void);
void stores_action(uintptr_t pc);
/* Makes memory what it was at this point (torn ranges); called once, by whoever kills. */
void stores_undo(const struct point *p);

#endif
