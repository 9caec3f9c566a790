/*
 * pthread_cancel() of a thread that is about to make a call, or waits in one. cancelled; prints what became of each,
 * which is the same on the kernel's sockets and on ours.
 */
#define _GNU_SOURCE
#include "need.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static atomic_int handled;

static void pair(int ends[2])
{
	int a = bound(SOCK_STREAM);

	ends[0] = connected();
	ends[1] = accept(a, NULL, NULL);
	need(ends[1] >= 0, "accept");
	close(a);
}

static void into_set(int set, int fd)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };

	need(epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev) == 0, "epoll_ctl");
}

/* A datagram of somebody who is not of ours: by libc's own functions, past LD_PRELOAD. */
static void send_by_kernel(const struct sockaddr_in *to)
{
	void *libc = dlopen("libc.so.6", RTLD_LAZY);
	int (*new_socket)(int, int, int);
	ssize_t (*send_to)(int, const void *, size_t, int, const void *, socklen_t);

	need(libc != NULL, "dlopen");
	*(void **)&new_socket = dlsym(libc, "socket");
	*(void **)&send_to = dlsym(libc, "sendto");
	need(send_to(new_socket(AF_INET, SOCK_DGRAM, 0), "x", 1, 0, to, sizeof(*to)) == 1, "sendto");
}

/* All that takes a lock for the whole process, and the same for a socket. */
static void all_works(void)
{
	int ends[2], set = epoll_create1(0), u = bound(SOCK_DGRAM), copy;
	struct epoll_event ev;
	char c;

	need(sendto(u, "x", 1, 0, (void *)&here, sizeof(here)) == 1, "sendto");
	need(recv(u, &c, 1, 0) == 1, "recv of a datagram");
	pair(ends);
	into_set(set, ends[1]);
	need(send(ends[0], "x", 1, 0) == 1, "send");
	need(epoll_wait(set, &ev, 1, -1) == 1, "epoll_wait");
	copy = dup(ends[1]);
	need(recv(copy, &c, 1, 0) == 1, "recv");
	close(copy);
	close(ends[0]);
	close(ends[1]);
	close(set);
	close(u);
}

/* In a system call that waits. */
static int asleep(int tid)
{
	static const int calls[] = { SYS_futex, SYS_futex_waitv, SYS_recvfrom, SYS_ppoll, SYS_epoll_pwait,
#ifdef SYS_poll
				     SYS_poll, SYS_epoll_wait,
#endif
	};
	char path[64], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", tid);
	fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		if (text[0] >= '0' && text[0] <= '9' && atoi(text) == calls[i])
			return 1;
	return 0;
}

/* ---- a thread whose cancellation is pending ---- */

struct job {
	const char *what;
	void (*prepare)(void);
	long (*call)(void);
	void (*finish)(void);
	int point;		/* a cancellation point in Linux: what it says does not count */
};
static int fds[4];
static int child_said;

static void handler(int sig) { (void)sig; handled++; }

struct result { int over, handled; long rc; const struct job *job; };

/* Outside of the call, whatever it was: handlers run at once, and the same call can be made. */
static void cleanup(void *arg)
{
	struct result *r = arg;

	raise(SIGUSR1);
	r->handled = handled;
	all_works();
	r->over = 1;
}

static void *pending(void *arg)
{
	struct result *r = arg;

	pthread_cleanup_push(cleanup, r);
	pthread_cancel(pthread_self());
	r->rc = r->job->call();
	r->rc = r->rc < 0 ? -errno : r->rc;
	pthread_testcancel();
	pthread_cleanup_pop(0);
	return NULL;
}

static void run(const struct job *j)
{
	struct result r = { .rc = -EINTR, .job = j };
	void *end;
	pthread_t t;

	if (j->prepare)
		j->prepare();
	need(pthread_create(&t, NULL, pending, &r) == 0, "pthread_create");
	pthread_join(t, &end);
	if (j->finish)
		j->finish();
	all_works();
	printf("%s: %s, %s, handlers run %d\n", j->what,
	       j->point ? "a point" : r.rc < 0 ? strerrorname_np((int)-r.rc) : "done",
	       end == PTHREAD_CANCELED && r.over ? "cancelled" : "not cancelled", r.handled);
	if (child_said)
		printf("\tchild: %d\n", child_said);
}

/* ---- calls that are no cancellation points ---- */

