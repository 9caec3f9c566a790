/*
 * harness.c - one in-process host for the tests: the whole stack, a fake socket layer instead of
 * api.c, a fake clock, and a wire that is a list of IP packets. Driven from Python (host.py).
 *
 * The application's half of a socket follows the same rules as libneatsock: payload, ring word,
 * tail. Super-segments are cut and checksummed here, as a NIC would.
 */
#include "harness.h"
#include "filter.h"
#include "tcp.h"
#include "udp.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { SLOTS_BORN = 4096, OUT_MAX = 65536, FRAME_HEADERS = 14 };

struct out { uint32_t len; uint8_t *bytes; };

struct host {
	struct stack stack;
	struct sockmem mem;
	void *memory, *arena;
	size_t memory_size, arena_size;
	uint64_t seed;
	uint32_t next_born, free_born[SLOTS_BORN], nfree_born;
	struct tcb *tcb[NEAT_SLOTS];
	struct listener *listener[NEAT_SLOTS];
	struct udp_sock *udp[NEAT_SLOTS];
	uint16_t gen[NEAT_SLOTS];
	uint8_t closed[NEAT_SLOTS], live[NEAT_SLOTS];
	uint32_t notified[NEAT_SLOTS];
	struct out out[OUT_MAX];
	uint32_t out_head, out_tail;
	uint8_t answer[12];	/* to the nic: addresses and ports of it */
	int answers, used;
	uint32_t tx_room;	/* frames that it takes yet */
	uint8_t again[128];	/* the frame that is shown again when it takes some */
	uint32_t again_len;
	uint32_t accept_fail;
	uint32_t pushed_limit;
	uint8_t pushed_state;
	uint16_t port_first, port_last;
	uint32_t ports_asked, ports_changed;
};

/* ---- the world ---- */

#include "harness_world.h"

static void put16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }
static uint32_t get16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }
static void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16); put16(p + 2, v & 0xffff); }
static uint32_t get32(const uint8_t *p) { return get16(p) << 16 | get16(p + 2); }

static uint32_t sum(uint32_t acc, const uint8_t *p, uint32_t len)
{
	for (; len > 1; len -= 2, p += 2)
		acc += get16(p);
	if (len)
		acc += (uint32_t)*p << 8;
	return (acc & 0xffff) + (acc >> 16);
}

static uint32_t finish(uint32_t acc)
{
	acc = (acc & 0xffff) + (acc >> 16);
	acc = (acc & 0xffff) + (acc >> 16);
	return ~acc & 0xffff;
}

static void checksums(uint8_t *ip, uint32_t len)
{
	uint32_t tcp_len = len - 20;

	put16(ip + 2, len);
	put16(ip + 10, 0);
	put16(ip + 10, finish(sum(0, ip, 20)));
	if (ip[9] != IP_PROTO_TCP)
		return;
	put16(ip + 36, 0);
	put16(ip + 36, finish(sum(sum(IP_PROTO_TCP + tcp_len, ip + 12, 8), ip + 20, tcp_len)));
}

static void queue_out(struct host *h, const uint8_t *ip, uint32_t len)
{
	struct out *o = &h->out[h->out_tail++ & (OUT_MAX - 1)];

	o->bytes = realloc(o->bytes, len);
	o->len = len;
	memcpy(o->bytes, ip, len);
}

static void cut(struct host *h, const uint8_t *ip, uint32_t len, uint32_t gso)
{
	uint32_t hdr = 20 + (uint32_t)(ip[32] >> 4) * 4, at = hdr, seq = get32(ip + 24);
	uint8_t *one = malloc(hdr + gso);

	while (at < len) {
		uint32_t n = len - at < gso ? len - at : gso;

		memcpy(one, ip, hdr);
		memcpy(one + hdr, ip + at, n);
		put32(one + 24, seq);
		if (at + n < len)
			one[33] &= (uint8_t)~(TCP_FIN | TCP_PSH);
		checksums(one, hdr + n);
		queue_out(h, one, hdr + n);
		at += n;
		seq += n;
	}
	free(one);
}

