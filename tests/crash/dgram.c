/* dgram.c - see dgram.h. */
#include "dgram.h"
#include <errno.h>

enum { LEN_MIN = 8, LEN_MAX = 2048 };

static struct neat_slot_pub *pub(const struct end *e) { return &e->proc->pub->slots[e->slot]; }
static struct neat_slot_app *app(const struct end *e) { return &e->proc->seg->slots[e->slot]; }

/* ---- content ---- */

static uint8_t byte_of(uint32_t stream, uint32_t number, uint32_t at)
{
	return (uint8_t)(at * 131 + (at >> 8) * 29 + number * 17 + stream * 59);
}

static void fill(uint8_t *p, uint32_t stream, uint32_t number, uint32_t len)
{
	memcpy(p, &stream, 4);
	memcpy(p + 4, &number, 4);
	for (uint32_t i = LEN_MIN; i < len; i++)
		p[i] = byte_of(stream, number, i);
}

static bool whole(const uint8_t *p, uint32_t len, uint16_t port, uint32_t *number)
{
	uint32_t stream;

	if (len < LEN_MIN)
		return false;
	memcpy(&stream, p, 4);
	memcpy(number, p + 4, 4);
	for (uint32_t i = LEN_MIN; i < len; i++)
		if (p[i] != byte_of(stream, *number, i))
			return false;
	return stream == port;
}

/* False: the datagram came before. */
static bool hear(struct end *e, uint32_t addr, uint16_t port, uint32_t number)
{
	struct heard *h = e->heard;

	for (e->from = 0; h->port && (h->port != port || h->addr != addr); h++)
		e->from++;
	if (e->from == sizeof(e->heard) / sizeof(e->heard[0]) - 1)
		abort();	/* no scenario has so many sources */
	h->addr = addr;
	h->port = port;
	if (number <= h->last) {
		e->m->repeated++;
		if (number < h->last)
			machine_fail(e->m, "%s: datagram %u of port %u came after %u", e->actor->name, number, port, h->last);
		return false;
	}
	e->m->lost += number - h->last - 1;
	h->last = number;
	h->count++;
	return true;
}

/* ---- endpoints ---- */

void dgram_open(struct end *e, uint16_t port, const struct neat_opts *o)
{
	e->sock = ++e->m->next_sock;
	e->stream = port;
	e->open = true;
	e->actor->moves++;
	if (!e->proc) {
		int slot = host_udp_open(remote_host(e->m), 0, port, o ? o->w : NULL);

		e->slot = slot > 0 ? (uint32_t)slot : 0;
		return;
	}
	app_claim(e);
	app(e)->laddr = 0;
	app(e)->lport = port;
	app(e)->raddr = 0;
	app(e)->rport = 0;
	app(e)->opts = o ? *o : (struct neat_opts){ 0 };
	app_command(e, NEAT_CMD_UDP);
}

int dgram_opened(const struct end *e)
{
	uint32_t flags = e->proc ? app_flags(e) : NEAT_SLOT_DATAGRAM;

	if (flags & NEAT_SLOT_HUP)
		return -(int)neat_status_errno(a64_acquire(&pub(e)->status));
	return flags & NEAT_SLOT_DATAGRAM ? 1 : 0;
}

void dgram_peer(struct end *e, uint32_t addr, uint16_t port)
{
	e->actor->moves++;
	if (!e->proc) {
		host_udp_peer(remote_host(e->m), e->slot, addr, port);
		return;
	}
	app(e)->raddr = addr;
	app(e)->rport = port;
	a32_add(&app(e)->optgen, 1);
	app_kick(e);
}

/* connect() returns when the replica hears this peer only (shim/client/dgram.c). */
bool dgram_peered(const struct end *e)
{
	return !e->proc || (pub(e)->raddr == app(e)->raddr && pub(e)->rport == app(e)->rport);
}

int dgram_error(struct end *e)
{
	struct host_info i;
	int err;

	if (e->proc)
		return app_take_error(e);
	host_info(remote_host(e->m), e->slot, &i);
	err = i.flags & NEAT_SLOT_ERROR && e->err == 0 ? (int)i.err : 0;
	if (err)
		e->err = -1;
	return err;
}

static int put(struct end *e, uint32_t addr, uint16_t port, const uint8_t *data, uint32_t len)
{
	const struct neat_dgram h = { .len = len, .addr = addr, .port = port };
	uint64_t tail = a64_relaxed(&app(e)->tx_tail), una = a64_acquire(&pub(e)->tx_una), was, word;
	uint32_t need = (uint32_t)sizeof(h) + len;
	uint8_t one[sizeof(h) + LEN_MAX];
	struct neat_span span;

	if (tail - una >= a32_relaxed(&pub(e)->tx_limit))
		return 0;
	was = a64_relaxed(&app(e)->tx_ring);
	word = neat_ring_reserve(e->proc->seg, e->slot, NEAT_TX, was, una, tail, need);
	if (word != was)
		a64_release(&app(e)->tx_ring, word);
	memcpy(one, &h, sizeof(h));
	memcpy(one + sizeof(h), data, len);
	span = neat_ring_span(e->proc->seg, e->slot, NEAT_TX, word, tail, need);
	neat_span_write(&span, one);
	a64_release(&app(e)->tx_tail, tail + need);
	app_kick(e);
	return (int)len;
}

int dgram_send(struct end *e, uint32_t addr, uint16_t port, uint32_t len)
{
	uint8_t data[LEN_MAX];
	int n;

	fill(data, e->stream, (uint32_t)e->tx + 1, len);
	if (e->proc) {
		n = put(e, addr, port, data, len);
	} else {
		host_udp_send(remote_host(e->m), e->slot, addr, port, data, len);
		n = (int)len;
	}
	e->tx += n > 0;
	e->actor->moves += n > 0;
	return n;
}