static long first_socket(void) { return socket(AF_INET, SOCK_STREAM, 0); }

static void make_set(void)
{
	pair(fds);
	fds[2] = epoll_create1(0);
}

static long first_entry(void)
{
	struct epoll_event ev = { .events = EPOLLIN };

	return epoll_ctl(fds[2], EPOLL_CTL_ADD, fds[1], &ev);
}

static void make_full_set(void)
{
	make_set();
	into_set(fds[2], fds[1]);
	fds[3] = open("/dev/null", O_RDONLY);
}

static long replace_set(void) { return dup2(fds[3], fds[2]); }

static atomic_int waiter;

static void *waits(void *arg)
{
	struct epoll_event ev;

	waiter = gettid();
	need(epoll_wait(fds[2], &ev, 1, -1) == 1, "epoll_wait");
	return arg;
}

static pthread_t in_set;

static void make_waited_set(void)
{
	make_full_set();
	need(pthread_create(&in_set, NULL, waits, NULL) == 0, "pthread_create");
	while (!waiter || !asleep(waiter))
		sched_yield();
}

/* Its call goes on. */
static void end_wait(void)
{
	need(send(fds[0], "x", 1, 0) == 1, "send");
	pthread_join(in_set, NULL);
}

static void make_file(void)
{
	pair(fds);
	fds[3] = open("/proc/self/exe", O_RDONLY);
}

static long send_file(void) { return sendfile(fds[0], fds[3], NULL, 100); }

static long send_file_at(void)
{
	off_t at = 4;

	return sendfile(fds[0], fds[3], &at, 100);
}

static long ask_interface(void)
{
	struct ifreq r = { .ifr_ifindex = 1 };

	return ioctl(fds[0], SIOCGIFNAME, &r);
}

static void make_pair(void) { pair(fds); }
static void make_stream(void) { fds[0] = socket(AF_INET, SOCK_STREAM, 0); }

/* TEST-NET-1 (RFC 5737). */
static long bind_elsewhere(void)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0xc0000201) };

	return bind(fds[0], (void *)&in, sizeof(in));
}

/* The set has an eventfd of the parent, which the child gives back. */
static long fork_child(void)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0)
		_exit(bind(socket(AF_INET, SOCK_STREAM, 0), (void *)&(struct sockaddr_in){ .sin_family = AF_INET },
			   sizeof(struct sockaddr_in)) ? 1 : 42);
	while (syscall(SYS_wait4, child, &status, 0, NULL) < 0)
		need(errno == EINTR, "wait4");
	child_said = WIFEXITED(status) ? WEXITSTATUS(status) : -status;
	return 0;
}

/* ---- calls that are ---- */

static struct sockaddr_in kernels;	/* the discard service: none of our sockets */

static void make_datagram(void)
{
	fds[0] = bound(SOCK_DGRAM);
	kernels = here;
	kernels.sin_port = htons(9);
}

static long receive(void)
{
	char c;

	return recv(fds[0], &c, 1, MSG_DONTWAIT);
}

