/*
 * epoll.c - epoll sets that hold our sockets and the kernel's descriptors (contract S3).
 *
 * The program's epoll fd is the kernel set and holds only kernel descriptors, plus two eventfds of
 * ours: the process's one (exclusive, so one sleeper wakes) and the set's own, unless somebody watches the
 * set (epoll_nest.c). Our entries live beside it. An event queues its entry; epoll_wait() takes the queue, looks
 * at each entry's level words and reports; a level-triggered entry that was reported goes to the tail again, as in
 * Linux.
 *
 * Everything here is guarded by nt.watch_lock. Differences from epoll(7): docs/differences.md.
 */
#define _GNU_SOURCE
#include "epoll.h"
#include <sys/single_threaded.h>
#include <sys/syscall.h>
#include <unistd.h>

static const uint64_t TWIN = 0x6b1ed25c90a70000ull;	/* data of a twin in the kernel set: this | fd */
static neat_a32 entries[NEAT_FDS_MAX];			/* of all sets, for each descriptor; changed under watch_lock */

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

struct nt_epitem *epoll_dequeue(struct nt_epoll *ep)
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
	for (struct nt_stay *s = ep->waiters; s; s = s->next)
		if (a32_relaxed(&s->w.signaled) != 1) {
			nt_wake(&s->w);
			return;
		}
}

void nt_epoll_fire(void *item)
{
	struct nt_epitem *i = item;

	enqueue(i);
	wake_one(i->ep);
	if (NT_UNLIKELY(i->ep->watch) && !i->off && epoll_item_bits(i))
		epoll_tell(i->ep);
}

int epoll_kernel_ctl(int epfd, int op, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };

	return nt_real.epoll_ctl(epfd, op, fd, &ev) ? -errno : 0;
}

void epoll_twin_ctl(struct nt_epitem *i, int op)
{
	const uint32_t asked = i->sock == SET_ENTRY ? ~0u : EPOLLIN | EPOLLRDNORM | EPOLLET | EPOLLONESHOT;
	int err = epoll_kernel_ctl(i->ep->epfd, op, i->fd, i->events & asked, TWIN | (uint32_t)i->fd);

	if (op == EPOLL_CTL_ADD && (!err || err == -EEXIST)) {
		i->twin = true;
		i->ep->nkernel++;
	} else if (op == EPOLL_CTL_DEL) {
		i->twin = false;
		i->ep->nkernel -= i->ep->nkernel != 0;
	}
}

void epoll_item_remove(struct nt_epitem *i)
{
	bool set = i->sock == SET_ENTRY;

	i->ep->nsets -= set;
	i->ep->nours -= !set || i->twin;
	/* After fork the kernel set is the parent's, too: a child that closes its copy takes nothing out. */
	if (i->twin && i->ep->owner_pid == nt.pid)
		epoll_twin_ctl(i, EPOLL_CTL_DEL);
	i->twin = false;
	nt_watch_unlink(&i->watch);
	unqueue(i);
	a32_add(&entries[i->fd], (uint32_t)-1);
	i->sock = 0;
}

void nt_epoll_dead(void *item)
{
	struct nt_epitem *i = item;

	if (i->sock)
		epoll_item_remove(i);
}

/* ---- the kernel set ---- */

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
 * The kernel's wait until the deadline, with handlers let in. `fine`: the program asked for parts of a millisecond, by epoll_pwait2(), which
 * is no cancellation point here.
 */
static int sleep_in_kernel(int epfd, struct epoll_event *ev, int max, int64_t deadline_ns, bool fine, const sigset_t *mask)
{
	struct timespec t;
	int64_t left;

	if (!fine || deadline_ns == INT64_MAX)
		return nt_real.epoll_pwait(epfd, ev, max, wait_ms(deadline_ns), mask);
	left = deadline_ns - nt_now_ns();
	left = left > 0 ? left : 0;
	t = (struct timespec){ (time_t)(left / 1000000000), (long)(left % 1000000000) };
	return (int)nt_syscall(SYS_epoll_pwait2, epfd, ev, max, &t, mask, (size_t)(_NSIG / 8));
}

