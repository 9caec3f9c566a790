/*
 * dgram.c - life of a datagram socket: socket, bind, connect, names, options, close (udp(7), ip(7)).
 *
 * The descriptor of the program is the kernel twin itself, a real UDP socket (L9): it reserves the port
 * in the kernel's world (P4), answers getsockopt, and goes on alone when the socket turns out to be
 * the kernel's business. In our world the socket has a port once neatd has entered it in the registry;
 * then it owns one slot in its home replica, which receives, and one in each other replica that it
 * sends through. docs/decisions.md says why.
 */
#define _GNU_SOURCE
#include "dgram.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <unistd.h>

int nt_dgram_socket(int type)
{
	uint32_t sock;
	int fd, err;

	if (nt_attach() || nt_over())
		return NT_KERNEL;
	fd = nt_real.socket(AF_INET, type, IPPROTO_UDP);
	if (fd < 0)
		return -errno;
	err = nt_fd_new_sock(fd, type & SOCK_CLOEXEC ? NEAT_FD_CLOEXEC : 0, &sock);
	if (err == -EMFILE)
		return fd;	/* beyond our table it is an ordinary socket of the kernel */
	if (err) {
		nt_kernel_close(fd);
		return err;
	}
	a32_store(&nt_sock(sock)->flags, type & SOCK_NONBLOCK ? NEAT_SOCKF_NONBLOCK : 0);
	a32_release(&nt_sock(sock)->state, NEAT_SOCK_DGRAM);
	return fd;
}

/* ---- where a datagram goes ---- */

/* Home of the socket at addr:port, DGRAM_KERNEL if nobody of ours holds it. */
static int home_of(uint32_t addr, uint16_t port)
{
	const struct neat_port_entry *e = neat_port_entry_of(nt.registry, addr, port, IPPROTO_UDP);
	uint32_t mask = e ? a32_relaxed(&e->mask) : 0;

	if (!mask && (e = neat_port_entry_of(nt.registry, 0, port, IPPROTO_UDP)) != NULL)
		mask = a32_relaxed(&e->mask);
	return mask && (uint32_t)__builtin_ctz(mask) < nt.nreplicas ? __builtin_ctz(mask) : DGRAM_KERNEL;
}

/* Broadcast of a network of ours (RFC 1122 3.3.6): the kernel's, as multicast. */
static bool is_broadcast(uint32_t addr)
{
	const struct neat_registry *g = nt.registry;
	uint32_t n = a32_relaxed(&g->naddrs);

	for (uint32_t i = 0; i < n && i < NEAT_ADDRS_MAX; i++) {
		uint32_t host = g->addrs[i].prefix >= 31 ? 0 : ~0u >> (g->addrs[i].prefix & 31);

		if (host && (addr & host) == host && (addr ^ g->addrs[i].addr) <= host)
			return true;
	}
	return false;
}

int dgram_route(uint32_t addr, uint16_t port)
{
	bool on_link;

	if (addr >= 0xe0000000u || port == 0)
		return DGRAM_KERNEL;
	if (nt_address_is_ours(addr, &on_link))
		return home_of(addr, port);
	return on_link && !is_broadcast(addr) ? DGRAM_ANY : DGRAM_KERNEL;
}

/* Address that a datagram to `addr` is sent from, as the replica's ip_source_for(). */
static uint32_t source_for(uint32_t addr)
{
	const struct neat_registry *g = nt.registry;
	bool on_link;

	if (addr >> 24 == 127)
		return INADDR_LOOPBACK;
	return nt_address_is_ours(addr, &on_link) ? addr : g->addrs[0].addr;
}

/* ---- slots ---- */

static void fill_words(struct neat_slot_app *w, const struct neat_sock *s, uint32_t gen, uint32_t sock)
{
	struct nt_conn home = dgram_home(s);

	neat_slot_app_reset(w);
	w->laddr = s->laddr;
	w->lport = s->lport;
	w->raddr = home.slot ? home.app->raddr : 0;
	w->rport = home.slot ? home.app->rport : 0;
	w->opts = s->opts;
	if (home.slot) {
		a64_store(&w->sub, a64_relaxed(&home.app->sub));
		a32_store(&w->shut, a32_relaxed(&home.app->shut));
	}
	a64_store(&w->accepted, neat_owned(gen, nt_handle(sock)));
}

