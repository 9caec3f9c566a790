/*
 * Messages whose every byte is known from (connection, direction, offset): what arrives is compared
 * with what must arrive, so a byte that is lost, doubled, stale or of somebody else is found where
 * it stands.
 */
#ifndef BENCH_VERIFY_H
#define BENCH_VERIFY_H

#include "load.h"

enum {
	VERIFY_MAGIC = 0x46524556,
	VERIFY_MAX = 256 * 1024,	/* largest payload of a message */
	CHUNK = 64 * 1024,		/* bytes handed to or taken from one system call */
};

/* How a connection ends after the request that says so. */
enum ending {
	GOES_ON = 0,
	CLIENT_CLOSES = 1,	/* the server sees end of file and closes */
	HALF_CLOSE = 2,		/* the client shuts down its direction before it reads the reply */
	SERVER_CLOSES = 3,	/* the server shuts down its direction behind the reply */
};

/* Head of every message, both ways; `len` bytes follow. The reply has the request's numbers. */
struct head {
	uint32_t magic;
	uint32_t number;	/* of the request on its connection */
	uint64_t conn;		/* unique over all clients of a run */
	uint32_t len;
	uint32_t reply;		/* bytes the reply shall have */
	uint32_t ending;	/* enum ending */
	uint32_t sum;		/* over the fields before */
};

enum direction { TO_SERVER = 1, TO_CLIENT = 2 };

/* A message on its way out, or the place of the next byte on its way in. */
struct message {
	struct head head;
	enum direction direction;
	uint64_t base;		/* stream offset of the payload's first byte */
	uint32_t done;		/* bytes sent or received, head included */
};

void head_seal(struct head *h);
bool head_ok(const struct head *h);
uint32_t message_size(const struct message *m);

/* Sends on; 1 = all is out, 0 = would block (never on a blocking socket), -1 = errno. */
int message_send(struct message *m, int fd);
/*
 * Takes bytes until the message is whole: 1 = it is, 0 = would block, -1 = errno (0 at end of file). *wrong
 * tells what does not fit; the message is useless then.
 */
int message_receive(struct message *m, int fd, const char **wrong);

/* A connection's requests and replies, one at a time; sizes and length of life are drawn. */
struct talk {
	bool edge, blocks, churns;	/* churns: it ends with a request that says how (enum ending) */
	uint32_t magnitudes;		/* requests and replies are shorter than 2 to the power of this */
	uint32_t life_max;		/* requests of one that churns */
	uint64_t random, id;
	uint64_t sent, received;	/* stream offsets of payload, whole messages */
	uint32_t number, life;
	struct message out, in;
};
void talk_init(struct talk *t, uint64_t seed, long number);
uint64_t talk_draw(struct talk *t);
/* A new connection's numbers, and its socket. */
int talk_open(struct talk *t, uint64_t id);
/* In the epoll set `ep`, for `who`: a level-triggered one waits for what it wants next. */
void talk_watch(const struct talk *t, int ep, int fd, void *who);
void talk_want(const struct talk *t, int ep, int fd, uint32_t events, void *who);
void talk_request(struct talk *t);
/* The reply is whole. False: it is not the one that was asked for. */
bool talk_answered(struct talk *t);

/* One line of JSON about something that must not happen. */
void failure(const char *what, int err, const struct message *out, const struct message *in, int64_t since);
extern uint64_t failures;

void serve(const char *port, long workers);

struct load {
	struct sockaddr_in to;
	long conns;		/* served by epoll, half of them edge-triggered */
	long threads;		/* blocking connections beside them, each a thread */
	long active;		/* requests at a time, of all conns */
	uint64_t seed;
};
void ask(const struct load *l);

#endif
