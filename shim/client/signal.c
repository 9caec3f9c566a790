/*
 * signal.c - handlers of the program run outside of our sections.
 *
 * On Linux a system call is whole for a handler: it runs before the call, after it, or when it sleeps. Here
 * the kernel gets `arrives` in place of each handler. A signal that finds its thread inside (nt_in) is held: all signals
 * are blocked, it is sent to the thread again, with its siginfo, and when the call leaves or goes to sleep the mask is put
 * back. So the handler runs as the kernel runs any, with its own mask and stack.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

__thread uintptr_t nt_in;
__thread int nt_held;
static __thread uint64_t held_mask __attribute__((tls_model("initial-exec")));	/* the program's, while nt_held */

static uint64_t bit(int sig) { return 1ull << (sig - 1); }

/* ---- SA_RESTART ---- */

/*
 * Bit SIG - 1: the handler that was last installed has SA_RESTART. It stays when the default comes back, for a handler may
 * do that itself.
 */
static neat_a64 restarting;

static void note_handler(int sig, bool restart)
{
	if (restart)
		a64_or(&restarting, bit(sig));
	else
		a64_and(&restarting, ~bit(sig));
}

bool nt_restarts(void) { return a64_relaxed(&restarting); }

bool nt_has_restart(int sig) { return a64_relaxed(&restarting) & bit(sig); }

/* ---- a signal arrives ---- */

/* Of each signal, what the program installed. Flags: those that the kernel has not got from us, or got and they are ours. */
static struct { neat_a64 handler; neat_a32 flags; } installed[_NSIG];
enum { OUR_FLAGS = SA_SIGINFO | (int)SA_RESETHAND };

static void arrives(int sig, siginfo_t *info, void *context);

static bool is_ours(const struct sigaction *a) { return a->sa_sigaction == arrives; }

static bool is_handler(const struct sigaction *a)
{
	return a->sa_handler != SIG_DFL && a->sa_handler != SIG_IGN && a->sa_handler != SIG_ERR && !is_ours(a);
}

/* The kernel's answer, as if the program's handler were there. */
static void disguise(struct sigaction *was, uint64_t handler, uint32_t flags)
{
	if (!is_ours(was))
		return;
	memcpy(&was->sa_handler, &handler, sizeof(was->sa_handler));
	was->sa_flags = (was->sa_flags & ~OUR_FLAGS) | (int)flags;
}

static uint64_t faults(void)
{
	return bit(SIGSEGV) | bit(SIGBUS) | bit(SIGFPE) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGSYS);
}

/* Of this very instruction (sigaction(2), si_code): it cannot go on. */
static bool is_fault(int sig, const siginfo_t *info) { return faults() & bit(sig) && info->si_code > 0; }

static void set_mask(const uint64_t *mask) { nt_syscall(SYS_rt_sigprocmask, SIG_SETMASK, mask, NULL, sizeof(*mask)); }

/* SA_RESETHAND is not left to the kernel, which would do it when the signal is held. */
static void reset(int sig)
{
	struct sigaction now;

	if (!(a32_relaxed(&installed[sig].flags) & (uint32_t)SA_RESETHAND) || nt_real.sigaction(sig, NULL, &now))
		return;
	disguise(&now, (uintptr_t)SIG_DFL, a32_relaxed(&installed[sig].flags));
	nt_real.sigaction(sig, &now, NULL);
}

static void call_handler(int sig, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)a64_relaxed(&installed[sig].handler);
	void (*handler)(int, siginfo_t *, void *);

	memcpy(&handler, &at, sizeof(handler));
	if (handler)
		handler(sig, info, context);
}

/* The handler may not come back (siglongjmp()), so there is nothing to be put back then. */
static void run(int sig, siginfo_t *info, void *context)
{
	uintptr_t in = nt_in;
	struct nt_stay *s = in ? NULL : nt_stay_top();
	enum nt_armed how = NT_NOT_ARMED;
	int err = errno;

	if (s && s->armed) {
		nt_enter();
		how = nt_sleep_pause(s);
		nt_leave();
	}
	nt_in = 0;
	reset(sig);
	errno = err;
	call_handler(sig, info, context);
	err = errno;
	if (how) {
		nt_enter();
		if (!s->ran || nt_has_restart(s->ran))
			s->ran = sig;
		nt_sleep_resume(s, how);
		nt_leave();
	}
	errno = err;
	nt_in = in;
}

