/*
 * dgram_io.c - datagrams between the program's buffers and the rings of slots (struct neat_dgram),
 * and by the kernel twin where the other end is the kernel's: send chooses for each destination,
 * recv and poll merge (contract L9). Semantics: recv(2), send(2), udp(7).
 *
 * FIFO holds for each sender and destination: all datagrams between them take the same way.
 */
#define _GNU_SOURCE
#include "cursor.h"
#include "dgram.h"
#include <netinet/in.h>
#include <sys/syscall.h>

enum { TWIN_EVERY = 32 };	/* with ours ready the twin is looked at now and then */

/* ---- state ---- */

int nt_dgram_error(const struct neat_sock *s)
{
	int err = 0;

	for (uint32_t r = 0; r < nt.nreplicas && !err; r++) {
		struct nt_conn c = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);

		if (c.slot)
			err = nt_take_error(&c);
	}
	return err;
}

static bool has_error(const struct neat_sock *s)
{
	for (uint32_t r = 0; r < nt.nreplicas; r++) {
		struct nt_conn c = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);

		if (c.slot && nt_has_error(&c, nt_conn_flags(&c)))
			return true;
	}
	return false;
}

static uint64_t tx_used(const struct nt_conn *c)
{
	return a64_relaxed(&c->app->tx_tail) - a64_acquire(&c->pub->tx_una);
}

static uint64_t tx_limit(const struct nt_conn *c)
{
	uint32_t limit = a32_relaxed(&c->pub->tx_limit);

	return limit ? limit : NEAT_DGRAM_BUF;	/* the replica has not taken the slot up yet */
}

/* sock_writeable(): less than half of the send buffer is in use. */
static bool writable(const struct neat_sock *s)
{
	for (uint32_t r = 0; r < nt.nreplicas; r++) {
		struct nt_conn c = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);

		if (c.slot && tx_used(&c) >= tx_limit(&c) / 2)
			return false;
	}
	return true;
}

/*
 * A slot that has a datagram, the home's last: what lies in another one came before the home moved here, or was on its
 * way then.
 */
static bool readable_slot(const struct neat_sock *s, struct nt_conn *c)
{
	struct nt_conn home = dgram_home(s);

	for (uint32_t r = 0; r < nt.nreplicas; r++) {
		*c = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);
		if (c->slot && c->rep != home.rep && nt_readable(c))
			return true;
	}
	*c = home;
	return c->slot && nt_readable(c);
}

/* datagram_poll() and udp_poll() */
unsigned nt_dgram_ready(const struct neat_sock *s)
{
	struct nt_conn c = dgram_home(s);
	uint32_t shut = c.slot ? a32_relaxed(&c.app->shut) : 0;
	unsigned bits = writable(s) ? EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND : 0;	/* datagram_poll() */

	if (has_error(s))
		bits |= EPOLLERR;
	if (shut & 1)
		bits |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	if (shut == 3)
		bits |= EPOLLHUP;
	if (readable_slot(s, &c))
		bits |= EPOLLIN | EPOLLRDNORM;
	return bits;
}

/*
 * Another thread may be closing the socket, or handing it to the kernel (nt_live()), -EBADF; or it has closed this
 * slot, because the replica drains, -ESTALE: look again. Not locked then.
 */
static int lock_slot(const struct nt_conn *c, neat_a32 *l)
{
	const struct neat_sock *s = nt_sock(c->handle);
	bool ours;

	nt_tid_lock(l);
	ours = nt_live(c->handle) && !(a32_relaxed(&s->flags) & NEAT_SOCKF_LEAVING);
	if (NT_LIKELY(ours && dgram_has_slot(s, c)))
		return 0;
	a32_cas(l, nt_tid(), 0);	/* the slot's next use has reset it, perhaps */
	return ours ? -ESTALE : -EBADF;
}

/* ---- receive ---- */

/* The datagram at the front. False: none; what is no datagram (another process of the program wrote there) goes. */
static bool front(const struct nt_conn *c, uint64_t *at, struct neat_dgram *h)
{
	uint64_t n = nt_readable(c), word;
	struct neat_span span;

	*at = a64_relaxed(&c->app->rx_tail);
	if (n < sizeof(*h))
		return false;
	/* After rx_head (acquire): this ring word holds every byte below that head. */
	word = a64_acquire(&c->pub->rx_ring);
	span = neat_ring_span(c->rep->app, c->slot, NEAT_RX, word, *at, sizeof(*h));
	neat_span_read(&span, h);
	if (h->len <= n - sizeof(*h))
		return true;
	a64_release(&c->app->rx_tail, *at + n);
	return false;
}

