/*
 * remote.c - the NIC at the other end of the replica's queue pair, a wire with a delay and scripted
 * faults, and a remote host with its own copy of the stack (tests/stack/harness.c), which dies never.
 */
#include "machine.h"
#include "gso.h"
#include <stdio.h>
#include <stdlib.h>

struct flying { uint64_t at; bool to_replica; uint16_t flags; uint32_t len; uint8_t *bytes; };

enum { FLYING_MAX = 4096, TOLD_MAX = 64, TAKEN_MAX = 16, TCP_OPTIONS = 20, OPTION_WSCALE = 3 };

/* What the replica told the remote host of a window. */
struct told { uint16_t lport, rport; uint8_t wscale; bool any; uint32_t edge; };

struct remote {
	struct host *host;
	struct flying queue[FLYING_MAX];	/* in order of arrival time */
	uint32_t n;
	uint64_t rx_tail, tx_head;
	uint32_t tcp_frames[2];		/* by direction: what wire rules count */
	struct told told[TOLD_MAX];
	uint16_t taken[TAKEN_MAX];	/* local ports of another replica's connections */
	uint32_t ntaken;
};

struct host *remote_host(const struct machine *m) { return m->remote->host; }

void remote_new(struct machine *m, uint64_t seed)
{
	const struct host_config c = {
		.addr = THERE, .prefix = 24, .mtu = 1500, .lo_mtu = 65535, .rcvbuf = 1u << 20, .sndbuf = 1u << 20,
		.connections = 64, .backlog = 64, .time_wait_ms = 2000, .seed = seed, .now_us = m->now_us,
	};

	m->remote = calloc(1, sizeof(*m->remote));
	m->remote->host = host_new(&c);
	if (!m->remote->host)
		abort();
	host_learn(m->remote->host, HERE);
}

static void fly(struct machine *m, struct flying f, uint64_t at)
{
	struct remote *r = m->remote;
	uint32_t i;

	if (r->n == FLYING_MAX) {
		machine_fail(m, "more than %d frames on the wire", FLYING_MAX);
		return;
	}
	f.at = at;
	for (i = r->n++; i > 0 && r->queue[i - 1].at > at; i--)
		r->queue[i] = r->queue[i - 1];
	r->queue[i] = f;
}

static int rule(struct machine *m, bool to_replica, uint32_t n)
{
	for (const struct wire_rule *w = m->rules; w && w->what; w++) {
		uint32_t k = n - w->first;

		if (w->to_replica == to_replica && n >= w->first && k % (w->every ? w->every : 1) == 0 &&
		    k / (w->every ? w->every : 1) < w->count)
			return (int)w->what;
	}
	return 0;
}

static struct flying copy_of(const struct flying *f)
{
	struct flying c = *f;

	c.bytes = malloc(f->len);
	memcpy(c.bytes, f->bytes, f->len);
	return c;
}

static void trace(const struct machine *m, bool to_replica, const uint8_t *bytes, uint32_t len, int what)
{
	static const char *const fate[] = { "", " DROPPED", " TWICE", " LATE" };
	struct frame f = frame_parse(bytes, len < FRAME_LOOK ? len : FRAME_LOOK, !to_replica);

	if (f.kind == FRAME_TCP)
		printf("%8lu %s ports %u %u seq %u ack %u len %u%s%s%s%s\n", m->now_us - m->start_us,
		       to_replica ? "->" : "<-", f.t.lport, f.t.rport, f.seq, f.ack, len - f.payload,
		       f.tcp_flags & FRAME_SYN ? " SYN" : "", f.tcp_flags & FRAME_FIN ? " FIN" : "",
		       f.tcp_flags & FRAME_RST ? " RST" : "", fate[what]);
	else
		printf("%8lu %s kind %d len %u\n", m->now_us - m->start_us, to_replica ? "->" : "<-", f.kind, len);
}

static uint8_t wscale_of(const uint8_t *tcp)
{
	for (uint32_t i = TCP_OPTIONS; i < (uint32_t)(tcp[12] >> 4) * 4; i += tcp[i] > 1 ? tcp[i + 1] : 1)
		if (tcp[i] == OPTION_WSCALE)
			return tcp[i + 2];
	return 0;
}

static struct told *told_of(struct remote *r, const struct frame *f)
{
	struct told *t = r->told;

