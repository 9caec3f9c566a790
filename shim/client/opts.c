/*
 * opts.c - getsockopt, setsockopt, fcntl and ioctl (socket(7), tcp(7), ip(7), fcntl(2), ioctl_*).
 *
 * Options live in the record; while a connection exists they are copied to its slot and the replica
 * is told. What is not in the tables below is refused with the errno Linux has for an unknown
 * option: never accepted and ignored.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/time.h>

/* One integer option: where its value lives and what Linux accepts. */
struct int_option {
	int level, name;
	enum neat_opt word;
	uint32_t flag;		/* bit of NEAT_OPT_FLAGS instead of a word */
	int min, max;
	int dflt;		/* what Linux reports while the word is 0 */
};

static const struct int_option OPTIONS[] = {
	{ SOL_SOCKET, SO_KEEPALIVE, NEAT_OPT_FLAGS, NEAT_OPTF_KEEPALIVE, 0, 0, 0 },
	{ SOL_SOCKET, SO_OOBINLINE, NEAT_OPT_FLAGS, NEAT_OPTF_OOBINLINE, 0, 0, 0 },
	{ SOL_SOCKET, SO_BROADCAST, NEAT_OPT_FLAGS, NEAT_OPTF_BROADCAST, 0, 0, 0 },
	{ SOL_SOCKET, SO_DONTROUTE, NEAT_OPT_FLAGS, NEAT_OPTF_DONTROUTE, 0, 0, 0 },
	{ IPPROTO_TCP, TCP_NODELAY, NEAT_OPT_FLAGS, NEAT_OPTF_NODELAY, 0, 0, 0 },
	{ IPPROTO_TCP, TCP_CORK, NEAT_OPT_FLAGS, NEAT_OPTF_CORK, 0, 0, 0 },
	{ IPPROTO_TCP, TCP_KEEPIDLE, NEAT_OPT_KEEPIDLE_S, 0, 1, 32767, 7200 },
	{ IPPROTO_TCP, TCP_KEEPINTVL, NEAT_OPT_KEEPINTVL_S, 0, 1, 32767, 75 },
	{ IPPROTO_TCP, TCP_KEEPCNT, NEAT_OPT_KEEPCNT, 0, 1, 127, 9 },
	{ IPPROTO_TCP, TCP_SYNCNT, NEAT_OPT_SYNCNT, 0, 1, 127, 6 },
	{ IPPROTO_TCP, TCP_USER_TIMEOUT, NEAT_OPT_USER_TIMEOUT_MS, 0, 0, INT32_MAX, 0 },
	{ IPPROTO_IP, IP_TOS, NEAT_OPT_TOS, 0, INT32_MIN, INT32_MAX, 0 },
	{ IPPROTO_IP, IP_TTL, NEAT_OPT_TTL, 0, -1, 255, 64 },
	/* Behind IP_TOS, which sets it. */
	{ SOL_SOCKET, SO_PRIORITY, NEAT_OPT_PRIORITY, 0, INT32_MIN, INT32_MAX, 0 },
};

enum { LINGER2_MAX = 120 };	/* seconds (TCP_FIN_TIMEOUT_MAX) */

/*
 * What cannot be had is off, and says so: these have one value, which setsockopt() takes, too. Any other is ENOPROTOOPT
 * (docs/differences.md).
 */
