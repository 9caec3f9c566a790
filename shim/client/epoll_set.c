/*
 * epoll_set.c - life of an epoll set: its numbers, its memory, and the calls that are inside it.
 *
 * Linux: a call that is inside a set holds its open file, so a close() of the number by another thread ends nothing for
 * it. Here a set goes when it has neither a number nor a caller. A caller that needs the kernel's set after the number
 * went has it under a number of the library's (nt_epoll_keep()).
 *
 * The structs are never unmapped: a caller counts itself first, and sees then whether the number still names the set.
 */
#define _GNU_SOURCE
#include "epoll.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/single_threaded.h>
#include <unistd.h>

static struct nt_epoll *spare;	/* under watch_lock */

struct nt_epoll *epoll_find(int epfd)
{
	return nt.epoll_of && (unsigned)epfd < NEAT_FDS_MAX ? __atomic_load_n(&nt.epoll_of[epfd], __ATOMIC_RELAXED) : NULL;
}

/* ---- callers ---- */

static uint32_t count(neat_a32 *callers, uint32_t n)
{
	uint32_t had;

	if (!__libc_single_threaded)
		return a32_add(callers, n);
	had = a32_relaxed(callers);
	a32_store(callers, had + n);
	return had;
}

struct nt_epoll *epoll_enter(int epfd)
{
	struct nt_epoll *ep;

	while ((ep = epoll_find(epfd)) != NULL) {
		count(&ep->callers, 1);
		/* Behind the count: lose_last() is the other half. */
		if (NT_LIKELY(__atomic_load_n(&nt.epoll_of[epfd], __ATOMIC_SEQ_CST) == ep))
			break;
		epoll_leave(ep);
	}
	return ep;
}

static void destroy(struct nt_epoll *ep);

void epoll_leave(struct nt_epoll *ep)
{
	/* A look behind the count, as in epoll_enter(). */
	if (!ep || count(&ep->callers, (uint32_t)-1) != 1 || NT_LIKELY(__atomic_load_n(&ep->numbers, __ATOMIC_SEQ_CST)))
		return;
	nt_lock(&nt.watch_lock);
	if (ep->live && !ep->numbers && !a32_relaxed(&ep->callers))
		destroy(ep);
	nt_unlock(&nt.watch_lock);
}

/* ---- numbers ---- */

/* Under watch_lock. */
static void name(struct nt_epoll *ep, int epfd)
{
	nt.epoll_of[epfd] = ep;
	ep->numbers++;
	if ((uint32_t)epfd >= nt.epoll_high)
		nt.epoll_high = (uint32_t)epfd + 1;
}

static struct nt_epoll *fresh(void)
{
	struct nt_epoll *ep = spare;

	if (!ep)
		return nt_map_private(sizeof(*ep));
	spare = ep->next;
	memset(ep, 0, offsetof(struct nt_epoll, callers));	/* somebody may be on his way out, by an old number */
	return ep;
}

static struct nt_epoll *make(int epfd, uint32_t nkernel)
{
	struct nt_epoll *ep;

	if (!nt.epoll_of)
		nt.epoll_of = nt_map_private(sizeof(*nt.epoll_of) * NEAT_FDS_MAX);
	ep = nt.epoll_of ? nt.epoll_of[epfd] : NULL;
	if (!nt.epoll_of || ep)
		return ep;
	ep = fresh();
	if (!ep)
		return NULL;
	ep->live = true;
	ep->wakefd = ep->kept = -1;
	ep->nkernel = nkernel;
	ep->ready_tail = &ep->ready;
	ep->next = nt.epolls;
	nt.epolls = ep;
	ep->epfd = epfd;
	name(ep, epfd);
	return ep;
}

struct nt_epoll *epoll_make(int epfd, uint32_t nkernel)
{
	struct nt_epoll *ep;

	if ((unsigned)epfd >= NEAT_FDS_MAX)
		return NULL;
	nt_lock(&nt.watch_lock);
	ep = make(epfd, nkernel);
	nt_unlock(&nt.watch_lock);
	return ep;
}

void nt_epoll_created(int epfd)
{
	nt_epoll_fd_closed(epfd);
	epoll_make(epfd, 0);
}

int epoll_map_items(struct nt_epoll *ep)
{
	if (!ep->items)
		ep->items = nt_map_private(sizeof(*ep->items) * NEAT_FDS_MAX);
	return ep->items ? 0 : -ENOMEM;
}

bool nt_epoll_known(int fd) { return epoll_find(fd) != NULL; }