static bool tx(void *world, const struct pkt *p)
{
	struct host *h = world;
	uint32_t len = pkt_total(p), at = p->len;
	uint8_t *flat;

	if (!h->tx_room)
		return false;
	h->tx_room -= h->tx_room != UINT32_MAX;
	flat = malloc(len);
	memcpy(flat, p->data, p->len);
	for (int i = 0; i < 2; i++) {
		if (p->frag[i].len)
			memcpy(flat + at, p->frag[i].p, p->frag[i].len);
		at += p->frag[i].len;
	}
	if (p->flags & PKT_RETURNED) {
		h->answers++, h->used = p->flags & PKT_ASKED ? 1 : 0;
		memcpy(h->answer, flat + FRAME_HEADERS + 12, sizeof(h->answer));
	} else if (at == len && len > FRAME_HEADERS + 20 && get16(flat + 12) == 0x0800) {
		if (p->gso_size && flat[FRAME_HEADERS + 9] == IP_PROTO_TCP) {
			cut(h, flat + FRAME_HEADERS, len - FRAME_HEADERS, p->gso_size);
		} else {
			if (p->flags & PKT_CSUM_PARTIAL)
				checksums(flat + FRAME_HEADERS, len - FRAME_HEADERS);
			queue_out(h, flat + FRAME_HEADERS, len - FRAME_HEADERS);
		}
	}
	free(flat);
	return true;
}

static void *zeroed(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

struct host *host_new(const struct host_config *c)
{
	struct host *h = zeroed(sizeof(*h));
	struct stack_config cfg = {
		.epoch = 1, .time_wait_ms = c->time_wait_ms, .syn_backlog = c->backlog,
		.connections_max = c->connections, .rcvbuf = c->rcvbuf, .sndbuf = c->sndbuf,
		.app_sockets = c->app_sockets, .app_buffers = c->app_buffers,
		.lo_mtu = c->lo_mtu, .mac = { 2, 0, 0, 0, 0, 1 }, .mtu = (uint16_t)c->mtu,
		.addr = c->addr, .prefix = c->prefix, .gateway = c->gateway,
	};
	struct stack_ops ops = {
		.tx = tx, .random = next_random, .port_bound = port_bound, .port_changes = port_changes, .world = h,
	};

	h->seed = c->seed;
	for (unsigned i = 0; i < sizeof(cfg.secret); i++)
		cfg.secret[i] = (uint8_t)next_random(h);
	h->next_born = 1;
	h->tx_room = UINT32_MAX;
	h->mem.pub = zeroed(sizeof(struct neat_seg_pub));
	h->mem.app = zeroed(NEAT_SEG_APP_SIZE);
	h->memory_size = stack_memory(&cfg);
	h->arena_size = stack_arena(&cfg);
	h->memory = zeroed(h->memory_size);
	h->arena = zeroed(h->arena_size);
	h->stack.api = h;
	if (!h->mem.pub || !h->mem.app || !h->memory || !h->arena ||
	    stack_init(&h->stack, &cfg, &ops, h->memory, h->arena, true, c->now_us))
		return NULL;
	return h;
}

void host_free(struct host *h)
{
	for (uint32_t i = 0; i < OUT_MAX; i++)
		free(h->out[i].bytes);
	munmap(h->mem.pub, sizeof(struct neat_seg_pub));
	munmap(h->mem.app, NEAT_SEG_APP_SIZE);
	munmap(h->memory, h->memory_size);
	munmap(h->arena, h->arena_size);
	munmap(h, sizeof(*h));
}

void host_drain(struct host *h)
{
	while (lo_deliver(&h->stack))
		;
	frame_again(h);
	tcp_resume(&h->stack);
	do
		udp_resume(&h->stack);
	while (udp_waits(&h->stack));
	while (lo_deliver(&h->stack))
		;
}

void host_time(struct host *h, uint64_t now_us)
{
	h->stack.now_us = now_us;
	stack_timers(&h->stack, 1000000);
	host_drain(h);
}

uint64_t host_now(struct host *h) { return h->stack.now_us; }
uint64_t host_deadline(struct host *h) { return stack_deadline(&h->stack); }
void host_accept_fail(struct host *h, uint32_t count) { h->accept_fail = count; }

/* The neighbour is learnt as from the wire: an ARP request of the sender for our address. */
void host_learn(struct host *h, uint32_t addr)
{
	uint8_t f[42] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2 };

	put32(f + 28, addr);
	put32(f + 38, h->stack.cfg.addr);
	frame_in(h, f, sizeof(f), 0);
}

