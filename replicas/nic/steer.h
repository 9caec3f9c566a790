/*
 * steer.h - which replicas a received frame goes to: hash and indirection table for what is new,
 * tracking filters for what is known, ARP by its own rules.
 *
 * Pure.
 */
#ifndef NEAT_STEER_H
#define NEAT_STEER_H

#include "filters.h"
#include "neat_abi.h"
#include "toeplitz.h"

struct steer {
	struct rss_table rss;
	uint8_t reta[RSS_RETA];
	uint8_t mac[6];
	uint16_t pad;
	uint32_t addr;		/* ours, host order */
	uint32_t active;	/* mask of replicas that get new connections */
	struct flows *flows;	/* there before the first queue */
	uint8_t udp_home[65536];	/* exact filters: home of each UDP port (L9), NEAT_PORT_NO_HOME = none */
};

/* Replicas that take a frame; none: `why` names the counter. */
struct steer_to {
	uint32_t mask;
	enum neat_nic_stat why;
};

void steer_init(struct steer *s, const uint8_t key[RSS_KEY], const uint8_t mac[6], uint32_t addr);
/* Depends on the mask only, so that a restarted nic computes the same; moves few buckets. */
void steer_reta(uint8_t reta[RSS_RETA], uint32_t active);
void steer_active(struct steer *s, uint32_t active);
uint32_t steer_hash(const struct steer *s, const struct frame *f);
/* `queues`: replicas that have a queue; `ready`: those of them that announced themselves. */
struct steer_to steer_rx(struct steer *s, const uint8_t *bytes, const struct frame *f, uint32_t queues,
			 uint32_t ready, uint64_t now_us);
/* Sent to us, by both addresses. */
bool steer_ours(const struct steer *s, const uint8_t *bytes, const struct frame *f);
enum steer_sent {
	STEER_DENIED = 0,	/* not from our addresses */
	STEER_SEND,
	STEER_RETURN,		/* a SYN, and the tuple is another replica's: the answer would go there */
};
/* A replica sends this frame. */
enum steer_sent steer_tx(struct steer *s, const uint8_t *bytes, const struct frame *f, uint32_t replica,
			 uint64_t now_us);

/* arp.c */
struct steer_to arp_rx(const struct steer *s, const struct frame *f, uint32_t queues, uint32_t ready);
bool arp_tx(const struct steer *s, const uint8_t *bytes, const struct frame *f);

/* The n-th (from 0) set bit of a mask that has more than n. */
static inline uint32_t mask_nth(uint32_t mask, uint32_t n)
{
	while (n--)
		mask &= mask - 1;
	return (uint32_t)__builtin_ctz(mask);
}

#endif
