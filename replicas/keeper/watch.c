/*
 * watch.c - is a running replica, component or nic alive? Costs nothing while it sleeps.
 *
 * Hang: its CPU time advances and its heartbeat does not. A timer on its own CPU clock asks for the
 * look, so a process that is starved on a loaded machine, or asleep, is never looked at. Stopped
 * (SIGSTOP): the kernel tells a parent by SIGCHLD. Under a debugger neither happens. neatd is not
 * watched: programs go on without it, and somebody who stops it may want to look at it.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include "ring.h"
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LOOKS = 4 };	/* during the time that makes a hang */

/* The word at `offset` of the object behind a descriptor of a stored message. */
static const neat_a32 *map_word(const struct msg *m, int which, size_t offset)
{
	size_t size = offset + sizeof(neat_a32);
	struct stat st;
	char *p;

	if (!m || m->nfds <= which || fstat(m->fds[which], &st) || (size_t)st.st_size < size)
		return NULL;
	p = mmap(NULL, size, PROT_READ, MAP_SHARED, m->fds[which], 0);
	return p == MAP_FAILED ? NULL : (const neat_a32 *)(const void *)(p + offset);
}

/* Stays mapped: successors write the same page. */
static void map_beats(struct child *c)
{
	if (c->beats)
		return;
	if (c->role == NEAT_ROLE_NIC)
		c->beats = map_word(stored(c, NEAT_MSG_N_FLOWS, sizeof(struct neat_msg_header)), 0,
				    offsetof(struct neat_flow_table, heartbeat));
	else
		c->beats = map_word(stored_config(c), 1, offsetof(struct neat_replica_status, heartbeat));
}

static uint64_t cpu_us(const struct child *c)
{
	struct timespec t;

	if (clock_gettime(c->cpu_clock, &t))
		return 0;
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void watch_start(struct keeper *k, struct child *c)
{
	struct sigevent tell = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN,
				 .sigev_value.sival_int = (int)(c->role << 8 | c->index) };
	uint64_t ns = (uint64_t)k->opt.hang_ms * 1000000 / LOOKS;
	struct timespec every = { (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
	struct itimerspec timer = { every, every };
	char name[32];

	map_beats(c);
	if (!ns || !c->beats)
		return;
	if (clock_getcpuclockid(c->pid, &c->cpu_clock) || timer_create(c->cpu_clock, &tell, &c->cpu_timer)) {
		keeper_log("%s is not watched for hangs: %s", child_name(c, name, sizeof(name)), strerror(errno));
		return;
	}
	c->watched = true;
	c->heartbeat = a32_relaxed(c->beats);
	c->beat_cpu_us = cpu_us(c);
	timer_settime(c->cpu_timer, 0, &timer, NULL);
}

void watch_end(struct child *c)
{
	if (c->watched)
		timer_delete(c->cpu_timer);
	c->watched = false;
	c->stopped_at = 0;
}

/* The signal of a timer; it may be one of a predecessor. */
void watch_look(struct keeper *k, uint32_t who)
{
	struct child *c = keeper_child(k, who >> 8, who & 0xff);
	char name[32];
	uint64_t cpu;
	uint32_t beat;

	if (!c || !c->watched || c->fate)
		return;
	beat = a32_relaxed(c->beats);
	cpu = cpu_us(c);
	if (beat != c->heartbeat) {
		c->heartbeat = beat;
		c->beat_cpu_us = cpu;
		return;
	}
	if (cpu < c->beat_cpu_us + (uint64_t)k->opt.hang_ms * 1000)
		return;
	keeper_log("%s (pid %d) hangs: no heartbeat during %u ms of its CPU time",
		   child_name(c, name, sizeof(name)), c->pid, (uint32_t)((cpu - c->beat_cpu_us) / 1000));
	child_end(c, NEAT_DEATH_HANG);
}

/* On SIGCHLD: who was stopped or continued since. Deaths are told by the pidfds. */
void watch_stops(struct keeper *k)
{
	struct child *all[CHILDREN];
	uint32_t n = keeper_children(k, all);

	for (uint32_t i = 0; i < n; i++) {
		struct child *c = all[i];
		siginfo_t si = { 0 };

		if (!c->pid || c->role == NEAT_ROLE_NEATD)
			continue;
		while (!waitid(P_PIDFD, (id_t)c->pidfd, &si, WSTOPPED | WCONTINUED | WNOHANG) && si.si_pid) {
			c->stopped_at = si.si_code == CLD_STOPPED ? clock_ms() : 0;
			si.si_pid = 0;
		}
	}
}

/* Replaces who was stopped for too long; ms until the next one may be, -1 = nobody is. */
int watch_stopped(struct keeper *k)
{
	struct child *all[CHILDREN];
	uint32_t n = keeper_children(k, all);
	uint64_t now = clock_ms();
	int wait = -1;
	char name[32];

	for (uint32_t i = 0; i < n && k->opt.stopped_ms; i++) {
		struct child *c = all[i];

		if (!c->stopped_at || c->fate)
			continue;
		if (now - c->stopped_at < k->opt.stopped_ms) {
			wait = sooner(wait, (int)(c->stopped_at + k->opt.stopped_ms - now));
			continue;
		}
		keeper_log("%s (pid %d) was stopped for %u ms", child_name(c, name, sizeof(name)), c->pid,
			   (uint32_t)(now - c->stopped_at));
		child_end(c, NEAT_DEATH_OUTSIDE);
	}
	return wait;
}
