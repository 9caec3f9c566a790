/*
 * session.c - attachment to an instance: the control socket, and the maps that come over it.
 *
 * Requests block until neatd answers (a stopped neatd delays attach, bind and listen, nothing else).
 * Descriptors of the library sit above the program's usual range and are CLOEXEC.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

struct nt_process nt = { .control_fd = -1 };

enum {
	FDS_ABOVE = 40,		/* room that is kept for our descriptors below RLIMIT_NOFILE */
	ATTACH_TRIES = 100,	/* neatds that die of nothing but our request */
	TAKEN_NS = 200000000,	/* longest wait for a request to leave neatd's queue */
};

struct received {
	union {
		struct neat_msg_header h;
		struct neat_msg_error error;
		uint8_t bytes[NEAT_MSG_MAX];
	} u;
	int fds[NEAT_MSG_FDS_MAX];
	int nfds;
};

static void close_fds(struct received *m)
{
	for (int i = 0; i < m->nfds; i++)
		nt_kernel_close(m->fds[i]);
	m->nfds = 0;
}

int nt_high_fd(int fd)
{
	struct rlimit lim;
	long base = 1024 - FDS_ABOVE;
	int high;

	if (fd < 0)
		return -errno;
	if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && (long)lim.rlim_cur - FDS_ABOVE < base)
		base = (long)lim.rlim_cur - FDS_ABOVE;
	high = nt_real.fcntl(fd, F_DUPFD_CLOEXEC, base > 0 ? base : 0);
	if (high < 0)
		return fd;
	nt_kernel_close(fd);
	return high;
}

