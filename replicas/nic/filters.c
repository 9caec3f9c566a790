/*
 * filters.c - the flow table behind filters.h: chained hash, one age list for each state.
 *
 * Lists are ordered by the second of the last packet (HALF: of the creation), so that expiry looks
 * at the oldest end only. Expiry happens when packets come: an idle nic has no timer.
 */
#include "filters.h"
#include <string.h>

enum { FLOW_FIN_IN = 1, FLOW_FIN_OUT = 2, FLOW_ISS = 4 };	/* flags; ISS: `iss` is known */
enum {
	EXPIRE_BATCH = 8,		/* bound on the work of one packet */
	ACK_WINDOW = 1 << 20,		/* how far an ACK or RST may be from what we know */
};

struct flow {
	struct frame_tuple t;
	uint32_t iss;		/* our first sequence number + 1 */
	uint32_t rcv;		/* latest acknowledgement that the replica sent */
	uint32_t next;		/* of the chain or the free list; index + 1 */
	uint32_t older, newer;	/* index + 1 */
	uint32_t seen_s;
	uint8_t state, owner, flags, pad;
};

struct flow_list { uint32_t oldest, newest, count; };

struct flows {
	uint64_t key[2];
	uint64_t evicted, refused;
	uint32_t max, half_max;
	uint32_t mask;
	uint32_t fresh;		/* entries below were used once; beyond, memory is untouched */
	uint32_t free;		/* index + 1 */
	struct flow_list list[FLOW_STATES];
	uint32_t bucket[];	/* index + 1; followed by struct flow[max] */
};

static uint32_t bucket_count(uint32_t max)
{
	uint32_t n = 64;

	while (n < max)
		n *= 2;
	return n;
}

size_t flows_memory(uint32_t max)
{
	return sizeof(struct flows) + sizeof(uint32_t) * bucket_count(max) + sizeof(struct flow) * max;
}

static struct flow *entry(const struct flows *f, uint32_t i)
{
	return (struct flow *)(void *)((char *)f + sizeof(*f) + sizeof(uint32_t) * (f->mask + 1u)) + (i - 1);
}

struct flows *flows_init(void *memory, uint32_t max, const uint8_t key[16])
{
	struct flows *f = memory;

	memcpy(f->key, key, 16);
	f->max = max;
	/* A flood of SYNs cannot take more than half: the rest is for connections. */
	f->half_max = max / 2 ? max / 2 : 1;
	f->mask = bucket_count(max) - 1;
	return f;
}

static uint64_t mix(uint64_t a, uint64_t b)
{
	unsigned __int128 r = (unsigned __int128)a * b;

	return (uint64_t)r ^ (uint64_t)(r >> 64);
}

/* Keyed, because peers choose tuples. */
static uint32_t *bucket(const struct flows *f, const struct frame_tuple *t)
{
	uint64_t a = (uint64_t)t->raddr << 32 | t->laddr, p = (uint64_t)t->rport << 16 | t->lport;
	uint64_t h = mix(mix(a ^ f->key[0], p ^ f->key[1]) ^ f->key[1], f->key[0] | 1);

	return (uint32_t *)&f->bucket[h & f->mask];
}

static bool same(const struct frame_tuple *a, const struct frame_tuple *b)
{
	return a->raddr == b->raddr && a->laddr == b->laddr && a->rport == b->rport && a->lport == b->lport;
}

static uint32_t find(const struct flows *f, const struct frame_tuple *t)
{
	uint32_t i = *bucket(f, t);

	while (i && !same(&entry(f, i)->t, t))
		i = entry(f, i)->next;
	return i;
}

/* ---- age lists ---- */

static void list_remove(struct flows *f, uint32_t i)
{
	struct flow *e = entry(f, i);
	struct flow_list *l = &f->list[e->state];

	*(e->older ? &entry(f, e->older)->newer : &l->oldest) = e->newer;
	*(e->newer ? &entry(f, e->newer)->older : &l->newest) = e->older;
	l->count--;
}

static void list_append(struct flows *f, uint32_t i)
{
	struct flow *e = entry(f, i);
	struct flow_list *l = &f->list[e->state];

	e->older = l->newest;
	e->newer = 0;
	*(l->newest ? &entry(f, l->newest)->newer : &l->oldest) = i;
	l->newest = i;
	l->count++;
}

