/*
 * icmp_error.c - ICMP errors of ours (RFC 792; RFC 1122 3.2.2) under a rate limit.
 */
#include "ip.h"

enum {
	ICMP_BURST = 50,	/* tokens */
	ICMP_REFILL_US = 1000,	/* one token each: 1000 a second, as Linux */
	ICMP_QUOTE = 8,		/* RFC 792: IP header and 8 bytes; fits our frames on lo */
};

static bool icmp_allowed(struct stack *s)
{
	struct ip_state *ip = s->ip;
	uint64_t n = (s->now_us - ip->icmp_refill_us) / ICMP_REFILL_US;

	if (n) {
		ip->icmp_tokens = n > ICMP_BURST - ip->icmp_tokens ? ICMP_BURST : ip->icmp_tokens + (uint32_t)n;
		ip->icmp_refill_us = s->now_us;
	}
	if (!ip->icmp_tokens)
		return false;
	ip->icmp_tokens--;
	return true;
}

void icmp_send(struct stack *s, struct pkt *p, uint32_t saddr, uint32_t daddr)
{
	struct wire_icmp *h = (struct wire_icmp *)p->data;
	struct ip_meta m = { .saddr = saddr, .daddr = daddr, .proto = IP_PROTO_ICMP };

	h->csum = be16_put(0);
	h->csum = be16_put((uint16_t)~csum_fold(csum_pkt(0, p)));
	if (!ip_output(s, p, &m))
		stack_drop(s, DROP_QUEUE_FULL);
}

void icmp_error(struct stack *s, uint8_t type, uint8_t code, const struct pkt *orig)
{
	const struct wire_ip *ip = pkt_get(orig, 0, sizeof(*ip));
	uint8_t buf[PKT_HEADROOM + 128];
	struct pkt p = { .data = buf + PKT_HEADROOM, .buf = buf };
	uint32_t ihl;
	struct wire_icmp *h = (struct wire_icmp *)p.data;

	if (!ip)
		return;
	ihl = (uint32_t)(ip->ver_ihl & 15) * 4;
	/* RFC 1122 3.2.2: never about an ICMP error, a fragment, or to anything but a unicast host. */
	if (ip->proto == IP_PROTO_ICMP || be16_get(ip->frag) & IP_OFFSET_MASK ||
	    be32_get(ip->daddr) >= 0xe0000000u || orig->len < ihl + ICMP_QUOTE)
		return;
	if (!icmp_allowed(s)) {
		stack_drop(s, DROP_ICMP_RATE);
		return;
	}
	*h = (struct wire_icmp){ .type = type, .code = code };
	memcpy(p.data + sizeof(*h), orig->data, ihl + ICMP_QUOTE);
	p.len = (uint32_t)sizeof(*h) + ihl + ICMP_QUOTE;
	/* Within the unit of work of the datagram: the queue of lo dies with us, and nobody would send again. */
	if (ip->proto == IP_PROTO_UDP && orig->flags & (PKT_LOCAL | PKT_PASS))
		p.flags = PKT_PASS;
	icmp_send(s, &p, be32_get(ip->daddr), be32_get(ip->saddr));
}
