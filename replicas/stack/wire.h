/*
 * wire.h - every on-wire format and protocol constant of the stack, with its RFC.
 *
 * Fields are big-endian one-member structs (neat_be16, neat_be32): host arithmetic on them does
 * not compile. All structs are made of bytes and such fields, so they may lie at any address.
 */
#ifndef NEAT_WIRE_H
#define NEAT_WIRE_H

#include "ring.h"

#define WIRE __attribute__((packed, aligned(1)))

/* Ethernet II (RFC 894) */
enum { ETH_ALEN_ = 6, ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_ARP = 0x0806 };
struct wire_eth {
	uint8_t dst[ETH_ALEN_];
	uint8_t src[ETH_ALEN_];
	neat_be16 type;
} WIRE;

/* ARP for IPv4 over Ethernet (RFC 826) */
enum { ARP_HTYPE_ETHERNET = 1, ARP_REQUEST = 1, ARP_REPLY = 2 };
struct wire_arp {
	neat_be16 htype, ptype;
	uint8_t hlen, plen;
	neat_be16 op;
	uint8_t sha[ETH_ALEN_];
	neat_be32 spa;
	uint8_t tha[ETH_ALEN_];
	neat_be32 tpa;
} WIRE;

/* IPv4 (RFC 791) */
enum {
	IP_PROTO_ICMP = 1,
	IP_PROTO_TCP = 6,
	IP_PROTO_UDP = 17,
	IP_DF = 0x4000,
	IP_MF = 0x2000,
	IP_OFFSET_MASK = 0x1fff,	/* in units of 8 bytes */
	IP_TTL_DEFAULT = 64,		/* RFC 1700 */
	IP_OPT_LSRR = 131, IP_OPT_SSRR = 137,
};
struct wire_ip {
	uint8_t ver_ihl;
	uint8_t tos;
	neat_be16 total_len;
	neat_be16 id;
	neat_be16 frag;		/* flags and offset */
	uint8_t ttl;
	uint8_t proto;
	neat_be16 csum;
	neat_be32 saddr;
	neat_be32 daddr;
} WIRE;

/* ICMP (RFC 792, RFC 1191) */
enum {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER = 12,
	ICMP_UNREACH_NET = 0, ICMP_UNREACH_HOST = 1, ICMP_UNREACH_PROTO = 2, ICMP_UNREACH_PORT = 3,
	ICMP_UNREACH_FRAG = 4,	/* next-hop MTU in the low half of `rest` */
};
struct wire_icmp {
	uint8_t type, code;
	neat_be16 csum;
	neat_be32 rest;
} WIRE;

/* UDP (RFC 768) */
struct wire_udp {
	neat_be16 sport, dport;
	neat_be16 len;
	neat_be16 csum;		/* 0 = none; a sum of 0 is sent as 0xffff */
} WIRE;

/* TCP (RFC 9293 3.1) */
enum {
	TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_PSH = 0x08,
	TCP_ACK = 0x10, TCP_URG = 0x20, TCP_ECE = 0x40, TCP_CWR = 0x80,
};
enum {	/* option kinds and their lengths */
	TCP_KIND_END = 0,
	TCP_KIND_NOP = 1,
	TCP_KIND_MSS = 2, TCP_LEN_MSS = 4,		/* RFC 9293 3.7.1 */
	TCP_KIND_WSCALE = 3, TCP_LEN_WSCALE = 3,	/* RFC 7323 2 */
	TCP_KIND_SACK_OK = 4, TCP_LEN_SACK_OK = 2,	/* RFC 2018 2 */
	TCP_KIND_SACK = 5,				/* 2 + 8n */
	TCP_KIND_TS = 8, TCP_LEN_TS = 10,		/* RFC 7323 3 */
	TCP_WSCALE_MAX = 14,				/* RFC 7323 2.3 */
};
struct wire_tcp {
	neat_be16 sport, dport;
	neat_be32 seq, ack;
	uint8_t offset;		/* header length in words, in the high nibble */
	uint8_t flags;
	neat_be16 window;
	neat_be16 csum;
	neat_be16 urgent;
} WIRE;

static_assert(sizeof(struct wire_eth) == 14, "ethernet");
static_assert(sizeof(struct wire_arp) == 28, "arp");
static_assert(sizeof(struct wire_ip) == 20, "ipv4");
static_assert(sizeof(struct wire_icmp) == 8, "icmp");
static_assert(sizeof(struct wire_udp) == 8, "udp");
static_assert(sizeof(struct wire_tcp) == 20, "tcp");

#endif
