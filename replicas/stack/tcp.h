/*
 * tcp.h - TCP's control block and what its files call of each other.
 *
 *   tcp.c        memory, application commands (connect, kick, close, abort)
 *   tcp_fsm.c    the only writer of a connection's state; what a state means to the application
 *   tcp_syn.c    listeners, half-open connections, initial sequence numbers
 *   tcp_tw.c     TIME_WAIT
 *   tcp_in.c     a segment arrives: RFC 9293 3.10.7 as a list of steps, and the predicted path
 *   tcp_ack.c    what an acknowledgement means: RTT, window, recovery
 *   tcp_reass.c  payload into the receive ring, out-of-order intervals
 *   tcp_sack.c   interval sets, the scoreboard (RFC 2018, 2883, 6675)
 *   tcp_rack.c   when each segment was sent, and what that says about its loss (RFC 8985)
 *   tcp_out.c    what to send now: window, Nagle, SWS, retransmission, ACKs
 *   tcp_opt.c    options (RFC 7323, 2018, 6691)
 *   tcp_timer.c  one handler for each timer
 *   tcp_cc.c     congestion control: NewReno, CUBIC
 *   tcp_adopt.c  a successor takes the arena over
 *
 * Not here: the layout of what survives a crash (arena.h), 4-tuples (flow.c), IP.
 */
#ifndef NEAT_TCP_H
#define NEAT_TCP_H

#include "arena.h"
#include "bytering.h"
#include "stack.h"
#include "wire.h"

/*
 * Linux's numbers (netinet/tcp.h), published in neat_slot_pub.tcp_state; states are RFC 9293's.
 *
 *  SYN_SENT     our SYN is out; slot CONNECTING
 *  SYN_RCVD     both SYNs crossed (3.5, figure 8); passive opens live in request slots instead
 *  ESTABLISHED  slot CONNECTED
 *  FIN_WAIT_1   our FIN is queued or sent, not acknowledged
 *  FIN_WAIT_2   it is acknowledged; without an application the block lives TCP_LINGER2 longer
 *  CLOSING      both FINs crossed, ours is not acknowledged
 *  CLOSE_WAIT   peer's FIN is in order; the application may still send
 *  LAST_ACK     as CLOSE_WAIT, with our FIN queued or sent
 *  CLOSED       nothing is sent or accepted; the block only waits until the queue of lo no longer
 *               refers to its ring
 * TIME_WAIT is no state of a control block but a slot of its own (tcp_tw.c).
 */
enum tcp_state {
	TCP_FREE = 0,
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RCVD = 3,
	TCP_FIN_WAIT_1 = 4,
	TCP_FIN_WAIT_2 = 5,
	TCP_CLOSED = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_CLOSING = 11,
};

enum {
	TCP_MSS_MIN = 88,		/* SACK panic (CVE-2019-11477): less is answered as if it were this */
	TCP_MSS_DEFAULT = 536,		/* RFC 9293 3.7.1 */
	TCP_MSS_MAX = 65495,		/* 64 KiB - IPv4 - TCP headers */
	TCP_TS_LEN = 12,		/* timestamps with two NOPs (RFC 7323 appendix A) */
	TCP_SEGMENT_MAX = 65160,	/* payload of one packet handed to IP */
	TCP_RTO_INIT_US = 1000000,	/* RFC 6298 2.1 */
	TCP_RTO_FALLBACK_US = 3000000,	/* RFC 6298 5.7: the handshake gave no sample */
	TCP_RTO_MIN_US = 200000,	/* Linux; RFC 6298 2.4 says 1 s */
	TCP_RTO_MAX_US = 120000000,	/* RFC 6298 2.5: at least 60 s */
	TCP_DELACK_US = 40000,		/* RFC 9293 3.8.6.3: below 500 ms */
	TCP_CORK_US = 200000,		/* tcp(7) */
	TCP_QUICK_ACKS = 16,		/* segments acknowledged at once when a connection is young */
	TCP_DUP_THRESH = 3,		/* RFC 5681 */
	TCP_PTO_DELACK_US = 200000,	/* RFC 8985 7.2: how long a lone segment's ACK may be delayed */
	TCP_PTO_SLACK_US = 2000,	/* two ticks of the wheel, as Linux: a round trip may be shorter than one */
	TCP_REO_PERSIST = 16,		/* RFC 8985 6.2: recoveries without DSACK until the window shrinks again */
	TCP_MIN_RTT_S = 300,		/* RFC 8985 6.2 step 1: the minimum is one of the last five minutes */
	TCP_SYN_RETRIES = 6,		/* tcp(7) tcp_syn_retries */
	TCP_PORT_REDRAWS = 250,		/* fails once in 370,000 where others have 95 % of the ports to this peer */
	TCP_SYNACK_RETRIES = 5,
	TCP_RETRIES2 = 15,
	TCP_ORPHAN_RETRIES = 8,
	TCP_FIN_TIMEOUT_MS = 60000,	/* tcp(7) tcp_fin_timeout */
	TCP_DRAIN_US = 20000,		/* CLOSED: a batch of lo is long over */
	TCP_OOW_ACK_US = 500000,	/* RFC 5961 7: of one connection, answers to what is out of window */
	TCP_CHALLENGE_PER_S = 1000,	/* RFC 5961 7: of the whole replica, +-50 % (CVE-2016-5696) */
	TCP_SNDBUF_FIRST = 65536,
	TCP_RCVBUF_MIN = 65536,
	TCP_BUF_FREE = 65536,		/* of each buffer: not counted against its application */
	TCP_RCVBUF_MAX = (1 << NEAT_RX_LOG2_MAX) - 4096,
};

