/*
 * filters.c - the flow table behind filters.h: chained hash, one age list for each state.
 *
 * What a connection is lies in the table that outlives this process (neat_flow_table); chains, lists
 * and the free list are ours and made anew by a successor. Death cuts the program order of stores at
 * one point, so an entry is whole if its word, stored last, says that it is one.
 *
 * Lists are ordered by the second of the last packet (HALF: of the creation), so that expiry looks
 * at the oldest end only. Expiry happens when packets come: an idle nic has no timer.
 */
#include "filters.h"
#include "ring.h"
#include <string.h>

enum { FLOW_FIN_IN = 1, FLOW_FIN_OUT = 2, FLOW_ISS = 4, FLOW_FLAGS = 7 };	/* flags; ISS: `iss` is known */
enum {
	EXPIRE_BATCH = 8,		/* bound on the work of one packet */
	ACK_WINDOW = 1 << 20,		/* how far an ACK or RST may be from what we know */
	SORT_BINS = 32,
};

struct flow_link {
	uint32_t next;		/* of the chain or the free list; index + 1 */
	uint32_t older, newer;	/* index + 1 */
};

struct flow_list { uint32_t oldest, newest, count; };

struct flows {
	uint64_t key[2];
	uint64_t evicted, refused;
	struct neat_flow_table *table;
	struct neat_flow *flow;
	struct flow_link *link;
	uint32_t max, half_max;
	uint32_t mask;
	uint32_t fresh;		/* entries below were used once; beyond, memory is untouched */
	uint32_t free;		/* index + 1 */
	struct flow_list list[FLOW_STATES];
	uint32_t bucket[];	/* index + 1; followed by struct flow_link[max] */
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
	return sizeof(struct flows) + sizeof(uint32_t) * bucket_count(max) + sizeof(struct flow_link) * max;
}

size_t flows_table(uint32_t max) { return sizeof(struct neat_flow_table) + sizeof(struct neat_flow) * max; }

static struct neat_flow *entry(const struct flows *f, uint32_t i) { return f->flow + (i - 1); }
static struct flow_link *linked(const struct flows *f, uint32_t i) { return f->link + (i - 1); }

static struct frame_tuple tuple(const struct neat_flow *e)
{
	return (struct frame_tuple){ e->raddr, e->laddr, e->rport, e->lport };
}

/* ---- the word of an entry ---- */

static uint8_t state_of(const struct neat_flow *e) { return (uint8_t)a32_relaxed(&e->word); }
static uint8_t owner_of(const struct neat_flow *e) { return (uint8_t)(a32_relaxed(&e->word) >> 8); }
static uint8_t flags_of(const struct neat_flow *e) { return (uint8_t)(a32_relaxed(&e->word) >> 16); }

/* Release: whatever the entry holds is in memory before the word says so, should we die in between. */
static void set_word(struct neat_flow *e, uint8_t state, uint8_t owner, uint8_t flags)
{
	a32_release(&e->word, (uint32_t)flags << 16 | (uint32_t)owner << 8 | state);
}

static void set_flags(struct neat_flow *e, uint8_t flags) { set_word(e, state_of(e), owner_of(e), flags); }
static void set_owner(struct neat_flow *e, uint8_t owner) { set_word(e, state_of(e), owner, flags_of(e)); }

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

/* No secret: it tells a whole entry from half of one, not a forged one. */
static uint32_t tuple_check(const struct frame_tuple *t)
{
	return (uint32_t)mix(((uint64_t)t->raddr << 32 | t->laddr) ^ 0x9e3779b97f4a7c15ull,
			     ((uint64_t)t->rport << 16 | t->lport) ^ 0xbf58476d1ce4e5b9ull);
}

static bool same(const struct frame_tuple *a, const struct frame_tuple *b)
{
	return a->raddr == b->raddr && a->laddr == b->laddr && a->rport == b->rport && a->lport == b->lport;
}

