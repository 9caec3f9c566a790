/* pure_lib.c - flat exports of the pure rooms of replicas/nic for tests/nic. */
#define _GNU_SOURCE
#include "asks.h"
#include "gso.h"
#include "pcapng.h"
#include "queue.h"
#include "reass.h"
#include "steer.h"
#include "wire.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- what the tests drive ---- */
uint32_t toeplitz(const uint8_t *key, uint32_t saddr, uint32_t daddr, uint16_t sport, uint16_t dport);
uint32_t toeplitz_pair(const uint8_t *key, uint32_t saddr, uint32_t daddr);
void *nic_new(const uint8_t *key, const uint8_t *mac, uint32_t addr, uint32_t flows, uint32_t active);
void nic_free(void *s);
void nic_successor(void *s, uint64_t now_us);
uint8_t *nic_table(void *s);
uint32_t nic_state(void *s, uint32_t raddr, uint16_t rport, uint32_t laddr, uint16_t lport);
void nic_active(void *s, uint32_t active);
void nic_port(void *s, uint16_t port, uint32_t replica);
void nic_reta(void *s, uint8_t *out);
uint32_t nic_rx(void *s, const uint8_t *frame, uint32_t len, uint32_t queues, uint32_t ready, uint64_t now_us);
int nic_tx(void *s, const uint8_t *frame, uint32_t len, uint32_t replica, uint64_t now_us);
void nic_flood(void *s, const uint8_t *syn, uint32_t len, uint32_t first, uint32_t count, uint64_t now_us,
	       uint32_t *counts);
void nic_counts(void *s, uint64_t *out);
void nic_purge(void *s, uint32_t replica);
void parse(const uint8_t *frame, uint32_t len, int sent, uint64_t *out);
uint32_t segments(const uint8_t *frame, uint32_t len, uint32_t gso_size);
uint32_t segment(const uint8_t *frame, uint32_t len, uint32_t gso_size, uint32_t i, uint8_t *out);
void complete(uint8_t *frame, uint32_t len);
uint32_t pcap_start(uint8_t *out, uint32_t room, const char *name);
uint32_t pcap_packet(uint8_t *out, uint32_t room, uint64_t ns, int dir, const char *comment, const uint8_t *b,
		     uint32_t len, uint32_t captured);
void *wire_new(uint64_t seed, uint64_t rate, const uint32_t *p);
void wire_free(void *w);
void wire_put(void *w, const uint8_t *b, uint32_t len, uint64_t now_us);
uint32_t wire_get(void *w, uint64_t now_us, uint8_t *out, uint64_t *release_us);
void wire_counts(void *w, uint64_t *out);
void *pair_new(uint32_t epoch);
void pair_free(void *u);
int pair_put(void *u, const uint8_t *b, uint32_t len, uint64_t now_us);
uint32_t pair_release(void *u, uint64_t now_us);
uint32_t pair_shown(void *u);
void pair_announce(void *u, uint32_t epoch);
void pair_fence(void *u, uint32_t epoch);
void pair_set(void *u, const char *word, uint64_t v);
uint64_t pair_get(void *u, const char *word);
int pair_must_wake(void *u);
uint32_t pair_pending(void *u);
int pair_take(void *u, uint32_t *len, uint32_t *epoch, int *fenced);
void pair_send(void *u, uint32_t len, uint32_t epoch);
void *asks_new(void);
void asks_free(void *a);
int ask(void *a, uint16_t port, uint32_t by, uint32_t of, uint32_t len, uint64_t now_us);
int answer(void *a, uint16_t port, uint32_t of);
void *reass_new(void);
void reass_free(void *r);
int reass_put(void *r, const uint8_t *b, uint32_t len, uint64_t now_us, uint8_t *out, uint32_t *out_len);
/* ---- end ---- */

uint32_t toeplitz(const uint8_t *key, uint32_t saddr, uint32_t daddr, uint16_t sport, uint16_t dport)
{
	static struct rss_table t;

	rss_table_init(&t, key);
	return rss_hash(&t, saddr, daddr, sport, dport);
}

uint32_t toeplitz_pair(const uint8_t *key, uint32_t saddr, uint32_t daddr)
{
	static struct rss_table t;

	rss_table_init(&t, key);
	return rss_hash_pair(&t, saddr, daddr);
}

struct pure_nic {
	struct steer steer;
	struct neat_flow_table *table;
	uint32_t max;
};

/* With the table as it is: what a restarted nic does. */
void nic_successor(void *s, uint64_t now_us)
{
	static const uint8_t secret[16] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 };
	struct pure_nic *n = s;

	free(n->steer.flows);
	n->steer.flows = flows_init(calloc(1, flows_memory(n->max)), n->table, n->max, secret, now_us);
}

void *nic_new(const uint8_t *key, const uint8_t *mac, uint32_t addr, uint32_t flows, uint32_t active)
{
	struct pure_nic *n = calloc(1, sizeof(*n));

	steer_init(&n->steer, key, mac, addr);
	n->table = calloc(1, flows_table(flows));
	n->max = flows;
	nic_successor(n, 0);
	steer_active(&n->steer, active);
	return n;
}

