/*
 * Signal handlers that use sockets (signal-safety(7)), and handlers that leave calls by siglongjmp(). handlers WHAT; prints
 * what it saw, which is the same on the kernel's sockets and on ours.
 */
#define _GNU_SOURCE
#include "need.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/time.h>
#include <sys/wait.h>

static int listener, a = -1, b = -1, set = -1;
static atomic_long handled;
static atomic_long *total;	/* bytes that arrived at the other process */

static void handle(int sig, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction sa = { .sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO };

	need(sigaction(sig, &sa, NULL) == 0, "sigaction");
}

static void every(long us, long first_us)
{
	struct itimerval t = { { 0, us }, { 0, first_us } };

	setitimer(ITIMER_REAL, &t, NULL);
}

/* ---- the other end: takes what comes by `sink`, gives back what comes by `echo` ---- */

static void other_end(int sink, int echo)
{
	static char room[65536];
	struct pollfd p[2] = { { sink, POLLIN, 0 }, { echo, POLLIN, 0 } };
	ssize_t n;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (poll(p, 2, -1) > 0) {
		if (p[0].revents) {
			n = recv(sink, room, sizeof(room), 0);
			if (n <= 0)
				break;
			*total += n;
		}
		if (p[1].revents) {
			n = recv(echo, room, sizeof(room), 0);
			if (n > 0)
				need(send(echo, room, (size_t)n, 0) == n, "echo");
			else
				p[1].fd = -1;
		}
	}
	_exit(0);
}

