/*
 * asks.h - SYNs that wait for a replica to say whether it has a connection of their tuple.
 *
 * Pure. The nic sees most connections end, but not all: a replica that starts stateless, a peer that vanished. So
 * before it refuses a tuple it asks the owner that it remembers. The SYN that waits is a copy of ours: who answers says
 * yes or no, and nothing of what is sent or given back is from it. No timer: the SYN that comes again is one.
 */
#ifndef NEAT_ASKS_H
#define NEAT_ASKS_H

#include "frame.h"
#include "queue.h"

enum {
	ASKS = 16,
	ASK_US = 500000,	/* who lives has answered by then; a SYN is sent again after a second (RFC 6298) */
};

enum ask_state {
	ASK_REFUSED = 0,	/* no place, too long, asked by another one, or nobody answered in time */
	ASK_NEW,		/* the owner is to be asked */
	ASK_WAITS,		/* it was asked already */
};

struct ask {
	bool open;
	uint8_t by, of;			/* replicas: whose SYN it is; who is asked */
	struct frame_tuple t;
	uint64_t at_us;
	struct frame_meta m;
	uint8_t bytes[FRAME_LOOK];
};

struct asks { struct ask ask[ASKS]; };

/* The SYN `bytes` (m->len of them) of replica `by` is to wait for an answer of `of`. */
NEAT_CHECKED enum ask_state asks_open(struct asks *a, const struct frame_tuple *t, uint8_t by, uint8_t of,
				      const uint8_t *bytes, const struct frame_meta *m, uint64_t now_us);
/* `of` has answered: the question, closed, valid until the next asks_open(). NULL: there is none. */
const struct ask *asks_close(struct asks *a, const struct frame_tuple *t, uint8_t of);

#endif
