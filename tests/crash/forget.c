/*
 * forget.c - what a successor does or keeps by a rule of adoption, taken away, so that a test can show
 * what the rule is for (docs/rules.md). It plays on the
 * outliving memory and on the successor, not on the stack's sources.
 */
#include "machine.h"

static struct tcb *blocks(const struct machine *m) { return (void *)((uint8_t *)m->arena + sizeof(struct arena_header)); }

static uint32_t high(const struct machine *m) { return a32_relaxed(&((struct arena_header *)m->arena)->high_tcb); }

static bool is(const struct machine *m, const char *what) { return m->forget && strcmp(m->forget, what) == 0; }

/* W9: one spurious event for each connection; "look last": it comes, but before adoption instead of behind it. */
static bool look(const struct machine *m) { return is(m, "look") || is(m, "look last"); }

/* W5: what the peer was told of our window. */
static void window(struct machine *m)
{
	for (struct tcb *t = blocks(m); t < blocks(m) + high(m); t++) {
		t->rcv_adv = rcv_nxt(t);
		t->rcvbuf = 2048;
	}
}

/* W12: every link and free list is garbage: none may be believed. Not forgotten by a successor, but by its memory. */
static void links(struct machine *m)
{
	struct arena_header *h = m->arena;
	struct tcp_request *r = (void *)(blocks(m) + m->cfg.connections_max);
	struct tcp_time_wait *w = (void *)(r + m->cfg.syn_backlog);

	for (uint32_t i = 0; i < high(m); i++) {
		blocks(m)[i].next_free = i + 1;
		blocks(m)[i].resume_next = i + 1;
		memset(&blocks(m)[i].timer, 0xa5, sizeof(blocks(m)[i].timer));
	}
	for (uint32_t i = 0; i < a32_relaxed(&h->high_request); i++)
		r[i].next = r[i].prev = 1;
	for (uint32_t i = 0; i < a32_relaxed(&h->high_time_wait); i++)
		w[i].next = w[i].prev = 1;
}

void forget_before(struct machine *m)
{
	if (is(m, "window"))
		window(m);
	else if (is(m, "links"))
		links(m);
	for (struct tcb *t = blocks(m); is(m, "wl") && t < blocks(m) + high(m); t++) {
		m->kept[t - blocks(m)][0] = t->snd_wl1;
		m->kept[t - blocks(m)][1] = t->snd_wl2;
	}
	for (uint32_t i = 0; look(m) && i < m->nprocs; i++) {
		uint32_t early = is(m, "look last") && m->was_ready;

		m->kept[i][0] = a32_relaxed(&m->proc[i].ch->overflow) + early;
		a32_store(&m->proc[i].ch->overflow, (uint32_t)m->kept[i][0]);
		if (early)
			m->proc[i].sleeping = false;
	}
}

/* The successor is up and has not worked yet. */
void forget_after(struct machine *m)
{
	/* W10: the half-changed block's window counts whatever its number, and a shut one is asked for. */
	for (struct tcb *t = blocks(m); is(m, "wl") && t < blocks(m) + high(m); t++) {
		t->snd_wl1 = m->kept[t - blocks(m)][0];
		t->snd_wl2 = m->kept[t - blocks(m)][1];
	}
	for (struct tcb *t = blocks(m); is(m, "persist") && t < blocks(m) + high(m); t++)
		if (t->rtx_kind == TCP_RTX_PERSIST) {
			t->rtx_kind = TCP_RTX_NONE;
			t->rtx_at_us = 0;
		}
	for (uint32_t i = 0; look(m) && i < m->nprocs; i++)
		a32_store(&m->proc[i].ch->overflow, (uint32_t)m->kept[i][0]);
}

/* W9: the wake that every sleeper gets. */
bool forget_wake(const struct machine *m) { return (is(m, "wake") || is(m, "look last")) && !m->ready; }
