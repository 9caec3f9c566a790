/*
 * main.c - neat-keeper: start, signals, the poll loop. Started by `neatsock up` and `neatsock run`.
 *
 * One thread, never blocks on a child, sleeps in poll() when nobody says anything.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t clock_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

uint64_t clock_ms(void)
{
	return clock_us() / 1000;
}

void keeper_log(const char *fmt, ...)
{
	char text[512], when[32];
	time_t now = time(NULL);
	struct tm tm;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	localtime_r(&now, &tm);
	strftime(when, sizeof(when), "%F %T", &tm);
	dprintf(STDERR_FILENO, "%s neat-keeper: %s\n", when, text);
}

/* Children end with us: PR_SET_PDEATHSIG, and the end of their control sockets. */
_Noreturn void keeper_die(const char *what)
{
	keeper_log("%s: %s; the instance ends", what, strerror(errno));
	exit(1);
}

void keeper_fail(struct keeper *k, const char *what)
{
	keeper_log("the instance ends: %s", what);
	k->stop = true;
	k->exit_status = 1;
}

/* ---- start ---- */

/* Descriptors 0..3 exist, so that no control socket of ours gets the number a child expects it at. */
static void occupy_low_fds(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	} while (fd >= 0 && fd < CONTROL_FD);
	if (fd > CONTROL_FD)
		close(fd);
}

/* Locks the file that has the name now: an ending keeper removes it, maybe after we opened it. */
static int lock_pid_file(struct keeper *k)
{
	struct stat ours, named;
	int fd;

	for (;;) {
		fd = open(k->pid_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0)
			keeper_die(k->pid_path);
		if (flock(fd, LOCK_EX | LOCK_NB)) {
			keeper_log("an instance named %s is already up in %s", k->opt.name, k->opt.dir);
			exit(3);
		}
		if (!fstat(fd, &ours) && !stat(k->pid_path, &named) && ours.st_ino == named.st_ino)
			return fd;
		close(fd);
	}
}

/* One keeper per name: the lock is held as long as we live, whatever is left of the file. */
static void claim_name(struct keeper *k)
{
	int fd, n = snprintf(k->pid_path, sizeof(k->pid_path), "%s/%s.pid", k->opt.dir, k->opt.name);

	if (n >= (int)sizeof(k->pid_path) - 1)
		usage();
	snprintf(k->sock_path, sizeof(k->sock_path), "%s/%s.sock", k->opt.dir, k->opt.name);
	fd = lock_pid_file(k);
	if (ftruncate(fd, 0) || dprintf(fd, "%d\n", getpid()) < 0)
		keeper_die(k->pid_path);
}

static void setup(struct keeper *k)
{
	struct rlimit files;
	sigset_t set;

	occupy_low_fds();
	umask(077);
	claim_name(k);
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	k->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (k->signals < 0)
		keeper_die("signalfd");
	child_init(&k->neatd, NEAT_ROLE_NEATD, 0);
	child_init(&k->nic, NEAT_ROLE_NIC, 0);
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++)
		child_init(&k->replica[i], NEAT_ROLE_REPLICA, i);
	for (uint32_t i = 0; i < COMPONENTS * NEAT_REPLICAS_MAX; i++)
		child_init(&k->component[i / NEAT_REPLICAS_MAX][i % NEAT_REPLICAS_MAX],
			   NEAT_ROLE_IP + i / NEAT_REPLICAS_MAX, i % NEAT_REPLICAS_MAX);
	child_init(&k->standby, NEAT_ROLE_STANDBY, 0);
	k->neatd.wanted = true;
	program_open(&k->program, k->opt.replica_bin);
	program_open_quarantine(&k->quarantine, &k->program);
	if (is_multi(k) && !components_open(k->part, k->program.path))
		keeper_die("the programs of --components multi");
}

/* ---- loop ---- */

static bool is_child(struct keeper *k, pid_t pid)
{
	struct child *all[CHILDREN];
	uint32_t n = keeper_children(k, all);

	for (uint32_t i = 0; i < n; i++)
		if (all[i]->pid == pid)
			return true;
	return false;
}

/* Orphans of a child became ours (subreaper); our own children are waited for by child.c. */
static void reap_orphans(struct keeper *k)
{
	siginfo_t si = { 0 };

	while (!waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) && si.si_pid && !is_child(k, si.si_pid)) {
		waitpid(si.si_pid, NULL, 0);
		si.si_pid = 0;
	}
}