static long receive_message(void)
{
	char c;
	struct iovec v = { &c, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

	return recvmsg(fds[0], &m, MSG_DONTWAIT);
}

static long send_to_kernel(void) { return sendto(fds[0], "x", 1, 0, (void *)&kernels, sizeof(kernels)); }

static long connect_to_kernel(void) { return connect(fds[0], (void *)&kernels, sizeof(kernels)); }

static void make_connected_datagram(void)
{
	make_datagram();
	need(connect_to_kernel() == 0, "connect");
}

static long disconnect(void)
{
	struct sockaddr none = { .sa_family = AF_UNSPEC };

	return connect(fds[0], &none, sizeof(none));
}

static const struct job jobs[] = {
	{ "first socket", NULL, first_socket, NULL, 0 },
	{ "epoll_ctl", make_set, first_entry, NULL, 0 },
	{ "dup2 to a set", make_full_set, replace_set, NULL, 0 },
	{ "dup2 to a set that is waited in", make_waited_set, replace_set, end_wait, 0 },
	{ "sendfile", make_file, send_file, NULL, 0 },
	{ "sendfile with an offset", make_file, send_file_at, NULL, 0 },
	{ "ioctl", make_pair, ask_interface, NULL, 0 },
	{ "bind to an address of others", make_stream, bind_elsewhere, NULL, 0 },
	{ "fork", make_full_set, fork_child, NULL, 0 },
	{ "recv of a datagram", make_datagram, receive, NULL, 1 },
	{ "recvmsg of a datagram", make_datagram, receive_message, NULL, 1 },
	{ "sendto the kernel's", make_datagram, send_to_kernel, NULL, 1 },
	{ "connect of a datagram socket", make_datagram, connect_to_kernel, NULL, 1 },
	{ "disconnect of a datagram socket", make_connected_datagram, disconnect, NULL, 1 },
};

/* ---- one that waits ---- */

static void *waits_for_datagrams(void *arg)
{
	struct result *r = arg;
	char c;

	pthread_cleanup_push(cleanup, r);
	waiter = gettid();
	while (recv(fds[0], &c, 1, 0) >= 0)
		;
	pthread_cleanup_pop(0);
	return NULL;
}

/* One comes once it is cancelled (docs/differences.md). */
static void cancel_waiting(void)
{
	struct result r = { 0 };
	struct sockaddr_in to;
	void *end;
	pthread_t t;

	make_datagram();
	to = here;
	need(pthread_create(&t, NULL, waits_for_datagrams, &r) == 0, "pthread_create");
	while (!waiter || !asleep(waiter))
		sched_yield();
	pthread_cancel(t);
	send_by_kernel(&to);
	pthread_join(t, &end);
	all_works();
	printf("waits for datagrams: %s, handlers run %d\n", end == PTHREAD_CANCELED && r.over ? "cancelled" : "not cancelled",
	       r.handled);
}

/* ---- system() ---- */

static void *in_shell(void *arg)
{
	char command[64];

	snprintf(command, sizeof(command), "echo >&%d; exec sleep 100", fds[3]);
	system(command);
	return arg;
}

/* The shell has a socket and the pipe, whose end is the shell's. */
static void cancel_system(void)
{
	struct sigaction interrupt;
	pthread_t t;
	void *end;
	char c;

	signal(SIGINT, SIG_DFL);	/* a shell in the background has it ignored */
	pair(fds);
	need(pipe(&fds[2]) == 0, "pipe");
	need(pthread_create(&t, NULL, in_shell, NULL) == 0, "pthread_create");
	need(read(fds[2], &c, 1) == 1, "read");
	close(fds[3]);
	pthread_cancel(t);
	pthread_join(t, &end);
	sigaction(SIGINT, NULL, &interrupt);
	printf("system: %s, SIGINT %s\n", end == PTHREAD_CANCELED ? "cancelled" : "not cancelled",
	       interrupt.sa_handler == SIG_DFL ? "as before" : "ignored");
	fflush(stdout);
	need(read(fds[2], &c, 1) == 0, "read");
	need(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD, "waitpid");
	all_works();
}

/* ---- execve() ---- */

static char image[64];

static void *execs(void *arg)
{
	char *const argv[] = { image, (char *)"image", NULL };

	pthread_cancel(pthread_self());
	execv(image, argv);
	return arg;
}

static void exec_pending(void)
{
	pthread_t t;

	pair(fds);
	snprintf(image, sizeof(image), "/proc/self/exe");
	need(pthread_create(&t, NULL, execs, NULL) == 0, "pthread_create");
	pthread_join(t, NULL);
	printf("execve: not done\n");
}

static int in_child(const struct job *j, void (*other)(void))
{
	struct sigaction sa = { .sa_handler = handler };
	int status;

	if (fork() == 0) {
		alarm(20);	/* a lock that nobody gives back */
		sigaction(SIGUSR1, &sa, NULL);
		if (j)
			run(j);
		else
			other();
		fflush(stdout);
		_exit(0);
	}
	wait(&status);
	if (status)
		printf("%s: ended by %d\n", j ? j->what : "another", status);
	fflush(stdout);
	return status != 0;
}

int main(int argc, char **argv)
{
	int failed = 0;

	(void)argv;
	if (argc > 1)
		return printf("execve: done\n") < 0;
	for (unsigned i = 0; i < sizeof(jobs) / sizeof(jobs[0]); i++)
		failed += in_child(&jobs[i], NULL);
	failed += in_child(NULL, cancel_waiting);
	failed += in_child(NULL, cancel_system);
	failed += in_child(NULL, exec_pending);
	return failed != 0;
}
