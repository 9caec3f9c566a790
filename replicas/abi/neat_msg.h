/*
 * neat_msg.h - the control messages: between applications, neatd, keeper, replicas and NIC.
 *
 * The second half of the contract; include neat_abi.h, which includes this and says how it is read.
 *
 * Datagrams on AF_UNIX SOCK_SEQPACKET, fds by SCM_RIGHTS, one struct each, little-endian natural
 * layout. A message with a wrong magic, version, length or an unknown type gets NEAT_MSG_ERROR and
 * the connection is closed. `seq` of a reply is the request's.
 */
#ifndef NEAT_MSG_H
#define NEAT_MSG_H

enum neat_msg {
	/* application -> neatd */
	NEAT_MSG_ATTACH = 1,	/* neat_msg_attach; reply ATTACHED with fds {registry, app}, then nreplicas
				 * times SEGMENT with fds {seg_pub, seg_app, channels, status} */
	NEAT_MSG_BIND = 2,	/* neat_msg_bind; reply RESULT: status 0 or -errno, value = port. UDP: + fd of the
				 * kernel twin, which holds the port already; value = home replica. TCP with an fd:
				 * a kernel socket that is to be bound where the socket is already */
	NEAT_MSG_LISTEN = 3,	/* neat_msg_listen; reply LISTENING when every active replica acknowledged */
	NEAT_MSG_UNBIND = 4,	/* neat_msg_bind; no reply: the socket that held the port is gone or, with
				 * NEAT_SOCKF_PORT_LOCK in `flags`, listens no more */
	NEAT_MSG_CHILD = 5,	/* neat_msg_attach + fd of a fresh socketpair end: a forked child's own connection,
				 * for its requests. Over any connection of the application; no reply */
	NEAT_MSG_EVENTFD = 6,	/* neat_msg_eventfd + fd: the process's eventfd, forwarded to every replica
				 * (R_CHANNEL). Over any connection of the application; no reply */
	NEAT_MSG_CLI = 7,	/* JSON text after the header: status, down, scale ...; reply CLI_REPLY */
	NEAT_MSG_EXITED = 8,	/* neat_msg_result, value = proc index: entry may be swept now (clean exit) */
	NEAT_MSG_FORKED = 9,	/* header only, no reply: look for processes that hold sockets but did not attach */
	/* neatd -> application */
	NEAT_MSG_ATTACHED = 32,
	NEAT_MSG_SEGMENT = 33,
	NEAT_MSG_RESULT = 34,
	NEAT_MSG_LISTENING = 35,
	NEAT_MSG_CLI_REPLY = 36,
	NEAT_MSG_ERROR = 37,	/* neat_msg_error */
	/* neatd -> keeper -> replica; kept by the keeper and replayed to a successor (P1) */
	NEAT_MSG_R_CONFIG = 64,	/* neat_msg_r_config + fds {arena, status, registry[, snapshot]}: always the first */
	NEAT_MSG_R_QUEUE = 65,	/* fd: queue pair */
	NEAT_MSG_R_SEGMENT = 66,/* neat_msg_r_app + fds {seg_pub, seg_app, channels} */
	NEAT_MSG_R_CHANNEL = 67,/* neat_msg_r_channel + fd: the process's eventfd */
	NEAT_MSG_R_LISTEN = 68,	/* neat_msg_r_listen; answered by R_LISTENING */
	NEAT_MSG_R_START = 69,	/* end of the replay: announce yourself */
	/* not kept: a successor to which they are not replayed finds nothing that they could end */
	NEAT_MSG_R_UNLISTEN = 70,	/* neat_msg_r_listen */
	NEAT_MSG_R_CHANNEL_GONE = 71,	/* neat_msg_r_app: a process died, look at neat_channels.open */
	/* kept until the answer, replayed behind R_START; done twice they do no harm */
	NEAT_MSG_R_APP_GONE = 72,	/* neat_msg_r_app: close every connection of it as a last close would;
					 * answered by R_APP_DONE, with which R_SEGMENT goes from the store, too */
	NEAT_MSG_R_RELEASE = 73,	/* neat_msg_r_listen.slot/gen: nobody holds this connection any more, if it
					 * is `sock` (neat_sock_handle) that accepted it; answered by R_RELEASED */
	NEAT_MSG_R_DRAIN = 74,	/* neat_msg_result, value 1: end when nothing is left (kept and replayed);
				 * 0: go on, answered by R_READY. To a component: end when nothing is on its
				 * way to the wire */
	NEAT_MSG_R_NUDGE = 75,	/* header: raise `overflow` and wake everybody, registry.scaled has changed */
	NEAT_MSG_R_FILTER = 76,	/* neat_msg_r_filter, kept: all rules; answered by R_FILTERED */
	NEAT_MSG_R_PEER = 77,	/* neat_msg_r_peer + fd: queue pair of two components; kept */
	/* neatd -> keeper -> nic; CONFIG, QUEUE (with the replica's current epoch) and ACTIVE are kept and
	 * replayed; taken in order, so an answer to N_STATS says that all before it is in force */
	NEAT_MSG_N_CONFIG = 80,	/* neat_msg_n_config [+ fds: TAP queues, or one SEQPACKET end of a wire]: always
				 * the first; again = new wire parameters. Reply N_READY */
	NEAT_MSG_N_QUEUE = 81,	/* neat_msg_n_queue + fds {queue pair, eventfd}: reply N_READY when the fields of
				 * the queue pair are filled in, after which R_QUEUE may go out. No fds: queue gone */
	NEAT_MSG_N_FENCE = 82,	/* neat_msg_n_queue: drop frames of older epochs, hold until this one announces;
				 * epoch 0: that replica has ended */
	NEAT_MSG_N_CAPTURE = 83,/* neat_msg_n_capture + fd of a file: pcapng of a queue; no fd = stop */
	NEAT_MSG_N_ACTIVE = 84,	/* neat_msg_n_queue, replica = mask: replicas that get new connections */
	NEAT_MSG_N_STATS = 85,	/* header; reply neat_msg_n_stats of the same type */
	NEAT_MSG_N_FLOWS = 86,	/* header + fd of a neat_flow_table, before the first N_QUEUE; kept and replayed, so
				 * that a successor goes on with the connections in it */
	NEAT_MSG_N_PORT = 87,	/* neat_msg_n_port: exact filter of a UDP port; kept and replayed */
	/* replica -> keeper -> neatd */
	NEAT_MSG_R_LISTENING = 96,	/* neat_msg_r_listen with status and slot */
	NEAT_MSG_R_READY = 97,		/* neat_msg_r_config: this epoch is announced */
	NEAT_MSG_R_APP_DONE = 98,	/* neat_msg_r_app: nothing of that application is left here */
	NEAT_MSG_R_PARKED = 99,		/* neat_msg_result, value = neat_abi_fingerprint(): running, waits for
					 * R_CONFIG; for the keeper only */
	NEAT_MSG_R_DRAINED = 100,	/* neat_msg_r_config: nothing is left, this process ends; it is not replaced */
	NEAT_MSG_R_RELEASED = 105,	/* the R_RELEASE that was carried out */
	NEAT_MSG_R_FILTERED = 104,	/* header, seq of R_FILTER: these rules are in force */
	/* nic -> keeper -> neatd */
	NEAT_MSG_N_READY = 112,		/* neat_msg_n_queue; replica ~0 = answer to N_CONFIG */
	/* neatd -> keeper */
	NEAT_MSG_K_SPAWN = 128,		/* neat_msg_keeper: start role/index if not running */
	NEAT_MSG_K_STORE = 129,		/* neat_msg_keeper + inner message + its fds: keep under key, forward */
	NEAT_MSG_K_SEND = 130,		/* neat_msg_keeper + inner message + its fds: forward only */
	NEAT_MSG_K_DROP = 131,		/* neat_msg_keeper: forget key */
	NEAT_MSG_K_STOP = 132,		/* whole instance ends */
	NEAT_MSG_K_UPGRADE = 133,	/* neat_msg_keeper (key: number of the request) + header and text: replace each
					 * replica by one started from this path, none = the same path, opened again;
					 * answer K_UPGRADED, also if a predecessor sent this number */
	/* keeper -> neatd */
	NEAT_MSG_K_DIED = 160,		/* neat_msg_keeper: pid, status (as waitpid) */
	NEAT_MSG_K_STARTED = 161,	/* neat_msg_keeper: pid, epoch */
	NEAT_MSG_K_FROM = 162,		/* neat_msg_keeper + inner message from role/index */
	NEAT_MSG_K_STORED = 163,	/* neat_msg_keeper + stored message + fds: handed to a new neatd, in order */
	NEAT_MSG_K_SYNCED = 164,	/* neat_msg_keeper: the whole store was handed over; from neatd: echoed */
	NEAT_MSG_K_HEALTH = 165,	/* neat_msg_keeper + neat_msg_health of a replica, after every change */
	NEAT_MSG_K_UPGRADED = 166,	/* neat_msg_keeper (key: of the request; status 0 or -errno) + neat_msg_error for
					 * a person */
	/* neatd's own state, kept by the keeper under role NEATD: JSON text after the header, + fds */
	NEAT_MSG_N_STATE = 192,
};

