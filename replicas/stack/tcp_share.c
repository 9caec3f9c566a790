/*
 * tcp_share.c - what one application may hold of what all of them share in this replica: control
 * blocks, request slots, memory of buffers (docs/decisions.md 52).
 *
 * Of a pool an application may have one more while it holds no more than is free (dynamic thresholds,
 * Choudhury and Hahne 1998): one greedy application gets half, two get a third each, and a
 * newcomer always finds some. Connections that their application has let go count as one application
 * more. Counts are class D: counted again at adoption.
 */
#include "tcp.h"

bool share_block(const struct stack *s, uint32_t slots)
{
	const struct tcp *tcp = s->tcp;

	return (!s->cfg.app_sockets || slots <= s->cfg.app_sockets) && slots <= tcp->ntcbs - tcp->used;
}

bool share_request(const struct stack *s, const struct sockmem *m)
{
	const struct tcp *tcp = s->tcp;

	return !m || m->half_open <= tcp->nrequests - tcp->half_open;
}

/* ---- orphans: a peer that does not close keeps them (Linux: tcp_max_orphans) ---- */

void share_orphan(struct stack *s, struct tcb *t)
{
	s->tcp->orphans += !(t->flags & TCB_ORPHAN);
	t->flags |= TCB_ORPHAN;
}

bool share_exceeded(const struct stack *s, const struct tcb *t)
{
	const struct tcp *tcp = s->tcp;

	return t->flags & TCB_ORPHAN && tcp->orphans > tcp->ntcbs - tcp->used;
}

/* ---- buffers ---- */

/* Every connection may have this much; what autotuning or an option adds is the application's budget. */
static uint32_t beyond(uint32_t size) { return size > TCP_BUF_FREE ? size - TCP_BUF_FREE : 0; }

uint32_t share_buffer(const struct stack *s, struct tcb *t, uint32_t has, uint32_t want)
{
	struct sockmem *m = t->ref.mem;
	uint64_t held = beyond(has), left;

	if (!m)
		return want;
	left = s->cfg.app_buffers > m->buffers ? s->cfg.app_buffers - m->buffers : 0;
	if (beyond(want) > held + left)
		want = TCP_BUF_FREE + (uint32_t)(held + left);
	m->buffers += beyond(want) - held;
	return want;
}

void share_count(struct tcb *t)
{
	if (t->ref.mem)
		t->ref.mem->buffers += beyond(t->rcvbuf) + beyond(t->sndbuf);
}

void tcp_detach(struct stack *s, struct tcb *t)
{
	if (t->ref.mem)
		t->ref.mem->buffers -= beyond(t->rcvbuf) + beyond(t->sndbuf);
	sock_detach(s, &t->ref);
	share_orphan(s, t);
}