static void two_connections(void)
{
	int sink, echo;

	total = mmap(NULL, sizeof(*total), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	listener = bound(SOCK_STREAM);
	a = connected();
	sink = accept(listener, NULL, NULL);
	b = connected();
	echo = accept(listener, NULL, NULL);
	if (fork() == 0) {
		close(a);
		close(b);
		other_end(sink, echo);
	}
	close(sink);
	close(echo);
	set = epoll_create1(0);
}

/* By the end of the connection the other process has counted all. */
static void tell_total(long sent)
{
	close(a);
	close(b);
	wait(NULL);
	printf("%s\n", *total == sent ? "all arrived" : "bytes are missing");
}

static void tell_mask(void)
{
	sigset_t now;

	sigprocmask(SIG_BLOCK, NULL, &now);
	printf("mask: %s\n", sigisemptyset(&now) ? "empty" : "something is blocked");
}

/* ---- busy: a handler sends, receives, adds to an epoll set and closes what the program is using ---- */

static atomic_long sent_by_handler;

static void uses_all(int sig, siginfo_t *info, void *context)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int err = errno, s;
	char c;

	(void)sig;
	(void)info;
	(void)context;
	if (send(a, "h", 1, MSG_DONTWAIT) == 1)
		sent_by_handler++;
	need(recv(a, &c, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "recv of nothing");
	s = dup(b);
	need(epoll_ctl(set, EPOLL_CTL_ADD, s, &ev) == 0, "epoll_ctl");
	need(epoll_wait(set, &ev, 1, 0) >= 0, "epoll_wait");
	need(epoll_ctl(set, EPOLL_CTL_DEL, s, NULL) == 0 && close(s) == 0, "close");
	s = socket(AF_INET, SOCK_STREAM, 0);
	need(s >= 0 && close(s) == 0, "close of a new one");
	handled++;
	errno = err;
}

static int busy(void)
{
	struct epoll_event ev = { .events = EPOLLIN };
	long sent = 0;

	two_connections();
	need(epoll_ctl(set, EPOLL_CTL_ADD, b, &ev) == 0, "epoll_ctl");
	handle(SIGALRM, uses_all, SA_RESTART);
	every(1000, 1000);
	for (long i = 0; i < 100000 || handled < 1000; i++) {
		need(send(a, "m", 1, 0) == 1, "send");
		sent++;
		if (i % 16 == 0)
			need(epoll_wait(set, &ev, 1, 0) == 0, "epoll_wait");
	}
	every(0, 0);
	tell_mask();
	tell_total(sent + sent_by_handler);
	return 0;
}

/* ---- nested: a handler on a stack of its own waits for an answer, wherever the program is ---- */

static void asks(int sig, siginfo_t *info, void *context)
{
	struct pollfd p = { b, POLLIN, 0 };
	int err = errno;
	char c = 0;

	(void)sig;
	(void)info;
	(void)context;
	need(send(b, "?", 1, 0) == 1, "send of a question");
	if (handled % 2)
		need(poll(&p, 1, -1) == 1, "poll for the answer");
	need(recv(b, &c, 1, 0) == 1 && c == '?', "answer");
	handled++;
	errno = err;
}

static int nested(void)
{
	enum { STACK = 1 << 16 };
	stack_t alternate = { .ss_sp = malloc(STACK), .ss_size = STACK };
	struct epoll_event ev = { .events = EPOLLIN };
	struct pollfd p;
	long sent = 0;
	int quiet;

	two_connections();
	quiet = connected();
	need(epoll_ctl(set, EPOLL_CTL_ADD, quiet, &ev) == 0, "epoll_ctl");
	p = (struct pollfd){ quiet, POLLIN, 0 };
	sigaltstack(&alternate, NULL);
	for (int flags = 0; flags < 2; flags++) {
		handled = 0;
		handle(SIGALRM, asks, flags ? SA_RESTART : SA_ONSTACK);
		every(1000, 1000);
		while (handled < 600) {
			need(send(a, "m", 1, 0) == 1, "send");
			sent++;
			if (handled > 200)
				need(poll(&p, 1, 1) <= 0, "poll");
			if (handled > 400)
				need(epoll_wait(set, &ev, 1, 1) <= 0, "epoll_wait");
		}
		every(0, 0);
	}
	tell_mask();
	tell_total(sent);
	return 0;
}

/* ---- forks: a handler forks, and the child closes what it got ---- */

static void forks(int sig, siginfo_t *info, void *context)
{
	int err = errno;
	pid_t child = fork();

	(void)sig;
	(void)info;
	(void)context;
	if (child == 0) {
		close(b);
		_exit(send(a, "c", 1, MSG_DONTWAIT) == 1 ? 0 : 1);
	}
	need(child > 0, "fork");
	handled++;
	errno = err;
}

static int forking(void)
{
	long sent = 0, children;
	int status;

	two_connections();
	handle(SIGALRM, forks, SA_RESTART);
	every(10000, 10000);
	while (handled < 100) {
		need(send(a, "m", 1, 0) == 1, "send");
		sent++;
	}
	every(0, 0);
	for (children = handled; children > 0; children--) {
		need(wait(&status) > 0, "wait");
		sent += status == 0;
	}
	tell_mask();
	tell_total(sent);
	return 0;
}

/* ---- values: real-time signals come in order, each with what was sent with it ---- */

static atomic_int expected, wrong;

static void takes_value(int sig, siginfo_t *info, void *context)
{
	sigset_t now;

	(void)context;
	sigprocmask(SIG_BLOCK, NULL, &now);
	if (info->si_signo != sig || info->si_code != SI_QUEUE || info->si_value.sival_int != expected ||
	    !sigismember(&now, sig) || !sigismember(&now, SIGUSR1) || sigismember(&now, SIGUSR2))
		wrong++;
	expected++;
}

static void takes_child(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (info->si_signo != sig || info->si_code != CLD_EXITED || info->si_status != 3)
		wrong++;
	handled++;
}

static int values(void)
{
	enum { N = 3000 };
	struct sigaction sa = { .sa_sigaction = takes_value, .sa_flags = SA_SIGINFO | SA_RESTART };
	long sent = 0;

	two_connections();
	sigaddset(&sa.sa_mask, SIGUSR1);
	sigaction(SIGRTMIN + 1, &sa, NULL);
	handle(SIGCHLD, takes_child, SA_RESTART);
	if (fork() == 0) {
		pid_t parent = getppid();

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int i = 0; i < N; i++)
			while (sigqueue(parent, SIGRTMIN + 1, (union sigval){ .sival_int = i }) && errno == EAGAIN)
				sched_yield();
		_exit(3);
	}
	while (expected < N || handled < 1) {
		need(send(a, "m", 1, 0) == 1, "send");
		sent++;
	}
	signal(SIGCHLD, SIG_DFL);
	printf("wrong: %d\n", wrong);
	wait(NULL);
	tell_mask();
	tell_total(sent);
	return 0;
}

/* ---- jumps: time-outs by siglongjmp() ---- */

