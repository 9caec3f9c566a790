/* steer.c - see steer.h; Toeplitz itself is in abi/toeplitz.h. */
#include "steer.h"
#include <string.h>

/* How much bucket b likes replica r (rendezvous hashing, Thaler and Ravishankar 1998): splitmix64. */
static uint64_t affinity(uint32_t b, uint32_t r)
{
	uint64_t z = ((uint64_t)b * NEAT_REPLICAS_MAX + r + 1) * 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* Each bucket takes the replica it likes best among those that are not full yet: even to one bucket. */
void steer_reta(uint8_t reta[RSS_RETA], uint32_t active)
{
	uint32_t n = (uint32_t)__builtin_popcount(active), taken[NEAT_REPLICAS_MAX] = { 0 };
	uint32_t floor = n ? RSS_RETA / n : 0, extra = n ? RSS_RETA % n : 0;

	memset(reta, 0, RSS_RETA);
	for (uint32_t b = 0; b < RSS_RETA && n; b++) {
		uint64_t best = 0;
		uint32_t choice = NEAT_REPLICAS_MAX;

		for (uint32_t r = 0; r < NEAT_REPLICAS_MAX; r++) {
			if (!(active >> r & 1) || taken[r] > floor || (taken[r] == floor && !extra))
				continue;
			if (choice == NEAT_REPLICAS_MAX || affinity(b, r) > best) {
				best = affinity(b, r);
				choice = r;
			}
		}
		extra -= taken[choice] == floor;
		taken[choice]++;
		reta[b] = (uint8_t)choice;
	}
}

void steer_active(struct steer *s, uint32_t active)
{
	s->active = active & ((1u << NEAT_REPLICAS_MAX) - 1);
	steer_reta(s->reta, s->active);
}

void steer_init(struct steer *s, const uint8_t key[RSS_KEY], const uint8_t mac[6], uint32_t addr)
{
	rss_table_init(&s->rss, key);
	memcpy(s->mac, mac, 6);
	s->addr = addr;
	memset(s->udp_home, NEAT_PORT_NO_HOME, sizeof(s->udp_home));
}

uint32_t steer_hash(const struct steer *s, const struct frame *f)
{
	if (f->kind == FRAME_PAIR)
		return rss_hash_pair(&s->rss, f->t.raddr, f->t.laddr);
	return rss_hash(&s->rss, f->t.raddr, f->t.laddr, f->t.rport, f->t.lport);
}

static bool to_us(const struct steer *s, const uint8_t dst[6])
{
	return dst[0] & 1 || memcmp(dst, s->mac, 6) == 0;
}

bool steer_ours(const struct steer *s, const uint8_t *bytes, const struct frame *f)
{
	return s->addr && f->laddr == s->addr && to_us(s, bytes);
}

static uint8_t steer_ip(struct steer *s, const struct frame *f, uint64_t now_us)
{
	uint8_t hashed = s->reta[steer_hash(s, f) & (RSS_RETA - 1)], owner = FLOW_NONE;

	if (f->kind == FRAME_TCP)
		return flows_rx(s->flows, f, hashed, s->active, now_us);
	if (f->kind == FRAME_UDP || (f->kind == FRAME_ICMP_ERROR && f->proto == 17))
		owner = s->udp_home[f->t.lport];
	if (f->kind == FRAME_ICMP_ERROR && f->proto == 6)
		owner = flows_owner(s->flows, &f->t);
	return owner == FLOW_NONE ? hashed : owner;
}

struct steer_to steer_rx(struct steer *s, const uint8_t *bytes, const struct frame *f, uint32_t queues,
			 uint32_t ready, uint64_t now_us)
{
	uint32_t mask;

	if (f->kind == FRAME_BAD)
		return (struct steer_to){ 0, NEAT_NIC_RX_MALFORMED };
	if (!s->addr || f->kind == FRAME_OTHER || !to_us(s, bytes))
		return (struct steer_to){ 0, NEAT_NIC_RX_NOT_OURS };
	if (f->kind == FRAME_ARP)
		return arp_rx(s, f, queues, ready);
	/* No queue, nobody to track for. Neither broadcast nor multicast: nothing in a replica listens to them. */
	if (!queues)
		return (struct steer_to){ 0, NEAT_NIC_RX_FULL };
	if (f->laddr != s->addr || !s->active)
		return (struct steer_to){ 0, NEAT_NIC_RX_NOT_OURS };
	mask = 1u << steer_ip(s, f, now_us) & queues;
	return (struct steer_to){ mask, NEAT_NIC_RX_FULL };
}

/* A broken replica must not speak for others on the wire, nor teach filters about their addresses. */
enum steer_sent steer_tx(struct steer *s, const uint8_t *bytes, const struct frame *f, uint32_t replica,
			 uint64_t now_us)
{
	if (f->kind == FRAME_BAD || memcmp(bytes + 6, s->mac, 6) != 0)
		return STEER_DENIED;
	if (f->kind == FRAME_ARP)
		return arp_tx(s, bytes, f) ? STEER_SEND : STEER_DENIED;
	if (f->kind == FRAME_OTHER || f->laddr != s->addr)
		return STEER_DENIED;
	if (f->kind == FRAME_TCP && !flows_tx(s->flows, f, (uint8_t)replica, now_us))
		return STEER_RETURN;
	/* N_PORT may still be on its way: to the wire a socket sends from its home, and its answer comes back. */
	if (f->kind == FRAME_UDP && s->udp_home[f->t.lport] == NEAT_PORT_NO_HOME)
		s->udp_home[f->t.lport] = (uint8_t)replica;
	return STEER_SEND;
}
