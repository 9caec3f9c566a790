/*
 * What signals, exec and pthread_cancel() do to threads that are in a call. interrupted WHAT; prints what it saw, which
 * is the same on the kernel's sockets and on ours.
 */
#define _GNU_SOURCE
#include "need.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

static void tell(const char *what, long rc)
{
	printf("%s: %s\n", what, rc < 0 ? strerrorname_np(errno) : "fine");
	fflush(stdout);
}

/* In a system call that waits. */
static int asleep(int pid, int tid)
{
	static const int waits[] = { SYS_futex, SYS_futex_waitv, SYS_recvfrom, SYS_accept4, SYS_ppoll, SYS_epoll_pwait,
				     SYS_pselect6,
#ifdef SYS_poll
				     SYS_accept, SYS_poll, SYS_epoll_wait,
#endif
	};
	char path[64], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", pid, tid);
	fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	for (unsigned i = 0; i < sizeof(waits) / sizeof(waits[0]); i++)
		if (text[0] >= '0' && text[0] <= '9' && atoi(text) == waits[i])
			return 1;
	return 0;
}

/* ---- restart: a handler runs while a call waits for what comes only afterwards ---- */

struct shared { atomic_int calls, handled, over; };
static struct shared *shared;

static void handler(int sig) { (void)sig; shared->handled++; }

/* The child: a signal once the parent sleeps; what it waits for when it sleeps again, unless its call has ended. */
static void other(void (*give)(int), int s)
{
	int parent = getppid();

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!shared->calls || !asleep(parent, parent))
		sched_yield();
	kill(parent, SIGALRM);
	while (!shared->handled || (!shared->over && !asleep(parent, parent)))
		sched_yield();
	give(s);
	while (!shared->over)
		sched_yield();
	_exit(0);
}

static void give_byte(int s) { need(send(s, "x", 1, 0) == 1, "send"); }
static void give_connection(int s) { (void)s; connected(); }

static void give_datagram(int s)
{
	s = socket(AF_INET, SOCK_DGRAM, 0);
	need(sendto(s, "x", 1, 0, (void *)&here, sizeof(here)) == 1, "sendto");
}

static long do_accept(int s) { return accept(s, NULL, NULL); }
static long do_recv(int s) { char c; return recv(s, &c, 1, 0); }

static void interrupt(const char *what, long (*call)(int), int s, void (*give)(int), int peer)
{
	pid_t child;
	long rc;
	int err;

	shared->calls = shared->handled = shared->over = 0;
	child = fork();
	if (child == 0)
		other(give, peer);
	shared->calls = 1;
	rc = call(s);
	err = errno;
	shared->over = 1;
	waitpid(child, NULL, 0);
	errno = err;
	tell(what, rc);
}

static void each_call(const char *how, long timeout_ms)
{
	struct timeval t = { .tv_sec = timeout_ms / 1000 };
	int a = bound(SOCK_STREAM), c = connected(), d = accept(a, NULL, NULL), u;

	printf("%s\n", how);
	setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	setsockopt(d, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	interrupt("accept", do_accept, a, give_connection, -1);
	interrupt("recv", do_recv, d, give_byte, c);
	u = bound(SOCK_DGRAM);
	setsockopt(u, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	interrupt("datagram", do_recv, u, give_datagram, -1);
}

static void handle(int sig, int flags)
{
	struct sigaction sa = { .sa_handler = handler, .sa_flags = flags };

	sigaction(sig, &sa, NULL);
}

static int restart(void)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	handle(SIGALRM, 0);
	each_call("no flags", 0);
	handle(SIGALRM, SA_RESTART);
	each_call("SA_RESTART", 0);
	signal(SIGALRM, handler);
	each_call("signal()", 0);
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
	siginterrupt(SIGALRM, 1);
	each_call("siginterrupt(1)", 0);
	signal(SIGALRM, handler);
	each_call("siginterrupt(1), signal()", 0);
	siginterrupt(SIGALRM, 0);
	each_call("siginterrupt(0)", 0);
	handle(SIGUSR2, 0);
	each_call("another signal has a handler without SA_RESTART", 0);
	handle(SIGALRM, 0);
	handle(SIGUSR2, SA_RESTART);
	each_call("another one with it", 0);
	return 0;
}

static void *pauses(void *arg)
{
	for (;;)
		pause();
	return arg;
}

/* Signals are not for it. */
static void silent_thread(void)
{
	sigset_t all, was;
	pthread_t t;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &was);
	need(pthread_create(&t, NULL, pauses, NULL) == 0, "pthread_create");
	pthread_sigmask(SIG_SETMASK, &was, NULL);
}

