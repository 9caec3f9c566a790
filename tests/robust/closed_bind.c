/*
 * A thread is held in bind() of a datagram socket while it reads the address, by a page that faults. Meanwhile the socket is
 * closed, and other sockets get all the records that there are, its own among them: whatever the address makes of the
 * first one, they are what they were.
 * Run: closed_bind. Prints what is wrong, then "connected N".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	CLOSED = 65000, KEPT = 600,	/* more than NEAT_SOCKS_MAX together */
};

static struct sockaddr_in *address;	/* a page of its own */
static int stopped[2], go[2];

static void fail(const char *what)
{
	printf("WRONG: %s\n", what);
	fflush(stdout);
	_exit(1);
}

/* Of SIGSEGV: says so in `stopped`, and waits for a byte in `go`. */
static void in_between(int sig)
{
	char c;
	(void)sig;

	if (syscall(SYS_write, stopped[1], "", 1) != 1 || syscall(SYS_read, go[0], &c, 1) != 1 ||
	    mprotect(address, PAGE, PROT_READ))
		_exit(1);
}

static void *slow_bind(void *fd)
{
	bind(*(int *)fd, (struct sockaddr *)address, sizeof(*address));
	return NULL;
}

static int stream(void)
{
	int s = socket(AF_INET, SOCK_STREAM, 0);

	if (s < 0)
		fail("socket");
	return s;
}

int main(void)
{
	struct sigaction trap = { .sa_handler = in_between };
	struct sockaddr_in where = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int kept[KEPT], l = stream(), slow = socket(AF_INET, SOCK_DGRAM, 0), null = open("/dev/null", O_RDWR);
	socklen_t len = sizeof(where);
	pthread_t thread;
	char c;

	alarm(50);
	address = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (address == MAP_FAILED || null < 0)
		return 1;
	/* RFC 5737: nobody's, so the socket is the kernel's. */
	*address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(0xcb007101), .sin_port = htons(53) };
	if (bind(l, (struct sockaddr *)&where, len) || listen(l, KEPT) || getsockname(l, (struct sockaddr *)&where, &len))
		fail("listen");
	if (pipe(stopped) || pipe(go) || sigaction(SIGSEGV, &trap, NULL) || mprotect(address, PAGE, PROT_NONE))
		return 1;
	if (pthread_create(&thread, NULL, slow_bind, &slow) || read(stopped[0], &c, 1) != 1)
		return 1;
	if (dup2(null, slow) != slow)	/* and the number is taken */
		fail("dup2");
	for (int i = 0; i < CLOSED; i++)
		close(stream());
	for (int i = 0; i < KEPT; i++)
		kept[i] = stream();
	if (write(go[1], "", 1) != 1 || pthread_join(thread, NULL))
		return 1;
	for (int i = 0; i < KEPT; i++)
		if (connect(kept[i], (struct sockaddr *)&where, sizeof(where)))
			fail("a socket that nobody gave to the kernel");
	printf("connected %d\n", KEPT);
	return 0;
}
