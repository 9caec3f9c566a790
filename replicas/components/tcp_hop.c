/*
 * tcp_hop.c - the rooms below TCP that the tcp component does not have: packets go to the filter's
 * queue, and there is no `lo` here (ip has it).
 */
#include "ip.h"
#include "link.h"
#include "lo.h"

bool ip_output(struct stack *s, struct pkt *p, const struct ip_meta *m)
{
	struct pkt out = *p;

	if (!ip_push_header(&out, m)) {
		stack_drop(s, DROP_SHORT);
		return true;
	}
	return s->ops.tx(s->ops.world, &out);
}

bool lo_deliver(struct stack *s)
{
	(void)s;
	return false;
}

bool lo_waits(const struct stack *s)
{
	(void)s;
	return false;
}

size_t link_memory(void) { return 0; }
size_t link_arena(void) { return 0; }
void link_init(struct stack *s, void *memory, void *arena, bool fresh) { (void)s, (void)memory, (void)arena, (void)fresh; }
size_t lo_memory(void) { return 0; }
void lo_init(struct stack *s, void *memory) { (void)s, (void)memory; }
