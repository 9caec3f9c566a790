/*
 * internal.h - what the files of client/ share: the process's state, waiters, and small helpers.
 *
 * Two kinds of state: shared memory (neat_abi.h), and the one struct nt_process below, which is this
 * process's own; fork copies it and nt_fork_child() mends it. Lock order: table, scale, control, arm, watch,
 * epoll.lock, channel; a lock is held over no system call but the control socket's.
 */
#ifndef NT_INTERNAL_H
#define NT_INTERNAL_H

#include "client.h"
#include <errno.h>

#if defined(__GNUC__)
#define NT_HIDDEN __attribute__((visibility("hidden")))
#define NT_LIKELY(x) __builtin_expect(!!(x), 1)
#define NT_UNLIKELY(x) __builtin_expect(!!(x), 0)
#endif

/* A lock of this process: 0 free, 1 held, 2 held and waited for. */
struct nt_lock { neat_a32 v; };
void nt_lock(struct nt_lock *l);
void nt_unlock(struct nt_lock *l);
bool nt_trylock(struct nt_lock *l);

/*
 * A sleeping thread. Wake: store 1 to `signaled`, then a futex wake, or a write to `efd` if the
 * thread sleeps in the kernel's poll (efd >= 0). In a struct nt_stay.
 */
struct nt_waiter {
	neat_a32 signaled;
	int efd;
};

/*
 * A watch ties a socket record to who wants to hear of it. Watches of one record form a list
 * (nt_local.watch), guarded by nt.watch_lock.
 *  WATCH_WAITER  a thread in a blocking call or in poll/select
 *  WATCH_EPOLL   an entry of an epoll set
 */
enum nt_watch_kind { WATCH_WAITER = 1, WATCH_EPOLL = 2 };
struct nt_watch {
	struct nt_watch *next, **prev;	/* prev NULL = in no list */
	enum nt_watch_kind kind;
	uint32_t sock;
	void *owner;			/* struct nt_waiter or struct nt_epitem */
};

enum { NT_KERNEL_LOOK_NS = 50000 };	/* while ours are ready all the time, a set's kernel part is looked at no more often */

/*
 * What a call that blocks has put where others see it. It is not on the stack, for a handler may leave the call by
 * siglongjmp(): then the thread's next call that blocks, or its end, takes all of it back (stay.c).
 */
enum { NT_WATCHES = 64 };
enum nt_armed { NT_NOT_ARMED = 0, NT_ARMED_FUTEX, NT_ARMED_KERNEL };
struct nt_stay {
	struct nt_waiter w;
	enum nt_armed armed;		/* counts among nt.sleepers */
	int cancel;			/* NT_ARMED_KERNEL: the thread's cancellation state before */
	int ran;			/* the signal whose handler ran in the sleep, 0 = none */
	bool polls;			/* poll(2), epoll_wait(2): no handler restarts it */
	bool uninterruptible;		/* handlers wait until it is over */
	bool listed, inside, counted;	/* in ep: in `waiters`, in `inside`, in `callers` */
	struct nt_epoll *ep;
	struct nt_stay *next;		/* in ep->waiters, or in the pool */
	struct nt_stay *outer;		/* of this thread: a handler came in between, or left it */
	uintptr_t stack;		/* nt_in of its call */
	struct nt_watch *watch;		/* `few`, or `mapped` */
	uint32_t watches;
	void *mapped;			/* to be unmapped if the call is left */
	size_t mapped_size;
	struct nt_watch few[NT_WATCHES];
};

/* What this process remembers of a record; valid while gen matches. */
struct nt_local {
	uint32_t gen;
	struct nt_watch *watch;
};

struct nt_replica {
	const struct neat_seg_pub *pub;
	struct neat_seg_app *app;
	struct neat_channels *channels;
	struct neat_channel *ch;	/* ours among them */
	const struct neat_replica_status *status;
	uint64_t bit;			/* of our channel in sub/ev_pend */
	uint64_t cmd_tail;		/* under cmd_lock; ch->cmd_tail follows it */
	uint64_t ev_head;
	uint32_t overflow_seen;
	struct nt_lock cmd_lock;	/* producers of ch->cmd in this process */
	struct nt_lock ev_lock;		/* consumer of ch->ev in this process */
	neat_a32 bell_owed;		/* doorbells put off to the end of the batch */
	uint32_t *sock_of;		/* [NEAT_SLOTS] record behind a slot, 0 = none of ours */
};

