/*
 * tcp_queue.c - stack/nicq.c of the tcp component: packets come from and go to the filter and udp
 * components, and what TCP must know of IP is a page that the ip component writes.
 */
#include "frameq.h"
#include "main.h"
#include "tcp.h"

const char replica_program[] = "neat-tcp";

enum { TO_FILTER, TO_UDP, QUEUES };

/*
 * Packets without payload that found the queue to the filter full, in order, before all that comes later. Payload
 * has a place where it waits, the sender's ring; a SYN, an answer to one or a reset would wait for a timer of
 * a second, or be lost. As many as `lo` of a replica that is one process holds. Soft state (W14), as the queue is.
 */
enum { KEPT_ENTRIES = 16384, KEPT_LEN = 140 };

struct kept {
	uint64_t head, tail;
	struct kept_packet { uint16_t len, flags; uint8_t bytes[KEPT_LEN]; } packet[KEPT_ENTRIES];
};

/* A torn or unfinished read is repeated at the next look; false until there is something to read. */
static bool read_snapshot(struct replica *r)
{
	const struct neat_snapshot *p = r->snapshot;
	struct stack_config cfg = r->cfg;
	uint32_t version = p ? a32_acquire(&p->version) : 0;

	if (!version || version & 1 || version == r->snapshot_version)
		return false;
	cfg.mtu = (uint16_t)p->mtu;
	cfg.addr = p->addr;
	cfg.prefix = p->prefix;
	cfg.gateway = p->gateway;
	memcpy(cfg.mac, p->mac, sizeof(cfg.mac));
	memcpy(cfg.rss_key, p->rss_key, sizeof(cfg.rss_key));
	cfg.reta = p->addr ? p->reta : NULL;
	neat_fence();	/* the fields before the second look at the version */
	if (a32_relaxed(&p->version) != version)
		return false;
	r->cfg = cfg;
	r->snapshot_version = version;
	return true;
}

void nicq_attach(struct replica *r, struct message *msg)
{
	const struct neat_msg_r_peer *m = (void *)msg->u.bytes;

	if (m->h.type != NEAT_MSG_R_PEER || msg->nfds < 1 || (m->role != NEAT_ROLE_FILTER && m->role != NEAT_ROLE_UDP))
		replica_die("this component has queues to filter and udp only");
	if (!r->queues) {
		r->queues = map_anonymous(QUEUES * sizeof(*r->queues));
		r->kept = map_anonymous(sizeof(*r->kept));
	}
	frameq_open(&r->queues[m->role == NEAT_ROLE_UDP ? TO_UDP : TO_FILTER],
		    map_object(msg->fds[0], NEAT_OBJ_QUEUE_PAIR, NEAT_QP_SIZE), m->upper, r->cfg.epoch);
	read_snapshot(r);
}

/* The others are told by what frameq_open() wrote; they never hold anything back. */
void nicq_announce(struct replica *r) { (void)r; }

static bool keeps(const struct kept *k) { return k->head != k->tail; }

bool nicq_keeps(const struct replica *r) { return r->kept && keeps(r->kept); }

static bool unblocked(const struct replica *r)
{
	if (!r->have_stack)
		return false;
	return ((r->stack.tcp->resume_head || keeps(r->kept)) && frameq_room(&r->queues[TO_FILTER])) ||
	       (udp_blocked(&r->stack) && frameq_room(&r->queues[TO_UDP]));
}

bool nicq_pending(const struct replica *r)
{
	for (int i = 0; r->queues && i < QUEUES; i++)
		if (frameq_pending(&r->queues[i]))
			return true;
	return r->queues && unblocked(r);
}

static unsigned receive(struct replica *r, struct frameq *q, unsigned budget)
{
	unsigned n = 0;
	struct pkt p;
	bool in;

	for (; n < budget && frameq_take(q, &p, &in); n++) {
		struct ip_meta m;
		uint32_t ihl;

		stack_frame_begins(&r->stack, false);
		r->stack.count.frames_in++;
		if (packet_header(&r->stack, &p, &m, &ihl) && pkt_pull(&p, ihl))
			ip_deliver(&r->stack, &p, &m, ihl);
		/* Retired only after the packet's effects are in the control block (W3). */
		frameq_retire(q);
	}
	return n;
}

/* As much of what is kept as fits now. */
static void send_kept(struct replica *r)
{
	struct kept *k = r->kept;

	while (keeps(k)) {
		struct kept_packet *e = &k->packet[k->head & (KEPT_ENTRIES - 1)];
		const struct pkt p = { .data = e->bytes, .buf = e->bytes, .len = e->len, .flags = e->flags };

		if (!frameq_put(&r->queues[TO_FILTER], &p, false))
			return;
		r->stack.count.frames_out++;
		k->head++;
	}
}

static bool keep(struct kept *k, const struct pkt *p)
{
	struct kept_packet *e = &k->packet[k->tail & (KEPT_ENTRIES - 1)];

	if (p->frag_len || p->len > KEPT_LEN || k->tail - k->head == KEPT_ENTRIES)
		return false;
	e->len = (uint16_t)p->len;
	e->flags = p->flags;
	memcpy(e->bytes, p->data, p->len);
	k->tail++;
	return true;
}

unsigned nicq_receive(struct replica *r, unsigned budget)
{
	unsigned n = 0;

	if (read_snapshot(r))
		r->stack.cfg = r->cfg;
	if (r->queues)
		send_kept(r);
	for (int i = 0; r->queues && i < QUEUES; i++)
		if (frameq_is_open(&r->queues[i]))
			n += receive(r, &r->queues[i], budget);
	return n;
}

void nicq_drop_one(struct replica *r)
{
	struct pkt p;
	bool in;

	for (int i = 0; r->queues && i < QUEUES; i++)
		if (frameq_is_open(&r->queues[i]) && frameq_take(&r->queues[i], &p, &in))
			frameq_retire(&r->queues[i]);
}

/* p->data at an IP header of ours. */
bool nicq_transmit(void *world, const struct pkt *p)
{
	struct replica *r = world;
	const struct wire_ip *h = (const struct wire_ip *)(const void *)p->data;
	struct frameq *q = r->queues ? &r->queues[h->proto == IP_PROTO_UDP ? TO_UDP : TO_FILTER] : NULL;

	if (!q || !frameq_is_open(q))
		return true;
	if (q == &r->queues[TO_FILTER])
		send_kept(r);
	if ((q == &r->queues[TO_FILTER] && keeps(r->kept)) || !frameq_put(q, p, false))
		return q == &r->queues[TO_FILTER] && keep(r->kept, p);
	r->stack.count.frames_out++;
	return true;
}

/* ---- waiting ---- */

void nicq_arm(struct replica *r, uint32_t asleep)
{
	for (int i = 0; r->queues && i < QUEUES; i++)
		if (frameq_is_open(&r->queues[i]))
			a32_store(&r->queues[i].in->asleep, asleep);
}

void nicq_sleep_on(struct replica *r, struct sleep_set *set)
{
	for (int i = 0; r->queues && i < QUEUES; i++)
		if (frameq_is_open(&r->queues[i]))
			sleep_add(set, &r->queues[i].in->asleep, NEAT_ASLEEP_FUTEX);
}

void nicq_wake(struct replica *r)
{
	for (int i = 0; r->queues && i < QUEUES; i++)
		frameq_wake(&r->queues[i]);
}
