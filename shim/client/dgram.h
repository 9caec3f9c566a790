/* dgram.h - shared by dgram.c and dgram_io.c. */
#ifndef NT_DGRAM_H
#define NT_DGRAM_H

#include "internal.h"

enum { DGRAM_KERNEL = -1, DGRAM_ANY = -2 };	/* no replica: the kernel's; any of them will do */

/* Replica that takes a datagram for addr:port (contract L9). */
int dgram_route(uint32_t addr, uint16_t port);
/* The slot in replica r, opened if there is none yet. 0 or -errno; -ESTALE: r has ended, its ports are elsewhere. */
int dgram_slot(uint32_t sock, uint32_t r, struct nt_conn *out);
/* In replica r, which lives. Under s->lock. 0 or -errno. */
int dgram_open_slot(uint32_t sock, uint32_t r);
/* The slot in r is given up. Under s->lock. */
void dgram_close_slot(struct neat_sock *s, uint32_t r);
/* The socket has a port in our world; `near`: replica that should be its home, or DGRAM_ANY. */
int dgram_bound(uint32_t sock, int fd, int near);
/* No datagram of our world was sent or received: the kernel may still take it as if from the start. */
bool dgram_untouched(const struct neat_sock *s);
/* For good (L10). NT_KERNEL. */
int dgram_to_kernel(uint32_t handle);
/* From now on datagrams may come by the kernel. */
void dgram_use_twin(uint32_t sock);
/* connect() of the twin; the peer is the kernel's. */
int dgram_connect_twin(uint32_t sock, int fd, uint32_t addr, uint16_t port);

/* Home slot; slot 0 while the socket has no port. */
static inline struct nt_conn dgram_home(const struct neat_sock *s)
{
	uint32_t r = s->replica & (NEAT_REPLICAS_MAX - 1);

	if (!(a32_acquire(&s->flags) & NEAT_SOCKF_BOUND))
		return (struct nt_conn){ 0 };
	return nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);
}

/*
 * Slots of sockets are closed when the home of a port moves (dgram_move.c). Asked under the slot's lock, before its ring
 * is touched.
 */
static inline bool dgram_has_slot(const struct neat_sock *s, const struct nt_conn *c)
{
	const uint32_t r = (uint32_t)(c->rep - nt.rep);

	return s->sub[r].slot == c->slot && s->sub[r].gen == c->gen;
}

/* Another process of ours may have handed it to the kernel, or the instance has ended: then this one lets go, too. */
static inline bool dgram_is_kernel(uint32_t handle)
{
	if (NT_LIKELY(a32_acquire(&nt_sock(handle)->state) == NEAT_SOCK_DGRAM) && NT_LIKELY(!nt_over()))
		return false;
	if (handle)	/* 0: closed by another thread since the caller looked */
		dgram_to_kernel(handle);
	return true;
}

#endif
