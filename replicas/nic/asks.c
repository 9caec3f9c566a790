/* asks.c - see asks.h. */
#include "asks.h"
#include <string.h>

static struct ask *find(struct asks *a, const struct frame_tuple *t)
{
	for (uint32_t i = 0; i < ASKS; i++) {
		const struct frame_tuple *its = &a->ask[i].t;

		if (a->ask[i].open && its->raddr == t->raddr && its->laddr == t->laddr && its->rport == t->rport &&
		    its->lport == t->lport)
			return &a->ask[i];
	}
	return NULL;
}

static struct ask *place(struct asks *a, uint64_t now_us)
{
	for (uint32_t i = 0; i < ASKS; i++)
		if (!a->ask[i].open || now_us - a->ask[i].at_us >= ASK_US)
			return &a->ask[i];
	return NULL;
}

enum ask_state asks_open(struct asks *a, const struct frame_tuple *t, uint8_t by, uint8_t of, const uint8_t *bytes,
			 const struct frame_meta *m, uint64_t now_us)
{
	struct ask *q = find(a, t);

	if (q && q->by == by && q->of == of && now_us - q->at_us < ASK_US)
		return ASK_WAITS;
	if (q) {
		q->open = q->by != by;
		return ASK_REFUSED;
	}
	q = place(a, now_us);
	if (!q || m->len > FRAME_LOOK)
		return ASK_REFUSED;
	*q = (struct ask){ .open = true, .by = by, .of = of, .t = *t, .at_us = now_us, .m = *m };
	memcpy(q->bytes, bytes, m->len);
	return ASK_NEW;
}

const struct ask *asks_close(struct asks *a, const struct frame_tuple *t, uint8_t of)
{
	struct ask *q = find(a, t);

	if (!q || q->of != of)
		return NULL;
	q->open = false;
	return q;
}
