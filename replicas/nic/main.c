/*
 * main.c - neat-nic: one thread between the queue pairs of the replicas and the uplink.
 *
 * It sleeps in epoll over the uplink, the queues' eventfds and the control socket, and never spins:
 * replicas see tx.asleep and ring the eventfd; sleeping replicas are woken through rx.asleep.
 */
#define _GNU_SOURCE
#include "nic.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	EVENTS = 32,
	HELD_LOOK_US = 1000,	/* nobody rings when a replica announces itself: look, while frames are held */
	GSO_MIN = 48,		/* smallest payload of a segment; a hostile 1 would make 65,000 frames of one */
	IP_MAX = 65535,
};

_Noreturn void nic_die(const char *what)
{
	int err = errno;

	fprintf(stderr, "neat-nic: %s%s%s\n", what, err ? ": " : "", err ? strerror(err) : "");
	exit(1);
}

static uint64_t clock_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void nic_watch(struct nic *n, int fd, uint32_t what, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.u32 = what };

	if (epoll_ctl(n->epoll, EPOLL_CTL_ADD, fd, &ev))
		nic_die("epoll_ctl");
}

/* Explicit: the keeper and the replica hold the same descriptions, so closing is not enough, epoll(7). */
void nic_unwatch(struct nic *n, int fd)
{
	epoll_ctl(n->epoll, EPOLL_CTL_DEL, fd, NULL);
	close(fd);
}

/* ---- from the uplink to the replicas ---- */

static uint32_t queue_mask(const struct nic *n, bool ready)
{
	uint32_t mask = 0;

	for (uint32_t r = 0; r < n->cfg.replicas; r++)
		/* Epoch 0: there is no such replica now. */
		if (n->queues[r].q && n->queues[r].epoch && (!ready || queue_ready(&n->queues[r])))
			mask |= 1u << r;
	return mask;
}

static struct frame parse(const uint8_t *bytes, uint32_t len)
{
	return frame_parse(bytes, len < FRAME_LOOK ? len : FRAME_LOOK, false);
}

static void deliver(struct nic *n, const uint8_t *bytes, const struct frame *frame, const struct frame_meta *m)
{
	struct frame f = *frame;
	uint32_t ready = f.kind == FRAME_ARP ? queue_mask(n, true) : 0;
	struct steer_to to = steer_rx(&n->steer, bytes, &f, queue_mask(n, false), ready, n->now_us);

	if (!to.mask)
		n->count[to.why]++;
	for (uint32_t mask = to.mask; mask; mask &= mask - 1) {
		uint32_t r = (uint32_t)__builtin_ctz(mask);
		bool taken = queue_put(&n->queues[r], bytes, m, n->now_us);

		n->count[taken ? NEAT_NIC_RX_DELIVERED : NEAT_NIC_RX_FULL]++;
		if (taken)
			capture_frame(n, r, NEAT_CAPTURE_RX, bytes, m);
	}
}

/* False: it is not the last one that was missing. */
static bool whole(struct nic *n, const uint8_t **bytes, struct frame_meta *m)
{
	enum reass_result got = reass_add(&n->reass, *bytes, m->len, n->now_us, bytes, &m->len);

	n->count[NEAT_NIC_RX_FRAGMENTS]++;
	n->count[NEAT_NIC_RX_REASSEMBLED] += got == REASS_WHOLE;
	n->count[NEAT_NIC_RX_MALFORMED] += got == REASS_BAD;
	m->flags = m->gso_size = 0;
	return got == REASS_WHOLE;
}

void nic_receive(struct nic *n, const uint8_t *bytes, const struct frame_meta *meta)
{
	struct frame f = parse(bytes, meta->len);
	struct frame_meta m = *meta;

	n->count[NEAT_NIC_RX_FRAMES]++;
	if (f.fragment && steer_ours(&n->steer, bytes, &f)) {
		if (!whole(n, &bytes, &m))
			return;
		f = parse(bytes, m.len);
	}
	deliver(n, bytes, &f, &m);
}

void nic_uplink_gone(const struct nic *n, int err)
{
	const char *what = n->uplink.kind == NEAT_NIC_TAP ? "TAP device" : "other end of the wire";
	const char *why = err == NIC_TAP_DELETED ? "it was deleted (ip link del), or its network namespace ended" :
						   strerror(err);
	char text[240];

	snprintf(text, sizeof(text), "the %s is gone: %s; local connections go on; for all others run `neatsock down` "
		 "and `neatsock up`", what, why);
	control_error(-err, text, 0);
}