static void set_state(struct flows *f, uint32_t i, enum flow_state state, uint32_t now_s)
{
	list_remove(f, i);
	entry(f, i)->state = (uint8_t)state;
	entry(f, i)->seen_s = now_s;
	list_append(f, i);
}

/* A packet of the flow. HALF keeps its age: who floods with one SYN again and again gains nothing. */
static void touch(struct flows *f, uint32_t i, uint32_t now_s)
{
	struct flow *e = entry(f, i);

	if (e->state != FLOW_HALF && e->seen_s != now_s)
		set_state(f, i, (enum flow_state)e->state, now_s);
}

/* ---- entries ---- */

static void forget(struct flows *f, uint32_t i)
{
	struct flow *e = entry(f, i);
	uint32_t *at = bucket(f, &e->t);

	while (*at != i)
		at = &entry(f, *at)->next;
	*at = e->next;
	list_remove(f, i);
	e->state = FLOW_FREE;
	e->next = f->free;
	f->free = i;
}

static void expire(struct flows *f, uint32_t now_s)
{
	static const uint32_t life[FLOW_STATES] = { 0, FLOW_HALF_S, FLOW_OPEN_S, FLOW_CLOSING_S };

	for (unsigned s = FLOW_HALF; s < FLOW_STATES; s++)
		for (unsigned n = 0; n < EXPIRE_BATCH && f->list[s].oldest; n++) {
			if (now_s - entry(f, f->list[s].oldest)->seen_s <= life[s])
				break;
			forget(f, f->list[s].oldest);
		}
}

static void evict_half(struct flows *f)
{
	forget(f, f->list[FLOW_HALF].oldest);
	f->evicted++;
}

/* Index + 1 of a new entry, 0 when only connections are left that nobody may evict. */
static uint32_t create(struct flows *f, const struct frame_tuple *t, enum flow_state state, uint8_t owner,
		       uint32_t now_s)
{
	uint32_t *b = bucket(f, t), i;
	struct flow *e;

	if (state == FLOW_HALF && f->list[FLOW_HALF].count >= f->half_max)
		evict_half(f);
	if (!f->free && f->fresh >= f->max && f->list[FLOW_HALF].count)
		evict_half(f);
	if (f->free) {
		i = f->free;
		f->free = entry(f, i)->next;
	} else if (f->fresh < f->max) {
		i = ++f->fresh;
	} else {
		f->refused++;
		return 0;
	}
	e = entry(f, i);
	*e = (struct flow){ .t = *t, .state = (uint8_t)state, .owner = owner, .seen_s = now_s };
	e->next = *b;
	*b = i;
	list_append(f, i);
	return i;
}

static uint32_t seconds(uint64_t now_us) { return (uint32_t)(now_us / 1000000); }

static bool within(uint32_t at, uint32_t from) { return at - from < ACK_WINDOW; }

static void both_fins(struct flows *f, uint32_t i, uint32_t now_s)
{
	struct flow *e = entry(f, i);

	if (e->state == FLOW_OPEN && (e->flags & FLOW_FIN_IN) && (e->flags & FLOW_FIN_OUT))
		set_state(f, i, FLOW_CLOSING, now_s);
}

/* ---- packets ---- */

/* A SYN for a known tuple: only a finished connection may be replaced, and moves if its owner drains. */
static void syn_again(struct flows *f, uint32_t i, uint8_t hashed, uint32_t active, uint32_t now_s)
{
	struct flow *e = entry(f, i);

	if (e->state != FLOW_CLOSING)
		return;
	if (!(active >> e->owner & 1))
		e->owner = hashed;
	e->flags = 0;
	set_state(f, i, FLOW_HALF, now_s);
}