enum { NEAT_MSG_MAX = 8192, NEAT_MSG_FDS_MAX = 8 };

struct neat_msg_header {
	uint32_t magic;		/* NEAT_ABI_MAGIC */
	uint16_t version;	/* NEAT_ABI_VERSION */
	uint16_t type;		/* enum neat_msg */
	uint32_t len;		/* of the whole message, this header included */
	uint32_t seq;
};
struct neat_msg_error {
	struct neat_msg_header h;
	int32_t status;		/* -errno */
	uint32_t pad;
	char text[240];		/* NUL-terminated, for a person */
};
struct neat_msg_result {
	struct neat_msg_header h;
	int32_t status;		/* 0 or -errno */
	uint32_t value;
};
struct neat_msg_attach {
	struct neat_msg_header h;
	uint32_t pid;		/* checked against SO_PEERCRED / SCM_CREDENTIALS */
	uint32_t app_id;	/* 0 = new application; else rejoin (exec, fork) */
	uint64_t instance;	/* with app_id: what we were attached to */
	uint32_t proc;		/* with app_id: index of our entry in neat_app.procs, or ~0 */
	uint32_t abi_size;	/* sizeof(struct neat_seg_pub) + ...: neat_abi_fingerprint() */
	char comm[16];		/* for people */
};
struct neat_msg_attached {
	struct neat_msg_header h;
	uint32_t app_id;
	uint32_t proc;
	uint32_t replicas;
	uint32_t spin_us;	/* spin budget, see docs/architecture.md "Waiting" */
	uint64_t instance;
};
struct neat_msg_segment {
	struct neat_msg_header h;
	uint32_t replica;
	uint32_t epoch;
};
struct neat_msg_eventfd {
	struct neat_msg_header h;
	uint32_t proc;		/* index of the process entry; the sender must be its pid */
	uint32_t gen;		/* neat_channels.open */
};
struct neat_msg_bind {
	struct neat_msg_header h;
	uint32_t sock;		/* record index + generation: who holds the port */
	uint32_t sock_gen;
	uint32_t addr;		/* host order */
	uint16_t port;		/* 0 = choose */
	uint16_t proto;
	uint32_t flags;		/* NEAT_SOCKF_REUSEADDR, NEAT_SOCKF_REUSEPORT */
	uint32_t home;		/* UDP: wanted home replica + 1, 0 = any */
};
struct neat_msg_listen {
	struct neat_msg_header h;
	uint32_t sock, sock_gen;
	uint32_t addr;
	uint16_t port;
	uint16_t pad;
	uint32_t backlog;
	uint32_t flags;
	struct neat_opts opts;	/* inherited by accepted connections */
};
struct neat_msg_listening {
	struct neat_msg_header h;
	int32_t status;
	uint32_t port;
	struct { uint32_t slot, gen; } sub[NEAT_REPLICAS_MAX];
};
enum neat_recovery {
	NEAT_STATELESS = 0,	/* paper 6.3.6: connections of a failed replica are reset */
	NEAT_STATEFUL = 1,	/* a successor adopts the arena */
};
/* Why a predecessor ended; only the last two say anything about its program or its memory. */
enum neat_death {
	NEAT_DEATH_NONE = 0,	/* there was none */
	NEAT_DEATH_OUTSIDE = 1,	/* SIGKILL and the like from outside, a planned replacement */
	NEAT_DEATH_FAULT = 2,	/* SEGV, BUS, ILL, FPE, ABRT, SYS, exit status not 0 */
	NEAT_DEATH_HANG = 3,	/* no heartbeat; ended by the keeper */
};
struct neat_msg_r_config {
	struct neat_msg_header h;
	uint32_t index;
	uint32_t epoch;		/* set by the keeper, +1 per start */
	uint32_t spin_us;
	uint32_t batch;
	uint32_t syn_backlog;
	uint32_t time_wait_ms;
	uint32_t connections_max;
	uint32_t app_sockets;	/* slots that one application may have here; 0 = no limit of its own */
	uint32_t app_buffers_kib;	/* by which buffers of one application may grow */
	uint32_t mode;		/* enum neat_recovery */
	uint32_t adopt;		/* set by the keeper: the arena holds a predecessor's connections, take them over */
	uint32_t death;		/* set by the keeper: enum neat_death of the predecessor */
	uint64_t instance;
	uint8_t secret[32];	/* ISN (RFC 6528), port choice (RFC 6056), hash: same for every epoch */
};
struct neat_msg_r_app {
	struct neat_msg_header h;
	uint32_t app_id;
	uint32_t pad;
};
struct neat_msg_r_channel {
	struct neat_msg_header h;
	uint32_t app_id;
	uint32_t number;	/* of the channel: index of the process entry */
	uint32_t gen;		/* neat_channels.open; another one there by now: too late */
	uint32_t pad;
};
struct neat_msg_r_listen {
	struct neat_msg_header h;
	uint32_t app_id;
	uint32_t addr;
	uint16_t port;
	uint16_t pad;
	uint32_t backlog;
	uint32_t slot;		/* 0 = choose; else the one this listener had before */
	uint32_t gen;
	int32_t status;		/* -errno of the answer; in the keeper's store what was answered last */
	uint32_t flags;		/* enum neat_sock_flags */
	uint32_t sock;		/* neatd's own handle, echoed */
	struct neat_opts opts;
};
struct neat_msg_r_peer {
	struct neat_msg_header h;
	uint32_t role;		/* enum neat_role of the other end */
	uint32_t upper;		/* 1: the receiver of this message is the end further from the wire */
};
/*
 * Packet filter: the first rule that matches decides, none lets the packet pass. Stateless: replies
 * of a connection are packets like any other. Each replica has the list of all, so a rule's number is the same in all.
 */
