/*
 * link.c - Ethernet and ARP (RFC 826, RFC 5227, RFC 1122 2.3.2): demultiplexing, this replica's own
 * neighbour table, and the few packets that wait for each unresolved neighbour.
 */
#include "link.h"
#include "hash.h"
#include "ip.h"

enum {
	NEIGHBOURS = 256,		/* power of two */
	NEIGHBOUR_PROBES = 8,
	NEIGHBOUR_LIFE_US = 60000000,
	NEIGHBOUR_RETRY_US = 1000000,	/* RFC 1122 2.3.2.1: one request a second for each destination */
	NEIGHBOUR_WAITING = 8,		/* packets that wait */
	NEIGHBOUR_BYTES = 69632,	/* of all of them: at least one of 64 KiB, which is cut when it leaves */
};

/*
 *  FREE        -
 *  INCOMPLETE  a request is out; the last packets wait in `queued` (RFC 1122 2.3.2.2)
 *  REACHABLE   mac is valid until expires_us, then a request goes out again
 */
enum neighbour_state { NEIGHBOUR_FREE = 0, NEIGHBOUR_INCOMPLETE, NEIGHBOUR_REACHABLE };

/* In the arena, as a hint: a successor uses what it finds and asks again at once. So `state` is REACHABLE
 * only while address and mac belong together, store by store. */
struct neighbour {
	uint32_t addr;
	uint8_t state;		/* enum neighbour_state */
	uint8_t mac[6];
	uint8_t pad;
	uint64_t expires_us, asked_us;
};

struct waiting {
	uint32_t n, used, left;		/* `left` of them have gone already */
	/* In order; `at` in bytes, with room for headers in front. */
	struct waiting_packet { uint32_t at, len, sent; uint16_t flags, gso, sent_id; } packet[NEIGHBOUR_WAITING];
	_Alignas(16) uint8_t bytes[NEIGHBOUR_BYTES];
};

struct neigh {
	struct neighbour *table;	/* [NEIGHBOURS] */
	bool held[NEIGHBOURS];		/* it is known, and there was no room for all that waited for it */
	struct waiting queued[NEIGHBOURS];
};

size_t link_memory(void) { return sizeof(struct neigh); }
size_t link_arena(void) { return NEIGHBOURS * sizeof(struct neighbour); }

static bool hint_ok(const struct stack *s, const struct neighbour *n)
{
	uint32_t mask = s->cfg.prefix ? UINT32_MAX << (32 - (s->cfg.prefix & 31)) : 0;

	return n->state == NEIGHBOUR_REACHABLE && !(n->mac[0] & 1) && s->cfg.addr && n->addr != s->cfg.addr &&
	       ((n->addr ^ s->cfg.addr) & mask) == 0;
}

void link_init(struct stack *s, void *memory, void *arena, bool fresh)
{
	s->neigh = memory;
	s->neigh->table = arena;
	for (uint32_t i = 0; i < NEIGHBOURS; i++) {
		struct neighbour *n = &s->neigh->table[i];

		if (fresh || !hint_ok(s, n))
			*n = (struct neighbour){ 0 };
		else
			n->expires_us = n->asked_us = 0;
	}
}

static struct waiting *queue_of(const struct stack *s, const struct neighbour *n)
{
	return &s->neigh->queued[n - s->neigh->table];
}

static void queue_empty(struct waiting *w) { w->n = w->used = w->left = 0; }

/* A few places for each address; a full set gives up its oldest entry: the table is bounded. */
static struct neighbour *neighbour_get(struct stack *s, uint32_t addr, bool make)
{
	uint64_t key;
	struct neighbour *oldest = NULL;
	uint32_t at;

	memcpy(&key, s->cfg.secret, 8);
	at = (uint32_t)hash_mum(key ^ addr, 0x9e3779b97f4a7c15ull);
	for (uint32_t i = 0; i < NEIGHBOUR_PROBES; i++) {
		struct neighbour *n = &s->neigh->table[(at + i) & (NEIGHBOURS - 1)];

		if (n->state != NEIGHBOUR_FREE && n->addr == addr)
			return n;
		if (n->state == NEIGHBOUR_FREE) {
			if (!oldest || oldest->state != NEIGHBOUR_FREE)
				oldest = n;
		} else if (!oldest || (oldest->state != NEIGHBOUR_FREE && n->expires_us < oldest->expires_us)) {
			oldest = n;
		}
	}
	if (!make || !oldest)
		return NULL;
	oldest->state = NEIGHBOUR_INCOMPLETE;
	compiler_fence();	/* the hint is none before it names somebody else */
	oldest->addr = addr;
	oldest->expires_us = s->now_us + NEIGHBOUR_LIFE_US;
	oldest->asked_us = 0;
	queue_empty(queue_of(s, oldest));
	return oldest;
}

