/*
 * order.c - does the object code store in the order that crash.c assumes? (docs/rules.md T2)
 *
 *   order words SCENARIO              offsets of all words that the replica stores atomically
 *   order changes SCENARIO < words    each change of them: "word value", a line; a blank line where others can look
 *   order steps SCENARIO < words      the same, others look after each instruction
 *
 * Linked twice: with the instrumented stack, where "others can look" between two stores of the
 * sources, and with the stack compiled as it is shipped, single-stepped, where it is after each
 * instruction. A compiler that moved or merged stores across one another shows another sequence.
 */
#define _GNU_SOURCE
#include "scenarios.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

enum { WORDS_MAX = 4096, CHANGES_MAX = 1 << 20, SINGLE_STEP = 0x100 };

static struct { uint64_t at[WORDS_MAX], value[WORDS_MAX]; uint32_t n; } words;
static struct { uint32_t word; uint64_t value; } changes[CHANGES_MAX];	/* word 0: a look */
static uint32_t nchanges;
static struct machine *machine;
static bool stepping;

const struct scenario *const scenarios[] = {
#define X(name) &scenario_##name,
	SCENARIOS(X)
#undef X
	NULL,
};

static uint64_t *word_at(uint32_t i) { return (uint64_t *)(void *)(machine->base + words.at[i]); }

/* What changed since the last look; called by a signal handler too. */
static void look(void)
{
	uint32_t before = nchanges;

	for (uint32_t i = 0; i < words.n; i++) {
		uint64_t now = *word_at(i);

		if (now == words.value[i])
			continue;
		if (nchanges + 2 >= CHANGES_MAX)
			abort();
		words.value[i] = now;
		changes[nchanges].word = i + 1;
		changes[nchanges++].value = now;
	}
	if (nchanges != before)
		changes[nchanges++].word = 0;
}

static void on_store(void *ctx, const struct point *p)
{
	(void)ctx;
	(void)p;
	look();
}

static void on_atomic(void *ctx, const struct point *p)
{
	uint64_t at = (p->addr - (uintptr_t)machine->base) & ~7ull;
	uint32_t i = 0;

	(void)ctx;
	if (!stores.atomic)
		return;
	while (i < words.n && words.at[i] != at)
		i++;
	if (i == WORDS_MAX)
		abort();
	if (i == words.n)
		words.at[words.n++] = at;
}

static void on_step(int sig)
{
	(void)sig;
	look();
}

static void step(bool on)
{
	uint64_t flags;

	__asm__ volatile("pushfq\n\tpop %0" : "=r"(flags) : : "memory");
	flags = on ? flags | SINGLE_STEP : flags & ~(uint64_t)SINGLE_STEP;
	__asm__ volatile("push %0\n\tpopfq" : : "r"(flags) : "memory", "cc");
}

/* What others stored meanwhile is not the replica's. */
static void begins(void)
{
	for (uint32_t i = 0; i < words.n; i++)
		words.value[i] = *word_at(i);
	/* The first start has millions of instructions and nothing to lose. */
	if (stepping && machine->was_ready)
		step(true);
}

static void ends(void)
{
	if (stepping)
		step(false);
	look();
}

static void read_words(void)
{
	unsigned long at;

	while (words.n < WORDS_MAX && scanf("%lu", &at) == 1)
		words.at[words.n++] = at;
}

static void print_changes(void)
{
	for (uint32_t i = 0; i < nchanges; i++) {
		if (!changes[i].word) {
			printf("\n");
			continue;
		}
		char name[80];

		machine_name(machine, (uintptr_t)word_at(changes[i].word - 1), name, sizeof(name));
		printf("%s@%lu %lu\n", name, words.at[changes[i].word - 1], changes[i].value);
	}
}

int main(int argc, char **argv)
{
	const struct scenario *const *sc = scenarios;
	bool collect = argc == 3 && !strcmp(argv[1], "words");
	struct sigaction sa = { .sa_handler = on_step };

	while (argc == 3 && *sc && strcmp((*sc)->name, argv[2]))
		sc++;
	if (argc != 3 || !*sc) {
		fprintf(stderr, "usage: order words|changes|steps SCENARIO\n");
		return 2;
	}
	stepping = !strcmp(argv[1], "steps");
	if (!collect)
		read_words();
	sigaction(SIGTRAP, &sa, NULL);
	stores.hook = collect ? on_atomic : on_store;
	if (!collect) {
		stores.begins = begins;
		stores.ends = ends;
	}
	machine = machine_new(*sc, false);
	machine_run(machine);
	if (machine->failure[0]) {
		fprintf(stderr, "%s: %s\n", (*sc)->name, machine->failure);
		return 1;
	}
	for (uint32_t i = 0; collect && i < words.n; i++)
		printf("%lu\n", words.at[i]);
	print_changes();
	return 0;
}
