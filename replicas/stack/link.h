/* link.h - life of link.c's neighbour table; its use is in stack.h. */
#ifndef NEAT_LINK_H
#define NEAT_LINK_H

#include "stack.h"
#include "wire.h"

size_t link_memory(void);
size_t link_arena(void);
/* Not `fresh`: neighbours that a predecessor knew are believed until they answer. */
void link_init(struct stack *s, void *memory, void *arena, bool fresh);

#endif
