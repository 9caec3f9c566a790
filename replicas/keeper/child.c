/* child.c - start, fence and restart one child process. */
#define _GNU_SOURCE
#include "keeper.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct child *keeper_child(struct keeper *k, uint32_t role, uint32_t index)
{
	if (role == NEAT_ROLE_NEATD && index == 0)
		return &k->neatd;
	if (role == NEAT_ROLE_NIC && index == 0)
		return &k->nic;
	if (role == NEAT_ROLE_REPLICA && index < NEAT_REPLICAS_MAX)
		return &k->replica[index];
	if (role_is_component(role) && index < NEAT_REPLICAS_MAX)
		return &k->component[role - NEAT_ROLE_IP][index];
	return NULL;
}

uint32_t keeper_children(struct keeper *k, struct child **all)
{
	uint32_t n = 0;

	all[n++] = &k->neatd;
	all[n++] = &k->nic;
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++)
		all[n++] = &k->replica[i];
	for (uint32_t i = 0; i < COMPONENTS * NEAT_REPLICAS_MAX; i++)
		all[n++] = &k->component[i / NEAT_REPLICAS_MAX][i % NEAT_REPLICAS_MAX];
	all[n++] = &k->standby;
	return n;
}

void child_init(struct child *c, uint32_t role, uint32_t index)
{
	*c = (struct child){ .role = role, .index = index, .pidfd = -1, .sock = -1 };
	queue_init(&c->out);
}

const char *child_name(const struct child *c, char *text, size_t size)
{
	if (c->role == NEAT_ROLE_REPLICA)
		snprintf(text, size, "replica %u", c->index);
	else if (role_is_component(c->role))
		snprintf(text, size, "%s of replica %u", component_name(c->role), c->index);
	else
		snprintf(text, size, "%s", c->role == NEAT_ROLE_NIC ? "nic" :
			 c->role == NEAT_ROLE_STANDBY ? "standby" : "neatd");
	return text;
}

/* In the child, between fork and exec. The parent has one thread, so ordinary calls are safe. */
static _Noreturn void child_exec(struct keeper *k, const struct child *c, int sock, pid_t keeper)
{
	char *const nic[] = { (char *)(uintptr_t)k->opt.nic_bin, NULL };
	char *const *argv = c->role == NEAT_ROLE_NEATD ? k->opt.neatd_args : nic;
	struct rlimit no_core = { 0, 0 };
	char name[32];
	sigset_t none;

	/* A core file of a replica would hold gigabytes of sparse segments. */
	setrlimit(RLIMIT_CORE, &no_core);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* The keeper died before the line above took effect. */
	if (getppid() != keeper || dup2(sock, CONTROL_FD) < 0)
		_exit(127);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	if (role_is_component(c->role))
		program_exec(&k->part[c->role - NEAT_ROLE_IP]);
	else if (c->role == NEAT_ROLE_REPLICA || c->role == NEAT_ROLE_STANDBY)
		program_exec(c->quarantine ? &k->quarantine : &k->program);
	else
		execv(argv[0], argv);
	fprintf(stderr, "neat-keeper: cannot start %s: %s\n", child_name(c, name, sizeof(name)), strerror(errno));
	_exit(127);
}

/* Frames of this replica's former incarnation are worthless; those for the new one, if there is one, wait (W11,
 * row 42). */
static void fence_at_nic(struct keeper *k, const struct child *c)
{
	struct neat_msg_n_queue fence = { .replica = c->index, .epoch = c->wanted ? c->epoch : 0 };
	struct msg *m;

	if (!k->nic.pid || c->role == NEAT_ROLE_NIC || c != queue_holder(k, c->index))
		return;
	fence.h = (struct neat_msg_header){ NEAT_ABI_MAGIC, NEAT_ABI_VERSION, NEAT_MSG_N_FENCE, sizeof(fence), 0 };
	m = msg_new(&fence, sizeof(fence), NULL, 0);
	queue_add(&k->nic.out, NULL, m);
	msg_put(m);
}