uint8_t *nic_table(void *s) { return (uint8_t *)((struct pure_nic *)s)->table; }

uint32_t nic_state(void *s, uint32_t raddr, uint16_t rport, uint32_t laddr, uint16_t lport)
{
	const struct frame_tuple t = { raddr, laddr, rport, lport };

	return flows_state(((struct steer *)s)->flows, &t);
}

void nic_free(void *s)
{
	free(((struct steer *)s)->flows);
	free(((struct pure_nic *)s)->table);
	free(s);
}

void nic_active(void *s, uint32_t active) { steer_active(s, active); }
void nic_port(void *s, uint16_t port, uint32_t replica) { ((struct steer *)s)->udp_home[port] = (uint8_t)replica; }
void nic_reta(void *s, uint8_t *out) { memcpy(out, ((struct steer *)s)->reta, RSS_RETA); }
void nic_purge(void *s, uint32_t replica) { flows_purge(((struct steer *)s)->flows, (uint8_t)replica); }

/* Mask of replicas, or 0x80000000 | counter when nobody gets it. */
uint32_t nic_rx(void *s, const uint8_t *frame, uint32_t len, uint32_t queues, uint32_t ready, uint64_t now_us)
{
	struct frame f = frame_parse(frame, len < FRAME_LOOK ? len : FRAME_LOOK, false);
	struct steer_to to = steer_rx(s, frame, &f, queues, ready, now_us);

	return to.mask ? to.mask : 0x80000000u | to.why;
}

int nic_tx(void *s, const uint8_t *frame, uint32_t len, uint32_t replica, uint64_t now_us)
{
	struct frame f = frame_parse(frame, len < FRAME_LOOK ? len : FRAME_LOOK, true);

	return steer_tx(s, frame, &f, replica, now_us);
}

/* `count` SYNs like this one from random addresses and ports (splitmix64 of `first`); how many each replica got. */
void nic_flood(void *s, const uint8_t *syn, uint32_t len, uint32_t first, uint32_t count, uint64_t now_us,
	       uint32_t *counts)
{
	uint8_t b[FRAME_LOOK];

	memcpy(b, syn, len);
	for (uint32_t i = 0; i < count; i++) {
		uint64_t z = ((uint64_t)first + i + 1) * 0x9e3779b97f4a7c15ull;
		uint32_t mask;

		z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
		z = (z ^ z >> 27) * 0x94d049bb133111ebull;
		z ^= z >> 31;
		frame_put32(b + FRAME_ETH + 12, 0x0b000000 | (uint32_t)(z >> 40));	/* never ours */
		frame_put16(b + FRAME_ETH + 20, (uint16_t)z);
		mask = nic_rx(s, b, len, 0xffff, 0xffff, now_us);
		counts[__builtin_ctz(mask)]++;
	}
}

void nic_counts(void *s, uint64_t *out)
{
	struct flows_count c = flows_count(((struct steer *)s)->flows);

	out[0] = c.half;
	out[1] = c.open;
	out[2] = c.closing;
	out[3] = c.evicted;
	out[4] = c.refused;
}

void parse(const uint8_t *frame, uint32_t len, int sent, uint64_t *out)
{
	struct frame f = frame_parse(frame, len, sent);

	out[0] = f.kind;
	out[1] = f.t.raddr;
	out[2] = f.t.laddr;
	out[3] = f.t.rport;
	out[4] = f.t.lport;
}

uint32_t segments(const uint8_t *frame, uint32_t len, uint32_t gso_size)
{
	struct frame f = frame_parse(frame, len < FRAME_LOOK ? len : FRAME_LOOK, true);

	return gso_segments(&f, len, (uint16_t)gso_size);
}

uint32_t segment(const uint8_t *frame, uint32_t len, uint32_t gso_size, uint32_t i, uint8_t *out)
{
	struct frame f = frame_parse(frame, len < FRAME_LOOK ? len : FRAME_LOOK, true);

	return gso_segment(frame, len, &f, (uint16_t)gso_size, i, out);
}

void complete(uint8_t *frame, uint32_t len)
{
	struct frame f = frame_parse(frame, len < FRAME_LOOK ? len : FRAME_LOOK, true);

	gso_complete(frame, len, &f);
}

uint32_t pcap_start(uint8_t *out, uint32_t room, const char *name) { return (uint32_t)pcapng_start(out, room, name); }

uint32_t pcap_packet(uint8_t *out, uint32_t room, uint64_t ns, int dir, const char *comment, const uint8_t *b,
		     uint32_t len, uint32_t captured)
{
	struct pcapng_packet p = { ns, len, captured, (enum pcapng_dir)dir, comment };

	return (uint32_t)pcapng_packet(out, room, &p, b);
}

/* p: delay_us, jitter_us, loss, reorder, duplicate, corrupt (ppm) */
void *wire_new(uint64_t seed, uint64_t rate, const uint32_t *p)
{
	struct wire *w = calloc(1, sizeof(*w));
	const struct neat_wire parameters = { seed, rate, p[0], p[1], p[2], p[3], p[4], p[5] };

	wire_set(w, &parameters);
	return w;
}

