/* harness_world.h - part of harness.c: what the stack asks of the world around it (struct stack_ops). */
#ifndef NEAT_TEST_HARNESS_WORLD_H
#define NEAT_TEST_HARNESS_WORLD_H

static uint64_t next_random(void *world)
{
	struct host *h = world;

	h->seed += 0x9e3779b97f4a7c15ull;
	uint64_t z = h->seed;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* The nic takes so many frames more. */
void host_room_tx(struct host *h, uint32_t frames) { h->tx_room = frames; }
void host_block_tx(struct host *h, int on) { host_room_tx(h, on ? 0 : UINT32_MAX); }

static bool show(struct host *h, const uint8_t *frame, uint32_t len, uint16_t flags)
{
	uint8_t *room = malloc(PKT_HEADROOM + len);	/* exact: a byte too far is seen by ASan */
	struct pkt p = { .data = room + PKT_HEADROOM, .buf = room, .len = len, .flags = flags };
	bool done;

	memcpy(p.data, frame, len);
	done = link_input(&h->stack, &p);
	free(room);
	return done;
}

/* As nicq.c: it stays until there is room for what it sets free. */
static void frame_again(struct host *h)
{
	if (h->again_len && show(h, h->again, h->again_len, 0))
		h->again_len = 0;
}

/* Lost if another one stays before it. */
static void frame_in(struct host *h, const uint8_t *frame, uint32_t len, uint16_t flags)
{
	frame_again(h);
	if (h->again_len || show(h, frame, len, flags))
		return;
	h->again_len = len < sizeof(h->again) ? len : (uint32_t)sizeof(h->again);
	memcpy(h->again, frame, h->again_len);
}

static bool port_bound(void *world, uint32_t addr, uint16_t port)
{
	struct host *h = world;
	(void)addr;

	h->ports_asked++;
	return h->port_first && (port < h->port_first || port > h->port_last);
}

static uint64_t port_changes(void *world) { return ((struct host *)world)->ports_changed; }

uint32_t host_ports(struct host *h, uint16_t first, uint16_t last)
{
	h->ports_changed += first != h->port_first || last != h->port_last;
	h->port_first = first;
	h->port_last = last;
	return h->ports_asked;
}

/* What the oldest datagram in the send ring says of its length. */
void host_udp_relength(struct host *h, uint32_t slot, uint32_t len)
{
	struct neat_span s = neat_ring_span(h->mem.app, slot, NEAT_TX, a64_relaxed(&h->mem.app->slots[slot].tx_ring),
					    a64_relaxed(&h->mem.pub->slots[slot].tx_una), sizeof(len));

	neat_span_write(&s, &len);
}

#endif
