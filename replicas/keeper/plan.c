/*
 * plan.c - replicas, and components of them, that are replaced although nothing is wrong: an upgrade of
 * their program, a new address layout, the way back from the quarantine build.
 *
 * One after another, each only when all are ready and its successor waits as the standby. To the
 * successor it is a death from outside, so what makes a kill harmless makes these harmless.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static void answer_upgrade(struct keeper *k, uint64_t number, int status, const char *text)
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
	wrap.key = number;
	if (k->neatd.pid)
		queue_add(&k->neatd.out, &wrap, inner);
	msg_put(inner);
	keeper_log("upgrade: %s", text);
}

static void upgrade_ended(struct keeper *k, int status, const char *text)
{
	struct upgrade *u = &k->upgrade;

	u->under_way = false;
	u->status = status;
	snprintf(u->text, sizeof(u->text), "%s", text);
	answer_upgrade(k, u->number, status, text);
}

bool of_replica(const struct child *c)
{
	return c->role == NEAT_ROLE_REPLICA || role_is_component(c->role);
}

/* All processes of replica `i`. A component that is about to end may go on in the replica's next life. */
static void plan_replica(struct keeper *k, uint32_t i, bool planned)
{
	k->replica[i].planned = planned && k->replica[i].wanted;
	for (uint32_t role = 0; role < COMPONENTS; role++)
		k->component[role][i].planned = planned && k->component[role][i].pid;
}

/* False, and answered, if a program cannot be opened; then all is as before. */
static bool open_programs(struct keeper *k, uint64_t number, const char *path)
{
	struct program fresh, part[COMPONENTS] = { 0 };
	char text[200];

	program_open(&fresh, path);
	if (fresh.fd < 0 || (is_multi(k) && !components_open(part, path))) {
		int err = errno;

		snprintf(text, sizeof(text), "cannot open %.100s%s: %s", path,
			 fresh.fd < 0 ? "" : " or a component beside it", strerror(err));
		if (fresh.fd >= 0 && is_multi(k))
			components_close(part);
		program_close(&fresh);
		answer_upgrade(k, number, -err, text);
		return false;
	}
	k->before = k->program;
	k->program = fresh;
	k->program.generation = k->before.generation + 1;
	memcpy(k->part_before, k->part, sizeof(k->part));
	memcpy(k->part, part, sizeof(k->part));
	return true;
}

/* True: a predecessor of this neatd asked for the same one, which is under way, or over and answered. */
static bool upgrade_known(struct keeper *k, uint64_t number)
{
	const struct upgrade *u = &k->upgrade;

	if (!number || u->number != number)
		return false;
	if (!u->under_way)
		answer_upgrade(k, number, u->status, u->text);
	return true;
}

void upgrade_begin(struct keeper *k, uint64_t number, const char *path)
{
	char name[sizeof(k->program.path)];

	if (upgrade_known(k, number))
		return;
	if (k->upgrade.under_way) {
		answer_upgrade(k, number, -EBUSY, "another one is under way");
		return;
	}
	snprintf(name, sizeof(name), "%s", *path ? path : k->program.path);
	if (!open_programs(k, number, name))
		return;
	k->upgrade = (struct upgrade){ .under_way = true, .number = number };
	keeper_log("upgrade to %s, generation %u", name, k->program.generation);
	if (k->standby.pid)
		child_end(&k->standby, NEAT_DEATH_OUTSIDE);
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++) {
		plan_replica(k, i, true);
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
	if (is_multi(k)) {
		components_close(k->part);
		memcpy(k->part, k->part_before, sizeof(k->part));
	}
	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX; i++)
		plan_replica(k, i, false);
	if (k->standby.pid)
		child_end(&k->standby, NEAT_DEATH_OUTSIDE);
	upgrade_ended(k, -EIO, "the new program failed before it was ready; replicas go on with the old one");
}

static void check_upgrade(struct keeper *k)
{
	struct child *all[CHILDREN];
	uint32_t n = keeper_children(k, all);

	for (uint32_t i = 0; i < n; i++)
		if (of_replica(all[i]) && all[i]->wanted && (!all[i]->ready || all[i]->planned || all[i]->fate))
			return;
	program_close(&k->before);
	if (is_multi(k))
		components_close(k->part_before);
	program_close(&k->quarantine);
	program_open_quarantine(&k->quarantine, &k->program);
	upgrade_ended(k, 0, "done");
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
			uint32_t next = k->rerandomize_next++ % NEAT_REPLICAS_MAX;

			if (k->replica[next].wanted && !k->replica[next].quarantined) {
				plan_replica(k, next, true);
				break;
			}
		}
	}
	return (int)(k->rerandomize_at - now);
}

/* A component starts by itself, so it needs no standby; of those that are down one is enough. */
static void replace_next(struct keeper *k)
{
	struct child *all[CHILDREN];
	uint32_t n = keeper_children(k, all);
	char name[32];

	for (uint32_t i = 0; i < n; i++)
		if (role_is_component(all[i]->role) && all[i]->wanted && (!all[i]->ready || all[i]->fate))
			return;
	for (uint32_t i = 0; i < n; i++) {
		struct child *c = all[i];

		if (!of_replica(c) || !c->planned || !c->pid || !c->wanted)
			continue;
		if (c->role != NEAT_ROLE_REPLICA || standby_ready(k)) {
			keeper_log("%s (pid %d) is replaced as planned", child_name(c, name, sizeof(name)), c->pid);
			c->replacing = true;
			child_end(c, NEAT_DEATH_OUTSIDE);
		}
		return;
	}
	if (k->upgrade.under_way)
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