static const struct { int level, name, value; } FIXED[] = {
	{ SOL_SOCKET, SO_DEBUG, 0 },
	{ SOL_SOCKET, SO_NO_CHECK, 0 },
	{ SOL_SOCKET, SO_TIMESTAMP, 0 },
	{ SOL_SOCKET, SO_TIMESTAMPNS, 0 },
	{ SOL_SOCKET, SO_MARK, 0 },
	{ SOL_SOCKET, SO_RXQ_OVFL, 0 },
	{ SOL_SOCKET, SO_PEEK_OFF, -1 },
	{ SOL_SOCKET, SO_LOCK_FILTER, 0 },
	{ SOL_SOCKET, SO_BUSY_POLL, 0 },
	{ SOL_SOCKET, SO_ZEROCOPY, 0 },
	{ IPPROTO_IP, IP_RECVOPTS, 0 },
	{ IPPROTO_IP, IP_RETOPTS, 0 },
	{ IPPROTO_IP, IP_PKTINFO, 0 },
	{ IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_WANT },
	{ IPPROTO_IP, IP_RECVERR, 0 },
	{ IPPROTO_IP, IP_RECVTTL, 0 },
	{ IPPROTO_IP, IP_RECVTOS, 0 },
	{ IPPROTO_IP, IP_FREEBIND, 0 },
	{ IPPROTO_IP, IP_TRANSPARENT, 0 },
	{ IPPROTO_IP, IP_RECVORIGDSTADDR, 0 },
	{ IPPROTO_IP, IP_MINTTL, 0 },
	{ IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 0 },
	{ IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 0 },
	{ IPPROTO_TCP, TCP_THIN_DUPACK, 0 },
	{ IPPROTO_TCP, TCP_FASTOPEN, 0 },
	{ IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 0 },
	{ IPPROTO_TCP, TCP_SAVE_SYN, 0 },
	{ IPPROTO_TCP, TCP_NOTSENT_LOWAT, 0 },
	{ IPPROTO_TCP, TCP_INQ, 0 },
};

static const struct int_option *find_option(int level, int name)
{
	for (size_t i = 0; i < sizeof(OPTIONS) / sizeof(OPTIONS[0]); i++)
		if (OPTIONS[i].level == level && OPTIONS[i].name == name)
			return &OPTIONS[i];
	return NULL;
}

static const int *fixed_value(int level, int name)
{
	for (size_t i = 0; i < sizeof(FIXED) / sizeof(FIXED[0]); i++)
		if (FIXED[i].level == level && FIXED[i].name == name)
			return &FIXED[i].value;
	return NULL;
}

/* The record's options become the connection's. `event`: NEAT_OPTF_QUICKACKS, NEAT_OPTF_PUSHES or 0. */
static void publish(uint32_t sock, uint32_t event)
{
	struct neat_sock *s = nt_sock(sock);
	struct neat_opts opts;
	struct nt_conn c;
	enum nt_entered how;

	if (a32_acquire(&s->state) == NEAT_SOCK_LISTEN)
		a32_or(&s->flags, NEAT_SOCKF_OPTS_LATE);
	if (a32_acquire(&s->state) != NEAT_SOCK_CONNECT)
		return;
	c = nt_conn_of(nt_handle(sock));
	how = nt_conn_enter(&c);
	if (how == NT_LOST)
		return;
	opts = s->opts;
	opts.w[NEAT_OPT_FLAGS] |= nt_event_counted(c.app->opts.w[NEAT_OPT_FLAGS], event) & NT_OPT_EVENTS;
	__atomic_thread_fence(__ATOMIC_RELEASE);	/* bytes that it pushes are there before the count is */
	c.app->opts = opts;
	a32_add(&c.app->optgen, 1);	/* orders the words before the number */
	nt_conn_leave(&c, how);
	nt_kick(&c);
}

void nt_opts_publish(uint32_t sock) { publish(sock, 0); }

static void set_flag(struct neat_sock *s, uint32_t flag, bool on)
{
	uint32_t *w = &s->opts.w[NEAT_OPT_FLAGS];

	*w = on ? *w | flag : *w & ~flag;
}

/* rt_tos2priority(), with TC_PRIO_* of linux/pkt_sched.h. */
static uint32_t priority_of(uint32_t tos)
{
	static const uint8_t priority[] = { 0, 2, 6, 4 };	/* best effort, bulk, interactive, both */

	return priority[tos >> 3 & 3];
}

/* ip(7): the ECN bits are TCP's own. */
static void set_tos(struct neat_sock *s, int v)
{
	s->opts.w[NEAT_OPT_TOS] = (uint32_t)v & 0xfc;
	s->opts.w[NEAT_OPT_PRIORITY] = priority_of(s->opts.w[NEAT_OPT_TOS]);
}

