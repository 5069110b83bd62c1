// Whether this process may use the matrix tiles (AMX) of its processor.
#pragma once
#include "vectors.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define AMX
#define SETTLED __asm__ volatile("" ::: "memory")  // GCC does not know that a tile load reads what it points to
static int amx;  // whether the kernel lets this process use the tiles: ARCH_REQ_XCOMP_PERM of XTILEDATA
__attribute__((constructor)) static void ask_for_tiles(void) { amx = syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#endif
