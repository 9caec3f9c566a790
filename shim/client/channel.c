/*
 * channel.c - this process's end of its channels: commands and doorbells out, events in (L1, L6).
 *
 * Commands: several threads produce, so a process-local lock makes them one producer. Events: whoever
 * finds some drains them for the whole process. A thread killed while it holds a local lock takes
 * its process with it, so these locks need no recovery.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A head of the replica's that makes no sense, and until when it may still be put right. */
struct ring_doubt {
	uint64_t head;
	int64_t until_ns;
};

enum { BELLS_OWED_MAX = 16 };	/* put off for a replica on another core */

static __thread bool in_batch __attribute__((tls_model("initial-exec")));

void nt_batch(bool on) { in_batch = on; }

static uint32_t this_cpu(void)
{
	int cpu = sched_getcpu();

	return cpu < 0 ? 0 : (uint32_t)cpu & (NEAT_CPUS_MAX - 1);
}

/* Also where a program that is never idle calls: the replica takes it for company on the core named here. */
uint32_t nt_note_cpu(void)
{
	uint32_t cpu = this_cpu();

	NT_EACH_REPLICA(i)
		if (a32_relaxed(&nt.rep[i].ch->cpu) != cpu)
			a32_store(&nt.rep[i].ch->cpu, cpu);
	return cpu;
}

/*
 * The predecessor in our process entry, dead or the image before exec, left indices, commands and events:
 * we go on behind them. A replica that ended and came back finds our channel as it was.
 */
void nt_channel_open(uint32_t replica)
{
	struct nt_replica *r = &nt.rep[replica];
	struct neat_channel *ch = &r->channels->ch[nt.proc];

	if (a32_relaxed(&r->channels->open[nt.proc]) == nt.channel_gen)
		return;
	r->ch = ch;
	r->bit = neat_channel_bit(nt.proc);
	if (a64_relaxed(&ch->cmd_tail) - a64_relaxed(&ch->cmd_head) > NEAT_CMD_ENTRIES)
		a64_store(&ch->cmd_tail, a64_relaxed(&ch->cmd_head));
	r->cmd_tail = a64_relaxed(&ch->cmd_tail);
	r->ev_head = a64_acquire(&ch->ev_tail);
	a64_release(&ch->ev_head, r->ev_head);
	r->overflow_seen = a32_relaxed(&ch->overflow);
	a32_store(&ch->asleep, NEAT_AWAKE);
	/* Release: the words above are in order before the replica takes the channel up. */
	a32_release(&r->channels->open[nt.proc], nt.channel_gen);
	a64_add(&r->channels->change, 1);
}

/* Opens our channel to each replica that exists, all under one generation, which no other has had. */
void nt_channels_open(void)
{
	uint32_t gen = 0;

	for (uint32_t i = 0; i < nt.nreplicas; i++) {
		uint32_t next = neat_channel_opened(a32_relaxed(&nt.rep[i].channels->open[nt.proc]));

		if (i == 0 || (int32_t)(next - gen) > 0)
			gen = next;
	}
	nt.channel_gen = gen;
	for (uint32_t i = 0; i < nt.nreplicas; i++)
		nt.rep[i].ch = NULL;	/* a forked child must not write into its parent's */
	for (uint32_t live = nt_replicas_at_attach(); live; live &= live - 1)
		nt_channel_open((uint32_t)__builtin_ctz(live));
}

void nt_channels_close(uint32_t proc)
{
	for (uint32_t i = 0; i < nt.nreplicas; i++) {
		neat_a32 *open = &nt.rep[i].channels->open[proc];

		a32_release(open, neat_channel_closed(a32_relaxed(open)));
		a64_add(&nt.rep[i].channels->change, 1);
	}
}

