/*
 * neat_abi.h - THE contract: every byte that two processes share, and who may write it.
 *
 * Read docs/rules.md first; labels such as L4 or W7' refer to it. This file holds layouts and
 * constants, neat_msg.h, which it includes, the control messages; the only code that touches ring indices is ring.h, the only
 * code that touches payload positions is bytering.h.
 *
 * It is compiled three times: into the replicas and the NIC, into libneatsock.so, and, with
 * NEAT_CDEF set, into the cffi module that neatd, the tools and the tests use. So: constants are
 * enums, padding is explicit, shared words are one-member structs (a plain ++ does not compile),
 * and nothing here is a pointer.
 *
 * The words "app", "replica", "neatd", "keeper", "nic" at a field name its only writer. Whatever
 * another party wrote is read once into a local, checked, then used.
 */
#ifndef NEAT_ABI_H
#define NEAT_ABI_H

#ifndef NEAT_CDEF
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#endif

/* A shared word; accessed only through the helpers with a named order in ring.h. */
typedef struct { uint32_t v; } neat_a32;
typedef struct { uint64_t v; } neat_a64;
/* Network byte order. */
typedef struct { uint16_t v; } neat_be16;
typedef struct { uint32_t v; } neat_be32;

enum {
	NEAT_ABI_MAGIC = 0x5441454e,	/* "NEAT" */
	NEAT_ABI_VERSION = 4,		/* bump with every change of layout or message */
};

enum {
	NEAT_REPLICAS_MAX = 16,		/* replicas of one instance */
	NEAT_SLOTS = 65536,		/* socket slots of one (application, replica) pair; slot 0 is none */
	NEAT_SLOT_APP_FIRST = 32768,	/* [1, this): born in the replica (accepted, listeners);
					 * [this, NEAT_SLOTS): claimed by the application for connect() */
	NEAT_PROCS_MAX = 256,		/* processes of one application that have their own fd table */
	NEAT_FDS_MAX = 65536,		/* fd numbers an fd table covers; higher ones are the kernel's */
	NEAT_SOCKS_MAX = 65536,		/* socket records of one application; record 0 is none */
	NEAT_CMD_ENTRIES = 4096,	/* per channel, power of two */
	NEAT_EV_ENTRIES = 8192,		/* per channel, power of two; overflow is legal (events are hints) */
	NEAT_ACCEPT_ENTRIES = 4096,	/* per subsocket, power of two; caps the backlog */
	NEAT_LISTENERS_MAX = 256,	/* subsockets of one (application, replica) pair */
	NEAT_RING_LOG2_MIN = 11,	/* 2 KiB: rx and tx of a small connection share one page */
	NEAT_RX_LOG2_MAX = 22,	/* 4 MiB: net.ipv4.tcp_rmem has 6 */
	NEAT_TX_LOG2_MAX = 21,	/* 2 MiB: net.ipv4.tcp_wmem has 4 */
	NEAT_PAGE = 4096,
	NEAT_CHANNELS_EXACT = 63,	/* channels 0..62 have their own bit in sub/ev_pend; the others share bit 63 */
	NEAT_REGISTRY_PORTS = 4096,	/* power of two */
	NEAT_ADDRS_MAX = 8,
	NEAT_CPUS_MAX = 256,
	NEAT_FILTER_MAX = 256,	/* rules of the packet filter */
};

/* First bytes of every shared object; checked by whoever maps it. keeper/neatd writes, once. */
enum neat_object {
	NEAT_OBJ_REGISTRY = 1,
	NEAT_OBJ_APP = 2,	/* struct neat_app: one per application */
	NEAT_OBJ_SEG_PUB = 3,	/* struct neat_seg_pub: (application, replica), replica writes */
	NEAT_OBJ_SEG_APP = 4,	/* struct neat_seg_app: (application, replica), application writes; payload */
	NEAT_OBJ_CHANNELS = 5,	/* struct neat_channels: (application, replica), a channel for each process */
	NEAT_OBJ_STATUS = 6,	/* struct neat_replica_status: replica writes */
	NEAT_OBJ_ARENA = 7,	/* replica's control blocks; no application maps it */
	NEAT_OBJ_QUEUE_PAIR = 8,/* struct neat_queue_pair: (replica, nic), or two components of a replica */
	NEAT_OBJ_FLOWS = 9,	/* struct neat_flow_table: the nic's, for its successor */
	NEAT_OBJ_SNAPSHOT = 10,	/* struct neat_snapshot: what ip tells the other components of a replica */
};

struct neat_header {
	uint32_t magic;
	uint32_t version;
	uint32_t object;	/* enum neat_object */
	uint32_t index;		/* replica index, or application id for NEAT_OBJ_APP */
	uint64_t size;		/* bytes of the whole object */
	uint64_t instance;	/* random, same in all objects of one instance: stale memory is recognised */
};

