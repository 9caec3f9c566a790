/* Connects until it works or the time is up: is the server ready? */
#include "load.h"

#include <errno.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in to;
	int64_t end;

	if (argc != 4) {
		errno = 0;
		die("usage: probe HOST PORT SECONDS");
	}
	to = address(argv[1], argv[2]);
	end = now_ns() + seconds_ns(real(argv[3], "seconds"));
	for (;;) {
		struct timespec pause = { .tv_nsec = 5000000 };
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0)
			die("socket");
		if (!connect(fd, (struct sockaddr *)&to, sizeof(to)))
			return 0;
		if (now_ns() > end)
			die("nothing answers on %s port %s", argv[1], argv[2]);
		close(fd);
		nanosleep(&pause, NULL);
	}
}
