/*
 * udp.c - the component that is UDP on the wire (RFC 768): lengths and checksums of what comes in and
 * goes out. Sockets and ports are beside api.c in the tcp component, since a channel's event ring has
 * one producer.
 */
#include "component.h"

const char role_program[] = "neat-udp";

/* Header and checksum of a received datagram; what is cut short or broken is dropped. */
static bool datagram_ok(struct stack *s, struct pkt *p, const struct ip_meta *m)
{
	const struct wire_udp *h = pkt_get(p, 0, sizeof(*h));
	uint32_t len = h ? be16_get(h->len) : 0;

	if (len < sizeof(*h) || len > pkt_total(p)) {
		stack_drop(s, DROP_UDP_SHORT);
		return false;
	}
	pkt_trim(p, len);
	if (h->csum.v && !(p->flags & PKT_CSUM_OK) && !ip_transport_csum_ok(p, m)) {
		stack_drop(s, DROP_UDP_CSUM);
		return false;
	}
	return true;
}

void role_start(struct component *c) { (void)c; }
void role_rules(struct component *c) { (void)c; }
void role_publish(struct component *c) { (void)c; }

struct frameq *role_frame(struct component *c, struct frameq *from, struct pkt *p, bool in)
{
	struct stack *s = &c->stack;
	struct frameq *to = in && from == &c->queue[PEER_FILTER] ? &c->queue[PEER_TCP] : &c->queue[PEER_FILTER];
	struct pkt datagram = *p;
	struct ip_meta m;
	uint32_t ihl;

	if (!frameq_room(to))
		return to;
	if (!packet_header(s, p, &m, &ihl) || m.proto != IP_PROTO_UDP || !pkt_pull(&datagram, ihl))
		return NULL;
	if (in && !datagram_ok(s, &datagram, &m))
		return NULL;
	if (in)
		p->flags |= PKT_CSUM_OK;
	if (!frameq_put(to, p, in))
		stack_drop(s, DROP_QUEUE_FULL);
	else
		s->count.frames_out++;
	return NULL;
}
