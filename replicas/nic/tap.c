/*
 * tap.c - the TAP backend: Ethernet frames and super-segments to and from the kernel, with the
 * virtio-net header that carries offloads (linux/virtio_net.h; kernel Documentation/networking/tuntap).
 *
 * Not responsible for: addresses and routes of the device (whoever runs `neatsock up`).
 */
#define _GNU_SOURCE
#include "nic.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	TAP_FLAGS = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
	TAP_QUEUE_LEN = 10000,	/* the device's receive ring: the default of 500 overflows in bursts */
	TCP_CSUM_AT = 16,
	UDP_CSUM_AT = 6,
};

static int fail(char *text, size_t room, const char *what, const char *next)
{
	int err = errno;

	snprintf(text, room, "%s: %s; %s", what, strerror(err), next);
	return -err;
}

/* Best effort: a short ring costs throughput, not correctness. */
static void set_queue_len(const char *ifname)
{
	struct ifreq r = { .ifr_qlen = TAP_QUEUE_LEN };
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (s < 0)
		return;
	snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", ifname);
	ioctl(s, SIOCSIFTXQLEN, &r);
	close(s);
}

static bool attach(int fd, struct ifreq *r, const char *ifname, int flags)
{
	*r = (struct ifreq){ .ifr_flags = (short)flags };
	snprintf(r->ifr_name, sizeof(r->ifr_name), "%s", ifname);
	return ioctl(fd, TUNSETIFF, r) == 0;
}

int tap_open(const char *ifname, char *text, size_t room)
{
	struct ifreq r;
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return fail(text, room, "cannot open /dev/net/tun", "is the tun driver there (modprobe tun)?");
	/* EINVAL: the device exists and was made without multi_queue; flags must be the same. */
	if (!attach(fd, &r, ifname, TAP_FLAGS | IFF_MULTI_QUEUE) &&
	    !(errno == EINVAL && attach(fd, &r, ifname, TAP_FLAGS))) {
		int status = fail(text, room, "cannot open the TAP device",
				  "it needs CAP_NET_ADMIN, and a device made with `ip tuntap` must have the "
				  "flags `mode tap vnet_hdr`");

		close(fd);
		return status;
	}
	set_queue_len(r.ifr_name);
	return fd;
}

int tap_setup(int fd, char *text, size_t room)
{
	struct ifreq r = { 0 };
	int header = sizeof(struct virtio_net_hdr), little = 1;

	if (ioctl(fd, TUNGETIFF, &r))
		return fail(text, room, "not a TAP descriptor", "pass one on which TUNSETIFF was done");
	if (!(r.ifr_flags & IFF_TAP) || !(r.ifr_flags & IFF_NO_PI) || !(r.ifr_flags & IFF_VNET_HDR)) {
		snprintf(text, room, "TAP device %.15s was opened with other flags; open it with "
			 "IFF_TAP|IFF_NO_PI|IFF_VNET_HDR", r.ifr_name);
		return -EINVAL;
	}
	if (ioctl(fd, TUNSETVNETHDRSZ, &header) || ioctl(fd, TUNSETVNETLE, &little))
		return fail(text, room, "cannot set the TAP header format", "is the kernel older than 3.8?");
	if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4))
		return fail(text, room, "the TAP device refuses checksum and TSO offload", "report this");
	if (fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK))
		return fail(text, room, "cannot make the TAP descriptor non-blocking", "report this");
	return 0;
}

ssize_t tap_read(struct nic *n, int fd, struct frame_meta *m)
{
	struct virtio_net_hdr v;
	struct iovec iov[2] = { { &v, sizeof(v) }, { n->frame, sizeof(n->frame) } };
	ssize_t got = readv(fd, iov, 2);

	/* EBADFD: the device was deleted. One that is down has nothing to read (EAGAIN). */
	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (got <= (ssize_t)sizeof(v))
		return 0;
	*m = (struct frame_meta){ .len = (uint32_t)((size_t)got - sizeof(v)) };
	/* NEEDS_CSUM: the frame never left this machine, its sender left the sum to the device. */
	if (v.flags & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID))
		m->flags |= NEAT_FRAME_CSUM_OK;
	if ((v.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) == VIRTIO_NET_HDR_GSO_TCPV4 && v.gso_size) {
		m->flags |= NEAT_FRAME_GSO_TCP4;
		m->gso_size = v.gso_size;
	}
	return (ssize_t)m->len;
}

static struct virtio_net_hdr offload_header(const struct frame *f, const struct frame_meta *m, const uint8_t *head)
{
	struct virtio_net_hdr v = { 0 };

	if (m->flags & NEAT_FRAME_CSUM_PARTIAL) {
		v.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		v.csum_start = f->l4_offset;
		v.csum_offset = f->kind == FRAME_TCP ? TCP_CSUM_AT : UDP_CSUM_AT;
	}
	if (m->flags & NEAT_FRAME_GSO_TCP4) {
		v.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
		if (head[f->l4_offset + 13] & FRAME_CWR)
			v.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
		v.gso_size = m->gso_size;
		v.hdr_len = f->payload;
	}
	return v;
}

/* `head` is our copy of the first bytes, as they were checked; `rest` may still be the replica's. */
bool tap_write(struct nic *n, int fd, const uint8_t *head, uint32_t head_len, const uint8_t *rest,
	       const struct frame *f, const struct frame_meta *m)
{
	struct virtio_net_hdr v = offload_header(f, m, head);
	struct iovec iov[3] = {
		{ &v, sizeof(v) },
		{ (void *)(uintptr_t)head, head_len },
		{ (void *)(uintptr_t)rest, m->len - head_len },
	};

	(void)n;
	return writev(fd, iov, m->len > head_len ? 3 : 2) == (ssize_t)(sizeof(v) + m->len);
}
