/*
 * component.c - the further processes of a replica that is several (paper 6.3.8): ip, udp, filter. The
 * one with the sockets, tcp, has role REPLICA; each is started, fenced and restarted by itself.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

bool is_multi(const struct keeper *k) { return k->opt.components && !strcmp(k->opt.components, "multi"); }

bool role_is_component(uint32_t role) { return role >= NEAT_ROLE_IP && role < NEAT_ROLE_IP + COMPONENTS; }

const char *component_name(uint32_t role)
{
	return role == NEAT_ROLE_IP ? "ip" : role == NEAT_ROLE_UDP ? "udp" : "filter";
}

const struct child *queue_holder(const struct keeper *k, uint32_t index)
{
	return is_multi(k) ? &k->component[0][index] : &k->replica[index];
}

bool components_open(struct program *part, const char *tcp)
{
	static const char own[] = "tcp";
	size_t n = strlen(tcp), prefix = n - (sizeof(own) - 1);

	for (uint32_t i = 0; i < COMPONENTS; i++)
		part[i].fd = -1;
	errno = EINVAL;
	if (n < sizeof(own) || n >= sizeof(part->path) || strcmp(tcp + prefix, own))
		return false;
	for (uint32_t i = 0; i < COMPONENTS; i++) {
		char path[sizeof(part->path) + 8];

		snprintf(path, sizeof(path), "%.*s%s", (int)prefix, tcp, component_name(NEAT_ROLE_IP + i));
		program_open(&part[i], path);
		if (part[i].fd < 0)
			return false;
	}
	return true;
}

void components_close(struct program *part)
{
	for (uint32_t i = 0; i < COMPONENTS; i++)
		program_close(&part[i]);
}

/* ---- replicas that come and go ---- */

bool waits_for_component(const struct keeper *k, const struct child *c)
{
	if (c->role != NEAT_ROLE_REPLICA || !is_multi(k))
		return false;
	for (uint32_t role = 0; role < COMPONENTS; role++)
		if (k->component[role][c->index].pid && k->component[role][c->index].end_by)
			return true;
	return !queue_holder(k, c->index)->ever_ready;
}

static void tell_to_end(struct child *c, uint64_t now)
{
	const struct neat_msg_result drain = {
		.h = { NEAT_ABI_MAGIC, NEAT_ABI_VERSION, NEAT_MSG_R_DRAIN, sizeof(drain), 0 }, .value = 1,
	};
	struct msg *m = msg_new(&drain, sizeof(drain), NULL, 0);

	queue_add(&c->out, NULL, m);
	msg_put(m);
	c->end_by = now + LAST_RITES_MS;
}

/* Towards the wire, each when the one before is gone: what tcp sent last still leaves. */
static int end_next(struct keeper *k, uint32_t index, uint64_t now)
{
	static const uint32_t order[COMPONENTS] = { NEAT_ROLE_UDP, NEAT_ROLE_FILTER, NEAT_ROLE_IP };

	for (uint32_t i = 0; i < COMPONENTS; i++) {
		struct child *c = keeper_child(k, order[i], index);

		if (!c->pid || (c->wanted && !c->end_by))
			continue;
		if (!c->end_by)
			tell_to_end(c, now);
		if (now < c->end_by)
			return (int)(c->end_by - now);
		child_end(c, NEAT_DEATH_OUTSIDE);
		return -1;
	}
	return -1;
}

int components_end(struct keeper *k)
{
	uint64_t now = clock_ms();
	int wait = -1;

	for (uint32_t i = 0; i < NEAT_REPLICAS_MAX && is_multi(k); i++)
		if (!k->replica[i].pid)
			wait = sooner(wait, end_next(k, i, now));
	return wait;
}
