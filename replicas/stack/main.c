/*
 * main.c - one replica process: the loop commands -> frames -> lo -> timers -> wakes, and when to
 * spin, sleep and wake (docs/architecture.md "Waiting").
 *
 * This file, main_control.c and process.c are the only ones of the stack that make system calls.
 */
#define _GNU_SOURCE
#include "filter.h"
#include "main.h"
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

enum {
	LO_BUDGET = 256,	/* frames of lo between two looks at the command rings */
	/*
	 * Bound on a doorbell that a process on our core put off. More than the kernel's tick (4 ms):
	 * an earlier one is programmed into the timer hardware at each sleep and out of it at each wake,
	 * which in a virtual machine are two exits (20 us in each request of a lone connection).
	 */
	NAP_US = 5000,
	COUNTER_LOOPS = 1024,	/* busy loops between two publications of the counters */
	STATUS_LOOPS = 16,	/* busy loops between two refreshes of the hints */
	ACTIVE_US = 1000,	/* a process that did not touch its channel for so long is no company */
};

/* ---- waking others ---- */

void ring_process(struct channel *c)
{
	if (!c->app->blocks && eventfd_ring_foreign(c->eventfd))
		return;
	/* Nobody clears O_NONBLOCK and fills the counter by accident. Once for an application, then its processes nap. */
	c->app->blocks = true;
	forget_process(NULL, c);
	c->eventfd = -1;
	a32_release(&c->mem->eventfd_known, 0);
}

static void wake_process(void *world, struct channel *c, uint32_t how)
{
	struct replica *r = world;
	uint32_t cpu = a32_relaxed(&c->mem->cpu) & (NEAT_CPUS_MAX - 1);
	uint8_t *there = &r->status->runnable[cpu];

	c->active_us = r->stack.now_us;
	a64_store(&r->status->wakes, a64_relaxed(&r->status->wakes) + 1);
	if (how == NEAT_ASLEEP_EVENTFD || how == NEAT_ASLEEP_BOTH)
		ring_process(c);
	if (how != NEAT_ASLEEP_EVENTFD)
		futex_wake(&c->mem->asleep);
	/*
	 * Whoever spins on that core must see at once that it is wanted; the next refresh counts anew. Only now: a
	 * spinner that gave its core up earlier would leave it idle until the wake gets there.
	 */
	__atomic_store_n(there, (uint8_t)(*there + 1), __ATOMIC_RELAXED);
	if (turns_wake(&r->turns, c, cpu, r->api.cpu, r->stack.now_us))
		move_to_core(cpu);
}

void forget_process(void *world, struct channel *c)
{
	(void)world;
	if (c->eventfd >= 0)
		close(c->eventfd);
}

/* ---- hints ---- */

/* A word of a line that programs read: once for many commands, not for each. */
static void beat(void *world)
{
	struct replica *r = world;

	a32_store(&r->status->heartbeat, a32_relaxed(&r->status->heartbeat) + 1);
}

/*
 * `asleep` is what the library knows: a process that computes, or sleeps in a call of the kernel's (read of
 * a pipe, waitpid), counts as awake for as long. If it counted as company as well, nobody would ever spin
 * on its core, and we would nap there for ever instead of sleeping.
 */
static bool wants_core(struct channel *c, uint64_t now_us)
{
	uint64_t progress;

	if (a32_relaxed(&c->mem->asleep) != NEAT_AWAKE)
		return false;
	progress = a64_relaxed(&c->mem->cmd_tail) + a64_relaxed(&c->mem->ev_head);
	if (progress != c->progress) {
		c->progress = progress;
		c->active_us = now_us;
	}
	return now_us - c->active_us < ACTIVE_US;
}

static void count_awake(struct app *app, uint8_t *runnable, uint64_t now_us)
{
	for (uint32_t k = 0; k < app->nopen; k++) {
		struct channel *c = &app->channel[app->open[k]];

		if (wants_core(c, now_us))
			runnable[a32_relaxed(&c->mem->cpu) & (NEAT_CPUS_MAX - 1)]++;
	}
}