/* ------------------------------------------------------------------ registry page (L8) ---- */

/*
 * Life of a port entry: FREE -> BOUND (bind() done, or an explicit local port) -> LISTENING when
 * `mask` becomes non-zero -> BOUND -> FREE. `mask` is the commit: an entry whose mask is zero is
 * no listener. Entries are found by open addressing from neat_port_hash(); TOMB keeps chains whole.
 */
enum neat_port_state {
	NEAT_PORT_FREE = 0,
	NEAT_PORT_BOUND = 1,
	NEAT_PORT_LISTENING = 2,
	NEAT_PORT_TOMB = 3,
};

struct neat_port_entry {	/* neatd writes */
	neat_a32 state;		/* enum neat_port_state; stored last when an entry is made */
	neat_a32 mask;		/* TCP: bit r: replica r acknowledged its subsocket; UDP: the one bit of its home (L9) */
	uint32_t addr;		/* host order; 0 = any */
	uint16_t port;		/* host order */
	uint16_t proto;		/* IPPROTO_TCP or IPPROTO_UDP */
	neat_a32 owner;		/* UDP: application that holds the port, ~0 = several; a replica opens it for nobody else */
	neat_a32 also;		/* UDP: replica + 1 that the home is moving to or has come from: sockets have a slot there, too */
};

enum { NEAT_KEEPER_GONE = 0x40000000 };	/* FUTEX_OWNER_DIED */

struct neat_registry {		/* neatd writes; everyone else maps it read-only */
	struct neat_header h;
	neat_a64 change;	/* +1 after every change: cached conclusions are dropped */
	neat_a32 active;	/* mask of replicas that take new connections */
	neat_a32 replicas;	/* mask of replicas that exist, starting and draining ones included */
	neat_a32 epoch[NEAT_REPLICAS_MAX];	/* +1 each time replica r was replaced */
	neat_a32 naddrs;
	neat_a32 scaled;	/* +1 after `replicas` or a neat_sock.sub[] changed: libraries look at both again */
	/* keeper: its tid, 0 at first; NEAT_KEEPER_GONE is set by it when it ends the instance, by the kernel when it
	 * dies (robust futex) */
	neat_a32 keeper;
	uint32_t pad;
	struct { uint32_t addr, prefix; } addrs[NEAT_ADDRS_MAX];	/* our IPv4 addresses beside 127/8, host order */
	struct neat_port_entry ports[NEAT_REGISTRY_PORTS];
};

/* --------------------------------------------------------------- application object (L2) --- */

/*
 * Everything an application knows of its sockets that must outlive each of its processes. Mapped
 * by the processes of the application (writing) and by neatd (reading after a death). No replica
 * maps it.
 */

/*
 * Life of a process entry: FREE -> (CAS) CLAIMED -> LIVE, set once pid is stored -> after the death (CAS)
 * SWEPT -> (CAS) FREE. Who makes it SWEPT, neatd or a process that needs an entry, is the only one that
 * closes what the dead process had open.
 */
enum neat_proc_state { NEAT_PROC_FREE = 0, NEAT_PROC_CLAIMED = 1, NEAT_PROC_LIVE = 2, NEAT_PROC_SWEPT = 3 };

struct neat_proc {		/* app writes; neatd frees */
	neat_a32 state;		/* enum neat_proc_state */
	neat_a32 pid;		/* in neatd's pid namespace; CLAIMED: the parent's; SWEPT: who does that; FREE: 0 */
	neat_a32 parent;	/* index of the process that forked it */
	neat_a32 fd_high;	/* fds with an entry end below this */
};

/* One fd of one process. A zero word = the kernel's (or not looked at yet). */
enum {
	NEAT_FD_CLOEXEC = 1,	/* bits of neat_fd.flags */
	NEAT_FD_INTERNAL = 2,	/* sock 0: a descriptor of the library itself */
};
enum { NEAT_FD_PIN = NEAT_FDS_MAX - 1 };	/* no descriptor: what dup() is about to name again */
/* Packed into one word so that an entry changes by one store: [flags 16][gen 16][sock 32]. */

/*
 * Socket record: what POSIX calls the open file description. States:
 *  FREE      may be claimed by CAS by any thread of the application
 *  NEW       socket() done, nothing in any replica; may be bound (neatd holds the port)
 *  CONNECT   belongs to one (replica, slot); connecting, connected or dead, the slot tells
 *  LISTEN    has one subsocket per replica in sub[]
 *  KERNEL    one-way: each holder moves its fd to the kernel socket (L10)
 *  DGRAM     the fd itself is the kernel twin (L9); with BOUND, sub[] holds a slot in each replica it sends
 *            through, of which sub[replica] is home. It receives in all of them: the home of a port may move
 */
