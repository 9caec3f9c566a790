/*
 * fuzz.c - hostile segments, odd applications and jumps of time against the whole stack, built with
 * ASan and UBSan. Usage: fuzz SEED STEPS. Exit 0 and one line of statistics, or abort() with the
 * step at which an invariant broke; the same seed breaks at the same step.
 *
 * Most segments are made from a live control block's own numbers, so that they land in the window
 * and reach the code behind the first checks.
 */
#include "harness.c"
#include <stdio.h>

enum { HERE = 0x0a000001, KEYS_MAX = 1 << 16, PEERS = 6 };

struct fuzz {
	struct host *h;
	uint64_t rng;
	uint32_t step, listeners[2];
	struct flow_key keys[KEYS_MAX];
	uint32_t nkeys;
	uint64_t sent, established;
};

static uint64_t rnd(struct fuzz *f)
{
	f->rng ^= f->rng << 13;
	f->rng ^= f->rng >> 7;
	f->rng ^= f->rng << 17;
	return f->rng * 0x2545f4914f6cdd1dull >> 11;
}
static uint32_t below(struct fuzz *f, uint32_t n) { return (uint32_t)(rnd(f) % n); }
static bool chance(struct fuzz *f, uint32_t percent) { return below(f, 100) < percent; }

#define CHECK(e) do { \
	if (!(e)) { \
		fprintf(stderr, "step %u: %s does not hold\n", f->step, #e); \
		abort(); \
	} \
} while (0)

/* ---- invariants ---- */

static void check_ranges(struct fuzz *f, const struct tcp_ranges *r, uint64_t low, uint64_t high)
{
	uint64_t total = 0, at = low;

	CHECK(r->n <= TCP_RANGES);
	for (uint32_t i = 0; i < r->n; i++) {
		CHECK(r->r[i].start > at || (i == 0 && r->r[i].start >= at));
		CHECK(r->r[i].end > r->r[i].start);
		at = r->r[i].end;
		total += r->r[i].end - r->r[i].start;
	}
	CHECK(total == r->total);
	CHECK(r->n == 0 || at <= high);
}

/* What was sent when: contiguous from snd_una to snd_nxt. */
static void check_sent(struct fuzz *f, const struct tcb *t)
{
	const struct tcp_sent *b = t->sent;
	uint64_t at = b->start;

	CHECK(b->first + b->n <= TCP_SENT_RECORDS && !(t->flags & TCB_LOCAL));
	for (uint32_t i = 0; i < b->n; i++) {
		CHECK(at < b->r[b->first + i].end);
		at = b->r[b->first + i].end;
	}
	CHECK(b->n == 0 || (b->start == snd_una(t) && at == t->snd_nxt));
	CHECK(tcp_sent_lost(t) + (t->holes ? t->holes->sacked.total : 0) <= t->snd_nxt - snd_una(t));
}

static void check_tcb(struct fuzz *f, const struct tcb *t)
{
	enum tcp_state state = tcp_state(t);

	if (state == TCP_FREE || state == TCP_CLOSED)
		return;
	CHECK(flow_find(&f->h->stack, &t->key) == t);
	CHECK(snd_una(t) <= t->snd_nxt && t->snd_nxt <= snd_max(t));
	CHECK(snd_max(t) <= tx_tail(t) + 1 + tcp_fin_queued(t));
	CHECK(t->mss >= TCP_MSS_MIN - TCP_TS_LEN && t->mss <= TCP_MSS_MAX);
	CHECK(t->snd_nxt == snd_una(t) || t->rtx_at_us || t->flags & TCB_ON_RESUME);
	CHECK(t->rtx_kind != TCP_RTX_PERSIST || t->snd_nxt == snd_una(t));
	if (state == TCP_SYN_SENT)
		return;
	CHECK(rx_tail(t) + 1 <= rcv_nxt(t) && rcv_nxt(t) <= t->rcv_adv);
	CHECK(t->rcv_adv - rx_tail(t) <= neat_ring_max(NEAT_RX) + 1);
	CHECK(fin_rx_seq(t) == 0 || rcv_nxt(t) <= fin_rx_seq(t) + 1);
	if (state == TCP_SYN_RCVD)
		return;
	CHECK(t->cwnd >= t->mss || t->cwnd >= TCP_MSS_MIN);
	if (t->holes) {
		check_ranges(f, &t->holes->ooo, fin_rx_seq(t) ? 0 : rcv_nxt(t) + 1, t->rcv_adv);
		check_ranges(f, &t->holes->sacked, snd_una(t), t->snd_nxt);
	}
	if (t->sent)
		check_sent(f, t);
	CHECK(timer_armed(&t->timer) || !(t->rtx_at_us || t->ack_at_us || t->cork_at_us || t->aux_at_us));
}

