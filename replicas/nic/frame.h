/*
 * frame.h - what the nic reads of a frame: enough to steer and track it, nothing of the payload.
 *
 * Pure. Every byte comes from the wire or from a replica; the caller hands over a copy of the first
 * FRAME_LOOK bytes, because a replica may change its buffer while we look.
 */
#ifndef NEAT_FRAME_H
#define NEAT_FRAME_H

#include <stdbool.h>
#include <stdint.h>

enum {
	FRAME_ETH = 14,
	FRAME_LOOK = 192,	/* Ethernet 14, IPv4 60, ICMP 8, quoted IPv4 60, 8 bytes of its transport: 150 */
};

enum frame_kind {
	FRAME_BAD = 0,		/* shorter than its own headers claim */
	FRAME_OTHER,		/* neither IPv4 nor ARP */
	FRAME_ARP,
	FRAME_TCP,
	FRAME_UDP,
	FRAME_ICMP_ERROR,	/* t is the tuple of the quoted packet */
	FRAME_PAIR,		/* IPv4 without usable ports: echo, fragments, other protocols */
};

enum { FRAME_FIN = 0x01, FRAME_SYN = 0x02, FRAME_RST = 0x04, FRAME_PSH = 0x08, FRAME_ACK = 0x10, FRAME_CWR = 0x80 };

/* Host order; from our side, whatever the direction of the frame. */
struct frame_tuple {
	uint32_t raddr, laddr;
	uint16_t rport, lport;
};

struct frame {
	enum frame_kind kind;
	struct frame_tuple t;	/* ARP: raddr = sender's, laddr = target's protocol address */
	uint32_t laddr;		/* our address in the outer header (t.laddr unless ICMP_ERROR) */
	uint32_t seq, ack;	/* TCP */
	uint16_t arp_op;
	uint16_t l4_offset;	/* IPv4, from the start of the frame */
	uint16_t payload;	/* TCP, UDP: offset of the payload */
	uint8_t tcp_flags;
	uint8_t proto;
	bool fragment;		/* IPv4: one of several */
};

/* `have` bytes at `b`; `sent`: a frame of a replica, so that its source is our side. */
struct frame frame_parse(const uint8_t *b, uint32_t have, bool sent);

static inline uint16_t frame_be16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t frame_be32(const uint8_t *p) { return (uint32_t)frame_be16(p) << 16 | frame_be16(p + 2); }
static inline void frame_put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}
static inline void frame_put32(uint8_t *p, uint32_t v)
{
	frame_put16(p, (uint16_t)(v >> 16));
	frame_put16(p + 2, (uint16_t)v);
}

#endif
