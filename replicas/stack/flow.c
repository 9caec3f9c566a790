/*
 * flow.c - which control block a 4-tuple belongs to, which listener a SYN finds, which local port
 * a connect() gets.
 *
 * Not responsible for: states, TIME_WAIT policy (tcp). Read RFC 6056 and contract L7 first. All
 * tables are class D.
 */
#include "flow.h"
#include "hash.h"
#include "rss.h"
#include "stack.h"
#include <errno.h>

enum {
	LISTEN_BUCKETS = 1024,
	LISTEN_NODES = 4096,
	PORT_FIRST = 32768,	/* ip(7) ip_local_port_range */
	PORT_LAST = 60999,
	PORTS = PORT_LAST - PORT_FIRST + 1,
	PORT_DRAWS = 16,
	EXHAUSTED = 256,
};

/* A free entry has no value. Removal shifts its run back, so there are no tombstones. */
struct flow_entry {
	uint64_t addrs;		/* laddr << 32 | raddr */
	uint64_t ports;		/* lport << 16 | rport */
	void *value;
	uint64_t pad;
};

struct listen_node {
	struct listener *l;
	uint32_t addr;
	uint16_t port;
	uint16_t pad;
	uint32_t next;		/* index + 1 */
};

/*
 * A remote end for which a walk found no local port. Holds while nothing that could free one has happened: the end
 * of a flow to it (flow_remove()), of a listener or of a bound socket (`stamp`), a change of the classes that are ours.
 */
struct exhausted {
	uint64_t addrs;
	uint64_t stamp;
	uint64_t classes[RSS_RETA / 64];
	uint16_t rport;
	bool valid;
};

struct flow {
	uint64_t k0, k1;
	uint32_t mask, used;
	uint32_t free_node;	/* index + 1 */
	uint32_t nexhausted;
	uint64_t unlistened;
	struct exhausted exhausted[EXHAUSTED];	/* by hash; who comes later has the place */
	uint32_t bucket[LISTEN_BUCKETS];	/* index + 1; by port */
	struct listen_node node[LISTEN_NODES];
	struct rss_table rss;
	/* Local ports sorted by what they add to the bucket number; class c is [class_at[c], class_at[c + 1]). */
	uint16_t class_at[RSS_RETA + 1];
	uint16_t port[PORTS];
	struct flow_entry entry[];
};

/* Room for connections, half-open ones and TIME_WAIT, at two thirds of it when all of them are in use. */
static uint32_t flow_capacity(const struct stack_config *cfg)
{
	uint32_t connections = cfg->connections_max > 1024 ? cfg->connections_max : 1024;	/* tcp.c: TIME_WAIT */
	uint32_t all = connections * 2 + cfg->syn_backlog, want = all + all / 2, n = 1024;

	while (n < want)
		n *= 2;
	return n;
}

size_t flow_memory(const struct stack_config *cfg)
{
	return sizeof(struct flow) + sizeof(struct flow_entry) * flow_capacity(cfg);
}

/* The hash is linear over GF(2): a local port's share of it depends on nothing else. */
static uint32_t port_class(const struct flow *f, uint32_t port)
{
	return rss_hash_lport(&f->rss, (uint16_t)port) & (RSS_RETA - 1);
}

static void sort_ports(struct flow *f)
{
	uint16_t at[RSS_RETA];

	for (uint32_t p = PORT_FIRST; p <= PORT_LAST; p++)
		f->class_at[port_class(f, p) + 1]++;
	for (uint32_t c = 0; c < RSS_RETA; c++) {
		f->class_at[c + 1] = (uint16_t)(f->class_at[c + 1] + f->class_at[c]);
		at[c] = f->class_at[c];
	}
	for (uint32_t p = PORT_FIRST; p <= PORT_LAST; p++)
		f->port[at[port_class(f, p)]++] = (uint16_t)p;
}

