/*
 * csum.c - the Internet checksum (RFC 1071) of packets and transport headers.
 */
#include "ip.h"

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
