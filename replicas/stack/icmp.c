/*
 * icmp.c - ICMP (RFC 792; RFC 1122 3.2.2): echo replies, errors out under a rate limit, errors in
 * handed to the transport that sent the packet they quote.
 */
#include "ip.h"

enum {
	ICMP_BURST = 50,	/* tokens */
	ICMP_REFILL_US = 1000,	/* one token each: 1000 a second, as Linux */
	ICMP_QUOTE = 8,		/* RFC 792: IP header and 8 bytes; fits our frames on lo */
	ICMP_BUFFER = 1600,
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

static void icmp_send(struct stack *s, struct pkt *p, uint32_t saddr, uint32_t daddr)
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
	icmp_send(s, &p, be32_get(ip->daddr), be32_get(ip->saddr));
}

static void echo(struct stack *s, const struct pkt *p, const struct ip_meta *m)
{
	uint8_t buf[PKT_HEADROOM + ICMP_BUFFER];
	struct pkt r = { .data = buf + PKT_HEADROOM, .buf = buf, .len = p->len };

	if (p->frag_len || p->len > ICMP_BUFFER) {
		stack_drop(s, DROP_ICMP);
		return;
	}
	memcpy(r.data, p->data, p->len);
	((struct wire_icmp *)r.data)->type = ICMP_ECHO_REPLY;
	icmp_send(s, &r, m->daddr, m->saddr);
}

/* The quoted packet is one of ours only if it has our address as source; the transport checks the rest. */
static void error_in(struct stack *s, const struct pkt *p, const struct wire_icmp *h)
{
	const struct wire_ip *ip = pkt_get(p, sizeof(*h), sizeof(*ip));
	const struct wire_tcp *tcp;	/* its first 8 bytes are there; of UDP's header the ports, too */
	struct flow_key k;
	uint32_t ihl;

	if (!ip || !ip_is_local(s, be32_get(ip->saddr)) ||
	    (ip->proto != IP_PROTO_TCP && ip->proto != IP_PROTO_UDP))
		return;
	ihl = (uint32_t)(ip->ver_ihl & 15) * 4;
	tcp = pkt_get(p, (uint32_t)sizeof(*h) + ihl, 8);
	if (ihl < sizeof(*ip) || !tcp) {
		stack_drop(s, DROP_ICMP);
		return;
	}
	k = (struct flow_key){ be32_get(ip->saddr), be32_get(ip->daddr), be16_get(tcp->sport), be16_get(tcp->dport) };
	if (ip->proto == IP_PROTO_UDP)
		udp_icmp(s, &k, h->type, h->code);
	else
		tcp_icmp(s, &k, be32_get(tcp->seq), h->type, h->code, be32_get(h->rest) & 0xffff);
}

void icmp_input(struct stack *s, struct pkt *p, const struct ip_meta *m)
{
	const struct wire_icmp *h = pkt_get(p, 0, sizeof(*h));

	if (!h || csum_fold(csum_pkt(0, p)) != 0xffff) {
		stack_drop(s, DROP_ICMP);
		return;
	}
	if (h->type == ICMP_ECHO && h->code == 0)
		echo(s, p, m);
	else if (h->type == ICMP_UNREACHABLE || h->type == ICMP_TIME_EXCEEDED || h->type == ICMP_PARAMETER)
		error_in(s, p, h);
}
