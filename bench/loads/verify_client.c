/*
 * The client. A connection sends a request, checks the reply, and takes its turn again; some end after
 * a while and are opened anew. SIGUSR1 ends a phase (its line is printed), SIGUSR2 marks a moment: the
 * first request that began later tells how long nobody was served.
 */
#include "verify.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHURN = 4, LIFE_MAX = 20, FIRSTS_MAX = 4096, TICK_MS = 100, MAGNITUDES = 19 };
enum state { IDLE = 0, CONNECTS, SENDS, RECEIVES, ENDS };

struct asker {
	int state;			/* enum state */
	int fd;
	struct talk t;
	int64_t began;
	int64_t complained;		/* of the request that began then: it stalls */
};

/* What was measured since the last SIGUSR1; the threads' and the loop's together. */
struct phase {
	int64_t began;
	uint64_t bytes, connects;
	struct hist requests, opening;
	uint32_t nfirsts;
	int64_t firsts[FIRSTS_MAX];
};

static struct phase phase;
static pthread_mutex_t phase_lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t mark;			/* atomic; 0 = answered */
static volatile sig_atomic_t phase_over, finished;
static const struct load *load;
static uint64_t conn_ids;		/* atomic */
static int ep;

static void measured(struct hist *h, int64_t began, uint64_t bytes)
{
	int64_t now = now_ns(), marked = __atomic_load_n(&mark, __ATOMIC_ACQUIRE);

	pthread_mutex_lock(&phase_lock);
	hist_add(h, now - began);
	phase.bytes += bytes;
	if (bytes && marked && began > marked &&
	    __atomic_compare_exchange_n(&mark, &marked, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED) &&
	    phase.nfirsts < FIRSTS_MAX)
		phase.firsts[phase.nfirsts++] = now - marked;
	pthread_mutex_unlock(&phase_lock);
}

static void hang_up(struct asker *a)
{
	close(a->fd);
	a->fd = -1;
	a->state = IDLE;
}

static void fail(struct asker *a, const char *what, int err)
{
	failure(what, err, &a->t.out, &a->t.in, a->began);
	hang_up(a);
}

static bool open_socket(struct asker *a)
{
	a->fd = talk_open(&a->t, load->seed << 32 | __atomic_add_fetch(&conn_ids, 1, __ATOMIC_RELAXED));
	a->state = CONNECTS;
	if (connect(a->fd, (const struct sockaddr *)&load->to, sizeof(load->to)) && errno != EINPROGRESS) {
		fail(a, "connect", errno);
		return false;
	}
	talk_watch(&a->t, ep, a->fd, a);
	return true;
}

static void begin_request(struct asker *a)
{
	talk_request(&a->t);
	a->state = SENDS;
}

/* The steps; true = go on at once, false = blocked, or the turn is over (then the state is IDLE). */

static bool step_connect(struct asker *a)
{
	struct sockaddr_storage peer;
	socklen_t len = sizeof(int), peer_len = sizeof(peer);
	int err = 0;

	if (getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &err, &len))
		err = errno;
	if (err) {
		fail(a, "connect", err);
		return false;
	}
	if (getpeername(a->fd, (struct sockaddr *)&peer, &peer_len))
		return false;		/* ENOTCONN: not yet */
	measured(&phase.opening, a->began, 0);
	a->began = now_ns();
	begin_request(a);
	return true;
}

static bool step_send(struct asker *a)
{
	int put = message_send(&a->t.out, a->fd);

	if (put < 0)
		fail(a, "send", errno);
	if (put <= 0) {
		if (put == 0)
			talk_want(&a->t, ep, a->fd, EPOLLOUT, a);
		return false;
	}
	a->state = RECEIVES;
	talk_want(&a->t, ep, a->fd, EPOLLIN, a);
	if (a->t.out.head.ending == HALF_CLOSE && shutdown(a->fd, SHUT_WR))
		fail(a, "shutdown", errno);
	return a->state != IDLE;
}

