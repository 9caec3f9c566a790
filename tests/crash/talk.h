/* talk.h - one end of a connection as a table entry: connect or accept, send and receive, end. */
#ifndef CRASH_TALK_H
#define CRASH_TALK_H

#include "machine.h"

enum talk_end {
	TALK_CLOSE = 0,		/* close() when all is sent and received */
	TALK_ABORT,		/* connect(AF_UNSPEC), remote: RST */
	TALK_LINGER0,		/* SO_LINGER 0, then close(): RST */
};

struct talk {
	bool active;
	uint32_t addr;		/* active: whom to call */
	uint16_t port, lport;	/* lport also names the byte streams; 0 = drawn; passive: not used */
	bool crossed;		/* the other end calls us at the same time */
	uint32_t listening;	/* passive: index of the listener */
	uint64_t start_us;	/* relative to the scenario's start */
	uint64_t send, chunk;	/* chunk 0 = as much as fits */
	uint64_t recv;		/* bytes to read, FOREVER = until EOF */
	uint64_t read_max;
	uint64_t read_from_us;	/* nothing is read before: the window closes */
	uint64_t pause_us;	/* between the last byte and the end */
	bool shut_wr;		/* shutdown(SHUT_WR) once all is sent */
	bool shut_first;	/* ... and only then reads */
	bool wait_eof;		/* reads on until EOF after `recv` bytes */
	bool quiet;		/* what it sees depends on timing: nothing is compared */
	enum talk_end how;
	const struct neat_opts *opts;
	struct { enum neat_opt opt; uint32_t value; uint64_t at_us; bool set; } change;
};

void talk(struct actor *a);	/* a->arg is a struct talk */

/* A server that listens on PORT and its client; -1 = on the remote host, else the application. */
void talk_pair(struct machine *m, int server, int client, const struct talk *s, const struct talk *c);
enum { PORT = 80, CLIENT = 40000 };
#define CALL(whom) .active = true, .start_us = 100, .addr = whom, .port = PORT, .lport = CLIENT

#endif
