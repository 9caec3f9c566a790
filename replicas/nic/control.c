/*
 * control.c - the nic's control socket: messages of neatd through the keeper, and the memory and
 * descriptors that come with them.
 *
 * The keeper is trusted, yet lengths and objects are checked: a version skew must end in a message.
 */
#define _GNU_SOURCE
#include "nic.h"
#include "control.h"
#include "sandbox.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MTU_MIN = 576, FLOWS_LIMIT = 1 << 24 };

struct message {
	union {
		struct neat_msg_header h;
		struct neat_msg_n_config config;
		struct neat_msg_n_queue queue;
		struct neat_msg_n_capture capture;
		struct neat_msg_n_port port;
		uint8_t bytes[NEAT_MSG_MAX];
	} u;
	int fds[NEAT_MSG_FDS_MAX];
	int nfds;
};

/* ---- answers ---- */

static void reply(uint16_t type, void *message, size_t len, uint32_t seq)
{
	int err = -neat_control_send(CONTROL_FD, type, message, len, seq);

	if (err) {
		errno = err;
		nic_die("send on the control socket");
	}
}

static void reply_ready(uint32_t replica, uint32_t epoch, uint32_t seq)
{
	struct neat_msg_n_queue m = { .replica = replica, .epoch = epoch };

	reply(NEAT_MSG_N_READY, &m, sizeof(m), seq);
}

void control_error(int status, const char *text, uint32_t seq)
{
	struct neat_msg_error m = { .status = status };

	snprintf(m.text, sizeof(m.text), "%s", text);
	fprintf(stderr, "neat-nic: %s\n", text);
	reply(NEAT_MSG_ERROR, &m, sizeof(m), seq);
}

static int take_fd(struct message *msg, int i)
{
	int fd = msg->fds[i];

	msg->fds[i] = -1;
	return fd;
}

/* ---- N_CONFIG ---- */

static const char *config_wrong(const struct neat_msg_n_config *m)
{
	static const uint8_t none[RSS_KEY] = { 0 };

	if (m->backend > NEAT_NIC_WIRE)
		return "N_CONFIG: unknown backend (version skew?)";
	if (!m->replicas || m->replicas > NEAT_REPLICAS_MAX)
		return "N_CONFIG: the number of replicas must be 1 to 16";
	if (m->mtu < MTU_MIN || m->mtu > NIC_FRAME - GSO_HEADERS_MAX)
		return "N_CONFIG: the MTU must be 576 (RFC 791) to 69498";
	if (m->prefix > 32 || m->mac[0] & 1 || m->flows_max > FLOWS_LIMIT)
		return "N_CONFIG: prefix, MAC or flows_max out of range";
	if (!memcmp(m->rss_key, none, RSS_KEY))
		return "N_CONFIG: rss_key is zero, all connections would go to one replica; give random bytes";
	return NULL;
}

static void *map_anonymous(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		nic_die("no memory for the flow table");
	return p;
}

static void set_flows(struct nic *n, struct neat_flow_table *table, uint32_t max)
{
	uint8_t key[16];

	if (getrandom(key, sizeof(key), 0) != (ssize_t)sizeof(key))
		nic_die("getrandom");
	n->steer.flows = flows_init(map_anonymous(flows_memory(max)), table, max, key, n->now_us);
}

/* Nobody gave us a table that outlives us: connections are tracked as long as this process lives. */
static void need_flows(struct nic *n)
{
	uint32_t max = n->cfg.flows_max ? n->cfg.flows_max : FLOWS_DEFAULT;

	if (!n->steer.flows)
		set_flows(n, map_anonymous(flows_table(max)), max);
}

static uint32_t active_mask(const struct nic *n, uint32_t mask)
{
	uint32_t all = (1u << n->cfg.replicas) - 1;

	return mask & all ? mask & all : all;
}

static int uplink_add(struct nic *n, int fd, char *text, size_t room)
{
	struct uplink *u = &n->uplink;
	int status = u->kind == NEAT_NIC_TAP ? tap_setup(fd, text, room) : wire_setup(fd, text, room);

	if (status) {
		close(fd);
		return status;
	}
	u->fd[u->nfds] = fd;
	nic_watch(n, fd, WATCH_UPLINK | u->nfds, EPOLLIN);
	u->nfds++;
	return 0;
}

