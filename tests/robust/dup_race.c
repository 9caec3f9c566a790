/*
 * dup2(SRC, DST) while another thread closes SRC: DST becomes the socket, or the call is EBADF and DST is what it
 * was (dup(2)). Run: dup_race ROUNDS. Prints what is wrong, then "done N", N being how often it was EBADF.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BATCH = 128, DST = 400 };
static int fds[BATCH];
static atomic_int turn, over;	/* turn: 1 = the closer's, too */

static void *closer(void *arg)
{
	unsigned seed = 1;

	while (!over) {
		if (!turn) {
			sched_yield();
			continue;
		}
		for (int i = 0; i < BATCH; i++) {
			for (int k = rand_r(&seed) % 1000; k > 0; k--)
				atomic_load(&over);
			close(fds[i]);
		}
		turn = 0;
	}
	return arg;
}

/* Number of wrong answers. */
static int try(int fd, const int *ends, const struct stat *was, int *late)
{
	struct stat is;
	int n, err;

	dup2(ends[0], DST);
	n = dup2(fd, DST);
	err = errno;
	if (fstat(DST, &is) == 0 && n == (is.st_ino == was->st_ino ? -1 : DST) && (n >= 0 || err == EBADF)) {
		*late += n < 0;
		return 0;
	}
	printf("WRONG: dup2 is %d (errno %d), %d is %s\n", n, err, DST, fstat(DST, &is) ? "gone" : "there");
	return 1;
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 100, ends[2], wrong = 0, late = 0;
	struct stat was;
	pthread_t t;

	if (pipe(ends) || fstat(ends[0], &was) || pthread_create(&t, NULL, closer, NULL))
		return 1;
	for (int i = 0; i < rounds; i++) {
		for (int k = 0; k < BATCH; k++)
			fds[k] = socket(AF_INET, SOCK_STREAM, 0);
		turn = 1;
		for (int k = 0; k < BATCH; k++)
			wrong += try(fds[k], ends, &was, &late);
		while (turn)
			sched_yield();
	}
	over = 1;
	pthread_join(t, NULL);
	printf("done %d\n", late);
	return wrong != 0;
}