/*
 * DETACHED  nothing of ours exists; every fd is the kernel's
 * ATTACHED  the maps below are valid
 * FAILED    attach failed and was reported; sockets stay with the kernel
 */
enum nt_phase { NT_DETACHED = 0, NT_ATTACHED = 1, NT_FAILED = 2 };

struct nt_process {
	neat_a32 phase;			/* enum nt_phase; release after everything else is set */
	neat_a64 *row;			/* our row of the fd table, NULL while detached */
	struct neat_app *app;
	const struct neat_registry *registry;
	struct nt_local *local;		/* [NEAT_SOCKS_MAX] */
	uint32_t app_id;
	uint32_t proc;			/* index of our row */
	uint32_t nreplicas;		/* mapped: indices 0..n-1 */
	neat_a32 live;			/* mask of those that exist; our channel to them is open */
	neat_a32 scaled;		/* registry.scaled that `live` and the subscriptions are of */
	uint32_t spin_us;
	uint64_t instance;
	int control_fd;			/* -1 none */
	bool introduced;		/* control_fd is ours alone; false in a child that wanted nothing of neatd so far */
	bool resubscribe;		/* forked: what the parent watched has not our bit yet */
	uint32_t channel_gen;		/* neat_channels.open of our channels */
	bool ncpu_one;
	neat_a64 over_ns;		/* when we heard that the instance has ended; 0 = it has not */
	neat_a32 over_fired;		/* all watchers were told of that, once nobody had anything left to say */
	neat_a32 silent;		/* mask of replicas that ended with it and never said so: we act as if they had */
	neat_a32 eventfd;		/* fd + 1 of the process's eventfd; 0 = not made yet */
	neat_a32 eventfd_said;		/* neatd was told of it */
	neat_a32 confined;		/* a filter of system calls is there: futex_waitv(2) may be death */
	neat_a32 rung;			/* threads that it was rung for and that have not left the kernel's poll */
	uint32_t pid;
	uint32_t request_seq;		/* under control_lock */
	struct nt_lock scale_lock;	/* changes of `live` */
	struct nt_lock control_lock;	/* one request at a time on control_fd */
	struct nt_lock table_lock;	/* changes of our row */
	struct nt_lock watch_lock;
	struct nt_lock arm_lock;	/* sleepers, and the asleep words of all channels */
	uint32_t sleepers, kernel_sleepers;
	struct nt_epoll *epolls;	/* list of live epoll sets, under watch_lock */
	struct nt_epoll **epoll_of;	/* [NEAT_FDS_MAX] */
	uint32_t epoll_high;		/* entries of epoll_of end below this */
	struct nt_replica rep[NEAT_REPLICAS_MAX];
	char socket_path[108];
};
extern NT_HIDDEN struct nt_process nt;

