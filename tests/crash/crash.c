/*
 * crash.c - runs a scenario without a death, then once for each store of the replica that outlives
 * it, with the replica killed just before that store, and compares what both ends saw.
 *
 *   crash list
 *   crash run [options] [SCENARIO...]     every point (or a sample); JSON line for each scenario
 *   crash again [options] SCENARIO N [M]  one run, for a debugger: no fork, kill at N (then at M)
 *
 *   --stateless    the successor does not adopt: connections may fail, nothing may be left behind
 *   --depth 2      kill the successor too, at every point of its start; --inner N: at every N-th
 *   --race         applications move before the store instead of a kill; --race-kill: then the kill
 *   --race-start   depth 2, the second time they move during the successor's start, without a kill
 *   --fenced       frames that the NIC had not taken at the death are lost
 *   --delay X --until Y   the stores of field X (machine_name) become visible only after the next one of
 *                  field Y: what the compiler could do without the rule that orders the two
 *   --forget X     the successor goes without a rule: window, links, wl, persist, look, look last, wake (forget.c)
 *   --retire-first a frame or command is retired before its effects
 *   --sample N --seed S    about N points, chosen by S
 *   --jobs N       children at a time
 *
 * One process plays the scenario and forks at each point, so N points cost N halves of a run and a
 * failing child cannot disturb the others.
 */
#define _GNU_SOURCE
#include "image.h"
#include "scenarios.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { DEPTH_MAX = 2, EXTRA_US = 1200000, AFTER_START = 20, SHOWN = 20, CHILD_SECONDS = 20,
	SEEN_SIZE = 1 << 22 };

const struct scenario *const scenarios[] = {
#define X(name) &scenario_##name,
	SCENARIOS(X)
#undef X
	NULL,
};

struct options {
	bool stateless, race, race_kill, race_start, fenced;
	uint32_t depth, jobs;
	uint64_t sample, inner, seed;
	const char *delay, *until, *forget;
	bool retire_first;
};

/* What all processes of a campaign see. */
struct shared {
	char log[8192];			/* of the run without a death */
	uint32_t end_us;
	uint64_t segments, points;
	uint64_t runs, failures, shown;
	uint32_t worst_us;
	uint64_t same;			/* points whose image had been killed at */
	uint64_t seen[SEEN_SIZE];	/* numbers of images, by open addressing */
};

struct run {
	struct machine *m;
	const struct scenario *sc;
	const struct options *o;
	uint32_t depth;			/* deaths (or moves in their place) so far */
	uint32_t deaths;
	uint64_t n;			/* points since the last death */
	uint64_t start_n;		/* of these, until the successor was up */
	uint64_t at[DEPTH_MAX];		/* where it died; for `again`: where to die */
	bool single, reference;
	uint64_t stride;
	uint32_t outstanding;
};

static struct shared *shared;
static struct run run;

/* ---- verdicts ---- */

static void locate(uintptr_t pc, char *out, size_t len)
{
	char command[256], exe[200];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	FILE *f;

	out[0] = 0;
	if (n <= 0)
		return;
	exe[n] = 0;
	snprintf(command, sizeof(command), "addr2line -fise %s %#lx 2>/dev/null", exe, pc - 1);
	f = popen(command, "r");
	if (!f)
		return;
	n = (ssize_t)fread(out, 1, len - 1, f);
	out[n > 0 ? n : 0] = 0;
	pclose(f);
	for (char *p = out; *p; p++)
		if (*p == '\n')
			*p = p[1] ? ' ' : 0;
}

static const char *const point_text[] = {
	[POINT_STORE] = "before", [POINT_TORN_FIRST] = "after the first half of", [POINT_TORN_LAST] = "after the last half of",
	[POINT_ACTION] = "before a wake",
};

/* Where it died: named before memory moved, looked up only when somebody asks. */
static struct { char name[80]; struct point p; } place[DEPTH_MAX];

