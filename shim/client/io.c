/*
 * io.c - bytes between the program's buffers and the payload rings (bytering.h). The fast path makes
 * no system call: look up, copy, publish, exchange cmd_pend.
 *
 * Semantics: recv(2), send(2), tcp(7). Data that arrived before a reset is delivered before its
 * error, as Linux does. Whoever holds rx_lock or tx_lock does not sleep.
 */
#define _GNU_SOURCE
#include "cursor.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	RX_STEP = 16384,	/* the replica hears of consumed bytes at every multiple of this */
	FILE_STEP = 262144,	/* sendfile(): bytes read into the ring at a time */
};

struct neat_copier nt_copier;

/* No results, and outside the errno range. The socket is a datagram one: dgram.c takes the call; the ring is full. */
enum { NO_STREAM = -4097, NO_ROOM = -4098 };

static bool no_stream(const struct neat_sock *s)
{
	uint32_t state = a32_acquire(&s->state);

	return state == NEAT_SOCK_DGRAM || state == NEAT_SOCK_KERNEL;
}

/* ---- receive ---- */

static uint64_t readable(const struct nt_conn *c)
{
	uint64_t n = a64_acquire(&c->pub->rx_head) - a64_relaxed(&c->app->rx_tail);

	return n <= neat_ring_max(NEAT_RX) ? n : 0;
}

/* A window that is nearly closed must hear of every step; an eighth of the smallest buffer is enough. */
static uint64_t rx_step(const struct neat_sock *s)
{
	uint32_t rcvbuf = s->opts.w[NEAT_OPT_RCVBUF];

	return !rcvbuf || rcvbuf / 16 >= RX_STEP ? RX_STEP : rcvbuf < 2304 ? 144 : rcvbuf / 16;
}

static ssize_t take(const struct neat_sock *s, const struct nt_conn *c, struct cursor *to, size_t skip, int flags)
{
	uint64_t tail, n, word, step;
	struct neat_span span;

	if (NT_UNLIKELY(!nt_conn_lock(c, &c->app->rx_lock)))
		return nt_lost(c->handle);
	tail = a64_relaxed(&c->app->rx_tail);
	n = readable(c);
	n = n > skip ? n - skip : 0;
	if (n > to->left)
		n = to->left;
	if (n) {
		/* After rx_head (acquire): this ring word holds every byte below that head. */
		word = a64_acquire(&c->pub->rx_ring);
		span = neat_ring_span(c->rep->app, c->slot, NEAT_RX, word, tail + skip, (uint32_t)n);
		if (flags & MSG_TRUNC) {
			to->left -= n;
		} else {
			cursor_copy(to, span.p[0], span.len[0], false);
			cursor_copy(to, span.p[1], span.len[1], false);
		}
	}
	if (n && !(flags & MSG_PEEK))
		a64_release(&c->app->rx_tail, tail + n);	/* the copy is done before the space is free */
	nt_tid_unlock(&c->app->rx_lock);
	step = rx_step(s);
	if (n && !(flags & MSG_PEEK) && tail / step != (tail + n) / step)
		nt_kick(c);
	return (ssize_t)n;
}

struct rx_wait { struct nt_conn c; uint64_t want; };

static bool rx_over(const struct nt_conn *c)
{
	uint32_t flags = nt_conn_flags(c);

	return flags & (NEAT_SLOT_RX_EOF | NEAT_SLOT_HUP) || a32_relaxed(&c->app->shut) & 1 || nt_has_error(c, flags);
}

static bool rx_ready(void *arg)
{
	struct rx_wait *w = arg;

	/* Order: "over" first, then the bytes: the last ones come before the end. */
	return rx_over(&w->c) || readable(&w->c) >= w->want || !nt_live(w->c.handle);
}

static int rx_end(const struct nt_conn *c)
{
	int err;

	/* A reset behind the peer's FIN is for who sends: tcp_fin() in Linux has set SOCK_DONE. */
	if (neat_status_errno(a64_acquire(&c->pub->status)) == EPIPE)
		return 0;
	err = nt_take_error(c);
	if (err)
		return err;
	return nt_conn_flags(c) & NEAT_SLOT_CONNECTING ? -ENOTCONN : 0;
}