#define NT_EACH_REPLICA(i) \
	for (uint32_t left_##i = a32_acquire(&nt.live), i = 0; \
	     left_##i && (i = (uint32_t)__builtin_ctz(left_##i), true); left_##i &= left_##i - 1)

static inline bool nt_on(void) { return NT_LIKELY(nt.row != NULL); }
/* Callers name record 0 before they know whether there is one, also while nt.app is NULL. */
static inline struct neat_sock *nt_sock(uint32_t i)
{
	return (struct neat_sock *)((uintptr_t)nt.app + offsetof(struct neat_app, socks)) + (i & (NEAT_SOCKS_MAX - 1));
}

static inline uint32_t nt_handle(uint32_t sock) { return neat_sock_handle(sock, a32_relaxed(&nt_sock(sock)->gen)); }

/* One fd-table word: [flags 16][gen 16][sock 32]. */
static inline uint64_t nt_fdword(uint32_t flags, uint32_t gen, uint32_t sock)
{
	return (uint64_t)(flags & 0xffff) << 48 | (uint64_t)(gen & 0xffff) << 32 | sock;
}
static inline uint32_t nt_fdword_flags(uint64_t w) { return (uint32_t)(w >> 48); }
static inline uint32_t nt_fdword_gen(uint64_t w) { return (uint32_t)(w >> 32) & 0xffff; }
static inline uint32_t nt_fdword_sock(uint64_t w) { return (uint32_t)w & (NEAT_SOCKS_MAX - 1); }

/* The connection behind a record in state CONNECT. */
struct nt_conn {
	const struct neat_slot_pub *pub;
	struct neat_slot_app *app;
	struct nt_replica *rep;
	uint32_t slot;
	uint32_t gen;
	uint32_t handle;	/* its record, in the life that the caller's descriptor names */
};
static inline struct nt_conn nt_conn_at(uint32_t replica, uint32_t slot, uint32_t gen)
{
	struct nt_replica *r = &nt.rep[replica & (NEAT_REPLICAS_MAX - 1)];

	slot &= NEAT_SLOTS - 1;
	return (struct nt_conn){ &r->pub->slots[slot], &r->app->slots[slot], r, slot, gen, 0 };
}
static inline struct nt_conn nt_conn(const struct neat_sock *s)
{
	return nt_conn_at(s->replica, s->slot, s->slot_gen);
}

/*
 * Calls hold no reference to the record while they run: another thread may close its last descriptor meanwhile,
 * and then record and slot are soon somebody else's. Who gives a slot up says so in the record, then goes through
 * its rx_lock and tx_lock (nt_pass_locks()). So whoever holds one of them, and sees the record as it was, has the
 * slot until he unlocks.
 */
static inline bool nt_live(uint32_t handle)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);

	return neat_refs_counted(a32_acquire(&nt_sock(sock)->refs)) && nt_handle(sock) == handle;
}
static inline struct nt_conn nt_conn_of(uint32_t handle)
{
	struct nt_conn c = nt_conn(nt_sock(handle));

	c.handle = handle;
	return c;
}

/* ---- time (CLOCK_MONOTONIC; the vDSO, no system call) ---- */
static inline int64_t nt_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
/* Absolute deadline of a timeout; INT64_MAX = never. */
static inline int64_t nt_deadline(int64_t timeout_ns)
{
	int64_t now;

	if (timeout_ns < 0)
		return INT64_MAX;
	now = nt_now_ns();
	return timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
}

/* Of SO_RCVTIMEO and SO_SNDTIMEO, as they are in the record. */
#define NT_TIMEO_OVER UINT32_MAX
static inline int64_t nt_deadline_ms(uint32_t ms) { return nt_deadline(ms == NT_TIMEO_OVER ? 0 : ms * 1000000ll); }
uint32_t nt_tid(void);
uint32_t nt_random32(void);

/* ---- real.c ---- */
void nt_real_init(void);

/* The record of a datagram socket, or one that became the kernel's: dgram.c takes every call. */
static inline bool nt_is_dgram(const struct neat_sock *s)
{
	uint32_t state = a32_acquire(&s->state);

	return NT_UNLIKELY(state == NEAT_SOCK_DGRAM || state == NEAT_SOCK_KERNEL);
}

static inline bool nt_nonblocking(const struct neat_sock *s, int flags)
{
	return flags & MSG_DONTWAIT || a32_relaxed(&s->flags) & NEAT_SOCKF_NONBLOCK;
}

/* ---- session.c ---- */
int nt_request(void *msg, size_t len, int fd, void *reply, size_t reply_len, uint16_t want);
void nt_notify_neatd(void *msg, size_t len, int fd);
void nt_session_forked(void);		/* neatd is to look for children */
int nt_process_eventfd(void);		/* creates it on first use and tells neatd; -errno */
bool nt_eventfd_known(void);		/* replicas have it; if not, neatd is told again if need be */
int nt_high_fd(int fd);			/* moves fd out of the program's way, CLOEXEC */
void *nt_map_private(size_t size);

