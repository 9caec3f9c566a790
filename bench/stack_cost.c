/*
 * stack_cost.c - what the TCP/IP stack costs by itself: two endpoints on one stack's `lo`, no
 * process, no doorbell, no system call. Applications are the harness's: payload copied into the send
 * ring and out of the receive ring.
 *
 *   gcc -O2 -g -std=gnu11 -Ireplicas/abi -Ireplicas/stack bench/stack_cost.c replicas/stack/tcp*.c \
 *       replicas/stack/{csum,filter,flow,icmp,icmp_error,ip,ip_addr,ip_deliver,ip_frag,ip_hop,link,lo,stack,timer,udp}.c -o stack_cost && ./stack_cost
 *
 * Usage: stack_cost [ROUNDS [BEST_OF]]. One line of JSON per case; CPU time, the best of several
 * runs, since everything that disturbs makes it longer. "ns_per_segment" counts a segment when it
 * is transmitted and again when it is received; both happen here.
 */
#include "../tests/stack/harness.c"
#include <stdio.h>
#include <time.h>

struct result { double seconds; uint64_t segments, bytes; };
struct ends { struct host *h; uint32_t client, server; };

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t segments(const struct host *h)
{
	return h->stack.count.segments_in + h->stack.count.segments_out;
}

static void die(const char *why)
{
	fprintf(stderr, "stack_cost: %s\n", why);
	exit(1);
}

static struct ends connect_ends(void)
{
	struct host_config c = {
		.lo_mtu = 65535, .rcvbuf = 1 << 20, .sndbuf = 1 << 20, .connections = 4096, .backlog = 64,
		.time_wait_ms = 60000, .seed = 1, .now_us = 1000000,
	};
	const uint32_t opts[16] = { NEAT_OPTF_NODELAY };
	struct ends e = { .h = host_new(&c) };
	int listener, client, server;

	if (!e.h)
		die("no memory for a stack");
	listener = host_listen(e.h, 0, 80, 16, opts);
	client = host_connect(e.h, 0, 0, 0x7f000001, 80, opts);
	server = listener > 0 ? host_accept(e.h, (uint32_t)listener) : -1;
	if (client < 0 || server < 0)
		die("the connection was not made");
	e.client = (uint32_t)client;
	e.server = (uint32_t)server;
	return e;
}

/* One way: written, kicked, delivered, read. The reader kicks only if the window must open (shim). */
static void pass(struct ends *e, uint32_t from, uint32_t to, uint8_t *buf, uint32_t size)
{
	write_only(e->h, from, buf, size);
	kick(e->h, from, false);
	if (read_only(e->h, to, buf, size) != size)
		die("a message did not arrive");
}

static struct result request_response(struct ends *e, uint32_t rounds, uint32_t size)
{
	static uint8_t buf[65536];
	struct result r = { .segments = segments(e->h), .bytes = 2ull * rounds * size };
	double from = now();

	for (uint32_t i = 0; i < rounds; i++) {
		e->h->stack.now_us += 5;
		pass(e, e->client, e->server, buf, size);
		pass(e, e->server, e->client, buf, size);
		if (i % 64 == 0)
			host_time(e->h, e->h->stack.now_us);
	}
	r.seconds = now() - from;
	r.segments = segments(e->h) - r.segments;
	return r;
}

static struct result bulk(struct ends *e, uint32_t rounds, uint32_t size)
{
	static uint8_t buf[1 << 20];
	struct result r = { .segments = segments(e->h), .bytes = (uint64_t)rounds * size };
	uint64_t sent = 0, got = 0;
	double from = now();

	while (got < r.bytes) {
		e->h->stack.now_us += 20;
		if (sent < r.bytes)
			sent += host_write(e->h, e->client, buf, size);
		got += host_read(e->h, e->server, buf, size);
		if (got == sent || e->h->stack.now_us % 1000 == 0)
			host_time(e->h, e->h->stack.now_us);
		if (now() - from > 60)
			die("bulk transfer stands still");
	}
	r.seconds = now() - from;
	r.segments = segments(e->h) - r.segments;
	return r;
}

/* What `bulk` cannot avoid: into the send ring, across, out of the receive ring; 1 MiB each. */
static struct result copies(struct ends *e, uint32_t rounds, uint32_t size)
{
	static uint8_t buf[65536], ring[2][1 << 20];
	struct result r = { .segments = 5ull * rounds, .bytes = (uint64_t)rounds * size };
	double from = now();

	(void)e;
	for (uint32_t i = 0, at = 0; i < rounds; i++, at = (at + size) % sizeof(ring[0])) {
		memcpy(ring[0] + at, buf, size);
		__asm__ volatile("" ::: "memory");
		memcpy(ring[1] + at, ring[0] + at, size);
		__asm__ volatile("" ::: "memory");
		memcpy(buf, ring[1] + at, size);
		__asm__ volatile("" ::: "memory");
	}
	r.seconds = now() - from;
	return r;
}

static void report(const char *name, struct result (*run)(struct ends *, uint32_t, uint32_t),
		   uint32_t rounds, uint32_t size, unsigned best_of)
{
	struct ends e = connect_ends();
	struct result best = run(&e, rounds / 10 + 1, size);

	for (unsigned i = 0; i < best_of; i++) {
		struct result r = run(&e, rounds, size);

		if (i == 0 || r.seconds < best.seconds)
			best = r;
	}
	printf("{\"case\": \"%s\", \"size\": %u, \"rounds\": %u, \"segments\": %llu, \"ns_per_round\": %.1f, "
	       "\"ns_per_segment\": %.1f, \"gigabytes_per_s\": %.3f}\n", name, size, rounds,
	       (unsigned long long)best.segments, 1e9 * best.seconds / rounds,
	       1e9 * best.seconds / (double)best.segments, 1e-9 * (double)best.bytes / best.seconds);
	host_free(e.h);
}

int main(int argc, char **argv)
{
	uint32_t rounds = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 0) : 100000;
	unsigned best_of = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : 20;

	report("request/response", request_response, rounds, 64, best_of);
	report("bulk", bulk, rounds / 20 + 1, 65536, best_of);
	report("bulk, copies only", copies, rounds / 20 + 1, 65536, best_of);
	return 0;
}