enum {
	NEAT_REFS_CLOSER_SHIFT = 22,	/* see neat_refs_closing() */
	NEAT_REFS_NEATD = NEAT_PROCS_MAX,	/* in place of a process entry: swept, neatd sees to the rest */
	NEAT_SLOT_BACK = 1 << 30,	/* in neat_sock.slot and .sub: the claim of the slot was given back, or is being */
};

enum neat_sock_state {
	NEAT_SOCK_FREE = 0,
	NEAT_SOCK_NEW = 1,
	NEAT_SOCK_CONNECT = 2,
	NEAT_SOCK_LISTEN = 3,
	NEAT_SOCK_KERNEL = 4,
	NEAT_SOCK_DGRAM = 5,
};

enum neat_sock_flags {
	NEAT_SOCKF_NONBLOCK = 1,	/* O_NONBLOCK, a property of the description */
	NEAT_SOCKF_BOUND = 2,		/* neatd holds lport for it */
	NEAT_SOCKF_REUSEADDR = 4,
	NEAT_SOCKF_REUSEPORT = 8,
	NEAT_SOCKF_SHUT = 128,		/* NEW: shutdown() was tried, of the side that reads */
	NEAT_SOCKF_OPTS_LATE = 64,	/* LISTEN: options changed after listen() */
	NEAT_SOCKF_CONNECT_SEEN = 32,	/* a connect() call has reported the outcome */
	NEAT_SOCKF_TWIN = 256,		/* DGRAM: datagrams may come by the kernel too: recv and poll look there */
	NEAT_SOCKF_PEER = 512,		/* DGRAM: connected; the peer is in the home slot's raddr and rport */
	NEAT_SOCKF_KERNEL_PEER = 1024,	/* DGRAM: the twin is connected, the peer is the kernel's */
	NEAT_SOCKF_EXPLICIT = 2048,	/* DGRAM: bind() was called */
	NEAT_SOCKF_LEAVING = 8192,	/* CONNECT, DGRAM: the slots are being given up */
	NEAT_SOCKF_PORT_LOCK = 4096,	/* bind() named the port: AF_UNSPEC and shutdown() keep it */
};

struct neat_sock {		/* app writes */
	neat_a32 state;		/* enum neat_sock_state; the commit */
	neat_a32 gen;		/* +1 each time the record is claimed */
	/*
	 * Fd-table entries of all processes that name it; 0 = free, claimed by CAS 0 -> 1. Who takes the last one
	 * away makes it neat_refs_closing() of its process entry, which is what it owes: it ends the
	 * connection, lets the port go, stores FREE, then 0. If it dies on the way, its sweeper finds what
	 * it owed, and neatd what its predecessor did (NEAT_REFS_NEATD). Raised by fork before the child exists.
	 */
	neat_a32 refs;
	neat_a32 flags;		/* enum neat_sock_flags */
	neat_a32 lock;		/* holder's tid; guards rare multi-word changes (bind, connect, listen) */
	uint32_t replica;	/* CONNECT: owner */
	uint32_t slot;		/* CONNECT: slot in the (application, replica) segment; NEAT_SLOT_BACK when closing */
	uint32_t slot_gen;
	uint32_t laddr;		/* NEW and LISTEN: bound address, host order */
	uint16_t lport;
	uint16_t family;	/* AF_INET */
	uint32_t inode_lo;	/* identity of the placeholder fd (L3) */
	uint32_t pad;
	uint32_t backlog;
	uint32_t rcvtimeo_ms;	/* 0 = none, UINT32_MAX = was below zero, and over at once */
	uint32_t sndtimeo_ms;
	uint32_t rcvlowat;
	struct neat_opts { uint32_t w[16]; } opts;	/* options set before a slot exists; see enum neat_opt */
	/* LISTEN: subsocket in each replica; slot 0 = none. neatd writes, each by one store of 64 bits. */
	struct { uint32_t slot, gen; } sub[NEAT_REPLICAS_MAX];
};

/* Index into neat_opts.w and neat_slot_app.opts.w. A zero word always means "default". */
enum neat_opt {
	NEAT_OPT_FLAGS = 0,		/* enum neat_opt_flags */
	NEAT_OPT_RCVBUF = 1,		/* bytes, as getsockopt reports (doubled, like Linux); 0 = autotune */
	NEAT_OPT_SNDBUF = 2,
	NEAT_OPT_KEEPIDLE_S = 3,
	NEAT_OPT_KEEPINTVL_S = 4,
	NEAT_OPT_KEEPCNT = 5,
	NEAT_OPT_USER_TIMEOUT_MS = 6,
	NEAT_OPT_MAXSEG = 7,
	NEAT_OPT_LINGER_S = 8,		/* valid with NEAT_OPTF_LINGER */
	NEAT_OPT_DEFER_ACCEPT_S = 9,
	NEAT_OPT_TOS = 10,
	NEAT_OPT_TTL = 11,
	NEAT_OPT_SYNCNT = 12,
	NEAT_OPT_LINGER2_S = 13,	/* TCP_LINGER2, +1 so that zero is default */
	NEAT_OPT_CONGESTION = 14,	/* 0 default (cubic), 1 reno, 2 cubic */
	NEAT_OPT_PRIORITY = 15,
};

