/* shim_io.c - bytes: wrappers over client/io.c, and the fortify variants. */
#define _GNU_SOURCE
#include "shim.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/sendfile.h>

SHIM ssize_t read(int fd, void *buf, size_t len)
{
	SHIM_RETURN(nt_read(fd, buf, len), nt_real.read(fd, buf, len));
}

SHIM ssize_t write(int fd, const void *buf, size_t len)
{
	SHIM_RETURN(nt_send(fd, buf, len, 0), nt_real.write(fd, buf, len));
}

SHIM ssize_t readv(int fd, const struct iovec *iov, int n)
{
	SHIM_RETURN(nt_readv(fd, iov, n), nt_real.readv(fd, iov, n));
}

SHIM ssize_t writev(int fd, const struct iovec *iov, int n)
{
	SHIM_RETURN(nt_writev(fd, iov, n), nt_real.writev(fd, iov, n));
}

SHIM ssize_t recv(int fd, void *buf, size_t len, int flags)
{
	SHIM_RETURN(nt_recv(fd, buf, len, flags), nt_real.recv(fd, buf, len, flags));
}

SHIM ssize_t recvfrom(int fd, void *restrict buf, size_t len, int flags, struct sockaddr *restrict addr,
		      socklen_t *restrict addr_len)
{
	SHIM_RETURN(nt_recvfrom(fd, buf, len, flags, addr, addr_len),
		    nt_real.recvfrom(fd, buf, len, flags, addr, addr_len));
}

SHIM ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
	SHIM_RETURN(nt_recvmsg(fd, msg, flags), nt_real.recvmsg(fd, msg, flags));
}

SHIM ssize_t send(int fd, const void *buf, size_t len, int flags)
{
	SHIM_RETURN(nt_send(fd, buf, len, flags), nt_real.send(fd, buf, len, flags));
}

SHIM ssize_t sendto(int fd, const void *buf, size_t len, int flags, const struct sockaddr *addr, socklen_t addr_len)
{
	SHIM_RETURN(nt_sendto(fd, buf, len, flags, addr, addr_len), nt_real.sendto(fd, buf, len, flags, addr, addr_len));
}

/* A socket of ours that travels to another process would be an unconnected AF_UNIX socket there. */
static bool passes_ours(const struct msghdr *msg)
{
	struct msghdr m;

	if (nt_bad_pointer(msg) || nt_bad_pointer(msg->msg_control) || !msg->msg_controllen)
		return false;
	m = *msg;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		for (size_t i = 0; c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (nt_lookup(fd))
				return true;
		}
	}
	return false;
}

static ssize_t kernel_sendmsg(int fd, const struct msghdr *msg, int flags)
{
	if (passes_ours(msg)) {
		nt_say("SCM_RIGHTS with a neatsock connection is not supported yet; keep this program on the kernel");
		errno = EOPNOTSUPP;
		return -1;
	}
	return nt_real.sendmsg(fd, msg, flags);
}

SHIM ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
	SHIM_RETURN(nt_sendmsg(fd, msg, flags), kernel_sendmsg(fd, msg, flags));
}

SHIM int sendmmsg(int fd, struct mmsghdr *v, unsigned n, int flags)
{
	for (unsigned i = 0; i < n; i++) {
		ssize_t sent = sendmsg(fd, &v[i].msg_hdr, flags);

		if (sent < 0)
			return i ? (int)i : -1;
		v[i].msg_len = (unsigned)sent;
	}
	return (int)n;
}

enum { YEARS_S = 1000000000 };	/* as good as for ever, and no overflow */

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* recvmmsg(2): looked at after each datagram only; what is left of it is reported. True: over. */
static bool time_is_over(struct timespec *timeout, int64_t end_ns)
{
	int64_t left = end_ns - now_ns();

	if (!timeout)
		return false;
	if (left < 0)
		left = 0;
	*timeout = (struct timespec){ (time_t)(left / 1000000000), (long)(left % 1000000000) };
	return left == 0;
}

