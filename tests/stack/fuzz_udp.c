/*
 * fuzz_udp.c - datagrams and the words of their slots as a hostile network and a hostile application
 * would have them, under ASan and UBSan. Usage: fuzz_udp [seed [steps]].
 *
 * Besides what the sanitizers see: an honest pair of sockets goes on through all of it.
 */
#include "harness.c"
#include <stdio.h>

enum { HERE = 0x0a000001, THERE = 0x0a000002, LO = 0x7f000001, PORTS = 12, HONEST = 1000, SOCKS = 24 };

struct fuzz {
	struct host *h;
	uint64_t rng;
	uint32_t slot[SOCKS];
	uint32_t honest[2];
	unsigned long sent, answered;
};

#define CHECK(e) do { if (!(e)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #e); abort(); } } while (0)

static uint64_t rnd(struct fuzz *f)
{
	f->rng ^= f->rng >> 12;
	f->rng ^= f->rng << 25;
	f->rng ^= f->rng >> 27;
	return f->rng * 0x2545f4914f6cdd1dull;
}

static uint32_t below(struct fuzz *f, uint32_t n) { return (uint32_t)(rnd(f) % n); }
static bool chance(struct fuzz *f, uint32_t percent) { return below(f, 100) < percent; }
static uint16_t port(struct fuzz *f) { return (uint16_t)(50 + below(f, PORTS)); }

static void inject(struct fuzz *f)
{
	uint8_t p[4000] = { 0x45 };
	uint32_t len = 28 + below(f, chance(f, 80) ? 100 : 3000), at = 0;

	for (uint32_t i = 28; i < len; i++)
		p[i] = (uint8_t)i;
	p[8] = 64;
	p[9] = IP_PROTO_UDP;
	put32(p + 12, THERE + below(f, 3));
	put32(p + 16, HERE);
	if (chance(f, 15)) {	/* an ICMP error that quotes one of ours, more or less */
		p[9] = IP_PROTO_ICMP;
		p[20] = chance(f, 80) ? 3 : (uint8_t)rnd(f);
		p[21] = (uint8_t)below(f, 16);
		at = 28;
		len = 28 + 28 + below(f, 8);
		p[28] = 0x45;
		p[28 + 9] = IP_PROTO_UDP;
		put32(p + 28 + 12, HERE);
		put32(p + 28 + 16, THERE);
	}
	put16(p + at + 20, port(f));
	put16(p + at + 22, port(f));
	put16(p + at + 24, chance(f, 90) ? len - at - 20 : (uint32_t)rnd(f) & 0xffff);
	put16(p + at + 26, chance(f, 90) ? 0 : (uint32_t)rnd(f) & 0xffff);
	if (at) {
		put16(p + 22, 0);
		put16(p + 22, finish(sum(0, p + 20, len - 20)));
	}
	if (chance(f, 5))
		len = below(f, len);
	checksums(p, len < 20 ? 20 : len);
	f->sent++;
	host_in(f->h, p, len);
}

static void scribble(struct fuzz *f, uint32_t slot)
{
	struct neat_slot_app *app = &f->h->mem.app->slots[slot];
	uint8_t junk[300];

	switch (below(f, 8)) {
	case 0:
		a64_store(&app->rx_tail, chance(f, 50) ? rnd(f) : a64_relaxed(&app->rx_tail) + below(f, 1 << 21));
		break;
	case 1:
		a64_store(&app->tx_tail, chance(f, 50) ? rnd(f) : a64_relaxed(&app->tx_tail) + below(f, 1 << 21));
		break;
	case 2:
		a64_store(&app->tx_ring, rnd(f));
		break;
	case 3:
		app->opts.w[below(f, 16)] = (uint32_t)rnd(f);
		a32_add(&app->optgen, 1);
		break;
	case 4:
		host_udp_peer(f->h, slot, chance(f, 50) ? LO : (uint32_t)rnd(f), chance(f, 50) ? port(f) : 0);
		return;
	default:
		for (size_t i = 0; i < sizeof(junk); i++)
			junk[i] = (uint8_t)rnd(f);
		udp_put(f->h, slot, junk, below(f, sizeof(junk)));
	}
	udp_kick(&f->h->stack, f->h->udp[slot]);
	host_drain(f->h);
}