/* The datagram is gone even if its source cannot be told, as in Linux. */
static int report_source(struct msghdr *m, const struct neat_dgram *h)
{
	m->msg_controllen = 0;
	return m->msg_name ? nt_store_address(m->msg_name, &m->msg_namelen, h->addr, h->port) : 0;
}

/* -EAGAIN: none there; -ESTALE: look again. */
static ssize_t take(const struct nt_conn *c, struct msghdr *m, int flags)
{
	struct cursor to;
	struct neat_dgram h;
	ssize_t n = m->msg_iovlen > 1024 ? -EMSGSIZE : cursor_init(&to, m->msg_iov, (int)m->msg_iovlen);
	uint64_t at;
	int err;

	if (n)
		return n;
	err = lock_slot(c, &c->app->rx_lock);
	if (err)
		return err == -ESTALE ? err : -EAGAIN;
	n = -EAGAIN;
	if (front(c, &at, &h)) {
		uint32_t len = h.len < to.left ? h.len : (uint32_t)to.left;
		struct neat_span span = neat_ring_span(c->rep->app, c->slot, NEAT_RX, a64_acquire(&c->pub->rx_ring),
						       at + sizeof(h), len);

		cursor_copy(&to, span.p[0], span.len[0], false);
		cursor_copy(&to, span.p[1], span.len[1], false);
		if (!(flags & MSG_PEEK))
			a64_release(&c->app->rx_tail, at + sizeof(h) + h.len);	/* after the copy */
		n = report_source(m, &h);
		/* ____sys_recvmsg() */
		m->msg_flags = (flags & MSG_CMSG_CLOEXEC) | (len < h.len ? MSG_TRUNC : 0);
		if (!n)
			n = flags & MSG_TRUNC ? (ssize_t)h.len : (ssize_t)len;
	}
	nt_tid_unlock(&c->app->rx_lock);
	return n;
}

/* The header is the caller's again when there was nothing. */
static ssize_t take_twin(int fd, struct msghdr *m, int flags)
{
	struct msghdr mine = *m;
	ssize_t n;

	nt_cancellation_point();
	n = nt_syscall(SYS_recvmsg, fd, &mine, flags | MSG_DONTWAIT);
	if (n < 0)
		return -errno;
	*m = mine;
	return n;
}

static bool rx_ready(void *arg)
{
	const uint32_t *handle = arg;
	const struct neat_sock *s = nt_sock(*handle);

	return !nt_live(*handle) || a32_acquire(&s->state) != NEAT_SOCK_DGRAM || nt_dgram_twin(s) ||
	       nt_dgram_ready(s) & (EPOLLIN | EPOLLERR | EPOLLHUP);
}

static int rx_wait(uint32_t handle, int fd, int64_t deadline)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int64_t left = -1;
	int rc;

	if (!nt_dgram_twin(nt_sock(sock)))
		return nt_wait_sock(sock, rx_ready, &handle, deadline);
	if (deadline != INT64_MAX) {
		left = deadline - nt_now_ns();
		left = left < 0 ? 0 : left;
	}
	rc = nt_poll(&p, 1, left, NULL);
	/* signal(7): recv(2) without a timeout goes on, poll(2) never. */
	if (rc == -EINTR && deadline == INT64_MAX && nt_poll_restarts())
		return 0;
	/* NT_KERNEL: it became the kernel's meanwhile, the caller sees that. */
	return rc > 0 || rc == NT_KERNEL ? 0 : rc == 0 ? -ETIMEDOUT : rc;
}

static ssize_t take_either(uint32_t handle, int fd, struct msghdr *m, int flags)
{
	const struct neat_sock *s = nt_sock(handle);
	static __thread unsigned turn __attribute__((tls_model("initial-exec")));
	bool twin = nt_dgram_twin(s);
	bool first = twin && ++turn % TWIN_EVERY == 0;
	struct nt_conn c;
	ssize_t n = -EAGAIN;

	if (first)
		n = take_twin(fd, m, flags);
	if (n == -EAGAIN)
		do {
			bool some = readable_slot(s, &c);

			c.handle = handle;
			n = some ? take(&c, m, flags) : -EAGAIN;
		} while (NT_UNLIKELY(n == -ESTALE));
	if (n == -EAGAIN && twin && !first)
		n = take_twin(fd, m, flags);
	return n;
}