int dgram_open_slot(uint32_t sock, uint32_t r)
{
	struct neat_sock *s = nt_sock(sock);
	uint32_t gen = 0, slot = nt_claim_slot(r, &gen);

	if (!slot)
		return -ENOBUFS;
	fill_words(&nt.rep[r].app->slots[slot], s, gen, sock);
	s->sub[r].gen = gen;
	neat_fence();	/* who sees the slot sees its generation */
	s->sub[r].slot = slot;
	nt.rep[r].sock_of[slot] = sock;
	nt_watch_attach(sock);
	nt_command(&nt.rep[r], NEAT_CMD_UDP, gen, slot);
	return 0;
}

static bool has_ended(const struct nt_conn *c) { return !(a32_acquire(&nt.live) >> (c->rep - nt.rep) & 1); }

/* A replica that drains ends when the home of its last port has moved: it may have overtaken our look at the port. */
static bool slot_taken_up(void *arg) { return nt_conn_flags(arg) != 0 || has_ended(arg); }

int dgram_slot(uint32_t sock, uint32_t r, struct nt_conn *out)
{
	struct neat_sock *s = nt_sock(sock);
	uint32_t slot = s->sub[r].slot;
	int err = 0;

	if (NT_LIKELY(slot)) {
		*out = nt_conn_at(r, slot, s->sub[r].gen);
		return 0;
	}
	nt_replicas_look();	/* it may be new, and our channel to it not open */
	nt_tid_lock(&s->lock);
	if (!s->sub[r].slot)
		err = a32_acquire(&nt.live) >> r & 1 ? dgram_open_slot(sock, r) : -ESTALE;
	*out = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);
	nt_tid_unlock(&s->lock);
	/* A slot that is closed before it was taken up would look free to the next claimant. */
	if (!err)
		nt_wait_replica(sock, slot_taken_up, out);
	if (err || !has_ended(out))
		return err;
	nt_tid_lock(&s->lock);
	if (dgram_has_slot(s, out))
		dgram_close_slot(s, r);
	nt_tid_unlock(&s->lock);
	return -ESTALE;
}

void dgram_close_slot(struct neat_sock *s, uint32_t r)
{
	uint32_t slot = s->sub[r].slot & (NEAT_SLOTS - 1), bit = slot - NEAT_SLOT_APP_FIRST;

	if (slot < NEAT_SLOT_APP_FIRST)
		return;
	nt_command(&nt.rep[r], NEAT_CMD_CLOSE, s->sub[r].gen, slot);
	s->sub[r].slot = 0;
	/* The replica's status word says when the slot may really be used again. */
	a64_and(&nt.app->slot_bits[r][bit / 64], ~(1ull << bit % 64));
}

static void close_slots(struct neat_sock *s)
{
	for (uint32_t r = 0; r < nt.nreplicas; r++) {
		if (s->sub[r].slot)
			nt_pass_locks(&nt.rep[r].app->slots[s->sub[r].slot & (NEAT_SLOTS - 1)]);
		dgram_close_slot(s, r);
	}
}

void nt_dgram_drop(uint32_t sock)
{
	struct neat_sock *s = nt_sock(sock);
	struct neat_msg_bind m = { .h.type = NEAT_MSG_UNBIND, .sock = sock, .sock_gen = a32_relaxed(&s->gen),
				   .addr = s->laddr, .port = s->lport, .proto = IPPROTO_UDP };

	a32_or(&s->flags, NEAT_SOCKF_LEAVING);
	close_slots(s);
	if (a32_and(&s->flags, ~(uint32_t)NEAT_SOCKF_BOUND) & NEAT_SOCKF_BOUND)
		nt_notify_neatd(&m, sizeof(m), -1);
}

bool dgram_untouched(const struct neat_sock *s)
{
	for (uint32_t r = 0; r < nt.nreplicas; r++) {
		struct nt_conn c = nt_conn_at(r, s->sub[r].slot, 0);

		if (c.slot && (a64_acquire(&c.pub->rx_head) || a64_relaxed(&c.app->tx_tail)))
			return false;
	}
	return true;
}

