/*
 * client.h - the application's half of neatsock: everything the shim and the cffi module
 * may call. Files of client/ include internal.h besides.
 *
 * Conventions: results are >= 0 or -errno; errno itself is written only by the shim. NT_KERNEL means
 * "not ours, make the real call". No function here calls malloc, stdio or an interposed symbol; the
 * real libc calls are reached through nt_real (filled once, before any other thread exists). All of
 * it may be called from several threads, after fork, and from atexit handlers.
 */
#ifndef NT_CLIENT_H
#define NT_CLIENT_H

#include "bytering.h"
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

enum { NT_KERNEL = -4096 };	/* outside the errno range */

/*
 * No program has memory there: the first 64 KiB (vm.mmap_min_addr) and what is no address of user space with any
 * number of page table levels (x86-64: 2^56, aarch64: 2^52). Other wrong pointers are found by the copy itself, as
 * SIGSEGV (docs/differences.md).
 */
static inline bool nt_bad_pointer(const void *p)
{
	return __builtin_expect((uintptr_t)p - 65536 >= (1ull << 56) - 65536, 0);
}

/* ---- session.c: attachment to an instance ---- */

/* Path of the instance's control socket (the environment's NEATSOCK_SOCKET). */
void nt_set_socket(const char *path);
const char *nt_socket_path(void);
/* Whether new sockets are ours: by default (LD_PRELOAD, patch()), or for this thread only. */
void nt_default(bool on);
void nt_explicit(bool on);
/* Called by the constructor. `join`: value of NEATSOCK_JOIN, not NULL if we were exec'ed with sockets. */
void nt_init(const char *join);
/* Attach if not yet done. 0, or -errno after one clear line on stderr (no instance, version skew). */
int nt_attach(void);
bool nt_attached(void);
/* An instance is named and attaching has not failed: sockets will be ours. */
bool nt_has_instance(void);
void nt_confine(void);			/* the program is about to filter its system calls */

/* ---- fdtable.c: THE fd table ---- */

/* Index of the socket record behind fd, 0 if the fd is the kernel's. No system call. */
uint32_t nt_lookup(int fd);
/* fd was closed, replaced or created behind our back (fopen, pipe, ...): forget what we knew. */
void nt_fd_forget(int fd);
int nt_close(int fd);				/* last reference: FIN */
int nt_dup(int oldfd, int newfd, int min, int flags);	/* dup (newfd -1), dup2/3, F_DUPFD (newfd -1, min) */
void nt_close_range(unsigned first, unsigned last, unsigned flags);	/* our entries only; then the real call */
bool nt_fd_internal(int fd);			/* a descriptor of the library itself: closing it is EBADF */
int nt_next_internal_fd(int from);		/* lowest one >= from, -1 none; for close_range to step over */

/* ---- process.c ---- */

/* Around fork: prepare copies the table for the child (L2) and takes every lock in order. */
void nt_fork_prepare(void);
void nt_fork_parent(void);
void nt_fork_born(pid_t child);		/* after fork() returned it in the parent; < 0: undo */
void nt_fork_child(void);
/* Before exec: variables to put into the new environment, "" if nothing of ours is inherited. */
int nt_exec_env(char *out, size_t size);
/* A socket of ours would be inherited by exec; with `all`, close-on-exec ones count. */
bool nt_inheritable(bool all);
void nt_exit(void);

/* ---- sock.c: life of a socket ---- */

int nt_socket(int domain, int type, int protocol);	/* fd or -errno or NT_KERNEL */
int nt_bind(int fd, const struct sockaddr *addr, socklen_t len);
int nt_listen(int fd, int backlog);
int nt_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);
int nt_connect(int fd, const struct sockaddr *addr, socklen_t len);
int nt_shutdown(int fd, int how);
int nt_getsockname(int fd, struct sockaddr *addr, socklen_t *len);
int nt_getpeername(int fd, struct sockaddr *addr, socklen_t *len);
int nt_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
int nt_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int nt_fcntl(int fd, int cmd, long arg);
int nt_ioctl(int fd, unsigned long request, void *arg);

