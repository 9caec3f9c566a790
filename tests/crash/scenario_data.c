/* scenario_data.c - data both ways, loss, reordering, duplicates, windows, growing rings. */
#include "scenarios.h"
#include "talk.h"

/* Many small exchanges, so that acknowledgements ride, are delayed and cross. */
static void chatter(struct actor *a)
{
	struct end *e = &a->end[0];
	const bool active = a->proc != a->m->listening[0].proc;

	BEGIN(a);
	if (active) {
		SLEEP_UNTIL(a, a->m->start_us + 100);
		end_connect(e, a->proc ? THERE : HERE, PORT, CLIENT, NULL);
		WAIT(a, end_flags(e) & (END_CONNECTED | END_OVER));
	} else {
		WAIT(a, end_accept(e, &a->m->listening[0]));
	}
	for (a->u[0] = 0; a->u[0] < 6; a->u[0]++) {
		if (active)
			a->u[1] = (uint64_t)end_send(e, 50 + a->u[0]);
		WAIT(a, end_recv(e, FOREVER) != 0);
		if (!active)
			a->u[1] = (uint64_t)end_send(e, 70 + a->u[0]);
	}
	actor_log(a, "sent %lu received %lu", e->tx, e->rx);
	WAIT(a, active || end_recv(e, FOREVER) < 0);
	end_close(e);
	END(a);
}

static void echo_in(struct machine *m)
{
	machine_listen(m, machine_proc(m, 0), PORT, 8, NULL);
	machine_actor(m, machine_proc(m, 0), "server", chatter, NULL);
	machine_actor(m, NULL, "client", chatter, NULL);
}
SCENARIO(echo_in)

static void echo_out(struct machine *m)
{
	machine_listen(m, NULL, PORT, 8, NULL);
	machine_actor(m, NULL, "server", chatter, NULL);
	machine_actor(m, machine_proc(m, 0), "client", chatter, NULL);
}
SCENARIO(echo_out)

/* 40 kB each way at once: rings of both directions grow and wrap. */
static const struct talk both_server = { .send = 40000, .recv = 40000, .chunk = 3000, .wait_eof = true };
static const struct talk both_client = { CALL(HERE), .send = 40000, .recv = 40000, .chunk = 7000, .shut_wr = true,
					 .wait_eof = true };
static const struct talk both_client_out = { CALL(THERE), .send = 40000, .recv = 40000, .chunk = 7000,
					     .shut_wr = true, .wait_eof = true };
static const struct talk both_client_lo = { CALL(LO), .send = 40000, .recv = 40000, .chunk = 7000,
					    .shut_wr = true, .wait_eof = true };

static void both_in(struct machine *m) { talk_pair(m, 0, -1, &both_server, &both_client); }
SCENARIO(both_in)
static void both_out(struct machine *m) { talk_pair(m, -1, 0, &both_server, &both_client_out); }
SCENARIO(both_out)
static void both_local(struct machine *m) { talk_pair(m, 0, 1, &both_server, &both_client_lo); }
SCENARIO(both_local)

/* Loss towards us and from us, single frames and bursts. */
static void lossy(struct machine *m)
{
	static const struct wire_rule rules[] = {
		{ .to_replica = true, .first = 4, .every = 7, .count = 5, .what = WIRE_DROP },
		{ .to_replica = false, .first = 6, .every = 5, .count = 5, .what = WIRE_DROP },
		{ .to_replica = false, .first = 9, .every = 1, .count = 3, .what = WIRE_DROP },
		{ 0 },
	};

	m->rules = rules;
	both_in(m);
}
SCENARIO(lossy, .extra_us = 3000000)

static void reordered(struct machine *m)
{
	static const struct wire_rule rules[] = {
		{ .to_replica = true, .first = 3, .every = 4, .count = 8, .what = WIRE_LATE },
		{ .to_replica = false, .first = 5, .every = 4, .count = 8, .what = WIRE_LATE },
		{ .to_replica = true, .first = 5, .every = 6, .count = 6, .what = WIRE_DUP },
		{ .to_replica = false, .first = 6, .every = 6, .count = 6, .what = WIRE_DUP },
		{ 0 },
	};

	m->rules = rules;
	both_out(m);
}
SCENARIO(reordered)