ssize_t nt_dgram_recvmsg(int fd, struct msghdr *m, int flags)
{
	uint32_t handle = nt_fd_handle(fd);
	struct neat_sock *s = nt_sock(handle);
	int64_t deadline = INT64_MAX;
	ssize_t n;

	for (;;) {
		struct nt_conn c;

		if (handle && !nt_live(handle) && !nt_fd_handle(fd))
			return NT_KERNEL;	/* closed, or handed over, by another thread: the kernel knows */
		if (handle && !nt_live(handle))
			return -EBADF;
		if (dgram_is_kernel(handle))
			return NT_KERNEL;
		nt_replicas_look();
		/* IP_RECVERR makes a socket the kernel's: ours have no such queue. */
		n = flags & MSG_ERRQUEUE ? -EAGAIN : nt_dgram_error(s);
		if (n)
			return n;
		n = take_either(handle, fd, m, flags);
		if (n != -EAGAIN)
			return n;
		if (nt_nonblocking(s, flags))
			return -EAGAIN;
		c = dgram_home(s);
		if (c.slot && a32_relaxed(&c.app->shut) & 1)
			return 0;
		if (s->rcvtimeo_ms && deadline == INT64_MAX)
			deadline = nt_deadline_ms(s->rcvtimeo_ms);
		n = rx_wait(handle, fd, deadline);
		if (n == -ENETDOWN)
			continue;	/* the instance has ended: the twin goes on alone */
		if (n)
			return n == -ETIMEDOUT ? -EAGAIN : n;
	}
}

ssize_t nt_recvfrom(int fd, void *buf, size_t len, int flags, struct sockaddr *addr, socklen_t *addr_len)
{
	struct iovec v = { buf, len };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_name = addr };
	uint32_t sock = nt_lookup(fd);
	bool untold = addr && nt_bad_pointer(addr_len);
	ssize_t n;

	if (!sock)
		return NT_KERNEL;
	if (addr && !untold)
		m.msg_namelen = *addr_len;
	if (nt_is_dgram(nt_sock(sock))) {
		if (untold)
			m.msg_name = NULL;
		n = nt_dgram_recvmsg(fd, &m, flags);
		if (n >= 0 && addr && !untold)
			*addr_len = m.msg_namelen;
	} else {
		/* tcp(7): a stream socket reports no source address. */
		n = nt_recv(fd, buf, len, flags);
		if (n >= 0 && addr && !untold && (int)m.msg_namelen < 0)
			n = -EINVAL;
		if (n >= 0 && addr && !untold)
			*addr_len = 0;
	}
	return n >= 0 && untold ? -EFAULT : n;
}

/* ---- send ---- */

struct dest { uint32_t addr; uint16_t port; bool given; };

static int destination(const struct neat_sock *s, const struct msghdr *m, struct dest *d)
{
	struct sockaddr_in in;
	struct nt_conn c = dgram_home(s);

	*d = (struct dest){ .given = m->msg_name != NULL };
	if (!d->given) {
		if (!(a32_relaxed(&s->flags) & (NEAT_SOCKF_PEER | NEAT_SOCKF_KERNEL_PEER)) || !c.slot)
			return -EDESTADDRREQ;
		d->addr = c.app->raddr;
		d->port = c.app->rport;
		return 0;
	}
	if (m->msg_namelen < sizeof(in))
		return -EINVAL;
	memcpy(&in, m->msg_name, sizeof(in));
	if (in.sin_family != AF_INET && in.sin_family != AF_UNSPEC)
		return -EAFNOSUPPORT;
	if (!in.sin_port)
		return -EINVAL;
	d->addr = in.sin_addr.s_addr ? ntohl(in.sin_addr.s_addr) : INADDR_LOOPBACK;
	d->port = ntohs(in.sin_port);
	return 0;
}

static ssize_t send_twin(uint32_t handle, int fd, const struct msghdr *m, int flags, const struct dest *d)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	struct neat_sock *s = nt_sock(sock);
	ssize_t n;

	/* Nothing of it is in our world: the kernel's for good. */
	if (!(a32_relaxed(&s->flags) & NEAT_SOCKF_EXPLICIT) && dgram_untouched(s) &&
	    !(a32_relaxed(&s->flags) & NEAT_SOCKF_PEER))
		return dgram_to_kernel(handle);
	n = nt_dgram_error(s);		/* of what went by our world before */
	if (n)
		return n;
	nt_cancellation_point();
	/* A peer that was ours has gone; the kernel says what is there instead. */
	if (!d->given && !(a32_relaxed(&s->flags) & NEAT_SOCKF_KERNEL_PEER)) {
		n = dgram_connect_twin(sock, fd, d->addr, d->port);
		if (n)
			return n;
	}
	dgram_use_twin(sock);
	n = nt_syscall(SYS_sendmsg, fd, m, flags);
	return n < 0 ? -errno : n;
}

