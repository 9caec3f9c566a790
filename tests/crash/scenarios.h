/* scenarios.h - all scenarios, one line each; the files scenario_*.c define them. */
#ifndef CRASH_SCENARIOS_H
#define CRASH_SCENARIOS_H

#include "machine.h"

#define SCENARIOS(X) X(inbound) X(outbound) X(local)

#define X(name) extern const struct scenario scenario_##name;
SCENARIOS(X)
#undef X

#endif
