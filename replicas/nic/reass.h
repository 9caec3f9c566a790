/*
 * reass.h - IPv4 reassembly (RFC 791), in front of steering: only the first fragment has ports, so the nic is the
 * only one that can bring all of a datagram to the replica that has its socket.
 *
 * Pure. Everything here comes from the wire: at most REASS_DATAGRAMS at a time and REASS_OF_SOURCE of one source, each
 * for 30 s; a datagram whose fragments overlap is dropped whole (RFC 5722, applied to IPv4).
 */
#ifndef NEAT_REASS_H
#define NEAT_REASS_H

#include "frame.h"

enum {
	REASS_DATAGRAMS = 64,
	REASS_OF_SOURCE = 16,
	REASS_US = 30000000,		/* RFC 1122 3.3.2 says 60 to 120 s, Linux 30 s */
	REASS_HEAD = FRAME_ETH + 60,	/* Ethernet and the longest IPv4 header */
	REASS_PAYLOAD = 65536,		/* whole blocks of 8 */
};

struct reass_datagram {
	uint64_t since_us;		/* of the first fragment that came; 0 = free */
	uint32_t saddr, daddr;
	uint16_t id;
	uint8_t proto;
	bool broken;			/* dropped; what else comes of it, too */
	uint32_t have, total;		/* payload bytes; total 0: the last fragment has not come */
	uint32_t high;			/* end of the furthest one */
	uint32_t head_len;		/* 0: the first one has not */
	uint64_t got[REASS_PAYLOAD / 8 / 64];	/* a bit for each block of 8 bytes */
	/* The head ends at REASS_HEAD whatever its length, so that the whole frame is one piece. */
	uint8_t bytes[REASS_HEAD + REASS_PAYLOAD];
};

struct reass { struct reass_datagram d[REASS_DATAGRAMS]; };

enum reass_result {
	REASS_BAD,		/* dropped: makes no sense by itself or with the others */
	REASS_HELD,
	REASS_WHOLE,		/* *out, *len: the frame; until the next call */
};
/* `len` bytes at `b` are a frame whose parse said `fragment`; all of them may be read. */
enum reass_result reass_add(struct reass *r, const uint8_t *b, uint32_t len, uint64_t now_us, const uint8_t **out,
			    uint32_t *out_len);

#endif