static bool step_receive(struct asker *a)
{
	const char *wrong;
	int got = message_receive(&a->t.in, a->fd, &wrong);

	if (got == 0)
		return false;
	if (got < 0) {
		fail(a, wrong ? wrong : errno ? "recv" : "end of file", wrong ? 0 : errno);
		return false;
	}
	if (!talk_answered(&a->t)) {
		fail(a, "the reply of another request", 0);
		return false;
	}
	measured(&phase.requests, a->began, a->t.out.head.len + a->t.in.head.len);
	a->state = a->t.out.head.ending == GOES_ON ? IDLE : ENDS;
	return a->state == ENDS;
}

static bool step_end(struct asker *a)
{
	char byte;
	ssize_t n = a->t.out.head.ending == CLIENT_CLOSES ? 0 : recv(a->fd, &byte, 1, 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return a->t.blocks;
	if (n > 0)
		fail(a, "bytes behind the last reply", 0);
	else if (n < 0)
		fail(a, "recv of the end", errno);
	else
		hang_up(a);
	return false;
}

static void advance(struct asker *a)
{
	bool more = true;

	while (more) {
		if (a->state == CONNECTS)
			more = step_connect(a);
		else if (a->state == SENDS)
			more = step_send(a);
		else if (a->state == RECEIVES)
			more = step_receive(a);
		else if (a->state == ENDS)
			more = step_end(a);
		else
			return;
	}
}

static void turn(struct asker *a)
{
	a->began = now_ns();
	if (a->fd >= 0)
		begin_request(a);
	else if (!open_socket(a))
		return;
	if (a->state != CONNECTS || a->t.blocks)
		advance(a);
}

static void *blocking(void *arg)
{
	for (;;)
		turn(arg);
	return NULL;
}

static void check_stall(struct asker *all, long n)
{
	int64_t now = now_ns();

	for (long i = 0; i < n; i++) {
		struct asker *a = &all[i];

		if (a->state == IDLE || now - a->began < seconds_ns(STALL_S) || a->complained == a->began)
			continue;
		a->complained = a->began;
		failure(a->state == CONNECTS ? "stalled in connect" : a->state == SENDS ? "stalled in send" :
			a->state == RECEIVES ? "stalled in receive" : "stalled at the end", 0, &a->t.out, &a->t.in, a->began);
	}
}

static void print_phase(void)
{
	double s;

	pthread_mutex_lock(&phase_lock);
	s = (double)(now_ns() - phase.began) / 1e9;
	printf("{\"seconds\": %.3f, \"requests\": %llu, \"connects\": %llu, \"bytes\": %llu, \"failures\": %llu, "
	       "\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, \"connect_p50_us\": %.1f, "
	       "\"connect_p99_us\": %.1f, \"firsts_us\": [", s, (unsigned long long)phase.requests.count,
	       (unsigned long long)phase.opening.count, (unsigned long long)phase.bytes,
	       (unsigned long long)__atomic_load_n(&failures, __ATOMIC_RELAXED), hist_us(&phase.requests, 0.5),
	       hist_us(&phase.requests, 0.99), hist_us(&phase.requests, 0.999), (double)phase.requests.max / 1e3,
	       hist_us(&phase.opening, 0.5), hist_us(&phase.opening, 0.99));
	for (uint32_t i = 0; i < phase.nfirsts; i++)
		printf("%s%.1f", i ? ", " : "", (double)phase.firsts[i] / 1e3);
	printf("]}\n");
	fflush(stdout);
	memset(&phase, 0, sizeof(phase));
	phase.began = now_ns();
	pthread_mutex_unlock(&phase_lock);
}

static void on_signal(int sig)
{
	if (sig == SIGUSR2)
		__atomic_store_n(&mark, now_ns(), __ATOMIC_RELEASE);
	else if (sig == SIGUSR1)
		phase_over = 1;
	else
		finished = 1;
}

static void catch(int sig)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(sig, &sa, NULL);
}

