/* tcp_queue_lib.c - the tcp component's way out, and the filter's end of it; see test_tcp_queue.py. */
#include "frameq.h"
#include "main.h"
#include "tcp.h"
#include <stdlib.h>
#include <sys/mman.h>

struct way {
	struct replica replica;
	struct tcp tcp;
	struct neat_queue_pair *pair;
	struct frameq filter;
};

/* ---- what the tests drive ---- */
struct way *way_new(void);
void way_free(struct way *w);
int way_send(struct way *w, uint32_t number, uint32_t payload);
int64_t way_take(struct way *w);
int way_pending(struct way *w);
void way_receive(struct way *w);
/* ---- end ---- */

/* ---- what tcp_queue.c calls of the process around it ---- */

bool udp_blocked(const struct stack *s) { return !s; }
_Noreturn void replica_die(const char *what) { (void)what, abort(); }

void *map_anonymous(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

void *map_object(int fd, uint32_t object, size_t size)
{
	(void)fd, (void)object;
	return map_anonymous(size);
}

/* ---- the tests' side ---- */

struct way *way_new(void)
{
	struct way *w = map_anonymous(sizeof(*w));
	struct message msg = { .nfds = 1, .fds = { -1 } };
	struct neat_msg_r_peer peer = { .h = { .type = NEAT_MSG_R_PEER }, .role = NEAT_ROLE_FILTER, .upper = 1 };

	w->replica.stack.tcp = &w->tcp;
	w->replica.have_stack = true;
	memcpy(msg.u.bytes, &peer, sizeof(peer));
	nicq_attach(&w->replica, &msg);
	w->pair = w->replica.queues[0].pair;
	frameq_open(&w->filter, w->pair, false, 0);
	return w;
}

void way_free(struct way *w)
{
	munmap(w->pair, NEAT_QP_SIZE);
	munmap(w, sizeof(*w));
}

int way_send(struct way *w, uint32_t number, uint32_t payload)
{
	_Alignas(16) uint8_t room[PKT_HEADROOM + 64] = { 0 };
	static const uint8_t bytes[1024];
	struct pkt p = { .buf = room, .data = room + PKT_HEADROOM, .len = 40, .flags = PKT_LOCAL | PKT_CSUM_OK };

	((struct wire_ip *)(void *)p.data)->proto = IP_PROTO_TCP;
	memcpy(p.data + 20, &number, sizeof(number));
	p.frag[0].p = bytes;
	p.frag[0].len = p.frag_len = payload;
	return nicq_transmit(&w->replica, &p);
}

/* The number of the oldest packet, -1 if there is none, -2 if it is not what was sent. */
int64_t way_take(struct way *w)
{
	uint32_t number;
	struct pkt p;
	bool in;

	if (!frameq_take(&w->filter, &p, &in))
		return -1;
	if (p.len < 40 || in || p.flags != (PKT_LOCAL | PKT_CSUM_OK))
		return -2;
	memcpy(&number, p.data + 20, sizeof(number));
	frameq_retire(&w->filter);
	return number;
}

int way_pending(struct way *w) { return nicq_pending(&w->replica); }
void way_receive(struct way *w) { nicq_receive(&w->replica, 64); }
