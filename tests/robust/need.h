/* need.h - sockets that a program of these tests cannot do without. */
#pragma once
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_in here;	/* where its listener is */

static void need(int ok, const char *what)
{
	if (ok)
		return;
	printf("%s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static int bound(int type)
{
	int s = socket(AF_INET, type, 0);
	socklen_t len = sizeof(here);

	here = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	need(bind(s, (void *)&here, len) == 0, "bind");
	getsockname(s, (void *)&here, &len);
	if (type == SOCK_STREAM)
		need(listen(s, 16) == 0, "listen");
	return s;
}

static inline int connected(void)
{
	int s = socket(AF_INET, SOCK_STREAM, 0);

	need(connect(s, (void *)&here, sizeof(here)) == 0, "connect");
	return s;
}
