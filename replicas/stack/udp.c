/*
 * udp.c - UDP (RFC 768, RFC 1122 4.1, RFC 8085): which socket a datagram belongs to, and the way
 * between wire or lo and the rings of a slot.
 *
 * A datagram is one unit of work: its receiver's rx_head is published first, then the sender's
 * tx_una, so a replica that dies in between sends it again (UDP allows duplicates) and never loses
 * it. What does not fit the MTU of the uplink leaves in fragments (ip_frag.c).
 */
#include "udp.h"
#include "bytering.h"
#include "ip.h"
#include <errno.h>

enum { NO_SCORE = -1 };

size_t udp_memory(void) { return sizeof(struct udp); }
void udp_init(struct stack *s, void *memory) { s->udp = memory; }

static uint32_t index_of(const struct stack *s, const struct udp_sock *u) { return (uint32_t)(u - s->udp->sock); }

static uint32_t bucket_of(uint16_t port) { return (port * 2654435761u) >> 20; }

/* ---- life ---- */

static void read_options(struct udp_sock *u)
{
	const struct neat_slot_app *w = u->ref.app;
	const struct neat_opts o = w->opts;	/* one look; each word is checked below */
	const uint32_t most = neat_ring_max(NEAT_TX) - (uint32_t)sizeof(struct neat_dgram) - NEAT_DGRAM_MAX;

	u->rcvbuf = o.w[NEAT_OPT_RCVBUF] ? o.w[NEAT_OPT_RCVBUF] : NEAT_DGRAM_BUF;
	u->sndbuf = o.w[NEAT_OPT_SNDBUF] ? o.w[NEAT_OPT_SNDBUF] : NEAT_DGRAM_BUF;
	/* The ring holds less than SO_SNDBUF may say; below this the largest datagram fits. */
	if (u->sndbuf > most)
		u->sndbuf = most;
	u->ttl = (uint8_t)o.w[NEAT_OPT_TTL];
	u->tos = (uint8_t)o.w[NEAT_OPT_TOS];
	u->shared = o.w[NEAT_OPT_FLAGS] & NEAT_OPTF_REUSEPORT;
	a32_store(&u->ref.pub->tx_limit, u->sndbuf);
}

/* Publishing the peer tells connect() that from now on only it is heard. */
static void read_peer(struct udp_sock *u)
{
	u->raddr = u->ref.app->raddr;
	u->rport = u->ref.app->rport;
	u->ref.pub->raddr = u->raddr;
	u->ref.pub->rport = u->rport;
}

/* A value that is neither ours nor further by at most a ring is the application's mistake: it loses the rest. */
static uint64_t believe(uint64_t value, uint64_t from, uint64_t to)
{
	return value - from <= to - from ? value : to;
}

static void read_rx_tail(struct udp_sock *u)
{
	/* Acquire: the library has copied what it gives back. */
	u->rx_tail = believe(a64_acquire(&u->ref.app->rx_tail), u->rx_tail, u->rx_head);
}

int udp_open(struct stack *s, const struct udp_open *o, struct udp_sock **out)
{
	struct udp *udp = s->udp;
	uint32_t i = udp->free ? udp->free - 1 : udp->high, b = bucket_of(o->lport);
	struct udp_sock *u = &udp->sock[i];
	uint64_t rx_tail;

	/* As tcp_share.c: one application has no more of them than are left. */
	if (i == UDP_SOCKS_MAX || (!o->again && o->ref.mem->live > UDP_SOCKS_MAX - udp->used) ||
	    (!o->again && s->cfg.app_sockets && o->ref.mem->live > s->cfg.app_sockets))
		return -ENOBUFS;
	if (udp->free)
		udp->free = u->next;
	else
		udp->high++;
	*u = (struct udp_sock){ .ref = o->ref, .laddr = o->laddr, .lport = o->lport,
				.closed = o->closed };
	u->rx_head = a64_relaxed(&u->ref.pub->rx_head);
	u->rx_ring = a64_relaxed(&u->ref.pub->rx_ring);
	rx_tail = a64_acquire(&u->ref.app->rx_tail);
	u->rx_tail = u->rx_head - rx_tail <= neat_ring_max(NEAT_RX) ? rx_tail : u->rx_head;
	u->tx_una = u->tx_tail = a64_relaxed(&u->ref.pub->tx_una);
	u->optgen = a32_relaxed(&u->ref.app->optgen);
	u->ref.pub->pmtu = s->cfg.mtu;
	read_options(u);
	read_peer(u);
	u->next = udp->bucket[b];
	udp->bucket[b] = i + 1;
	udp->used++;
	*out = u;
	return 0;
}

