/* real.c - libc's own functions, resolved once by the constructor, and system calls past libc and our syscall(). */
#define _GNU_SOURCE
#include "internal.h"
#include <dlfcn.h>
#include <stdarg.h>
#include <sys/syscall.h>

struct nt_real nt_real;

void nt_real_init(void)
{
	/* POSIX lets an object pointer carry a function's address for dlsym(); ISO C needs the copy. */
#define NT_CALL(ret, name, ...)                                          \
	do {                                                             \
		void *p = dlsym(RTLD_NEXT, #name);                       \
		memcpy(&nt_real.name, &p, sizeof(p));                    \
	} while (0);
#include "real_calls.h"
#undef NT_CALL
}

long nt_kernel_call(long nr, const long a[6])
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = a[3];
	register long r8 __asm__("r8") = a[4];
	register long r9 __asm__("r9") = a[5];
	long rc;

	__asm__ volatile("syscall"
			 : "=a"(rc)
			 : "a"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return rc;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a[0];
	register long x1 __asm__("x1") = a[1];
	register long x2 __asm__("x2") = a[2];
	register long x3 __asm__("x3") = a[3];
	register long x4 __asm__("x4") = a[4];
	register long x5 __asm__("x5") = a[5];

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
#else
#error "neatsock runs on x86-64 and aarch64"
#endif
}

long nt_syscall(long nr, ...)
{
	long a[6], rc;
	va_list ap;

	va_start(ap, nr);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	rc = nt_kernel_call(nr, a);
	if ((unsigned long)rc <= -4096ul)
		return rc;
	errno = (int)-rc;
	return -1;
}

void nt_kernel_close(int fd) { nt_syscall(SYS_close, fd); }

int nt_kernel_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	return (int)nt_syscall(SYS_connect, fd, addr, (size_t)len);
}