/* The instance has ended: a peer of ours is the kernel's business, who says whether somebody is there. */
static void pass_peer(uint32_t sock, uint32_t high)
{
	struct nt_conn c = dgram_home(nt_sock(sock));
	struct sockaddr_in in = { .sin_family = AF_INET };
	uint32_t fd = 0;

	if (!c.slot || !(a32_relaxed(&nt_sock(sock)->flags) & NEAT_SOCKF_PEER))
		return;
	in.sin_port = htons(c.app->rport);
	in.sin_addr.s_addr = htonl(c.app->raddr);
	while (fd < high && nt_lookup((int)fd) != sock)
		fd++;
	if (fd < high)	/* its duplicates are the same socket */
		nt_kernel_connect((int)fd, (struct sockaddr *)&in, sizeof(in));
}

int dgram_to_kernel(uint32_t handle)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1), high;
	struct neat_sock *s = nt_sock(sock);

	/* Closed by another thread since the caller looked: the record may be another socket's. */
	if (!nt_fd_pin(handle))
		return NT_KERNEL;
	high = a32_relaxed(&nt.app->procs[nt.proc].fd_high);
	if (a32_acquire(&s->state) == NEAT_SOCK_DGRAM) {
		if (nt_over())
			pass_peer(sock, high);
		nt_dgram_drop(sock);
		a32_release(&s->state, NEAT_SOCK_KERNEL);
	}
	nt_lock(&nt.watch_lock);
	nt_watch_fire(sock);	/* who waits for our part looks again, and goes */
	nt_unlock(&nt.watch_lock);
	for (uint32_t i = 0; i < high; i++) {
		uint64_t word = a64_relaxed(&nt.row[i]);

		if (nt_lookup((int)i) != sock)
			continue;
		nt_epoll_to_kernel((int)i);
		/* Another thread may be at it as well. */
		if (a64_cas(&nt.row[i], word, 0))
			nt_sock_unref(sock);
	}
	nt_fd_unpin();
	return NT_KERNEL;
}

void dgram_use_twin(uint32_t sock)
{
	if (a32_or(&nt_sock(sock)->flags, NEAT_SOCKF_TWIN) & NEAT_SOCKF_TWIN)
		return;
	nt_epoll_twin(sock);
	nt_lock(&nt.watch_lock);
	nt_watch_fire(sock);
	nt_unlock(&nt.watch_lock);
}

/* ---- bind ---- */

/* neatd enters the port that the twin holds, the home replica opens it. Under s->lock. */
static int publish(uint32_t sock, int fd, int near)
{
	struct neat_sock *s = nt_sock(sock);
	struct sockaddr_in in;
	socklen_t len = sizeof(in);
	struct neat_msg_bind m = { .h.type = NEAT_MSG_BIND, .sock = sock, .sock_gen = a32_relaxed(&s->gen),
				   .proto = IPPROTO_UDP, .home = near < 0 ? 0 : (uint32_t)near + 1,
				   .flags = a32_relaxed(&s->flags) & (NEAT_SOCKF_REUSEADDR | NEAT_SOCKF_REUSEPORT) };
	struct neat_msg_result r;
	struct nt_conn c;
	int err;

	if (nt_real.getsockname(fd, (struct sockaddr *)&in, &len))
		return -errno;
	m.addr = ntohl(in.sin_addr.s_addr);
	m.port = ntohs(in.sin_port);
	err = nt_request(&m, sizeof(m), fd, &r, sizeof(r), NEAT_MSG_RESULT);
	if (err || r.status)
		return err ? err : r.status;
	s->laddr = m.addr;
	s->lport = m.port;
	s->replica = r.value & (NEAT_REPLICAS_MAX - 1);
	nt_replicas_look();	/* it may be new */
	err = dgram_open_slot(sock, s->replica);
	a32_or(&s->flags, NEAT_SOCKF_BOUND);
	if (err) {
		nt_dgram_drop(sock);
		return err;
	}
	c = dgram_home(s);
	nt_wait_replica(sock, slot_taken_up, &c);
	return 0;
}