static void describe(uint32_t i, char *out, size_t len)
{
	char where[600];

	locate(place[i].p.pc, where, sizeof(where));
	snprintf(out, len, "killed %s %s (%zu bytes) %s", point_text[place[i].p.kind], place[i].name,
		 place[i].p.size, where);
}

static void failed(const char *what)
{
	char again[64] = "", deaths[2000] = "";

	__atomic_fetch_add(&shared->failures, 1, __ATOMIC_RELAXED);
	if (__atomic_fetch_add(&shared->shown, 1, __ATOMIC_RELAXED) >= SHOWN)
		return;
	for (uint32_t i = 0; i < run.depth; i++) {
		char one[800];

		snprintf(again + strlen(again), sizeof(again) - strlen(again), " %lu", run.at[i]);
		describe(i, one, sizeof(one));
		snprintf(deaths + strlen(deaths), sizeof(deaths) - strlen(deaths), "  %s\n", one);
	}
	fprintf(stderr, "FAIL %s: %s\n%s  again: crash again%s%s%s%s%s %s%s\n", run.sc->name, what, deaths,
		run.o->stateless ? " --stateless" : "", run.o->race ? " --race" : "",
		run.o->race_kill ? " --race-kill" : "", run.o->race_start ? " --race-start" : "",
		run.o->fenced ? " --fenced" : "", run.sc->name, again);
}

static void collect(char *log, size_t len)
{
	log[0] = 0;
	for (uint32_t i = 0; i < run.m->nactors; i++) {
		size_t n = strlen(log);

		snprintf(log + n, len - n, "%s: %s\n", run.m->actor[i].name, run.m->actor[i].log);
	}
}

static int verdict(void)
{
	struct machine *m = run.m;
	char log[8192], text[18000];
	uint32_t limit = run.sc->extra_us ? run.sc->extra_us : EXTRA_US, extra;

	if (m->failure[0]) {
		failed(m->failure);
		return 1;
	}
	if (m->stateless && run.depth)
		return 0;
	collect(log, sizeof(log));
	if (strcmp(log, shared->log)) {
		snprintf(text, sizeof(text), "seen by the ends:\n%s  without a death:\n%s", log, shared->log);
		failed(text);
		return 1;
	}
	if (m->repeated > run.deaths || m->lost > (run.sc->may_lose ? run.deaths : 0)) {
		snprintf(text, sizeof(text), "%u datagrams came twice, %u never, in %u deaths", m->repeated, m->lost, run.deaths);
		failed(text);
		return 1;
	}
	extra = m->end_us > shared->end_us ? m->end_us - shared->end_us : 0;
	if (extra > __atomic_load_n(&shared->worst_us, __ATOMIC_RELAXED))
		__atomic_store_n(&shared->worst_us, extra, __ATOMIC_RELAXED);
	if (extra > limit * (run.depth ? run.depth : 1)) {
		snprintf(text, sizeof(text), "took %u us longer than the %u us without a death", extra, shared->end_us);
		failed(text);
		return 1;
	}
	return 0;
}

static void on_fault(int sig, siginfo_t *si, void *context)
{
	const ucontext_t *u = context;
	char where[600], text[800];

	locate((uintptr_t)u->uc_mcontext.gregs[REG_RIP] + 1, where, sizeof(where));
	snprintf(text, sizeof(text), "signal %d (%s), address %p, in %s", sig, strsignal(sig), si->si_addr, where);
	failed(text);
	_exit(1);
}

static void handlers(void)
{
	static uint8_t stack[1 << 16];
	const stack_t alt = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM };

	sigaltstack(&alt, NULL);
	for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		sigaction(signals[i], &sa, NULL);
}

/* ---- points ---- */

static void reap(uint32_t leave)
{
	while (run.outstanding > leave) {
		int status;

		if (waitpid(-1, &status, 0) < 0)
			return;
		run.outstanding--;
		if (WIFSIGNALED(status))
			__atomic_fetch_add(&shared->failures, 1, __ATOMIC_RELAXED);
	}
}