static void check_all(struct fuzz *f)
{
	struct tcp *tcp = f->h->stack.tcp;
	uint32_t half_open = 0;

	for (uint32_t i = 0; i < a32_relaxed(&tcp->arena->high_tcb); i++)
		check_tcb(f, &tcp->tcbs[i]);
	for (uint32_t i = 0; i < a32_relaxed(&tcp->arena->high_request); i++)
		half_open += a32_relaxed(&tcp->requests[i].state) != 0;
	CHECK(half_open == tcp->half_open);
	CHECK(tcp->listeners[0].half_open + tcp->listeners[1].half_open == half_open);
}

/* ---- segments ---- */

static uint32_t near(struct fuzz *f, uint32_t value)
{
	static const int32_t step[] = { 0, 0, 0, 0, 0, 0, 1, -1, 2, 10, 100, -100, 1460, 5000, 60000, -65535 };

	if (chance(f, 3))
		return (uint32_t)rnd(f);
	return value + (uint32_t)step[below(f, sizeof(step) / sizeof(step[0]))];
}

static const struct tcb *any_tcb(struct fuzz *f)
{
	struct tcp *tcp = f->h->stack.tcp;

	for (int i = 0; i < 20 && a32_relaxed(&tcp->arena->high_tcb); i++) {
		const struct tcb *t = &tcp->tcbs[below(f, a32_relaxed(&tcp->arena->high_tcb))];

		if (tcp_state(t) != TCP_FREE)
			return t;
	}
	return NULL;
}

static uint32_t put_option(struct fuzz *f, uint8_t *o, const struct tcb *t)
{
	uint32_t n;

	switch (below(f, 8)) {
	case 0:
		o[0] = 2, o[1] = 4;
		put16(o + 2, (uint32_t)rnd(f) & 0xffff);
		return 4;
	case 1:
		o[0] = 3, o[1] = 3, o[2] = (uint8_t)below(f, 16);
		return 3;
	case 2:
		o[0] = 4, o[1] = 2;
		return 2;
	case 3:
	case 4:
		o[0] = 8, o[1] = 10;
		put32(o + 2, near(f, t ? ts_recent(t) : 1));
		put32(o + 6, near(f, t ? tcp_now_ts(&f->h->stack, t->ts_offset) : 0));
		return 10;
	case 5:
	case 6:
		n = 1 + below(f, 3);
		o[0] = 5, o[1] = (uint8_t)(2 + 8 * n);
		for (uint32_t i = 0; i < 2 * n; i++)
			put32(o + 2 + 4 * i, near(f, t ? t->iss + (uint32_t)snd_una(t) : 0) +
					     (t ? below(f, 4) * t->mss : 0));
		return 2 + 8 * n;
	default:
		o[0] = (uint8_t)rnd(f), o[1] = (uint8_t)below(f, 8);
		return 2;
	}
}

