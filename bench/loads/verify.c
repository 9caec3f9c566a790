/* verify serve PORT WORKERS | verify ask HOST PORT CONNECTIONS THREADS ACTIVE SEED */
#include "verify.h"

#include <string.h>

int main(int argc, char **argv)
{
	struct load l = { 0 };

	raise_fd_limit();
	if (argc == 4 && !strcmp(argv[1], "serve"))
		serve(argv[2], number(argv[3], "workers", 1, 64));
	if (argc != 8 || strcmp(argv[1], "ask"))
		die("usage: verify serve PORT WORKERS | verify ask HOST PORT CONNECTIONS THREADS ACTIVE SEED");
	l.to = address(argv[2], argv[3]);
	l.conns = number(argv[4], "connections", 0, 60000);
	l.threads = number(argv[5], "threads", 0, 1000);
	l.active = number(argv[6], "requests at a time", 1, 60000);
	l.seed = (uint64_t)number(argv[7], "seed", 0, 1L << 30);
	ask(&l);
}
