/* store.c - messages with their descriptors: the store of each child and the queue towards it. */
#define _GNU_SOURCE
#include "keeper.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct msg *msg_new(const void *bytes, uint32_t len, const int *fds, int nfds)
{
	struct msg *m = malloc(offsetof(struct msg, u) + (len > sizeof(m->u.h) ? len : sizeof(m->u.h)));

	if (!m)
		keeper_die("malloc");
	m->refs = 1;
	m->len = len;
	m->nfds = nfds;
	if (nfds)
		memcpy(m->fds, fds, (size_t)nfds * sizeof(int));
	memcpy(m->u.bytes, bytes, len);
	return m;
}

void msg_put(struct msg *m)
{
	if (!m || --m->refs)
		return;
	for (int i = 0; i < m->nfds; i++)
		close(m->fds[i]);
	free(m);
}

void queue_init(struct queue *q)
{
	q->first = NULL;
	q->tail = &q->first;
}

/* Takes its own reference to m. */
void queue_add(struct queue *q, const struct neat_msg_keeper *wrap, struct msg *m)
{
	struct out *o = calloc(1, sizeof(*o));

	if (!o)
		keeper_die("malloc");
	o->m = m;
	if (m)
		m->refs++;
	if (wrap) {
		o->wrapped = true;
		o->wrap = *wrap;
	}
	*q->tail = o;
	q->tail = &o->next;
}

void queue_clear(struct queue *q)
{
	while (q->first) {
		struct out *o = q->first;

		q->first = o->next;
		msg_put(o->m);
		free(o);
	}
	q->tail = &q->first;
}

struct entry *store_find(const struct child *c, uint64_t key)
{
	for (struct entry *e = c->stored; e; e = e->next)
		if (e->key == key)
			return e;
	return NULL;
}

/* Takes its own reference. A known key keeps its place: a segment stays before its channels. */
void store_put(struct child *c, uint64_t key, struct msg *m)
{
	struct entry *e = store_find(c, key), **at = &c->stored;

	m->refs++;
	if (e) {
		msg_put(e->m);
		e->m = m;
		return;
	}
	e = calloc(1, sizeof(*e));
	if (!e)
		keeper_die("malloc");
	e->key = key;
	e->m = m;
	while (*at)
		at = &(*at)->next;
	*at = e;
}

void store_drop(struct child *c, uint64_t key)
{
	for (struct entry **at = &c->stored; *at; at = &(*at)->next) {
		struct entry *e = *at;

		if (e->key != key)
			continue;
		*at = e->next;
		c->listen_hint = NULL;
		msg_put(e->m);
		free(e);
		return;
	}
}

static struct entry *find_listen(struct entry *from, const struct neat_msg_r_listen *answer)
{
	for (struct entry *e = from; e; e = e->next) {
		const struct neat_msg_r_listen *l = (const void *)e->m->u.bytes;

		if (l->h.type == NEAT_MSG_R_LISTEN && e->m->len >= sizeof(*l) && l->app_id == answer->app_id &&
		    l->sock == answer->sock)
			return e;
	}
	return NULL;
}

/* Answers to a replay come in its order, so all of them together cost one walk. */
void store_listening(struct child *c, const struct neat_msg_r_listen *answer)
{
	struct neat_msg_r_listen *l;
	struct entry *e;

	e = find_listen(c->listen_hint, answer);
	if (!e)
		e = find_listen(c->stored, answer);
	if (!e)
		return;
	l = (void *)e->m->u.bytes;
	/* A refusal, too: a neatd that dies with it has a successor that must know. */
	l->status = answer->status;
	if (!answer->status) {
		l->slot = answer->slot;
		l->gen = answer->gen;
	}
	c->listen_hint = e->next;
}

bool is_order(const struct msg *m)
{
	return m->u.h.type == NEAT_MSG_R_APP_GONE || m->u.h.type == NEAT_MSG_R_RELEASE;
}

static void drop_segment(struct child *c, const struct msg *m)
{
	const struct neat_msg_r_app *app = (const void *)m->u.bytes;

	if (m->len >= sizeof(*app))
		store_drop(c, (uint64_t)NEAT_MSG_R_SEGMENT << 48 | (uint64_t)app->app_id << 16);
}

/* A replica that is not wanted has nothing that could be ended. */
static void order_moot(struct child *c, const struct msg *m)
{
	if (m->u.h.type == NEAT_MSG_R_APP_GONE)
		drop_segment(c, m);
}

void orders_moot(struct child *c)
{
	while (c->orders) {
		struct entry *e = c->orders;

		c->orders = e->next;
		order_moot(c, e->m);
		msg_put(e->m);
		free(e);
	}
}

/* Takes its own reference. */
void order_put(struct child *c, struct msg *m)
{
	struct entry *e;

	if (!c->wanted) {
		order_moot(c, m);
		return;
	}
	e = calloc(1, sizeof(*e));
	if (!e)
		keeper_die("malloc");
	m->refs++;
	e->m = m;
	if (!c->orders)
		c->orders_tail = &c->orders;
	*c->orders_tail = e;
	c->orders_tail = &e->next;
}

static bool carried_out(const struct msg *order, const struct msg *answer)
{
	const struct neat_msg_r_listen *asked = (const void *)order->u.bytes, *released = (const void *)answer->u.bytes;
	const struct neat_msg_r_app *gone = (const void *)order->u.bytes, *done = (const void *)answer->u.bytes;

	if (order->u.h.type == NEAT_MSG_R_RELEASE && answer->u.h.type == NEAT_MSG_R_RELEASED)
		return order->len >= sizeof(*asked) && answer->len >= sizeof(*released) &&
		       asked->app_id == released->app_id && asked->slot == released->slot &&
		       asked->gen == released->gen;
	return order->u.h.type == NEAT_MSG_R_APP_GONE && answer->u.h.type == NEAT_MSG_R_APP_DONE &&
	       order->len >= sizeof(*gone) && answer->len >= sizeof(*done) && gone->app_id == done->app_id;
}

/* Answers come in the order of the orders, but for those of applications, which are few: a short walk. */
void order_done(struct child *c, const struct msg *answer)
{
	if (answer->u.h.type == NEAT_MSG_R_APP_DONE)
		drop_segment(c, answer);
	for (struct entry **at = &c->orders; *at; at = &(*at)->next) {
		struct entry *e = *at;

		if (!carried_out(e->m, answer))
			continue;
		*at = e->next;
		if (!e->next)
			c->orders_tail = at;
		msg_put(e->m);
		free(e);
		return;
	}
}

struct neat_msg_keeper keeper_message(uint16_t type, const struct child *c, const struct msg *inner)
{
	uint32_t len = (uint32_t)sizeof(struct neat_msg_keeper) + (inner ? inner->len : 0);

	return (struct neat_msg_keeper){
		.h = { NEAT_ABI_MAGIC, NEAT_ABI_VERSION, type, len, 0 },
		.role = c->role, .index = c->index, .pid = (uint32_t)c->pid, .epoch = c->epoch,
	};
}
