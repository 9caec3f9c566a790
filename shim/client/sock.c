/*
 * sock.c - life of a socket: socket, bind, listen, connect, shutdown.
 *
 * Results and errno as in socket(7), ip(7), tcp(7) and the pages of each call. Only listen() makes
 * subsockets, one in each replica (paper 6.3.2).
 */
#define _GNU_SOURCE
#include "internal.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NT_ELSEWHERE = 1 };	/* start_connect(): ask another replica */

static neat_a32 by_default;
static __thread bool explicitly __attribute__((tls_model("initial-exec")));

void nt_default(bool on) { a32_store(&by_default, on); }
void nt_explicit(bool on) { explicitly = on; }

int nt_placeholder(int flags, uint32_t *sock)
{
	int fd = nt_real.socket(AF_UNIX, SOCK_STREAM | (flags & SOCK_CLOEXEC), 0), err;

	if (fd < 0)
		return -errno;
	err = nt_fd_new_sock(fd, flags & SOCK_CLOEXEC ? NEAT_FD_CLOEXEC : 0, sock);
	if (err)
		nt_kernel_close(fd);
	return err ? err : fd;
}

int nt_socket(int domain, int type, int protocol)
{
	uint32_t sock;
	int fd;

	if (domain != AF_INET || !(a32_relaxed(&by_default) || explicitly))
		return NT_KERNEL;
	if ((type & 0xf) == SOCK_DGRAM && (protocol == 0 || protocol == IPPROTO_UDP))
		return nt_dgram_socket(type);
	if ((type & 0xf) != SOCK_STREAM || (protocol != 0 && protocol != IPPROTO_TCP) || nt_attach() || nt_over())
		return NT_KERNEL;
	fd = nt_placeholder(type, &sock);
	if (fd >= 0 && type & SOCK_NONBLOCK)
		a32_store(&nt_sock(sock)->flags, NEAT_SOCKF_NONBLOCK);
	return fd;
}

/* ---- records ---- */

/*
 * False, and not locked: the record is not the one that the descriptor named, since another thread has closed it or handed
 * it to the kernel.
 */
static bool lock_record(uint32_t handle)
{
	neat_a32 *l = &nt_sock(handle)->lock;

	nt_tid_lock(l);
	if (nt_live(handle))
		return true;
	a32_cas(l, nt_tid(), 0);	/* its next life has reset it, perhaps */
	return false;
}

/* By who waited, and may have lost the record meanwhile. */
static void unlock_record(uint32_t handle) { a32_cas(&nt_sock(handle)->lock, nt_tid(), 0); }

/* What a call says then: the descriptor is the kernel's, or no longer what it was. */
static int record_gone(int fd) { return nt_lookup(fd) ? -EBADF : NT_KERNEL; }

/* ---- to the kernel (L10) ---- */

static int kernel_twin(uint32_t sock, int nonblock)
{
	struct neat_sock *s = nt_sock(sock);
	int fd = nt_real.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | nonblock, 0);

	if (fd < 0)
		return -errno;
	nt_opts_to_kernel(s, fd);
	return fd;
}

/*
 * The twin is bound to the record's port. neatd does it, whose reservation is in the way (replicas/bindings.py): the port
 * is free at no time, and is the record's again if nothing comes of the twin. Under s->lock.
 */
static int bind_twin(uint32_t sock, int fd)
{
	struct neat_sock *s = nt_sock(sock);
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(s->lport), .sin_addr.s_addr = htonl(s->laddr) };
	struct neat_msg_bind m = { .h.type = NEAT_MSG_BIND, .sock = sock, .sock_gen = a32_relaxed(&s->gen), .addr = s->laddr,
				   .port = s->lport, .proto = IPPROTO_TCP, .flags = a32_relaxed(&s->flags) };
	struct neat_msg_result r;
	int err;

	if (!(m.flags & NEAT_SOCKF_BOUND))
		return 0;
	err = nt_request(&m, sizeof(m), fd, &r, sizeof(r), NEAT_MSG_RESULT);
	/* One that is only ours, of the uplink: the kernel chooses another. */
	if (!err)
		return r.status == -EADDRNOTAVAIL ? 0 : r.status;
	/* Over; there are no reservations any more. */
	return nt_real.bind(fd, (struct sockaddr *)&in, sizeof(in)) ? -errno : 0;
}

