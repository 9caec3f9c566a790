/* lo.h - life of lo.c's queue; its use is in stack.h. */
#ifndef NEAT_LO_H
#define NEAT_LO_H

#include "stack.h"

size_t lo_memory(void);
void lo_init(struct stack *s, void *memory);

#endif