static uint32_t make_segment(struct fuzz *f, uint8_t *p, const struct tcb *t)
{
	static const uint8_t flags[] = {
		TCP_ACK, TCP_ACK, TCP_ACK, TCP_ACK, TCP_ACK | TCP_PSH, TCP_ACK | TCP_FIN, TCP_SYN,
		TCP_SYN | TCP_ACK, TCP_RST, TCP_RST | TCP_ACK, TCP_FIN, 0,
	};
	uint32_t opt = 0, len = chance(f, 50) ? 0 : chance(f, 80) ? below(f, 1500) : below(f, 9000);
	struct flow_key k = {
		.laddr = HERE, .lport = (uint16_t)(80 + below(f, 3)), .raddr = HERE + 1 + below(f, PEERS),
		.rport = (uint16_t)(1000 + below(f, 20)),
	};
	uint8_t fl = flags[below(f, sizeof(flags))];

	if (t)
		k = t->key;
	else if (chance(f, 70))
		fl = TCP_SYN;
	if (f->nkeys < KEYS_MAX)
		f->keys[f->nkeys++] = k;
	memset(p, 0, 100);
	p[0] = 0x45, p[8] = 64, p[9] = IP_PROTO_TCP;
	put32(p + 12, k.raddr);
	put32(p + 16, k.laddr);
	put16(p + 20, k.rport);
	put16(p + 22, k.lport);
	put32(p + 24, t ? near(f, t->irs + (uint32_t)rcv_nxt(t)) : (uint32_t)rnd(f));
	put32(p + 28, t ? near(f, t->iss + (uint32_t)(chance(f, 50) ? snd_una(t) : snd_max(t))) : 0);
	put16(p + 34, chance(f, 20) ? 0 : chance(f, 30) ? below(f, 2000) : 0xffff);
	if (t && t->options & TCP_OPT_TS && chance(f, 80)) {
		p[40] = 8, p[41] = 10;
		put32(p + 42, ts_recent(t) + below(f, 3));
		put32(p + 46, tcp_now_ts(&f->h->stack, t->ts_offset));
		opt = 10;
	}
	while (opt < 12 && chance(f, fl & TCP_SYN ? 80 : 20))
		opt += put_option(f, p + 40 + opt, t);
	opt = (opt + 3) & ~3u;
	p[32] = (uint8_t)((5 + opt / 4) << 4);
	p[33] = fl | (uint8_t)(chance(f, 2) ? rnd(f) : 0);
	for (uint32_t i = 0; i < len; i++)
		p[40 + opt + i] = (uint8_t)i;
	return 40 + opt + len;
}

/* ARP and rubbish through the link layer. */
static void inject_frame(struct fuzz *f)
{
	uint32_t len = below(f, 80);
	uint8_t frame[80];
	static const uint8_t arp[] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0 };

	for (uint32_t i = 0; i < len; i++)
		frame[i] = i < sizeof(arp) && !chance(f, 2) ? arp[i] : (uint8_t)rnd(f);
	if (len >= 42 && chance(f, 80)) {
		frame[21] = (uint8_t)below(f, 3);
		put32(frame + 28, HERE + below(f, 300));
		put32(frame + 38, HERE + below(f, 2));
	}
	frame_in(f->h, frame, len, 0);
	host_drain(f->h);
}

static void inject(struct fuzz *f)
{
	uint8_t p[12000];
	uint32_t len = make_segment(f, p, chance(f, 85) ? any_tcb(f) : NULL);

	/* Wrong header length, cut short, flipped bits: half of them with checksums that fit. */
	if (chance(f, 3))
		p[32] = (uint8_t)rnd(f);
	if (chance(f, 3))
		len = 40 + below(f, len - 39);
	if (chance(f, 2))
		p[9] = chance(f, 40) ? IP_PROTO_ICMP : chance(f, 70) ? IP_PROTO_UDP : (uint8_t)rnd(f);
	checksums(p, len);
	if (chance(f, 4)) {
		for (uint32_t i = below(f, 4) + 1; i; i--)
			p[below(f, len < 60 ? len : 60)] ^= (uint8_t)(1u << below(f, 8));
		if (chance(f, 50))
			put16(p + 10, 0), put16(p + 10, finish(sum(0, p, 20)));
	}
	if (chance(f, 1))
		len = below(f, len);
	f->sent++;
	host_in(f->h, p, len);
}

/* A third segment for a half-open connection. */
static void complete_one(struct fuzz *f)
{
	struct tcp *tcp = f->h->stack.tcp;
	const struct tcp_request *r;
	uint8_t p[100] = { 0x45 };

	if (!a32_relaxed(&tcp->arena->high_request))
		return;
	r = &tcp->requests[below(f, a32_relaxed(&tcp->arena->high_request))];
	if (!a32_relaxed(&r->state))
		return;
	p[8] = 64, p[9] = IP_PROTO_TCP, p[32] = 0x50, p[33] = TCP_ACK;
	put32(p + 12, r->raddr);
	put32(p + 16, r->laddr);
	put16(p + 20, r->rport);
	put16(p + 22, r->lport);
	put32(p + 24, near(f, r->irs + 1));
	put32(p + 28, near(f, r->iss + 1));
	put16(p + 34, 0xffff);
	checksums(p, 40);
	host_in(f->h, p, 40);
}

