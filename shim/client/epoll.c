/*
 * epoll.c - epoll sets that hold our sockets and the kernel's descriptors (contract S3).
 *
 * The program's epoll fd is the kernel set and holds only kernel descriptors, plus two eventfds of
 * ours: the process's one (exclusive, so one sleeper wakes) and the set's own. Our entries live beside
 * it. An event queues its entry; epoll_wait() takes the queue, looks at each entry's level words and
 * reports; a level-triggered entry that was reported goes to the tail again, as in Linux.
 *
 * Everything here is guarded by nt.watch_lock. Differences from epoll(7): docs/differences.md.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/single_threaded.h>
#include <sys/syscall.h>
#include <unistd.h>

static const uint64_t MAGIC = 0x9d3f5b7c2e61a84full;	/* data of our own eventfds in the kernel set */
static const uint64_t TWIN = 0x6b1ed25c90a70000ull;	/* data of a datagram socket's twin: this | fd */
static const int64_t KERNEL_LOOK_NS = 50000;		/* while ours keep us busy, the kernel set is looked at no more often */

/*
 * Life of an entry: sock == 0 (not in the set) -> added -> queued / not queued -> removed.
 * `off`: ONESHOT fired; reports nothing until EPOLL_CTL_MOD.
 */
struct nt_epitem {
	struct nt_watch watch;		/* first: nt_watch_* and nt_epoll_fire get this address */
	struct nt_epoll *ep;
	struct nt_epitem *next_ready;
	uint64_t data;
	uint32_t sock;
	uint32_t events;
	uint32_t kernel_bits;		/* what the kernel said of the twin since the last report */
	int fd;
	bool queued, off;
	bool twin;			/* in the kernel set, with TWIN | fd */
	uint32_t call;			/* epoll_wait() that reported it last */
};

struct nt_epwait {
	struct nt_waiter w;
	struct nt_epwait *next;
};

struct nt_epoll {
	struct nt_epoll *next;
	int epfd;			/* one of its numbers */
	uint32_t numbers;		/* descriptors of this process that name it, by dup() */
	int wakefd;			/* -1: none of ours was ever added */
	uint32_t owner_pid;		/* whose process eventfd is in the kernel set */
	uint32_t nours;
	uint32_t nkernel;		/* kernel descriptors; never too low */
	struct nt_epitem *items;	/* [NEAT_FDS_MAX], mapped at the first entry */
	struct nt_epitem *ready, **ready_tail;
	struct nt_epwait *waiters;
	int64_t kernel_empty_ns;	/* when a look at the kernel set last found nothing */
	bool spin;			/* the last wait was ended by one of ours */
	bool twin_news;			/* a twin was queued by the last look at the kernel set */
	uint32_t call;			/* number of the epoll_wait(): no descriptor is reported twice by one */
};

static struct nt_epoll *epoll_find(int epfd)
{
	return nt.epoll_of && (unsigned)epfd < NEAT_FDS_MAX ? nt.epoll_of[epfd] : NULL;
}

/* Under watch_lock. */
static void name(struct nt_epoll *ep, int epfd)
{
	nt.epoll_of[epfd] = ep;
	ep->numbers++;
	if ((uint32_t)epfd >= nt.epoll_high)
		nt.epoll_high = (uint32_t)epfd + 1;
}

static struct nt_epoll *epoll_make(int epfd, uint32_t nkernel)
{
	struct nt_epoll *ep;

	if ((unsigned)epfd >= NEAT_FDS_MAX)
		return NULL;
	if (!nt.epoll_of)
		nt.epoll_of = nt_map_private(sizeof(*nt.epoll_of) * NEAT_FDS_MAX);
	ep = nt.epoll_of ? nt_map_private(sizeof(*ep)) : NULL;
	if (!ep)
		return NULL;
	ep->wakefd = -1;
	ep->nkernel = nkernel;
	ep->ready_tail = &ep->ready;
	nt_lock(&nt.watch_lock);
	ep->next = nt.epolls;
	nt.epolls = ep;
	ep->epfd = epfd;
	name(ep, epfd);
	nt_unlock(&nt.watch_lock);
	return ep;
}

void nt_epoll_created(int epfd)
{
	nt_epoll_fd_closed(epfd);
	epoll_make(epfd, 0);
}

/* ---- ready list, under watch_lock ---- */

static void enqueue(struct nt_epitem *i)
{
	if (i->queued || i->off || !i->sock)
		return;
	i->queued = true;
	i->next_ready = NULL;
	*i->ep->ready_tail = i;
	i->ep->ready_tail = &i->next_ready;
}

