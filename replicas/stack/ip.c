/*
 * ip.c - IPv4 in and out (RFC 791, 1122 3.2, 6864) and the Internet checksum (RFC 1071).
 *
 * Hosts only: nothing is forwarded. Not responsible for: ICMP (icmp.c), neighbours (link.c).
 */
#include "ip.h"

/* ---- checksum ---- */

uint64_t csum_add(uint64_t sum, const void *data, size_t len)
{
	const uint8_t *p = data;
	unsigned __int128 wide = sum;

	for (; len >= 8; len -= 8, p += 8) {
		uint64_t w;

		memcpy(&w, p, 8);
		wide += w;
	}
	if (len) {
		uint64_t w = 0;

		memcpy(&w, p, len);
		wide += w;
	}
	/* 2^64 = 1 modulo 2^16 - 1. */
	sum = (uint64_t)wide + (uint64_t)(wide >> 64);
	return sum < (uint64_t)(wide >> 64) ? sum + 1 : sum;
}

uint16_t csum_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return __builtin_bswap16((uint16_t)sum);
}

/* Adds a piece that starts at an odd offset: its bytes swap places. */
static uint64_t csum_piece(uint64_t sum, const uint8_t *p, uint32_t len, bool odd)
{
	uint64_t piece = csum_add(0, p, len);

	if (odd) {
		uint16_t folded = csum_fold(piece);	/* big-endian value */

		return csum_add(sum, &folded, 2);
	}
	return csum_add(sum, &piece, 8);
}

uint64_t csum_pkt(uint64_t sum, const struct pkt *p)
{
	uint32_t at = p->len;

	sum = csum_add(sum, p->data, p->len);
	for (int i = 0; i < 2 && p->frag_len; at += p->frag[i].len, i++)
		sum = csum_piece(sum, p->frag[i].p, p->frag[i].len, at & 1);
	return sum;
}

static uint64_t pseudo(uint32_t saddr, uint32_t daddr, uint8_t proto, uint32_t len)
{
	const neat_be32 words[3] = { be32_put(saddr), be32_put(daddr), be32_put((uint32_t)proto << 16 | (len & 0xffff)) };

	return csum_add(0, words, sizeof(words));
}

uint16_t ip_pseudo_sum(uint32_t saddr, uint32_t daddr, uint8_t proto, uint32_t len)
{
	return csum_fold(pseudo(saddr, daddr, proto, len));
}

bool ip_transport_csum_ok(const struct pkt *p, const struct ip_meta *m)
{
	return csum_fold(csum_pkt(pseudo(m->saddr, m->daddr, m->proto, pkt_total(p)), p)) == 0xffff;
}

/* ---- addresses ---- */

size_t ip_memory(void) { return sizeof(struct ip_state); }
void ip_init(struct stack *s, void *memory)
{
	s->ip = memory;
	s->ip->id = (uint16_t)s->ops.random(s->ops.world);
	s->ip->icmp_tokens = 50;
}

static bool is_loopback(uint32_t addr) { return addr >> 24 == 127; }

bool ip_is_local(const struct stack *s, uint32_t addr)
{
	return is_loopback(addr) || (s->cfg.addr && addr == s->cfg.addr);
}

static uint32_t netmask(uint32_t prefix) { return prefix ? ~0u << (32 - (prefix > 32 ? 32 : prefix)) : 0; }

static bool on_link(const struct stack *s, uint32_t addr)
{
	return s->cfg.addr && ((addr ^ s->cfg.addr) & netmask(s->cfg.prefix)) == 0;
}

uint32_t ip_source_for(const struct stack *s, uint32_t daddr)
{
	/* Linux's local table: 127.0.0.0/8 has source 127.0.0.1. */
	if (daddr >> 24 == 127)
		return 0x7f000001;
	if (ip_is_local(s, daddr))
		return daddr;
	if (on_link(s, daddr) || (s->cfg.addr && s->cfg.gateway))
		return s->cfg.addr;
	return 0;
}

uint32_t ip_mtu_for(const struct stack *s, uint32_t daddr)
{
	return ip_is_local(s, daddr) ? s->cfg.lo_mtu : s->cfg.mtu;
}

/* RFC 1122 3.2.1.3: never a source or destination of a host's packet. */
static bool martian(const struct stack *s, uint32_t saddr, uint32_t daddr, bool local)
{
	uint32_t broadcast = s->cfg.addr | ~netmask(s->cfg.prefix);

	if (saddr == 0 || saddr >= 0xe0000000u || daddr == 0)
		return true;
	if (local)
		return false;
	return is_loopback(saddr) || is_loopback(daddr) || saddr == s->cfg.addr ||
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

static void unknown_protocol(struct stack *s, const struct pkt *p, uint32_t ihl)
{
	struct pkt whole = *p;

	whole.data -= ihl;
	whole.len += ihl;
	stack_drop(s, DROP_IP_PROTO);
	icmp_error(s, ICMP_UNREACHABLE, ICMP_UNREACH_PROTO, &whole);
}

static void deliver(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	switch (m->proto) {
	case IP_PROTO_TCP:
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
	if (!ip_is_local(s, m.daddr)) {
		stack_drop(s, DROP_NOT_OURS);
		return;
	}
	if (martian(s, m.saddr, m.daddr, p->flags & PKT_LOCAL)) {
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
		deliver(s, p, &m, ihl);
}

/* ---- out ---- */

bool ip_output(struct stack *s, struct pkt *p, const struct ip_meta *m)
{
	uint32_t total = pkt_total(p) + (uint32_t)sizeof(struct wire_ip);
	struct wire_ip *h = pkt_push(p, sizeof(*h));
	bool local = ip_is_local(s, m->daddr);

	if (!h) {
		stack_drop(s, DROP_SHORT);
		return true;
	}
	/* DF on everything: no fragments of ours, so the identification carries no meaning (RFC 6864). */
	*h = (struct wire_ip){
		.ver_ihl = 0x45,
		.tos = m->tos,
		.total_len = be16_put((uint16_t)(total <= 0xffff ? total : 0)),
		.frag = be16_put(IP_DF),
		.ttl = m->ttl ? m->ttl : IP_TTL_DEFAULT,
		.proto = m->proto,
		.saddr = be32_put(m->saddr),
		.daddr = be32_put(m->daddr),
	};
	if (local)
		return lo_output(s, p);
	if (!ip_source_for(s, m->daddr)) {
		stack_drop(s, DROP_NO_ROUTE);
		return true;
	}
	h->csum = be16_put((uint16_t)~csum_fold(csum_add(0, h, sizeof(*h))));
	return link_output(s, p, on_link(s, m->daddr) ? m->daddr : s->cfg.gateway);
}
