/*
 * One connection, bytes in one direction. "bulk recv PORT" counts what arrives and answers with
 * the count; "bulk send ..." sends for a while and prints the receiver's count as JSON.
 */
#include "load.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 1 << 20 };

static char buffer[BUFFER];

struct count {
	uint64_t bytes;
	uint64_t bad, first_bad;	/* wrong bytes seen, where the first one was */
	uint8_t got, want;
};

static void wait_for(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	if (poll(&p, 1, STALL_S * 1000) == 0) {
		errno = 0;
		die("no progress for %d s", STALL_S);
	}
}

static void set_blocking(int fd)
{
	int off = 0;

	if (ioctl(fd, FIONBIO, &off))
		die("ioctl FIONBIO");
}

/* Bytes 0, 1, ... 250, 0, ...: one look at each end of a piece shows a hole or a repeat. */
static char pattern(uint64_t at)
{
	return (char)(at % 251);
}

static void check(struct count *c, uint64_t at, char got)
{
	if (got == pattern(at))
		return;
	if (!c->bad++) {
		c->first_bad = at;
		c->got = (uint8_t)got;
		c->want = (uint8_t)pattern(at);
	}
}

static struct count receive(int fd, size_t piece)
{
	struct count c = { 0 };
	ssize_t n;

	while ((n = recv(fd, buffer, piece, 0)) > 0) {
		uint64_t last = (uint64_t)n - 1;

		check(&c, c.bytes, buffer[0]);
		check(&c, c.bytes + last, buffer[last]);
		c.bytes += (uint64_t)n;
	}
	return c;
}

static void receiver(const char *port, size_t piece)
{
	int lfd = listen_on(port);

	set_blocking(lfd);
	for (;;) {
		int fd = accept(lfd, NULL, NULL);
		struct count c;

		if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (fd < 0)
			die("accept");
		c = receive(fd, piece);
		if (send(fd, &c, sizeof(c), MSG_NOSIGNAL) != sizeof(c))
			c.bytes = 0;	/* the sender is gone: its loss */
		close(fd);
	}
}

static uint64_t send_until(int fd, size_t piece, uint64_t at, int64_t end)
{
	while (now_ns() < end) {
		ssize_t n = send(fd, buffer + at % 251, piece, MSG_NOSIGNAL);

		if (n < 0)
			die("send");
		at += (uint64_t)n;
	}
	return at;
}

static void sender(char **argv, size_t piece)
{
	struct sockaddr_in to = address(argv[2], argv[3]);
	int fd = connect_to(&to);
	int64_t began, warm = seconds_ns(real(argv[4], "warm-up seconds"));
	int64_t run = seconds_ns(real(argv[5], "seconds")), ended;
	uint64_t skipped, sent;
	struct count c;

	for (size_t i = 0; i < BUFFER; i++)
		buffer[i] = pattern(i);
	set_blocking(fd);
	skipped = send_until(fd, piece, 0, now_ns() + warm);
	began = now_ns();
	sent = send_until(fd, piece, skipped, began + run);
	if (shutdown(fd, SHUT_WR))
		die("shutdown");
	wait_for(fd, POLLIN);
	if (recv(fd, &c, sizeof(c), MSG_WAITALL) != sizeof(c))
		die("recv of the receiver's count");
	ended = now_ns();
	errno = 0;
	if (c.bad || c.bytes != sent)
		die("sent %llu bytes, arrived %llu; %llu wrong bytes seen, first at %llu: %u for %u",
		    (unsigned long long)sent, (unsigned long long)c.bytes,
		    (unsigned long long)c.bad, (unsigned long long)c.first_bad, c.got, c.want);
	printf("{\"bytes\": %llu, \"seconds\": %.6f, \"rate\": %.1f}\n",
	       (unsigned long long)(c.bytes - skipped), (double)(ended - began) / 1e9,
	       (double)(c.bytes - skipped) / ((double)(ended - began) / 1e9));
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "recv"))
		receiver(argv[2], (size_t)number(argv[3], "piece", 1, BUFFER));
	else if (argc == 7 && !strcmp(argv[1], "send"))
		sender(argv, (size_t)number(argv[6], "piece", 1, BUFFER - 251));
	else {
		errno = 0;
		die("usage: bulk recv PORT PIECE | bulk send HOST PORT WARM_S RUN_S PIECE");
	}
	return 0;
}
