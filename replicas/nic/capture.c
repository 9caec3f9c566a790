/*
 * capture.c - copies of a queue's frames to a file, as pcapng. A file that cannot take them ends its
 * capture, never the traffic.
 */
#define _GNU_SOURCE
#include "nic.h"
#include "pcapng.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CAPTURE_BLOCK = NIC_FRAME + PCAPNG_OVERHEAD + 128 };

void capture_stop(struct nic *n, uint32_t replica)
{
	struct capture *c = &n->captures[replica];

	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}

static void emit(struct nic *n, uint32_t replica, const uint8_t *block, size_t len)
{
	/* A half-written block makes the rest of the file unreadable. */
	if (write(n->captures[replica].fd, block, len) == (ssize_t)len)
		return;
	fprintf(stderr, "neat-nic: capture of replica %u ended: %s; free space and start it again\n", replica,
		errno ? strerror(errno) : "short write");
	capture_stop(n, replica);
}

void capture_start(struct nic *n, uint32_t replica, uint32_t dir, int fd)
{
	struct capture *c = &n->captures[replica];
	uint8_t block[PCAPNG_OVERHEAD * 2];
	char name[32];

	capture_stop(n, replica);
	c->fd = fd;
	c->dir = dir ? dir : NEAT_CAPTURE_RX | NEAT_CAPTURE_TX;
	snprintf(name, sizeof(name), "replica%u", replica);
	emit(n, replica, block, pcapng_start(block, sizeof(block), name));
}

void capture_frame(struct nic *n, uint32_t replica, enum neat_capture_dir dir, const uint8_t *bytes,
		   const struct frame_meta *m)
{
	struct capture *c = &n->captures[replica];
	struct pcapng_packet p = { .len = m->len, .captured = m->len };
	uint8_t block[CAPTURE_BLOCK];
	struct timespec t;
	char comment[96];

	if (c->fd < 0 || !(c->dir & dir))
		return;
	clock_gettime(CLOCK_REALTIME, &t);
	p.time_ns = (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
	p.dir = dir == NEAT_CAPTURE_RX ? PCAPNG_IN : PCAPNG_OUT;
	snprintf(comment, sizeof(comment), "replica %u epoch %u%s%s gso %u", replica, n->queues[replica].epoch,
		 m->flags & NEAT_FRAME_CSUM_OK ? " csum-ok" : "",
		 m->flags & NEAT_FRAME_CSUM_PARTIAL ? " csum-partial" : "", m->gso_size);
	p.comment = comment;
	emit(n, replica, block, pcapng_packet(block, sizeof(block), &p, bytes));
}
