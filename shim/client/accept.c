/*
 * accept.c - accept(2): a connection of one of the listener's subsockets, of which each replica has one. It takes
 * from its home first, then steals.
 *
 * Two steps: an entry of the queue, by one CAS, then the connection that it names, by another. Whatever
 * happens between them, a connection becomes one record's or stays in a queue (decisions 43, 90).
 */
#define _GNU_SOURCE
#include "internal.h"

/* Its slot is another listener's by now, or not yet this one's: what is queued there is not ours. */
static bool elsewhere(const struct nt_conn *l)
{
	return neat_status_gen(a64_acquire(&l->pub->status)) != (l->gen & 0xffff);
}

/*
 * A head that cannot be was overwritten. Who took what is written in the connections (neat_own()), so the ring may
 * be gone through from its oldest entry on.
 */
static void mend_head(const struct nt_conn *l, uint64_t head, uint64_t tail)
{
	a64_cas(&l->app->accept_head, head, tail > NEAT_ACCEPT_ENTRIES ? tail - NEAT_ACCEPT_ENTRIES : 0);
}

/* One entry of one subsocket, by one CAS. False: none there. */
static bool take_entry(struct neat_sock *s, uint32_t replica, uint32_t *slot, uint32_t *gen)
{
	struct nt_conn l = nt_conn_at(replica, s->sub[replica].slot, s->sub[replica].gen);
	const struct neat_accept_ring *ring = &l.rep->pub->accept[l.pub->accept_ring & (NEAT_LISTENERS_MAX - 1)];

	for (;;) {
		uint64_t head = a64_acquire(&l.app->accept_head);
		uint64_t tail = a64_acquire(&l.pub->accept_tail), e;

		/* Behind the indices: they are this listener's. */
		if (tail == head || elsewhere(&l))
			return false;
		if (NT_UNLIKELY(tail - head > NEAT_ACCEPT_ENTRIES)) {
			mend_head(&l, head, tail);
			continue;
		}
		e = a64_relaxed(&ring->entry[head & (NEAT_ACCEPT_ENTRIES - 1)]);
		if (!a64_cas(&l.app->accept_head, head, head + 1))
			continue;
		*slot = neat_entry_slot(e) & (NEAT_SLOTS - 1);
		*gen = neat_entry_gen(e);
		if (*slot && neat_status_gen(a64_acquire(&l.rep->pub->slots[*slot].status)) == *gen)
			return true;
	}
}

bool nt_acceptable(const struct neat_sock *s)
{
	NT_EACH_REPLICA(r) {
		struct nt_conn l = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);

		if (l.slot && a64_acquire(&l.pub->accept_tail) != a64_acquire(&l.app->accept_head) && !elsewhere(&l))
			return true;
	}
	return false;
}

static bool accept_ready(void *arg)
{
	uint32_t *handle = arg;
	struct neat_sock *s = nt_sock(*handle);

	return a32_acquire(&s->state) != NEAT_SOCK_LISTEN || !nt_live(*handle) || nt_acceptable(s);
}

/*
 * The connection becomes the record's by the CAS of `accepted`. Killed before it, the replica puts the
 * connection into the queue again; after it, the record is complete and whoever sweeps it closes the
 * connection. False: the entry was a second one of a connection that somebody has or had, or it has ended.
 */
static bool adopt(uint32_t sock, const struct neat_sock *listener, uint32_t replica, uint32_t slot, uint32_t gen, int flags)
{
	struct neat_sock *s = nt_sock(sock);
	struct nt_conn c = nt_conn_at(replica, slot, gen);

	s->replica = replica;
	s->slot = slot;
	s->slot_gen = gen;
	s->opts = listener->opts;
	s->rcvtimeo_ms = listener->rcvtimeo_ms;
	s->sndtimeo_ms = listener->sndtimeo_ms;
	s->rcvlowat = listener->rcvlowat;
	a32_store(&s->flags, NEAT_SOCKF_CONNECT_SEEN | (flags & SOCK_NONBLOCK ? NEAT_SOCKF_NONBLOCK : 0) |
			     (a32_relaxed(&listener->flags) & NEAT_SOCKF_REUSEADDR));
	a32_release(&s->state, NEAT_SOCK_CONNECT);
	/* Whoever ended it before it had an owner frees the slot, and does not write the word. */
	if (!neat_own(c.app, gen, nt_handle(sock)) || neat_status_gen(a64_acquire(&c.pub->status)) != gen) {
		a32_release(&s->state, NEAT_SOCK_NEW);
		return false;
	}
	nt.rep[replica].sock_of[slot] = sock;
	/* What the replica's listener gave it, should one option change: all of them are read then. */
	c.app->opts = s->opts;
	/* Options changed after listen() are not in the replica's listener. */
	if (a32_relaxed(&listener->flags) & NEAT_SOCKF_OPTS_LATE)
		nt_opts_publish(sock);
	return true;
}

/* fd with record `sock` behind it if a connection could be taken, -EAGAIN if not. */
static int accept_one(struct neat_sock *listener, int fd, uint32_t sock, int flags)
{
	uint32_t home = nt_tid() % nt.nreplicas, live = a32_acquire(&nt.live), slot, gen;

	for (uint32_t i = 0; i < nt.nreplicas; i++) {
		uint32_t r = (home + i) % nt.nreplicas;

		while (live >> r & 1 && listener->sub[r].slot && take_entry(listener, r, &slot, &gen))
			if (adopt(sock, listener, r, slot, gen, flags))
				return fd;
	}
	return -EAGAIN;
}

/* Number and record first: when they are not to be had, the connection stays in the queue. */
static int accept_try(struct neat_sock *listener, int flags)
{
	uint32_t sock;
	int fd, err;

	nt_replicas_look();
	if (!nt_acceptable(listener))
		return -EAGAIN;
	fd = nt_placeholder(flags, &sock);
	if (fd < 0)
		return fd;
	err = accept_one(listener, fd, sock, flags);
	if (err == -EAGAIN)
		nt_close(fd);
	return err;
}

int nt_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	uint32_t handle = nt_fd_handle(fd);
	struct neat_sock *s = nt_sock(handle);
	int64_t deadline = INT64_MAX;
	int got;

	if (!handle)
		return NT_KERNEL;
	if (flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC))
		return -EINVAL;
	if (s->rcvtimeo_ms)
		deadline = nt_deadline_ms(s->rcvtimeo_ms);
	for (;;) {
		if (!nt_live(handle))
			return -EBADF;	/* closed by another thread */
		if (a32_acquire(&s->state) != NEAT_SOCK_LISTEN)
			return nt_is_dgram(s) ? -EOPNOTSUPP : -EINVAL;
		got = accept_try(s, flags);
		if (got != -EAGAIN)
			break;
		if (a32_relaxed(&s->flags) & NEAT_SOCKF_NONBLOCK)
			return -EAGAIN;
		got = nt_wait_sock(handle & (NEAT_SOCKS_MAX - 1), accept_ready, &handle, deadline);
		if (got)
			return got == -ETIMEDOUT ? -EAGAIN : got;
	}
	if (got >= 0 && addr) {
		struct nt_conn c = nt_conn(nt_sock(nt_lookup(got)));
		int err = nt_store_address(addr, len, c.pub->raddr, c.pub->rport);

		/* Linux ends the connection that it cannot name. */
		if (err)
			nt_close(got);
		return err ? err : got;
	}
	return got;
}
