/* shim_fd.c - descriptors: close, dup, fcntl, ioctl. The library's own descriptors cannot be closed. */
#define _GNU_SOURCE
#include "shim.h"
#include <fcntl.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

SHIM int close(int fd)
{
	if (nt_fd_internal(fd)) {
		errno = EBADF;
		return -1;
	}
	SHIM_RETURN(nt_close(fd), nt_real.close(fd));
}

static int kernel_close_range(unsigned first, unsigned last, int flags)
{
	const long a[6] = { (long)first, (long)last, flags };
	long rc = first > last ? 0 : nt_kernel_call(SYS_close_range, a);

	if (!rc)
		return 0;
	errno = (int)-rc;
	return -1;
}

/* In pieces, around the descriptors of the library. */
SHIM int close_range(unsigned first, unsigned last, int flags)
{
	int keep, rc = 0;

	if (first > last) {
		errno = EINVAL;
		return -1;
	}
	nt_enter();
	nt_close_range(first, last, (unsigned)flags);
	nt_leave();
	while (!rc && (keep = nt_next_internal_fd((int)(first > INT32_MAX ? INT32_MAX : first))) >= 0 &&
	       (unsigned)keep <= last) {
		if ((unsigned)keep > first)
			rc = kernel_close_range(first, (unsigned)keep - 1, flags);
		first = (unsigned)keep + 1;
	}
	return rc ? rc : kernel_close_range(first, last, flags);
}

SHIM void closefrom(int low) { close_range(low < 0 ? 0 : (unsigned)low, ~0u, 0); }

SHIM int dup(int fd)
{
	SHIM_RETURN(nt_dup(fd, -1, 0, 0), nt_real.dup(fd));
}

SHIM int dup2(int oldfd, int newfd)
{
	SHIM_RETURN(nt_dup(oldfd, newfd, 0, 0), nt_real.dup2(oldfd, newfd));
}

SHIM int dup3(int oldfd, int newfd, int flags)
{
	if (oldfd == newfd || flags & ~O_CLOEXEC) {
		errno = EINVAL;
		return -1;
	}
	SHIM_RETURN(nt_dup(oldfd, newfd, 0, flags), nt_real.dup3(oldfd, newfd, flags));
}

/* The third argument of fcntl() and ioctl(), if there is one, is a long or a pointer: both fit. */
SHIM int fcntl(int fd, int cmd, ...)
{
	va_list ap;
	long arg;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	SHIM_RETURN(nt_fcntl(fd, cmd, arg), nt_real.fcntl(fd, cmd, arg));
}

SHIM int fcntl64(int fd, int cmd, ...)
{
	va_list ap;
	long arg;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	SHIM_RETURN(nt_fcntl(fd, cmd, arg), nt_real.fcntl(fd, cmd, arg));
}

SHIM int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	SHIM_RETURN(nt_ioctl(fd, request, arg), nt_real.ioctl(fd, request, arg));
}