static int set_int(uint32_t sock, int fd, const struct int_option *o, int v)
{
	struct neat_sock *s = nt_sock(sock);
	uint32_t event = 0;

	if (o->flag) {
		set_flag(s, o->flag, v != 0);
		/* tcp(7): both flush; CORK may be set again before the replica looks. */
		if (o->flag == (v ? NEAT_OPTF_NODELAY : NEAT_OPTF_CORK))
			event = NEAT_OPTF_PUSHES;
	} else {
		if (v < o->min || v > o->max || (o->word == NEAT_OPT_TTL && v == 0))
			return -EINVAL;
		/* The kernel knows whose privilege it is. */
		if (o->word == NEAT_OPT_PRIORITY && (v < 0 || v > 6) &&
		    nt_real.setsockopt(fd, o->level, o->name, &v, sizeof(v)))
			return -errno;
		if (o->word == NEAT_OPT_TOS)
			set_tos(s, v);
		else
			s->opts.w[o->word] = o->word == NEAT_OPT_TTL && v < 0 ? 0 : (uint32_t)v;
	}
	publish(sock, event);
	return 0;
}

static int set_timeout(uint32_t *ms, const void *value, socklen_t len)
{
	struct timeval tv;

	if (len < sizeof(tv))
		return -EINVAL;
	memcpy(&tv, value, sizeof(tv));
	if (tv.tv_usec < 0 || tv.tv_usec >= 1000000)
		return -EDOM;
	if (tv.tv_sec < 0)
		*ms = NT_TIMEO_OVER;
	else if (tv.tv_sec > UINT32_MAX / 1000 - 1)
		*ms = 0;
	else
		*ms = (uint32_t)(tv.tv_sec * 1000 + (tv.tv_usec + 999) / 1000);
	return 0;
}

static int set_linger(uint32_t sock, const void *value, socklen_t len)
{
	struct neat_sock *s = nt_sock(sock);
	struct linger l;

	if (len < sizeof(l))
		return -EINVAL;
	memcpy(&l, value, sizeof(l));
	set_flag(s, NEAT_OPTF_LINGER, l.l_onoff != 0);
	if (l.l_onoff)
		s->opts.w[NEAT_OPT_LINGER_S] = (uint32_t)l.l_linger;
	nt_opts_publish(sock);
	return 0;
}

/* socket(7): the kernel doubles the value; bounded below, and above by {r,w}mem_max. */
static int set_buffer(uint32_t sock, enum neat_opt word, int v)
{
	const int max = (int)neat_ring_max(NEAT_TX) / 2, min = word == NEAT_OPT_RCVBUF ? 2304 : 4608;

	v = v < 0 || v > max ? max : v;
	nt_sock(sock)->opts.w[word] = (uint32_t)(2 * v < min ? min : 2 * v);
	nt_opts_publish(sock);
	return 0;
}

/* Linux: tcp_set_rcvlowat(). */
static int set_rcvlowat(struct neat_sock *s, int v)
{
	uint32_t most = s->opts.w[NEAT_OPT_RCVBUF] ? s->opts.w[NEAT_OPT_RCVBUF] / 2 : INT32_MAX;

	s->rcvlowat = v < 0 || (uint32_t)v > most ? most : v ? (uint32_t)v : 1;
	return 0;
}

static int set_sockflag(struct neat_sock *s, uint32_t flag, bool on)
{
	if (on)
		a32_or(&s->flags, flag);
	else
		a32_and(&s->flags, ~flag);
	return 0;
}

static int set_socket_level(uint32_t sock, int name, int v, const void *value, socklen_t len)
{
	struct neat_sock *s = nt_sock(sock);

	switch (name) {
	case SO_REUSEADDR:
		return set_sockflag(s, NEAT_SOCKF_REUSEADDR, v);
	case SO_REUSEPORT:
		return set_sockflag(s, NEAT_SOCKF_REUSEPORT, v);
	case SO_BSDCOMPAT:	/* socket(7): has no effect any more */
		return 0;
	case SO_RCVBUF:
		return set_buffer(sock, NEAT_OPT_RCVBUF, v);
	case SO_SNDBUF:
		return set_buffer(sock, NEAT_OPT_SNDBUF, v);
	case SO_RCVLOWAT:
		return set_rcvlowat(s, v);
	case SO_RCVTIMEO:
	case SO_RCVTIMEO_NEW:
		return set_timeout(&s->rcvtimeo_ms, value, len);
	case SO_SNDTIMEO:
	case SO_SNDTIMEO_NEW:
		return set_timeout(&s->sndtimeo_ms, value, len);
	case SO_LINGER:
		return set_linger(sock, value, len);
	}
	return -ENOPROTOOPT;
}