void host_in(struct host *h, const uint8_t *ip, uint32_t len)
{
	uint8_t *room = malloc(PKT_HEADROOM + len);	/* exact: a byte too far is seen by ASan */
	struct pkt p = { .data = room + PKT_HEADROOM, .buf = room, .len = len };

	if (len >= 16 && h->stack.cfg.addr && get32(ip + 12) != h->stack.cfg.addr)
		host_learn(h, get32(ip + 12));
	memcpy(p.data, ip, len);
	ip_input(&h->stack, &p);
	free(room);
	host_drain(h);
}

static void from_nic(struct host *h, const uint8_t *ip, uint32_t len, uint16_t flags)
{
	uint8_t *f = malloc(FRAME_HEADERS + len);

	memcpy(f, (const uint8_t[FRAME_HEADERS]){ 2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0 }, FRAME_HEADERS);
	memcpy(f + FRAME_HEADERS, ip, len);
	frame_in(h, f, FRAME_HEADERS + len, flags);
	free(f);
	host_drain(h);
}

/* The nic gives a frame back that this host sent. */
void host_return(struct host *h, const uint8_t *ip, uint32_t len) { from_nic(h, ip, len, PKT_RETURNED); }

/* It asks about one that another replica wants to send. -1: there is no answer, or one about another tuple. */
int host_ask(struct host *h, const uint8_t *ip, uint32_t len)
{
	h->answers = 0;
	from_nic(h, ip, len, PKT_RETURNED | PKT_ASKED);
	return h->answers == 1 && !memcmp(h->answer, ip + 12, sizeof(h->answer)) ? h->used : -1;
}

int host_out(struct host *h, uint8_t *buf, uint32_t cap)
{
	struct out *o = &h->out[h->out_head & (OUT_MAX - 1)];

	if (h->out_head == h->out_tail)
		return -1;
	h->out_head++;
	if (o->len <= cap)
		memcpy(buf, o->bytes, o->len);
	return (int)o->len;
}

/* ---- the application ---- */

static struct sockref slot_ref(struct host *h, uint32_t slot)
{
	return (struct sockref){
		.mem = &h->mem, .pub = &h->mem.pub->slots[slot], .app = &h->mem.app->slots[slot],
		.slot = slot, .gen = h->gen[slot],
	};
}

static void slot_take(struct host *h, uint32_t slot, uint32_t flags)
{
	struct neat_slot_pub *pub = &h->mem.pub->slots[slot];

	memset(pub, 0, sizeof(*pub));
	memset(&h->mem.app->slots[slot], 0, sizeof(h->mem.app->slots[slot]));
	a64_store(&pub->rx_ring, neat_ringword(0, NEAT_RING_LOG2_MIN));
	a64_store(&h->mem.app->slots[slot].tx_ring, neat_ringword(0, NEAT_RING_LOG2_MIN));
	h->gen[slot]++;
	h->closed[slot] = 0;
	h->live[slot] = 1;
	h->mem.live++;
	h->notified[slot] = 0;
	a64_release(&pub->status, neat_status(h->gen[slot], 0, flags));
}

