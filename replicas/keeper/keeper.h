/*
 * keeper.h - what the files of neat-keeper share.
 *
 * The keeper is the parent of all processes of an instance and holds what must survive each of them:
 * the shared memory and the control messages. It decides nothing but when to start a child again.
 */
#ifndef NEAT_KEEPER_H
#define NEAT_KEEPER_H

#include "neat_abi.h"
#include <linux/futex.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

enum {
	CONTROL_FD = 3,			/* a child's end of its control socket */
	FAULTS_KEPT = 64,		/* largest limit of faults within the window */
	FAULT_DELAY_MS = 1000,
	LAST_RITES_MS = 1000,		/* replicas have so long to tell the programs that the instance ends */
	UNREADY_MAX = 5,		/* faults in a row of a child that never worked: the instance ends */
	ARGS_MAX = 96,
	COMPONENTS = 3,			/* processes of a replica beside the one with role REPLICA */
	CHILDREN = NEAT_REPLICAS_MAX * (1 + COMPONENTS) + 3,
};

/* One control message and its descriptors; shared by the store and the queues, so counted. */
struct msg {
	uint32_t refs;
	uint32_t len;
	int nfds;
	int fds[NEAT_MSG_FDS_MAX];
	union {
		uint64_t align;
		struct neat_msg_header h;
		uint8_t bytes[NEAT_MSG_MAX];
	} u;		/* allocated as long as len needs */
};

/* A stored message: replayed, in order, to every successor. */
struct entry {
	struct entry *next;
	uint64_t key;
	struct msg *m;
};

/* A message on its way to a child; `wrap` goes before it when wrapped. */
struct out {
	struct out *next;
	struct msg *m;		/* NULL: the wrapper alone */
	bool wrapped;
	struct neat_msg_keeper wrap;
};

struct queue {
	struct out *first, **tail;
};

/* What replicas are started from, see program.c. */
struct program {
	char path[4096];
	int fd;			/* -1 = there is none */
	uint32_t generation;
};

/*
 * Life of a child: not wanted -> (K_SPAWN) wanted -> running (pid != 0) -> dead -> running ...
 * A replica's next process is the standby if there is one: it only waits for R_CONFIG.
 */
struct child {
	uint32_t role, index;
	pid_t pid;
	int pidfd, sock;
	uint32_t epoch;
	bool wanted, ready;
	bool parked;			/* R_PARKED came */
	bool ever_ready;
	bool adoptable;			/* the arena holds connections: a start was ready, no reset began since */
	bool adopts, fell_back;		/* what this process was told, enum neat_health_flags */
	bool planned;			/* is to be replaced when all are ready */
	bool replacing;			/* plan.c has just ended it */
	bool death_planned;		/* so it was with the predecessor */
	bool quarantined;		/* its next start is of the quarantine build */
	bool quarantine;		/* this process is */
	uint32_t generation;		/* of this process's program */
	enum neat_death fate;		/* why we are killing it; NONE = we are not */
	enum neat_death death;		/* of the predecessor */
	int status;			/* its end, as waitpid says it */
	uint64_t ended_us;		/* when child_end() was called; 0 = it was not */
	uint64_t died_us;		/* when we ended it, or saw it; 0 = never */
	uint32_t recovery_us;		/* from there to R_READY of the successor; 0 = not yet */
	uint32_t restarts;
	uint32_t unready_faults;	/* faults in a row without a sign of life */
	uint64_t faults[FAULTS_KEPT];	/* times of the latest ones, ms */
	uint32_t nfaults;
	uint64_t start_at;		/* ms; restart not before */
	/* watch.c */
	const neat_a32 *beats;		/* in a page that it writes; NULL = it has none yet */
	clockid_t cpu_clock;
	timer_t cpu_timer;
	bool watched;			/* cpu_clock and cpu_timer are valid */
	uint32_t heartbeat;		/* last seen ... */
	uint64_t beat_cpu_us;		/* ... at this time of its CPU clock */
	uint64_t stopped_at;		/* ms; 0 = it is not */
	uint64_t end_by;		/* ms; a component that was told to end; 0 = it was not */
	struct entry *stored;
	struct entry *orders, **orders_tail;	/* not carried out yet; a successor gets them behind R_START */
	struct entry *listen_hint;	/* where the next R_LISTENING probably belongs */
	struct queue out;
};

