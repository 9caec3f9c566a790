/*
 * lo.c - this replica's loopback: a local connection has both ends here, and its frames never
 * leave the process. Headers are copied, payload stays where it lies (the sender's ring keeps
 * bytes until they are acknowledged; a stale reference can only be a duplicate).
 *
 * Soft state (contract W14): a successor starts with an empty queue, TCP sends again. One frame is
 * one unit of work.
 */
#include "lo.h"

enum { LO_ENTRIES = 16384, LO_HEADER = 128 };

struct lo_frame {
	uint8_t header[LO_HEADER];
	struct { const uint8_t *p; uint32_t len; } frag[2];
	uint32_t len, frag_len;
};

struct lo {
	uint64_t head, tail;
	struct lo_frame frame[LO_ENTRIES];
};

size_t lo_memory(void) { return sizeof(struct lo); }
void lo_init(struct stack *s, void *memory) { s->lo = memory; }

uint32_t lo_room(const struct stack *s)
{
	return LO_ENTRIES - (uint32_t)(s->lo->tail - s->lo->head);
}

/* Within the sender's unit of work: a datagram changes its receiver only, and causes at most an ICMP error,
 * which changes its sender and causes nothing. */
static void lo_pass(struct stack *s, const struct pkt *p)
{
	struct pkt in = *p;

	in.flags = PKT_LOCAL | PKT_CSUM_OK;
	s->count.lo_frames++;
	ip_input(s, &in);
}

bool lo_output(struct stack *s, const struct pkt *p)
{
	struct lo_frame *f = &s->lo->frame[s->lo->tail & (LO_ENTRIES - 1)];

	if (p->flags & PKT_PASS) {
		lo_pass(s, p);
		return true;
	}
	if (lo_room(s) == 0)
		return false;
	if (p->len > LO_HEADER) {
		stack_drop(s, DROP_LO_FULL);
		return true;
	}
	memcpy(f->header, p->data, p->len);
	f->len = p->len;
	f->frag_len = p->frag_len;
	for (int i = 0; i < 2; i++) {
		f->frag[i].p = p->frag[i].p;
		f->frag[i].len = p->frag[i].len;
	}
	s->lo->tail++;
	return true;
}

bool lo_waits(const struct stack *s) { return s->lo->head != s->lo->tail; }

bool lo_deliver(struct stack *s)
{
	struct lo *lo = s->lo;
	struct lo_frame *f = &lo->frame[lo->head & (LO_ENTRIES - 1)];
	struct pkt p = { .data = f->header, .buf = f->header, .flags = PKT_LOCAL | PKT_CSUM_OK };

	if (lo->head == lo->tail)
		return false;
	stack_frame_begins(s, true);
	p.len = f->len;
	p.frag_len = f->frag_len;
	for (int i = 0; i < 2; i++) {
		p.frag[i].p = f->frag[i].p;
		p.frag[i].len = f->frag[i].len;
	}
	s->count.lo_frames++;
	ip_input(s, &p);
	/* After the effects: what this frame caused went to the tail, so its memory is ours till now. */
	lo->head++;
	/* Mostly it is empty now: begin at the front again, where the cache is warm. */
	if (lo->head == lo->tail)
		lo->head = lo->tail = 0;
	return true;
}