static uint32_t born(struct host *h)
{
	if (h->nfree_born)
		return h->free_born[--h->nfree_born];
	return h->next_born < SLOTS_BORN ? h->next_born++ : 0;
}

static void slot_free(struct host *h, uint32_t slot)
{
	h->live[slot] = 0;
	h->mem.live--;
	h->tcb[slot] = NULL;
	h->udp[slot] = NULL;
	a64_release(&h->mem.pub->slots[slot].status, neat_status(h->gen[slot], 0, 0));
	if (slot < SLOTS_BORN)
		h->free_born[h->nfree_born++] = slot;
}

static struct neat_opts options(const uint32_t *words)
{
	struct neat_opts o = { 0 };

	if (words)
		memcpy(o.w, words, sizeof(o.w));
	return o;
}

int host_listen(struct host *h, uint32_t addr, uint16_t port, uint32_t backlog, const uint32_t *opts)
{
	uint32_t slot = born(h);
	struct tcp_listen req = { .addr = addr, .port = port, .backlog = backlog, .opts = options(opts) };
	int err;

	slot_take(h, slot, NEAT_SLOT_LISTENING);
	h->mem.pub->slots[slot].accept_ring = slot % NEAT_LISTENERS_MAX;
	req.ref = slot_ref(h, slot);
	err = tcp_listen(&h->stack, &req, &h->listener[slot]);
	return err ? err : (int)slot;
}

void host_unlisten(struct host *h, uint32_t slot)
{
	tcp_unlisten(&h->stack, h->listener[slot]);
	h->listener[slot] = NULL;
	slot_free(h, slot);
	host_drain(h);
}

#include "harness_reborn.h"
int host_connect(struct host *h, uint32_t laddr, uint16_t lport, uint32_t raddr, uint16_t rport,
		 const uint32_t *opts)
{
	uint32_t slot = NEAT_SLOT_APP_FIRST;
	struct tcp_connect req = {
		.key = { .laddr = laddr, .raddr = raddr, .lport = lport, .rport = rport }, .opts = options(opts),
	};
	int err;

	while (h->live[slot])
		slot++;
	slot_take(h, slot, NEAT_SLOT_CONNECTING);
	req.ref = slot_ref(h, slot);
	memcpy(&h->mem.app->slots[slot].opts, &req.opts, sizeof(req.opts));
	err = tcp_connect(&h->stack, &req, &h->tcb[slot]);
	if (err) {
		slot_free(h, slot);
		return err;
	}
	host_drain(h);
	return (int)slot;
}

int host_accept(struct host *h, uint32_t lslot)
{
	struct neat_slot_pub *pub = &h->mem.pub->slots[lslot];
	struct neat_slot_app *app = &h->mem.app->slots[lslot];
	uint64_t head = a64_relaxed(&app->accept_head);
	uint64_t entry;

	if (head == a64_relaxed(&pub->accept_tail))
		return -EAGAIN;
	entry = a64_relaxed(&h->mem.pub->accept[pub->accept_ring].entry[head & (NEAT_ACCEPT_ENTRIES - 1)]);
	a64_store(&app->accept_head, head + 1);
	return (int)(uint32_t)entry;
}

static void kick(struct host *h, uint32_t slot, bool opts)
{
	struct neat_slot_app *app = &h->mem.app->slots[slot];
	struct tcp_user u = {
		.tx_tail = a64_relaxed(&app->tx_tail), .rx_tail = a64_relaxed(&app->rx_tail),
		.shut = a32_relaxed(&app->shut), .opts_changed = opts,
		.opt_flags = app->opts.w[NEAT_OPT_FLAGS],
	};

	if (h->tcb[slot] && !h->closed[slot])
		tcp_kick(&h->stack, h->tcb[slot], &u);
	host_drain(h);
}

