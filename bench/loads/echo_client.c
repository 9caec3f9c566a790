/* N connections, 64 bytes there and back, closed loop. Prints rate and latencies as JSON. */
#include "load.h"

#include <errno.h>
#include <string.h>

int main(int argc, char **argv)
{
	static struct closed c = { .stamp = true, .req_len = MESSAGE, .rep_len = MESSAGE };

	if (argc != 6 && argc != 7) {
		errno = 0;
		die("usage: echo_client HOST PORT CONNECTIONS WARM_S RUN_S [INTERVAL_US]");
	}
	c.to = address(argv[1], argv[2]);
	c.conns = (int)number(argv[3], "connections", 1, 100000);
	c.warm_s = real(argv[4], "warm-up seconds");
	c.run_s = real(argv[5], "seconds");
	if (argc == 7)
		c.interval_ns = number(argv[6], "interval in us", 0, 1000000) * 1000;
	errno = 0;
	if (c.interval_ns && c.conns != 1)
		die("an interval needs exactly one connection");
	memset(c.req, 'x', MESSAGE);
	memset(c.rep, 'x', MESSAGE);
	raise_fd_limit();
	closed_loop(&c);
	return 0;
}