enum neat_opt_flags {
	NEAT_OPTF_NODELAY = 1,
	NEAT_OPTF_CORK = 2,
	NEAT_OPTF_KEEPALIVE = 4,
	NEAT_OPTF_LINGER = 8,
	NEAT_OPTF_QUICKACK_OFF = 16,
	NEAT_OPTF_OOBINLINE = 64,
	NEAT_OPTF_MORE = 128,		/* last send had MSG_MORE: the tail may wait like under CORK */
	NEAT_OPTF_REUSEPORT = 256,	/* DGRAM: one of a group that shares the port */
	NEAT_OPTF_BROADCAST = 512,	/* for getsockopt() alone */
	NEAT_OPTF_DONTROUTE = 1024,	/* the same: nothing of ours passes a gateway */
	/* Slots of connections only: events, counted modulo 256. Whoever sees a count move acts once. */
	NEAT_OPTF_QUICKACKS = 0x10000,	/* TCP_QUICKACK set: ACKs at once, until it is a conversation again */
	NEAT_OPTF_PUSHES = 0x1000000,	/* what is queued leaves, whatever CORK and MSG_MORE say */
};

struct neat_app {
	struct neat_header h;
	uint32_t app_id;
	/* app, by CAS: when NEAT_MSG_FORKED was sent, which is on its way (ms, odd); neatd clears it before it looks */
	neat_a32 forked;
	neat_a64 sock_hint;		/* app: where the search for a free record starts */
	struct neat_proc procs[NEAT_PROCS_MAX];
	/* Claimed connect() slots of each replica: bit = slot - NEAT_SLOT_APP_FIRST; set by fetch_or. */
	neat_a64 slot_bits[NEAT_REPLICAS_MAX][(NEAT_SLOTS - NEAT_SLOT_APP_FIRST) / 64];
	neat_a64 slot_hint[NEAT_REPLICAS_MAX];
	struct neat_sock socks[NEAT_SOCKS_MAX];
	/* followed at NEAT_APP_FDS by neat_a64 fds[NEAT_PROCS_MAX][NEAT_FDS_MAX] */
};
#define NEAT_APP_FDS 33554432			/* 32 MiB: past struct neat_app */
#define NEAT_APP_SIZE 167772160			/* + 256 * 65536 * 8 = 128 MiB, sparse */

/* ------------------------------------- (application, replica) segment: published half (L4) - */

/*
 * neat_slot_pub.status is one word so that a reader sees a consistent whole and a birth or death
 * commits by one store: [gen 16][errno 16][flags 32].
 *
 * Contract per flag set:
 *  0           FREE: nobody but the allocator of this half of the slots may touch it
 *  CONNECTING  a connect() that nobody has answered yet
 *  LISTENING   subsocket; accept queue live
 *  CONNECTED   data may flow; stays set after EOF, RESET or the local FIN
 *  RX_EOF      peer's FIN is in order: after rx_head there is nothing more
 *  TX_SHUT     our FIN is queued or sent: writes are EPIPE
 *  ERROR       errno holds SO_ERROR until the application consumes it (neat_slot_app.err_taken)
 *  HUP         both directions over: poll reports HUP
 *  DEAD        the replica forgot it; the slot waits for the application's last reference
 *  CLOSED      that reference is gone: the slot waits for the replica to forget it
 *  DATAGRAM    a UDP socket; both rings hold datagrams, each behind a struct neat_dgram
 */
enum neat_slot_flags {
	NEAT_SLOT_LISTENING = 2,
	NEAT_SLOT_CONNECTING = 4,
	NEAT_SLOT_CONNECTED = 8,
	NEAT_SLOT_RX_EOF = 16,
	NEAT_SLOT_TX_SHUT = 32,
	NEAT_SLOT_ERROR = 64,
	NEAT_SLOT_HUP = 128,
	NEAT_SLOT_DEAD = 256,
	NEAT_SLOT_CLOSED = 512,
	NEAT_SLOT_DATAGRAM = 1024,
};

/* In front of each datagram of a ring; rx: where it came from, tx: where it goes. */
struct neat_dgram {
	uint32_t len;		/* bytes of payload that follow */
	uint32_t addr;		/* host order */
	uint16_t port;
	uint16_t pad;
};
enum {
	NEAT_DGRAM_MAX = 65507,		/* 65535 less IPv4 and UDP headers (RFC 768) */
	NEAT_DGRAM_BUF = 212992,	/* default SO_RCVBUF and SO_SNDBUF: net.core.{r,w}mem_default */
};