/* Urgent data and the queue of errors: a stream of ours has none. */
static int no_data(int flags) { return flags & MSG_ERRQUEUE ? -EAGAIN : -EINVAL; }

static ssize_t unconnected(uint32_t handle, int flags)
{
	const struct neat_sock *s = nt_sock(handle);

	if (flags & (MSG_OOB | MSG_ERRQUEUE))
		return no_data(flags);
	if (nt_live(handle) && a32_relaxed(&s->state) == NEAT_SOCK_NEW && a32_relaxed(&s->flags) & NEAT_SOCKF_SHUT)
		return 0;
	return nt_lost(handle);
}

static ssize_t receive(uint32_t handle, struct cursor *to, int flags)
{
	struct neat_sock *s = nt_sock(handle);
	size_t all = to->left, got = 0, low = s->rcvlowat ? s->rcvlowat : 1, target;
	int64_t deadline = INT64_MAX;
	struct rx_wait w;
	ssize_t n;
	int err;

	if (a32_acquire(&s->state) != NEAT_SOCK_CONNECT)
		return no_stream(s) ? NO_STREAM : unconnected(handle, flags);
	if (flags & (MSG_OOB | MSG_ERRQUEUE))
		return no_data(flags);
	w.c = nt_conn_of(handle);
	if (NT_UNLIKELY(flags & MSG_PEEK))
		low = nt_rcvlowat(s);	/* the bytes stay where they are */
	target = flags & MSG_WAITALL ? all : low < all ? low : all;
	for (;;) {
		bool over = rx_over(&w.c);

		n = take(s, &w.c, to, flags & MSG_PEEK ? got : 0, flags);
		if (n < 0)
			return got ? (ssize_t)got : n;
		got += (size_t)n;
		if (got >= target && (got || readable(&w.c)))	/* of no length: waits for data, and leaves it */
			return (ssize_t)got;
		if (over || rx_over(&w.c)) {
			if (!over)
				continue;	/* it ended after our look: bytes may have come before */
			return got ? (ssize_t)got : rx_end(&w.c);
		}
		if (nt_nonblocking(s, flags)) {
			nt_over_look();
			return got ? (ssize_t)got : -EAGAIN;
		}
		if (s->rcvtimeo_ms && deadline == INT64_MAX)
			deadline = nt_deadline_ms(s->rcvtimeo_ms);
		w.want = flags & MSG_PEEK ? got + 1 : 1;
		err = nt_wait_sock(handle & (NEAT_SOCKS_MAX - 1), rx_ready, &w, deadline);
		if (err && !rx_ready(&w)) {
			if (err == -ETIMEDOUT)
				err = all ? -EAGAIN : 0;	/* tcp_recvmsg_locked() looks once, then has what it wants */
			return got ? (ssize_t)got : err;
		}
	}
}

ssize_t nt_recv(int fd, void *buf, size_t len, int flags)
{
	struct iovec v = { buf, len };
	struct cursor c = { &v, 1, 0, len };
	uint32_t handle = nt_fd_handle(fd);
	ssize_t n;

	if (!handle)
		return NT_KERNEL;
	if (len && nt_bad_pointer(buf))
		return -EFAULT;
	n = receive(handle, &c, flags);
	if (NT_UNLIKELY(n == NO_STREAM)) {
		struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

		return nt_dgram_recvmsg(fd, &m, flags);
	}
	return n;
}

/* read(2) of nothing does not get as far as the socket, which recv(2) does. */
ssize_t nt_read(int fd, void *buf, size_t len)
{
	if (NT_LIKELY(len))
		return nt_recv(fd, buf, len, 0);
	return nt_lookup(fd) ? 0 : NT_KERNEL;
}

