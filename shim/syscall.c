/*
 * syscall.c - syscall(2): programs that call the kernel by number still meet our sockets.
 *
 * io_uring is refused: it would take descriptors where we cannot follow (libuv registers epoll
 * changes through it), and everything that uses it falls back to system calls.
 */
#define _GNU_SOURCE
#include "shim.h"
#include <fcntl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Bytes of a socket of ours; *done tells whether it is a call about them. */
static long bytes(long nr, const long a[6], bool *done)
{
	int fd = (int)a[0];

	*done = true;
	switch (nr) {
	case SYS_read:
		return read(fd, (void *)a[1], (size_t)a[2]);
	case SYS_readv:
		return readv(fd, (const void *)a[1], (int)a[2]);
	case SYS_write:
		return write(fd, (const void *)a[1], (size_t)a[2]);
	case SYS_writev:
		return writev(fd, (const void *)a[1], (int)a[2]);
	case SYS_recvfrom:
		return recvfrom(fd, (void *)a[1], (size_t)a[2], (int)a[3], (void *)a[4], (void *)a[5]);
	case SYS_sendto:
		return sendto(fd, (const void *)a[1], (size_t)a[2], (int)a[3], (const void *)a[4], (socklen_t)a[5]);
	case SYS_recvmsg:
		return recvmsg(fd, (void *)a[1], (int)a[2]);
	case SYS_sendmsg:
		return sendmsg(fd, (const void *)a[1], (int)a[2]);
	case SYS_recvmmsg:
		return recvmmsg(fd, (void *)a[1], (unsigned)a[2], (int)a[3], (void *)a[4]);
	case SYS_sendmmsg:
		return sendmmsg(fd, (void *)a[1], (unsigned)a[2], (int)a[3]);
	case SYS_sendfile:
		return sendfile(fd, (int)a[1], (off_t *)a[2], (size_t)a[3]);
	}
	*done = false;
	return 0;
}

/* What else is done to a socket of ours; *done tells whether it is such a call. */
static long control(long nr, const long a[6], bool *done)
{
	int fd = (int)a[0];

	*done = true;
	switch (nr) {
	case SYS_bind:
		return bind(fd, (const void *)a[1], (socklen_t)a[2]);
	case SYS_listen:
		return listen(fd, (int)a[1]);
#ifdef SYS_accept
	case SYS_accept:
		return accept(fd, (void *)a[1], (void *)a[2]);
#endif
	case SYS_accept4:
		return accept4(fd, (void *)a[1], (void *)a[2], (int)a[3]);
	case SYS_connect:
		return connect(fd, (const void *)a[1], (socklen_t)a[2]);
	case SYS_shutdown:
		return shutdown(fd, (int)a[1]);
	case SYS_getsockname:
		return getsockname(fd, (void *)a[1], (void *)a[2]);
	case SYS_getpeername:
		return getpeername(fd, (void *)a[1], (void *)a[2]);
	case SYS_getsockopt:
		return getsockopt(fd, (int)a[1], (int)a[2], (void *)a[3], (void *)a[4]);
	case SYS_setsockopt:
		return setsockopt(fd, (int)a[1], (int)a[2], (const void *)a[3], (socklen_t)a[4]);
	case SYS_fcntl:
		return fcntl(fd, (int)a[1], a[2]);
	case SYS_ioctl:
		return ioctl(fd, (unsigned long)a[1], (void *)a[2]);
	}
	*done = false;
	return 0;
}

/* Calls that may concern a descriptor of ours, or of the library's, whatever the first argument is. */
static long numbers(long nr, const long a[6], bool *done)
{
	*done = true;
	switch (nr) {
	case SYS_close:
		return close((int)a[0]);
	case SYS_close_range:
		return close_range((unsigned)a[0], (unsigned)a[1], (int)a[2]);
	case SYS_dup:
		return dup((int)a[0]);
#ifdef SYS_dup2
	case SYS_dup2:
		return dup2((int)a[0], (int)a[1]);
#endif
	case SYS_dup3:
		return dup3((int)a[0], (int)a[1], (int)a[2]);
	case SYS_splice:
		return splice((int)a[0], (void *)a[1], (int)a[2], (void *)a[3], (size_t)a[4], (unsigned)a[5]);
	case SYS_epoll_ctl:
		return epoll_ctl((int)a[0], (int)a[1], (int)a[2], (void *)a[3]);
	}
	*done = false;
	return 0;
}

/* As libc's function says it. */
static long said(long rc)
{
	if ((unsigned long)rc <= -4096ul)
		return rc;
	errno = (int)-rc;
	return -1;
}

static void confine(void)
{
	nt_enter();
	nt_confine();
	nt_leave();
}

SHIM int prctl(int op, ...)
{
	long a[6] = { op };
	va_list ap;

	va_start(ap, op);
	for (int i = 1; i < 5; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (op == PR_SET_SECCOMP)
		confine();
	return (int)said(nt_kernel_call(SYS_prctl, a));
}

/* vsftpd forks so, for namespaces of the child's. Not for one of pids: neatd would not know the child by its own. */
static long fork_by_clone(const long a[6])
{
	long pid;

	nt_enter();
	nt_fork_prepare();
	pid = nt_kernel_call(SYS_clone, a);
	if (pid == 0) {
		nt_fork_child();
	} else {
		nt_fork_parent();
		nt_fork_born(pid < 0 ? -1 : (pid_t)pid);
	}
	nt_leave();
	return said(pid);
}

/* Also before we are attached: the first socket of the program's, sets that it makes before that, and who waits there. */
static long early(long nr, const long a[6], bool *done)
{
	*done = true;
	switch (nr) {
	case SYS_socket:
		return socket((int)a[0], (int)a[1], (int)a[2]);
	case SYS_epoll_create1:
		return epoll_create1((int)a[0]);
#ifdef SYS_epoll_create
	case SYS_epoll_create:
		return epoll_create((int)a[0]);
#endif
#ifdef SYS_fork
	case SYS_fork:
		return fork();
#endif
	case SYS_clone:
		if (!(a[0] & (CLONE_VM | CLONE_FILES | CLONE_NEWPID)) && !a[1])
			return fork_by_clone(a);
		break;
	case SYS_prctl:
		return prctl((int)a[0], a[1], a[2], a[3], a[4]);
	case SYS_seccomp:
		if (a[0] == SECCOMP_SET_MODE_FILTER && a[2])	/* libseccomp asks with NULL what there is */
			confine();
		break;
	}
	*done = false;
	return shim_wait_by_number(nr, a);
}

SHIM long syscall(long nr, ...)
{
	long a[6], rc;
	va_list ap;
	bool done;

	va_start(ap, nr);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	rc = early(nr, a, &done);
	if (done)
		return rc;
	if (rc != NT_KERNEL)
		return said(rc);
	if (nt_attached()) {
		rc = numbers(nr, a, &done);
		if (!done && (unsigned long)a[0] < NEAT_FDS_MAX && nt_lookup((int)a[0])) {
			rc = bytes(nr, a, &done);
			if (!done)
				rc = control(nr, a, &done);
		}
		if (done)
			return rc;
	}
	/* Event loops make their ring before the first socket, so before we are attached. */
	return said(nr == SYS_io_uring_setup && nt_has_instance() ? -ENOSYS : nt_kernel_call(nr, a));
}
