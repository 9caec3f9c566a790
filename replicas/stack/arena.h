/*
 * arena.h - what of TCP outlives the replica: records of the arena and the only stores into them.
 *
 * Read docs/rules.md (L4, W1 to W15) first. A killed process leaves a prefix of its stores in program order, so what
 * makes the arena recoverable is the order of single aligned stores; every one of them is made by a
 * function of this file that names the rule it serves. They are release stores: the compiler keeps
 * them behind everything written before (x86: plain moves).
 *
 * Classes: I identity, written before the record is committed and never again; E essential, here;
 * D rebuildable, beside them in the records but of no value to a successor.
 *
 * Sequence numbers are extended to 64 bits and relative: the peer's or our SYN is 0, the byte at
 * stream offset n is n + 1, a FIN counts as one. On the wire: iss (irs) + the low 32 bits.
 */
#ifndef NEAT_ARENA_H
#define NEAT_ARENA_H

#include "ring.h"

enum {
	TCB_SIZE = 512,
	ARENA_LINE = 64,
	ARENA_MAGIC = 0x4152454e,
	ARENA_VERSION = 4,
};

/*
 * What is being done right now (W14). Whatever a dead replica left half done concerns the one control
 * block that this word names; all others are as their last unit of work left them, class D included.
 */
enum arena_unit {
	UNIT_NONE = 0,		/* between units */
	UNIT_FRAME = 1,		/* a frame of the nic; its descriptor is not retired yet */
	UNIT_LO = 2,		/* a frame of lo */
	UNIT_TIMER = 3,
	UNIT_COMMAND = 4,	/* of an application; its ring entry is not retired yet */
	UNIT_OUTPUT = 5,	/* output that had no room earlier */
	UNIT_DATAGRAM = 6,	/* from a socket's ring to its receiver, who may be here (lo); `datagram` says whose */
};

/* First line of the arena. */
struct arena_header {
	uint32_t magic;
	uint32_t version;
	uint32_t tcbs, requests, time_waits, holes;	/* records of each kind, in this order behind us */
	neat_a64 journal;	/* [enum arena_unit 8][0 24][control block index + 1, 0 = none 32] */
	/* E: records of each kind ever used; stored before the first use of one. */
	neat_a32 high_tcb, high_request, high_time_wait, high_holes;
	/* Faults in units that named no control block, and when the last was: see tcp_adopt.c. */
	uint32_t strikes, strike_s;
	neat_a64 datagram;	/* [application 32][slot 32], stored before the journal says UNIT_DATAGRAM */
};

static inline uint64_t journal_word(enum arena_unit unit, uint32_t record)
{
	return (uint64_t)unit << 56 | record;
}
static inline enum arena_unit journal_unit(uint64_t w) { return (enum arena_unit)(w >> 56); }
static inline uint32_t journal_record(uint64_t w) { return (uint32_t)w; }

/*
 * Class E of a connection: one line, eight words.
 *
 * Invariants, true after every store:
 *   snd_una <= snd_max <= tx_tail + 1 (+ 1 once the FIN was sent)
 *   rx_tail + 1 <= rcv_nxt
 *   fin_rx_seq == 0 or rcv_nxt <= fin_rx_seq + 1
 */
struct tcb_essential {
	neat_a64 snd_una;	/* RFC 9293: oldest unacknowledged */
	neat_a64 snd_max;	/* end of what may ever have been on the wire */
	neat_a64 rcv_nxt;
	neat_a64 tx_tail;	/* stream offset: largest value of the application's word that we accepted */
	neat_a64 rx_tail;	/* the same for its receive word */
	neat_a64 fin_rx_seq;	/* sequence number of the peer's FIN, 0 = not in order yet; set once */
	neat_a64 wnd;		/* [ts_recent 32][snd_wnd 32] */
	neat_a64 state;		/* [errno 16][slot gen 16][enum tcb_flag_e 24][enum tcp_state 8]; 0 = free record;
				 * errno: why it ended, with CLOSED */
};

enum tcb_flag_e {	/* of tcb_essential.state; only ever set */
	TCB_E_FIN_TX = 1,	/* tx_tail is final: our FIN is tx_tail + 1 */
	TCB_E_APP_CLOSED = 2,	/* no reference is left: data that arrives now is refused */
};

