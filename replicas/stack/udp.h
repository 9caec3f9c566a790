/*
 * udp.h - a UDP socket as the stack sees it. All of it is class D: a successor makes it again from the
 * slot's words (api_udp.c), so nothing of UDP lies in the arena.
 */
#ifndef NEAT_UDP_H
#define NEAT_UDP_H

#include "stack.h"

enum {
	UDP_SOCKS_MAX = 32768,
	UDP_BUCKETS = 4096,
	UDP_BATCH = 64,		/* datagrams of one socket before others have their turn */
};

/*
 * Stream offsets count headers and payload. rx_tail and tx_tail are the largest values of the
 * application's words that we believed: monotone, never further than a ring from our own.
 */
struct udp_sock {
	struct sockref ref;
	uint32_t laddr, raddr;		/* host order; laddr 0 = any */
	uint16_t lport, rport;		/* rport 0 = not connected */
	uint64_t rx_head, rx_tail, rx_ring;
	uint64_t tx_una, tx_tail;
	uint32_t rcvbuf, sndbuf;
	uint32_t sent;			/* of the datagram at tx_una, which leaves in fragments: struct pkt */
	uint16_t sent_id, sent_csum;
	uint32_t optgen;
	uint32_t next;			/* in its bucket, or of the free ones; index + 1 */
	uint32_t resume_next;		/* index + 1 */
	uint8_t ttl, tos;
	bool shared;			/* SO_REUSEPORT: one of its group is picked by hash */
	bool closed;			/* the application is gone: send what is queued, then end */
	bool on_resume;
};

struct udp {
	uint32_t free;			/* index + 1 */
	uint32_t high;			/* sockets ever used end here */
	uint32_t resume_head, resume_tail;
	bool no_room;			/* the nic took no more */
	uint32_t bucket[UDP_BUCKETS];	/* index + 1; by port, latest first */
	uint32_t used;
	struct udp_sock sock[UDP_SOCKS_MAX];
};

size_t udp_memory(void);
void udp_init(struct stack *s, void *memory);

#endif
