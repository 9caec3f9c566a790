/*
 * app.c - applications as libneatsock plays them: commands and kicks on the channel, payload by
 * bytering.h, accept by CAS, and no look at a socket that no event called for (so that a lost event
 * or wake is seen). Endpoints of the remote host have the same calls.
 */
#include "machine.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { PIECE = 1 << 17 };

/* The byte at an offset of a stream: streams differ, and so do places that a wrong base mixes up. */
static uint8_t byte_of(uint32_t stream, uint64_t off)
{
	return (uint8_t)(off * 131 + (off >> 8) * 29 + (off >> 16) * 7 + stream * 59);
}

/* ---- actors ---- */

/* Subscribe, clear the pending bit, then look: in this order (nt_wait_sock). */
void actor_look(struct actor *a)
{
	struct neat_slot_app *w;
	uint64_t bit;

	if (!a->proc || !a->watch)
		return;
	w = &a->proc->seg->slots[a->watch];
	bit = neat_channel_bit(a->proc->index);
	if (!(a64_relaxed(&w->sub) & bit))
		a64_or(&w->sub, bit);
	a64_and(&w->ev_pend, ~bit);
}

void actor_watch(struct actor *a, uint32_t slot)
{
	a->watch = slot;
	actor_look(a);
}

void actor_end(struct actor *a)
{
	a->done = true;
	a->moves++;
}

void actor_log(struct actor *a, const char *format, ...)
{
	size_t n = strlen(a->log);
	va_list ap;

	va_start(ap, format);
	vsnprintf(a->log + n, sizeof(a->log) - n, format, ap);
	va_end(ap);
}

static bool actor_run(struct actor *a)
{
	uint64_t before = a->moves;

	a->look = false;
	a->script(a);
	return a->moves != before;
}

bool actors_run(struct machine *m, struct proc *p, bool force)
{
	bool moved = false;

	for (uint32_t i = 0; i < m->nactors; i++) {
		struct actor *a = &m->actor[i];
		bool due = a->wake_us && m->now_us >= a->wake_us;

		if (a->proc == p && !a->done && (force || a->look || due))
			moved |= actor_run(a);
	}
	return moved;
}

/* ---- processes ---- */

void app_wake(struct machine *m, struct neat_channel *ch)
{
	for (uint32_t i = 0; i < m->nprocs; i++)
		if (m->proc[i].ch == ch)
			m->proc[i].sleeping = false;
}

void app_tell(struct machine *m, struct proc *p)
{
	p->sleeping = false;
	for (uint32_t k = 0; k < m->nactors; k++)
		m->actor[k].look |= m->actor[k].proc == p;
}

static void drain(struct machine *m, struct proc *p)
{
	uint32_t overflow = a32_acquire(&p->ch->overflow);
	uint32_t n = neat_ring_ready(NEAT_EV_ENTRIES, &p->ch->ev_tail, p->ev_head);
	bool all = overflow != p->overflow_seen;

	p->overflow_seen = overflow;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t e = a64_relaxed(&p->ch->ev[p->ev_head++ & (NEAT_EV_ENTRIES - 1)]);

		for (uint32_t k = 0; k < m->nactors; k++)
			if (m->actor[k].proc == p && m->actor[k].watch == neat_entry_slot(e))
				m->actor[k].look = true;
	}
	a64_release(&p->ch->ev_head, p->ev_head);
	for (uint32_t k = 0; all && k < m->nactors; k++)
		m->actor[k].look |= m->actor[k].proc == p;
}

static bool events_pending(const struct proc *p)
{
	return neat_ring_ready(NEAT_EV_ENTRIES, &p->ch->ev_tail, p->ev_head) ||
	       a32_relaxed(&p->ch->overflow) != p->overflow_seen;
}

static bool timer_due(const struct machine *m, const struct proc *p)
{
	for (uint32_t i = 0; i < m->nactors; i++)
		if (m->actor[i].proc == p && !m->actor[i].done && m->actor[i].wake_us &&
		    m->now_us >= m->actor[i].wake_us)
			return true;
	return false;
}

bool app_run(struct machine *m, struct proc *p)
{
	bool moved = false;

	if (p->sleeping && !timer_due(m, p))
		return false;
	p->sleeping = false;
	do
		drain(m, p);
	while (actors_run(m, p, false) && (moved = true));
	a32_store(&p->ch->asleep, NEAT_ASLEEP_FUTEX);
	neat_fence();
	if (events_pending(p)) {
		a32_store(&p->ch->asleep, NEAT_AWAKE);
		return true;
	}
	p->sleeping = true;
	return moved;
}

