/*
 * connect, 64 bytes there and back, close; C of them at a time, for a while. Prints connections/s
 * and the time from connect to reply as JSON. The client closes first, so TIME_WAIT is its own.
 */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct slot {
	int fd;
	bool connecting;
	size_t got;
	int64_t began;
	char reply[MESSAGE];
};

struct run {
	struct sockaddr_in *to;		/* one for each port of the server */
	size_t nto, turn;
	struct slot *slots;
	int ep;
	int64_t measure_at, end_at;
	struct hist hist;
};

static const char request[MESSAGE] = "a request of 64 bytes";

static void begin(struct run *r, struct slot *s, int64_t now)
{
	const struct sockaddr_in *to = &r->to[r->turn++ % r->nto];

	s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s->fd < 0)
		die("socket");
	s->connecting = true;
	s->got = 0;
	s->began = now;
	if (connect(s->fd, (const struct sockaddr *)to, sizeof(*to)) && errno != EINPROGRESS)
		die("connect");
	epoll_set(r->ep, EPOLL_CTL_ADD, s->fd, EPOLLOUT, (uint64_t)(s - r->slots));
}

static void connected(struct run *r, struct slot *s)
{
	socklen_t len = sizeof(int);
	int err = 0;

	if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &len))
		die("getsockopt SO_ERROR");
	errno = err;
	if (err)
		die("connect");
	s->connecting = false;
	if (send(s->fd, request, MESSAGE, MSG_NOSIGNAL) != MESSAGE)
		die("send of a request");
	epoll_set(r->ep, EPOLL_CTL_MOD, s->fd, EPOLLIN, (uint64_t)(s - r->slots));
}

static void reply(struct run *r, struct slot *s)
{
	ssize_t n = recv(s->fd, s->reply + s->got, MESSAGE - s->got, 0);
	int64_t now;

	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0)
		die("recv of a reply");
	errno = 0;
	if (n == 0)
		die("the server closed before its reply");
	s->got += (size_t)n;
	if (s->got < MESSAGE)
		return;
	if (memcmp(s->reply, request, MESSAGE))
		die("wrong reply");
	close(s->fd);
	s->fd = -1;
	now = now_ns();
	if (now >= r->measure_at && s->began >= r->measure_at)
		hist_add(&r->hist, now - s->began);
	begin(r, s, now);
}

static void serve(struct run *r)
{
	struct epoll_event ev[64];
	int n = epoll_wait(r->ep, ev, 64, STALL_S * 1000);

	if (n < 0 && errno == EINTR)
		return;
	if (n < 0)
		die("epoll_wait");
	errno = 0;
	if (n == 0)
		die("no progress for %d s", STALL_S);
	for (int i = 0; i < n; i++) {
		struct slot *s = &r->slots[ev[i].data.u64];

		if (s->connecting)
			connected(r, s);
		else
			reply(r, s);
	}
}

int main(int argc, char **argv)
{
	static struct run r;
	int64_t now;
	long conns;

	if (argc < 6) {
		errno = 0;
		die("usage: connect HOST CONCURRENT WARM_S RUN_S PORT...");
	}
	conns = number(argv[2], "concurrent connections", 1, 10000);
	r.nto = (size_t)(argc - 5);
	r.to = calloc(r.nto, sizeof(*r.to));
	r.slots = calloc((size_t)conns, sizeof(*r.slots));
	if (!r.to || !r.slots)
		die("calloc");
	for (size_t i = 0; i < r.nto; i++)
		r.to[i] = address(argv[1], argv[5 + i]);
	raise_fd_limit();
	r.ep = epoll_new();
	now = now_ns();
	r.measure_at = now + seconds_ns(real(argv[3], "warm-up seconds"));
	r.end_at = r.measure_at + seconds_ns(real(argv[4], "seconds"));
	for (long i = 0; i < conns; i++)
		begin(&r, &r.slots[i], now);
	while ((now = now_ns()) < r.end_at)
		serve(&r);
	report(&r.hist, (double)(now - r.measure_at) / 1e9);
	return 0;
}
