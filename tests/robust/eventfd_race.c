/*
 * A thread closes a number that is free and opens sockets there, while another waits for a socket and a pipe, for the first
 * time in its process. Run: eventfd_race ROUNDS. Prints what is wrong, then "bound N".
 */
#include "need.h"
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>

static atomic_int over;

/* `arg`: the lowest number that is free. */
static void *closer(void *arg)
{
	int number = *(int *)arg;

	while (!over) {
		close(number);
		socket(AF_INET, SOCK_STREAM, 0);
	}
	return NULL;
}

static void wait_and_bind(int pipe_end)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int s = socket(AF_INET, SOCK_STREAM, 0), number;
	struct pollfd set[] = { { .fd = bound(SOCK_STREAM), .events = POLLIN }, { .fd = pipe_end, .events = POLLIN } };
	pthread_t t;

	number = dup(pipe_end);
	close(number);
	need(pthread_create(&t, NULL, closer, &number) == 0, "pthread_create");
	for (int i = 0; i < 3; i++)
		need(poll(set, 2, 1) == 0, "poll");
	over = 1;
	pthread_join(t, NULL);
	need(bind(s, (void *)&in, sizeof(in)) == 0, "bind");
	_exit(0);
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 100, ends[2], status, done = 0;

	need(pipe(ends) == 0, "pipe");
	for (int i = 0; i < rounds; i++) {
		if (fork() == 0)
			wait_and_bind(ends[0]);
		wait(&status);
		done += status == 0;
	}
	printf("bound %d\n", done);
	return 0;
}
