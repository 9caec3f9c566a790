/*
 * shim.h - what the files of interposed calls share. Each wrapper asks the client library (client.h);
 * NT_KERNEL means libc's own call. errno is written here and nowhere below, and only on failure.
 */
#ifndef NEAT_SHIM_H
#define NEAT_SHIM_H

#include "client.h"
#include <errno.h>

#define SHIM __attribute__((visibility("default")))

/* Result of a wrapper: `ours` is evaluated once; `real` only if the fd is the kernel's. */
#define SHIM_RETURN(ours, real)                 \
	do {                                    \
		int saved_ = errno;             \
		__typeof__(real) r_;            \
		nt_enter();                     \
		r_ = (ours);                    \
		nt_leave();                     \
		if (r_ == NT_KERNEL) {          \
			errno = saved_;         \
			return (real);          \
		}                               \
		errno = r_ < 0 ? (int)-r_ : saved_; \
		return r_ < 0 ? -1 : r_;        \
	} while (0)

/* shim_process.c: LD_PRELOAD brought us, so every call of the program arrives here. */
bool shim_preloaded(void);
/* shim_poll.c: a system call that waits for descriptors. NT_KERNEL: it is none, or has nothing of ours to wait for; -errno. */
long shim_wait_by_number(long nr, const long a[6]);
/* shim_stdio.c: this image was exec'ed with sockets; stdin, stdout or stderr may be among them. */
void shim_standard_streams(void);

#endif
