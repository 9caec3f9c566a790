/* ip.h - what ip.c, icmp.c and udp.c share beside stack.h. */
#ifndef NEAT_IP_H
#define NEAT_IP_H

#include "stack.h"
#include "wire.h"

/* ICMP rate limit: a token bucket (RFC 1812 4.3.2.8). */
struct ip_state {
	uint64_t icmp_refill_us;
	uint32_t icmp_tokens;
	uint16_t id;		/* next identification for packets that may be fragmented (RFC 6864) */
	uint16_t pad;
};

size_t ip_memory(void);
void ip_init(struct stack *s, void *memory);

/* One's complement sum of `len` bytes, unfolded (RFC 1071). */
uint64_t csum_add(uint64_t sum, const void *data, size_t len);
/* Folded, not complemented. */
uint16_t csum_fold(uint64_t sum);
/* Over p->data on, fragments included. */
uint64_t csum_pkt(uint64_t sum, const struct pkt *p);

void icmp_input(struct stack *s, struct pkt *p, const struct ip_meta *m);
/* ihl: bytes of IP header in front of p->data. */
void udp_input(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl);

#endif
