/*
 * The word that counts what accept() took is overwritten, as a replica that runs wild may do: in every slot of every
 * replica, to values that it can have and to some that it cannot. Who waits to be accepted then and who comes later, also
 * while accept() sleeps, must be accepted.
 * Run: accept_head. Prints what is wrong, then "accepted N".
 */
#define _GNU_SOURCE
#include "segments.h"
#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BEFORE = 8, LATER = 24, VALUES = 5, SLOTS = 64 };

static struct sockaddr_in where = { .sin_family = AF_INET };
static struct neat_seg_app *segments[NEAT_REPLICAS_MAX];	/* none: the kernel's sockets */

static void fail(const char *what, long n)
{
	printf("WRONG: %s %ld\n", what, n);
	fflush(stdout);
	_exit(1);
}

/* Connections do not use the word. */
static void overwrite(uint64_t value)
{
	for (int r = 0; r < NEAT_REPLICAS_MAX && segments[r]; r++)
		for (uint32_t slot = 1; slot < SLOTS; slot++)
			__atomic_store_n(&segments[r]->slots[slot].accept_head.v, value, __ATOMIC_RELEASE);
}

static int connected(int id)
{
	int s = socket(AF_INET, SOCK_STREAM, 0);

	if (s < 0 || connect(s, (struct sockaddr *)&where, sizeof(where)) || send(s, &id, sizeof(id), 0) != sizeof(id))
		fail("connect", id);
	return s;
}

/* Answers each connection with what it said. */
static void *acceptor(void *listener)
{
	for (int left = BEFORE + LATER * VALUES; left; left--) {
		int id, s = accept(*(int *)listener, NULL, NULL);

		if (s < 0 || recv(s, &id, sizeof(id), MSG_WAITALL) != sizeof(id) || send(s, &id, sizeof(id), 0) != sizeof(id))
			fail("accept", s);
		close(s);
	}
	return NULL;
}

static void answered(int s, int id)
{
	struct timeval late = { .tv_sec = 10 };
	int said;

	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &late, sizeof(late));
	if (recv(s, &said, sizeof(said), MSG_WAITALL) != sizeof(said) || said != id)
		fail("nobody accepts connection", id);
	if (recv(s, &said, sizeof(said), 0) != 0)
		fail("no end of connection", id);
	close(s);
}

int main(void)
{
	static const uint64_t values[VALUES] = { 1ull << 63, 5000, ~4096ull, 12345678901, 0 };
	int l = socket(AF_INET, SOCK_STREAM, 0), waiting[BEFORE], id = 0;
	socklen_t len = sizeof(where);
	pthread_t thread;

	alarm(50);
	where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(l, (struct sockaddr *)&where, len) || listen(l, 64) || getsockname(l, (struct sockaddr *)&where, &len))
		return 1;
	for (int i = 0; i < BEFORE; i++)
		waiting[i] = connected(id++);
	find_segments(segments, NEAT_REPLICAS_MAX);
	overwrite(values[0]);
	if (pthread_create(&thread, NULL, acceptor, &l))
		return 1;
	for (int i = 0; i < BEFORE; i++)
		answered(waiting[i], i);
	for (int v = 0; v < VALUES; v++) {
		/* It sleeps in accept(), or is on its way. */
		overwrite(values[v]);
		for (int i = 0; i < LATER; i++, id++)
			answered(connected(id), id);
	}
	if (pthread_join(thread, NULL))
		return 1;
	printf("accepted %d\n", id);
	return 0;
}