static int app_recv(struct end *e, uint8_t *data, uint32_t *addr, uint16_t *port)
{
	uint64_t tail = a64_relaxed(&app(e)->rx_tail), n = a64_acquire(&pub(e)->rx_head) - tail, word;
	struct neat_span span;
	struct neat_dgram h;

	if (n < sizeof(h))
		return -EAGAIN;
	word = a64_acquire(&pub(e)->rx_ring);
	span = neat_ring_span(e->proc->seg, e->slot, NEAT_RX, word, tail, sizeof(h));
	neat_span_read(&span, &h);
	if (h.len > LEN_MAX || h.len > n - sizeof(h))
		return -EIO;
	span = neat_ring_span(e->proc->seg, e->slot, NEAT_RX, word, tail + sizeof(h), h.len);
	neat_span_read(&span, data);
	a64_release(&app(e)->rx_tail, tail + sizeof(h) + h.len);
	*addr = h.addr;
	*port = h.port;
	return (int)h.len;
}

int dgram_recv(struct end *e)
{
	uint8_t data[LEN_MAX];
	uint32_t addr, number;
	uint16_t port;
	int n;

	for (;;) {
		n = e->proc ? app_recv(e, data, &addr, &port) :
			      host_udp_recv(remote_host(e->m), e->slot, data, sizeof(data), &addr, &port);
		if (n == -EAGAIN)
			return 0;
		e->actor->moves++;
		if (n < 0 || !whole(data, (uint32_t)n, port, &number)) {
			machine_fail(e->m, "%s: what it received is no datagram that was sent (%d)", e->actor->name, n);
			return -EIO;
		}
		if (!hear(e, addr, port, number))
			continue;
		e->rx++;
		return n;
	}
}

void dgram_close(struct end *e)
{
	if (e->proc)
		end_close(e);
	else
		host_udp_close(remote_host(e->m), e->slot);
	e->open = false;
	e->actor->moves++;
}

/* ---- the script ---- */

enum { U_DUE, U_ERRORS, U_ERR, U_REPEATED };	/* variables */

static void take_error(struct actor *a, const struct gram *g)
{
	int err = dgram_error(&a->end[0]);

	if (!err)
		return;
	a->moves++;
	/* One for each datagram; one more is the answer to a repetition, or itself repeated. */
	if (a->u[U_ERRORS] == a->end[0].tx && g->errors)
		a->m->repeated++;
	else
		a->u[U_ERRORS]++;
	a->u[U_ERR] = (uint64_t)err;
}

static void do_send(struct actor *a, const struct gram *g)
{
	struct end *e = &a->end[0];

	while (g->addr && e->tx < g->send && a->m->now_us >= a->u[U_DUE] && a->u[U_ERRORS] >= (g->errors ? e->tx : 0)) {
		if (dgram_send(e, g->addr, g->to, g->len) == 0)
			return;
		if (g->gap_us)
			a->u[U_DUE] = a->m->now_us + g->gap_us;
	}
}

static void do_recv(struct actor *a, const struct gram *g)
{
	struct end *e = &a->end[0];
	uint32_t before = a->m->repeated;

	while (dgram_recv(e) > 0)
		if (g->answer)
			dgram_send(e, e->heard[e->from].addr, e->heard[e->from].port, g->len);
	a->u[U_REPEATED] += a->m->repeated - before;
}

static bool pump(struct actor *a, const struct gram *g)
{
	uint64_t now = a->m->now_us - a->m->start_us;
	struct end *e = &a->end[0];

	take_error(a, g);
	do_send(a, g);
	if (now >= g->recv_from_us)
		do_recv(a, g);
	a->wake_us = 0;
	if (now < g->recv_from_us)
		a->wake_us = a->m->start_us + g->recv_from_us;
	else if (now < g->recv_until_us)
		a->wake_us = a->m->start_us + g->recv_until_us;
	if (e->tx < g->send && a->m->now_us < a->u[U_DUE])
		a->wake_us = a->u[U_DUE];
	return (!g->addr || e->tx >= g->send) && a->u[U_ERRORS] >= g->errors && now >= g->recv_until_us &&
	       now >= g->recv_from_us && e->rx + (g->limit ? a->u[U_REPEATED] : 0) >= g->recv;
}

static void report(struct actor *a, const struct gram *g)
{
	const struct end *e = &a->end[0];

	a->wake_us = 0;
	actor_log(a, "sent %lu errors %lu (%lu) received", e->tx, a->u[U_ERRORS], a->u[U_ERR]);
	for (const struct heard *h = e->heard; h->port; h++)
		actor_log(a, " %lu of port %u", (g->lossy ? h->last : h->count) + (g->limit ? a->u[U_REPEATED] : 0), h->port);
}

void gram(struct actor *a)
{
	const struct gram *g = a->arg;
	struct end *e = &a->end[0];

	BEGIN(a);
	if (g->start_us)
		SLEEP_UNTIL(a, a->m->start_us + g->start_us);
	dgram_open(e, g->port, g->opts);
	WAIT(a, dgram_opened(e) != 0);
	if (dgram_opened(e) < 0) {
		actor_log(a, "refused: %d", dgram_opened(e));
	} else {
		if (g->connected) {
			dgram_peer(e, g->addr, g->to);
			WAIT(a, dgram_peered(e));
		}
		WAIT(a, pump(a, g));
		report(a, g);
	}
	dgram_close(e);
	END(a);
}