static int timeouts(void)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	handle(SIGALRM, SA_RESTART);
	each_call("SA_RESTART and a timeout", 20000);
	silent_thread();
	each_call("in a program with threads", 20000);
	return 0;
}

/* ---- the first handler with SA_RESTART is installed while poll() sleeps ---- */

static int listener, set = -1;
static atomic_int waiter;	/* its number */

static int do_poll(int timeout_ms) { return poll(&(struct pollfd){ listener, POLLIN, 0 }, 1, timeout_ms); }

static int do_epoll(int timeout_ms)
{
	struct epoll_event ev;

	return epoll_wait(set, &ev, 1, timeout_ms);
}

static int do_select(int timeout_ms)
{
	struct timeval t = { .tv_sec = timeout_ms / 1000 };
	fd_set in;

	FD_ZERO(&in);
	FD_SET(listener, &in);
	return select(listener + 1, &in, NULL, NULL, timeout_ms < 0 ? NULL : &t);
}

struct wait { const char *what; int (*call)(int); int timeout_ms; };

static void *waits(void *arg)
{
	const struct wait *w = arg;

	waiter = gettid();
	tell(w->what, w->call(w->timeout_ms));
	return NULL;
}

static void first_handler(struct wait *w)
{
	struct epoll_event ev = { .events = EPOLLIN };
	pthread_t t;

	alarm(20);
	listener = bound(SOCK_STREAM);
	set = epoll_create1(0);
	need(epoll_ctl(set, EPOLL_CTL_ADD, listener, &ev) == 0, "epoll_ctl");
	need(pthread_create(&t, NULL, waits, w) == 0, "pthread_create");
	while (!waiter || !asleep(getpid(), waiter))
		sched_yield();
	handle(SIGUSR1, SA_RESTART);
	pthread_kill(t, SIGUSR1);
	pthread_join(t, NULL);
	_exit(0);
}

static int first_handlers(void)
{
	static struct wait all[] = {
		{ "poll", do_poll, -1 }, { "epoll_wait", do_epoll, -1 }, { "select", do_select, -1 },
		{ "poll and a time", do_poll, 30000 }, { "epoll_wait and a time", do_epoll, 30000 },
		{ "select and a time", do_select, 30000 },
	};
	int status, failed = 0;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (fork() == 0)
			first_handler(&all[i]);
		wait(&status);
		failed += status != 0;
	}
	return failed != 0;
}

/* ---- exec by one thread while another sends ---- */

static atomic_int sending;
static char image[64], number[16], rounds[16];

static void *execs(void *arg)
{
	while (sending < 3)
		sched_yield();
	execl(image, image, "exec", number, rounds, NULL);
	return arg;
}

/* One image after another sends by the same descriptor. */
static int exec_round(int s, int left)
{
	static char block[32 << 10];
	size_t len = sizeof(block);
	pthread_t t;

	alarm(20);	/* a call that never ends */
	need(send(s, "x", 1, 0) == 1, "send in the new image");
	if (left == 0)
		return printf("all images have sent\n") < 0;
	snprintf(image, sizeof(image), "/proc/self/exe");
	snprintf(number, sizeof(number), "%d", s);
	snprintf(rounds, sizeof(rounds), "%d", left - 1);
	need(pthread_create(&t, NULL, execs, NULL) == 0, "pthread_create");
	for (;; sending++)
		if (send(s, block, len, 0) < 0)
			need(errno == ECONNREFUSED, "send");
}