/* ---- endpoints of applications ---- */

static struct neat_slot_pub *pub(const struct end *e) { return &e->proc->pub->slots[e->slot]; }
static struct neat_slot_app *app(const struct end *e) { return &e->proc->seg->slots[e->slot]; }

static void command(struct proc *p, enum neat_cmd op, uint32_t gen, uint32_t slot)
{
	uint32_t arg = op == NEAT_CMD_CONNECT ? neat_door_round(a32_acquire(&p->channels->door)) : 0;

	if (!neat_ring_push(p->ch->cmd, NEAT_CMD_ENTRIES, &p->ch->cmd_tail, &p->ch->cmd_head,
			    neat_entry(op, arg, gen, slot)))
		abort();	/* no scenario has 4096 commands at once */
}

void app_kick(const struct end *e)
{
	if (a32_xchg(&app(e)->cmd_pend, 1) == 0)
		command(e->proc, NEAT_CMD_KICK, e->gen, e->slot);
}

void app_command(const struct end *e, enum neat_cmd op) { command(e->proc, op, e->gen, e->slot); }

void app_claim(struct end *e)
{
	uint32_t i = 0;
	uint64_t status;

	for (;; i++) {
		if (i == SLOTS_USED)
			abort();
		if (e->proc->claimed[i / 64] & 1ull << i % 64)
			continue;
		status = a64_acquire(&e->proc->pub->slots[NEAT_SLOT_APP_FIRST + i].status);
		if (neat_status_flags(status) == 0)
			break;
	}
	e->proc->claimed[i / 64] |= 1ull << i % 64;
	e->slot = NEAT_SLOT_APP_FIRST + i;
	e->gen = neat_status_gen(status);
	neat_slot_app_reset(app(e));
	a64_store(&app(e)->accepted, neat_owned(e->gen, e->sock));
	actor_watch(e->actor, e->slot);
}

static void app_connect(struct end *e, uint32_t addr, uint16_t port, uint16_t lport, const struct neat_opts *o)
{
	app_claim(e);
	/* The address is left to the replica. */
	app(e)->laddr = 0;
	app(e)->lport = lport;
	app(e)->raddr = addr;
	app(e)->rport = port;
	app(e)->opts = o ? *o : (struct neat_opts){ 0 };
	app_command(e, NEAT_CMD_CONNECT);
}

uint32_t app_flags(const struct end *e)
{
	uint64_t status = a64_acquire(&pub(e)->status);

	if (neat_status_gen(status) != (e->gen & 0xffff))
		return NEAT_SLOT_DEAD | NEAT_SLOT_HUP | NEAT_SLOT_RX_EOF | NEAT_SLOT_TX_SHUT;
	return neat_status_flags(status);
}

static bool app_has_error(const struct end *e)
{
	return app_flags(e) & NEAT_SLOT_ERROR && a32_relaxed(&pub(e)->err_seq) != a32_relaxed(&app(e)->err_taken);
}

int app_take_error(struct end *e)
{
	if (!app_has_error(e))
		return 0;
	a32_store(&app(e)->err_taken, a32_relaxed(&pub(e)->err_seq));
	return (int)neat_status_errno(a64_acquire(&pub(e)->status));
}

static bool app_accept(struct end *e, struct listening *l)
{
	struct neat_slot_pub *lp = &l->proc->pub->slots[l->slot];
	struct neat_slot_app *la = &l->proc->seg->slots[l->slot];

	if (!l->slot)
		return false;
	actor_watch(e->actor, l->slot);
	if (!(neat_status_flags(a64_acquire(&lp->status)) & NEAT_SLOT_LISTENING))
		return false;
	for (;;) {
		uint64_t head = a64_acquire(&la->accept_head), tail = a64_acquire(&lp->accept_tail), entry;

		if (head == tail || tail - head > NEAT_ACCEPT_ENTRIES)
			return false;
		entry = a64_relaxed(&l->proc->pub->accept[lp->accept_ring].entry[head & (NEAT_ACCEPT_ENTRIES - 1)]);
		a64_cas(&la->accept_head, head, head + 1);
		e->slot = neat_entry_slot(entry);
		e->gen = (uint32_t)(entry >> 32) & 0xffff;
		/* Seen before (a successor may push it again), or reset since. */
		if (e->slot && neat_status_gen(a64_acquire(&pub(e)->status)) == e->gen &&
		    neat_own(app(e), e->gen, e->sock))
			break;
	}
	actor_watch(e->actor, e->slot);
	e->stream = pub(e)->rport * 2u + 1;
	return true;
}

