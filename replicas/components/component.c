/*
 * component.c - the process around ip, udp and filter: control socket, queues, when to sleep.
 *
 * Restart is stateless: a successor goes on with the frames its predecessor had not retired. If that
 * one died of a fault, the first frame of each queue may be the reason and is dropped.
 */
#define _GNU_SOURCE
#include "component.h"
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STATUS_LOOPS = 64 };

/* ---- control socket ---- */

static uint64_t draw(void *world) { return random_next(((struct component *)world)->random); }

static void on_config(struct component *c, const struct neat_msg_r_config *m, struct message *msg)
{
	struct stack_config *cfg = &c->stack.cfg;

	if (c->status || msg->nfds < 2)
		replica_die("unexpected R_CONFIG");
	c->index = m->index;
	c->epoch = m->epoch;
	c->spin_us = m->spin_us;
	c->batch = m->batch ? m->batch : 64;
	c->death = m->death;
	c->status = map_object(msg->fds[1], NEAT_OBJ_STATUS, sizeof(struct neat_replica_status));
	if (msg->nfds > 3)
		c->snapshot = map_object(msg->fds[3], NEAT_OBJ_SNAPSHOT, sizeof(struct neat_snapshot));
	*cfg = (struct stack_config){ .index = m->index, .epoch = m->epoch, .lo_mtu = 65535 };
	memcpy(cfg->secret, m->secret, sizeof(cfg->secret));
	c->stack.ops.random = draw;
	c->stack.ops.world = c;
	a32_release(&c->status->epoch, m->epoch);
}

static void on_queue(struct component *c, struct message *msg)
{
	if (!c->status || msg->nfds < 2)
		replica_die("unexpected R_QUEUE");
	frameq_open_nic(&c->queue[PEER_NIC], map_object(msg->fds[0], NEAT_OBJ_QUEUE_PAIR, NEAT_QP_SIZE), msg->fds[1],
			c->epoch);
	msg->fds[1] = -1;
	if (c->live)
		a32_release(&c->queue[PEER_NIC].pair->announced, c->epoch);
}

static void on_peer(struct component *c, const struct neat_msg_r_peer *m, struct message *msg)
{
	static const uint8_t peer_of[] = {
		[NEAT_ROLE_REPLICA] = PEER_TCP, [NEAT_ROLE_IP] = PEER_IP,
		[NEAT_ROLE_UDP] = PEER_UDP, [NEAT_ROLE_FILTER] = PEER_FILTER,
	};

	if (!c->status || msg->nfds < 1 || m->role >= sizeof(peer_of) || !peer_of[m->role])
		replica_die("unexpected R_PEER");
	frameq_open(&c->queue[peer_of[m->role]], map_object(msg->fds[0], NEAT_OBJ_QUEUE_PAIR, NEAT_QP_SIZE),
		    m->upper, c->epoch);
}

static void on_filter(struct component *c, const struct neat_msg_r_filter *m)
{
	struct neat_msg_header answer;

	c->rules = *m;
	if (c->live) {
		role_rules(c);
		role_publish(c);
	}
	message_send(NEAT_MSG_R_FILTERED, &answer, sizeof(answer), m->h.seq);
}

static void drop_first(struct frameq *q)
{
	struct pkt p;
	bool in;

	if (frameq_is_open(q) && frameq_take(q, &p, &in))
		frameq_retire(q);
}

static void on_start(struct component *c, const struct neat_msg_header *h)
{
	struct neat_msg_r_config ready = { .index = c->index, .epoch = c->epoch };

	if (!c->status)
		replica_die("R_START before R_CONFIG");
	for (int i = 0; i < PEERS && (c->death == NEAT_DEATH_FAULT || c->death == NEAT_DEATH_HANG); i++)
		drop_first(&c->queue[i]);
	role_start(c);
	c->live = true;
	if (frameq_is_open(&c->queue[PEER_NIC]))
		a32_release(&c->queue[PEER_NIC].pair->announced, c->epoch);
	message_send(NEAT_MSG_R_READY, &ready, sizeof(ready), h->seq);
}

static size_t message_size(uint16_t type)
{
	switch (type) {
	case NEAT_MSG_R_CONFIG:
		return sizeof(struct neat_msg_r_config);
	case NEAT_MSG_R_PEER:
		return sizeof(struct neat_msg_r_peer);
	case NEAT_MSG_R_FILTER:
		return sizeof(struct neat_msg_r_filter);
	case NEAT_MSG_R_DRAIN:
		return sizeof(struct neat_msg_result);
	case NEAT_MSG_R_QUEUE:
	case NEAT_MSG_R_START:
		return sizeof(struct neat_msg_header);
	}
	return 0;
}

static bool control_receive(struct component *c)
{
	struct message m;

	int got = message_receive(&m, message_size);

	if (got < 0)
		exit(0);	/* the instance ends; who talks to programs is tcp */
	if (!got)
		return false;
	if (m.u.h.type == NEAT_MSG_R_CONFIG)
		on_config(c, (void *)m.u.bytes, &m);
	else if (m.u.h.type == NEAT_MSG_R_QUEUE)
		on_queue(c, &m);
	else if (m.u.h.type == NEAT_MSG_R_PEER)
		on_peer(c, (void *)m.u.bytes, &m);
	else if (m.u.h.type == NEAT_MSG_R_FILTER)
		on_filter(c, (void *)m.u.bytes);
	else if (m.u.h.type == NEAT_MSG_R_DRAIN)
		c->ending = true;
	else
		on_start(c, &m.u.h);
	message_done(&m);
	return true;
}