/* The record is pinned. */
static void replace_all(uint32_t handle, int fd)
{
	uint32_t high = a32_relaxed(&nt.app->procs[nt.proc].fd_high), sock = handle & (NEAT_SOCKS_MAX - 1);

	a32_release(&nt_sock(sock)->state, NEAT_SOCK_KERNEL);
	for (uint32_t i = 0; i < high; i++) {
		uint64_t word = a64_relaxed(&nt.row[i]);

		if (nt_fdword_sock(word) != sock)
			continue;
		nt_real.dup3(fd, (int)i, nt_fdword_flags(word) & NEAT_FD_CLOEXEC ? O_CLOEXEC : 0);
		nt_epoll_to_kernel((int)i);
		/* Another thread may have closed it. */
		if (a64_cas(&nt.row[i], word, 0))
			nt_sock_unref(sock);
	}
}

/*
 * Every fd of this process that names the record becomes the kernel socket `fd`; its port is given back with the last one.
 * False: nothing did, the record is gone.
 */
static bool take_over(uint32_t handle, int fd)
{
	if (!nt_fd_pin(handle))
		return false;
	replace_all(handle, fd);
	nt_fd_unpin();
	return true;
}

/* A socket without a port whose business is the kernel's: same number, options replayed. */
static int to_kernel(uint32_t handle)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	int fd = kernel_twin(sock, a32_relaxed(&nt_sock(sock)->flags) & NEAT_SOCKF_NONBLOCK ? SOCK_NONBLOCK : 0), err;

	if (fd < 0)
		return fd;
	err = take_over(handle, fd) ? NT_KERNEL : -EBADF;
	nt_kernel_close(fd);
	return err;
}

/* The kernel has the answer of a host, which on the loopback comes at once, or when a softirq of this core was run. */
static bool answered_soon(int fd, const struct sockaddr *sa)
{
	const int64_t SOON_NS = 20000000;
	static const struct timespec zero;
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	bool loopback = ntohl(((const struct sockaddr_in *)(const void *)sa)->sin_addr.s_addr) >> 24 == 127;
	int64_t end_ns = loopback ? nt_deadline(SOON_NS) : 0;

	while (nt_syscall(SYS_ppoll, &p, 1l, &zero, NULL, 0l) <= 0) {
		if (nt_now_ns() >= end_ns)
			return false;
		syscall(SYS_sched_yield);
	}
	return true;
}

/*
 * connect() of the twin, which does not block. -EINPROGRESS: the answer comes later. A signal ends nothing here, and that
 * we hold s->lock forbids cancellation points.
 */
static int connect_twin(bool blocking, int fd, const struct sockaddr *sa, socklen_t len)
{
	if (nt_kernel_connect(fd, sa, len) == 0)
		return 0;
	if (errno != EINPROGRESS || !blocking || !answered_soon(fd, sa))
		return -errno;
	return nt_kernel_connect(fd, sa, len) ? -errno : 0;
}

/*
 * Handlers are let in: it may take minutes. Who joins a connect() is told EALREADY when SO_SNDTIMEO is over; it is the
 * program's first.
 */
static int wait_in_kernel(int fd, const struct sockaddr *sa, socklen_t len)
{
	uintptr_t in = nt_in;
	int sig = nt_handlers_in(), err = -EINTR;

	if (!sig || nt_has_restart(sig))
		err = nt_real.connect(fd, sa, len) ? -errno : 0;
	nt_in = in;
	return err == -EALREADY ? -EINPROGRESS : err;
}

/* The kernel goes on with it: NT_KERNEL where the caller blocks, who waits there and not under s->lock. */
static int goes_on(uint32_t handle, int fd, bool blocking, const struct sockaddr *sa, socklen_t len)
{
	if (take_over(handle, fd))
		return blocking ? NT_KERNEL : -EINPROGRESS;
	/* Closed meanwhile: the result is the same, as in Linux. */
	return blocking ? wait_in_kernel(fd, sa, len) : -EINPROGRESS;
}

/* connect() to somebody of the kernel's. Failed: the socket stays ours and bound, since the next try may find us. */
static int connect_kernel(uint32_t handle, const struct sockaddr *sa, socklen_t len)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	bool blocking = !(a32_relaxed(&nt_sock(sock)->flags) & NEAT_SOCKF_NONBLOCK);
	int fd = kernel_twin(sock, SOCK_NONBLOCK), err;

	if (fd < 0)
		return fd;
	err = bind_twin(sock, fd);
	if (!err)
		err = connect_twin(blocking, fd, sa, len);
	if (blocking)
		nt_real.fcntl(fd, F_SETFL, O_RDWR);
	if (!err)
		take_over(handle, fd);
	else if (err == -EINPROGRESS)
		err = goes_on(handle, fd, blocking, sa, len);
	nt_kernel_close(fd);
	return err;
}