static sigjmp_buf out;

static void jumps(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	(void)context;
	siglongjmp(out, 1);
}

static int mixed[2];	/* a pipe that stays silent */

static long in_recv(int s) { char c; return recv(s, &c, 1, 0); }
static long in_peek(int s) { char c[2]; return recv(s, c, 2, MSG_PEEK | MSG_WAITALL); }
static long in_accept(int s) { (void)s; return accept(listener, NULL, NULL); }
static long in_poll(int s) { struct pollfd p = { s, POLLIN, 0 }; return poll(&p, 1, -1); }

static long in_mixed_poll(int s)
{
	struct pollfd p[2] = { { s, POLLIN, 0 }, { mixed[0], POLLIN, 0 } };

	return poll(p, 2, -1);
}

static long in_large_poll(int s)
{
	struct pollfd p[100];

	for (int i = 0; i < 100; i++)
		p[i] = (struct pollfd){ i % 2 ? s : mixed[0], POLLIN, 0 };
	return poll(p, 100, -1);
}

static long in_select(int s)
{
	fd_set r;

	FD_ZERO(&r);
	FD_SET(s, &r);
	return select(s + 1, &r, NULL, NULL, NULL);
}

static long in_epoll(int s) { struct epoll_event ev; (void)s; return epoll_wait(set, &ev, 1, -1); }

static long in_send(int s)
{
	static char block[1 << 16];

	while (send(s, block, sizeof(block), 0) > 0)
		;
	return -1;
}

/* The call from `depth` frames further down, and out of it. */
static __attribute__((noinline)) long from_depth(long (*call)(int), int s, int depth)
{
	volatile char room[1024];
	long rc;

	room[0] = (char)depth;
	rc = depth ? from_depth(call, s, depth - 1) : call(s);
	return rc + (room[0] & 0);
}

static void leave(long (*call)(int), int s, int depth)
{
	if (sigsetjmp(out, 1) == 0) {
		every(0, 1000);
		from_depth(call, s, depth);
		printf("it came back\n");
	}
}

static const struct { const char *name; long (*call)(int); } CALLS[] = {
	{ "recv", in_recv }, { "peek", in_peek }, { "accept", in_accept }, { "poll", in_poll },
	{ "mixed poll", in_mixed_poll }, { "large poll", in_large_poll }, { "select", in_select }, { "epoll_wait", in_epoll },
};

static void *by_thread(void *arg)
{
	long (**calls)(int) = arg;
	sigset_t alarm_only;

	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
	for (int depth = 0; depth < 4; depth++)
		leave(*calls, a, depth);
	return NULL;
}

/* Its stack goes with it. */
static void in_thread(long (*call)(int))
{
	enum { STACK = 1 << 20 };
	void *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_attr_t attr;
	sigset_t alarm_only;
	pthread_t t;

	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm_only, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstack(&attr, stack, STACK);
	need(pthread_create(&t, &attr, by_thread, &call) == 0, "pthread_create");
	pthread_join(t, NULL);
	munmap(stack, STACK);
	pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
}

/* All of them work as if nothing had been. */
static void go_on(int peer)
{
	struct timeval limit = { 20, 0 };
	struct pollfd p = { a, POLLIN, 0 };
	struct epoll_event ev;
	char c;

	setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	need(send(peer, "x", 1, 0) == 1, "send");
	need(epoll_wait(set, &ev, 1, 20000) == 1, "epoll_wait");
	need(poll(&p, 1, 20000) == 1, "poll");
	need(recv(a, &c, 1, 0) == 1 && c == 'x', "recv");
	need(epoll_wait(set, &ev, 1, 0) == 0, "epoll_wait for nothing");
	setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ 0 }, sizeof(limit));
}

static void accepts(void)
{
	int c = connected(), s = accept(listener, NULL, NULL);

	need(s >= 0, "accept");
	close(c);
	close(s);
}