/* Memory for n bytes behind tx_tail. Under tx_lock. */
static struct neat_span tx_reserve(const struct nt_conn *c, uint64_t tail, uint32_t n)
{
	uint64_t was = a64_relaxed(&c->app->tx_ring), una = a64_acquire(&c->pub->tx_una);
	uint64_t word = neat_ring_reserve(c->rep->app, c->slot, NEAT_TX, was, una, tail, n);

	if (word != was)
		a64_release(&c->app->tx_ring, word);	/* moved bytes before the word that says where */
	return neat_ring_span(c->rep->app, c->slot, NEAT_TX, word, tail, n);
}

static bool tx_room(const struct nt_conn *c, uint32_t need)
{
	uint64_t used = tx_used(c);

	return used < tx_limit(c) && used + need <= neat_ring_max(NEAT_TX);
}

/* -EAGAIN: no room; -ESTALE: the slot was closed, its replica drains. */
static ssize_t put(const struct nt_conn *c, struct cursor *from, const struct dest *d)
{
	const struct neat_dgram h = { .len = (uint32_t)from->left, .addr = d->addr, .port = d->port };
	uint32_t need = (uint32_t)sizeof(h) + h.len;
	struct neat_span span;
	uint64_t tail;
	int err;

	err = lock_slot(c, &c->app->tx_lock);
	if (err)
		return err == -ESTALE || !nt_live(c->handle) ? err : NT_KERNEL;
	if (!tx_room(c, need)) {
		nt_tid_unlock(&c->app->tx_lock);
		nt_kick(c);	/* as in tx_wait() of io.c */
		return -EAGAIN;
	}
	tail = a64_relaxed(&c->app->tx_tail);
	span = tx_reserve(c, tail, need);
	/* The header first, then the payload behind it, wherever the ring wraps. */
	if (span.len[0] >= sizeof(h)) {
		memcpy(span.p[0], &h, sizeof(h));
		cursor_copy(from, span.p[0] + sizeof(h), span.len[0] - sizeof(h), true);
		cursor_copy(from, span.p[1], span.len[1], true);
	} else {
		uint32_t rest = (uint32_t)sizeof(h) - span.len[0];

		memcpy(span.p[0], &h, span.len[0]);
		memcpy(span.p[1], (const uint8_t *)&h + span.len[0], rest);
		cursor_copy(from, span.p[1] + rest, span.len[1] - rest, true);
	}
	a64_release(&c->app->tx_tail, tail + need);
	nt_tid_unlock(&c->app->tx_lock);
	nt_kick(c);
	return h.len;
}

struct tx_wait { struct nt_conn c; const struct neat_sock *s; uint32_t need; };

static bool tx_ready(void *arg)
{
	const struct tx_wait *w = arg;

	return tx_room(&w->c, w->need) || !nt_live(w->c.handle) || nt_conn_flags(&w->c) & NEAT_SLOT_HUP ||
	       has_error(w->s) || !dgram_has_slot(w->s, &w->c);
}

static ssize_t send_ours(uint32_t sock, const struct nt_conn *c, struct cursor *from, const struct dest *d, int flags)
{
	struct neat_sock *s = nt_sock(sock);
	struct tx_wait w = { *c, s, (uint32_t)(sizeof(struct neat_dgram) + from->left) };
	int64_t deadline = s->sndtimeo_ms ? nt_deadline_ms(s->sndtimeo_ms) : INT64_MAX;
	ssize_t n;

	for (;;) {
		n = nt_dgram_error(s);
		if (!n && nt_conn_flags(c) & NEAT_SLOT_HUP)	/* refused or ended by the replica, if not by us */
			n = dgram_has_slot(s, c) ? -ENETDOWN : -ESTALE;
		if (!n)
			n = put(c, from, d);
		if (n != -EAGAIN || nt_nonblocking(s, flags))
			return n;
		n = nt_wait_sock(sock, tx_ready, &w, deadline);
		if (n)
			return n == -ETIMEDOUT ? -EAGAIN : n;
	}
}

/* Ancillary data, MSG_MORE: the kernel can, we cannot. */
static ssize_t special(uint32_t handle, int flags)
{
	if (dgram_untouched(nt_sock(handle)))
		return dgram_to_kernel(handle);
	return flags & MSG_MORE ? -EOPNOTSUPP : -EINVAL;
}

