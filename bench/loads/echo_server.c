/* Echoes what it gets: one thread, epoll, non-blocking sockets. */
#include "load.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 65536 };

/* What a full send buffer did not take. Until it is gone the connection is not read. */
struct rest {
	size_t at, len;
	char bytes[];
};

static struct rest **rests;	/* by fd */
static size_t nrests;
static bool *listens;		/* by fd */
static int ep;

static void drop(int fd)
{
	free(rests[fd]);
	rests[fd] = NULL;
	close(fd);
}

static void accept_all(int lfd)
{
	for (;;) {
		int fd = accept4(lfd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR))
			return;
		if (fd < 0 || (size_t)fd >= nrests)
			die("accept");
		no_delay(fd);
		epoll_set(ep, EPOLL_CTL_ADD, fd, EPOLLIN, (uint64_t)fd);
	}
}

static void keep(int fd, const char *bytes, size_t len)
{
	struct rest *r = malloc(sizeof(*r) + len);

	if (!r)
		die("malloc");
	r->at = 0;
	r->len = len;
	memcpy(r->bytes, bytes, len);
	rests[fd] = r;
	epoll_set(ep, EPOLL_CTL_MOD, fd, EPOLLOUT, (uint64_t)fd);
}

static void echo(int fd)
{
	static char buf[BUFFER];
	ssize_t n = recv(fd, buf, sizeof(buf), 0), m;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop(fd);
		return;
	}
	m = send(fd, buf, (size_t)n, MSG_NOSIGNAL);
	if (m < 0 && errno != EAGAIN)
		drop(fd);
	else if (m < n)
		keep(fd, buf + (m < 0 ? 0 : m), (size_t)(n - (m < 0 ? 0 : m)));
}

static void send_rest(int fd)
{
	struct rest *r = rests[fd];
	ssize_t n = send(fd, r->bytes + r->at, r->len - r->at, MSG_NOSIGNAL);

	if (n < 0 && errno != EAGAIN) {
		drop(fd);
		return;
	}
	r->at += n > 0 ? (size_t)n : 0;
	if (r->at < r->len)
		return;
	free(r);
	rests[fd] = NULL;
	epoll_set(ep, EPOLL_CTL_MOD, fd, EPOLLIN, (uint64_t)fd);
}

static void add_listener(const char *port)
{
	int fd = listen_on(port);

	listens[fd] = true;
	epoll_set(ep, EPOLL_CTL_ADD, fd, EPOLLIN, (uint64_t)fd);
}

int main(int argc, char **argv)
{
	struct epoll_event ev[256];

	if (argc < 2) {
		errno = 0;
		die("usage: echo_server PORT...");
	}
	signal(SIGPIPE, SIG_IGN);
	raise_fd_limit();
	nrests = (size_t)sysconf(_SC_OPEN_MAX);
	rests = calloc(nrests, sizeof(*rests));
	listens = calloc(nrests, sizeof(*listens));
	if (!rests || !listens)
		die("calloc");
	ep = epoll_new();
	for (int i = 1; i < argc; i++)
		add_listener(argv[i]);
	for (;;) {
		int n = epoll_wait(ep, ev, 256, -1);

		if (n < 0 && errno != EINTR)
			die("epoll_wait");
		for (int i = 0; i < n; i++) {
			int fd = (int)ev[i].data.u64;

			if (listens[fd])
				accept_all(fd);
			else if (rests[fd])
				send_rest(fd);
			else
				echo(fd);
		}
	}
}
