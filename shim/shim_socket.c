/* shim_socket.c - life of a socket: thin wrappers over client/sock.c and client/opts.c. */
#define _GNU_SOURCE
#include "shim.h"

SHIM int socket(int domain, int type, int protocol)
{
	SHIM_RETURN(nt_socket(domain, type, protocol), nt_real.socket(domain, type, protocol));
}

SHIM int bind(int fd, const struct sockaddr *addr, socklen_t len)
{
	SHIM_RETURN(nt_bind(fd, addr, len), nt_real.bind(fd, addr, len));
}

SHIM int listen(int fd, int backlog)
{
	SHIM_RETURN(nt_listen(fd, backlog), nt_real.listen(fd, backlog));
}

SHIM int accept4(int fd, struct sockaddr *restrict addr, socklen_t *restrict len, int flags)
{
	SHIM_RETURN(nt_accept4(fd, addr, len, flags), nt_real.accept4(fd, addr, len, flags));
}

SHIM int accept(int fd, struct sockaddr *restrict addr, socklen_t *restrict len)
{
	return accept4(fd, addr, len, 0);
}

SHIM int connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	SHIM_RETURN(nt_connect(fd, addr, len), nt_real.connect(fd, addr, len));
}

SHIM int shutdown(int fd, int how)
{
	SHIM_RETURN(nt_shutdown(fd, how), nt_real.shutdown(fd, how));
}

SHIM int getsockname(int fd, struct sockaddr *restrict addr, socklen_t *restrict len)
{
	SHIM_RETURN(nt_getsockname(fd, addr, len), nt_real.getsockname(fd, addr, len));
}

SHIM int getpeername(int fd, struct sockaddr *restrict addr, socklen_t *restrict len)
{
	SHIM_RETURN(nt_getpeername(fd, addr, len), nt_real.getpeername(fd, addr, len));
}

SHIM int getsockopt(int fd, int level, int name, void *restrict value, socklen_t *restrict len)
{
	SHIM_RETURN(nt_getsockopt(fd, level, name, value, len), nt_real.getsockopt(fd, level, name, value, len));
}

SHIM int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	SHIM_RETURN(nt_setsockopt(fd, level, name, value, len), nt_real.setsockopt(fd, level, name, value, len));
}
