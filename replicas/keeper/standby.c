/*
 * standby.c - one spare replica process: exec'ed by itself, so with an address layout of its own, and
 * asleep on fd 3. It maps nothing and knows nothing until it becomes the successor of a replica (P5).
 */
#define _GNU_SOURCE
#include "keeper.h"

bool standby_promote(struct keeper *k, struct child *c)
{
	struct child *s = &k->standby;

	/* One that somebody stopped would keep its replica down for as long as it takes to notice. */
	if (!s->pid || s->fate || s->stopped_at)
		return false;
	c->pid = s->pid;
	c->pidfd = s->pidfd;
	c->sock = s->sock;
	c->parked = s->parked;
	c->generation = s->generation;
	c->quarantine = false;
	s->pid = 0;
	s->pidfd = s->sock = -1;
	s->parked = false;
	return true;
}

bool standby_ready(const struct keeper *k)
{
	const struct child *s = &k->standby;

	return s->pid && s->parked && !s->fate && !s->stopped_at && s->generation == k->program.generation;
}

/* A replica that is down counts only if it is about to be started: a delayed one would starve the others. */
bool somebody_recovers(const struct keeper *k, bool *any)
{
	*any = false;
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++) {
		const struct child *c = &k->replica[i];

		if (!c->wanted)
			continue;
		*any = true;
		if (c->pid ? !c->ready || c->fate : !c->start_at)
			return true;
	}
	return false;
}

/* After a recovery, not during it: the core belongs to the successor. */
int standby_keep(struct keeper *k)
{
	struct child *s = &k->standby;
	uint64_t now = clock_ms();
	bool any;

	if (s->pid || somebody_recovers(k, &any) || !any)
		return -1;
	if (s->start_at > now)
		return (int)(s->start_at - now);
	child_start(k, s);
	return s->pid ? -1 : FAULT_DELAY_MS;
}
