/* The closed loop of echo_client and memget. */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct conn {
	int fd;
	uint32_t seq;
	size_t sent, got;
	int64_t began;
	char reply[MAX_REQUEST];
};

struct run {
	struct closed *c;
	struct conn *conns;
	int ep;
	int64_t measure_at, end_at, next_at;
	struct hist hist;
};

struct stamp {
	uint32_t conn, seq;
};

static void put_stamp(char *buf, const struct run *r, const struct conn *k)
{
	struct stamp s = { (uint32_t)(k - r->conns), k->seq };

	memcpy(buf, &s, sizeof(s));
}

static void send_rest(struct run *r, struct conn *k)
{
	const struct closed *c = r->c;
	char buf[MAX_REQUEST];
	ssize_t n;

	memcpy(buf, c->req, c->req_len);
	if (c->stamp)
		put_stamp(buf, r, k);
	n = send(k->fd, buf + k->sent, c->req_len - k->sent, MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN)
		die("send of a request");
	k->sent += n > 0 ? (size_t)n : 0;
	if (k->sent < c->req_len)
		epoll_set(r->ep, EPOLL_CTL_MOD, k->fd, EPOLLIN | EPOLLOUT,
			  (uint64_t)(k - r->conns));
}

static void start_request(struct run *r, struct conn *k, int64_t now)
{
	k->began = now;
	k->sent = k->got = 0;
	k->seq++;
	send_rest(r, k);
}

/* The next whole interval that is still ahead: a late reply does not cause a burst. */
static int64_t pace(struct run *r, int64_t now)
{
	struct timespec t;

	while (r->next_at <= now)
		r->next_at += r->c->interval_ns;
	t.tv_sec = r->next_at / 1000000000;
	t.tv_nsec = r->next_at % 1000000000;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
	return now_ns();
}

static void check_reply(const struct run *r, struct conn *k)
{
	const struct closed *c = r->c;
	char want[MAX_REQUEST];

	memcpy(want, c->rep, c->rep_len);
	if (c->stamp)
		put_stamp(want, r, k);
	errno = 0;
	if (memcmp(want, k->reply, c->rep_len))
		die("wrong reply on connection %d, request %u", (int)(k - r->conns), k->seq);
}

/* Returns the time, so that a request costs one look at the clock. */
static int64_t readable(struct run *r, struct conn *k)
{
	const struct closed *c = r->c;
	ssize_t n = recv(k->fd, k->reply + k->got, sizeof(k->reply) - k->got, 0);
	int64_t now;

	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		die("recv of a reply");
	errno = 0;
	if (n == 0)
		die("the server closed a connection");
	k->got += (size_t)n;
	if (k->got < c->rep_len)
		return 0;
	if (k->got > c->rep_len)
		die("a reply of %zu bytes instead of %zu", k->got, c->rep_len);
	check_reply(r, k);
	now = now_ns();
	if (now >= r->measure_at && k->began >= r->measure_at)
		hist_add(&r->hist, now - k->began);
	if (now < r->end_at)
		start_request(r, k, c->interval_ns ? pace(r, now) : now);
	return now;
}

static void writable(struct run *r, struct conn *k)
{
	epoll_set(r->ep, EPOLL_CTL_MOD, k->fd, EPOLLIN, (uint64_t)(k - r->conns));
	send_rest(r, k);
}

static int64_t serve(struct run *r)
{
	struct epoll_event ev[256];
	int n = epoll_wait(r->ep, ev, 256, STALL_S * 1000);
	int64_t now = 0;

	if (n < 0 && errno == EINTR)
		return 0;
	if (n < 0)
		die("epoll_wait");
	errno = 0;
	if (n == 0)
		die("no reply for %d s", STALL_S);
	for (int i = 0; i < n; i++) {
		struct conn *k = &r->conns[ev[i].data.u64];
		int64_t t = 0;

		if (ev[i].events & EPOLLOUT)
			writable(r, k);
		if (ev[i].events & ~(uint32_t)EPOLLOUT)
			t = readable(r, k);
		now = t ? t : now;
	}
	return now;
}

void closed_loop(struct closed *c)
{
	struct run *r = calloc(1, sizeof(*r));
	int64_t now;

	if (!r || !(r->conns = calloc((size_t)c->conns, sizeof(*r->conns))))
		die("calloc");
	r->c = c;
	r->ep = epoll_new();
	for (int i = 0; i < c->conns; i++) {
		r->conns[i].fd = connect_to(&c->to);
		epoll_set(r->ep, EPOLL_CTL_ADD, r->conns[i].fd, EPOLLIN, (uint64_t)i);
	}
	now = r->next_at = now_ns();
	r->measure_at = now + seconds_ns(c->warm_s);
	r->end_at = r->measure_at + seconds_ns(c->run_s);
	for (int i = 0; i < c->conns; i++)
		start_request(r, &r->conns[i], now);
	while (now < r->end_at) {
		int64_t t = serve(r);

		now = t ? t : now;
	}
	report(&r->hist, (double)(now - r->measure_at) / 1e9);
}
