/*
 * A replica without a stack: writes what R_CONFIG says into the file $FAKE_LOG, one line each, its
 * epoch into the arena, and answers. $FAKE_AT is a list of "EPOCH:WHAT,": in that epoch it does WHAT instead of answering
 * R_START: segv, exit, wait (for ever, asleep), hang (busy, no heartbeat). SIGUSR1 makes it hang,
 * SIGUSR2 makes it hang busily with a heartbeat.
 */
#define _GNU_SOURCE
#include "ring.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef FAKE_LAYOUT
#define FAKE_LAYOUT 0	/* else it pretends to be of another build */
#endif

static struct neat_replica_status *status;

static void hang(int sig)
{
	for (;;)
		if (sig == SIGUSR2 && status)
			a32_store(&status->heartbeat, a32_relaxed(&status->heartbeat) + 1);
}

static void answer(uint16_t type, void *message, size_t len)
{
	*(struct neat_msg_header *)message =
		(struct neat_msg_header){ NEAT_ABI_MAGIC, NEAT_ABI_VERSION, type, (uint32_t)len, 0 };
	if (send(3, message, len, 0) < 0)
		exit(1);
}

static void on_config(const struct neat_msg_r_config *m, const int *fds)
{
	uint64_t mark = (uint64_t)m->epoch << 32 | 1;
	char line[128];
	const char *path = getenv("FAKE_LOG");
	int fd = open(path ? path : "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0600);
	int n = snprintf(line, sizeof(line), "%u %u %u %u %u %s\n", m->index, m->epoch, m->mode, m->adopt,
			 m->death, program_invocation_short_name);

	if (write(fd, line, (size_t)n) != n)
		exit(1);
	close(fd);
	if (pwrite(fds[0], &mark, sizeof(mark), 0) != sizeof(mark))
		exit(1);
	status = mmap(NULL, sizeof(*status), PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
}

static void on_start(uint32_t epoch)
{
	struct neat_msg_r_config ready = { .epoch = epoch };
	const char *at = getenv("FAKE_AT"), *what = NULL;
	char key[16];

	snprintf(key, sizeof(key), "%u:", epoch);
	if (at)
		what = strstr(at, key);
	if (!what) {
		answer(NEAT_MSG_R_READY, &ready, sizeof(ready));
		return;
	}
	what += strlen(key);
	if (!strncmp(what, "segv", 4))
		raise(SIGSEGV);
	if (!strncmp(what, "exit", 4))
		exit(3);
	if (!strncmp(what, "hang", 4))
		hang(0);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	union { struct neat_msg_header h; struct neat_msg_r_config c; char bytes[NEAT_MSG_MAX]; } m;
	struct neat_msg_result parked = { .value = neat_abi_fingerprint() ^ FAKE_LAYOUT };
	char space[CMSG_SPACE(sizeof(int) * NEAT_MSG_FDS_MAX)];
	uint32_t epoch = 0;

	if (argc > 1 && !strcmp(argv[1], "--version")) {
		printf("neat-replica ABI %d\n", NEAT_ABI_VERSION);
		return 0;
	}
	signal(SIGUSR1, hang);
	signal(SIGUSR2, hang);
	answer(NEAT_MSG_R_PARKED, &parked, sizeof(parked));
	for (;;) {
		struct iovec iov = { &m, sizeof(m) };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
				     .msg_controllen = sizeof(space) };
		int fds[NEAT_MSG_FDS_MAX] = { 0 };
		struct cmsghdr *c;

		if (recvmsg(3, &mh, 0) <= 0)
			return 0;
		c = CMSG_FIRSTHDR(&mh);
		if (c)
			memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
		if (m.h.type == NEAT_MSG_R_CONFIG) {
			epoch = m.c.epoch;
			on_config(&m.c, fds);
		}
		if (m.h.type == NEAT_MSG_R_START)
			on_start(epoch);
	}
}
