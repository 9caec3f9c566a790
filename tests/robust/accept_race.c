/*
 * A process is held in accept() between taking the queue's entry and making the connection its own, by a page that faults.
 * Meanwhile a sibling gets the connection, since another process has died and it is queued again, and ends it; the next
 * connections take what that frees. Each of them must be accepted, and see its end.
 * Run: accept_race. Prints what is wrong, then "ends N".
 */
#define _GNU_SOURCE
#include "held.h"
#include <arpa/inet.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { NEXT = 8 * REPLICAS };

static struct sockaddr_in where = { .sin_family = AF_INET };

static void worker(int listener, int first)
{
	struct sigaction trap = { .sa_handler = in_between };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(first);
	sigaction(SIGSEGV, &trap, NULL);
	protect(PROT_NONE);
	for (;;)
		close(accept(listener, NULL, NULL));
}

static int connected(void)
{
	struct timeval late = { .tv_sec = 10 };
	int s = socket(AF_INET, SOCK_STREAM, 0);

	if (s < 0 || connect(s, (struct sockaddr *)&where, sizeof(where)) ||
	    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &late, sizeof(late)))
		fail("connect");
	return s;
}

/* The worker is between the two steps; we get the connection that it was about to, and end it. */
static void overtake(int listener, int first)
{
	struct timeval late = { .tv_sec = 10 };
	char c;
	pid_t bystander = fork();
	int s;

	if (bystander == 0)
		_exit(0);
	waitpid(bystander, NULL, 0);
	setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &late, sizeof(late));
	s = accept(listener, NULL, NULL);
	if (s < 0)
		fail("the connection was not queued again");
	close(first);
	if (recv(s, &c, 1, 0) != 0)
		fail("no end of the first one");
	close(s);
}

int main(void)
{
	int l = socket(AF_INET, SOCK_STREAM, 0), first, next[NEXT];
	socklen_t len = sizeof(where);
	pid_t child;
	char c;

	alarm(50);
	where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(l, (struct sockaddr *)&where, len) || listen(l, 64) || getsockname(l, (struct sockaddr *)&where, &len) ||
	    pipe(stopped) || pipe(go))
		return 1;
	for (int i = 0; i < HELD; i++)
		if (connected() < 0 || accept(l, NULL, NULL) < 0)
			fail("accept");
	find_segments(segments, REPLICAS);
	first = connected();
	child = fork();
	if (child == 0)
		worker(l, first);
	if (segments[0]) {
		if (read(stopped[0], &c, 1) != 1)
			fail("the worker did not come by");
		overtake(l, first);
	}
	for (int i = 0; i < NEXT; i++)
		next[i] = connected();
	if (write(go[1], "", 1) != 1)
		return 1;
	for (int i = 0; i < NEXT; i++)
		if (recv(next[i], &c, 1, 0) != 0)
			fail("a connection that nobody ends");
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	printf("ends %d\n", NEXT);
	return 0;
}
