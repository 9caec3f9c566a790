/* scenario_listen.c - listeners: full queues, TCP_DEFER_ACCEPT, closing with connections in the queue,
 * many connections at once. */
#include "scenarios.h"
#include "talk.h"

/* A backlog of 1 and nobody accepts for a while: SYNs and last ACKs are dropped and come again. */
static void full_queue(struct machine *m)
{
	static const struct talk s = { .recv = 10, .send = 20, .start_us = 3500000, .wait_eof = true };
	static const struct talk c[] = {
		{ .active = true, .start_us = 100, .addr = HERE, .port = PORT, .lport = CLIENT, .send = 10, .recv = 20 },
		{ .active = true, .start_us = 200, .addr = HERE, .port = PORT, .lport = CLIENT + 1, .send = 10, .recv = 20 },
		{ .active = true, .start_us = 300, .addr = HERE, .port = PORT, .lport = CLIENT + 2, .send = 10, .recv = 20 },
		{ .active = true, .start_us = 400, .addr = HERE, .port = PORT, .lport = CLIENT + 3, .send = 10, .recv = 20 },
	};

	remote_announce(m);	/* no SYN-ACK waits for ARP */
	machine_listen(m, machine_proc(m, 0), PORT, 1, NULL);
	for (int i = 0; i < 4; i++) {
		machine_actor(m, machine_proc(m, 0), "server", talk, &s);
		machine_actor(m, NULL, "client", talk, &c[i]);
	}
}
SCENARIO(full_queue, .extra_us = 9000000)

static void deferred(struct machine *m)
{
	static const struct neat_opts defer = { .w = { [NEAT_OPT_DEFER_ACCEPT_S] = 3 } };
	static const struct talk s = { .recv = 10, .send = 20, .wait_eof = true };
	static const struct talk c = { .active = true, .start_us = 100, .addr = HERE, .port = PORT, .lport = CLIENT,
				       .send = 10, .recv = 20 };

	machine_listen(m, machine_proc(m, 0), PORT, 8, &defer);
	machine_actor(m, machine_proc(m, 0), "server", talk, &s);
	machine_actor(m, NULL, "client", talk, &c);
}
SCENARIO(deferred, .extra_us = 3500000)

/* The listener is closed while connections wait in its queue. */
static void closer(struct actor *a)
{
	BEGIN(a);
	SLEEP_UNTIL(a, a->m->start_us + 100000);
	machine_unlisten(a->m, &a->m->listening[0]);
	END(a);
}

static void unlisten(struct machine *m)
{
	static const struct talk c[] = {
		{ .active = true, .start_us = 100, .addr = HERE, .port = PORT, .lport = CLIENT, .send = 10, .recv = FOREVER },
		{ .active = true, .start_us = 5000, .addr = HERE, .port = PORT, .lport = CLIENT + 1, .recv = FOREVER },
	};
	static const struct talk lo = { .active = true, .start_us = 300, .addr = LO, .port = PORT, .lport = CLIENT + 2,
					.send = 10, .recv = FOREVER };

	machine_listen(m, machine_proc(m, 0), PORT, 8, NULL);
	machine_actor(m, NULL, "client 1", talk, &c[0]);
	machine_actor(m, NULL, "client 2", talk, &c[1]);
	machine_actor(m, machine_proc(m, 1), "local", talk, &lo);
	machine_actor(m, machine_proc(m, 0), "closer", closer, NULL);
}
SCENARIO(unlisten, .rst = true, .extra_us = 2000000)

/* Twelve at once, from both sides and locally. */
static void many(struct machine *m)
{
	static const struct talk s_remote = { .recv = FOREVER, .send = 300, .listening = 1, .quiet = true };
	static const struct talk s_here = { .recv = FOREVER, .send = 300, .quiet = true };
	static struct talk c[12];

	machine_listen(m, machine_proc(m, 0), PORT, 16, NULL);
	machine_listen(m, NULL, PORT, 16, NULL);
	for (uint32_t i = 0; i < 12; i++) {
		struct proc *client = i % 3 == 0 ? NULL : machine_proc(m, 1);

		c[i] = (struct talk){ .active = true, .start_us = 100 + i * 50, .port = PORT, .lport = (uint16_t)(CLIENT + i),
				      .addr = i % 3 == 0 ? HERE : i % 3 == 1 ? THERE : LO,
				      .send = 100 + i, .recv = 300, .shut_wr = i % 2, .wait_eof = i % 2 };
		machine_actor(m, client, "client", talk, &c[i]);
	}
	for (int i = 0; i < 8; i++)
		machine_actor(m, machine_proc(m, 0), "server", talk, &s_here);
	for (int i = 0; i < 4; i++)
		machine_actor(m, NULL, "remote server", talk, &s_remote);
}
SCENARIO(many, .extra_us = 2000000)