static int wait_in_kernel(int epfd, struct epoll_event *ev, int max, int64_t deadline_ns, bool fine, const sigset_t *mask)
{
	uintptr_t in = nt_in;
	int n = -1;

	if (nt_handlers_in_masked(mask))
		errno = EINTR;
	else
		n = sleep_in_kernel(epfd, ev, max, deadline_ns, fine, mask);
	nt_in = in;
	return n;
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
		else if (ev[i].data.u64 != EPOLL_MAGIC)
			ev[k++] = ev[i];
	return n < 0 ? -errno : k;
}

/* *call: which epoll_wait() it is, 0 = it has no number yet. No entry is reported twice by one. */
static int harvest(struct nt_epoll *ep, struct epoll_event *ev, int max, uint32_t *call);

static void tell(struct nt_epoll *ep)
{
	nt_lock(&nt.watch_lock);
	epoll_tell(ep);
	nt_unlock(&nt.watch_lock);
}

static int kernel_look(struct nt_epoll *ep, struct epoll_event *ev, int max, uint32_t *call)
{
	static const struct timespec zero;
	/* No cancellation point, as we may be waiting in the set: wait.c. */
	int n = filter(ep, ev, (int)nt_syscall(SYS_epoll_pwait2, ep->epfd, ev, max, &zero, NULL, 0));

	n = n > 0 ? n : 0;
	if (ep->twin_news && n < max)
		n += harvest(ep, ev + n, max - n, call);
	else if (NT_UNLIKELY(ep->twin_news && ep->watch))
		tell(ep);	/* the kernel's set is silent about it now */
	ep->twin_news = false;
	ep->kernel_empty_ns = n > 0 ? 0 : nt_now_ns();
	return n;
}

/* ---- epoll_ctl ---- */

/* Under watch_lock. */
static void wake_all(struct nt_epoll *ep)
{
	for (struct nt_stay *s = ep->waiters; s; s = s->next)
		nt_wake(&s->w);
}

/* A sleeper that waits for ours only must wait in the kernel from now on. */
static void first_of_kernel(struct nt_epoll *ep)
{
	nt_lock(&nt.watch_lock);
	wake_all(ep);
	nt_unlock(&nt.watch_lock);
}

int epoll_ctl_kernel(struct nt_epoll *ep, int epfd, int op, int fd, struct epoll_event *ev)
{
	if (nt_fd_internal(fd))
		return -EBADF;
	if (nt_real.epoll_ctl(epfd, op, fd, ev))
		return -errno;
	if (ep && op == EPOLL_CTL_ADD && ep->nkernel++ == 0)
		first_of_kernel(ep);
	else if (ep && op == EPOLL_CTL_DEL && ep->nkernel)
		ep->nkernel--;
	return 0;
}

/* Under watch_lock. */
static void add_twin(struct nt_epitem *i)
{
	if (!i->twin)
		epoll_twin_ctl(i, EPOLL_CTL_ADD);
	wake_all(i->ep);
}

void nt_epoll_twin(uint32_t sock)
{
	uint32_t high = a32_relaxed(&nt.app->procs[nt.proc].fd_high);

	nt_lock(&nt.watch_lock);
	for (struct nt_epoll *ep = nt.epolls; ep; ep = ep->next)
		for (uint32_t fd = 0; ep->items && fd < high; fd++)
			if (nt_lookup((int)fd) == sock && ep->items[fd].sock == sock)
				add_twin(&ep->items[fd]);
	nt_unlock(&nt.watch_lock);
}

void epoll_item_change(struct nt_epitem *i, const struct epoll_event *ev)
{
	i->events = ev->events;
	i->data = ev->data.u64;
	i->off = false;
	i->kernel_bits = 0;	/* from before; what holds now the kernel says again */
	if (i->twin)
		epoll_twin_ctl(i, EPOLL_CTL_MOD);
}

void epoll_item_new(struct nt_epoll *ep, int fd, uint32_t sock, const struct epoll_event *ev)
{
	struct nt_epitem *i = &ep->items[fd];

	if (i->sock)
		epoll_item_remove(i);
	i->ep = ep;
	i->fd = fd;
	i->sock = sock;
	a32_add(&entries[fd], 1);
	epoll_item_change(i, ev);
}