uint8_t flows_rx(struct flows *f, const struct frame *p, uint8_t hashed, uint32_t active, uint64_t now_us)
{
	uint32_t now_s = seconds(now_us), i;
	struct flow *e;
	bool opens = (p->tcp_flags & (FRAME_SYN | FRAME_ACK | FRAME_RST)) == FRAME_SYN;

	expire(f, now_s);
	i = find(f, &p->t);
	if (!i) {
		if (opens)
			create(f, &p->t, FLOW_HALF, hashed, now_s);
		return hashed;
	}
	e = entry(f, i);
	if (opens) {
		syn_again(f, i, hashed, active, now_s);
		return e->owner;
	}
	touch(f, i, now_s);
	if (p->tcp_flags & FRAME_RST) {
		/* RFC 5961 3: a blind RST is not believed; here it could only shorten the memory of the flow. */
		if (e->state == FLOW_OPEN && within(p->seq, e->rcv))
			set_state(f, i, FLOW_CLOSING, now_s);
		return e->owner;
	}
	if (e->state == FLOW_HALF && p->tcp_flags & FRAME_ACK && e->flags & FLOW_ISS && within(p->ack, e->iss))
		set_state(f, i, FLOW_OPEN, now_s);
	if (p->tcp_flags & FRAME_FIN && e->state == FLOW_OPEN)
		e->flags |= FLOW_FIN_IN;
	both_fins(f, i, now_s);
	return e->owner;
}

/*
 * No entry: our connect(), a flow whose half-open entry was evicted, or all flows after this nic
 * was restarted. The owner is whoever sends.
 */
static uint32_t learn(struct flows *f, const struct frame *p, uint8_t replica, uint32_t now_s)
{
	if (p->tcp_flags & FRAME_RST)
		return 0;
	return create(f, &p->t, p->tcp_flags & FRAME_SYN ? FLOW_HALF : FLOW_OPEN, replica, now_s);
}

void flows_tx(struct flows *f, const struct frame *p, uint8_t replica, uint64_t now_us)
{
	uint32_t now_s = seconds(now_us), i;
	struct flow *e;

	expire(f, now_s);
	i = find(f, &p->t);
	if (!i)
		i = learn(f, p, replica, now_s);
	if (!i)
		return;
	e = entry(f, i);
	if (e->owner != replica) {
		/* Nobody takes a live connection over; a finished one's tuple may be used again. */
		if (e->state != FLOW_CLOSING || (p->tcp_flags & (FRAME_SYN | FRAME_ACK)) != FRAME_SYN)
			return;
		e->owner = replica;
	}
	touch(f, i, now_s);
	if (p->tcp_flags & FRAME_ACK)
		e->rcv = p->ack;
	if (p->tcp_flags & FRAME_RST) {
		set_state(f, i, FLOW_CLOSING, now_s);
		return;
	}
	if (p->tcp_flags & FRAME_SYN) {
		e->iss = p->seq + 1;
		e->flags = FLOW_ISS;
		if (e->state == FLOW_CLOSING)
			set_state(f, i, FLOW_HALF, now_s);
	} else if (e->state == FLOW_CLOSING && !(e->flags & FLOW_FIN_IN && e->flags & FLOW_FIN_OUT)) {
		set_state(f, i, FLOW_OPEN, now_s);	/* that RST was not valid: the replica goes on */
	}
	if (p->tcp_flags & FRAME_FIN)
		e->flags |= FLOW_FIN_OUT;
	both_fins(f, i, now_s);
}

uint8_t flows_owner(const struct flows *f, const struct frame_tuple *t)
{
	uint32_t i = find(f, t);

	return i ? entry(f, i)->owner : (uint8_t)FLOW_NONE;
}

enum flow_state flows_state(const struct flows *f, const struct frame_tuple *t)
{
	uint32_t i = find(f, t);

	return i ? (enum flow_state)entry(f, i)->state : FLOW_FREE;
}

void flows_purge(struct flows *f, uint8_t replica)
{
	for (uint32_t i = 1; i <= f->fresh; i++)
		if (entry(f, i)->state != FLOW_FREE && entry(f, i)->owner == replica)
			forget(f, i);
}

struct flows_count flows_count(const struct flows *f)
{
	return (struct flows_count){
		.half = f->list[FLOW_HALF].count,
		.open = f->list[FLOW_OPEN].count,
		.closing = f->list[FLOW_CLOSING].count,
		.evicted = f->evicted,
		.refused = f->refused,
	};
}
