/*
 * sweep.c - `neat-keeper --sweep PROCESS:PID[,...] CHANNELS_FD...`: takes dead processes' descriptors out of
 * their application's shared tables, closes their channels and frees their entries, unless somebody else did.
 * `neat-keeper --cloexec PROCESS`: what exec closed, of a living one. Run by neatd as a short-lived
 * process, application object on fd 0.
 *
 * It is C because living processes change the same reference counts: who takes a count to zero
 * releases the socket (neat_abi.h), so each must be lowered by an atomic operation. Sockets that
 * this took to zero, those that the dead process had begun to close, and what an earlier sweep left because
 * it or its neatd was killed are written to fd 1; their records stay as they are, neatd frees them.
 * `neat-keeper --orphans`: only the last kind.
 *
 * All numbers in that memory are the application's: each is read once, checked, used.
 */
#define _GNU_SOURCE
#include "keeper.h"
#include "ring.h"
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct orphan {
	uint32_t sock, gen, state, replica, slot, slot_gen;
};

static void report(const struct orphan *o)
{
	if (fwrite(o, sizeof(*o), 1, stdout) != 1)
		exit(1);
}

/* Lowers the count unless it is zero already (a hostile table may name a record too often). */
static void unref(struct neat_sock *s)
{
	const uint32_t ours = neat_refs_closing(NEAT_REFS_NEATD);

	for (;;) {
		uint32_t refs = a32_relaxed(&s->refs);

		if (!neat_refs_counted(refs) || a32_cas(&s->refs, refs, refs == 1 ? ours : refs - 1))
			return;
	}
}

/* As the library's last close: the claim of a connect() slot is given back, once. */
static void give_slot_back(struct neat_app *app, uint32_t replica, uint32_t *word)
{
	volatile uint32_t *at = word;
	uint32_t slot = *at, bit = slot - NEAT_SLOT_APP_FIRST;

	if (replica >= NEAT_REPLICAS_MAX || slot < NEAT_SLOT_APP_FIRST || slot >= NEAT_SLOTS)
		return;
	*at = slot | NEAT_SLOT_BACK;
	compiler_fence();
	a64_and(&app->slot_bits[replica][bit / 64], ~(1ull << bit % 64));
}

static void give_slots_back(struct neat_app *app, const struct orphan *o)
{
	if (o->state == NEAT_SOCK_CONNECT)
		give_slot_back(app, o->replica, &app->socks[o->sock].slot);
	for (uint32_t r = 0; o->state == NEAT_SOCK_DGRAM && r < NEAT_REPLICAS_MAX; r++)
		give_slot_back(app, r, &app->socks[o->sock].sub[r].slot);
}

static void drop_word(struct neat_app *app, uint64_t word)
{
	uint32_t sock = (uint32_t)word, gen = (uint32_t)(word >> 32) & 0xffff;
	struct neat_sock *s;

	if (sock == 0 || sock >= NEAT_SOCKS_MAX)
		return;
	s = &app->socks[sock];
	if ((a32_relaxed(&s->gen) & 0xffff) == gen && a32_acquire(&s->state) != NEAT_SOCK_FREE)
		unref(s);
}

/* Nobody but neatd may touch the record any more. */
static void orphan_found(struct neat_app *app, uint32_t sock)
{
	struct neat_sock *s = &app->socks[sock];
	struct orphan o = { .sock = sock, .gen = a32_relaxed(&s->gen), .state = a32_acquire(&s->state) };

	o.replica = *(volatile uint32_t *)&s->replica;
	o.slot = *(volatile uint32_t *)&s->slot & ~(uint32_t)NEAT_SLOT_BACK;
	o.slot_gen = *(volatile uint32_t *)&s->slot_gen;
	give_slots_back(app, &o);
	report(&o);
}

/*
 * The next part of [*at, end) that holds data: *at is where it starts, the answer where it ends, 0 = there is
 * none. Reading a hole through the mapping would fill it.
 */
static off_t next_data(off_t *at, off_t end)
{
	off_t stop;

	*at = lseek(STDIN_FILENO, *at, SEEK_DATA);
	if (*at < 0 || *at >= end)
		return 0;
	stop = lseek(STDIN_FILENO, *at, SEEK_HOLE);
	return stop < 0 || stop > end ? end : stop;
}

/* Entries that this sweep has taken. */
struct taken {
	bool is[NEAT_PROCS_MAX];
};

/* A last close that one of the dead processes had begun. */
static bool closing(uint32_t refs, const struct taken *dead)
{
	for (uint32_t i = 0; i < NEAT_PROCS_MAX; i++)
		if (dead->is[i] && refs == neat_refs_closing(i))
			return true;
	return false;
}

