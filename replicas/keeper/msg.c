/* msg.c - datagrams in and out of a control socket, descriptors included. Never blocks. */
#define _GNU_SOURCE
#include "keeper.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void received_close(struct received *r)
{
	for (int i = 0; i < r->nfds; i++)
		close(r->fds[i]);
	r->nfds = 0;
}

static void take_fds(struct received *r, struct msghdr *mh)
{
	r->nfds = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(r->fds, CMSG_DATA(c), n * sizeof(int));
		r->nfds = (int)n;
	}
}

int msg_receive(int sock, struct received *r)
{
	char space[CMSG_SPACE(sizeof(int) * NEAT_MSG_FDS_MAX)];
	struct iovec iov = { r->u.bytes, sizeof(r->u.bytes) };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
			     .msg_controllen = sizeof(space) };
	ssize_t n = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	r->nfds = 0;
	r->len = 0;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return -1;
	take_fds(r, &mh);
	r->len = (uint32_t)n;
	if (n < (ssize_t)sizeof(r->u.h) || mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ||
	    r->u.h.magic != NEAT_ABI_MAGIC || r->u.h.version != NEAT_ABI_VERSION || r->u.h.len != r->len) {
		received_close(r);
		keeper_log("malformed control message of a child (do the binaries belong to one version?)");
		return -1;
	}
	return 1;
}

static ssize_t send_one(int sock, struct out *o)
{
	char space[CMSG_SPACE(sizeof(int) * NEAT_MSG_FDS_MAX)] = { 0 };
	struct iovec iov[2];
	struct msghdr mh = { .msg_iov = iov };

	if (o->wrapped)
		iov[mh.msg_iovlen++] = (struct iovec){ &o->wrap, sizeof(o->wrap) };
	if (o->m)
		iov[mh.msg_iovlen++] = (struct iovec){ o->m->u.bytes, o->m->len };
	if (o->m && o->m->nfds) {
		struct cmsghdr *c;

		mh.msg_control = space;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)o->m->nfds);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)o->m->nfds);
		memcpy(CMSG_DATA(c), o->m->fds, sizeof(int) * (size_t)o->m->nfds);
	}
	return sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool queue_flush(struct queue *q, int sock)
{
	while (q->first) {
		struct out *o = q->first;

		if (send_one(sock, o) < 0) {
			/* ETOOMANYREFS: too many descriptors in flight; the reader will make room. */
			if (errno == EAGAIN || errno == EINTR || errno == ETOOMANYREFS || errno == ENOBUFS)
				return true;
			return false;
		}
		q->first = o->next;
		if (!q->first)
			q->tail = &q->first;
		msg_put(o->m);
		free(o);
	}
	return true;
}