/* ---- fdtable.c ---- */
void nt_exec_sweep(void);		/* after exec: CLOEXEC entries and stale ones go */
/* A record of its own, in state NEW, behind the fd, which is open. -EMFILE: beyond the table; -ENFILE: no record left. */
int nt_fd_new_sock(int fd, uint32_t flags, uint32_t *sock);
/*
 * One more entry, `at`, whose page is there, for the record that `word` names. False, and `at` as it was: another
 * thread has closed that one meanwhile.
 */
NEAT_CHECKED bool nt_fd_copy(neat_a64 *at, uint64_t word);
void nt_sock_unref(uint32_t sock);	/* last one: FIN, port freed */
/*
 * Whoever waited has to ask whether its record is still in the same life, before it stores there. True: it is, and stays
 * so until nt_fd_unpin(), which may close it; until then table_lock is held.
 */
NEAT_CHECKED bool nt_fd_pin(uint32_t handle);
void nt_fd_unpin(void);
void nt_fd_mark_internal(int fd);
void nt_fd_close_internal(int fd);
uint32_t nt_fd_handle(int fd);		/* nt_lookup(), with the record's life; 0: none */
uint32_t nt_fd_flags(int fd);
void nt_fd_set_flags(int fd, uint32_t flags);
/* Locks in shared memory name their holder and are recovered when it is dead. */
void nt_drop_slot(struct neat_sock *s);	/* CMD_CLOSE; the slot may be claimed again */
void nt_pass_locks(struct neat_slot_app *w);	/* whoever is between lock and unlock afterwards knows that it goes */
void nt_drop_subsockets(struct neat_sock *s);
void nt_tid_lock_slow(neat_a32 *l);
static inline void nt_tid_lock(neat_a32 *l)
{
	if (NT_UNLIKELY(!a32_cas(l, 0, nt_tid())))
		nt_tid_lock_slow(l);
}
static inline void nt_tid_unlock(neat_a32 *l) { a32_release(l, 0); }
/* False, and not locked: the connection is not the record's any more. */
static inline bool nt_conn_lock(const struct nt_conn *c, neat_a32 *l)
{
	const struct neat_sock *s = nt_sock(c->handle);

	nt_tid_lock(l);
	if (NT_LIKELY(nt_live(c->handle) && s->slot == c->slot && s->slot_gen == c->gen &&
		      &nt.rep[s->replica & (NEAT_REPLICAS_MAX - 1)] == c->rep &&
		      !(a32_relaxed(&s->flags) & NEAT_SOCKF_LEAVING) && neat_owner(c->app, c->gen) == c->handle))
		return true;
	a32_cas(l, nt_tid(), 0);	/* the slot's next use has reset it, perhaps */
	return false;
}
/*
 * tx_lock, for changes of words that the replica reads; by calls that a signal handler may make, so it may be
 * ours already. NT_LOST: not the record's any more.
 */
enum nt_entered { NT_LOST = 0, NT_LOCKED = 1, NT_OURS = 2 };
NEAT_CHECKED enum nt_entered nt_conn_enter(const struct nt_conn *c);
void nt_conn_leave(const struct nt_conn *c, enum nt_entered how);
/* What a call on it says then. */
static inline int nt_lost(uint32_t handle) { return nt_live(handle) ? -ENOTCONN : -EBADF; }

/* ---- replicas.c ---- */
void nt_replicas_changed(void);
uint32_t nt_replicas_at_attach(void);	/* mask */
/* Replica for a new connection; -1: the kernel's. */
int nt_choose_replica(const struct neat_sock *s, uint32_t addr, uint16_t port);
/* Replicas came or went, or listeners got subsockets in others, since we last looked. */
static inline void nt_replicas_look(void)
{
	if (NT_UNLIKELY(a32_acquire(&nt.registry->scaled) != a32_relaxed(&nt.scaled)))
		nt_replicas_changed();
}

