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