static struct nt_epitem *dequeue(struct nt_epoll *ep)
{
	struct nt_epitem *i = ep->ready;

	ep->ready = i->next_ready;
	if (!ep->ready)
		ep->ready_tail = &ep->ready;
	i->queued = false;
	return i;
}

static void unqueue(struct nt_epitem *i)
{
	struct nt_epitem **at = &i->ep->ready;

	if (!i->queued)
		return;
	while (*at != i)
		at = &(*at)->next_ready;
	*at = i->next_ready;
	if (!*at)
		i->ep->ready_tail = at;
	i->queued = false;
}

/* One sleeper is enough: it takes the whole list. */
static void wake_one(struct nt_epoll *ep)
{
	/* The entry is in the list before the look at who was signaled already: nt_waiter_begin() is the other half. */
	if (!__libc_single_threaded)
		neat_fence();
	for (struct nt_epwait *w = ep->waiters; w; w = w->next)
		if (a32_relaxed(&w->w.signaled) != 1) {
			nt_wake(&w->w);
			return;
		}
}

void nt_epoll_fire(void *item)
{
	struct nt_epitem *i = item;

	enqueue(i);
	wake_one(i->ep);
}

static int kernel_ctl(int epfd, int op, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };

	return nt_real.epoll_ctl(epfd, op, fd, &ev) ? -errno : 0;
}

static void twin_ctl(struct nt_epitem *i, int op)
{
	const uint32_t asked = EPOLLIN | EPOLLRDNORM | EPOLLET | EPOLLONESHOT;
	int err = kernel_ctl(i->ep->epfd, op, i->fd, i->events & asked, TWIN | (uint32_t)i->fd);

	if (op == EPOLL_CTL_ADD && (!err || err == -EEXIST)) {
		i->twin = true;
		i->ep->nkernel++;
	} else if (op == EPOLL_CTL_DEL) {
		i->twin = false;
		i->ep->nkernel -= i->ep->nkernel != 0;
	}
}

static void item_remove(struct nt_epitem *i)
{
	/* After fork the kernel set is the parent's, too: a child that closes its copy takes nothing out. */
	if (i->twin && i->ep->owner_pid == nt.pid)
		twin_ctl(i, EPOLL_CTL_DEL);
	i->twin = false;
	nt_watch_unlink(&i->watch);
	unqueue(i);
	i->sock = 0;
	i->ep->nours--;
}

void nt_epoll_dead(void *item)
{
	struct nt_epitem *i = item;

	if (i->sock)
		item_remove(i);
}

/* ---- the kernel set ---- */

/* Our eventfds belong into the kernel set from the first entry of ours on; after fork, the child's. */
static int prepare_kernel_set(struct nt_epoll *ep)
{
	int proc, err;

	if (ep->wakefd >= 0 && ep->owner_pid == nt.pid)
		return 0;
	proc = nt_process_eventfd();
	if (proc < 0)
		return proc;
	err = kernel_ctl(ep->epfd, EPOLL_CTL_ADD, proc, EPOLLIN | EPOLLET | EPOLLEXCLUSIVE, MAGIC);
	if (err && err != -EEXIST)
		return err;
	if (ep->wakefd < 0) {
		int fd = nt_high_fd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));

		if (fd < 0)
			return fd;
		nt_fd_mark_internal(fd);
		err = kernel_ctl(ep->epfd, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, MAGIC);
		if (err)
			return err;
		ep->wakefd = fd;
	}
	ep->owner_pid = nt.pid;
	return 0;
}

static int wait_ms(int64_t deadline_ns)
{
	int64_t left;

	if (deadline_ns == INT64_MAX)
		return -1;
	left = deadline_ns - nt_now_ns();
	/* Rounded up: a wait never ends early. */
	return left <= 0 ? 0 : left >= INT32_MAX * 1000000ll ? INT32_MAX : (int)((left + 999999) / 1000000);
}

/*
 * The kernel's wait until the deadline. `fine`: the program asked for parts of a millisecond, by epoll_pwait2(), which
 * is no cancellation point here.
 */
