/* SPDX-License-Identifier: GPL-2.0 */
/* Chance that is the same again for the same seed (SplitMix64). */
#ifndef RDAX_POWERCUT_CHANCE_H
#define RDAX_POWERCUT_CHANCE_H

#include <stdint.h>

static uint64_t random_state;

static inline uint64_t draw(void)
{
	uint64_t x = random_state += 0x9e3779b97f4a7c15ULL;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

/* A number below n; 0 if that is 0. */
static inline uint64_t below(uint64_t n)
{
	return n ? draw() % n : 0;
}

#endif /* RDAX_POWERCUT_CHANCE_H */
