/*
 * stack.h - one replica's TCP/IP stack: what it owns and what its rooms call of each other.
 *
 * The stack is a library: no system call, no clock, no randomness of its own, no file-scope mutable
 * state. main.c (real time, rings of real applications) and the tests (fake clock, scripted
 * packets) drive the same code.
 *
 * One unit of work = one packet, one timer or one application command; it changes one control
 * block and is journalled (W14). Messages between ip, tcp and udp are one-way (P6): a function
 * here either consumes what it is given or drops it and counts why; callers never act on a result
 * other than "no room now".
 */
#ifndef NEAT_STACK_H
#define NEAT_STACK_H

#include "pkt.h"
#include "timer.h"

struct tcb;
struct listener;
struct udp_sock;
struct stack;

/* Memory of one (application, replica) pair as this replica maps it. */
struct sockmem {
	struct neat_seg_pub *pub;
	struct neat_seg_app *app;	/* also the base of the payload rings */
	uint32_t app_id;
	uint32_t live;			/* slots not FREE */
	uint32_t half_open;		/* connections of its listeners that are not made yet */
	uint64_t buffers;		/* bytes of its connections' buffers beyond what each may have anyway */
	void *owner;			/* api.c's record of the application */
};

/* A slot as a control block refers to it; pointers are rebuilt at adoption. */
struct sockref {
	struct sockmem *mem;		/* NULL: no application (embryonic or orphaned connection) */
	struct neat_slot_pub *pub;
	struct neat_slot_app *app;
	uint32_t slot;
	uint32_t gen;
};
/* Where its payload rings are counted from: by what the reference says itself, which is under a seal. */
static inline void *sockref_seg(const struct sockref *r)
{
	return (uint8_t *)(r->app - r->slot) - offsetof(struct neat_seg_app, slots);
}

/* Why a packet or segment was dropped: one list, one counter each (trace.c names them). */
#define STACK_DROPS(X) \
	X(SHORT) X(ETHERTYPE) X(NOT_OURS) X(IP_VERSION) X(IP_HEADER) X(IP_CSUM) X(IP_OPTIONS) \
	X(IP_FRAGMENT) X(IP_MARTIAN) X(IP_PROTO) X(NO_ROUTE) X(NO_NEIGHBOUR) X(QUEUE_FULL) X(LO_FULL) \
	X(FILTER) X(ICMP) X(ICMP_RATE) X(ARP) X(UDP_SHORT) X(UDP_CSUM) X(UDP_NO_PORT) X(UDP_FULL) X(UDP_SEND) \
	X(TCP_SHORT) X(TCP_CSUM) X(TCP_OPTIONS) X(TCP_NO_SOCKET) X(TCP_STATE) X(TCP_OLD) X(TCP_WINDOW) \
	X(TCP_PAWS) X(TCP_ACK) X(TCP_RST) X(TCP_SYN) X(TCP_BACKLOG) X(TCP_MEMORY) X(TCP_RATE)
enum stack_drop {
#define X(name) DROP_##name,
	STACK_DROPS(X)
#undef X
	DROP_COUNT
};

struct stack_counters {
	uint64_t segments_in, segments_out, bytes_in, bytes_out;
	uint64_t connections, accepted, connected, resets_in, resets_out;
	uint64_t retransmits, rto, tlp, fast_retransmits, dupacks, ooo_in;
	uint64_t frames_in, frames_out, lo_frames;
	uint64_t datagrams_in, datagrams_out;
	uint64_t drop[DROP_COUNT];
};

struct stack_config {
	uint32_t index;			/* of this replica */
	uint32_t epoch;
	uint32_t time_wait_ms;
	uint32_t syn_backlog;		/* half-open connections of the whole replica */
	uint32_t connections_max;
	uint32_t app_sockets;		/* of one application; 0 = only what tcp_share.c says */
	uint64_t app_buffers;		/* bytes by which buffers of one application may grow */
	uint32_t rcvbuf, sndbuf;	/* autotuning ceilings, bytes */
	uint32_t lo_mtu;
	uint8_t secret[32];		/* ISN, ports, hash; equal over all epochs (RFC 6528, RFC 6056) */
	uint8_t mac[6];
	uint16_t mtu;			/* of the uplink, 0 = none */
	uint32_t addr, prefix, gateway;	/* uplink IPv4, host order; addr 0 = none */
	uint8_t rss_key[40];
	const uint8_t *reta;		/* RSS_RETA bytes that the nic keeps up to date; NULL = no uplink */
};