static void queue_store(struct keeper *k, struct child *c)
{
	struct neat_msg_header start = { NEAT_ABI_MAGIC, NEAT_ABI_VERSION, NEAT_MSG_R_START, sizeof(start), 0 };
	struct msg *m;

	queue_clear(&c->out);
	c->listen_hint = c->stored;
	for (struct entry *e = c->stored; e; e = e->next) {
		struct neat_msg_r_config *config = (void *)e->m->u.bytes;
		struct neat_msg_n_queue *queue = (void *)e->m->u.bytes;

		if (config->h.type == NEAT_MSG_R_CONFIG && e->m->len >= sizeof(*config))
			configure(k, c, config);
		if (queue->h.type == NEAT_MSG_N_QUEUE && e->m->len >= sizeof(*queue) &&
		    queue->replica < NEAT_REPLICAS_MAX)
			queue->epoch = k->replica[queue->replica].wanted ? queue_holder(k, queue->replica)->epoch : 0;
		queue_add(&c->out, NULL, e->m);
	}
	m = msg_new(&start, sizeof(start), NULL, 0);
	queue_add(&c->out, NULL, m);
	msg_put(m);
	/* Behind R_START: then the successor has the connections that they change. */
	for (struct entry *e = c->orders; e; e = e->next)
		queue_add(&c->out, NULL, e->m);
}

/* A process that is the other end of `pair`. False, and nothing is left: no process or descriptor is to be had. */
static bool child_fork(struct keeper *k, struct child *c, int *pair)
{
	pid_t keeper = getpid(), pid = fork();
	int pidfd, err;

	if (pid < 0)
		return false;
	if (pid == 0)
		child_exec(k, c, pair[1], keeper);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0) {
		err = errno;
		kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
		errno = err;
		return false;
	}
	c->pid = pid;
	c->pidfd = pidfd;
	return true;
}

/* False: at start_at it is tried again. The others go on meanwhile. */
static bool child_new(struct keeper *k, struct child *c)
{
	char name[32];
	int pair[2] = { -1, -1 };

	c->quarantine = c->quarantined && k->quarantine.fd >= 0;
	c->generation = k->program.generation;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) || !child_fork(k, c, pair)) {
		keeper_log("cannot start %s: %s; tried again in %d ms", child_name(c, name, sizeof(name)),
			   strerror(errno), FAULT_DELAY_MS);
		if (pair[0] >= 0) {
			close(pair[0]);
			close(pair[1]);
		}
		c->start_at = clock_ms() + FAULT_DELAY_MS;
		return false;
	}
	close(pair[1]);
	c->sock = pair[0];
	c->parked = false;
	return true;
}

void child_start(struct keeper *k, struct child *c)
{
	bool warm = c->role == NEAT_ROLE_REPLICA && !c->quarantined && standby_promote(k, c);
	char name[32];

	if (!warm && !child_new(k, c))
		return;
	c->start_at = c->end_by = 0;
	c->restarts += c->death != NEAT_DEATH_NONE;
	c->epoch++;
	c->ready = c->planned = false;
	keeper_log("%s %s, pid %d, epoch %u", child_name(c, name, sizeof(name)),
		   warm ? "goes on in the standby" : c->quarantine ? "started (quarantine build)" : "started",
		   c->pid, c->epoch);
	if (c->role == NEAT_ROLE_NEATD) {
		neatd_handback(k);
		return;
	}
	if (c->role != NEAT_ROLE_STANDBY) {
		fence_at_nic(k, c);
		queue_store(k, c);
	}
	tell_neatd(k, NEAT_MSG_K_STARTED, c, NULL);
	if (c->role == NEAT_ROLE_REPLICA)
		tell_neatd(k, NEAT_MSG_K_HEALTH, c, health_message(k, c));
	if (c->role != NEAT_ROLE_STANDBY)
		watch_start(k, c);
}