static int jumping(void)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int peer;

	listener = bound(SOCK_STREAM);
	peer = connected();
	a = accept(listener, NULL, NULL);
	set = epoll_create1(0);
	need(pipe(mixed) == 0 && epoll_ctl(set, EPOLL_CTL_ADD, a, &ev) == 0, "resources");
	for (int with_pipe = 0; with_pipe < 2; with_pipe++) {
		if (with_pipe)
			need(epoll_ctl(set, EPOLL_CTL_ADD, mixed[0], &ev) == 0, "epoll_ctl");
		for (int flags = 0; flags < 2; flags++) {
			handle(SIGALRM, jumps, flags ? SA_RESTART : 0);
			for (unsigned i = 0; i < sizeof(CALLS) / sizeof(CALLS[0]); i++) {
				for (int n = 0; n < 20; n++)
					leave(CALLS[i].call, a, n % 10);
				go_on(peer);
				in_thread(CALLS[i].call);
				go_on(peer);
				accepts();
				printf("%s goes on\n", CALLS[i].name);
				fflush(stdout);
			}
		}
	}
	for (int n = 0; n < 5; n++)
		leave(in_send, a, n);
	tell_mask();
	close(set);
	close(a);
	close(peer);
	return 0;
}

/* ---- connects: the same for connect() to a host that does not answer, by its port ---- */

static long in_connect(int s) { return connect(s, (void *)&here, sizeof(here)); }

static int connects(int silent)
{
	int s, in_use;

	handle(SIGALRM, jumps, 0);
	for (int n = 0; n < 5; n++) {
		listener = bound(SOCK_STREAM);
		in_use = here.sin_port;
		here.sin_port = htons((uint16_t)silent);
		s = socket(AF_INET, SOCK_STREAM, 0);
		leave(in_connect, s, n);
		need(close(s) == 0, "close");
		s = socket(AF_INET, SOCK_STREAM, 0);
		leave(in_connect, s, 5 - n);
		here.sin_port = (in_port_t)in_use;
		close(s);
		s = socket(AF_INET, SOCK_STREAM, 0);
		need(connect(s, (void *)&here, sizeof(here)) == 0, "connect");
		accepts();
		close(s);
		close(listener);
	}
	tell_mask();
	printf("connects\n");
	return 0;
}

/* ---- actions: what sigaction(2) and its relatives say ---- */

static void nothing(int sig) { (void)sig; handled++; }
static void nothing_long(int sig, siginfo_t *info, void *context) { (void)sig; (void)info; (void)context; handled++; }

static const char *name_of(sighandler_t h)
{
	return h == SIG_DFL ? "default" : h == SIG_IGN ? "ignore" : h == SIG_ERR ? "error" : h == SIG_HOLD ? "hold" :
	       h == nothing ? "nothing" : h == (sighandler_t)(uintptr_t)nothing_long ? "nothing_long" : "?";
}

static void tell_action(const char *what, int sig)
{
	enum { ASKED = SA_SIGINFO | SA_RESTART | SA_NODEFER | SA_ONSTACK | SA_NOCLDSTOP | (int)SA_RESETHAND };
	struct sigaction now;
	int blocked = 0;

	need(sigaction(sig, NULL, &now) == 0, "sigaction");
	for (int i = 1; i < _NSIG; i++)
		blocked += sigismember(&now.sa_mask, i) == 1;
	printf("%s: %s, flags %x, mask %d\n", what, name_of(now.sa_handler), (unsigned)(now.sa_flags & ASKED), blocked);
}

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

static int actions(void)
{
	struct sigaction sa = { .sa_sigaction = nothing_long, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER };
	sigset_t now;

	tell_action("at first", SIGUSR1);
	sigaddset(&sa.sa_mask, SIGUSR2);
	sigaction(SIGUSR1, &sa, NULL);
	tell_action("three arguments", SIGUSR1);
	printf("signal: %s\n", name_of(signal(SIGUSR1, nothing)));
	tell_action("signal", SIGUSR1);
	siginterrupt(SIGUSR1, 1);
	tell_action("siginterrupt", SIGUSR1);
	printf("sysv_signal: %s\n", name_of(sysv_signal(SIGUSR1, nothing)));
	tell_action("sysv_signal", SIGUSR1);
	raise(SIGUSR1);
	tell_action("after one", SIGUSR1);
	sa = (struct sigaction){ .sa_handler = nothing, .sa_flags = (int)SA_RESETHAND | SA_NOCLDSTOP };
	sigaction(SIGCHLD, &sa, NULL);
	tell_action("reset", SIGCHLD);
	raise(SIGCHLD);
	tell_action("after one", SIGCHLD);
	printf("sigset: %s\n", name_of(sigset(SIGUSR2, nothing)));
	printf("sigset: %s\n", name_of(sigset(SIGUSR2, SIG_HOLD)));
	raise(SIGUSR2);
	printf("sigset: %s\n", name_of(sigset(SIGUSR2, SIG_IGN)));
	tell_action("sigset", SIGUSR2);
	printf("signal: %s\n", name_of(signal(SIGKILL, nothing)));
	printf("signal: %s\n", name_of(signal(0, nothing)));
	printf("signal: %s\n", name_of(signal(SIGUSR2, SIG_ERR)));
	printf("signal: %s\n", name_of(signal(SIGUSR2, SIG_DFL)));
	tell_action("default", SIGUSR2);
	sigprocmask(SIG_BLOCK, NULL, &now);
	printf("handled %ld, %s\n", (long)handled, sigisemptyset(&now) ? "nothing blocked" : "blocked");
	return 0;
}