/* Under watch_lock. */
static int add_item(struct nt_epoll *ep, int fd, uint32_t handle, const struct epoll_event *ev)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	struct nt_epitem *i;

	/* Another thread closes it: what it names goes through watch_lock after this, or has gone. */
	if (nt_fd_handle(fd) != handle)
		return -EBADF;
	if (epoll_map_items(ep))
		return -ENOMEM;
	i = &ep->items[fd];
	if (i->sock == sock)
		return -EEXIST;
	epoll_item_new(ep, fd, sock, ev);
	/* Who was woken by epoll_prepare() may have found none of ours yet. The bell stays until somebody takes it. */
	if (ep->nours++ == 0 && ep->wakefd >= 0)
		epoll_ring(ep->wakefd);
	nt_watch_add_locked(&i->watch, sock, WATCH_EPOLL, i);
	if (nt_dgram_twin(nt_sock(sock)))
		add_twin(i);
	return 0;
}

static int ctl_add(struct nt_epoll *ep, int fd, uint32_t handle, const struct epoll_event *ev)
{
	int err = epoll_prepare(ep);

	if (err)
		return err;
	nt_lock(&nt.watch_lock);
	err = add_item(ep, fd, handle, ev);
	nt_unlock(&nt.watch_lock);
	return err;
}

/* Under watch_lock. */
static int change_item(struct nt_epoll *ep, int op, int fd, uint32_t sock, const struct epoll_event *ev)
{
	struct nt_epitem *i = ep->items ? &ep->items[fd] : NULL;

	if (!i || i->sock != sock)
		return -ENOENT;
	if (op == EPOLL_CTL_MOD && i->events & EPOLLEXCLUSIVE)
		return -EINVAL;
	if (op == EPOLL_CTL_DEL)
		epoll_item_remove(i);
	else
		epoll_item_change(i, ev);
	return 0;
}

static int ctl_existing(struct nt_epoll *ep, int op, int fd, uint32_t sock, const struct epoll_event *ev)
{
	int err;

	nt_lock(&nt.watch_lock);
	err = change_item(ep, op, fd, sock, ev);
	nt_unlock(&nt.watch_lock);
	return err;
}

/* Added or changed: what holds already is reported by the next wait. */
void epoll_queue_now(struct nt_epoll *ep, int fd)
{
	nt_lock(&nt.watch_lock);
	if (ep->items[fd].sock)
		nt_epoll_fire(&ep->items[fd]);
	nt_unlock(&nt.watch_lock);
}

/* epoll_ctl(2): EPOLLEXCLUSIVE is for ADD, and goes with these only. */
static bool wrong_exclusive(int op, uint32_t events)
{
	const uint32_t with = EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;

	return events & EPOLLEXCLUSIVE && (op == EPOLL_CTL_MOD || events & ~with);
}

/* ep: NULL = made before we were loaded, or no set. */
static int ctl(struct nt_epoll *ep, int epfd, int op, int fd, struct epoll_event *ev)
{
	struct nt_epoll *child = epoll_find(fd);
	uint32_t handle = nt_fd_handle(fd);
	int err;

	if (!handle)
		return child ? epoll_ctl_set(ep, child, epfd, op, fd, ev) : epoll_ctl_kernel(ep, epfd, op, fd, ev);
	if (op != EPOLL_CTL_ADD && op != EPOLL_CTL_MOD && op != EPOLL_CTL_DEL)
		return -EINVAL;
	if (op != EPOLL_CTL_DEL && nt_bad_pointer(ev))
		return -EFAULT;
	if (op != EPOLL_CTL_DEL && wrong_exclusive(op, ev->events))
		return -EINVAL;
	/* It may hold kernel descriptors. */
	if (!ep)
		return epoll_make(epfd, 1) ? nt_epoll_ctl(epfd, op, fd, ev) : -EBADF;
	err = op == EPOLL_CTL_ADD ? ctl_add(ep, fd, handle, ev) :
	      ctl_existing(ep, op, fd, handle & (NEAT_SOCKS_MAX - 1), ev);
	if (!err && op != EPOLL_CTL_DEL)
		epoll_queue_now(ep, fd);
	return err;
}

int nt_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev)
{
	struct nt_epoll *ep = epoll_enter(epfd);
	int err = ctl(ep, epfd, op, fd, ev);

	epoll_leave(ep);
	return err;
}