uint32_t host_room(struct host *h, uint32_t slot)
{
	struct neat_slot_pub *pub = &h->mem.pub->slots[slot];
	uint64_t used = a64_relaxed(&h->mem.app->slots[slot].tx_tail) - a64_relaxed(&pub->tx_una);
	uint32_t limit = a32_relaxed(&pub->tx_limit);

	return used < limit ? (uint32_t)(limit - used) : 0;
}

static uint32_t write_only(struct host *h, uint32_t slot, const uint8_t *data, uint32_t len)
{
	struct neat_slot_pub *pub = &h->mem.pub->slots[slot];
	struct neat_slot_app *app = &h->mem.app->slots[slot];
	uint64_t tail = a64_relaxed(&app->tx_tail), word = a64_relaxed(&app->tx_ring);
	uint32_t room = host_room(h, slot);
	struct neat_span s;

	if (len > room)
		len = room;
	if (!len)
		return 0;
	word = neat_ring_reserve(h->mem.app, slot, NEAT_TX, word, a64_relaxed(&pub->tx_una), tail, len);
	s = neat_ring_span(h->mem.app, slot, NEAT_TX, word, tail, len);
	neat_span_write(&s, data);
	a64_release(&app->tx_ring, word);
	a64_release(&app->tx_tail, tail + len);
	return len;
}

uint32_t host_write(struct host *h, uint32_t slot, const uint8_t *data, uint32_t len)
{
	len = write_only(h, slot, data, len);
	if (len)
		kick(h, slot, false);
	return len;
}

uint32_t host_readable(struct host *h, uint32_t slot)
{
	return (uint32_t)(a64_relaxed(&h->mem.pub->slots[slot].rx_head) -
			  a64_relaxed(&h->mem.app->slots[slot].rx_tail));
}

static uint32_t read_only(struct host *h, uint32_t slot, uint8_t *data, uint32_t cap)
{
	struct neat_slot_app *app = &h->mem.app->slots[slot];
	uint64_t tail = a64_relaxed(&app->rx_tail);
	uint32_t n = host_readable(h, slot);
	struct neat_span s;

	if (n > cap)
		n = cap;
	if (!n)
		return 0;
	s = neat_ring_span(h->mem.app, slot, NEAT_RX, a64_acquire(&h->mem.pub->slots[slot].rx_ring), tail, n);
	neat_span_read(&s, data);
	a64_release(&app->rx_tail, tail + n);
	return n;
}

uint32_t host_read(struct host *h, uint32_t slot, uint8_t *data, uint32_t cap)
{
	uint32_t n = read_only(h, slot, data, cap);

	if (n)
		kick(h, slot, false);
	return n;
}

void host_shutdown(struct host *h, uint32_t slot, uint32_t how)
{
	a32_or(&h->mem.app->slots[slot].shut, how);
	kick(h, slot, false);
}

void host_close(struct host *h, uint32_t slot)
{
	kick(h, slot, false);
	h->closed[slot] = 1;
	if (h->tcb[slot])
		tcp_close(&h->stack, h->tcb[slot]);
	else if (h->live[slot])
		slot_free(h, slot);
	host_drain(h);
}

void host_abort(struct host *h, uint32_t slot)
{
	if (h->tcb[slot])
		tcp_abort(&h->stack, h->tcb[slot], ECONNRESET);
	host_drain(h);
}

void host_option(struct host *h, uint32_t slot, uint32_t index, uint32_t value)
{
	h->mem.app->slots[slot].opts.w[index & 15] = value;
	kick(h, slot, true);
}

