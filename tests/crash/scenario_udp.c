/*
 * scenario_udp.c - datagram sockets: both ways with the remote host, on lo, refused ports, peers,
 * full queues, closing with datagrams under way, ICMP errors.
 *
 * A death may repeat the datagram (or the error) that was being worked on (udp.c, RFC 768 allows it);
 * nothing is lost but a datagram that waits for its neighbour's address.
 */
#include "dgram.h"
#include "scenarios.h"

enum { PORT = 5000, CLIENT = 40000, ANY_APP = -1 };

static void open_ports(struct machine *m)
{
	remote_announce(m);
	machine_udp_port(m, machine_proc(m, 0)->app_id, PORT);
	machine_udp_port(m, machine_proc(m, 1)->app_id, CLIENT);
	machine_udp_port(m, (uint32_t)ANY_APP, PORT + 1);
}

static const struct gram echo_server = { .port = PORT, .answer = true, .len = 300, .recv = 6 };

static void udp_in(struct machine *m)
{
	static const struct gram c = { .port = CLIENT, .start_us = 5000, .addr = HERE, .to = PORT, .send = 6, .len = 500,
				       .gap_us = 3000, .recv = 6 };

	open_ports(m);
	machine_actor(m, machine_proc(m, 0), "server", gram, &echo_server);
	machine_actor(m, NULL, "client", gram, &c);
}
SCENARIO(udp_in, .brief = true, .rst = true)

static void udp_out(struct machine *m)
{
	static const struct gram c = { .port = CLIENT, .start_us = 5000, .addr = THERE, .to = PORT, .send = 6, .len = 500,
				       .recv = 6 };

	open_ports(m);
	machine_actor(m, NULL, "server", gram, &echo_server);
	machine_actor(m, machine_proc(m, 1), "client", gram, &c);
}
SCENARIO(udp_out, .brief = true, .rst = true)

/* Rings grow and wrap. */
static void udp_local(struct machine *m)
{
	static const struct gram s = { .port = PORT, .answer = true, .len = 1000, .recv = 30 };
	static const struct gram c = { .port = CLIENT, .start_us = 100, .addr = LO, .to = PORT, .send = 30, .len = 700,
				       .recv = 30 };

	open_ports(m);
	machine_actor(m, machine_proc(m, 0), "server", gram, &s);
	machine_actor(m, machine_proc(m, 1), "client", gram, &c);
}
SCENARIO(udp_local)

/* Nobody knows the remote's address yet: the datagram waits for ARP, and dies with the replica. */
static void udp_first(struct machine *m)
{
	static const struct gram s = { .port = PORT, .recv_until_us = 60000, .lossy = true };
	static const struct gram c = { .port = CLIENT, .addr = THERE, .to = PORT, .send = 3, .len = 100, .gap_us = 10000 };

	machine_udp_port(m, machine_proc(m, 1)->app_id, CLIENT);
	machine_actor(m, NULL, "server", gram, &s);
	machine_actor(m, machine_proc(m, 1), "client", gram, &c);
}
SCENARIO(udp_first, .rst = true, .may_lose = true)

/* A port of another application, one that nobody has, and one that several share. */
static void udp_bind(struct machine *m)
{
	static const struct gram theirs = { .port = CLIENT };
	static const struct gram nobodys = { .port = 7777, .start_us = 100 };
	static const struct gram shared = { .port = PORT + 1, .addr = LO, .to = PORT + 1, .start_us = 200, .send = 3,
					    .len = 64, .recv = 3 };

	open_ports(m);
	machine_actor(m, machine_proc(m, 0), "theirs", gram, &theirs);
	machine_actor(m, machine_proc(m, 0), "nobody's", gram, &nobodys);
	machine_actor(m, machine_proc(m, 0), "shared", gram, &shared);
}
SCENARIO(udp_bind, .brief = true)

/* Hears its peer only; the peer changes, and goes. */
static void changing(struct actor *a)
{
	struct end *e = &a->end[0];

	BEGIN(a);
	dgram_open(e, PORT, NULL);
	WAIT(a, dgram_opened(e) != 0);
	dgram_peer(e, LO, CLIENT);
	WAIT(a, dgram_peered(e));
	SLEEP_UNTIL(a, a->m->start_us + 20000);
	WAIT(a, dgram_recv(e) > 0);
	dgram_peer(e, THERE, CLIENT);
	WAIT(a, dgram_peered(e));
	dgram_send(e, THERE, CLIENT, 50);
	WAIT(a, dgram_recv(e) > 0);
	dgram_peer(e, 0, 0);
	WAIT(a, dgram_peered(e));
	SLEEP_UNTIL(a, a->m->start_us + 50000);
	WAIT(a, dgram_recv(e) > 0);
	for (a->u[0] = 0; e->heard[a->u[0]].port; a->u[0]++)
		actor_log(a, "%u of %#x ", e->heard[a->u[0]].count, e->heard[a->u[0]].addr);
	dgram_close(e);
	END(a);
}

