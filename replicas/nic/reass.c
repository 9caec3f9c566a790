/* reass.c - see reass.h. */
#include "reass.h"
#include <stddef.h>
#include <string.h>

enum { IP_MORE = 0x2000, IP_OFFSET = 0x1fff, IP_FRAG_AT = 6, IP_LEN_MAX = 65535 };

/* One fragment, checked by itself. */
struct piece {
	const uint8_t *ip, *data;
	uint32_t ihl, from, len;	/* data: [from, from + len) of the payload */
	bool last;
};

static uint16_t header_sum(const uint8_t *ip, uint32_t ihl)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < ihl; i += 2)
		sum += frame_be16(ip + i);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)(sum + (sum >> 16));
}

static bool piece_read(struct piece *p, const uint8_t *b, uint32_t len)
{
	uint32_t total, frag;

	p->ip = b + FRAME_ETH;
	if (len < FRAME_ETH + 20)
		return false;
	p->ihl = (uint32_t)(p->ip[0] & 15) * 4;
	total = frame_be16(p->ip + 2);
	if (p->ihl < 20 || total <= p->ihl || total > len - FRAME_ETH || header_sum(p->ip, p->ihl) != 0xffff)
		return false;
	frag = frame_be16(p->ip + IP_FRAG_AT);
	p->last = !(frag & IP_MORE);
	p->from = (frag & IP_OFFSET) * 8;
	p->len = total - p->ihl;
	p->data = p->ip + p->ihl;
	/* All but the last are whole blocks; nothing ends behind what a length field can say (ping of death). */
	return (p->last || p->len % 8 == 0) && p->from + p->len <= IP_LEN_MAX - p->ihl;
}

static bool same(const struct reass_datagram *d, const struct piece *p)
{
	return d->saddr == frame_be32(p->ip + 12) && d->daddr == frame_be32(p->ip + 16) &&
	       d->id == frame_be16(p->ip + 4) && d->proto == p->ip[9];
}

/* Its record: the one it has, a free one, or the oldest; of its own source, if that has many. */
static struct reass_datagram *find(struct reass *r, const struct piece *p, uint64_t now_us)
{
	struct reass_datagram *unused = NULL, *oldest = NULL, *own = NULL;
	uint32_t of_source = 0, saddr = frame_be32(p->ip + 12);

	for (uint32_t i = 0; i < REASS_DATAGRAMS; i++) {
		struct reass_datagram *d = &r->d[i];

		if (d->since_us && now_us - d->since_us > REASS_US)
			d->since_us = 0;
		if (!d->since_us) {
			unused = d;
			continue;
		}
		if (same(d, p))
			return d;
		if (!oldest || d->since_us < oldest->since_us)
			oldest = d;
		if (d->saddr != saddr)
			continue;
		of_source++;
		if (!own || d->since_us < own->since_us)
			own = d;
	}
	if (of_source >= REASS_OF_SOURCE)
		unused = own;
	else if (!unused)
		unused = oldest;
	memset(unused, 0, offsetof(struct reass_datagram, bytes));
	unused->since_us = now_us ? now_us : 1;
	unused->saddr = saddr;
	unused->daddr = frame_be32(p->ip + 16);
	unused->id = frame_be16(p->ip + 4);
	unused->proto = p->ip[9];
	return unused;
}

/* How many of the blocks that it covers are there already; the last one may be a part of one. */
static uint32_t blocks_there(const struct reass_datagram *d, const struct piece *p)
{
	uint32_t n = 0;

	for (uint32_t b = p->from / 8; b < (p->from + p->len + 7) / 8; b++)
		n += (uint32_t)(d->got[b / 64] >> b % 64) & 1;
	return n;
}

/* False: it contradicts what is there. */
static bool put(struct reass_datagram *d, const struct piece *p)
{
	uint32_t end = p->from + p->len, there = blocks_there(d, p), blocks = (p->len + 7) / 8;
	uint8_t *at = d->bytes + REASS_HEAD + p->from;

	if ((d->total && end > d->total) || (p->last && ((d->total && end != d->total) || end < d->high)))
		return false;
	if (there == blocks && (!p->last || d->total) && memcmp(at, p->data, p->len) == 0)
		return true;		/* the wire doubled it */
	if (there)
		return false;
	for (uint32_t b = p->from / 8; b < (end + 7) / 8; b++)
		d->got[b / 64] |= 1ull << b % 64;
	memcpy(at, p->data, p->len);
	d->have += p->len;
	if (d->high < end)
		d->high = end;
	if (p->last)
		d->total = end;
	if (p->from == 0) {
		d->head_len = FRAME_ETH + p->ihl;
		memcpy(d->bytes + REASS_HEAD - d->head_len, p->ip - FRAME_ETH, d->head_len);
	}
	return true;
}

/* The first fragment's header, as if there had been no other. */
static uint32_t finish(struct reass_datagram *d)
{
	uint32_t ihl = d->head_len - FRAME_ETH;
	uint8_t *ip = d->bytes + REASS_HEAD - ihl;

	frame_put16(ip + 2, (uint16_t)(ihl + d->total));
	frame_put16(ip + IP_FRAG_AT, 0);
	frame_put16(ip + 10, 0);
	frame_put16(ip + 10, (uint16_t)~header_sum(ip, ihl));
	return d->head_len + d->total;
}

enum reass_result reass_add(struct reass *r, const uint8_t *b, uint32_t len, uint64_t now_us, const uint8_t **out,
			    uint32_t *out_len)
{
	struct reass_datagram *d;
	struct piece p;

	if (!piece_read(&p, b, len))
		return REASS_BAD;
	d = find(r, &p, now_us);
	if (d->broken || !put(d, &p)) {
		d->broken = true;
		return REASS_BAD;
	}
	if (!d->total || !d->head_len || d->have != d->total)
		return REASS_HELD;
	d->since_us = 0;
	/* The header of the first one may be longer than that of the last. */
	if (d->head_len - FRAME_ETH + d->total > IP_LEN_MAX)
		return REASS_BAD;
	*out_len = finish(d);
	*out = d->bytes + REASS_HEAD - d->head_len;
	return REASS_WHOLE;
}