struct keeper_options {
	const char *dir, *name;
	const char *replica_bin, *nic_bin, *python;
	const char *components;		/* "multi": replicas are several processes (component.c) */
	char *neatd_args[ARGS_MAX];	/* after the interpreter's own; NULL-terminated */
	uint32_t faults_max;		/* faults within the window: the next start is stateless */
	uint32_t fault_window_ms;
	uint32_t hang_ms;		/* CPU time without a heartbeat; 0 = not watched */
	uint32_t rerandomize_s;		/* another replica is replaced each so many seconds; 0 = never */
	uint32_t quarantine_ms;		/* time without a fault that ends a quarantine */
	uint32_t stopped_ms;		/* a replica stopped for so long is replaced; 0 = never */
};

/* Our entry in the kernel's list of robust futexes (life.c); lives as long as we do. */
struct life {
	struct neat_registry *registry;	/* NULL until the first R_CONFIG is stored */
	struct robust_list_head head;
	struct robust_list entry;
};

/* The latest upgrade that was begun. */
struct upgrade {
	bool under_way;
	uint64_t number;	/* of the request; 0 = there was none yet */
	int status;		/* how it ended, for whoever asks again: neatd may not have lived to tell */
	char text[200];
};

struct keeper {
	struct keeper_options opt;
	struct life life;
	struct child neatd, nic, replica[NEAT_REPLICAS_MAX];
	struct child component[COMPONENTS][NEAT_REPLICAS_MAX];	/* by role, from NEAT_ROLE_IP on */
	struct child standby;		/* runs whenever all wanted replicas are ready */
	struct program program, quarantine;
	struct program part[COMPONENTS];	/* of components, by role; fd -1 = replicas are one process */
	struct program before, part_before[COMPONENTS];	/* while upgrading: those to go back to */
	struct upgrade upgrade;
	uint64_t rerandomize_at;	/* ms */
	uint32_t rerandomize_next;
	struct evidence *evidence;	/* taken, not written yet */
	int signals;			/* signalfd */
	bool stop;
	int exit_status;
	char sock_path[4096], pid_path[4096];
};

/* store.c */
struct msg *msg_new(const void *bytes, uint32_t len, const int *fds, int nfds);
void msg_put(struct msg *m);		/* the last reference closes the descriptors */
void queue_init(struct queue *q);
void queue_add(struct queue *q, const struct neat_msg_keeper *wrap, struct msg *m);
void queue_clear(struct queue *q);
struct entry *store_find(const struct child *c, uint64_t key);
void store_put(struct child *c, uint64_t key, struct msg *m);
void store_drop(struct child *c, uint64_t key);
/* Slot and generation that a replica chose go into the stored R_LISTEN: a successor reuses them. */
void store_listening(struct child *c, const struct neat_msg_r_listen *answer);
/* R_APP_GONE and R_RELEASE: kept, beside the store, until the replica says that it has carried them out. */
bool is_order(const struct msg *m);
void order_put(struct child *c, struct msg *m);
void order_done(struct child *c, const struct msg *answer);
void orders_moot(struct child *c);	/* the replica has drained */
struct neat_msg_keeper keeper_message(uint16_t type, const struct child *c, const struct msg *inner);

/* msg.c */
struct received {
	union {
		uint64_t align;
		struct neat_msg_header h;
		uint8_t bytes[NEAT_MSG_MAX];
	} u;
	uint32_t len;
	int fds[NEAT_MSG_FDS_MAX];
	int nfds;
};
/* 1 = a message, 0 = none now, -1 = the other end is gone or speaks another language. */
int msg_receive(int sock, struct received *r);
void received_close(struct received *r);
/* Sends what fits. False when the other end is gone. */
bool queue_flush(struct queue *q, int sock);

/* child.c */
struct child *keeper_child(struct keeper *k, uint32_t role, uint32_t index);
uint32_t keeper_children(struct keeper *k, struct child **all);	/* room for CHILDREN */
void child_init(struct child *c, uint32_t role, uint32_t index);
void child_start(struct keeper *k, struct child *c);
void child_died(struct keeper *k, struct child *c);
void child_end(struct child *c, enum neat_death fate);	/* SIGKILL; its pidfd tells when it is over */
void child_kill(struct child *c);	/* SIGKILL, wait: when it returns the process is gone */
void children_end(struct keeper *k);	/* all of them; replicas tell the programs before */
const char *child_name(const struct child *c, char *text, size_t size);

