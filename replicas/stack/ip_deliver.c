/*
 * ip_deliver.c - a received packet that passed the filter goes to its protocol.
 */
#include "ip.h"

static void unknown_protocol(struct stack *s, const struct pkt *p, uint32_t ihl)
{
	const struct pkt whole = pkt_unpulled(p, ihl);

	stack_drop(s, DROP_IP_PROTO);
	icmp_error(s, ICMP_UNREACHABLE, ICMP_UNREACH_PROTO, &whole);
}

void ip_deliver(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	switch (m->proto) {
	case IP_PROTO_TCP:
		if (p->flags & PKT_ASKED)
			tcp_asked(s, p, m);
		else if (p->flags & PKT_RETURNED)
			tcp_returned(s, p, m);
		else
			tcp_input(s, p, m);
		break;
	case IP_PROTO_UDP:
		udp_input(s, p, m, ihl);
		break;
	case IP_PROTO_ICMP:
		icmp_input(s, p, m);
		break;
	default:
		unknown_protocol(s, p, ihl);
	}
}
