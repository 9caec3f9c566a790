/*
 * filters.h - tracking filters: which replica owns a TCP connection, learnt from its own packets
 * (paper 6.4), so that a change of the indirection table moves no connection.
 *
 * Pure; memory comes from the caller and is bounded. Times are microseconds of any monotone clock.
 */
#ifndef NEAT_FILTERS_H
#define NEAT_FILTERS_H

#include "frame.h"
#include "neat_abi.h"
#include <stddef.h>

/*
 *  HALF     a SYN was seen; evicted oldest first when room is needed
 *  OPEN     the peer answered our sequence number, so it is no spoofed SYN; never evicted by others
 *  CLOSING  FIN both ways, or RST: stays a while for TIME_WAIT
 */
enum flow_state { FLOW_FREE = 0, FLOW_HALF, FLOW_OPEN, FLOW_CLOSING, FLOW_STATES };

enum { FLOW_NONE = 0xff };	/* no replica */

enum {	/* seconds without a packet */
	FLOW_HALF_S = 60,
	FLOW_OPEN_S = 8000,	/* more than tcp_keepalive_time + 9 * tcp_keepalive_intvl, tcp(7): 7875 */
	FLOW_CLOSING_S = 120,	/* twice Linux's TIME_WAIT */
};

struct flows;

/* Bytes that `max` connections take: of our own, and of the table that outlives us. */
size_t flows_memory(uint32_t max);
size_t flows_table(uint32_t max);
/*
 * `memory`: zeroed, flows_memory(max) bytes; `table`: flows_table(max) bytes, zeroed behind the header
 * or left by a predecessor, whose connections are taken over. `key`: 16 secret bytes.
 */
struct flows *flows_init(void *memory, struct neat_flow_table *table, uint32_t max, const uint8_t key[16],
			 uint64_t now_us);

/*
 * A TCP frame came in. Returns its owner; without one that is `hashed`, the indirection table's
 * choice. `active`: replicas that get new connections.
 */
uint8_t flows_rx(struct flows *f, const struct frame *p, uint8_t hashed, uint32_t active, uint64_t now_us);
/* A replica sends this TCP frame. False: a SYN for a connection that another replica has or opens. */
bool flows_tx(struct flows *f, const struct frame *p, uint8_t replica, uint64_t now_us);
/* Owner of a tuple or FLOW_NONE; changes nothing. */
uint8_t flows_owner(const struct flows *f, const struct frame_tuple *t);
enum flow_state flows_state(const struct flows *f, const struct frame_tuple *t);
/* The replica says that it has no such connection. */
void flows_disown(struct flows *f, const struct frame_tuple *t, uint8_t replica);
/* The replica is no more: forget its connections. */
void flows_purge(struct flows *f, uint8_t replica);

struct flows_count { uint32_t half, open, closing; uint64_t evicted, refused; };
struct flows_count flows_count(const struct flows *f);

#endif