/* Handshake frames lost in both directions. */
static void lost_handshake(struct machine *m)
{
	static const struct wire_rule rules[] = {
		{ .to_replica = false, .first = 0, .every = 1, .count = 1, .what = WIRE_DROP },
		{ .to_replica = true, .first = 2, .every = 1, .count = 1, .what = WIRE_DROP },
		{ 0 },
	};
	static const struct talk s = { .recv = 100, .send = 200, .wait_eof = true };
	static const struct talk c = { CALL(HERE), .send = 100, .recv = 200 };

	m->rules = rules;
	talk_pair(m, 0, -1, &s, &c);
}
SCENARIO(lost_handshake, .extra_us = 3000000)

/* The reader sleeps until the window is shut and probed. */
static void window_ours(struct machine *m)	/* ours is shut */
{
	static const struct neat_opts small = { .w = { [NEAT_OPT_RCVBUF] = 8192 } };
	static const struct talk s = { .recv = FOREVER, .read_from_us = 1500000 };
	static const struct talk c = { CALL(HERE), .send = 20000 };

	machine_listen(m, machine_proc(m, 0), PORT, 8, &small);
	machine_actor(m, machine_proc(m, 0), "server", talk, &s);
	machine_actor(m, NULL, "client", talk, &c);
}
SCENARIO(window_ours, .extra_us = 2000000)

static void window_theirs(struct machine *m)
{
	static const struct neat_opts small = { .w = { [NEAT_OPT_RCVBUF] = 8192 } };
	static const struct talk s = { .recv = FOREVER, .read_from_us = 1500000 };
	static const struct talk c = { CALL(THERE), .send = 20000 };

	machine_listen(m, NULL, PORT, 8, &small);
	machine_actor(m, NULL, "server", talk, &s);
	machine_actor(m, machine_proc(m, 0), "client", talk, &c);
}
SCENARIO(window_theirs, .extra_us = 2000000)

/* The answer to a probe and the update that opens it are lost: somebody has to ask again. */
static void window_asked(struct machine *m)
{
	static const struct wire_rule rules[] = {
		{ .to_replica = true, .first = 5, .every = 1, .count = 2, .what = WIRE_DROP },
		{ 0 },
	};

	m->rules = rules;
	window_theirs(m);
}
SCENARIO(window_asked, .extra_us = 4000000)

static void window_local(struct machine *m)
{
	static const struct neat_opts small = { .w = { [NEAT_OPT_RCVBUF] = 8192 } };
	static const struct talk s = { .recv = FOREVER, .read_from_us = 1500000 };
	static const struct talk c = { CALL(LO), .send = 20000 };

	machine_listen(m, machine_proc(m, 0), PORT, 8, &small);
	machine_actor(m, machine_proc(m, 0), "server", talk, &s);
	machine_actor(m, machine_proc(m, 1), "client", talk, &c);
}
SCENARIO(window_local, .extra_us = 2000000)

/* CORK holds the tail back, then NODELAY lets it go; SO_RCVBUF and keepalive change under way. */
static void options(struct machine *m)
{
	static const struct neat_opts cork = { .w = { [NEAT_OPT_FLAGS] = NEAT_OPTF_CORK } };
	static const struct talk s = { .recv = 3000, .send = 3000, .chunk = 500, .wait_eof = true,
		.change = { NEAT_OPT_FLAGS, NEAT_OPTF_KEEPALIVE | NEAT_OPTF_NODELAY, 50000, true } };
	static const struct talk c = { CALL(THERE), .send = 3000, .recv = 3000, .chunk = 1000, .opts = &cork,
		.change = { NEAT_OPT_FLAGS, NEAT_OPTF_NODELAY, 60000, true } };

	talk_pair(m, -1, 0, &s, &c);
}
SCENARIO(options)

/* A reader that takes odd amounts while the rings grow. */
static void growth(struct machine *m)
{
	static const struct talk s = { .recv = 150000, .read_max = 5001, .send = 10, .wait_eof = true,
				       .read_from_us = 30000 };
	static const struct talk c = { CALL(LO), .send = 150000, .chunk = 1700, .recv = 10 };

	talk_pair(m, 0, 1, &s, &c);
}
SCENARIO(growth)