ssize_t nt_readv(int fd, const struct iovec *iov, int n)
{
	uint32_t handle = nt_fd_handle(fd);
	struct cursor c;
	ssize_t got;
	int err;

	if (!handle)
		return NT_KERNEL;
	err = cursor_init(&c, iov, n);
	if (err || !c.left)
		return err;
	got = receive(handle, &c, 0);
	if (NT_UNLIKELY(got == NO_STREAM)) {
		struct msghdr m = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n };

		return nt_dgram_recvmsg(fd, &m, 0);
	}
	return got;
}

ssize_t nt_recvmsg(int fd, struct msghdr *msg, int flags)
{
	uint32_t handle = nt_fd_handle(fd);
	struct cursor c;
	ssize_t got;

	if (!handle)
		return NT_KERNEL;
	if (nt_bad_pointer(msg))
		return -EFAULT;
	got = msg->msg_iovlen > 1024 ? -EMSGSIZE : cursor_init(&c, msg->msg_iov, (int)msg->msg_iovlen);
	if (!got)
		got = receive(handle, &c, flags);
	if (NT_UNLIKELY(got == NO_STREAM))
		return nt_dgram_recvmsg(fd, msg, flags);
	if (got >= 0) {
		if (msg->msg_name)
			msg->msg_namelen = 0;	/* tcp(7): recvmsg reports no source */
		msg->msg_controllen = 0;
		msg->msg_flags = flags & MSG_CMSG_CLOEXEC;	/* ____sys_recvmsg() */
	}
	return got;
}

/* ---- send ---- */

/* Bytes the send buffer takes; 0 while it is full. */
static uint64_t room(const struct nt_conn *c)
{
	uint64_t used = a64_relaxed(&c->app->tx_tail) - a64_acquire(&c->pub->tx_una);
	uint64_t limit = a32_relaxed(&c->pub->tx_limit);

	if (limit > neat_ring_max(NEAT_TX))
		limit = neat_ring_max(NEAT_TX);
	return used < limit ? limit - used : 0;
}

/* tcp_poll(): writable when a third of the buffer is free. */
static bool writable(const struct nt_conn *c)
{
	return room(c) > a32_relaxed(&c->pub->tx_limit) / 3;
}

/*
 * Beyond the window a mark would never be reached while nothing is read. Its edge moves in steps of up to half the
 * buffer (RFC 9293 3.8.6.2.2), told in units of the scale. Linux gives the buffer the room instead (tcp_set_rcvlowat).
 */
size_t nt_rcvlowat(const struct neat_sock *s)
{
	const uint32_t unit = 1u << (NEAT_RX_LOG2_MAX - 15);
	uint32_t buffer = s->opts.w[NEAT_OPT_RCVBUF] / 2, most;

	if (NT_LIKELY(s->rcvlowat <= 1))
		return 1;
	buffer = !buffer || buffer > UINT16_MAX ? UINT16_MAX : buffer < 2048 ? 2048 : buffer;
	most = buffer / 2 - unit;
	return s->rcvlowat < most ? s->rcvlowat : most;
}

bool nt_writable(const struct nt_conn *c) { return writable(c); }
uint64_t nt_readable(const struct nt_conn *c) { return readable(c); }

static bool tx_ended(const struct nt_conn *c)
{
	return nt_conn_flags(c) & (NEAT_SLOT_TX_SHUT | NEAT_SLOT_HUP | NEAT_SLOT_DEAD) || a32_relaxed(&c->app->shut) & 2;
}

static int tx_state(const struct nt_conn *c)
{
	int err = nt_take_error(c);

	if (err)
		return err;
	if (tx_ended(c))
		return -EPIPE;
	return nt_conn_flags(c) & NEAT_SLOT_CONNECTED ? 0 : -EAGAIN;
}

static bool tx_ready(void *arg)
{
	const struct nt_conn *c = arg;
	uint32_t flags = nt_conn_flags(c);

	if (flags & (NEAT_SLOT_TX_SHUT | NEAT_SLOT_HUP) || nt_has_error(c, flags) || a32_relaxed(&c->app->shut) & 2)
		return true;
	return (flags & NEAT_SLOT_CONNECTED && writable(c)) || !nt_live(c->handle);
}

