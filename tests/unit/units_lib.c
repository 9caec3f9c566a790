/*
 * units_lib.c - the small parts of the stack as the tests call them: timing wheel, flow table, RSS,
 * checksum, formats. No time, no packets.
 */
#include "copy.h"
#include "flow.h"
#include "ip.h"
#include "rss.h"
#include "stack.h"
#include "turns.h"
#include "wire.h"
#include <errno.h>
#include <stdlib.h>

/* ---- what the tests drive ---- */
struct wheel;
struct wheel *wheel_new(uint64_t now_us, uint32_t timers);
void wheel_free(struct wheel *w);
void wheel_set(struct wheel *w, uint32_t i, uint64_t deadline_us);
void wheel_del(struct wheel *w, uint32_t i);
uint32_t wheel_pending(struct wheel *w, uint32_t i);
uint64_t wheel_next(struct wheel *w);
uint32_t wheel_count(struct wheel *w);
void wheel_again(struct wheel *w, uint32_t i, uint32_t which, uint64_t deadline_us);
uint32_t wheel_run(struct wheel *w, uint64_t now_us, uint32_t budget, uint32_t *ran, uint32_t cap);
struct flows;
struct flows *flows_new(uint32_t connections, uint64_t seed);
void flows_free(struct flows *f);
int flows_insert(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp, uint64_t value);
void flows_remove(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp);
uint64_t flows_find(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp);
uint64_t flows_hash(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp);
int flows_listen(struct flows *f, uint32_t addr, uint16_t port, uint64_t l);
void flows_unlisten(struct flows *f, uint32_t addr, uint16_t port, uint64_t l);
uint64_t flows_listener(struct flows *f, uint32_t addr, uint16_t port, uint32_t hash);
uint32_t flows_choose(struct flows *f, uint32_t la, uint32_t ra, uint16_t rp);
void flows_steer(struct flows *f, uint32_t index, uint32_t replicas);
void flows_reta(struct flows *f, uint32_t index, const uint8_t *reta);
void flows_choose_many(struct flows *f, uint32_t la, uint32_t ra, uint16_t rp, uint32_t draws, uint32_t *counts);
void flows_bind(struct flows *f, uint16_t first, uint16_t last);
uint32_t flows_replica(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp);
uint32_t toeplitz(const uint8_t *key, uint32_t saddr, uint32_t daddr, uint16_t sport, uint16_t dport);
uint32_t checksum(const uint8_t *data, uint32_t len);
uint32_t checksum_split(const uint8_t *data, uint32_t len, uint32_t first, uint32_t second);
uint32_t checksum_more(const uint8_t *data, uint32_t len, uint32_t cut);
uint32_t copied(uint8_t *to, const uint8_t *from, size_t n, uint32_t streams);
struct turns *turns_new(void);
void turns_free(struct turns *t);
uint32_t turns_woke(struct turns *t, uint32_t who, uint32_t cpu, uint32_t own, uint64_t now_us);
bool copy_far(uint64_t first_ns, uint64_t second_ns, size_t n);
uint32_t pseudo_sum(uint32_t saddr, uint32_t daddr, uint8_t proto, uint32_t len);
uint32_t trimmed(uint32_t linear, uint32_t first, uint32_t second, uint32_t total, uint32_t *out);
uint32_t field_offsets(uint32_t *out, uint32_t cap);

/* ---- end ---- */

/* ---- timing wheel ---- */

struct item { struct timer t; uint32_t index; uint32_t again; uint64_t again_us; };
struct wheel {
	struct timer_wheel w;
	uint32_t n;
	uint32_t *ran, cap, count;
	struct item item[];
};

static void expired(void *ctx, struct timer *t)
{
	struct wheel *w = ctx;
	struct item *i = (struct item *)(void *)t;

	if (w->count < w->cap)
		w->ran[w->count] = i->index;
	w->count++;
	if (i->again) {
		uint32_t which = i->again - 1;

		i->again = 0;
		if (i->again_us)
			timer_set(&w->w, &w->item[which].t, i->again_us);
		else
			timer_del(&w->w, &w->item[which].t);
	}
}

struct wheel *wheel_new(uint64_t now_us, uint32_t timers)
{
	struct wheel *w = calloc(1, sizeof(*w) + timers * sizeof(struct item));

	timer_wheel_init(&w->w, now_us);
	w->w.handler[3] = expired;
	w->n = timers;
	for (uint32_t i = 0; i < timers; i++) {
		w->item[i].index = i;
		w->item[i].t.kind = 3;
	}
	return w;
}

void wheel_free(struct wheel *w) { free(w); }
void wheel_set(struct wheel *w, uint32_t i, uint64_t at) { timer_set(&w->w, &w->item[i].t, at); }
void wheel_del(struct wheel *w, uint32_t i) { timer_del(&w->w, &w->item[i].t); }
uint32_t wheel_pending(struct wheel *w, uint32_t i) { return timer_pending(&w->item[i].t); }
uint64_t wheel_next(struct wheel *w) { return timer_next(&w->w); }
uint32_t wheel_count(struct wheel *w) { return w->w.count; }

