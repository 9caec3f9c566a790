/*
 * machine.h - a whole machine in one process: one replica (its real stack, api and queue pair, the
 * sources compiled as they are), applications that obey the library's protocol, a NIC, a wire and a
 * remote host with a stack of its own, and one fake clock. Deterministic; a replica can be killed
 * before any store, and a successor is started as the keeper does it.
 *
 *   machine.c  memory that outlives a replica, start and death, the loop
 *   app.c      applications: processes, events, endpoints on shared words
 *   remote.c   NIC, wire and the remote host
 *   talk.c     what most scenarios do: connections that send, receive and end in all ways
 *   dgram.c    the same for datagram sockets
 *   forget.c   a successor that forgets a rule of adoption
 *   crash.c    kills at every point and compares
 *
 * At a death all outliving memory moves to new addresses and all private memory becomes
 * unreadable, so a stale pointer that a successor follows faults.
 */
#ifndef CRASH_MACHINE_H
#define CRASH_MACHINE_H

#include "../stack/harness.h"	/* linked as a separate stack of its own: the remote host */
#include "main.h"
#include "stores.h"
#include "tcp.h"
#include <setjmp.h>

enum {
	APPS = 2, ACTORS_MAX = 64, LISTENS_MAX = 8, ENDS_MAX = 4,
	HERE = 0x0a000001, THERE = 0x0a000002, LO = 0x7f000001,
	SLOTS_USED = 128,	/* of each half of a segment: only their payload memory exists */
};
#define FOREVER UINT64_MAX

struct machine;
struct actor;

/* ---- endpoints: a socket of an application, or of the remote host; same calls for both ---- */

/* What a datagram socket has had from one source: numbers only rise, and a repetition is counted. */
struct heard { uint32_t addr, last, count; uint16_t port; };

struct end {
	struct machine *m;
	struct actor *actor;
	struct proc *proc;	/* NULL: the remote host's */
	uint32_t slot, gen, sock;
	uint64_t tx, rx;	/* bytes written and read */
	uint32_t stream;	/* which bytes it sends; the other end sends stream ^ 1 */
	bool open, eof;
	int err;
	struct heard heard[4];	/* datagrams; the last source is heard[from] */
	uint32_t from;
};

struct listening { struct proc *proc; uint32_t slot, gen; uint16_t port; int install; };

enum end_flags { END_CONNECTED = 1, END_EOF = 2, END_OVER = 4 };

/* Outcomes: 0 = would block, else as named. */
void end_connect(struct end *e, uint32_t addr, uint16_t port, uint16_t lport, const struct neat_opts *o);
uint32_t end_flags(struct end *e);
bool end_accept(struct end *e, struct listening *l);
int end_send(struct end *e, uint64_t len);	/* bytes, or -errno */
int end_recv(struct end *e, uint64_t max);	/* bytes; -errno; -END_OF_FILE */
uint64_t end_readable(struct end *e);
void end_shutdown(struct end *e, uint32_t how);
void end_option(struct end *e, enum neat_opt opt, uint32_t value);
void end_close(struct end *e);
void end_abort(struct end *e);
enum { END_OF_FILE = 10000 };

/* ---- actors: resumable scripts ---- */

struct actor {
	const char *name;
	struct machine *m;
	struct proc *proc;	/* NULL: runs on the remote host */
	void (*script)(struct actor *a);
	const void *arg;
	int line;		/* where it waits */
	bool done, look, accepting;
	uint32_t watch;		/* slot whose events concern it now */
	uint64_t wake_us;	/* 0: none */
	uint64_t moves;
	struct end end[ENDS_MAX];
	uint64_t u[8];		/* the script's own variables */
	char log[512];
};

#define BEGIN(a) switch ((a)->line) { case 0:
#define END(a) } actor_end(a)
#define WAIT(a, cond) do { \
		(a)->line = __LINE__; \
		__attribute__((fallthrough)); \
	case __LINE__: \
		actor_look(a); \
		if (!(cond)) \
			return; \
		(a)->moves++; \
	} while (0)
#define SLEEP_UNTIL(a, at_us) do { \
		(a)->wake_us = (at_us); \
		WAIT(a, (a)->m->now_us >= (a)->wake_us); \
		(a)->wake_us = 0; \
	} while (0)

void actor_look(struct actor *a);
void actor_end(struct actor *a);
void actor_watch(struct actor *a, uint32_t slot);
__attribute__((format(printf, 2, 3))) void actor_log(struct actor *a, const char *format, ...);

/* ---- the machine ---- */

/* An application with one process. */
struct proc {
	uint32_t index, app_id;
	uint64_t ev_head;
	uint32_t overflow_seen;
	bool sleeping;
	uint64_t claimed[2];
	struct neat_seg_pub *pub;
	struct neat_seg_app *seg;
	struct neat_channels *channels;
	struct neat_channel *ch;
};