/* ---- channel.c ---- */
void nt_channel_open(uint32_t replica);	/* under the generation that nt_channels_open() chose */
void nt_command(struct nt_replica *r, enum neat_cmd op, uint32_t gen, uint32_t slot);
/* NEAT_CMD_CONNECT. False: that replica takes none any more, and never saw this one. */
NEAT_CHECKED bool nt_command_connect(struct nt_replica *r, uint32_t gen, uint32_t slot);
void nt_kick(const struct nt_conn *c);
uint32_t nt_note_cpu(void);		/* which it is */
void nt_bells(void);			/* doorbells that were put off */
void nt_wake_replicas(void);		/* all of them, whatever their words say */
void nt_batch(bool on);			/* this thread works through a batch: bells may wait while the replica naps */
void nt_channels_open(void);		/* for the process that nt.proc names */
void nt_channels_close(uint32_t proc);	/* of a dead process */
void nt_drain(void);			/* takes events, marks and wakes, or leaves them to who does it already */
void nt_drain_all(void);		/* what is pending is taken when it returns, by us or another thread */
bool nt_events_pending(void);
/* The whole instance has ended, and the first caller said so: whatever is asked for now is the kernel's. */
bool nt_over(void);
/*
 * The same for who waits: true when nothing is left to wait for. Until all replicas have said it the deadline is
 * moved to where those that died without a word are given up. Before the look at what is waited for.
 */
bool nt_over_for_waiters(int64_t *deadline_ns);
/* Also wakes who waits, once replicas have said it or died without a word. Not under watch_lock. */
void nt_over_look(void);
/*
 * When a sleeper is to look, at the latest: every process of the instance may be killed at once, then nobody
 * wakes it. At most deadline_ns.
 */
int64_t nt_over_next_look(int64_t deadline_ns);

/* ---- watch.c ---- */
void nt_watch_add(struct nt_watch *w, uint32_t sock, enum nt_watch_kind kind, void *owner);
void nt_watch_add_locked(struct nt_watch *w, uint32_t sock, enum nt_watch_kind kind, void *owner);	/* under watch_lock */
void nt_watch_attach(uint32_t sock);	/* the record got its slot(s): subscribe if anybody watches */
void nt_watch_fire(uint32_t sock);	/* an event came */
void nt_watch_fire_all(void);
void nt_watch_forget(uint32_t sock);	/* the record dies */
void nt_watch_fork_child(void);
void nt_watch_resubscribe(void);	/* in a forked child: what the parent watched is watched by us too */
void nt_watch_rescaled(void);		/* listeners may have subsockets elsewhere */
void nt_watch_link(struct nt_watch *w, struct nt_watch **list);	/* under watch_lock, as the next one */
void nt_watch_unlink(struct nt_watch *w);
/* Our ev_pend bit is cleared: whatever changes after this is posted again. */
void nt_watch_look(uint32_t sock);

/* ---- signal.c ---- */
/*
 * Before a sleep that a handler may end: from here on handlers run at once, until the caller sets nt_in again. Not 0:
 * that one had waited and has run, so the sleep is over.
 */
NEAT_CHECKED int nt_handlers_in(void);
/* The same before a wait with a mask of the program's, which does not end by a signal that the mask keeps out. */
NEAT_CHECKED bool nt_handlers_in_masked(const sigset_t *mask);
/*
 * The handler that ran in the sleep before this look, 0 = none. It ends the call (signal(7)) unless there is what it waits for: a
 * sleep that ended for a reason of ours, as when a replica gets to know our eventfd, does not say EINTR.
 */
int nt_handler_ran(void);
void nt_forget_held(void);		/* in a forked child: it is the parent's */
/* A handler with SA_RESTART is installed: a futex wait would not be interrupted by it, but poll(2)
 * and epoll_wait(2) must be (signal(7)), so they sleep in the kernel's own calls. */
bool nt_restarts(void);
bool nt_has_restart(int sig);		/* its handler */
/* ---- stay.c ---- */
/* For a call that blocks; NULL: no memory. */
struct nt_stay *nt_stay_begin(void);
void nt_stay_end(struct nt_stay *s);
struct nt_stay *nt_stay_top(void);	/* of this thread: the call that sleeps, if one does */
bool nt_stay_mine(const void *waiter);	/* of this thread */
void nt_stays_init(void);