void child_end(struct child *c, enum neat_death fate)
{
	c->fate = fate;
	if (!c->ended_us)
		c->ended_us = clock_us();
	syscall(SYS_pidfd_send_signal, c->pidfd, SIGKILL, NULL, 0);
}

void child_kill(struct child *c)
{
	if (!c->pid)
		return;
	syscall(SYS_pidfd_send_signal, c->pidfd, SIGKILL, NULL, 0);
	while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
		;
	c->pid = 0;
}

/* Waits until all of `n` processes are gone, or it is `deadline_ms`. */
static void await_ends(struct child **all, uint32_t n, uint64_t deadline_ms)
{
	for (uint32_t i = 0; i < n; i++) {
		struct pollfd life = { .fd = all[i]->pidfd, .events = POLLIN };
		uint64_t now = clock_ms();

		if (all[i]->pid && now < deadline_ms)
			poll(&life, 1, (int)(deadline_ms - now));
	}
}

/*
 * neatd goes first: whoever is told that the instance ends finds nobody to ask for a port. Programs believe it
 * by our word in the registry, and are woken by the replicas.
 */
void children_end(struct keeper *k)
{
	struct child *all[CHILDREN];
	uint32_t n = keeper_children(k, all);

	child_kill(&k->neatd);
	life_over(&k->life);
	for (uint32_t i = 0; i < n; i++)
		if (all[i]->pid)
			shutdown(all[i]->sock, SHUT_RDWR);
	await_ends(all, n, clock_ms() + LAST_RITES_MS);
	for (uint32_t i = 0; i < n; i++)
		child_kill(all[i]);
}

static void log_death(const struct child *c, int status)
{
	char name[32];

	child_name(c, name, sizeof(name));
	if (WIFSIGNALED(status))
		keeper_log("%s (pid %d) was killed by signal %d (%s)", name, c->pid, WTERMSIG(status),
			   strsignal(WTERMSIG(status)));
	else
		keeper_log("%s (pid %d) exited with status %d", name, c->pid, WEXITSTATUS(status));
}

/* What it said before it died still counts. */
static void last_words(struct keeper *k, struct child *c)
{
	struct received r;

	while (msg_receive(c->sock, &r) > 0) {
		if (c->role == NEAT_ROLE_NEATD)
			neatd_message(k, &r);
		else
			child_message(k, c, &r);
	}
}

void child_died(struct keeper *k, struct child *c)
{
	uint64_t now = clock_us();
	pid_t pid = c->pid;

	watch_end(c);
	last_words(k, c);	/* maybe that it became ready, so many us after its predecessor's death */
	c->died_us = c->ended_us ? c->ended_us : now;
	c->ended_us = 0;
	while (waitpid(c->pid, &c->status, 0) < 0 && errno == EINTR)
		;
	log_death(c, c->status);
	c->death = death_of(c, c->status);
	c->death_planned = c->replacing && c->death == NEAT_DEATH_OUTSIDE;
	c->replacing = false;
	c->fate = NEAT_DEATH_NONE;
	if (c->role != NEAT_ROLE_NEATD)
		tell_neatd(k, NEAT_MSG_K_DIED, c, NULL);
	close(c->sock);
	close(c->pidfd);
	c->sock = c->pidfd = -1;
	c->pid = 0;
	if (c->role != NEAT_ROLE_NEATD)
		queue_clear(&c->out);
	if (c->death != NEAT_DEATH_OUTSIDE)
		count_fault(k, c);
	if (c->death != NEAT_DEATH_OUTSIDE && c->role == NEAT_ROLE_REPLICA)
		evidence_take(k, c, pid);
	c->ready = false;
	c->recovery_us = 0;
	/* Drained: whoever comes next has no predecessor. */
	if (!c->wanted && (c->role == NEAT_ROLE_REPLICA || role_is_component(c->role))) {
		c->death = NEAT_DEATH_NONE;
		c->died_us = 0;
		fence_at_nic(k, c);
	}
}