static int wait_in_kernel(int epfd, struct epoll_event *ev, int max, int64_t deadline_ns, bool fine, const sigset_t *mask)
{
	struct timespec t;
	int64_t left;

	if (!fine || deadline_ns == INT64_MAX)
		return nt_real.epoll_pwait(epfd, ev, max, wait_ms(deadline_ns), mask);
	left = deadline_ns - nt_now_ns();
	left = left > 0 ? left : 0;
	t = (struct timespec){ (time_t)(left / 1000000000), (long)(left % 1000000000) };
	return (int)syscall(SYS_epoll_pwait2, epfd, ev, max, &t, mask, (size_t)(_NSIG / 8));
}

static bool is_fine(int64_t timeout_ns) { return timeout_ns > 0 && timeout_ns % 1000000; }

/* One event for each descriptor, as Linux: what the kernel says of a twin goes through our entry. */
static void twin_event(struct nt_epoll *ep, const struct epoll_event *ev)
{
	struct nt_epitem *i = ep->items ? &ep->items[ev->data.u64 & 0xffff] : NULL;

	nt_lock(&nt.watch_lock);
	if (i && i->twin) {
		i->kernel_bits |= ev->events;
		enqueue(i);
		ep->twin_news = true;
	}
	nt_unlock(&nt.watch_lock);
}

/* Takes out what is not the program's. */
static int filter(struct nt_epoll *ep, struct epoll_event *ev, int n)
{
	int k = 0;

	for (int i = 0; i < n; i++)
		if ((ev[i].data.u64 & ~0xffffull) == TWIN)
			twin_event(ep, &ev[i]);
		else if (ev[i].data.u64 != MAGIC)
			ev[k++] = ev[i];
	return n < 0 ? -errno : k;
}

static int harvest(struct nt_epoll *ep, struct epoll_event *ev, int max);

static int kernel_look(struct nt_epoll *ep, struct epoll_event *ev, int max)
{
	int n = filter(ep, ev, nt_real.epoll_wait(ep->epfd, ev, max, 0));

	n = n > 0 ? n : 0;
	if (ep->twin_news && n < max)
		n += harvest(ep, ev + n, max - n);
	ep->twin_news = false;
	ep->kernel_empty_ns = n > 0 ? 0 : nt_now_ns();
	return n;
}

/* ---- epoll_ctl ---- */

static void wake_all(struct nt_epoll *ep)
{
	nt_lock(&nt.watch_lock);
	for (struct nt_epwait *w = ep->waiters; w; w = w->next)
		nt_wake(&w->w);
	nt_unlock(&nt.watch_lock);
}

static int ctl_kernel(struct nt_epoll *ep, int epfd, int op, int fd, struct epoll_event *ev)
{
	if (nt_fd_internal(fd))
		return -EBADF;
	if (nt_real.epoll_ctl(epfd, op, fd, ev))
		return -errno;
	if (ep && op == EPOLL_CTL_ADD && ep->nkernel++ == 0)
		wake_all(ep);	/* a sleeper that waits for ours only must wait in the kernel now */
	else if (ep && op == EPOLL_CTL_DEL && ep->nkernel)
		ep->nkernel--;
	return 0;
}

/* A sleeper that waits for ours only must wait in the kernel from now on. */
static void add_twin(struct nt_epitem *i)
{
	nt_lock(&nt.watch_lock);
	if (i->sock && !i->twin)
		twin_ctl(i, EPOLL_CTL_ADD);
	nt_unlock(&nt.watch_lock);
	wake_all(i->ep);
}

void nt_epoll_twin(uint32_t sock)
{
	uint32_t high = a32_relaxed(&nt.app->procs[nt.proc].fd_high);

	for (struct nt_epoll *ep = nt.epolls; ep; ep = ep->next)
		for (uint32_t fd = 0; ep->items && fd < high; fd++)
			if (nt_lookup((int)fd) == sock && ep->items[fd].sock == sock)
				add_twin(&ep->items[fd]);
}

static int ctl_add(struct nt_epoll *ep, int fd, uint32_t sock, const struct epoll_event *ev)
{
	struct nt_epitem *i;
	int err;

	if (!ep->items)
		ep->items = nt_map_private(sizeof(*ep->items) * NEAT_FDS_MAX);
	if (!ep->items)
		return -ENOMEM;
	i = &ep->items[fd];
	if (i->sock == sock)
		return -EEXIST;
	err = prepare_kernel_set(ep);
	if (err)
		return err;
	nt_lock(&nt.watch_lock);
	if (i->sock)
		item_remove(i);
	i->ep = ep;
	i->fd = fd;
	i->sock = sock;
	i->events = ev->events;
	i->data = ev->data.u64;
	i->off = false;
	i->kernel_bits = 0;
	ep->nours++;
	nt_unlock(&nt.watch_lock);
	nt_watch_add(&i->watch, sock, WATCH_EPOLL, i);
	if (nt_dgram_twin(nt_sock(sock)))
		add_twin(i);
	return 0;
}

