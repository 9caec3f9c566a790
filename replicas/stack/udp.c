/*
 * udp.c - UDP (RFC 768, RFC 1122 4.1). In this version no application socket reaches it
 * (docs/decisions.md 8): a datagram is checked and answered by port unreachable.
 */
#include "ip.h"

void udp_input(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	const struct wire_udp *h = pkt_get(p, 0, sizeof(*h));
	uint32_t len;

	if (!h) {
		stack_drop(s, DROP_UDP_SHORT);
		return;
	}
	len = be16_get(h->len);
	if (len < sizeof(*h) || len > pkt_total(p)) {
		stack_drop(s, DROP_UDP_SHORT);
		return;
	}
	pkt_trim(p, len);
	if (h->csum.v && !(p->flags & PKT_CSUM_OK) && !ip_transport_csum_ok(p, m)) {
		stack_drop(s, DROP_UDP_CSUM);
		return;
	}
	stack_drop(s, DROP_UDP_NO_PORT);
	/* The IP header, options included, lies in front of what was pulled. */
	struct pkt whole = *p;

	whole.data -= ihl;
	whole.len += ihl;
	icmp_error(s, ICMP_UNREACHABLE, ICMP_UNREACH_PORT, &whole);
}
