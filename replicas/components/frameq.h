/*
 * frameq.h - one end of a queue pair between two processes: frames by value, a ring each way
 * (neat_abi.h, struct neat_queue_pair). Towards the nic they are Ethernet frames, between components
 * of one replica IPv4 packets, whose header is the metadata (contract P6).
 */
#ifndef NEAT_FRAMEQ_H
#define NEAT_FRAMEQ_H

#include "ip.h"

enum {
	FRAMEQ_ENTRIES = 128,	/* of NEAT_QP_ENTRIES, between components: what is in flight stays small */
};

struct frameq {
	struct neat_queue_pair *pair;
	struct neat_frame_ring *in, *out;
	uint8_t *in_frames, *out_frames;
	const neat_a32 *their_epoch;	/* NULL: the nic, which has none */
	uint32_t entries, headroom, epoch;
	int doorbell;			/* eventfd of the other end, -1 = it sleeps on out->asleep only */
	uint64_t head;
	uint64_t fenced;		/* frames of an incarnation that has ended */
	bool owes_wake;			/* the other end has something to look at: frames, or room */
	bool inherited;			/* not woken yet by us: a predecessor may have taken out->asleep, and died */
	const struct frameq *waits_for;	/* the frame at head stays until there is room in that one */
	uint32_t sent;			/* of the frame at head, which leaves in fragments: struct pkt */
	uint16_t sent_id;
};

/* The end with `upper` is further from the wire. Heads go on where our predecessor left them. */
void frameq_open(struct frameq *q, struct neat_queue_pair *pair, bool upper, uint32_t epoch);
void frameq_open_nic(struct frameq *q, struct neat_queue_pair *pair, int doorbell, uint32_t epoch);
static inline bool frameq_is_open(const struct frameq *q) { return q->pair != NULL; }

/* The oldest frame. False: there is none. `in`: it travels towards the transports. */
NEAT_CHECKED bool frameq_take(struct frameq *q, struct pkt *p, bool *in);
/* After the effects of the frame that frameq_take() gave: its memory belongs to the other end again. */
void frameq_retire(struct frameq *q);
bool frameq_room(const struct frameq *q);	/* for NEAT_QP_ROOM frames */
/* A copy of p. False: no room. */
NEAT_CHECKED bool frameq_put(struct frameq *q, const struct pkt *p, bool in);
/* Wakes the other end if that is owed. */
void frameq_wake(struct frameq *q);
/* There is a frame, and nothing that it waits for. */
bool frameq_pending(const struct frameq *q);
/* There is a frame that somebody further from the wire sent. */
bool frameq_waits_outward(const struct frameq *q);
/* The header of a packet that another component sent, the packet cut to the length it says. False = drop it. */
NEAT_CHECKED bool packet_header(struct stack *s, struct pkt *p, struct ip_meta *m, uint32_t *ihl);

#endif
