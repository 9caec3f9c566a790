/*
 * Opens N connections, says so, waits for a line on stdin; then every connection does one echo,
 * again waits for a line and ends. Prints one JSON line after each step.
 */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { AT_ONCE = 64 };

static int *fds;
static long count;
static struct hist hist;

static void wait_line(void)
{
	int ch;

	while ((ch = getchar()) != '\n')
		if (ch == EOF)
			exit(0);
}

static void say(const char *what, int64_t began)
{
	printf("{\"step\": \"%s\", \"connections\": %ld, \"seconds\": %.6f, \"p50_us\": %.2f, "
	       "\"p99_us\": %.2f}\n", what, count, (double)(now_ns() - began) / 1e9,
	       hist_us(&hist, 0.5), hist_us(&hist, 0.99));
	fflush(stdout);
}

static void ask(int ep, long i, int64_t *asked)
{
	char msg[MESSAGE];

	memset(msg, (int)(i % 251), MESSAGE);
	epoll_set(ep, EPOLL_CTL_ADD, fds[i], EPOLLIN, (uint64_t)i);
	asked[i] = now_ns();
	if (send(fds[i], msg, MESSAGE, MSG_NOSIGNAL) != MESSAGE)
		die("send on connection %ld", i);
}

static void answer(int ep, long i, int64_t asked)
{
	char msg[MESSAGE];
	ssize_t n = recv(fds[i], msg, MESSAGE, 0);

	if (n < 0)
		die("recv on connection %ld", i);
	errno = 0;
	if (n != MESSAGE || msg[0] != (char)(i % 251) || msg[MESSAGE - 1] != (char)(i % 251))
		die("wrong answer on connection %ld", i);
	hist_add(&hist, now_ns() - asked);
	epoll_set(ep, EPOLL_CTL_DEL, fds[i], 0, 0);
}

static void echo_all(void)
{
	int64_t *asked = calloc((size_t)count, sizeof(*asked));
	int ep = epoll_new();
	long next = 0, done = 0;

	if (!asked)
		die("calloc");
	while (done < count) {
		struct epoll_event ev[AT_ONCE];
		int n;

		while (next < count && next - done < AT_ONCE)
			ask(ep, next++, asked);
		n = epoll_wait(ep, ev, AT_ONCE, STALL_S * 1000);
		if (n < 0)
			die("epoll_wait");
		errno = 0;
		if (n == 0)
			die("no reply for %d s, %ld of %ld answered", STALL_S, done, count);
		for (int i = 0; i < n; i++, done++)
			answer(ep, (long)ev[i].data.u64, asked[ev[i].data.u64]);
	}
	close(ep);
	free(asked);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to;
	int64_t began;

	if (argc != 4) {
		errno = 0;
		die("usage: idle HOST PORT CONNECTIONS");
	}
	to = address(argv[1], argv[2]);
	count = number(argv[3], "connections", 1, 1000000);
	raise_fd_limit();
	fds = calloc((size_t)count, sizeof(*fds));
	if (!fds)
		die("calloc");
	began = now_ns();
	for (long i = 0; i < count; i++)
		fds[i] = connect_to(&to);
	say("open", began);
	wait_line();
	began = now_ns();
	echo_all();
	say("echo", began);
	wait_line();
	return 0;
}