enum tcp_option {	/* what both ends agreed on */
	TCP_OPT_TS = 1,
	TCP_OPT_SACK = 2,
	TCP_OPT_WS = 4,
};

enum tcb_flag {		/* class D */
	TCB_ACK_NOW = 1,
	TCB_PINGPONG = 2,	/* interactive: ACKs ride on replies (delayed ACK without quick-ack) */
	TCB_ON_RESUME = 4,	/* on the list of those that IP had no room for */
	TCB_LOCAL = 8,		/* the peer is on our own lo */
	TCB_CORK_DUE = 16,	/* the tail was held back long enough: send it whatever CORK says */
	TCB_RETRANS_DUE = 32,	/* recovery decided to send the segment at snd_una */
	TCB_FIN_OOO = 64,	/* fin_ooo is valid: a FIN behind a hole */
	TCB_RETRANSMITTED = 128,/* [snd_una, snd_nxt) holds retransmitted bytes (Karn) */
	TCB_DSACK = 256,	/* dsack_start/end go into the next ACK (RFC 2883) */
	TCB_REORDERING = 512,	/* the path was seen to reorder (RFC 8985 6.2 step 3) */
	TCB_SHUT_RD = 1024,
	TCB_UNDO = 2048,	/* undo_cwnd/undo_ssthresh are valid (RFC 4015) */
	TCB_OPEN_PASSIVE = 4096,
	TCB_PUSH_HELD = 8192,	/* CORK or MSG_MORE holds a partial segment; cork_at is its limit */
	TCB_LINGER0 = 16384,	/* SO_LINGER with zero: close() resets */
	TCB_SNDBUF_FIXED = 32768,
	TCB_RCVBUF_FIXED = 65536,	/* otherwise it is tuned */
	TCB_ORPHAN = 131072,	/* let go by its application, and counted as such */
	TCB_PORT_DRAWN = 262144,/* the local port is connect()'s choice, not the application's */
};

/* Kinds of timers of ours in the wheel. */
enum { TIMER_TCB = 5, TIMER_TCP_REQUEST = 6, TIMER_TCP_TIME_WAIT = 7 };

enum tcp_recovery {
	TCP_OPEN = 0,
	TCP_FAST_RECOVERY = 1,	/* RFC 6675 5 (6582 without SACK); ends when `recover` is acknowledged */
	TCP_LOSS = 2,		/* after an RTO; without `sent` everything un-SACKed below `recover` is lost */
};

enum tcp_rtx_kind {
	TCP_RTX_NONE = 0,
	TCP_RTX_RTO,
	TCP_RTX_PERSIST,
	TCP_RTX_PTO,		/* tail loss probe (RFC 8985 7) */
	TCP_RTX_REO,		/* what is not acknowledged by now was not only reordered (RFC 8985 6.2 step 5) */
};

/*
 * RFC 8985: when each segment in flight was sent last. Class D in plain memory: a successor takes all that is in
 * flight as sent when it began. Only of connections that can lose something and are told what arrived (SACK, not on
 * lo), and only while something is in flight. A record is what was handed to IP in one piece, or neighbours merged
 * into one when there are too many; then the later time counts, so a loss is found later rather than wrongly.
 */
enum { TCP_SENT_RECORDS = 122 };
struct tcp_sent_record {
	uint64_t end;			/* it begins where the one before ends */
	uint64_t at_us : 62, lost : 1, again : 1;	/* again: retransmitted; then it is not lost any more */
};
struct tcp_sent {
	uint64_t start;			/* of the first record */
	uint64_t rack_at_us, rack_end;	/* RACK.xmit_ts, RACK.end_seq; 0 = none */
	uint64_t fack;			/* RACK.fack */
	uint64_t dsack_round;		/* RACK.dsack_round, 0 = none */
	uint64_t tlp_end;		/* TLP.end_seq, 0 = no probe is out */
	uint32_t rack_rtt_us;		/* RACK.rtt */
	uint32_t prr_delivered, prr_out, prr_flight;	/* RFC 9937; prr_flight: RecoverFS */
	uint32_t next_free;		/* index + 1 */
	uint8_t first, n;
	bool tlp_retrans;		/* TLP.is_retrans */
	uint8_t pad;
	struct tcp_sent_record r[TCP_SENT_RECORDS];	/* [first, first + n) */
};

/*
 * Control block: 512 bytes of the arena. Only the first line and what is marked I matter to a
 * successor; the rest is class D. One writer: this replica.
 */
struct tcb {
	/* line 0: class E */
	struct tcb_essential e;

