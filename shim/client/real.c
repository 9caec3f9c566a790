/* real.c - libc's own functions, resolved once by the constructor. */
#define _GNU_SOURCE
#include "internal.h"
#include <dlfcn.h>

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