static int make_uplink(struct nic *n, struct message *msg, char *text, size_t room)
{
	char name[sizeof(n->cfg.ifname) + 1] = { 0 };

	n->uplink.kind = (enum neat_nic_backend)n->cfg.backend;
	if (n->uplink.kind == NEAT_NIC_NONE)
		return 0;
	if (!msg->nfds && n->uplink.kind == NEAT_NIC_TAP) {
		int fd;

		memcpy(name, n->cfg.ifname, sizeof(n->cfg.ifname));
		fd = tap_open(name, text, room);
		return fd < 0 ? fd : uplink_add(n, fd, text, room);
	}
	if (!msg->nfds || (n->uplink.kind == NEAT_NIC_WIRE && msg->nfds != 1)) {
		snprintf(text, room, "N_CONFIG: a wire needs one descriptor; pass one end of a socketpair");
		return -EINVAL;
	}
	for (int i = 0; i < msg->nfds; i++) {
		int status = uplink_add(n, take_fd(msg, i), text, room);

		if (status)
			return status;
	}
	return 0;
}

/* The uplink is open: from here on nothing else is. */
static void sandbox(void)
{
	static const uint32_t calls[] = {
		SYS_recvmsg, SYS_sendto, SYS_sendmsg, SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_close, SYS_fstat,
		SYS_newfstatat, SYS_fcntl, SYS_futex, SYS_epoll_ctl, SYS_epoll_pwait2, SYS_getrandom,
		SYS_ppoll, SYS_restart_syscall,
	};

	if (!sandbox_enter(calls, sizeof(calls) / sizeof(calls[0])))
		nic_die("seccomp");
}

static void on_config(struct nic *n, struct message *msg)
{
	const struct neat_msg_n_config *m = &msg->u.config;
	const char *wrong = config_wrong(m);
	char text[200];
	int status;

	if (n->configured && !wrong) {
		wire_set(&n->wire, &m->wire);
		reply_ready(~0u, 0, m->h.seq);
		return;
	}
	if (wrong) {
		control_error(-EINVAL, wrong, m->h.seq);
		exit(1);
	}
	n->cfg = *m;
	steer_init(&n->steer, m->rss_key, m->mac, m->addr);
	steer_active(&n->steer, active_mask(n, m->active));
	wire_set(&n->wire, &m->wire);
	status = make_uplink(n, msg, text, sizeof(text));
	if (status == -NIC_TAP_DELETED) {
		/* As if it had happened later. To end would be to be started again, for ever. */
		nic_uplink_gone(n, NIC_TAP_DELETED);
	} else if (status) {
		control_error(status, text, m->h.seq);
		exit(1);
	}
	n->configured = true;
	sandbox();
	reply_ready(~0u, 0, m->h.seq);
}

/* ---- N_FLOWS ---- */

static void on_flows(struct nic *n, const struct message *msg)
{
	struct neat_flow_table *table;
	struct stat st;
	uint64_t room;

	if (n->steer.flows)
		return;		/* tracked already, from the first queue on */
	if (msg->nfds < 1 || fstat(msg->fds[0], &st) || (uint64_t)st.st_size < flows_table(1))
		nic_die("N_FLOWS without a table of connections");
	room = ((uint64_t)st.st_size - sizeof(*table)) / sizeof(struct neat_flow);
	table = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, msg->fds[0], 0);
	if (table == MAP_FAILED)
		nic_die("mmap of the table of connections");
	if (!neat_header_ok(&table->h, NEAT_OBJ_FLOWS, (uint64_t)st.st_size))
		nic_die("the table of connections has another layout (version skew?)");
	n->heartbeat = &table->heartbeat;
	set_flows(n, table, room < FLOWS_LIMIT ? (uint32_t)room : FLOWS_LIMIT);
}

/* ---- N_QUEUE, N_FENCE, N_ACTIVE ---- */

static void queue_detach(struct nic *n, uint32_t r)
{
	struct queue *u = &n->queues[r];

	if (!u->q)
		return;
	munmap(u->q, NEAT_QP_SIZE);
	u->q = NULL;
	if (n->eventfds[r] >= 0)
		nic_unwatch(n, n->eventfds[r]);
	n->eventfds[r] = -1;
}

static struct neat_queue_pair *map_queue(int fd)
{
	struct stat st;
	struct neat_queue_pair *q;

