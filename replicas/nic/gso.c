/* gso.c - see gso.h. The caller has checked that `f` was parsed from these bytes. */
#include "gso.h"
#include <string.h>

enum { IP_AT = FRAME_ETH, PROTO_TCP = 6 };

uint16_t gso_sum(uint32_t start, const uint8_t *p, uint32_t len)
{
	uint64_t sum = start;

	for (; len >= 2; len -= 2, p += 2)
		sum += frame_be16(p);
	if (len)
		sum += (uint64_t)p[0] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

uint32_t gso_segments(const struct frame *f, uint32_t len, uint16_t gso_size)
{
	return len > f->payload && gso_size ? (len - f->payload + gso_size - 1) / gso_size : 1;
}

static uint32_t checksum_at(const struct frame *f) { return f->l4_offset + (f->proto == PROTO_TCP ? 16u : 6u); }

void gso_complete(uint8_t *frame, uint32_t len, const struct frame *f)
{
	uint16_t sum = (uint16_t)~gso_sum(0, frame + f->l4_offset, len - f->l4_offset);

	/* RFC 768: a computed zero is sent as ones; 0 means none. */
	if (!sum && f->proto != PROTO_TCP)
		sum = 0xffff;
	frame_put16(frame + checksum_at(f), sum);
}

static void fix_ip(uint8_t *ip, uint32_t total, uint32_t i)
{
	uint32_t ihl = (uint32_t)(ip[0] & 15) * 4;

	frame_put16(ip + 2, (uint16_t)total);
	frame_put16(ip + 4, (uint16_t)(frame_be16(ip + 4) + i));
	frame_put16(ip + 10, 0);
	frame_put16(ip + 10, (uint16_t)~gso_sum(0, ip, ihl));
}

static void pseudo_sum(uint8_t *frame, uint32_t len, const struct frame *f)
{
	uint32_t l4_len = len - f->l4_offset;

	frame_put16(frame + checksum_at(f), gso_sum(f->proto + l4_len, frame + IP_AT + 12, 8));
}

uint32_t gso_segment(const uint8_t *frame, uint32_t len, const struct frame *f, uint16_t gso_size, uint32_t i,
		     uint8_t *out)
{
	uint32_t at = f->payload + i * gso_size, left = len - at, n = left < gso_size ? left : gso_size;
	uint8_t *tcp = out + f->l4_offset;

	memcpy(out, frame, f->payload);
	memcpy(out + f->payload, frame + at, n);
	fix_ip(out + IP_AT, f->payload - (uint32_t)IP_AT + n, i);
	frame_put32(tcp + 4, frame_be32(tcp + 4) + i * gso_size);
	/* FIN and PSH belong to the last byte, CWR to the first segment (RFC 3168 6.1.2). */
	if (n != left)
		tcp[13] &= (uint8_t)~(FRAME_FIN | FRAME_PSH);
	if (i)
		tcp[13] &= (uint8_t)~FRAME_CWR;
	pseudo_sum(out, f->payload + n, f);
	gso_complete(out, f->payload + n, f);
	return f->payload + n;
}
