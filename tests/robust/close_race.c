/*
 * Threads receive from, and send to, descriptors that another thread closes at that moment, while connections of yet other
 * threads take what that frees. Every descriptor number is used once, so whoever gets a byte of another
 * connection, or misses one of his own, has met somebody else's connection.
 * Run: close_race SECONDS. Prints what is wrong, then "ends N".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PREY = 3, THIEVES = 4, OTHERS = 2, FIRST = 1100, BLOCK = 16384 };

static struct sockaddr_in where = { .sin_family = AF_INET };
static int last_fd;
static atomic_int prey[PREY], next_fd = FIRST, wrong, ends, over;

static unsigned char expected(unsigned id, unsigned i) { return (unsigned char)((i * 2654435761u >> 24) ^ id); }

static void say(const char *what, int fd, unsigned at, int got)
{
	if (atomic_fetch_add(&wrong, 1) < 20)
		printf("WRONG %s fd %d at %u: %d\n", what, fd, at, got);
	fflush(stdout);
}

static int connected(unsigned char id, char kind)
{
	unsigned char hello[2] = { id, (unsigned char)kind };
	int s = socket(AF_INET, SOCK_STREAM, 0);

	if (s < 0 || connect(s, (struct sockaddr *)&where, sizeof(where)) || send(s, hello, 2, MSG_NOSIGNAL) != 2) {
		if (s >= 0)
			close(s);
		return -1;
	}
	return s;
}

/* 'T': its id for ever, and what comes must be its id, too. 'V': the stream of its id. */
static void *serve(void *arg)
{
	int s = (int)(long)arg;
	unsigned char hello[2], block[BLOCK], in[4096];

	if (recv(s, hello, 2, MSG_WAITALL) == 2) {
		for (unsigned at = 0;; at += BLOCK) {
			ssize_t n;

			for (unsigned i = 0; i < BLOCK; i++)
				block[i] = hello[1] == 'T' ? hello[0] : expected(hello[0], at + i);
			while ((n = recv(s, in, sizeof(in), MSG_DONTWAIT)) > 0)
				for (ssize_t i = 0; i < n; i++)
					if (in[i] != hello[0])
						say("sent", s, (unsigned)i, in[i]);
			if (n == 0 || send(s, block, BLOCK, MSG_NOSIGNAL) != BLOCK)
				break;
		}
	}
	close(s);
	return NULL;
}

static void server(int l)
{
	pthread_attr_t small;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 131072);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	for (;;) {
		pthread_t t;
		int s = accept(l, NULL, NULL);

		if (s >= 0 && pthread_create(&t, &small, serve, (void *)(long)s))
			close(s);
	}
}

static void *hunted(void *arg)
{
	atomic_int *me = arg;

	while (!over) {
		int n = next_fd++, s = connected((unsigned char)n, 'T'), turns = rand() % 4;

		if (n >= last_fd || s < 0)
			break;
		/* Another number: the library has a descriptor of its own there. */
		if (fcntl(s, F_DUPFD, n) != n)
			break;
		close(s);
		*me = n;
		for (int i = 0; i < turns; i++)
			sched_yield();
		close(n);
		ends++;
	}
	*me = -1;
	over = 1;
	return NULL;
}

static void *thief(void *arg)
{
	unsigned seed = (unsigned)(long)arg;
	unsigned char buf[4096];

	while (!over) {
		int n = prey[rand_r(&seed) % PREY], flags = rand_r(&seed) % 2 ? MSG_DONTWAIT : 0;
		ssize_t got;

		if (n < FIRST) {
			sched_yield();
			continue;
		}
		if (rand_r(&seed) % 4 == 0) {
			memset(buf, n, 64);
			send(n, buf, 64, flags | MSG_NOSIGNAL);
			continue;
		}
		got = recv(n, buf, sizeof(buf), flags);
		for (ssize_t i = 0; i < got; i++)
			if (buf[i] != (unsigned char)n) {
				say("stolen", n, (unsigned)i, buf[i]);
				break;
			}
	}
	return NULL;
}

/* Nobody knows its descriptors. */
static void *other(void *arg)
{
	unsigned seed = (unsigned)(long)arg;
	unsigned char buf[8192];

	while (!over) {
		unsigned char id = (unsigned char)rand_r(&seed);
		unsigned all = (unsigned)rand_r(&seed) % 60000, at = 0;
		int s = connected(id, 'V');

		while (s >= 0 && at < all) {
			ssize_t n = recv(s, buf, sizeof(buf), 0);

			if (n <= 0) {
				say("broken", s, at, n ? errno : 0);
				break;
			}
			for (ssize_t i = 0; i < n; i++, at++)
				if (buf[i] != expected(id, at)) {
					say("lost", s, at, buf[i]);
					at = all;
					break;
				}
		}
		if (s >= 0)
			close(s);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int l = socket(AF_INET, SOCK_STREAM, 0), status;
	socklen_t len = sizeof(where);
	pthread_t t[PREY + THIEVES + OTHERS];
	struct timespec wait = { .tv_sec = argc > 1 ? atoi(argv[1]) : 1 };
	pid_t child;
	long n = 0;
	struct rlimit many;

	if (getrlimit(RLIMIT_NOFILE, &many))
		return 1;
	many.rlim_cur = many.rlim_max < 60000 ? many.rlim_max : 60000;
	last_fd = (int)many.rlim_cur - 100;	/* the library's are above */
	if (setrlimit(RLIMIT_NOFILE, &many))
		return 1;
	where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(l, (struct sockaddr *)&where, len) || listen(l, 512) || getsockname(l, (struct sockaddr *)&where, &len))
		return 1;
	child = fork();
	if (child == 0)
		server(l);
	close(l);
	for (; n < PREY; n++)
		pthread_create(&t[n], NULL, hunted, &prey[n]);
	for (; n < PREY + THIEVES; n++)
		pthread_create(&t[n], NULL, thief, (void *)n);
	for (; n < PREY + THIEVES + OTHERS; n++)
		pthread_create(&t[n], NULL, other, (void *)n);
	nanosleep(&wait, NULL);
	over = 1;
	alarm(30);	/* somebody waits for what will never come */
	while (n-- > 0)
		pthread_join(t[n], NULL);
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	printf("ends %d\n", ends);
	return wrong != 0;
}