	while (t->lport && (t->lport != f->t.lport || t->rport != f->t.rport))
		if (++t == r->told + TOLD_MAX)
			abort();	/* no scenario has so many connections */
	return t;
}

/* W5, RFC 9293 3.8.6: the right edge of a window does not move left, but by its scale (RFC 7323 2.4). */
static void check_window(struct machine *m, const uint8_t *bytes, const struct frame *f)
{
	const uint8_t *tcp = bytes + f->l4_offset;
	struct told *t = told_of(m->remote, f);
	uint32_t edge = f->ack + ((uint32_t)frame_be16(tcp + 14) << (f->tcp_flags & FRAME_SYN ? 0 : t->wscale));

	if (f->tcp_flags & FRAME_SYN)
		*t = (struct told){ .lport = f->t.lport, .rport = f->t.rport, .wscale = wscale_of(tcp) };
	if (f->tcp_flags & FRAME_RST || !(f->tcp_flags & FRAME_ACK) || !t->lport)
		return;
	if (t->any && (int32_t)(edge - t->edge) + (1 << t->wscale) < 0)
		machine_fail(m, "the window of port %u shrinks by %u", f->t.lport, t->edge - edge);
	if (!t->any || (int32_t)(edge - t->edge) > 0)
		t->edge = edge;
	t->any = true;
}

static void send(struct machine *m, bool to_replica, const uint8_t *bytes, uint32_t len, bool tcp)
{
	const struct flying orig = { .to_replica = to_replica, .len = len, .bytes = (uint8_t *)(uintptr_t)bytes };
	uint64_t at = m->now_us + m->delay_us;
	int what = tcp ? rule(m, to_replica, m->remote->tcp_frames[to_replica]++) : 0;

	if (m->trace)
		trace(m, to_replica, bytes, len, what);
	m->frames++;
	m->segments += tcp;
	if (what == WIRE_DROP)
		return;
	if (what == WIRE_DUP)
		fly(m, copy_of(&orig), at);
	fly(m, copy_of(&orig), what == WIRE_LATE ? at + 2 * m->delay_us + 100 : at);
}

/* The remote host's kernel, as far as the replica is concerned, answers ARP. */
static void arp(struct machine *m, const uint8_t *f)
{
	uint8_t out[42];

	if (f[21] != 1)
		return;
	memcpy(out, f, sizeof(out));
	memcpy(out, f + 6, 6);
	memcpy(out + 6, (const uint8_t[]){ 2, 0, 0, 0, 0, 2 }, 6);
	out[21] = 2;
	memcpy(out + 22, out + 6, 6);
	memcpy(out + 28, f + 38, 4);
	memcpy(out + 32, f + 22, 10);
	send(m, true, out, sizeof(out), false);
}

void remote_announce(struct machine *m)
{
	static const uint8_t request[42] = {
		255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
		2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1,
	};

	send(m, true, request, sizeof(request), false);
}

/* The ports that are tried first are the other replica's, and stay so. */
static bool is_taken(const struct machine *m, const struct frame *f)
{
	struct remote *r = m->remote;
	uint32_t i = 0;

	if (f->kind != FRAME_TCP || (f->tcp_flags & (FRAME_SYN | FRAME_ACK)) != FRAME_SYN)
		return false;
	while (i < r->ntaken && r->taken[i] != f->t.lport)
		i++;
	if (i < r->ntaken || r->ntaken == u32_min(m->taken, TAKEN_MAX))
		return i < r->ntaken;
	r->taken[r->ntaken++] = f->t.lport;
	return true;
}