/* Addresses of our uplink are not the kernel's; the loopback interface may be down. */
static int bind_twin(int fd, const struct sockaddr *sa, socklen_t len, bool ours)
{
	int on = 1, off = 0, err;

	if (ours)
		nt_real.setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &on, sizeof(on));
	err = nt_real.bind(fd, sa, len) ? -errno : 0;
	if (ours)
		nt_real.setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &off, sizeof(off));
	return err;
}

int dgram_bound(uint32_t sock, int fd, int near)
{
	struct neat_sock *s = nt_sock(sock);
	const struct sockaddr none = { .sa_family = AF_UNSPEC };
	struct sockaddr_in in = { .sin_family = AF_INET };
	socklen_t len = sizeof(in);
	int err = 0;

	if (NT_LIKELY(a32_acquire(&s->flags) & NEAT_SOCKF_BOUND))
		return 0;
	nt_tid_lock(&s->lock);
	if (!(a32_relaxed(&s->flags) & NEAT_SOCKF_BOUND)) {
		err = -EADDRINUSE;
		/* A port that went with a peer leaves the address behind. */
		nt_real.getsockname(fd, (struct sockaddr *)&in, &len);
		in.sin_port = 0;
		for (int i = 0; i < 16 && err == -EADDRINUSE; i++) {
			err = bind_twin(fd, (struct sockaddr *)&in, sizeof(in), in.sin_addr.s_addr != 0);
			if (!err)
				err = publish(sock, fd, near);
			/* Taken by a program in another network namespace: give it up, draw again. */
			if (err == -EADDRINUSE)
				nt_kernel_connect(fd, &none, sizeof(none));
		}
	}
	nt_tid_unlock(&s->lock);
	return err;
}

int nt_dgram_bind(int fd, const struct sockaddr *sa, socklen_t len)
{
	uint32_t handle = nt_fd_handle(fd), sock = handle & (NEAT_SOCKS_MAX - 1), addr = 0;
	struct neat_sock *s = nt_sock(sock);
	bool on_link = false, ours;
	uint16_t port;
	int err;

	if (dgram_is_kernel(handle))
		return NT_KERNEL;
	if (a32_acquire(&s->flags) & NEAT_SOCKF_BOUND)
		return -EINVAL;
	/* A wrong address, or one of the kernel's other interfaces, is the kernel's business. */
	err = nt_parse_address(sa, len, &addr, &port);
	ours = !err && addr && nt_address_is_ours(addr, &on_link);
	if (err || (addr && !ours))
		return dgram_to_kernel(handle);
	nt_tid_lock(&s->lock);
	err = bind_twin(fd, sa, len, ours);
	if (!err) {
		a32_or(&s->flags, NEAT_SOCKF_EXPLICIT | (port ? NEAT_SOCKF_PORT_LOCK : 0));
		err = publish(sock, fd, DGRAM_ANY);
		if (err)	/* our world has no room for it: in the kernel's it is bound already */
			dgram_to_kernel(handle);
		err = 0;
	}
	nt_tid_unlock(&s->lock);
	/* What the kernel delivers to this address is for us, too: programs outside of neatsock. */
	if (a32_relaxed(&s->flags) & NEAT_SOCKF_BOUND && (addr == 0 || addr >> 24 == 127))
		dgram_use_twin(sock);
	return err;
}

/* ---- connect ---- */

struct peer_wait { struct nt_conn c; uint32_t addr; uint16_t port; };

static bool peer_taken_up(void *arg)
{
	const struct peer_wait *w = arg;
	const volatile struct neat_slot_pub *p = w->c.pub;

	return (p->raddr == w->addr && p->rport == w->port) || nt_conn_flags(&w->c) & NEAT_SLOT_HUP;
}

/* From its return on nobody else is heard: the home replica has the peer. Under s->lock. */
static void set_peer(uint32_t sock, uint32_t addr, uint16_t port)
{
	struct neat_sock *s = nt_sock(sock);
	struct peer_wait w = { dgram_home(s), addr, port };

	for (uint32_t r = 0; r < nt.nreplicas; r++) {
		struct nt_conn c = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);

		if (!c.slot)
			continue;
		c.app->raddr = addr;
		c.app->rport = port;
		a32_add(&c.app->optgen, 1);	/* orders the words before the number */
		nt_kick(&c);
	}
	if (w.c.slot)
		nt_wait_replica(sock, peer_taken_up, &w);
}

