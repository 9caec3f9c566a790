/*
 * plan.c - replicas that are replaced although nothing is wrong with them: an upgrade of their
 * program, a new address layout, the way back from the quarantine build.
 *
 * One after another, each only when all are ready and its successor waits as the standby. To the
 * successor it is a death from outside, so what makes a kill harmless makes these harmless.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static void answer_upgrade(struct keeper *k, int status, const char *text)
{
	struct neat_msg_error m = {
		.h = { NEAT_ABI_MAGIC, NEAT_ABI_VERSION, NEAT_MSG_ERROR, sizeof(m), 0 }, .status = status,
	};
	struct neat_msg_keeper wrap;
	struct msg *inner;

	snprintf(m.text, sizeof(m.text), "%s", text);
	inner = msg_new(&m, sizeof(m), NULL, 0);
	wrap = keeper_message(NEAT_MSG_K_UPGRADED, &k->standby, inner);
	wrap.status = status;
	if (k->neatd.pid)
		queue_add(&k->neatd.out, &wrap, inner);
	msg_put(inner);
	keeper_log("upgrade: %s", text);
}

void upgrade_begin(struct keeper *k, const char *path)
{
	struct program fresh;

	if (k->upgrading) {
		answer_upgrade(k, -EBUSY, "another one is under way");
		return;
	}
	program_open(&fresh, *path ? path : k->program.path);
	if (fresh.fd < 0) {
		char text[200];

		snprintf(text, sizeof(text), "cannot open %.100s: %s", fresh.path, strerror(errno));
		answer_upgrade(k, -errno, text);
		return;
	}
	k->before = k->program;
	k->program = fresh;
	k->program.generation = k->before.generation + 1;
	k->upgrading = true;
	keeper_log("upgrade to %s, generation %u", fresh.path, k->program.generation);
	if (k->standby.pid)
		child_end(&k->standby, NEAT_DEATH_OUTSIDE);
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++) {
		k->replica[i].planned = k->replica[i].wanted;
		k->replica[i].quarantined = false;
	}
}

/* Its program does not work: who runs it may go on, the next start is of the old one again. */
void upgrade_failed(struct keeper *k)
{
	program_close(&k->program);
	/* What was started from it stays known as another generation. */
	k->before.generation = k->program.generation + 1;
	k->program = k->before;
	k->upgrading = false;
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++)
		k->replica[i].planned = false;
	if (k->standby.pid)
		child_end(&k->standby, NEAT_DEATH_OUTSIDE);
	answer_upgrade(k, -EIO, "the new program failed before it was ready; replicas go on with the old one");
}

static void check_upgrade(struct keeper *k)
{
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++) {
		const struct child *c = &k->replica[i];

		if (c->wanted && (!c->ready || c->planned || c->fate))
			return;
	}
	k->upgrading = false;
	program_close(&k->before);
	program_close(&k->quarantine);
	program_open_quarantine(&k->quarantine, &k->program);
	answer_upgrade(k, 0, "done");
}

/* After a quiet time back to the normal build; in stateless mode that would cost connections. */
static int leave_quarantine(struct keeper *k, struct child *c, uint64_t now)
{
	uint64_t due = youngest_fault(c) + k->opt.quarantine_ms;

	if (!c->quarantined)
		return -1;
	if (now < due)
		return (int)(due - now);
	c->quarantined = false;
	c->planned = c->wanted && stateful(c);
	return -1;
}

static int rerandomize(struct keeper *k, uint64_t now)
{
	uint64_t every = (uint64_t)k->opt.rerandomize_s * 1000;

	if (!every)
		return -1;
	if (!k->rerandomize_at)
		k->rerandomize_at = now + every;
	if (now >= k->rerandomize_at) {
		k->rerandomize_at = now + every;
		for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++) {
			struct child *c = &k->replica[k->rerandomize_next++ % NEAT_REPLICAS_MAX];

			if (c->wanted && !c->quarantined) {
				c->planned = true;
				break;
			}
		}
	}
	return (int)(k->rerandomize_at - now);
}

static void replace_next(struct keeper *k)
{
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++) {
		struct child *c = &k->replica[i];

		if (!c->planned || !c->pid)
			continue;
		if (standby_ready(k)) {
			keeper_log("replica %u (pid %d) is replaced as planned", i, c->pid);
			child_end(c, NEAT_DEATH_OUTSIDE);
		}
		return;
	}
	if (k->upgrading)
		check_upgrade(k);
}

int plan_step(struct keeper *k)
{
	uint64_t now = clock_ms();
	int wait = rerandomize(k, now);
	bool any;

	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++)
		wait = sooner(wait, leave_quarantine(k, &k->replica[i], now));
	if (!somebody_recovers(k, &any))
		replace_next(k);
	return wait;
}