static bool frame_out(struct stack *s, struct pkt *p, const uint8_t dst[6], uint16_t type)
{
	struct wire_eth *e = pkt_push(p, sizeof(*e));

	if (!e)
		return true;
	memcpy(e->dst, dst, 6);
	memcpy(e->src, s->cfg.mac, 6);
	e->type = be16_put(type);
	p->l4_offset = (uint16_t)(sizeof(*e) + sizeof(struct wire_ip));
	return s->ops.tx(s->ops.world, p);
}

static void arp_send(struct stack *s, uint16_t op, const uint8_t to[6], uint32_t tpa)
{
	uint8_t buf[PKT_HEADROOM + sizeof(struct wire_arp)];
	struct pkt p = { .data = buf + PKT_HEADROOM, .buf = buf, .len = sizeof(struct wire_arp) };
	struct wire_arp *a = (struct wire_arp *)p.data;
	static const uint8_t broadcast[6] = { 255, 255, 255, 255, 255, 255 };

	*a = (struct wire_arp){
		.htype = be16_put(ARP_HTYPE_ETHERNET),
		.ptype = be16_put(ETHERTYPE_IPV4),
		.hlen = 6,
		.plen = 4,
		.op = be16_put(op),
		.spa = be32_put(s->cfg.addr),
		.tpa = be32_put(tpa),
	};
	memcpy(a->sha, s->cfg.mac, 6);
	if (op == ARP_REPLY)
		memcpy(a->tha, to, 6);
	/* A lost request is asked again by the next packet, a lost reply by the peer. */
	if (!frame_out(s, &p, op == ARP_REPLY ? to : broadcast, ETHERTYPE_ARP))
		stack_drop(s, DROP_QUEUE_FULL);
}

static void give_up_first(struct stack *s, struct waiting *w)
{
	uint32_t gone = w->n > 1 ? w->packet[1].at : w->used;

	stack_drop(s, DROP_NO_NEIGHBOUR);
	w->n--;
	w->used -= gone;
	memmove(w->bytes, w->bytes + gone, w->used);
	for (uint32_t i = 0; i < w->n; i++) {
		w->packet[i] = w->packet[i + 1];
		w->packet[i].at -= gone;
	}
}

/* RFC 1122 2.3.2.2: the latest is kept. */
static void queue_packet(struct stack *s, const struct neighbour *n, const struct pkt *p)
{
	struct waiting *w = queue_of(s, n);
	uint32_t total = pkt_total(p), need = (PKT_HEADROOM + total + 15) & ~15u;
	uint8_t *to;

	if (total > UINT16_MAX) {
		stack_drop(s, DROP_NO_NEIGHBOUR);
		return;
	}
	while (w->n == NEIGHBOUR_WAITING || w->used + need > NEIGHBOUR_BYTES)
		give_up_first(s, w);
	to = w->bytes + w->used + PKT_HEADROOM;
	memcpy(to, p->data, p->len);
	to += p->len;
	for (int i = 0; i < 2 && p->frag_len; to += p->frag[i].len, i++)
		memcpy(to, p->frag[i].p, p->frag[i].len);
	w->packet[w->n++] = (struct waiting_packet){ w->used, total, p->sent, p->flags, p->gso_size, p->sent_id };
	w->used += need;
}

/* A packet for a neighbour that is known; in fragments if it does not fit. No room for all: p->sent says how far. */
static bool packet_out(struct stack *s, struct pkt *p, const uint8_t dst[6])
{
	const struct wire_ip *h = pkt_get(p, 0, sizeof(*h));
	struct ip_fragment f;
	uint32_t len;

	if (p->gso_size || pkt_total(p) <= s->cfg.mtu || !h)
		return frame_out(s, p, dst, ETHERTYPE_IPV4);
	if (!p->sent)
		p->sent_id = ip_fragment_id(s, be32_get(h->daddr));
	for (; (len = ip_fragment_next(p, s->cfg.mtu, &f)) != 0; p->sent += len)
		if (!frame_out(s, &f.p, dst, ETHERTYPE_IPV4))
			return false;
	return true;
}

