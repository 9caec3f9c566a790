/*
 * process.c - see process.h.
 */
#define _GNU_SOURCE
#include "process.h"
#include "control.h"
#include "sandbox.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/*
 * The one exception to "no file-scope mutable state": a signal handler has no argument. The word
 * lives here, the loops reach it through the pointer that control_setup() gives.
 */
static neat_a32 control_word;
/* What SIGALRM is for; our one thread and its handlers write it. */
static struct {
	neat_a64 end_us;	/* our keeper was killed: the end; 0: it lives */
	neat_a32 ringing;	/* within the write() of eventfd_ring_foreign() ... */
	neat_a32 rung;		/* ... which was called since the last tick */
	neat_a32 ticks;		/* the timer runs */
} alarms;

enum { LAST_RITES_S = 1 };	/* as the keeper's LAST_RITES_MS */
enum { RING_TICK_US = 20000 };

_Noreturn void replica_die(const char *what)
{
	int err = errno;

	fprintf(stderr, "%s: %s%s%s\n", program_invocation_short_name, what, err ? ": " : "", err ? strerror(err) : "");
	exit(1);
}

uint64_t replica_clock_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void move_to_core(uint32_t cpu)
{
	cpu_set_t may, there;

	CPU_ZERO(&there);
	CPU_SET(cpu, &there);
	if (sched_getaffinity(0, sizeof(may), &may) || !CPU_ISSET(cpu, &may) || CPU_COUNT(&may) == 1)
		return;
	if (!sched_setaffinity(0, sizeof(there), &there))
		sched_setaffinity(0, sizeof(may), &may);
}

/* ---- control socket ---- */

static void on_sigio(int sig)
{
	(void)sig;
	a32_release(&control_word, 1);
}

static void tick(suseconds_t every_us)
{
	const struct itimerval t = { .it_interval.tv_usec = every_us, .it_value.tv_usec = every_us };

	setitimer(ITIMER_REAL, &t, NULL);
}

/*
 * Our keeper was killed: fd 3 says so, too, and then the programs are told before we end. A replica that loops
 * somewhere does not get there, and nobody is left to fence it. Ticks all the while: a ring may block now, too.
 */
static void on_orphaned(int sig)
{
	(void)sig;
	a32_release(&control_word, 1);
	a64_store(&alarms.end_us, replica_clock_us() + LAST_RITES_S * 1000000);
	tick(RING_TICK_US);
}

static void on_alarm(int sig)
{
	(void)sig;
	if (a64_relaxed(&alarms.end_us)) {
		if (replica_clock_us() >= a64_relaxed(&alarms.end_us))
			_exit(1);
		return;
	}
	if (!a32_relaxed(&alarms.ringing) && !a32_relaxed(&alarms.rung)) {
		tick(0);
		a32_store(&alarms.ticks, 0);
	}
	a32_store(&alarms.rung, 0);
}

/* Contract P5: what is handed over is used, nothing is opened. */
static void sandbox(void)
{
	static const uint32_t calls[] = {
		SYS_recvmsg, SYS_sendto, SYS_sendmsg, SYS_read, SYS_write, SYS_close, SYS_fstat, SYS_newfstatat,
		SYS_futex, SYS_futex_waitv, SYS_ppoll, SYS_getcpu, SYS_sched_getaffinity, SYS_sched_setaffinity, SYS_getpid, SYS_restart_syscall, SYS_madvise,
		SYS_setitimer,
#ifdef SYS_poll
		SYS_poll,
#endif
	};

	if (!sandbox_enter(calls, sizeof(calls) / sizeof(calls[0])))
		replica_die("seccomp");
}

neat_a32 *control_setup(void)
{
	/* Without SA_RESTART: whatever sleeps in the kernel comes out and looks. */
	struct sigaction sa = { .sa_handler = on_sigio }, orphaned = { .sa_handler = on_orphaned };
	struct sigaction alarmed = { .sa_handler = on_alarm };

	sigaction(SIGIO, &sa, NULL);
	sigaction(SIGPWR, &orphaned, NULL);
	sigaddset(&alarmed.sa_mask, SIGPWR);	/* on_alarm() must not stop the timer of on_orphaned() */
	sigaction(SIGALRM, &alarmed, NULL);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGPWR);	/* SIGKILL until now (the keeper's child_exec()) */
	if (fcntl(CONTROL_FD, F_SETOWN, getpid()) ||
	    fcntl(CONTROL_FD, F_SETFL, O_ASYNC | O_NONBLOCK))
		replica_die("fd 3 is not a control socket; this program is started by neat-keeper");
	sandbox();
	a32_release(&control_word, 1);
	return &control_word;
}

int message_receive(struct message *m, size_t (*size)(uint16_t type))
{
	char space[CMSG_SPACE(sizeof(int) * NEAT_MSG_FDS_MAX)];
	struct iovec iov = { m->u.bytes, sizeof(m->u.bytes) };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
			     .msg_controllen = sizeof(space) };
	ssize_t n = recvmsg(CONTROL_FD, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	const struct neat_msg_header *h = &m->u.h;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return -1;
	m->nfds = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		m->nfds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(m->fds, CMSG_DATA(c), (size_t)m->nfds * sizeof(int));
	}
	if ((size_t)n < sizeof(*h) || h->magic != NEAT_ABI_MAGIC || h->version != NEAT_ABI_VERSION ||
	    h->len != (size_t)n || !size(h->type) || (size_t)n < size(h->type))
		replica_die("malformed control message (version skew?)");
	return 1;
}

