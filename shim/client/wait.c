/*
 * wait.c - THE waiting policy of a program's threads (docs/architecture.md "Waiting").
 *
 * Spin within the budget and only while nobody of ours wants this core; then sleep. Every sleeper
 * waits on the asleep words of all channels and on its own word. The first one awake drains for all
 * and wakes who is concerned; who stops waiting while others sleep arms the words again first.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/single_threaded.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Values of nt_waiter.signaled. */
enum { W_AWAKE = 0, W_SIGNALED = 1, W_SLEEPS = 2 };

void nt_waiter_begin(struct nt_waiter *w)
{
	a32_store(&w->signaled, W_AWAKE);
	neat_fence();
}

/* In poll() all threads sleep on the one eventfd; an epoll set has its own. */
static bool shares_eventfd(const struct nt_waiter *w)
{
	return w->efd >= 0 && (uint32_t)w->efd + 1 == a32_relaxed(&nt.eventfd);
}

/*
 * A thread that the eventfd was rung for looks at it once more on its way out of the kernel's poll, and goes
 * on sleeping if we have emptied it meanwhile: then it is rung again. `rung` is raised before the ring.
 */
int nt_eventfd_drop(int efd)
{
	uint64_t count;

	if (nt_syscall(SYS_read, efd, &count, sizeof(count)) < 0)
		return errno == EAGAIN ? 0 : -errno;
	count = 1;
	if (a32_acquire(&nt.rung) && nt_syscall(SYS_write, efd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return -errno;
	return 0;
}

static void as_outside(void *unused)
{
	(void)unused;
	nt_leave();
}

void nt_cancellation_point(void)
{
	pthread_cleanup_push(as_outside, NULL);
	pthread_testcancel();
	pthread_cleanup_pop(0);
}

void nt_wake(struct nt_waiter *w)
{
	uint64_t one = 1;

	if (a32_xchg(&w->signaled, W_SIGNALED) != W_SLEEPS)
		return;
	if (w->efd >= 0) {
		if (shares_eventfd(w))
			a32_add(&nt.rung, 1);
		if (nt_syscall(SYS_write, w->efd, &one, sizeof(one)) < 0 && errno != EAGAIN)
			nt_say("cannot wake a thread: %s", strerror(errno));
	} else {
		syscall(SYS_futex, &w->signaled.v, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	}
}

/* Somebody of ours could run on this core if we slept. Our own channel counts once. */
static bool core_wanted(void)
{
	uint32_t cpu = nt_note_cpu();

	NT_EACH_REPLICA(i) {
		const struct neat_replica_status *st = nt.rep[i].status;

		/* Its wake word, not its own `awake`: a replica that was just woken is not there yet. */
		if ((a32_relaxed(&nt.rep[i].app->replica_asleep) == NEAT_AWAKE && a32_relaxed(&st->cpu) == cpu) ||
		    __atomic_load_n(&st->runnable[cpu], __ATOMIC_RELAXED) > 1)
			return true;
	}
	return false;
}

/* A signal that is held ends it: the sleep that follows lets it in. */
bool nt_spin(struct nt_waiter *w, int64_t deadline_ns)
{
	int64_t until;

	if (nt_events_pending())
		nt_drain();
	if (a32_acquire(&w->signaled) == W_SIGNALED)
		return true;
	if (nt.ncpu_one || nt.spin_us == 0 || core_wanted())
		return false;
	until = nt_now_ns() + nt.spin_us * 1000ll;
	if (until > deadline_ns)
		until = deadline_ns;
	for (unsigned i = 1;; i++) {
		if (nt_events_pending())
			nt_drain();
		if (a32_acquire(&w->signaled) == W_SIGNALED)
			return true;
		neat_pause();
		if (i % 4 == 0 && (nt_held || core_wanted() || nt_now_ns() >= until))
			return false;
	}
}

/* ---- sleeping ---- */

/* Our channels are open as long as we live, whatever a replica that runs wild wrote there. */
static void hold_open(void)
{
	NT_EACH_REPLICA(i) {
		struct neat_channels *all = nt.rep[i].channels;

		if (NT_LIKELY(a32_relaxed(&all->open[nt.proc]) == nt.channel_gen))
			continue;
		a32_release(&all->open[nt.proc], nt.channel_gen);
		a64_add(&all->change, 1);
	}
}

static uint32_t arm_words(void)
{
	uint32_t value = nt.sleepers ? NEAT_ASLEEP_FUTEX : NEAT_AWAKE;

	if (nt.kernel_sleepers)
		value = nt.kernel_sleepers == nt.sleepers ? NEAT_ASLEEP_EVENTFD : NEAT_ASLEEP_BOTH;

	NT_EACH_REPLICA(i)
		a32_store(&nt.rep[i].ch->asleep, value);
	neat_fence();	/* the words before the look at the rings (Dekker, L6) */
	return value;
}

static uint32_t arm(struct nt_stay *s, enum nt_armed how)
{
	uint32_t value;

	nt_note_cpu();
	hold_open();
	nt_lock(&nt.arm_lock);
	nt.sleepers++;
	nt.kernel_sleepers += how == NT_ARMED_KERNEL;
	s->armed = how;
	value = arm_words();
	nt_unlock(&nt.arm_lock);
	return value;
}

static void disarm(struct nt_stay *s)
{
	nt_note_cpu();
	nt_lock(&nt.arm_lock);
	nt.sleepers--;
	nt.kernel_sleepers -= s->armed == NT_ARMED_KERNEL;
	s->armed = NT_NOT_ARMED;
	arm_words();
	nt_unlock(&nt.arm_lock);
	nt_drain_all();
}

/* Out of the sleep: who signals from now on need not wake. False: it was signaled. */
static bool awake(struct nt_stay *s)
{
	if (a32_cas(&s->w.signaled, W_SLEEPS, W_AWAKE))
		return true;
	if (shares_eventfd(&s->w))
		a32_add(&nt.rung, (uint32_t)-1);
	return false;
}

enum nt_armed nt_sleep_pause(struct nt_stay *s)
{
	enum nt_armed how = s->armed;

	if (!how)
		return how;
	awake(s);
	a32_store(&s->w.signaled, W_SIGNALED);	/* who wakes one of several passes us by */
	nt_epoll_passes_on(s);
	disarm(s);
	if (how == NT_ARMED_KERNEL)
		pthread_setcancelstate(s->cancel, NULL);
	return how;
}

/*
 * It is woken as any sleeper, and by the words that it waits for: there may have been news meanwhile, from the handler's own
 * calls, too. If it may go on (SA_RESTART, or it has only been about to begin), it sleeps again.
 */
void nt_sleep_resume(struct nt_stay *s, enum nt_armed how)
{
	int cancel;

	if (how == NT_ARMED_KERNEL)
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	arm(s, how);
	a32_store(&s->w.signaled, W_SLEEPS);
	nt_wake(&s->w);
	if (how == NT_ARMED_FUTEX)
		NT_EACH_REPLICA(i)
			a32_store(&nt.rep[i].ch->asleep, NEAT_AWAKE);
}

/*
 * Nobody else is in this process and one replica may call: the plain futex, half the price of waitv. With a time it
 * ends at every handler, SA_RESTART or not.
 */
static int futex_sleep_alone(uint32_t replica, uint32_t value, int64_t until_ns)
{
	struct timespec t = { (time_t)(until_ns / 1000000000), (long)(until_ns % 1000000000) };

	if (syscall(SYS_futex, &nt.rep[replica].ch->asleep.v, FUTEX_WAIT_BITSET, value, &t, NULL,
		    FUTEX_BITSET_MATCH_ANY) == 0)
		return 0;
	return errno == EAGAIN ? 0 : -errno;
}

static int futex_sleep(struct nt_waiter *w, uint32_t value, int64_t until_ns)
{
	struct futex_waitv v[NEAT_REPLICAS_MAX + 1];
	struct timespec t = { (time_t)(until_ns / 1000000000), (long)(until_ns % 1000000000) };
	unsigned n = 0;

	v[n++] = (struct futex_waitv){ .val = W_SLEEPS, .uaddr = (uintptr_t)&w->signaled.v,
				       .flags = FUTEX_32 | FUTEX_PRIVATE_FLAG };
	NT_EACH_REPLICA(i)
		v[n++] = (struct futex_waitv){ .val = value, .uaddr = (uintptr_t)&nt.rep[i].ch->asleep.v,
					       .flags = FUTEX_32 };
	if (syscall(SYS_futex_waitv, v, n, 0, &t, CLOCK_MONOTONIC) >= 0)
		return 0;
	if (errno == ENOSYS || errno == EPERM)
		a32_store(&nt.confined, 1);	/* a filter that came before us */
	return errno == EAGAIN || errno == ENOSYS || errno == EPERM ? 0 : -errno;
}

/*
 * Filters of system calls (seccomp(2)) know futex(2), few know futex_waitv(2), and OpenSSH's kills for it. Then one of the
 * words, for short: nobody wakes us by the others.
 */
static int futex_nap(struct nt_stay *s, uint32_t value, int64_t until_ns)
{
	const int64_t NAP_NS = 2000000;
	uint32_t live = a32_relaxed(&nt.live);
	int64_t nap_ns;
	int err;

	do {
		nap_ns = nt_now_ns() + NAP_NS;
		nap_ns = nap_ns < until_ns ? nap_ns : until_ns;
		err = futex_sleep_alone(live ? (uint32_t)__builtin_ctz(live) : 0, value, nap_ns);
	} while (err == -ETIMEDOUT && nap_ns != until_ns && !nt_events_pending() &&
		 a32_acquire(&s->w.signaled) == W_SLEEPS);
	return err == -ETIMEDOUT && nap_ns != until_ns ? 0 : err;
}

static int futex_once(struct nt_stay *s, uint32_t value, int64_t until_ns, bool restarts)
{
	uint32_t live = a32_relaxed(&nt.live);
	bool alone = live && !(live & (live - 1)) && __libc_single_threaded && !(restarts && nt_restarts());

	if (alone)
		return futex_sleep_alone((uint32_t)__builtin_ctz(live), value, until_ns);
	return a32_relaxed(&nt.confined) ? futex_nap(s, value, until_ns) : futex_sleep(&s->w, value, until_ns);
}

/* signal(7): handlers with SA_RESTART do not end it, unless the program gave it a time. A nap they do end. */
static int futex_interruptible(struct nt_stay *s, uint32_t value, int64_t until_ns, bool restarts)
{
	uintptr_t in = nt_in;
	int sig = nt_handlers_in();
	int err = sig ? 0 : futex_once(s, value, until_ns, restarts);

	nt_in = in;
	if (!sig)
		sig = nt_handler_ran();
	if (sig && (err == 0 || err == -ETIMEDOUT || (err == -EINTR && a32_relaxed(&nt.confined))))
		return restarts && nt_has_restart(sig) ? 0 : -EINTR;
	return err;
}

/* Until woken, the deadline, a signal, or news of the end of the instance (0), for which it looks now and then. */
static int sleep_and_look(struct nt_stay *s, uint32_t value, int64_t deadline_ns)
{
	bool restarts = deadline_ns == INT64_MAX && !s->polls;

	for (;;) {
		int64_t until_ns = nt_over_next_look(deadline_ns);
		int err = s->uninterruptible ? futex_once(s, value, until_ns, restarts) :
					       futex_interruptible(s, value, until_ns, restarts);

		if (err != -ETIMEDOUT || until_ns == deadline_ns)
			return err;
		if (nt_over())
			return 0;
	}
}

int nt_sleep(struct nt_stay *s, int64_t deadline_ns)
{
	uint32_t value;
	int err = 0;

	nt_replicas_look();
	nt_over_look();	/* says so if it is: who only polls listeners hears of it nowhere else */
	s->w.efd = -1;	/* its last sleep may have been in the kernel's poll */
	value = arm(s, NT_ARMED_FUTEX);
	if (!nt_events_pending() && a32_cas(&s->w.signaled, W_AWAKE, W_SLEEPS)) {
		err = sleep_and_look(s, value, deadline_ns);
		awake(s);
	}
	disarm(s);
	return err;
}

/*
 * Replicas that have not got our eventfd yet cannot wake us in the kernel's poll: short naps until
 * then. They ring it when it comes.
 */
static int64_t nap(int64_t deadline_ns)
{
	const int64_t NAP_NS = 2000000;
	int64_t until;

	if (nt_eventfd_known())
		return deadline_ns;
	until = nt_now_ns() + NAP_NS;
	return until < deadline_ns ? until : deadline_ns;
}

/*
 * Cancellation (pthread_cancel(3)): who waits has objects that others see, and who wakes holds watch_lock, so neither may be
 * at a cancellation point. Short calls go by syscall(2), which is none; this long one is made with cancellation disabled.
 */
int nt_sleep_kernel(struct nt_stay *s, int (*enter)(void *, int64_t), void *arg, int64_t deadline_ns)
{
	int rc = 0, err;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &s->cancel);
	nt_replicas_look();
	nt_over_look();
	arm(s, NT_ARMED_KERNEL);
	if (!nt_events_pending() && a32_cas(&s->w.signaled, W_AWAKE, W_SLEEPS)) {
		rc = enter(arg, nap(nt_over_next_look(deadline_ns)));
		err = errno;
		awake(s);
		errno = err;
	}
	err = errno;
	disarm(s);
	pthread_setcancelstate(s->cancel, NULL);
	errno = err;
	return rc;
}

int nt_sleep_poll(struct nt_stay *s, struct pollfd *ours, int (*enter)(void *, int64_t), void *arg, int64_t deadline_ns)
{
	int rc;

	s->w.efd = nt_process_eventfd();
	if (s->w.efd < 0)
		return s->w.efd;
	rc = nt_eventfd_drop(s->w.efd);
	if (rc)
		return rc;
	*ours = (struct pollfd){ .fd = s->w.efd, .events = POLLIN };
	rc = nt_sleep_kernel(s, enter, arg, deadline_ns);
	return rc < 0 ? -errno : rc;
}

int nt_ppoll(struct pollfd *fds, nfds_t n, int64_t deadline_ns, const sigset_t *mask)
{
	int64_t left = deadline_ns == INT64_MAX ? 0 : deadline_ns - nt_now_ns();
	uintptr_t in = nt_in;
	struct timespec t;
	int rc = -1;

	left = left > 0 ? left : 0;
	t = (struct timespec){ (time_t)(left / 1000000000), (long)(left % 1000000000) };
	if (nt_handlers_in_masked(mask))
		errno = EINTR;
	else
		rc = nt_real.ppoll(fds, n, deadline_ns == INT64_MAX ? NULL : &t, mask);
	nt_in = in;
	return rc;
}

static int wait_for(struct nt_stay *s, uint32_t sock, bool (*ready)(void *), void *arg, int64_t deadline_ns)
{
	int err = 0;

	for (;;) {
		bool over;

		nt_waiter_begin(&s->w);
		nt_watch_look(sock);
		over = nt_over_for_waiters(&deadline_ns);
		if (ready(arg))
			return 0;
		if (over)
			return -ENETDOWN;
		if (err || (deadline_ns != INT64_MAX && nt_now_ns() >= deadline_ns))
			return err ? err : -ETIMEDOUT;
		if (nt_spin(&s->w, deadline_ns))
			continue;
		err = nt_sleep(s, deadline_ns);
		if (err == -EINTR && s->uninterruptible)
			err = 0;
	}
}

static int wait_sock(uint32_t sock, bool (*ready)(void *), void *arg, int64_t deadline_ns, bool uninterruptible)
{
	struct nt_stay *s = nt_stay_begin();
	int err;

	if (!s)
		return -ENOMEM;
	s->uninterruptible = uninterruptible;
	nt_bells();
	nt_watch_add(&s->few[0], sock, WATCH_WAITER, &s->w);
	s->watches = 1;
	err = wait_for(s, sock, ready, arg, deadline_ns);
	nt_stay_end(s);
	return err;
}

int nt_wait_sock(uint32_t sock, bool (*ready)(void *), void *arg, int64_t deadline_ns)
{
	return wait_sock(sock, ready, arg, deadline_ns, false);
}

void nt_wait_replica(uint32_t sock, bool (*ready)(void *), void *arg)
{
	while (wait_sock(sock, ready, arg, INT64_MAX, true) == -ENOMEM)
		syscall(SYS_sched_yield);
}