/* False: no room for all. */
static bool send_waiting(struct stack *s, const struct neighbour *n)
{
	struct waiting *w = queue_of(s, n);
	bool *held = &s->neigh->held[n - s->neigh->table];

	for (*held = true; w->left < w->n; w->left++) {
		struct waiting_packet *q = &w->packet[w->left];
		uint8_t *buf = w->bytes + q->at;
		struct pkt p = { .data = buf + PKT_HEADROOM, .buf = buf, .len = q->len, .flags = q->flags,
				 .gso_size = q->gso, .sent = q->sent, .sent_id = q->sent_id };
		bool done = packet_out(s, &p, n->mac);

		q->sent = p.sent;
		q->sent_id = p.sent_id;
		if (!done)
			return false;
	}
	queue_empty(w);
	return !(*held = false);
}

static bool learn(struct stack *s, struct neighbour *n, const uint8_t mac[6])
{
	n->state = NEIGHBOUR_INCOMPLETE;
	compiler_fence();	/* no half of one mac and half of another */
	memcpy(n->mac, mac, 6);
	n->expires_us = s->now_us + NEIGHBOUR_LIFE_US;
	compiler_fence();
	n->state = NEIGHBOUR_REACHABLE;
	return send_waiting(s, n);
}

bool link_output(struct stack *s, struct pkt *p, uint32_t next_hop)
{
	struct neighbour *n;

	/* It goes no further than the nic. */
	if (p->flags & PKT_RETURNED)
		return packet_out(s, p, s->cfg.mac);
	n = neighbour_get(s, next_hop, true);
	if (!n) {
		stack_drop(s, DROP_NO_NEIGHBOUR);
		return true;
	}
	/* Those that waited for its address leave first. */
	if (s->neigh->held[n - s->neigh->table] && n->state == NEIGHBOUR_REACHABLE && !send_waiting(s, n))
		return false;
	if (n->state == NEIGHBOUR_REACHABLE && s->now_us < n->expires_us)
		return packet_out(s, p, n->mac);
	if (!n->asked_us || s->now_us - n->asked_us >= NEIGHBOUR_RETRY_US) {
		n->asked_us = s->now_us;
		arp_send(s, ARP_REQUEST, NULL, next_hop);
	}
	/* An entry past its life still works while the question is out. */
	if (n->state == NEIGHBOUR_REACHABLE)
		return packet_out(s, p, n->mac);
	queue_packet(s, n, p);
	return true;
}

/* False: no room for what waited for this answer. */
static bool arp_input(struct stack *s, struct pkt *p)
{
	const struct wire_arp *a = pkt_get(p, 0, sizeof(*a));
	struct neighbour *n;
	uint32_t spa, tpa;

	if (!a || be16_get(a->htype) != ARP_HTYPE_ETHERNET || be16_get(a->ptype) != ETHERTYPE_IPV4 ||
	    a->hlen != 6 || a->plen != 4 || a->sha[0] & 1) {
		stack_drop(s, DROP_ARP);
		return true;
	}
	spa = be32_get(a->spa);
	tpa = be32_get(a->tpa);
	if (!s->cfg.addr || spa == s->cfg.addr)
		return true;	/* our own request, or a conflict nobody here can settle (RFC 5227 2.4) */
	/* RFC 826: who asks us will be talked to; anybody else only updates what we already have, so
	 * that unasked replies cannot fill the table. */
	n = spa ? neighbour_get(s, spa, tpa == s->cfg.addr && be16_get(a->op) == ARP_REQUEST) : NULL;
	if (n && !learn(s, n, a->sha))
		return false;
	if (be16_get(a->op) == ARP_REQUEST && tpa == s->cfg.addr)
		arp_send(s, ARP_REPLY, a->sha, spa);
	return true;
}

bool link_input(struct stack *s, struct pkt *p)
{
	const struct wire_eth *e = pkt_get(p, 0, sizeof(*e));
	uint16_t type;

	stack_frame_begins(s, false);
	if (!e || !pkt_pull(p, sizeof(*e))) {
		stack_drop(s, DROP_SHORT);
		return true;
	}
	if (!(e->dst[0] & 1) && !(p->flags & PKT_RETURNED) && memcmp(e->dst, s->cfg.mac, 6) != 0) {
		stack_drop(s, DROP_NOT_OURS);
		return true;
	}
	type = be16_get(e->type);
	if (type == ETHERTYPE_ARP)
		return arp_input(s, p);
	if (type == ETHERTYPE_IPV4)
		ip_input(s, p);
	else
		stack_drop(s, DROP_ETHERTYPE);
	return true;
}