static void udp_connected(struct machine *m)
{
	static const struct gram local = { .port = CLIENT, .start_us = 5000, .addr = LO, .to = PORT, .send = 1, .len = 70 };
	static const struct gram again = { .port = PORT + 1, .start_us = 50000, .addr = LO, .to = PORT, .send = 1, .len = 70 };
	static const struct gram stranger = { .port = CLIENT + 1, .start_us = 10000, .addr = HERE, .to = PORT, .send = 1,
					      .len = 90, .errors = 1, .connected = true };
	static const struct gram remote = { .port = CLIENT, .answer = true, .len = 80, .recv = 1 };

	open_ports(m);
	machine_actor(m, machine_proc(m, 0), "changing", changing, NULL);
	machine_actor(m, machine_proc(m, 1), "local", gram, &local);
	machine_actor(m, machine_proc(m, 1), "again", gram, &again);
	machine_actor(m, NULL, "stranger", gram, &stranger);
	machine_actor(m, NULL, "remote", gram, &remote);
}
SCENARIO(udp_connected, .rst = true)

/* SO_RCVBUF: the one that goes over it is still taken, the rest is dropped until somebody reads. */
static void udp_full(struct machine *m)
{
	static const struct neat_opts small = { .w = { [NEAT_OPT_RCVBUF] = 4096 } };
	static const struct gram s = { .port = PORT, .opts = &small, .recv_from_us = 50000, .recv = 5, .limit = true };
	static const struct gram c = { .port = CLIENT, .start_us = 5000, .addr = HERE, .to = PORT, .send = 12, .len = 1000 };

	open_ports(m);
	machine_actor(m, machine_proc(m, 0), "server", gram, &s);
	machine_actor(m, NULL, "client", gram, &c);
}
SCENARIO(udp_full, .rst = true)

/* SO_SNDBUF: the sender waits for room, again and again. */
static void udp_room(struct machine *m)
{
	static const struct neat_opts small = { .w = { [NEAT_OPT_SNDBUF] = 4096 } };
	static const struct gram s = { .port = PORT, .recv = 24 };
	static const struct gram c = { .port = CLIENT, .opts = &small, .start_us = 5000, .addr = LO, .to = PORT, .send = 24,
				       .len = 900 };

	open_ports(m);
	machine_actor(m, machine_proc(m, 0), "server", gram, &s);
	machine_actor(m, machine_proc(m, 1), "client", gram, &c);
}
SCENARIO(udp_room)

/* The NIC takes nothing for a while: more than its ring holds stays in the socket's. */
static void udp_nic(struct machine *m)
{
	static const struct gram s = { .port = PORT, .recv = NEAT_QP_ENTRIES + 40 };
	static const struct gram c = { .port = CLIENT, .start_us = 5000, .addr = THERE, .to = PORT,
				       .send = NEAT_QP_ENTRIES + 40, .len = 16 };

	open_ports(m);
	m->nic_stops_us = 4000;
	m->nic_goes_us = 20000;
	machine_actor(m, NULL, "server", gram, &s);
	machine_actor(m, machine_proc(m, 1), "client", gram, &c);
}
SCENARIO(udp_nic, .rst = true)

/* close() right behind the last datagram: all of them go out; and with unread ones, which nobody misses. */
static void udp_end(struct machine *m)
{
	static const struct gram remote = { .port = PORT, .recv = 8 };
	static const struct gram out = { .port = CLIENT, .start_us = 5000, .addr = THERE, .to = PORT, .send = 8, .len = 600 };
	static const struct gram lo = { .port = PORT + 1, .start_us = 5000, .addr = LO, .to = PORT, .send = 4, .len = 600 };
	static const struct gram unread = { .port = PORT, .start_us = 100, .recv_from_us = 5050 };

	open_ports(m);
	machine_actor(m, NULL, "remote", gram, &remote);
	machine_actor(m, machine_proc(m, 1), "out", gram, &out);
	machine_actor(m, machine_proc(m, 1), "local", gram, &lo);
	machine_actor(m, machine_proc(m, 0), "unread", gram, &unread);
}
SCENARIO(udp_end, .brief = true, .rst = true)

/* ICMP port unreachable from the remote host and from ourselves: ECONNREFUSED, once for each datagram. */
static void udp_refused(struct machine *m)
{
	static const struct gram out = { .port = PORT, .start_us = 5000, .connected = true, .addr = THERE, .to = 9, .send = 2,
					 .len = 40, .errors = 2, .recv_until_us = 30000 };
	static const struct gram lo = { .port = CLIENT, .start_us = 5000, .connected = true, .addr = LO, .to = 9, .send = 2,
					.len = 40, .errors = 2, .recv_until_us = 30000 };

	open_ports(m);
	machine_actor(m, machine_proc(m, 0), "out", gram, &out);
	machine_actor(m, machine_proc(m, 1), "local", gram, &lo);
}
SCENARIO(udp_refused, .brief = true, .rst = true)

/* Nobody here has the port: the remote host hears so. */
static void udp_unreachable(struct machine *m)
{
	static const struct gram c = { .port = CLIENT, .start_us = 5000, .connected = true, .addr = HERE, .to = 9, .send = 1,
				       .len = 40, .errors = 1 };

	open_ports(m);
	machine_actor(m, NULL, "client", gram, &c);
}
SCENARIO(udp_unreachable, .brief = true, .rst = true)