/* Records that the dead processes were closing, or an earlier sweep left to neatd. */
static void find_orphans(struct neat_app *app, const struct taken *dead)
{
	const uint32_t ours = neat_refs_closing(NEAT_REFS_NEATD);
	const off_t begin = offsetof(struct neat_app, socks), size = sizeof(struct neat_sock);
	off_t at = begin, end = begin + NEAT_SOCKS_MAX * size, stop;

	for (; (stop = next_data(&at, end)) != 0; at = stop) {
		for (off_t i = (at - begin) / size; begin + i * size < stop; i++) {
			neat_a32 *refs = &app->socks[i].refs;
			uint32_t now = a32_relaxed(refs);

			if (now >= neat_refs_closing(0) && now != ours && closing(now, dead))
				a32_cas(refs, now, ours);
			if (i && a32_relaxed(refs) == ours)
				orphan_found(app, (uint32_t)i);
		}
	}
}

static void sweep_words(struct neat_app *app, neat_a64 *word, neat_a64 *end, bool cloexec)
{
	for (; word < end; word++) {
		uint64_t w = a64_relaxed(word);

		if (!w || (cloexec && !(w >> 48 & (NEAT_FD_CLOEXEC | NEAT_FD_INTERNAL))))
			continue;
		w = a64_xchg(word, 0);
		drop_word(app, w);
	}
}

static void sweep_row(struct neat_app *app, uint32_t process, bool cloexec)
{
	off_t at = NEAT_APP_FDS + (off_t)process * NEAT_FDS_MAX * 8, end = at + NEAT_FDS_MAX * 8, stop;

	for (; (stop = next_data(&at, end)) != 0; at = stop)
		sweep_words(app, (neat_a64 *)((uint8_t *)app + at), (neat_a64 *)((uint8_t *)app + stop), cloexec);
}

/* True: nobody else sweeps this entry. Abandoned half-way by somebody who died: again. */
static bool take_entry(struct neat_proc *p, uint32_t pid)
{
	uint32_t state = a32_relaxed(&p->state);

	if (state == NEAT_PROC_FREE || a32_relaxed(&p->pid) != pid || !a32_cas(&p->state, state, NEAT_PROC_SWEPT))
		return false;
	if (a32_relaxed(&p->pid) == pid) {
		a32_store(&p->pid, (uint32_t)getpid());
		return true;
	}
	a32_cas(&p->state, NEAT_PROC_SWEPT, state);	/* it was freed and claimed between the two looks */
	return false;
}

static void close_channel(int fd, uint32_t process)
{
	size_t head = offsetof(struct neat_channels, ch);
	struct neat_channels *c = mmap(NULL, head, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (c == MAP_FAILED)
		exit(2);
	a32_release(&c->open[process], neat_channel_closed(a32_relaxed(&c->open[process])));
	a64_add(&c->change, 1);
}

/* "PROCESS:PID[,...]"; anything else takes no more. */
static void take_entries(struct neat_app *app, const char *list, struct taken *dead)
{
	for (char *end; *list; list = *end == ',' ? end + 1 : "") {
		unsigned long process = strtoul(list, &end, 10), pid;

		if (*end != ':')
			return;
		pid = strtoul(end + 1, &end, 10);
		if (process < NEAT_PROCS_MAX && take_entry(&app->procs[process], (uint32_t)pid))
			dead->is[process] = true;
	}
}

static void sweep(struct neat_app *app, const struct taken *dead, int nchannels, char **channels)
{
	for (uint32_t i = 0; i < NEAT_PROCS_MAX; i++) {
		if (!dead->is[i])
			continue;
		for (int n = 0; n < nchannels; n++)
			close_channel(atoi(channels[n]), i);
		sweep_row(app, i, false);
	}
	find_orphans(app, dead);
	for (uint32_t i = 0; i < NEAT_PROCS_MAX; i++) {
		if (!dead->is[i])
			continue;
		a32_store(&app->procs[i].fd_high, 0);
		a32_store(&app->procs[i].pid, 0);	/* who claims it is not taken for its dead predecessor */
		a32_cas(&app->procs[i].state, NEAT_PROC_SWEPT, NEAT_PROC_FREE);
	}
}

int sweep_main(int argc, char **argv)
{
	unsigned long process = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
	struct taken dead = { 0 };
	struct neat_app *app;
	struct stat st;

	if (fstat(STDIN_FILENO, &st) || st.st_size != NEAT_APP_SIZE)
		return 2;
	app = mmap(NULL, NEAT_APP_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, STDIN_FILENO, 0);
	if (app == MAP_FAILED)
		return 2;
	if (!strcmp(argv[1], "--orphans")) {
		find_orphans(app, &dead);
	} else if (argc < 3) {
		return 2;
	} else if (!strcmp(argv[1], "--cloexec")) {
		if (process >= NEAT_PROCS_MAX)
			return 2;
		sweep_row(app, (uint32_t)process, true);
		find_orphans(app, &dead);
	} else {
		take_entries(app, argv[2], &dead);
		sweep(app, &dead, argc - 3, argv + 3);
	}
	return fflush(stdout) ? 1 : 0;
}
