/*
 * main_queue.c - the queue pair as the process sees it: attached, announced, slept on. Frames are
 * nicq.c's. A component of a replica has replicas/components/tcp_queue.c in place of both.
 */
#include "main.h"

const char replica_program[] = "neat-replica";

bool nicq_keeps(const struct replica *r)
{
	(void)r;
	return false;
}

void nicq_announce(struct replica *r)
{
	if (r->queue)
		a32_release(&r->queue->announced, r->cfg.epoch);
}

void nicq_attach(struct replica *r, struct message *msg)
{
	struct neat_queue_pair *q;

	if (msg->u.h.type != NEAT_MSG_R_QUEUE || msg->nfds < 1)
		replica_die("a replica that is one process has one queue pair, towards the nic");
	q = map_written(msg->fds[0], NEAT_OBJ_QUEUE_PAIR, NEAT_QP_SIZE,
			(struct owner){ r->cfg.index, r->cfg.epoch, r->instance });
	r->queue = q;
	r->nic_rx_head = neat_frames_resume(NEAT_QP_ENTRIES, &q->rx);
	if (msg->nfds > 1) {
		r->nic_eventfd = msg->fds[1];
		msg->fds[1] = -1;
	}
	r->cfg.mtu = (uint16_t)q->mtu;
	r->cfg.addr = q->addr;
	r->cfg.prefix = q->prefix;
	r->cfg.gateway = q->gateway;
	memcpy(r->cfg.mac, q->mac, sizeof(r->cfg.mac));
	memcpy(r->cfg.rss_key, q->rss_key, sizeof(r->cfg.rss_key));
	r->cfg.reta = q->reta;
	if (r->have_stack)
		r->stack.cfg = r->cfg;
	if (r->phase == REPLICA_LIVE)
		nicq_announce(r);
}

/* ---- waiting ---- */

void nicq_arm(struct replica *r, uint32_t asleep)
{
	if (r->queue)
		a32_store(&r->queue->rx.asleep, asleep);
}

void nicq_sleep_on(struct replica *r, struct sleep_set *set)
{
	if (r->queue)
		sleep_add(set, &r->queue->rx.asleep, NEAT_ASLEEP_FUTEX);
}

void nicq_wake(struct replica *r)
{
	if (!r->nic_touched)
		return;
	r->nic_touched = false;
	wake_sleeper(&r->queue->tx.asleep, r->nic_eventfd);
}