static int ctl_existing(struct nt_epoll *ep, int op, int fd, uint32_t sock, const struct epoll_event *ev)
{
	struct nt_epitem *i = ep->items ? &ep->items[fd] : NULL;

	if (!i || i->sock != sock)
		return -ENOENT;
	nt_lock(&nt.watch_lock);
	if (op == EPOLL_CTL_DEL) {
		item_remove(i);
	} else {
		i->events = ev->events;
		i->data = ev->data.u64;
		i->off = false;
		i->kernel_bits = 0;	/* from before; what holds now the kernel says again */
		if (i->twin)
			twin_ctl(i, EPOLL_CTL_MOD);
	}
	nt_unlock(&nt.watch_lock);
	return 0;
}

/* Added or changed: what holds already is reported by the next wait. */
static void queue_now(struct nt_epoll *ep, int fd)
{
	nt_lock(&nt.watch_lock);
	if (ep->items[fd].sock)
		nt_epoll_fire(&ep->items[fd]);
	nt_unlock(&nt.watch_lock);
}

int nt_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev)
{
	uint32_t sock = nt_lookup(fd);
	struct nt_epoll *ep = epoll_find(epfd);
	int err;

	if (!sock)
		return ctl_kernel(ep, epfd, op, fd, ev);
	if (op != EPOLL_CTL_ADD && op != EPOLL_CTL_MOD && op != EPOLL_CTL_DEL)
		return -EINVAL;
	if (op != EPOLL_CTL_DEL && nt_bad_pointer(ev))
		return -EFAULT;
	/* A set that was made before we were loaded: it may hold kernel descriptors. */
	if (!ep)
		ep = epoll_make(epfd, 1);
	if (!ep)
		return -EBADF;
	err = op == EPOLL_CTL_ADD ? ctl_add(ep, fd, sock, ev) : ctl_existing(ep, op, fd, sock, ev);
	if (!err && op != EPOLL_CTL_DEL)
		queue_now(ep, fd);
	return err;
}

/* ---- epoll_wait ---- */

static bool report(struct nt_epitem *i, struct epoll_event *out)
{
	const uint32_t always = EPOLLERR | EPOLLHUP;
	uint32_t bits;

	if (i->off || !i->sock)
		return false;
	if (i->twin && i->call == i->ep->call) {
		enqueue(i);
		return false;
	}
	/* Our bit is cleared before the look: what changes later queues the entry again. */
	nt_watch_look(i->sock);
	bits = (nt_ready(i->sock) | i->kernel_bits) & (i->events | always);
	i->kernel_bits = 0;
	if (!bits)
		return false;
	i->call = i->ep->call;
	*out = (struct epoll_event){ .events = bits, .data.u64 = i->data };
	if (i->events & EPOLLONESHOT)
		i->off = true;
	else if (!(i->events & EPOLLET))
		enqueue(i);
	return true;
}

static int harvest(struct nt_epoll *ep, struct epoll_event *ev, int max)
{
	struct nt_epitem *last;
	int n = 0;

	if (!ep->ready)
		return 0;
	nt_lock(&nt.watch_lock);
	/* Entries queued again by report() go behind `last` and wait for the next call. */
	last = ep->ready ? (struct nt_epitem *)((uint8_t *)ep->ready_tail - offsetof(struct nt_epitem, next_ready)) : NULL;
	while (ep->ready && n < max) {
		struct nt_epitem *i = dequeue(ep);

		n += report(i, &ev[n]);
		if (i == last)
			break;
	}
	nt_unlock(&nt.watch_lock);
	return n;
}

struct kernel_wait {
	struct nt_epoll *ep;
	struct epoll_event *ev;
	int max;
	int64_t deadline;
	bool fine;			/* is_fine() */
	const sigset_t *mask;
};

static int enter_epoll(void *arg, int64_t deadline_ns)
{
	struct kernel_wait *k = arg;

	return wait_in_kernel(k->ep->epfd, k->ev, k->max, deadline_ns, k->fine, k->mask);
}

static void waiter_on(struct nt_epoll *ep, struct nt_epwait *w)
{
	nt_lock(&nt.watch_lock);
	w->next = ep->waiters;
	ep->waiters = w;
	nt_unlock(&nt.watch_lock);
}