void host_info(struct host *h, uint32_t slot, struct host_info *o)
{
	const struct neat_slot_pub *pub = &h->mem.pub->slots[slot];
	uint64_t status = a64_relaxed(&pub->status);
	const struct tcb *t = h->tcb[slot];
	const struct stack_counters *c = &h->stack.count;

	*o = (struct host_info){
		.flags = neat_status_flags(status), .err = neat_status_errno(status), .state = pub->tcp_state,
		.tx_una = a64_relaxed(&pub->tx_una), .rx_head = a64_relaxed(&pub->rx_head),
		.segments_in = c->segments_in, .segments_out = c->segments_out, .retransmits = c->retransmits,
		.rto = c->rto, .tlp = c->tlp, .fast_retransmits = c->fast_retransmits, .resets_in = c->resets_in,
		.resets_out = c->resets_out, .notified = h->notified[slot], .half_open = h->stack.tcp->half_open,
		.pushed_limit = h->pushed_limit, .pushed_state = h->pushed_state,
	};
	h->notified[slot] = 0;
	if (!t)
		return;
	o->state = tcp_state(t);
	o->cwnd = t->cwnd;
	o->ssthresh = t->ssthresh;
	o->mss = t->mss;
	o->srtt_us = t->srtt_us;
	o->rto_us = t->rto_us;
	o->recovery = t->recovery;
	o->rcvbuf = t->rcvbuf;
	o->sndbuf = t->sndbuf;
	o->snd_una = snd_una(t);
	o->snd_nxt = t->snd_nxt;
	o->snd_max = snd_max(t);
	o->rcv_nxt = rcv_nxt(t);
	o->rcv_adv = t->rcv_adv;
	o->laddr = t->key.laddr;
	o->lport = t->key.lport;
	o->raddr = t->key.raddr;
	o->rport = t->key.rport;
	o->iss = t->iss;
	o->irs = t->irs;
}

/* Rules as in neat_msg_r_filter. */
int host_filter(struct host *h, const uint8_t *rules, uint32_t n)
{
	struct neat_filter_rule r[NEAT_FILTER_MAX + 1];

	if (n <= NEAT_FILTER_MAX)
		memcpy(r, rules, n * sizeof(*r));
	return filter_set(&h->stack, r, n);
}

uint64_t host_filter_packets(struct host *h, uint32_t rule) { return h->stack.filter->rule[rule].packets; }
uint64_t host_filter_bytes(struct host *h, uint32_t rule) { return h->stack.filter->rule[rule].bytes; }
uint64_t host_drops(struct host *h, uint32_t which) { return which < DROP_COUNT ? h->stack.count.drop[which] : 0; }
const char *host_drop_name(uint32_t which) { return which < DROP_COUNT ? stack_drop_name((enum stack_drop)which) : ""; }

uint32_t host_blocks(struct host *h, uint32_t *states, uint32_t cap)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < a32_relaxed(&h->stack.tcp->arena->high_tcb); i++) {
		enum tcp_state state = tcp_state(&h->stack.tcp->tcbs[i]);

		if (state != TCP_FREE && n++ < cap)
			states[n - 1] = state;
	}
	return n;
}

/* One bit of the connection's control block, as a fault would. */
void host_flip(struct host *h, uint32_t slot, uint32_t bit)
{
	((uint8_t *)h->tcb[slot])[bit / 8] ^= (uint8_t)(1 << bit % 8);
}

uint32_t host_time_waits(struct host *h)
{
	uint32_t n = 0;

	for (uint32_t i = h->stack.tcp->tw.head; i; i = h->stack.tcp->time_waits[i - 1].next)
		n++;
	return n;
}

void host_icmp(struct host *h, uint32_t laddr, uint16_t lport, uint32_t raddr, uint16_t rport,
	       uint32_t seq, uint8_t type, uint8_t code, uint32_t mtu)
{
	struct flow_key k = { .laddr = laddr, .raddr = raddr, .lport = lport, .rport = rport };

	tcp_icmp(&h->stack, &k, seq, type, code, mtu);
	host_drain(h);
}

