/*
 * poll.c - readiness of our sockets as tcp_poll() in Linux reports it; poll(2) and select(2) over ours
 * and the kernel's together.
 *
 * Our sockets are looked at in shared memory; the kernel is asked about the rest when we would
 * sleep anyway, and otherwise at most every NT_KERNEL_LOOK_NS.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The last look at the kernel's part of a set, by this thread. */
static __thread struct { const struct pollfd *fds; nfds_t n; int64_t empty_ns; } seen
	__attribute__((tls_model("initial-exec")));

/* The handler that ran in the last one that slept, of this thread; 0 = none. */
static __thread int ended_by __attribute__((tls_model("initial-exec")));

static unsigned connection_ready(const struct neat_sock *s)
{
	struct nt_conn c = nt_conn(s);
	uint32_t flags = nt_conn_flags(&c), shut = a32_relaxed(&c.app->shut);
	bool rx_over = flags & NEAT_SLOT_RX_EOF || shut & 1, tx_over = flags & NEAT_SLOT_TX_SHUT || shut & 2;
	unsigned bits = 0;

	if (nt_has_error(&c, flags))
		bits |= EPOLLERR;
	if (flags & NEAT_SLOT_HUP || (rx_over && tx_over))
		bits |= EPOLLHUP;
	if (rx_over)
		bits |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	if (!(flags & (NEAT_SLOT_CONNECTED | NEAT_SLOT_HUP)))
		return bits;	/* connecting */
	if (nt_readable(&c) >= nt_rcvlowat(s))
		bits |= EPOLLIN | EPOLLRDNORM;
	if (tx_over || nt_writable(&c))
		bits |= EPOLLOUT | EPOLLWRNORM;
	return bits;
}

unsigned nt_ready(uint32_t sock)
{
	const struct neat_sock *s = nt_sock(sock);

	switch (a32_acquire(&s->state)) {
	case NEAT_SOCK_CONNECT:
		return connection_ready(s);
	case NEAT_SOCK_LISTEN:
		return nt_acceptable(s) ? EPOLLIN | EPOLLRDNORM : 0;
	case NEAT_SOCK_DGRAM:
		return nt_dgram_ready(s);
	case NEAT_SOCK_KERNEL:	/* another process handed it over: the next call finds out */
		return EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM;
	}
	/* like TCP_CLOSE */
	return EPOLLOUT | EPOLLWRNORM | EPOLLHUP |
	       (a32_relaxed(&s->flags) & NEAT_SOCKF_SHUT ? EPOLLIN | EPOLLRDNORM | EPOLLRDHUP : 0);
}

/* ---- poll ---- */

/* One call: `kernel` is a copy of the set in which our fds are -1, plus the process's eventfd. */
struct poll_call {
	struct pollfd *fds;
	nfds_t n;
	struct pollfd *kernel;
	nfds_t nkernel;		/* the kernel's fds in the set */
	nfds_t nsets;		/* epoll sets among them */
	bool ours;		/* something of ours is in the set, or in one of those */
	struct nt_watch *memory;	/* for more than fit into a struct nt_stay; `kernel` is behind them */
	size_t memory_size;
	int64_t deadline;
	const sigset_t *mask;
};

/* A datagram socket's kernel twin is asked for input; its own readiness is joined in by results(). */
static void ask_twin(struct poll_call *p, nfds_t i, uint32_t sock)
{
	if (p->kernel[i].fd >= 0 || !nt_dgram_twin(nt_sock(sock)))
		return;
	p->kernel[i] = (struct pollfd){ .fd = p->fds[i].fd,
					.events = (short)(p->fds[i].events & (POLLIN | POLLRDNORM)) };
	p->nkernel++;
}

static int count_ready(const struct poll_call *p)
{
	int ready = 0;

	for (nfds_t i = 0; i < p->n; i++)
		ready += p->fds[i].revents != 0;
	return ready;
}

/* The kernel knows the rest of the set: its own readiness is joined in by kernel_results(). */
static int scan_set(struct poll_call *p, nfds_t i)
{
	if (p->fds[i].fd < 0 || !nt_epoll_known(p->fds[i].fd))
		return 0;
	p->fds[i].revents = (short)(nt_epoll_ready(p->fds[i].fd) & (unsigned)(unsigned short)p->fds[i].events);
	p->fds[i].revents |= p->kernel[i].revents;
	return p->fds[i].revents != 0;
}

