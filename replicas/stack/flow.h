/* flow.h - life of flow.c's tables; the look-ups are in stack.h. */
#ifndef NEAT_FLOW_H
#define NEAT_FLOW_H

#include "stack.h"

size_t flow_memory(const struct stack_config *cfg);
void flow_init(struct stack *s, void *memory);	/* zeroed memory */
/* The table that flow_insert() scatters over. */
struct memory_span flow_span(const struct stack *s);

#endif
