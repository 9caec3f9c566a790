/*
 * shim_spawn.c - posix_spawn, system and popen. libc makes these children by a clone() of its own, past our
 * fork(), so they would hold sockets that nobody knows of. While there are sockets to inherit they are
 * made by fork() and exec() here; otherwise libc's own functions are called.
 *
 * What is in a posix_spawn_file_actions_t is libc's secret: a copy is kept as it is filled. One that was
 * filled before we were loaded, or with an action that is not in the list, stays with libc.
 */
#define _GNU_SOURCE
#include "shim.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* libc's own function of this name and type. */
#define REAL(name)                                           \
	static __typeof__(name) *real;                       \
	if (!real) {                                         \
		void *p_ = dlsym(RTLD_NEXT, #name);          \
		memcpy(&real, &p_, sizeof(p_));              \
	}

/* ---- file actions ---- */

enum kind { OPEN, CLOSE, DUP2, CHDIR, FCHDIR, CLOSEFROM };
struct action {
	enum kind kind;
	int fd, to;		/* DUP2: fd becomes `to` */
	char *path;		/* owned */
	int flags;
	mode_t mode;
};
struct actions {
	struct actions *next;
	const posix_spawn_file_actions_t *of;
	int n;
	struct action *v;
};
static struct actions *all;
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;

static struct actions **find(const posix_spawn_file_actions_t *of)
{
	struct actions **at = &all;

	while (*at && (*at)->of != of)
		at = &(*at)->next;
	return at;
}

static void truncate_to(struct actions *a, int n)
{
	while (a->n > n)
		free(a->v[--a->n].path);
}

/* The object has it as its last one; what we remember behind that is of an earlier life of its memory. */
static void note(const posix_spawn_file_actions_t *of, struct action add)
{
	struct actions **at, *a;
	struct action *v;

	pthread_mutex_lock(&all_lock);
	at = find(of);
	if (!*at)
		*at = calloc(1, sizeof(**at));
	a = *at;
	v = a ? realloc(a->v, (size_t)of->__used * sizeof(*v)) : NULL;
	if (v) {
		a->of = of;
		a->v = v;
		truncate_to(a, of->__used - 1);
		if (a->n == of->__used - 1)
			a->v[a->n++] = add;
	}
	pthread_mutex_unlock(&all_lock);
}

/* NULL: not all of them are known. */
static const struct actions *known(const posix_spawn_file_actions_t *of)
{
	static const struct actions none;
	const struct actions *a;

	if (!of || of->__used == 0)
		return &none;
	pthread_mutex_lock(&all_lock);
	a = *find(of);
	pthread_mutex_unlock(&all_lock);
	return a && a->n == of->__used ? a : NULL;
}

SHIM int posix_spawn_file_actions_destroy(posix_spawn_file_actions_t *of)
{
	struct actions **at, *a;
	REAL(posix_spawn_file_actions_destroy)

	pthread_mutex_lock(&all_lock);
	at = find(of);
	a = *at;
	if (a) {
		*at = a->next;
		truncate_to(a, 0);
		free(a->v);
		free(a);
	}
	pthread_mutex_unlock(&all_lock);
	return real(of);
}

SHIM int posix_spawn_file_actions_addopen(posix_spawn_file_actions_t *restrict of, int fd, const char *restrict path,
					  int flags, mode_t mode)
{
	int err;
	REAL(posix_spawn_file_actions_addopen)

	err = real(of, fd, path, flags, mode);
	if (!err)
		note(of, (struct action){ OPEN, fd, 0, strdup(path), flags, mode });
	return err;
}

SHIM int posix_spawn_file_actions_addclose(posix_spawn_file_actions_t *of, int fd)
{
	int err;
	REAL(posix_spawn_file_actions_addclose)

	err = real(of, fd);
	if (!err)
		note(of, (struct action){ .kind = CLOSE, .fd = fd });
	return err;
}

SHIM int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *of, int fd, int to)
{
	int err;
	REAL(posix_spawn_file_actions_adddup2)

	err = real(of, fd, to);
	if (!err)
		note(of, (struct action){ .kind = DUP2, .fd = fd, .to = to });
	return err;
}

SHIM int posix_spawn_file_actions_addchdir_np(posix_spawn_file_actions_t *restrict of, const char *restrict path)
{
	int err;
	REAL(posix_spawn_file_actions_addchdir_np)

	err = real(of, path);
	if (!err)
		note(of, (struct action){ .kind = CHDIR, .path = strdup(path) });
	return err;
}

