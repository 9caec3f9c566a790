/* api_slots.h - shared by api.c and api_cmd.c only. */
#ifndef NEAT_API_SLOTS_H
#define NEAT_API_SLOTS_H

#include "api.h"

void slot_take(struct app *app, uint32_t slot, enum slot_kind kind, void *obj, uint32_t gen);
void slot_free(struct app *app, uint32_t slot);
struct sockref slot_ref(struct app *app, uint32_t slot);
void pub_words_reset(struct neat_slot_pub *pub);
/* The application's last reference is gone. */
void slot_close(struct api *a, struct app *app, uint32_t slot);
void channel_touch(struct api *a, struct channel *c);

#endif
