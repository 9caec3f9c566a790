/* ip.h - what ip.c, icmp.c and udp.c share beside stack.h. */
#ifndef NEAT_IP_H
#define NEAT_IP_H

#include "stack.h"
#include "wire.h"

enum { IP_ID_COUNTERS = 64, IP_FRAGMENT_COPY = 8 };

/* ICMP rate limit: a token bucket (RFC 1812 4.3.2.8). */
struct ip_state {
	uint64_t icmp_refill_us;
	uint32_t icmp_tokens;
	uint32_t pad;
	uint16_t id[IP_ID_COUNTERS];	/* next identification of a packet in fragments (RFC 6864) */
};

size_t ip_memory(void);
void ip_init(struct stack *s, void *memory);

/* One's complement sum of `len` bytes, unfolded (RFC 1071). */
uint64_t csum_add(uint64_t sum, const void *data, size_t len);
/* Folded, not complemented. */
uint16_t csum_fold(uint64_t sum);
/* Over p->data on, fragments included. */
uint64_t csum_pkt(uint64_t sum, const struct pkt *p);

/* ---- addresses, and the header in front of a packet of ours ---- */
static inline uint32_t ip_netmask(uint32_t prefix) { return prefix ? ~0u << (32 - (prefix > 32 ? 32 : prefix)) : 0; }
bool ip_on_link(const struct stack *s, uint32_t addr);
/* The header in front of p->data, all but its checksum; false if there is no room for it. */
NEAT_CHECKED static inline bool ip_push_header(struct pkt *p, const struct ip_meta *m)
{
	uint32_t total = pkt_total(p) + (uint32_t)sizeof(struct wire_ip);
	struct wire_ip *h = pkt_push(p, sizeof(*h));

	if (!h)
		return false;
	/* DF on what is whole, so its identification carries no meaning (RFC 6864). */
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
	return true;
}

/*
 * ---- the way of a packet; each arrow is a one-way message (contract P6) ----
 *
 *   ip_input -> ip_received (filter) -> ip_deliver -> tcp_input, udp_input, icmp_input
 *   tcp, udp, icmp -> ip_output (filter) -> ip_send -> lo_output, link_output
 *
 * p->data at the transport header in received and deliver, ihl bytes of IP header in front of it.
 */
void ip_received(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl);
void ip_deliver(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl);
/* p->data at a header that ip_push_header() made. False = no room. */
bool ip_send(struct stack *s, struct pkt *p);

/* ---- ip_frag.c ---- */
struct ip_fragment {
	_Alignas(16) uint8_t room[PKT_HEADROOM + sizeof(struct wire_ip) + IP_FRAGMENT_COPY];
	struct pkt p;
};
uint16_t ip_fragment_id(struct stack *s, uint32_t daddr);
/* The fragment whose payload begins at p->sent: its bytes; 0 = that was all. p->data at a header of ours. */
uint32_t ip_fragment_next(const struct pkt *p, uint32_t mtu, struct ip_fragment *f);

/* p->data at an ICMP header: checksum, then out. */
void icmp_send(struct stack *s, struct pkt *p, uint32_t saddr, uint32_t daddr);
void icmp_input(struct stack *s, struct pkt *p, const struct ip_meta *m);
/* ihl: bytes of IP header in front of p->data. */
void udp_input(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl);

#endif