static void forget(struct stack *s, struct udp_sock *u)
{
	struct udp *udp = s->udp;
	uint32_t *at = &udp->bucket[bucket_of(u->lport)], i = index_of(s, u) + 1;

	while (*at != i)
		at = &udp->sock[*at - 1].next;
	*at = u->next;
	sock_detach(s, &u->ref);
	u->next = udp->free;
	udp->free = i;
	udp->used--;
}

/* ---- to whom ---- */

/* Linux's compute_score(): what is fixed must match, and the more is fixed the better. */
static int score(const struct udp_sock *u, uint32_t laddr, uint16_t lport, uint32_t raddr, uint16_t rport)
{
	if (u->lport != lport || (u->laddr && u->laddr != laddr))
		return NO_SCORE;
	if (u->rport && (u->raddr != raddr || u->rport != rport))
		return NO_SCORE;
	return (u->laddr != 0) + 2 * (u->rport != 0);
}

static struct udp_sock *find(struct stack *s, const struct flow_key *k)
{
	struct udp *udp = s->udp;
	struct udp_sock *best = NULL;
	int high = NO_SCORE;
	uint32_t equals = 0, hash = 0;

	for (uint32_t i = udp->bucket[bucket_of(k->lport)]; i; i = udp->sock[i - 1].next) {
		struct udp_sock *u = &udp->sock[i - 1];
		int v = !u->closed ? score(u, k->laddr, k->lport, k->raddr, k->rport) : NO_SCORE;

		if (v > high) {
			high = v;
			best = u;
			equals = 1;
		} else if (v != NO_SCORE && v == high && u->shared) {
			/* Each of n gets 1/n: the n-th replaces the choice with probability 1/n. */
			equals++;
			hash = equals == 2 ? flow_hash(s, k) : hash * 1664525u + 1013904223u;
			if ((uint64_t)hash * equals >> 32 == 0)
				best = u;
		}
	}
	return best;
}

/* ---- in ---- */

static void ring_put(struct udp_sock *u, uint64_t *at, const void *from, uint32_t len)
{
	struct neat_span to = neat_ring_span(u->ref.mem->app, u->ref.slot, NEAT_RX, u->rx_ring, *at, len);

	neat_span_write(&to, from);
	*at += len;
}

/* As Linux: the one that goes over SO_RCVBUF is still taken, the next one is dropped. */
static bool rx_room(struct udp_sock *u, uint32_t need)
{
	uint64_t live, word;

	read_rx_tail(u);
	live = u->rx_head - u->rx_tail;
	if (live >= u->rcvbuf || live + need > neat_ring_max(NEAT_RX))
		return false;
	word = neat_ring_reserve(u->ref.mem->app, u->ref.slot, NEAT_RX, u->rx_ring, u->rx_tail, u->rx_head, need);
	if (word != u->rx_ring) {
		u->rx_ring = word;
		a64_release(&u->ref.pub->rx_ring, word);	/* moved bytes before the word that says where */
	}
	return true;
}

static void receive(struct stack *s, struct udp_sock *u, const struct pkt *p, uint32_t saddr, uint16_t sport)
{
	const struct neat_dgram h = { .len = pkt_total(p), .addr = saddr, .port = sport };
	uint64_t at = u->rx_head;

	if (!rx_room(u, (uint32_t)sizeof(h) + h.len)) {
		stack_drop(s, DROP_UDP_FULL);
		return;
	}
	ring_put(u, &at, &h, sizeof(h));
	ring_put(u, &at, p->data, p->len);
	for (int i = 0; i < 2 && p->frag_len; i++)
		ring_put(u, &at, p->frag[i].p, p->frag[i].len);
	u->rx_head = at;
	a64_release(&u->ref.pub->rx_head, at);	/* W2: header and payload before the index */
	s->count.datagrams_in++;
	sock_notify(s, &u->ref, SOCK_READABLE);
}

static void no_port(struct stack *s, const struct pkt *p, uint32_t ihl)
{
	const struct pkt whole = pkt_unpulled(p, ihl);

	stack_drop(s, DROP_UDP_NO_PORT);
	icmp_error(s, ICMP_UNREACHABLE, ICMP_UNREACH_PORT, &whole);
}

void udp_input(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	const struct wire_udp *h = pkt_get(p, 0, sizeof(*h));
	struct udp_sock *u;
	struct flow_key k;
	uint32_t len;

	if (!h) {
		stack_drop(s, DROP_UDP_SHORT);
		return;
	}
	len = be16_get(h->len);
	if (len < sizeof(*h) || len > pkt_total(p)) {
		stack_drop(s, DROP_UDP_SHORT);
		return;
	}
	pkt_trim(p, len);
	if (h->csum.v && !(p->flags & PKT_CSUM_OK) && !ip_transport_csum_ok(p, m)) {
		stack_drop(s, DROP_UDP_CSUM);
		return;
	}
	k = (struct flow_key){ m->daddr, m->saddr, be16_get(h->dport), be16_get(h->sport) };
	u = find(s, &k);
	if (!u)
		no_port(s, p, ihl);
	else if (pkt_pull(p, sizeof(*h)))
		receive(s, u, p, m->saddr, k.rport);
}

