/*
 * held HOST PORT TABLE LASTING CHURNING BLOCKING SEED
 *
 * A client for fault injection. The state of its connections is in a file that somebody else maps (TABLE),
 * and who says there how many requests each shall make. A connection that breaks stays as it is, descriptor
 * open, until that somebody has looked at it and says so; then it is closed and opened anew.
 */
#include "verify.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ENTRIES_MAX = 1024, LIFE_MAX = 12, TICK_MS = 1, MAGNITUDES = 17 };
enum state { CLOSED = 0, CONNECTS, SENDS, RECEIVES, ENDS, BROKEN, RESTS };

/* Layout known to bench/witness.py; all words are written by us, but `release` and `goal`. */
struct entry {
	uint32_t state;		/* enum state */
	uint32_t release;	/* 1 = close it, whatever its state; we make it 0 when that is done */
	int32_t fd;
	uint32_t opened;	/* connections opened so far in this entry */
	uint64_t rounds;	/* requests answered so far, over all of them */
	int32_t err;		/* BROKEN: errno, 0 = end of file or wrong bytes */
	uint32_t wrong;		/* BROKEN: what came is not what was sent */
	uint64_t goal;		/* requests are made while `rounds` is less */
	char what[88];		/* BROKEN: for a person */
};
struct table {
	uint32_t entries;
	uint32_t turns;		/* +1 with each turn of the loop: we are alive */
	uint32_t pad[14];
	struct entry entry[ENTRIES_MAX];
};

struct asker {
	struct entry *e;
	struct talk t;
};

static struct table *table;
static struct sockaddr_in to;
static uint64_t seed, conn_ids;		/* conn_ids: atomic */
static int ep;
/* Close of a blocking connection against its shutdown by the main thread: the number may be another's by then. */
static pthread_mutex_t close_lock = PTHREAD_MUTEX_INITIALIZER;

static uint32_t get(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static void set(uint32_t *word, uint32_t v) { __atomic_store_n(word, v, __ATOMIC_RELEASE); }

static void hang_up(struct asker *a)
{
	pthread_mutex_lock(&close_lock);
	close(a->e->fd);
	a->e->fd = -1;
	set(&a->e->state, CLOSED);
	pthread_mutex_unlock(&close_lock);
}

/* The descriptor stays open: whoever looks finds out by it where the connection was. */
static void broken(struct asker *a, const char *what, int err, bool wrong)
{
	a->e->err = err;
	a->e->wrong = wrong;
	snprintf(a->e->what, sizeof(a->e->what), "%s", what);
	set(&a->e->state, BROKEN);
	if (!a->t.blocks)
		epoll_ctl(ep, EPOLL_CTL_DEL, a->e->fd, NULL);
}

static void open_socket(struct asker *a)
{
	struct entry *e = a->e;

	e->fd = talk_open(&a->t, seed << 32 | __atomic_add_fetch(&conn_ids, 1, __ATOMIC_RELAXED));
	e->opened++;
	e->wrong = 0;		/* of the one before */
	set(&e->state, CONNECTS);
	if (connect(e->fd, (const struct sockaddr *)&to, sizeof(to)) && errno != EINPROGRESS) {
		broken(a, "connect", errno, false);
		return;
	}
	talk_watch(&a->t, ep, e->fd, a);
}

static bool wanted(const struct asker *a)
{
	return a->e->rounds < __atomic_load_n(&a->e->goal, __ATOMIC_ACQUIRE);
}

/* The steps; true = go on at once. */

static bool step_connect(struct asker *a)
{
	struct sockaddr_storage peer;
	socklen_t len = sizeof(int), peer_len = sizeof(peer);
	int err = 0;

	if (getsockopt(a->e->fd, SOL_SOCKET, SO_ERROR, &err, &len))
		err = errno;
	if (err) {
		broken(a, "connect", err, false);
		return false;
	}
	if (getpeername(a->e->fd, (struct sockaddr *)&peer, &peer_len))
		return false;		/* ENOTCONN: not yet */
	set(&a->e->state, RESTS);
	return true;
}

static bool step_send(struct asker *a)
{
	int put = message_send(&a->t.out, a->e->fd);

	if (put < 0)
		broken(a, "send", errno, false);
	if (put <= 0) {
		if (put == 0)
			talk_want(&a->t, ep, a->e->fd, EPOLLOUT, a);
		return false;
	}
	set(&a->e->state, RECEIVES);
	talk_want(&a->t, ep, a->e->fd, EPOLLIN, a);
	if (a->t.out.head.ending != HALF_CLOSE || !shutdown(a->e->fd, SHUT_WR))
		return true;
	broken(a, "shutdown", errno, false);
	return false;
}

static bool step_receive(struct asker *a)
{
	const char *wrong;
	int got = message_receive(&a->t.in, a->e->fd, &wrong);

	if (got == 0)
		return false;
	if (got < 0) {
		broken(a, wrong ? wrong : errno ? "recv" : "end of file", wrong ? 0 : errno, wrong != NULL);
		return false;
	}
	if (!talk_answered(&a->t)) {
		broken(a, "the reply of another request", 0, true);
		return false;
	}
	__atomic_store_n(&a->e->rounds, a->e->rounds + 1, __ATOMIC_RELEASE);
	set(&a->e->state, a->t.out.head.ending == GOES_ON ? RESTS : ENDS);
	return true;
}

static bool step_end(struct asker *a)
{
	char byte;
	ssize_t n = a->t.out.head.ending == CLIENT_CLOSES ? 0 : recv(a->e->fd, &byte, 1, 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return a->t.blocks;
	if (n > 0)
		broken(a, "bytes behind the last reply", 0, true);
	else if (n < 0)
		broken(a, "recv of the end", errno, false);
	else
		hang_up(a);
	return false;
}

static void advance(struct asker *a)
{
	bool more = true;

	/* Bounded by the socket: each request waits for its reply, which another process must send. */
	while (more && !get(&a->e->release)) {
		switch (a->e->state) {
		case RESTS:
			more = wanted(a);
			if (more) {
				talk_request(&a->t);
				set(&a->e->state, SENDS);
			}
			break;
		case CONNECTS:
			more = step_connect(a);
			break;
		case SENDS:
			more = step_send(a);
			break;
		case RECEIVES:
			more = step_receive(a);
			break;
		case ENDS:
			more = step_end(a);
			break;
		default:
			return;
		}
	}
}

/* A thread of its own. Released by the main thread, which shuts the connection down under it. */
static void *blocking(void *arg)
{
	struct asker *a = arg;

	for (;;) {
		if (a->e->state == CLOSED || get(&a->e->release)) {
			if (a->e->fd >= 0)
				hang_up(a);
			set(&a->e->release, 0);
			while (!wanted(a))
				usleep(TICK_MS * 1000);
			open_socket(a);
		}
		advance(a);
		while ((a->e->state == BROKEN || (a->e->state == RESTS && !wanted(a))) && !get(&a->e->release))
			usleep(TICK_MS * 1000);
	}
	return NULL;
}

static void look(struct asker *a)
{
	if (a->t.blocks) {
		pthread_mutex_lock(&close_lock);
		if (get(&a->e->release) && a->e->fd >= 0)
			shutdown(a->e->fd, SHUT_RDWR);
		pthread_mutex_unlock(&close_lock);
		return;
	}
	if (get(&a->e->release)) {
		if (a->e->fd >= 0)
			hang_up(a);
		set(&a->e->release, 0);
	}
	if (a->e->state == CLOSED && wanted(a))
		open_socket(a);
	else if (a->e->state == RESTS)
		advance(a);
}

static void map_table(const char *path, uint32_t entries)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, sizeof(*table)))
		die("%s", path);
	table = mmap(NULL, sizeof(*table), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (table == MAP_FAILED)
		die("mmap");
	close(fd);
	table->entries = entries;
}

