/* gso.h - cutting TCP/IPv4 super-segments and completing checksums in software. Pure. */
#ifndef NEAT_GSO_H
#define NEAT_GSO_H

#include "frame.h"

enum { GSO_HEADERS_MAX = FRAME_ETH + 60 + 60 };

/* Number of wire segments of a TCP frame of `len` bytes with `gso_size` bytes of payload each. */
uint32_t gso_segments(const struct frame *f, uint32_t len, uint16_t gso_size);
/* Segment i into `out` (at least headers + gso_size bytes), checksums complete. Returns its length. */
uint32_t gso_segment(const uint8_t *frame, uint32_t len, const struct frame *f, uint16_t gso_size, uint32_t i,
		     uint8_t *out);
/* The TCP or UDP checksum field holds the pseudo-header sum: add the rest (RFC 1071). */
void gso_complete(uint8_t *frame, uint32_t len, const struct frame *f);
/* Folded one's complement sum, not complemented. */
uint16_t gso_sum(uint32_t start, const uint8_t *p, uint32_t len);

#endif
