/*
 * ip.c - the component that is IP, ICMP echo, ARP and this replica's `lo`: stack/{ip,icmp,link}.c with
 * queues towards the nic and the filter.
 */
#include "component.h"
#include "link.h"

const char role_program[] = "neat-ip";

static bool to_nic(void *world, const struct pkt *p)
{
	struct component *c = world;
	struct frameq *nic = &c->queue[PEER_NIC];

	if (!frameq_is_open(nic))
		return true;	/* no uplink: the frame is lost like on a dead wire */
	if (!frameq_put(nic, p, false))
		return false;
	c->stack.count.frames_out++;
	return true;
}

/* Room was looked for before the frame was taken: role_frame(). */
static void to_filter(struct stack *s, const struct pkt *p, bool in)
{
	if (!frameq_put(&component_of(s)->queue[PEER_FILTER], p, in))
		stack_drop(s, DROP_QUEUE_FULL);
}

/* ---- the hops of ip.c, here queues (stack/ip_hop.c has them as calls) ---- */

void ip_received(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	const struct pkt whole = pkt_unpulled(p, ihl);

	(void)m;
	to_filter(s, &whole, true);
}

/* Of ICMP's own: replies and errors. */
bool ip_output(struct stack *s, struct pkt *p, const struct ip_meta *m)
{
	if (ip_push_header(p, m))
		to_filter(s, p, false);
	return true;
}

/* By value: the packet goes back in at once, into the queue towards the filter. */
bool lo_output(struct stack *s, const struct pkt *p)
{
	struct pkt in = *p;

	in.flags = PKT_LOCAL | PKT_CSUM_OK;
	in.gso_size = 0;
	s->count.lo_frames++;
	ip_input(s, &in);
	return true;
}

/* The journal is the arena's, and that is tcp's. */
void stack_frame_begins(struct stack *s, bool lo) { (void)s, (void)lo; }

/* The filter sends only echo requests and unknown protocols back to us. */
void tcp_input(struct stack *s, struct pkt *p, const struct ip_meta *m)
{
	(void)p, (void)m;
	stack_drop(s, DROP_IP_PROTO);
}

void tcp_returned(struct stack *s, const struct pkt *p, const struct ip_meta *m)
{
	(void)p, (void)m;
	stack_drop(s, DROP_IP_PROTO);
}

void tcp_asked(struct stack *s, const struct pkt *p, const struct ip_meta *m)
{
	(void)p, (void)m;
	stack_drop(s, DROP_IP_PROTO);
}

void udp_input(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	(void)p, (void)m, (void)ihl;
	stack_drop(s, DROP_IP_PROTO);
}

void tcp_icmp(struct stack *s, const struct flow_key *k, uint32_t seq, uint8_t type, uint8_t code, uint32_t mtu)
{
	(void)k, (void)seq, (void)type, (void)code, (void)mtu;
	stack_drop(s, DROP_ICMP);
}

void udp_icmp(struct stack *s, const struct flow_key *k, uint8_t type, uint8_t code)
{
	(void)k, (void)type, (void)code;
	stack_drop(s, DROP_ICMP);
}

/* ---- component ---- */

/* What tcp must know of IP. An odd version: it is being written. */
static void publish_snapshot(struct component *c)
{
	struct neat_snapshot *p = c->snapshot;
	const struct stack_config *cfg = &c->stack.cfg;
	uint32_t version = a32_relaxed(&p->version) | 1;

	a32_store(&p->version, version);
	neat_fence();	/* the odd version before the fields */
	p->mtu = cfg->mtu;
	p->addr = cfg->addr;
	p->prefix = cfg->prefix;
	p->gateway = cfg->gateway;
	memcpy(p->mac, cfg->mac, sizeof(cfg->mac));
	memcpy(p->rss_key, cfg->rss_key, sizeof(p->rss_key));
	if (cfg->reta)
		memcpy(p->reta, cfg->reta, sizeof(p->reta));
	a32_release(&p->version, version + 1);
}

static void read_link(struct component *c)
{
	const struct neat_queue_pair *q = c->queue[PEER_NIC].pair;
	struct stack_config *cfg = &c->stack.cfg;

	if (!q)
		return;
	cfg->mtu = (uint16_t)q->mtu;
	cfg->addr = q->addr;
	cfg->prefix = q->prefix;
	cfg->gateway = q->gateway;
	memcpy(cfg->mac, q->mac, sizeof(cfg->mac));
	memcpy(cfg->rss_key, q->rss_key, sizeof(cfg->rss_key));
	cfg->reta = q->reta;
}

void role_start(struct component *c)
{
	if (!c->snapshot)
		replica_die("R_CONFIG without the page that ip fills in");
	c->stack.ops.tx = to_nic;
	read_link(c);
	ip_init(&c->stack, map_anonymous(ip_memory()));
	link_init(&c->stack, map_anonymous(link_memory()), map_anonymous(link_arena()), true);
	publish_snapshot(c);
}

void role_rules(struct component *c) { (void)c; }
void role_publish(struct component *c)
{
	const uint8_t *reta = c->stack.cfg.reta;

	/* The nic moves buckets when replicas come and go. */
	if (reta && memcmp(reta, c->snapshot->reta, sizeof(c->snapshot->reta)) != 0)
		memcpy(c->snapshot->reta, reta, sizeof(c->snapshot->reta));
}

struct frameq *role_frame(struct component *c, struct frameq *from, struct pkt *p, bool in)
{
	struct frameq *filter = &c->queue[PEER_FILTER];
	struct stack *s = &c->stack;
	struct ip_meta m;
	uint32_t ihl;

	/* Whatever it is, it makes at most one packet for the filter: a packet in, or an answer. */
	if (!frameq_room(filter))
		return filter;
	if (from == &c->queue[PEER_NIC])
		return link_input(s, p) ? NULL : from;
	if (!packet_header(s, p, &m, &ihl))
		return NULL;
	if (!in)
		return ip_send(s, p) ? NULL : &c->queue[PEER_NIC];
	if (pkt_pull(p, ihl))
		ip_deliver(s, p, &m, ihl);
	return NULL;
}