/* ---- io.c: bytes ---- */

ssize_t nt_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t nt_sendmsg(int fd, const struct msghdr *msg, int flags);
/* The hot pair, without building a msghdr. */
ssize_t nt_recv(int fd, void *buf, size_t len, int flags);
ssize_t nt_read(int fd, void *buf, size_t len);
ssize_t nt_send(int fd, const void *buf, size_t len, int flags);
/* With addresses: sendto(2), recvfrom(2). */
ssize_t nt_recvfrom(int fd, void *buf, size_t len, int flags, struct sockaddr *addr, socklen_t *addr_len);
ssize_t nt_sendto(int fd, const void *buf, size_t len, int flags, const struct sockaddr *addr, socklen_t addr_len);
ssize_t nt_readv(int fd, const struct iovec *iov, int n);
ssize_t nt_writev(int fd, const struct iovec *iov, int n);
ssize_t nt_sendfile(int out_fd, int in_fd, off_t *offset, size_t count);

/* ---- poll.c, epoll.c: readiness over our sockets and kernel fds together ---- */

/* timeout_ns < 0 = for ever. NT_KERNEL when no fd of the set is ours. */
int nt_poll(struct pollfd *fds, nfds_t n, int64_t timeout_ns, const sigset_t *mask);
int nt_select(int n, fd_set *r, fd_set *w, fd_set *e, int64_t timeout_ns, int64_t *left_ns, const sigset_t *mask);
void nt_epoll_created(int epfd);		/* after the real epoll_create1 */
int nt_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int nt_epoll_wait(int epfd, struct epoll_event *ev, int max, int64_t timeout_ns, const sigset_t *mask);

/* ---- signal.c: calls of the program, and its signal handlers ---- */

/*
 * The stack of the call that is inside the library, 0 = none is in this thread. Handlers of the program call us, too
 * (signal-safety(7)), so they wait until the call leaves or sleeps: locks are taken inside only.
 */
extern __thread uintptr_t nt_in __attribute__((tls_model("initial-exec")));
extern __thread int nt_held __attribute__((tls_model("initial-exec")));	/* the signal that waits, 0 = none */
void nt_deliver(void);

static inline uintptr_t nt_stack(void)
{
	uintptr_t at;

#if defined(__x86_64__)
	__asm__ volatile("mov %%rsp, %0" : "=r"(at));
#else
	__asm__ volatile("mov %0, sp" : "=r"(at));
#endif
	return at;
}

/* Around what a call of the program does with us. The two do not nest. A handler comes in the same thread: no fence. */
static inline void nt_enter(void)
{
	nt_in = nt_stack();
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}
static inline void nt_leave(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	nt_in = 0;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (__builtin_expect(nt_held != 0, 0))
		nt_deliver();
}

int nt_sigaction(int sig, const struct sigaction *act, struct sigaction *old);
void nt_adopt_handlers(void);		/* those that were installed before we were loaded */

/* ---- report.c: what a person is told; stderr, one write, prefixed "neatsock:" ---- */
void nt_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Says, once for each process, that the socket of the kernel's `fd` will listen to IPv4 too. errno stays. */
void nt_note_both_families(int fd);

/* ---- real.c: libc's own calls ---- */
struct nt_real {
#define NT_CALL(ret, name, ...) ret (*name)(__VA_ARGS__);
#include "real_calls.h"
#undef NT_CALL
};
extern struct nt_real nt_real;
/* System call `nr` itself: no cancellation point, and not routed to our sockets as syscall(2) of the program is. -errno. */
long nt_kernel_call(long nr, const long a[6]);
/* The same as syscall(2) says it: -1 and errno. */
long nt_syscall(long nr, ...);
/*
 * Inside, where locks are held, nothing may be a cancellation point (pthreads(7)): the calls of libc that are one are made
 * in this way. close(2) and connect(2).
 */
void nt_kernel_close(int fd);
int nt_kernel_connect(int fd, const struct sockaddr *addr, socklen_t len);

#endif