void flow_init(struct stack *s, void *memory)
{
	struct flow *f = memory;
	uint8_t k[16];

	s->flow = f;
	f->mask = flow_capacity(&s->cfg) - 1;
	/* Derived, so that neither ISNs nor ports tell anything about table positions. */
	for (unsigned i = 0; i < 2; i++) {
		uint64_t h = siphash24(s->cfg.secret + 16, i ? "flow1" : "flow0", 5);

		memcpy(k + 8 * i, &h, 8);
	}
	memcpy(&f->k0, k, 8);
	memcpy(&f->k1, k + 8, 8);
	for (uint32_t i = 0; i < LISTEN_NODES; i++)
		f->node[i].next = i + 2 <= LISTEN_NODES ? i + 2 : 0;
	f->free_node = 1;
	rss_table_init(&f->rss, s->cfg.rss_key);
	sort_ports(f);
}

static inline uint64_t key_addrs(const struct flow_key *k) { return (uint64_t)k->laddr << 32 | k->raddr; }
static inline uint64_t key_ports(const struct flow_key *k) { return (uint64_t)k->lport << 16 | k->rport; }

static inline uint32_t home(const struct flow *f, uint64_t addrs, uint64_t ports)
{
	return (uint32_t)hash_tuple(f->k0, f->k1, addrs, ports) & f->mask;
}

void flow_expect(const struct stack *s, const struct flow_key *k)
{
	const struct flow *f = s->flow;

	__builtin_prefetch(&f->entry[home(f, key_addrs(k), key_ports(k))], 1);
}

struct memory_span flow_span(const struct stack *s)
{
	return (struct memory_span){ s->flow->entry, sizeof(s->flow->entry[0]) * ((size_t)s->flow->mask + 1) };
}

uint32_t flow_hash(const struct stack *s, const struct flow_key *k)
{
	return (uint32_t)(hash_tuple(s->flow->k0, s->flow->k1, key_addrs(k), key_ports(k)) >> 32);
}

void *flow_find(const struct stack *s, const struct flow_key *k)
{
	const struct flow *f = s->flow;
	uint64_t addrs = key_addrs(k), ports = key_ports(k);

	for (uint32_t i = home(f, addrs, ports); f->entry[i].value; i = (i + 1) & f->mask)
		if (f->entry[i].addrs == addrs && f->entry[i].ports == ports)
			return f->entry[i].value;
	return NULL;
}

int flow_insert(struct stack *s, const struct flow_key *k, void *value)
{
	struct flow *f = s->flow;
	uint64_t addrs = key_addrs(k), ports = key_ports(k);
	uint32_t i = home(f, addrs, ports);

	if (f->used > f->mask - f->mask / 4)
		return -ENOMEM;
	for (; f->entry[i].value; i = (i + 1) & f->mask)
		if (f->entry[i].addrs == addrs && f->entry[i].ports == ports)
			return -EADDRINUSE;
	f->entry[i] = (struct flow_entry){ .addrs = addrs, .ports = ports, .value = value };
	f->used++;
	return 0;
}

static struct exhausted *exhausted_at(struct flow *f, const struct flow_key *k)
{
	return &f->exhausted[hash_tuple(f->k0, f->k1, key_addrs(k), k->rport) % EXHAUSTED];
}

static bool exhausted_is(const struct exhausted *x, const struct flow_key *k)
{
	return x->valid && x->addrs == key_addrs(k) && x->rport == k->rport;
}

static void port_free_again(struct flow *f, const struct flow_key *k)
{
	struct exhausted *x = exhausted_at(f, k);

	if (!exhausted_is(x, k))
		return;
	x->valid = false;
	f->nexhausted--;
}

