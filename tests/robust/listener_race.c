/*
 * A thread is held in accept() while it looks at the queue, by a page that faults. Meanwhile its listener is closed,
 * another one gets the slots that this frees, and connections come to that one: they are not the first accept()'s.
 * Run: listener_race. Prints what is wrong, then "accepted N".
 */
#define _GNU_SOURCE
#include "neat_abi.h"
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	REPLICAS = 4,
	HELD = 64 * REPLICAS,	/* connections that fill the first page of slots in each: other calls touch that page */
	EACH = 8 * REPLICAS,	/* to each listener: some in every replica */
	BORN = 4 << 20,		/* bytes of slots below those that connect() takes */
};

static char *words[REPLICAS];	/* of slots that replicas give out, less the first page; none: the kernel's */
static int held[2], go[2];

static void fail(const char *what)
{
	printf("WRONG: %s\n", what);
	fflush(stdout);
	_exit(1);
}

static void find_words(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long begin, end;
	char line[512];
	int n = 0;

	while (maps && n < REPLICAS && fgets(line, sizeof(line), maps))
		if (strstr(line, "memfd:neat") && sscanf(line, "%lx-%lx", &begin, &end) == 2 &&
		    end - begin == NEAT_SEG_APP_SIZE)
			words[n++] = (char *)begin + NEAT_PAGE;
	if (maps)
		fclose(maps);
}

static void protect(int how)
{
	for (int i = 0; i < REPLICAS && words[i]; i++)
		if (mprotect(words[i], BORN, how))
			_exit(1);
}

static void in_between(int sig)
{
	char c;
	(void)sig;

	if (syscall(SYS_write, held[1], "", 1) != 1 || syscall(SYS_read, go[0], &c, 1) != 1)
		_exit(1);
	protect(PROT_READ | PROT_WRITE);
}

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
	find_words();
	for (int i = 0; i < HELD; i++) {
		connected(&where[0], 1);
		if (accept(filler, NULL, NULL) < 0)
			fail("accept");
	}
	first = listening(&where[1]);
	connected(&where[1], EACH);
	if (pipe(held) || pipe(go) || sigaction(SIGSEGV, &trap, NULL))
		return 1;
	protect(PROT_NONE);
	if (pthread_create(&thread, NULL, first_accept, &first) || read(held[0], &c, 1) != 1)
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