int dgram_connect_twin(uint32_t sock, int fd, uint32_t addr, uint16_t port)
{
	struct neat_sock *s = nt_sock(sock);
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(addr) };

	if (nt_kernel_connect(fd, (struct sockaddr *)&in, sizeof(in)))
		return -errno;
	nt_tid_lock(&s->lock);
	set_peer(sock, addr, port);
	a32_and(&s->flags, ~(uint32_t)NEAT_SOCKF_PEER);
	a32_or(&s->flags, NEAT_SOCKF_KERNEL_PEER);
	nt_tid_unlock(&s->lock);
	dgram_use_twin(sock);
	return 0;
}

/* The twin gives its peer up, and keeps the port, which an implicit bind() would lose (udp_disconnect). */
static void disconnect_twin(struct neat_sock *s, int fd)
{
	const struct sockaddr none = { .sa_family = AF_UNSPEC };
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(s->lport), .sin_addr.s_addr = htonl(s->laddr) };

	if (!(a32_and(&s->flags, ~(uint32_t)NEAT_SOCKF_KERNEL_PEER) & NEAT_SOCKF_KERNEL_PEER))
		return;
	nt_kernel_connect(fd, &none, sizeof(none));
	bind_twin(fd, (struct sockaddr *)&in, sizeof(in), s->laddr != 0);
}

static int disconnect(uint32_t sock, int fd)
{
	struct neat_sock *s = nt_sock(sock);
	const struct sockaddr none = { .sa_family = AF_UNSPEC };

	nt_tid_lock(&s->lock);
	if (a32_relaxed(&s->flags) & NEAT_SOCKF_PORT_LOCK) {
		disconnect_twin(s, fd);
		set_peer(sock, 0, 0);
	} else {
		/* A port that nobody asked for goes with the peer (Linux). */
		nt_dgram_drop(sock);
		nt_kernel_connect(fd, &none, sizeof(none));
		a32_and(&s->flags, ~(uint32_t)(NEAT_SOCKF_KERNEL_PEER | NEAT_SOCKF_TWIN));
	}
	a32_and(&s->flags, ~(uint32_t)NEAT_SOCKF_PEER);
	nt_tid_unlock(&s->lock);
	return 0;
}

static int connect_ours(uint32_t sock, int fd, uint32_t addr, uint16_t port, int r)
{
	struct neat_sock *s = nt_sock(sock);
	int err = dgram_bound(sock, fd, r);

	if (err)
		return err;
	nt_tid_lock(&s->lock);
	disconnect_twin(s, fd);
	set_peer(sock, addr, port);
	a32_or(&s->flags, NEAT_SOCKF_PEER);
	nt_tid_unlock(&s->lock);
	return 0;
}

int nt_dgram_connect(int fd, const struct sockaddr *sa, socklen_t len)
{
	uint32_t handle = nt_fd_handle(fd), sock = handle & (NEAT_SOCKS_MAX - 1), addr;
	struct neat_sock *s = nt_sock(sock);
	uint16_t port;
	int r, err;

	if (dgram_is_kernel(handle))
		return NT_KERNEL;
	if (len && nt_bad_pointer(sa))
		return -EFAULT;
	if (len < sizeof(sa->sa_family))
		return -EINVAL;
	if (sa->sa_family == AF_UNSPEC)
		return disconnect(sock, fd);
	err = len < sizeof(struct sockaddr_in) ? -EINVAL : nt_parse_address(sa, len, &addr, &port);
	if (err)
		return err;
	addr = addr ? addr : INADDR_LOOPBACK;
	r = dgram_route(addr, port);
	/* 127/8 reaches nobody outside (RFC 1122 3.2.1.3g). */
	if (r == DGRAM_ANY && s->laddr >> 24 == 127)
		return -EINVAL;
	if (r != DGRAM_KERNEL) {
		err = connect_ours(sock, fd, addr, port, r);
		/* No room in our world: its peers are bound in the kernel's, too. */
		return err && dgram_untouched(s) ? dgram_to_kernel(handle) : err;
	}
	if (dgram_untouched(s) && !(a32_relaxed(&s->flags) & NEAT_SOCKF_EXPLICIT))
		return dgram_to_kernel(handle);
	return dgram_connect_twin(sock, fd, addr, port);
}

