/* stores.c - see stores.h. This file is not instrumented. */
#include "stores.h"
#include <stdlib.h>
#include <string.h>

struct stores stores;

#define PC ((uintptr_t)__builtin_return_address(0))
#define EXPORT __attribute__((visibility("default"), noinline))

static void report(enum point_kind kind, uintptr_t addr, size_t size, uintptr_t pc)
{
	const struct point p = { .kind = kind, .addr = addr, .size = size, .pc = pc };

	stores.on = false;	/* what the hook calls is not the replica */
	stores.hook(stores.ctx, &p);
	stores.on = true;
}

static void stores_settle(void)
{
	struct point t = stores.torn;

	if (!stores.have_torn)
		return;
	stores.have_torn = memcmp(stores.before, (const void *)t.addr, t.size) != 0;
	if (!stores.have_torn)
		return;		/* the same bytes again: no half of it differs */
	report(POINT_TORN_FIRST, t.addr, t.size, t.pc);
	report(POINT_TORN_LAST, t.addr, t.size, t.pc);
	stores.have_torn = false;
}

void stores_begin(void)
{
	stores.on = true;
	if (stores.begins)
		stores.begins();
}

void stores_end(void)
{
	if (stores.ends)
		stores.ends();
	stores_settle();
	stores.on = false;
}

void stores_action(uintptr_t pc)
{
	if (!stores.on)
		return;
	stores_settle();
	report(POINT_ACTION, 0, 0, pc);
}

void stores_undo(const struct point *p)
{
	size_t half = p->size / 2;

	if (p->kind == POINT_TORN_FIRST)
		memcpy((uint8_t *)p->addr + half, stores.before + half, p->size - half);
	else if (p->kind == POINT_TORN_LAST)
		memcpy((uint8_t *)p->addr, stores.before, half);
	stores.have_torn = false;
}

static void will_store(uintptr_t addr, size_t size, uintptr_t pc)
{
	if (!stores.on || addr - stores.lo >= stores.hi - stores.lo || size == 0)
		return;
	stores_settle();
	report(POINT_STORE, addr, size, pc);
	if (size <= 8)
		return;
	if (size > stores.room) {
		free(stores.before);
		stores.before = malloc(size);
		stores.room = size;
	}
	memcpy(stores.before, (const void *)addr, size);
	stores.torn = (struct point){ .addr = addr, .size = size, .pc = pc };
	stores.have_torn = true;
}

static void will_store_atomically(uintptr_t addr, size_t size, uintptr_t pc)
{
	stores.atomic = true;
	will_store(addr, size, pc);
	stores.atomic = false;
}

/* ---- what gcc calls; names and meaning: gcc/sanitizer.def ---- */

#define IGNORED(name) EXPORT void name(const void *p); EXPORT void name(const void *p) { (void)p; }
#define WRITE(name, size) \
	EXPORT void name(void *p); \
	EXPORT void name(void *p) { will_store((uintptr_t)p, size, PC); }

EXPORT void __tsan_init(void);
EXPORT void __tsan_init(void) {}
EXPORT void __tsan_func_exit(void);
EXPORT void __tsan_func_exit(void) {}
IGNORED(__tsan_func_entry)
IGNORED(__tsan_read1) IGNORED(__tsan_read2) IGNORED(__tsan_read4) IGNORED(__tsan_read8) IGNORED(__tsan_read16)
IGNORED(__tsan_unaligned_read2) IGNORED(__tsan_unaligned_read4) IGNORED(__tsan_unaligned_read8)
IGNORED(__tsan_unaligned_read16)
IGNORED(__tsan_volatile_read1) IGNORED(__tsan_volatile_read2) IGNORED(__tsan_volatile_read4)
IGNORED(__tsan_volatile_read8)
WRITE(__tsan_write1, 1) WRITE(__tsan_write2, 2) WRITE(__tsan_write4, 4) WRITE(__tsan_write8, 8)
WRITE(__tsan_write16, 16)
WRITE(__tsan_unaligned_write2, 2) WRITE(__tsan_unaligned_write4, 4) WRITE(__tsan_unaligned_write8, 8)
WRITE(__tsan_unaligned_write16, 16)
WRITE(__tsan_volatile_write1, 1) WRITE(__tsan_volatile_write2, 2) WRITE(__tsan_volatile_write4, 4)
WRITE(__tsan_volatile_write8, 8)