static uint64_t app_readable(const struct end *e)
{
	uint64_t n = a64_acquire(&pub(e)->rx_head) - a64_relaxed(&app(e)->rx_tail);

	return n <= neat_ring_max(NEAT_RX) ? n : 0;
}

static void verify(struct end *e, const uint8_t *p, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		if (p[i] != byte_of(e->stream ^ 1, e->rx + i)) {
			machine_fail(e->m, "%s: wrong byte at %lu of its stream", e->actor->name, e->rx + i);
			return;
		}
}

static int app_recv(struct end *e, uint64_t max)
{
	uint32_t flags = app_flags(e);
	bool over = flags & (NEAT_SLOT_RX_EOF | NEAT_SLOT_HUP) || app_has_error(e);
	uint64_t tail = a64_relaxed(&app(e)->rx_tail), n = app_readable(e);
	struct neat_span s;
	int err;

	n = n < max ? n : max;
	if (n) {
		s = neat_ring_span(e->proc->seg, e->slot, NEAT_RX, a64_acquire(&pub(e)->rx_ring), tail, (uint32_t)n);
		verify(e, s.p[0], s.len[0]);
		e->rx += s.len[0];
		verify(e, s.p[1], s.len[1]);
		e->rx += s.len[1];
		a64_release(&app(e)->rx_tail, tail + n);
		app_kick(e);
		return (int)n;
	}
	if (!over)
		return 0;
	err = app_take_error(e);
	return err ? -err : -END_OF_FILE;
}

static int app_send(struct end *e, uint64_t len)
{
	uint32_t flags = app_flags(e);
	uint64_t tail = a64_relaxed(&app(e)->tx_tail), una = a64_acquire(&pub(e)->tx_una), used = tail - una;
	uint64_t limit = a32_relaxed(&pub(e)->tx_limit), was, word;
	struct neat_span s;
	int err = app_take_error(e);

	if (err)
		return -err;
	if (flags & (NEAT_SLOT_TX_SHUT | NEAT_SLOT_HUP | NEAT_SLOT_DEAD))
		return -EPIPE;
	if (!(flags & NEAT_SLOT_CONNECTED) || used >= limit)
		return 0;
	len = len < limit - used ? len : limit - used;
	was = a64_relaxed(&app(e)->tx_ring);
	word = neat_ring_reserve(e->proc->seg, e->slot, NEAT_TX, was, una, tail, len);
	if (word != was)
		a64_release(&app(e)->tx_ring, word);
	s = neat_ring_span(e->proc->seg, e->slot, NEAT_TX, word, tail, (uint32_t)len);
	for (uint64_t i = 0; i < len; i++)
		(i < s.len[0] ? s.p[0] : s.p[1] - s.len[0])[i] = byte_of(e->stream, e->tx + i);
	a64_release(&app(e)->tx_tail, tail + len);
	app_kick(e);
	return (int)len;
}

/* ---- endpoints of the remote host ---- */

static struct host_info info(const struct end *e)
{
	struct host_info i;

	host_info(remote_host(e->m), e->slot, &i);
	return i;
}

static void remote_connect(struct end *e, uint32_t addr, uint16_t port, uint16_t lport, const struct neat_opts *o)
{
	int slot = host_connect(remote_host(e->m), 0, lport, addr, port, o ? o->w : NULL);

	e->slot = slot > 0 ? (uint32_t)slot : 0;
	e->err = slot > 0 ? 0 : -slot;
}

static uint32_t remote_flags(struct end *e)
{
	struct host_info i;

	if (!e->slot)
		return NEAT_SLOT_ERROR | NEAT_SLOT_HUP;
	i = info(e);
	if (i.flags & NEAT_SLOT_ERROR && !e->err)
		e->err = (int)i.err;
	return i.flags;
}

static bool remote_accept(struct end *e, struct listening *l)
{
	int slot = host_accept(remote_host(e->m), l->slot);

	if (slot < 0)
		return false;
	e->slot = (uint32_t)slot;
	e->stream = info(e).rport * 2u + 1;
	return true;
}