/* ---- wait.c ---- */
/* Before a look at levels or the ready list: who changes them later signals, whoever signaled earlier is seen (Dekker). */
void nt_waiter_begin(struct nt_waiter *w);
void nt_wake(struct nt_waiter *w);
bool nt_spin(struct nt_waiter *w, int64_t deadline_ns);	/* true: signaled */
/* Sleeps until signaled, an event, the deadline or a signal: 0, -ETIMEDOUT, -EINTR. */
int nt_sleep(struct nt_stay *s, int64_t deadline_ns);
/* The same inside a kernel wait, which `enter` performs, until the deadline it is given. Its result. */
int nt_sleep_kernel(struct nt_stay *s, int (*enter)(void *, int64_t), void *arg, int64_t deadline_ns);
/* The same by the process's eventfd, which becomes *ours, a part of what `enter` polls. -errno if that fails. */
int nt_sleep_poll(struct nt_stay *s, struct pollfd *ours, int (*enter)(void *, int64_t), void *arg, int64_t deadline_ns);
/* ppoll(2), until the deadline, with handlers let in. */
int nt_ppoll(struct pollfd *fds, nfds_t n, int64_t deadline_ns, const sigset_t *mask);
/* What the process's eventfd counted so far is history for the caller, who is about to arm. 0 or -errno. */
int nt_eventfd_drop(int efd);
/* A handler is about to run in the sleep, which it may not come back to: how it was armed. */
enum nt_armed nt_sleep_pause(struct nt_stay *s);
void nt_sleep_resume(struct nt_stay *s, enum nt_armed how);	/* it came back */
/* pthread_testcancel(), where nothing is held: cleanup handlers of the program run outside, as those of signals. */
void nt_cancellation_point(void);
/* Waits until ready(arg) holds. 0, -ETIMEDOUT, -EINTR, -ENOMEM; -ENETDOWN: the instance has ended. */
int nt_wait_sock(uint32_t sock, bool (*ready)(void *), void *arg, int64_t deadline_ns);
/* The same for what a replica does at once, or its successor; no signal ends it. Locks of the caller's may be held. */
void nt_wait_replica(uint32_t sock, bool (*ready)(void *), void *arg);

/* ---- io.c ---- */
bool nt_writable(const struct nt_conn *c);
uint64_t nt_readable(const struct nt_conn *c);
size_t nt_rcvlowat(const struct neat_sock *s);	/* bytes that make it readable: SO_RCVLOWAT, but reachable */

/* ---- readiness: poll.c ---- */
/*
 * A wait found nothing and its time is over: a signal that is pending and that its mask lets in is delivered (-EINTR), as
 * do_poll() in Linux looks for one before the time. 0: there is none.
 */
int nt_let_in(const sigset_t *mask);
unsigned nt_ready(uint32_t sock);	/* EPOLL* bits that hold now */
/* nt_poll() of this thread said EINTR, as whatever handler makes it: that one had SA_RESTART. */
bool nt_poll_restarts(void);

/* ---- epoll.c, epoll_set.c ---- */
void nt_epoll_fire(void *item);		/* under watch_lock */
void nt_epoll_dead(void *item);		/* under watch_lock: its record is gone */
void nt_epoll_fd_closed(int fd);	/* fd is the program's, ours or kernel's, or an epoll set */
/*
 * Before the kernel closes or replaces it: if it is the last number of an epoll set that threads wait in, the kernel's
 * set stays open for them.
 */
void nt_epoll_keep(int fd);
void nt_epoll_range_closed(uint32_t first, uint32_t last);
bool nt_epoll_known(int fd);		/* an epoll set of this process */
void nt_epoll_dup(int oldfd, int newfd);	/* after the kernel's dup(): one set, two numbers */
void nt_epoll_to_kernel(int fd);		/* the record became the kernel's: entries move there */
void nt_epoll_twin(uint32_t sock);		/* its kernel side counts from now on */
void nt_epoll_fork_threads(void);	/* those of the parent do not exist in the child */
void nt_epoll_passes_on(struct nt_stay *s);	/* a handler runs in its sleep: another waiter has what is ready */
void nt_epoll_left(struct nt_stay *s);		/* by siglongjmp() or at the thread's end */
void nt_epoll_fork_child(void);
/* ---- epoll_nest.c: for poll() ---- */
/*
 * The kernel may be asked about this set from now on, and `waiter`, if any, is woken for the rest. True: something of ours
 * is in it.
 */