void wire_free(void *w)
{
	while (((struct wire *)w)->frames)
		wire_sent(w);
	free(w);
}

void wire_put(void *w, const uint8_t *b, uint32_t len, uint64_t now_us)
{
	const struct frame_meta m = { .len = len };

	wire_offer(w, b, &m, now_us);
}

uint32_t wire_get(void *w, uint64_t now_us, uint8_t *out, uint64_t *release_us)
{
	const struct wire_frame *f = wire_due(w, now_us);
	uint32_t len;

	if (!f)
		return 0;
	len = f->m.len;
	memcpy(out, f->bytes, len);
	*release_us = f->release_us;
	wire_sent(w);
	return len;
}

void wire_counts(void *w, uint64_t *out)
{
	const struct wire *x = w;

	out[0] = x->lost;
	out[1] = x->duplicated;
	out[2] = x->reordered;
	out[3] = x->corrupted;
	out[4] = x->full;
	out[5] = x->frames;
}

void *pair_new(uint32_t epoch)
{
	struct queue *u = calloc(1, sizeof(*u));
	void *q = mmap(NULL, NEAT_QP_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0);

	if (q == MAP_FAILED)
		return NULL;
	queue_attach(u, q, epoch);
	return u;
}

void pair_free(void *u)
{
	munmap(((struct queue *)u)->q, NEAT_QP_SIZE);
	free(u);
}

int pair_put(void *u, const uint8_t *b, uint32_t len, uint64_t now_us)
{
	const struct frame_meta m = { .len = len };

	return queue_put(u, b, &m, now_us);
}

uint32_t pair_release(void *u, uint64_t now_us) { return queue_release(u, now_us); }

uint32_t pair_shown(void *u)
{
	struct queue *x = u;

	return neat_ring_ready(NEAT_QP_ENTRIES, &x->q->rx.tail, a64_relaxed(&x->q->rx.head));
}

void pair_announce(void *u, uint32_t epoch) { a32_store(&((struct queue *)u)->q->announced, epoch); }
void pair_fence(void *u, uint32_t epoch) { queue_fence(u, epoch); }

static neat_a64 *word_of(struct queue *u, const char *word)
{
	if (!strcmp(word, "rx.head"))
		return &u->q->rx.head;
	if (!strcmp(word, "rx.tail"))
		return &u->q->rx.tail;
	if (!strcmp(word, "tx.tail"))
		return &u->q->tx.tail;
	return &u->q->tx.head;
}

void pair_set(void *u, const char *word, uint64_t v)
{
	if (!strcmp(word, "rx.asleep"))
		a32_store(&((struct queue *)u)->q->rx.asleep, (uint32_t)v);
	else
		a64_store(word_of(u, word), v);
}

uint64_t pair_get(void *u, const char *word) { return a64_relaxed(word_of(u, word)); }
int pair_must_wake(void *u) { return queue_must_wake(u); }
uint32_t pair_pending(void *u) { return queue_pending(u); }

int pair_take(void *u, uint32_t *len, uint32_t *epoch, int *fenced)
{
	struct frame_meta m;
	const uint8_t *bytes = queue_peek(u, &m, epoch);

	*len = m.len;
	*fenced = queue_fenced(u, *epoch);
	queue_done(u);
	return bytes != NULL;
}

void pair_send(void *u, uint32_t len, uint32_t epoch)
{
	struct queue *x = u;
	uint64_t tail = a64_relaxed(&x->q->tx.tail);

	x->q->tx.desc[tail & (NEAT_QP_ENTRIES - 1)] = (struct neat_frame_desc){ .len = len, .epoch = epoch };
	a64_release(&x->q->tx.tail, tail + 1);
}

/* ---- reassembly ---- */

void *reass_new(void) { return calloc(1, sizeof(struct reass)); }
void reass_free(void *r) { free(r); }

int reass_put(void *r, const uint8_t *b, uint32_t len, uint64_t now_us, uint8_t *out, uint32_t *out_len)
{
	const uint8_t *whole = NULL;
	enum reass_result got = reass_add(r, b, len, now_us, &whole, out_len);

	if (got == REASS_WHOLE)
		memcpy(out, whole, *out_len);
	return (int)got;
}

/* ---- questions to owners ---- */

void *asks_new(void) { return calloc(1, sizeof(struct asks)); }
void asks_free(void *a) { free(a); }

int ask(void *a, uint16_t port, uint32_t by, uint32_t of, uint32_t len, uint64_t now_us)
{
	const struct frame_tuple t = { 1, 2, 3, port };
	const struct frame_meta m = { .len = len };
	uint8_t *bytes = calloc(1, len + 1);
	int state;

	bytes[0] = (uint8_t)port;
	state = asks_open(a, &t, (uint8_t)by, (uint8_t)of, bytes, &m, now_us);
	free(bytes);
	return state;
}

/* Whose SYN it is about, -1: none. */
int answer(void *a, uint16_t port, uint32_t of)
{
	const struct frame_tuple t = { 1, 2, 3, port };
	const struct ask *q = asks_close(a, &t, (uint8_t)of);

	return q && q->bytes[0] == (uint8_t)port ? q->by : -1;
}