/*
 * A payload ring word: [base 56][log2 size 8]. The byte at stream offset `off` lives at
 * (off - base) & (size - 1) of the ring's memory; bytering.h has the rules by which the producer
 * alone may change it (L5). Which memory: log2 == NEAT_RING_LOG2_MIN is the slot's half page in
 * the small area; a larger ring of S bytes lies at S in the slot's part of the large area, twice the
 * largest ring, so that no two sizes share a byte.
 */

struct neat_slot_pub {		/* replica writes; the application maps it read-only */
	neat_a64 status;	/* [gen 16][errno 16][flags 32] */
	neat_a64 rx_head;	/* stream offset: bytes readable end here; stored after payload and E.rcv_nxt (W2) */
	neat_a64 rx_ring;	/* ring word of the receive direction */
	neat_a64 tx_una;	/* stream offset: bytes below are acknowledged, their space is free (W4) */
	neat_a64 accept_tail;	/* LISTENING: entries ever pushed */
	neat_a32 tx_limit;	/* bytes the application may have unacknowledged (send buffer autotuning) */
	neat_a32 err_seq;	/* number of errors ever published */
	uint32_t laddr, raddr;	/* host order; valid once status has flags */
	uint16_t lport, rport;
	uint32_t accept_ring;	/* LISTENING: index of its accept ring */
	/* second line: TCP_INFO, refreshed at most every 10 ms and on state changes */
	uint32_t rtt_us, rttvar_us, rto_us;
	uint32_t snd_cwnd, snd_ssthresh, snd_mss, rcv_mss, advmss, pmtu;
	uint32_t unacked, sacked, lost, retrans, total_retrans;
	uint8_t tcp_state;	/* Linux numbering (TCP_ESTABLISHED = 1) */
	uint8_t snd_wscale, rcv_wscale, options;
	uint32_t pad;
};

/* Slots pushed to a listener, popped by CAS on neat_slot_app.accept_head. */
struct neat_accept_ring {	/* replica writes */
	neat_a64 entry[NEAT_ACCEPT_ENTRIES];	/* [gen 32][slot 32] */
};

struct neat_seg_pub {		/* memfd 1 of the pair */
	struct neat_header h;
	neat_a32 epoch;		/* replica: of the incarnation that writes now */
	uint32_t app_id;
	neat_a32 high_born;	/* replica: slots below NEAT_SLOT_APP_FIRST ever used end here */
	neat_a32 high_claimed;	/* replica: slots from NEAT_SLOT_APP_FIRST ever used end here */
	uint64_t pad[2];
	struct neat_slot_pub slots[NEAT_SLOTS];
	struct neat_accept_ring accept[NEAT_LISTENERS_MAX];
};

/* ----------------------------------- (application, replica) segment: application's half ---- */

/*
 * cmd_pend: the application exchanges it to 1 and, if it was 0, queues NEAT_CMD_KICK on the
 * channel of the calling process; the replica stores 0 before it looks at the words (so a change
 * after the look is kicked again).
 * ev_pend: bit per channel; the replica ORs the subscribed bits in and posts an event to the
 * channels whose bit was clear; the library clears its bit before it looks at the words.
 */
struct neat_slot_app {
	neat_a64 tx_tail;	/* app: bytes queued; stored after payload and tx_ring */
	neat_a64 rx_tail;	/* app: bytes consumed */
	neat_a64 tx_ring;	/* app: ring word of the send direction */
	neat_a32 cmd_pend;	/* both, by exchange */
	neat_a32 shut;		/* app: 1 = SHUT_RD, 2 = SHUT_WR; bits are only ever set */
	neat_a64 accept_head;	/* app, by CAS: LISTENING entries taken */
	neat_a64 sub;		/* app: channels that want events */
	neat_a64 ev_pend;	/* both, by fetch_or / fetch_and */
	neat_a32 err_taken;	/* app: neat_slot_pub.err_seq whose errno was delivered */
	neat_a32 optgen;	/* app: +1 after opts changed */
	/* second line */
	neat_a32 tx_lock;	/* app: tid of the writer, 0 = free; recovered when the holder is dead */
	neat_a32 rx_lock;	/* app: tid of the reader */
	/*
	 * [slot's gen 32][neat_sock_handle() of the record that owns it 32]; no record = not taken yet. App, by CAS from
	 * neat_owned(gen, 0), which the replica stores at birth. Two queue entries may name a slot, and the later one be
	 * taken when the slot is another connection's: who sets it has the connection of that generation
	 */
	neat_a64 accepted;
	uint32_t laddr, raddr;	/* app, before NEAT_CMD_CONNECT: host order; laddr 0 = choose. DATAGRAM: bound */
	uint16_t lport, rport;	/* lport 0 = choose. DATAGRAM: rport 0 = not connected; neat_slot_pub's follow */
	struct neat_opts opts;
	neat_a32 asked;		/* app: 1 + generation in which NEAT_CMD_CONNECT or _UDP was last sent. While the status
				 * word shows that one and no flag, the command is still on its way */
	uint32_t pad[8];
};