/* ---- bind and listen ---- */

/* The port of a record that was closed while neatd gave it. */
static void give_back(uint32_t sock, uint32_t gen, uint32_t addr, uint16_t port)
{
	struct neat_msg_bind m = { .h.type = NEAT_MSG_UNBIND, .sock = sock, .sock_gen = gen, .addr = addr, .port = port,
				   .proto = IPPROTO_TCP };

	nt_notify_neatd(&m, sizeof(m), -1);
}

static int bind_request(uint32_t handle, uint32_t addr, uint16_t port)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	struct neat_sock *s = nt_sock(sock);
	struct neat_msg_bind m = { .h.type = NEAT_MSG_BIND, .sock = sock, .sock_gen = a32_relaxed(&s->gen), .addr = addr,
				   .port = port, .proto = IPPROTO_TCP,
				   .flags = a32_relaxed(&s->flags) & (NEAT_SOCKF_REUSEADDR | NEAT_SOCKF_REUSEPORT) };
	struct neat_msg_result r;
	int err = nt_request(&m, sizeof(m), -1, &r, sizeof(r), NEAT_MSG_RESULT);

	if (err || r.status)
		return err ? err : r.status;
	if (!nt_fd_pin(handle)) {
		give_back(sock, m.sock_gen, addr, (uint16_t)r.value);
		return 0;
	}
	s->laddr = addr;
	s->lport = (uint16_t)r.value;
	a32_or(&s->flags, NEAT_SOCKF_BOUND);
	nt_fd_unpin();
	return 0;
}

int nt_bind(int fd, const struct sockaddr *sa, socklen_t len)
{
	uint32_t handle = nt_fd_handle(fd), addr;
	struct neat_sock *s = nt_sock(handle);
	uint16_t port;
	int err;

	if (!handle)
		return NT_KERNEL;
	if (nt_is_dgram(s))
		return nt_dgram_bind(fd, sa, len);
	err = nt_parse_address(sa, len, &addr, &port);
	if (err)
		return err;
	if (!lock_record(handle))
		return record_gone(fd);
	if (a32_relaxed(&s->state) != NEAT_SOCK_NEW ||
	    a32_relaxed(&s->flags) & (NEAT_SOCKF_BOUND | NEAT_SOCKF_PORT_LOCK))
		err = -EINVAL;
	else
		err = nt_over() ? -EADDRNOTAVAIL : bind_request(handle, addr, port);
	if (!err && port && nt_live(handle))
		a32_or(&s->flags, NEAT_SOCKF_PORT_LOCK);	/* it is the socket's, also when it listens no more */
	/* An address of the kernel's, not of ours, or nothing is ours any more: the socket is the kernel's business. */
	if (err == -EADDRNOTAVAIL && nt_live(handle))
		err = to_kernel(handle);
	unlock_record(handle);
	return err;
}

/* Of one that has listened getsockname() still says the port, which may be another's by now. */
static uint16_t own_port(const struct neat_sock *s) { return a32_relaxed(&s->flags) & NEAT_SOCKF_BOUND ? s->lport : 0; }

/* Under s->lock. */
static int listen_request(uint32_t handle, int backlog)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	struct neat_sock *s = nt_sock(sock);
	struct neat_msg_listen m = { .h.type = NEAT_MSG_LISTEN, .sock = sock };
	struct neat_msg_listening r;
	int err;

	m.sock_gen = a32_relaxed(&s->gen);
	m.addr = s->laddr;
	m.port = own_port(s);
	/* A negative backlog is a very large one: listen(2) compares as unsigned. */
	m.backlog = (uint32_t)backlog > NEAT_ACCEPT_ENTRIES ? NEAT_ACCEPT_ENTRIES : (uint32_t)backlog;
	m.flags = a32_relaxed(&s->flags) & (NEAT_SOCKF_REUSEADDR | NEAT_SOCKF_REUSEPORT);
	m.opts = s->opts;
	err = nt_request(&m, sizeof(m), -1, &r, sizeof(r), NEAT_MSG_LISTENING);
	if (err || r.status)
		return err ? err : r.status;
	if (!nt_fd_pin(handle)) {
		give_back(sock, m.sock_gen, m.addr, (uint16_t)r.port);
		return 0;
	}
	s->lport = (uint16_t)r.port;
	s->backlog = m.backlog;
	a32_or(&s->flags, NEAT_SOCKF_BOUND);
	a32_release(&s->state, NEAT_SOCK_LISTEN);
	nt_watch_attach(sock);
	nt_fd_unpin();
	return 0;
}

