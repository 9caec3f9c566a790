/*
 * fuzz_reass.c - fragments as a hostile network would send them, with honest datagrams in between, under ASan and
 * UBSan. Usage: fuzz_reass seed steps. Every honest datagram must come out as it was cut.
 */
#include "reass.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HONEST = 0x0a000002, PIECE = 1480 };

struct fuzz {
	struct reass r;
	uint64_t rng, now;
	uint8_t data[20000];
	unsigned long whole;
};

#define CHECK(e) do { if (!(e)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #e); abort(); } } while (0)

static uint32_t below(struct fuzz *f, uint32_t n)
{
	f->rng ^= f->rng >> 12;
	f->rng ^= f->rng << 25;
	f->rng ^= f->rng >> 27;
	return (uint32_t)(f->rng * 0x2545f4914f6cdd1dull >> 33) % n;
}

/* On the heap, as long as it is: one byte further is found. */
static enum reass_result give(struct fuzz *f, uint32_t src, uint32_t id, uint32_t frag, uint32_t ihl, const uint8_t *data,
			      uint32_t len, uint32_t cut, const uint8_t **out, uint32_t *out_len)
{
	uint32_t all = FRAME_ETH + ihl + len, sum = 0;
	uint8_t *b = calloc(1, all), *ip = b + FRAME_ETH, *exact;
	enum reass_result got;

	ip[0] = (uint8_t)(0x40 | ihl / 4);
	frame_put16(ip + 2, (uint16_t)(ihl + len));
	frame_put16(ip + 4, (uint16_t)id);
	frame_put16(ip + 6, (uint16_t)frag);
	ip[9] = 17;
	frame_put32(ip + 12, src);
	frame_put32(ip + 16, 0x0a000001);
	for (uint32_t i = 0; i < ihl; i += 2)
		sum += frame_be16(ip + i);
	sum = (sum & 0xffff) + (sum >> 16);
	frame_put16(ip + 10, (uint16_t)~(sum + (sum >> 16)));
	memcpy(ip + ihl, data, len);
	exact = malloc(all - cut ? all - cut : 1);
	memcpy(exact, b, all - cut);
	got = reass_add(&f->r, exact, all - cut, f->now, out, out_len);
	free(b);
	free(exact);
	return got;
}

static void hostile(struct fuzz *f)
{
	uint32_t frag = below(f, 4) ? below(f, 40) | (below(f, 3) ? 0x2000 : 0) : below(f, 0x4000);
	uint32_t len = below(f, 4) ? 8 * below(f, 40) : below(f, 3000), ihl = 20 + 4 * below(f, 11);
	const uint8_t *out;
	uint32_t out_len;

	if (give(f, 0x0a000100 + below(f, 40), below(f, 6), frag, ihl, f->data, len, below(f, 8) ? 0 : below(f, 34), &out,
		 &out_len) != REASS_WHOLE)
		return;
	CHECK(out_len > FRAME_ETH + 20 && out_len <= FRAME_ETH + 65535);
	CHECK(frame_be16(out + FRAME_ETH + 2) == out_len - FRAME_ETH);
}

/* Forwards or backwards, hostile ones in between: fewer than push out the oldest of 64. */
static void honest(struct fuzz *f, uint32_t id)
{
	uint32_t len = PIECE + 1 + below(f, (uint32_t)sizeof(f->data) - PIECE - 1), n = (len + PIECE - 1) / PIECE;
	bool backwards = below(f, 2);
	enum reass_result got = REASS_BAD;
	const uint8_t *out = NULL;
	uint32_t out_len = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t k = backwards ? n - 1 - i : i, from = k * PIECE;
		bool last = k == n - 1;

		if (below(f, 2))
			hostile(f);
		got = give(f, HONEST, id, from / 8 | (last ? 0 : 0x2000), 20, f->data + from, last ? len - from : PIECE, 0,
			   &out, &out_len);
		CHECK(got == (i == n - 1 ? REASS_WHOLE : REASS_HELD));
	}
	CHECK(out_len == FRAME_ETH + 20 + len && !memcmp(out + FRAME_ETH + 20, f->data, len));
	f->whole++;
}

int main(int argc, char **argv)
{
	struct fuzz *f = calloc(1, sizeof(*f));
	unsigned long steps = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000;

	f->rng = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1) * 0x9e3779b97f4a7c15ull | 1;
	f->now = 1;
	for (uint32_t i = 0; i < sizeof(f->data); i++)
		f->data[i] = (uint8_t)below(f, 256);
	for (unsigned long i = 0; i < steps; i++) {
		f->now += below(f, 2000000);
		if (below(f, 20))
			hostile(f);
		else
			honest(f, (uint32_t)i);
	}
	printf("whole %lu\n", f->whole);
	free(f);
	return 0;
}
