/*
 * stay.c - what calls that block have put where others see it, for each thread, innermost first. A handler that interrupts
 * one may make another, and may leave all of them by siglongjmp(), of which nobody tells us. So each has its place on
 * the stack written down: those deeper than the next call are over.
 *
 * The memory is never unmapped: who wakes may hold a waiter of a call that has just ended.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static __thread struct nt_stay *top __attribute__((tls_model("initial-exec")));
static __thread struct nt_stay *spare __attribute__((tls_model("initial-exec")));	/* for the next one */
static __thread bool registered __attribute__((tls_model("initial-exec")));
static struct nt_stay *pool;	/* under watch_lock */
static pthread_key_t at_exit;
static bool has_key;

struct nt_stay *nt_stay_top(void) { return top; }

bool nt_stay_mine(const void *waiter)
{
	for (const struct nt_stay *s = top; s; s = s->outer)
		if (&s->w == waiter)
			return true;
	return false;
}

/* ---- memory ---- */

static struct nt_stay *take(void)
{
	struct nt_stay *s = spare;

	spare = NULL;
	if (NT_LIKELY(s != NULL))
		return s;
	if (!registered && has_key)
		registered = pthread_setspecific(at_exit, &pool) == 0;
	nt_lock(&nt.watch_lock);
	s = pool;
	if (s)
		pool = s->next;
	nt_unlock(&nt.watch_lock);
	return s ? s : nt_map_private(sizeof(*s));
}

static void to_pool(struct nt_stay *s)
{
	nt_lock(&nt.watch_lock);
	s->next = pool;
	pool = s;
	nt_unlock(&nt.watch_lock);
}

static void give(struct nt_stay *s)
{
	if (spare)
		to_pool(s);
	else
		spare = s;
}

/* ---- calls that were left ---- */

static void unwatch(struct nt_stay *s)
{
	nt_lock(&nt.watch_lock);
	for (uint32_t i = 0; i < s->watches; i++)
		nt_watch_unlink(&s->watch[i]);
	nt_unlock(&nt.watch_lock);
}

static void drop(struct nt_stay *s)
{
	top = s->outer;
	nt_sleep_pause(s);
	unwatch(s);
	nt_epoll_left(s);
	if (s->mapped)
		munmap(s->mapped, s->mapped_size);
	give(s);
}

static bool on_stack(const stack_t *alternate, uintptr_t at)
{
	return !(alternate->ss_flags & SS_DISABLE) && at - (uintptr_t)alternate->ss_sp < alternate->ss_size;
}

/*
 * Calls on the stack that we are on are over unless they are further up by what a signal takes there, at least. Who is
 * not on the alternate one has left it.
 */
static bool is_over(const struct nt_stay *s, const stack_t *alternate)
{
	const uintptr_t SIGNAL_FRAME = 512;	/* registers of the FPU alone (x86-64); ours of different calls differ by less */
	bool there = on_stack(alternate, s->stack), here = on_stack(alternate, nt_in);

	return there == here ? s->stack < nt_in + SIGNAL_FRAME : there;
}

static void drop_left(void)
{
	stack_t alternate;

	if (NT_LIKELY(!top))
		return;
	if (nt_syscall(SYS_sigaltstack, NULL, &alternate))
		alternate.ss_flags = SS_DISABLE;
	while (top && is_over(top, &alternate))
		drop(top);
}

/* ---- calls ---- */

struct nt_stay *nt_stay_begin(void)
{
	struct nt_stay *s;

	drop_left();
	s = take();
	if (!s)
		return NULL;
	memset(s, 0, offsetof(struct nt_stay, few));	/* of those the unused are in no list */
	s->w.efd = -1;
	s->watch = s->few;
	s->stack = nt_in;
	s->outer = top;
	top = s;
	return s;
}

void nt_stay_end(struct nt_stay *s)
{
	while (top && top != s)
		drop(top);
	if (!top)
		return;
	top = s->outer;
	if (s->watches)
		unwatch(s);
	give(s);
}

/* ---- the thread's end, pthread_cancel() included ---- */

static void thread_ends(void *unused)
{
	(void)unused;
	nt_enter();
	registered = false;
	while (top)
		drop(top);
	if (spare)
		to_pool(spare);
	spare = NULL;
	nt_leave();
}

void nt_stays_init(void)
{
	has_key = pthread_key_create(&at_exit, thread_ends) == 0;
}