/* What the stack needs of the world; given by main.c or a test, never called for packets of lo. */
struct stack_ops {
	/* Send one Ethernet frame (or GSO super-frame) out; false = no room, try after a drain. */
	bool (*tx)(void *world, const struct pkt *p);
	/* 64 unpredictable bits. */
	uint64_t (*random)(void *world);
	/* Payload into an application's ring; NULL = memcpy. */
	void (*copy)(void *world, void *to, const void *from, size_t n);
	/* Some socket of the instance holds this port (bind(2)); NULL = none does. */
	bool (*port_bound)(void *world, uint32_t addr, uint16_t port);
	/* Rises before another port may be free by port_bound(); NULL = never. */
	uint64_t (*port_changes)(void *world);
	void *world;
};

struct stack {
	struct stack_config cfg;
	struct stack_ops ops;
	uint64_t now_us;		/* CLOCK_MONOTONIC; set by the driver before each unit of work */
	struct stack_counters count;
	struct timer_wheel wheel;	/* timer.c */
	struct lo *lo;			/* lo.c: frames to ourselves */
	struct neigh *neigh;		/* link.c */
	struct ip_state *ip;		/* ip.c: reassembly, ICMP rate limits */
	struct filter *filter;		/* filter.c: rules */
	struct flow *flow;		/* flow.c: 4-tuples, listeners, ports */
	bool walked;			/* flow_choose_port() went through all ports; cleared by who counts work */
	struct tcp *tcp;		/* tcp.c: control blocks in the arena, request slots, TIME_WAIT */
	struct udp *udp;		/* udp.c */
	void *api;			/* api.c */
};

/* ---- life; memory comes from the caller so that it can be shared or fake ---- */
struct memory_span { void *at; size_t len; };
/* Bytes of plain (class D) memory and of arena that a configuration needs. */
size_t stack_memory(const struct stack_config *cfg);
size_t stack_arena(const struct stack_config *cfg);
/* `fresh`: wipe the arena. Otherwise stack_adopt() takes over what is in it; -EINVAL if that is impossible. */
NEAT_CHECKED int stack_init(struct stack *s, const struct stack_config *cfg, const struct stack_ops *ops,
			    void *memory, void *arena, bool fresh, uint64_t now_us);
/* Earliest time something must run, UINT64_MAX if never. */
uint64_t stack_deadline(const struct stack *s);
void stack_timers(struct stack *s, unsigned budget);	/* run timers due at s->now_us */
/*
 * A successor takes over its predecessor's connections. Once, after stack_init(fresh = false), after the
 * applications' segments and the listeners are there again, and before any other work. `death`: enum
 * neat_death. Changes nothing but class D, published copies and strikes, so it may itself be killed.
 */
struct stack_adopted {
	uint32_t connections, half_open, time_waits;
	uint32_t corrupted;		/* records that made no sense: their connections were reset */
	bool drop_frame;		/* the nic's next frame killed our predecessor: drop it once */
	bool drop_command;		/* the same for the command at the head of a channel, the second time */
	uint64_t drop_datagram;		/* and for the next datagram of this socket: [application 32][slot 32], 0 = none */
};
void stack_adopt(struct stack *s, uint32_t death, struct stack_adopted *out);
/* Plain memory of which stack_adopt() will touch nearly every page, in no order; .len = 0: none. */
struct memory_span stack_scattered(const struct stack *s);
/* The journal (W14): a frame is being worked on; nothing is. */
void stack_frame_begins(struct stack *s, bool lo);
void stack_datagram_begins(struct stack *s, uint32_t app_id, uint32_t slot);
void stack_units_done(struct stack *s);
const char *stack_drop_name(enum stack_drop d);
static inline void stack_drop(struct stack *s, enum stack_drop d) { s->count.drop[d]++; }

/* ---- link.c: Ethernet, ARP, neighbours (RFC 826, 5227) ---- */
/* A frame from the nic. False: what it sets free finds no room; it is to be shown again when there is some. */
NEAT_CHECKED bool link_input(struct stack *s, struct pkt *p);
bool link_output(struct stack *s, struct pkt *p, uint32_t next_hop);	/* p->data at the IP header */

/* ---- lo.c: this replica's loopback, 64 KiB MTU; frames are queued, one unit of work each ---- */
uint32_t lo_room(const struct stack *s);
bool lo_output(struct stack *s, const struct pkt *p);		/* copies headers, refers to payload */
bool lo_deliver(struct stack *s);				/* one frame; false when the queue is empty */
bool lo_waits(const struct stack *s);				/* lo_deliver() has work now */