static void uplink_lost(struct nic *n, uint32_t i, int err)
{
	nic_uplink_gone(n, err);
	nic_unwatch(n, n->uplink.fd[i]);
	n->uplink.fd[i] = -1;
}

static void uplink_read(struct nic *n, uint32_t i)
{
	for (unsigned k = 0; k < NIC_BUDGET && n->uplink.fd[i] >= 0; k++) {
		int fd = n->uplink.fd[i];
		struct frame_meta m;
		ssize_t got = n->uplink.kind == NEAT_NIC_TAP ? tap_read(n, fd, &m) : wire_read(n, fd, &m);

		if (!got)
			return;
		if (got < 0)
			uplink_lost(n, i, (int)-got);
		else
			nic_receive(n, n->frame, &m);
	}
}

/* ---- from the replicas to the uplink ---- */

/* What a descriptor promises must hold, or the kernel (or the other instance) is asked nonsense. */
static bool offload_ok(const struct nic *n, const struct frame *f, const struct frame_meta *m)
{
	bool partial = m->flags & NEAT_FRAME_CSUM_PARTIAL, gso = m->flags & NEAT_FRAME_GSO_TCP4;

	if (partial && ((f->kind != FRAME_TCP && f->kind != FRAME_UDP) || m->l4_offset != f->l4_offset))
		return false;
	if ((f->kind == FRAME_TCP || f->kind == FRAME_UDP) && f->payload > m->len)
		return false;
	if (!gso)
		return m->len <= n->cfg.mtu + FRAME_ETH;
	return partial && f->kind == FRAME_TCP && m->gso_size >= GSO_MIN && m->len <= IP_MAX + FRAME_ETH &&
	       m->gso_size + (uint32_t)f->payload <= n->cfg.mtu + FRAME_ETH;
}

static void uplink_write(struct nic *n, uint32_t r, const uint8_t *head, uint32_t head_len, const uint8_t *rest,
			 const struct frame *f, const struct frame_meta *m)
{
	struct uplink *u = &n->uplink;
	int fd = u->nfds ? u->fd[r % u->nfds] : -1;

	if (fd >= 0 && u->kind == NEAT_NIC_WIRE) {
		memcpy(n->frame, head, head_len);
		memcpy(n->frame + head_len, rest, m->len - head_len);
		wire_write(n, n->frame, f, m);
		return;		/* counted when it leaves */
	}
	if (fd >= 0 && tap_write(n, fd, head, head_len, rest, f, m))
		n->count[NEAT_NIC_TX_FRAMES]++;
	else
		n->count[NEAT_NIC_TX_FAILED]++;
}

/* Its sender draws another port, or tells the program (stack/tcp.c). No room: it comes again, as if lost. */
static void give_back(struct nic *n, uint32_t r, const uint8_t *bytes, uint32_t len)
{
	const struct frame_meta m = { .len = len, .flags = NEAT_FRAME_RETURNED };

	if (queue_put(&n->queues[r], bytes, &m, n->now_us))
		n->count[NEAT_NIC_TX_RETURNED]++;
	else
		n->count[NEAT_NIC_RX_FULL]++;
}

/* The tuple of its SYN is another replica's, as far as we know: that one is asked. */
static void ask_owner(struct nic *n, uint32_t r, const uint8_t *bytes, const struct frame *f, const struct frame_meta *m)
{
	const struct frame_meta question = { .len = m->len, .flags = NEAT_FRAME_RETURNED | NEAT_FRAME_ASKED };
	uint8_t owner = flows_owner(n->steer.flows, &f->t);
	enum ask_state state = ASK_REFUSED;

	if (owner < n->cfg.replicas && n->queues[owner].q)
		state = asks_open(&n->asks, &f->t, (uint8_t)r, owner, bytes, m, n->now_us);
	if (state == ASK_NEW && !queue_put(&n->queues[owner], bytes, &question, n->now_us))
		n->count[NEAT_NIC_RX_FULL]++;	/* as if nobody answered */
	if (state == ASK_REFUSED)
		give_back(n, r, bytes, m->len);
}

