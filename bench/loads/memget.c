/* memcached text protocol: one key of 64 bytes is set, then N connections get it in a closed loop. */
#include "load.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char value[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static void store(const struct closed *c)
{
	char buf[256];
	int fd = connect_to(&c->to), len;
	struct pollfd p = { .fd = fd, .events = POLLIN };

	len = snprintf(buf, sizeof(buf), "set bench 0 0 %zu\r\n%s\r\n", sizeof(value) - 1, value);
	if (send(fd, buf, (size_t)len, MSG_NOSIGNAL) != len)
		die("send of the set");
	if (poll(&p, 1, STALL_S * 1000) != 1)
		die("memcached does not answer the set");
	if (recv(fd, buf, sizeof(buf), 0) != 8 || memcmp(buf, "STORED\r\n", 8))
		die("memcached did not store the key");
	close(fd);
}

int main(int argc, char **argv)
{
	static struct closed c;

	if (argc != 6) {
		errno = 0;
		die("usage: memget HOST PORT CONNECTIONS WARM_S RUN_S");
	}
	c.to = address(argv[1], argv[2]);
	c.conns = (int)number(argv[3], "connections", 1, 100000);
	c.warm_s = real(argv[4], "warm-up seconds");
	c.run_s = real(argv[5], "seconds");
	c.req_len = (size_t)snprintf(c.req, sizeof(c.req), "get bench\r\n");
	c.rep_len = (size_t)snprintf(c.rep, sizeof(c.rep), "VALUE bench 0 %zu\r\n%s\r\nEND\r\n",
				     sizeof(value) - 1, value);
	raise_fd_limit();
	store(&c);
	closed_loop(&c);
	return 0;
}