/* When timer i runs, its handler sets `which` to the deadline, or deletes it if that is 0. */
void wheel_again(struct wheel *w, uint32_t i, uint32_t which, uint64_t deadline_us)
{
	w->item[i].again = which + 1;
	w->item[i].again_us = deadline_us;
}

uint32_t wheel_run(struct wheel *w, uint64_t now_us, uint32_t budget, uint32_t *ran, uint32_t cap)
{
	w->ran = ran;
	w->cap = cap;
	w->count = 0;
	timer_run(&w->w, now_us, budget, w);
	return w->count;
}

/* ---- flow table ---- */

struct flows { struct stack s; uint64_t seed; uint8_t reta[RSS_RETA]; uint16_t bound[2]; };

static uint64_t next_random(void *world)
{
	struct flows *f = world;

	f->seed = f->seed * 6364136223846793005ull + 1442695040888963407ull;
	return f->seed >> 16;
}

struct flows *flows_new(uint32_t connections, uint64_t seed)
{
	struct flows *f = calloc(1, sizeof(*f));

	f->seed = seed;
	f->s.cfg.connections_max = connections;
	f->s.cfg.addr = 0x0a000001;
	for (unsigned i = 0; i < sizeof(f->s.cfg.secret); i++)
		f->s.cfg.secret[i] = (uint8_t)next_random(f);
	for (unsigned i = 0; i < sizeof(f->s.cfg.rss_key); i++)
		f->s.cfg.rss_key[i] = (uint8_t)next_random(f);
	f->s.ops.random = next_random;
	f->s.ops.world = f;
	flow_init(&f->s, calloc(1, flow_memory(&f->s.cfg)));
	return f;
}

void flows_free(struct flows *f)
{
	free(f->s.flow);
	free(f);
}

#define KEY(la, lp, ra, rp) &(struct flow_key){ .laddr = (la), .raddr = (ra), .lport = (lp), .rport = (rp) }

int flows_insert(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp, uint64_t value)
{
	return flow_insert(&f->s, KEY(la, lp, ra, rp), (void *)(uintptr_t)value);
}

void flows_remove(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp)
{
	flow_remove(&f->s, KEY(la, lp, ra, rp));
}

uint64_t flows_find(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp)
{
	return (uint64_t)(uintptr_t)flow_find(&f->s, KEY(la, lp, ra, rp));
}

uint64_t flows_hash(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp)
{
	return flow_hash(&f->s, KEY(la, lp, ra, rp));
}

int flows_listen(struct flows *f, uint32_t addr, uint16_t port, uint64_t l)
{
	return flow_listen(&f->s, addr, port, (struct listener *)(uintptr_t)l);
}

void flows_unlisten(struct flows *f, uint32_t addr, uint16_t port, uint64_t l)
{
	flow_unlisten(&f->s, addr, port, (struct listener *)(uintptr_t)l);
}

uint64_t flows_listener(struct flows *f, uint32_t addr, uint16_t port, uint32_t hash)
{
	return (uint64_t)(uintptr_t)flow_listener(&f->s, addr, port, hash);
}

uint32_t flows_choose(struct flows *f, uint32_t la, uint32_t ra, uint16_t rp)
{
	return flow_choose_port(&f->s, la, ra, rp);
}

/* We are replica `index` of so many; buckets go round. */
void flows_steer(struct flows *f, uint32_t index, uint32_t replicas)
{
	f->s.cfg.index = index;
	f->s.cfg.reta = f->reta;
	for (unsigned i = 0; i < RSS_RETA; i++)
		f->reta[i] = (uint8_t)(i % replicas);
}

void flows_reta(struct flows *f, uint32_t index, const uint8_t *reta)
{
	f->s.cfg.index = index;
	f->s.cfg.reta = f->reta;
	memcpy(f->reta, reta, RSS_RETA);
}

/* How often each port comes when nothing is in use; counts[65536]. */
void flows_choose_many(struct flows *f, uint32_t la, uint32_t ra, uint16_t rp, uint32_t draws, uint32_t *counts)
{
	for (uint32_t i = 0; i < draws; i++)
		counts[flow_choose_port(&f->s, la, ra, rp)]++;
}

static bool in_range(void *world, uint32_t addr, uint16_t port)
{
	const struct flows *f = world;
	(void)addr;

	return port >= f->bound[0] && port <= f->bound[1];
}

/* bind(2) holds these ports. */
void flows_bind(struct flows *f, uint16_t first, uint16_t last)
{
	f->bound[0] = first;
	f->bound[1] = last;
	f->s.ops.port_bound = in_range;
}

/* Who gets the peer's segments, computed from the key as the nic does. */
uint32_t flows_replica(struct flows *f, uint32_t la, uint16_t lp, uint32_t ra, uint16_t rp)
{
	return f->s.cfg.reta[toeplitz(f->s.cfg.rss_key, ra, la, rp, lp) & (RSS_RETA - 1)];
}

/* ---- RSS, checksum, formats ---- */