static void waiter_off(struct nt_epoll *ep, struct nt_epwait *w)
{
	struct nt_epwait **at = &ep->waiters;

	nt_lock(&nt.watch_lock);
	while (*at && *at != w)
		at = &(*at)->next;
	if (*at)
		*at = w->next;
	/* What we leave behind must not wait for an event that already came. */
	if (ep->ready)
		wake_one(ep);
	nt_unlock(&nt.watch_lock);
}

/* Sleeps once; > 0: kernel events in ev; 0: look again; -errno. */
static int epoll_sleep(struct nt_epoll *ep, struct nt_epwait *w, struct kernel_wait *k)
{
	int n;

	if (!ep->nkernel && !k->mask && !nt_restarts())
		return nt_sleep(&w->w, k->deadline);
	w->w.efd = ep->wakefd;
	n = nt_sleep_kernel(&w->w, enter_epoll, k, k->deadline);
	if (n > 0)
		ep->spin = false;
	return filter(ep, k->ev, n);
}

static int epoll_block(struct nt_epoll *ep, struct nt_epwait *w, struct kernel_wait *k)
{
	for (;;) {
		int n;

		nt_waiter_begin(&w->w);
		n = harvest(ep, k->ev, k->max);
		if (n) {
			ep->spin = true;
			return n;
		}
		if (k->deadline != INT64_MAX && nt_now_ns() >= k->deadline)
			return ep->nkernel ? kernel_look(ep, k->ev, k->max) : 0;
		if ((ep->spin || !ep->nkernel) && nt_spin(&w->w, k->deadline))
			continue;
		n = epoll_sleep(ep, w, k);
		if (n > 0) {
			int rest = n < k->max ? harvest(ep, k->ev + n, k->max - n) : 0;

			return n + rest;
		}
		if (n < 0 && n != -ETIMEDOUT)
			return n;
	}
}

static int wait_kernel_only(struct nt_epoll *ep, struct kernel_wait *k)
{
	int n;

	do
		n = filter(ep, k->ev, enter_epoll(k, k->deadline));
	while (n == 0 && !ep->nours && wait_ms(k->deadline) != 0);
	return n;
}

/*
 * A set that was made by another image or process, or before we lost our sockets: our entries are not
 * here, but eventfds of that time may be in it.
 */
static int foreign_wait(int epfd, struct epoll_event *ev, int max, int64_t timeout_ns, const sigset_t *mask)
{
	int64_t deadline = nt_deadline(timeout_ns);
	int n;

	do {
		int k = 0;

		n = wait_in_kernel(epfd, ev, max, deadline, is_fine(timeout_ns), mask);
		if (n <= 0)
			return n < 0 ? -errno : 0;
		for (int i = 0; i < n; i++)
			if (ev[i].data.u64 != MAGIC && (ev[i].data.u64 & ~0xffffull) != TWIN)
				ev[k++] = ev[i];
		n = k;
	} while (n == 0 && wait_ms(deadline) != 0);
	return n;
}

/* No memory for events: Linux finds out when there is one, unless the address is none at all. */
static int wait_nowhere(int epfd, const struct epoll_event *ev, int64_t timeout_ns, const sigset_t *mask)
{
	struct epoll_event one;
	int n = (uintptr_t)ev < 65536 && nt_on() ? nt_epoll_wait(epfd, &one, 1, timeout_ns, mask) : NT_KERNEL;

	return n > 0 ? -EFAULT : n;
}

int nt_epoll_wait(int epfd, struct epoll_event *ev, int max, int64_t timeout_ns, const sigset_t *mask)
{
	struct nt_epoll *ep = epoll_find(epfd);
	struct nt_epwait w = { .w.efd = -1 };
	struct kernel_wait k = { ep, ev, max, 0, is_fine(timeout_ns), mask };
	int n;

	if (max <= 0)
		return NT_KERNEL;
	if (NT_UNLIKELY(nt_bad_pointer(ev)))
		return wait_nowhere(epfd, ev, timeout_ns, mask);
	if (!ep || !nt_on())
		return !ep || ep->owner_pid ? foreign_wait(epfd, ev, max, timeout_ns, mask) : NT_KERNEL;
	ep->call++;
	nt_bells();
	if (NT_UNLIKELY(nt.resubscribe))
		nt_watch_resubscribe();
	if (ep->nours && ep->owner_pid != nt.pid)
		prepare_kernel_set(ep);
	if (nt_events_pending())
		nt_drain();
	n = harvest(ep, ev, max);
	if (n || timeout_ns == 0) {
		if (!n)
			nt_over_look();
		ep->spin |= n > 0;
		/* With something of ours to report the kernel's may wait, if there was nothing a moment ago. */
		if (ep->nkernel && n < max && (n == 0 || nt_now_ns() - ep->kernel_empty_ns >= KERNEL_LOOK_NS))
			n += kernel_look(ep, ev + n, max - n);
		nt_batch(true);
		return n;
	}
	k.deadline = nt_deadline(timeout_ns);
	if (!ep->nours && ep->wakefd < 0)
		n = wait_kernel_only(ep, &k);
	if (n == 0) {
		waiter_on(ep, &w);
		n = epoll_block(ep, &w, &k);
		waiter_off(ep, &w);
	}
	nt_batch(n > 0);
	return n;
}