static const char *const CONGESTION[] = { "", "reno", "cubic" };	/* NEAT_OPT_CONGESTION */
enum { CONGESTIONS = sizeof(CONGESTION) / sizeof(CONGESTION[0]) };

static int set_congestion(uint32_t sock, const char *name, socklen_t len)
{
	char want[16] = { 0 };

	memcpy(want, name, len < sizeof(want) - 1 ? len : sizeof(want) - 1);
	for (uint32_t i = 1; i < CONGESTIONS; i++)
		if (strcmp(CONGESTION[i], want) == 0) {
			nt_sock(sock)->opts.w[NEAT_OPT_CONGESTION] = i;
			nt_opts_publish(sock);
			return 0;
		}
	return -ENOENT;
}

/* Linux counts retransmissions of the SYN instead: the time until the one that is not before it (secs_to_retrans()). */
static uint32_t defer_s(int v)
{
	uint32_t end = v > 0, step = 1;

	for (int n = 1; (int)end < v && n < UINT8_MAX; n++) {
		step = 2 * step < 120 ? 2 * step : 120;
		end += step;
	}
	return end;
}

static int set_tcp_level(uint32_t sock, int name, int v)
{
	struct neat_sock *s = nt_sock(sock);

	switch (name) {
	case TCP_MAXSEG:
		if (v && (v < 88 || v > 32767))
			return -EINVAL;
		s->opts.w[NEAT_OPT_MAXSEG] = (uint32_t)v;
		break;
	case TCP_QUICKACK:
		set_flag(s, NEAT_OPTF_QUICKACK_OFF, v == 0);
		publish(sock, v ? NEAT_OPTF_QUICKACKS : 0);
		return 0;
	case TCP_LINGER2:
		/* Linux: a negative one does not linger, and 0 is the default. */
		v = v > LINGER2_MAX ? LINGER2_MAX : v;
		s->opts.w[NEAT_OPT_LINGER2_S] = v < 0 ? 1 : v == 0 ? 0 : (uint32_t)v + 1;
		break;
	case TCP_DEFER_ACCEPT:
		/* Taken over by listen(). Set later it does not delay the wake-up, which tcp(7)'s
		 * time-out always allowed: docs/differences.md. */
		s->opts.w[NEAT_OPT_DEFER_ACCEPT_S] = defer_s(v);
		return 0;
	default:
		return -ENOPROTOOPT;
	}
	nt_opts_publish(sock);
	return 0;
}

/* ip(7): a byte will do, and mostly nothing, for 0. */
static socklen_t shortest(int level, int name)
{
	if (level == IPPROTO_IP)
		return name == IP_TTL;
	return level == IPPROTO_TCP && name == TCP_CONGESTION ? 1 : sizeof(int);
}

static int set_fixed(int level, int name, int v)
{
	const int *fixed = fixed_value(level, name);

	return fixed && *fixed == v ? 0 : -ENOPROTOOPT;
}

int nt_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	uint32_t sock = nt_lookup(fd);
	const struct int_option *o = find_option(level, name);
	int v = 0, err;

	if (!sock)
		return NT_KERNEL;
	if (nt_is_dgram(nt_sock(sock)))
		return nt_dgram_setsockopt(fd, level, name, value, len);
	if ((int)len < 0)
		return -EINVAL;
	if (level != SOL_SOCKET && level != IPPROTO_TCP && level != IPPROTO_IP)
		return -ENOPROTOOPT;
	if (len < shortest(level, name))
		return -EINVAL;
	if (len && nt_bad_pointer(value))
		return -EFAULT;
	if (level == IPPROTO_TCP && name == TCP_CONGESTION)
		return set_congestion(sock, value, len);
	if (len >= sizeof(v))
		memcpy(&v, value, sizeof(v));
	else if (len)
		v = *(const unsigned char *)value;
	if (o)
		return set_int(sock, fd, o, v);
	err = level == SOL_SOCKET ? set_socket_level(sock, name, v, value, len) :
	      level == IPPROTO_TCP ? set_tcp_level(sock, name, v) : -ENOPROTOOPT;
	return err == -ENOPROTOOPT ? set_fixed(level, name, v) : err;
}

