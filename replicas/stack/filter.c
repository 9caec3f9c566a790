/*
 * filter.c - the packet filter: stateless rules over direction, protocol, addresses and ports. The
 * first rule that matches decides, none passes. At most NEAT_FILTER_MAX comparisons for a packet.
 *
 * It lies between IP and the transports, so `lo` is filtered like the wire, and a packet from a
 * program here to a program here is seen twice: going out and coming in, as in Linux. Rejecting
 * follows Linux's nf_reject_ipv4: the answer comes from whoever was to get the packet, and is a packet that
 * the rules for `out` see in turn.
 */
#include "filter.h"
#include "ip.h"
#include <errno.h>

size_t filter_memory(void) { return sizeof(struct filter); }
void filter_init(struct stack *s, void *memory) { s->filter = memory; }

/* ---- rules ---- */

static bool any_port(const uint16_t range[2]) { return range[0] == 0 && range[1] == 0xffff; }

static bool rule_ok(const struct neat_filter_rule *r)
{
	bool ports = !any_port(r->sport) || !any_port(r->dport);

	return r->sprefix <= 32 && r->dprefix <= 32 && r->dir && r->dir <= (NEAT_FILTER_IN | NEAT_FILTER_OUT) &&
	       r->action <= NEAT_FILTER_REJECT && r->sport[0] <= r->sport[1] && r->dport[0] <= r->dport[1] &&
	       (!ports || r->proto == IP_PROTO_TCP || r->proto == IP_PROTO_UDP);
}

static bool is_ours(const struct stack *s, const struct neat_filter_rule *r)
{
	return !r->replicas || r->replicas >> s->cfg.index & 1;
}

int filter_set(struct stack *s, const struct neat_filter_rule *rules, uint32_t n)
{
	struct filter *f = s->filter;

	if (n > NEAT_FILTER_MAX)
		return -EINVAL;
	for (uint32_t i = 0; i < n; i++)
		if (!rule_ok(&rules[i]))
			return -EINVAL;
	for (uint32_t i = 0; i < n; i++) {
		const struct neat_filter_rule *r = &rules[i];
		uint32_t smask = ip_netmask(r->sprefix), dmask = ip_netmask(r->dprefix);

		f->rule[i] = (struct filter_rule){
			.saddr = r->saddr & smask, .smask = smask, .daddr = r->daddr & dmask, .dmask = dmask,
			.sport = { r->sport[0], r->sport[1] }, .dport = { r->dport[0], r->dport[1] },
			.dir = is_ours(s, r) ? r->dir : 0, .proto = r->proto, .action = r->action,
			.ports = !any_port(r->sport) || !any_port(r->dport),
		};
	}
	f->n = n;
	return 0;
}

/* ---- verdicts ---- */

/* Zero when the packet is too short to have them: such a segment is dropped by its transport. */
static void ports_of(const struct pkt *p, uint8_t proto, uint16_t port[2])
{
	const struct wire_udp *h = pkt_get(p, 0, 4);	/* TCP has them at the same place */

	port[0] = port[1] = 0;
	if (h && (proto == IP_PROTO_TCP || proto == IP_PROTO_UDP)) {
		port[0] = be16_get(h->sport);
		port[1] = be16_get(h->dport);
	}
}

static enum neat_filter_action verdict(struct filter *f, uint8_t dir, const struct pkt *p, const struct ip_meta *m)
{
	uint16_t port[2];

	ports_of(p, m->proto, port);
	for (uint32_t i = 0; i < f->n; i++) {
		struct filter_rule *r = &f->rule[i];

		if (!(r->dir & dir) || (r->proto && r->proto != m->proto) ||
		    (m->saddr & r->smask) != r->saddr || (m->daddr & r->dmask) != r->daddr)
			continue;
		if (r->ports && (port[0] < r->sport[0] || port[0] > r->sport[1] || port[1] < r->dport[0] ||
				 port[1] > r->dport[1]))
			continue;
		r->packets++;
		r->bytes += pkt_total(p) + sizeof(struct wire_ip);
		return r->action;
	}
	return NEAT_FILTER_PASS;
}

/* ---- reject ---- */

struct reset {
	uint8_t headroom[PKT_HEADROOM];
	struct wire_tcp h;
};

/* RFC 9293 3.10.7.1: the RST that a closed port would send. Never for a RST. */
static void reject_tcp(struct stack *s, const struct pkt *p, const struct ip_meta *m)
{
	const struct wire_tcp *h = pkt_get(p, 0, sizeof(*h));
	struct ip_meta back = { .saddr = m->daddr, .daddr = m->saddr, .proto = IP_PROTO_TCP };
	uint32_t header = h ? (uint32_t)(h->offset >> 4) * 4 : 0;
	struct reset b = { 0 };
	struct pkt r = { .data = (uint8_t *)&b.h, .buf = b.headroom, .len = sizeof(b.h) };

	if (!h || h->flags & TCP_RST || header < sizeof(*h) || header > pkt_total(p))
		return;
	b.h.sport = h->dport;
	b.h.dport = h->sport;
	b.h.offset = sizeof(b.h) / 4 << 4;
	b.h.flags = TCP_RST;
	if (h->flags & TCP_ACK) {
		b.h.seq = h->ack;
	} else {
		b.h.flags |= TCP_ACK;
		b.h.ack = be32_put(be32_get(h->seq) + pkt_total(p) - header + !!(h->flags & TCP_SYN) +
				   !!(h->flags & TCP_FIN));
	}
	b.h.csum = be16_put(ip_pseudo_sum(back.saddr, back.daddr, IP_PROTO_TCP, sizeof(b.h)));
	b.h.csum = be16_put((uint16_t)~csum_fold(csum_pkt(0, &r)));
	s->count.resets_out++;
	if (!ip_output(s, &r, &back))
		stack_drop(s, DROP_QUEUE_FULL);	/* lost like any other; the sender tries again */
}

static bool passes(struct stack *s, enum neat_filter_action action)
{
	if (action == NEAT_FILTER_PASS)
		return true;
	stack_drop(s, DROP_FILTER);
	return false;
}

bool filter_in(struct stack *s, const struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	enum neat_filter_action action = verdict(s->filter, NEAT_FILTER_IN, p, m);
	const struct pkt whole = pkt_unpulled(p, ihl);

	if (passes(s, action))
		return true;
	if (action != NEAT_FILTER_REJECT)
		return false;
	if (m->proto != IP_PROTO_TCP)
		icmp_error(s, ICMP_UNREACHABLE, ICMP_UNREACH_PORT, &whole);
	/* What nobody sent is not answered. */
	else if (p->flags & PKT_CSUM_OK || ip_transport_csum_ok(p, m))
		reject_tcp(s, p, m);
	return false;
}

/* The answer goes to the program here that sent the packet, by way of lo. */
bool filter_out(struct stack *s, const struct pkt *p, const struct ip_meta *m)
{
	enum neat_filter_action action = verdict(s->filter, NEAT_FILTER_OUT, p, m);
	struct pkt whole = *p;

	if (passes(s, action))
		return true;
	if (action != NEAT_FILTER_REJECT)
		return false;
	if (m->proto == IP_PROTO_TCP)
		reject_tcp(s, p, m);
	else if (ip_push_header(&whole, m))
		icmp_error(s, ICMP_UNREACHABLE, ICMP_UNREACH_PORT, &whole);
	return false;
}