static uint32_t find(const struct flows *f, const struct frame_tuple *t)
{
	uint32_t i = *bucket(f, t);

	for (; i; i = linked(f, i)->next) {
		struct frame_tuple its = tuple(entry(f, i));

		if (same(&its, t))
			break;
	}
	return i;
}

/* ---- age lists ---- */

static void list_remove(struct flows *f, uint32_t i)
{
	struct flow_link *e = linked(f, i);
	struct flow_list *l = &f->list[state_of(entry(f, i))];

	*(e->older ? &linked(f, e->older)->newer : &l->oldest) = e->newer;
	*(e->newer ? &linked(f, e->newer)->older : &l->newest) = e->older;
	l->count--;
}

static void list_append(struct flows *f, uint32_t i)
{
	struct flow_link *e = linked(f, i);
	struct flow_list *l = &f->list[state_of(entry(f, i))];

	e->older = l->newest;
	e->newer = 0;
	*(l->newest ? &linked(f, l->newest)->newer : &l->oldest) = i;
	l->newest = i;
	l->count++;
}

static void set_state(struct flows *f, uint32_t i, enum flow_state state, uint32_t now_s)
{
	struct neat_flow *e = entry(f, i);

	list_remove(f, i);
	set_word(e, (uint8_t)state, owner_of(e), flags_of(e));
	e->seen_s = now_s;
	list_append(f, i);
}

/* A packet of the flow. HALF keeps its age: who floods with one SYN again and again gains nothing. */
static void touch(struct flows *f, uint32_t i, uint32_t now_s)
{
	struct neat_flow *e = entry(f, i);

	if (state_of(e) != FLOW_HALF && e->seen_s != now_s)
		set_state(f, i, (enum flow_state)state_of(e), now_s);
}

/* ---- entries ---- */

static void put_free(struct flows *f, uint32_t i)
{
	set_word(entry(f, i), FLOW_FREE, 0, 0);
	linked(f, i)->next = f->free;
	f->free = i;
}

static void forget(struct flows *f, uint32_t i)
{
	struct frame_tuple t = tuple(entry(f, i));
	uint32_t *at = bucket(f, &t);

	while (*at != i)
		at = &linked(f, *at)->next;
	*at = linked(f, i)->next;
	list_remove(f, i);
	put_free(f, i);
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

static void chain(struct flows *f, uint32_t i, const struct frame_tuple *t)
{
	uint32_t *b = bucket(f, t);

	linked(f, i)->next = *b;
	*b = i;
}

/* Index + 1 of a new entry, 0 when only connections are left that nobody may evict. */
static uint32_t create(struct flows *f, const struct frame_tuple *t, enum flow_state state, uint8_t owner,
		       uint32_t now_s)
{
	uint32_t i;

	if (state == FLOW_HALF && f->list[FLOW_HALF].count >= f->half_max)
		evict_half(f);
	if (!f->free && f->fresh >= f->max && f->list[FLOW_HALF].count)
		evict_half(f);
	if (f->free) {
		i = f->free;
		f->free = linked(f, i)->next;
	} else if (f->fresh < f->max) {
		i = ++f->fresh;
		a32_release(&f->table->used, i);
	} else {
		f->refused++;
		return 0;
	}
	*entry(f, i) = (struct neat_flow){ .raddr = t->raddr, .laddr = t->laddr, .rport = t->rport,
					   .lport = t->lport, .check = tuple_check(t), .seen_s = now_s };
	set_word(entry(f, i), (uint8_t)state, owner, 0);
	chain(f, i, t);
	list_append(f, i);
	return i;
}

static uint32_t seconds(uint64_t now_us) { return (uint32_t)(now_us / 1000000); }

static bool within(uint32_t at, uint32_t from) { return at - from < ACK_WINDOW; }

static void both_fins(struct flows *f, uint32_t i, uint32_t now_s)
{
	const struct neat_flow *e = entry(f, i);

	if (state_of(e) == FLOW_OPEN && (flags_of(e) & FLOW_FIN_IN) && (flags_of(e) & FLOW_FIN_OUT))
		set_state(f, i, FLOW_CLOSING, now_s);
}

/* ---- packets ---- */

/* A SYN for a known tuple: only a finished connection may be replaced, and moves if its owner drains. */
static void syn_again(struct flows *f, uint32_t i, uint8_t hashed, uint32_t active, uint32_t now_s)
{
	struct neat_flow *e = entry(f, i);

	if (state_of(e) != FLOW_CLOSING)
		return;
	if (!(active >> owner_of(e) & 1))
		set_owner(e, hashed);
	set_flags(e, 0);
	set_state(f, i, FLOW_HALF, now_s);
}

uint8_t flows_rx(struct flows *f, const struct frame *p, uint8_t hashed, uint32_t active, uint64_t now_us)
{
	uint32_t now_s = seconds(now_us), i;
	struct neat_flow *e;
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
		return owner_of(e);
	}
	touch(f, i, now_s);
	if (p->tcp_flags & FRAME_RST) {
		/* RFC 5961 3: a blind RST is not believed; here it could only shorten the memory of the flow. */
		if (state_of(e) == FLOW_OPEN && within(p->seq, e->rcv))
			set_state(f, i, FLOW_CLOSING, now_s);
		return owner_of(e);
	}
	if (state_of(e) == FLOW_HALF && p->tcp_flags & FRAME_ACK && flags_of(e) & FLOW_ISS && within(p->ack, e->iss))
		set_state(f, i, FLOW_OPEN, now_s);
	if (p->tcp_flags & FRAME_FIN && state_of(e) == FLOW_OPEN)
		set_flags(e, flags_of(e) | FLOW_FIN_IN);
	both_fins(f, i, now_s);
	return owner_of(e);
}

