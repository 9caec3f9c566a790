#include "verify.h"

#include <sys/epoll.h>
#include <sys/socket.h>

void talk_init(struct talk *t, uint64_t seed, long number)
{
	t->random = (seed + 1) * 0x9e3779b97f4a7c15ull + (uint64_t)number * 2 + 1;
	for (int k = 0; k < 8; k++)
		talk_draw(t);
}

uint64_t talk_draw(struct talk *t)		/* xorshift64 (Marsaglia 2003) */
{
	t->random ^= t->random << 13;
	t->random ^= t->random >> 7;
	t->random ^= t->random << 17;
	return t->random;
}

/* Every order of magnitude equally often. */
static uint32_t draw_size(struct talk *t)
{
	uint64_t most = 1ull << talk_draw(t) % t->magnitudes;

	return (uint32_t)(1 + talk_draw(t) % most);
}

int talk_open(struct talk *t, uint64_t id)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (t->blocks ? 0 : SOCK_NONBLOCK), 0);

	if (fd < 0)
		die("socket");
	no_delay(fd);
	t->id = id;
	t->sent = t->received = 0;
	t->number = 0;
	t->life = (uint32_t)(1 + talk_draw(t) % t->life_max);
	t->out = t->in = (struct message){ .head.conn = id };
	return fd;
}

void talk_watch(const struct talk *t, int ep, int fd, void *who)
{
	if (!t->blocks)
		epoll_set(ep, EPOLL_CTL_ADD, fd, t->edge ? EPOLLIN | EPOLLOUT | EPOLLET : EPOLLOUT, (uint64_t)(uintptr_t)who);
}

void talk_want(const struct talk *t, int ep, int fd, uint32_t events, void *who)
{
	if (!t->blocks && !t->edge)
		epoll_set(ep, EPOLL_CTL_MOD, fd, events, (uint64_t)(uintptr_t)who);
}

void talk_request(struct talk *t)
{
	bool last = t->churns && t->number + 1 >= t->life;
	uint32_t len = draw_size(t), reply = draw_size(t);

	t->out = (struct message){
		.head = { .number = t->number, .conn = t->id, .len = len, .reply = reply,
			  .ending = last ? 1 + (uint32_t)(talk_draw(t) % 3) : GOES_ON },
		.direction = TO_SERVER,
		.base = t->sent,
	};
	t->in = (struct message){ .direction = TO_CLIENT, .base = t->received };
	head_seal(&t->out.head);
}

bool talk_answered(struct talk *t)
{
	if (t->in.head.conn != t->id || t->in.head.number != t->number || t->in.head.len != t->out.head.reply)
		return false;
	t->sent += t->out.head.len;
	t->received += t->in.head.len;
	t->number++;
	return true;
}
