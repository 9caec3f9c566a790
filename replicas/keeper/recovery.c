/*
 * recovery.c - what the death of a child means, and what its successor is told (issue 3, item 1).
 *
 * Only faults and hangs count against a program. Somebody who kills it from outside says nothing
 * about it, so a replica killed a thousand times goes on adopting its connections.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

enum neat_death death_of(const struct child *c, int status)
{
	if (c->fate)
		return c->fate;
	if (c->end_by)
		return NEAT_DEATH_OUTSIDE;
	if (!WIFSIGNALED(status))
		return NEAT_DEATH_FAULT;	/* none of our programs ends by itself */
	switch (WTERMSIG(status)) {
	case SIGSEGV:
	case SIGBUS:
	case SIGILL:
	case SIGFPE:
	case SIGABRT:
	case SIGSYS:
	case SIGTRAP:
		return NEAT_DEATH_FAULT;
	}
	return NEAT_DEATH_OUTSIDE;
}

uint64_t youngest_fault(const struct child *c)
{
	return c->nfaults ? c->faults[(c->nfaults - 1) % FAULTS_KEPT] : 0;
}

uint32_t strikes(const struct keeper *k, const struct child *c, uint64_t now_ms)
{
	uint32_t n = 0, kept = c->nfaults < FAULTS_KEPT ? c->nfaults : FAULTS_KEPT;

	for (uint32_t i = 1; i <= kept; i++) {
		if (now_ms - c->faults[(c->nfaults - i) % FAULTS_KEPT] >= k->opt.fault_window_ms)
			break;
		n++;
	}
	return n;
}

const struct msg *stored(const struct child *c, uint16_t type, uint32_t len)
{
	for (const struct entry *e = c->stored; e; e = e->next)
		if (e->m->u.h.type == type && e->m->len >= len)
			return e->m;
	return NULL;
}

const struct msg *stored_config(const struct child *c)
{
	return stored(c, NEAT_MSG_R_CONFIG, sizeof(struct neat_msg_r_config));
}

bool stateful(const struct child *c)
{
	const struct msg *config = c->role == NEAT_ROLE_REPLICA ? stored_config(c) : NULL;

	return config && ((const struct neat_msg_r_config *)config->u.bytes)->mode == NEAT_STATEFUL;
}

/* The limit of faults: first the connections are given up, then restarts are delayed. */
static void check_limit(struct keeper *k, struct child *c, const char *name)
{
	uint64_t now = clock_ms();
	uint32_t n = strikes(k, c, now);

	if (n < k->opt.faults_max)
		return;
	if (stateful(c) && !c->fell_back) {
		keeper_log("%s: %u faults within %u ms, its next start is stateless", name, n,
			   k->opt.fault_window_ms);
		return;
	}
	c->start_at = now + FAULT_DELAY_MS;
	keeper_log("%s: %u faults within %u ms, restart delayed by %d ms", name, n, k->opt.fault_window_ms,
		   FAULT_DELAY_MS);
}

/* The second fault within the window: its successor runs the build that checks more. */
static void check_quarantine(struct keeper *k, struct child *c, const char *name)
{
	bool before = c->quarantined;

	if (c->quarantine && !c->ready) {
		c->quarantined = false;
		keeper_log("%s: the quarantine build failed before it was ready, back to the normal one", name);
		return;
	}
	c->quarantined = k->quarantine.fd >= 0 && strikes(k, c, clock_ms()) >= 2;
	if (c->quarantined && !before)
		keeper_log("%s: second fault within %u ms, its successor is the quarantine build", name,
			   k->opt.fault_window_ms);
}

void count_fault(struct keeper *k, struct child *c)
{
	bool unready = c->role == NEAT_ROLE_STANDBY ? !c->parked : of_replica(c) && !c->ready;
	char name[32];

	child_name(c, name, sizeof(name));
	if (k->upgrade.under_way && unready && c->generation == k->program.generation)
		upgrade_failed(k);
	c->faults[c->nfaults++ % FAULTS_KEPT] = clock_ms();
	if (c->role == NEAT_ROLE_STANDBY) {
		/* Nobody depends on it; a program that cannot start must not be tried all the time. */
		c->start_at = clock_ms() + FAULT_DELAY_MS;
		return;
	}
	check_limit(k, c, name);
	if (c->role == NEAT_ROLE_REPLICA)
		check_quarantine(k, c, name);
	c->unready_faults = c->ready ? 0 : c->unready_faults + 1;
	if (c->ever_ready || c->unready_faults < UNREADY_MAX)
		return;
	keeper_log("%s failed %d times in a row and was never ready; the instance ends", name, UNREADY_MAX);
	keeper_fail(k, "see the messages above");
}

/*
 * Adopt only what a predecessor completed: once an incarnation was told to reset the arena, there is
 * nothing to adopt until one has been ready again.
 */
void configure(struct keeper *k, struct child *c, struct neat_msg_r_config *config)
{
	bool faulty = c->death == NEAT_DEATH_FAULT || c->death == NEAT_DEATH_HANG;

	/* Who ended from outside since the last fault was well until then: nothing speaks against its connections. */
	c->fell_back = config->mode == NEAT_STATEFUL && faulty && strikes(k, c, clock_ms()) >= k->opt.faults_max;
	c->adopts = config->mode == NEAT_STATEFUL && c->adoptable && !c->fell_back;
	if (!c->adopts)
		c->adoptable = false;
	config->epoch = c->epoch;
	config->adopt = c->adopts;
	config->death = c->death;
}

void became_ready(struct keeper *k, struct child *c)
{
	char name[32];

	c->ready = c->ever_ready = true;
	if (c->role != NEAT_ROLE_REPLICA)
		return;
	c->adoptable = true;
	if (c->died_us && !c->recovery_us) {
		c->recovery_us = (uint32_t)(clock_us() - c->died_us);
		keeper_log("%s is ready, %u us after the death", child_name(c, name, sizeof(name)), c->recovery_us);
	}
	tell_neatd(k, NEAT_MSG_K_HEALTH, c, health_message(k, c));
}

void became_idle(struct keeper *k, struct child *c)
{
	c->wanted = c->adoptable = c->planned = c->quarantined = false;
	orders_moot(c);
	c->fate = NEAT_DEATH_OUTSIDE;
	for (uint32_t role = 0; role < COMPONENTS; role++)
		k->component[role][c->index].wanted = false;
}

struct msg *health_message(const struct keeper *k, const struct child *c)
{
	struct neat_msg_health m = {
		.h = { NEAT_ABI_MAGIC, NEAT_ABI_VERSION, NEAT_MSG_K_HEALTH, sizeof(m), 0 },
		.restarts = c->restarts,
		.death = c->death,
		.status = c->status,
		.recovery_us = c->recovery_us,
		.strikes = strikes(k, c, clock_ms()),
		.generation = c->generation,
		.flags = (c->adopts ? NEAT_HEALTH_ADOPTS : 0) | (c->fell_back ? NEAT_HEALTH_FELL_BACK : 0) |
			 (c->quarantine ? NEAT_HEALTH_QUARANTINE : 0) |
			 (c->death_planned ? NEAT_HEALTH_PLANNED : 0),
		.strikes_end_ms = youngest_fault(c) + k->opt.fault_window_ms,
	};

	return msg_new(&m, sizeof(m), NULL, 0);
}