SHIM int posix_spawn_file_actions_addfchdir_np(posix_spawn_file_actions_t *of, int fd)
{
	int err;
	REAL(posix_spawn_file_actions_addfchdir_np)

	err = real(of, fd);
	if (!err)
		note(of, (struct action){ .kind = FCHDIR, .fd = fd });
	return err;
}

SHIM int posix_spawn_file_actions_addclosefrom_np(posix_spawn_file_actions_t *of, int from)
{
	static int (*real)(posix_spawn_file_actions_t *, int);	/* glibc 2.34 */
	void *p;
	int err;

	if (!real) {
		p = dlsym(RTLD_NEXT, "posix_spawn_file_actions_addclosefrom_np");
		if (!p)
			return ENOSYS;
		memcpy(&real, &p, sizeof(p));
	}
	err = real(of, from);
	if (!err)
		note(of, (struct action){ .kind = CLOSEFROM, .fd = from });
	return err;
}

/* posix_spawn_file_actions_addopen(3posix): opened as `fd`, which is closed first. */
static int act_open(const struct action *a)
{
	int fd;

	if (!a->path)
		return ENOMEM;
	close(a->fd);
	fd = open(a->path, a->flags, a->mode);
	if (fd < 0 || fd == a->fd)
		return fd < 0 ? errno : 0;
	if (dup2(fd, a->fd) < 0)
		return errno;
	close(fd);
	return 0;
}

static int act(const struct action *a)
{
	int rc = 0;

	switch (a->kind) {
	case OPEN:
		return act_open(a);
	case CLOSE:
		close(a->fd);	/* glibc: no error when it is not open */
		break;
	case DUP2:
		rc = a->fd == a->to ? fcntl(a->fd, F_SETFD, 0) : dup2(a->fd, a->to);
		break;
	case CHDIR:
		rc = a->path ? chdir(a->path) : -1;
		break;
	case FCHDIR:
		rc = fchdir(a->fd);
		break;
	case CLOSEFROM:
		closefrom(a->fd);
		break;
	}
	return rc < 0 ? errno : 0;
}

/* ---- attributes ---- */

enum { SUPPORTED = POSIX_SPAWN_RESETIDS | POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK |
		   POSIX_SPAWN_SETSCHEDPARAM | POSIX_SPAWN_SETSCHEDULER | POSIX_SPAWN_USEVFORK | POSIX_SPAWN_SETSID };

static short flags_of(const posix_spawnattr_t *attr)
{
	short flags = 0;

	if (attr)
		posix_spawnattr_getflags(attr, &flags);
	return flags;
}

/* No handler of the parent's runs in the child, whatever comes before exec. */
static void reset_signals(const posix_spawnattr_t *attr, short flags)
{
	const struct sigaction dfl = { .sa_handler = SIG_DFL };
	struct sigaction now;
	sigset_t set;

	sigemptyset(&set);
	if (flags & POSIX_SPAWN_SETSIGDEF)
		posix_spawnattr_getsigdefault(attr, &set);
	for (int sig = 1; sig < _NSIG; sig++)
		if (sigismember(&set, sig) == 1 || (sigaction(sig, NULL, &now) == 0 && now.sa_handler != SIG_IGN))
			sigaction(sig, &dfl, NULL);
}

static int apply(const posix_spawnattr_t *attr, short flags)
{
	struct sched_param param;
	pid_t group = 0;
	int policy = 0;

	if (!attr)
		return 0;
	posix_spawnattr_getschedparam(attr, &param);
	posix_spawnattr_getschedpolicy(attr, &policy);
	posix_spawnattr_getpgroup(attr, &group);
	if (flags & POSIX_SPAWN_SETSCHEDULER ? sched_setscheduler(0, policy, &param) < 0 :
	    flags & POSIX_SPAWN_SETSCHEDPARAM && sched_setparam(0, &param) < 0)
		return errno;
	if (flags & POSIX_SPAWN_SETSID && setsid() < 0)
		return errno;
	if (flags & POSIX_SPAWN_SETPGROUP && setpgid(0, group) < 0)
		return errno;
	if (flags & POSIX_SPAWN_RESETIDS && (setegid(getgid()) < 0 || seteuid(getuid()) < 0))
		return errno;
	return 0;
}

/* ---- posix_spawn ---- */

struct plan {
	const char *path;
	bool search;		/* PATH */
	const struct actions *actions;
	const posix_spawnattr_t *attr;
	char *const *argv, *const *env;
	sigset_t mask;		/* the caller's */
	int *failure;		/* shared with the parent: errno */
};

