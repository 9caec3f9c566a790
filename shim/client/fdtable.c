/*
 * fdtable.c - THE fd table: which fd of this process names which socket record, and the life of
 * records (contract L2).
 *
 * The row lives in neat_app and outlives us: neatd derives the reference counts from it after a
 * death. An entry changes by one store. refs is raised before an entry is stored and lowered after
 * it is cleared, so a kill in between leaves refs too high, never too low; nothing that enters the kernel, where
 * kills take effect, comes between the two (decision 77). A last close that a kill cuts
 * short is finished by whoever sweeps the process (neat_abi.h).
 */
#define _GNU_SOURCE
#include "internal.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool in_row(int fd) { return nt.row && (unsigned)fd < NEAT_FD_PIN; }

uint32_t nt_lookup(int fd)
{
	return in_row(fd) ? nt_fdword_sock(a64_relaxed(&nt.row[fd])) : 0;
}

uint32_t nt_fd_handle(int fd)
{
	uint64_t w = in_row(fd) ? a64_relaxed(&nt.row[fd]) : 0;

	return nt_fdword_sock(w) ? neat_sock_handle(nt_fdword_sock(w), nt_fdword_gen(w)) : 0;
}

bool nt_fd_internal(int fd)
{
	return in_row(fd) && nt_fdword_flags(a64_relaxed(&nt.row[fd])) & NEAT_FD_INTERNAL;
}

static uint32_t fd_high(void) { return a32_relaxed(&nt.app->procs[nt.proc].fd_high); }

int nt_next_internal_fd(int from)
{
	if (!nt.row)
		return -1;
	for (uint32_t fd = (uint32_t)from; fd < fd_high(); fd++)
		if (nt_fd_internal((int)fd))
			return (int)fd;
	return -1;
}

static void raise_high(int fd)
{
	neat_a32 *high = &nt.app->procs[nt.proc].fd_high;

	while ((uint32_t)fd >= a32_relaxed(high))
		a32_cas(high, a32_relaxed(high), (uint32_t)fd + 1);
}

void nt_fd_mark_internal(int fd)
{
	if (!in_row(fd))
		return;
	raise_high(fd);
	a64_release(&nt.row[fd], nt_fdword(NEAT_FD_INTERNAL, 0, 0));
}

void nt_fd_close_internal(int fd)
{
	/* First: the number is the program's as soon as the kernel has closed it. */
	if (in_row(fd))
		a64_release(&nt.row[fd], 0);
	nt_kernel_close(fd);
}

/*
 * The entry of an fd that is open already is made ready: what it named is forgotten, and its page is there, so
 * that the store that follows a count enters no kernel. -EMFILE beyond the table.
 */
static int clear_entry(int fd)
{
	if (!in_row(fd))
		return -EMFILE;
	nt_fd_forget(fd);
	raise_high(fd);
	a64_store(&nt.row[fd], 0);
	return 0;
}

/* True: it was the last one, and the record is ours to close. */
static bool unref(neat_a32 *refs)
{
	for (;;) {
		uint32_t had = a32_relaxed(refs);

		if (!neat_refs_counted(had))
			return false;
		if (a32_cas(refs, had, had == 1 ? neat_refs_closing(nt.proc) : had - 1))
			return had == 1;
	}
}

static void finish_close(uint32_t sock);

bool nt_fd_copy(neat_a64 *at, uint64_t word)
{
	uint32_t sock = nt_fdword_sock(word), had;
	struct neat_sock *s = nt_sock(sock);

	do {
		had = a32_relaxed(&s->refs);
		if (!neat_refs_counted(had))
			return false;
	} while (!a32_cas(&s->refs, had, had + 1));
	a64_release(at, word);
	if (nt_fdword_gen(word) == (a32_relaxed(&s->gen) & 0xffff))
		return true;
	/* Closed and claimed anew since the word was read: we counted for somebody else. */
	a64_release(at, 0);
	nt_sock_unref(sock);
	return false;
}