static int scan_ours(struct poll_call *p, bool look)
{
	int ready = 0;

	for (nfds_t i = 0; i < p->n; i++) {
		uint32_t sock = nt_lookup(p->fds[i].fd);
		unsigned want = (unsigned)(unsigned short)p->fds[i].events | EPOLLERR | EPOLLHUP;

		if (!sock) {
			if (NT_UNLIKELY(p->nsets))
				ready += scan_set(p, i);
			continue;
		}
		if (look)
			nt_watch_look(sock);
		p->fds[i].revents = (short)(nt_ready(sock) & want);
		if (NT_UNLIKELY(nt_is_dgram(nt_sock(sock)))) {
			ask_twin(p, i, sock);
			p->fds[i].revents |= p->kernel[i].fd >= 0 ? p->kernel[i].revents : 0;
		}
		ready += p->fds[i].revents != 0;
	}
	return ready;
}

static int kernel_results(struct poll_call *p)
{
	for (nfds_t i = 0; i < p->n; i++)
		if (p->kernel[i].fd >= 0)
			p->fds[i].revents |= p->kernel[i].revents;
	return count_ready(p);
}

/* Ready ones of the whole set, ours included; 0: the kernel has none. */
static int kernel_look(struct poll_call *p)
{
	struct timespec zero = { 0 };

	/* No cancellation point, as we may be watching: wait.c. */
	if (!p->nkernel || nt_syscall(SYS_ppoll, p->kernel, p->n, &zero, NULL, 0) <= 0)
		return 0;
	return kernel_results(p);
}

static int enter_ppoll(void *arg, int64_t deadline_ns)
{
	struct poll_call *p = arg;

	return nt_ppoll(p->kernel, p->n + 1, deadline_ns, p->mask);
}

/* Sleeps once. > 0: kernel fds are ready, with their number in the set; 0: look again; -errno. */
static int poll_sleep(struct poll_call *p, struct nt_stay *s)
{
	int rc;

	if (!p->nkernel && !p->mask && !nt_restarts())
		return nt_sleep(s, p->deadline);
	rc = nt_sleep_poll(s, &p->kernel[p->n], enter_ppoll, p, p->deadline);
	return rc > 0 ? kernel_results(p) : rc;
}

static void watch_all(struct poll_call *p, struct nt_stay *s)
{
	for (nfds_t i = 0; i < p->n; i++)
		if (nt_lookup(p->fds[i].fd))
			nt_watch_add(&s->watch[i], nt_lookup(p->fds[i].fd), WATCH_WAITER, &s->w);
		else if (p->nsets && p->fds[i].fd >= 0)
			nt_epoll_watch(&s->watch[i], p->fds[i].fd, &s->w);
	s->watches = (uint32_t)p->n;
}

int nt_let_in(const sigset_t *mask)
{
	struct timespec zero = { 0 };
	uintptr_t in = nt_in;
	int err = 0;

	if (NT_LIKELY(!mask))
		return 0;
	if (nt_handlers_in_masked(mask))
		err = -EINTR;
	else if (nt_syscall(SYS_ppoll, NULL, 0l, &zero, mask, (size_t)(_NSIG / 8)) < 0)
		err = -errno;
	nt_in = in;
	return err;
}

static int poll_wait(struct poll_call *p, struct nt_stay *s)
{
	bool looked = false;

	for (;;) {
		int ready, kernel;

		nt_waiter_begin(&s->w);
		ready = scan_ours(p, true);
		if (ready || (p->deadline != INT64_MAX && nt_now_ns() >= p->deadline && looked)) {
			kernel = kernel_look(p);
			ready = kernel ? kernel : ready;
			return ready ? ready : nt_let_in(p->mask);
		}
		if (NT_UNLIKELY(s->ran))
			return -EINTR;
		if (!looked) {
			looked = true;
			watch_all(p, s);
			continue;
		}
		if (p->ours && nt_spin(&s->w, p->deadline))
			continue;
		kernel = poll_sleep(p, s);
		if (kernel > 0) {
			scan_ours(p, true);
			return count_ready(p);
		}
		if (kernel < 0 && kernel != -ETIMEDOUT)
			return kernel;
	}
}

static int poll_blocking(struct poll_call *p)
{
	struct nt_stay *s = nt_stay_begin();
	int rc;

	if (!s)
		return -ENOMEM;
	if (p->memory) {
		s->watch = p->memory;
		s->mapped = p->memory;
		s->mapped_size = p->memory_size;
	}
	s->polls = true;
	rc = poll_wait(p, s);
	ended_by = s->ran;
	nt_stay_end(s);
	return rc;
}

