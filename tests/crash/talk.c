/* talk.c - see talk.h. */
#include "talk.h"
#include <errno.h>

/* Variables of the script. */
enum { U_SHUT, U_EOF, U_ERR, U_CHANGED };

static bool received(const struct actor *a, const struct talk *t)
{
	return a->u[U_EOF] || a->u[U_ERR] || (t->recv != FOREVER && !t->wait_eof && a->end[0].rx >= t->recv);
}

static bool sent(const struct actor *a, const struct talk *t)
{
	return a->u[U_ERR] || a->end[0].tx >= t->send;
}

static void do_send(struct actor *a, const struct talk *t)
{
	int n = 1;

	while (n > 0 && !sent(a, t)) {
		uint64_t left = t->send - a->end[0].tx;

		n = end_send(&a->end[0], t->chunk && t->chunk < left ? t->chunk : left);
		if (n < 0)
			a->u[U_ERR] = (uint64_t)-n;
	}
	if (sent(a, t) && t->shut_wr && !a->u[U_SHUT] && !a->u[U_ERR]) {
		a->u[U_SHUT] = 1;
		end_shutdown(&a->end[0], 2);
	}
}

static void do_recv(struct actor *a, const struct talk *t)
{
	int n = 1;

	while (n > 0 && !received(a, t)) {
		uint64_t left = t->recv == FOREVER || t->wait_eof ? FOREVER : t->recv - a->end[0].rx;

		n = end_recv(&a->end[0], t->read_max && t->read_max < left ? t->read_max : left);
		if (n == -END_OF_FILE)
			a->u[U_EOF] = 1;
		else if (n < 0)
			a->u[U_ERR] = (uint64_t)-n;
	}
}

static bool pump(struct actor *a, const struct talk *t)
{
	uint64_t now = a->m->now_us - a->m->start_us;

	if (t->change.set && !a->u[U_CHANGED] && now >= t->change.at_us) {
		a->u[U_CHANGED] = 1;
		end_option(&a->end[0], t->change.opt, t->change.value);
	}
	do_send(a, t);
	if (now >= t->read_from_us && !(t->shut_first && !a->u[U_SHUT]))
		do_recv(a, t);
	a->wake_us = 0;
	if (now < t->read_from_us)
		a->wake_us = a->m->start_us + t->read_from_us;
	if (t->change.set && !a->u[U_CHANGED])
		a->wake_us = a->m->start_us + t->change.at_us;
	return sent(a, t) && received(a, t);
}

static void finish(struct actor *a, const struct talk *t)
{
	struct end *e = &a->end[0];

	a->wake_us = 0;
	if (!t->quiet)
		actor_log(a, "sent %lu received %lu%s error %lu", e->tx, e->rx, a->u[U_EOF] ? " EOF" : "", a->u[U_ERR]);
	switch (t->how) {
	case TALK_ABORT:
		end_abort(e);
		return;
	case TALK_LINGER0:
		end_option(e, NEAT_OPT_FLAGS, NEAT_OPTF_LINGER);
		break;
	case TALK_CLOSE:
		break;
	}
	end_close(e);
}

void talk(struct actor *a)
{
	const struct talk *t = a->arg;
	struct end *e = &a->end[0];

	BEGIN(a);
	if (t->start_us)
		SLEEP_UNTIL(a, a->m->start_us + t->start_us);
	if (t->active) {
		end_connect(e, t->addr, t->port, t->lport, t->opts);
		if (t->crossed)		/* two callers: the lower port is the "client" */
			e->stream = u32_min(t->port, t->lport) * 2 + (t->lport > t->port);
		WAIT(a, end_flags(e) & (END_CONNECTED | END_OVER));
		if (!t->lport)		/* what getsockname() says is what the peer sees */
			e->stream = e->proc->pub->slots[e->slot].lport * 2u;
	} else {
		WAIT(a, end_accept(e, &a->m->listening[t->listening]));
	}
	WAIT(a, pump(a, t));
	if (t->pause_us)
		SLEEP_UNTIL(a, a->m->now_us + t->pause_us);
	finish(a, t);
	END(a);
}

void talk_pair(struct machine *m, int server, int client, const struct talk *s, const struct talk *c)
{
	struct proc *sp = server < 0 ? NULL : machine_proc(m, (uint32_t)server);
	struct proc *cp = client < 0 ? NULL : machine_proc(m, (uint32_t)client);

	machine_listen(m, sp, PORT, 8, NULL);
	machine_actor(m, sp, "server", talk, s);
	machine_actor(m, cp, "client", talk, c);
}
