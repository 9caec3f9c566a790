/*
 * ip_hop.c - the hops of a packet between the transports, the filter and IP, in a replica that is
 * one process: calls. replicas/components has the same hops as queues (contract P6).
 */
#include "filter.h"
#include "ip.h"

void ip_received(struct stack *s, struct pkt *p, const struct ip_meta *m, uint32_t ihl)
{
	if (filter_active(s) && !(p->flags & PKT_RETURNED) && !filter_in(s, p, m, ihl))
		return;
	ip_deliver(s, p, m, ihl);
}

bool ip_output(struct stack *s, struct pkt *p, const struct ip_meta *m)
{
	if (filter_active(s) && !(p->flags & PKT_RETURNED) && !filter_out(s, p, m))
		return true;
	if (!ip_push_header(p, m)) {
		stack_drop(s, DROP_SHORT);
		return true;
	}
	return ip_send(s, p);
}
