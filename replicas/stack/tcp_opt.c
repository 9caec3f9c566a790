/*
 * tcp_opt.c - TCP options in and out (RFC 9293 3.1, 7323, 2018, 6691). Every length is checked
 * before a byte behind it is read; unknown options are skipped (RFC 9293 MUST-6).
 */
#include "tcp.h"

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }

static void put16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p + 2, v & 0xffff);
}

static void parse_sack(struct tcp_seg *g, const uint8_t *body, uint32_t len)
{
	uint32_t n = len / 8;

	if (len % 8 || n > 4)
		return;
	for (uint32_t i = 0; i < n; i++) {
		g->sack[i].start = get32(body + 8 * i);
		g->sack[i].end = get32(body + 8 * i + 4);
	}
	g->nsack = (uint8_t)n;
}

/* A known option with a wrong length says nothing (as Linux); `len` counts the body only. */
static void parse_one(struct tcp_seg *g, uint8_t kind, const uint8_t *body, uint32_t len)
{
	bool syn = g->flags & TCP_SYN;

	switch (kind) {
	case TCP_KIND_MSS:
		if (syn && len == 2)
			g->mss = get16(body);
		break;
	case TCP_KIND_WSCALE:
		if (syn && len == 1) {
			g->has |= TCP_OPT_WS;
			g->wscale = body[0] > TCP_WSCALE_MAX ? TCP_WSCALE_MAX : body[0];	/* RFC 7323 2.3 */
		}
		break;
	case TCP_KIND_SACK_OK:
		if (syn && len == 0)
			g->has |= TCP_OPT_SACK;
		break;
	case TCP_KIND_SACK:
		if (!syn && len >= 8)
			parse_sack(g, body, len);
		break;
	case TCP_KIND_TS:
		if (len == 8) {
			g->has |= TCP_OPT_TS;
			g->ts_val = get32(body);
			g->ts_ecr = get32(body + 4);
		}
		break;
	}
}

bool tcp_parse_options(struct tcp_seg *g, const uint8_t *opt, uint32_t len)
{
	uint32_t i = 0;

	while (i < len) {
		uint8_t kind = opt[i], size;

		if (kind == TCP_KIND_END)
			return true;
		if (kind == TCP_KIND_NOP) {
			i++;
			continue;
		}
		if (len - i < 2)
			return false;
		size = opt[i + 1];
		if (size < 2 || size > len - i)
			return false;
		parse_one(g, kind, opt + i + 2, size - 2u);
		i += size;
	}
	return true;
}

/* MSS, SACK permitted + timestamps, window scale: the order and padding Linux uses. */
unsigned tcp_build_syn_options(uint8_t *out, const struct tcp_reply *r)
{
	uint8_t *p = out;

	*p++ = TCP_KIND_MSS;
	*p++ = 4;
	put16(p, r->mss);
	p += 2;
	if (r->options & TCP_OPT_SACK || r->options & TCP_OPT_TS) {
		bool sack = r->options & TCP_OPT_SACK;

		*p++ = sack ? TCP_KIND_SACK_OK : TCP_KIND_NOP;
		*p++ = sack ? 2 : TCP_KIND_NOP;
	}
	if (r->options & TCP_OPT_TS) {
		*p++ = TCP_KIND_TS;
		*p++ = 10;
		put32(p, r->ts_val);
		put32(p + 4, r->ts_ecr);
		p += 8;
	} else if (r->options & TCP_OPT_SACK) {
		*p++ = TCP_KIND_NOP;
		*p++ = TCP_KIND_NOP;
	}
	if (r->options & TCP_OPT_WS) {
		*p++ = TCP_KIND_NOP;
		*p++ = TCP_KIND_WSCALE;
		*p++ = 3;
		*p++ = r->wscale;
	}
	return (unsigned)(p - out);
}