/*
 * The descriptor no longer names the record. True: it was the last one, finish_close() is due, and a kill on the
 * way to that is made good. A kill between the two stores keeps the record: no system call may come there.
 */
static bool begin_close(int fd, uint32_t sock)
{
	a64_release(&nt.row[fd], 0);
	return unref(&nt_sock(sock)->refs);
}

void nt_fd_forget(int fd)
{
	uint32_t sock;

	nt_epoll_fd_closed(fd);
	if (!in_row(fd))
		return;
	sock = nt_fdword_sock(a64_relaxed(&nt.row[fd]));
	if (sock && begin_close(fd, sock))
		finish_close(sock);
}

static bool all_acknowledged(void *arg)
{
	struct nt_conn *c = arg;

	return a64_acquire(&c->pub->tx_una) == a64_relaxed(&c->app->tx_tail) || nt_conn_flags(c) & NEAT_SLOT_HUP;
}

static void linger(uint32_t sock)
{
	struct neat_sock *s = nt_sock(sock);
	uint32_t seconds = s->opts.w[NEAT_OPT_LINGER_S];
	struct nt_conn c;

	if (!(s->opts.w[NEAT_OPT_FLAGS] & NEAT_OPTF_LINGER) || !seconds || a32_relaxed(&s->refs) != 1 ||
	    a32_acquire(&s->state) != NEAT_SOCK_CONNECT)
		return;
	c = nt_conn(s);
	if (nt_readable(&c))
		return;		/* a reset tells the peer (RFC 2525 2.17), and no FIN goes before it */
	a32_or(&c.app->shut, 2);
	nt_kick(&c);
	/* The timeout is no error: close(2) succeeds and TCP goes on in the background. */
	nt_wait_sock(sock, all_acknowledged, &c, nt_deadline(seconds * 1000000000ll));
}

int nt_close(int fd)
{
	uint32_t sock = nt_lookup(fd);
	bool last;

	nt_epoll_keep(fd);
	nt_epoll_fd_closed(fd);
	if (!sock)
		return NT_KERNEL;
	linger(sock);
	/* First: the number may be handed out again as soon as the kernel has closed it. */
	last = begin_close(fd, sock);
	nt_kernel_close(fd);
	if (last)
		finish_close(sock);
	return 0;
}

uint32_t nt_fd_flags(int fd) { return nt_fdword_flags(a64_relaxed(&nt.row[fd])); }

void nt_fd_set_flags(int fd, uint32_t flags)
{
	uint64_t w = a64_relaxed(&nt.row[fd]);

	a64_release(&nt.row[fd], (w & 0xffffffffffffull) | (uint64_t)flags << 48);
}

static int real_dup(int oldfd, int newfd, int min, int flags)
{
	int fd;

	if (newfd >= 0) {
		nt_epoll_keep(newfd);
		fd = oldfd == newfd ? newfd : nt_real.dup3(oldfd, newfd, flags);
	} else {
		fd = nt_real.fcntl(oldfd, flags & O_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, min);
	}
	return fd < 0 ? -errno : fd;
}

bool nt_fd_pin(uint32_t handle)
{
	nt_lock(&nt.table_lock);
	a64_store(&nt.row[NEAT_FD_PIN], 0);	/* its page is there, as clear_entry() sees to it for fd */
	if (nt_fd_copy(&nt.row[NEAT_FD_PIN], nt_fdword(NEAT_FD_CLOEXEC, handle >> 16, handle & (NEAT_SOCKS_MAX - 1))))
		return true;
	nt_unlock(&nt.table_lock);
	return false;
}

void nt_fd_unpin(void)
{
	uint32_t sock = nt_fdword_sock(a64_relaxed(&nt.row[NEAT_FD_PIN]));

	if (begin_close(NEAT_FD_PIN, sock))
		finish_close(sock);
	nt_unlock(&nt.table_lock);
}

/*
 * The reference is taken first, so that a close() of oldfd by another thread comes before, and newfd stays what it is
 * (EBADF), or after all of it. Meanwhile the pin names it, for who sweeps us after a kill; exec clears it.
 */
