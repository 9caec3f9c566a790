/* nicq_lib.c - a queue pair with its real ends: the nic's, and a replica's or an ip component's; see test_nicq.py. */
#include "frameq.h"
#include "main.h"
#include "queue.h"
#include "tcp.h"
#include <sys/mman.h>

struct link {
	struct neat_queue_pair *pair;
	struct queue nic;
	struct frameq ip;
	struct replica replica;
	struct tcp tcp;
	bool refuses;
};

/* ---- what the tests drive ---- */
struct link *link_new(void);
void link_free(struct link *l);
void link_nic(struct link *l);
void link_fence(struct link *l);
void link_replica(struct link *l);
int link_send(struct link *l);
uint32_t link_sent(struct link *l);
int link_deliver(struct link *l);
uint64_t link_received(struct link *l);
int link_pending(struct link *l);
void link_overwrite(struct link *l, int rx, int head, uint64_t value);
void link_ip(struct link *l);
int link_ip_put(struct link *l);
int link_ip_room(struct link *l);
int link_take(struct link *l);
void link_sleep(struct link *l);
int link_wakes(struct link *l);
void link_refuse(struct link *l, int on);
/* ---- end ---- */

/* ---- what nicq.c and main_queue.c call of the process around them ---- */

bool udp_blocked(const struct stack *s) { return s != NULL; }
bool link_input(struct stack *s, struct pkt *p)
{
	(void)p;
	return !((struct link *)((char *)s - offsetof(struct link, replica.stack)))->refuses;
}

static void *map_anonymous_of(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static struct link *attaching;

void *map_written(int fd, uint32_t object, size_t size, struct owner owner)
{
	(void)fd, (void)object, (void)size, (void)owner;
	return attaching->pair;
}

/* ---- the tests' side ---- */

struct link *link_new(void)
{
	struct link *l = map_anonymous_of(sizeof(*l));

	l->pair = map_anonymous_of(NEAT_QP_SIZE);
	return l;
}

void link_free(struct link *l)
{
	munmap(l->pair, NEAT_QP_SIZE);
	munmap(l, sizeof(*l));
}

void link_nic(struct link *l) { queue_attach(&l->nic, l->pair, 1); }

void link_fence(struct link *l) { queue_fence(&l->nic, 1); }

/* Or its successor. */
void link_replica(struct link *l)
{
	struct message msg = { .nfds = 1, .fds = { -1 } };

	msg.u.h.type = NEAT_MSG_R_QUEUE;
	memset(&l->replica, 0, sizeof(l->replica));
	l->replica.stack.tcp = &l->tcp;
	l->replica.cfg.epoch = 1;
	l->replica.phase = REPLICA_LIVE;
	attaching = l;
	nicq_attach(&l->replica, &msg);
	l->replica.have_stack = true;
}

int link_send(struct link *l)
{
	uint8_t bytes[60] = { 0 };
	const struct pkt p = { .buf = bytes, .data = bytes, .len = sizeof(bytes) };

	return nicq_transmit(&l->replica, &p);
}

/* Frames that the nic got now. */
uint32_t link_sent(struct link *l)
{
	uint32_t n = 0;

	for (; queue_pending(&l->nic); n++)
		queue_done(&l->nic);
	return n;
}

int link_deliver(struct link *l)
{
	const uint8_t bytes[60] = { 0 };
	const struct frame_meta m = { .len = sizeof(bytes) };

	return queue_put(&l->nic, bytes, &m, 0);
}

uint64_t link_received(struct link *l) { return nicq_receive(&l->replica, NEAT_QP_ENTRIES); }
int link_pending(struct link *l) { return nicq_pending(&l->replica); }

void link_overwrite(struct link *l, int rx, int head, uint64_t value)
{
	struct neat_frame_ring *ring = rx ? &l->pair->rx : &l->pair->tx;

	a64_store(head ? &ring->head : &ring->tail, value);
}

void link_ip(struct link *l) { frameq_open_nic(&l->ip, l->pair, -1, 1); }

int link_ip_put(struct link *l)
{
	uint8_t bytes[60] = { 0 };
	const struct pkt p = { .buf = bytes, .data = bytes, .len = sizeof(bytes) };

	return frameq_put(&l->ip, &p, false);
}

int link_ip_room(struct link *l) { return frameq_room(&l->ip); }

int link_take(struct link *l)
{
	if (!queue_pending(&l->nic))
		return 0;
	queue_done(&l->nic);
	return 1;
}

void link_sleep(struct link *l) { a32_store(&l->pair->rx.asleep, NEAT_ASLEEP_FUTEX); }
int link_wakes(struct link *l) { return queue_must_wake(&l->nic); }

/* The stack finds no room for what a frame sets free. */
void link_refuse(struct link *l, int on) { l->refuses = on; }
