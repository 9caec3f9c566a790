/* options.c - the command line of neat-keeper. Everything that is not ours is neatd's to understand. */
#define _GNU_SOURCE
#include "keeper.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Noreturn void usage(void)
{
	fputs("usage: neat-keeper --dir DIR --name NAME --replica-bin P --nic-bin P --python P [options of neatd]\n"
	      "neat-keeper is started by `neatsock up` and `neatsock run`.\n",
	      stderr);
	exit(2);
}

static const char **text_option(struct keeper_options *o, const char *arg)
{
	if (!strcmp(arg, "--dir"))
		return &o->dir;
	if (!strcmp(arg, "--name"))
		return &o->name;
	if (!strcmp(arg, "--replica-bin"))
		return &o->replica_bin;
	if (!strcmp(arg, "--components"))
		return &o->components;
	if (!strcmp(arg, "--nic-bin"))
		return &o->nic_bin;
	if (!strcmp(arg, "--python"))
		return &o->python;
	return NULL;
}

static uint32_t *number_option(struct keeper_options *o, const char *arg, uint32_t *most)
{
	*most = INT32_MAX;
	if (!strcmp(arg, "--fault-window-ms"))
		return &o->fault_window_ms;
	if (!strcmp(arg, "--hang-ms"))
		return &o->hang_ms;
	if (!strcmp(arg, "--stopped-ms"))
		return &o->stopped_ms;
	if (!strcmp(arg, "--quarantine-ms"))
		return &o->quarantine_ms;
	if (!strcmp(arg, "--rerandomize"))
		return &o->rerandomize_s;
	*most = FAULTS_KEPT;
	if (!strcmp(arg, "--faults"))
		return &o->faults_max;
	return NULL;
}

static uint32_t number(const char *text, uint32_t most)
{
	char *end;
	unsigned long v = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || v > most)
		usage();
	return (uint32_t)v;
}

void parse(struct keeper_options *o, int argc, char **argv)
{
	static char unbuffered[] = "-u", module[] = "-m", neatd[] = "neatsock.replicas.neatd";
	uint32_t n = 0;

	o->faults_max = 5;
	o->fault_window_ms = 10000;
	o->hang_ms = 500;
	o->stopped_ms = 1000;
	o->quarantine_ms = 60000;
	o->neatd_args[n++] = NULL;	/* the interpreter, below */
	o->neatd_args[n++] = unbuffered;
	o->neatd_args[n++] = module;
	o->neatd_args[n++] = neatd;
	for (int i = 1; i < argc; i++) {
		uint32_t most, *value = number_option(o, argv[i], &most);
		const char **own = text_option(o, argv[i]);
		bool shared = own == &o->dir || own == &o->name || own == &o->components;

		if (n + 3 > ARGS_MAX || ((own || value) && i + 1 == argc))
			usage();
		if (shared || !own)
			o->neatd_args[n++] = argv[i];	/* our numbers, too: neatd shows them */
		if (value)
			*value = number(argv[++i], most);
		if (own)
			*own = argv[++i];
		if (shared || value)
			o->neatd_args[n++] = argv[i];
	}
	o->neatd_args[0] = (char *)(uintptr_t)o->python;
	if (!o->dir || !o->name || !o->replica_bin || !o->nic_bin || !o->python || !o->faults_max)
		usage();
}
