/*
 * api.h - the replica's side of the applications: which segments are mapped, which channels are open,
 * who sits in each socket slot, and the way from command to TCP and from TCP to event.
 *
 * No system call here: main.c maps memory and carries out wakes.
 */
#ifndef NEAT_API_H
#define NEAT_API_H

#include "stack.h"

/*
 * Who sits in a slot:
 *  FREE      published status has no flag; the allocator of its half may take it
 *  TCB       obj is a connection
 *  LISTENER  obj is a subsocket
 *  UDP       obj is a UDP socket
 *  ZOMBIE    the stack forgot it, the application still holds the slot; left by CMD_CLOSE
 */
enum slot_kind { SLOT_FREE = 0, SLOT_TCB, SLOT_LISTENER, SLOT_ZOMBIE, SLOT_UDP };

struct slot_user {
	void *obj;
	uint16_t gen;
	uint8_t kind;		/* enum slot_kind */
	uint8_t closed;		/* the application's last reference is gone */
	uint32_t optgen;	/* neat_slot_app.optgen last applied */
};

struct channel {
	struct neat_channel *mem;	/* NULL: never open so far */
	struct app *app;
	struct channel *next_touched;
	uint32_t gen;		/* neat_channels.open when last looked at; odd: in app->open[] */
	int eventfd;		/* -1: none yet */
	uint64_t cmd_head;
	bool touched;		/* events were posted in this batch; the wake is owed */
	uint64_t progress;	/* sum of the process's indices when last looked at */
	uint64_t active_us;	/* when they last moved, or it was woken */
	uint32_t turning, said;	/* last_words(): the generation that comes, and commands done for the one that goes */
};

/* Entries of an accept ring that are looked at again: [from, to) had been taken at `us`. */
struct taken { uint64_t from, to, us; };

struct app {
	struct sockmem mem;
	uint32_t app_id;
	bool gone;		/* last process died; ends when mem.live reaches 0 */
	bool blocks;		/* an eventfd of its blocked us: it is rung by none any more */
	uint32_t nfree;
	uint32_t *free;		/* stack of released slots of the born half: last in, first out (page reuse) */
	uint32_t high_born;
	uint64_t accept_used[NEAT_LISTENERS_MAX / 64];
	struct taken taken[NEAT_LISTENERS_MAX];
	uint32_t full;		/* slot of a listener whose queue was full when api_repush() had something for it; 0: none */
	struct slot_user *slots;	/* [NEAT_SLOTS] */
	struct neat_channels *channels;
	uint32_t door, round;	/* neat_channels.door as we stored it; its round */
	bool suspect;		/* a word of ours in the channels was overwritten: commands may be lost */
	uint64_t trusted_us;	/* not before then its slots are looked at again for that */
	uint64_t change;	/* neat_channels.change when last looked at */
	bool owed;		/* last words of channels are left: look again, whatever `change` says */
	bool repush;		/* a process has gone; api_repush() when all of them have had their last words */
	uint32_t nopen;
	uint8_t open[NEAT_PROCS_MAX];	/* numbers of open channels */
	struct channel channel[NEAT_PROCS_MAX];
};

struct api_ops {
	/* Wake the process behind the channel; `how` is the asleep value that was exchanged away. */
	void (*wake)(void *world, struct channel *c, uint32_t how);
	/* The process that had the channel is gone: so is its eventfd. */
	void (*forget)(void *world, struct channel *c);
	/* So much work was done that a watcher should hear of it, in the middle of a turn; NULL = nobody watches. */
	void (*beat)(void *world);
	void *world;
};

enum { API_APPS_MAX = 4096 };

struct api {
	struct stack *stack;
	struct api_ops ops;
	uint32_t cpu;			/* core we run on; main.c refreshes it */
	uint32_t batch;
	uint32_t unbeaten;		/* commands since the last ops.beat() */
	bool started;			/* R_START came: commands are taken */
	struct app *apps[API_APPS_MAX];
	uint32_t napps;
	struct channel *touched;
	struct neat_replica_status *status;
	bool adopting;			/* set before the first segment: slots keep their connections */
	const struct neat_registry *registry;	/* who holds which UDP port; NULL: nobody any */
};

/* ---- attach; memory is mapped and checked by the caller ---- */
struct app *api_app_find(struct api *a, uint32_t app_id);
/* `slots` and `free` are zeroed memory for NEAT_SLOTS entries. After a death every slot that was in
 * use becomes a ZOMBIE with ECONNRESET (stateless recovery). */
NEAT_CHECKED int api_app_add(struct api *a, struct app *app);
/* Takes up all that the application changed in neat_channels.open. Between units of work only. */
void api_channels_look(struct api *a, struct app *app);
struct channel *api_channel_find(struct app *app, uint32_t number);	/* NULL: not open */
void api_app_gone(struct api *a, struct app *app);		/* close everything as a last close would */
void api_app_remove(struct api *a, struct app *app);		/* mem.live == 0; caller unmaps */

/* ---- control ---- */
/*
 * End of the replay. Stateless: listener slots that nobody claimed again are freed. Adopting: connections
 * are taken over (stack_adopt(), which `death` and `out` are for) and what the slots say is made true.
 */
void api_start(struct api *a, uint32_t death, struct stack_adopted *out);
/* Connections that are in no accept ring and nobody's, since whoever took them died, are pushed again, dead ones freed. */
void api_repush(struct api *a, struct app *app);
/* Kicks that a process announced and did not come to send. */
void api_unmute(struct api *a, struct app *app);
NEAT_CHECKED int api_listen(struct api *a, struct app *app, struct neat_msg_r_listen *m);
void api_release(struct api *a, struct app *app, uint32_t slot, uint32_t gen);
uint32_t api_owner(const struct app *app, uint32_t slot);	/* neat_slot_app.accepted */

/* ---- api_drain.c ---- */
void api_door_open(struct app *app);
/* Nothing is left and nobody can come any more: then api_end() or api_reopen(). False: there is work. */
NEAT_CHECKED bool api_shut(struct api *a);
void api_reopen(struct api *a);
void api_end(struct api *a);
/*
 * The instance ends: doors OVER, every connection ECONNRESET, every process woken. In any phase; nothing of `a` may
 * be used after it.
 */
void api_over(struct api *a);
void api_nudge(struct api *a);		/* every process looks at all it watches */

/* ---- data ---- */
unsigned api_commands(struct api *a);		/* units of work done */
bool api_commands_pending(const struct api *a);
void api_flush(struct api *a);			/* wakes owed at the end of a batch */

#endif