static int dup_pinned(int oldfd, uint64_t word, int newfd, int min, int flags)
{
	uint32_t gen = nt_fdword_gen(word), sock = nt_fdword_sock(word);
	int fd, err;

	a64_store(&nt.row[NEAT_FD_PIN], 0);	/* its page is there, as clear_entry() sees to it for fd */
	if (!nt_fd_copy(&nt.row[NEAT_FD_PIN], nt_fdword(NEAT_FD_CLOEXEC, gen, sock)))
		return -EBADF;
	fd = real_dup(oldfd, newfd, min, flags);
	err = fd < 0 ? fd : clear_entry(fd);
	a64_release(&nt.row[NEAT_FD_PIN], 0);
	if (!err) {
		a64_release(&nt.row[fd], nt_fdword(flags & O_CLOEXEC ? NEAT_FD_CLOEXEC : 0, gen, sock));
		return fd;
	}
	nt_sock_unref(sock);
	if (fd >= 0)
		nt_kernel_close(fd);
	return err;
}

int nt_dup(int oldfd, int newfd, int min, int flags)
{
	uint64_t word = in_row(oldfd) ? a64_relaxed(&nt.row[oldfd]) : 0;
	int fd;

	if (newfd >= 0 && nt_fd_internal(newfd))
		return -EBUSY;		/* dup2(2): a race with open(); the number is not to be had */
	if (!nt_fdword_sock(word)) {
		bool lands_on_ours = newfd >= 0 && (nt_lookup(newfd) || nt_epoll_known(newfd));

		if (newfd == oldfd || (!lands_on_ours && !nt_epoll_known(oldfd)))
			return NT_KERNEL;
		fd = real_dup(oldfd, newfd, min, flags);
		if (fd >= 0) {
			nt_fd_forget(fd);	/* a kernel descriptor sits on our number now */
			nt_epoll_dup(oldfd, fd);
		}
		return fd;
	}
	if (oldfd == newfd)
		return newfd;
	nt_lock(&nt.table_lock);
	fd = dup_pinned(oldfd, word, newfd, min, flags);
	nt_unlock(&nt.table_lock);
	return fd;
}

void nt_close_range(unsigned first, unsigned last, unsigned flags)
{
	enum { RANGE_CLOEXEC = 1 << 2 };	/* CLOSE_RANGE_CLOEXEC */

	if (!(flags & RANGE_CLOEXEC))
		nt_epoll_range_closed(first, last);
	for (uint32_t fd = first; nt.row && fd <= last && fd < fd_high(); fd++) {
		if (nt_fd_internal((int)fd))
			continue;
		if (!(flags & RANGE_CLOEXEC))
			nt_fd_forget((int)fd);
		else if (nt_lookup((int)fd))
			nt_fd_set_flags((int)fd, NEAT_FD_CLOEXEC);
	}
}

/*
 * exec leaves one thread, which has the process's number from then on: that of the main thread, which another one may have
 * interrupted in a call. What it held we would hold for ever.
 */
static void drop_own_locks(uint32_t sock)
{
	struct neat_sock *s = nt_sock(sock);
	uint32_t me = nt_tid(), state = a32_acquire(&s->state);

	a32_cas(&s->lock, me, 0);
	for (uint32_t r = 0; r < nt.nreplicas; r++) {
		bool conn = state == NEAT_SOCK_CONNECT;
		struct nt_conn c = nt_conn_at(r, conn ? s->slot : s->sub[r].slot, 0);

		if (conn ? r != s->replica : !c.slot)
			continue;
		a32_cas(&c.app->rx_lock, me, 0);
		a32_cas(&c.app->tx_lock, me, 0);
	}
}

