/*
 * main_control.c - the replica's control socket: messages of the keeper (and, through it, neatd),
 * the memory that comes with them.
 *
 * The keeper is trusted, yet lengths and objects are checked: a version skew must end in a message.
 */
#define _GNU_SOURCE
#include "filter.h"
#include "main.h"
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void control_park(struct replica *r)
{
	struct neat_msg_result parked = { .value = neat_abi_fingerprint() };
	struct pollfd in = { .fd = CONTROL_FD, .events = POLLIN };

	message_send(NEAT_MSG_R_PARKED, &parked, sizeof(parked), 0);
	while (r->phase == REPLICA_CONFIG)
		if (!control_receive(r))
			poll(&in, 1, -1);
}

static struct owner owner(const struct replica *r)
{
	return (struct owner){ r->cfg.index, r->cfg.epoch, r->instance };
}

static void on_config(struct replica *r, const struct neat_msg_r_config *m, struct message *msg)
{
	if (r->phase != REPLICA_CONFIG || msg->nfds < 2)
		replica_die("unexpected R_CONFIG");
	r->cfg = (struct stack_config){
		.index = m->index,
		.epoch = m->epoch,
		.time_wait_ms = m->time_wait_ms ? m->time_wait_ms : 60000,
		.syn_backlog = m->syn_backlog ? m->syn_backlog : 8192,
		.connections_max = m->connections_max ? m->connections_max : 65536,
		.app_sockets = m->app_sockets,
		.app_buffers = (uint64_t)m->app_buffers_kib << 10,
		.rcvbuf = 1u << NEAT_RX_LOG2_MAX,
		.sndbuf = 1u << NEAT_TX_LOG2_MAX,
		.lo_mtu = 65535,
	};
	memcpy(r->cfg.secret, m->secret, sizeof(r->cfg.secret));
	r->spin_us = m->spin_us;
	r->death = m->death;
	r->api.adopting = m->adopt;
	r->instance = m->instance;
	r->api.batch = m->batch ? m->batch : 64;
	r->arena = map_shared(msg->fds[0], stack_arena(&r->cfg));
	r->status = map_written(msg->fds[1], NEAT_OBJ_STATUS, sizeof(struct neat_replica_status), owner(r));
	if (msg->nfds > 2)
		r->api.registry = r->registry = map_read_only(msg->fds[2], NEAT_OBJ_REGISTRY, sizeof(*r->registry));
	r->api.status = r->status;
	if (msg->nfds > 3)
		r->snapshot = map_read_only(msg->fds[3], NEAT_OBJ_SNAPSHOT, sizeof(*r->snapshot));
	a32_release(&r->status->epoch, m->epoch);
	r->phase = REPLICA_REPLAY;
}

static uint64_t replica_random(void *world) { return random_next(((struct replica *)world)->random); }

/* What `neatsock status` shows goes on counting. */
static void restore_counters(struct replica *r)
{
	const struct neat_replica_status *st = r->status;
	struct stack_counters *c = &r->stack.count;

	c->accepted = a64_relaxed(&st->accepted);
	c->segments_in = a64_relaxed(&st->segments_in);
	c->segments_out = a64_relaxed(&st->segments_out);
	c->bytes_in = a64_relaxed(&st->bytes_in);
	c->bytes_out = a64_relaxed(&st->bytes_out);
	c->retransmits = a64_relaxed(&st->retransmits);
}

static void copy_payload(void *world, void *to, const void *from, size_t n)
{
	struct replica *r = world;

	neat_copy(&r->copier, to, from, n);
}

/* ip(7): a port that a socket was bound to is no ephemeral one, whoever it belongs to. */
static bool replica_port_bound(void *world, uint32_t addr, uint16_t port)
{
	const struct replica *r = world;

	return r->registry && neat_port_find(r->registry, addr, port, IPPROTO_TCP, NULL);
}

/* Acquire: what neatd changed before it raised the counter is seen by the walk that follows. */
static uint64_t replica_port_changes(void *world)
{
	const struct replica *r = world;

	return r->registry ? a64_acquire(&r->registry->change) : 0;
}

