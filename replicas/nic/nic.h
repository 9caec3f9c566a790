/* nic.h - what the files of the neat-nic process share. The pure rooms have headers of their own. */
#ifndef NEAT_NIC_H
#define NEAT_NIC_H

#include "asks.h"
#include "gso.h"
#include "queue.h"
#include "reass.h"
#include "steer.h"
#include "wire.h"
#include <errno.h>
#include <sys/types.h>

enum {
	CONTROL_FD = 3,
	UPLINK_FDS = NEAT_MSG_FDS_MAX,
	NIC_FRAME = NEAT_QP_BUF,		/* largest frame, headers included */
	NIC_BUDGET = 64,			/* frames of one source before the next one's turn */
	FLOWS_DEFAULT = 131072,
	NIC_TAP_DELETED = EBADFD,		/* drivers/net/tun.c: of a descriptor whose device is no more */
};

struct capture {
	int fd;					/* -1: off */
	uint32_t dir;				/* mask of enum neat_capture_dir */
};

struct uplink {
	enum neat_nic_backend kind;
	int fd[UPLINK_FDS];
	uint32_t nfds;
	bool blocked;				/* wire: the socket is full, wait for EPOLLOUT */
};

struct nic {
	bool configured;
	struct neat_msg_n_config cfg;
	struct steer steer;
	struct queue queues[NEAT_REPLICAS_MAX];
	int eventfds[NEAT_REPLICAS_MAX];
	struct capture captures[NEAT_REPLICAS_MAX];
	struct uplink uplink;
	struct wire wire;
	struct reass reass;
	struct asks asks;
	uint64_t now_us;			/* CLOCK_MONOTONIC, once per loop */
	int epoll;
	uint64_t count[NEAT_NIC_STATS];
	neat_a32 *heartbeat;		/* in the table of connections; NULL before N_FLOWS */
	uint8_t frame[NIC_FRAME];		/* one received frame */
	uint8_t segment[NIC_FRAME];		/* one segment cut from a super-segment */
};

/* epoll_event.data.u32: a kind, and an index in the low byte. */
enum { WATCH_CONTROL = 0, WATCH_UPLINK = 0x100, WATCH_QUEUE = 0x200 };

/* main.c */
_Noreturn void nic_die(const char *what);
void nic_watch(struct nic *n, int fd, uint32_t what, uint32_t events);
void nic_unwatch(struct nic *n, int fd);	/* and closes it */
/* Tells what became of it, and what to do. */
void nic_uplink_gone(const struct nic *n, int err);
/* A frame came from the uplink. */
void nic_receive(struct nic *n, const uint8_t *bytes, const struct frame_meta *m);

/* control.c: takes one message from fd 3; false when none was there. Exits when the keeper is gone. */
bool control_receive(struct nic *n);
/* -errno and a text for people: on stderr, and to neatd, which shows it in its status. `seq`: what it answers, or 0. */
void control_error(int status, const char *text, uint32_t seq);

/*
 * tap.c and wire_io.c, the backends. *_read: one frame into n->frame; 0 = none now, -errno = the
 * device is of no use any more. *_write: whole frame or super-segment; false = lost.
 */
NEAT_CHECKED int tap_open(const char *ifname, char *text, size_t room);
/* Checks and sets up a queue that we opened or were given. 0 or -errno, with a text for people. */
NEAT_CHECKED int tap_setup(int fd, char *text, size_t room);
ssize_t tap_read(struct nic *n, int fd, struct frame_meta *m);
bool tap_write(struct nic *n, int fd, const uint8_t *head, uint32_t head_len, const uint8_t *rest,
	       const struct frame *f, const struct frame_meta *m);

NEAT_CHECKED int wire_setup(int fd, char *text, size_t room);
ssize_t wire_read(struct nic *n, int fd, struct frame_meta *m);
/* May the queues be emptied into the wire? A perfect wire pushes back, an impaired one loses. */
bool wire_room(const struct nic *n);
void wire_write(struct nic *n, const uint8_t *bytes, const struct frame *f, const struct frame_meta *m);
void wire_flush(struct nic *n);

/* capture.c */
void capture_start(struct nic *n, uint32_t replica, uint32_t dir, int fd);
void capture_stop(struct nic *n, uint32_t replica);
void capture_frame(struct nic *n, uint32_t replica, enum neat_capture_dir dir, const uint8_t *bytes,
		   const struct frame_meta *m);

#endif