int nt_listen(int fd, int backlog)
{
	uint32_t handle = nt_fd_handle(fd), state;
	struct neat_sock *s = nt_sock(handle);
	int err;

	if (!handle) {
		nt_note_both_families(fd);
		return NT_KERNEL;
	}
	if (nt_is_dgram(s))
		return -EOPNOTSUPP;
	if (!lock_record(handle))
		return record_gone(fd);
	state = a32_relaxed(&s->state);
	err = state != NEAT_SOCK_NEW && state != NEAT_SOCK_LISTEN ? -EINVAL : listen_request(handle, backlog);
	unlock_record(handle);
	return err;
}

/* ---- connect ---- */

bool nt_address_is_ours(uint32_t addr, bool *on_link)
{
	const struct neat_registry *g = nt.registry;
	uint32_t n = a32_relaxed(&g->naddrs);

	*on_link = false;
	if (addr >> 24 == 127)
		return true;
	for (uint32_t i = 0; i < n && i < NEAT_ADDRS_MAX; i++) {
		uint32_t prefix = g->addrs[i].prefix & 31;

		if (g->addrs[i].addr == addr)
			return true;
		if (prefix && (g->addrs[i].addr ^ addr) >> (32 - prefix) == 0)
			*on_link = true;
	}
	return false;
}

/*
 * No flag, and not closed by its last owner before the replica took it up: then words that we fill in would be taken
 * for that one's. Otherwise the generation is ours from here on.
 */
static bool free_for_us(struct neat_slot_app *w, uint64_t status)
{
	uint32_t asked = neat_status_gen(status) + 1;

	if (neat_status_flags(status) || a32_relaxed(&w->asked) == asked)
		return false;
	a32_store(&w->asked, asked);
	return true;
}

/* A free slot of the application's half, which the caller asks for at once. 0: none. */
uint32_t nt_claim_slot(uint32_t r, uint32_t *gen)
{
	enum { WORDS = (NEAT_SLOTS - NEAT_SLOT_APP_FIRST) / 64 };
	uint64_t start = a64_relaxed(&nt.app->slot_hint[r]);

	for (uint32_t i = 0; i < WORDS; i++) {
		uint32_t at = (uint32_t)(start + i) % WORDS;
		neat_a64 *word = &nt.app->slot_bits[r][at];
		uint64_t tried = a64_relaxed(word);

		while (~tried) {
			uint64_t bit = 1ull << __builtin_ctzll(~tried);
			uint32_t slot = NEAT_SLOT_APP_FIRST + at * 64 + (uint32_t)__builtin_ctzll(bit);
			uint64_t status;

			tried |= bit;
			if (a64_or(word, bit) & bit)
				continue;
			status = a64_acquire(&nt.rep[r].pub->slots[slot].status);
			if (free_for_us(&nt.rep[r].app->slots[slot], status)) {
				*gen = neat_status_gen(status);
				a64_store(&nt.app->slot_hint[r], at);
				return slot;
			}
			a64_and(word, ~bit);	/* still closing: the replica holds it, or will */
		}
	}
	return 0;
}

static void unclaim_slot(uint32_t r, uint32_t slot)
{
	uint32_t bit = slot - NEAT_SLOT_APP_FIRST;

	a64_and(&nt.app->slot_bits[r][bit / 64], ~(1ull << bit % 64));
}