/* ---- shutdown and names ---- */

int nt_dgram_shutdown(int fd, int how)
{
	uint32_t handle = nt_fd_handle(fd), sock = handle & (NEAT_SOCKS_MAX - 1);
	struct neat_sock *s = nt_sock(sock);
	bool peer = a32_relaxed(&s->flags) & (NEAT_SOCKF_PEER | NEAT_SOCKF_KERNEL_PEER);
	struct nt_conn c;

	if (dgram_is_kernel(handle) || !(a32_relaxed(&s->flags) & NEAT_SOCKF_BOUND))
		return NT_KERNEL;
	/* Without a peer it is an error, and takes effect nevertheless (inet_shutdown). */
	do {
		c = dgram_home(s);
		if (c.app)
			a32_or(&c.app->shut, (uint32_t)how + 1);
	} while (dgram_home(s).rep != c.rep);	/* it moved just now */
	nt_real.shutdown(fd, how);
	nt_lock(&nt.watch_lock);
	nt_watch_fire(sock);
	nt_unlock(&nt.watch_lock);
	return peer ? 0 : -ENOTCONN;
}

int nt_dgram_getsockname(int fd, struct sockaddr *addr, socklen_t *len)
{
	uint32_t handle = nt_fd_handle(fd);
	const struct neat_sock *s = nt_sock(handle);

	/* The twin has the same name, but for the source address of a peer that only we know. */
	if (dgram_is_kernel(handle) || !(a32_relaxed(&s->flags) & NEAT_SOCKF_PEER))
		return NT_KERNEL;
	return nt_store_address(addr, len, s->laddr ? s->laddr : source_for(dgram_home(s).app->raddr), s->lport);
}

int nt_dgram_getpeername(int fd, struct sockaddr *addr, socklen_t *len)
{
	uint32_t handle = nt_fd_handle(fd);
	const struct neat_sock *s = nt_sock(handle);
	struct nt_conn c;

	if (dgram_is_kernel(handle) || !(a32_relaxed(&s->flags) & NEAT_SOCKF_PEER))
		return NT_KERNEL;
	c = dgram_home(s);
	return nt_store_address(addr, len, c.app->raddr, c.app->rport);
}

/* ---- options ---- */

/*
 * What holds in both worlds: set on the twin, whose kernel checks it, then noted for ours. An option
 * that only the kernel has (multicast, IP_PKTINFO, UDP_SEGMENT, the error queue ...) makes the socket
 * its own.
 */
enum keep { KEEP_SAME, KEEP_WORD, KEEP_FLAG };
struct dgram_option { int level, name; enum keep keep; uint32_t at; };

static const struct dgram_option OPTIONS[] = {
	{ SOL_SOCKET, SO_RCVBUF, KEEP_WORD, NEAT_OPT_RCVBUF },
	{ SOL_SOCKET, SO_SNDBUF, KEEP_WORD, NEAT_OPT_SNDBUF },
	{ SOL_SOCKET, SO_RCVBUFFORCE, KEEP_WORD, NEAT_OPT_RCVBUF },
	{ SOL_SOCKET, SO_SNDBUFFORCE, KEEP_WORD, NEAT_OPT_SNDBUF },
	{ IPPROTO_IP, IP_TTL, KEEP_WORD, NEAT_OPT_TTL },
	{ IPPROTO_IP, IP_TOS, KEEP_WORD, NEAT_OPT_TOS },
	{ SOL_SOCKET, SO_REUSEADDR, KEEP_FLAG, NEAT_SOCKF_REUSEADDR },
	{ SOL_SOCKET, SO_REUSEPORT, KEEP_FLAG, NEAT_SOCKF_REUSEPORT },
	{ SOL_SOCKET, SO_RCVTIMEO, KEEP_SAME, 0 },
	{ SOL_SOCKET, SO_SNDTIMEO, KEEP_SAME, 0 },
	{ SOL_SOCKET, SO_BROADCAST, KEEP_SAME, 0 },	/* broadcasts go by the kernel */
	{ SOL_SOCKET, SO_PRIORITY, KEEP_SAME, 0 },
	{ SOL_SOCKET, SO_LINGER, KEEP_SAME, 0 },	/* no meaning on a datagram socket */
	{ SOL_SOCKET, SO_KEEPALIVE, KEEP_SAME, 0 },
	{ SOL_SOCKET, SO_OOBINLINE, KEEP_SAME, 0 },
	{ IPPROTO_IP, IP_MTU_DISCOVER, KEEP_SAME, 0 },	/* asked for when it matters: dgram_io.c */
	{ IPPROTO_IP, IP_FREEBIND, KEEP_SAME, 0 },
};

