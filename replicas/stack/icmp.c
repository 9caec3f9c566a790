/*
 * icmp.c - ICMP in (RFC 792; RFC 1122 3.2.2): echo requests are answered, errors handed to the
 * transport that sent the packet they quote.
 */
#include "ip.h"

enum { ICMP_BUFFER = 1600 };

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