static struct asker *askers(long n)
{
	struct asker *all = calloc((size_t)n + 1, sizeof(*all));

	if (!all)
		die("calloc");
	for (long i = 0; i < n; i++) {
		all[i] = (struct asker){ .fd = -1, .t = { .edge = i % 2, .blocks = i >= load->conns,
					 .churns = i % CHURN == CHURN - 1, .magnitudes = MAGNITUDES, .life_max = LIFE_MAX } };
		talk_init(&all[i].t, load->seed, i);
	}
	return all;
}

/* Signals are for the main thread. */
static void start_threads(struct asker *all, long n)
{
	sigset_t set, old;

	sigfillset(&set);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	for (long i = 0; i < n; i++) {
		pthread_t t;

		if (pthread_create(&t, NULL, blocking, &all[i]))
			die("pthread_create");
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* Whose turn is next: the connections in a circle; those at work are not in it. */
struct circle {
	struct asker **wait;
	long head, count, size;
};

static void circle_put(struct circle *c, struct asker *a)
{
	c->wait[(c->head + c->count++) % c->size] = a;
}

static struct asker *circle_take(struct circle *c)
{
	struct asker *a = c->wait[c->head];

	c->head = (c->head + 1) % c->size;
	c->count--;
	return a;
}

static void fill(struct circle *c, long *busy)
{
	/* Bounded, so that a reply that comes at once does not keep the loop from its events. */
	for (long i = 0; *busy < load->active && c->count && i < load->active; i++) {
		struct asker *a = circle_take(c);

		turn(a);
		if (a->state == IDLE)
			circle_put(c, a);
		else
			++*busy;
	}
}

/* Nothing is asked, so nothing may come; it stays in the circle either way. */
static void look_at_idle(struct asker *a)
{
	char byte;
	ssize_t n = a->fd < 0 ? -1 : recv(a->fd, &byte, 1, MSG_DONTWAIT);

	if (a->fd < 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
		return;
	fail(a, n > 0 ? "bytes on an idle connection" : n ? "idle connection" : "end of file on an idle connection",
	     n < 0 ? errno : 0);
}

static void serve_events(struct circle *c, long *busy)
{
	struct epoll_event ready[256];
	int n = epoll_wait(ep, ready, 256, *busy < load->active && c->count ? 0 : TICK_MS);

	if (n < 0 && errno != EINTR)
		die("epoll_wait");
	for (int i = 0; i < n; i++) {
		struct asker *a = ready[i].data.ptr;

		if (a->state == IDLE) {
			look_at_idle(a);
			continue;
		}
		advance(a);
		if (a->state == IDLE) {
			circle_put(c, a);
			--*busy;
		}
	}
}

void ask(const struct load *l)
{
	struct circle c = { .size = l->conns + 1 };
	int64_t look = now_ns();
	struct asker *all;
	long busy = 0;

	load = l;
	ep = epoll_new();
	all = askers(l->conns + l->threads);
	c.wait = calloc((size_t)c.size, sizeof(*c.wait));
	if (!c.wait)
		die("calloc");
	for (long i = 0; i < l->conns; i++)
		circle_put(&c, &all[i]);
	phase.began = now_ns();
	catch(SIGUSR1);
	catch(SIGUSR2);
	catch(SIGTERM);
	print_phase();		/* signals are welcome from now on */
	start_threads(all + l->conns, l->threads);
	while (!finished) {
		fill(&c, &busy);
		serve_events(&c, &busy);
		if (phase_over) {
			phase_over = 0;
			print_phase();
		}
		if (now_ns() - look > seconds_ns(1)) {
			look = now_ns();
			check_stall(all, l->conns + l->threads);
		}
	}
	print_phase();
	_exit(0);	/* threads are asleep in system calls; there is nothing to wait for */
}
