/*
 * sweep.c - `neat-keeper --sweep PROCESS PID CHANNELS_FD...`: takes a dead process's descriptors out of
 * its application's shared tables, closes its channels and frees its entry, unless somebody else did.
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

/* Records that the dead process (NEAT_REFS_NEATD: nobody) was closing, or an earlier sweep left to neatd. */
static void find_orphans(struct neat_app *app, uint32_t closer)
{
	const uint32_t ours = neat_refs_closing(NEAT_REFS_NEATD), its = neat_refs_closing(closer);
	const off_t begin = offsetof(struct neat_app, socks), size = sizeof(struct neat_sock);
	off_t at = begin, end = begin + NEAT_SOCKS_MAX * size, stop;

	for (; (stop = next_data(&at, end)) != 0; at = stop) {
		for (off_t i = (at - begin) / size; begin + i * size < stop; i++) {
			neat_a32 *refs = &app->socks[i].refs;

			if (a32_relaxed(refs) == its)
				a32_cas(refs, its, ours);
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

int sweep_main(int argc, char **argv)
{
	bool orphans = !strcmp(argv[1], "--orphans");
	unsigned long process = argc > 2 ? strtoul(argv[2], NULL, 10) : orphans ? 0 : NEAT_PROCS_MAX;
	bool cloexec = !strcmp(argv[1], "--cloexec");
	struct neat_app *app;
	struct neat_proc *p;
	struct stat st;

	if (process >= NEAT_PROCS_MAX || fstat(STDIN_FILENO, &st) || st.st_size != NEAT_APP_SIZE)
		return 2;
	app = mmap(NULL, NEAT_APP_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, STDIN_FILENO, 0);
	if (app == MAP_FAILED)
		return 2;
	if (cloexec || orphans) {
		if (cloexec)
			sweep_row(app, (uint32_t)process, true);
		find_orphans(app, NEAT_REFS_NEATD);
		return fflush(stdout) ? 1 : 0;
	}
	p = &app->procs[process];
	if (argc < 4 || !take_entry(p, (uint32_t)strtoul(argv[3], NULL, 10)))
		return 0;
	for (int i = 4; i < argc; i++)
		close_channel(atoi(argv[i]), (uint32_t)process);
	sweep_row(app, (uint32_t)process, false);
	find_orphans(app, (uint32_t)process);
	a32_store(&p->fd_high, 0);
	a32_cas(&p->state, NEAT_PROC_SWEPT, NEAT_PROC_FREE);
	return fflush(stdout) ? 1 : 0;
}