/* A SYN that waited, again as if its replica sent it now. */
static void send_asked(struct nic *n, const struct ask *q)
{
	struct frame f = frame_parse(q->bytes, q->m.len, true);

	if (!n->queues[q->by].q || !n->queues[q->by].epoch)
		return;		/* it ended meanwhile */
	if (steer_tx(&n->steer, q->bytes, &f, q->by, n->now_us) != STEER_SEND) {
		give_back(n, q->by, q->bytes, q->m.len);
		return;
	}
	capture_frame(n, q->by, NEAT_CAPTURE_TX, q->bytes, &q->m);
	uplink_write(n, q->by, q->bytes, q->m.len, q->bytes + q->m.len, &f, &q->m);
}

/* A replica disowns only what is its own, and decides only about SYNs that wait for it. */
static void answered(struct nic *n, uint32_t r, const struct frame *f, bool used)
{
	const struct ask *q;

	if (f->kind != FRAME_TCP) {
		n->count[NEAT_NIC_TX_MALFORMED]++;
		return;
	}
	q = asks_close(&n->asks, &f->t, (uint8_t)r);
	if (!used)
		flows_disown(n->steer.flows, &f->t, (uint8_t)r);
	if (q && !used)
		send_asked(n, q);
	else if (q && n->queues[q->by].q)
		give_back(n, q->by, q->bytes, q->m.len);
}

static void transmit(struct nic *n, uint32_t r)
{
	struct queue *u = &n->queues[r];
	uint8_t head[FRAME_LOOK];
	uint32_t epoch, head_len;
	struct frame_meta m;
	const uint8_t *bytes = queue_peek(u, &m, &epoch);
	enum steer_sent how = STEER_DENIED;
	struct frame f;

	/* W11: a zombie of an older incarnation says nothing any more. */
	if (queue_fenced(u, epoch)) {
		n->count[NEAT_NIC_TX_FENCED]++;
		return;
	}
	head_len = m.len < FRAME_LOOK ? m.len : FRAME_LOOK;
	if (bytes)
		memcpy(head, bytes, head_len);
	f = frame_parse(head, bytes ? head_len : 0, true);
	if (m.flags & NEAT_FRAME_RETURNED) {
		answered(n, r, &f, m.flags & NEAT_FRAME_ASKED);
		return;
	}
	if (f.kind != FRAME_BAD && offload_ok(n, &f, &m))
		how = steer_tx(&n->steer, head, &f, r, n->now_us);
	if (how == STEER_RETURN) {
		/* A SYN, and longer than what we look at only if it carries data. */
		if (m.len <= FRAME_LOOK)
			ask_owner(n, r, head, &f, &m);
		else
			give_back(n, r, bytes, m.len);
		return;
	}
	if (how == STEER_DENIED) {
		n->count[NEAT_NIC_TX_MALFORMED]++;
		return;
	}
	capture_frame(n, r, NEAT_CAPTURE_TX, bytes, &m);
	uplink_write(n, r, head, head_len, bytes + head_len, &f, &m);
}

static bool may_transmit(const struct nic *n)
{
	return n->uplink.kind != NEAT_NIC_WIRE || wire_room(n);
}

/* True: something is left. */
static bool drain_queues(struct nic *n)
{
	bool more = false;

	for (uint32_t r = 0; r < n->cfg.replicas; r++) {
		struct queue *u = &n->queues[r];
		uint32_t pending = queue_pending(u);

		for (uint32_t k = 0; k < pending && k < NIC_BUDGET && may_transmit(n); k++) {
			transmit(n, r);
			queue_done(u);
		}
		more |= pending > NIC_BUDGET;
	}
	/* A wire that is full says itself when it goes on (EPOLLOUT). */
	return more && may_transmit(n);
}

/* ---- waking and sleeping ---- */

static void wake_replicas(struct nic *n)
{
	for (uint32_t r = 0; r < n->cfg.replicas; r++) {
		struct queue *u = &n->queues[r];

		n->count[NEAT_NIC_RX_HELD_DROPPED] += queue_release(u, n->now_us);
		if (!u->q || !queue_must_wake(u))
			continue;
		n->count[NEAT_NIC_WAKES]++;
		syscall(SYS_futex, &u->q->rx.asleep.v, FUTEX_WAKE, 1, NULL, NULL, 0);
	}
}

