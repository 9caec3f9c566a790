/*
 * shim_signal.c - the calls by which a program installs handlers; client/signal.c says why we are told. Those that
 * libc makes of sigaction() are made of ours, with the flags that glibc gives them.
 */
#define _GNU_SOURCE
#include "shim.h"
#include <dlfcn.h>

/* No public header declares them, or only under the name of signal(). */
int __sigaction(int sig, const struct sigaction *act, struct sigaction *old);
sighandler_t bsd_signal(int sig, sighandler_t handler);
sighandler_t sysv_signal(int sig, sighandler_t handler);

static uint64_t interrupting;	/* siginterrupt(3): bit SIG - 1 */

SHIM int sigaction(int sig, const struct sigaction *restrict act, struct sigaction *restrict old)
{
	int err = nt_sigaction(sig, act, old);

	if (!err)
		return 0;
	errno = -err;
	return -1;
}

SHIM int __sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	return sigaction(sig, act, old);
}

static sighandler_t install(int sig, const struct sigaction *act)
{
	struct sigaction was;

	if (act->sa_handler == SIG_ERR) {
		errno = EINVAL;
		return SIG_ERR;
	}
	return sigaction(sig, act, &was) ? SIG_ERR : was.sa_handler;
}

static uint64_t bit(int sig) { return sig > 0 && sig < _NSIG ? 1ull << (sig - 1) : 0; }

/* signal(2): BSD semantics in glibc, unless siginterrupt(3) said otherwise before. */
SHIM sighandler_t signal(int sig, sighandler_t handler)
{
	bool interrupts = __atomic_load_n(&interrupting, __ATOMIC_RELAXED) & bit(sig);
	struct sigaction act = { .sa_handler = handler, .sa_flags = interrupts ? 0 : SA_RESTART };

	sigemptyset(&act.sa_mask);
	if (sigaddset(&act.sa_mask, sig))
		return SIG_ERR;
	return install(sig, &act);
}

SHIM sighandler_t bsd_signal(int sig, sighandler_t handler) { return signal(sig, handler); }

SHIM sighandler_t ssignal(int sig, sighandler_t handler) { return signal(sig, handler); }

/* signal(2): System V's, which the kernel's own call has, too. */
SHIM sighandler_t sysv_signal(int sig, sighandler_t handler)
{
	struct sigaction act = { .sa_handler = handler, .sa_flags = (int)SA_RESETHAND | SA_NODEFER };

	sigemptyset(&act.sa_mask);
	return install(sig, &act);
}

SHIM sighandler_t __sysv_signal(int sig, sighandler_t handler) { return sysv_signal(sig, handler); }

SHIM int siginterrupt(int sig, int flag)
{
	static int (*real)(int, int);
	struct sigaction now;
	void *p;

	if (!real) {
		p = dlsym(RTLD_NEXT, "siginterrupt");
		memcpy(&real, &p, sizeof(p));
	}
	if (real(sig, flag))	/* for libc's own functions */
		return -1;
	if (flag)
		__atomic_fetch_or(&interrupting, bit(sig), __ATOMIC_RELAXED);
	else
		__atomic_fetch_and(&interrupting, ~bit(sig), __ATOMIC_RELAXED);
	/* Again by ours, which has to know. */
	return sigaction(sig, NULL, &now) || sigaction(sig, &now, NULL) ? -1 : 0;
}

/* sigset(3): also whether the signal was blocked. */
SHIM sighandler_t sigset(int sig, sighandler_t handler)
{
	struct sigaction act = { .sa_handler = handler }, now;
	sighandler_t was;
	sigset_t set, before;

	sigemptyset(&set);
	sigemptyset(&act.sa_mask);
	if (sigaddset(&set, sig) || handler == SIG_ERR) {
		errno = EINVAL;
		return SIG_ERR;
	}
	if (handler == SIG_HOLD) {
		if (sigprocmask(SIG_BLOCK, &set, &before))
			return SIG_ERR;
		was = sigaction(sig, NULL, &now) ? SIG_ERR : now.sa_handler;
	} else {
		was = install(sig, &act);
		if (was == SIG_ERR || sigprocmask(SIG_UNBLOCK, &set, &before))
			return SIG_ERR;
	}
	return sigismember(&before, sig) == 1 ? SIG_HOLD : was;
}
