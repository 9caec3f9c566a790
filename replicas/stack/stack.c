/*
 * stack.c - putting a stack together: who gets which memory, names of the drop counters.
 */
#include "stack.h"
#include "filter.h"
#include "flow.h"
#include "ip.h"
#include "link.h"
#include "lo.h"
#include "tcp.h"
#include "udp.h"
#include <errno.h>

static size_t aligned(size_t n) { return (n + 63) & ~(size_t)63; }

size_t stack_memory(const struct stack_config *cfg)
{
	return aligned(link_memory()) + aligned(lo_memory()) + aligned(ip_memory()) +
	       aligned(filter_memory()) + aligned(flow_memory(cfg)) + aligned(udp_memory()) +
	       aligned(tcp_memory(cfg));
}

size_t stack_arena(const struct stack_config *cfg) { return tcp_arena(cfg) + link_arena(); }

int stack_init(struct stack *s, const struct stack_config *cfg, const struct stack_ops *ops, void *memory,
	       void *arena, bool fresh, uint64_t now_us)
{
	uint8_t *m = memory;
	void *api = s->api;

	*s = (struct stack){ .cfg = *cfg, .ops = *ops, .now_us = now_us, .api = api };
	timer_wheel_init(&s->wheel, now_us);
	link_init(s, m, (uint8_t *)arena + tcp_arena(cfg), fresh);
	m += aligned(link_memory());
	lo_init(s, m);
	m += aligned(lo_memory());
	ip_init(s, m);
	m += aligned(ip_memory());
	filter_init(s, m);
	m += aligned(filter_memory());
	flow_init(s, m);
	m += aligned(flow_memory(cfg));
	udp_init(s, m);
	m += aligned(udp_memory());
	return tcp_init(s, m, arena, fresh);
}

struct memory_span stack_scattered(const struct stack *s)
{
	struct memory_span m = flow_span(s);

	if (a32_relaxed(&s->tcp->arena->high_tcb) < m.len / NEAT_PAGE)
		m.len = 0;
	return m;
}

void stack_frame_begins(struct stack *s, bool lo) { unit_begin(s, lo ? UNIT_LO : UNIT_FRAME, NULL); }

void stack_datagram_begins(struct stack *s, uint32_t app_id, uint32_t slot)
{
	a64_store(&s->tcp->arena->datagram, (uint64_t)app_id << 32 | slot);
	unit_begin(s, UNIT_DATAGRAM, NULL);
}

void stack_units_done(struct stack *s) { unit_begin(s, UNIT_NONE, NULL); }

uint64_t stack_deadline(const struct stack *s) { return timer_next(&s->wheel); }

void stack_timers(struct stack *s, unsigned budget) { timer_run(&s->wheel, s->now_us, budget, s); }

const char *stack_drop_name(enum stack_drop d)
{
	static const char *const name[] = {
#define X(n) #n,
		STACK_DROPS(X)
#undef X
	};

	return (unsigned)d < DROP_COUNT ? name[d] : "?";
}