void flow_remove(struct stack *s, const struct flow_key *k)
{
	struct flow *f = s->flow;
	uint64_t addrs = key_addrs(k), ports = key_ports(k);
	uint32_t hole = home(f, addrs, ports), i;

	while (f->entry[hole].value && (f->entry[hole].addrs != addrs || f->entry[hole].ports != ports))
		hole = (hole + 1) & f->mask;
	if (!f->entry[hole].value)
		return;
	/* Whoever probed past the hole moves into it (Knuth 6.4, algorithm R). */
	for (i = (hole + 1) & f->mask; f->entry[i].value; i = (i + 1) & f->mask) {
		uint32_t h = home(f, f->entry[i].addrs, f->entry[i].ports);

		if (((i - h) & f->mask) >= ((i - hole) & f->mask)) {
			f->entry[hole] = f->entry[i];
			hole = i;
		}
	}
	f->entry[hole].value = NULL;
	f->used--;
	if (NEAT_UNLIKELY(f->nexhausted))
		port_free_again(f, k);
}

/* ---- listeners ---- */

static uint32_t listen_bucket(uint16_t port) { return (port * 2654435761u) >> 22; }

/* Listeners on exactly `addr`; a group of several (SO_REUSEPORT) is picked by hash. */
static struct listener *listen_pick(const struct flow *f, uint32_t addr, uint16_t port, uint32_t hash)
{
	struct listener *found[FLOW_GROUP];
	uint32_t n = 0;

	for (uint32_t i = f->bucket[listen_bucket(port)]; i && n < FLOW_GROUP; i = f->node[i - 1].next)
		if (f->node[i - 1].port == port && f->node[i - 1].addr == addr)
			found[n++] = f->node[i - 1].l;
	return n ? found[(uint32_t)((uint64_t)hash * n >> 32)] : NULL;
}

struct listener *flow_listener(const struct stack *s, uint32_t addr, uint16_t port, uint32_t hash)
{
	struct listener *l = listen_pick(s->flow, addr, port, hash);

	return l ? l : listen_pick(s->flow, 0, port, hash);
}

int flow_listen(struct stack *s, uint32_t addr, uint16_t port, struct listener *l)
{
	struct flow *f = s->flow;
	uint32_t i = f->free_node, b = listen_bucket(port);

	if (!i)
		return -ENOMEM;
	f->free_node = f->node[i - 1].next;
	f->node[i - 1] = (struct listen_node){ .l = l, .addr = addr, .port = port, .next = f->bucket[b] };
	f->bucket[b] = i;
	return 0;
}

void flow_unlisten(struct stack *s, uint32_t addr, uint16_t port, struct listener *l)
{
	struct flow *f = s->flow;

	for (uint32_t *at = &f->bucket[listen_bucket(port)]; *at; at = &f->node[*at - 1].next) {
		struct listen_node *n = &f->node[*at - 1];
		uint32_t i = *at;

		if (n->l != l || n->addr != addr || n->port != port)
			continue;
		*at = n->next;
		n->next = f->free_node;
		f->free_node = i;
		f->unlistened++;
		return;
	}
}

/* ---- ports ---- */

/* Classes of ports with which a flow comes in on the queue of this replica (contract L7). */
struct port_choice {
	uint32_t total;		/* ports in them */
	uint32_t n;
	uint8_t class[RSS_RETA];
	uint64_t classes[RSS_RETA / 64];	/* the same as a set */
};

static void choose_class(const struct flow *f, struct port_choice *c, uint32_t class)
{
	c->class[c->n++] = (uint8_t)class;
	c->classes[class / 64] |= 1ull << class % 64;
	c->total += f->class_at[class + 1] - (uint32_t)f->class_at[class];
}