static void child(const struct plan *p)
{
	short flags = flags_of(p->attr);
	sigset_t mask = p->mask;
	int err;

	reset_signals(p->attr, flags);
	err = apply(p->attr, flags);
	for (int i = 0; !err && i < p->actions->n; i++)
		err = act(&p->actions->v[i]);
	if (flags & POSIX_SPAWN_SETSIGMASK)
		posix_spawnattr_getsigmask(p->attr, &mask);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	if (!err) {
		(p->search ? execvpe : execve)(p->path, p->argv, p->env);
		err = errno;
	}
	__atomic_store_n(p->failure, err, __ATOMIC_RELEASE);
	_exit(127);
}

/* Until the child is another image, or dead: its end of the pipe is close-on-exec. */
static void await_exec(int pipe_fd)
{
	char none;

	while (read(pipe_fd, &none, 1) < 0 && errno == EINTR)
		;
}

static int fork_and_exec(const struct plan *p, pid_t *out)
{
	int ends[2], err = 0;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC))
		return errno;
	pid = fork();
	if (pid == 0)
		child(p);
	if (pid < 0)
		err = errno;
	close(ends[1]);
	if (!err)
		await_exec(ends[0]);
	close(ends[0]);
	if (!err)
		err = __atomic_load_n(p->failure, __ATOMIC_ACQUIRE);
	if (err && pid > 0)
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	if (!err && out)
		*out = pid;
	return err;
}

static int spawn(struct plan *p, pid_t *out)
{
	int saved = errno, cancel, err;
	sigset_t full;

	p->failure = mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p->failure == MAP_FAILED)
		return ENOMEM;
	sigfillset(&full);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	pthread_sigmask(SIG_BLOCK, &full, &p->mask);
	err = fork_and_exec(p, out);
	pthread_sigmask(SIG_SETMASK, &p->mask, NULL);
	pthread_setcancelstate(cancel, NULL);
	munmap(p->failure, sizeof(int));
	errno = saved;
	return err;
}

/* Whether libc's own way would lose a socket. A file action may hand on what is close-on-exec. */
static bool ours(const posix_spawn_file_actions_t *of, const posix_spawnattr_t *attr)
{
	return nt_inheritable(of && of->__used) && known(of) && !(flags_of(attr) & ~SUPPORTED);
}

SHIM int posix_spawn(pid_t *restrict pid, const char *restrict path, const posix_spawn_file_actions_t *restrict of,
		     const posix_spawnattr_t *restrict attr, char *const *restrict argv, char *const *restrict env)
{
	struct plan p = { .path = path, .attr = attr, .argv = argv, .env = env };
	REAL(posix_spawn)

	if (!ours(of, attr))
		return real(pid, path, of, attr, argv, env);
	p.actions = known(of);
	return spawn(&p, pid);
}

SHIM int posix_spawnp(pid_t *restrict pid, const char *restrict file, const posix_spawn_file_actions_t *restrict of,
		      const posix_spawnattr_t *restrict attr, char *const *restrict argv, char *const *restrict env)
{
	struct plan p = { .path = file, .search = true, .attr = attr, .argv = argv, .env = env };
	REAL(posix_spawnp)

	if (!ours(of, attr))
		return real(pid, file, of, attr, argv, env);
	p.actions = known(of);
	return spawn(&p, pid);
}

/* ---- system ---- */

static pthread_mutex_t system_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned systems;		/* under way: the last one restores what the first one found */
static struct sigaction old_int, old_quit;

static void ignore_interrupts(bool on)
{
	const struct sigaction ign = { .sa_handler = SIG_IGN };

	pthread_mutex_lock(&system_lock);
	if (on && systems++ == 0) {
		sigaction(SIGINT, &ign, &old_int);
		sigaction(SIGQUIT, &ign, &old_quit);
	} else if (!on && --systems == 0) {
		sigaction(SIGINT, &old_int, NULL);
		sigaction(SIGQUIT, &old_quit, NULL);
	}
	pthread_mutex_unlock(&system_lock);
}

static int wait_for(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return status;
}

/* The thread is cancelled in waitpid(): glibc kills the shell, and so do we. */
static void abandon(void *arg)
{
	const pid_t *pid = arg;

	kill(*pid, SIGKILL);
	wait_for(*pid);
	ignore_interrupts(false);
}