/* W1: before the packet can leave, so that the peer never acknowledges what we "did not send". */
static inline void e_snd_max(struct tcb_essential *e, uint64_t v) { a64_release(&e->snd_max, v); }
/* W4: releases ring space; the published tx_una follows it. */
static inline void e_snd_una(struct tcb_essential *e, uint64_t v) { a64_release(&e->snd_una, v); }
/* W2: payload lies in the ring; the published rx_head and the ACK follow. */
static inline void e_rcv_nxt(struct tcb_essential *e, uint64_t v) { a64_release(&e->rcv_nxt, v); }
/* W8: before rcv_nxt counts the FIN. */
static inline void e_fin_rx(struct tcb_essential *e, uint64_t v) { a64_release(&e->fin_rx_seq, v); }
/* L4: the largest validated value; what the segment says later is compared with this. */
static inline void e_tx_tail(struct tcb_essential *e, uint64_t v) { a64_release(&e->tx_tail, v); }
static inline void e_rx_tail(struct tcb_essential *e, uint64_t v) { a64_release(&e->rx_tail, v); }
/* W10: one word, so never torn; wl1 and wl2 are class D. */
static inline void e_wnd(struct tcb_essential *e, uint32_t snd_wnd, uint32_t ts_recent)
{
	a64_release(&e->wnd, (uint64_t)ts_recent << 32 | snd_wnd);
}
/* W6: the commit of birth, of every transition and of death. */
static inline void e_state(struct tcb_essential *e, uint32_t state, uint32_t flags, uint32_t gen, uint32_t err)
{
	a64_release(&e->state, (uint64_t)(err & 0xffff) << 48 | (uint64_t)(gen & 0xffff) << 32 |
			       (uint64_t)flags << 8 | state);
}

/*
 * A half-open connection (W7'): whole before its SYN-ACK goes out. `state` commits: 0 free, else
 * the number of SYN-ACKs sent, plus one.
 */
struct tcp_request {
	uint32_t laddr, raddr;		/* I */
	uint16_t lport, rport;
	uint32_t iss, irs;		/* I: our number follows RFC 6528 */
	uint32_t ts_recent;		/* I */
	uint32_t listener;		/* I: index */
	uint16_t mss;			/* I: peer's option, 0 = none */
	uint8_t wscale;			/* I: peer's shift */
	uint8_t options;		/* I: enum tcb_option of the SYN */
	neat_a32 state;
	uint32_t next, prev;		/* D: list of those with the same back-off; index + 1 */
	uint64_t deadline_us;		/* D */
	uint8_t acked;			/* D: the handshake is complete, TCP_DEFER_ACCEPT waits for data */
	uint8_t level;			/* D: which back-off list */
	uint16_t pad;
	uint32_t born_ms;		/* D */
};

/* TIME_WAIT: all that RFC 9293 3.10.7 needs to answer, RFC 6191 to be reused. `state` commits. */
struct tcp_time_wait {
	uint32_t laddr, raddr;		/* I */
	uint16_t lport, rport;
	uint32_t snd_nxt, rcv_nxt;	/* I: wire values behind both FINs */
	uint32_t ts_recent;		/* E */
	uint32_t ts_offset;		/* I */
	uint32_t rcv_wnd;		/* I: scaled field of our ACKs */
	neat_a32 state;			/* 0 free, 1 taken */
	uint32_t next, prev;		/* D: by expiry; index + 1 */
	uint32_t has_ts;		/* I */
	neat_a64 expiry_us;		/* E: absolute */
	uint64_t pad;
};

/*
 * Interval sets of a connection with holes: what arrived out of order, what the peer holds (SACK).
 * Hints (3.3): a successor keeps those that are in bounds and do not overlap.
 */
enum { TCP_RANGES = 61 };
struct tcp_ranges {
	uint32_t n;
	uint32_t pad;
	uint64_t total;				/* bytes in all of them */
	struct tcp_range { uint64_t start, end; } r[TCP_RANGES];	/* ascending, disjoint, not adjacent */
};
struct tcp_holes {
	struct tcp_ranges ooo;		/* receive side */
	struct tcp_ranges sacked;	/* send side */
	uint64_t recent[4];		/* starts of the blocks that changed last, newest first (RFC 2018 4) */
	uint32_t next_free;		/* D: index + 1 */
	uint32_t owner;			/* control block index + 1, 0 = free */
	uint32_t pad[6];
};

static_assert(sizeof(struct arena_header) == ARENA_LINE, "arena header");
static_assert(sizeof(struct tcb_essential) == ARENA_LINE, "class E is one line");
static_assert(sizeof(struct tcp_request) == ARENA_LINE, "request slot");
static_assert(sizeof(struct tcp_time_wait) == ARENA_LINE, "TIME_WAIT slot");
static_assert(sizeof(struct tcp_holes) % ARENA_LINE == 0, "holes");

#endif