/* ---- applications ---- */

/*
 * The application scribbles over its words while segments arrive, and perhaps dies so. A kick would
 * bring them to api.c first, which aborts the connection; here tcp itself reads them.
 */
static void torn_words(struct fuzz *f, uint32_t slot)
{
	struct neat_slot_app *app = &f->h->mem.app->slots[slot];
	uint64_t tx = a64_relaxed(&app->tx_tail), rx = a64_relaxed(&app->rx_tail);

	a64_store(&app->tx_tail, chance(f, 50) ? rnd(f) << 11 : tx + below(f, 1 << 21));
	a64_store(&app->rx_tail, chance(f, 50) ? rnd(f) << 11 : rx + below(f, 1 << 21));
	for (uint32_t i = below(f, 4); i; i--)
		inject(f);
	if (chance(f, 30) && f->h->tcb[slot]) {
		f->h->closed[slot] = 1;
		tcp_close(&f->h->stack, f->h->tcb[slot]);
		host_drain(f->h);
		return;
	}
	a64_store(&app->tx_tail, tx);
	/* What tcp took over it cannot be asked to forget. */
	if (f->h->tcb[slot] && rx_tail(f->h->tcb[slot]) > rx)
		rx = rx_tail(f->h->tcb[slot]);
	a64_store(&app->rx_tail, rx);
}

static uint32_t any_slot(struct fuzz *f)
{
	struct host *h = f->h;

	for (int i = 0; i < 20; i++) {
		uint32_t slot = chance(f, 60) ? below(f, h->next_born) : NEAT_SLOT_APP_FIRST + below(f, 32);

		if (h->live[slot] && !h->listener[slot] && !h->closed[slot])
			return slot;
	}
	return 0;
}

static void use(struct fuzz *f, uint32_t slot)
{
	static uint8_t buf[1 << 17];
	struct neat_slot_app *app = &f->h->mem.app->slots[slot];

	switch (below(f, 16)) {
	case 0: case 1: case 2: case 3: case 4:
		host_write(f->h, slot, buf, 1 + below(f, chance(f, 50) ? 100 : 100000));
		break;
	case 5: case 6: case 7: case 8:
		host_read(f->h, slot, buf, 1 + below(f, sizeof(buf) - 1));
		break;
	case 9:
		host_shutdown(f->h, slot, 1 + below(f, 3));
		break;
	case 10: case 11:
		host_close(f->h, slot);
		break;
	case 12:
		if (chance(f, 30))
			host_abort(f->h, slot);
		break;
	case 13:
		host_option(f->h, slot, below(f, 16), chance(f, 70) ? below(f, 256) : (uint32_t)rnd(f));
		break;
	case 14:	/* any value of these is the application's right: only its own bytes suffer */
		if (chance(f, 20))
			a64_store(&app->tx_ring, rnd(f) << 20 ^ rnd(f));
		break;
	default:
		if (chance(f, 20))
			a32_store(&app->shut, (uint32_t)rnd(f));
		else if (chance(f, 30))
			torn_words(f, slot);
		break;
	}
}

static void call(struct fuzz *f)
{
	uint32_t opts[16] = { below(f, 256), chance(f, 30) ? (uint32_t)rnd(f) : 0, chance(f, 30) ? below(f, 1 << 21) : 0 };
	uint32_t raddr = chance(f, 40) ? 0x7f000001 : HERE + 1 + below(f, PEERS);
	uint16_t rport = (uint16_t)(80 + below(f, 3));
	int slot;

	opts[NEAT_OPT_MAXSEG] = chance(f, 20) ? below(f, 3000) : 0;
	slot = host_connect(f->h, 0, chance(f, 20) ? (uint16_t)(80 + below(f, 3)) : 0, raddr, rport, opts);
	if (slot > 0 && f->h->tcb[slot] && f->nkeys < KEYS_MAX)
		f->keys[f->nkeys++] = f->h->tcb[slot]->key;
}

