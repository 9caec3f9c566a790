#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

_Noreturn void die(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, err ? ": %s\n" : "\n", strerror(err));
	exit(1);
}

int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t seconds_ns(double s)
{
	return (int64_t)(s * 1e9);
}

long number(const char *text, const char *what, long min, long max)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 10);
	if (errno || *end || end == text || n < min || n > max) {
		errno = 0;
		die("%s must be a number from %ld to %ld, not '%s'", what, min, max, text);
	}
	return n;
}

double real(const char *text, const char *what)
{
	char *end;
	double d = strtod(text, &end);

	errno = 0;
	if (*end || end == text || !(d >= 0 && d < 1e6))
		die("%s must be a number of at least 0, not '%s'", what, text);
	return d;
}

struct sockaddr_in address(const char *host, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET };

	a.sin_port = htons((uint16_t)number(port, "port", 1, 65535));
	errno = 0;
	if (inet_pton(AF_INET, host, &a.sin_addr) != 1)
		die("not an IPv4 address: '%s'", host);
	return a;
}

void raise_fd_limit(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r))
		die("getrlimit");
	r.rlim_cur = r.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &r))
		die("setrlimit");
}

void no_delay(int fd)
{
	int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		die("setsockopt TCP_NODELAY");
}

int listen_on(const char *port)
{
	struct sockaddr_in a = address("0.0.0.0", port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;

	if (fd < 0)
		die("socket");
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)))
		die("setsockopt SO_REUSEADDR");
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)))
		die("bind to port %s", port);
	if (listen(fd, 4096))
		die("listen on port %s", port);
	return fd;
}

/* A connected, non-blocking socket. Waits for the handshake. */
int connect_to(const struct sockaddr_in *to)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	if (fd < 0)
		die("socket");
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		die("connect to port %d", ntohs(to->sin_port));
	if (ioctl(fd, FIONBIO, &on))
		die("ioctl FIONBIO");
	no_delay(fd);
	return fd;
}

int epoll_new(void)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);

	if (ep < 0)
		die("epoll_create1");
	return ep;
}

void epoll_set(int ep, int op, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = { .events = events, .data.u64 = data };

	if (epoll_ctl(ep, op, fd, &e))
		die("epoll_ctl %d on fd %d", op, fd);
}

static size_t bucket_of(uint64_t ns)
{
	int exp;

	if (ns < HIST_SUB)
		return ns;
	exp = 63 - __builtin_clzll(ns) - 6;	/* 2^6 = HIST_SUB */
	return (size_t)(exp + 1) * HIST_SUB + ((ns >> exp) - HIST_SUB);
}

static double bucket_middle(size_t b)
{
	uint64_t low;
	int exp;

	if (b < HIST_SUB)
		return (double)b;
	exp = (int)(b / HIST_SUB) - 1;
	low = (uint64_t)(HIST_SUB + b % HIST_SUB) << exp;
	return (double)low + (double)((1ULL << exp) - 1) / 2;
}

void hist_add(struct hist *h, int64_t ns)
{
	uint64_t v = ns < 0 ? 0 : (uint64_t)ns;

	h->n[bucket_of(v)]++;
	h->count++;
	h->sum += v;
	if (v > h->max)
		h->max = v;
}

double hist_us(const struct hist *h, double fraction)
{
	uint64_t rank = (uint64_t)((double)h->count * fraction), seen = 0;

	for (size_t b = 0; b < HIST_BUCKETS; b++) {
		seen += h->n[b];
		if (seen > rank) {
			double ns = bucket_middle(b);

			return (ns < (double)h->max ? ns : (double)h->max) / 1e3;
		}
	}
	return (double)h->max / 1e3;
}

void report(const struct hist *h, double seconds)
{
	printf("{\"requests\": %llu, \"seconds\": %.6f, \"rate\": %.1f, \"p50_us\": %.2f, "
	       "\"p99_us\": %.2f, \"p999_us\": %.2f, \"max_us\": %.2f}\n",
	       (unsigned long long)h->count, seconds, (double)h->count / seconds,
	       hist_us(h, 0.5), hist_us(h, 0.99), hist_us(h, 0.999), (double)h->max / 1e3);
	fflush(stdout);
}