enum neat_filter_dir { NEAT_FILTER_IN = 1, NEAT_FILTER_OUT = 2 };	/* as the replica sees it; a mask */
enum neat_filter_action {
	NEAT_FILTER_PASS = 0,
	NEAT_FILTER_DROP = 1,
	NEAT_FILTER_REJECT = 2,	/* as Linux: RST for TCP, else ICMP port unreachable */
};
struct neat_filter_rule {	/* addresses and ports in host order */
	uint32_t saddr, daddr;
	uint8_t sprefix, dprefix;	/* 0..32; 0 = any address */
	uint8_t dir;			/* mask of enum neat_filter_dir */
	uint8_t proto;			/* 0 = any */
	uint16_t sport[2], dport[2];	/* first and last; 0..65535 = any, else TCP and UDP only */
	uint8_t action;			/* enum neat_filter_action */
	uint8_t pad;
	uint16_t replicas;		/* mask of those that obey it; 0 = all */
};
struct neat_msg_r_filter {
	struct neat_msg_header h;
	uint32_t count;
	uint32_t command;	/* neatd: random number of the command that made this list */
	struct neat_filter_rule rule[NEAT_FILTER_MAX];
};
enum neat_nic_backend { NEAT_NIC_NONE = 0, NEAT_NIC_TAP = 1, NEAT_NIC_WIRE = 2 };
/* Simulated wire, what we send; the other end has its own. Probabilities in frames per million. */
struct neat_wire {
	uint64_t seed;
	uint64_t rate_bps;	/* 0 = unlimited */
	uint32_t delay_us;
	uint32_t jitter_us;	/* added to the delay, uniform in [0, this]; keeps the order */
	uint32_t loss_ppm, reorder_ppm, duplicate_ppm, corrupt_ppm;
};
struct neat_msg_n_config {
	struct neat_msg_header h;
	uint32_t backend;	/* enum neat_nic_backend */
	uint32_t replicas;	/* indices 0..n-1 */
	uint32_t addr, prefix, gateway, mtu;	/* host order */
	uint8_t mac[8];
	uint8_t rss_key[40];	/* random, secret, same for every incarnation of the nic */
	uint32_t flows_max;	/* tracked connections; 0 = default */
	uint32_t active;	/* mask of replicas that get new connections; 0 = all */
	char ifname[16];	/* TAP without fds: device that the nic opens itself */
	struct neat_wire wire;
};
struct neat_msg_n_queue {
	struct neat_msg_header h;
	uint32_t replica;
	uint32_t epoch;
};
enum { NEAT_PORT_NO_HOME = 0xff };
struct neat_msg_n_port {
	struct neat_msg_header h;
	uint32_t replica;	/* home, or NEAT_PORT_NO_HOME: the filter goes */
	uint16_t port;
	uint16_t pad;
};
enum neat_capture_dir { NEAT_CAPTURE_RX = 1, NEAT_CAPTURE_TX = 2 };	/* as the replica sees it */
struct neat_msg_n_capture {
	struct neat_msg_header h;
	uint32_t replica;
	uint32_t dir;		/* mask of enum neat_capture_dir; 0 = both */
};
enum neat_nic_stat {
	NEAT_NIC_RX_FRAMES = 0,		/* from the uplink */
	NEAT_NIC_TX_FRAMES = 1,		/* to the uplink */
	NEAT_NIC_RX_DELIVERED = 2,	/* put into queues; an ARP reply counts once for each replica */
	NEAT_NIC_RX_NOT_OURS = 3,	/* other address or protocol: dropped */
	NEAT_NIC_RX_MALFORMED = 4,
	NEAT_NIC_RX_FULL = 5,		/* replica's ring full, or no such queue: dropped */
	NEAT_NIC_RX_HELD_DROPPED = 6,	/* held for a replica that did not announce itself in time */
	NEAT_NIC_TX_FENCED = 7,		/* of an older epoch: dropped */
	NEAT_NIC_TX_MALFORMED = 8,	/* descriptor or source address makes no sense: dropped */
	NEAT_NIC_TX_FAILED = 9,		/* the uplink took it not: dropped */
	NEAT_NIC_FLOWS = 10,		/* tracked now */
	NEAT_NIC_FLOWS_HALF = 11,	/* of these, half-open */
	NEAT_NIC_FLOWS_EVICTED = 12,	/* half-open ones that made room */
	NEAT_NIC_FLOWS_REFUSED = 13,	/* table full of connections: steered by hash only */
	NEAT_NIC_WIRE_LOST = 14,
	NEAT_NIC_WIRE_DUPLICATED = 15,
	NEAT_NIC_WIRE_REORDERED = 16,
	NEAT_NIC_WIRE_CORRUPTED = 17,
	NEAT_NIC_WIRE_FULL = 18,	/* queue in front of the wire overflowed */
	NEAT_NIC_WAKES = 19,		/* of replicas */
	NEAT_NIC_LOOPS = 20,
	NEAT_NIC_RX_FRAGMENTS = 21,
	NEAT_NIC_RX_REASSEMBLED = 22,	/* datagrams made of them */
	NEAT_NIC_TX_RETURNED = 23,	/* SYNs whose tuple is another replica's: given back to who sent them */
	NEAT_NIC_STATS = 24,
};
struct neat_msg_n_stats {
	struct neat_msg_header h;
	uint64_t count[NEAT_NIC_STATS];
};
enum neat_role {
	NEAT_ROLE_NEATD = 0,
	NEAT_ROLE_NIC = 1,
	NEAT_ROLE_REPLICA = 2,	/* all of it, or of a replica with components the one that has the sockets: tcp */
	NEAT_ROLE_STANDBY = 3,
	NEAT_ROLE_IP = 4,	/* index: of the replica that it is a component of */
	NEAT_ROLE_UDP = 5,
	NEAT_ROLE_FILTER = 6,
};
struct neat_msg_keeper {
	struct neat_msg_header h;
	uint32_t role;		/* enum neat_role */
	uint32_t index;
	uint32_t pid;
	int32_t status;
	uint32_t epoch;
	uint32_t pad;
	uint64_t key;		/* of a stored message; (type << 48 | app << 16 | number) by convention */
};