bool nt_poll_restarts(void) { return ended_by && nt_has_restart(ended_by); }

static void split_kernel(struct poll_call *p, int fd)
{
	p->nkernel++;
	if (NT_LIKELY(!nt_epoll_known(fd)))
		return;
	p->nsets++;
	p->ours |= nt_epoll_watch(NULL, fd, NULL);
}

static void split(struct poll_call *p)
{
	p->nkernel = p->nsets = 0;
	for (nfds_t i = 0; i < p->n; i++) {
		p->kernel[i] = p->fds[i];
		p->kernel[i].revents = 0;
		if (nt_lookup(p->fds[i].fd)) {
			p->kernel[i].fd = -1;
			p->ours = true;
		} else if (p->fds[i].fd >= 0) {
			split_kernel(p, p->fds[i].fd);
		}
		p->fds[i].revents = 0;
	}
}

/*
 * Ours are ready, so there is something to report without the kernel: its descriptors wait for a later
 * call if a look at this very set found nothing a moment ago.
 */
static bool kernel_due(const struct poll_call *p, int64_t now)
{
	return seen.fds != p->fds || seen.n != p->n || now - seen.empty_ns >= NT_KERNEL_LOOK_NS;
}

static int poll_now(struct poll_call *p, int ready)
{
	int64_t now = ready && p->nkernel ? nt_now_ns() : 0;
	int kernel;

	if (!p->nkernel || (ready && !kernel_due(p, now)))
		return ready;
	kernel = kernel_look(p);
	seen.fds = p->fds;
	seen.n = p->n;
	seen.empty_ns = kernel ? 0 : now;
	return kernel ? kernel : ready;
}

static int poll_run(struct poll_call *p, int64_t timeout_ns)
{
	int ready;

	split(p);
	ready = scan_ours(p, false);
	if (ready || timeout_ns == 0) {
		if (!ready)
			nt_over_look();
		nt_batch(ready > 0);
		ready = poll_now(p, ready);
		return ready ? ready : nt_let_in(p->mask);
	}
	p->deadline = nt_deadline(timeout_ns);
	ready = poll_blocking(p);
	nt_batch(ready > 0);
	return ready;
}

/* poll(2): EINVAL, whatever is in the set. A smaller limit than our room on the stack is not asked for. */
static bool too_many(nfds_t n)
{
	struct rlimit limit;

	return NT_UNLIKELY(n > NT_WATCHES) && getrlimit(RLIMIT_NOFILE, &limit) == 0 && n > limit.rlim_cur;
}

int nt_poll(struct pollfd *fds, nfds_t n, int64_t timeout_ns, const sigset_t *mask)
{
	struct pollfd kernel[NT_WATCHES + 1];
	struct poll_call p = { .fds = fds, .n = n, .kernel = kernel, .mask = mask };
	bool ours = false;
	int rc;

	p.n = n = (unsigned)n;	/* the kernel's, by its type */
	if ((n && nt_bad_pointer(fds)) || too_many(n))
		return NT_KERNEL;
	for (nfds_t i = 0; i < n && !ours && nt_on(); i++)
		ours = nt_lookup(fds[i].fd) != 0 || nt_epoll_known(fds[i].fd);
	if (!ours)
		return NT_KERNEL;
	nt_bells();
	if (n > NT_WATCHES) {
		p.memory_size = (n + 1) * (sizeof(*p.memory) + sizeof(*kernel));
		p.memory = n > NEAT_FDS_MAX * 16u ? NULL : nt_map_private(p.memory_size);
		if (!p.memory)
			return -ENOMEM;
		p.kernel = (struct pollfd *)(p.memory + n);
	}
	rc = poll_run(&p, timeout_ns);
	if (p.memory)
		munmap(p.memory, p.memory_size);
	return rc;
}

/* ---- select ---- */

/* The kernel's own classification (fs/select.c: POLLIN_SET, POLLOUT_SET, POLLEX_SET). */
enum {
	IN_SET = POLLRDNORM | POLLRDBAND | POLLIN | POLLHUP | POLLERR,
	OUT_SET = POLLWRBAND | POLLWRNORM | POLLOUT | POLLERR,
	EX_SET = POLLPRI,
};