/* ---- frames ---- */

static unsigned drain(struct component *c, struct frameq *q)
{
	unsigned n = 0;
	struct pkt p;
	bool in;

	while (n < c->batch && frameq_take(q, &p, &in)) {
		q->waits_for = role_frame(c, q, &p, in);
		if (q->waits_for) {
			q->sent = p.sent;
			q->sent_id = p.sent_id;
			break;
		}
		c->stack.count.frames_in++;
		frameq_retire(q);
		n++;
	}
	return n;
}

static unsigned work(struct component *c)
{
	unsigned done = 0;

	for (int i = 0; i < PEERS; i++)
		if (frameq_pending(&c->queue[i]))
			done += drain(c, &c->queue[i]);
	for (int i = 0; i < PEERS; i++)
		frameq_wake(&c->queue[i]);
	return done;
}

/* ---- waiting ---- */

static bool work_waits(const struct component *c)
{
	if (a32_acquire(c->control_word))
		return true;
	for (int i = 0; i < PEERS && c->live; i++)
		if (frameq_pending(&c->queue[i]))
			return true;
	return false;
}

static void arm(struct component *c, uint32_t asleep)
{
	for (int i = 0; i < PEERS; i++)
		if (frameq_is_open(&c->queue[i]))
			a32_store(&c->queue[i].in->asleep, asleep);
}

static void component_sleep(struct component *c)
{
	struct sleep_set set = { .n = 0 };

	sleep_add(&set, c->control_word, 0);
	for (int i = 0; i < PEERS; i++)
		if (frameq_is_open(&c->queue[i]))
			sleep_add(&set, &c->queue[i].in->asleep, NEAT_ASLEEP_FUTEX);
	arm(c, NEAT_ASLEEP_FUTEX);
	/* The asleep words before another look at the rings; the other end publishes, fences, then looks at
	 * asleep (Dekker): one of us sees the other. */
	neat_fence();
	if (!work_waits(c)) {
		if (c->status) {
			a32_store(&c->status->awake, 0);
			a64_store(&c->status->sleeps, a64_relaxed(&c->status->sleeps) + 1);
		}
		sleep_wait(&set, UINT64_MAX);
	}
	arm(c, NEAT_AWAKE);
}

static bool spin(struct component *c)
{
	uint64_t end = c->spin_us ? replica_clock_us() + c->spin_us : 0;

	for (unsigned i = 1; c->spin_us; i++) {
		if (work_waits(c))
			return true;
		if (i % 8 == 0 && replica_clock_us() >= end)
			break;
		neat_pause();
	}
	return false;
}

static void publish(struct component *c)
{
	struct neat_replica_status *st = c->status;
	uint64_t drops = 0;
	int cpu = sched_getcpu();

	for (int i = 0; i < DROP_COUNT; i++)
		drops += c->stack.count.drop[i];
	for (int i = 0; i < PEERS; i++)
		drops += c->queue[i].fenced;
	a32_store(&st->awake, 1);
	a32_store(&st->cpu, cpu < 0 ? 0 : (uint32_t)cpu);
	a64_store(&st->segments_in, c->stack.count.frames_in);
	a64_store(&st->segments_out, c->stack.count.frames_out);
	a64_store(&st->drops, drops);
	role_publish(c);
}

/* The replica has drained, and who is further from the wire is gone: nothing comes after what is there now. */
static void end_if_drained(struct component *c)
{
	if (!c->ending)
		return;
	for (int i = 0; i < PEERS && c->live; i++)
		if (frameq_waits_outward(&c->queue[i]))
			return;
	if (frameq_is_open(&c->queue[PEER_NIC]))
		a32_release(&c->queue[PEER_NIC].pair->announced, 0);
	exit(0);
}

/* Time since the last look at the clock goes to work or polling; none was slept through. */
static void account(struct component *c, bool worked)
{
	neat_a64 *to = c->status ? worked ? &c->status->work_ns : &c->status->poll_ns : NULL;

	if (to && c->counted_us)
		a64_store(to, a64_relaxed(to) + (c->stack.now_us - c->counted_us) * 1000);
	c->counted_us = c->stack.now_us;
}

static _Noreturn void loop(struct component *c)
{
	bool worked = false;

	for (unsigned loops = 0;; loops++) {
		c->stack.now_us = replica_clock_us();
		account(c, worked);
		if (c->status)
			a32_store(&c->status->heartbeat, a32_relaxed(&c->status->heartbeat) + 1);
		/* Cleared first: a message that comes while we read sets it again. */
		while (a32_xchg(c->control_word, 0))
			while (control_receive(c))
				;
		if (c->live && loops % STATUS_LOOPS == 0)
			publish(c);
		worked = c->live && work(c);
		if (worked || (c->live && spin(c)))
			continue;
		if (c->live)
			publish(c);
		end_if_drained(c);
		component_sleep(c);
		c->counted_us = 0;
	}
}

int main(int argc, char **argv)
{
	struct component *c;

	if (argc > 1 && !strcmp(argv[1], "--version")) {
		printf("%s ABI %d fingerprint %08x\n", role_program, NEAT_ABI_VERSION, neat_abi_fingerprint());
		return 0;
	}
	c = map_anonymous(sizeof(*c));
	random_seed(c->random);
	c->control_word = control_setup();
	loop(c);
}
