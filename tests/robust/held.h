/* held.h - who touches a slot that replicas gave out is held there, by a page that faults, until it is told to go on. */
#pragma once
#include "segments.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	REPLICAS = 4,
	HELD = 64 * REPLICAS,	/* connections that fill the first page of slots in each: other calls touch that page */
	BORN = 4 << 20,		/* bytes of slots below those that connect() takes */
};

static struct neat_seg_app *segments[REPLICAS];
static int stopped[2], go[2];

static void fail(const char *what)
{
	printf("WRONG: %s\n", what);
	fflush(stdout);
	_exit(1);
}

/* All slots that accept() takes, but for those of the first page. */
static void protect(int how)
{
	for (int i = 0; i < REPLICAS && segments[i]; i++)
		if (mprotect((char *)segments[i] + NEAT_PAGE, BORN, how))
			_exit(1);
}

/* Of SIGSEGV: says so in `stopped`, and waits for a byte in `go`. */
static void in_between(int sig)
{
	char c;
	(void)sig;

	if (syscall(SYS_write, stopped[1], "", 1) != 1 || syscall(SYS_read, go[0], &c, 1) != 1)
		_exit(1);
	protect(PROT_READ | PROT_WRITE);
}
