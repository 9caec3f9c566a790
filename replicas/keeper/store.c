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

	if (answer->status)
		return;
	e = find_listen(c->listen_hint, answer);
	if (!e)
		e = find_listen(c->stored, answer);
	if (!e)
		return;
	l = (void *)e->m->u.bytes;
	l->slot = answer->slot;
	l->gen = answer->gen;
	c->listen_hint = e->next;
}

struct neat_msg_keeper keeper_message(uint16_t type, const struct child *c, const struct msg *inner)
{
	uint32_t len = (uint32_t)sizeof(struct neat_msg_keeper) + (inner ? inner->len : 0);

	return (struct neat_msg_keeper){
		.h = { NEAT_ABI_MAGIC, NEAT_ABI_VERSION, type, len, 0 },
		.role = c->role, .index = c->index, .pid = (uint32_t)c->pid, .epoch = c->epoch,
	};
}
