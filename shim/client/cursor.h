/* cursor.h - scatter and gather: the program's buffers against ring memory. For io.c and dgram.c. */
#ifndef NT_CURSOR_H
#define NT_CURSOR_H

#include "copy.h"
#include "internal.h"
#include <limits.h>

extern NT_HIDDEN struct neat_copier nt_copier;

/* The program's buffers and how far we are in them. */
struct cursor {
	const struct iovec *v;
	int n;
	size_t at;		/* in v[0] */
	size_t left;		/* in all */
};

static inline int cursor_init(struct cursor *c, const struct iovec *v, int n)
{
	*c = (struct cursor){ .v = v, .n = n };
	if (n < 0 || n > 1024)
		return -EINVAL;
	if (n && nt_bad_pointer(v))
		return -EFAULT;
	for (int i = 0; i < n; i++) {
		if (v[i].iov_len > SSIZE_MAX - c->left)
			return -EINVAL;
		if (v[i].iov_len && nt_bad_pointer(v[i].iov_base))
			return -EFAULT;
		c->left += v[i].iov_len;
	}
	return 0;
}

/* Copies between the cursor and ring memory; to_ring: program -> ring. */
static inline void cursor_copy(struct cursor *c, uint8_t *ring, size_t len, bool to_ring)
{
	c->left -= len;
	while (len) {
		size_t n = c->v->iov_len - c->at;

		if (n > len)
			n = len;
		if (to_ring)
			neat_copy(&nt_copier, ring, (const uint8_t *)c->v->iov_base + c->at, n);
		else
			memcpy((uint8_t *)c->v->iov_base + c->at, ring, n);
		ring += n;
		len -= n;
		c->at += n;
		if (c->at == c->v->iov_len) {
			c->v++;
			c->at = 0;
		}
	}
}

#endif