/* ---- epoll_wait ---- */

/* The number names the set as long as there is the entry. */
static unsigned set_bits(const struct nt_epitem *i)
{
	return epoll_has_ready(nt.epoll_of[i->fd]) ? EPOLLIN | EPOLLRDNORM : 0;
}

static inline unsigned item_bits(struct nt_epitem *i)
{
	const uint32_t always = EPOLLERR | EPOLLHUP;
	unsigned bits;

	if (NT_UNLIKELY(i->sock == SET_ENTRY)) {
		bits = set_bits(i);
	} else {
		/* Our bit is cleared before the look: what changes later queues the entry again. */
		nt_watch_look(i->sock);
		bits = nt_ready(i->sock);
	}
	return (bits | i->kernel_bits) & (i->events | always);
}

unsigned epoll_item_bits(struct nt_epitem *i) { return item_bits(i); }

/* ONESHOT. Where somebody watches the kernel set, or the twin is a set, its kernel part is to be silent, too. */
static void fired(struct nt_epitem *i)
{
	i->off = true;
	if (i->twin && (i->sock == SET_ENTRY || a32_relaxed(&i->ep->exposed)))
		epoll_kernel_ctl(i->ep->epfd, EPOLL_CTL_MOD, i->fd, 0, TWIN | (uint32_t)i->fd);
}

/* What else the kernel said of a set is part of that report; of a level it says it again. */
static void reported_already(struct nt_epitem *i)
{
	bool set = i->sock == SET_ENTRY, edge = i->events & EPOLLET;

	if (set || !edge)
		i->kernel_bits = 0;
	if (!set || !edge)
		enqueue(i);
}

static bool report(struct nt_epitem *i, struct epoll_event *out, uint32_t call)
{
	uint32_t bits;

	if (i->off || !i->sock)
		return false;
	if (NT_UNLIKELY(i->call == call)) {
		reported_already(i);
		return false;
	}
	bits = item_bits(i);
	i->kernel_bits = 0;
	if (!bits)
		return false;
	i->call = call;
	*out = (struct epoll_event){ .events = bits, .data.u64 = i->data };
	if (i->events & EPOLLONESHOT)
		fired(i);
	else if (!(i->events & EPOLLET))
		enqueue(i);
	return true;
}

static int harvest(struct nt_epoll *ep, struct epoll_event *ev, int max, uint32_t *call)
{
	struct nt_epitem *last;
	uint32_t number;
	int n = 0;

	if (!ep->ready)
		return 0;
	nt_lock(&nt.watch_lock);
	if (!*call)
		*call = ++ep->calls ? ep->calls : ++ep->calls;
	number = *call;
	/* Entries queued again by report() go behind `last` and wait for the next call. */
	last = ep->ready ? (struct nt_epitem *)((uint8_t *)ep->ready_tail - offsetof(struct nt_epitem, next_ready)) : NULL;
	while (ep->ready && n < max) {
		struct nt_epitem *i = epoll_dequeue(ep);

		n += report(i, &ev[n], number);
		if (i == last)
			break;
	}
	nt_unlock(&nt.watch_lock);
	return n;
}

struct kernel_wait {
	struct nt_epoll *ep;
	struct nt_stay *s;
	struct epoll_event *ev;
	int max;
	uint32_t call;			/* its number */
	int64_t deadline;
	bool fine;			/* is_fine() */
	const sigset_t *mask;
};

static int enter_epoll(void *arg, int64_t deadline_ns)
{
	struct kernel_wait *k = arg;
	int n = 0;

	k->s->inside = true;
	a32_add(&k->ep->inside, 1);
	neat_fence();	/* before the looks at `exposed` and `nours`: expose() and add_item(), which then ring, are the other halves */
	if (!a32_relaxed(&k->ep->exposed) && (k->s->listed || !k->ep->nours))
		n = wait_in_kernel(k->ep->epfd, k->ev, k->max, deadline_ns, k->fine, k->mask);
	a32_add(&k->ep->inside, (uint32_t)-1);
	k->s->inside = false;
	return n;
}

static void waiter_on(struct nt_epoll *ep, struct nt_stay *s)
{
	nt_lock(&nt.watch_lock);
	s->listed = true;
	s->next = ep->waiters;
	ep->waiters = s;
	nt_unlock(&nt.watch_lock);
}

