/*
 * program.c - the files that replicas are started from, held by descriptor: a package that is updated
 * under a running instance changes nothing until `neatsock upgrade` asks for it.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void program_open(struct program *p, const char *path)
{
	int n = snprintf(p->path, sizeof(p->path), "%s", path);

	p->fd = n < (int)sizeof(p->path) ? open(path, O_PATH | O_CLOEXEC) : -1;
}

/* Beside the normal build, under its name with a suffix; none is no error. */
void program_open_quarantine(struct program *p, const struct program *normal)
{
	char path[sizeof(p->path) + 16];

	snprintf(path, sizeof(path), "%s-quarantine", normal->path);
	program_open(p, path);
}

void program_close(struct program *p)
{
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
}

/* In the child. Returns if it cannot be. */
void program_exec(const struct program *p)
{
	char *const argv[] = { (char *)(uintptr_t)p->path, NULL };

	if (p->fd >= 0)
		execveat(p->fd, "", argv, environ, AT_EMPTY_PATH);
	/* A script cannot be read through a descriptor that is closed by exec. */
	if (p->fd < 0 || errno == ENOENT)
		execv(p->path, argv);
}