/* component.c: replicas of several processes */
bool is_multi(const struct keeper *k);
bool role_is_component(uint32_t role);
const char *component_name(uint32_t role);
/* The process of replica `index` that has the queue pair with the nic. */
const struct child *queue_holder(const struct keeper *k, uint32_t index);
/* Those that belong to `tcp`, the program of the process with the sockets; false and errno if one cannot be. */
bool components_open(struct program *part, const char *tcp);
void components_close(struct program *part);
/* tcp's start has to wait: for what ip says of the link, or for the end of a component of the life before. */
bool waits_for_component(const struct keeper *k, const struct child *c);
/* The components of replicas that have drained, one after another; ms until it has to look again, -1 = unknown. */
int components_end(struct keeper *k);

/* recovery.c: what a death means, and how the successor starts */
enum neat_death death_of(const struct child *c, int status);
void count_fault(struct keeper *k, struct child *c);
uint32_t strikes(const struct keeper *k, const struct child *c, uint64_t now_ms);
void configure(struct keeper *k, struct child *c, struct neat_msg_r_config *config);
void became_ready(struct keeper *k, struct child *c);
uint64_t youngest_fault(const struct child *c);		/* ms; 0 = none */
bool stateful(const struct child *c);
const struct msg *stored(const struct child *c, uint16_t type, uint32_t len);	/* NULL = none yet, or shorter */
const struct msg *stored_config(const struct child *c);	/* R_CONFIG */
void became_idle(struct keeper *k, struct child *c);	/* drained: it ends by itself and is not replaced */
struct msg *health_message(const struct keeper *k, const struct child *c);

/* program.c */
void program_open(struct program *p, const char *path);		/* fd -1 and errno if it cannot be */
void program_open_quarantine(struct program *p, const struct program *normal);
void program_close(struct program *p);
void program_exec(const struct program *p);

/* plan.c */
void upgrade_begin(struct keeper *k, uint64_t number, const char *path);
void upgrade_failed(struct keeper *k);
bool of_replica(const struct child *c);	/* tcp or a component: what an upgrade replaces */
int plan_step(struct keeper *k);	/* ms until it has something to do, -1 = unknown */

/* watch.c */
void watch_start(struct keeper *k, struct child *c);
void watch_end(struct child *c);
void watch_look(struct keeper *k, uint32_t who);
void watch_stops(struct keeper *k);
int watch_stopped(struct keeper *k);

/* evidence.c */
void evidence_take(struct keeper *k, const struct child *c, pid_t pid);
void evidence_write(struct keeper *k);

/* standby.c */
bool standby_promote(struct keeper *k, struct child *c);	/* c's next process; false = there is none */
bool standby_ready(const struct keeper *k);		/* parked, of the program that is current */
bool somebody_recovers(const struct keeper *k, bool *any);	/* any: replicas are wanted at all */
int standby_keep(struct keeper *k);	/* starts it if it is time; ms until it will be, -1 = unknown */

/* neatd.c */
void tell_neatd(struct keeper *k, uint16_t type, const struct child *c, struct msg *inner);
void neatd_message(struct keeper *k, struct received *r);
void child_message(struct keeper *k, struct child *c, struct received *r);
void neatd_handback(struct keeper *k);	/* queues the whole store and who runs */

/* sweep.c: another program in the same file, see there */
int sweep_main(int argc, char **argv);

/* options.c */
void parse(struct keeper_options *o, int argc, char **argv);
_Noreturn void usage(void);

/* life.c: the first R_CONFIG brings the page in which the kernel notes our death */
void life_begin(struct life *l, const struct msg *config);
void life_over(struct life *l);		/* we are about to end the instance */

/* main.c */
void keeper_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void keeper_die(const char *what);
void keeper_fail(struct keeper *k, const char *what);	/* ends the instance, exit status 1 */
uint64_t clock_us(void);
int sooner(int a, int b);	/* of two time-outs for poll() */
uint64_t clock_ms(void);

#endif
