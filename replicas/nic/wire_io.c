/*
 * wire_io.c - the socket under the simulated wire: one AF_UNIX SOCK_SEQPACKET pair joins two
 * instances, a packet is a small header and a frame. What the other instance sends is hostile.
 */
#define _GNU_SOURCE
#include "nic.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum {
	WIRE_MAGIC = 0x5257454e,	/* "NEWR" */
	WIRE_BUFFER = 4 << 20,		/* of the socket: some tens of super-segments */
	WIRE_LOW = WIRE_FRAMES / 4,
};

struct wire_header {
	uint32_t magic;
	uint32_t len;
	uint16_t flags;		/* of enum neat_frame_flags: CSUM_OK, GSO_TCP4 */
	uint16_t gso_size;
};

int wire_setup(int fd, char *text, size_t room)
{
	int type = 0, size = WIRE_BUFFER;
	socklen_t len = sizeof(type);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) || type != SOCK_SEQPACKET) {
		snprintf(text, room, "the wire's descriptor is no SOCK_SEQPACKET socket; pass one end of a "
			 "socketpair(AF_UNIX, SOCK_SEQPACKET)");
		return -EINVAL;
	}
	/* Best effort: beyond wmem_max only with CAP_NET_ADMIN. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)))
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	if (fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK)) {
		snprintf(text, room, "cannot make the wire's socket non-blocking: %s; report this", strerror(errno));
		return -EIO;
	}
	return 0;
}

ssize_t wire_read(struct nic *n, int fd, struct frame_meta *m)
{
	struct wire_header h;
	struct iovec iov[2] = { { &h, sizeof(h) }, { n->frame, sizeof(n->frame) } };
	ssize_t got = readv(fd, iov, 2);

	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (got == 0)
		return -EPIPE;	/* the other instance is gone */
	*m = (struct frame_meta){ 0 };
	if (got <= (ssize_t)sizeof(h) || h.magic != WIRE_MAGIC || h.len != (size_t)got - sizeof(h))
		return got;	/* length 0 is counted as malformed */
	m->len = h.len;
	m->flags = h.flags & (NEAT_FRAME_CSUM_OK | NEAT_FRAME_GSO_TCP4);
	if (m->flags & NEAT_FRAME_GSO_TCP4)
		m->gso_size = h.gso_size;
	if (!m->gso_size)
		m->flags &= (uint16_t)~NEAT_FRAME_GSO_TCP4;
	return got;
}

bool wire_room(const struct nic *n)
{
	return wire_impaired(&n->wire.p) || n->wire.frames < WIRE_LOW;
}

/* A real wire carries whole frames: cut and summed, so that losing and corrupting one means something. */
static void offer_segments(struct nic *n, const uint8_t *bytes, const struct frame *f, const struct frame_meta *m)
{
	struct frame_meta whole = { .len = m->len };

	if (m->flags & NEAT_FRAME_GSO_TCP4) {
		uint32_t count = gso_segments(f, m->len, m->gso_size);

		for (uint32_t i = 0; i < count; i++) {
			whole.len = gso_segment(bytes, m->len, f, m->gso_size, i, n->segment);
			wire_offer(&n->wire, n->segment, &whole, n->now_us);
		}
		return;
	}
	memcpy(n->segment, bytes, m->len);
	if (m->flags & NEAT_FRAME_CSUM_PARTIAL)
		gso_complete(n->segment, m->len, f);
	wire_offer(&n->wire, n->segment, &whole, n->now_us);
}

void wire_write(struct nic *n, const uint8_t *bytes, const struct frame *f, const struct frame_meta *m)
{
	struct frame_meta out = *m;

	if (wire_impaired(&n->wire.p)) {
		offer_segments(n, bytes, f, m);
		return;
	}
	/* It stays in this machine's memory, so an unfinished checksum is as good as a verified one. */
	out.flags = (uint16_t)((m->flags & NEAT_FRAME_GSO_TCP4) |
			       (m->flags & NEAT_FRAME_CSUM_PARTIAL ? NEAT_FRAME_CSUM_OK : 0));
	wire_offer(&n->wire, bytes, &out, n->now_us);
}

static void wait_for_room(struct nic *n, bool blocked)
{
	struct epoll_event ev = { .events = EPOLLIN | (blocked ? (uint32_t)EPOLLOUT : 0),
				  .data.u32 = WATCH_UPLINK };

	if (n->uplink.blocked == blocked)
		return;
	n->uplink.blocked = blocked;
	if (n->uplink.fd[0] >= 0)
		epoll_ctl(n->epoll, EPOLL_CTL_MOD, n->uplink.fd[0], &ev);
}

void wire_flush(struct nic *n)
{
	const struct wire_frame *f;

	while ((f = wire_due(&n->wire, n->now_us))) {
		struct wire_header h = { WIRE_MAGIC, f->m.len, f->m.flags, f->m.gso_size };
		struct iovec iov[2] = { { &h, sizeof(h) }, { (void *)(uintptr_t)f->bytes, f->m.len } };
		struct msghdr mh = { .msg_iov = iov, .msg_iovlen = 2 };
		bool sent = n->uplink.fd[0] >= 0 && sendmsg(n->uplink.fd[0], &mh, MSG_NOSIGNAL) >= 0;

		if (!sent && n->uplink.fd[0] >= 0 && (errno == EAGAIN || errno == ENOBUFS)) {
			wait_for_room(n, true);
			return;
		}
		n->count[sent ? NEAT_NIC_TX_FRAMES : NEAT_NIC_TX_FAILED]++;
		wire_sent(&n->wire);
	}
	wait_for_room(n, false);
}