static const struct dgram_option *find_option(int level, int name)
{
	for (size_t i = 0; i < sizeof(OPTIONS) / sizeof(OPTIONS[0]); i++)
		if (OPTIONS[i].level == level && OPTIONS[i].name == name)
			return &OPTIONS[i];
	return NULL;
}

static int twin_value(int fd, const struct dgram_option *o)
{
	/* Set by FORCE, it is read by the plain name. */
	int name = o->at == NEAT_OPT_RCVBUF ? SO_RCVBUF : o->at == NEAT_OPT_SNDBUF ? SO_SNDBUF : o->name, v = 0;
	socklen_t len = sizeof(v);

	nt_real.getsockopt(fd, o->level, o->keep == KEEP_WORD && o->level == SOL_SOCKET ? name : o->name, &v, &len);
	return v;
}

static uint32_t timeout_ms(const struct timeval *tv)
{
	int64_t ms = tv->tv_sec * 1000 + (tv->tv_usec + 999) / 1000;

	return tv->tv_sec < 0 ? NT_TIMEO_OVER : ms >= NT_TIMEO_OVER ? 0 : (uint32_t)ms;
}

static void publish_options(uint32_t sock)
{
	struct neat_sock *s = nt_sock(sock);

	for (uint32_t r = 0; r < nt.nreplicas; r++) {
		struct nt_conn c = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);

		if (!c.slot)
			continue;
		c.app->opts = s->opts;
		a32_add(&c.app->optgen, 1);
		nt_kick(&c);
	}
}

static void note_option(uint32_t sock, int fd, const struct dgram_option *o, const void *value)
{
	struct neat_sock *s = nt_sock(sock);
	int v = twin_value(fd, o);

	if (o->name == SO_RCVTIMEO && o->level == SOL_SOCKET) {
		s->rcvtimeo_ms = timeout_ms(value);
	} else if (o->name == SO_SNDTIMEO && o->level == SOL_SOCKET) {
		s->sndtimeo_ms = timeout_ms(value);
	} else if (o->keep == KEEP_WORD) {
		s->opts.w[o->at] = (uint32_t)v;
		publish_options(sock);
	} else if (o->keep == KEEP_FLAG) {
		if (v)
			a32_or(&s->flags, o->at);
		else
			a32_and(&s->flags, ~o->at);
		if (o->at == NEAT_SOCKF_REUSEPORT) {
			s->opts.w[NEAT_OPT_FLAGS] = v ? NEAT_OPTF_REUSEPORT : 0;
			publish_options(sock);
		}
	}
}

int nt_dgram_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	uint32_t handle = nt_fd_handle(fd);
	const struct dgram_option *o = find_option(level, name);

	if (dgram_is_kernel(handle))
		return NT_KERNEL;
	if (!o && (level == SOL_SOCKET || level == IPPROTO_IP || level == IPPROTO_UDP)) {
		if (dgram_untouched(nt_sock(handle)))
			return dgram_to_kernel(handle);
		return -ENOPROTOOPT;
	}
	if (nt_real.setsockopt(fd, level, name, value, len))
		return -errno;
	if (o)
		note_option(handle & (NEAT_SOCKS_MAX - 1), fd, o, value);
	return 0;
}

int nt_dgram_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	uint32_t handle = nt_fd_handle(fd);
	int err;

	if (dgram_is_kernel(handle) || level != SOL_SOCKET || name != SO_ERROR || nt_bad_pointer(value) ||
	    nt_bad_pointer(len) || *len < sizeof(err))
		return NT_KERNEL;
	err = -nt_dgram_error(nt_sock(handle));
	if (!err)
		return NT_KERNEL;	/* the twin may have one */
	memcpy(value, &err, sizeof(err));
	*len = sizeof(err);
	return 0;
}