/* ---- ip.c: IPv4, ICMP (RFC 791, 792, 1122, 1812, 6864) ---- */
struct ip_meta {	/* what a transport learns of the network header; host order */
	uint32_t saddr, daddr;
	uint8_t proto, ttl, tos, pad;
};
void ip_input(struct stack *s, struct pkt *p);
/* p->data at the transport header, payload complete. Pushes the IP header, chooses lo or link. False = no room. */
bool ip_output(struct stack *s, struct pkt *p, const struct ip_meta *m);
static inline bool ip_is_loopback(uint32_t addr) { return addr >> 24 == 127; }
static inline bool ip_is_local(const struct stack *s, uint32_t addr)	/* 127/8 or one of ours */
{
	return ip_is_loopback(addr) || (s->cfg.addr && addr == s->cfg.addr);
}
uint32_t ip_source_for(const struct stack *s, uint32_t daddr);	/* address to send from; 0 = no route */
uint32_t ip_mtu_for(const struct stack *s, uint32_t daddr);
/* ICMP error for the packet whose IP header starts at `orig` (RFC 1122 3.2.2, rate limited). */
void icmp_error(struct stack *s, uint8_t type, uint8_t code, const struct pkt *orig);
/* Pseudo-header sum for proto over len bytes, to be stored in a PKT_CSUM_PARTIAL packet. */
uint16_t ip_pseudo_sum(uint32_t saddr, uint32_t daddr, uint8_t proto, uint32_t len);
bool ip_transport_csum_ok(const struct pkt *p, const struct ip_meta *m);

/* ---- flow.c: who owns a tuple; ports (RFC 6056) and RSS ---- */
struct flow_key { uint32_t laddr, raddr; uint16_t lport, rport; };	/* host order */
void *flow_find(const struct stack *s, const struct flow_key *k);	/* value or NULL */
NEAT_CHECKED int flow_insert(struct stack *s, const struct flow_key *k, void *value);	/* -EADDRINUSE, -ENOMEM */
void flow_remove(struct stack *s, const struct flow_key *k);
enum { FLOW_GROUP = 64 };	/* so many listeners may share a port (SO_REUSEPORT); what is beyond gets nothing */
/* Most specific listener for a SYN to addr:port; of those that share it `hash` picks one, evenly. */
struct listener *flow_listener(const struct stack *s, uint32_t addr, uint16_t port, uint32_t hash);
NEAT_CHECKED int flow_listen(struct stack *s, uint32_t addr, uint16_t port, struct listener *l);
void flow_unlisten(struct stack *s, uint32_t addr, uint16_t port, struct listener *l);
/* A free local port whose flow hashes back to this replica; 0 = none left. */
uint16_t flow_choose_port(struct stack *s, uint32_t laddr, uint32_t raddr, uint16_t rport);
uint32_t flow_hash(const struct stack *s, const struct flow_key *k);	/* keyed, for tables */
void flow_expect(const struct stack *s, const struct flow_key *k);	/* a look-up soon: its line is fetched */

/* ---- tcp: RFC 9293; see tcp.h for the control block ---- */
void tcp_input(struct stack *s, struct pkt *p, const struct ip_meta *m);	/* p->data at the TCP header */
void tcp_returned(struct stack *s, const struct pkt *p, const struct ip_meta *m);	/* PKT_RETURNED */
void tcp_asked(struct stack *s, const struct pkt *p, const struct ip_meta *m);	/* PKT_ASKED */
/* ICMP error about a segment of ours: tcp checks the sequence number (RFC 5927). `mtu` for PTB. */
void tcp_icmp(struct stack *s, const struct flow_key *k, uint32_t seq, uint8_t type, uint8_t code, uint32_t mtu);
/* Work that was put off because ip_output had no room; call after a drain. */
void tcp_resume(struct stack *s);

/* No connection, half-open one or TIME_WAIT is left. */
bool tcp_idle(const struct stack *s);

