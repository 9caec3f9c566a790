/* pcapng.c - see pcapng.h. Host byte order, as the section header says (draft section 4.1). */
#include "pcapng.h"
#include <string.h>

enum {
	BLOCK_SHB = 0x0a0d0d0a, BLOCK_IDB = 1, BLOCK_EPB = 6,
	BYTE_ORDER_MAGIC = 0x1a2b3c4d,
	LINKTYPE_ETHERNET = 1,
	OPT_END = 0, OPT_COMMENT = 1, OPT_SHB_USERAPPL = 4, OPT_IF_NAME = 2, OPT_IF_TSRESOL = 9, OPT_EPB_FLAGS = 2,
};

struct cursor { uint8_t *p; size_t at; };

static void put(struct cursor *c, const void *data, size_t len)
{
	memcpy(c->p + c->at, data, len);
	c->at += len;
	while (c->at % 4)
		c->p[c->at++] = 0;
}

static void put32(struct cursor *c, uint32_t v) { put(c, &v, 4); }

static void put_option(struct cursor *c, uint16_t code, const void *data, size_t len)
{
	const uint16_t head[2] = { code, (uint16_t)len };

	put(c, head, 4);
	put(c, data, len);
}

static void put_string(struct cursor *c, uint16_t code, const char *s)
{
	if (s)
		put_option(c, code, s, strnlen(s, 0xffff));
}

/* The total length stands at both ends of a block. */
static void block_end(struct cursor *c, size_t start)
{
	uint32_t total = (uint32_t)(c->at - start + 4);

	put32(c, total);
	memcpy(c->p + start + 4, &total, 4);
}

size_t pcapng_start(uint8_t *out, size_t room, const char *interface)
{
	struct cursor c = { out, 0 };
	const uint16_t version[2] = { 1, 0 }, link[2] = { LINKTYPE_ETHERNET, 0 };
	const uint64_t unknown_length = UINT64_MAX;
	const uint8_t nanoseconds = 9;	/* 10^-9 */
	size_t idb;

	if (room < PCAPNG_OVERHEAD + strlen(interface))
		return 0;
	put32(&c, BLOCK_SHB);
	put32(&c, 0);
	put32(&c, BYTE_ORDER_MAGIC);
	put(&c, version, 4);
	put(&c, &unknown_length, 8);
	put_string(&c, OPT_SHB_USERAPPL, "neat-nic");
	put32(&c, OPT_END);
	block_end(&c, 0);
	idb = c.at;
	put32(&c, BLOCK_IDB);
	put32(&c, 0);
	put(&c, link, 4);
	put32(&c, 0);		/* no limit on the captured length */
	put_string(&c, OPT_IF_NAME, interface);
	put_option(&c, OPT_IF_TSRESOL, &nanoseconds, 1);
	put32(&c, OPT_END);
	block_end(&c, idb);
	return c.at;
}

size_t pcapng_packet(uint8_t *out, size_t room, const struct pcapng_packet *p, const uint8_t *bytes)
{
	struct cursor c = { out, 0 };
	uint32_t flags = p->dir;

	if (room < PCAPNG_OVERHEAD + (size_t)p->captured + (p->comment ? strlen(p->comment) : 0))
		return 0;
	put32(&c, BLOCK_EPB);
	put32(&c, 0);
	put32(&c, 0);		/* interface */
	put32(&c, (uint32_t)(p->time_ns >> 32));
	put32(&c, (uint32_t)p->time_ns);
	put32(&c, p->captured);
	put32(&c, p->len);
	put(&c, bytes, p->captured);
	put_option(&c, OPT_EPB_FLAGS, &flags, 4);
	put_string(&c, OPT_COMMENT, p->comment);
	put32(&c, OPT_END);
	block_end(&c, 0);
	return c.at;
}