	/* The replica that gets this memory next must not be able to shrink it under us (SIGBUS). EPERM:
	 * whoever made it did not allow seals. */
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) && errno != EPERM)
		nic_die("a queue pair is no memfd");
	if (fstat(fd, &st) || (uint64_t)st.st_size < NEAT_QP_SIZE)
		nic_die("a queue pair is smaller than this build expects (version skew?)");
	q = mmap(NULL, NEAT_QP_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (q == MAP_FAILED)
		nic_die("mmap of a queue pair");
	if (!neat_header_ok(&q->h, NEAT_OBJ_QUEUE_PAIR, NEAT_QP_SIZE))
		nic_die("a queue pair has another layout (version skew?)");
	return q;
}

static void fill_queue_pair(const struct nic *n, struct neat_queue_pair *q)
{
	memcpy(q->mac, n->cfg.mac, sizeof(q->mac));
	q->addr = n->cfg.addr;
	q->prefix = n->cfg.prefix;
	q->gateway = n->cfg.gateway;
	memcpy(q->rss_key, n->cfg.rss_key, sizeof(q->rss_key));
	memcpy(q->reta, n->steer.reta, sizeof(q->reta));
	/* Last: who sees an MTU may believe the rest (neatd, after its predecessor got our answer). */
	neat_fence();
	q->mtu = n->cfg.mtu;
}

/* Epoch 0: the replica drained and ended. What a new one of that index gets must be new. */
static void forget_ended(struct nic *n, const struct neat_msg_n_queue *m)
{
	if (!m->epoch && n->steer.flows)
		flows_purge(n->steer.flows, (uint8_t)m->replica);
}

static void on_queue(struct nic *n, struct message *msg)
{
	const struct neat_msg_n_queue *m = &msg->u.queue;
	struct neat_queue_pair *q;

	need_flows(n);
	forget_ended(n, m);
	queue_detach(n, m->replica);
	if (!msg->nfds) {
		flows_purge(n->steer.flows, (uint8_t)m->replica);
		reply_ready(m->replica, m->epoch, m->h.seq);
		return;
	}
	if (msg->nfds < 2)
		nic_die("N_QUEUE without an eventfd");
	q = map_queue(msg->fds[0]);
	fill_queue_pair(n, q);
	queue_attach(&n->queues[m->replica], q, m->epoch);
	n->eventfds[m->replica] = take_fd(msg, 1);
	/* Several queues may share one eventfd; whoever reads second must not block. */
	fcntl(n->eventfds[m->replica], F_SETFL, O_NONBLOCK);
	nic_watch(n, n->eventfds[m->replica], WATCH_QUEUE | m->replica, EPOLLIN);
	reply_ready(m->replica, m->epoch, m->h.seq);
}

static void on_fence(struct nic *n, const struct neat_msg_n_queue *m)
{
	queue_fence(&n->queues[m->replica], m->epoch);
	forget_ended(n, m);
}

static void on_active(struct nic *n, const struct neat_msg_n_queue *m)
{
	steer_active(&n->steer, active_mask(n, m->replica));
	for (uint32_t r = 0; r < NEAT_REPLICAS_MAX; r++)
		if (n->queues[r].q)
			memcpy(n->queues[r].q->reta, n->steer.reta, sizeof(n->steer.reta));
}

static void on_port(struct nic *n, const struct neat_msg_n_port *m)
{
	n->steer.udp_home[m->port] = m->replica < n->cfg.replicas ? (uint8_t)m->replica : NEAT_PORT_NO_HOME;
}

static void on_stats(struct nic *n, uint32_t seq)
{
	struct neat_msg_n_stats m = { 0 };
	struct flows_count f = n->steer.flows ? flows_count(n->steer.flows) : (struct flows_count){ 0 };

	n->count[NEAT_NIC_FLOWS] = (uint64_t)f.half + f.open + f.closing;
	n->count[NEAT_NIC_FLOWS_HALF] = f.half;
	n->count[NEAT_NIC_FLOWS_EVICTED] = f.evicted;
	n->count[NEAT_NIC_FLOWS_REFUSED] = f.refused;
	n->count[NEAT_NIC_WIRE_LOST] = n->wire.lost;
	n->count[NEAT_NIC_WIRE_DUPLICATED] = n->wire.duplicated;
	n->count[NEAT_NIC_WIRE_REORDERED] = n->wire.reordered;
	n->count[NEAT_NIC_WIRE_CORRUPTED] = n->wire.corrupted;
	n->count[NEAT_NIC_WIRE_FULL] = n->wire.full;
	memcpy(m.count, n->count, sizeof(m.count));
	reply(NEAT_MSG_N_STATS, &m, sizeof(m), seq);
}

