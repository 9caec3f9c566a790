/* shim_poll.c - readiness: time-outs become nanoseconds, the rest is client/poll.c and client/epoll.c. */
#define _GNU_SOURCE
#include "shim.h"
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int64_t from_ms(int ms) { return ms < 0 ? -1 : ms * 1000000ll; }

/* -1 for NULL, -2 for one the kernel refuses. */
static int64_t from_timespec(const struct timespec *t)
{
	if (!t)
		return -1;
	if (t->tv_sec < 0 || t->tv_nsec < 0 || t->tv_nsec >= 1000000000)
		return -2;
	return t->tv_sec > INT64_MAX / 1000000000 - 1 ? INT64_MAX : (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

SHIM int poll(struct pollfd *fds, nfds_t n, int timeout)
{
	SHIM_RETURN(nt_poll(fds, n, from_ms(timeout), NULL), nt_real.poll(fds, n, timeout));
}

SHIM int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *mask)
{
	int64_t ns = from_timespec(t);

	SHIM_RETURN(ns == -2 ? NT_KERNEL : nt_poll(fds, n, ns, mask), nt_real.ppoll(fds, n, t, mask));
}

int __poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t size);
int __ppoll_chk(struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *mask, size_t size);

SHIM int __poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t size)
{
	if (size / sizeof(*fds) < n)
		abort();
	return poll(fds, n, timeout);
}

SHIM int __ppoll_chk(struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *mask, size_t size)
{
	if (size / sizeof(*fds) < n)
		abort();
	return ppoll(fds, n, t, mask);
}

static int select_ours(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *t)
{
	int64_t ns = -1, left;
	int rc;

	if (t) {
		if (t->tv_sec < 0 || t->tv_usec < 0)
			return NT_KERNEL;
		ns = (int64_t)t->tv_sec * 1000000000 + (int64_t)t->tv_usec * 1000;
	}
	rc = nt_select(n, r, w, e, ns, t ? &left : NULL, NULL);
	if (t && (rc >= 0 || rc == -EINTR)) {
		/* select(2): Linux leaves the time not slept, also when a signal ended it. */
		t->tv_sec = (time_t)(left / 1000000000);
		t->tv_usec = (suseconds_t)(left % 1000000000 / 1000);
	}
	return rc;
}

SHIM int select(int n, fd_set *restrict r, fd_set *restrict w, fd_set *restrict e, struct timeval *restrict t)
{
	SHIM_RETURN(select_ours(n, r, w, e, t), nt_real.select(n, r, w, e, t));
}

SHIM int pselect(int n, fd_set *restrict r, fd_set *restrict w, fd_set *restrict e,
		 const struct timespec *restrict t, const sigset_t *restrict mask)
{
	int64_t ns = from_timespec(t);

	SHIM_RETURN(ns == -2 ? NT_KERNEL : nt_select(n, r, w, e, ns, NULL, mask),
		    nt_real.pselect(n, r, w, e, t, mask));
}

/* ---- epoll ---- */

SHIM int epoll_create1(int flags)
{
	int fd = nt_real.epoll_create1(flags);

	if (fd >= 0) {
		nt_enter();
		nt_epoll_created(fd);
		nt_leave();
	}
	return fd;
}

SHIM int epoll_create(int size)
{
	if (size <= 0) {
		errno = EINVAL;
		return -1;
	}
	return epoll_create1(0);
}

SHIM int epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev)
{
	SHIM_RETURN(nt_epoll_ctl(epfd, op, fd, ev), nt_real.epoll_ctl(epfd, op, fd, ev));
}

SHIM int epoll_wait(int epfd, struct epoll_event *ev, int max, int timeout)
{
	SHIM_RETURN(nt_epoll_wait(epfd, ev, max, from_ms(timeout), NULL), nt_real.epoll_wait(epfd, ev, max, timeout));
}

SHIM int epoll_pwait(int epfd, struct epoll_event *ev, int max, int timeout, const sigset_t *mask)
{
	SHIM_RETURN(nt_epoll_wait(epfd, ev, max, from_ms(timeout), mask),
		    nt_real.epoll_pwait(epfd, ev, max, timeout, mask));
}

static int kernel_pwait2(int epfd, struct epoll_event *ev, int max, const struct timespec *t, const sigset_t *mask)
{
	return (int)nt_syscall(SYS_epoll_pwait2, epfd, ev, max, t, mask, (size_t)(_NSIG / 8));
}

SHIM int epoll_pwait2(int epfd, struct epoll_event *ev, int max, const struct timespec *t, const sigset_t *mask)
{
	int64_t ns = from_timespec(t);

	SHIM_RETURN(ns == -2 ? NT_KERNEL : nt_epoll_wait(epfd, ev, max, ns, mask),
		    kernel_pwait2(epfd, ev, max, t, mask));
}