struct neat_seg_app {		/* memfd 2 of the pair; payload follows at NEAT_SEG_SMALL and NEAT_SEG_LARGE */
	struct neat_header h;
	/* replica, by exchange with the application: not 0 = the replica sleeps and wants a futex wake
	 * on this word (enum neat_asleep). One word for each application, so no two share one (L6). */
	neat_a32 replica_asleep;
	uint32_t pad0[23];
	struct neat_slot_app slots[NEAT_SLOTS];
};
#define NEAT_SEG_SMALL 16777216ull		/* 16 MiB: NEAT_SLOTS pages; first half rx, second half tx */
#define NEAT_SEG_LARGE 285212672ull		/* 272 MiB: for each slot twice the largest ring, rx, then tx */
#define NEAT_SLOT_LARGE 12582912ull		/* 12 MiB */
#define NEAT_SEG_APP_SIZE 824918933504ull	/* LARGE + 65536 * 12 MiB, sparse */

/* -------------------------------------------------- channels of (process, replica) (L1) ---- */

enum neat_cmd {			/* [op 8][arg 8][gen 16][slot 32] */
	NEAT_CMD_KICK = 1,	/* look at tx_tail, rx_tail, shut, optgen of this slot */
	NEAT_CMD_CONNECT = 2,	/* slot's laddr/raddr/lport/rport are filled in; gen is the claimant's, arg the
				 * low bits of the round in neat_channels.door */
	NEAT_CMD_CLOSE = 3,	/* last reference gone: FIN (or RST by RFC 1122 4.2.2.13 if data is unread, or linger 0) */
	NEAT_CMD_ABORT = 4,	/* connect(AF_UNSPEC): RST */
	NEAT_CMD_UDP = 5,	/* slot's laddr/lport name a port that neatd gave this application (registry); gen as above */
};

enum neat_event {		/* [kind 8][0 8][gen 16][slot 32] */
	NEAT_EV_SLOT = 1,	/* look at this slot's words */
};

/* asleep: who must be told how. The waker exchanges it to AWAKE, so each sleep costs one wake. */
enum neat_asleep {
	NEAT_AWAKE = 0,
	NEAT_ASLEEP_FUTEX = 1,	/* a thread waits on this word */
	NEAT_ASLEEP_EVENTFD = 2,/* a thread polls kernel fds and the process's eventfd */
	NEAT_REPLICA_NAPS = 3,	/* replica_asleep only: like FUTEX, and it wakes by itself within 5 ms */
	NEAT_ASLEEP_BOTH = 4,	/* channel only: threads of both kinds */
};

/*
 * Channel n is that of process entry n. Whoever gets the entry goes on where its predecessor stopped:
 * indices run on, what is left in the command ring is still obeyed, old events are skipped.
 */
struct neat_channel {
	/* app writes */
	neat_a64 cmd_tail;
	neat_a64 ev_head;
	neat_a32 cpu;		/* core this process last ran on: a hint for spinning and deferral only */
	uint32_t pad1[11];
	/* replica writes */
	neat_a64 cmd_head;
	neat_a64 ev_tail;
	neat_a32 overflow;	/* +1: events were dropped, the library must look at all its slots */
	neat_a32 eventfd_known;	/* generation of the channel whose eventfd the replica has */
	uint32_t pad2[10];
	/* both, by exchange; enum neat_asleep */
	neat_a32 asleep;
	uint32_t pad3[15];
	neat_a64 cmd[NEAT_CMD_ENTRIES];	/* app writes */
	neat_a64 ev[NEAT_EV_ENTRIES];	/* replica writes */
};

/*
 * May connect() knock? A command of an earlier life of the replica is recognised by the round that
 * the library puts into its `arg`, and dropped: its author saw that life end and went elsewhere (L8).
 */
enum neat_door {
	NEAT_DOOR_NONE = 0,	/* the replica has not mapped this yet */
	NEAT_DOOR_OPEN = 1,
	NEAT_DOOR_CLOSING = 2,	/* wait: it becomes OPEN again or ENDED at once */
	NEAT_DOOR_ENDED = 3,	/* drained: retry elsewhere; or the instance is over (neat_registry.keeper) */
};