static void set_asleep(struct nic *n, uint32_t how)
{
	for (uint32_t r = 0; r < n->cfg.replicas; r++)
		if (n->queues[r].q)
			a32_store(&n->queues[r].q->tx.asleep, how);
}

static bool work_waits(const struct nic *n)
{
	for (uint32_t r = 0; r < n->cfg.replicas; r++)
		if (queue_pending(&n->queues[r]))
			return may_transmit(n);
	return false;
}

/* When something must happen although no descriptor says so; UINT64_MAX: never. */
static uint64_t deadline(const struct nic *n)
{
	/* A full socket says itself when there is room. */
	uint64_t at = n->uplink.blocked ? UINT64_MAX : wire_deadline(&n->wire);

	for (uint32_t r = 0; r < n->cfg.replicas; r++)
		if (queue_holds(&n->queues[r]) && n->now_us + HELD_LOOK_US < at)
			at = n->now_us + HELD_LOOK_US;
	return at;
}

static int wait_events(struct nic *n, struct epoll_event *ev, bool busy)
{
	uint64_t at = deadline(n), now = clock_us(), left = at > now ? at - now : 0;
	struct timespec t = { .tv_sec = (time_t)(left / 1000000), .tv_nsec = (long)(left % 1000000) * 1000 };
	bool sleeps = !busy && left;
	int got;

	if (sleeps) {
		set_asleep(n, NEAT_ASLEEP_EVENTFD);
		/* asleep is visible before the rings are looked at once more; the replica publishes,
		 * fences, then looks at asleep (Dekker): one of us sees the other. */
		neat_fence();
		if (work_waits(n)) {
			set_asleep(n, NEAT_AWAKE);
			sleeps = false;
		}
	}
	if (!sleeps)
		t = (struct timespec){ 0 };
	got = epoll_pwait2(n->epoll, ev, EVENTS, sleeps && at == UINT64_MAX ? NULL : &t, NULL);
	if (got < 0 && errno != EINTR)
		nic_die("epoll_pwait2");
	if (sleeps)
		set_asleep(n, NEAT_AWAKE);
	return got;
}

static void serve(struct nic *n, const struct epoll_event *ev)
{
	uint32_t what = ev->data.u32 & ~0xffu, i = ev->data.u32 & 0xff;
	uint64_t rings;

	if (what == WATCH_UPLINK) {
		if (ev->events & (EPOLLIN | EPOLLERR | EPOLLHUP))
			uplink_read(n, i);
	} else if (what == WATCH_QUEUE) {
		/* Only empties the counter: the rings are looked at in every loop. */
		if (n->eventfds[i] >= 0 && read(n->eventfds[i], &rings, sizeof(rings)) < 0 && errno != EAGAIN)
			nic_die("read of an eventfd");
	} else {
		while (control_receive(n))
			;
	}
}

static _Noreturn void nic_loop(struct nic *n)
{
	for (bool busy = false;;) {
		struct epoll_event ev[EVENTS];
		int got = wait_events(n, ev, busy);

		n->now_us = clock_us();
		n->count[NEAT_NIC_LOOPS]++;
		if (n->heartbeat)
			a32_store(n->heartbeat, a32_relaxed(n->heartbeat) + 1);
		for (int i = 0; i < got; i++)
			serve(n, &ev[i]);
		wake_replicas(n);	/* they work while we write */
		busy = drain_queues(n);
		if (n->uplink.kind == NEAT_NIC_WIRE)
			wire_flush(n);
		wake_replicas(n);
	}
}

int main(void)
{
	static struct nic n;	/* large; reached only through pointers */

	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint32_t r = 0; r < NEAT_REPLICAS_MAX; r++)
		n.eventfds[r] = n.captures[r].fd = -1;
	for (uint32_t i = 0; i < UPLINK_FDS; i++)
		n.uplink.fd[i] = -1;
	n.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (n.epoll < 0)
		nic_die("epoll_create1");
	if (fcntl(CONTROL_FD, F_SETFD, FD_CLOEXEC))
		nic_die("fd 3 is not a control socket; neat-nic is started by neat-keeper");
	nic_watch(&n, CONTROL_FD, WATCH_CONTROL, EPOLLIN);
	nic_loop(&n);
}