static int start_connect(uint32_t sock, int r, uint32_t addr, uint16_t port)
{
	struct neat_sock *s = nt_sock(sock);
	uint32_t slot, gen = 0;
	struct neat_slot_app *w;

	slot = nt_claim_slot((uint32_t)r, &gen);
	if (!slot)
		return -EAGAIN;		/* connect(2): no more free local ports or routing cache entries */
	w = &nt.rep[r].app->slots[slot];
	neat_slot_app_reset(w);
	w->laddr = s->laddr;
	w->lport = own_port(s);
	w->raddr = addr;
	w->rport = port;
	w->opts = s->opts;
	a64_store(&w->accepted, neat_owned(gen, nt_handle(sock)));
	s->replica = (uint32_t)r;
	s->slot = slot;
	s->slot_gen = gen;
	nt.rep[r].sock_of[slot] = sock;
	a32_and(&s->flags, ~(uint32_t)(NEAT_SOCKF_CONNECT_SEEN | NEAT_SOCKF_LEAVING));
	a32_release(&s->state, NEAT_SOCK_CONNECT);
	nt_watch_attach(sock);
	if (nt_command_connect(&nt.rep[r], gen, slot))
		return 0;
	/* It drained in this very moment. */
	nt.rep[r].sock_of[slot] = 0;
	a32_release(&s->state, NEAT_SOCK_NEW);
	a32_store(&w->asked, 0);
	unclaim_slot((uint32_t)r, slot);
	return NT_ELSEWHERE;
}

/* Until a replica takes it, or it is the kernel's. */
static int begin_connect(uint32_t handle, const struct sockaddr *sa, socklen_t len, uint32_t addr, uint16_t port)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	int r, err;

	do {
		r = nt_choose_replica(nt_sock(sock), addr, port);
		if (r < 0)
			return connect_kernel(handle, sa, len);
		err = start_connect(sock, r, addr, port);
	} while (err == NT_ELSEWHERE);
	return err;
}

/* Its replica died with the instance and without a word: the slot is what api_over() would have made of it. */
static bool reset_unsaid(const struct nt_conn *c, uint64_t status)
{
	const uint32_t other = NEAT_SLOT_LISTENING | NEAT_SLOT_DATAGRAM | NEAT_SLOT_CLOSED | NEAT_SLOT_DEAD;

	return NT_UNLIKELY(a32_relaxed(&nt.silent)) && a32_relaxed(&nt.silent) >> (c->rep - nt.rep) & 1 &&
	       !(neat_status_flags(status) & other);
}

static uint64_t status_of(const struct nt_conn *c)
{
	const uint32_t end = NEAT_SLOT_ERROR | NEAT_SLOT_HUP | NEAT_SLOT_RX_EOF | NEAT_SLOT_TX_SHUT | NEAT_SLOT_DEAD;
	uint64_t status = a64_acquire(&c->pub->status);

	if (reset_unsaid(c, status))
		status = neat_status(neat_status_gen(status), ECONNRESET,
				     (neat_status_flags(status) & ~(uint32_t)NEAT_SLOT_CONNECTING) | end);
	return status;
}

static uint32_t error_seq(const struct nt_conn *c)
{
	return a32_relaxed(&c->pub->err_seq) + reset_unsaid(c, a64_relaxed(&c->pub->status));
}

/* Slot status once the replica has taken the connection up; 0 before. */
uint32_t nt_conn_flags(const struct nt_conn *c)
{
	uint64_t status = status_of(c);

	if (neat_status_gen(status) != (c->gen & 0xffff))
		return NEAT_SLOT_DEAD | NEAT_SLOT_HUP | NEAT_SLOT_RX_EOF | NEAT_SLOT_TX_SHUT;
	return neat_status_flags(status);
}

int nt_take_error(const struct nt_conn *c)
{
	uint64_t status = status_of(c);
	uint32_t seq = error_seq(c), taken = a32_relaxed(&c->app->err_taken);

	if (neat_status_gen(status) != (c->gen & 0xffff) || !(neat_status_flags(status) & NEAT_SLOT_ERROR) ||
	    seq == taken || !a32_cas(&c->app->err_taken, taken, seq))
		return 0;
	return -(int)neat_status_errno(status);
}

bool nt_has_error(const struct nt_conn *c, uint32_t flags)
{
	return flags & NEAT_SLOT_ERROR && error_seq(c) != a32_relaxed(&c->app->err_taken);
}

/* Done, or given up by a shutdown(), which no replica has to confirm. */
static bool connect_done(void *arg)
{
	const struct nt_conn *c = arg;

	return nt_conn_flags(c) & (NEAT_SLOT_CONNECTED | NEAT_SLOT_ERROR | NEAT_SLOT_HUP) || a32_acquire(&c->app->shut);
}

