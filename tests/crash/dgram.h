/* dgram.h - datagram sockets of applications and of the remote host, and a table-driven script over them. */
#ifndef CRASH_DGRAM_H
#define CRASH_DGRAM_H

#include "machine.h"

/*
 * Each datagram carries its sender's port and a number that rises by one. A receiver never sees a
 * smaller number of a source again but the last one: that is a repetition, counted and not
 * delivered; a number left out is counted as lost.
 */
void dgram_open(struct end *e, uint16_t port, const struct neat_opts *o);
int dgram_opened(const struct end *e);		/* 1, 0 = not yet, -errno */
void dgram_peer(struct end *e, uint32_t addr, uint16_t port);	/* connect(); port 0: AF_UNSPEC */
bool dgram_peered(const struct end *e);
int dgram_send(struct end *e, uint32_t addr, uint16_t port, uint32_t len);	/* bytes, 0 = no room, -errno */
int dgram_recv(struct end *e);			/* bytes, 0 = none, -errno; from whom: e->heard[e->from] */
int dgram_error(struct end *e);			/* errno of an ICMP message, taken; 0 = none */
void dgram_close(struct end *e);

struct gram {
	uint16_t port;
	const struct neat_opts *opts;
	uint64_t start_us;
	uint32_t addr;			/* whom to send to; 0: nobody */
	uint16_t to;
	bool connected;
	uint32_t send, len;
	uint64_t gap_us;		/* between two of them; 0: as fast as there is room */
	uint32_t recv;			/* so many are awaited */
	uint64_t recv_from_us, recv_until_us;	/* looks only then; until: nothing is awaited */
	bool answer;			/* each one received, to its sender */
	uint32_t errors;		/* so many ICMP errors are awaited, one after each datagram */
	bool limit;			/* how many come depends on room: repetitions take some of it */
	bool lossy;			/* the last one counts */
};

void gram(struct actor *a);		/* a->arg is a struct gram */

#endif
