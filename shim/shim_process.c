/*
 * shim_process.c - load, fork, exec.
 *
 * fork: pthread_atfork handlers, since daemon(3) and forkpty(3) fork inside libc. vfork becomes
 * fork: between vfork and exec CPython's subprocess closes and duplicates descriptors, which must not
 * change the parent's table (contract S1).
 */
#define _GNU_SOURCE
#include "shim.h"
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern char **environ;

/* Asked of the program's global scope: RTLD_DEFAULT would find us in our own. */
bool shim_preloaded(void)
{
	void *global = dlopen(NULL, RTLD_LAZY);

	return global && dlsym(global, "recvmmsg") == (void *)(uintptr_t)&recvmmsg;
}

/*
 * Linked with -z initfirst: constructors of other libraries may already call what we interpose. libc's
 * own has not run yet, so the environment comes from the argument (glibc passes it).
 */
__attribute__((constructor)) static void load(int argc, char **argv, char **envp)
{
	const char *join = NULL;

	(void)argc;
	(void)argv;
	for (char **e = envp; e && *e; e++)
		if (strncmp(*e, "NEATSOCK_JOIN=", 14) == 0)
			join = *e + 14;
		else if (strncmp(*e, "NEATSOCK_SOCKET=", 16) == 0)
			nt_set_socket(*e + 16);
	/* Preloaded, the dynamic linker finds our functions first; loaded by patch(), it does not. */
	nt_default(shim_preloaded());
	nt_enter();
	nt_init(join);
	nt_leave();
	if (join)
		shim_standard_streams();
	pthread_atfork(nt_fork_prepare, nt_fork_parent, nt_fork_child);
}