static void waiter_off(struct nt_epoll *ep, struct nt_stay *s)
{
	struct nt_stay **at = &ep->waiters;

	nt_lock(&nt.watch_lock);
	while (*at && *at != s)
		at = &(*at)->next;
	if (*at)
		*at = s->next;
	s->listed = false;
	/* What we leave behind must not wait for an event that already came. */
	if (ep->ready)
		wake_one(ep);
	nt_unlock(&nt.watch_lock);
}

void nt_epoll_passes_on(struct nt_stay *s)
{
	if (!s->listed)
		return;
	nt_lock(&nt.watch_lock);
	if (s->ep->ready)
		wake_one(s->ep);
	nt_unlock(&nt.watch_lock);
}

void nt_epoll_left(struct nt_stay *s)
{
	if (!s->ep)
		return;
	if (s->inside)
		a32_add(&s->ep->inside, (uint32_t)-1);
	if (s->listed)
		waiter_off(s->ep, s);
	if (s->counted)
		epoll_leave(s->ep);
}

/* Sleeps once; > 0: kernel events in ev; 0: look again; -errno. */
static int epoll_sleep(struct nt_epoll *ep, struct kernel_wait *k)
{
	struct nt_stay *s = k->s;
	int n;

	if (!ep->nkernel && !k->mask && !nt_restarts())
		return nt_sleep(s, k->deadline);
	if (NT_UNLIKELY(a32_relaxed(&ep->exposed))) {
		n = epoll_sleep_exposed(ep, s, k->deadline, k->mask);
		return n > 0 ? kernel_look(ep, k->ev, k->max, &k->call) : n;
	}
	s->w.efd = ep->wakefd;
	n = nt_sleep_kernel(s, enter_epoll, k, k->deadline);
	if (n > 0)
		ep->spin = false;
	return filter(ep, k->ev, n);
}

static int epoll_block(struct nt_epoll *ep, struct kernel_wait *k)
{
	for (;;) {
		int n;

		nt_waiter_begin(&k->s->w);
		n = harvest(ep, k->ev, k->max, &k->call);
		if (n) {
			ep->spin = true;
			return n;
		}
		if (NT_UNLIKELY(nt_handler_ran()))
			return -EINTR;
		if (k->deadline != INT64_MAX && nt_now_ns() >= k->deadline) {
			n = ep->nkernel ? kernel_look(ep, k->ev, k->max, &k->call) : 0;
			return n ? n : nt_let_in(k->mask);
		}
		if ((ep->spin || !ep->nkernel) && nt_spin(&k->s->w, k->deadline))
			continue;
		n = epoll_sleep(ep, k);
		if (n > 0) {
			int rest = n < k->max ? harvest(ep, k->ev + n, k->max - n, &k->call) : 0;

			return n + rest;
		}
		if (n < 0 && n != -ETIMEDOUT)
			return n;
	}
}

/*
 * Until something of ours comes in, by another thread: then the set's eventfd wakes one of those that wait here,
 * and that one the next.
 */