/* Counts processes that want a core, per core; true if one of them last ran on ours. */
static bool refresh_hints(struct replica *r, uint64_t now_us)
{
	uint8_t runnable[NEAT_CPUS_MAX] = { 0 };
	struct neat_replica_status *st = r->status;
	int cpu = sched_getcpu();

	r->api.cpu = cpu < 0 ? 0 : (uint32_t)cpu;
	a32_store(&st->cpu, r->api.cpu);
	beat(r);
	for (uint32_t i = 0; i < r->api.napps; i++)
		count_awake(r->api.apps[i], runnable, now_us);
	for (uint32_t i = 0; i < NEAT_CPUS_MAX; i += 8) {
		uint64_t now, was;

		memcpy(&now, runnable + i, 8);
		memcpy(&was, st->runnable + i, 8);
		if (now != was)
			memcpy(st->runnable + i, &now, 8);
	}
	return runnable[r->api.cpu & (NEAT_CPUS_MAX - 1)] != 0;
}

static void publish_counters(struct replica *r)
{
	struct neat_replica_status *st = r->status;
	const struct stack_counters *c = &r->stack.count;
	uint64_t drops = 0;

	for (int i = 0; i < DROP_COUNT; i++)
		drops += c->drop[i];
	a64_store(&st->connections, c->connections);
	a64_store(&st->accepted, c->accepted);
	a64_store(&st->segments_in, c->segments_in);
	a64_store(&st->segments_out, c->segments_out);
	a64_store(&st->bytes_in, c->bytes_in);
	a64_store(&st->bytes_out, c->bytes_out);
	a64_store(&st->retransmits, c->retransmits);
	a64_store(&st->resets, c->resets_in + c->resets_out);
	a64_store(&st->drops, drops);
	for (uint32_t i = 0; r->have_stack && i < r->stack.filter->n; i++) {
		a64_store(&st->filter[i].packets, r->stack.filter->rule[i].packets);
		a64_store(&st->filter[i].bytes, r->stack.filter->rule[i].bytes);
	}
}

/* ---- sleeping ---- */

/* Timers and messages of the keeper come after lo's turn in the loop: what they sent there waits. */
static bool work_waits(struct replica *r)
{
	return a32_acquire(r->control_word) || api_commands_pending(&r->api) || nicq_pending(r) ||
	       (r->have_stack && (lo_waits(&r->stack) || udp_waits(&r->stack)));
}

static void arm(struct replica *r, uint32_t asleep)
{
	for (uint32_t i = 0; i < r->api.napps; i++)
		a32_store(&r->api.apps[i]->mem.app->replica_asleep, asleep);
	nicq_arm(r, asleep ? NEAT_ASLEEP_FUTEX : NEAT_AWAKE);
}

/* Words of all applications, the nic and the control socket. */
static void sleep_on_words(struct replica *r, uint32_t asleep, uint64_t until_us)
{
	struct sleep_set set = { .n = 0 };

	sleep_add(&set, r->control_word, 0);
	nicq_sleep_on(r, &set);
	for (uint32_t i = 0; i < r->api.napps; i++)
		sleep_add(&set, &r->api.apps[i]->mem.app->replica_asleep, asleep);
	sleep_wait(&set, until_us);
}

static void replica_sleep(struct replica *r, bool company)
{
	uint64_t until = r->have_stack ? stack_deadline(&r->stack) : UINT64_MAX;
	uint32_t asleep = company ? NEAT_REPLICA_NAPS : NEAT_ASLEEP_FUTEX;

	/*
	 * A process on our core may have deferred its doorbell: look again soon (decision 7). One that is no
	 * company any more may have done so while we napped: its command was in the ring before it looked at
	 * our word, so either the look below or the one after the nap finds it; from then on it reads FUTEX
	 * and rings at once.
	 */
	if (company && until > r->stack.now_us + NAP_US)
		until = r->stack.now_us + NAP_US;
	arm(r, asleep);
	/* The asleep words are visible before the rings are looked at once more; the other side
	 * publishes, fences, then looks at asleep (Dekker): one of us sees the other. */
	neat_fence();
	if (!work_waits(r)) {
		publish_counters(r);
		a32_store(&r->status->awake, 0);
		a64_store(&r->status->sleeps, a64_relaxed(&r->status->sleeps) + 1);
		sleep_on_words(r, asleep, until);
		a32_store(&r->status->awake, 1);
	}
	arm(r, NEAT_AWAKE);
}