enum neat_health_flags {
	NEAT_HEALTH_ADOPTS = 1,		/* was told to take over its predecessor's connections */
	NEAT_HEALTH_FELL_BACK = 2,	/* was told not to: too many faults in too short a time */
	NEAT_HEALTH_QUARANTINE = 4,	/* runs the quarantine build (docs/decisions.md) */
	NEAT_HEALTH_PLANNED = 8,	/* its predecessor was replaced: upgrade, rerandomize, end of a quarantine */
};
struct neat_msg_health {	/* what the keeper counts; NEAT_ROLE_REPLICA only */
	struct neat_msg_header h;
	uint32_t restarts;
	uint32_t death;		/* enum neat_death of the predecessor */
	int32_t status;		/* its end, as waitpid says it */
	uint32_t recovery_us;	/* its death to R_READY of the successor; 0 = not yet */
	uint32_t strikes;	/* faults and hangs within the keeper's window */
	uint32_t flags;		/* enum neat_health_flags */
	uint32_t generation;	/* +1 with each upgrade of the program */
	uint32_t pad;
	uint64_t strikes_end_ms;/* CLOCK_MONOTONIC: the window is empty then if nothing more happens */
};

#ifndef NEAT_CDEF
NEAT_ASSERT(sizeof(struct neat_filter_rule) == 24);
NEAT_ASSERT(NEAT_REPLICAS_MAX <= 16);	/* neat_filter_rule.replicas */
NEAT_ASSERT(sizeof(struct neat_msg_r_filter) + 64 <= NEAT_MSG_MAX);	/* it travels inside a neat_msg_keeper */
#endif

#endif