uint32_t host_isn(struct host *h, uint32_t laddr, uint16_t lport, uint32_t raddr, uint16_t rport)
{
	struct flow_key k = { .laddr = laddr, .raddr = raddr, .lport = lport, .rport = rport };

	return tcp_isn(&h->stack, &k);
}

/* ---- datagrams: the application's half as libneatsock has it ---- */

static int udp_attach(struct host *h, uint32_t slot, uint32_t addr, uint16_t port)
{
	struct udp_open o = { .ref = slot_ref(h, slot), .laddr = addr, .lport = port,
			      .closed = h->closed[slot] };

	return udp_open(&h->stack, &o, &h->udp[slot]);
}

int host_udp_open(struct host *h, uint32_t addr, uint16_t port, const uint32_t *opts)
{
	uint32_t slot = NEAT_SLOT_APP_FIRST;
	int err;

	while (h->live[slot])
		slot++;
	slot_take(h, slot, NEAT_SLOT_DATAGRAM);
	h->mem.app->slots[slot].opts = options(opts);
	h->mem.pub->slots[slot].laddr = addr;
	h->mem.pub->slots[slot].lport = port;
	err = udp_attach(h, slot, addr, port);
	if (err)
		slot_free(h, slot);
	return err ? err : (int)slot;
}

static void udp_put(struct host *h, uint32_t slot, const void *data, uint32_t len)
{
	struct neat_slot_app *app = &h->mem.app->slots[slot];
	uint64_t tail = a64_relaxed(&app->tx_tail), una = a64_relaxed(&h->mem.pub->slots[slot].tx_una);
	uint64_t word = neat_ring_reserve(h->mem.app, slot, NEAT_TX, a64_relaxed(&app->tx_ring), una, tail, len);
	struct neat_span s = neat_ring_span(h->mem.app, slot, NEAT_TX, word, tail, len);

	neat_span_write(&s, data);
	a64_release(&app->tx_ring, word);
	a64_release(&app->tx_tail, tail + len);
}

void host_udp_write(struct host *h, uint32_t slot, const uint8_t *data, uint32_t len)
{
	udp_put(h, slot, data, len);
	udp_kick(&h->stack, h->udp[slot]);
	host_drain(h);
}

void host_udp_send(struct host *h, uint32_t slot, uint32_t addr, uint16_t port, const uint8_t *data, uint32_t len)
{
	const struct neat_dgram d = { .len = len, .addr = addr, .port = port };

	udp_put(h, slot, &d, sizeof(d));
	host_udp_write(h, slot, data, len);
}

int host_udp_recv(struct host *h, uint32_t slot, uint8_t *data, uint32_t cap, uint32_t *addr, uint16_t *port)
{
	struct neat_slot_app *app = &h->mem.app->slots[slot];
	uint64_t tail = a64_relaxed(&app->rx_tail), word = a64_acquire(&h->mem.pub->slots[slot].rx_ring);
	struct neat_dgram d;
	struct neat_span s;

	if (host_readable(h, slot) < sizeof(d))
		return -EAGAIN;
	s = neat_ring_span(h->mem.app, slot, NEAT_RX, word, tail, sizeof(d));
	neat_span_read(&s, &d);
	if (d.len > cap || d.len > host_readable(h, slot) - sizeof(d))
		return -EIO;
	s = neat_ring_span(h->mem.app, slot, NEAT_RX, word, tail + sizeof(d), d.len);
	neat_span_read(&s, data);
	a64_release(&app->rx_tail, tail + sizeof(d) + d.len);
	*addr = d.addr;
	*port = d.port;
	return (int)d.len;
}

void host_udp_peer(struct host *h, uint32_t slot, uint32_t addr, uint16_t port)
{
	h->mem.app->slots[slot].raddr = addr;
	h->mem.app->slots[slot].rport = port;
	a32_add(&h->mem.app->slots[slot].optgen, 1);
	udp_kick(&h->stack, h->udp[slot]);
	host_drain(h);
}

