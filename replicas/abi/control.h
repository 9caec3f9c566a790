/* control.h - how replicas and the nic speak to the keeper over their control socket. */
#ifndef NEAT_CONTROL_H
#define NEAT_CONTROL_H

#include "neat_abi.h"
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>

/*
 * The keeper, which never waits for us, has answers of ours to read: none may be lost, so who finds no room waits.
 * 0 or -errno: -EPIPE and -ECONNRESET of a keeper that is gone.
 */
static inline int neat_control_send(int fd, uint16_t type, void *message, size_t len, uint32_t seq)
{
	struct pollfd room = { .fd = fd, .events = POLLOUT };
	struct neat_msg_header *h = (struct neat_msg_header *)message;

	*h = (struct neat_msg_header){ NEAT_ABI_MAGIC, NEAT_ABI_VERSION, type, (uint32_t)len, seq };
	while (send(fd, message, len, MSG_NOSIGNAL) < 0) {
		if (errno == EAGAIN)
			ppoll(&room, 1, NULL, NULL);
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

#endif
