/*
 * evidence.c - what helps a developer after a fault or a hang of a replica: how it ended, the first
 * page of its arena (what it was doing, arena.h) and the end of the log.
 *
 * Taken before the successor starts, written after: a file system must not delay a recovery.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	EVIDENCE_FILES = 32,	/* of one instance; the oldest makes room */
	LOG_TAIL = 8192,
};

struct evidence {
	struct evidence *next;
	uint32_t index, epoch, adopts, strikes;
	pid_t pid;
	enum neat_death death;
	int status;
	char program[256];
	uint8_t arena[NEAT_PAGE];
	ssize_t arena_len;
};

void evidence_take(struct keeper *k, const struct child *c, pid_t pid)
{
	const struct msg *config = stored_config(c);
	struct evidence *e = malloc(sizeof(*e));

	if (!e)
		return;
	*e = (struct evidence){ .next = k->evidence, .index = c->index, .epoch = c->epoch, .adopts = c->adopts, .pid = pid,
				.death = c->death, .status = c->status,
				.strikes = strikes(k, c, clock_ms()) };
	snprintf(e->program, sizeof(e->program), "%.250s", c->quarantine ? k->quarantine.path :
		 c->generation == k->program.generation ? k->program.path : k->before.path);
	k->evidence = e;
	if (config && config->nfds)
		e->arena_len = pread(config->fds[0], e->arena, sizeof(e->arena), 0);
}

static void write_arena(int fd, const struct evidence *e)
{
	dprintf(fd, "\nfirst page of the arena, 64-bit words, lines of zeros left out:\n");
	for (ssize_t at = 0; at + 32 <= e->arena_len; at += 32) {
		uint64_t w[4];

		memcpy(w, e->arena + at, sizeof(w));
		if (w[0] | w[1] | w[2] | w[3])
			dprintf(fd, "%04zx  %016lx %016lx %016lx %016lx\n", (size_t)at, w[0], w[1], w[2], w[3]);
	}
}

/* Our stderr is the log, unless somebody started us by hand. */
static void write_log(int fd)
{
	char text[LOG_TAIL];
	struct stat st;
	ssize_t n = -1;
	int log;

	if (fstat(STDERR_FILENO, &st) || !S_ISREG(st.st_mode))
		return;
	log = open("/proc/self/fd/2", O_RDONLY | O_CLOEXEC);
	if (log >= 0) {
		n = pread(log, text, sizeof(text), st.st_size > LOG_TAIL ? st.st_size - LOG_TAIL : 0);
		close(log);
	}
	if (n > 0)
		dprintf(fd, "\nend of the log:\n%.*s", (int)n, text);
}

static void write_head(int fd, const struct evidence *e)
{
	dprintf(fd, "replica %u, epoch %u, pid %d, %s\n", e->index, e->epoch, e->pid, e->program);
	if (e->death == NEAT_DEATH_HANG)
		dprintf(fd, "ended by the keeper: no heartbeat while its CPU time advanced\n");
	else if (WIFSIGNALED(e->status))
		dprintf(fd, "killed by signal %d (%s)\n", WTERMSIG(e->status), strsignal(WTERMSIG(e->status)));
	else
		dprintf(fd, "exited with status %d\n", WEXITSTATUS(e->status));
	dprintf(fd, "it %s its predecessor's connections; strikes within the window: %u\n",
		e->adopts ? "had adopted" : "had not adopted", e->strikes);
}

/* One file less when there are too many: the oldest of this instance. */
static void make_room(int dir, const char *prefix)
{
	struct timespec oldest = { 0 };
	char victim[256] = "";
	DIR *d = fdopendir(dup(dir));
	struct dirent *f;
	uint32_t n = 0;

	while (d && (f = readdir(d))) {
		struct stat st;

		if (strncmp(f->d_name, prefix, strlen(prefix)) || fstatat(dir, f->d_name, &st, AT_SYMLINK_NOFOLLOW))
			continue;
		n++;
		if (*victim && (st.st_mtim.tv_sec > oldest.tv_sec ||
				(st.st_mtim.tv_sec == oldest.tv_sec && st.st_mtim.tv_nsec >= oldest.tv_nsec)))
			continue;
		oldest = st.st_mtim;
		snprintf(victim, sizeof(victim), "%s", f->d_name);
	}
	if (d)
		closedir(d);
	if (n >= EVIDENCE_FILES)
		unlinkat(dir, victim, 0);
}

static void write_one(struct keeper *k, const struct evidence *e)
{
	char path[4096], file[320], prefix[280];
	int dir, fd = -1;

	snprintf(path, sizeof(path), "%s/evidence", k->opt.dir);
	snprintf(prefix, sizeof(prefix), "%s-", k->opt.name);
	snprintf(file, sizeof(file), "%s%u-%u.txt", prefix, e->index, e->epoch);
	mkdir(path, 0700);
	dir = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dir >= 0) {
		make_room(dir, prefix);
		fd = openat(dir, file, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	}
	if (fd >= 0) {
		write_head(fd, e);
		write_arena(fd, e);
		write_log(fd);
		close(fd);
		keeper_log("evidence is in %s/%s", path, file);
	} else {
		keeper_log("no evidence in %s/%s: %s", path, file, strerror(errno));
	}
	if (dir >= 0)
		close(dir);
}

void evidence_write(struct keeper *k)
{
	while (k->evidence) {
		struct evidence *e = k->evidence;

		k->evidence = e->next;
		write_one(k, e);
		free(e);
	}
}