/* MSG_MORE holds for one call: the replica learns of it as an option of the connection. */
static void note_more(const struct nt_conn *c, int flags)
{
	uint32_t *w = &c->app->opts.w[NEAT_OPT_FLAGS], more = flags & MSG_MORE ? NEAT_OPTF_MORE : 0, event = 0;

	if (NT_LIKELY((*w & NEAT_OPTF_MORE) == more))
		return;
	/* What was sent before without it is not to wait, should the replica look only now: then all goes. */
	if (more && a64_relaxed(&c->app->tx_tail) != a64_acquire(&c->pub->tx_una))
		event = NEAT_OPTF_PUSHES;
	__atomic_store_n(w, nt_event_counted((*w & ~(uint32_t)NEAT_OPTF_MORE) | more, event), __ATOMIC_RELEASE);
	a32_add(&c->app->optgen, 1);
}

/* Memory for n bytes behind tx_tail, n <= room. Under tx_lock. */
static struct neat_span tx_reserve(const struct nt_conn *c, uint64_t n)
{
	uint64_t tail = a64_relaxed(&c->app->tx_tail), una = a64_acquire(&c->pub->tx_una);
	uint64_t was = a64_relaxed(&c->app->tx_ring);
	uint64_t word = neat_ring_reserve(c->rep->app, c->slot, NEAT_TX, was, una, tail, n);

	if (word != was)
		a64_release(&c->app->tx_ring, word);	/* moved bytes before the word that says where */
	return neat_ring_span(c->rep->app, c->slot, NEAT_TX, word, tail, (uint32_t)n);
}

static void tx_commit(const struct nt_conn *c, uint64_t n)
{
	a64_release(&c->app->tx_tail, a64_relaxed(&c->app->tx_tail) + n);
}

static ssize_t put(const struct nt_conn *c, struct cursor *from, int flags)
{
	ssize_t n;

	if (NT_UNLIKELY(!nt_conn_lock(c, &c->app->tx_lock)))
		return nt_lost(c->handle);
	n = tx_state(c);
	if (!n) {
		uint64_t space = room(c);
		struct neat_span span;

		n = (ssize_t)(from->left < space ? from->left : space);
		if (n) {
			span = tx_reserve(c, (uint64_t)n);
			cursor_copy(from, span.p[0], span.len[0], true);
			cursor_copy(from, span.p[1], span.len[1], true);
			note_more(c, flags);
			tx_commit(c, (uint64_t)n);
		}
	}
	nt_tid_unlock(&c->app->tx_lock);
	if (n > 0)
		nt_kick(c);
	return n;
}

static ssize_t broken_pipe(int flags)
{
	if (!(flags & MSG_NOSIGNAL))
		syscall(SYS_tgkill, getpid(), nt_tid(), SIGPIPE);
	return -EPIPE;
}

/* Waits for room; -EAGAIN if the caller may not wait. */
static int tx_wait(struct nt_conn *c, int flags, int64_t *deadline)
{
	uint32_t sock = c->handle & (NEAT_SOCKS_MAX - 1);
	const struct neat_sock *s = nt_sock(sock);
	int err;

	nt_kick(c);	/* who filled the ring may have ended before it said so: exec by another thread, kill */
	if (nt_nonblocking(s, flags)) {
		nt_over_look();
		return -EAGAIN;
	}
	if (s->sndtimeo_ms && *deadline == INT64_MAX)
		*deadline = nt_deadline_ms(s->sndtimeo_ms);
	err = nt_wait_sock(sock, tx_ready, c, *deadline);
	return err == -ETIMEDOUT ? -EAGAIN : err;
}

/* A stream socket without a connection. */
static ssize_t not_connected(uint32_t handle, int flags)
{
	return nt_live(handle) ? broken_pipe(flags) : -EBADF;
}