/* Spin within the budget, and only while nobody of ours wants this core. True: there is work. */
static bool replica_spin(struct replica *r, bool *company)
{
	uint64_t start = replica_clock_us(), deadline = stack_deadline(&r->stack), now = start;

	for (unsigned i = 0;; i++) {
		if (work_waits(r))
			return true;
		/* The first look comes before the first pause: who we just woke may wait for this core. */
		if (i % 8 == 0) {
			now = i ? replica_clock_us() : start;
			*company = refresh_hints(r, now);
			if (*company || now - start >= r->spin_us || now >= deadline)
				return now >= deadline;
		}
		neat_pause();
	}
}

/* ---- the loop ---- */

static void control_poll(struct replica *r)
{
	/* Cleared first: a message that comes while we read sets it again. */
	while (a32_xchg(r->control_word, 0))
		while (control_receive(r))
			;
}

static unsigned replica_work(struct replica *r)
{
	unsigned done = api_commands(&r->api);

	done += nicq_receive(r, r->api.batch);
	for (unsigned i = 0; i < LO_BUDGET && lo_deliver(&r->stack); i++)
		done++;
	tcp_resume(&r->stack);
	udp_resume(&r->stack);
	if (stack_deadline(&r->stack) <= r->stack.now_us)
		stack_timers(&r->stack, r->api.batch);
	stack_units_done(&r->stack);
	api_flush(&r->api);
	nicq_wake(r);
	return done;
}

/* Time since the last look at the clock goes to work or polling; none was slept through. */
static void account(struct replica *r, neat_a64 *to, uint64_t now_us)
{
	if (r->counted_us)
		a64_store(to, a64_relaxed(to) + (now_us - r->counted_us) * 1000);
	r->counted_us = now_us;
}

static void replica_loop(struct replica *r)
{
	bool worked = false;

	for (unsigned loops = 1;; loops++) {
		bool company = false;

		r->stack.now_us = replica_clock_us();
		account(r, worked ? &r->status->work_ns : &r->status->poll_ns, r->stack.now_us);
		worked = false;
		if (a32_acquire(r->control_word))
			control_poll(r);
		if (r->phase != REPLICA_LIVE) {
			replica_sleep(r, false);
			r->counted_us = 0;
			continue;
		}
		worked = replica_work(r) != 0;
		if (worked) {
			if (loops % STATUS_LOOPS == 0)
				refresh_hints(r, r->stack.now_us);
			if (loops % COUNTER_LOOPS == 0)
				publish_counters(r);
			continue;
		}
		control_reap(r);
		control_drain(r);
		if (replica_spin(r, &company))
			continue;
		r->stack.now_us = replica_clock_us();
		account(r, &r->status->poll_ns, r->stack.now_us);
		replica_sleep(r, company);
		r->counted_us = 0;
	}
}

int main(int argc, char **argv)
{
	static struct replica r;	/* large; reached only through the pointer below */

	if (argc > 1 && !strcmp(argv[1], "--version")) {
		printf("%s ABI %d fingerprint %08x\n", replica_program, NEAT_ABI_VERSION, neat_abi_fingerprint());
		return 0;
	}
	random_seed(r.random);
	r.nic_eventfd = -1;
	r.api.ops.wake = wake_process;
	r.api.ops.forget = forget_process;
	r.api.ops.beat = beat;
	r.api.ops.world = &r;
	r.stack.now_us = replica_clock_us();
	r.control_word = control_setup();
	control_park(&r);
	a32_store(&r.status->awake, 1);
	replica_loop(&r);
}
