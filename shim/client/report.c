/* report.c - what a person is told. One write(2), no stdio, no malloc: callable from anywhere. */
#define _GNU_SOURCE
#include "internal.h"
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

void nt_counters(struct nt_counters *out) { *out = nt.count; }
