/* report.c - what a person is told. One write(2), no stdio, no malloc: callable from anywhere. */
#define _GNU_SOURCE
#include "internal.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

void nt_say(const char *fmt, ...)
{
	char line[512] = "neatsock: ";
	size_t at = strlen(line);
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line + at, sizeof(line) - at - 1, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	at += (size_t)n < sizeof(line) - at - 1 ? (size_t)n : sizeof(line) - at - 2;
	line[at++] = '\n';
	if (syscall(SYS_write, 2, line, at) < 0)
		return;		/* stderr is closed: nobody to tell */
}

void nt_note_both_families(int fd)
{
	static neat_a32 said;
	struct sockaddr_in6 a = { 0 };
	socklen_t len = sizeof(a), size = sizeof(int);
	int before = errno, only = 1;

	if (!a32_relaxed(&said) && !nt_real.getsockname(fd, (struct sockaddr *)&a, &len) &&
	    a.sin6_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&a.sin6_addr) &&
	    !nt_real.getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, &size) && !only && !a32_xchg(&said, 1))
		nt_say("port %u of [::] is the kernel's, for IPv4 clients, too: have the program listen on 0.0.0.0",
		       ntohs(a.sin6_port));
	errno = before;
}
