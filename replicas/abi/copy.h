/*
 * copy.h - large copies into memory that somebody on another core reads next: through the cache or
 * past it.
 *
 * A store to a line that another core's cache holds must first take it away from there. Where the
 * cores share a cache that is cheap and going through the cache is the best way (measured 27 GB/s
 * against 13); where they do not (two core complexes, two sockets, a host that moves its virtual
 * CPUs about) it runs at 1 to 3 GB/s and streaming stores, which only invalidate, at 8 to 18. No
 * program can know which it is, and on a virtual machine it changes by the second: so measure.
 *
 * It looks at the clock, so it is not part of the stack's library, which gets the copy as an argument
 * (struct stack_ops): main_control.c hands it this one, the tests none, which is memcpy().
 */
#ifndef NEAT_COPY_H
#define NEAT_COPY_H

#include "ring.h"
#include <string.h>
#include <time.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum {
	NEAT_COPY_LARGE = 16384,	/* from here on it pays to look at the clock */
	NEAT_COPY_BYTES_PER_NS = 8,	/* a copy slower than this had to fetch lines from afar */
	NEAT_COPY_STREAMS = 64,		/* streamed copies until the cache is tried again */
};

/* One for each writer; a hint, so threads may share it. */
struct neat_copier {
	neat_a32 streams;		/* copies to stream before the next look at the clock */
};

#if defined(__SSE2__)
static inline void neat_copy_stream(uint8_t *to, const uint8_t *from, size_t n)
{
	size_t head = -(uintptr_t)to & 63, i;

	memcpy(to, from, head);
	for (i = head; i + 64 <= n; i += 64) {
		const __m128i *s = (const __m128i *)(const void *)(from + i);
		__m128i a = _mm_loadu_si128(s), b = _mm_loadu_si128(s + 1);
		__m128i c = _mm_loadu_si128(s + 2), d = _mm_loadu_si128(s + 3);
		__m128i *t = (__m128i *)(void *)(to + i);

		_mm_stream_si128(t, a);
		_mm_stream_si128(t + 1, b);
		_mm_stream_si128(t + 2, c);
		_mm_stream_si128(t + 3, d);
	}
	memcpy(to + i, from + i, n - i);
	/* Streaming stores are not ordered by a release store: the bytes before the index that follows. */
	_mm_sfence();
}

static inline uint64_t neat_copy_clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/*
 * Did both halves, of n bytes each, fetch their lines from afar? A reader on our own core preempts us in
 * the middle of a copy as a rule (it was woken a moment ago): the half with the break says nothing.
 */
static inline bool neat_copy_far(uint64_t first_ns, uint64_t second_ns, size_t n)
{
	return (first_ns < second_ns ? first_ns : second_ns) * NEAT_COPY_BYTES_PER_NS > n;
}

static inline void neat_copy(struct neat_copier *c, void *to, const void *from, size_t n)
{
	uint32_t streams = a32_relaxed(&c->streams);
	uint64_t start, middle;
	size_t half = n / 2;

	if (n < NEAT_COPY_LARGE) {
		memcpy(to, from, n);
	} else if (streams) {
		a32_store(&c->streams, streams - 1);
		neat_copy_stream(to, from, n);
	} else {
		start = neat_copy_clock_ns();
		memcpy(to, from, half);
		middle = neat_copy_clock_ns();
		memcpy((uint8_t *)to + half, (const uint8_t *)from + half, n - half);
		if (neat_copy_far(middle - start, neat_copy_clock_ns() - middle, half))
			a32_store(&c->streams, NEAT_COPY_STREAMS);
	}
}
#else
static inline void neat_copy(struct neat_copier *c, void *to, const void *from, size_t n)
{
	(void)c;
	memcpy(to, from, n);
}
#endif

#endif
