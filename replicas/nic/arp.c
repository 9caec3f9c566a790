/*
 * arp.c - ARP between one address and many replicas (paper 6.4, RFC 826, RFC 5227): every replica
 * has its own neighbour table, so replies go to all of them; a question gets one answer, so
 * requests go to one.
 *
 * Not responsible for: IPv6 neighbour discovery (frames of it are dropped as FRAME_OTHER).
 */
#include "steer.h"
#include <string.h>

enum { ARP_OP_REQUEST = 1, ARP_OP_REPLY = 2 };

/* The same asker gets the same replica, which then knows its MAC; one that runs is preferred. */
static uint32_t one_of(const struct steer *s, const struct frame *f, uint32_t queues, uint32_t ready)
{
	uint32_t among = ready & s->active ? ready & s->active : ready ? ready : queues;
	uint32_t h = rss_hash_pair(&s->rss, f->t.raddr, f->t.laddr);

	if (!among)
		return 0;
	return 1u << mask_nth(among, (uint32_t)((uint64_t)h * (uint32_t)__builtin_popcount(among) >> 32));
}

struct steer_to arp_rx(const struct steer *s, const struct frame *f, uint32_t queues, uint32_t ready)
{
	bool announcement = f->t.raddr == f->t.laddr && f->t.raddr;

	/* Somebody else claims our address: none of our replicas can settle that (RFC 5227 2.4). */
	if (f->t.raddr == s->addr)
		return (struct steer_to){ 0, NEAT_NIC_RX_NOT_OURS };
	if (f->arp_op == ARP_OP_REPLY || (f->arp_op == ARP_OP_REQUEST && announcement))
		return (struct steer_to){ queues, NEAT_NIC_RX_FULL };
	if (f->arp_op == ARP_OP_REQUEST && f->t.laddr == s->addr)
		return (struct steer_to){ one_of(s, f, queues, ready), NEAT_NIC_RX_FULL };
	return (struct steer_to){ 0, NEAT_NIC_RX_NOT_OURS };
}

bool arp_tx(const struct steer *s, const uint8_t *bytes, const struct frame *f)
{
	const uint8_t *a = bytes + FRAME_ETH;
	uint32_t spa = frame_be32(a + 14);

	(void)f;
	return memcmp(a + 8, s->mac, 6) == 0 && (spa == s->addr || spa == 0);
}
