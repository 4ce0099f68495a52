/* What the loader asks the library before it calls a kernel. */
#include "level.h"

/* Raised with any struct of a call, so that a library built from other sources is not used. */
#define KERNELS_ABI 3

int64_t kernels_abi(void) { return KERNELS_ABI; }

int64_t kernels_level(void) { return best_level(); }