void nt_epoll_dup(int oldfd, int newfd)
{
	struct nt_epoll *ep;

	if ((unsigned)newfd >= NEAT_FDS_MAX)
		return;
	nt_lock(&nt.watch_lock);
	ep = epoll_find(oldfd);
	if (ep)
		name(ep, newfd);
	nt_unlock(&nt.watch_lock);
}

/* ---- the end ---- */

void nt_epoll_keep(int fd)
{
	struct nt_epoll *ep;

	if (!epoll_find(fd))
		return;
	nt_lock(&nt.watch_lock);
	ep = epoll_find(fd);
	if (ep && ep->numbers == 1 && a32_relaxed(&ep->callers) && ep->kept < 0) {
		int kept = nt_real.fcntl(fd, F_DUPFD_CLOEXEC, 0);

		ep->kept = nt_high_fd(kept);
		if (ep->kept >= 0) {
			nt_fd_mark_internal(ep->kept);
			ep->epfd = ep->kept;
		}
	}
	nt_unlock(&nt.watch_lock);
}

static void close_internal(int fd)
{
	if (fd >= 0)
		nt_fd_close_internal(fd);
}

static void destroy(struct nt_epoll *ep)
{
	struct nt_epoll **at = &nt.epolls;

	for (int fd = 0; (ep->nours || ep->nsets) && fd < NEAT_FDS_MAX; fd++)
		if (ep->items[fd].sock)
			epoll_item_remove(&ep->items[fd]);
	while (*at != ep)
		at = &(*at)->next;
	*at = ep->next;
	close_internal(ep->wakefd);
	close_internal(ep->kept);
	if (ep->items)
		munmap(ep->items, sizeof(*ep->items) * NEAT_FDS_MAX);
	ep->live = false;
	ep->items = NULL;
	ep->next = spare;
	spare = ep;
}

/* Who is inside has the kernel's set by `kept`; without that, EBADF as if he had come a moment later. */
static void lose_last(struct nt_epoll *ep)
{
	epoll_drop_watches(ep);
	neat_fence();	/* no number, before the look at who is inside: epoll_enter() and epoll_leave() are the other half */
	if (a32_relaxed(&ep->callers))
		ep->epfd = ep->kept;
	else
		destroy(ep);
}

void epoll_unname(struct nt_epoll *ep, int fd)
{
	nt.epoll_of[fd] = NULL;
	if (--ep->numbers == 0) {
		lose_last(ep);
		return;
	}
	for (uint32_t i = 0; ep->epfd == fd && i < nt.epoll_high; i++)
		if (nt.epoll_of[i] == ep)
			ep->epfd = (int)i;
}

void nt_epoll_range_closed(uint32_t first, uint32_t last)
{
	for (uint32_t fd = first; nt.epolls && fd <= last && fd < nt.epoll_high; fd++)
		if (nt.epoll_of[fd]) {
			nt_epoll_keep((int)fd);
			nt_epoll_fd_closed((int)fd);
		}
}

/* ---- fork ---- */

/* Calls of this thread, if a handler has forked, go on in the child. */
static void count_own(void)
{
	for (struct nt_stay *s = nt_stay_top(); s; s = s->outer) {
		if (!s->ep)
			continue;
		a32_add(&s->ep->callers, s->counted);
		a32_add(&s->ep->inside, s->inside);
		if (s->listed) {
			s->next = s->ep->waiters;
			s->ep->waiters = s;
		}
	}
}

/* Those of the parent are nobody's in the child. */
void nt_epoll_fork_threads(void)
{
	for (struct nt_epoll *ep = nt.epolls; ep; ep = ep->next) {
		struct nt_watch *next;

		ep->waiters = NULL;
		a32_store(&ep->inside, 0);
		a32_store(&ep->callers, 0);
		for (struct nt_watch *w = ep->watch; w; w = next) {
			next = w->next;
			if (w->kind == WATCH_WAITER && !nt_stay_mine(w->owner))
				nt_watch_unlink(w);
		}
	}
	count_own();
}

/* The kernel sets are shared with the parent. */
void nt_epoll_fork_child(void)
{
	struct nt_epoll *next;

	for (struct nt_epoll *ep = nt.epolls; ep; ep = next) {
		next = ep->next;
		/* The set's own eventfd is the parent's object too: a new one is made on demand. */
		if (ep->wakefd >= 0)
			nt_kernel_close(ep->wakefd);
		ep->wakefd = -1;
		ep->owner_pid = 0;
		if (!ep->numbers)
			destroy(ep);
	}
}
