/*
 * epoll_nest.c - sets that are watched: by poll(), select() and other sets.
 *
 * Such a set is ready if something in its ready list is (of ours), or if the kernel says so of its kernel set. The kernel
 * can say it only while our eventfds are not in there, so the first who watches a set with something of ours in it
 * `exposes` it: they leave, for good, and who waits in the set sleeps in ppoll() from then on. Sets that nobody
 * watches pay nothing. Loops, depth and flags are checked by the kernel, which has each such entry in its own set.
 */
#define _GNU_SOURCE
#include "epoll.h"
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static const unsigned SET_READY = EPOLLIN | EPOLLRDNORM;	/* all that a set can be */

/* ---- our eventfds in the kernel set ---- */

void epoll_ring(int efd)
{
	uint64_t one = 1;

	if (nt_syscall(SYS_write, efd, &one, sizeof(one)) < 0 && errno != EAGAIN)	/* as in nt_wake() */
		nt_say("cannot wake a thread: %s", strerror(errno));
}

static int make_wakefd(struct nt_epoll *ep)
{
	int fd = nt_high_fd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), err;

	if (fd < 0)
		return fd;
	nt_fd_mark_internal(fd);
	err = epoll_kernel_ctl(ep->epfd, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, EPOLL_MAGIC);
	if (err)
		nt_fd_close_internal(fd);
	else
		ep->wakefd = fd;
	return err;
}

/*
 * Threads that wait in the kernel set hear of us by its eventfds, so they come out first. One that has left by
 * siglongjmp() is counted until it blocks again.
 */
static void expose(struct nt_epoll *ep)
{
	const int64_t PATIENCE_NS = 1000000000;
	int64_t end_ns;

	if (a32_relaxed(&ep->exposed))
		return;
	a32_store(&ep->exposed, 1);
	neat_fence();	/* before the look at who is inside: enter_epoll() is the other half */
	if (ep->wakefd < 0 && (!a32_acquire(&ep->inside) || make_wakefd(ep)))
		return;
	end_ns = nt_now_ns() + PATIENCE_NS;
	while (a32_acquire(&ep->inside) && nt_now_ns() < end_ns) {
		epoll_ring(ep->wakefd);
		syscall(SYS_sched_yield);
	}
	epoll_kernel_ctl(ep->epfd, EPOLL_CTL_DEL, ep->wakefd, 0, 0);
	if (ep->owner_pid == nt.pid)
		epoll_kernel_ctl(ep->epfd, EPOLL_CTL_DEL, nt_process_eventfd(), 0, 0);
}

/* From the first entry of ours on; after fork, the child's. */
static int prepare_kernel_set(struct nt_epoll *ep, int process_efd)
{
	int err = 0;

	if (ep->owner_pid == nt.pid && (ep->wakefd >= 0 || a32_relaxed(&ep->exposed)))
		return 0;
	if (!a32_relaxed(&ep->exposed)) {
		err = epoll_kernel_ctl(ep->epfd, EPOLL_CTL_ADD, process_efd, EPOLLIN | EPOLLET | EPOLLEXCLUSIVE,
				       EPOLL_MAGIC);
		if (err && err != -EEXIST)
			return err;
		err = ep->wakefd < 0 ? make_wakefd(ep) : 0;
		/* Who waits already, in this set or for it, waits for the kernel's descriptors only. */
		if (!err && !ep->ours)
			epoll_ring(ep->wakefd);
	}
	if (!err)
		ep->owner_pid = nt.pid;
	return err;
}

static int hold_ours(struct nt_epoll *ep, int process_efd);

/* The entry is a set with something of ours inside, from now on. */
static void join(struct nt_epitem *i, int process_efd)
{
	if (i->twin)
		return;
	expose(nt.epoll_of[i->fd]);
	i->twin = true;
	i->ep->nours++;
	epoll_twin_ctl(i, EPOLL_CTL_MOD);
	hold_ours(i->ep, process_efd);
}

/* Who watches the set knows before anything stirs in it. */
static int hold_ours(struct nt_epoll *ep, int process_efd)
{
	int err;

	for (struct nt_watch *w = ep->ours ? NULL : ep->watch; w; w = w->next)
		if (w->kind == WATCH_EPOLL)
			join(w->owner, process_efd);
	if (ep->watch)
		expose(ep);
	err = prepare_kernel_set(ep, process_efd);
	ep->ours |= !err;
	return err;
}

int epoll_prepare(struct nt_epoll *ep)
{
	int efd, err;

	if (ep->ours && ep->owner_pid == nt.pid)
		return 0;
	efd = nt_process_eventfd();
	if (efd < 0)
		return efd;
	nt_lock(&nt.watch_lock);
	err = hold_ours(ep, efd);
	nt_unlock(&nt.watch_lock);
	return err;
}

/* ---- readiness of a set ---- */

/* As __ep_eventpoll_poll() in Linux: what proves not to be ready leaves the list. */
bool epoll_has_ready(struct nt_epoll *ep)
{
	while (ep->ready) {
		if (!ep->ready->off && epoll_item_bits(ep->ready))
			return true;
		epoll_dequeue(ep);
	}
	return false;
}

void epoll_tell(struct nt_epoll *ep)
{
	for (struct nt_watch *w = ep->watch; w; w = w->next)
		if (w->kind == WATCH_WAITER)
			nt_wake(w->owner);
		else
			nt_epoll_fire(w->owner);
}

static void watch_set(struct nt_epoll *ep, struct nt_watch *w, enum nt_watch_kind kind, void *owner)
{
	w->sock = 0;
	w->kind = kind;
	w->owner = owner;
	nt_watch_link(w, &ep->watch);
}

