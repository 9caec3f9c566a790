/*
 * filter.c - the component that is the packet filter: stack/filter.c between the queues. It sees each
 * packet of the replica and decides who gets it.
 */
#include "component.h"

const char role_program[] = "neat-filter";

static struct frameq *peer(struct stack *s, int which) { return &component_of(s)->queue[which]; }

/* False: no room. What nobody has to wait for is dropped then. */
static bool pass(struct stack *s, int which, const struct pkt *p, bool in)
{
	if (!frameq_put(peer(s, which), p, in))
		return false;
	s->count.frames_out++;
	return true;
}

/* Answers to what was rejected: they meet the rules, too. */
bool ip_output(struct stack *s, struct pkt *p, const struct ip_meta *m)
{
	if (filter_active(s) && !filter_out(s, p, m))
		return true;
	return !ip_push_header(p, m) || pass(s, PEER_IP, p, false);
}

/* ---- in ---- */

/* Whose packet it is: tcp's also when it is an ICMP error, since the sockets are there. */
static int receiver(const struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	const struct wire_icmp *h = pkt_get(p, ihl, sizeof(*h));

	if (m->proto == IP_PROTO_TCP)
		return PEER_TCP;
	if (m->proto == IP_PROTO_UDP)
		return PEER_UDP;
	if (m->proto == IP_PROTO_ICMP && h &&
	    (h->type == ICMP_UNREACHABLE || h->type == ICMP_TIME_EXCEEDED || h->type == ICMP_PARAMETER))
		return PEER_TCP;
	return PEER_IP;
}

static struct frameq *packet_in(struct component *c, struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	struct stack *s = &c->stack;
	int to = receiver(p, m, ihl);
	struct pkt transport = *p;

	/* tcp always takes what comes, so udp takes what it can pass on to tcp; ip may wait for us. */
	if (to != PEER_IP && !frameq_room(peer(s, to)))
		return peer(s, to);
	if (!pkt_pull(&transport, ihl))
		return NULL;
	if (filter_active(s) && !(p->flags & PKT_RETURNED) && !filter_in(s, &transport, m, ihl))
		return NULL;
	if (!pass(s, to, p, true))
		stack_drop(s, DROP_QUEUE_FULL);
	return NULL;
}

/* ---- out ---- */

static struct frameq *packet_out(struct component *c, struct frameq *from, struct pkt *p, const struct ip_meta *m,
				 uint32_t ihl)
{
	struct stack *s = &c->stack;
	struct frameq *ip = peer(s, PEER_IP);
	struct pkt transport = *p;

	if (from != ip && !frameq_room(ip))
		return ip;
	if (!pkt_pull(&transport, ihl))
		return NULL;
	if (filter_active(s) && !(p->flags & PKT_RETURNED) && !filter_out(s, &transport, m))
		return NULL;
	if (!pass(s, PEER_IP, p, false))
		stack_drop(s, DROP_QUEUE_FULL);
	return NULL;
}

/* ---- component ---- */

void role_start(struct component *c)
{
	ip_init(&c->stack, map_anonymous(ip_memory()));
	filter_init(&c->stack, map_anonymous(filter_memory()));
	role_rules(c);
}

void role_rules(struct component *c)
{
	if (filter_set(&c->stack, c->rules.rule, c->rules.count))
		replica_die("filter rules that make no sense (version skew?)");
}

void role_publish(struct component *c)
{
	for (uint32_t i = 0; i < c->stack.filter->n; i++) {
		a64_store(&c->status->filter[i].packets, c->stack.filter->rule[i].packets);
		a64_store(&c->status->filter[i].bytes, c->stack.filter->rule[i].bytes);
	}
}

struct frameq *role_frame(struct component *c, struct frameq *from, struct pkt *p, bool in)
{
	struct ip_meta m;
	uint32_t ihl;

	if (!packet_header(&c->stack, p, &m, &ihl))
		return NULL;
	/* Only ip has packets that travel in. */
	if (in && from == &c->queue[PEER_IP])
		return packet_in(c, p, &m, ihl);
	return packet_out(c, from, p, &m, ihl);
}