/* RFC 1122 4.1.3.3; which errors end in an errno on a connected socket: Linux's icmp_err_convert. */
static uint32_t icmp_errno(uint8_t type, uint8_t code)
{
	if (type == ICMP_PARAMETER)
		return EPROTO;
	if (type != ICMP_UNREACHABLE)
		return 0;
	switch (code) {
	case ICMP_UNREACH_PROTO:
		return ENOPROTOOPT;
	case ICMP_UNREACH_PORT:
		return ECONNREFUSED;
	case ICMP_UNREACH_FRAG:
		return EMSGSIZE;
	case 9:
		return ENETUNREACH;	/* administratively prohibited, RFC 1122 3.2.2.1 */
	case 10:
	case 13:
		return EHOSTUNREACH;
	}
	return 0;
}

void udp_icmp(struct stack *s, const struct flow_key *k, uint8_t type, uint8_t code)
{
	struct udp *udp = s->udp;
	uint32_t err = icmp_errno(type, code);

	for (uint32_t i = udp->bucket[bucket_of(k->lport)]; i && err; i = udp->sock[i - 1].next) {
		struct udp_sock *u = &udp->sock[i - 1];

		if (!u->rport || u->closed || score(u, k->laddr, k->lport, k->raddr, k->rport) == NO_SCORE)
			continue;
		sock_status(s, &u->ref, 0, 0, err);
		sock_notify(s, &u->ref, SOCK_STATE);
		return;
	}
}

/* ---- out ---- */

/* The application broke the framing of its own ring: the socket ends, and nothing else. */
static void broken(struct stack *s, struct udp_sock *u)
{
	u->tx_una = u->tx_tail;
	u->sent = 0;
	a64_release(&u->ref.pub->tx_una, u->tx_una);
	sock_status(s, &u->ref, NEAT_SLOT_HUP, 0, EINVAL);
	sock_notify(s, &u->ref, SOCK_STATE);
}

static bool sendable(const struct stack *s, const struct neat_dgram *h, uint32_t saddr)
{
	bool local = ip_is_local(s, h->addr);

	if (!saddr || !h->port || !h->addr || h->addr >= 0xe0000000u)
		return false;
	return local || saddr >> 24 != 127;
}

/* Of a datagram whose first fragments have left already, what they say: the rest goes with them. */
static uint16_t checksum(const struct udp_sock *u, const struct pkt *p, const struct ip_meta *m)
{
	uint64_t sum = ip_pseudo_sum(m->saddr, m->daddr, IP_PROTO_UDP, pkt_total(p));
	uint16_t csum;

	if (p->sent)
		return u->sent_csum;
	sum = __builtin_bswap16((uint16_t)sum);
	csum = (uint16_t)~csum_fold(csum_pkt(sum, p));
	return csum ? csum : 0xffff;	/* RFC 768: 0 would mean none */
}

/* False: no room, the datagram, or what is left of it, stays in the ring. */
static bool emit(struct stack *s, struct udp_sock *u, const struct neat_dgram *h, const struct neat_span *payload)
{
	_Alignas(16) uint8_t room[PKT_HEADROOM + sizeof(struct wire_udp)];
	struct pkt p = { .data = room + PKT_HEADROOM, .buf = room, .len = sizeof(struct wire_udp), .flags = PKT_PASS,
			 .sent = u->sent, .sent_id = u->sent_id };
	struct wire_udp *w = (struct wire_udp *)(void *)p.data;
	struct ip_meta m = {
		.saddr = u->laddr ? u->laddr : ip_source_for(s, h->addr), .daddr = h->addr,
		.proto = IP_PROTO_UDP, .ttl = u->ttl, .tos = u->tos,
	};
	bool done;

	if (!sendable(s, h, m.saddr)) {
		stack_drop(s, DROP_UDP_SEND);
		return true;
	}
	*w = (struct wire_udp){ be16_put(u->lport), be16_put(h->port), be16_put((uint16_t)(sizeof(*w) + h->len)), { 0 } };
	for (int i = 0; i < 2; i++) {
		p.frag[i].p = payload->p[i];
		p.frag[i].len = payload->len[i];
	}
	p.frag_len = h->len;
	if (!ip_is_local(s, h->addr)) {
		u->sent_csum = checksum(u, &p, &m);
		w->csum = be16_put(u->sent_csum);
	}
	done = ip_output(s, &p, &m);
	u->sent = p.sent;
	u->sent_id = p.sent_id;
	return done;
}

