/*
 * watch.c - who in this process wants to hear of which socket record, and our bit in the slots' sub.
 *
 * A subscription is for good: the bit stays set while the slot lives, since an event that nobody
 * takes costs one ring entry at most (ev_pend stays set until somebody looks).
 */
#include "internal.h"

static struct nt_local *local_of(uint32_t sock)
{
	struct nt_local *l = &nt.local[sock & (NEAT_SOCKS_MAX - 1)];
	uint32_t gen = a32_relaxed(&nt_sock(sock)->gen);

	if (l->gen != gen) {
		while (l->watch)
			nt_watch_unlink(l->watch);
		l->gen = gen;
	}
	return l;
}

void nt_watch_link(struct nt_watch *w, struct nt_watch **list)
{
	w->next = *list;
	w->prev = list;
	if (w->next)
		w->next->prev = &w->next;
	*list = w;
}

void nt_watch_unlink(struct nt_watch *w)
{
	if (!w->prev)
		return;
	*w->prev = w->next;
	if (w->next)
		w->next->prev = w->prev;
	w->prev = NULL;
}

static void subscribe_slot(uint32_t sock, uint32_t replica, uint32_t slot)
{
	struct nt_replica *r = &nt.rep[replica & (NEAT_REPLICAS_MAX - 1)];

	slot &= NEAT_SLOTS - 1;
	r->sock_of[slot] = sock;
	if (!(a64_relaxed(&r->app->slots[slot].sub) & r->bit))
		a64_or(&r->app->slots[slot].sub, r->bit);
}

/* Each time, by the words themselves: the record may have other slots than at the last time. */
static void subscribe(uint32_t sock)
{
	struct neat_sock *s = nt_sock(sock);
	uint32_t state = a32_acquire(&s->state);

	if (state == NEAT_SOCK_CONNECT) {
		subscribe_slot(sock, s->replica, s->slot);
	} else if (state == NEAT_SOCK_LISTEN || state == NEAT_SOCK_DGRAM) {
		NT_EACH_REPLICA(r)
			if (s->sub[r].slot)
				subscribe_slot(sock, r, s->sub[r].slot);
	}
}

void nt_watch_add_locked(struct nt_watch *w, uint32_t sock, enum nt_watch_kind kind, void *owner)
{
	struct nt_local *l = local_of(sock);

	w->sock = sock;
	w->kind = kind;
	w->owner = owner;
	nt_watch_link(w, &l->watch);
	subscribe(sock);
}

void nt_watch_add(struct nt_watch *w, uint32_t sock, enum nt_watch_kind kind, void *owner)
{
	nt_lock(&nt.watch_lock);
	nt_watch_add_locked(w, sock, kind, owner);
	nt_unlock(&nt.watch_lock);
}

void nt_watch_fire(uint32_t sock)
{
	struct nt_watch *next;

	for (struct nt_watch *w = local_of(sock)->watch; w; w = next) {
		next = w->next;
		if (w->kind == WATCH_WAITER)
			nt_wake(w->owner);
		else
			nt_epoll_fire(w->owner);
	}
}

void nt_watch_attach(uint32_t sock)
{
	nt_lock(&nt.watch_lock);
	if (local_of(sock)->watch) {
		subscribe(sock);
		nt_watch_fire(sock);
	}
	nt_unlock(&nt.watch_lock);
}

static void each_fd_record(void (*act)(uint32_t))
{
	uint32_t high = a32_relaxed(&nt.app->procs[nt.proc].fd_high);

	for (uint32_t fd = 0; fd < high; fd++) {
		uint32_t sock = nt_fdword_sock(a64_relaxed(&nt.row[fd]));

		if (sock && nt.local[sock].watch)
			act(sock);
	}
}

void nt_watch_fire_all(void)
{
	nt_lock(&nt.watch_lock);
	each_fd_record(nt_watch_fire);
	nt_unlock(&nt.watch_lock);
}

/* Put off from fork() to the first wait on an epoll set: most children exec. */
void nt_watch_resubscribe(void)
{
	nt.resubscribe = false;
	each_fd_record(nt_watch_attach);
}

/* Whoever is watched now subscribes at once, the others when somebody watches them again. */
void nt_watch_rescaled(void)
{
	if (nt.row)
		each_fd_record(nt_watch_attach);
}

void nt_watch_forget(uint32_t sock)
{
	struct nt_watch *w;

	nt_lock(&nt.watch_lock);
	while ((w = local_of(sock)->watch) != NULL) {
		nt_watch_unlink(w);
		if (w->kind == WATCH_WAITER)
			nt_wake(w->owner);
		else
			nt_epoll_dead(w->owner);
	}
	nt_unlock(&nt.watch_lock);
}

/* Threads of the parent do not exist here. */
void nt_watch_fork_child(void)
{
	if (!nt.local || !nt.row)
		return;
	for (uint32_t fd = 0; fd < a32_relaxed(&nt.app->procs[nt.proc].fd_high); fd++) {
		uint32_t sock = nt_fdword_sock(a64_relaxed(&nt.row[fd]));
		struct nt_watch *next;

		for (struct nt_watch *w = sock ? nt.local[sock].watch : NULL; w; w = next) {
			next = w->next;
			if (w->kind == WATCH_WAITER && !nt_stay_mine(w->owner))
				nt_watch_unlink(w);
		}
	}
}

static void look_slot(uint32_t replica, uint32_t slot)
{
	struct nt_replica *r = &nt.rep[replica & (NEAT_REPLICAS_MAX - 1)];
	neat_a64 *pend = &r->app->slots[slot & (NEAT_SLOTS - 1)].ev_pend;

	/* The locked operation also orders the clearing before the caller's look at the words. */
	if (a64_relaxed(pend) & r->bit)
		a64_and(pend, ~r->bit);
}

void nt_watch_look(uint32_t sock)
{
	const struct neat_sock *s = nt_sock(sock);
	uint32_t state = a32_acquire(&s->state);

	if (state == NEAT_SOCK_CONNECT)
		look_slot(s->replica, s->slot);
	else if (state == NEAT_SOCK_LISTEN || state == NEAT_SOCK_DGRAM)
		NT_EACH_REPLICA(r)
			if (s->sub[r].slot)
				look_slot(r, s->sub[r].slot);
}