static void let_go(struct host *h)
{
	static uint8_t bin[1 << 20];

	while (host_out(h, bin, sizeof(bin)) >= 0)
		;
}

static void wait_some(struct fuzz *f)
{
	static const uint64_t us[] = { 1, 100, 1000, 1000, 10000, 50000, 250000, 1000000, 5000000, 100000000 };

	host_time(f->h, f->h->stack.now_us + us[below(f, 10)]);
}

static void one_step(struct fuzz *f)
{
	uint32_t what = below(f, 100), slot;

	if (what < 59) {
		inject(f);
	} else if (what < 60) {
		inject_frame(f);
	} else if (what < 66) {
		complete_one(f);
	} else if (what < 85) {
		slot = any_slot(f);
		if (slot)
			use(f, slot);
	} else if (what < 88) {
		call(f);
	} else if (what < 92) {
		for (int i = 0; i < 2; i++)
			if (host_accept(f->h, f->listeners[i]) > 0)
				f->established++;
	} else if (what < 97) {
		wait_some(f);
	} else {
		host_block_tx(f->h, chance(f, 20));
		host_drain(f->h);
	}
	let_go(f->h);
}

/* ---- end ---- */

static void finish_all(struct fuzz *f)
{
	struct host *h = f->h;
	struct tcp *tcp = h->stack.tcp;

	host_block_tx(h, 0);
	host_drain(h);
	for (int i = 0; i < 3000; i++) {
		/* More than once: a handshake on lo may have been under way. */
		for (uint32_t slot = 1; i < 20 && slot < NEAT_SLOTS; slot++)
			if (h->live[slot] && !h->listener[slot] && !h->closed[slot])
				host_close(h, slot);
		host_time(h, h->stack.now_us + 10000000);
		let_go(h);
	}
	check_all(f);
	for (uint32_t i = 0; i < a32_relaxed(&tcp->arena->high_tcb); i++)
		if (tcp_state(&tcp->tcbs[i]) != TCP_FREE)
			fprintf(stderr, "block %u in state %d\n", i, (int)tcp_state(&tcp->tcbs[i]));
	CHECK(host_blocks(h, NULL, 0) == 0);
	CHECK(host_time_waits(h) == 0);
	CHECK(tcp->half_open == 0);
	for (uint32_t i = 0; i < f->nkeys; i++)
		CHECK(flow_find(&h->stack, &f->keys[i]) == NULL);
	uint32_t holes = 0;

	for (uint32_t i = tcp->free_holes; i; i = tcp->holes[i - 1].next_free)
		holes++;
	CHECK(holes == a32_relaxed(&tcp->arena->high_holes));
}

int main(int argc, char **argv)
{
	static struct fuzz fuzz;
	struct fuzz *f = &fuzz;
	struct host_config c = {
		.addr = HERE, .prefix = 24, .mtu = 1500, .lo_mtu = 65535, .rcvbuf = 1 << 20, .sndbuf = 1 << 20,
		.connections = 40, .backlog = 16, .time_wait_ms = 5000, .now_us = 1000000,
	};
	uint32_t steps = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : 10000;

	f->rng = (argc > 1 ? strtoull(argv[1], NULL, 0) : 1) * 0x9e3779b97f4a7c15ull | 1;
	c.seed = f->rng;
	f->h = host_new(&c);
	for (int i = 0; i < 2; i++)
		f->listeners[i] = (uint32_t)host_listen(f->h, 0, (uint16_t)(80 + i), 8, NULL);
	for (f->step = 0; f->step < steps; f->step++) {
		one_step(f);
		check_all(f);
	}
	finish_all(f);
	printf("segments %llu accepted %llu bytes_in %llu ooo %llu retransmits %llu\n",
	       (unsigned long long)f->sent, (unsigned long long)f->established,
	       (unsigned long long)f->h->stack.count.bytes_in, (unsigned long long)f->h->stack.count.ooo_in,
	       (unsigned long long)f->h->stack.count.retransmits);
	host_free(f->h);
	return 0;
}
