/* scenario_basic.c - handshakes and data with the remote host, and on this replica's own lo. */
#include "scenarios.h"
#include "talk.h"

static void inbound(struct machine *m)
{
	static const struct talk s = { .recv = 100, .send = 200, .wait_eof = true };
	static const struct talk c = { CALL(HERE), .send = 100, .recv = 200 };

	talk_pair(m, 0, -1, &s, &c);
}
SCENARIO(inbound, .brief = true)

static void outbound(struct machine *m)
{
	static const struct talk s = { .recv = 100, .send = 200, .wait_eof = true };
	static const struct talk c = { CALL(THERE), .send = 100, .recv = 200 };

	talk_pair(m, -1, 0, &s, &c);
}
SCENARIO(outbound, .brief = true)

static void local(struct machine *m)
{
	static const struct talk s = { .recv = 100, .send = 200, .wait_eof = true };
	static const struct talk c = { CALL(LO), .send = 100, .recv = 200 };

	talk_pair(m, 0, 1, &s, &c);
}
SCENARIO(local, .brief = true)

/* The server speaks first, and alone: it needs room in a connection that it has only just been given. */
static void greeting(struct machine *m)
{
	static const struct talk s = { .send = 200, .wait_eof = true };
	static const struct talk c = { CALL(LO), .recv = 200 };

	talk_pair(m, 0, 1, &s, &c);
}
SCENARIO(greeting, .brief = true)

/* The first two ports that connect() draws are another replica's towards that peer: the NIC gives the SYNs back. */
static void drawn_again(struct machine *m)
{
	static const struct talk s = { .recv = 100, .send = 200, .wait_eof = true };
	static const struct talk c = { .active = true, .start_us = 100, .addr = THERE, .port = PORT, .send = 100, .recv = 200 };

	m->taken = 2;
	talk_pair(m, -1, 0, &s, &c);
}
SCENARIO(drawn_again, .brief = true)

/* The port is the program's: EADDRNOTAVAIL. */
static void taken(struct machine *m)
{
	static const struct talk c = { CALL(THERE), .send = 100, .recv = 200 };

	m->taken = 1;
	machine_actor(m, machine_proc(m, 0), "client", talk, &c);
}
SCENARIO(taken, .brief = true)