/* ---- faults: a program that catches its wrong pointers ---- */

static int faults(void)
{
	char *nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	volatile int caught = 0;

	two_connections();
	handle(SIGSEGV, jumps, 0);
	handle(SIGALRM, takes_child, 0);
	for (volatile int i = 0; i < 3; i++)
		if (sigsetjmp(out, 1) == 0)
			caught += *(volatile char *)nowhere;
		else
			caught++;
	every(1000, 1000);
	while (handled < 100)
		need(send(a, "m", 1, 0) == 1 || errno == EINTR, "send");
	every(0, 0);
	printf("caught %d\n", caught);
	tell_mask();
	return 0;
}

/* ---- two threads wait in one set, and one is in a handler when something comes ---- */

static atomic_int tids[2], entered, over;
static atomic_long results[2];

static void stays(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)info, (void)context;
	entered = 1;
	while (!over)
		sched_yield();
}

static void *waits_in_set(void *index)
{
	struct epoll_event ev;
	int i = (int)(intptr_t)index;

	tids[i] = gettid();
	results[i] = epoll_wait(set, &ev, 1, -1);
	return NULL;
}

static void until_asleep(int tid)
{
	char path[64], state = 0;
	FILE *stat;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	while (state != 'S') {
		sched_yield();
		stat = fopen(path, "r");
		need(stat && fscanf(stat, "%*d (%*[^)]) %c", &state) == 1, "stat");
		fclose(stat);
	}
}

static int sharing(bool silent)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET };
	struct timespec end;
	pthread_t t[2];

	two_connections();
	handle(SIGUSR1, stays, 0);
	set = epoll_create1(0);
	if (silent)
		need(epoll_ctl(set, EPOLL_CTL_ADD, listener, &ev) == 0, "epoll_ctl");
	for (int i = 0; i < 2; i++) {
		need(pthread_create(&t[i], NULL, waits_in_set, (void *)(intptr_t)i) == 0, "pthread_create");
		while (!tids[i])
			sched_yield();
		until_asleep(tids[i]);
	}
	pthread_kill(t[1], SIGUSR1);	/* the one that is woken first */
	while (!entered)
		sched_yield();
	ev.events = EPOLLOUT | EPOLLET;
	need(epoll_ctl(set, EPOLL_CTL_ADD, a, &ev) == 0, "epoll_ctl");
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 20;
	need(pthread_timedjoin_np(t[0], NULL, &end) == 0, "the other one does not wake");
	printf("the other one: %ld\n", (long)results[0]);
	over = 1;
	pthread_join(t[1], NULL);
	printf("the one with the handler: %ld\n", (long)results[1]);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct { const char *name; int (*run)(void); } WHAT[] = {
		{ "busy", busy }, { "nested", nested }, { "forks", forking }, { "values", values }, { "jumps", jumping },
		{ "actions", actions }, { "faults", faults },
	};

	if (argc == 3 && !strcmp(argv[1], "sharing"))
		return sharing(!strcmp(argv[2], "silent"));
	if (argc == 3 && !strcmp(argv[1], "connects"))
		return connects(atoi(argv[2]));
	for (unsigned i = 0; argc == 2 && i < sizeof(WHAT) / sizeof(WHAT[0]); i++)
		if (!strcmp(argv[1], WHAT[i].name))
			return WHAT[i].run();
	return 2;
}