/* After exec: the kernel closed the CLOEXEC descriptors; what is left must still be the same object. */
void nt_exec_sweep(void)
{
	uint32_t pinned = nt_fdword_sock(a64_relaxed(&nt.row[NEAT_FD_PIN]));

	if (pinned)
		drop_own_locks(pinned);
	if (pinned && begin_close(NEAT_FD_PIN, pinned))
		finish_close(pinned);
	for (uint32_t fd = 0; fd < fd_high(); fd++) {
		uint64_t w = a64_relaxed(&nt.row[fd]);
		uint32_t sock = nt_fdword_sock(w);
		struct stat st;

		if (!sock) {
			if (w && (int)fd != nt.control_fd)
				a64_store(&nt.row[fd], 0);
			continue;
		}
		drop_own_locks(sock);
		if (fstat((int)fd, &st) == 0 && S_ISSOCK(st.st_mode) &&
		    (uint32_t)st.st_ino == nt_sock(sock)->inode_lo)
			continue;
		if (begin_close((int)fd, sock))
			finish_close(sock);
	}
}

/* ---- records ---- */

/* Record in state NEW with one reference; 0: none left. */
static uint32_t sock_claim(void)
{
	uint64_t start = a64_add(&nt.app->sock_hint, 1);

	for (uint32_t i = 0; i < NEAT_SOCKS_MAX; i++) {
		uint32_t at = (uint32_t)(start + i) & (NEAT_SOCKS_MAX - 1);
		struct neat_sock *s = &nt.app->socks[at];

		if (at == 0 || a32_relaxed(&s->refs) || !a32_cas(&s->refs, 0, 1))
			continue;
		a32_store(&s->gen, a32_relaxed(&s->gen) + 1);
		a32_store(&s->flags, 0);
		a32_store(&s->lock, 0);
		s->laddr = s->backlog = s->rcvtimeo_ms = s->sndtimeo_ms = s->rcvlowat = 0;
		s->lport = 0;
		s->family = AF_INET;
		memset(&s->opts, 0, sizeof(s->opts));
		memset(s->sub, 0, sizeof(s->sub));
		s->replica = 0;
		a32_release(&s->state, NEAT_SOCK_NEW);
		if (i)
			a64_store(&nt.app->sock_hint, at + 1);
		return at;
	}
	return 0;
}

int nt_fd_new_sock(int fd, uint32_t flags, uint32_t *sock)
{
	int err = clear_entry(fd);

	*sock = err ? 0 : sock_claim();
	if (!*sock)
		return err ? err : -ENFILE;
	a64_release(&nt.row[fd], nt_fdword(flags, a32_relaxed(&nt_sock(*sock)->gen), *sock));
	return 0;
}

/* Not for ourselves: then we are the handler of a signal that came between. */
static void pass_lock(neat_a32 *l)
{
	if (a32_relaxed(l) == nt_tid())
		return;
	nt_tid_lock(l);
	nt_tid_unlock(l);
}

enum nt_entered nt_conn_enter(const struct nt_conn *c)
{
	if (a32_relaxed(&c->app->tx_lock) == nt_tid())
		return nt_live(c->handle) ? NT_OURS : NT_LOST;
	return nt_conn_lock(c, &c->app->tx_lock) ? NT_LOCKED : NT_LOST;
}

void nt_conn_leave(const struct nt_conn *c, enum nt_entered how)
{
	if (how == NT_LOCKED)
		nt_tid_unlock(&c->app->tx_lock);
}

void nt_pass_locks(struct neat_slot_app *w)
{
	pass_lock(&w->rx_lock);
	pass_lock(&w->tx_lock);
}

void nt_drop_slot(struct neat_sock *s)
{
	uint32_t r = s->replica & (NEAT_REPLICAS_MAX - 1), slot = s->slot & (NEAT_SLOTS - 1);

	/* A record whose process died in accept() may name a connection that it had not got. */
	if (neat_owner(&nt.rep[r].app->slots[slot], s->slot_gen) != nt_handle((uint32_t)(s - nt.app->socks)))
		return;
	a32_or(&s->flags, NEAT_SOCKF_LEAVING);
	nt_pass_locks(&nt.rep[r].app->slots[slot]);
	nt_command(&nt.rep[r], NEAT_CMD_CLOSE, s->slot_gen, slot);
	if (slot >= NEAT_SLOT_APP_FIRST) {
		uint32_t bit = slot - NEAT_SLOT_APP_FIRST;

		/* Noted first: twice, and it would be somebody else's claim. Killed in between, it is lost. */
		*(volatile uint32_t *)&s->slot = slot | NEAT_SLOT_BACK;
		compiler_fence();
		/* The replica's status word says when the slot may really be used again. */
		a64_and(&nt.app->slot_bits[r][bit / 64], ~(1ull << bit % 64));
	}
}

