/* image.c - see image.h. */
#include "image.h"
#include <stdlib.h>

static struct {
	uint64_t sum;
	uint64_t steps;			/* when `sum` began, or was sealed */
	bool dead;
	struct point last;		/* its store is not taken in yet */
	bool have_last;
	uint64_t before;		/* sum over its range */
} image;

static uint64_t mix(uint64_t z)
{
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static uint64_t sum_of(const struct machine *m, uintptr_t addr, size_t size)
{
	uint64_t sum = 0;

	for (uintptr_t at = addr & ~(uintptr_t)7; at < addr + size; at += 8)
		sum += mix(*(const uint64_t *)at + mix(at - (uintptr_t)m->base + 1));
	return sum;
}

void image_begin(void) { memset(&image, 0, sizeof(image)); }

static void settle(const struct machine *m)
{
	if (!image.have_last)
		return;
	image.sum += sum_of(m, image.last.addr, image.last.size) - image.before;
	image.have_last = false;
}

void image_point(const struct machine *m, const struct point *p)
{
	settle(m);
	if (image.steps != m->steps) {
		/* Others have moved: without a death that is the same in all runs, else it follows from the number. */
		image.sum = image.dead ? mix(image.sum) : 0;
		image.steps = m->steps;
	}
	if (p->kind != POINT_STORE)
		return;
	image.last = *p;
	image.have_last = true;
	image.before = sum_of(m, p->addr, p->size);
}

/* What the rest of the world knows that changes while the replica works: wakes, answers of listeners. */
static uint64_t world_of(const struct machine *m)
{
	uint64_t sum = m->steps;

	for (uint32_t i = 0; i < m->nprocs; i++)
		sum = mix(sum + m->proc[i].sleeping);
	for (const struct install *i = m->install; i < m->install + LISTENS_MAX; i++)
		sum = mix(sum + (i->used | i->answered << 1 | i->gone << 2) + ((uint64_t)i->m.slot << 8));
	return sum;
}

static uint64_t half_done(const struct machine *m, const struct point *p)
{
	uint64_t at = p->addr - (uintptr_t)m->base, sum = 0;

	if (p->kind != POINT_TORN_FIRST && p->kind != POINT_TORN_LAST)
		return 0;
	for (size_t i = 0; i < p->size; i++)
		sum = mix(sum + stores.before[i]);
	return mix(sum + at * 4 + p->kind) + p->size;
}

uint64_t image_number(const struct machine *m, const struct point *p)
{
	return mix(image.sum + mix(half_done(m, p))) ^ world_of(m) ^ (m->ready ? 0 : 0x5555);
}

void image_death(const struct machine *m, const struct point *p)
{
	image.sum += mix(half_done(m, p));
	image.have_last = false;
	image.dead = true;
}