/* ---- descriptors come and go ---- */

static void epoll_destroy(struct nt_epoll *ep)
{
	struct nt_epoll **at = &nt.epolls;

	for (int fd = 0; ep->nours && fd < NEAT_FDS_MAX; fd++)
		if (ep->items[fd].sock)
			item_remove(&ep->items[fd]);
	while (*at != ep)
		at = &(*at)->next;
	*at = ep->next;
	if (ep->wakefd >= 0) {
		if (nt.row)
			a64_release(&nt.row[ep->wakefd], 0);
		nt_real.close(ep->wakefd);
	}
	if (ep->items)
		munmap(ep->items, sizeof(*ep->items) * NEAT_FDS_MAX);
	munmap(ep, sizeof(*ep));
}

/* The set goes with its last number, as in the kernel. */
static void unname(struct nt_epoll *ep, int fd)
{
	nt.epoll_of[fd] = NULL;
	if (--ep->numbers == 0) {
		epoll_destroy(ep);
		return;
	}
	for (uint32_t i = 0; ep->epfd == fd && i < nt.epoll_high; i++)
		if (nt.epoll_of[i] == ep)
			ep->epfd = (int)i;
}

void nt_epoll_fd_closed(int fd)
{
	struct nt_epoll *ep = epoll_find(fd);

	if (!nt.epolls || (unsigned)fd >= NEAT_FDS_MAX)
		return;
	nt_lock(&nt.watch_lock);
	if (ep)
		unname(ep, fd);
	for (ep = nt.epolls; ep; ep = ep->next)
		if (ep->nours && ep->items[fd].sock)
			item_remove(&ep->items[fd]);
	nt_unlock(&nt.watch_lock);
}

bool nt_epoll_known(int fd) { return epoll_find(fd) != NULL; }

void nt_epoll_dup(int oldfd, int newfd)
{
	struct nt_epoll *ep = epoll_find(oldfd);

	if (!ep || (unsigned)newfd >= NEAT_FDS_MAX)
		return;
	nt_lock(&nt.watch_lock);
	name(ep, newfd);
	nt_unlock(&nt.watch_lock);
}

void nt_epoll_range_closed(uint32_t first, uint32_t last)
{
	for (uint32_t fd = first; nt.epolls && fd <= last && fd < nt.epoll_high; fd++)
		if (nt.epoll_of[fd])
			nt_epoll_fd_closed((int)fd);
}

void nt_epoll_to_kernel(int fd)
{
	for (struct nt_epoll *ep = nt.epolls; ep; ep = ep->next) {
		struct nt_epitem was;

		if (!ep->items || !ep->items[fd].sock)
			continue;
		was = ep->items[fd];
		nt_lock(&nt.watch_lock);
		item_remove(&ep->items[fd]);
		nt_unlock(&nt.watch_lock);
		ep->nkernel++;
		/* Fired and not armed again: nothing is asked for but what cannot be left out. */
		kernel_ctl(ep->epfd, EPOLL_CTL_ADD, fd, was.off ? (uint32_t)EPOLLONESHOT : was.events, was.data);
		wake_all(ep);
	}
}

/* The kernel sets are shared with the parent; sleepers were its threads. */
void nt_epoll_fork_child(void)
{
	for (struct nt_epoll *ep = nt.epolls; ep; ep = ep->next) {
		ep->waiters = NULL;
		/* The set's own eventfd is the parent's object too: a new one is made on demand. */
		if (ep->wakefd >= 0)
			nt_real.close(ep->wakefd);
		ep->wakefd = -1;
		ep->owner_pid = 0;
	}
}
