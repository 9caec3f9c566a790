/*
 * component.c - the further processes of a replica that is several (paper 6.3.8): ip, udp, filter. The
 * one with the sockets, tcp, has role REPLICA; each is started, fenced and restarted by itself.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool role_is_component(uint32_t role) { return role >= NEAT_ROLE_IP && role < NEAT_ROLE_IP + COMPONENTS; }

const char *component_name(uint32_t role)
{
	return role == NEAT_ROLE_IP ? "ip" : role == NEAT_ROLE_UDP ? "udp" : "filter";
}

const struct child *queue_holder(const struct keeper *k, uint32_t index)
{
	return k->opt.component_bin ? &k->component[0][index] : &k->replica[index];
}

_Noreturn void component_exec(const struct keeper *k, const struct child *c)
{
	char path[4096];
	char *argv[] = { path, NULL };

	snprintf(path, sizeof(path), "%s%s", k->opt.component_bin ? k->opt.component_bin : "", component_name(c->role));
	execv(path, argv);
	fprintf(stderr, "neat-keeper: cannot start %s: %s\n", path, strerror(errno));
	_exit(127);
}