static ssize_t transmit(uint32_t handle, struct cursor *from, int flags)
{
	struct neat_sock *s = nt_sock(handle);
	size_t all = from->left;
	int64_t deadline = INT64_MAX;
	struct nt_conn c;
	ssize_t n;

	if (flags & (MSG_OOB | MSG_FASTOPEN) && !no_stream(s))
		return -EOPNOTSUPP;
	if (a32_acquire(&s->state) != NEAT_SOCK_CONNECT)
		return no_stream(s) ? NO_STREAM : not_connected(handle, flags);
	c = nt_conn_of(handle);
	for (;;) {
		n = put(&c, from, flags);
		if (n < 0 && n != -EAGAIN)
			break;
		if (from->left == 0)
			return (ssize_t)all;
		if (n > 0 && !nt_nonblocking(s, flags))
			continue;
		n = tx_wait(&c, flags, &deadline);
		/* What went out is reported now, the error by the next call (tcp_sendmsg_locked(), do_error). */
		if (n || (from->left < all && nt_has_error(&c, nt_conn_flags(&c))))
			break;
	}
	if (from->left < all)
		return (ssize_t)(all - from->left);
	return n == -EPIPE ? broken_pipe(flags) : n;
}

ssize_t nt_send(int fd, const void *buf, size_t len, int flags)
{
	struct iovec v = { (void *)(uintptr_t)buf, len };
	struct cursor c = { &v, 1, 0, len };
	uint32_t handle = nt_fd_handle(fd);
	ssize_t n;

	if (!handle)
		return NT_KERNEL;
	if (len && nt_bad_pointer(buf))
		return -EFAULT;
	n = transmit(handle, &c, flags);
	if (NT_UNLIKELY(n == NO_STREAM)) {
		const struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

		return nt_dgram_sendmsg(fd, &m, flags);
	}
	return n;
}

ssize_t nt_writev(int fd, const struct iovec *iov, int n)
{
	uint32_t handle = nt_fd_handle(fd);
	struct cursor c;
	ssize_t sent;
	int err;

	if (!handle)
		return NT_KERNEL;
	err = cursor_init(&c, iov, n);
	if (err || !c.left)	/* unlike write(2) */
		return err;
	sent = transmit(handle, &c, 0);
	if (NT_UNLIKELY(sent == NO_STREAM)) {
		const struct msghdr m = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n };

		return nt_dgram_sendmsg(fd, &m, 0);
	}
	return sent;
}

/*
 * sock_cmsg_send() of Linux, for a connection: what it has not is an error, but for what belongs to AF_UNIX. Of other
 * levels tcp(7) looks at nothing.
 */
static int check_ancillary(const struct neat_sock *s, const struct msghdr *msg)
{
	struct msghdr m = *msg;
	struct nt_conn c = nt_conn(s);

	/* What is wrong with it comes first; or it carries datagrams. */
	if (a32_acquire(&s->state) != NEAT_SOCK_CONNECT || !(nt_conn_flags(&c) & NEAT_SLOT_CONNECTED) || tx_ended(&c))
		return 0;
	if (nt_bad_pointer(m.msg_control))
		return -EFAULT;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
		size_t left = m.msg_controllen - (size_t)((char *)h - (char *)m.msg_control);

		if (h->cmsg_len < sizeof(*h) || h->cmsg_len > left)
			return -EINVAL;
		if (h->cmsg_level == SOL_SOCKET && h->cmsg_type != SCM_RIGHTS && h->cmsg_type != SCM_CREDENTIALS)
			return -EINVAL;
	}
	return 0;
}

ssize_t nt_sendmsg(int fd, const struct msghdr *msg, int flags)
{
	uint32_t handle = nt_fd_handle(fd);
	struct cursor c;
	ssize_t sent;
	int err;

	if (!handle)
		return NT_KERNEL;
	if (nt_bad_pointer(msg))
		return -EFAULT;
	if (NT_UNLIKELY(msg->msg_name && msg->msg_namelen && nt_bad_pointer(msg->msg_name)))
		return -EFAULT;
	err = msg->msg_iovlen > 1024 ? -EMSGSIZE : cursor_init(&c, msg->msg_iov, (int)msg->msg_iovlen);
	if (!err && NT_UNLIKELY(msg->msg_controllen))
		err = check_ancillary(nt_sock(handle), msg);
	if (err)
		return err;
	sent = transmit(handle, &c, flags);
	return NT_UNLIKELY(sent == NO_STREAM) ? nt_dgram_sendmsg(fd, msg, flags) : sent;
}