static int checks(const struct neat_sock *s, const struct cursor *from, int flags)
{
	struct nt_conn c = dgram_home(s);

	if (from->left > 0xffff)
		return -EMSGSIZE;
	if (flags & MSG_OOB)
		return -EOPNOTSUPP;
	return c.slot && a32_relaxed(&c.app->shut) & 2 ? -EPIPE : 0;
}

/* ip(7) IP_MTU_DISCOVER, which the twin keeps: with DO, PROBE and INTERFACE only whole packets leave. */
static bool may_fragment(int fd)
{
	int v = IP_PMTUDISC_WANT;
	socklen_t len = sizeof(v);

	nt_real.getsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &v, &len);
	return v < IP_PMTUDISC_DO || v == IP_PMTUDISC_OMIT;
}

/* -ESTALE: the home of that port, or ours, has moved meanwhile. */
static ssize_t send_once(uint32_t handle, int fd, const struct msghdr *m, struct cursor *from, const struct dest *d,
			 int flags)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	struct neat_sock *s = nt_sock(sock);
	int r = dgram_route(d->addr, d->port), err;
	struct nt_conn c;

	if (r == DGRAM_KERNEL)
		return send_twin(handle, fd, m, flags, d);
	if (from->left > NEAT_DGRAM_MAX)
		return -EMSGSIZE;
	err = dgram_bound(sock, fd, r);
	if (err)
		return dgram_untouched(s) ? dgram_to_kernel(handle) : err;
	if (r == DGRAM_ANY && s->laddr >> 24 == 127)
		return -EINVAL;
	err = dgram_slot(sock, r == DGRAM_ANY ? s->replica : (uint32_t)r, &c);
	if (err)
		return err;
	c.handle = handle;
	if (r == DGRAM_ANY && c.pub->pmtu && from->left + 28 > c.pub->pmtu && !may_fragment(fd))
		return -EMSGSIZE;
	return send_ours(sock, &c, from, d, flags);
}

ssize_t nt_dgram_sendmsg(int fd, const struct msghdr *m, int flags)
{
	uint32_t handle = nt_fd_handle(fd), sock = handle & (NEAT_SOCKS_MAX - 1);
	struct neat_sock *s = nt_sock(sock);
	struct cursor from;
	struct dest d;
	ssize_t n;
	int err;

	if (dgram_is_kernel(handle))
		return NT_KERNEL;
	err = m->msg_iovlen > 1024 ? -EMSGSIZE : cursor_init(&from, m->msg_iov, (int)m->msg_iovlen);
	if (!err)
		err = checks(s, &from, flags);
	if (!err)
		err = destination(s, m, &d);
	if (err)
		return err;
	if (NT_UNLIKELY(m->msg_controllen || flags & (MSG_MORE | MSG_ZEROCOPY)))
		return special(handle, flags);
	nt_replicas_look();
	for (;;) {
		n = send_once(handle, fd, m, &from, &d, flags);
		if (NT_LIKELY(n != -ESTALE))
			return n;
		if (!nt_live(handle))
			return -EBADF;
		if (dgram_is_kernel(handle))
			return NT_KERNEL;
	}
}

ssize_t nt_sendto(int fd, const void *buf, size_t len, int flags, const struct sockaddr *addr, socklen_t addr_len)
{
	struct iovec v = { (void *)(uintptr_t)buf, len };
	const struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_name = (void *)(uintptr_t)addr,
				  .msg_namelen = addr ? addr_len : 0 };
	uint32_t sock = nt_lookup(fd);

	/* A stream socket has no use for it; the kernel looks at it nevertheless. */
	if (NT_UNLIKELY(sock && addr && addr_len > sizeof(struct sockaddr_storage)))
		return -EINVAL;
	if (NT_UNLIKELY(sock && addr && addr_len && nt_bad_pointer(addr)))
		return -EFAULT;
	if (sock && nt_is_dgram(nt_sock(sock)))
		return nt_dgram_sendmsg(fd, &m, flags);
	return nt_send(fd, buf, len, flags);
}

int nt_dgram_queue(const struct neat_sock *s, bool in)
{
	struct nt_conn c;
	struct neat_dgram h;
	uint64_t at, used = 0;

	if (in)
		return readable_slot(s, &c) && front(&c, &at, &h) ? (int)h.len : NT_KERNEL;
	for (uint32_t r = 0; r < nt.nreplicas; r++) {
		c = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);
		used += c.slot ? tx_used(&c) : 0;
	}
	return used ? (int)used : NT_KERNEL;
}