SHIM int recvmmsg(int fd, struct mmsghdr *v, unsigned n, int flags, struct timespec *timeout)
{
	int64_t end_ns = 0;
	static int (*real)(int, struct mmsghdr *, unsigned, int, struct timespec *);
	void *p;

	if (!nt_lookup(fd)) {
		if (!real) {
			p = dlsym(RTLD_NEXT, "recvmmsg");
			memcpy(&real, &p, sizeof(p));
		}
		return real(fd, v, n, flags, timeout);
	}
	if (timeout && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec > 999999999)) {
		errno = EINVAL;
		return -1;
	}
	if (timeout)
		end_ns = now_ns() + (timeout->tv_sec < YEARS_S ? timeout->tv_sec : YEARS_S) * 1000000000ll +
			 timeout->tv_nsec;
	for (unsigned i = 0; i < n; i++) {
		ssize_t got = recvmsg(fd, &v[i].msg_hdr, flags & ~MSG_WAITFORONE);

		if (got < 0)
			return i ? (int)i : -1;
		v[i].msg_len = (unsigned)got;
		if (time_is_over(timeout, end_ns))
			return (int)i + 1;
		if (flags & MSG_WAITFORONE)
			flags |= MSG_DONTWAIT;
	}
	return (int)n;
}

/* ---- sendfile and splice ---- */

static ssize_t real_sendfile(int out_fd, int in_fd, off_t *offset, size_t count)
{
	static ssize_t (*real)(int, int, off_t *, size_t);
	void *p;

	if (!real) {
		p = dlsym(RTLD_NEXT, "sendfile");
		memcpy(&real, &p, sizeof(p));
	}
	return real(out_fd, in_fd, offset, count);
}

SHIM ssize_t sendfile(int out_fd, int in_fd, off_t *offset, size_t count)
{
	SHIM_RETURN(nt_sendfile(out_fd, in_fd, offset, count), real_sendfile(out_fd, in_fd, offset, count));
}

SHIM ssize_t sendfile64(int out_fd, int in_fd, off64_t *offset, size_t count)
{
	return sendfile(out_fd, in_fd, offset, count);
}

SHIM ssize_t splice(int in_fd, off64_t *in_off, int out_fd, off64_t *out_off, size_t len, unsigned flags)
{
	static ssize_t (*real)(int, off64_t *, int, off64_t *, size_t, unsigned);
	void *p;

	/* splice(2): EINVAL where an end does not support splicing; programs fall back to read/write. */
	if (nt_lookup(in_fd) || nt_lookup(out_fd)) {
		errno = EINVAL;
		return -1;
	}
	if (!real) {
		p = dlsym(RTLD_NEXT, "splice");
		memcpy(&real, &p, sizeof(p));
	}
	return real(in_fd, in_off, out_fd, out_off, len, flags);
}

/* ---- _FORTIFY_SOURCE ---- */

/* glibc's own entry points of debug/; no public header declares them. */
ssize_t __read_chk(int fd, void *buf, size_t len, size_t size);
ssize_t __recv_chk(int fd, void *buf, size_t len, size_t size, int flags);
ssize_t __recvfrom_chk(int fd, void *buf, size_t len, size_t size, int flags, struct sockaddr *addr,
		       socklen_t *addr_len);

static void fortify(size_t len, size_t size)
{
	if (len > size) {
		nt_say("buffer overflow detected: a read of %zu bytes into %zu", len, size);
		abort();
	}
}

SHIM ssize_t __read_chk(int fd, void *buf, size_t len, size_t size)
{
	fortify(len, size);
	return read(fd, buf, len);
}

SHIM ssize_t __recv_chk(int fd, void *buf, size_t len, size_t size, int flags)
{
	fortify(len, size);
	return recv(fd, buf, len, flags);
}

SHIM ssize_t __recvfrom_chk(int fd, void *buf, size_t len, size_t size, int flags, struct sockaddr *addr,
			    socklen_t *addr_len)
{
	fortify(len, size);
	return recvfrom(fd, buf, len, flags, addr, addr_len);
}
