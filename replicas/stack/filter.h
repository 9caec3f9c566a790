/* filter.h - the packet filter's rules and verdicts (filter.c). */
#ifndef NEAT_FILTER_H
#define NEAT_FILTER_H

#include "stack.h"

/* A rule made ready for comparing: fields of the packet AND mask == value, ports in [first, last]. */
struct filter_rule {
	uint32_t saddr, smask, daddr, dmask;
	uint16_t sport[2], dport[2];
	uint8_t dir, proto, action, ports;	/* dir: 0 = other replicas' rule; ports: the rule looks at them */
	uint32_t pad;
	uint64_t packets, bytes;
};

struct filter {
	uint32_t n;
	uint32_t pad;
	struct filter_rule rule[NEAT_FILTER_MAX];
};

size_t filter_memory(void);
void filter_init(struct stack *s, void *memory);	/* zeroed memory */
/* -EINVAL, and the old rules stay, when one of them makes no sense. Counters start at zero. */
NEAT_CHECKED int filter_set(struct stack *s, const struct neat_filter_rule *rules, uint32_t n);

/* No rules: the only cost of the filter. */
static inline bool filter_active(const struct stack *s) { return s->filter->n != 0; }
/* True: go on with it. False: it was dropped, or rejected and answered. p as in ip_received(), ip_output(). */
NEAT_CHECKED bool filter_in(struct stack *s, const struct pkt *p, const struct ip_meta *m, uint32_t ihl);
NEAT_CHECKED bool filter_out(struct stack *s, const struct pkt *p, const struct ip_meta *m);

#endif
