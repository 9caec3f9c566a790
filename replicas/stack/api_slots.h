/* api_slots.h - shared by api.c, api_cmd.c and api_channel.c only. */
#ifndef NEAT_API_SLOTS_H
#define NEAT_API_SLOTS_H

#include "api.h"

void slot_take(struct app *app, uint32_t slot, enum slot_kind kind, void *obj, uint32_t gen);
void slot_free(struct app *app, uint32_t slot);
struct sockref slot_ref(struct app *app, uint32_t slot);
uint32_t slot_owner(const struct app *app, uint32_t slot);	/* neat_sock_handle(); 0 = nobody has accepted it */
void pub_words_reset(struct neat_slot_pub *pub);
/* The application's last reference is gone. */
void slot_close(struct api *a, struct app *app, uint32_t slot);
/* A command may take this slot of the claimed half, which is free, in this generation. */
NEAT_CHECKED bool claimed_in(const struct neat_slot_pub *pub, uint32_t gen);
/* ---- api_udp.c ---- */
/* NEAT_CMD_UDP: the slot becomes a UDP socket. */
void cmd_udp(struct api *a, struct app *app, uint32_t slot, uint32_t gen);
/* A predecessor's UDP socket, made again from its slot. False: its port is not the application's any more. */
bool slot_udp_again(struct api *a, struct app *app, uint32_t slot);

/* Looks at the words of a slot as NEAT_CMD_KICK asks. */
void slot_look(struct api *a, struct app *app, uint32_t slot);
/* Whatever a predecessor had in this slot is gone: ECONNRESET, unless the slot was free or a listener's. */
void slot_reset(struct api *a, struct app *app, uint32_t slot);
/* The application sees a dead connection with ECONNRESET. */
void slot_publish_reset(struct neat_slot_pub *pub);
/* How many entries the application took from the accept ring of this slot, of `tail` pushed. */
uint64_t accept_head(const struct app *app, uint32_t slot, uint64_t tail);
/* One entry more is no loss of another. */
bool accept_room(const struct app *app, uint32_t slot, uint64_t tail);
/* api_adopt.c */
/* app->full: is there room by now? */
void api_full(struct api *a, struct app *app);
/* Dead connections of the born half that nobody accepted and no accept ring names. */
void api_free_unaccepted(struct app *app);
void api_adopt(struct api *a, uint32_t death, struct stack_adopted *out);
/* The channels of an application that was here before us, those of the dead included. */
void channels_inherit(struct api *a, struct app *app);
/* Every process that may sleep on a channel of ours. */
void channels_wake(struct api *a);
void channels_overflow(struct api *a, struct app *app);
/* An event for every open channel of the mask `bits`. */
void channels_post(struct api *a, struct app *app, uint64_t bits, uint64_t entry);
/* At most a batch; how many. */
unsigned channel_commands(struct api *a, struct channel *c);
/* Work that takes as long as so many commands is done. */
void api_worked(struct api *a, uint32_t commands);

#endif
