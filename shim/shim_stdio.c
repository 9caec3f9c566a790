/*
 * shim_stdio.c - stdio on our sockets. libc's streams call read and write inside libc, past us: ours get
 * their own functions (fopencookie), those that a program finds open when it starts included.
 */
#define _GNU_SOURCE
#include "shim.h"
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static ssize_t stream_read(void *cookie, char *buf, size_t len) { return read((int)(intptr_t)cookie, buf, len); }

/* To the end, as libc's own: less than `len` is an error of the stream (fopencookie(3)). */
static ssize_t write_all(int fd, const char *buf, size_t len)
{
	size_t at = 0;

	while (at < len) {
		ssize_t n = write(fd, buf + at, len - at);

		if (n < 0)
			break;
		at += (size_t)n;
	}
	return (ssize_t)at;
}

static ssize_t stream_write(void *cookie, const char *buf, size_t len)
{
	return write_all((int)(intptr_t)cookie, buf, len);
}

static int stream_close(void *cookie) { return close((int)(intptr_t)cookie); }

SHIM FILE *fdopen(int fd, const char *mode)
{
	const cookie_io_functions_t io = { .read = stream_read, .write = stream_write, .close = stream_close };
	static FILE *(*real)(int, const char *);
	FILE *f;
	void *p;

	if (nt_lookup(fd)) {
		f = fopencookie((void *)(intptr_t)fd, mode, io);
		if (f)
			f->_fileno = fd;	/* for fileno(); the functions above have the cookie */
		return f;
	}
	if (!real) {
		p = dlsym(RTLD_NEXT, "fdopen");
		memcpy(&real, &p, sizeof(p));
	}
	return real(fd, mode);
}

/* glibc lets a program assign these (libc manual, "Standard Streams"); its own functions look here, too. */
void shim_standard_streams(void)
{
	FILE *f;

	f = nt_lookup(0) ? fdopen(0, "r") : NULL;
	if (f)
		stdin = f;
	f = nt_lookup(1) ? fdopen(1, "w") : NULL;
	if (f)
		stdout = f;
	f = nt_lookup(2) ? fdopen(2, "w") : NULL;
	if (f) {
		setvbuf(f, NULL, _IONBF, 0);
		stderr = f;
	}
}

/* glibc's opens a stream of its own on a duplicate of stderr's descriptor. */
SHIM void perror(const char *what)
{
	static void (*real)(const char *);
	int err = errno;
	void *p;

	if (nt_lookup(fileno(stderr))) {
		fprintf(stderr, "%s%s%s\n", what ? what : "", what && *what ? ": " : "", strerror(err));
		return;
	}
	if (!real) {
		p = dlsym(RTLD_NEXT, "perror");
		memcpy(&real, &p, sizeof(p));
	}
	errno = err;
	real(what);
}

/* ---- dprintf ---- */

int __dprintf_chk(int fd, int flag, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int __vdprintf_chk(int fd, int flag, const char *fmt, va_list ap) __attribute__((format(printf, 3, 0)));

SHIM int vdprintf(int fd, const char *restrict fmt, va_list ap)
{
	static int (*real)(int, const char *, va_list);
	char *text;
	void *p;
	int n;

	if (nt_lookup(fd)) {
		n = vasprintf(&text, fmt, ap);
		if (n < 0)
			return -1;
		if (write_all(fd, text, (size_t)n) < n)
			n = -1;
		free(text);
		return n;
	}
	if (!real) {
		p = dlsym(RTLD_NEXT, "vdprintf");
		memcpy(&real, &p, sizeof(p));
	}
	return real(fd, fmt, ap);
}

SHIM int dprintf(int fd, const char *restrict fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vdprintf(fd, fmt, ap);
	va_end(ap);
	return n;
}

/* On a socket of ours without the check of %n. */
SHIM int __vdprintf_chk(int fd, int flag, const char *fmt, va_list ap)
{
	static int (*real)(int, int, const char *, va_list);
	void *p;

	if (nt_lookup(fd))
		return vdprintf(fd, fmt, ap);
	if (!real) {
		p = dlsym(RTLD_NEXT, "__vdprintf_chk");
		memcpy(&real, &p, sizeof(p));
	}
	return real(fd, flag, fmt, ap);
}

SHIM int __dprintf_chk(int fd, int flag, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = __vdprintf_chk(fd, flag, fmt, ap);
	va_end(ap);
	return n;
}
