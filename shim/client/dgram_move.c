/*
 * dgram_move.c - the home of a UDP port moves when its replica drains (contract L8, L9). neatd directs it by the
 * port's registry entry (replicas/moves.py):
 *
 *   home D, also H   each socket of the port opens a slot in H, and goes on reading in D
 *   home H, also D   once all of them have one: senders and the NIC go to H, what is on its way comes to D
 *   home H           a moment later: the slot in D is closed as soon as it is empty
 *
 * Each step is a look at all sockets of this process when registry.scaled has moved. Who cannot take it now is
 * asked again by the next one: neatd moves the counter until the replica has ended.
 */
#include "dgram.h"
#include <netinet/in.h>

static bool taken_up(const struct neat_sock *s, uint32_t r)
{
	struct nt_conn c = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);

	return c.slot && nt_conn_flags(&c) & NEAT_SLOT_DATAGRAM;
}

static void want(uint32_t sock, uint32_t r)
{
	if (r < nt.nreplicas && a32_relaxed(&nt.live) >> r & 1 && !nt_sock(sock)->sub[r].slot)
		dgram_open_slot(sock, r);	/* no room: it stays where it is, and is asked again */
}

/* The new home has the peer already (fill_words(), set_peer()). */
static void settle(struct neat_sock *s, uint32_t home)
{
	struct nt_conn old = dgram_home(s), now = nt_conn_at(home, s->sub[home].slot, s->sub[home].gen);

	a32_or(&now.app->shut, a32_relaxed(&old.app->shut));
	s->replica = home;
}

/* Both rings are empty, and nobody is in the middle of using one. */
static void retire(struct neat_sock *s, uint32_t r)
{
	struct nt_conn c = nt_conn_at(r, s->sub[r].slot, s->sub[r].gen);
	neat_a32 *rx = &c.app->rx_lock, *tx = &c.app->tx_lock;
	uint32_t me = nt_tid();

	/* One that the replica has not taken up yet would look free to the next claimant. */
	if (!taken_up(s, r) || !a32_cas(rx, 0, me))
		return;
	if (a32_cas(tx, 0, me)) {
		if (!nt_readable(&c) && a64_relaxed(&c.app->tx_tail) == a64_acquire(&c.pub->tx_una))
			dgram_close_slot(s, r);
		a32_cas(tx, me, 0);
	}
	a32_cas(rx, me, 0);
}

static void follow(uint32_t sock)
{
	struct neat_sock *s = nt_sock(sock);
	const struct neat_port_entry *e = neat_port_entry_of(nt.registry, s->laddr, s->lport, IPPROTO_UDP);
	uint32_t mask = e ? a32_acquire(&e->mask) : 0;	/* acquire: `also` is at least as new */
	uint32_t home = mask ? (uint32_t)__builtin_ctz(mask) : nt.nreplicas, also = e ? a32_relaxed(&e->also) - 1 : 0;
	uint32_t stay = a32_relaxed(&nt.registry->active);

	if (home >= nt.nreplicas)
		return;
	want(sock, home);
	want(sock, also);
	if (s->replica != home && taken_up(s, home))
		settle(s, home);
	stay |= 1u << home | 1u << s->replica | (also < nt.nreplicas ? 1u << also : 0);
	for (uint32_t r = 0; r < nt.nreplicas; r++)
		if (s->sub[r].slot && !(stay >> r & 1) && a32_relaxed(&nt.live) >> r & 1)
			retire(s, r);
}

void nt_dgram_follow(void)
{
	uint32_t high = nt.row ? a32_relaxed(&nt.app->procs[nt.proc].fd_high) : 0;

	for (uint32_t fd = 0; fd < high; fd++) {
		uint32_t sock = nt_fdword_sock(a64_relaxed(&nt.row[fd]));
		struct neat_sock *s = nt_sock(sock);

		/* Locked: a bind() or connect() of it is under way, perhaps our caller's. */
		if (!sock || a32_acquire(&s->state) != NEAT_SOCK_DGRAM || !a32_cas(&s->lock, 0, nt_tid()))
			continue;
		if (a32_acquire(&s->state) == NEAT_SOCK_DGRAM && a32_relaxed(&s->flags) & NEAT_SOCKF_BOUND)
			follow(sock);
		nt_tid_unlock(&s->lock);
	}
}
