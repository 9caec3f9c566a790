/*
 * pcapng.h - capture files as Wireshark reads them (draft-ietf-opsawg-pcapng): section, one
 * Ethernet interface with nanoseconds, packets with comments. Pure: blocks into the caller's memory.
 */
#ifndef NEAT_PCAPNG_H
#define NEAT_PCAPNG_H

#include <stddef.h>
#include <stdint.h>

enum { PCAPNG_OVERHEAD = 512 };		/* any block is shorter than its data and strings plus this */

enum pcapng_dir { PCAPNG_IN = 1, PCAPNG_OUT = 2 };	/* epb_flags, bits 0-1 */

struct pcapng_packet {
	uint64_t time_ns;		/* since 1970 */
	uint32_t len;			/* of the frame */
	uint32_t captured;		/* bytes of it that are in the file */
	enum pcapng_dir dir;
	const char *comment;		/* or NULL */
};

/* Both return the bytes written, 0 if `room` is too small. */
size_t pcapng_start(uint8_t *out, size_t room, const char *interface);
size_t pcapng_packet(uint8_t *out, size_t room, const struct pcapng_packet *p, const uint8_t *bytes);

#endif