/* connect() on a record that has a slot: pending, done, or failed and free to try again. */
static int connect_again(uint32_t sock)
{
	struct neat_sock *s = nt_sock(sock);
	struct nt_conn c = nt_conn(s);
	uint32_t flags = nt_conn_flags(&c);
	int err;

	if (!connect_done(&c))
		return -EALREADY;
	/* Whatever became of it since, and its error is for others (SS_CONNECTED in Linux). */
	if (a32_relaxed(&s->flags) & NEAT_SOCKF_CONNECT_SEEN)
		return -EISCONN;
	err = nt_take_error(&c);
	if (!err && flags & NEAT_SLOT_CONNECTED) {
		a32_or(&s->flags, NEAT_SOCKF_CONNECT_SEEN);
		return 0;
	}
	/* The error was for others; what shutdown() gave up is no failure. */
	if (!err)
		err = a32_relaxed(&c.app->shut) ? -EAGAIN : -ECONNABORTED;
	nt_drop_slot(s);
	a32_release(&s->state, NEAT_SOCK_NEW);
	return err;
}

static void fire(uint32_t sock)
{
	nt_lock(&nt.watch_lock);
	nt_watch_fire(sock);
	nt_unlock(&nt.watch_lock);
}

/* A port that bind() named stays its own (SOCK_BINDPORT_LOCK in Linux). */
static void end_listening(uint32_t sock)
{
	struct neat_sock *s = nt_sock(sock);
	struct neat_msg_bind m = { .h.type = NEAT_MSG_UNBIND, .sock = sock, .sock_gen = a32_relaxed(&s->gen),
				   .addr = s->laddr, .port = s->lport, .proto = IPPROTO_TCP,
				   .flags = a32_relaxed(&s->flags) & NEAT_SOCKF_PORT_LOCK };

	if (!m.flags)
		a32_and(&s->flags, ~(uint32_t)NEAT_SOCKF_BOUND);
	a32_release(&s->state, NEAT_SOCK_NEW);
	nt_drop_subsockets(s);
	nt_notify_neatd(&m, sizeof(m), -1);
	fire(sock);
}

/* connect() to AF_UNSPEC: tcp_disconnect() in Linux. The socket is as after socket() and bind(). */
static int disconnect(int fd, uint32_t handle)
{
	struct neat_sock *s = nt_sock(handle);

	if (!lock_record(handle))
		return record_gone(fd);
	a32_and(&s->flags, ~(uint32_t)NEAT_SOCKF_SHUT);
	if (a32_relaxed(&s->state) == NEAT_SOCK_LISTEN) {
		end_listening(handle & (NEAT_SOCKS_MAX - 1));
	} else if (a32_relaxed(&s->state) == NEAT_SOCK_CONNECT) {
		nt_command(&nt.rep[s->replica & (NEAT_REPLICAS_MAX - 1)], NEAT_CMD_ABORT, s->slot_gen, s->slot);
		nt_drop_slot(s);
		a32_release(&s->state, NEAT_SOCK_NEW);
	}
	unlock_record(handle);
	fire(handle & (NEAT_SOCKS_MAX - 1));
	return 0;
}

/* The socket is as before connect() (inet_stream_connect() in Linux: disconnect()). */
static void connect_failed(uint32_t handle, const struct nt_conn *c)
{
	struct neat_sock *s = nt_sock(handle);

	if (!lock_record(handle))
		return;
	if (a32_relaxed(&s->state) == NEAT_SOCK_CONNECT && s->slot == c->slot && s->slot_gen == c->gen &&
	    nt_conn(s).rep == c->rep) {
		nt_drop_slot(s);
		a32_release(&s->state, NEAT_SOCK_NEW);
	}
	unlock_record(handle);
}

static int connect_wait(uint32_t handle)
{
	uint32_t sock = handle & (NEAT_SOCKS_MAX - 1);
	struct neat_sock *s = nt_sock(sock);
	struct nt_conn c = nt_conn_of(handle);
	int64_t deadline = s->sndtimeo_ms ? nt_deadline_ms(s->sndtimeo_ms) : INT64_MAX;
	int err;

	if (a32_relaxed(&s->flags) & NEAT_SOCKF_NONBLOCK)
		return -EINPROGRESS;
	err = nt_wait_sock(sock, connect_done, &c, deadline);
	if (err)
		return err == -ETIMEDOUT ? -EINPROGRESS : err;
	if (!nt_live(handle))
		return -EBADF;	/* closed by another thread, as in accept() */
	err = nt_take_error(&c);
	if (!err && !(nt_conn_flags(&c) & NEAT_SLOT_CONNECTED))
		err = a32_relaxed(&c.app->shut) ? -ECONNRESET : -ECONNABORTED;
	if (err)
		connect_failed(handle, &c);
	else
		a32_or(&s->flags, NEAT_SOCKF_CONNECT_SEEN);
	return err;
}

