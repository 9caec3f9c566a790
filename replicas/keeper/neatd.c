/* neatd.c - what neatd asks for, what the other children say, and the store's way to a new neatd. */
#define _GNU_SOURCE
#include "keeper.h"
#include "ring.h"
#include <stdlib.h>
#include <string.h>

/* A neatd that is down learns everything from the handback. */
void tell_neatd(struct keeper *k, uint16_t type, const struct child *c, struct msg *inner)
{
	struct neat_msg_keeper m = keeper_message(type, c, inner);

	m.status = type == NEAT_MSG_K_DIED ? c->status : 0;
	if (k->neatd.pid)
		queue_add(&k->neatd.out, &m, inner);
	if (inner)
		msg_put(inner);
}

/* The message inside a keeper message; takes over the descriptors. NULL if there is none. */
static struct msg *inner_message(struct received *r)
{
	uint32_t at = (uint32_t)sizeof(struct neat_msg_keeper);
	struct neat_msg_header h;
	struct msg *m;

	if (r->len < at + sizeof(h))
		return NULL;
	memcpy(&h, r->u.bytes + at, sizeof(h));
	if (h.magic != NEAT_ABI_MAGIC || h.version != NEAT_ABI_VERSION || h.len != r->len - at)
		return NULL;
	m = msg_new(r->u.bytes + at, r->len - at, r->fds, r->nfds);
	r->nfds = 0;
	return m;
}

static void store_and_send(struct child *c, const struct neat_msg_keeper *order, struct msg *m, bool keep)
{
	if (keep && is_order(m))
		order_put(c, m);
	else if (keep)
		store_put(c, order->key, m);
	/* neatd's own state is for its successor only; others see what is stored when they start. */
	if (c->role != NEAT_ROLE_NEATD && c->pid)
		queue_add(&c->out, NULL, m);
}

static void upgrade(struct keeper *k, uint64_t number, struct received *r)
{
	uint32_t at = (uint32_t)(sizeof(struct neat_msg_keeper) + sizeof(struct neat_msg_header));
	uint32_t n = r->len > at ? r->len - at : 0;
	char path[4096] = "";

	if (n < sizeof(path))
		memcpy(path, r->u.bytes + at, n);
	upgrade_begin(k, number, path);
}

static void obey(struct keeper *k, struct child *c, const struct neat_msg_keeper *order, struct received *r)
{
	struct msg *m;

	switch (order->h.type) {
	case NEAT_MSG_K_UPGRADE:
		upgrade(k, order->key, r);
		return;
	case NEAT_MSG_K_SPAWN:
		c->wanted = true;
		return;
	case NEAT_MSG_K_DROP:
		store_drop(c, order->key);
		return;
	case NEAT_MSG_K_SYNCED:	/* an echo: everything before it was done, the first time all of its start */
		k->neatd.ready = k->neatd.ever_ready = true;
		queue_add(&k->neatd.out, order, NULL);
		return;
	case NEAT_MSG_K_STOP:
		keeper_log("neatd asks for the end");
		k->stop = true;
		return;
	case NEAT_MSG_K_STORE:
	case NEAT_MSG_K_SEND:
		m = inner_message(r);
		if (!m)
			break;
		life_begin(&k->life, m);
		store_and_send(c, order, m, order->h.type == NEAT_MSG_K_STORE);
		msg_put(m);
		return;
	}
	keeper_log("neatd sent a message that makes no sense (type %u)", order->h.type);
}

void neatd_message(struct keeper *k, struct received *r)
{
	struct neat_msg_keeper order;
	struct child *c = NULL;

	if (r->len >= sizeof(order)) {
		memcpy(&order, r->u.bytes, sizeof(order));
		c = keeper_child(k, order.role, order.index);
	}
	if (c)
		obey(k, c, &order, r);
	else
		keeper_log("neatd sent a message for nobody (type %u)", r->u.h.type);
	received_close(r);
}