void host_udp_rx_tail(struct host *h, uint32_t slot, uint64_t value)
{
	a64_release(&h->mem.app->slots[slot].rx_tail, value);
}

void host_udp_close(struct host *h, uint32_t slot)
{
	h->closed[slot] = 1;
	udp_close(&h->stack, h->udp[slot]);
	host_drain(h);
}

/* A successor: nothing of ours is left, the slots say all. */
void host_udp_reborn(struct host *h)
{
	memset(h->stack.udp, 0, udp_memory());
	for (uint32_t i = 1; i < NEAT_SLOTS; i++)
		if (h->udp[i] && udp_attach(h, i, h->mem.pub->slots[i].laddr, h->mem.pub->slots[i].lport) == 0)
			udp_later(&h->stack, h->udp[i]);
	host_drain(h);
}

/* ---- the socket layer, as api.c does it ---- */

void sock_notify(struct stack *s, struct sockref *r, unsigned what)
{
	struct host *h = s->api;

	if (r->mem)
		h->notified[r->slot] |= what;
}

void sock_status(struct stack *s, struct sockref *r, uint32_t set, uint32_t clear, uint32_t err)
{
	uint64_t status;
	uint32_t flags, code;
	(void)s;

	if (!r->mem)
		return;
	status = a64_relaxed(&r->pub->status);
	flags = (neat_status_flags(status) & ~clear) | set;
	code = neat_status_errno(status);
	if (err) {
		code = err;
		flags |= NEAT_SLOT_ERROR;
	}
	a64_release(&r->pub->status, neat_status(r->gen, code, flags));
}

int sock_accept(struct stack *s, struct listener *l, const struct flow_key *k, struct tcb *t, struct sockref *out)
{
	struct host *h = s->api;
	struct sockref *lref = tcp_listener_ref(l);
	uint32_t slot;

	(void)lref;
	if (h->accept_fail) {
		h->accept_fail--;
		return -ENOBUFS;
	}
	slot = born(h);
	if (!slot)
		return -ENOBUFS;
	slot_take(h, slot, 0);
	h->mem.pub->slots[slot].raddr = k->raddr;
	h->mem.pub->slots[slot].rport = k->rport;
	h->tcb[slot] = t;
	*out = slot_ref(h, slot);
	return 0;
}

void sock_accept_push(struct stack *s, struct listener *l, struct sockref *r)
{
	struct host *h = s->api;
	struct sockref *lref = tcp_listener_ref(l);
	struct neat_accept_ring *ring = &h->mem.pub->accept[lref->pub->accept_ring];
	uint64_t tail = a64_relaxed(&lref->pub->accept_tail);

	h->pushed_limit = a32_relaxed(&r->pub->tx_limit);
	h->pushed_state = r->pub->tcp_state;
	sock_status(s, r, NEAT_SLOT_CONNECTED, 0, 0);
	a64_store(&ring->entry[tail & (NEAT_ACCEPT_ENTRIES - 1)], r->slot);
	a64_release(&lref->pub->accept_tail, tail + 1);
	sock_notify(s, lref, SOCK_READABLE);
}

void sock_expect(const struct stack *s, uint32_t app_id, uint32_t slot) { (void)s, (void)app_id, (void)slot; }

bool sock_adopt(struct stack *s, uint32_t app_id, struct tcb *t, bool closed, struct sockref *ref)
{
	(void)s, (void)app_id, (void)t, (void)closed, (void)ref;
	return false;	/* tests/crash and tests/replica adopt; they bring the real api.c */
}

void sock_detach(struct stack *s, struct sockref *r)
{
	struct host *h = s->api;

	if (!r->mem)
		return;
	h->tcb[r->slot] = NULL;
	if (h->closed[r->slot])
		slot_free(h, r->slot);
	else
		sock_status(s, r, NEAT_SLOT_DEAD, 0, 0);
	r->mem = NULL;
	r->slot = 0;
}