/* ---- getsockopt ---- */

static int give(void *out, socklen_t *len, const void *from, size_t size)
{
	if (*len && nt_bad_pointer(out))
		return -EFAULT;
	if (*len > size)
		*len = (socklen_t)size;
	if (*len)
		memcpy(out, from, *len);
	return 0;
}

static int give_int(void *out, socklen_t *len, int v) { return give(out, len, &v, sizeof(v)); }

/* ip(7): a number that fits a byte is given as one, if there is no room for more. */
static int give_ip(void *out, socklen_t *len, int v)
{
	unsigned char byte = (unsigned char)v;

	return *len && *len < sizeof(v) && v == byte ? give(out, len, &byte, 1) : give_int(out, len, v);
}

static int give_timeout(void *out, socklen_t *len, uint32_t ms)
{
	struct timeval tv = { ms / 1000, (suseconds_t)(ms % 1000) * 1000 };

	if (ms == NT_TIMEO_OVER)	/* it is over at once, and reads as none (sock_set_timeout()) */
		tv = (struct timeval){ 0, 0 };
	return give(out, len, &tv, sizeof(tv));
}

static int socket_error(struct neat_sock *s)
{
	struct nt_conn c;

	if (a32_acquire(&s->state) != NEAT_SOCK_CONNECT)
		return 0;
	c = nt_conn(s);
	return -nt_take_error(&c);
}

static int get_socket_level(struct neat_sock *s, int name, void *out, socklen_t *len)
{
	const uint32_t *w = s->opts.w;
	struct linger l = { w[NEAT_OPT_FLAGS] & NEAT_OPTF_LINGER ? 1 : 0, (int)w[NEAT_OPT_LINGER_S] };

	switch (name) {
	case SO_ERROR:
		return give_int(out, len, socket_error(s));
	case SO_TYPE:
		return give_int(out, len, SOCK_STREAM);
	case SO_DOMAIN:
		return give_int(out, len, AF_INET);
	case SO_PROTOCOL:
		return give_int(out, len, IPPROTO_TCP);
	case SO_ACCEPTCONN:
		return give_int(out, len, a32_relaxed(&s->state) == NEAT_SOCK_LISTEN);
	case SO_REUSEADDR:
		return give_int(out, len, (a32_relaxed(&s->flags) & NEAT_SOCKF_REUSEADDR) != 0);
	case SO_REUSEPORT:
		return give_int(out, len, (a32_relaxed(&s->flags) & NEAT_SOCKF_REUSEPORT) != 0);
	case SO_BSDCOMPAT:
		return give_int(out, len, 0);
	case SO_RCVBUF:
		return give_int(out, len, w[NEAT_OPT_RCVBUF] ? (int)w[NEAT_OPT_RCVBUF] : 131072);
	case SO_SNDBUF:
		return give_int(out, len, w[NEAT_OPT_SNDBUF] ? (int)w[NEAT_OPT_SNDBUF] : 16384);
	case SO_RCVLOWAT:
		return give_int(out, len, s->rcvlowat ? (int)s->rcvlowat : 1);
	case SO_SNDLOWAT:
		return give_int(out, len, 1);
	case SO_RCVTIMEO:
	case SO_RCVTIMEO_NEW:
		return give_timeout(out, len, s->rcvtimeo_ms);
	case SO_SNDTIMEO:
	case SO_SNDTIMEO_NEW:
		return give_timeout(out, len, s->sndtimeo_ms);
	case SO_LINGER:
		return give(out, len, &l, sizeof(l));
	}
	return -ENOPROTOOPT;
}

