/* The server: checks requests, sends replies. Some of its connections are edge-triggered. */
#include "verify.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum state { FREE = 0, READS, WRITES, ENDS };

struct served {
	int state;		/* enum state */
	bool edge;
	uint64_t received, sent;	/* stream offsets of payload, whole messages */
	struct message in, out;
};

static struct served *served;	/* by fd */
static size_t nserved;
static int ep;

static void drop(int fd)
{
	served[fd].state = FREE;
	close(fd);
}

static void fail(int fd, const char *what, int err)
{
	failure(what, err, &served[fd].out, &served[fd].in, 0);
	drop(fd);
}

static void accept_all(int lfd)
{
	for (unsigned turn = 0;; turn++) {
		int fd = accept4(lfd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (fd < 0) {
			struct message none = { 0 };

			failure("server: accept", errno, &none, &none, 0);
			return;
		}
		if ((size_t)fd >= nserved)
			die("more connections than descriptors");
		served[fd] = (struct served){ .state = READS, .edge = ((unsigned)fd + turn) % 2,
					       .in.direction = TO_SERVER };
		no_delay(fd);
		epoll_set(ep, EPOLL_CTL_ADD, fd, served[fd].edge ? EPOLLIN | EPOLLOUT | EPOLLET : EPOLLIN, (uint64_t)fd);
	}
}

static void want(int fd, uint32_t events)
{
	if (!served[fd].edge)
		epoll_set(ep, EPOLL_CTL_MOD, fd, events, (uint64_t)fd);
}

static void begin_reply(int fd)
{
	struct served *s = &served[fd];

	s->received += s->in.head.len;
	s->out = (struct message){
		.head = { .number = s->in.head.number, .conn = s->in.head.conn, .len = s->in.head.reply,
			  .ending = s->in.head.ending },
		.direction = TO_CLIENT,
		.base = s->sent,
	};
	head_seal(&s->out.head);
	s->state = WRITES;
}

/* Only an end that the last request announced is one. */
static void ended(int fd)
{
	struct served *s = &served[fd];
	char byte;
	ssize_t n = recv(fd, &byte, 1, 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		fail(fd, "server: bytes behind the last request", 0);
	else if (n < 0)
		fail(fd, "server: recv", errno);
	else if (s->in.head.ending == GOES_ON)
		fail(fd, "server: end of file", 0);
	else
		drop(fd);
}

/* True when there may be more to do at once. */
static bool read_request(int fd)
{
	struct served *s = &served[fd];
	const char *wrong;
	int got;

	got = message_receive(&s->in, fd, &wrong);
	if (got == 1) {
		begin_reply(fd);
		return true;
	}
	if (got < 0 && wrong)
		fail(fd, wrong, 0);
	else if (got < 0 && errno)
		fail(fd, "server: recv", errno);
	else if (got < 0 && s->in.done)
		fail(fd, "server: end of file in a request", 0);
	else if (got < 0)
		fail(fd, "server: end of file", 0);
	return false;
}

static bool write_reply(int fd)
{
	struct served *s = &served[fd];
	int put = message_send(&s->out, fd);

	if (put < 0) {
		fail(fd, "server: send", errno);
		return false;
	}
	if (put == 0) {
		want(fd, EPOLLOUT);
		return false;
	}
	s->sent += s->out.head.len;
	want(fd, EPOLLIN);
	if (s->in.head.ending == SERVER_CLOSES && shutdown(fd, SHUT_WR))
		fail(fd, "server: shutdown", errno);
	if (s->state == FREE)
		return false;
	s->state = s->in.head.ending == GOES_ON ? READS : ENDS;
	if (s->state == READS)
		s->in = (struct message){ .direction = TO_SERVER, .base = s->received };
	return true;
}

static void serve_one(int fd)
{
	bool more = true;

	while (more && served[fd].state != FREE) {
		if (served[fd].state == READS)
			more = read_request(fd);
		else if (served[fd].state == WRITES)
			more = write_reply(fd);
		else
			more = (ended(fd), false);
	}
}

static _Noreturn void work(int lfd)
{
	struct epoll_event ready[256];

	raise_fd_limit();
	nserved = 65536;
	served = calloc(nserved, sizeof(*served));
	if (!served)
		die("calloc");
	ep = epoll_new();
	epoll_set(ep, EPOLL_CTL_ADD, lfd, EPOLLIN, (uint64_t)lfd);
	for (;;) {
		int n = epoll_wait(ep, ready, 256, -1);

		if (n < 0 && errno != EINTR)
			die("epoll_wait");
		for (int i = 0; i < n; i++) {
			if (ready[i].data.u64 == (uint64_t)lfd)
				accept_all(lfd);
			else if (served[ready[i].data.u64].state != FREE)
				serve_one((int)ready[i].data.u64);
		}
	}
}

void serve(const char *port, long workers)
{
	int lfd = listen_on(port);

	for (long i = 1; i < workers; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGTERM);
			work(lfd);
		}
	}
	work(lfd);
}