/*
 * All channels between an application and a replica: made with the segment, so that a forked child
 * needs nobody's help to open its own. open[n] grows; odd = in use. The process that holds entry n
 * makes it odd and greater (attach, fork, exec) once the words of the channel are in order; who sweeps
 * the entry of a dead process makes it even.
 */
struct neat_channels {
	struct neat_header h;
	uint32_t app_id;
	uint32_t pad0[7];
	/* app writes */
	neat_a64 change;	/* +1 after a word of open[] changed */
	uint64_t pad1[7];
	/* replica writes */
	neat_a32 door;		/* [round 24][enum neat_door 8]; the round is +1 with each life after ENDED */
	uint32_t pad2[15];
	/* app writes */
	neat_a32 open[NEAT_PROCS_MAX];
	struct neat_channel ch[NEAT_PROCS_MAX];
};

/* Hints only (L6): a wrong value costs a useless spin or a useless sleep, never correctness. */
struct neat_replica_status {	/* replica writes; everyone maps it read-only */
	struct neat_header h;
	neat_a32 epoch;
	neat_a32 awake;		/* 0 = asleep in the kernel */
	neat_a32 cpu;
	neat_a32 heartbeat;	/* +1 per some work done; with the thread's CPU time tells a hang from starvation */
	/* awake attached processes last seen on each core */
	uint8_t runnable[NEAT_CPUS_MAX];
	/* counters for `neatsock status` */
	neat_a64 connections, accepted, segments_in, segments_out, bytes_in, bytes_out;
	neat_a64 retransmits, drops, resets, loops, sleeps, wakes;
	neat_a64 work_ns, poll_ns;	/* time with and without something to do */
	/* of each rule of the packet filter, in the order of R_FILTER */
	struct neat_filter_count { neat_a64 packets, bytes; } filter[NEAT_FILTER_MAX];
};

/* ---------------------------------------------------------- queue pair (replica, nic) ------ */

/*
 * Frames by value: a descriptor ring and a fixed buffer for each descriptor, one direction each.
 * Producer fills desc and buffer, then stores tail; consumer reads, then stores head.
 */
enum {
	NEAT_QP_ENTRIES = 512,		/* per direction, power of two */
	NEAT_QP_BUF = 69632,		/* 17 pages: a 64 KiB super-segment with headers; touched on demand */
	NEAT_QP_ROOM = 2,		/* places that a producer may wait for: a frame makes at most so many others for one ring */
};
enum neat_frame_flags {
	NEAT_FRAME_CSUM_OK = 1,		/* rx: checksums verified (or the frame never left memory) */
	NEAT_FRAME_CSUM_PARTIAL = 2,	/* tx: TCP/UDP checksum holds the pseudo-header sum only */
	NEAT_FRAME_GSO_TCP4 = 4,	/* gso_size valid: cut (tx) or merged (rx) TCP/IPv4 segments */
	NEAT_FRAME_LOCAL = 8,		/* between components: from this replica's own lo */
	NEAT_FRAME_IN = 16,		/* between components: on its way to a transport; otherwise, to the wire */
	NEAT_FRAME_RETURNED = 32,	/* rx: a SYN of this replica, not sent: another one has a connection of that tuple */
	/* rx, with RETURNED: another replica's SYN; has this one that tuple? tx, the answer: RETURNED with ASKED if it has,
	 * RETURNED alone if not */
	NEAT_FRAME_ASKED = 64,
};
struct neat_frame_desc {
	uint32_t len;		/* bytes in the buffer */
	uint16_t flags;		/* enum neat_frame_flags */
	uint16_t gso_size;	/* payload bytes of each segment, 0 = none */
	uint16_t l4_offset;	/* of the TCP/UDP header, for PARTIAL */
	uint16_t pad;
	uint32_t epoch;		/* tx: replica's epoch; the nic drops frames of a fenced incarnation (W11) */
};
struct neat_frame_ring {
	neat_a64 tail;		/* producer */
	uint64_t pad0[7];
	neat_a64 head;		/* consumer */
	uint64_t pad1[7];
	neat_a32 asleep;	/* both by exchange: the consumer sleeps on this word (enum neat_asleep) */
	uint32_t pad2[15];
	struct neat_frame_desc desc[NEAT_QP_ENTRIES];
};
struct neat_queue_pair {
	struct neat_header h;
	neat_a32 announced;	/* replica: epoch in which it takes frames; 0 = hold (checklist row 42) */
	uint32_t mtu;		/* nic, once */
	uint8_t mac[8];		/* nic, once */
	uint32_t addr, prefix, gateway;	/* nic, once; host order; addr 0 = no uplink */
	uint8_t rss_key[40];	/* nic, once: the replica picks ports that hash back to it */
	uint8_t reta[128];	/* nic: replica of each RSS bucket */
	/* between components: epoch of the end that is nearer to the wire (`announced`: of the other). Frames of
	 * another epoch are of an incarnation that has ended, and dropped (W11) */
	neat_a32 announced_lower;
	uint32_t pad[6];
	struct neat_frame_ring rx;	/* nic -> replica */
	struct neat_frame_ring tx;	/* replica -> nic */
	/* followed at NEAT_QP_BUFS by the rx buffers, then the tx buffers */
};
#define NEAT_QP_BUFS 32768
#define NEAT_QP_SIZE 71335936ull		/* 32 KiB + 2 * 512 * NEAT_QP_BUF, sparse */