__attribute__((destructor)) static void unload(void)
{
	nt_enter();
	nt_exit();
	nt_leave();
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

SHIM pid_t fork(void)
{
	static pid_t (*real)(void);
	void *p;
	pid_t pid;
	int err;

	if (!real) {
		p = next("fork");
		memcpy(&real, &p, sizeof(p));
	}
	nt_enter();
	pid = real();
	err = errno;
	nt_enter();	/* handlers of pthread_atfork() may have called us, and left */
	if (pid != 0)
		nt_fork_born(pid);
	nt_leave();
	errno = err;
	return pid;
}

SHIM pid_t vfork(void) { return fork(); }

/* ---- exec ---- */

enum { ENV_MAX = 1 << 16, ARGS_MAX = 4096, OURS = 3 };

/* What the new image needs to find its sockets again; outlives the call. */
struct exec_vars {
	char join[128];
	char preload[4096 + 16];
	char instance[128 + 16];
};

static bool named(const char *var, const char *name) { return strncmp(var, name, strlen(name)) == 0; }

/* A server may give its children an environment of its own making (CGI); what is there stays. */
static bool missing(char *const *env, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (named(env[i], name))
			return false;
	return true;
}

/* The environment with our variables; NULL: nothing of ours is inherited. */
static char **exec_env(char *const *env, struct exec_vars *v)
{
	size_t n = 0, at = 0;
	Dl_info us;
	bool inherits;
	char **out;

	nt_enter();
	inherits = nt_exec_env(v->join, sizeof(v->join)) != 0;
	nt_leave();
	if (!inherits)
		return NULL;
	while (env && env[n] && n < ENV_MAX)
		n++;
	out = mmap(NULL, (n + OURS + 1) * sizeof(*out), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (out == MAP_FAILED)
		return NULL;
	for (size_t i = 0; i < n; i++)
		if (!named(env[i], "NEATSOCK_JOIN="))
			out[at++] = env[i];
	out[at++] = v->join;
	if (missing(env, n, "LD_PRELOAD=") && dladdr((void *)(uintptr_t)&shim_preloaded, &us)) {
		snprintf(v->preload, sizeof(v->preload), "LD_PRELOAD=%s", us.dli_fname);
		out[at++] = v->preload;
	}
	if (missing(env, n, "NEATSOCK_SOCKET=")) {
		snprintf(v->instance, sizeof(v->instance), "NEATSOCK_SOCKET=%s", nt_socket_path());
		out[at++] = v->instance;
	}
	return out;
}

/* ---- programs that nothing can be preloaded into ---- */

/* An ELF file of our class without an interpreter. Only system calls: after fork anything may be locked. */
static bool is_static(const char *path)
{
	int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	ElfW(Ehdr) e = { 0 };
	ElfW(Phdr) p;
	bool elf;

	if (fd < 0)
		return false;
	elf = syscall(SYS_pread64, fd, &e, sizeof(e), 0l) == (long)sizeof(e) && !memcmp(e.e_ident, ELFMAG, SELFMAG) &&
	      e.e_ident[EI_CLASS] == (sizeof(void *) == 8 ? ELFCLASS64 : ELFCLASS32) && e.e_phentsize == sizeof(p);
	for (unsigned i = 0; elf && i < e.e_phnum; i++)
		if (syscall(SYS_pread64, fd, &p, sizeof(p), (long)(e.e_phoff + i * sizeof(p))) != (long)sizeof(p) ||
		    p.p_type == PT_INTERP)
			elf = false;
	nt_kernel_close(fd);
	return elf;
}

/* As execvp(3) searches. False: not found. */
static bool in_path(const char *file, char *out, size_t size)
{
	const char *at = getenv("PATH");

	for (at = at ? at : "/bin:/usr/bin"; at; at = strchr(at, ':') ? strchr(at, ':') + 1 : NULL) {
		int n = (int)strcspn(at, ":");

		snprintf(out, size, "%.*s%s%s", n, at, n ? "/" : "", file);
		if (access(out, X_OK) == 0)
			return true;
	}
	return false;
}

/* Sockets of ours are to be inherited by the program. */
static void note_static(const char *file, bool search)
{
	int err = errno;
	char found[4096];

	if (search && !strchr(file, '/'))
		file = in_path(file, found, sizeof(found)) ? found : NULL;
	if (file && is_static(file))
		nt_say("%s is statically linked: nothing can be preloaded into it, so the sockets that it inherits do not "
		       "work there; use a dynamically linked build", file);
	errno = err;
}

static int real_execve(const char *path, char *const argv[], char *const envp[])
{
	return (int)nt_syscall(SYS_execve, path, argv, envp);
}

SHIM int execve(const char *path, char *const argv[], char *const envp[])
{
	struct exec_vars v;
	char **env = exec_env(envp, &v);

	if (env && !nt_bad_pointer(path))
		note_static(path, false);
	/* On failure the copy of the environment is lost; programs exec seldom and fail more seldom. */
	return real_execve(path, argv, env ? env : envp);
}

SHIM int execv(const char *path, char *const argv[]) { return execve(path, argv, environ); }

SHIM int execvpe(const char *file, char *const argv[], char *const envp[])
{
	static int (*real)(const char *, char *const *, char *const *);
	struct exec_vars v;
	char **env = exec_env(envp, &v);
	void *p;

	if (!real) {
		p = next("execvpe");
		memcpy(&real, &p, sizeof(p));
	}
	if (env)
		note_static(file, true);
	return real(file, argv, env ? env : envp);
}

SHIM int execvp(const char *file, char *const argv[]) { return execvpe(file, argv, environ); }

/* Arguments up to the terminating NULL; -1 if there are too many. */
static int gather(char **argv, const char *first, va_list ap)
{
	int n = 0;

	for (const char *a = first; a; a = va_arg(ap, const char *)) {
		if (n == ARGS_MAX - 1)
			return -1;
		argv[n++] = (char *)(uintptr_t)a;
	}
	argv[n] = NULL;
	return n;
}

static int too_many(void)
{
	errno = E2BIG;
	return -1;
}

SHIM int execl(const char *path, const char *arg, ...)
{
	char *argv[ARGS_MAX];
	va_list ap;
	int n;

	va_start(ap, arg);
	n = gather(argv, arg, ap);
	va_end(ap);
	return n < 0 ? too_many() : execve(path, argv, environ);
}

SHIM int execlp(const char *file, const char *arg, ...)
{
	char *argv[ARGS_MAX];
	va_list ap;
	int n;

	va_start(ap, arg);
	n = gather(argv, arg, ap);
	va_end(ap);
	return n < 0 ? too_many() : execvpe(file, argv, environ);
}

SHIM int execle(const char *path, const char *arg, ...)
{
	char *argv[ARGS_MAX];
	char *const *env;
	va_list ap;
	int n;

	va_start(ap, arg);
	n = gather(argv, arg, ap);
	env = va_arg(ap, char *const *);
	va_end(ap);
	return n < 0 ? too_many() : execve(path, argv, env);
}