static void use(struct fuzz *f, uint32_t *slot)
{
	static uint8_t buf[70000];
	uint32_t addr, opts[16] = { chance(f, 30) ? NEAT_OPTF_REUSEPORT : 0 };
	uint16_t from;

	if (!*slot) {
		int got = host_udp_open(f->h, chance(f, 70) ? 0 : chance(f, 50) ? LO : HERE, port(f), opts);

		*slot = got > 0 ? (uint32_t)got : 0;
	} else if (chance(f, 10)) {
		host_udp_close(f->h, *slot);
		*slot = 0;
	} else if (chance(f, 40)) {
		scribble(f, *slot);
	} else if (chance(f, 50)) {
		host_udp_send(f->h, *slot, chance(f, 60) ? LO : THERE, port(f), buf, below(f, chance(f, 70) ? 200 : 65508));
	} else if (host_readable(f->h, *slot) <= neat_ring_max(NEAT_RX)) {
		host_udp_recv(f->h, *slot, buf, sizeof(buf), &addr, &from);
	}
}

static void honest(struct fuzz *f)
{
	uint8_t out[512], in[512];
	uint32_t len = below(f, sizeof(out)), way = below(f, 2), addr;
	uint16_t from;

	for (uint32_t i = 0; i < len; i++)
		out[i] = (uint8_t)rnd(f);
	host_udp_send(f->h, f->honest[way], LO, (uint16_t)(HONEST + !way), out, len);
	CHECK(host_udp_recv(f->h, f->honest[!way], in, sizeof(in), &addr, &from) == (int)len);
	CHECK(memcmp(in, out, len) == 0 && addr == LO && from == HONEST + way);
	f->answered++;
}

int main(int argc, char **argv)
{
	static struct fuzz fuzz;
	struct fuzz *f = &fuzz;
	struct host_config c = {
		.addr = HERE, .prefix = 24, .mtu = 1500, .lo_mtu = 65535, .rcvbuf = 1 << 20, .sndbuf = 1 << 20,
		.connections = 4, .backlog = 4, .time_wait_ms = 1000, .now_us = 1000000,
	};
	uint32_t steps = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : 10000;
	static uint8_t bin[1 << 17];

	f->rng = (argc > 1 ? strtoull(argv[1], NULL, 0) : 1) * 0x9e3779b97f4a7c15ull | 1;
	c.seed = f->rng;
	f->h = host_new(&c);
	for (uint32_t i = 0; i < 2; i++)
		f->honest[i] = (uint32_t)host_udp_open(f->h, 0, (uint16_t)(HONEST + i), NULL);
	for (uint32_t step = 0; step < steps; step++) {
		uint32_t what = below(f, 100);

		if (what < 45)
			inject(f);
		else if (what < 95)
			use(f, &f->slot[below(f, SOCKS)]);
		else if (what < 97)
			host_udp_reborn(f->h);
		else
			host_room_tx(f->h, chance(f, 30) ? below(f, 60) : UINT32_MAX);
		if (step % 16 == 0)
			honest(f);
		while (host_out(f->h, bin, sizeof(bin)) >= 0)
			;
	}
	host_block_tx(f->h, 0);
	host_drain(f->h);
	for (uint32_t i = 0; i < SOCKS; i++)
		if (f->slot[i])
			host_udp_close(f->h, f->slot[i]);
	for (uint32_t i = 0; i < 2; i++)
		host_udp_close(f->h, f->honest[i]);
	host_drain(f->h);
	for (uint32_t slot = 1; slot < NEAT_SLOTS; slot++)
		CHECK(!f->h->live[slot]);
	printf("datagrams %lu answered %lu\n", f->sent, f->answered);
	host_free(f->h);
	return 0;
}