static void on_capture(struct nic *n, struct message *msg)
{
	const struct neat_msg_n_capture *m = &msg->u.capture;

	struct stat st;

	/* neatd has looked at it; a pipe or a socket would put us to sleep until somebody reads. */
	if (msg->nfds && (fstat(msg->fds[0], &st) || !S_ISREG(st.st_mode)))
		fprintf(stderr, "neat-nic: no capture of replica %u: not a regular file\n", m->replica);
	else if (msg->nfds)
		capture_start(n, m->replica, m->dir, take_fd(msg, 0));
	else
		capture_stop(n, m->replica);
}

/* ---- reception ---- */

/* Size each message must have; 0 = unknown type. */
static size_t message_size(uint16_t type)
{
	switch (type) {
	case NEAT_MSG_N_CONFIG:
		return sizeof(struct neat_msg_n_config);
	case NEAT_MSG_N_QUEUE:
	case NEAT_MSG_N_FENCE:
	case NEAT_MSG_N_ACTIVE:
		return sizeof(struct neat_msg_n_queue);
	case NEAT_MSG_N_PORT:
		return sizeof(struct neat_msg_n_port);
	case NEAT_MSG_N_CAPTURE:
		return sizeof(struct neat_msg_n_capture);
	case NEAT_MSG_N_STATS:
	case NEAT_MSG_N_FLOWS:
	case NEAT_MSG_R_START:
		return sizeof(struct neat_msg_header);
	}
	return 0;
}

static bool message_ok(const struct message *msg, size_t len)
{
	const struct neat_msg_header *h = &msg->u.h;

	return len >= sizeof(*h) && h->magic == NEAT_ABI_MAGIC && h->version == NEAT_ABI_VERSION &&
	       h->len == len && message_size(h->type) && len >= message_size(h->type);
}

static void dispatch(struct nic *n, struct message *msg)
{
	uint16_t type = msg->u.h.type;
	uint32_t replica = msg->u.queue.replica;	/* same place in N_CAPTURE */

	if (type == NEAT_MSG_N_CONFIG) {
		on_config(n, msg);
		return;
	}
	if (type == NEAT_MSG_R_START)
		return;		/* the keeper ends every replay with it; queues are served as they come */
	if (!n->configured)
		nic_die("a message came before N_CONFIG");
	if (type == NEAT_MSG_N_ACTIVE) {
		on_active(n, &msg->u.queue);
	} else if (type == NEAT_MSG_N_STATS) {
		on_stats(n, msg->u.h.seq);
	} else if (type == NEAT_MSG_N_FLOWS) {
		on_flows(n, msg);
	} else if (type == NEAT_MSG_N_PORT) {
		on_port(n, &msg->u.port);
	} else if (replica >= n->cfg.replicas) {
		control_error(-EINVAL, "no such replica; N_CONFIG said how many there are", msg->u.h.seq);
	} else if (type == NEAT_MSG_N_QUEUE) {
		on_queue(n, msg);
	} else if (type == NEAT_MSG_N_FENCE) {
		on_fence(n, &msg->u.queue);
	} else {
		on_capture(n, msg);
	}
}

bool control_receive(struct nic *n)
{
	struct message msg;
	char space[CMSG_SPACE(sizeof(int) * NEAT_MSG_FDS_MAX)];
	struct iovec iov = { msg.u.bytes, sizeof(msg.u.bytes) };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
			     .msg_controllen = sizeof(space) };
	ssize_t got = recvmsg(CONTROL_FD, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (got <= 0)
		exit(0);	/* the keeper is gone: so are we */
	msg.nfds = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		msg.nfds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(msg.fds, CMSG_DATA(c), (size_t)msg.nfds * sizeof(int));
	}
	if (!message_ok(&msg, (size_t)got)) {
		control_error(-EPROTO, "malformed control message; are keeper and nic of one version?", 0);
		exit(1);
	}
	dispatch(n, &msg);
	/* Mappings hold the memory; whatever was not taken is closed. */
	for (int i = 0; i < msg.nfds; i++)
		if (msg.fds[i] >= 0)
			close(msg.fds[i]);
	return true;
}