static int wait_kernel_only(struct nt_epoll *ep, struct kernel_wait *k)
{
	int n;

	do
		n = filter(ep, k->ev, enter_epoll(k, k->deadline));
	while (n == 0 && !ep->nours && !a32_relaxed(&ep->exposed) && wait_ms(k->deadline) != 0);
	if (NT_UNLIKELY(ep->wakefd >= 0) && a32_relaxed(&ep->inside))
		epoll_ring(ep->wakefd);
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
			if (ev[i].data.u64 != EPOLL_MAGIC && (ev[i].data.u64 & ~0xffffull) != TWIN)
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

/* Without sleeping. */
static int look(struct nt_epoll *ep, struct kernel_wait *k, int64_t timeout_ns)
{
	int n;

	nt_bells();
	if (NT_UNLIKELY(nt.resubscribe))
		nt_watch_resubscribe();
	if (ep->nours && ep->owner_pid != nt.pid)
		epoll_prepare(ep);
	if (nt_events_pending())
		nt_drain();
	n = harvest(ep, k->ev, k->max, &k->call);
	if (!n && timeout_ns)
		return 0;
	if (!n)
		nt_over_look();
	ep->spin |= n > 0;
	/* With something of ours to report the kernel's may wait, if there was nothing a moment ago. */
	if (ep->nkernel && n < k->max && (n == 0 || nt_now_ns() - ep->kernel_empty_ns >= NT_KERNEL_LOOK_NS))
		n += kernel_look(ep, k->ev + n, k->max - n, &k->call);
	nt_batch(true);
	return n;
}

static int block_in(struct nt_epoll *ep, struct kernel_wait *k)
{
	int n = 0;

	if (!nt_on() || (!ep->nours && ep->wakefd < 0 && !a32_relaxed(&ep->exposed)))
		n = wait_kernel_only(ep, k);
	if (n || !nt_on())
		return n;
	waiter_on(ep, k->s);
	n = epoll_block(ep, k);
	waiter_off(ep, k->s);
	nt_batch(n > 0);
	return n;
}

static int block(struct nt_epoll *ep, struct kernel_wait *k)
{
	int n;

	k->s = nt_stay_begin();
	if (!k->s)
		return -ENOMEM;
	k->s->ep = ep;
	k->s->polls = true;
	k->s->counted = true;	/* should it be left, or the thread be cancelled; otherwise the caller leaves the set */
	n = block_in(ep, k);
	nt_stay_end(k->s);
	return n;
}

static int wait_inside(struct nt_epoll *ep, struct kernel_wait *k, int64_t timeout_ns)
{
	int n = nt_on() ? look(ep, k, timeout_ns) : 0;

	if (n || (timeout_ns == 0 && nt_on()))
		return n;
	k->deadline = nt_deadline(timeout_ns);
	return block(ep, k);
}

int nt_epoll_wait(int epfd, struct epoll_event *ev, int max, int64_t timeout_ns, const sigset_t *mask)
{
	struct kernel_wait k = { .ev = ev, .max = max, .fine = is_fine(timeout_ns), .mask = mask };
	int n;

	if (max <= 0)
		return NT_KERNEL;
	if (NT_UNLIKELY(nt_bad_pointer(ev)))
		return wait_nowhere(epfd, ev, timeout_ns, mask);
	k.ep = epoll_enter(epfd);
	if (!k.ep || (!nt_on() && k.ep->owner_pid)) {
		epoll_leave(k.ep);
		return foreign_wait(epfd, ev, max, timeout_ns, mask);
	}
	n = wait_inside(k.ep, &k, timeout_ns);
	epoll_leave(k.ep);
	return n;
}

/* ---- descriptors come and go ---- */

void nt_epoll_fd_closed(int fd)
{
	struct nt_epoll *ep;

	if (!nt.epolls || (unsigned)fd >= NEAT_FDS_MAX)
		return;
	/*
	 * Not for descriptors in no set: a handler may close them while its thread holds the lock. Who adds this one
	 * in another thread at this moment is too late either way, and what was added before is seen.
	 */
	if (!a32_acquire(&entries[fd]) && !epoll_find(fd))
		return;
	nt_lock(&nt.watch_lock);
	for (ep = nt.epolls; ep; ep = ep->next)
		if (ep->items && ep->items[fd].sock)
			epoll_item_remove(&ep->items[fd]);
	ep = epoll_find(fd);
	if (ep)
		epoll_unname(ep, fd);
	nt_unlock(&nt.watch_lock);
}

/* Under watch_lock. */
static void item_to_kernel(struct nt_epitem *i)
{
	const struct nt_epitem was = *i;

	epoll_item_remove(i);
	was.ep->nkernel++;
	/* Fired and not armed again: nothing is asked for but what cannot be left out. */
	epoll_kernel_ctl(was.ep->epfd, EPOLL_CTL_ADD, was.fd, was.off ? (uint32_t)EPOLLONESHOT : was.events, was.data);
	wake_all(was.ep);
}

void nt_epoll_to_kernel(int fd)
{
	nt_lock(&nt.watch_lock);
	for (struct nt_epoll *ep = nt.epolls; ep; ep = ep->next)
		if (ep->items && ep->items[fd].sock)
			item_to_kernel(&ep->items[fd]);
	nt_unlock(&nt.watch_lock);
}