static int get_info(struct neat_sock *s, void *out, socklen_t *len)
{
	const struct neat_slot_pub *p;
	struct nt_conn c;
	struct tcp_info i;

	memset(&i, 0, sizeof(i));
	i.tcpi_state = a32_relaxed(&s->state) == NEAT_SOCK_LISTEN ? TCP_LISTEN : TCP_CLOSE;
	if (a32_acquire(&s->state) == NEAT_SOCK_CONNECT) {
		c = nt_conn(s);
		p = c.pub;
		/* Before the replica has taken it up the words are of the slot's last connection. */
		if (nt_conn_flags(&c) == 0) {
			i.tcpi_state = TCP_SYN_SENT;
			return give(out, len, &i, sizeof(i));
		}
		i.tcpi_state = p->tcp_state;
		i.tcpi_options = p->options;
		i.tcpi_snd_wscale = (uint8_t)(p->snd_wscale & 15u) & 15u;
		i.tcpi_rcv_wscale = (uint8_t)(p->rcv_wscale & 15u) & 15u;
		i.tcpi_rto = p->rto_us;
		i.tcpi_snd_mss = p->snd_mss;
		i.tcpi_rcv_mss = p->rcv_mss;
		i.tcpi_unacked = p->unacked;
		i.tcpi_sacked = p->sacked;
		i.tcpi_lost = p->lost;
		i.tcpi_retrans = p->retrans;
		i.tcpi_pmtu = p->pmtu;
		i.tcpi_rtt = p->rtt_us;
		i.tcpi_rttvar = p->rttvar_us;
		i.tcpi_snd_ssthresh = p->snd_ssthresh;
		i.tcpi_snd_cwnd = p->snd_cwnd;
		i.tcpi_advmss = p->advmss;
		i.tcpi_total_retrans = p->total_retrans;
	}
	return give(out, len, &i, sizeof(i));
}

/* As setsockopt() takes it. */
static int linger2(const uint32_t *w) { return w[NEAT_OPT_LINGER2_S] == 1 ? -1 : (int)w[NEAT_OPT_LINGER2_S] - 1; }

static int get_tcp_level(struct neat_sock *s, int name, void *out, socklen_t *len)
{
	const uint32_t *w = s->opts.w;
	char cc[16] = "cubic";

	switch (name) {
	case TCP_MAXSEG:
		if (a32_acquire(&s->state) == NEAT_SOCK_CONNECT && nt_conn(s).pub->snd_mss)
			return give_int(out, len, (int)nt_conn(s).pub->snd_mss);
		return give_int(out, len, w[NEAT_OPT_MAXSEG] ? (int)w[NEAT_OPT_MAXSEG] : 536);
	case TCP_QUICKACK:
		return give_int(out, len, !(w[NEAT_OPT_FLAGS] & NEAT_OPTF_QUICKACK_OFF));
	case TCP_LINGER2:
		return give_int(out, len, w[NEAT_OPT_LINGER2_S] ? linger2(w) : 60);
	case TCP_DEFER_ACCEPT:
		return give_int(out, len, (int)w[NEAT_OPT_DEFER_ACCEPT_S]);
	case TCP_CONGESTION:
		if (w[NEAT_OPT_CONGESTION] == 1)
			strcpy(cc, "reno");
		return give(out, len, cc, sizeof(cc));
	case TCP_INFO:
		return get_info(s, out, len);
	}
	return -ENOPROTOOPT;
}

/* Linux: what getpeername() says, but never more room than that. */
static int give_peer(int fd, void *out, socklen_t *len)
{
	struct sockaddr_in in;
	socklen_t size = sizeof(in);
	int err = nt_bad_pointer(len) ? -EFAULT : nt_getpeername(fd, (struct sockaddr *)&in, &size);

	return err ? err : *len > size ? -EINVAL : give(out, len, &in, size);
}

int nt_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	uint32_t sock = nt_lookup(fd);
	struct neat_sock *s = nt_sock(sock);
	const struct int_option *o = find_option(level, name);
	const int *fixed = fixed_value(level, name);
	int v = 0;

	if (!sock)
		return NT_KERNEL;
	if (level == SOL_SOCKET && name == SO_PEERNAME)
		return give_peer(fd, value, len);
	if (nt_is_dgram(s))
		return nt_dgram_getsockopt(fd, level, name, value, len);
	if (nt_bad_pointer(len))
		return -EFAULT;
	if ((int)*len < 0)
		return -EINVAL;
	if (o && o->flag)
		return give_int(value, len, (s->opts.w[NEAT_OPT_FLAGS] & o->flag) != 0);
	if (o)
		v = s->opts.w[o->word] ? (int)s->opts.w[o->word] : o->dflt;
	else if (fixed)
		v = *fixed;
	if (o || fixed)
		return level == IPPROTO_IP ? give_ip(value, len, v) : give_int(value, len, v);
	if (level == SOL_SOCKET)
		return get_socket_level(s, name, value, len);
	if (level == IPPROTO_TCP)
		return get_tcp_level(s, name, value, len);
	return level == IPPROTO_IP ? -ENOPROTOOPT : -EOPNOTSUPP;
}

