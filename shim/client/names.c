/* names.c - addresses of a socket: from the program, to it, and its own (getsockname(2), getpeername(2)). */
#define _GNU_SOURCE
#include "internal.h"
#include <netinet/in.h>

int nt_parse_address(const struct sockaddr *sa, socklen_t len, uint32_t *addr, uint16_t *port)
{
	struct sockaddr_in in;

	if (len < sizeof(in))
		return -EINVAL;
	if (nt_bad_pointer(sa))
		return -EFAULT;
	memcpy(&in, sa, sizeof(in));
	if (in.sin_family != AF_INET && !(in.sin_family == AF_UNSPEC && in.sin_addr.s_addr == INADDR_ANY))
		return -EAFNOSUPPORT;
	*addr = ntohl(in.sin_addr.s_addr);
	*port = ntohs(in.sin_port);
	return 0;
}

/* Linux: move_addr_to_user(). */
int nt_store_address(struct sockaddr *out, socklen_t *len, uint32_t addr, uint16_t port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(addr) };

	if (nt_bad_pointer(len))
		return -EFAULT;
	if ((int)*len < 0)
		return -EINVAL;
	if (*len && nt_bad_pointer(out))
		return -EFAULT;
	if (*len)
		memcpy(out, &in, *len < sizeof(in) ? *len : sizeof(in));
	*len = sizeof(in);
	return 0;
}

static bool connect_begun(void *arg) { return nt_conn_flags(arg) != 0; }

int nt_getsockname(int fd, struct sockaddr *addr, socklen_t *len)
{
	uint32_t sock = nt_lookup(fd);
	struct neat_sock *s = nt_sock(sock);
	struct nt_conn c;

	if (!sock)
		return NT_KERNEL;
	if (nt_is_dgram(s))
		return nt_dgram_getsockname(fd, addr, len);
	if (a32_acquire(&s->state) != NEAT_SOCK_CONNECT)
		return nt_store_address(addr, len, s->laddr, s->lport);
	/* The replica chooses the port: right after a non-blocking connect() it may not have yet. */
	c = nt_conn(s);
	/* A signal does not end the wait, as there is none in Linux; a replica that does nothing is replaced. */
	if (!connect_begun(&c))
		nt_wait_replica(sock, connect_begun, &c);
	return nt_store_address(addr, len, c.pub->laddr, c.pub->lport);
}

int nt_getpeername(int fd, struct sockaddr *addr, socklen_t *len)
{
	uint32_t sock = nt_lookup(fd), flags;
	struct neat_sock *s = nt_sock(sock);
	struct nt_conn c;

	if (!sock)
		return NT_KERNEL;
	if (nt_is_dgram(s))
		return nt_dgram_getpeername(fd, addr, len);
	if (a32_acquire(&s->state) != NEAT_SOCK_CONNECT)
		return -ENOTCONN;
	c = nt_conn(s);
	flags = nt_conn_flags(&c);
	if (!(flags & NEAT_SLOT_CONNECTED) || flags & NEAT_SLOT_HUP)
		return -ENOTCONN;
	return nt_store_address(addr, len, c.pub->raddr, c.pub->rport);
}