/* No entry: our connect(), or a flow whose half-open entry was evicted. The owner is whoever sends. */
static uint32_t learn(struct flows *f, const struct frame *p, uint8_t replica, uint32_t now_s)
{
	if (p->tcp_flags & FRAME_RST)
		return 0;
	return create(f, &p->t, p->tcp_flags & FRAME_SYN ? FLOW_HALF : FLOW_OPEN, replica, now_s);
}

/* What a segment of its owner says of a connection. */
static void sent(struct flows *f, uint32_t i, const struct frame *p, uint32_t now_s)
{
	struct neat_flow *e = entry(f, i);

	touch(f, i, now_s);
	if (p->tcp_flags & FRAME_ACK)
		e->rcv = p->ack;
	if (p->tcp_flags & FRAME_RST) {
		set_state(f, i, FLOW_CLOSING, now_s);
		return;
	}
	if (p->tcp_flags & FRAME_SYN) {
		e->iss = p->seq + 1;
		set_flags(e, FLOW_ISS);
		if (state_of(e) == FLOW_CLOSING)
			set_state(f, i, FLOW_HALF, now_s);
	} else if (state_of(e) == FLOW_CLOSING && !(flags_of(e) & FLOW_FIN_IN && flags_of(e) & FLOW_FIN_OUT)) {
		set_state(f, i, FLOW_OPEN, now_s);	/* that RST was not valid: the replica goes on */
	}
	if (p->tcp_flags & FRAME_FIN)
		set_flags(e, flags_of(e) | FLOW_FIN_OUT);
	both_fins(f, i, now_s);
}

bool flows_tx(struct flows *f, const struct frame *p, uint8_t replica, uint64_t now_us)
{
	uint32_t now_s = seconds(now_us), i;
	bool opens = (p->tcp_flags & (FRAME_SYN | FRAME_ACK | FRAME_RST)) == FRAME_SYN;

	expire(f, now_s);
	i = find(f, &p->t);
	if (!i)
		i = learn(f, p, replica, now_s);
	if (!i)
		return true;
	if (owner_of(entry(f, i)) != replica) {
		/* Nobody takes a live connection over; a finished one's tuple may be used again. */
		if (!opens)
			return true;
		if (state_of(entry(f, i)) != FLOW_CLOSING)
			return false;
		set_owner(entry(f, i), replica);
	}
	sent(f, i, p, now_s);
	return true;
}