/* The next datagram of the send ring. False: there is none. */
static bool next_datagram(struct stack *s, struct udp_sock *u, struct neat_dgram *h, struct neat_span *payload)
{
	uint64_t left = u->tx_tail - u->tx_una, word;
	struct neat_span from;

	if (!left)
		return false;
	/* Acquire: the ring word is at least as new as the tx_tail that promised these bytes. */
	word = a64_acquire(&u->ref.app->tx_ring);
	if (left < sizeof(*h)) {
		broken(s, u);
		return false;
	}
	from = neat_ring_span(u->ref.mem->app, u->ref.slot, NEAT_TX, word, u->tx_una, sizeof(*h));
	neat_span_read(&from, h);
	if (h->len > NEAT_DGRAM_MAX || h->len > left - sizeof(*h)) {
		broken(s, u);
		return false;
	}
	*payload = neat_ring_span(u->ref.mem->app, u->ref.slot, NEAT_TX, word, u->tx_una + sizeof(*h), h->len);
	return true;
}

static void retire(struct udp_sock *u, const struct neat_dgram *h)
{
	u->tx_una += sizeof(*h) + h->len;
	u->sent = 0;
	a64_release(&u->ref.pub->tx_una, u->tx_una);	/* W4: after its effects */
}

/* One datagram. False: nothing is left, or there is no room for it (no_room). */
static bool send_one(struct stack *s, struct udp_sock *u)
{
	struct neat_dgram h;
	struct neat_span payload;
	bool sent;

	if (!next_datagram(s, u, &h, &payload))
		return false;
	stack_datagram_begins(s, u->ref.mem->app_id, u->ref.slot);
	sent = emit(s, u, &h, &payload);
	if (sent) {
		s->count.datagrams_out++;
		retire(u, &h);
	} else {
		s->udp->no_room = true;
	}
	stack_units_done(s);
	return sent;
}

void udp_later(struct stack *s, struct udp_sock *u)
{
	struct udp *udp = s->udp;
	uint32_t i = index_of(s, u) + 1;

	if (u->on_resume)
		return;
	u->on_resume = true;
	u->resume_next = 0;
	if (udp->resume_tail)
		udp->sock[udp->resume_tail - 1].resume_next = i;
	else
		udp->resume_head = i;
	udp->resume_tail = i;
}

static void read_tx_tail(struct udp_sock *u)
{
	uint64_t tail = a64_acquire(&u->ref.app->tx_tail);

	u->tx_tail = tail - u->tx_una <= neat_ring_max(NEAT_TX) && tail - u->tx_una >= u->tx_tail - u->tx_una ? tail : u->tx_tail;
}

void udp_skip(struct stack *s, struct udp_sock *u)
{
	struct neat_dgram h;
	struct neat_span payload;

	read_tx_tail(u);
	if (!next_datagram(s, u, &h, &payload))
		return;
	stack_drop(s, DROP_UDP_SEND);
	retire(u, &h);
}

/* Sends a batch; who was refused room before it, and has some now, is told. */
static void drain(struct stack *s, struct udp_sock *u)
{
	uint64_t before = u->tx_una;

	read_tx_tail(u);
	for (unsigned n = 0; n < UDP_BATCH && send_one(s, u); n++)
		;
	if (u->tx_tail != u->tx_una)
		udp_later(s, u);
	else if (u->closed && !u->on_resume)
		forget(s, u);
	if (u->tx_una == before || u->closed)
		return;
	/* The library stores tx_tail, fences, and looks at tx_una before it sleeps (Dekker). */
	neat_fence();
	if (a64_relaxed(&u->ref.app->tx_tail) - before >= u->sndbuf / 2)
		sock_notify(s, &u->ref, SOCK_WRITABLE);
}

void udp_kick(struct stack *s, struct udp_sock *u)
{
	uint32_t optgen = a32_relaxed(&u->ref.app->optgen);

	if (optgen != u->optgen) {
		u->optgen = optgen;
		read_options(u);
		read_peer(u);
		sock_notify(s, &u->ref, SOCK_STATE);
	}
	drain(s, u);
}

void udp_close(struct stack *s, struct udp_sock *u)
{
	u->closed = true;
	drain(s, u);
}

void udp_resume(struct stack *s)
{
	struct udp *udp = s->udp;
	uint32_t last = udp->resume_tail, i = 0;

	udp->no_room = false;
	while (udp->resume_head && i != last && !udp->no_room) {
		struct udp_sock *u;

		i = udp->resume_head;
		u = &udp->sock[i - 1];
		udp->resume_head = u->resume_next;
		if (!udp->resume_head)
			udp->resume_tail = 0;
		u->on_resume = false;
		drain(s, u);
	}
}

bool udp_waits(const struct stack *s) { return s->udp->resume_head && !s->udp->no_room; }
bool udp_blocked(const struct stack *s) { return s->udp->resume_head && s->udp->no_room; }
