/*
 * ip_addr.c - what the configuration says of an address: on our link, from where to send to it, how
 * much at once. ip_is_local() is in stack.h.
 */
#include "ip.h"

size_t ip_memory(void) { return sizeof(struct ip_state); }
void ip_init(struct stack *s, void *memory)
{
	s->ip = memory;
	for (unsigned i = 0; i < IP_ID_COUNTERS; i++)
		s->ip->id[i] = (uint16_t)s->ops.random(s->ops.world);
	s->ip->icmp_tokens = 50;
}

bool ip_on_link(const struct stack *s, uint32_t addr)
{
	return s->cfg.addr && ((addr ^ s->cfg.addr) & ip_netmask(s->cfg.prefix)) == 0;
}

uint32_t ip_source_for(const struct stack *s, uint32_t daddr)
{
	/* Linux's local table: 127.0.0.0/8 has source 127.0.0.1. */
	if (ip_is_loopback(daddr))
		return 0x7f000001;
	if (ip_is_local(s, daddr))
		return daddr;
	if (ip_on_link(s, daddr) || (s->cfg.addr && s->cfg.gateway))
		return s->cfg.addr;
	return 0;
}

uint32_t ip_mtu_for(const struct stack *s, uint32_t daddr)
{
	return ip_is_local(s, daddr) ? s->cfg.lo_mtu : s->cfg.mtu;
}