/* What the components of a replica know of IP (contract P6). */
struct neat_snapshot {		/* ip writes; the others map it read-only */
	struct neat_header h;
	neat_a32 version;	/* odd = being written, 0 = never written */
	uint32_t mtu;		/* of the uplink, 0 = none */
	uint32_t addr, prefix, gateway;	/* host order; addr 0 = no uplink */
	uint8_t mac[8];
	uint8_t rss_key[40];
	uint8_t reta[128];
	uint32_t pad;
};

/* ------------------------------------------------------------------ tracked connections ---- */

/*
 * What the nic must still know after it was killed: which replica owns which connection. Written by
 * the nic alone; its successor believes an entry only if everything in it makes sense.
 */
struct neat_flow {
	uint32_t raddr, laddr;	/* host order */
	uint16_t rport, lport;
	uint32_t check;		/* of the four above: a torn or overwritten entry does not match */
	neat_a32 word;		/* [0 8][flags 8][owner 8][state 8]; stored last at birth, 0 = free */
	uint32_t iss;		/* our first sequence number + 1 */
	uint32_t rcv;		/* latest acknowledgement that the replica sent */
	uint32_t seen_s;	/* CLOCK_MONOTONIC: of the last packet, of the SYN while half-open */
};
struct neat_flow_table {
	struct neat_header h;
	neat_a32 used;		/* entries ever used; raised before the entry is filled in */
	neat_a32 heartbeat;	/* +1 with each turn of the nic's loop; the keeper looks (watch.c) */
	uint32_t pad[6];
	/* followed by struct neat_flow[] up to h.size */
};

#ifndef NEAT_CDEF
#define NEAT_ASSERT(e) static_assert(e, #e)
NEAT_ASSERT(sizeof(struct neat_header) == 32);
NEAT_ASSERT(sizeof(struct neat_slot_pub) == 128);
NEAT_ASSERT(offsetof(struct neat_slot_pub, rtt_us) == 64);
NEAT_ASSERT(sizeof(struct neat_slot_app) == 192);
NEAT_ASSERT(offsetof(struct neat_slot_app, tx_lock) == 64);
NEAT_ASSERT(sizeof(struct neat_sock) == 256);
NEAT_ASSERT(sizeof(struct neat_dgram) == 12);
NEAT_ASSERT(offsetof(struct neat_seg_pub, slots) == 64);
NEAT_ASSERT(offsetof(struct neat_seg_app, slots) == 128);
NEAT_ASSERT(sizeof(struct neat_seg_app) <= NEAT_SEG_SMALL);
NEAT_ASSERT(NEAT_SEG_SMALL + (uint64_t)NEAT_SLOTS * NEAT_PAGE == NEAT_SEG_LARGE);
NEAT_ASSERT((2ull << NEAT_RX_LOG2_MAX) + (2ull << NEAT_TX_LOG2_MAX) == NEAT_SLOT_LARGE);
NEAT_ASSERT(NEAT_SEG_LARGE + NEAT_SLOTS * NEAT_SLOT_LARGE == NEAT_SEG_APP_SIZE);
NEAT_ASSERT(sizeof(struct neat_app) <= NEAT_APP_FDS);
NEAT_ASSERT(NEAT_APP_FDS + (uint64_t)NEAT_PROCS_MAX * NEAT_FDS_MAX * 8 == NEAT_APP_SIZE);
NEAT_ASSERT(offsetof(struct neat_channel, cmd_head) == 64);
NEAT_ASSERT(offsetof(struct neat_channel, asleep) == 128);
NEAT_ASSERT(sizeof(struct neat_channel) % 64 == 0);
NEAT_ASSERT(offsetof(struct neat_channels, ch) % 64 == 0);
NEAT_ASSERT(offsetof(struct neat_queue_pair, rx) == 256);
NEAT_ASSERT(sizeof(struct neat_queue_pair) <= NEAT_QP_BUFS);
NEAT_ASSERT(sizeof(struct neat_flow) == 32);
NEAT_ASSERT(sizeof(struct neat_flow_table) == 64);
NEAT_ASSERT(NEAT_QP_BUFS + 2ull * NEAT_QP_ENTRIES * NEAT_QP_BUF == NEAT_QP_SIZE);
#endif

#include "neat_msg.h"

#endif