	/* line 1: D, touched by every segment */
	uint64_t snd_nxt;		/* next new byte; <= snd_max */
	uint64_t rcv_adv;		/* right edge the peer was told; never falls (W5) */
	neat_a64 rx_ring;		/* E: ring that holds all received bytes; published with rx_head */
	uint64_t rtx_at_us;		/* deadline of rtx_kind, 0 = none */
	uint64_t ack_at_us;		/* delayed ACK, 0 = none */
	uint32_t flags;			/* enum tcb_flag */
	uint32_t cwnd;
	uint32_t ssthresh;
	uint16_t mss;			/* payload of a full segment, options deducted */
	uint8_t recovery;		/* enum tcp_recovery */
	uint8_t rtx_kind;		/* enum tcp_rtx_kind */
	uint32_t snd_wnd_max;
	uint32_t rcvbuf;

	/* line 2: I, and the pointers to whom we belong to; all of it is sealed */
	struct flow_key key;
	uint32_t iss, irs;		/* extended numbers are relative to these */
	uint32_t ts_offset;		/* added to our timestamps (RFC 7323 7.1) */
	uint8_t options;		/* enum tcp_option */
	uint8_t snd_wscale, rcv_wscale;
	uint8_t pad;
	uint32_t app_id;		/* of the application that owns the slot */
	struct sockref ref;		/* slot 0 = let go; pointers are D, a successor makes them anew */

	/* line 3: D, round-trip time and acknowledgement */
	uint64_t snd_wl1, snd_wl2;	/* RFC 9293: segment that last set snd_wnd */
	uint64_t snd_sml;		/* end of the last small segment (Minshall) */
	uint64_t rtt_seq;		/* sample runs until this is acknowledged, 0 = none */
	uint64_t rtt_start_us;
	uint32_t srtt_us, rttvar_us, rto_us;
	uint16_t rcv_mss;		/* largest segment seen: what "full-sized" means to delayed ACKs */
	uint8_t backoff;		/* consecutive timeouts */
	uint8_t probes;			/* persist or keepalive probes without an answer; SYN_SENT: ports drawn again */
	uint64_t last_rx_us;

	/* line 4: D, recovery */
	struct tcp_holes *holes;	/* NULL: none in either direction */
	uint64_t recover;		/* RFC 6582, 6675 RecoveryPoint */
	uint64_t high_rxt;		/* end of what was retransmitted in this recovery */
	uint64_t rcv_wup;		/* rcv_nxt at the last ACK sent */
	uint64_t fin_ooo;
	uint16_t dupacks;
	uint8_t reo_mult;		/* RACK.reo_wnd_mult - 1 */
	uint8_t reo_persist;		/* RACK.reo_wnd_persist */
	uint32_t undo_cwnd, undo_ssthresh;
	uint32_t rtx_ts;		/* our timestamp on the first retransmission (RFC 3522) */
	uint64_t rtx_first_us;		/* when this RTO episode began: USER_TIMEOUT */

	/* line 5: D, congestion control and buffers */
	uint64_t cub_epoch_us;
	uint32_t cub_wmax, cub_wlast, cub_west, cub_k_ms;
	uint32_t cwnd_acked;		/* bytes acknowledged towards the next increase */
	uint8_t cc;			/* NEAT_OPT_CONGESTION's value */
	uint8_t strikes;		/* faults while a unit of ours ran; for a successor, see tcp_adopt.c */
	uint16_t strike_s;		/* when the last was, CLOCK_MONOTONIC, low bits */
	uint64_t drs_start_us;		/* receive autotuning: bytes consumed in one round trip */
	uint64_t drs_tail;
	uint64_t una_at_kick;		/* the application saw at least this tx_una when it last kicked */
	uint64_t last_tx_us;

	/* line 6: D, options of the application, timers */
	uint64_t cork_at_us;
	uint64_t aux_at_us;		/* keepalive, FIN_WAIT_2, drain */
	uint64_t oow_ack_us;		/* when we last answered something out of window */
	uint32_t opt_flags;		/* enum neat_opt_flags */
	uint16_t keepidle_s, keepintvl_s;
	uint32_t user_timeout_ms;
	uint32_t sndbuf;		/* published tx_limit */
	uint8_t keepcnt, syn_retries;
	uint8_t quick;			/* ACKs still to be sent at once */
	uint8_t seal_p;			/* over the pointers of `ref` */
	uint16_t linger2_ms;
	uint16_t min_rtt_s;		/* when min_rtt_us was seen, low bits */
	uint32_t seal_e, seal_i;	/* over class E, after each unit; over class I, when it changes */
	struct tcp_sent *sent;		/* NULL: nothing in flight, or nothing recorded */

	/* line 7: D */
	struct timer timer;
	union {				/* index + 1 */
		uint32_t resume_next;
		uint32_t next_free;	/* of a free record */
	};
	uint32_t total_retrans;
	uint16_t tos_ttl;		/* [tos 8][ttl 8]; ttl 0 = default */
	uint16_t optgen;		/* E: neat_slot_app.optgen whose options are applied, low bits */
	uint32_t min_rtt_us;		/* RACK.min_RTT, 0 = none yet */
	uint64_t dsack_start;
	uint32_t dsack_len;
	uint16_t pmss;			/* mss before options, bounded by peer, path and user */
	uint16_t soft_error;		/* from ICMP: reported when a connect times out */
} __attribute__((aligned(64)));