/* Programs with more descriptors than FD_SETSIZE have sets of their own size, at which libc's macros stop. */
enum { WORD_BITS = 8 * sizeof(unsigned long) };

static bool in_set(const fd_set *set, int fd)
{
	return set && ((const unsigned long *)(const void *)set)[fd / WORD_BITS] >> (fd % WORD_BITS) & 1;
}

static void out_of_set(fd_set *set, int fd)
{
	((unsigned long *)(void *)set)[fd / WORD_BITS] &= ~(1ul << (fd % WORD_BITS));
}

/* proc_pid_status(5); FD_SETSIZE if it cannot be read. */
static int read_table_size(void)
{
	char text[1024];
	const char *at = NULL;
	int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : nt_syscall(SYS_read, fd, text, sizeof(text) - 1);

	if (fd >= 0)
		nt_kernel_close(fd);
	if (got > 0) {
		text[got] = 0;
		at = strstr(text, "FDSize:");
	}
	return at ? atoi(at + sizeof("FDSize:") - 1) : FD_SETSIZE;
}

/* select(2) looks at no more bits than the process's descriptor table has room for; the table only grows. */
static int table_size(int n)
{
	static neat_a32 known;
	int has = (int)a32_relaxed(&known);

	if (n > has) {
		has = read_table_size();
		a32_store(&known, (uint32_t)has);
	}
	return n < has ? n : has;
}

static nfds_t select_gather(int n, const fd_set *r, const fd_set *w, const fd_set *e, struct pollfd *out)
{
	nfds_t k = 0;

	for (int fd = 0; fd < n; fd++) {
		int events = 0;

		if (in_set(r, fd))
			events |= POLLIN | POLLRDNORM;
		if (in_set(w, fd))
			events |= POLLOUT | POLLWRNORM;
		if (in_set(e, fd))
			events |= POLLPRI;
		if (events)
			out[k++] = (struct pollfd){ .fd = fd, .events = (short)events };
	}
	return k;
}

static int keep(fd_set *set, const struct pollfd *p, int bits)
{
	if (!in_set(set, p->fd))
		return 0;
	if (p->revents & bits)
		return 1;
	out_of_set(set, p->fd);
	return 0;
}

static bool wrong_set(const fd_set *set) { return set && nt_bad_pointer(set); }

/* Room for n descriptors in `fds`. */
static int select_in(struct pollfd *fds, int n, fd_set *r, fd_set *w, fd_set *e, int64_t timeout_ns, const sigset_t *mask)
{
	nfds_t k = select_gather(n, r, w, e, fds);
	int rc = nt_poll(fds, k, timeout_ns, mask), bits = 0;

	if (rc < 0)
		return rc;
	for (nfds_t i = 0; i < k; i++)
		if (fds[i].revents & POLLNVAL)
			return -EBADF;
	for (nfds_t i = 0; i < k; i++)
		bits += keep(r, &fds[i], IN_SET) + keep(w, &fds[i], OUT_SET) + keep(e, &fds[i], EX_SET);
	return bits;
}

static int select_many(int n, fd_set *r, fd_set *w, fd_set *e, int64_t timeout_ns, const sigset_t *mask)
{
	size_t size = (size_t)n * sizeof(struct pollfd);
	struct pollfd *fds = nt_map_private(size);
	int rc;

	if (!fds)
		return -ENOMEM;
	rc = select_in(fds, n, r, w, e, timeout_ns, mask);
	munmap(fds, size);
	return rc;
}

int nt_select(int n, fd_set *r, fd_set *w, fd_set *e, int64_t timeout_ns, int64_t *left_ns, const sigset_t *mask)
{
	struct pollfd fds[FD_SETSIZE];
	int64_t start;
	int rc;

	if (n < 0 || !nt_on() || wrong_set(r) || wrong_set(w) || wrong_set(e))
		return NT_KERNEL;
	if (n > FD_SETSIZE)
		n = table_size(n);
	start = left_ns ? nt_now_ns() : 0;
	rc = n > FD_SETSIZE ? select_many(n, r, w, e, timeout_ns, mask) : select_in(fds, n, r, w, e, timeout_ns, mask);
	if ((rc >= 0 || rc == -EINTR) && left_ns) {
		*left_ns = timeout_ns - (nt_now_ns() - start);
		*left_ns = *left_ns < 0 ? 0 : *left_ns;
	}
	return rc;
}
