/*
 * image.h - a number for what a death at this point leaves: outliving memory and the rest of the
 * world. Two deaths with the same number have the same future, so one of them is enough.
 *
 * The number is a sum over the stores of the replica since its work was begun (a store of the same
 * value adds nothing); what applications and wire did before follows from the step's number.
 */
#ifndef CRASH_IMAGE_H
#define CRASH_IMAGE_H

#include "machine.h"

void image_begin(void);				/* of a run */
/* Every point, before anything else: takes in the store of the last one. */
void image_point(const struct machine *m, const struct point *p);
uint64_t image_number(const struct machine *m, const struct point *p);
void image_death(const struct machine *m, const struct point *p);	/* before stores_undo() */

#endif