static_assert(sizeof(struct tcb) <= TCB_SIZE, "control block");
static_assert(sizeof(struct tcp_sent) <= 2048, "half a page");
static_assert(offsetof(struct tcb, snd_nxt) == 64, "hot line");
static_assert(offsetof(struct tcb, key) == 128 && offsetof(struct tcb, snd_wl1) == 192, "identity line");

/* A listening socket; plain memory, reinstalled by R_LISTEN after a crash. */
struct listener {
	uint32_t addr;
	uint16_t port;
	uint16_t used;
	uint32_t backlog;
	uint32_t index;
	uint32_t half_open;
	uint32_t gen;			/* counts reuse of this record */
	uint32_t next_free;
	struct sockref ref;
	struct neat_opts opts;
};

enum { TCP_LISTENERS = 4096, TCP_REQ_LEVELS = 6 };

struct tcp_list { uint32_t head, tail; };	/* index + 1 */

struct tcp {		/* class D: stack->tcp */
	struct arena_header *arena;
	struct tcb *tcbs;
	struct tcp_request *requests;
	struct tcp_time_wait *time_waits;
	struct tcp_holes *holes;
	struct listener *listeners;
	struct tcp_sent *sent;
	uint32_t ntcbs, nrequests, ntime_waits, nholes, nsent;
	/* Freed records (index + 1); those never used are not touched before they are needed. */
	uint32_t free_tcb, free_request, free_time_wait, free_holes, free_listener, free_sent;
	neat_a32 high_listener, high_sent;
	uint32_t used;			/* control blocks that are not free */
	uint32_t orphans;		/* of these, without an application: their peers keep them */
	uint32_t half_open;
	uint32_t resume_head, resume_tail;	/* index + 1 */
	struct tcp_list req_level[TCP_REQ_LEVELS];	/* by deadline: equal back-off, so in order of arrival */
	struct tcp_list tw;
	struct timer req_timer, tw_timer;
	uint64_t challenge_window_us;
	uint32_t challenge_left;
};

/* An arriving segment, parsed; passed down instead of file statics. Numbers are extended. */
struct tcp_seg {
	uint64_t seq, ack;		/* valid only with a control block */
	uint32_t wire_seq, wire_ack;
	uint32_t len;			/* payload left, after trimming */
	uint32_t skip;			/* payload bytes trimmed off the front */
	uint32_t wnd;			/* scaled */
	uint8_t flags;
	uint8_t wscale;			/* SYN only */
	uint8_t nsack;
	uint8_t has;			/* enum tcp_option seen */
	uint16_t mss;			/* SYN only, 0 = none */
	uint16_t hdr_len;
	uint32_t ts_val, ts_ecr;
	uint64_t dsack_end;		/* the ACK reports a duplicate that ends here (RFC 2883), 0 = none */
	struct { uint32_t start, end; } sack[4];	/* wire numbers */
	struct pkt *p;			/* data at the TCP header */
	const struct ip_meta *m;
};