bool nt_epoll_watch(struct nt_watch *w, int fd, struct nt_waiter *waiter);
unsigned nt_epoll_ready(int fd);	/* EPOLL* bits by what is ours in it */

/* ---- accept.c ---- */
bool nt_acceptable(const struct neat_sock *s);

/* ---- sock.c ---- */
/* A placeholder with a record behind it: fd or -errno. `flags`: SOCK_CLOEXEC counts. */
int nt_placeholder(int flags, uint32_t *sock);
uint32_t nt_conn_flags(const struct nt_conn *c);	/* of the slot; those of a dead one if it was reused */
int nt_take_error(const struct nt_conn *c);	/* SO_ERROR, consumed: -errno or 0 */
bool nt_has_error(const struct nt_conn *c, uint32_t flags);

int nt_parse_address(const struct sockaddr *sa, socklen_t len, uint32_t *addr, uint16_t *port);
/* -EFAULT, -EINVAL as the kernel for a wrong pointer or length. */
NEAT_CHECKED int nt_store_address(struct sockaddr *out, socklen_t *len, uint32_t addr, uint16_t port);
bool nt_address_is_ours(uint32_t addr, bool *on_link);
uint32_t nt_claim_slot(uint32_t r, uint32_t *gen);	/* 0: none */

/* ---- dgram.c: datagram sockets (L9); fd is one of ours. NT_KERNEL: the real call, on the same fd ---- */
int nt_dgram_socket(int type);
int nt_dgram_bind(int fd, const struct sockaddr *sa, socklen_t len);
int nt_dgram_connect(int fd, const struct sockaddr *sa, socklen_t len);
int nt_dgram_shutdown(int fd, int how);
int nt_dgram_getsockname(int fd, struct sockaddr *addr, socklen_t *len);
int nt_dgram_getpeername(int fd, struct sockaddr *addr, socklen_t *len);
int nt_dgram_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int nt_dgram_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
void nt_dgram_drop(uint32_t sock);	/* its slots and its port are given up */
/* ---- dgram_move.c ---- */
void nt_dgram_follow(void);		/* homes of ports may move */
/* ---- dgram_io.c ---- */
ssize_t nt_dgram_recvmsg(int fd, struct msghdr *m, int flags);
ssize_t nt_dgram_sendmsg(int fd, const struct msghdr *m, int flags);	/* msg_name: checked by the caller */
unsigned nt_dgram_ready(const struct neat_sock *s);	/* EPOLL* bits, the twin's excluded */
int nt_dgram_queue(const struct neat_sock *s, bool in);	/* SIOCINQ, SIOCOUTQ */
int nt_dgram_error(const struct neat_sock *s);		/* SO_ERROR, consumed: -errno or 0 */
/* recv and poll look at the kernel's side too. */
static inline bool nt_dgram_twin(const struct neat_sock *s)
{
	return a32_acquire(&s->state) == NEAT_SOCK_DGRAM &&
	       (a32_relaxed(&s->flags) & (NEAT_SOCKF_TWIN | NEAT_SOCKF_PEER)) == NEAT_SOCKF_TWIN;
}

/* ---- opts.c ---- */
#define NT_OPT_EVENTS 0xffff0000u	/* counts of enum neat_opt_flags, 8 bits each */

/* Flags with one more of `event` (its lowest bit), 0 = none. */
static inline uint32_t nt_event_counted(uint32_t flags, uint32_t event)
{
	uint32_t mask = 0xff * event;

	return (flags & ~mask) | ((flags + event) & mask);
}
void nt_opts_publish(uint32_t sock);	/* the record's options become the connection's */
void nt_opts_to_kernel(const struct neat_sock *s, int fd);

#endif
