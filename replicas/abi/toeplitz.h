/*
 * toeplitz.h - receive-side scaling: Toeplitz over source and destination address and port, most
 * significant bit first, as NICs compute it (Microsoft, "Verifying the RSS Hash Calculation").
 * Shared by the nic, which steers with it, and flow.c, which picks ports that steer back.
 */
#ifndef NEAT_TOEPLITZ_H
#define NEAT_TOEPLITZ_H

#include <stdint.h>
#include <string.h>

enum { RSS_KEY = 40, RSS_TUPLE = 12, RSS_PAIR = 8, RSS_RETA = 128 };

/* One table look-up for each byte of the tuple instead of one shift for each bit. */
struct rss_table { uint32_t t[RSS_TUPLE][256]; };

static inline uint32_t rss_key_window(const uint8_t key[RSS_KEY], unsigned bit)
{
	uint64_t w = 0;

	for (unsigned i = 0; i < 5; i++)
		w = w << 8 | key[bit / 8 + i];
	return (uint32_t)(w >> (8 - bit % 8));
}

static inline void rss_table_init(struct rss_table *r, const uint8_t key[RSS_KEY])
{
	for (unsigned at = 0; at < RSS_TUPLE; at++)
		for (unsigned byte = 0; byte < 256; byte++) {
			uint32_t h = 0;

			for (unsigned bit = 0; bit < 8; bit++)
				if (byte & (0x80u >> bit))
					h ^= rss_key_window(key, at * 8 + bit);
			r->t[at][byte] = h;
		}
}

/* Host-order addresses as they appear in a received packet: source first. For packets without ports. */
static inline uint32_t rss_hash_pair(const struct rss_table *r, uint32_t saddr, uint32_t daddr)
{
	const uint8_t b[RSS_PAIR] = {
		(uint8_t)(saddr >> 24), (uint8_t)(saddr >> 16), (uint8_t)(saddr >> 8), (uint8_t)saddr,
		(uint8_t)(daddr >> 24), (uint8_t)(daddr >> 16), (uint8_t)(daddr >> 8), (uint8_t)daddr,
	};
	uint32_t h = 0;

	for (unsigned i = 0; i < RSS_PAIR; i++)
		h ^= r->t[i][b[i]];
	return h;
}

/* What the local port adds to the hash of a received packet: it is the destination there. */
static inline uint32_t rss_hash_lport(const struct rss_table *r, uint16_t dport)
{
	return r->t[10][dport >> 8] ^ r->t[11][dport & 0xff];
}

static inline uint32_t rss_hash(const struct rss_table *r, uint32_t saddr, uint32_t daddr, uint16_t sport,
				uint16_t dport)
{
	/* The hash is linear: the ports' share is added to that of the addresses. */
	return rss_hash_pair(r, saddr, daddr) ^
	       r->t[8][sport >> 8] ^ r->t[9][sport & 0xff] ^ rss_hash_lport(r, dport);
}

#endif
