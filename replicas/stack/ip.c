/*
 * ip.c - IPv4 in and out (RFC 791, 1122 3.2, 6864).
 *
 * Hosts only: nothing is forwarded. Not responsible for: ICMP (icmp.c), neighbours (link.c), what a
 * packet meets between here and the transports (ip_hop.c).
 */
#include "ip.h"

/* RFC 1122 3.2.1.3: never a source or destination of a host's packet. */
static bool martian(const struct stack *s, uint32_t saddr, uint32_t daddr, bool local)
{
	uint32_t broadcast = s->cfg.addr | ~ip_netmask(s->cfg.prefix);

	if (saddr == 0 || saddr >= 0xe0000000u || daddr == 0)
		return true;
	if (local)
		return false;
	return ip_is_loopback(saddr) || ip_is_loopback(daddr) || saddr == s->cfg.addr ||
	       (s->cfg.prefix < 31 && saddr == broadcast);
}

/* ---- in ---- */

/* RFC 1122 3.2.1.8: source routes are dropped; other options are allowed and ignored. */
static bool options_ok(const uint8_t *opt, uint32_t len)
{
	for (uint32_t i = 0; i < len && opt[i] != 0;) {
		if (opt[i] == 1) {
			i++;
			continue;
		}
		if (i + 2 > len || opt[i + 1] < 2 || opt[i + 1] > len - i)
			return false;
		if (opt[i] == IP_OPT_LSRR || opt[i] == IP_OPT_SSRR)
			return false;
		i += opt[i + 1];
	}
	return true;
}

/* Header length if the header may be believed, else 0 with the reason counted. */
static uint32_t header_check(struct stack *s, const struct pkt *p, const struct wire_ip *h)
{
	uint32_t ihl = (uint32_t)(h->ver_ihl & 15) * 4, total = be16_get(h->total_len);
	bool super = p->gso_size || p->flags & PKT_LOCAL;

	if (h->ver_ihl >> 4 != 4) {
		stack_drop(s, DROP_IP_VERSION);
		return 0;
	}
	/* A super-segment may not fit the 16-bit length; then the field is 0 and the frame counts. */
	if (ihl < sizeof(*h) || ihl > p->len || (total < ihl && !(super && total == 0)) || total > pkt_total(p)) {
		stack_drop(s, DROP_IP_HEADER);
		return 0;
	}
	if (!(p->flags & PKT_LOCAL) && csum_fold(csum_add(0, h, ihl)) != 0xffff) {
		stack_drop(s, DROP_IP_CSUM);
		return 0;
	}
	if (ihl > sizeof(*h) && !options_ok(p->data + sizeof(*h), ihl - (uint32_t)sizeof(*h))) {
		stack_drop(s, DROP_IP_OPTIONS);
		return 0;
	}
	return ihl;
}

void ip_input(struct stack *s, struct pkt *p)
{
	const struct wire_ip *h = pkt_get(p, 0, sizeof(*h));
	struct ip_meta m;
	uint32_t ihl;

	if (!h) {
		stack_drop(s, DROP_SHORT);
		return;
	}
	ihl = header_check(s, p, h);
	if (!ihl)
		return;
	m = (struct ip_meta){ be32_get(h->saddr), be32_get(h->daddr), h->proto, h->ttl, h->tos, 0 };
	/* What comes back is to the peer, from us. */
	if (!(p->flags & PKT_RETURNED) && !ip_is_local(s, m.daddr)) {
		stack_drop(s, DROP_NOT_OURS);
		return;
	}
	if (!(p->flags & PKT_RETURNED) && martian(s, m.saddr, m.daddr, p->flags & PKT_LOCAL)) {
		stack_drop(s, DROP_IP_MARTIAN);
		return;
	}
	if (be16_get(h->frag) & (IP_MF | IP_OFFSET_MASK)) {
		stack_drop(s, DROP_IP_FRAGMENT);
		return;
	}
	if (be16_get(h->total_len))
		pkt_trim(p, be16_get(h->total_len));
	if (pkt_pull(p, ihl))
		ip_received(s, p, &m, ihl);
}

/* ---- out ---- */

bool ip_send(struct stack *s, struct pkt *p)
{
	struct wire_ip *h = (struct wire_ip *)(void *)p->data;
	uint32_t daddr = be32_get(h->daddr);

	if (ip_is_local(s, daddr))
		return lo_output(s, p);
	if (!ip_source_for(s, daddr)) {
		stack_drop(s, DROP_NO_ROUTE);
		return true;
	}
	h->csum.v = 0;
	h->csum = be16_put((uint16_t)~csum_fold(csum_add(0, h, sizeof(*h))));
	return link_output(s, p, ip_on_link(s, daddr) ? daddr : s->cfg.gateway);
}
