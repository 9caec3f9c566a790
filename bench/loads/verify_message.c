#include "verify.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { FAILURES_MAX = 2000 };

uint64_t failures;

static uint64_t mix(uint64_t x)		/* splitmix64 (Steele, Lea, Flood 2014) */
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static uint64_t key_of(const struct message *m)
{
	return mix(m->head.conn * 4 + m->direction);
}

static uint32_t head_sum(const struct head *h)
{
	uint64_t s = mix(h->conn) ^ mix((uint64_t)h->number << 32 | h->len) ^
		     mix((uint64_t)h->reply << 32 | (uint64_t)h->ending << 1 | 1);

	return (uint32_t)s;
}

void head_seal(struct head *h)
{
	h->magic = VERIFY_MAGIC;
	h->sum = head_sum(h);
}

bool head_ok(const struct head *h)
{
	return h->magic == VERIFY_MAGIC && h->len >= 1 && h->len <= VERIFY_MAX && h->reply <= VERIFY_MAX &&
	       h->ending <= SERVER_CLOSES && h->sum == head_sum(h);
}

uint32_t message_size(const struct message *m)
{
	return (uint32_t)sizeof(m->head) + m->head.len;
}

/* The payload's bytes from `offset` of the stream on. */
static void generate(uint64_t key, uint64_t offset, uint8_t *to, size_t n)
{
	while (n) {
		uint64_t word = mix(key + offset / 8);
		size_t skip = offset % 8, part = 8 - skip < n ? 8 - skip : n;

		memcpy(to, (uint8_t *)&word + skip, part);
		to += part;
		offset += part;
		n -= part;
	}
}

int message_send(struct message *m, int fd)
{
	static _Thread_local uint8_t buf[sizeof(struct head) + CHUNK];

	while (m->done < message_size(m)) {
		size_t head = m->done < sizeof(m->head) ? sizeof(m->head) - m->done : 0, left = message_size(m) - m->done;
		size_t payload = left - head < CHUNK ? left - head : CHUNK;
		ssize_t n;

		memcpy(buf, (uint8_t *)&m->head + (sizeof(m->head) - head), head);
		generate(key_of(m), m->base + m->done + head - sizeof(m->head), buf + head, payload);
		n = send(fd, buf, head + payload, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		m->done += (uint32_t)n;
	}
	return 1;
}

static const char *payload_wrong(const struct message *m, const uint8_t *got, size_t n)
{
	static _Thread_local uint8_t want[CHUNK];
	static _Thread_local char text[160];
	uint64_t at = m->base + m->done - sizeof(m->head);

	generate(key_of(m), at, want, n);
	for (size_t i = 0; i < n && memcmp(got, want, n); i++) {
		if (got[i] == want[i])
			continue;
		snprintf(text, sizeof(text), "wrong byte at offset %llu of the stream, %zu of %zu read at once; "
			 "want %02x%02x%02x%02x, have %02x%02x%02x%02x",
			 (unsigned long long)(at + i), i, n, want[i], i + 1 < n ? want[i + 1] : 0,
			 i + 2 < n ? want[i + 2] : 0, i + 3 < n ? want[i + 3] : 0, got[i], i + 1 < n ? got[i + 1] : 0,
			 i + 2 < n ? got[i + 2] : 0, i + 3 < n ? got[i + 3] : 0);
		return text;
	}
	return NULL;
}

int message_receive(struct message *m, int fd, const char **wrong)
{
	static _Thread_local uint8_t buf[CHUNK];

	*wrong = NULL;
	while (m->done < sizeof(m->head) || m->done < message_size(m)) {
		bool head = m->done < sizeof(m->head);
		size_t left = (head ? sizeof(m->head) : message_size(m)) - m->done;
		ssize_t n = recv(fd, head ? (uint8_t *)&m->head + m->done : buf, left < CHUNK ? left : CHUNK, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n == 0)
			errno = 0;
		if (n <= 0)
			return -1;
		if (!head)
			*wrong = payload_wrong(m, buf, (size_t)n);
		m->done += (uint32_t)n;
		if (head && m->done == sizeof(m->head) && !head_ok(&m->head))
			*wrong = "wrong bytes in the head of a message";
		if (*wrong)
			return -1;
	}
	return 1;
}

void failure(const char *what, int err, const struct message *out, const struct message *in, int64_t since)
{
	if (__atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED) >= FAILURES_MAX)
		die("too many failures");
	flockfile(stdout);
	printf("{\"failure\": \"%s%s%s\", \"at_ns\": %lld, \"since_ns\": %lld, \"conn\": %llu, \"number\": %u, "
	       "\"sent\": %u, \"of\": %u, \"received\": %u}\n",
	       what, err ? ": " : "", err ? strerrorname_np(err) : "", (long long)now_ns(), (long long)since,
	       (unsigned long long)out->head.conn, out->head.number, out->done, message_size(out), in->done);
	fflush(stdout);
	funlockfile(stdout);
}
