/*
 * component.h - one component of a replica that is several processes (paper 6.3.8, figure 6.4):
 *
 *      application                  each arrow is one queue pair of exactly two processes, frames
 *          |                        are IPv4 packets by value (frameq.h)
 *         tcp <------> udp
 *          ^            ^           in:  nic -> ip -> filter -> tcp, or -> udp -> tcp
 *          |            |           out: tcp -> filter -> ip, or tcp -> udp -> filter -> ip
 *          v            v           lo:  ip sends a packet for one of its own addresses back in
 *         filter <------+
 *          ^                        tcp keeps sockets, arena and applications. The others keep
 *          v                        nothing that a successor needs: rules come from the keeper's
 *         ip <--> nic               store, neighbours are asked for again.
 *
 * Nobody waits for somebody who waits for him: tcp always takes what comes in, so filter and udp can
 * pass packets in, so ip can; what comes back to the queue it came from is dropped when there is no room.
 */
#ifndef NEAT_COMPONENT_H
#define NEAT_COMPONENT_H

#include "filter.h"
#include "frameq.h"
#include "process.h"

enum { PEER_NIC, PEER_IP, PEER_FILTER, PEER_UDP, PEER_TCP, PEERS };

struct component {
	struct stack stack;		/* only the rooms that are linked into this program */
	struct frameq queue[PEERS];	/* only those that this component has */
	struct neat_replica_status *status;
	struct neat_msg_r_filter rules;
	struct neat_snapshot *snapshot;	/* ip only */
	neat_a32 *control_word;
	uint32_t index, epoch, spin_us, batch, death;
	bool live;
	bool ending;			/* ends when nothing is on its way to the wire (R_DRAIN) */
	uint64_t counted_us;		/* up to here time was attributed; 0 = slept since */
	uint64_t random[4];
};

/* ---- what each component gives to component.c ---- */
extern const char role_program[];		/* what --version says of us */
/* Before the first frame: everything of R_CONFIG, queues and rules is there. */
void role_start(struct component *c);
void role_rules(struct component *c);		/* R_FILTER came after the start */
void role_publish(struct component *c);		/* counters of its own, into c->status */
/* Handles one frame. NULL: done with it. Else the queue in which there is no room: it is shown again. */
struct frameq *role_frame(struct component *c, struct frameq *from, struct pkt *p, bool in);

/* ---- for them ---- */
static inline struct component *component_of(struct stack *s) { return s->ops.world; }

#endif