/* The queue pair's addresses are part of the configuration, so the stack is made after R_QUEUE. */
static void need_stack(struct replica *r)
{
	struct memory_span span;
	void *memory;
	struct stack_ops ops = {
		.tx = nicq_transmit, .random = replica_random, .copy = copy_payload,
		.port_bound = replica_port_bound, .port_changes = replica_port_changes, .world = r,
	};

	if (r->have_stack)
		return;
	if (r->phase == REPLICA_CONFIG)
		replica_die("a message came before R_CONFIG");
	r->stack.api = &r->api;
	r->api.stack = &r->stack;
	memory = map_anonymous(stack_memory(&r->cfg));
	if (r->api.adopting && stack_init(&r->stack, &r->cfg, &ops, memory, r->arena, false, r->stack.now_us)) {
		fprintf(stderr, "neat-replica %u: the arena of the predecessor cannot be used; its connections end\n",
			r->cfg.index);
		r->api.adopting = false;
		/* What the attempt left in it is no zeroed memory. */
		munmap(memory, stack_memory(&r->cfg));
		memory = map_anonymous(stack_memory(&r->cfg));
	}
	if (!r->api.adopting && stack_init(&r->stack, &r->cfg, &ops, memory, r->arena, true, r->stack.now_us))
		replica_die("stack_init");
	if (r->api.adopting) {
		restore_counters(r);
		span = stack_scattered(&r->stack);
		memory_now(span.at, span.len);
	}
	r->have_stack = true;
	if (filter_set(&r->stack, r->filter.rule, r->filter.count))
		replica_die("filter rules that make no sense (version skew?)");
}

/* Answered once the rules are in force: before R_START, that is before the first packet. */
static void on_filter(struct replica *r, const struct neat_msg_r_filter *m)
{
	struct neat_msg_header answer;

	if (r->phase == REPLICA_CONFIG)
		replica_die("R_FILTER came before R_CONFIG");
	r->filter = *m;
	for (uint32_t i = 0; i < NEAT_FILTER_MAX; i++) {
		a64_store(&r->status->filter[i].packets, 0);
		a64_store(&r->status->filter[i].bytes, 0);
	}
	if (r->have_stack && filter_set(&r->stack, m->rule, m->count))
		replica_die("filter rules that make no sense (version skew?)");
	message_send(NEAT_MSG_R_FILTERED, &answer, sizeof(answer), m->h.seq);
}

static void on_segment(struct replica *r, const struct neat_msg_r_app *m, struct message *msg)
{
	struct app *app;

	if (msg->nfds < 3)
		replica_die("R_SEGMENT without memory");
	if (api_app_find(&r->api, m->app_id))
		return;
	app = map_anonymous(sizeof(*app));
	app->app_id = m->app_id;
	app->mem.pub = map_written(msg->fds[0], NEAT_OBJ_SEG_PUB, sizeof(struct neat_seg_pub), owner(r));
	/* Not map_object: the header is the application's to overwrite, and a successor must survive it. */
	app->mem.app = map_shared(msg->fds[1], NEAT_SEG_APP_SIZE);
	app->channels = map_shared(msg->fds[2], sizeof(struct neat_channels));
	app->slots = map_anonymous(sizeof(*app->slots) * NEAT_SLOTS);
	app->free = map_anonymous(sizeof(*app->free) * NEAT_SLOT_APP_FIRST);
	if (api_app_add(&r->api, app))
		replica_die("too many applications");
}

/* The process's eventfd. It may sleep on it already, and a wake of ours found none: ring once. */
static void on_channel(struct replica *r, const struct neat_msg_r_channel *m, struct message *msg)
{
	struct app *app = api_app_find(&r->api, m->app_id);
	struct channel *c;

	if (!app || msg->nfds < 1)
		return;
	api_channels_look(&r->api, app);
	c = api_channel_find(app, m->number);
	if (!c || c->gen != m->gen || app->blocks)
		return;		/* it died or exec'ed meanwhile; or see ring_process() */
	forget_process(r, c);
	c->eventfd = msg->fds[0];
	msg->fds[0] = -1;
	a32_release(&c->mem->eventfd_known, m->gen);
	ring_process(c);
}

