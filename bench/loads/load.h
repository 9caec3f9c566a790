/* Helpers of the small load programs: plain POSIX sockets and epoll, no knowledge of neatsock. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <netinet/in.h>

enum {
	MESSAGE = 64,			/* bytes of a request and of its echo */
	HIST_SUB = 64,			/* buckets per power of two: error below 1.6 % */
	HIST_BUCKETS = 58 * HIST_SUB,	/* up to 2^63 ns */
	MAX_REQUEST = 4096,
	STALL_S = 10,			/* no progress for so long: give up */
};

/* Latencies in ns, log-linear buckets. */
struct hist {
	uint64_t count, sum, max;
	uint64_t n[HIST_BUCKETS];
};

/* Closed loop: every connection sends the request, waits for the reply, sends again. */
struct closed {
	struct sockaddr_in to;
	int conns;
	double warm_s, run_s;
	int64_t interval_ns;		/* pause between requests, 0 = none; one connection only */
	bool stamp;			/* number the requests, so that a reply of another one is seen */
	size_t req_len, rep_len;
	char req[MAX_REQUEST], rep[MAX_REQUEST];
};

_Noreturn void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int64_t now_ns(void);
int64_t seconds_ns(double s);
struct sockaddr_in address(const char *host, const char *port);
long number(const char *text, const char *what, long min, long max);
double real(const char *text, const char *what);
void raise_fd_limit(void);
void no_delay(int fd);
int listen_on(const char *port);
int connect_to(const struct sockaddr_in *to);
int epoll_new(void);
void epoll_set(int ep, int op, int fd, uint32_t events, uint64_t data);

void hist_add(struct hist *h, int64_t ns);
double hist_us(const struct hist *h, double fraction);
void report(const struct hist *h, double seconds);

void closed_loop(struct closed *c);

#endif
