/* scenario_end.c - all ways in which a connection ends. */
#include "scenarios.h"
#include "talk.h"

/* We close first: FIN_WAIT_1, FIN_WAIT_2, TIME_WAIT. The other end still sends (half-close). */
static void active_close(struct machine *m)
{
	static const struct talk s = { .recv = FOREVER, .send = 2000, .shut_first = false };
	static const struct talk c = { CALL(THERE), .send = 500, .shut_wr = true, .recv = 2000, .wait_eof = true };

	talk_pair(m, -1, 0, &s, &c);
}
SCENARIO(active_close, .brief = true)

/* The peer closes first: CLOSE_WAIT, LAST_ACK. */
static void passive_close(struct machine *m)
{
	static const struct talk s = { .recv = FOREVER, .send = 1000, .pause_us = 5000 };
	static const struct talk c = { CALL(HERE), .send = 500, .shut_wr = true, .recv = FOREVER };

	talk_pair(m, 0, -1, &s, &c);
}
SCENARIO(passive_close, .brief = true)

/* Both at once: CLOSING. */
static void both_close(struct machine *m)
{
	static const struct talk s = { .recv = 10, .send = 10, .shut_wr = true, .wait_eof = true };
	static const struct talk c = { CALL(HERE), .send = 10, .recv = 10, .shut_wr = true, .wait_eof = true };

	talk_pair(m, 0, -1, &s, &c);
}
SCENARIO(both_close, .brief = true)

static void local_close(struct machine *m)
{
	static const struct talk s = { .recv = 10, .send = 10, .shut_wr = true, .wait_eof = true };
	static const struct talk c = { CALL(LO), .send = 10, .recv = 10, .shut_wr = true, .wait_eof = true };

	talk_pair(m, 0, 1, &s, &c);
}
SCENARIO(local_close, .brief = true)

/* FINs and their ACKs are lost. */
static void lost_fin(struct machine *m)
{
	static const struct wire_rule rules[] = {
		{ .to_replica = false, .first = 4, .every = 1, .count = 3, .what = WIRE_DROP },
		{ .to_replica = true, .first = 4, .every = 1, .count = 3, .what = WIRE_DROP },
		{ 0 },
	};

	m->rules = rules;
	both_close(m);
}
/* A death shifts what is dropped, and without a sample of the round trip the timer starts at 3 s. */
SCENARIO(lost_fin, .extra_us = 25000000)

/* close() with unread data: RST (RFC 1122 4.2.2.13). */
static void unread(struct machine *m)
{
	static const struct talk s = { .recv = 100, .pause_us = 20000 };
	static const struct talk c = { CALL(HERE), .send = 3000, .recv = FOREVER };

	talk_pair(m, 0, -1, &s, &c);
}
SCENARIO(unread, .brief = true, .rst = true)

static void linger0(struct machine *m)
{
	static const struct talk s = { .recv = 100, .pause_us = 20000, .how = TALK_LINGER0 };
	static const struct talk c = { CALL(HERE), .send = 100, .recv = FOREVER };

	talk_pair(m, 0, -1, &s, &c);
}
SCENARIO(linger0, .brief = true, .rst = true)

/* connect(AF_UNSPEC). */
static void disconnect(struct machine *m)
{
	static const struct talk s = { .recv = FOREVER };
	static const struct talk c = { CALL(THERE), .send = 100, .pause_us = 20000, .how = TALK_ABORT };

	talk_pair(m, -1, 0, &s, &c);
}
SCENARIO(disconnect, .brief = true, .rst = true)

/* The peer resets us: once while we read, once in CLOSE_WAIT. */
static void reset(struct machine *m)
{
	static const struct talk s = { .recv = FOREVER };
	static const struct talk c = { CALL(HERE), .send = 100, .pause_us = 20000, .how = TALK_ABORT };

	talk_pair(m, 0, -1, &s, &c);
}
SCENARIO(reset, .brief = true)

static void reset_local(struct machine *m)
{
	static const struct talk s = { .recv = FOREVER };
	static const struct talk c = { CALL(LO), .send = 100, .pause_us = 20000, .how = TALK_ABORT };

	talk_pair(m, 0, 1, &s, &c);
}
SCENARIO(reset_local, .brief = true)

/* Nobody listens. */
static void refused(struct machine *m)
{
	static const struct talk out = { CALL(THERE), .send = 10, .recv = FOREVER };
	static const struct talk lo = { CALL(LO), .send = 10, .recv = FOREVER };

	machine_actor(m, machine_proc(m, 0), "out", talk, &out);
	machine_actor(m, machine_proc(m, 1), "local", talk, &lo);
}
SCENARIO(refused, .brief = true)

/* close() right after the data: everything is still in the ring; the application is gone long before. */
static void orphan(struct machine *m)
{
	static const struct talk s = { .recv = FOREVER };
	static const struct talk c = { CALL(THERE), .send = 30000 };

	talk_pair(m, -1, 0, &s, &c);
}
SCENARIO(orphan)

static void orphan_local(struct machine *m)
{
	static const struct talk s = { .recv = FOREVER, .read_from_us = 100000 };
	static const struct talk c = { CALL(LO), .send = 30000 };

	talk_pair(m, 0, 1, &s, &c);
}
SCENARIO(orphan_local)

/* Both SYNs cross (RFC 9293 3.5, figure 8). */
static void simultaneous(struct machine *m)
{
	static const struct talk a = { .active = true, .start_us = 5000, .addr = THERE, .port = 50000, .lport = 50001,
				       .crossed = true, .send = 100, .recv = 100 };
	static const struct talk b = { .active = true, .start_us = 5000, .addr = HERE, .port = 50001, .lport = 50000,
				       .crossed = true, .send = 100, .recv = 100 };

	machine_actor(m, machine_proc(m, 0), "here", talk, &a);
	machine_actor(m, NULL, "there", talk, &b);
}
SCENARIO(simultaneous, .extra_us = 3000000)

/* The same tuple again while it is in TIME_WAIT (RFC 6191). */
static void reuse(struct machine *m)
{
	static const struct talk s = { .recv = FOREVER, .send = 10 };
	static const struct talk c1 = { CALL(HERE), .send = 20, .recv = 10, .shut_wr = true, .wait_eof = true };
	static const struct talk c2 = { .active = true, .start_us = 1200000, .addr = HERE, .port = PORT, .lport = CLIENT,
					.send = 30, .recv = 10, .shut_wr = true, .wait_eof = true };

	machine_listen(m, machine_proc(m, 0), PORT, 8, NULL);
	machine_actor(m, machine_proc(m, 0), "server 1", talk, &s);
	machine_actor(m, NULL, "client 1", talk, &c1);
	machine_actor(m, machine_proc(m, 0), "server 2", talk, &s);
	machine_actor(m, NULL, "client 2", talk, &c2);
}
SCENARIO(reuse, .extra_us = 2500000)