/* neatd's knowledge of a listener: replayed to a successor. */
struct install { bool used, answered, gone; struct neat_msg_r_listen m; struct listening *who; };

struct wire_rule { bool to_replica; uint32_t first, every, count; enum { WIRE_DROP = 1, WIRE_DUP, WIRE_LATE } what; };

struct machine {
	/* memory */
	uint8_t *base;			/* outliving memory */
	uint8_t *private, *private_end;
	struct replica *r;
	void *arena;
	size_t arena_size;
	struct neat_queue_pair *qp;
	jmp_buf death;
	volatile uint32_t epoch;
	bool stateless, ready, was_ready, ended;
	uint32_t death_kind;		/* enum neat_death that the keeper tells the successor */
	struct stack_config cfg;
	uint64_t now_us, start_us;
	uint64_t rng;
	/* people */
	struct proc proc[APPS];
	uint32_t nprocs;
	struct actor actor[ACTORS_MAX];
	uint32_t nactors;
	struct install install[LISTENS_MAX];
	struct listening listening[LISTENS_MAX];
	uint32_t nlistening;
	uint32_t next_sock;
	/* wire */
	struct remote *remote;
	const struct wire_rule *rules;
	uint32_t delay_us;
	uint64_t frames, segments;	/* on the wire, both directions */
	bool trace;
	uint32_t taken;			/* so many ports that the replica draws are another replica's: their SYNs come back */
	bool fence_drops;		/* what lay in the tx ring at a death is lost, else it went out */
	uint64_t nic_stops_us, nic_goes_us;	/* in between the NIC takes nothing */
	/* datagrams: a death may repeat one, and only one that waits for a neighbour's address is lost */
	struct neat_registry *registry;
	uint32_t repeated, lost;
	const char *forget;		/* a rule of adoption that is taken away, or NULL */
	uint64_t kept[64][2];		/* what forget.c puts back */
	/* verdict */
	uint32_t end_us;		/* time from start to the last actor's end */
	uint64_t steps;
	char failure[1024];
};

struct scenario {
	const char *name;
	void (*setup)(struct machine *m);
	bool brief;			/* short enough for every double crash */
	bool rst;			/* a RST is sent once: lost, the remote end waits for ever with reason */
	bool may_lose;			/* one datagram for each death */
	uint32_t extra_us;		/* a crash may cost this much more; 0 = the default */
};
extern const struct scenario *const scenarios[];

struct machine *machine_new(const struct scenario *sc, bool stateless);
void machine_run(struct machine *m);	/* to the end; m->failure tells */
_Noreturn void machine_kill(struct machine *m);
void machine_race(struct machine *m);	/* applications move now, whatever the replica is doing */
__attribute__((format(printf, 2, 3))) void machine_fail(struct machine *m, const char *format, ...);
/* Name of the memory at an address of outliving memory, for people and for rules ("tcb.snd_max"). */
const char *machine_name(const struct machine *m, uintptr_t addr, char *buf, size_t len);

/* for scenarios */
struct proc *machine_proc(struct machine *m, uint32_t index);
struct actor *machine_actor(struct machine *m, struct proc *p, const char *name, void (*script)(struct actor *),
			    const void *arg);
struct listening *machine_listen(struct machine *m, struct proc *p, uint16_t port, uint32_t backlog,
				 const struct neat_opts *o);
void machine_unlisten(struct machine *m, struct listening *l);
/* neatd gave a UDP port to an application; its home is this replica. */
void machine_udp_port(struct machine *m, uint32_t app_id, uint16_t port);

/* forget.c */
void forget_before(struct machine *m);
void forget_after(struct machine *m);
bool forget_wake(const struct machine *m);

/* app.c */
void app_tell(struct machine *m, struct proc *p);	/* a message from neatd came */
bool app_run(struct machine *m, struct proc *p);	/* true: somebody moved */
void app_wake(struct machine *m, struct neat_channel *ch);
bool actors_run(struct machine *m, struct proc *p, bool force);
void app_claim(struct end *e);			/* a free slot of the application's half, words reset */
void app_command(const struct end *e, enum neat_cmd op);
void app_kick(const struct end *e);
int app_take_error(struct end *e);		/* errno, or 0 */
uint32_t app_flags(const struct end *e);

/* remote.c */
void remote_new(struct machine *m, uint64_t seed);
bool remote_run(struct machine *m);
uint64_t remote_deadline(const struct machine *m);
void remote_death(struct machine *m);
void remote_announce(struct machine *m);	/* an ARP request for the replica: it learns the remote's address */
struct host *remote_host(const struct machine *m);

#endif