static void transmit(struct machine *m, const uint8_t *bytes, const struct neat_frame_desc *d)
{
	static uint8_t seg[NEAT_QP_BUF], whole[NEAT_QP_BUF];
	struct frame f = frame_parse(bytes, d->len < FRAME_LOOK ? d->len : FRAME_LOOK, true);

	if (is_taken(m, &f)) {
		const struct flying back = { .to_replica = true, .flags = NEAT_FRAME_RETURNED, .len = d->len,
					     .bytes = (uint8_t *)(uintptr_t)bytes };

		fly(m, copy_of(&back), m->now_us + m->delay_us);
		return;
	}
	if (f.kind == FRAME_TCP)
		check_window(m, bytes, &f);
	if (f.kind == FRAME_ARP) {
		arp(m, bytes);
	} else if (f.kind == FRAME_TCP && d->gso_size) {
		for (uint32_t i = 0, n = gso_segments(&f, d->len, d->gso_size); i < n; i++)
			send(m, false, seg, gso_segment(bytes, d->len, &f, d->gso_size, i, seg), true);
	} else if (f.kind != FRAME_BAD) {
		memcpy(whole, bytes, d->len);
		if (d->flags & NEAT_FRAME_CSUM_PARTIAL)
			gso_complete(whole, d->len, &f);
		send(m, false, whole, d->len, f.kind == FRAME_TCP);
	} else {
		machine_fail(m, "the replica sent a malformed frame");
	}
}

/* The NIC takes what the replica published. */
static bool take(struct machine *m)
{
	struct neat_frame_ring *tx = &m->qp->tx;
	uint32_t n = neat_ring_ready(NEAT_QP_ENTRIES, &tx->tail, m->remote->tx_head);
	uint64_t now_us = m->now_us - m->start_us;

	if (now_us >= m->nic_stops_us && now_us < m->nic_goes_us)
		return false;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t at = m->remote->tx_head++;
		const struct neat_frame_desc *d = &tx->desc[at & (NEAT_QP_ENTRIES - 1)];

		transmit(m, (uint8_t *)m->qp + NEAT_QP_BUFS +
			    (NEAT_QP_ENTRIES + (at & (NEAT_QP_ENTRIES - 1))) * (uint64_t)NEAT_QP_BUF, d);
	}
	a64_release(&tx->head, m->remote->tx_head);
	return n != 0;
}

void remote_death(struct machine *m)
{
	struct neat_frame_ring *tx = &m->qp->tx;

	if (m->fence_drops) {
		m->remote->tx_head = a64_relaxed(&tx->tail);
		a64_release(&tx->head, m->remote->tx_head);
	} else {
		take(m);
	}
}

static void to_replica(struct machine *m, const struct flying *f)
{
	struct neat_frame_ring *rx = &m->qp->rx;
	uint64_t tail = m->remote->rx_tail;

	if (tail - a64_acquire(&rx->head) >= NEAT_QP_ENTRIES)
		return;		/* no room: lost */
	rx->desc[tail & (NEAT_QP_ENTRIES - 1)] = (struct neat_frame_desc){ .len = f->len, .flags = f->flags };
	memcpy((uint8_t *)m->qp + NEAT_QP_BUFS + (tail & (NEAT_QP_ENTRIES - 1)) * (uint64_t)NEAT_QP_BUF, f->bytes, f->len);
	a64_release(&rx->tail, ++m->remote->rx_tail);
}

static bool arrive(struct machine *m)
{
	struct remote *r = m->remote;
	bool any = false;

	while (r->n && r->queue[0].at <= m->now_us) {
		struct flying f = r->queue[0];

		memmove(&r->queue[0], &r->queue[1], --r->n * sizeof(f));
		if (f.to_replica)
			to_replica(m, &f);
		else if (frame_be16(f.bytes + 12) == 0x0800)
			host_in(r->host, f.bytes + FRAME_ETH, f.len - FRAME_ETH);
		free(f.bytes);
		any = true;
	}
	return any;
}

static bool host_frames(struct machine *m)
{
	static uint8_t f[NEAT_QP_BUF] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0 };
	bool any = false;
	int len;

	while ((len = host_out(m->remote->host, f + FRAME_ETH, sizeof(f) - FRAME_ETH)) >= 0) {
		send(m, true, f, (uint32_t)len + FRAME_ETH, true);
		any = true;
	}
	return any;
}

bool remote_run(struct machine *m)
{
	bool any = take(m);

	host_time(m->remote->host, m->now_us);
	any |= arrive(m);
	while (actors_run(m, NULL, true))
		any = true;
	return host_frames(m) || any;
}

uint64_t remote_deadline(const struct machine *m)
{
	uint64_t at = host_deadline(m->remote->host), goes_us = m->start_us + m->nic_goes_us;

	if (m->now_us < goes_us && goes_us < at)
		at = goes_us;
	if (m->remote->n && m->remote->queue[0].at < at)
		at = m->remote->queue[0].at;
	return at;
}