void message_done(struct message *m)
{
	for (int i = 0; i < m->nfds; i++)
		if (m->fds[i] >= 0)
			close(m->fds[i]);
}

void message_send(uint16_t type, void *message, size_t len, uint32_t seq)
{
	int err = -neat_control_send(CONTROL_FD, type, message, len, seq);

	if (err == EPIPE || err == ECONNRESET) {
		a32_release(&control_word, 1);
	} else if (err) {
		errno = err;
		replica_die("send on the control socket");
	}
}

/* ---- memory ---- */

void *map_anonymous(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		replica_die("mmap");
	return p;
}

void memory_now(void *at, size_t size)
{
	uintptr_t from = ((uintptr_t)at + NEAT_PAGE - 1) & ~(uintptr_t)(NEAT_PAGE - 1);
	size_t len = (uintptr_t)at + size - from;

	if (size <= NEAT_PAGE)
		return;
	/* Hints both: what they do not bring comes by faults. */
	madvise((void *)from, len, MADV_HUGEPAGE);
	madvise((void *)from, len, MADV_POPULATE_WRITE);
}

static void *map(int fd, size_t size, int access)
{
	struct stat st;
	void *p;

	if (fstat(fd, &st) || (size_t)st.st_size < size)
		replica_die("a shared object is smaller than this build expects (version skew?)");
	p = mmap(NULL, size, access, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (p == MAP_FAILED)
		replica_die("mmap of a shared object");
	return p;
}

static void *checked(void *p, uint32_t object, size_t size)
{
	if (!neat_header_ok(p, object, size))
		replica_die("a shared object has another layout (version skew?)");
	return p;
}

void *map_shared(int fd, size_t size) { return map(fd, size, PROT_READ | PROT_WRITE); }

void *map_object(int fd, uint32_t object, size_t size) { return checked(map_shared(fd, size), object, size); }

/* The layout was agreed on when the first incarnation mapped it. */
void *map_written(int fd, uint32_t object, size_t size, struct owner of)
{
	struct neat_header *h = map_shared(fd, size);

	if (of.epoch > 1 && !neat_header_ok(h, object, size))
		*h = (struct neat_header){ NEAT_ABI_MAGIC, NEAT_ABI_VERSION, object, of.index, size, of.instance };
	return checked(h, object, size);
}

const void *map_read_only(int fd, uint32_t object, size_t size)
{
	return checked(map(fd, size, PROT_READ), object, size);
}

/* ---- sleeping and waking ---- */

void sleep_add(struct sleep_set *s, neat_a32 *word, uint32_t expect)
{
	if (s->n == SLEEP_WORDS) {
		s->overflow = true;
		return;
	}
	s->w[s->n++] = (struct futex_waitv){ .val = expect, .uaddr = (uintptr_t)&word->v, .flags = FUTEX_32 };
}

void sleep_wait(const struct sleep_set *s, uint64_t until_us)
{
	struct timespec t;

	if (s->overflow && until_us > replica_clock_us() + SLEEP_NAP_US)
		until_us = replica_clock_us() + SLEEP_NAP_US;
	t.tv_sec = (time_t)(until_us / 1000000);
	t.tv_nsec = (long)(until_us % 1000000) * 1000;
	if (syscall(SYS_futex_waitv, s->w, s->n, 0, until_us == UINT64_MAX ? NULL : &t, CLOCK_MONOTONIC) < 0 &&
	    errno == ENOSYS)
		replica_die("futex_waitv is missing: neatsock needs Linux 5.16 or newer");
}

void futex_wake(neat_a32 *word)
{
	syscall(SYS_futex, &word->v, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Who cannot be rung is not told, whatever the reason: the other end is not worth the replica. */
void eventfd_ring(int fd)
{
	uint64_t one = 1;

	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
		return;
}

/* The timer is set before the write and goes on through it, so a signal ends any sleep in there. */
bool eventfd_ring_foreign(int fd)
{
	const uint64_t one = 1;
	bool blocked;

	if (fd < 0)
		return true;
	a32_store(&alarms.rung, 1);
	a32_release(&alarms.ringing, 1);
	if (!a32_acquire(&alarms.ticks)) {
		a32_store(&alarms.ticks, 1);
		tick(RING_TICK_US);
	}
	blocked = write(fd, &one, sizeof(one)) < 0 && errno == EINTR;
	a32_release(&alarms.ringing, 0);
	return !blocked;
}

void wake_sleeper(neat_a32 *asleep, int eventfd)
{
	uint32_t how = neat_asleep_take(asleep);

	if (how == NEAT_ASLEEP_EVENTFD)
		eventfd_ring(eventfd);
	else if (how != NEAT_AWAKE)
		futex_wake(asleep);
}

void wake_anyway(neat_a32 *asleep, int eventfd)
{
	a32_xchg(asleep, NEAT_AWAKE);
	eventfd_ring(eventfd);
	futex_wake(asleep);
}

/* ---- randomness ---- */

void random_seed(uint64_t state[4])
{
	if (getrandom(state, 4 * sizeof(*state), 0) != (ssize_t)(4 * sizeof(*state)))
		replica_die("getrandom");
}

uint64_t random_next(uint64_t s[4])
{
	uint64_t x = s[1] * 5, t = s[1] << 17;

	x = (x << 7 | x >> 57) * 9;
	s[2] ^= s[0];
	s[3] ^= s[1];
	s[1] ^= s[2];
	s[0] ^= s[3];
	s[2] ^= t;
	s[3] = s[3] << 45 | s[3] >> 19;
	return x;
}
