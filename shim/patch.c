/*
 * patch.c - neatsock in a process that runs already: neatsock.patch() loads this library and has the GOT
 * entries of everything loaded rewritten, which covers the same calls as LD_PRELOAD does, including
 * those of extension modules that were imported long ago (ssl, uvloop, libcurl).
 *
 * Left alone: libc, the dynamic linker and ourselves. Objects that are loaded later are caught by
 * the dlopen() entry. The program's threads may run meanwhile: each entry changes by one store.
 */
#define _GNU_SOURCE
#include "shim.h"
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

SHIM int neatsock_patch(int default_on);
SHIM void neatsock_explicit(int on);
SHIM void neatsock_instance(const char *path);
SHIM int neatsock_loaded(void);

static void *patched_dlopen(const char *file, int flags);
static bool patching;

static void *own(const char *name)
{
	static void *self;
	Dl_info info;

	if (!self && dladdr((void *)(uintptr_t)&neatsock_patch, &info))
		self = dlopen(info.dli_fname, RTLD_NOLOAD | RTLD_NOW);
	return self ? dlsym(self, name) : NULL;
}

static void *replacement(const char *name)
{
	static const char *const NAMES[] = {
#define NEAT_SHIM(n) #n,
#include "calls.h"
	};

	if (strcmp(name, "dlopen") == 0)
		return (void *)(uintptr_t)&patched_dlopen;
	for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++)
		if (strcmp(name, NAMES[i]) == 0)
			return own(name);
	return NULL;
}

struct object {
	ElfW(Addr) base;
	const ElfW(Sym) *symbols;
	const char *strings;
	int changed;
};

#if defined(__x86_64__)
enum { JUMP_SLOT = R_X86_64_JUMP_SLOT, GLOB_DAT = R_X86_64_GLOB_DAT, ABSOLUTE = R_X86_64_64 };
#else
enum { JUMP_SLOT = R_AARCH64_JUMP_SLOT, GLOB_DAT = R_AARCH64_GLOB_DAT, ABSOLUTE = R_AARCH64_ABS64 };
#endif

/*
 * The page may be read-only after relocation (RELRO): writable for the store, then as before. One that is
 * writable stays so: the dynamic linker resolves into it lazily, or is relocating it just now. Two
 * threads do not meet here, dl_iterate_phdr() holds a lock.
 */
static void store(void **slot, void *value)
{
	uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE);
	void *page = (void *)((uintptr_t)slot & ~(size - 1));
	bool writable = madvise(page, size, MADV_POPULATE_WRITE) == 0;

	if (!writable && mprotect(page, size, PROT_READ | PROT_WRITE))
		return;
	__atomic_store_n(slot, value, __ATOMIC_RELEASE);
	if (!writable)
		mprotect(page, size, PROT_READ);
}

static void relocations(struct object *o, const ElfW(Rela) *rela, size_t bytes)
{
	for (size_t i = 0; i < bytes / sizeof(*rela); i++) {
		uint32_t type = (uint32_t)ELF64_R_TYPE(rela[i].r_info);
		const ElfW(Sym) *sym = &o->symbols[ELF64_R_SYM(rela[i].r_info)];
		void **slot = (void **)(o->base + rela[i].r_offset), *want;

		if ((type != JUMP_SLOT && type != GLOB_DAT && type != ABSOLUTE) || sym->st_shndx != SHN_UNDEF)
			continue;
		want = replacement(o->strings + sym->st_name);
		if (!want || *slot == want)
			continue;
		store(slot, want);
		o->changed++;
	}
}

/* Dynamic entries hold addresses, which glibc has relocated in place (except in the vDSO). */
static const void *address(const struct object *o, ElfW(Addr) v)
{
	return (const void *)(v < o->base ? o->base + v : v);
}

static void dynamic(struct object *o, const ElfW(Dyn) *d)
{
	const ElfW(Rela) *plt = NULL, *rela = NULL;
	size_t plt_bytes = 0, rela_bytes = 0;

	for (; d->d_tag != DT_NULL; d++) {
		if (d->d_tag == DT_SYMTAB)
			o->symbols = address(o, d->d_un.d_ptr);
		else if (d->d_tag == DT_STRTAB)
			o->strings = address(o, d->d_un.d_ptr);
		else if (d->d_tag == DT_JMPREL)
			plt = address(o, d->d_un.d_ptr);
		else if (d->d_tag == DT_PLTRELSZ)
			plt_bytes = d->d_un.d_val;
		else if (d->d_tag == DT_RELA)
			rela = address(o, d->d_un.d_ptr);
		else if (d->d_tag == DT_RELASZ)
			rela_bytes = d->d_un.d_val;
	}
	if (!o->symbols || !o->strings)
		return;
	if (plt)
		relocations(o, plt, plt_bytes);
	if (rela)
		relocations(o, rela, rela_bytes);
}

static bool left_alone(const char *name)
{
	static const char *const FILES[] = { "/libc.so", "/ld-linux", "/libneatsock.so", "/libpthread.so", "/libdl.so",
					     "linux-vdso", "/libc-" };

	for (size_t i = 0; i < sizeof(FILES) / sizeof(FILES[0]); i++)
		if (strstr(name, FILES[i]))
			return true;
	return false;
}

static int each_object(struct dl_phdr_info *info, size_t size, void *count)
{
	struct object o = { .base = info->dlpi_addr };

	(void)size;
	if (left_alone(info->dlpi_name))
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
			dynamic(&o, (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr));
	*(int *)count += o.changed;
	return 0;
}

static void *patched_dlopen(const char *file, int flags)
{
	void *handle = dlopen(file, flags);
	int count = 0;

	if (handle)
		dl_iterate_phdr(each_object, &count);
	return handle;
}

/* Number of entries rewritten. default_on: every new AF_INET stream or datagram socket is ours. */
SHIM int neatsock_patch(int default_on)
{
	int count = 0;

	if (default_on)
		nt_default(true);
	if (!patching) {
		patching = true;
		dl_iterate_phdr(each_object, &count);
		nt_adopt_handlers();
	}
	return count;
}

/* This thread's next sockets are ours, whatever the process's default. */
SHIM void neatsock_explicit(int on) { nt_explicit(on != 0); }

SHIM void neatsock_instance(const char *path) { nt_set_socket(path); }

/* 1: calls of this process arrive here already (LD_PRELOAD or an earlier patch). */
SHIM int neatsock_loaded(void)
{
	return patching || shim_preloaded();
}