static int remote_recv(struct end *e, uint64_t max)
{
	static uint8_t buf[PIECE];
	uint32_t n = e->slot ? host_read(remote_host(e->m), e->slot, buf, (uint32_t)(max < PIECE ? max : PIECE)) : 0;
	uint32_t flags;
	int err;

	verify(e, buf, n);
	e->rx += n;
	if (n)
		return (int)n;
	flags = remote_flags(e);
	if (!(flags & (NEAT_SLOT_RX_EOF | NEAT_SLOT_HUP | NEAT_SLOT_ERROR)))
		return 0;
	err = e->err;
	e->err = -1;	/* SO_ERROR is reported once */
	return err > 0 ? -err : -END_OF_FILE;
}

static int remote_send(struct end *e, uint64_t len)
{
	static uint8_t buf[PIECE];
	uint32_t flags = remote_flags(e), room = e->slot ? host_room(remote_host(e->m), e->slot) : 0;
	int err = e->err;

	if (err > 0) {
		e->err = -1;
		return -err;
	}
	if (flags & (NEAT_SLOT_TX_SHUT | NEAT_SLOT_HUP | NEAT_SLOT_DEAD))
		return -EPIPE;
	if (!(flags & NEAT_SLOT_CONNECTED) || !room)
		return 0;
	len = len < room ? len : room;
	len = len < PIECE ? len : PIECE;
	for (uint64_t i = 0; i < len; i++)
		buf[i] = byte_of(e->stream, e->tx + i);
	return (int)host_write(remote_host(e->m), e->slot, buf, (uint32_t)len);
}

/* ---- both ---- */

static void moved(struct end *e, bool yes) { e->actor->moves += yes; }

void end_connect(struct end *e, uint32_t addr, uint16_t port, uint16_t lport, const struct neat_opts *o)
{
	e->sock = ++e->m->next_sock;
	e->stream = lport * 2u;
	e->open = true;
	if (e->proc)
		app_connect(e, addr, port, lport, o);
	else
		remote_connect(e, addr, port, lport, o);
	moved(e, true);
}

uint32_t end_flags(struct end *e)
{
	uint32_t f = e->proc ? app_flags(e) : remote_flags(e), out = 0;

	out |= f & NEAT_SLOT_CONNECTED ? END_CONNECTED : 0;
	out |= f & NEAT_SLOT_RX_EOF ? END_EOF : 0;
	out |= f & (NEAT_SLOT_HUP | NEAT_SLOT_ERROR) ? END_OVER : 0;
	return out;
}

bool end_accept(struct end *e, struct listening *l)
{
	if (!e->sock)
		e->sock = ++e->m->next_sock;
	e->open = e->proc ? app_accept(e, l) : remote_accept(e, l);
	e->actor->accepting = !e->open;
	moved(e, e->open);
	return e->open;
}

int end_send(struct end *e, uint64_t len)
{
	int n = e->proc ? app_send(e, len) : remote_send(e, len);

	if (n > 0)
		e->tx += (uint64_t)n;
	moved(e, n != 0);
	return n;
}

int end_recv(struct end *e, uint64_t max)
{
	int n = e->proc ? app_recv(e, max) : remote_recv(e, max);

	moved(e, n != 0);
	return n;
}

uint64_t end_readable(struct end *e)
{
	return e->proc ? app_readable(e) : host_readable(remote_host(e->m), e->slot);
}

void end_shutdown(struct end *e, uint32_t how)
{
	if (e->proc) {
		a32_or(&app(e)->shut, how);
		app_kick(e);
	} else {
		host_shutdown(remote_host(e->m), e->slot, how);
	}
	moved(e, true);
}

void end_option(struct end *e, enum neat_opt opt, uint32_t value)
{
	if (e->proc) {
		app(e)->opts.w[opt] = value;
		a32_add(&app(e)->optgen, 1);
		app_kick(e);
	} else if (e->slot) {
		host_option(remote_host(e->m), e->slot, opt, value);
	}
	moved(e, true);
}

static void drop_slot(struct end *e)
{
	uint32_t bit = e->slot - NEAT_SLOT_APP_FIRST;

	app_command(e, NEAT_CMD_CLOSE);
	if (e->slot >= NEAT_SLOT_APP_FIRST)
		e->proc->claimed[bit / 64] &= ~(1ull << bit % 64);
	actor_watch(e->actor, 0);
}

void end_close(struct end *e)
{
	if (e->proc)
		drop_slot(e);
	else if (e->slot)
		host_close(remote_host(e->m), e->slot);
	e->open = false;
	moved(e, true);
}

void end_abort(struct end *e)
{
	if (e->proc)
		app_command(e, NEAT_CMD_ABORT);
	else if (e->slot)
		host_abort(remote_host(e->m), e->slot);
	end_close(e);
}