/* ---- by number: the system calls themselves, which libc's functions of that name are not quite ---- */

enum { MASK_SIZE = _NSIG / 8 };

/* The kernel says in its own way what is wrong with the other arguments. */
static bool wrong_mask(const sigset_t *mask, size_t size) { return mask && (nt_bad_pointer(mask) || size != MASK_SIZE); }

static bool wrong_time(const struct timespec *t) { return t && nt_bad_pointer(t); }

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A time-out in read-only memory is not updated (poll_select_finish() in Linux); nor is one of 0. */
static bool updates(const void *t, int64_t ns)
{
	return ns > 0 && nt_syscall(SYS_clock_getres, (long)CLOCK_MONOTONIC, t) == 0;
}

/* Unlike libc's functions, ppoll and pselect6 say how much was left. */
static void say_left(struct timespec *t, int64_t ns, int64_t since_ns)
{
	int64_t left = ns - (now_ns() - since_ns);

	if (!updates(t, ns))
		return;
	left = left < 0 ? 0 : left;
	*t = (struct timespec){ (time_t)(left / 1000000000), (long)(left % 1000000000) };
}

static long ppoll_by_number(struct pollfd *fds, nfds_t n, struct timespec *t, const sigset_t *mask, size_t size)
{
	int64_t ns, since_ns;
	long rc;

	if (wrong_time(t) || wrong_mask(mask, size) || (ns = from_timespec(t)) == -2)
		return NT_KERNEL;
	since_ns = now_ns();
	rc = nt_poll(fds, n, ns, mask);
	if (rc != NT_KERNEL)
		say_left(t, ns, since_ns);
	return rc;
}

static long pselect_by_number(const long a[6])
{
	const struct { const sigset_t *mask; size_t size; } *packed = (const void *)a[5], none = { NULL, 0 };
	struct timespec *t = (void *)a[4];
	int64_t ns, since_ns;
	long rc;

	if (!packed)
		packed = &none;
	if (nt_bad_pointer(packed) || wrong_time(t) || wrong_mask(packed->mask, packed->size) || (ns = from_timespec(t)) == -2)
		return NT_KERNEL;
	since_ns = now_ns();
	rc = nt_select((int)a[0], (void *)a[1], (void *)a[2], (void *)a[3], ns, NULL, packed->mask);
	if (rc != NT_KERNEL)
		say_left(t, ns, since_ns);
	return rc;
}

#ifdef SYS_select
static long select_by_number(const long a[6])
{
	struct timeval *t = (void *)a[4], copy = t ? *t : (struct timeval){ 0, 0 };
	long rc = select_ours((int)a[0], (void *)a[1], (void *)a[2], (void *)a[3], t ? &copy : NULL);

	if (t && rc != NT_KERNEL && updates(t, t->tv_sec || t->tv_usec))
		*t = copy;
	return rc;
}
#endif

static long epoll_by_number(const long a[6], int64_t ns)
{
	const sigset_t *mask = (const void *)a[4];

	if (wrong_mask(mask, (size_t)a[5]) || ns == -2)
		return NT_KERNEL;
	return nt_epoll_wait((int)a[0], (void *)a[1], (int)a[2], ns, mask);
}

static long wait_by_number(long nr, const long a[6])
{
	switch (nr) {
#ifdef SYS_poll
	case SYS_poll:
		return nt_poll((void *)a[0], (nfds_t)a[1], from_ms((int)a[2]), NULL);
#endif
	case SYS_ppoll:
		return ppoll_by_number((void *)a[0], (nfds_t)a[1], (void *)a[2], (const void *)a[3], (size_t)a[4]);
#ifdef SYS_select
	case SYS_select:
		if (a[4] && nt_bad_pointer((void *)a[4]))
			return NT_KERNEL;
		return select_by_number(a);
#endif
	case SYS_pselect6:
		return pselect_by_number(a);
#ifdef SYS_epoll_wait
	case SYS_epoll_wait:
		return nt_epoll_wait((int)a[0], (void *)a[1], (int)a[2], from_ms((int)a[3]), NULL);
#endif
	case SYS_epoll_pwait:
		return epoll_by_number(a, from_ms((int)a[3]));
	case SYS_epoll_pwait2:
		return wrong_time((void *)a[3]) ? NT_KERNEL : epoll_by_number(a, from_timespec((void *)a[3]));
	}
	return NT_KERNEL;
}

long shim_wait_by_number(long nr, const long a[6])
{
	long rc;

	/* The library's own calls by number come here, too, and are none of these. */
	if (nt_in)
		return NT_KERNEL;
	nt_enter();
	rc = wait_by_number(nr, a);
	nt_leave();
	return rc;
}
