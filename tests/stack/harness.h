/* harness.h - what tests may ask of the in-process host (harness.c). */
#ifndef NEAT_TEST_HARNESS_H
#define NEAT_TEST_HARNESS_H

#include <stdint.h>

struct host;

struct host_config {
	uint32_t addr, prefix, gateway, mtu, lo_mtu, rcvbuf, sndbuf, connections, backlog, time_wait_ms;
	uint32_t app_sockets;
	uint64_t seed, now_us, app_buffers;
};

struct host_info {
	uint32_t state, flags, err, cwnd, ssthresh, mss, srtt_us, rto_us, recovery, rcvbuf, sndbuf;
	uint64_t snd_una, snd_nxt, snd_max, rcv_nxt, rcv_adv, tx_una, rx_head;
	uint64_t segments_in, segments_out, retransmits, rto, tlp, fast_retransmits, resets_in, resets_out;
	uint32_t iss, irs, notified, half_open;
	uint32_t laddr, lport, raddr, rport;
	uint32_t pushed_limit, pushed_state;	/* what accept() found in the connection that was pushed last */
};

#define API __attribute__((visibility("default")))
API struct host *host_new(const struct host_config *c);
API void host_free(struct host *h);
API void host_time(struct host *h, uint64_t now_us);
API uint64_t host_now(struct host *h);
API uint64_t host_deadline(struct host *h);
API void host_drain(struct host *h);
API void host_block_tx(struct host *h, int on);
API void host_room_tx(struct host *h, uint32_t frames);
API void host_learn(struct host *h, uint32_t addr);
API void host_in(struct host *h, const uint8_t *ip, uint32_t len);
API void host_return(struct host *h, const uint8_t *ip, uint32_t len);
API int host_ask(struct host *h, const uint8_t *ip, uint32_t len);
API int host_out(struct host *h, uint8_t *buf, uint32_t cap);
/* A successor: half-open connections that went on. */
API int host_reborn(struct host *h, uint32_t death);
API int host_listen(struct host *h, uint32_t addr, uint16_t port, uint32_t backlog, const uint32_t *opts);
API void host_unlisten(struct host *h, uint32_t slot);
API int host_connect(struct host *h, uint32_t laddr, uint16_t lport, uint32_t raddr, uint16_t rport,
		     const uint32_t *opts);
API int host_accept(struct host *h, uint32_t lslot);
/* Sockets elsewhere are bound to all ports but these, or first 0: to none. How often the stack asked so far. */
API uint32_t host_ports(struct host *h, uint16_t first, uint16_t last);
API uint32_t host_write(struct host *h, uint32_t slot, const uint8_t *data, uint32_t len);
API uint32_t host_read(struct host *h, uint32_t slot, uint8_t *data, uint32_t cap);
API uint32_t host_readable(struct host *h, uint32_t slot);
API uint32_t host_room(struct host *h, uint32_t slot);
API void host_shutdown(struct host *h, uint32_t slot, uint32_t how);
API void host_close(struct host *h, uint32_t slot);
API void host_abort(struct host *h, uint32_t slot);
API void host_option(struct host *h, uint32_t slot, uint32_t index, uint32_t value);
API void host_info(struct host *h, uint32_t slot, struct host_info *out);
API int host_filter(struct host *h, const uint8_t *rules, uint32_t n);
API uint64_t host_filter_packets(struct host *h, uint32_t rule);
API uint64_t host_filter_bytes(struct host *h, uint32_t rule);
API uint64_t host_drops(struct host *h, uint32_t which);
API const char *host_drop_name(uint32_t which);
API uint32_t host_blocks(struct host *h, uint32_t *states, uint32_t cap);
API uint32_t host_time_waits(struct host *h);
API void host_flip(struct host *h, uint32_t slot, uint32_t bit);
API void host_accept_fail(struct host *h, uint32_t count);
API void host_icmp(struct host *h, uint32_t laddr, uint16_t lport, uint32_t raddr, uint16_t rport,
		   uint32_t seq, uint8_t type, uint8_t code, uint32_t mtu);
API int host_udp_open(struct host *h, uint32_t addr, uint16_t port, const uint32_t *opts);
API void host_udp_relength(struct host *h, uint32_t slot, uint32_t len);
API void host_udp_send(struct host *h, uint32_t slot, uint32_t addr, uint16_t port, const uint8_t *data, uint32_t len);
API void host_udp_write(struct host *h, uint32_t slot, const uint8_t *data, uint32_t len);
API int host_udp_recv(struct host *h, uint32_t slot, uint8_t *data, uint32_t cap, uint32_t *addr, uint16_t *port);
API void host_udp_peer(struct host *h, uint32_t slot, uint32_t addr, uint16_t port);
API void host_udp_rx_tail(struct host *h, uint32_t slot, uint64_t value);
API void host_udp_close(struct host *h, uint32_t slot);
API void host_udp_reborn(struct host *h);
API uint32_t host_isn(struct host *h, uint32_t laddr, uint16_t lport, uint32_t raddr, uint16_t rport);

#endif
