/*
 * ip_frag.c - cuts a packet of ours that does not fit the MTU into fragments (RFC 791 3.2): datagrams of UDP and
 * answers to large echo requests. What comes in fragments was put together by the nic (nic/reass.c).
 */
#include "hash.h"
#include "ip.h"

/* The same for two packets to one destination only after 65,535 others that share its counter (RFC 6864 4.1); which
 * counter, and where it began, an observer of another destination does not learn (RFC 7739's reasons). */
uint16_t ip_fragment_id(struct stack *s, uint32_t daddr)
{
	uint64_t key;

	memcpy(&key, s->cfg.secret, sizeof(key));
	return s->ip->id[hash_mum(key ^ daddr, 0x9e3779b97f4a7c15ull) % IP_ID_COUNTERS]++;
}

static struct wire_ip fragment_header(const struct pkt *p, uint32_t len, bool more)
{
	struct wire_ip h;

	memcpy(&h, p->data, sizeof(h));
	h.total_len = be16_put((uint16_t)(sizeof(h) + len));
	h.id = be16_put(p->sent_id);
	h.frag = be16_put((uint16_t)(p->sent / 8 | (more ? IP_MF : 0)));
	h.csum.v = 0;
	h.csum = be16_put((uint16_t)~csum_fold(csum_add(0, &h, sizeof(h))));
	return h;
}

/* Bytes [at, at + len) of the payload, which lies in three pieces. What is short is copied, the rest referred to. */
static bool take(const struct pkt *p, uint32_t at, uint32_t len, struct pkt *out)
{
	const struct { const uint8_t *p; uint32_t len; } piece[3] = {
		{ p->data + sizeof(struct wire_ip), p->len - (uint32_t)sizeof(struct wire_ip) },
		{ p->frag[0].p, p->frag_len ? p->frag[0].len : 0 },
		{ p->frag[1].p, p->frag_len ? p->frag[1].len : 0 },
	};
	uint32_t n = 0;

	for (uint32_t i = 0; i < 3 && len; at -= at < piece[i].len ? at : piece[i].len, i++) {
		uint32_t part = at < piece[i].len ? piece[i].len - at : 0;

		if (part > len)
			part = len;
		if (!part)
			continue;
		len -= part;
		if (n == 0 && part <= IP_FRAGMENT_COPY && out->len == sizeof(struct wire_ip)) {
			memcpy(out->data + out->len, piece[i].p + at, part);
			out->len += part;
			at = 0;
			continue;
		}
		if (n == 2)
			return false;
		out->frag[n].p = piece[i].p + at;
		out->frag[n++].len = part;
		out->frag_len += part;
		at = 0;
	}
	return len == 0;
}

uint32_t ip_fragment_next(const struct pkt *p, uint32_t mtu, struct ip_fragment *f)
{
	uint32_t all = pkt_total(p) - (uint32_t)sizeof(struct wire_ip);
	uint32_t most = mtu > sizeof(struct wire_ip) ? (mtu - (uint32_t)sizeof(struct wire_ip)) & ~7u : 0;
	uint32_t len;
	struct wire_ip h;

	/* Who shows a packet again may have a shorter one: its bytes and their number are the application's. */
	if (p->sent >= all || !most)
		return 0;
	len = all - p->sent < most ? all - p->sent : most;
	h = fragment_header(p, len, p->sent + len < all);
	f->p = (struct pkt){ .data = f->room + PKT_HEADROOM, .buf = f->room, .len = sizeof(h) };
	memcpy(f->p.data, &h, sizeof(h));
	return take(p, p->sent, len, &f->p) ? len : 0;
}
