/*
 * sandbox.h - what an isolated process may still ask of the kernel: only what its own list names, no
 * file system, no network, no executable memory, no new privileges. Anything else ends it (SIGSYS), which
 * the keeper counts as a fault.
 *
 * Entered once, after start-up and before the first byte of anybody else's is looked at. Builds with a
 * sanitizer keep their own runtime's calls and are not filtered.
 */
#ifndef NEAT_SANDBOX_H
#define NEAT_SANDBOX_H

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { SANDBOX_CALLS_MAX = 60 };

#if defined(__x86_64__)
#define SANDBOX_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define SANDBOX_ARCH AUDIT_ARCH_AARCH64
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(SANDBOX_ARCH)
enum { SANDBOX_FILTERS = 0 };
#else
enum { SANDBOX_FILTERS = 1 };
#endif

#define SANDBOX_LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define SANDBOX_RETURN(verdict) BPF_STMT(BPF_RET | BPF_K, verdict)

/*
 * `calls`: system call numbers. mmap is always allowed without PROT_EXEC, and so are reading the clock,
 * returning from a signal handler and ending. False with errno when the kernel refuses (seccomp(2)).
 */
static inline bool sandbox_enter(const uint32_t *calls, unsigned n)
{
	static const uint32_t always[] = { SYS_clock_gettime, SYS_rt_sigreturn, SYS_exit_group, SYS_munmap, SYS_brk };
	const unsigned nalways = sizeof(always) / sizeof(always[0]);
	struct sock_filter f[2 * SANDBOX_CALLS_MAX + 16], *p = f;
	struct sock_fprog prog = { .filter = f };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return false;
	if (!SANDBOX_FILTERS)
		return true;
#ifdef SANDBOX_ARCH
	*p++ = (struct sock_filter)SANDBOX_LOAD(arch);
	*p++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SANDBOX_ARCH, 1, 0);
	*p++ = (struct sock_filter)SANDBOX_RETURN(SECCOMP_RET_KILL_PROCESS);
#endif
	*p++ = (struct sock_filter)SANDBOX_LOAD(nr);
	for (unsigned i = 0; i < n + nalways && i < SANDBOX_CALLS_MAX; i++) {
		uint32_t call = i < n ? calls[i] : always[i - n];

		*p++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
		*p++ = (struct sock_filter)SANDBOX_RETURN(SECCOMP_RET_ALLOW);
	}
	*p++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 3);
	*p++ = (struct sock_filter)SANDBOX_LOAD(args[2]);
	*p++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0);
	*p++ = (struct sock_filter)SANDBOX_RETURN(SECCOMP_RET_ALLOW);
	*p++ = (struct sock_filter)SANDBOX_RETURN(SECCOMP_RET_KILL_PROCESS);
	prog.len = (unsigned short)(p - f);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog, 0, 0) == 0;
}

#endif
