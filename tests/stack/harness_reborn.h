/* harness_reborn.h - the part of harness.c in which a host's replica dies and has a successor. */
#pragma once

static void listen_again(struct host *h, uint32_t slot, const struct listener *l)
{
	struct tcp_listen req = {
		.addr = l->addr, .port = l->port, .backlog = l->backlog, .opts = l->opts, .ref = slot_ref(h, slot),
	};

	if (tcp_listen(&h->stack, &req, &h->listener[slot]))
		abort();
}

/* A successor over the same arena. Of connections it adopts none: the slots are the real api.c's. */
int host_reborn(struct host *h, uint32_t death)
{
	struct stack_config cfg = h->stack.cfg;
	struct stack_ops ops = h->stack.ops;
	struct stack_adopted out;
	uint64_t now_us = h->stack.now_us;
	void *before = h->memory;

	h->memory = zeroed(h->memory_size);
	if (!h->memory || stack_init(&h->stack, &cfg, &ops, h->memory, h->arena, false, now_us))
		return -1;
	for (uint32_t slot = 1; slot < SLOTS_BORN; slot++)
		if (h->listener[slot])
			listen_again(h, slot, h->listener[slot]);
	munmap(before, h->memory_size);
	stack_adopt(&h->stack, death, &out);
	return (int)out.half_open;
}