/* Those without a row in OPTIONS. A congestion control that the kernel has not got stays its default. */
static void tcp_to_kernel(const uint32_t *w, int fd)
{
	const int set[][3] = {	/* name, whether it was set, value */
		{ TCP_MAXSEG, w[NEAT_OPT_MAXSEG] != 0, (int)w[NEAT_OPT_MAXSEG] },
		{ TCP_LINGER2, w[NEAT_OPT_LINGER2_S] != 0, linger2(w) },
		{ TCP_DEFER_ACCEPT, w[NEAT_OPT_DEFER_ACCEPT_S] != 0, (int)w[NEAT_OPT_DEFER_ACCEPT_S] },
		{ TCP_QUICKACK, (w[NEAT_OPT_FLAGS] & NEAT_OPTF_QUICKACK_OFF) != 0, 0 },
	};
	uint32_t congestion = w[NEAT_OPT_CONGESTION];

	for (size_t i = 0; i < sizeof(set) / sizeof(set[0]); i++)
		if (set[i][1])
			nt_real.setsockopt(fd, IPPROTO_TCP, set[i][0], &set[i][2], sizeof(set[i][2]));
	if (congestion && congestion < CONGESTIONS)
		nt_real.setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, CONGESTION[congestion],
				   (socklen_t)strlen(CONGESTION[congestion]));
}

/* Takeover (L10): what was set so far is set on the kernel's socket. */
void nt_opts_to_kernel(const struct neat_sock *s, int fd)
{
	int on = 1;

	for (size_t i = 0; i < sizeof(OPTIONS) / sizeof(OPTIONS[0]); i++) {
		const struct int_option *o = &OPTIONS[i];
		int v = o->flag ? (s->opts.w[NEAT_OPT_FLAGS] & o->flag) != 0 : (int)s->opts.w[o->word];

		if (v)
			nt_real.setsockopt(fd, o->level, o->name, &v, sizeof(v));
	}
	if (a32_relaxed(&s->flags) & NEAT_SOCKF_REUSEADDR)
		nt_real.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (a32_relaxed(&s->flags) & NEAT_SOCKF_REUSEPORT)
		nt_real.setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
	for (int rcv = 0; rcv < 2; rcv++) {
		int v = (int)s->opts.w[rcv ? NEAT_OPT_RCVBUF : NEAT_OPT_SNDBUF] / 2;
		uint32_t ms = rcv ? s->rcvtimeo_ms : s->sndtimeo_ms;
		struct timeval tv = { ms == NT_TIMEO_OVER ? -1 : (time_t)(ms / 1000), (suseconds_t)(ms % 1000) * 1000 };

		if (v)
			nt_real.setsockopt(fd, SOL_SOCKET, rcv ? SO_RCVBUF : SO_SNDBUF, &v, sizeof(v));
		if (tv.tv_sec || tv.tv_usec)
			nt_real.setsockopt(fd, SOL_SOCKET, rcv ? SO_RCVTIMEO : SO_SNDTIMEO, &tv, sizeof(tv));
	}
	if (s->opts.w[NEAT_OPT_FLAGS] & NEAT_OPTF_LINGER) {
		struct linger l = { 1, (int)s->opts.w[NEAT_OPT_LINGER_S] };

		nt_real.setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
	}
	if (s->rcvlowat) {
		int v = (int)s->rcvlowat;	/* behind SO_RCVBUF, which bounds it */

		nt_real.setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &v, sizeof(v));
	}
	tcp_to_kernel(s->opts.w, fd);
}

/* ---- fcntl and ioctl ---- */