void epoll_drop_watches(struct nt_epoll *ep)
{
	struct nt_watch *w;

	while ((w = ep->watch) != NULL) {
		nt_watch_unlink(w);
		if (w->kind == WATCH_WAITER)
			nt_wake(w->owner);
		else
			nt_epoll_dead(w->owner);
	}
}

/* ---- a set in a set ---- */

static void add_entry(struct nt_epoll *ep, struct nt_epoll *child, int fd, const struct epoll_event *ev)
{
	struct nt_epitem *i = &ep->items[fd];

	epoll_item_new(ep, fd, SET_ENTRY, ev);
	ep->nsets++;
	watch_set(child, &i->watch, WATCH_EPOLL, i);
}

/*
 * The process's eventfd if the entry is to be a twin at once, else -1. Of one with ONESHOT we must know whether it has
 * fired when something of ours comes into its set.
 */
static int joining(const struct nt_epoll *child, const struct epoll_event *ev)
{
	return nt_on() && (child->ours || ev->events & EPOLLONESHOT) ? nt_process_eventfd() : -1;
}

/* Under watch_lock. */
static int enter_set(struct nt_epoll *ep, struct nt_epoll *child, int efd, int fd, const struct epoll_event *ev)
{
	int err;

	if (!ep->live || epoll_find(fd) != child)
		return -EBADF;	/* another thread has closed one of them */
	err = epoll_map_items(ep);
	if (err)
		return err;
	add_entry(ep, child, fd, ev);
	if (efd >= 0)
		join(&ep->items[fd], efd);
	nt_epoll_fire(&ep->items[fd]);
	return 0;
}

static int add_set(struct nt_epoll *ep, struct nt_epoll *child, int epfd, int fd, struct epoll_event *ev)
{
	int err = epoll_ctl_kernel(ep, epfd, EPOLL_CTL_ADD, fd, ev), efd;

	if (err)
		return err;
	/* The outer one was made before we were loaded, and is a set: the kernel says so. */
	if (!ep)
		ep = epoll_make(epfd, 1);
	efd = joining(child, ev);
	nt_lock(&nt.watch_lock);
	err = ep ? enter_set(ep, child, efd, fd, ev) : -ENOMEM;
	nt_unlock(&nt.watch_lock);
	if (err)
		nt_real.epoll_ctl(epfd, EPOLL_CTL_DEL, fd, ev);
	return err;
}

int epoll_ctl_set(struct nt_epoll *ep, struct nt_epoll *child, int epfd, int op, int fd, struct epoll_event *ev)
{
	struct nt_epitem *i = ep && ep->items ? &ep->items[fd] : NULL;
	bool changes = op == EPOLL_CTL_MOD, twin = i && i->twin && i->sock == SET_ENTRY;
	int err = 0, efd;

	if (op == EPOLL_CTL_ADD)
		return add_set(ep, child, epfd, fd, ev);
	if (changes && twin)	/* the kernel gets our data, so its checks are made here */
		err = nt_bad_pointer(ev) ? -EFAULT : ev->events & EPOLLEXCLUSIVE ? -EINVAL : 0;
	else
		err = epoll_ctl_kernel(ep, epfd, op, fd, ev);
	if (err || !i || i->sock != SET_ENTRY)
		return err;
	efd = changes ? joining(child, ev) : -1;
	nt_lock(&nt.watch_lock);
	if (i->sock != SET_ENTRY) {
		changes = false;	/* out by another thread */
	} else if (changes) {
		epoll_item_change(i, ev);
		if (efd >= 0)
			join(i, efd);
	} else if (op == EPOLL_CTL_DEL) {
		ep->nours -= i->twin;
		i->twin = false;	/* the kernel's set has not got it any more */
		epoll_item_remove(i);
	}
	nt_unlock(&nt.watch_lock);
	if (changes)
		epoll_queue_now(ep, fd);
	return 0;
}

/* ---- waiting in a set that is watched ---- */

struct exposed_wait {
	struct pollfd fds[2];		/* the kernel set, and the process's eventfd */
	const sigset_t *mask;
};

static int enter_ppoll(void *arg, int64_t deadline_ns)
{
	struct exposed_wait *x = arg;

	return nt_ppoll(x->fds, 2, deadline_ns, x->mask);
}

int epoll_sleep_exposed(struct nt_epoll *ep, struct nt_stay *s, int64_t deadline_ns, const sigset_t *mask)
{
	struct exposed_wait x = { .fds[0] = { .fd = ep->epfd, .events = POLLIN }, .mask = mask };
	int rc = nt_sleep_poll(s, &x.fds[1], enter_ppoll, &x, deadline_ns);

	if (rc < 0)
		return rc;
	return rc > 0 && x.fds[0].revents;
}

/* ---- poll() and select() ---- */

bool nt_epoll_watch(struct nt_watch *w, int fd, struct nt_waiter *waiter)
{
	struct nt_epoll *ep;
	bool ours;

	nt_lock(&nt.watch_lock);
	ep = epoll_find(fd);
	ours = ep && ep->ours;
	if (ours)
		expose(ep);
	if (ep && waiter)
		watch_set(ep, w, WATCH_WAITER, waiter);
	nt_unlock(&nt.watch_lock);
	return ours;
}

unsigned nt_epoll_ready(int fd)
{
	struct nt_epoll *ep;
	unsigned bits;

	if (NT_UNLIKELY(nt.resubscribe))
		nt_watch_resubscribe();
	if (nt_events_pending())
		nt_drain();
	nt_lock(&nt.watch_lock);
	ep = epoll_find(fd);
	bits = ep && epoll_has_ready(ep) ? SET_READY : 0;
	nt_unlock(&nt.watch_lock);
	return bits;
}
