/* frame.c - reading headers (RFC 791, 792, 826, 768, 9293); see frame.h. */
#include "frame.h"

enum {
	TYPE_IPV4 = 0x0800,
	TYPE_ARP = 0x0806,
	ARP_LEN = 28,
	IP_MIN = 20,
	IP_FRAGMENT = 0x3fff,	/* MF and offset */
	IP_OFFSET = 0x1fff,
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	TCP_MIN = 20,
	UDP_LEN = 8,
	ICMP_LEN = 8,
};

/* RFC 1122 3.2.2: the ICMP messages that quote a packet. */
static bool quotes(uint8_t type)
{
	return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

static void set_tuple(struct frame *f, const uint8_t *ip, const uint8_t *ports, bool sent)
{
	uint32_t from = frame_be32(ip + 12), to = frame_be32(ip + 16);
	uint16_t sport = ports ? frame_be16(ports) : 0, dport = ports ? frame_be16(ports + 2) : 0;

	f->t = sent ? (struct frame_tuple){ to, from, dport, sport } : (struct frame_tuple){ from, to, sport, dport };
}

/* Length of the IPv4 header at `ip`, 0 if it is none or not all there. */
static uint32_t ip_header(const uint8_t *ip, uint32_t have)
{
	uint32_t ihl;

	if (have < IP_MIN || ip[0] >> 4 != 4)
		return 0;
	ihl = (uint32_t)(ip[0] & 15) * 4;
	return ihl >= IP_MIN && ihl <= have ? ihl : 0;
}

static void parse_tcp(struct frame *f, const uint8_t *ip, const uint8_t *l4, uint32_t have, bool sent)
{
	uint32_t header;

	f->kind = FRAME_BAD;
	if (have < TCP_MIN)
		return;
	header = (uint32_t)(l4[12] >> 4) * 4;
	if (header < TCP_MIN)
		return;
	f->kind = FRAME_TCP;
	set_tuple(f, ip, l4, sent);
	f->seq = frame_be32(l4 + 4);
	f->ack = frame_be32(l4 + 8);
	f->tcp_flags = l4[13];
	f->payload = (uint16_t)(f->l4_offset + header);
}

/* The quoted packet is one that we sent: its source is our side when the error comes in. */
static void parse_icmp(struct frame *f, const uint8_t *l4, uint32_t have, bool sent)
{
	const uint8_t *inner = l4 + ICMP_LEN;
	uint32_t ihl;

	if (have < ICMP_LEN || !quotes(l4[0]))
		return;
	ihl = ip_header(inner, have - ICMP_LEN);
	if (!ihl || have - ICMP_LEN - ihl < 4 || frame_be16(inner + 6) & IP_OFFSET ||
	    (inner[9] != PROTO_TCP && inner[9] != PROTO_UDP))
		return;
	f->kind = FRAME_ICMP_ERROR;
	f->proto = inner[9];
	set_tuple(f, inner, inner + ihl, !sent);
}

static void parse_ip(struct frame *f, const uint8_t *ip, uint32_t have, bool sent)
{
	uint32_t ihl = ip_header(ip, have);

	f->kind = FRAME_BAD;
	if (!ihl)
		return;
	f->kind = FRAME_PAIR;
	f->proto = ip[9];
	f->l4_offset = (uint16_t)(FRAME_ETH + ihl);
	set_tuple(f, ip, 0, sent);
	f->laddr = f->t.laddr;
	f->fragment = frame_be16(ip + 6) & IP_FRAGMENT;
	if (f->fragment)
		return;
	if (f->proto == PROTO_TCP) {
		parse_tcp(f, ip, ip + ihl, have - ihl, sent);
	} else if (f->proto == PROTO_UDP && have - ihl >= UDP_LEN) {
		f->kind = FRAME_UDP;
		set_tuple(f, ip, ip + ihl, sent);
		f->payload = (uint16_t)(f->l4_offset + UDP_LEN);
	} else if (f->proto == PROTO_UDP) {
		f->kind = FRAME_BAD;
	} else if (f->proto == PROTO_ICMP) {
		parse_icmp(f, ip + ihl, have - ihl, sent);
	}
}

struct frame frame_parse(const uint8_t *b, uint32_t have, bool sent)
{
	struct frame f = { .kind = FRAME_BAD };

	if (have < FRAME_ETH)
		return f;
	f.kind = FRAME_OTHER;
	if (frame_be16(b + 12) == TYPE_IPV4) {
		parse_ip(&f, b + FRAME_ETH, have - FRAME_ETH, sent);
	} else if (frame_be16(b + 12) == TYPE_ARP) {
		const uint8_t *a = b + FRAME_ETH;

		f.kind = FRAME_BAD;
		/* RFC 826: Ethernet (1), IPv4, lengths 6 and 4. */
		if (have < FRAME_ETH + ARP_LEN || frame_be16(a) != 1 || frame_be16(a + 2) != TYPE_IPV4 ||
		    a[4] != 6 || a[5] != 4)
			return f;
		f.kind = FRAME_ARP;
		f.arp_op = frame_be16(a + 6);
		f.t.raddr = frame_be32(a + 14);
		f.t.laddr = f.laddr = frame_be32(a + 24);
	}
	return f;
}