static int set_status_flags(struct neat_sock *s, int fd, long flags)
{
	/* fcntl(2): no O_DIRECT for sockets; and no SIGIO from ours (docs/differences.md). */
	if (flags & (O_ASYNC | O_DIRECT))
		return -EINVAL;
	/* The fd is the twin itself, so the kernel's flag says the same. */
	if (nt_is_dgram(s) && nt_real.fcntl(fd, F_SETFL, flags))
		return -errno;
	return set_sockflag(s, NEAT_SOCKF_NONBLOCK, flags & O_NONBLOCK);
}

static int set_cloexec(int fd, bool on)
{
	if (nt_real.fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0))
		return -errno;
	nt_fd_set_flags(fd, on ? NEAT_FD_CLOEXEC : 0);
	return 0;
}

int nt_fcntl(int fd, int cmd, long arg)
{
	uint32_t sock = nt_lookup(fd);

	if (cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC)
		return (int)arg < 0 ? NT_KERNEL :
		       nt_dup(fd, -1, (int)arg, cmd == F_DUPFD ? 0 : O_CLOEXEC);
	if (!sock)
		return NT_KERNEL;
	switch (cmd) {
	case F_GETFL:
		if (nt_is_dgram(nt_sock(sock)))
			return NT_KERNEL;	/* the twin's are the same */
		return O_RDWR | (a32_relaxed(&nt_sock(sock)->flags) & NEAT_SOCKF_NONBLOCK ? O_NONBLOCK : 0);
	case F_SETFL:
		return set_status_flags(nt_sock(sock), fd, arg);
	case F_SETFD:
		return set_cloexec(fd, arg & FD_CLOEXEC);
	}
	return NT_KERNEL;
}

static int queue_bytes(struct neat_sock *s, bool in)
{
	struct nt_conn c;

	if (nt_is_dgram(s))
		return nt_dgram_queue(s, in);
	if (a32_acquire(&s->state) == NEAT_SOCK_LISTEN)
		return -EINVAL;
	if (a32_acquire(&s->state) != NEAT_SOCK_CONNECT)
		return 0;
	c = nt_conn(s);
	if (in)
		return (int)(a64_acquire(&c.pub->rx_head) - a64_relaxed(&c.app->rx_tail));
	return (int)(a64_relaxed(&c.app->tx_tail) - a64_acquire(&c.pub->tx_una));
}

/*
 * netdevice(7) and what else any socket of the kernel's answers, if it is of our family: what lies below a stream
 * socket of ours is not.
 */
static int kernel_ioctl(struct neat_sock *s, unsigned long request, void *arg)
{
	int fd, rc;

	if (nt_is_dgram(s) || request < SIOCGSTAMP_OLD || request > 0x89ff || request == SIOCOUTQNSD)
		return NT_KERNEL;
	fd = nt_real.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	rc = nt_real.ioctl(fd, request, arg);
	if (rc < 0)
		rc = -errno;
	nt_kernel_close(fd);
	return rc;
}

int nt_ioctl(int fd, unsigned long request, void *arg)
{
	uint32_t sock = nt_lookup(fd);
	struct neat_sock *s = nt_sock(sock);
	int n;

	if (!sock)
		return NT_KERNEL;
	if (request >= SIOCGSTAMP_OLD && request <= 0x89ff)
		return kernel_ioctl(s, request, arg);
	if (request != FIOCLEX && request != FIONCLEX && nt_bad_pointer(arg))
		return NT_KERNEL;	/* EFAULT, or ENOTTY where it is no pointer */
	switch (request) {
	case FIONBIO:
		if (nt_is_dgram(s) && nt_real.ioctl(fd, request, arg))
			return -errno;
		return set_sockflag(s, NEAT_SOCKF_NONBLOCK, *(int *)arg);
	case FIOASYNC:
		return *(int *)arg ? -EINVAL : 0;
	case FIOCLEX:
		return set_cloexec(fd, true);
	case FIONCLEX:
		return set_cloexec(fd, false);
	case SIOCINQ:
	case SIOCOUTQ:
		n = queue_bytes(s, request == SIOCINQ);
		if (n < 0)
			return n;
		*(int *)arg = n;
		return 0;
	case SIOCATMARK:
		if (nt_is_dgram(s))
			return NT_KERNEL;
		*(int *)arg = 0;	/* no urgent data: docs/differences.md */
		return 0;
	}
	return NT_KERNEL;
}