static void on_listen(struct replica *r, struct neat_msg_r_listen *m)
{
	struct app *app = api_app_find(&r->api, m->app_id);
	uint32_t seq = m->h.seq;

	m->status = app ? api_listen(&r->api, app, m) : -ENOENT;
	message_send(NEAT_MSG_R_LISTENING, m, sizeof(*m), seq);
}

/* Twice if it died with its predecessor's answer: then there is nothing left to do but to answer. */
static void on_app_gone(struct replica *r, uint32_t app_id)
{
	struct app *app = api_app_find(&r->api, app_id);
	struct neat_msg_r_app done = { .app_id = app_id };

	if (!app) {
		message_send(NEAT_MSG_R_APP_DONE, &done, sizeof(done), 0);
		return;
	}
	api_app_gone(&r->api, app);
}

static void on_release(struct replica *r, struct neat_msg_r_listen *m)
{
	struct app *app = api_app_find(&r->api, m->app_id);

	/* What a dead process asked for, before the end of what it held: R_CHANNEL_GONE comes after this. */
	if (app)
		api_channels_look(&r->api, app);
	/* A connection that the dead process had not accepted, or that a sibling has accepted since, stays. */
	if (app && (m->h.type == NEAT_MSG_R_UNLISTEN || api_owner(app, m->slot) == m->sock))
		api_release(&r->api, app, m->slot, m->gen);
	if (m->h.type == NEAT_MSG_R_RELEASE)
		message_send(NEAT_MSG_R_RELEASED, m, sizeof(*m), m->h.seq);
}

void control_reap(struct replica *r)
{
	for (uint32_t i = r->api.napps; i-- > 0;) {
		struct app *app = r->api.apps[i];
		struct neat_msg_r_app m = { .app_id = app->app_id };

		if (!app->gone || app->mem.live)
			continue;
		api_app_remove(&r->api, app);
		munmap(app->mem.pub, sizeof(struct neat_seg_pub));
		munmap(app->mem.app, NEAT_SEG_APP_SIZE);
		munmap(app->channels, sizeof(struct neat_channels));
		munmap(app->slots, sizeof(*app->slots) * NEAT_SLOTS);
		munmap(app->free, sizeof(*app->free) * NEAT_SLOT_APP_FIRST);
		munmap(app, sizeof(*app));
		message_send(NEAT_MSG_R_APP_DONE, &m, sizeof(m), 0);
	}
}

static void on_start(struct replica *r, struct neat_msg_header *h)
{
	struct neat_msg_r_config ready = { .index = r->cfg.index, .epoch = r->cfg.epoch };
	bool adopting = r->api.adopting;
	struct stack_adopted a;

	r->stack.now_us = replica_clock_us();
	api_start(&r->api, r->death, &a);
	if (a.drop_frame)
		nicq_drop_one(r);
	/* Our predecessor may have owed the nic a wake: it had taken the asleep word, but not rung yet (W9). */
	eventfd_ring(r->nic_eventfd);
	if (adopting)
		fprintf(stderr, "neat-replica %u: epoch %u took over %u connections, %u half-open, %u in TIME_WAIT; "
			"%u were reset%s%s%s\n", r->cfg.index, r->cfg.epoch, a.connections, a.half_open, a.time_waits,
			a.corrupted, a.drop_frame ? "; the last frame was dropped" : "",
			a.drop_command ? "; a connect() failed" : "",
			a.drop_datagram ? "; a datagram was dropped" : "");
	r->phase = REPLICA_LIVE;
	/* Last of all: listeners are there again before the nic passes a frame (checklist row 42). */
	nicq_announce(r);
	message_send(NEAT_MSG_R_READY, &ready, sizeof(ready), h->seq);
}

static void on_drain(struct replica *r, const struct neat_msg_result *m)
{
	struct neat_msg_r_config ready = { .index = r->cfg.index, .epoch = r->cfg.epoch };

	r->draining = m->value != 0;
	if (!r->draining && r->phase == REPLICA_LIVE)
		message_send(NEAT_MSG_R_READY, &ready, sizeof(ready), m->h.seq);
}