void *nt_map_private(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* ---- messages ---- */

static int send_message(int sock, void *msg, size_t len, int fd, int flags)
{
	char space[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { msg, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (fd >= 0) {
		struct cmsghdr *c;

		mh.msg_control = space;
		mh.msg_controllen = sizeof(space);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	do
		n = nt_syscall(SYS_sendmsg, sock, &mh, MSG_NOSIGNAL | flags);	/* no cancellation point: we hold control_lock */
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

static int receive_message(int sock, struct received *m)
{
	char space[CMSG_SPACE(sizeof(int) * NEAT_MSG_FDS_MAX)];
	struct iovec iov = { m->u.bytes, sizeof(m->u.bytes) };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space) };
	ssize_t n;

	m->nfds = 0;
	do
		n = nt_syscall(SYS_recvmsg, sock, &mh, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
			m->nfds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(m->fds, CMSG_DATA(c), (size_t)m->nfds * sizeof(int));
		}
	if ((size_t)n < sizeof(m->u.h) || m->u.h.magic != NEAT_ABI_MAGIC || m->u.h.len != (size_t)n) {
		close_fds(m);
		return n == 0 ? -ECONNRESET : -EPROTO;
	}
	return 0;
}

/* Is this the answer that was asked for? What came with another one is closed. */
static int checked(struct received *m, uint16_t type, size_t len, int nfds)
{
	int err = 0;

	if (m->u.h.type == NEAT_MSG_ERROR && m->u.h.len == sizeof(m->u.error)) {
		err = m->u.error.status < 0 && m->u.error.status > NT_KERNEL ? m->u.error.status : -EPROTO;
		m->u.error.text[sizeof(m->u.error.text) - 1] = 0;
		nt_say("%s", m->u.error.text);
	} else if (m->u.h.version != NEAT_ABI_VERSION || m->u.h.type != type || m->u.h.len != len || m->nfds < nfds) {
		nt_say("the daemon speaks another version of the protocol; stop it with 'neatsock down' and start it again");
		err = -EPROTO;
	}
	if (err)
		close_fds(m);
	return err;
}

static int expect(int sock, struct received *m, uint16_t type, size_t len, int nfds)
{
	int err = receive_message(sock, m);

	return err ? err : checked(m, type, len, nfds);
}

/*
 * A neatd that died between its answer and its note of it answers twice: answers to older requests, of
 * whatever type, are skipped. An error ends the connection, so it counts whatever it is about.
 */
static int receive_answer(int sock, struct received *m, uint32_t seq)
{
	int err = receive_message(sock, m);

	while (!err && m->u.h.seq != seq && m->u.h.type != NEAT_MSG_ERROR) {
		close_fds(m);
		err = receive_message(sock, m);
	}
	return err;
}

static void header(void *msg, uint16_t type, size_t len)
{
	*(struct neat_msg_header *)msg =
		(struct neat_msg_header){ NEAT_ABI_MAGIC, NEAT_ABI_VERSION, type, (uint32_t)len, 0 };
}

static void attach_request(struct neat_msg_attach *m, uint16_t type)
{
	memset(m, 0, sizeof(*m));
	header(m, type, sizeof(*m));
	m->pid = (uint32_t)getpid();
	m->abi_size = neat_abi_fingerprint();
	strncpy(m->comm, program_invocation_short_name, sizeof(m->comm) - 1);
}

/*
 * A forked child shares its parent's connection, which is good for messages without an answer. It gets
 * one of its own when it wants an answer, and before exec, whose mark is that it closes. Under
 * control_lock; `flags`: MSG_DONTWAIT or 0.
 */
static int introduce(int flags)
{
	struct neat_msg_attach m;
	int sv[2], err;

	if (nt.introduced)
		return 0;
	if (nt.control_fd < 0)
		return -ENOTCONN;
	attach_request(&m, NEAT_MSG_CHILD);
	m.app_id = nt.app_id;
	m.proc = nt.proc;
	m.instance = nt.instance;
	if (nt_real.socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		return -errno;
	err = send_message(nt.control_fd, &m, sizeof(m), sv[1], flags);
	nt_kernel_close(sv[1]);
	if (!err && nt_real.dup3(sv[0], nt.control_fd, O_CLOEXEC) < 0)
		err = -errno;
	nt_kernel_close(sv[0]);
	nt.introduced = !err;
	return err;
}

/*
 * neatd takes a request off its queue after the answer: one that dies between the two finds it again. Until
 * then a descriptor that came along is open there too, and close(2) of ours would not free its port. A
 * neatd that was stopped just then is not waited for. Under control_lock.
 */
static void wait_taken(void)
{
	int64_t end_ns = nt_now_ns() + TAKEN_NS;
	int unread;

	while (!nt_real.ioctl(nt.control_fd, SIOCOUTQ, &unread) && unread > 0 && nt_now_ns() < end_ns)
		syscall(SYS_sched_yield);
}

int nt_request(void *msg, size_t len, int fd, void *reply, size_t reply_len, uint16_t want)
{
	struct neat_msg_header *h = msg;
	struct received m;
	int err;

	header(msg, h->type, len);
	nt_lock(&nt.control_lock);
	h->seq = ++nt.request_seq;
	err = introduce(0);
	if (!err)
		err = send_message(nt.control_fd, msg, len, fd, 0);
	if (!err)
		err = receive_answer(nt.control_fd, &m, h->seq);
	if (!err)
		err = checked(&m, want, reply_len, 0);
	if (!err) {
		memcpy(reply, m.u.bytes, reply_len);
		close_fds(&m);
		if (fd >= 0)
			wait_taken();
	}
	nt_unlock(&nt.control_lock);
	/* neatd's successors keep the connection: its other end is gone with the keeper, or neatd refused us for good. */
	return err == -EPIPE || err == -ECONNRESET ? -ENETDOWN : err;
}

/* No answer is wanted, so a child says it over its parent's connection. */
void nt_notify_neatd(void *msg, size_t len, int fd)
{
	header(msg, ((struct neat_msg_header *)msg)->type, len);
	nt_lock(&nt.control_lock);
	if (nt.control_fd >= 0)
		send_message(nt.control_fd, msg, len, fd, 0);
	nt_unlock(&nt.control_lock);
}

/*
 * At most one of these messages is under way, however many processes fork while neatd is stopped. Who was killed
 * before its message went leaves the mark alone: after a second it counts as that.
 */
void nt_session_forked(void)
{
	enum { UNDER_WAY_MS = 1000 };
	uint32_t now_ms = (uint32_t)(nt_now_ns() / 1000000) | 1, said_ms;
	struct neat_msg_header m;

	header(&m, NEAT_MSG_FORKED, sizeof(m));
	neat_fence();	/* our entry before the look at the mark; neatd takes it away, then looks at the entries */
	said_ms = a32_relaxed(&nt.app->forked);
	if ((said_ms && now_ms - said_ms < UNDER_WAY_MS) || !a32_cas(&nt.app->forked, said_ms, now_ms))
		return;
	if (send_message(nt.control_fd, &m, sizeof(m), -1, MSG_DONTWAIT))
		a32_store(&nt.app->forked, 0);
}

/* ---- maps ---- */

static void *map_memory(int fd, size_t size, int prot)
{
	struct stat st;
	void *p;

	if (fstat(fd, &st) || (uint64_t)st.st_size < size)
		return NULL;
	p = mmap(NULL, size, prot, MAP_SHARED | MAP_NORESERVE, fd, 0);
	return p == MAP_FAILED ? NULL : p;
}

static void *map_object(int fd, uint32_t object, size_t size, int prot)
{
	void *p = map_memory(fd, size, prot);

	if (!p || neat_header_ok(p, object, size))
		return p;
	munmap(p, size);
	return NULL;
}

/*
 * fds: seg_pub, seg_app, channels, status. Their headers are not looked at: the replica may write them, so one
 * that ran wild would keep programs out of the whole instance. neatd compared the layouts (abi_size).
 */
static int map_segment(const struct neat_msg_segment *m, const int *fds)
{
	struct nt_replica *r;

	if (m->replica >= NEAT_REPLICAS_MAX)
		return -EPROTO;
	r = &nt.rep[m->replica];
	r->pub = map_memory(fds[0], sizeof(*r->pub), PROT_READ);
	r->app = map_memory(fds[1], NEAT_SEG_APP_SIZE, PROT_READ | PROT_WRITE);
	r->channels = map_memory(fds[2], sizeof(*r->channels), PROT_READ | PROT_WRITE);
	r->status = map_memory(fds[3], sizeof(*r->status), PROT_READ);
	r->sock_of = nt_map_private(NEAT_SLOTS * sizeof(uint32_t));
	if (!r->pub || !r->app || !r->channels || !r->status || !r->sock_of)
		return -ENOMEM;
	return 0;
}

static bool has_segment(const struct neat_msg_segment *m)
{
	return m->replica < NEAT_REPLICAS_MAX && nt.rep[m->replica].pub;
}

/*
 * Of all `n` replicas. A neatd that died while it answered leaves a part of its answer; that of its successor
 * follows, from the beginning.
 */
static int receive_segments(int sock, uint32_t n)
{
	const struct neat_msg_segment *segment;
	struct received m;
	uint32_t found = 0;
	int err = 0;

	while (found < n && !err) {
		err = receive_message(sock, &m);
		if (!err && m.u.h.type != NEAT_MSG_ATTACHED)
			err = checked(&m, NEAT_MSG_SEGMENT, sizeof(*segment), 4);
		if (err)
			break;
		segment = (void *)m.u.bytes;
		if (m.u.h.type == NEAT_MSG_SEGMENT && !has_segment(segment)) {
			err = map_segment(segment, m.fds);
			found++;
		}
		close_fds(&m);
	}
	return err;
}

static int attached(int sock, struct neat_msg_attached *a)
{
	struct received m;
	int err = expect(sock, &m, NEAT_MSG_ATTACHED, sizeof(*a), 2);

	if (err)
		return err;
	memcpy(a, m.u.bytes, sizeof(*a));
	nt.registry = map_object(m.fds[0], NEAT_OBJ_REGISTRY, sizeof(*nt.registry), PROT_READ);
	nt.app = map_object(m.fds[1], NEAT_OBJ_APP, NEAT_APP_SIZE, PROT_READ | PROT_WRITE);
	close_fds(&m);
	if (a->replicas == 0 || a->replicas > NEAT_REPLICAS_MAX || a->proc >= NEAT_PROCS_MAX)
		return -EPROTO;
	return nt.registry && nt.app ? 0 : -ENOMEM;
}

/* ---- attach ---- */

static int connect_daemon(const char *path)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int fd;

	if (strlen(path) >= sizeof(sun.sun_path))
		return -ENAMETOOLONG;
	strcpy(sun.sun_path, path);
	fd = nt_real.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (nt_kernel_connect(fd, (struct sockaddr *)&sun, sizeof(sun))) {
		int err = -errno;

		nt_kernel_close(fd);
		return err;
	}
	return nt_high_fd(fd);
}

static int attach_with(int sock, struct neat_msg_attach *m)
{
	struct neat_msg_attached a;
	int err = send_message(sock, m, sizeof(*m), -1, 0);

	if (!err)
		err = attached(sock, &a);
	if (!err)
		err = receive_segments(sock, a.replicas);
	if (!err && !nt.local)
		nt.local = nt_map_private(sizeof(*nt.local) * NEAT_SOCKS_MAX);
	if (!err && !nt.epoll_of)
		nt.epoll_of = nt_map_private(sizeof(*nt.epoll_of) * NEAT_FDS_MAX);
	if (err || !nt.local || !nt.epoll_of)
		return err ? err : -ENOMEM;
	nt.app_id = a.app_id;
	nt.proc = a.proc;
	nt.nreplicas = a.replicas;
	nt.spin_us = a.spin_us;
	nt.instance = a.instance;
	nt.pid = m->pid;
	nt.ncpu_one = sysconf(_SC_NPROCESSORS_ONLN) == 1;
	nt.control_fd = sock;
	nt.introduced = true;
	nt_channels_open();
	a32_store(&nt.app->procs[a.proc].pid, m->pid);
	nt.row = (neat_a64 *)((uint8_t *)nt.app + NEAT_APP_FDS) + (size_t)a.proc * NEAT_FDS_MAX;
	nt_fd_mark_internal(sock);
	return 0;
}

/* Of an attachment that was not completed: the next one has other objects. */
static void forget_maps(void)
{
	if (nt.registry)
		munmap((void *)(uintptr_t)nt.registry, sizeof(*nt.registry));
	if (nt.app)
		munmap(nt.app, NEAT_APP_SIZE);
	nt.registry = NULL;
	nt.app = NULL;
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++) {
		struct nt_replica *r = &nt.rep[i];

		if (r->pub)
			munmap((void *)(uintptr_t)r->pub, sizeof(*r->pub));
		if (r->app)
			munmap(r->app, NEAT_SEG_APP_SIZE);
		if (r->status)
			munmap((void *)(uintptr_t)r->status, sizeof(*r->status));
		if (r->channels)
			munmap(r->channels, sizeof(*r->channels));
		if (r->sock_of)
			munmap(r->sock_of, NEAT_SLOTS * sizeof(uint32_t));
		r->pub = NULL;
		r->app = NULL;
		r->status = NULL;
		r->channels = NULL;
		r->sock_of = NULL;
	}
}

/*
 * A neatd that dies with our request lets go of the connection; its successor listens on the same
 * socket, which has gone if the whole instance has.
 */
static int attach_once(const char *path, struct neat_msg_attach *m, int *sock)
{
	int err;

	*sock = connect_daemon(path);
	if (*sock < 0)
		return *sock;
	err = attach_with(*sock, m);
	if (!err)
		return 0;
	nt.row = NULL;
	nt_kernel_close(*sock);
	forget_maps();
	return err;
}

static int attach_locked(struct neat_msg_attach *m)
{
	const char *path = nt.socket_path;
	int sock, err, tries = 0;

	if (!*path) {
		nt_say("no instance is named (NEATSOCK_SOCKET is not set); start programs with 'neatsock run'");
		return -ENOENT;
	}
	do
		err = attach_once(path, m, &sock);
	while ((err == -ECONNRESET || err == -EPIPE) && ++tries < ATTACH_TRIES);
	if (sock < 0) {
		nt_say("no daemon answers at %s (%s); sockets of this program stay with the kernel. Start it with 'neatsock up'",
		       path, strerror(-sock));
		return sock;
	}
	if (err)
		nt_say("cannot attach to %s: %s; sockets of this program stay with the kernel", path, strerror(-err));
	return err;
}

int nt_attach(void)
{
	struct neat_msg_attach m;
	int err = 0;

	if (a32_acquire(&nt.phase) == NT_ATTACHED)
		return 0;
	nt_lock(&nt.control_lock);
	if (a32_relaxed(&nt.phase) == NT_FAILED) {
		err = -ENOTCONN;
	} else if (a32_relaxed(&nt.phase) == NT_DETACHED) {
		attach_request(&m, NEAT_MSG_ATTACH);
		err = attach_locked(&m);
		a32_release(&nt.phase, err ? NT_FAILED : NT_ATTACHED);
	}
	nt_unlock(&nt.control_lock);
	return err;
}

bool nt_has_instance(void) { return nt.socket_path[0] && a32_relaxed(&nt.phase) != NT_FAILED; }

bool nt_attached(void) { return a32_acquire(&nt.phase) == NT_ATTACHED; }

/* ---- exec and fork ---- */

/* Entries that survive exec, with the identity of their placeholder noted for the new image (L3). */
static uint32_t note_survivors(void)
{
	uint32_t high = a32_relaxed(&nt.app->procs[nt.proc].fd_high), n = 0;

	for (uint32_t fd = 0; fd < high; fd++) {
		uint32_t sock = nt_lookup((int)fd);
		struct stat st;

		if (!sock || nt_fd_flags((int)fd) & NEAT_FD_CLOEXEC || fstat((int)fd, &st))
			continue;
		nt_sock(sock)->inode_lo = (uint32_t)st.st_ino;
		n++;
	}
	return n;
}

bool nt_inheritable(bool all)
{
	uint32_t high = nt_attached() && nt.row ? a32_relaxed(&nt.app->procs[nt.proc].fd_high) : 0;

	for (uint32_t fd = 0; fd < high; fd++)
		if (nt_lookup((int)fd) && (all || !(nt_fd_flags((int)fd) & NEAT_FD_CLOEXEC)))
			return true;
	return false;
}

int nt_exec_env(char *out, size_t size)
{
	out[0] = 0;
	if (!nt_attached() || !nt.row)
		return 0;
	/* neatd sees by its end that we left the image, and closes what was close-on-exec. */
	nt_lock(&nt.control_lock);
	introduce(MSG_DONTWAIT);
	nt_unlock(&nt.control_lock);
	if (note_survivors() == 0)
		return 0;
	return snprintf(out, size, "NEATSOCK_JOIN=%u:%u:%llx:%u", nt.app_id, nt.proc, (unsigned long long)nt.instance,
			(unsigned)getpid());
}

/* We were exec'ed by an attached image of the same process: take its row over. */
static void rejoin(const char *join)
{
	struct neat_msg_attach m;
	unsigned app_id, proc, pid;
	unsigned long long instance;

	if (sscanf(join, "%u:%u:%llx:%u", &app_id, &proc, &instance, &pid) != 4 || pid != (unsigned)getpid() ||
	    proc >= NEAT_PROCS_MAX)
		return;
	attach_request(&m, NEAT_MSG_ATTACH);
	m.app_id = app_id;
	m.proc = proc;
	m.instance = instance;
	if (attach_locked(&m)) {
		a32_release(&nt.phase, NT_FAILED);
		return;
	}
	a32_release(&nt.phase, NT_ATTACHED);
	nt_exec_sweep();
	/* A thread of the last image may have taken the sleeper's word, and ended before the call. */
	nt_wake_replicas();
}

const char *nt_socket_path(void) { return nt.socket_path; }

void nt_set_socket(const char *path) { snprintf(nt.socket_path, sizeof(nt.socket_path), "%s", path); }

void nt_init(const char *join)
{
	nt_real_init();
	nt_stays_init();
	if (join)
		rejoin(join);
}

/* ---- the process's eventfd ---- */

/* False when it could not be said now: the connection is full of messages that neatd has not read. */
static bool say_eventfd(int fd)
{
	struct neat_msg_eventfd m = { .proc = nt.proc, .gen = nt.channel_gen };
	int err;

	header(&m, NEAT_MSG_EVENTFD, sizeof(m));
	nt_lock(&nt.control_lock);
	err = nt.control_fd < 0 ? -ENOTCONN : send_message(nt.control_fd, &m, sizeof(m), fd, MSG_DONTWAIT);
	nt_unlock(&nt.control_lock);
	return err == 0;
}

/*
 * A new descriptor has the lowest number that is free, until it is moved: a thread of the program that closes that number
 * once too often, and opens something there, puts that in its place. An eventfd has no type of file.
 */
static int make_eventfd(void)
{
	struct stat st;

	for (int tries = 0; tries < 100; tries++) {
		int low = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), fd;

		if (low < 0)
			return -errno;
		fd = nt_high_fd(low);
		if (fstat(fd, &st) == 0 && !(st.st_mode & S_IFMT))
			return fd;
		if (fd != low)
			nt_kernel_close(fd);
	}
	return -EMFILE;
}

int nt_process_eventfd(void)
{
	int fd = (int)a32_acquire(&nt.eventfd) - 1;

	if (fd >= 0)
		return fd;
	fd = make_eventfd();
	if (fd < 0)
		return fd;
	nt_fd_mark_internal(fd);
	if (!a32_cas(&nt.eventfd, 0, (uint32_t)fd + 1)) {
		nt_fd_close_internal(fd);
		return (int)a32_acquire(&nt.eventfd) - 1;
	}
	a32_store(&nt.eventfd_said, say_eventfd(fd));
	return fd;
}

/* What waits need that the filter may forbid is made now; where it cannot be, they do without. */
void nt_confine(void)
{
	a32_store(&nt.confined, 1);
	if (nt_attached())
		(void)nt_process_eventfd();
}

bool nt_eventfd_known(void)
{
	uint32_t active = a32_relaxed(&nt.registry->active);
	int fd = (int)a32_acquire(&nt.eventfd) - 1;
	bool known = true;

	if (a64_relaxed(&nt.over_ns))
		return true;	/* nobody is left who could ring it */
	NT_EACH_REPLICA(i)
		if (active >> i & 1 && a32_relaxed(&nt.rep[i].ch->eventfd_known) != nt.channel_gen)
			known = false;
	if (!known && fd >= 0 && !a32_relaxed(&nt.eventfd_said))
		a32_store(&nt.eventfd_said, say_eventfd(fd));
	return known;
}