static int run_shell(const char *command, const sigset_t *mask)
{
	char *const argv[] = { (char *)(uintptr_t)"sh", (char *)(uintptr_t)"-c", (char *)(uintptr_t)command, NULL };
	posix_spawnattr_t attr;
	sigset_t dfl;
	pid_t pid;
	int err, status = 127 << 8;	/* system(3): as if the shell had ended with 127 */

	sigemptyset(&dfl);
	if (old_int.sa_handler != SIG_IGN)
		sigaddset(&dfl, SIGINT);
	if (old_quit.sa_handler != SIG_IGN)
		sigaddset(&dfl, SIGQUIT);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigdefault(&attr, &dfl);
	posix_spawnattr_setsigmask(&attr, mask);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	err = posix_spawn(&pid, "/bin/sh", NULL, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	if (err)
		return status;
	pthread_cleanup_push(abandon, &pid);
	status = wait_for(pid);
	pthread_cleanup_pop(0);
	return status;
}

SHIM int system(const char *command)
{
	sigset_t chld, mask;
	int status;
	REAL(system)

	if (!command || !nt_inheritable(false))
		return real(command);
	ignore_interrupts(true);
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	pthread_sigmask(SIG_BLOCK, &chld, &mask);
	status = run_shell(command, &mask);
	ignore_interrupts(false);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	return status;
}

/* ---- popen ---- */

/* Streams that we opened; those of libc are in a list of its own. */
struct pipe_stream {
	struct pipe_stream *next;
	FILE *f;
	int fd;
	ino_t inode;		/* of its pipe: after fclose() something else may have the number */
	pid_t pid;
};
static struct pipe_stream *pipes;
static pthread_mutex_t pipes_lock = PTHREAD_MUTEX_INITIALIZER;

/* Takes the entry off the list; NULL if there is none. */
static struct pipe_stream *take(const FILE *f)
{
	struct pipe_stream **at, *found;

	pthread_mutex_lock(&pipes_lock);
	for (at = &pipes; *at && (*at)->f != f; at = &(*at)->next)
		;
	found = *at;
	if (found)
		*at = found->next;
	pthread_mutex_unlock(&pipes_lock);
	return found;
}

static bool is_open(const struct pipe_stream *s)
{
	struct stat st;

	return fstat(s->fd, &st) == 0 && S_ISFIFO(st.st_mode) && st.st_ino == s->inode;
}

/* popen(3posix): streams of earlier calls are closed in the child. */
static void plan_fds(posix_spawn_file_actions_t *of, int child_end, int as)
{
	pthread_mutex_lock(&pipes_lock);
	for (struct pipe_stream *s = pipes; s; s = s->next)
		if (s->fd != as && is_open(s))
			posix_spawn_file_actions_addclose(of, s->fd);
	pthread_mutex_unlock(&pipes_lock);
	posix_spawn_file_actions_adddup2(of, child_end, as);
}

static int start_piped(const char *command, int child_end, int as, pid_t *pid)
{
	char *const argv[] = { (char *)(uintptr_t)"sh", (char *)(uintptr_t)"-c", (char *)(uintptr_t)command, NULL };
	posix_spawn_file_actions_t of;
	int err;

	posix_spawn_file_actions_init(&of);
	plan_fds(&of, child_end, as);
	err = posix_spawn(pid, "/bin/sh", &of, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&of);
	return err;
}

static FILE *open_piped(struct pipe_stream *s, const char *command, bool reads, bool cloexec)
{
	int ends[2], mine = reads ? 0 : 1, err;
	struct stat st = { 0 };

	if (pipe2(ends, O_CLOEXEC))
		return NULL;
	err = start_piped(command, ends[!mine], reads ? 1 : 0, &s->pid);
	close(ends[!mine]);
	s->f = err ? NULL : fdopen(ends[mine], reads ? "r" : "w");
	if (!s->f) {
		close(ends[mine]);
		errno = err ? err : errno;
		return NULL;
	}
	if (!cloexec)
		fcntl(ends[mine], F_SETFD, 0);
	fstat(ends[mine], &st);
	s->inode = st.st_ino;
	s->fd = ends[mine];
	return s->f;
}

SHIM FILE *popen(const char *command, const char *mode)
{
	bool reads = strchr(mode, 'r') != NULL, writes = strchr(mode, 'w') != NULL;
	struct pipe_stream *s;
	FILE *f;
	REAL(popen)

	if (reads == writes || !nt_inheritable(false)) {
		f = real(command, mode);
		free(f ? take(f) : NULL);	/* of a stream at this address that was closed by fclose() */
		return f;
	}
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	f = open_piped(s, command, reads, strchr(mode, 'e') != NULL);
	if (!f) {
		free(s);
		return NULL;
	}
	free(take(f));
	pthread_mutex_lock(&pipes_lock);
	s->next = pipes;
	pipes = s;
	pthread_mutex_unlock(&pipes_lock);
	return f;
}

SHIM int pclose(FILE *f)
{
	struct pipe_stream *s = take(f);
	pid_t pid;
	REAL(pclose)

	if (!s)
		return real(f);
	pid = s->pid;
	free(s);
	fclose(f);
	return wait_for(pid);
}