uint32_t toeplitz(const uint8_t *key, uint32_t saddr, uint32_t daddr, uint16_t sport, uint16_t dport)
{
	struct rss_table *t = malloc(sizeof(*t));
	uint32_t h;

	rss_table_init(t, key);
	h = rss_hash(t, saddr, daddr, sport, dport);
	free(t);
	return h;
}

uint32_t checksum(const uint8_t *data, uint32_t len) { return (uint16_t)~csum_fold(csum_add(0, data, len)); }

uint32_t checksum_more(const uint8_t *data, uint32_t len, uint32_t cut)
{
	return (uint16_t)~csum_fold(csum_add(csum_add(0, data, cut), data + cut, len - cut));
}

/* As a packet in three pieces, which may start at odd offsets. */
uint32_t checksum_split(const uint8_t *data, uint32_t len, uint32_t first, uint32_t second)
{
	uint8_t *copy = malloc(len + 1);
	struct pkt p = { .data = copy, .buf = copy, .len = first, .frag_len = len - first };
	uint32_t sum;

	memcpy(copy, data, len);
	p.frag[0].p = copy + first;
	p.frag[0].len = second;
	p.frag[1].p = copy + first + second;
	p.frag[1].len = len - first - second;
	sum = (uint16_t)~csum_fold(csum_pkt(0, &p));
	free(copy);
	return sum;
}

uint32_t pseudo_sum(uint32_t saddr, uint32_t daddr, uint8_t proto, uint32_t len)
{
	return ip_pseudo_sum(saddr, daddr, proto, len);
}

uint32_t trimmed(uint32_t linear, uint32_t first, uint32_t second, uint32_t total, uint32_t *out)
{
	struct pkt p = { .len = linear, .frag_len = first + second };

	p.frag[0].len = first;
	p.frag[1].len = second;
	pkt_trim(&p, total);
	out[0] = p.len;
	out[1] = p.frag_len;
	out[2] = p.frag[0].len;
	out[3] = p.frag[1].len;
	return pkt_total(&p);
}

uint32_t field_offsets(uint32_t *out, uint32_t cap)
{
	const uint32_t at[] = {
		offsetof(struct wire_eth, type),
		offsetof(struct wire_arp, op), offsetof(struct wire_arp, spa), offsetof(struct wire_arp, tpa),
		offsetof(struct wire_ip, total_len), offsetof(struct wire_ip, frag), offsetof(struct wire_ip, proto),
		offsetof(struct wire_ip, csum), offsetof(struct wire_ip, saddr), offsetof(struct wire_ip, daddr),
		offsetof(struct wire_icmp, csum), offsetof(struct wire_udp, len), offsetof(struct wire_udp, csum),
		offsetof(struct wire_tcp, seq), offsetof(struct wire_tcp, ack), offsetof(struct wire_tcp, flags),
		offsetof(struct wire_tcp, window), offsetof(struct wire_tcp, csum), offsetof(struct wire_tcp, urgent),
	};
	uint32_t n = sizeof(at) / sizeof(at[0]);

	for (uint32_t i = 0; i < n && i < cap; i++)
		out[i] = at[i];
	return n;
}

/* What ip.c and icmp.c call and these tests never reach. */
void tcp_input(struct stack *s, struct pkt *p, const struct ip_meta *m) { (void)s, (void)p, (void)m; }
void tcp_icmp(struct stack *s, const struct flow_key *k, uint32_t seq, uint8_t type, uint8_t code, uint32_t mtu)
{
	(void)s, (void)k, (void)seq, (void)type, (void)code, (void)mtu;
}
void udp_input(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	(void)s, (void)p, (void)m, (void)ihl;
}
void icmp_input(struct stack *s, struct pkt *p, const struct ip_meta *m) { (void)s, (void)p, (void)m; }
void icmp_error(struct stack *s, uint8_t type, uint8_t code, const struct pkt *orig)
{
	(void)s, (void)type, (void)code, (void)orig;
}
bool lo_output(struct stack *s, const struct pkt *p) { (void)s, (void)p; return true; }
bool link_output(struct stack *s, struct pkt *p, uint32_t hop) { (void)s, (void)p, (void)hop; return true; }

/* ---- copies ---- */

/* One copy with `streams` streamed ones ahead; how many are ahead after it. */
uint32_t copied(uint8_t *to, const uint8_t *from, size_t n, uint32_t streams)
{
	struct neat_copier c = { .streams = { streams } };

	neat_copy(&c, to, from, n);
	return a32_relaxed(&c.streams);
}

bool copy_far(uint64_t first_ns, uint64_t second_ns, size_t n) { return neat_copy_far(first_ns, second_ns, n); }

/* ---- turns ---- */

struct turns *turns_new(void) { return calloc(1, sizeof(struct turns)); }
void turns_free(struct turns *t) { free(t); }

uint32_t turns_woke(struct turns *t, uint32_t who, uint32_t cpu, uint32_t own, uint64_t now_us)
{
	static const char programs[8];

	return turns_wake(t, &programs[who % 8], cpu, own, now_us);
}
