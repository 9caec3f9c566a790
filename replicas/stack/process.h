/*
 * process.h - what each process of a replica needs of the operating system: its control socket, a
 * clock, memory, and how to sleep and wake. Shared by the replica that is one process and by the
 * components of one that is several (replicas/components).
 */
#ifndef NEAT_PROCESS_H
#define NEAT_PROCESS_H

#include "ring.h"
#include <linux/futex.h>

enum { CONTROL_FD = 3, SLEEP_WORDS = 128 /* FUTEX_WAITV_MAX */ };

_Noreturn void replica_die(const char *what);
uint64_t replica_clock_us(void);	/* CLOCK_MONOTONIC */
/* Runs there now, if it may; where it may run stays as it is: the scheduler and the operator have the last word. */
void move_to_core(uint32_t cpu);

/* ---- control socket ---- */
struct message {
	union {
		struct neat_msg_header h;
		uint8_t bytes[NEAT_MSG_MAX];
	} u;
	int fds[NEAT_MSG_FDS_MAX];	/* who wants to keep one stores -1 in its place */
	int nfds;
};
/* The word that a message sets to 1 by SIGIO; part of the sleep set. Who reads clears it first. */
neat_a32 *control_setup(void);
/*
 * One message, header checked, least size by `size` (0 = unknown type): 1. 0: none was there. -1: the keeper is
 * gone, or has hung up: the instance ends.
 */
int message_receive(struct message *m, size_t (*size)(uint16_t type));
void message_done(struct message *m);	/* closes its descriptors: mappings hold the memory */
/* To a keeper that is gone: nothing, and the next message_receive() says so. */
void message_send(uint16_t type, void *message, size_t len, uint32_t seq);

/* ---- memory; they end the process rather than fail ---- */
void *map_anonymous(size_t size);
/* All of it is about to be used: its pages at once, large ones where the kernel has them. */
void memory_now(void *at, size_t size);
void *map_shared(int fd, size_t size);
void *map_object(int fd, uint32_t object, size_t size);
/* Of an object that replicas write. With a predecessor (epoch > 1), a wrong header is put right: it was overwritten. */
struct owner { uint32_t index, epoch; uint64_t instance; };
void *map_written(int fd, uint32_t object, size_t size, struct owner of);
const void *map_read_only(int fd, uint32_t object, size_t size);

/* ---- sleeping and waking ---- */
/* Words to sleep on; with more than fit, naps of SLEEP_NAP_US. */
enum { SLEEP_NAP_US = 1000 };
struct sleep_set {
	struct futex_waitv w[SLEEP_WORDS];
	unsigned n;
	bool overflow;
};
void sleep_add(struct sleep_set *s, neat_a32 *word, uint32_t expect);
/* Until one of the words is woken or is not what was expected, a signal comes, or it is `until_us`. */
void sleep_wait(const struct sleep_set *s, uint64_t until_us);
void futex_wake(neat_a32 *word);
void eventfd_ring(int fd);
/*
 * The eventfd of a program, which shares its open file description: that it does not block and is not full are
 * the program's to change, at any time. False: it blocked, and SIGALRM ended that after RING_TICK_US.
 */
NEAT_CHECKED bool eventfd_ring_foreign(int fd);
/* After a publication: wakes who sleeps on this word, by the eventfd if it polls that. */
void wake_sleeper(neat_a32 *asleep, int eventfd);
/* The same in every way there is, whatever the word says: a predecessor may have taken it, and died before the call. */
void wake_anyway(neat_a32 *asleep, int eventfd);

/* ---- randomness: xoshiro256** (Blackman, Vigna), seeded once for each process ---- */
void random_seed(uint64_t state[4]);
uint64_t random_next(uint64_t state[4]);

#endif