static struct asker *askers(long lasting, long churning, long blocks)
{
	long n = lasting + churning + blocks;
	struct asker *all = calloc((size_t)n, sizeof(*all));

	if (!all)
		die("calloc");
	for (long i = 0; i < n; i++) {
		bool thread = i >= lasting + churning;

		all[i] = (struct asker){ .e = &table->entry[i], .t = { .edge = i % 2, .blocks = thread,
					 .churns = !thread && i >= lasting, .magnitudes = MAGNITUDES, .life_max = LIFE_MAX } };
		all[i].e->fd = -1;
		talk_init(&all[i].t, seed, i);
	}
	return all;
}

int main(int argc, char **argv)
{
	long lasting, churning, blocks;
	struct epoll_event ready[256];
	struct asker *all;
	pthread_t t;

	if (argc != 8)
		die("usage: held HOST PORT TABLE LASTING CHURNING BLOCKING SEED");
	to = address(argv[1], argv[2]);
	lasting = number(argv[4], "lasting", 0, ENTRIES_MAX / 4);
	churning = number(argv[5], "churning", 0, ENTRIES_MAX / 4);
	blocks = number(argv[6], "blocking", 0, ENTRIES_MAX / 4);
	seed = (uint64_t)number(argv[7], "seed", 0, 1L << 30);
	raise_fd_limit();
	map_table(argv[3], (uint32_t)(lasting + churning + blocks));
	ep = epoll_new();
	all = askers(lasting, churning, blocks);
	for (long i = lasting + churning; i < lasting + churning + blocks; i++)
		if (pthread_create(&t, NULL, blocking, &all[i]))
			die("pthread_create");
	for (;;) {
		int n;

		set(&table->turns, table->turns + 1);
		for (long i = 0; i < lasting + churning + blocks; i++)
			look(&all[i]);
		n = epoll_wait(ep, ready, 256, TICK_MS);
		if (n < 0 && errno != EINTR)
			die("epoll_wait");
		for (int i = 0; i < n; i++)
			advance(ready[i].data.ptr);
	}
}