/*
 * Several may have come at once: the kernel puts their frames on one another, and each comes here, the last one first.
 * The program's mask is in the first one's.
 */
static void hold(int sig, siginfo_t *info, ucontext_t *context)
{
	sigset_t full;
	uint64_t all, was;

	sigfillset(&full);	/* but libc's own */
	memcpy(&all, &full, sizeof(all));
	/* The kernel's mask is shorter than libc's type, and something else is behind it. */
	memcpy(&was, &context->uc_sigmask, sizeof(was));
	all = (all & ~faults()) | was | bit(sig);
	memcpy(&context->uc_sigmask, &all, sizeof(all));
	set_mask(&all);
	held_mask = was;	/* not before: until then another one may come on top of us, whose frame has our mask */
	if (nt_syscall(SYS_rt_tgsigqueueinfo, getpid(), nt_syscall(SYS_gettid), sig, info))
		run(sig, info, context);	/* RLIMIT_SIGPENDING, real-time signals only: rather too early than never */
	if (!nt_held || nt_has_restart(nt_held))
		nt_held = sig;
}

static void arrives(int sig, siginfo_t *info, void *context)
{
	int err = errno;

	if (!nt_in || is_fault(sig, info)) {
		run(sig, info, context);
	} else {
		hold(sig, info, context);
		errno = err;
	}
}

void nt_deliver(void)
{
	nt_held = 0;
	set_mask(&held_mask);
}

/* Signals that are pending are not the child's (fork(2)). */
void nt_forget_held(void)
{
	if (nt_held)
		nt_deliver();
}

int nt_handlers_in(void)
{
	int sig;

	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	nt_in = 0;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	sig = nt_held;
	if (NT_UNLIKELY(sig))
		nt_deliver();
	return sig;
}

bool nt_handlers_in_masked(const sigset_t *mask)
{
	int sig = nt_handlers_in();

	return sig && !(mask && sigismember(mask, sig) == 1);
}

int nt_handler_ran(void)
{
	struct nt_stay *s = nt_stay_top();
	int sig = s ? s->ran : 0;

	if (sig)
		s->ran = 0;
	return sig;
}

/* ---- sigaction(2) ---- */

int nt_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	struct sigaction mine, was;
	uint64_t handler;
	uint32_t flags;

	if (sig < 1 || sig >= _NSIG || sig == SIGKILL || sig == SIGSTOP)
		return nt_real.sigaction(sig, act, old) ? -errno : 0;
	handler = a64_relaxed(&installed[sig].handler);
	flags = a32_relaxed(&installed[sig].flags);
	if (act) {
		mine = *act;
		/* First: as soon as the kernel has ours it may run. */
		if (is_handler(act)) {
			note_handler(sig, act->sa_flags & SA_RESTART);
			a32_store(&installed[sig].flags, (uint32_t)(act->sa_flags & OUR_FLAGS));
			a64_release(&installed[sig].handler, (uint64_t)(uintptr_t)act->sa_sigaction);
			mine.sa_flags = (act->sa_flags | SA_SIGINFO) & ~(int)SA_RESETHAND;
			mine.sa_sigaction = arrives;
		}
	}
	if (nt_real.sigaction(sig, act ? &mine : NULL, &was)) {
		int err = -errno;

		a32_store(&installed[sig].flags, flags);
		a64_release(&installed[sig].handler, handler);
		return err;
	}
	disguise(&was, handler, flags);
	if (old)
		*old = was;
	return 0;
}

void nt_adopt_handlers(void)
{
	struct sigaction now;

	for (int sig = 1; sig < _NSIG; sig++)
		if (nt_real.sigaction(sig, NULL, &now) == 0 && is_handler(&now))
			nt_sigaction(sig, &now, NULL);
}