uint8_t flows_owner(const struct flows *f, const struct frame_tuple *t)
{
	uint32_t i = find(f, t);

	return i ? owner_of(entry(f, i)) : (uint8_t)FLOW_NONE;
}

enum flow_state flows_state(const struct flows *f, const struct frame_tuple *t)
{
	uint32_t i = find(f, t);

	return i ? (enum flow_state)state_of(entry(f, i)) : FLOW_FREE;
}

void flows_disown(struct flows *f, const struct frame_tuple *t, uint8_t replica)
{
	uint32_t i = find(f, t);

	if (i && owner_of(entry(f, i)) == replica)
		forget(f, i);
}

void flows_purge(struct flows *f, uint8_t replica)
{
	for (uint32_t i = 1; i <= f->fresh; i++)
		if (state_of(entry(f, i)) != FLOW_FREE && owner_of(entry(f, i)) == replica)
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

/* ---- the table of a predecessor ---- */

static bool believable(const struct flows *f, const struct neat_flow *e)
{
	struct frame_tuple t = tuple(e);
	uint32_t word = a32_relaxed(&e->word);

	return state_of(e) > FLOW_FREE && state_of(e) < FLOW_STATES && owner_of(e) < NEAT_REPLICAS_MAX &&
	       word >> 16 <= FLOW_FLAGS && e->check == tuple_check(&t) && !find(f, &t);
}

static uint32_t merged(struct flows *f, uint32_t a, uint32_t b)
{
	uint32_t head = 0, *at = &head;

	while (a && b) {
		uint32_t *older = (int32_t)(entry(f, a)->seen_s - entry(f, b)->seen_s) <= 0 ? &a : &b;

		*at = *older;
		at = &linked(f, *older)->newer;
		*older = *at;
	}
	*at = a ? a : b;
	return head;
}

/* Merge sort of a singly linked list by the time of the last packet; then the links back. */
static void list_sort(struct flows *f, struct flow_list *l)
{
	uint32_t bins[SORT_BINS] = { 0 }, next, sorted = 0, last = 0;

	for (uint32_t i = l->oldest; i; i = next) {
		uint32_t run = i, b = 0;

		next = linked(f, i)->newer;
		linked(f, i)->newer = 0;
		for (; b < SORT_BINS - 1 && bins[b]; b++) {
			run = merged(f, bins[b], run);
			bins[b] = 0;
		}
		bins[b] = merged(f, bins[b], run);
	}
	for (uint32_t b = 0; b < SORT_BINS; b++)
		sorted = merged(f, bins[b], sorted);
	l->oldest = sorted;
	for (uint32_t i = sorted; i; last = i, i = linked(f, i)->newer)
		linked(f, i)->older = last;
	l->newest = last;
}

static void adopt(struct flows *f, uint32_t now_s)
{
	uint32_t used = a32_acquire(&f->table->used);

	f->fresh = used < f->max ? used : f->max;
	for (uint32_t i = 1; i <= f->fresh; i++) {
		struct neat_flow *e = entry(f, i);
		struct frame_tuple t = tuple(e);

		if (!believable(f, e)) {
			put_free(f, i);
			continue;
		}
		if ((int32_t)(now_s - e->seen_s) < 0)
			e->seen_s = now_s;
		chain(f, i, &t);
		list_append(f, i);
	}
	for (unsigned s = FLOW_HALF; s < FLOW_STATES; s++)
		list_sort(f, &f->list[s]);
}

struct flows *flows_init(void *memory, struct neat_flow_table *table, uint32_t max, const uint8_t key[16],
			 uint64_t now_us)
{
	struct flows *f = memory;

	memcpy(f->key, key, 16);
	f->max = max;
	/* A flood of SYNs cannot take more than half: the rest is for connections. */
	f->half_max = max / 2 ? max / 2 : 1;
	f->mask = bucket_count(max) - 1;
	f->table = table;
	f->flow = (struct neat_flow *)(void *)(table + 1);
	f->link = (struct flow_link *)(void *)(f->bucket + f->mask + 1u);
	adopt(f, seconds(now_us));
	return f;
}