/* `anyway`: whatever its word says; who took the word may have ended before the futex call. */
static void wake_replica(struct nt_replica *r, bool anyway)
{
	neat_a32 *word = &r->app->replica_asleep;

	if (a32_xchg(word, NEAT_AWAKE) != NEAT_AWAKE || anyway)
		syscall(SYS_futex, &word->v, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void ring_bell(struct nt_replica *r) { wake_replica(r, false); }

void nt_wake_replicas(void)
{
	NT_EACH_REPLICA(i)
		wake_replica(&nt.rep[i], true);
}

/*
 * A replica naps because a process of ours is at work on its core, and gets up by itself within a few
 * milliseconds: the bells of a batch may wait for the batch's end. On our own core it
 * could not run before anyway; on another it begins when there is a batch for it as well.
 * Order: the command is in the ring before `how` is read, and the replica looks at the ring after it has
 * stored NAPS and after each nap, so a bell that is put off was for a command that it finds.
 */
static void bell(struct nt_replica *r)
{
	uint32_t how, owed;

	neat_fence();	/* the command's tail before the look at the sleeper's word */
	how = a32_relaxed(&r->app->replica_asleep);
	if (how == NEAT_AWAKE)
		return;
	owed = a32_relaxed(&r->bell_owed);
	if (how == NEAT_REPLICA_NAPS && in_batch &&
	    (owed < BELLS_OWED_MAX || a32_relaxed(&r->status->cpu) == this_cpu())) {
		a32_store(&r->bell_owed, owed + 1);
		return;
	}
	a32_store(&r->bell_owed, 0);
	ring_bell(r);
}

void nt_bells(void)
{
	in_batch = false;
	nt_note_cpu();
	NT_EACH_REPLICA(i)
		if (a32_relaxed(&nt.rep[i].bell_owed)) {
			a32_store(&nt.rep[i].bell_owed, 0);
			neat_fence();
			if (a32_relaxed(&nt.rep[i].app->replica_asleep) != NEAT_AWAKE)
				ring_bell(&nt.rep[i]);
		}
}

static uint32_t door(const struct nt_replica *r)
{
	/* Acquire: CLOSING ends in OPEN or ENDED, and what follows depends on which. */
	return a32_acquire(&r->channels->door);
}

static bool ended(uint32_t door)
{
	return neat_door_state(door) == NEAT_DOOR_ENDED;
}

/* ---- the end of the instance ---- */

static void note_over(void)
{
	int64_t now = nt_now_ns();

	if (!a64_cas(&nt.over_ns, 0, (uint64_t)now))
		return;
	nt_say("the instance has ended: its connections are reset, new sockets of this program are the kernel's; "
	       "'neatsock up', then start the program again");
}

/* Said where no replica can write: the word of one that runs wild ends nothing. */
static bool keeper_gone(void) { return a32_acquire(&nt.registry->keeper) & NEAT_KEEPER_GONE; }

bool nt_over(void)
{
	if (NT_LIKELY(!keeper_gone()))
		return false;
	if (!a64_relaxed(&nt.over_ns))
		note_over();
	return true;
}

/* Replicas that have not said yet that they end. */
static uint32_t unsaid(void)
{
	uint32_t mask = 0;

	NT_EACH_REPLICA(i)
		mask |= (uint32_t)!ended(door(&nt.rep[i])) << i;
	return mask & ~a32_relaxed(&nt.silent);
}

static int64_t last_rites_end(void)
{
	const int64_t LAST_RITES_NS = 2000000000;

	return (int64_t)a64_relaxed(&nt.over_ns) + LAST_RITES_NS;
}

/* All have said it, or had their time. */
static bool rites_over(void)
{
	uint32_t dead = unsaid();

	if (dead && nt_now_ns() < last_rites_end())
		return false;
	if (dead)
		a32_or(&nt.silent, dead);
	return true;
}

void nt_over_look(void)
{
	if (NT_LIKELY(!nt_over()) || !rites_over())
		return;
	/* Whatever they said: one that was killed in the middle of its last rites woke nobody. */
	if (!a32_relaxed(&nt.over_fired) && a32_cas(&nt.over_fired, 0, 1))
		nt_watch_fire_all();
}

int64_t nt_over_next_look(int64_t deadline_ns)
{
	const int64_t LOOK_NS = 4000000000;
	struct timespec t;
	int64_t at = last_rites_end();

	if (NT_LIKELY(!a64_relaxed(&nt.over_ns)) || !unsaid()) {
		clock_gettime(CLOCK_MONOTONIC_COARSE, &t);	/* a tick more or less, for a quarter of the price */
		at = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec + LOOK_NS;
	}
	return at < deadline_ns ? at : deadline_ns;
}

bool nt_over_for_waiters(int64_t *deadline_ns)
{
	int64_t end_ns;

	if (NT_LIKELY(!nt_over()))
		return false;
	nt_over_look();
	if (!unsaid())
		return true;
	end_ns = last_rites_end();
	*deadline_ns = *deadline_ns < end_ns ? *deadline_ns : end_ns;
	return false;
}

/* For who tries again and again: the replica will never answer. */
static bool is_silent(const struct nt_replica *r)
{
	return nt_over() && rites_over() && a32_relaxed(&nt.silent) >> (r - nt.rep) & 1;
}

/*
 * The replica's head is nowhere in our ring: a replica that runs wild wrote over it, or over our tail and
 * went on behind that. One that lives stores its head again when it looks; what stays there is what counts,
 * and we go on from there. Under cmd_lock.
 */
static void resync(struct nt_replica *r, struct ring_doubt *doubt)
{
	const int64_t DOUBT_NS = 20000000;
	uint64_t head = a64_acquire(&r->ch->cmd_head);
	int64_t now = nt_now_ns();

	if (r->cmd_tail - head <= NEAT_CMD_ENTRIES || !doubt->until_ns || doubt->head != head) {
		*doubt = (struct ring_doubt){ head, now + DOUBT_NS };
		return;
	}
	if (now < doubt->until_ns)
		return;
	r->cmd_tail = head;
	a64_release(&r->ch->cmd_tail, head);
}

/* False: the ring is full and nobody will ever empty it. */
static bool push(struct nt_replica *r, uint64_t entry)
{
	struct ring_doubt doubt = { 0 };
	bool pushed;

	nt_lock(&r->cmd_lock);
	/* Ours, not what lies in memory that a replica may write, too. */
	if (NT_UNLIKELY(a64_relaxed(&r->ch->cmd_tail) != r->cmd_tail))
		a64_store(&r->ch->cmd_tail, r->cmd_tail);
	while (!(pushed = neat_ring_push(r->ch->cmd, NEAT_CMD_ENTRIES, &r->ch->cmd_tail, &r->ch->cmd_head, entry))) {
		/* Full: the replica has 4096 commands to work off; a dead one is being replaced. */
		nt_unlock(&r->cmd_lock);
		if (ended(door(r)) || is_silent(r))
			return false;
		ring_bell(r);
		syscall(SYS_sched_yield);
		nt_lock(&r->cmd_lock);
		resync(r, &doubt);
	}
	r->cmd_tail += pushed;
	nt_unlock(&r->cmd_lock);
	return pushed;
}

/* A replica that has ended had nothing of ours left: what is said to it is about listeners that are gone. */
void nt_command(struct nt_replica *r, enum neat_cmd op, uint32_t gen, uint32_t slot)
{
	if (push(r, neat_entry(op, 0, gen, slot)))
		bell(r);
}

/* The door as it is once the replica has made up its mind. */
static uint32_t settled_door(struct nt_replica *r)
{
	uint32_t index = (uint32_t)(r - nt.rep), now;

	for (;;) {
		now = door(r);
		/* If it takes connections and yet has ended, the word was overwritten. */
		if (NT_UNLIKELY(ended(now)) && a32_relaxed(&nt.registry->active) >> index & 1)
			ring_bell(r);
		if (neat_door_state(now) == NEAT_DOOR_OPEN || ended(now))
			return now;
		if (is_silent(r))
			return NEAT_DOOR_ENDED;
		/* Never mapped, and by now it is not going to be. */
		if (neat_door_state(now) == NEAT_DOOR_NONE && !(a32_acquire(&nt.registry->replicas) >> index & 1))
			return NEAT_DOOR_ENDED;
		/* If it says nothing at all it was overwritten, and is stored again when the replica looks. */
		if (neat_door_state(now) != NEAT_DOOR_CLOSING)
			ring_bell(r);
		syscall(SYS_sched_yield);
	}
}

bool nt_command_connect(struct nt_replica *r, uint32_t gen, uint32_t slot)
{
	uint32_t before = settled_door(r);

	if (ended(before) ||
	    !push(r, neat_entry(NEAT_CMD_CONNECT, neat_door_round(before), gen, slot)))
		return false;
	neat_fence();	/* the command before the look at the door; the replica shuts it, fences, looks at the ring */
	if (settled_door(r) != before)
		return false;
	bell(r);
	return true;
}

void nt_kick(const struct nt_conn *c)
{
	/* The exchange orders the words before the flag: a replica that sees the flag sees them. */
	if (a32_xchg(&c->app->cmd_pend, 1) == 0)
		nt_command(c->rep, NEAT_CMD_KICK, c->gen, c->slot);
}

/* ---- events ---- */

static bool pending(const struct nt_replica *r)
{
	return neat_ring_ready(NEAT_EV_ENTRIES, &r->ch->ev_tail, r->ev_head) ||
	       a32_relaxed(&r->ch->overflow) != r->overflow_seen;
}

bool nt_events_pending(void)
{
	NT_EACH_REPLICA(i)
		if (pending(&nt.rep[i]))
			return true;
	return false;
}

static void drain_locked(struct nt_replica *r)
{
	uint32_t n = neat_ring_ready(NEAT_EV_ENTRIES, &r->ch->ev_tail, r->ev_head);
	uint32_t overflow = a32_acquire(&r->ch->overflow);

	if (overflow != r->overflow_seen) {
		r->overflow_seen = overflow;
		nt_watch_fire_all();
	}
	nt_lock(&nt.watch_lock);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t e = a64_relaxed(&r->ch->ev[(r->ev_head + i) & (NEAT_EV_ENTRIES - 1)]);
		uint32_t slot = neat_entry_slot(e) & (NEAT_SLOTS - 1);

		if (r->sock_of[slot])
			nt_watch_fire(r->sock_of[slot]);
	}
	nt_unlock(&nt.watch_lock);
	r->ev_head += n;
	a64_release(&r->ch->ev_head, r->ev_head);
}

static void drain(bool waits)
{
	NT_EACH_REPLICA(i) {
		struct nt_replica *r = &nt.rep[i];

		/* Looked at again after the unlock: somebody may have given up on our lock meanwhile. */
		while (pending(r)) {
			if (waits)
				nt_lock(&r->ev_lock);
			else if (!nt_trylock(&r->ev_lock))
				break;
			if (pending(r))
				drain_locked(r);
			nt_unlock(&r->ev_lock);
		}
	}
}

void nt_drain(void) { drain(false); }

/* Who drains may have lost its core: it gets ours until it is done, instead of being asked again and again. */
void nt_drain_all(void) { drain(true); }
