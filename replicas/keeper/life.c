/*
 * life.c - a word in the registry page that says that the instance is over. The kernel notes our death there, whatever
 * ends us: the owner of a robust futex is the thread that its word names, and the kernel marks that word when the
 * thread ends (set_robust_list(2)). Nobody locks or waits for it. Programs look at it when they are woken, and when they
 * have slept for long: every other process of the instance may have been killed with us.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include "ring.h"
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(NEAT_KEEPER_GONE == FUTEX_OWNER_DIED, "what the kernel stores");

enum { REGISTRY_FD = 2 };	/* of R_CONFIG */

/* One entry: the distance from it to its word may be any number, so it lies in our own memory. */
static void own(struct life *l, neat_a32 *word)
{
	l->head.list.next = &l->entry;
	l->entry.next = &l->head.list;
	l->head.futex_offset = (char *)word - (char *)&l->entry;
	a32_store(word, (uint32_t)syscall(SYS_gettid));
	if (syscall(SYS_set_robust_list, &l->head, sizeof(l->head)))
		keeper_die("set_robust_list");
}

void life_begin(struct life *l, const struct msg *config)
{
	struct neat_registry *g;

	if (l->registry || config->u.h.type != NEAT_MSG_R_CONFIG || config->nfds <= REGISTRY_FD)
		return;
	g = mmap(NULL, sizeof(*g), PROT_READ | PROT_WRITE, MAP_SHARED, config->fds[REGISTRY_FD], 0);
	if (g == MAP_FAILED)
		keeper_die("the registry page");
	l->registry = g;
	own(l, &g->keeper);
}

void life_over(struct life *l)
{
	/* Release: before what the replicas, which hear of it next, tell the programs that they wake. */
	if (l->registry)
		a32_or(&l->registry->keeper, NEAT_KEEPER_GONE);
}