/*
 * The replicas stop listening at once, before neatd has heard of it: a connect() of ours that follows
 * is refused, as after the kernel's close().
 */
void nt_drop_subsockets(struct neat_sock *s)
{
	for (uint32_t r = 0; r < nt.nreplicas; r++)
		if (s->sub[r].slot && nt.rep[r].ch)
			nt_command(&nt.rep[r], NEAT_CMD_CLOSE, s->sub[r].gen, s->sub[r].slot & (NEAT_SLOTS - 1));
}

static void release_port(struct neat_sock *s, uint32_t sock)
{
	struct neat_msg_bind m = {
		.h.type = NEAT_MSG_UNBIND, .sock = sock, .sock_gen = a32_relaxed(&s->gen),
		.addr = s->laddr, .port = s->lport, .proto = IPPROTO_TCP,
	};

	nt_notify_neatd(&m, sizeof(m), -1);
}

static void finish_close(uint32_t sock)
{
	struct neat_sock *s = nt_sock(sock);
	uint32_t state = a32_acquire(&s->state);

	nt_watch_forget(sock);
	if (state == NEAT_SOCK_CONNECT)
		nt_drop_slot(s);
	if (state == NEAT_SOCK_LISTEN)
		nt_drop_subsockets(s);
	if (state == NEAT_SOCK_DGRAM)
		nt_dgram_drop(sock);
	else if (state == NEAT_SOCK_LISTEN || a32_relaxed(&s->flags) & NEAT_SOCKF_BOUND)
		release_port(s, sock);
	a32_release(&s->state, NEAT_SOCK_FREE);
	a32_release(&s->refs, 0);
}

void nt_sock_unref(uint32_t sock)
{
	if (unref(&nt_sock(sock)->refs))
		finish_close(sock);
}

/* ---- locks that name their holder (contract L1) ---- */

/* EINVAL: that is nobody's number; a replica that runs wild may have written it. */
static bool holder_dead(uint32_t tid)
{
	return syscall(SYS_tkill, tid, 0) < 0 && (errno == ESRCH || errno == EINVAL);
}

/* A replica that runs wild may have written the number of somebody who lives, and knows nothing of the lock. */
static bool stranger(uint32_t tid)
{
	for (uint32_t i = 0; i < NEAT_PROCS_MAX; i++) {
		uint32_t pid = a32_acquire(&nt.app->procs[i].pid);

		/* EPERM: it is one, and another user's. */
		if (pid && (syscall(SYS_tgkill, pid, tid, 0) == 0 || errno == EPERM))
			return false;
	}
	return true;
}

void nt_tid_lock_slow(neat_a32 *l)
{
	/* Longer than it takes a child that was forked in any way to enter its number. */
	const int64_t PATIENCE_NS = 50000000;
	uint32_t me = nt_tid(), suspect = 0;
	int64_t until_ns = 0;

	for (unsigned i = 1;; i++) {
		uint32_t holder = a32_relaxed(l);

		if (holder == 0 && a32_cas(l, 0, me))
			return;
		neat_pause();
		if (i % 64)
			continue;
		if (holder != suspect)
			until_ns = nt_now_ns() + PATIENCE_NS;
		suspect = holder;
		/* The section is short, so after 64 tries the holder is off its core or dead. */
		if (holder && (holder_dead(holder) || (nt_now_ns() >= until_ns && stranger(holder))) && a32_cas(l, holder, me))
			return;
		syscall(SYS_sched_yield);
	}
}