EXPORT void __tsan_read_range(const void *p, size_t n);
EXPORT void __tsan_read_range(const void *p, size_t n) { (void)p, (void)n; }
EXPORT void __tsan_write_range(void *p, size_t n);
EXPORT void __tsan_write_range(void *p, size_t n) { will_store((uintptr_t)p, n, PC); }
EXPORT void __tsan_atomic_thread_fence(int order);
EXPORT void __tsan_atomic_thread_fence(int order) { (void)order; __atomic_thread_fence(__ATOMIC_SEQ_CST); }
EXPORT void __tsan_atomic_signal_fence(int order);
EXPORT void __tsan_atomic_signal_fence(int order) { (void)order; }

#define FETCH(bits, type, op) \
	EXPORT type __tsan_atomic##bits##_fetch_##op(volatile type *p, type v, int o); \
	EXPORT type __tsan_atomic##bits##_fetch_##op(volatile type *p, type v, int o) \
	{ \
		(void)o; \
		will_store_atomically((uintptr_t)p, sizeof(*p), PC); \
		return __atomic_fetch_##op(p, v, __ATOMIC_SEQ_CST); \
	}
#define CAS(bits, type, how) \
	EXPORT int __tsan_atomic##bits##_compare_exchange_##how(volatile type *p, type *e, type v, int o, int f); \
	EXPORT int __tsan_atomic##bits##_compare_exchange_##how(volatile type *p, type *e, type v, int o, int f) \
	{ \
		(void)o, (void)f; \
		will_store_atomically((uintptr_t)p, sizeof(*p), PC); \
		return __atomic_compare_exchange_n(p, e, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
	}
#define ATOMIC(bits, type) \
	EXPORT type __tsan_atomic##bits##_load(const volatile type *p, int o); \
	EXPORT type __tsan_atomic##bits##_load(const volatile type *p, int o) \
	{ \
		(void)o; \
		return __atomic_load_n(p, __ATOMIC_SEQ_CST); \
	} \
	EXPORT void __tsan_atomic##bits##_store(volatile type *p, type v, int o); \
	EXPORT void __tsan_atomic##bits##_store(volatile type *p, type v, int o) \
	{ \
		(void)o; \
		will_store_atomically((uintptr_t)p, sizeof(*p), PC); \
		__atomic_store_n(p, v, __ATOMIC_SEQ_CST); \
	} \
	EXPORT type __tsan_atomic##bits##_exchange(volatile type *p, type v, int o); \
	EXPORT type __tsan_atomic##bits##_exchange(volatile type *p, type v, int o) \
	{ \
		(void)o; \
		will_store_atomically((uintptr_t)p, sizeof(*p), PC); \
		return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); \
	} \
	FETCH(bits, type, add) FETCH(bits, type, sub) FETCH(bits, type, and) FETCH(bits, type, or) \
	FETCH(bits, type, xor) \
	CAS(bits, type, strong) CAS(bits, type, weak)

ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)

/* The stack's objects are linked with these names for the libc functions (objcopy in build.py). */
EXPORT void *crash_memcpy(void *to, const void *from, size_t n);
EXPORT void *crash_memcpy(void *to, const void *from, size_t n)
{
	will_store((uintptr_t)to, n, PC);
	return memcpy(to, from, n);
}
EXPORT void *crash_memmove(void *to, const void *from, size_t n);
EXPORT void *crash_memmove(void *to, const void *from, size_t n)
{
	will_store((uintptr_t)to, n, PC);
	return memmove(to, from, n);
}
EXPORT void *crash_memset(void *to, int c, size_t n);
EXPORT void *crash_memset(void *to, int c, size_t n)
{
	will_store((uintptr_t)to, n, PC);
	return memset(to, c, n);
}
