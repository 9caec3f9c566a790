/*
 * pkt.h - a packet on its way through the stack: linear headers, and payload that may still lie in
 * the sender's ring (local traffic is copied once, ring to ring).
 *
 * Every read of a packet byte goes through pkt_get() or pkt_payload(); every header pushed in front
 * goes through pkt_push(). Both return NULL when the bytes are not there.
 */
#ifndef NEAT_PKT_H
#define NEAT_PKT_H

#include "ring.h"
#include <string.h>

enum { PKT_HEADROOM = 128 };	/* Ethernet 14 + IPv4 60 + TCP 60, rounded down to two cache lines */

enum pkt_flags {
	PKT_CSUM_OK = 1,	/* transport checksum verified, or the packet never left memory */
	PKT_CSUM_PARTIAL = 2,	/* to send: transport checksum field holds the pseudo-header sum */
	PKT_LOCAL = 4,		/* from our own lo */
	PKT_RETURNED = 16,	/* a SYN of ours that the nic did not send: its tuple is another replica's */
	PKT_ASKED = 32,		/* with PKT_RETURNED: another replica's SYN, is its tuple in use here? To send: it is */
	PKT_PASS = 8,		/* to send: the payload is ours only during this call, so lo delivers at once */
};

struct pkt {
	uint8_t *data;		/* first byte of the current header */
	uint8_t *buf;		/* start of the linear memory (room for pkt_push) */
	uint32_t len;		/* linear bytes from data on */
	uint32_t frag_len;	/* bytes in frag[], which follow the linear ones */
	struct { const uint8_t *p; uint32_t len; } frag[2];
	uint16_t flags;		/* enum pkt_flags */
	uint16_t gso_size;	/* payload bytes of each wire segment, 0 = one segment */
	uint16_t l4_offset;	/* from data, once known */
	/* It leaves in fragments, and there was no room for all of them: bytes of its payload that have left, under this
	 * identification. Who sends the packet again says so, or the receiver gets beginnings only. */
	uint16_t sent_id;
	uint32_t sent;
};

/* What a nic may say of a frame. */
enum { PKT_FROM_NIC = PKT_CSUM_OK | PKT_RETURNED | PKT_ASKED };

/* enum pkt_flags of a frame in a queue. */
static inline uint16_t pkt_flags_of(uint16_t frame)
{
	return (uint16_t)((frame & NEAT_FRAME_CSUM_OK ? PKT_CSUM_OK : 0) |
			  (frame & NEAT_FRAME_CSUM_PARTIAL ? PKT_CSUM_PARTIAL : 0) |
			  (frame & NEAT_FRAME_LOCAL ? PKT_LOCAL : 0) |
			  (frame & NEAT_FRAME_RETURNED ? PKT_RETURNED : 0) |
			  (frame & NEAT_FRAME_ASKED ? PKT_ASKED : 0));
}

/* enum neat_frame_flags of a packet, less where it goes (NEAT_FRAME_IN). */
static inline uint16_t pkt_frame_flags(const struct pkt *p)
{
	return (uint16_t)((p->flags & PKT_CSUM_OK ? NEAT_FRAME_CSUM_OK : 0) |
			  (p->flags & PKT_CSUM_PARTIAL ? NEAT_FRAME_CSUM_PARTIAL : 0) |
			  (p->flags & PKT_LOCAL ? NEAT_FRAME_LOCAL : 0) |
			  (p->flags & PKT_RETURNED ? NEAT_FRAME_RETURNED : 0) |
			  (p->flags & PKT_ASKED ? NEAT_FRAME_ASKED : 0) |
			  (p->gso_size ? NEAT_FRAME_GSO_TCP4 : 0));
}

static inline uint32_t pkt_total(const struct pkt *p) { return p->len + p->frag_len; }

/* Linear bytes [off, off + len), NULL if they are not all there. */
NEAT_CHECKED static inline const void *pkt_get(const struct pkt *p, uint32_t off, uint32_t len)
{
	if (off > p->len || len > p->len - off)
		return NULL;
	return p->data + off;
}

/* Drop n bytes at the front; false if there are fewer linear ones. */
NEAT_CHECKED static inline bool pkt_pull(struct pkt *p, uint32_t n)
{
	if (n > p->len)
		return false;
	p->data += n;
	p->len -= n;
	return true;
}

/* The packet as it was before the last pkt_pull() of n bytes. */
static inline struct pkt pkt_unpulled(const struct pkt *p, uint32_t n)
{
	struct pkt whole = *p;

	whole.data -= n;
	whole.len += n;
	return whole;
}

/* Cut the packet to `total` bytes (link-layer padding); never grows it. */
static inline void pkt_trim(struct pkt *p, uint32_t total)
{
	if (total >= pkt_total(p))
		return;
	if (total <= p->len) {
		p->len = total;
		p->frag_len = 0;
		p->frag[0].len = p->frag[1].len = 0;
		return;
	}
	p->frag_len = total - p->len;
	if (p->frag[0].len > p->frag_len)
		p->frag[0].len = p->frag_len;
	p->frag[1].len = p->frag_len - p->frag[0].len;
}

/* Room for n header bytes in front, or NULL. */
NEAT_CHECKED static inline void *pkt_push(struct pkt *p, uint32_t n)
{
	if ((uintptr_t)(p->data - p->buf) < n)
		return NULL;
	p->data -= n;
	p->len += n;
	return p->data;
}

static inline uint16_t be16_get(neat_be16 x) { return __builtin_bswap16(x.v); }
static inline uint32_t be32_get(neat_be32 x) { return __builtin_bswap32(x.v); }
static inline neat_be16 be16_put(uint16_t x) { return (neat_be16){ __builtin_bswap16(x) }; }
static inline neat_be32 be32_put(uint32_t x) { return (neat_be32){ __builtin_bswap32(x) }; }

#endif
