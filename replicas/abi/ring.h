/*
 * ring.h - the only code that touches shared words: atomics with a named order, the single-producer
 * single-consumer rings of 64-bit entries, and the asleep/wake protocol.
 *
 * Indices run freely and are compared by difference only. What the other side wrote is hostile: a
 * consumer never follows a tail that is further away than the ring is long.
 */
#ifndef NEAT_RING_H
#define NEAT_RING_H

#include "neat_abi.h"
#include <stdbool.h>

#define NEAT_CHECKED __attribute__((warn_unused_result))
#define NEAT_UNLIKELY(x) __builtin_expect(!!(x), 0)

static inline uint32_t a32_relaxed(const neat_a32 *a) { return __atomic_load_n(&a->v, __ATOMIC_RELAXED); }
static inline uint64_t a64_relaxed(const neat_a64 *a) { return __atomic_load_n(&a->v, __ATOMIC_RELAXED); }
static inline uint32_t a32_acquire(const neat_a32 *a) { return __atomic_load_n(&a->v, __ATOMIC_ACQUIRE); }
static inline uint64_t a64_acquire(const neat_a64 *a) { return __atomic_load_n(&a->v, __ATOMIC_ACQUIRE); }
static inline void a32_store(neat_a32 *a, uint32_t v) { __atomic_store_n(&a->v, v, __ATOMIC_RELAXED); }
static inline void a64_store(neat_a64 *a, uint64_t v) { __atomic_store_n(&a->v, v, __ATOMIC_RELAXED); }
static inline void a32_release(neat_a32 *a, uint32_t v) { __atomic_store_n(&a->v, v, __ATOMIC_RELEASE); }
static inline void a64_release(neat_a64 *a, uint64_t v) { __atomic_store_n(&a->v, v, __ATOMIC_RELEASE); }
/* Exchange and fetch_* order everything before them before everything after (x86: a locked insn). */
static inline uint32_t a32_xchg(neat_a32 *a, uint32_t v) { return __atomic_exchange_n(&a->v, v, __ATOMIC_SEQ_CST); }
static inline uint64_t a64_xchg(neat_a64 *a, uint64_t v) { return __atomic_exchange_n(&a->v, v, __ATOMIC_SEQ_CST); }
static inline uint32_t a32_add(neat_a32 *a, uint32_t v) { return __atomic_fetch_add(&a->v, v, __ATOMIC_SEQ_CST); }
static inline uint32_t a32_or(neat_a32 *a, uint32_t v) { return __atomic_fetch_or(&a->v, v, __ATOMIC_SEQ_CST); }
static inline uint32_t a32_and(neat_a32 *a, uint32_t v) { return __atomic_fetch_and(&a->v, v, __ATOMIC_SEQ_CST); }
static inline uint64_t a64_or(neat_a64 *a, uint64_t v) { return __atomic_fetch_or(&a->v, v, __ATOMIC_SEQ_CST); }
static inline uint64_t a64_and(neat_a64 *a, uint64_t v) { return __atomic_fetch_and(&a->v, v, __ATOMIC_SEQ_CST); }
static inline uint64_t a64_add(neat_a64 *a, uint64_t v) { return __atomic_fetch_add(&a->v, v, __ATOMIC_SEQ_CST); }
static inline bool a32_cas(neat_a32 *a, uint32_t want, uint32_t v)
{
	return __atomic_compare_exchange_n(&a->v, &want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline bool a64_cas(neat_a64 *a, uint64_t want, uint64_t v)
{
	return __atomic_compare_exchange_n(&a->v, &want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
/* Store-load order: a publication before it is visible before a flag is read after it (Dekker). */
static inline void neat_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
/* Keeps the compiler from moving stores across it: what a killed process leaves is a prefix of its stores. */
static inline void compiler_fence(void) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
static inline void neat_pause(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* The words of a slot before its next use: by the replica that accepts, by the library that connects. */
static inline void neat_slot_app_reset(struct neat_slot_app *w)
{
	a64_store(&w->tx_tail, 0);
	a64_store(&w->rx_tail, 0);
	a64_store(&w->tx_ring, 0);
	a64_store(&w->accept_head, 0);
	a64_store(&w->sub, 0);
	a64_store(&w->ev_pend, 0);
	a32_store(&w->cmd_pend, 0);
	a32_store(&w->shut, 0);
	a32_store(&w->err_taken, 0);
	a32_store(&w->tx_lock, 0);
	a32_store(&w->rx_lock, 0);
	a32_store(&w->optgen, 0);
}

/* [op 8][arg 8][gen 16][slot 32]: an entry of a command or event ring. */
static inline uint64_t neat_entry(uint32_t op, uint32_t arg, uint32_t gen, uint32_t slot)
{
	return (uint64_t)op << 56 | (uint64_t)(arg & 0xff) << 48 | (uint64_t)(gen & 0xffff) << 32 | slot;
}
static inline uint32_t neat_entry_op(uint64_t e) { return (uint32_t)(e >> 56); }
static inline uint32_t neat_entry_arg(uint64_t e) { return (uint32_t)(e >> 48) & 0xff; }
static inline uint32_t neat_entry_gen(uint64_t e) { return (uint32_t)(e >> 32) & 0xffff; }
static inline uint32_t neat_entry_slot(uint64_t e) { return (uint32_t)e; }

/* [gen 16][errno 16][flags 32]: neat_slot_pub.status. */
static inline uint64_t neat_status(uint32_t gen, uint32_t err, uint32_t flags)
{
	return (uint64_t)(gen & 0xffff) << 48 | (uint64_t)(err & 0xffff) << 32 | flags;
}
static inline uint32_t neat_status_gen(uint64_t s) { return (uint32_t)(s >> 48); }
static inline uint32_t neat_status_errno(uint64_t s) { return (uint32_t)(s >> 32) & 0xffff; }
static inline uint32_t neat_status_flags(uint64_t s) { return (uint32_t)s; }

/* Bit of neat_slot_app.sub and ev_pend that channel number n owns or shares. */
static inline uint64_t neat_channel_bit(uint32_t number)
{
	return 1ull << (number < NEAT_CHANNELS_EXACT ? number : NEAT_CHANNELS_EXACT);
}

/* neat_channels.door: [round 24][enum neat_door 8]. */
static inline uint32_t neat_door_state(uint32_t door) { return door & 0xff; }
static inline uint32_t neat_door_round(uint32_t door) { return door >> 8; }

/* neat_sock.refs: nobody names the record any more, and `who` (process entry, NEAT_REFS_NEATD) closes it. */
static inline uint32_t neat_refs_closing(uint32_t who) { return (who + 1) << NEAT_REFS_CLOSER_SHIFT; }
static inline bool neat_refs_counted(uint32_t refs) { return refs && refs < neat_refs_closing(0); }

/* One life of a socket record; never 0. */
static inline uint32_t neat_sock_handle(uint32_t sock, uint32_t gen) { return (gen & 0xffff) << 16 | (sock & 0xffff); }

/* neat_slot_app.accepted. */
static inline uint64_t neat_owned(uint32_t slot_gen, uint32_t handle) { return (uint64_t)(slot_gen & 0xffff) << 32 | handle; }
/* The owner of this life of the slot; 0 = none. */
static inline uint32_t neat_owner(const struct neat_slot_app *w, uint32_t slot_gen)
{
	uint64_t owned = a64_acquire(&w->accepted);

	return (uint32_t)(owned >> 32) == (slot_gen & 0xffff) ? (uint32_t)owned : 0;
}
/*
 * Of two queue entries that name a connection one makes it the caller's, once. False: it has an owner, or has ended,
 * and the slot may be another one's.
 */
NEAT_CHECKED static inline bool neat_own(struct neat_slot_app *w, uint32_t slot_gen, uint32_t handle)
{
	return a64_cas(&w->accepted, neat_owned(slot_gen, 0), neat_owned(slot_gen, handle));
}

/* neat_channels.open: the next generation in use, the next one out of use. */
static inline uint32_t neat_channel_opened(uint32_t gen) { return (gen + 1) | 1; }
static inline uint32_t neat_channel_closed(uint32_t gen) { return (gen + 1) & ~1u; }
static inline bool neat_channel_open(uint32_t gen) { return gen & 1; }

/*
 * Producer. Returns false when full. The release store of tail makes the entry, and everything
 * written before the call, visible before the index.
 */
static inline bool neat_ring_push(neat_a64 *ring, uint32_t entries, neat_a64 *tail, const neat_a64 *head, uint64_t e)
{
	uint64_t t = a64_relaxed(tail);

	/* Acquire: the consumer's loads of the slot we reuse happened before it stored head. */
	if (t - a64_acquire(head) >= entries)
		return false;
	a64_store(&ring[t & (entries - 1)], e);
	a64_release(tail, t + 1);
	return true;
}

/*
 * Waker, after a publication: how the other side sleeps, NEAT_AWAKE if it does not. The word is ours from here on: who
 * is killed before the call that wakes leaves a sleeper whose word says AWAKE, so a successor wakes once whatever it says.
 */
NEAT_CHECKED static inline uint32_t neat_asleep_take(neat_a32 *asleep)
{
	/* What was published before the look at the word; the sleeper stores it, fences, looks at the rings (Dekker). */
	neat_fence();
	return a32_relaxed(asleep) == NEAT_AWAKE ? NEAT_AWAKE : a32_xchg(asleep, NEAT_AWAKE);
}

/* Consumer: number of entries that may be read from *head on; 0 when the tail makes no sense. */
static inline uint32_t neat_ring_ready(uint32_t entries, const neat_a64 *tail, uint64_t head)
{
	uint64_t n = a64_acquire(tail) - head;	/* acquire: entries were written before tail */

	return n <= entries ? (uint32_t)n : 0;
}

/*
 * Frame rings. Both index words are in memory that the other end writes as well, and a process that runs wild may
 * overwrite either. A consumer keeps its own index to itself and puts its word right; a producer whose words do not fit
 * goes on where the consumer's word says, as if the ring were empty. Frames are lost by that, as on a wire.
 */

/* Consumer that begins: where its predecessor stopped. */
static inline uint64_t neat_frames_resume(uint32_t entries, struct neat_frame_ring *r)
{
	/* Acquire: a ring that fits no more is empty, and what is in it was written before its tail. */
	uint64_t tail = a64_acquire(&r->tail), head = a64_relaxed(&r->head);

	if (tail - head > entries) {
		head = tail;
		a64_release(&r->head, head);
	}
	return head;
}

/* Consumer: frames that may be read from `head` on. */
static inline uint32_t neat_frames_ready(uint32_t entries, struct neat_frame_ring *r, uint64_t head)
{
	uint32_t n = neat_ring_ready(entries, &r->tail, head);

	/* While frames come, the word is stored anyway. */
	if (!n && NEAT_UNLIKELY(a64_relaxed(&r->head) != head))
		a64_release(&r->head, head);
	return n;
}

/* Consumer: the frame at `head` is the producer's again. True: it may wait for the room. */
NEAT_CHECKED static inline bool neat_frames_retire(uint32_t entries, struct neat_frame_ring *r, uint64_t head)
{
	/* Release: we have read the buffer before it is filled again. */
	a64_release(&r->head, head + 1);
	/* Head before the look at tail: a producer whose last frame we do not see yet has not looked for room yet, and
	 * finds this. One that waits for any of NEAT_QP_ROOM places looks again when it is woken. */
	neat_fence();
	return a64_relaxed(&r->tail) - head + NEAT_QP_ROOM > entries;
}

/* Producer: frames that the consumer has not retired, the next one's index being *tail. */
NEAT_CHECKED static inline uint32_t neat_frames_used(uint32_t entries, const struct neat_frame_ring *r, uint64_t *tail)
{
	uint64_t head = a64_acquire(&r->head);	/* acquire: the buffer that is filled again was read */

	if (NEAT_UNLIKELY(*tail - head > entries))
		*tail = head;
	return (uint32_t)(*tail - head);
}

/* Port entries of the registry page start their search here. */
static inline uint32_t neat_port_hash(uint16_t port, uint16_t proto)
{
	return (((uint32_t)port << 8 ^ proto) * 2654435761u >> 16) & (NEAT_REGISTRY_PORTS - 1);
}

/* The entry of exactly this address (0 = any) and port; NULL if nobody holds it. */
static inline const struct neat_port_entry *neat_port_entry_of(const struct neat_registry *g, uint32_t addr,
							       uint16_t port, uint16_t proto)
{
	uint32_t at = neat_port_hash(port, proto);

	for (uint32_t i = 0; i < NEAT_REGISTRY_PORTS; i++, at = (at + 1) & (NEAT_REGISTRY_PORTS - 1)) {
		const struct neat_port_entry *e = &g->ports[at];
		uint32_t state = a32_acquire(&e->state);	/* acquire: the rest was written before */

		if (state == NEAT_PORT_FREE)
			return NULL;
		if (state != NEAT_PORT_TOMB && e->port == port && e->proto == proto && e->addr == addr)
			return e;
	}
	return NULL;
}

/* Is this port held on `addr` by any socket? *mask: replicas whose subsocket is acknowledged. */
static inline bool neat_port_find(const struct neat_registry *g, uint32_t addr, uint16_t port, uint16_t proto,
				  uint32_t *mask)
{
	uint32_t at = neat_port_hash(port, proto), all = 0;
	bool found = false;

	for (uint32_t i = 0; i < NEAT_REGISTRY_PORTS; i++, at = (at + 1) & (NEAT_REGISTRY_PORTS - 1)) {
		const struct neat_port_entry *e = &g->ports[at];
		uint32_t state = a32_acquire(&e->state);

		if (state == NEAT_PORT_FREE)
			break;
		if ((state != NEAT_PORT_BOUND && state != NEAT_PORT_LISTENING) || e->port != port ||
		    e->proto != proto || (e->addr && e->addr != addr))
			continue;
		found = true;
		all |= state == NEAT_PORT_LISTENING ? a32_relaxed(&e->mask) : 0;
	}
	if (mask)
		*mask = all;
	return found;
}

static inline bool neat_header_ok(const struct neat_header *h, uint32_t object, uint64_t size)
{
	return h->magic == NEAT_ABI_MAGIC && h->version == NEAT_ABI_VERSION && h->object == object &&
	       h->size == size;
}

/* Two builds that disagree on a layout disagree on this number. */
static inline uint32_t neat_abi_fingerprint(void)
{
	uint64_t f = 0;
	const uint64_t sizes[] = {
		sizeof(struct neat_registry), sizeof(struct neat_app), sizeof(struct neat_seg_pub),
		sizeof(struct neat_seg_app), sizeof(struct neat_channels), sizeof(struct neat_replica_status),
		sizeof(struct neat_queue_pair), sizeof(struct neat_msg_r_listen), sizeof(struct neat_msg_r_config),
		NEAT_SEG_APP_SIZE, NEAT_APP_SIZE,
	};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		f = (f ^ sizes[i]) * 0x9e3779b97f4a7c15ull;
	return (uint32_t)(f >> 32);
}

#endif
