/* scenarios.h - all scenarios, one line each; the files scenario_*.c define them. */
#ifndef CRASH_SCENARIOS_H
#define CRASH_SCENARIOS_H

#include "machine.h"

#define SCENARIOS(X) \
	X(inbound) X(outbound) X(local) X(greeting) X(drawn_again) X(taken) \
	X(echo_in) X(echo_out) X(both_in) X(both_out) X(both_local) X(lossy) X(reordered) X(lost_handshake) \
	X(window_ours) X(window_theirs) X(window_asked) X(window_local) X(options) X(growth) \
	X(active_close) X(passive_close) X(both_close) X(local_close) X(lost_fin) X(unread) X(linger0) \
	X(disconnect) X(reset) X(reset_local) X(refused) X(orphan) X(orphan_local) X(simultaneous) X(reuse) \
	X(full_queue) X(deferred) X(unlisten) X(many) \
	X(udp_in) X(udp_out) X(udp_local) X(udp_first) X(udp_bind) X(udp_connected) X(udp_full) X(udp_room) X(udp_nic) \
	X(udp_end) X(udp_refused) X(udp_unreachable)

/* In scenario_*.c, behind the function of that name; further members of struct scenario may follow. */
#define SCENARIO(id, ...) const struct scenario scenario_##id = { .name = #id, .setup = id, __VA_ARGS__ };

#define X(name) extern const struct scenario scenario_##name;
SCENARIOS(X)
#undef X

#endif
