/*
 * replicas.c - which replicas there are, as this process knows it, and which one a connection gets
 * (contract L7, L8).
 *
 * Memory of all that may ever exist is mapped at attach. A replica's words are looked at, and our
 * channel to it is open, only while the registry page names it. Whoever is about to sleep, accept or
 * connect looks whether that has changed; who sleeps is woken by the replicas that stay (R_NUDGE).
 */
#define _GNU_SOURCE
#include "internal.h"
#include <netinet/in.h>
#include <sys/syscall.h>
#include <unistd.h>

void nt_replicas_changed(void)
{
	uint32_t scaled, mask;

	nt_lock(&nt.scale_lock);
	/* Acquire: what the counter stands for is in the page. */
	scaled = a32_acquire(&nt.registry->scaled);
	mask = a32_relaxed(&nt.registry->replicas) & ((1u << nt.nreplicas) - 1);
	if (scaled != a32_relaxed(&nt.scaled)) {
		for (uint32_t fresh = mask & ~a32_relaxed(&nt.live); fresh; fresh &= fresh - 1)
			nt_channel_open((uint32_t)__builtin_ctz(fresh));
		a32_release(&nt.live, mask);
		nt_watch_rescaled();
		a32_release(&nt.scaled, scaled);
	}
	nt_unlock(&nt.scale_lock);
	nt_dgram_follow();
}

uint32_t nt_replicas_at_attach(void)
{
	uint32_t scaled = a32_acquire(&nt.registry->scaled);

	a32_store(&nt.live, a32_relaxed(&nt.registry->replicas) & ((1u << nt.nreplicas) - 1));
	a32_store(&nt.scaled, scaled);
	return a32_relaxed(&nt.live);
}

/* ---- for a new connection ---- */

/* Replicas that may be asked, now; *listed: it is somebody's of ours. */
static uint32_t replicas_for(uint32_t addr, uint16_t port, bool *listed)
{
	uint32_t mask = ~0u, usable;
	bool on_link;

	nt_replicas_look();
	/* Acquire: a replica is named here after its listeners are. */
	usable = a32_acquire(&nt.registry->active) & a32_relaxed(&nt.live);
	*listed = true;
	if (nt_address_is_ours(addr, &on_link))
		*listed = neat_port_find(nt.registry, addr, port, IPPROTO_TCP, &mask) && mask;
	else
		*listed = on_link;
	return *listed ? mask & usable : 0;
}

static uint64_t mixed(uint64_t z)
{
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;	/* splitmix64 (Steele, Lea, Flood 2014) */
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/*
 * Both ports are given: the unordered tuple decides, so that the same tuple is never live twice (L7).
 * Rendezvous hashing moves few of them when replicas come and go.
 */
static uint32_t replica_of_tuple(uint32_t mask, uint64_t here, uint64_t there)
{
	uint64_t tuple = mixed(nt.instance ^ mixed(here) ^ mixed(there)), best = 0;
	uint32_t choice = 0;

	for (; mask; mask &= mask - 1) {
		uint32_t r = (uint32_t)__builtin_ctz(mask);
		uint64_t weight = mixed(tuple + (r + 1) * 0x9e3779b97f4a7c15ull) | 1;

		if (weight > best) {
			best = weight;
			choice = r;
		}
	}
	return choice;
}

int nt_choose_replica(const struct neat_sock *s, uint32_t addr, uint16_t port)
{
	const int64_t SCALE_EVENT_NS = 5000000000;
	int64_t deadline = INT64_MAX;
	bool listed;
	uint32_t mask, pick;

	if (nt_over())
		return -1;
	/* Named, but by nobody who takes connections: we read the page in the middle of a scale event. */
	while (!(mask = replicas_for(addr, port, &listed)) && listed && nt_now_ns() < deadline) {
		deadline = deadline == INT64_MAX ? nt_deadline(SCALE_EVENT_NS) : deadline;
		syscall(SYS_sched_yield);
	}
	if (!mask)
		return -1;
	if (s->lport)
		return (int)replica_of_tuple(mask, (uint64_t)(s->laddr ? s->laddr : addr) << 16 | s->lport,
					     (uint64_t)addr << 16 | port);
	pick = nt_random32() % (uint32_t)__builtin_popcount(mask);
	while (pick--)
		mask &= mask - 1;
	return __builtin_ctz(mask);
}