static void on_signals(struct keeper *k)
{
	struct signalfd_siginfo si;

	while (read(k->signals, &si, sizeof(si)) == (ssize_t)sizeof(si)) {
		if (si.ssi_signo == SIGCHLD) {
			reap_orphans(k);
			watch_stops(k);
			continue;
		}
		if (si.ssi_signo == (uint32_t)SIGRTMIN) {
			watch_look(k, (uint32_t)si.ssi_int);
			continue;
		}
		if (si.ssi_signo == SIGHUP)
			continue;	/* a terminal that closes is no wish of anybody */
		keeper_log("signal %u from process %u: the instance ends", si.ssi_signo, si.ssi_pid);
		k->stop = true;
	}
}

int sooner(int a, int b)
{
	return a < 0 || (b >= 0 && b < a) ? b : a;
}

/* Starts what should run; returns milliseconds until the next delayed start, -1 = none. */
static int start_wanted(struct keeper *k)
{
	struct child *all[CHILDREN];
	uint32_t n = keeper_children(k, all);
	uint64_t now = clock_ms();
	int wait = -1;

	for (uint32_t i = 0; i < n; i++) {
		struct child *c = all[i];

		if (!c->wanted || c->pid || waits_for_component(k, c))
			continue;
		if (c->start_at <= now)
			child_start(k, c);
		if (!c->pid && c->start_at > now)
			wait = sooner(wait, (int)(c->start_at - now));
	}
	wait = sooner(wait, components_end(k));
	wait = sooner(wait, plan_step(k));
	wait = sooner(wait, standby_keep(k));
	return sooner(wait, watch_stopped(k));
}

static void on_readable(struct keeper *k, struct child *c)
{
	struct received r;
	int got;

	/* Bounded, so that one talkative child does not starve the others. */
	for (int i = 0; i < 64; i++) {
		got = msg_receive(c->sock, &r);
		if (got == 0)
			return;
		if (got < 0) {
			/* It talks nonsense, or hung up: then it is dying already. */
			child_end(c, r.len ? NEAT_DEATH_FAULT : c->fate);
			return;
		}
		if (c->role == NEAT_ROLE_NEATD)
			neatd_message(k, &r);
		else
			child_message(k, c, &r);
	}
}

static void serve(struct keeper *k, struct child *c, const struct pollfd *sock, const struct pollfd *life)
{
	if (life->revents) {
		child_died(k, c);
		reap_orphans(k);
		return;
	}
	if (sock->revents & (POLLIN | POLLHUP | POLLERR))
		on_readable(k, c);
}

static void keeper_loop(struct keeper *k)
{
	struct child *all[CHILDREN];
	struct pollfd fds[2 * CHILDREN + 1];
	uint32_t n = keeper_children(k, all);

	while (!k->stop) {
		int wait = start_wanted(k);

		fds[0] = (struct pollfd){ .fd = k->signals, .events = POLLIN };
		for (uint32_t i = 0; i < n; i++) {
			struct child *c = all[i];
			struct pollfd *p = &fds[1 + 2 * i];

			if (c->pid)
				queue_flush(&c->out, c->sock);
			p[0] = (struct pollfd){ .fd = c->pid ? c->sock : -1, .events = POLLIN };
			p[1] = (struct pollfd){ .fd = c->pid ? c->pidfd : -1, .events = POLLIN };
			if (c->out.first)
				p[0].events |= POLLOUT;
		}
		evidence_write(k);
		if (poll(fds, 2 * n + 1, wait) < 0 && errno != EINTR)
			keeper_die("poll");
		if (fds[0].revents)
			on_signals(k);
		for (uint32_t i = 0; i < n; i++)
			if (all[i]->pid)
				serve(k, all[i], &fds[1 + 2 * i], &fds[2 + 2 * i]);
	}
}

/*
 * `--detach`: who starts us is a program, which must not find a keeper among its children. What it sees is our
 * parent, which ends with our status, and is killed once the instance is up.
 */
static void detach(void)
{
	pid_t starter = getppid(), keeper;
	int status;

	signal(SIGCHLD, SIG_DFL);	/* SIG_IGN would be inherited, and leave no status */
	keeper = fork();
	if (keeper < 0)
		keeper_die("fork");
	if (keeper == 0) {
		setsid();
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != starter)
		exit(1);
	while (waitpid(keeper, &status, 0) < 0 && errno == EINTR)
		;
	exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

int main(int argc, char **argv)
{
	static struct keeper k;	/* large; reached only through the pointer below */

	if (argc > 1 && (!strcmp(argv[1], "--sweep") || !strcmp(argv[1], "--cloexec") || !strcmp(argv[1], "--orphans")))
		return sweep_main(argc, argv);
	if (argc > 1 && !strcmp(argv[1], "--detach")) {
		detach();
		argv++;
		argc--;
	}
	parse(&k.opt, argc, argv);
	setup(&k);
	keeper_loop(&k);
	children_end(&k);
	unlink(k.sock_path);
	unlink(k.pid_path);
	keeper_log("the instance has ended");
	return k.exit_status;
}