static int exec_while_sending(int type)
{
	int a = bound(type), s, d;
	pid_t parent = getpid();

	s = socket(AF_INET, type, 0);
	need(connect(s, (void *)&here, sizeof(here)) == 0, "connect");
	d = type == SOCK_STREAM ? accept(a, NULL, NULL) : a;
	if (fork() == 0) {
		static char room[1 << 20];
		struct pollfd p = { d, POLLIN, 0 };

		close(s);
		while (getppid() == parent && (poll(&p, 1, 100) == 0 || recv(d, room, sizeof(room), 0) > 0))
			;
		_exit(0);
	}
	close(d);
	return exec_round(s, 40);
}

/* ---- threads race for the first poll() of a process ---- */

static int mixed[2];	/* a connection and a pipe, which stay silent */
static pthread_barrier_t all;

static void *first_poll(void *arg)
{
	struct pollfd p[2] = { { mixed[0], POLLIN, 0 }, { mixed[1], POLLIN, 0 } };

	pthread_barrier_wait(&all);
	poll(p, 2, 1);
	return arg;
}

/* Number of descriptors that open() gave and close() does not take. */
static int race_once(void)
{
	enum { THREADS = 8 };
	pthread_t t[THREADS];
	static int opened[1024];
	int n = 0, stuck = 0;

	pthread_barrier_init(&all, NULL, THREADS);
	for (int i = 0; i < THREADS; i++)
		need(pthread_create(&t[i], NULL, first_poll, NULL) == 0, "pthread_create");
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	while (n < 1024 && (opened[n] = open("/dev/null", O_RDONLY)) >= 0)
		n++;
	while (n > 0)
		stuck += close(opened[--n]) < 0;
	return stuck;
}

static int first_polls(void)
{
	struct rlimit files;
	int ends[2], stuck = 0, status;

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = 1024;
	need(setrlimit(RLIMIT_NOFILE, &files) == 0 && pipe(ends) == 0, "resources");
	mixed[1] = ends[0];
	mixed[0] = bound(SOCK_STREAM);
	for (int i = 0; i < 30; i++) {
		fflush(stdout);
		if (fork() == 0)
			_exit(race_once());
		wait(&status);
		stuck += status != 0;
	}
	printf("processes with descriptors that cannot be closed: %d\n", stuck);
	return 0;
}

/* ---- pthread_cancel() ---- */

static void *in_poll(void *arg)
{
	struct pollfd p[2] = { { mixed[1], POLLIN, 0 }, { arg ? mixed[0] : -1, POLLIN, 0 } };

	waiter = gettid();
	poll(p, 2, -1);
	pthread_testcancel();
	return NULL;
}

static void *in_epoll(void *arg)
{
	struct epoll_event ev;
	(void)arg;

	waiter = gettid();
	epoll_wait(set, &ev, 1, -1);
	pthread_testcancel();
	return NULL;
}

/* Its stack goes with it: who left something on it is found out by the next event. */
static void cancel(const char *what, void *(*wait_there)(void *), int ours, int wake)
{
	enum { STACK = 1 << 20 };
	void *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *end;
	pthread_attr_t attr;
	pthread_t t;
	char c;

	waiter = 0;
	pthread_attr_init(&attr);
	pthread_attr_setstack(&attr, stack, STACK);
	need(pthread_create(&t, &attr, wait_there, ours ? &mixed : NULL) == 0, "pthread_create");
	while (!waiter || !asleep(getpid(), waiter))
		sched_yield();
	pthread_cancel(t);
	/* The call with a socket of ours goes on until something comes (docs/differences.md). */
	if (ours)
		need(write(wake, "x", 1) == 1, "write");
	pthread_join(t, &end);
	if (ours)
		need(read(mixed[1], &c, 1) == 1, "read");
	munmap(stack, STACK);
	printf("%s: %s\n", what, end == PTHREAD_CANCELED ? "cancelled" : "not cancelled");
	fflush(stdout);
}

static void into_set(int fd)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };

	need(epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev) == 0, "epoll_ctl");
}