/* ---- numbers ---- */
static inline bool seq_lt(uint64_t a, uint64_t b) { return (int64_t)(a - b) < 0; }
static inline bool seq_leq(uint64_t a, uint64_t b) { return (int64_t)(a - b) <= 0; }
static inline uint64_t seq_max(uint64_t a, uint64_t b) { return seq_lt(a, b) ? b : a; }
static inline bool wire_lt(uint32_t a, uint32_t b) { return (int32_t)(a - b) < 0; }
/* Extend a wire number: the value nearest to `near` whose low bits match. */
static inline uint64_t seq_extend(uint32_t wire, uint32_t isn, uint64_t near)
{
	return near + (uint64_t)(int64_t)(int32_t)(wire - isn - (uint32_t)near);
}
static inline bool timer_armed(const struct timer *t) { return t->prev != NULL; }
static inline uint32_t u32_min(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t u32_max(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline uint64_t u64_min(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t u64_max(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* ---- class E beside arena.h's ---- */
/* All received bytes lie in the new ring before it is named; it is published later, with rx_head (W2). */
static inline void e_rx_ring(struct tcb *t, uint64_t word) { a64_release(&t->rx_ring, word); }
static inline uint64_t rx_ring(const struct tcb *t) { return a64_relaxed(&t->rx_ring); }
static inline uint64_t snd_una(const struct tcb *t) { return a64_relaxed(&t->e.snd_una); }
static inline uint64_t snd_max(const struct tcb *t) { return a64_relaxed(&t->e.snd_max); }
static inline uint64_t rcv_nxt(const struct tcb *t) { return a64_relaxed(&t->e.rcv_nxt); }
static inline uint64_t tx_tail(const struct tcb *t) { return a64_relaxed(&t->e.tx_tail); }
static inline uint64_t rx_tail(const struct tcb *t) { return a64_relaxed(&t->e.rx_tail); }
static inline uint64_t fin_rx_seq(const struct tcb *t) { return a64_relaxed(&t->e.fin_rx_seq); }
static inline uint32_t snd_wnd(const struct tcb *t) { return (uint32_t)a64_relaxed(&t->e.wnd); }
static inline uint32_t ts_recent(const struct tcb *t) { return (uint32_t)(a64_relaxed(&t->e.wnd) >> 32); }
static inline enum tcp_state tcp_state(const struct tcb *t)
{
	return (enum tcp_state)(a64_relaxed(&t->e.state) & 0xff);
}
static inline uint32_t tcp_flags_e(const struct tcb *t)
{
	return (uint32_t)(a64_relaxed(&t->e.state) >> 8) & 0xffffff;
}
static inline bool tcp_fin_queued(const struct tcb *t) { return tcp_flags_e(t) & TCB_E_FIN_TX; }
static inline bool tcp_app_closed(const struct tcb *t) { return tcp_flags_e(t) & TCB_E_APP_CLOSED; }
/* End of all that will be sent, the FIN included. */
static inline uint64_t snd_end(const struct tcb *t) { return tx_tail(t) + 1 + tcp_fin_queued(t); }
static inline bool tcp_fin_acked(const struct tcb *t)
{
	return tcp_fin_queued(t) && snd_una(t) == tx_tail(t) + 2;
}
/* Stream offset behind the last readable byte. */
static inline uint64_t rx_head(const struct tcb *t)
{
	uint64_t fin = fin_rx_seq(t), next = rcv_nxt(t);

	return fin && next > fin ? fin - 1 : next - 1;
}
/* Stream offset of the first unacknowledged byte. */
static inline uint64_t tx_una(const struct tcb *t)
{
	uint64_t una = snd_una(t);

	return una == 0 ? 0 : u64_min(una - 1, tx_tail(t));
}
/* States in which the peer's data is part of the stream. */
static inline bool tcp_receives(enum tcp_state s)
{
	return s == TCP_ESTABLISHED || s == TCP_FIN_WAIT_1 || s == TCP_FIN_WAIT_2;
}
static inline bool tcp_sends(enum tcp_state s)
{
	return s == TCP_ESTABLISHED || s == TCP_CLOSE_WAIT || s == TCP_FIN_WAIT_1 ||
	       s == TCP_LAST_ACK || s == TCP_CLOSING;
}
static inline uint32_t tcb_index(const struct stack *s, const struct tcb *t)
{
	return (uint32_t)(t - s->tcp->tcbs);
}
static inline uint32_t tcp_err_e(const struct tcb *t) { return (uint32_t)(a64_relaxed(&t->e.state) >> 48); }
static inline uint32_t tcp_now_ts(const struct stack *s, uint32_t offset)
{
	return (uint32_t)(s->now_us / 1000) + offset;
}

/* ---- units of work (W14) and seals ---- */
/* Sums of products with odd numbers: the multiplications overlap, so it costs a few nanoseconds. Meant for
 * wild writes, not for adversaries: no application maps the arena. */
static inline uint32_t seal_e(const struct tcb *t)
{
	const neat_a64 *w = &t->e.snd_una;
	uint64_t h = a64_relaxed(&t->rx_ring) * 0x9e3779b97f4a7c15ull;

	for (unsigned i = 0; i < sizeof(t->e) / sizeof(*w); i++)
		h += (a64_relaxed(&w[i]) ^ i) * (0xbf58476d1ce4e5b9ull + 2 * i * 0x94d049bb133111ebull);
	return (uint32_t)(h >> 32) ^ (uint32_t)h;
}
/* What differs in one word differs in the sum, and what is written over several at random does so but for one case
 * in 2^32; that must do, for it is compared with each unit of work. */
static inline uint32_t seal_i(const struct tcb *t)
{
	uint64_t w[4], h;

	memcpy(w, (const uint8_t *)t + offsetof(struct tcb, key), sizeof(w));
	h = (w[0] ^ w[1]) ^ (w[2] ^ w[3]) ^ ((uint64_t)t->ref.gen << 32 | t->ref.slot);
	return (uint32_t)(h >> 32) ^ (uint32_t)h;
}
/* Finds each flipped bit; pointers that are garbage altogether end in a fault of their own, but for `mem` NULL. */
static inline uint8_t seal_p(const struct tcb *t)
{
	uint64_t h = (uintptr_t)t->ref.mem ^ (uintptr_t)t->ref.pub ^ (uintptr_t)t->ref.app;

	h ^= h >> 32;
	h ^= h >> 16;
	return (uint8_t)(h ^ h >> 8);
}
static inline void seal_identity(struct tcb *t)
{
	t->seal_i = seal_i(t);
	t->seal_p = seal_p(t);
}
/* The invariants of arena.h, true after every single store into a record that is not free (tcp.c). */
bool tcp_numbers_ok(const struct tcb *t);

/* The quarantine build dies at once of what the normal one finds later or at the next adoption. */
#ifdef NEAT_QUARANTINE
enum { QUARANTINE = 1 };
#else
enum { QUARANTINE = 0 };
#endif
/*
 * Somebody else wrote to this control block since our last unit of work: a fault, and better now than after the
 * numbers were used and sealed again, which nobody could tell from truth. No unit is to blame, so none is named;
 * the successor finds the same and resets this connection alone.
 */
_Noreturn static inline void unit_distrust(const struct stack *s)
{
	a64_release(&s->tcp->arena->journal, journal_word(UNIT_NONE, 0));
	__builtin_trap();
}
/* Of the one that the journal names already, a unit of work may be under way. */
static inline void unit_trusts(const struct stack *s, const struct tcb *t)
{
	if (__builtin_expect(t->seal_e == seal_e(t) && t->seal_i == seal_i(t) && t->seal_p == seal_p(t) &&
			     !t->ref.mem == !t->ref.slot &&
			     t->snd_nxt - snd_una(t) <= snd_max(t) - snd_una(t), 1))
		return;
	if (tcp_state(t) != TCP_FREE && journal_record(a64_relaxed(&s->tcp->arena->journal)) != tcb_index(s, t) + 1)
		unit_distrust(s);
}
static inline void quarantine_ends(const struct tcb *t)
{
	if (QUARANTINE && tcp_state(t) != TCP_FREE && !tcp_numbers_ok(t))
		__builtin_trap();
}
/* unit_begin() of a block that is not whole yet: a successor makes it so. */
static inline void unit_repairs(struct stack *s, enum arena_unit unit, const struct tcb *t)
{
	a64_store(&s->tcp->arena->journal, journal_word(unit, t ? tcb_index(s, t) + 1 : 0));
	compiler_fence();
}
static inline void unit_begin(struct stack *s, enum arena_unit unit, const struct tcb *t)
{
	if (t)
		unit_trusts(s, t);
	unit_repairs(s, unit, t);
}
/* The frame that is being worked on turned out to be this connection's. */
static inline void unit_names(struct stack *s, const struct tcb *t)
{
	neat_a64 *j = &s->tcp->arena->journal;

	unit_trusts(s, t);
	a64_store(j, journal_word(journal_unit(a64_relaxed(j)), tcb_index(s, t) + 1));
	compiler_fence();
}
static inline void unit_end(struct tcb *t)
{
	quarantine_ends(t);
	compiler_fence();
	t->seal_e = seal_e(t);
}

/* ---- tcp.c ---- */
size_t tcp_memory(const struct stack_config *cfg);
size_t tcp_arena(const struct stack_config *cfg);
/* `fresh` wipes the arena; otherwise it is left to tcp_adopt(), -EINVAL if it is none of this layout. */
NEAT_CHECKED int tcp_init(struct stack *s, void *memory, void *arena, bool fresh);
/* Whose slot it is, and the seal over class I. */
void tcb_bind(struct tcb *t, const struct sockref *ref);
struct tcb *tcb_alloc(struct stack *s);
void tcb_free(struct stack *s, struct tcb *t);
void tcb_options(struct stack *s, struct tcb *t, const struct neat_opts *o);
/* Receive buffer that a connection with these options starts with. */
uint32_t tcp_rcvbuf_for(const struct stack *s, const struct neat_opts *o);
struct tcp_holes *tcb_holes(struct stack *s, struct tcb *t);
void tcb_holes_free(struct stack *s, struct tcb *t);
/* Index + 1 of a free record, 0 = none: last in, first out, then the next that was never used. */
uint32_t tcp_take(uint32_t *free, uint32_t next_of_free, neat_a32 *high, uint32_t n);

/* ---- tcp_share.c ---- */
bool share_block(const struct stack *s, uint32_t slots);	/* of the application, with the new one */
bool share_request(const struct stack *s, const struct sockmem *m);	/* NULL: nobody's */
/* Size to which a buffer of `has` bytes may change when `want` is wished for; counted. */
uint32_t share_buffer(const struct stack *s, struct tcb *t, uint32_t has, uint32_t want);
void share_count(struct tcb *t);	/* adoption: its buffers are what they are */
void share_orphan(struct stack *s, struct tcb *t);	/* no application holds it any more */
/* It is one, and they hold more than is free: nobody waits for their peers. */
bool share_exceeded(const struct stack *s, const struct tcb *t);
/* sock_detach(), and its buffers are the application's no more. */
void tcp_detach(struct stack *s, struct tcb *t);

/* ---- tcp_fsm.c ---- */
void tcp_set_state(struct stack *s, struct tcb *t, enum tcp_state state);
void tcp_set_flag_e(struct tcb *t, uint32_t flag);
void tcp_established(struct stack *s, struct tcb *t);
void tcp_queue_fin(struct stack *s, struct tcb *t);
void tcp_fin_received(struct stack *s, struct tcb *t);
void tcp_fin_sent_acked(struct stack *s, struct tcb *t);
/* The connection ended: err 0 = orderly. The block is freed, or lingers in CLOSED. */
void tcp_done(struct stack *s, struct tcb *t, int err);
void tcp_publish_info(struct stack *s, struct tcb *t);
/* Its application closed it: the peer has this long for its FIN. */
void tcp_linger(struct stack *s, struct tcb *t);
/* Lets go of the slot once an application that closed has nothing left in the send ring. */
void tcp_detach_if_idle(struct stack *s, struct tcb *t);

/* tx_tail and rx_tail by the application's last words; close() without a preceding kick. */
void tcp_close_rest(struct stack *s, struct tcb *t);

/* ---- tcp_syn.c ---- */
uint32_t tcp_isn(const struct stack *s, const struct flow_key *k);
uint32_t tcp_ts_offset(const struct stack *s, const struct flow_key *k);
uint16_t tcp_mss_for(const struct stack *s, const struct flow_key *k, const struct neat_opts *o);
uint8_t tcp_wscale_for(const struct stack *s, const struct neat_opts *o);
void tcp_listen_input(struct stack *s, struct listener *l, const struct flow_key *k, struct tcp_seg *g);
void tcp_request_input(struct stack *s, struct tcp_request *r, const struct flow_key *k, struct tcp_seg *g);
void tcp_request_timer(struct stack *s);
void tcp_request_free(struct stack *s, struct tcp_request *r);
/* A successor: the record is committed; false = no listener of ours, or not a sensible record. */
bool tcp_request_adopt(struct stack *s, struct tcp_request *r, bool fault);

/* ---- tcp_tw.c ---- */
void tcp_time_wait(struct stack *s, struct tcb *t);
/* True: the slot is gone and the SYN goes to a listener (RFC 6191, RFC 9293 3.10.7.4). */
bool tcp_tw_input(struct stack *s, struct tcp_time_wait *w, const struct flow_key *k, struct tcp_seg *g);
void tcp_tw_timer(struct stack *s);
void tcp_tw_free(struct stack *s, struct tcp_time_wait *w);
/* connect() meets a TIME_WAIT slot of its own tuple: may it go (RFC 6191)? */
bool tcp_tw_reusable(const struct stack *s, const struct tcp_time_wait *w);
/* A successor: the record is committed; call in order of expiry. False: not a sensible record. */
bool tcp_tw_adopt(struct stack *s, struct tcp_time_wait *w);
/* The local peer closed: our half need not wait (L7). */
void tcp_tw_peer_closed(struct stack *s, const struct flow_key *k);

/* ---- tcp_in.c ---- */
void tcp_segment(struct stack *s, struct tcb *t, struct tcp_seg *g);
void tcp_challenge(struct stack *s, struct tcb *t);
bool tcp_challenge_allowed(struct stack *s);

/* ---- tcp_ack.c ---- */
/* False: the segment is not acceptable and was dealt with. May free nothing. */
bool tcp_ack(struct stack *s, struct tcb *t, struct tcp_seg *g);
void tcp_rtt_sample(struct tcb *t, uint64_t rtt_us);
void tcp_advance_una(struct stack *s, struct tcb *t, uint64_t ack);
void tcp_notify_room(struct stack *s, struct tcb *t, uint64_t una_before);
/* Losses by time (RFC 8985): recovery begins if some are new; the reordering timer. */
void tcp_find_losses(struct stack *s, struct tcb *t);

/* ---- tcp_reass.c ---- */
/* Payload and FIN of an acceptable segment. */
void tcp_receive(struct stack *s, struct tcb *t, struct tcp_seg *g);
void tcp_deliver(struct stack *s, struct tcb *t, const struct tcp_seg *g);
void tcp_rcvbuf_tune(struct stack *s, struct tcb *t);

/* ---- tcp_sack.c ---- */
/* False: no room for one more interval. *added: bytes not known before. */
bool ranges_add(struct tcp_ranges *r, uint64_t start, uint64_t end, uint64_t *added);
void ranges_cut(struct tcp_ranges *r, uint64_t below);
bool ranges_contain(const struct tcp_ranges *r, uint64_t start, uint64_t end);
/* First gap at or after `from` and below `limit`: [*start, *end); false if none. */
bool ranges_gap(const struct tcp_ranges *r, uint64_t from, uint64_t limit, uint64_t *start, uint64_t *end);
/* Bytes newly SACKed. */
uint64_t tcp_sack_input(struct stack *s, struct tcb *t, struct tcp_seg *g);
/* Enough is SACKed that it cannot be reordering (RFC 6675 2, RFC 8985 6.2): DupThresh segments. */
bool tcp_dup_thresh(const struct tcb *t);
uint64_t ranges_bytes(const struct tcp_ranges *r, uint64_t start, uint64_t end);
bool tcp_is_lost(const struct tcb *t, uint64_t seq);
uint64_t tcp_pipe(const struct tcb *t);
/* RFC 6675 NextSeg() rules 1 and 3 (last_resort): a hole worth retransmitting. */
bool tcp_next_hole(const struct tcb *t, bool last_resort, uint64_t *start, uint64_t *end);
unsigned tcp_sack_blocks(const struct tcb *t, uint32_t (*out)[2], unsigned max);
static inline const struct tcp_ranges *tcp_sacked(const struct tcb *t)
{
	return t->holes && t->holes->sacked.n ? &t->holes->sacked : NULL;
}
static inline bool tcp_has_ooo(const struct tcb *t) { return t->holes && t->holes->ooo.n; }

/* ---- tcp_rack.c ---- */
/* Segments of this connection can be lost, and the peer says which (SACK): RACK-TLP applies. */
static inline bool tcp_racks(const struct tcb *t)
{
	return (t->options & TCP_OPT_SACK) && !(t->flags & TCB_LOCAL);
}
static inline bool tcp_sent_any(const struct tcb *t) { return !(t->flags & TCB_LOCAL) && t->sent; }
/* [start, end) was handed to IP just now. */
void tcp_sent_note(struct stack *s, struct tcb *t, uint64_t start, uint64_t end);
/* Everything below `ack` is acknowledged; before snd_una moves. */
void tcp_sent_acked(struct stack *s, struct tcb *t, const struct tcp_seg *g, uint64_t ack);
void tcp_sent_free(struct stack *s, struct tcb *t);
/* [start, end) is SACKed for the first time, where `sacked` does not hold it yet. */
void tcp_sent_sacked(struct stack *s, struct tcb *t, const struct tcp_seg *g, uint64_t start, uint64_t end);
/* First byte range marked lost and not SACKed; bytes of all of them. */
bool tcp_sent_hole(const struct tcb *t, uint64_t *start, uint64_t *end);
uint64_t tcp_sent_lost(const struct tcb *t);
/* All that is in flight is presumed lost; without records it is recorded first. */
void tcp_sent_lose_all(struct stack *s, struct tcb *t);
void tcp_sent_lose_none(struct tcb *t);
/* RFC 8985 6.3: the retransmission timer ran out. */
void tcp_rack_timeout(struct stack *s, struct tcb *t);
/* RFC 8985 6.2 steps 4 and 5. True: something was found lost. *wait_us: look again then, 0 = no need. */
bool tcp_rack_detect(struct stack *s, struct tcb *t, uint64_t *wait_us);
/* Step 4: the reordering window adapts to duplicates, and forgets at the end of a recovery. */
void tcp_rack_dsack(struct tcb *t);
void tcp_rack_recovered(struct tcb *t);
/* RFC 8985 7.4: was the probe the repair of a loss? */
void tcp_tlp_ack(struct stack *s, struct tcb *t, const struct tcp_seg *g);
/* Microseconds until a probe is due (7.2), 0 = none now. */
uint64_t tcp_pto_us(const struct tcb *t);

/* ---- tcp_out.c ---- */
void tcp_output(struct stack *s, struct tcb *t);
/* tcp_resume() has this one to deal with. */
void tcp_put_off(struct stack *s, struct tcb *t);
bool tcp_send_ack(struct stack *s, struct tcb *t);
bool tcp_send_syn(struct stack *s, struct tcb *t);
void tcp_send_rst(struct stack *s, struct tcb *t);
bool tcp_retransmit(struct stack *s, struct tcb *t, uint64_t start, uint64_t end);
bool tcp_send_probe(struct stack *s, struct tcb *t);	/* zero bytes below snd_una: asks for an ACK */
void tcp_send_tlp(struct stack *s, struct tcb *t);	/* RFC 8985 7.3 */
void tcp_send_override(struct stack *s, struct tcb *t);	/* what the small window allows, whatever SWS avoidance says */
/* Answer to a segment that belongs to nothing (RFC 9293 3.10.7.1). */
void tcp_refuse(struct stack *s, const struct tcp_seg *g, const struct flow_key *k);
struct tcp_reply {	/* a segment without a control block; wire numbers */
	struct flow_key key;
	uint32_t seq, ack;
	uint8_t flags, tos;
	uint16_t wnd;
	uint16_t mss;		/* with SYN */
	uint8_t wscale;
	uint8_t options;	/* enum tcp_option */
	uint32_t ts_val, ts_ecr;
};
bool tcp_send_reply(struct stack *s, const struct tcp_reply *r);
/* To the nic, not to the peer: is the tuple that it asked about in use here? */
void tcp_answer(struct stack *s, const struct flow_key *k, bool used);
/* The window moved by enough to tell the peer. */
bool tcp_window_opened(const struct tcb *t);
bool tcp_needs_persist(const struct tcb *t);

/* ---- tcp_opt.c ---- */
bool tcp_parse_options(struct tcp_seg *g, const uint8_t *opt, uint32_t len);
unsigned tcp_build_syn_options(uint8_t *out, const struct tcp_reply *r);

/* ---- tcp_timer.c ---- */
void tcp_timer(struct stack *s, struct timer *timer);	/* the wheel's handler for kinds TIMER_TCB .. */
void tcp_arm(struct stack *s, struct tcb *t);		/* after deadlines changed */
void tcp_arm_rtx(struct stack *s, struct tcb *t);	/* RTO, persist or TLP, whichever fits what is out */
void tcp_keepalive_restart(struct stack *s, struct tcb *t);

/* ---- tcp_cc.c ---- */
void tcp_cc_init(struct tcb *t);
void tcp_cc_acked(struct stack *s, struct tcb *t, uint32_t acked);
void tcp_cc_loss(struct stack *s, struct tcb *t);	/* enter fast recovery */
void tcp_cc_timeout(struct stack *s, struct tcb *t);
void tcp_cc_undo(struct stack *s, struct tcb *t);
/* RFC 9937: how much may be sent in fast recovery for what this ACK says was delivered. */
void tcp_cc_prr(struct tcb *t, uint32_t delivered, bool safe);
void tcp_cc_idle(struct stack *s, struct tcb *t);
uint32_t tcp_initial_window(const struct tcb *t);

#endif
