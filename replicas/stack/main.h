/* main.h - what main.c, main_control.c and nicq.c share: one replica process. */
#ifndef NEAT_MAIN_H
#define NEAT_MAIN_H

#include "api.h"
#include "copy.h"
#include "process.h"
#include "turns.h"

/*
 * Life of the process: CONFIG (waits for R_CONFIG) -> REPLAY (stack made; segments, channels and
 * listeners of a predecessor arrive) -> LIVE after R_START (announced to the nic, takes commands).
 */
enum replica_phase { REPLICA_CONFIG, REPLICA_REPLAY, REPLICA_LIVE };

struct replica {
	struct stack stack;
	struct api api;
	enum replica_phase phase;
	bool have_stack;
	bool draining;			/* ends when nothing is left (R_DRAIN) */
	struct stack_config cfg;
	uint32_t spin_us;
	uint64_t instance;
	struct neat_msg_r_filter filter;	/* the latest; it may come before the stack is made */
	uint32_t death;			/* enum neat_death of the predecessor */
	void *arena;
	struct neat_replica_status *status;
	const struct neat_registry *registry;	/* NULL: none came */
	struct neat_queue_pair *queue;
	/* Of a component: its queues, and what ip says (replicas/components/tcp_queue.c). */
	struct frameq *queues;
	struct kept *kept;
	const struct neat_snapshot *snapshot;
	uint32_t snapshot_version;
	int nic_eventfd;
	uint64_t nic_rx_head;
	bool nic_rx_waits;		/* the frame there, for room in the other ring */
	uint64_t counted_us;		/* up to here time was attributed; 0 = slept since */
	bool nic_touched;
	struct turns turns;
	struct neat_copier copier;
	uint64_t random[4];		/* xoshiro256** state, seeded by getrandom */
	/* 1 = a control message waits; set by the SIGIO handler, part of the sleep set. */
	neat_a32 *control_word;
};

/* main_control.c: takes one message from fd 3; false when none was there. Exits when the keeper is gone. */
bool control_receive(struct replica *r);
/* Says that this process runs, and sleeps until R_CONFIG: a standby spends its life here. */
void control_park(struct replica *r);
/* Applications whose last connection ended after R_APP_GONE. */
void control_reap(struct replica *r);

/* To be called when there is nothing to do: a replica that drains and has nothing left ends here. */
void control_drain(struct replica *r);

/* main_queue.c, nicq.c: the replica's end of its queue pair; a component has components/tcp_queue.c instead. */
void nicq_attach(struct replica *r, struct message *msg);	/* R_QUEUE, R_PEER */
extern const char replica_program[];		/* what --version says of us */
void nicq_announce(struct replica *r);		/* from now on the nic may pass frames */
void nicq_arm(struct replica *r, uint32_t asleep);
void nicq_sleep_on(struct replica *r, struct sleep_set *set);
void nicq_wake(struct replica *r);		/* after a batch, if it owes one */
unsigned nicq_receive(struct replica *r, unsigned budget);
bool nicq_pending(const struct replica *r);
bool nicq_keeps(const struct replica *r);	/* frames that only this process knows of */
bool nicq_transmit(void *world, const struct pkt *p);
/* Retires the next received frame unseen. */
void nicq_drop_one(struct replica *r);

/* main.c: struct api_ops.forget */
void forget_process(void *world, struct channel *c);
void ring_process(struct channel *c);

#endif
