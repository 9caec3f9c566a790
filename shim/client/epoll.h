/* epoll.h - shared by epoll.c, epoll_set.c and epoll_nest.c. All of it is guarded by nt.watch_lock. */
#ifndef NT_EPOLL_H
#define NT_EPOLL_H

#include "internal.h"

static const uint32_t SET_ENTRY = UINT32_MAX;	/* nt_epitem.sock: the descriptor is a set itself */

static const uint64_t EPOLL_MAGIC = 0x9d3f5b7c2e61a84full;	/* data of our own eventfds in a kernel set */

/*
 * Life of an entry: sock == 0 (not in the set) -> added -> queued / not queued -> removed.
 * `off`: ONESHOT fired; reports nothing until EPOLL_CTL_MOD.
 *
 * A set in a set: the kernel's set has it as any descriptor of the kernel, with the program's data, until something
 * of ours is inside. From then on it is a `twin`: what the kernel says is of its kernel part, and comes to the entry.
 */
struct nt_epitem {
	struct nt_watch watch;		/* first: nt_watch_* and nt_epoll_fire get this address */
	struct nt_epoll *ep;
	struct nt_epitem *next_ready;
	uint64_t data;
	uint32_t sock;			/* or SET_ENTRY */
	uint32_t events;
	uint32_t kernel_bits;		/* what the kernel said of the twin since the last report */
	int fd;
	bool queued, off;
	bool twin;			/* in the kernel set, with TWIN | fd */
	uint32_t call;			/* epoll_wait() that reported it last */
};

/* The first cache line has what an event looks at; a wait needs the second one, too. */
struct nt_epoll {
	int epfd;			/* one of its numbers */
	int wakefd;			/* -1: none of ours was ever added */
	uint32_t owner_pid;		/* whose process eventfd is in the kernel set */
	uint32_t nours;			/* sockets, and sets with something of ours inside */
	uint32_t nkernel;		/* kernel descriptors; never too low */
	neat_a32 inside;		/* threads in the kernel's wait on epfd */
	struct nt_epitem *items;	/* [NEAT_FDS_MAX], mapped at the first entry */
	struct nt_epitem *ready, **ready_tail;
	struct nt_stay *waiters;
	struct nt_watch *watch;		/* who watches the set: entries of other sets, threads in poll() */

	int64_t kernel_empty_ns;	/* when a look at the kernel set last found nothing */
	bool spin;			/* the last wait was ended by one of ours */
	bool twin_news;			/* a twin was queued by the last look at the kernel set */
	bool ours;			/* something of ours is, or was, in it or in a set in it */
	neat_a32 exposed;		/* somebody watches the kernel set: no eventfd of ours may be in there */
	uint32_t calls;			/* of epoll_wait() that had something to report */
	uint32_t nsets;			/* entries that are sets */
	uint32_t numbers;		/* descriptors of this process that name it, by dup() */
	int kept;			/* its number in the library once the program's went, -1 none; then it is epfd */
	bool live;			/* false: memory for the next set */
	struct nt_epoll *next;
	neat_a32 callers;		/* calls that are inside, or looked whether they are; last, see epoll_set.c */
};

/* ---- epoll_set.c ---- */
struct nt_epoll *epoll_find(int epfd);
/* The set, which does not go before epoll_leave(); or NULL. */
struct nt_epoll *epoll_enter(int epfd);
void epoll_leave(struct nt_epoll *ep);	/* not under watch_lock; NULL: nothing */
/* The number's set, made if there is none. Not under watch_lock. NULL: no memory. */
struct nt_epoll *epoll_make(int epfd, uint32_t nkernel);
int epoll_map_items(struct nt_epoll *ep);	/* under watch_lock, as the next one */
void epoll_unname(struct nt_epoll *ep, int fd);	/* fd does not name it any more */

/* ---- epoll.c ---- */
int epoll_kernel_ctl(int epfd, int op, int fd, uint32_t events, uint64_t data);
int epoll_ctl_kernel(struct nt_epoll *ep, int epfd, int op, int fd, struct epoll_event *ev);
void epoll_twin_ctl(struct nt_epitem *i, int op);
/* The number's entry from now on, in place of any other; the caller counts it. Under watch_lock, as the next two. */
void epoll_item_new(struct nt_epoll *ep, int fd, uint32_t sock, const struct epoll_event *ev);
void epoll_item_change(struct nt_epitem *i, const struct epoll_event *ev);
void epoll_item_remove(struct nt_epitem *i);
struct nt_epitem *epoll_dequeue(struct nt_epoll *ep);
unsigned epoll_item_bits(struct nt_epitem *i);		/* of those asked for, the ones that hold */
void epoll_queue_now(struct nt_epoll *ep, int fd);	/* not under watch_lock */

/* ---- epoll_nest.c ---- */
void epoll_ring(int efd);
/* Before the first entry of ours and in a forked child; not under watch_lock. 0 or -errno. */
int epoll_prepare(struct nt_epoll *ep);
bool epoll_has_ready(struct nt_epoll *ep);	/* by what is ours in it */
void epoll_tell(struct nt_epoll *ep);		/* who watches the set hears that something in it is ready */
void epoll_drop_watches(struct nt_epoll *ep);	/* the set dies */
/* The descriptor is the set `child`; not under watch_lock. */
int epoll_ctl_set(struct nt_epoll *ep, struct nt_epoll *child, int epfd, int op, int fd, struct epoll_event *ev);
/* As nt_sleep_kernel(), in a set that is exposed. 1: its kernel set has something to report. */
int epoll_sleep_exposed(struct nt_epoll *ep, struct nt_stay *s, int64_t deadline_ns, const sigset_t *mask);

#endif
