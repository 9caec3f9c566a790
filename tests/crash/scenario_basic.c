/* scenario_basic.c - handshakes and data with the remote host, and on this replica's own lo. */
#include "talk.h"
#include "scenarios.h"

static void pair(struct machine *m, struct proc *server, struct proc *client, const struct talk *s,
		 const struct talk *c)
{
	machine_listen(m, server, 80, 8, NULL);
	machine_actor(m, server, "server", talk, s);
	machine_actor(m, client, "client", talk, c);
}

static void inbound(struct machine *m)
{
	static const struct talk s = { .recv = 100, .send = 200, .wait_eof = true };
	static const struct talk c = { .active = true, .start_us = 100, .addr = HERE, .port = 80, .lport = 40000, .send = 100, .recv = 200 };

	pair(m, machine_proc(m, 0), NULL, &s, &c);
}
SCENARIO(inbound, .brief = true)

static void outbound(struct machine *m)
{
	static const struct talk s = { .recv = 100, .send = 200, .wait_eof = true };
	static const struct talk c = { .active = true, .start_us = 100, .addr = THERE, .port = 80, .lport = 40000, .send = 100, .recv = 200 };

	pair(m, NULL, machine_proc(m, 0), &s, &c);
}
SCENARIO(outbound, .brief = true)

static void local(struct machine *m)
{
	static const struct talk s = { .recv = 100, .send = 200, .wait_eof = true };
	static const struct talk c = { .active = true, .start_us = 100, .addr = LO, .port = 80, .lport = 40000, .send = 100, .recv = 200 };

	pair(m, machine_proc(m, 0), machine_proc(m, 1), &s, &c);
}
SCENARIO(local, .brief = true)

/* The server speaks first, and alone: it needs room in a connection that it has only just been given. */
static void greeting(struct machine *m)
{
	static const struct talk s = { .send = 200, .wait_eof = true };
	static const struct talk c = { .active = true, .start_us = 100, .addr = LO, .port = 80, .lport = 40000, .recv = 200 };

	pair(m, machine_proc(m, 0), machine_proc(m, 1), &s, &c);
}
SCENARIO(greeting, .brief = true)
