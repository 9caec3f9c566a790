/* segments.h - the shared memory of this program's sockets: of each replica the half that programs write. */
#pragma once
#include "neat_abi.h"
#include <stdio.h>
#include <string.h>

/* How many were found, `most` at most; none: the sockets are the kernel's. */
static int find_segments(struct neat_seg_app **found, int most)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long begin, end;
	char line[512];
	int n = 0;

	while (maps && n < most && fgets(line, sizeof(line), maps))
		if (strstr(line, "memfd:neat") && sscanf(line, "%lx-%lx", &begin, &end) == 2 &&
		    end - begin == NEAT_SEG_APP_SIZE)
			found[n++] = (struct neat_seg_app *)begin;
	if (maps)
		fclose(maps);
	return n;
}
