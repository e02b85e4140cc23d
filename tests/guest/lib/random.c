// SPDX-License-Identifier: GPL-2.0
#include <time.h>

#include "random.h"

__thread uint64_t rng;
__thread sigjmp_buf fault_out;
__thread volatile bool fault_ok;

uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ull + t.tv_nsec / 1000000;
}

uint64_t below(uint64_t n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return n ? (rng >> 8) % n : 0;
}