static void port_choice(const struct stack *s, const struct flow_key *k, struct port_choice *c)
{
	const struct flow *f = s->flow;
	uint32_t base = rss_hash(&f->rss, k->raddr, k->laddr, k->rport, 0);
	bool any = !s->cfg.reta || ip_is_local(s, k->raddr);

	*c = (struct port_choice){ .total = 0 };
	for (uint32_t bucket = 0; bucket < RSS_RETA; bucket++) {
		uint32_t class = (bucket ^ base) & (RSS_RETA - 1);

		/* Read once: the nic changes it with every scale event. */
		if (!any && __atomic_load_n(&s->cfg.reta[bucket], __ATOMIC_RELAXED) != s->cfg.index)
			continue;
		choose_class(f, c, class);
	}
	if (c->total)
		return;
	/* No bucket is ours (we drain): the nic's tracking filter knows the flow by its SYN. */
	c->n = 0;
	for (uint32_t class = 0; class < RSS_RETA; class++)
		choose_class(f, c, class);
}

/* The i-th port of all that are in the classes, i < total. */
static uint16_t choice_port(const struct flow *f, const struct port_choice *c, uint32_t i)
{
	for (uint32_t n = 0; n < c->n; n++) {
		uint32_t first = f->class_at[c->class[n]], count = f->class_at[c->class[n] + 1] - first;

		if (i < count)
			return f->port[first + i];
		i -= count;
	}
	return 0;
}

static bool port_usable(const struct stack *s, const struct flow_key *k)
{
	return !flow_find(s, k) && !flow_listener(s, k->laddr, k->lport, 0) &&
	       !(s->ops.port_bound && s->ops.port_bound(s->ops.world, k->laddr, k->lport));
}

static uint64_t port_stamp(const struct stack *s)
{
	return s->flow->unlistened + (s->ops.port_changes ? s->ops.port_changes(s->ops.world) : 0);
}

/* None of the classes of `c` has a port left; `stamp` is older than the walk that found this. */
static void exhausted_note(struct flow *f, const struct flow_key *k, const struct port_choice *c, uint64_t stamp)
{
	struct exhausted *x = exhausted_at(f, k);

	f->nexhausted += !x->valid;
	*x = (struct exhausted){ .addrs = key_addrs(k), .rport = k->rport, .stamp = stamp, .valid = true };
	memcpy(x->classes, c->classes, sizeof(x->classes));
}

static bool exhausted_still(struct flow *f, const struct flow_key *k, const struct port_choice *c, uint64_t stamp)
{
	const struct exhausted *x = exhausted_at(f, k);

	return exhausted_is(x, k) && x->stamp == stamp && !memcmp(x->classes, c->classes, sizeof(x->classes));
}

/* RFC 6056 3.3.1, from the `start`-th port on. A walk past all of them takes a millisecond. */
static uint16_t port_walk(struct stack *s, struct flow_key *k, const struct port_choice *c, uint32_t start)
{
	s->walked = true;
	for (uint32_t i = 0; i < c->total; i++) {
		k->lport = choice_port(s->flow, c, (start + i) % c->total);
		if (port_usable(s, k))
			return k->lport;
	}
	return 0;
}

/*
 * RFC 6056 3.3.2: another random port for each try, every one of the replica's ports as likely as the
 * others; what is lost is log2 of the number of replicas. When they are nearly all in use: port_walk().
 */
uint16_t flow_choose_port(struct stack *s, uint32_t laddr, uint32_t raddr, uint16_t rport)
{
	struct flow_key k = { .laddr = laddr, .raddr = raddr, .rport = rport };
	uint64_t stamp = port_stamp(s);
	struct port_choice c;
	uint32_t start = 0;
	uint16_t port;

	port_choice(s, &k, &c);
	if (exhausted_still(s->flow, &k, &c, stamp))
		return 0;
	for (uint32_t i = 0; i < PORT_DRAWS; i++) {
		start = (uint32_t)(s->ops.random(s->ops.world) % c.total);
		k.lport = choice_port(s->flow, &c, start);
		if (port_usable(s, &k))
			return k.lport;
	}
	port = port_walk(s, &k, &c, start);
	if (!port)
		exhausted_note(s->flow, &k, &c, stamp);
	return port;
}