void child_message(struct keeper *k, struct child *c, struct received *r)
{
	struct neat_msg_keeper from;
	struct neat_msg_r_listen answer;
	struct neat_msg_result parked;
	struct msg *m;
	char name[32];

	if (r->u.h.type == NEAT_MSG_R_PARKED) {
		memcpy(&parked, r->u.bytes, sizeof(parked));
		c->parked = true;
		if (r->len < sizeof(parked) || parked.value != neat_abi_fingerprint()) {
			keeper_log("the program of %s is of another build than neat-keeper",
				   child_name(c, name, sizeof(name)));
			c->parked = false;
			child_end(c, NEAT_DEATH_FAULT);
		}
		received_close(r);
		return;
	}
	m = msg_new(r->u.bytes, r->len, r->fds, r->nfds);
	r->nfds = 0;
	if (r->u.h.type == NEAT_MSG_R_READY || r->u.h.type == NEAT_MSG_N_READY)
		became_ready(k, c);
	if (r->u.h.type == NEAT_MSG_R_DRAINED)
		became_idle(k, c);
	if (r->u.h.type == NEAT_MSG_R_LISTENING && r->len >= sizeof(answer)) {
		memcpy(&answer, r->u.bytes, sizeof(answer));
		store_listening(c, &answer);
	}
	order_done(c, m);
	/* Kept even while neatd is down: its successor gets it after the handback. */
	from = keeper_message(NEAT_MSG_K_FROM, c, m);
	queue_add(&k->neatd.out, &from, m);
	msg_put(m);
}

/* Its last message may have reached a neatd that died before it acted on it. */
static void handback_drained(struct keeper *k, const struct child *c)
{
	struct neat_msg_r_config done = {
		.h = { NEAT_ABI_MAGIC, NEAT_ABI_VERSION, NEAT_MSG_R_DRAINED, sizeof(done), 0 },
		.index = c->index, .epoch = c->epoch,
	};
	struct msg *m = msg_new(&done, sizeof(done), NULL, 0);
	struct neat_msg_keeper from = keeper_message(NEAT_MSG_K_FROM, c, m);

	queue_add(&k->neatd.out, &from, m);
	msg_put(m);
}

static void handback_child(struct keeper *k, const struct child *c)
{
	for (struct entry *e = c->stored; e; e = e->next) {
		struct neat_msg_keeper stored = keeper_message(NEAT_MSG_K_STORED, c, e->m);

		stored.key = e->key;
		queue_add(&k->neatd.out, &stored, e->m);
	}
	if (c->pid && c->role != NEAT_ROLE_NEATD) {
		struct neat_msg_keeper started = keeper_message(NEAT_MSG_K_STARTED, c, NULL);

		started.status = c->ready;
		queue_add(&k->neatd.out, &started, NULL);
	}
	if (c->role == NEAT_ROLE_REPLICA && c->epoch && !c->wanted)
		handback_drained(k, c);
	if (c->role == NEAT_ROLE_REPLICA && c->epoch) {
		struct msg *m = health_message(k, c);
		struct neat_msg_keeper health = keeper_message(NEAT_MSG_K_HEALTH, c, m);

		queue_add(&k->neatd.out, &health, m);
		msg_put(m);
	}
}

void neatd_handback(struct keeper *k)
{
	struct child *all[CHILDREN];
	uint32_t n = keeper_children(k, all);
	struct queue waiting = k->neatd.out;
	struct neat_msg_keeper synced;

	/* What replicas said meanwhile comes after the store; all else the store tells better. */
	queue_init(&k->neatd.out);
	for (uint32_t i = 0; i < n; i++)
		handback_child(k, all[i]);
	synced = keeper_message(NEAT_MSG_K_SYNCED, &k->neatd, NULL);
	queue_add(&k->neatd.out, &synced, NULL);
	while (waiting.first) {
		struct out *o = waiting.first;

		waiting.first = o->next;
		o->next = NULL;
		if (o->wrapped && o->wrap.h.type == NEAT_MSG_K_FROM) {
			*k->neatd.out.tail = o;
			k->neatd.out.tail = &o->next;
			continue;
		}
		msg_put(o->m);
		free(o);
	}
}
