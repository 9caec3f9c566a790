/*
 * process.c - fork, exec, exit, and the locks of this process.
 *
 * fork copies our row and raises every reference before the child exists, so a descriptor is never
 * without a reference, whichever of the two runs or dies first (L2).
 */
#define _GNU_SOURCE
#include "internal.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- locks ---- */

bool nt_trylock(struct nt_lock *l) { return a32_relaxed(&l->v) == 0 && a32_cas(&l->v, 0, 1); }

void nt_lock(struct nt_lock *l)
{
	if (NT_LIKELY(a32_cas(&l->v, 0, 1)))
		return;
	for (int i = 0; i < 100; i++) {
		neat_pause();
		if (nt_trylock(l))
			return;
	}
	while (a32_xchg(&l->v, 2) != 0)
		syscall(SYS_futex, &l->v.v, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
}

void nt_unlock(struct nt_lock *l)
{
	if (NT_UNLIKELY(a32_xchg(&l->v, 0) == 2))
		syscall(SYS_futex, &l->v.v, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* ---- small per-thread things ---- */

static __thread uint32_t tid __attribute__((tls_model("initial-exec")));
static __thread uint64_t seed __attribute__((tls_model("initial-exec")));

uint32_t nt_tid(void)
{
	if (NT_UNLIKELY(!tid))
		tid = (uint32_t)syscall(SYS_gettid);
	return tid;
}

/* xorshift64*: which replica a connection goes to; not a secret. */
uint32_t nt_random32(void)
{
	if (!seed && syscall(SYS_getrandom, &seed, sizeof(seed), 0) != (long)sizeof(seed))
		seed = (uint64_t)nt_now_ns();
	seed |= 1;
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return (uint32_t)(seed * 0x2545f4914f6cdd1dull >> 32);
}

/* ---- fork ---- */

enum { NO_PROC = NEAT_PROCS_MAX };
static uint32_t fork_proc = NO_PROC;	/* entry made for the child; guarded by table_lock */
static __thread uint32_t born_proc __attribute__((tls_model("initial-exec"))) = NO_PROC;	/* in the parent, after fork */
static __thread bool entered __attribute__((tls_model("initial-exec")));	/* by nt_fork_prepare(), not by its caller */

static neat_a64 *row_of(uint32_t proc)
{
	return (neat_a64 *)((uint8_t *)nt.app + NEAT_APP_FDS) + (size_t)proc * NEAT_FDS_MAX;
}

static bool dead(uint32_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct timespec zero = { 0 };
	bool gone;

	if (fd < 0)
		return errno == ESRCH;
	gone = nt_syscall(SYS_ppoll, &p, 1l, &zero, NULL, 0l) == 1;	/* a zombie's, too */
	nt_kernel_close(fd);
	return gone;
}

static void close_word(neat_a64 *at)
{
	uint64_t w = a64_relaxed(at) ? a64_xchg(at, 0) : 0;
	const struct neat_sock *s = nt_sock(nt_fdword_sock(w));

	if (nt_fdword_sock(w) && nt_fdword_gen(w) == (a32_relaxed(&s->gen) & 0xffff) &&
	    a32_relaxed(&s->state) != NEAT_SOCK_FREE)
		nt_sock_unref(nt_fdword_sock(w));
}

static void close_row(uint32_t proc)
{
	neat_a64 *row = row_of(proc);

	for (uint32_t fd = 0; fd < a32_relaxed(&nt.app->procs[proc].fd_high) && fd < NEAT_FD_PIN; fd++)
		close_word(&row[fd]);
	close_word(&row[NEAT_FD_PIN]);
}

/* neatd, which does this otherwise, does not run: entries of dead processes become free. */
static void reap(void)
{
	for (uint32_t i = 0; i < NEAT_PROCS_MAX; i++) {
		struct neat_proc *p = &nt.app->procs[i];
		uint32_t pid = a32_acquire(&p->pid);

		if (a32_relaxed(&p->state) != NEAT_PROC_LIVE || !dead(pid) ||
		    !a32_cas(&p->state, NEAT_PROC_LIVE, NEAT_PROC_SWEPT))
			continue;
		if (a32_relaxed(&p->pid) != pid) {	/* swept by somebody and in use again since our look */
			a32_cas(&p->state, NEAT_PROC_SWEPT, NEAT_PROC_LIVE);
			continue;
		}
		a32_store(&p->pid, nt.pid);
		nt_channels_close(i);
		close_row(i);
		a32_store(&p->fd_high, 0);
		a32_store(&p->pid, 0);	/* who claims it is not taken for its dead predecessor */
		a32_cas(&p->state, NEAT_PROC_SWEPT, NEAT_PROC_FREE);
	}
}

static uint32_t find_free(void)
{
	for (uint32_t i = 0; i < NEAT_PROCS_MAX; i++) {
		struct neat_proc *p = &nt.app->procs[i];

		if (a32_relaxed(&p->state) == NEAT_PROC_FREE &&
		    a32_cas(&p->state, NEAT_PROC_FREE, NEAT_PROC_CLAIMED)) {
			a32_store(&p->parent, nt.proc);
			a32_store(&p->pid, nt.pid);	/* until the child says its own */
			return i;
		}
	}
	return NO_PROC;
}

static uint32_t proc_claim(void)
{
	uint32_t proc = find_free();

	if (proc != NO_PROC)
		return proc;
	reap();
	return find_free();
}

static void copy_row(uint32_t to)
{
	uint32_t high = a32_relaxed(&nt.app->procs[nt.proc].fd_high);
	neat_a64 *row = row_of(to);

	a32_store(&nt.app->procs[to].fd_high, high);
	for (uint32_t fd = 0; fd < high; fd++) {
		uint64_t w = a64_relaxed(&nt.row[fd]);

		/* The first store brings the page: none but nt_fd_copy()'s may come between the count and the entry. */
		if (a64_relaxed(&row[fd]) || nt_fdword_sock(w))
			a64_store(&row[fd], 0);
		if (nt_fdword_sock(w) && !nt_fd_copy(&row[fd], w))
			continue;	/* closed just now; the child has the placeholder only */
	}
}

static void locks(void (*act)(struct nt_lock *))
{
	act(&nt.table_lock);	/* dup() holds it while the port of a replaced listener is given up */
	act(&nt.scale_lock);
	act(&nt.control_lock);
	act(&nt.arm_lock);
	for (uint32_t r = 0; r < nt.nreplicas; r++)
		act(&nt.rep[r].ev_lock);	/* who drains takes watch_lock for each batch */
	act(&nt.watch_lock);
	for (uint32_t r = 0; r < nt.nreplicas; r++)
		act(&nt.rep[r].cmd_lock);
}

/* daemon(3) and others fork inside libc: no call of ours is around that. */
static void enter_fork(void)
{
	entered = !nt_in;
	if (entered)
		nt_enter();
}

static void leave_fork(void)
{
	if (entered)
		nt_leave();
	entered = false;
}

void nt_fork_prepare(void)
{
	uint32_t proc;

	enter_fork();
	if (!nt_attached())
		return;
	proc = proc_claim();
	locks(nt_lock);
	fork_proc = proc;
	if (fork_proc == NO_PROC)
		nt_say("more than %d processes share sockets; the new child's sockets stop working", NEAT_PROCS_MAX);
	else
		copy_row(fork_proc);
}

static void undo_row(uint32_t proc)
{
	neat_a64 *row = row_of(proc);

	for (uint32_t fd = 0; fd < a32_relaxed(&nt.app->procs[proc].fd_high); fd++) {
		uint32_t sock = nt_fdword_sock(a64_relaxed(&row[fd]));

		a64_store(&row[fd], 0);
		if (sock)
			nt_sock_unref(sock);
	}
	a32_store(&nt.app->procs[proc].pid, 0);
	a32_release(&nt.app->procs[proc].state, NEAT_PROC_FREE);
}

void nt_fork_parent(void)
{
	if (nt_attached()) {
		born_proc = fork_proc;
		fork_proc = NO_PROC;
		locks(nt_unlock);
	}
	leave_fork();
}

/*
 * The child may die before it enters itself: neatd must know whom to look for. Forks inside libc do not
 * come here; their entry is the parent's until the child speaks.
 */
void nt_fork_born(pid_t child)
{
	uint32_t proc = born_proc;
	struct neat_proc *p;

	born_proc = NO_PROC;
	if (!nt_attached() || proc >= NO_PROC)
		return;
	p = &nt.app->procs[proc];
	if (child < 0) {
		undo_row(proc);
		return;
	}
	if (a32_relaxed(&p->state) == NEAT_PROC_CLAIMED)
		a32_cas(&p->pid, nt.pid, (uint32_t)child);
	nt_session_forked();
}

static void child_own_state(void)
{
	nt.sleepers = nt.kernel_sleepers = 0;
	a32_store(&nt.rung, 0);
	nt.pid = (uint32_t)getpid();
	nt.introduced = false;
	nt.resubscribe = true;
	if (a32_relaxed(&nt.eventfd)) {
		nt_kernel_close((int)a32_relaxed(&nt.eventfd) - 1);
		a32_store(&nt.eventfd, 0);
	}
	a32_store(&nt.eventfd_said, 0);
	for (uint32_t r = 0; r < nt.nreplicas; r++)
		a32_store(&nt.rep[r].bell_owed, 0);
}

static void child_attached(void)
{
	locks(nt_unlock);
	if (fork_proc == NO_PROC) {
		nt.row = NULL;
		nt_kernel_close(nt.control_fd);
		a32_store(&nt.phase, NT_FAILED);
		return;
	}
	nt.proc = fork_proc;
	fork_proc = NO_PROC;
	nt.row = row_of(nt.proc);
	child_own_state();
	nt_channels_open();
	a32_store(&nt.app->procs[nt.proc].pid, nt.pid);
	a32_release(&nt.app->procs[nt.proc].state, NEAT_PROC_LIVE);
	nt_fd_mark_internal(nt.control_fd);
	nt_session_forked();
	nt_epoll_fork_child();
}

void nt_fork_child(void)
{
	tid = 0;
	seed = 0;
	nt_forget_held();
	nt_watch_fork_child();
	nt_epoll_fork_threads();
	if (nt_attached())
		child_attached();
	leave_fork();
}

void nt_exit(void)
{
	/* Doorbells that were put off: nobody would ring them after us. Sockets are closed by the
	 * death of the process, which neatd sees, as the kernel would close descriptors. */
	if (nt_attached())
		nt_bells();
}
