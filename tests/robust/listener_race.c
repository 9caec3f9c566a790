/*
 * A thread is held in accept() while it looks at the queue, by a page that faults. Meanwhile its listener is closed,
 * another one gets the slots that this frees, and connections come to that one: they are not the first accept()'s.
 * Run: listener_race. Prints what is wrong, then "accepted N".
 */
#define _GNU_SOURCE
#include "held.h"
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

enum { EACH = 8 * REPLICAS };	/* to each listener: some in every replica */

static int listening(struct sockaddr_in *where)
{
	struct timeval late = { .tv_sec = 10 };
	socklen_t len = sizeof(*where);
	int l = socket(AF_INET, SOCK_STREAM, 0);

	*where = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (bind(l, (struct sockaddr *)where, len) || listen(l, 128) || getsockname(l, (struct sockaddr *)where, &len) ||
	    setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &late, sizeof(late)))
		fail("listen");
	return l;
}

static void connected(const struct sockaddr_in *where, int n)
{
	for (int i = 0; i < n; i++) {
		int s = socket(AF_INET, SOCK_STREAM, 0);

		if (s < 0 || connect(s, (const struct sockaddr *)where, sizeof(*where)))
			fail("connect");
	}
}

static void *first_accept(void *listener)
{
	if (accept(*(int *)listener, NULL, NULL) >= 0)
		fail("a connection of another listener");
	return NULL;
}

int main(void)
{
	struct sigaction trap = { .sa_handler = in_between };
	struct sockaddr_in where[3];
	int filler = listening(&where[0]), first, second;
	pthread_t thread;
	char c;

	alarm(50);
	find_segments(segments, REPLICAS);
	for (int i = 0; i < HELD; i++) {
		connected(&where[0], 1);
		if (accept(filler, NULL, NULL) < 0)
			fail("accept");
	}
	first = listening(&where[1]);
	connected(&where[1], EACH);
	if (pipe(stopped) || pipe(go) || sigaction(SIGSEGV, &trap, NULL))
		return 1;
	protect(PROT_NONE);
	if (pthread_create(&thread, NULL, first_accept, &first) || read(stopped[0], &c, 1) != 1)
		return 1;
	close(first);
	second = listening(&where[2]);
	connected(&where[2], EACH);
	if (write(go[1], "", 1) != 1 || pthread_join(thread, NULL))
		return 1;
	for (int i = 0; i < EACH; i++)
		if (accept(second, NULL, NULL) < 0)
			fail("its own listener has lost it");
	printf("accepted %d\n", EACH);
	return 0;
}