static uint64_t mix(uint64_t z)
{
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* False: a death here leaves what another one left. */
static bool new_image(const struct point *p)
{
	uint64_t number = image_number(run.m, p) | 1, at = number >> 20, was;

	for (uint32_t i = 0; i < SEEN_SIZE / 2; i++, at++) {
		was = 0;
		if (__atomic_compare_exchange_n(&shared->seen[at % SEEN_SIZE], &was, number, false, __ATOMIC_RELAXED,
						__ATOMIC_RELAXED))
			return true;
		if (was == number) {
			__atomic_fetch_add(&shared->same, 1, __ATOMIC_RELAXED);
			return false;
		}
	}
	return true;
}

static bool moves_only(void) { return run.o->race || (run.o->race_start && run.depth == 1); }

/* Only a death forgets what the image does not show. */
static bool only_images(void) { return !moves_only() && !run.o->race_kill && !run.o->delay && !run.o->retire_first; }

static bool chosen(void)
{
	uint64_t stride = run.depth ? run.o->inner : run.stride;

	/* The first start has nothing to lose. */
	if (!run.m->was_ready)
		return run.n % 64 == 1;
	if (run.depth && run.m->ready && run.n > run.start_n + AFTER_START)
		return false;
	return stride <= 1 || mix(run.n * 0x9e3779b97f4a7c15ull ^ run.o->seed ^ run.depth) % stride == 0;
}

/*
 * A removed ordering rule. Memory shows X where program order put it; only a kill between X and the store
 * behind Y finds the old value, as if X had come later. Nothing reads X back in between but the replica
 * itself, which on a real machine would have it in a register.
 */
enum { LATE_MAX = 32, LATE_SIZE = 4096, LATE_POINTS = 64 };	/* how far a compiler might move a store */
static struct {
	struct { uintptr_t addr; size_t size; uint8_t old[LATE_SIZE]; } store[LATE_MAX];
	uint32_t n, points;
	bool until_seen;
} late;

static bool names(const char *field, const struct point *p)
{
	char name[80];
	size_t len = strlen(field);

	machine_name(run.m, p->addr, name, sizeof(name));
	return !strncmp(name, field, len) && name[len] == '[';
}

/* After the decision about a kill at this point. */
static void late_note(const struct point *p)
{
	if (!run.o->delay || p->kind != POINT_STORE)
		return;
	if (late.until_seen || (late.n && ++late.points > LATE_POINTS)) {
		late.until_seen = false;
		late.points = 0;
		late.n = 0;
	}
	if (late.n && names(run.o->until, p))
		late.until_seen = true;
	if (names(run.o->delay, p) && late.n < LATE_MAX && p->size <= LATE_SIZE) {
		late.store[late.n].addr = p->addr;
		late.store[late.n].size = p->size;
		memcpy(late.store[late.n++].old, (const void *)p->addr, p->size);
	}
}

static void late_undo(void)
{
	while (late.n) {
		late.n--;
		memcpy((void *)late.store[late.n].addr, late.store[late.n].old, late.store[late.n].size);
	}
}

static void retire(struct machine *m)
{
	enum arena_unit unit = journal_unit(a64_relaxed(&((struct arena_header *)m->arena)->journal));
	struct neat_frame_ring *rx = &m->qp->rx;

	if (unit == UNIT_FRAME && a64_relaxed(&rx->head) == m->r->nic_rx_head &&
	    a64_relaxed(&rx->tail) != m->r->nic_rx_head)
		a64_store(&rx->head, m->r->nic_rx_head + 1);
	for (uint32_t i = 0; unit == UNIT_COMMAND && i < m->nprocs; i++) {
		struct neat_channel *ch = m->proc[i].ch;

		if (neat_ring_ready(NEAT_CMD_ENTRIES, &ch->cmd_tail, a64_relaxed(&ch->cmd_head)))
			a64_store(&ch->cmd_head, a64_relaxed(&ch->cmd_head) + 1);
	}
}

static void die(const struct point *p)
{
	const bool moves = moves_only();

	run.at[run.depth] = run.n;
	place[run.depth].p = *p;
	if (p->kind != POINT_ACTION)
		machine_name(run.m, p->addr, place[run.depth].name, sizeof(place[0].name));
	run.depth++;
	if (moves || run.o->race_kill)
		machine_race(run.m);
	if (moves)
		return;
	run.deaths++;
	image_death(run.m, p);
	stores_undo(p);
	late_undo();
	if (run.o->retire_first)
		retire(run.m);
	run.n = 0;
	machine_kill(run.m);
}

static void decide(const struct point *p)
{
	pid_t pid;

	run.n++;
	if (!run.m->ready)
		run.start_n = run.n;
	if (run.reference || run.depth >= run.o->depth)
		return;
	if (run.single) {
		if (run.n == run.at[run.depth])
			die(p);
		return;
	}
	if (!chosen() || (only_images() && !new_image(p)))
		return;
	reap(run.o->jobs - 1);
	__atomic_fetch_add(&shared->runs, 1, __ATOMIC_RELAXED);
	pid = fork();
	if (pid > 0) {
		run.outstanding++;
	} else if (pid == 0) {
		run.outstanding = 0;
		alarm(CHILD_SECONDS);
		die(p);
	} else {
		perror("fork");
		_exit(2);
	}
}

static void at_point(void *ctx, const struct point *p)
{
	(void)ctx;
	image_point(run.m, p);
	decide(p);
	late_note(p);
}

/* ---- campaigns ---- */

static void play(void)
{
	image_begin();
	run.m = machine_new(run.sc, run.o->stateless);
	run.m->fence_drops = run.o->fenced;
	run.m->forget = run.o->forget;
	run.m->trace = run.single;
	stores.hook = at_point;
	machine_run(run.m);
}

static int in_child(int (*act)(void))
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		handlers();
		_exit(act());
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return 2;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

static int reference(void)
{
	run.reference = true;
	play();
	collect(shared->log, sizeof(shared->log));
	shared->end_us = run.m->end_us;
	shared->segments = run.m->segments;
	shared->points = run.n;
	return verdict();
}

static int enumerate(void)
{
	run.stride = run.o->sample ? (shared->points + run.o->sample - 1) / run.o->sample : 1;
	play();
	reap(0);
	return verdict();
}

static int campaign(const struct scenario *sc, const struct options *o)
{
	int err;

	memset(shared, 0, sizeof(*shared));
	run = (struct run){ .sc = sc, .o = o };
	err = in_child(reference);
	if (!err)
		err = in_child(enumerate);
	printf("{\"scenario\": \"%s\", \"points\": %lu, \"runs\": %lu, \"same\": %lu, \"failures\": %lu, \"us\": %u, "
	       "\"segments\": %lu, \"worst_extra_us\": %u}\n", sc->name, shared->points, shared->runs, shared->same, shared->failures, shared->end_us,
	       shared->segments, shared->worst_us);
	fflush(stdout);
	return err || shared->failures;
}

static void show_blocks(const struct machine *m)
{
	const struct tcp *tcp = m->r->stack.tcp;

	for (uint32_t i = 0; i < a32_relaxed(&tcp->arena->high_tcb); i++) {
		const struct tcb *t = &tcp->tcbs[i];

		if (a64_relaxed(&t->e.state))
			printf("block %u: state %d flags_e %#x port %u to %u slot %u una %lu nxt %lu max %lu tx_tail %lu "
			       "rcv_nxt %lu rx_tail %lu fin_rx %lu flags %#x rtx_at %lu kind %d\n", i, tcp_state(t),
			       tcp_flags_e(t), t->key.lport, t->key.rport, t->ref.slot, snd_una(t), t->snd_nxt, snd_max(t),
			       tx_tail(t), rcv_nxt(t), rx_tail(t), fin_rx_seq(t), t->flags, t->rtx_at_us, t->rtx_kind);
	}
}

static int again(void)
{
	int err;

	play();
	err = verdict();
	for (uint32_t i = 0; i < run.depth; i++) {
		char one[800];

		describe(i, one, sizeof(one));
		printf("%s\n", one);
	}
	for (uint32_t i = 0; i < run.m->nactors; i++)
		printf("%s: %s\n", run.m->actor[i].name, run.m->actor[i].log);
	show_blocks(run.m);
	printf("%s\n", err ? run.m->failure : "as without a death");
	return err;
}

static const struct scenario *find(const char *name)
{
	for (unsigned i = 0; scenarios[i]; i++)
		if (!strcmp(scenarios[i]->name, name))
			return scenarios[i];
	fprintf(stderr, "crash: no scenario %s (crash list)\n", name);
	exit(2);
}

static int parse(int argc, char **argv, struct options *o)
{
	int i;

	for (i = 0; i < argc && argv[i][0] == '-'; i++) {
		if (!strcmp(argv[i], "--stateless"))
			o->stateless = true;
		else if (!strcmp(argv[i], "--race"))
			o->race = true;
		else if (!strcmp(argv[i], "--race-kill"))
			o->race_kill = true;
		else if (!strcmp(argv[i], "--race-start"))
			o->race_start = true;
		else if (!strcmp(argv[i], "--fenced"))
			o->fenced = true;
		else if (!strcmp(argv[i], "--depth") && i + 1 < argc)
			o->depth = (uint32_t)strtoul(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--jobs") && i + 1 < argc)
			o->jobs = (uint32_t)strtoul(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--sample") && i + 1 < argc)
			o->sample = strtoul(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--inner") && i + 1 < argc)
			o->inner = strtoul(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--retire-first"))
			o->retire_first = true;
		else if (!strcmp(argv[i], "--delay") && i + 1 < argc)
			o->delay = argv[++i];
		else if (!strcmp(argv[i], "--until") && i + 1 < argc)
			o->until = argv[++i];
		else if (!strcmp(argv[i], "--forget") && i + 1 < argc)
			o->forget = argv[++i];
		else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
			o->seed = strtoul(argv[++i], NULL, 10);
		else
			return -1;
	}
	if (!o->delay != !o->until || (o->race_start && o->depth == 1))
		return -1;
	if (o->depth < 1 || o->depth > DEPTH_MAX || o->jobs < 1 || o->jobs > 64)
		return -1;
	return i;
}

static int usage(void)
{
	fprintf(stderr, "usage: crash list | run [options] [SCENARIO...] | again [options] SCENARIO N [M]\n");
	return 2;
}

int main(int argc, char **argv)
{
	struct options o = { .depth = 1, .jobs = 2 };
	int used = argc > 1 ? parse(argc - 2, argv + 2, &o) : -1, bad = 0;

	if (used < 0)
		return usage();
	argv += 2 + used;
	argc -= 2 + used;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!strcmp(argv[-1 - used], "list")) {
		for (unsigned i = 0; scenarios[i]; i++)
			printf("%s%s\n", scenarios[i]->name, scenarios[i]->brief ? " brief" : "");
		return 0;
	}
	if (!strcmp(argv[-1 - used], "run")) {
		for (unsigned i = 0; argc == 0 && scenarios[i]; i++)
			if (!(o.fenced && scenarios[i]->rst))
				bad |= campaign(scenarios[i], &o);
		for (int i = 0; i < argc; i++)
			bad |= campaign(find(argv[i]), &o);
		return bad;
	}
	if (!strcmp(argv[-1 - used], "again") && argc >= 2) {
		run = (struct run){ .sc = find(argv[0]), .o = &o };
		in_child(reference);
		o.depth = (uint32_t)argc - 1 < DEPTH_MAX ? (uint32_t)argc - 1 : DEPTH_MAX;
		for (uint32_t i = 0; i < o.depth; i++)
			run.at[i] = strtoul(argv[1 + i], NULL, 10);
		run.single = true;
		return again();
	}
	return usage();
}