/* ---- sendfile ---- */

/* One stretch of the file straight into the ring. 0: end of file. */
static ssize_t put_file(const struct nt_conn *c, int in_fd, off_t *offset, size_t count)
{
	ssize_t n;

	if (!nt_conn_lock(c, &c->app->tx_lock))
		return nt_lost(c->handle);
	n = tx_state(c);
	if (n == -EAGAIN) {
		n = NO_ROOM;	/* connecting */
	} else if (!n) {
		uint64_t space = room(c);

		space = space > FILE_STEP ? FILE_STEP : space;
		space = space > count ? count : space;
		if (!space) {
			n = NO_ROOM;
		} else {
			struct neat_span span = tx_reserve(c, space);
			struct iovec v[2] = { { span.p[0], span.len[0] }, { span.p[1], span.len[1] } };

			/* No cancellation points: we hold tx_lock. */
			n = offset ? nt_syscall(SYS_preadv, in_fd, v, 2l, (long)*offset, 0l) :
				     nt_syscall(SYS_readv, in_fd, v, 2l);
			if (n < 0)
				n = -errno;
			if (n > 0) {
				note_more(c, 0);
				tx_commit(c, (uint64_t)n);
			}
		}
	}
	nt_tid_unlock(&c->app->tx_lock);
	if (n > 0)
		nt_kick(c);
	return n;
}

/*
 * sendfile(2): the input is like a file. What may sleep is read under no lock of ours; it has no offsets (ESPIPE), so
 * with one the question can wait until something failed.
 */
static int check_input(int fd, const off_t *offset, size_t count)
{
	bool seeks = lseek(fd, 0, SEEK_CUR) >= 0;
	int flags = nt_real.fcntl(fd, F_GETFL);
	struct stat st;

	if (flags < 0 || flags & O_PATH || (flags & O_ACCMODE) == O_WRONLY)
		return -EBADF;
	if (fstat(fd, &st))
		return -errno;
	/* What has no name in a file system has no offset, whatever lseek(2) says (FMODE_PREAD). */
	if (offset && !(seeks && st.st_mode & S_IFMT))
		return -ESPIPE;
	if (offset && *offset < 0)
		return -EINVAL;
	if (seeks && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode)))
		return 0;
	return count || S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) ? -EINVAL : 0;
}

ssize_t nt_sendfile(int out_fd, int in_fd, off_t *offset, size_t count)
{
	uint32_t handle = nt_fd_handle(out_fd);
	struct neat_sock *s = nt_sock(handle);
	int64_t deadline = INT64_MAX;
	struct nt_conn c;
	bool connected, checked = false;
	size_t sent = 0;
	ssize_t n = 0;

	if (!handle)
		return !nt_lookup(in_fd) ? NT_KERNEL : offset ? -ESPIPE : -EINVAL;
	if (offset && nt_bad_pointer(offset))
		return -EFAULT;
	connected = a32_acquire(&s->state) == NEAT_SOCK_CONNECT;
	if (!offset || !count || !connected) {
		n = check_input(in_fd, offset, count);
		checked = true;
		if (n)
			return n;
	}
	if (!count)
		return 0;
	if (no_stream(s))
		return -EINVAL;		/* sendfile(2): programs fall back to read and write */
	if (!connected)
		return not_connected(handle, 0);
	c = nt_conn_of(handle);
	while (sent < count) {
		n = put_file(&c, in_fd, offset, count - sent);
		if (n < 0 && !checked) {
			int err = check_input(in_fd, offset, count);

			checked = true;
			if (err)
				return sent ? (ssize_t)sent : err;
		}
		if (n == NO_ROOM) {
			n = tx_wait(&c, 0, &deadline);
			if (n)
				break;
			continue;
		}
		if (n <= 0)
			break;
		sent += (size_t)n;
		if (offset)
			*offset += n;
	}
	if (sent || n >= 0)
		return (ssize_t)sent;
	return n == -EPIPE ? broken_pipe(0) : n;
}