static int cancels(void)
{
	int a = bound(SOCK_STREAM), c = connected(), ends[2];
	struct pollfd p;
	struct epoll_event ev;

	alarm(20);
	mixed[0] = accept(a, NULL, NULL);
	need(pipe(ends) == 0, "pipe");
	mixed[1] = ends[0];
	set = epoll_create1(0);
	into_set(ends[0]);
	cancel("poll, kernel descriptors only", in_poll, 0, ends[1]);
	cancel("epoll_wait, kernel descriptors only", in_epoll, 0, ends[1]);
	into_set(mixed[0]);
	for (int i = 0; i < 3; i++) {
		cancel("poll", in_poll, 1, ends[1]);
		cancel("epoll_wait", in_epoll, 1, ends[1]);
	}
	p = (struct pollfd){ mixed[0], POLLIN, 0 };
	need(send(c, "x", 1, 0) == 1, "send");
	tell("poll hears of it", poll(&p, 1, 10000) == 1 ? 0 : -1);
	tell("epoll_wait hears of it", epoll_wait(set, &ev, 1, 10000) == 1 ? 0 : -1);
	return 0;
}

/* ---- a handler closes a descriptor ---- */

static atomic_int closed;

static void opens_and_closes(int sig)
{
	int err = errno;
	(void)sig;

	closed += close(open("/dev/null", O_RDONLY)) == 0;
	errno = err;
}

static int closes(void)
{
	struct sigaction sa = { .sa_handler = opens_and_closes, .sa_flags = SA_RESTART };
	struct itimerval often = { { 0, 100 }, { 0, 100 } };
	int a = bound(SOCK_STREAM), c = connected();
	struct epoll_event ev;

	set = epoll_create1(0);
	into_set(accept(a, NULL, NULL));
	need(send(c, "x", 1, 0) == 1, "send");
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	while (closed < 5000)
		epoll_wait(set, &ev, 1, 1);
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
	printf("closed\n");
	return 0;
}

/* ---- time-outs that select() says, and that it cannot say ---- */

static int select_left(void)
{
	struct itimerval often = { { 0, 50000 }, { 0, 50000 } };
	int a = bound(SOCK_STREAM);
	struct timeval left[2] = { { 20, 0 }, { 20, 0 } };

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	handle(SIGALRM, 0);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < 2; i++) {
		fd_set in;

		FD_ZERO(&in);
		FD_SET(a, &in);
#ifdef SYS_select
		tell("select", i ? syscall(SYS_select, a + 1, &in, NULL, NULL, &left[i]) : select(a + 1, &in, NULL, NULL, &left[i]));
#else
		tell("select", select(a + 1, &in, NULL, NULL, &left[i]));
#endif
		printf("less is left: %d\n", left[i].tv_sec < 20);
	}
	return 0;
}

/* What is left of a time cannot be written here. */
static int constant_times(void)
{
	static const struct timespec times[] = { { 0, 0 }, { 0, 1000 } };
	const struct { const void *mask; size_t size; } none = { NULL, _NSIG / 8 };
	int a = bound(SOCK_STREAM);

	for (int i = 0; i < 2; i++) {
		struct pollfd p = { a, POLLIN, 0 };
		fd_set in;

		tell("ppoll", syscall(SYS_ppoll, &p, 1, &times[i], NULL, _NSIG / 8));
		FD_ZERO(&in);
		FD_SET(a, &in);
		tell("pselect6", syscall(SYS_pselect6, a + 1, &in, NULL, NULL, &times[i], &none));
#ifdef SYS_select
		FD_SET(a, &in);
		tell("select", syscall(SYS_select, a + 1, &in, NULL, NULL, &times[i]));
#endif
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	alarm(0);
	if (!strcmp(what, "restart"))
		return restart();
	if (!strcmp(what, "timeouts"))
		return timeouts();
	if (!strcmp(what, "first-handlers"))
		return first_handlers();
	if (!strcmp(what, "exec-stream") || !strcmp(what, "exec-datagram"))
		return exec_while_sending(!strcmp(what, "exec-stream") ? SOCK_STREAM : SOCK_DGRAM);
	if (!strcmp(what, "exec") && argc == 4)
		return exec_round(atoi(argv[2]), atoi(argv[3]));
	if (!strcmp(what, "first-polls"))
		return first_polls();
	if (!strcmp(what, "cancel"))
		return cancels();
	if (!strcmp(what, "closes"))
		return closes();
	if (!strcmp(what, "select-left"))
		return select_left();
	if (!strcmp(what, "constant-times"))
		return constant_times();
	return 2;
}