void control_drain(struct replica *r)
{
	struct neat_msg_r_config done = { .index = r->cfg.index, .epoch = r->cfg.epoch };

	if (!r->draining || r->phase != REPLICA_LIVE || nicq_keeps(r) || !api_shut(&r->api))
		return;
	if (a32_acquire(r->control_word) || nicq_pending(r)) {
		api_reopen(&r->api);
		return;
	}
	api_end(&r->api);
	if (r->queue)
		a32_release(&r->queue->announced, 0);
	message_send(NEAT_MSG_R_DRAINED, &done, sizeof(done), 0);
	exit(0);
}

static void dispatch_late(struct replica *r, struct message *msg)
{
	struct neat_msg_r_listen *l = (void *)msg->u.bytes;
	struct neat_msg_r_app *a = (void *)msg->u.bytes;
	struct app *app;

	switch (msg->u.h.type) {
	case NEAT_MSG_R_UNLISTEN:
	case NEAT_MSG_R_RELEASE:
		on_release(r, l);
		break;
	case NEAT_MSG_R_CHANNEL_GONE:
		app = api_app_find(&r->api, a->app_id);
		if (app)
			api_channels_look(&r->api, app);
		break;
	case NEAT_MSG_R_APP_GONE:
		on_app_gone(r, a->app_id);
		break;
	case NEAT_MSG_R_DRAIN:
		on_drain(r, (void *)msg->u.bytes);
		break;
	case NEAT_MSG_R_NUDGE:
		api_nudge(&r->api);
		break;
	}
}

/* Size each message must have; 0 = unknown type. */
static size_t message_size(uint16_t type)
{
	switch (type) {
	case NEAT_MSG_R_CONFIG:
		return sizeof(struct neat_msg_r_config);
	case NEAT_MSG_R_SEGMENT:
	case NEAT_MSG_R_CHANNEL_GONE:
	case NEAT_MSG_R_APP_GONE:
		return sizeof(struct neat_msg_r_app);
	case NEAT_MSG_R_CHANNEL:
		return sizeof(struct neat_msg_r_channel);
	case NEAT_MSG_R_LISTEN:
	case NEAT_MSG_R_UNLISTEN:
	case NEAT_MSG_R_RELEASE:
		return sizeof(struct neat_msg_r_listen);
	case NEAT_MSG_R_FILTER:
		return sizeof(struct neat_msg_r_filter);
	case NEAT_MSG_R_DRAIN:
		return sizeof(struct neat_msg_result);
	case NEAT_MSG_R_PEER:
		return sizeof(struct neat_msg_r_peer);
	case NEAT_MSG_R_QUEUE:
	case NEAT_MSG_R_START:
	case NEAT_MSG_R_NUDGE:
		return sizeof(struct neat_msg_header);
	}
	return 0;
}

static void dispatch(struct replica *r, struct message *msg)
{
	uint16_t type = msg->u.h.type;

	if (type == NEAT_MSG_R_CONFIG) {
		on_config(r, (void *)msg->u.bytes, msg);
		return;
	}
	if (type == NEAT_MSG_R_QUEUE || type == NEAT_MSG_R_PEER) {
		nicq_attach(r, msg);
		return;
	}
	if (type == NEAT_MSG_R_FILTER) {
		on_filter(r, (void *)msg->u.bytes);
		return;
	}
	need_stack(r);
	if (type == NEAT_MSG_R_SEGMENT)
		on_segment(r, (void *)msg->u.bytes, msg);
	else if (type == NEAT_MSG_R_CHANNEL)
		on_channel(r, (void *)msg->u.bytes, msg);
	else if (type == NEAT_MSG_R_LISTEN)
		on_listen(r, (void *)msg->u.bytes);
	else if (type == NEAT_MSG_R_START)
		on_start(r, &msg->u.h);
	else
		dispatch_late(r, msg);
}

/* Between two units of work. Nobody will ever come after us, so what programs wait for is told them now. */
static _Noreturn void instance_over(struct replica *r)
{
	if (r->have_stack)
		api_over(&r->api);
	exit(0);
}

bool control_receive(struct replica *r)
{
	struct message m;
	int got = message_receive(&m, message_size);

	if (got < 0)
		instance_over(r);
	if (!got)
		return false;
	dispatch(r, &m);
	message_done(&m);
	return true;
}