/* Commands of the application, already validated by api.c. */
struct tcp_connect {
	struct flow_key key;		/* lport 0 = choose, laddr 0 = choose */
	struct sockref ref;
	struct neat_opts opts;
	uint16_t optgen;		/* of the slot, when opts were read */
};
NEAT_CHECKED int tcp_connect(struct stack *s, const struct tcp_connect *c, struct tcb **out);
struct tcp_listen {
	uint32_t addr;
	uint16_t port;
	uint16_t pad;
	uint32_t backlog;
	struct sockref ref;		/* the subsocket's slot */
	struct neat_opts opts;
};
NEAT_CHECKED int tcp_listen(struct stack *s, const struct tcp_listen *l, struct listener **out);
void tcp_unlisten(struct stack *s, struct listener *l);	/* resets what was never accepted */
void tcp_relisten(struct stack *s, struct listener *l, uint32_t backlog);
/*
 * tx_tail, rx_tail, shut or opts of this connection changed; values are monotone and in range. opt_flags, if opts
 * changed: read before tx_tail, so that a push that it counts is one of bytes that tx_tail has.
 */
struct tcp_user { uint64_t tx_tail, rx_tail; uint32_t shut, opt_flags; uint16_t optgen; bool opts_changed; };
void tcp_kick(struct stack *s, struct tcb *t, const struct tcp_user *u);
void tcp_close(struct stack *s, struct tcb *t);	/* last reference gone: FIN, RST if data is unread or linger 0 */
void tcp_abort(struct stack *s, struct tcb *t, int err);	/* RST */
/* Stream offsets that bound what the application may write into its words; from the control block. */
struct tcp_bounds { uint64_t tx_una, tx_tail, rx_head, rx_tail; };
struct tcp_bounds tcp_bounds(const struct tcb *t);
uint16_t tcp_optgen(const struct tcb *t);	/* of the options it has applied */
void tcp_expect(const struct tcb *t);		/* it is worked on soon: its lines are fetched */
struct sockref *tcp_listener_ref(struct listener *l);

/* ---- udp.c: RFC 768; see udp.h for the socket ---- */
struct udp_open {
	struct sockref ref;		/* its words say the rest; what lies in the rings stays (adoption) */
	uint32_t laddr;
	uint16_t lport;
	bool closed;			/* adoption: it only waits for its last datagrams to leave */
	bool again;			/* adoption: it was open already */
};
NEAT_CHECKED int udp_open(struct stack *s, const struct udp_open *o, struct udp_sock **out);
/* The application changed words of the slot: datagrams to send, peer, options. */
void udp_kick(struct stack *s, struct udp_sock *u);
void udp_later(struct stack *s, struct udp_sock *u);	/* the same at the next udp_resume() */
/* The next datagram to send killed two of us. */
void udp_skip(struct stack *s, struct udp_sock *u);
void udp_close(struct stack *s, struct udp_sock *u);	/* last reference gone: what is queued is sent first */
/* ICMP error about a datagram of ours. */
void udp_icmp(struct stack *s, const struct flow_key *k, uint8_t type, uint8_t code);
/* Datagrams that waited for their turn or for room; call after a drain. */
void udp_resume(struct stack *s);
bool udp_waits(const struct stack *s);		/* udp_resume() has work now */
bool udp_blocked(const struct stack *s);	/* it has some when the nic takes frames again */

/* ---- api.c: what tcp and udp tell the socket layer (the tests have their own) ---- */
enum sock_event { SOCK_READABLE = 1, SOCK_WRITABLE = 2, SOCK_STATE = 4 };
/* Words of the slot changed; post events to subscribed channels. */
void sock_notify(struct stack *s, struct sockref *r, unsigned what);
/* Set and clear bits of the slot's status; err != 0 publishes a new SO_ERROR. Does not notify. */
void sock_status(struct stack *s, struct sockref *r, uint32_t set, uint32_t clear, uint32_t err);
/*
 * A connection is about to be ESTABLISHED behind listener `l`: a slot (*out) with its addresses.
 * -ENOBUFS when the queue or the slots are full.
 */
NEAT_CHECKED int sock_accept(struct stack *s, struct listener *l, const struct flow_key *k, struct tcb *t,
			     struct sockref *out);
/* W6: its control block is committed: publish the slot, push it to the accept queue, notify. */
void sock_accept_push(struct stack *s, struct listener *l, struct sockref *r);
/*
 * A successor found a connection of (app_id, ref->slot, ref->gen): fills in the pointers and takes the
 * slot. False: the slot is not this connection's any more.
 */
NEAT_CHECKED bool sock_adopt(struct stack *s, uint32_t app_id, struct tcb *t, bool closed, struct sockref *ref);
void sock_expect(const struct stack *s, uint32_t app_id, uint32_t slot);	/* sock_adopt() of it comes soon */
/* The stack forgets the connection; the slot stays with the application until its last close. */
void sock_detach(struct stack *s, struct sockref *r);

#endif