int nt_connect(int fd, const struct sockaddr *sa, socklen_t len)
{
	uint32_t handle = nt_fd_handle(fd), addr = 0;
	struct neat_sock *s = nt_sock(handle);
	uint16_t port = 0;
	int err;

	if (!handle)
		return NT_KERNEL;
	if (nt_is_dgram(s))
		return nt_dgram_connect(fd, sa, len);
	if (len < sizeof(sa->sa_family))
		return -EINVAL;
	if (nt_bad_pointer(sa))
		return -EFAULT;
	if (sa->sa_family == AF_UNSPEC)
		return disconnect(fd, handle);
	err = nt_parse_address(sa, len, &addr, &port);
	if (err)
		return err;
	if (addr == 0)
		addr = INADDR_LOOPBACK;
	if (!lock_record(handle))
		return record_gone(fd);
	err = -EAGAIN;
	if (a32_relaxed(&s->state) == NEAT_SOCK_LISTEN)
		err = -EISCONN;
	else if (a32_relaxed(&s->state) == NEAT_SOCK_CONNECT)
		err = connect_again(handle & (NEAT_SOCKS_MAX - 1));
	if (err == -EAGAIN) {
		err = begin_connect(handle, sa, len, addr, port);
		unlock_record(handle);
		if (err == NT_KERNEL)
			return wait_in_kernel(fd, sa, len);
		return err || nt_fd_handle(fd) != handle ? err : connect_wait(handle);
	}
	unlock_record(handle);
	/* A blocking connect() on a connection that another thread started joins its wait. */
	if (err == -EALREADY && !(a32_relaxed(&s->flags) & NEAT_SOCKF_NONBLOCK))
		return connect_wait(handle);
	return err;
}

/* ---- shutdown ---- */

static int set_shut(const struct nt_conn *c, uint32_t bits)
{
	enum nt_entered how = nt_conn_enter(c);

	if (how == NT_LOST)
		return nt_lost(c->handle);
	a32_or(&c->app->shut, bits);
	nt_conn_leave(c, how);
	return 0;
}

/* Linux: inet_shutdown() of a socket in SYN-SENT disconnects it; connect() is ECONNRESET for whoever waits in it. */
static int connect_shutdown(uint32_t sock, const struct nt_conn *c)
{
	int err = set_shut(c, 3);

	if (!err) {
		nt_command(c->rep, NEAT_CMD_ABORT, c->gen, c->slot);
		fire(sock);
	}
	return err;
}

int nt_shutdown(int fd, int how)
{
	uint32_t handle = nt_fd_handle(fd), sock = handle & (NEAT_SOCKS_MAX - 1), state;
	struct neat_sock *s = nt_sock(sock);
	struct nt_conn c;
	int err;

	if (!sock)
		return NT_KERNEL;
	if (how < SHUT_RD || how > SHUT_RDWR)
		return -EINVAL;
	if (nt_is_dgram(s))
		return nt_dgram_shutdown(fd, how);
	state = a32_acquire(&s->state);
	if (state == NEAT_SOCK_LISTEN) {
		if (how != SHUT_WR)
			end_listening(sock);
		return 0;
	}
	if (state != NEAT_SOCK_CONNECT) {
		/* Linux notes it nevertheless: poll() and recv() show it (inet_shutdown, "hack to wake up"). */
		if (how != SHUT_WR)
			a32_or(&s->flags, NEAT_SOCKF_SHUT);
		fire(sock);
		return -ENOTCONN;
	}
	c = nt_conn_of(handle);
	if (!connect_done(&c))
		return connect_shutdown(sock, &c);
	if (!(nt_conn_flags(&c) & NEAT_SLOT_CONNECTED) || nt_conn_flags(&c) & NEAT_SLOT_HUP)
		return -ENOTCONN;
	/* SHUT_RD 0, SHUT_WR 1, SHUT_RDWR 2 become the bits 1, 2, 3. */
	err = set_shut(&c, (uint32_t)how + 1);
	if (err)
		return err;
	nt_kick(&c);
	fire(sock);
	return 0;
}
