/* SPDX-License-Identifier: GPL-2.0 */
/* What the tests of the model share: memory of the device that is recorded, and what a cut leaves of it. */
#ifndef RDAX_POWERCUT_KNOWN_H
#define RDAX_POWERCUT_KNOWN_H

#include <stdbool.h>
#include <stdint.h>

#include "powercut.h"

/* Of the library's own use, so that nothing stands between its parts. */
#pragma GCC visibility push(hidden)

#define LINE 64
#define PAGE 4096

/* Memory of the device that is recorded, all of it zero and durable at first, and its address. */
extern uint8_t *memory;
extern uint64_t bytes, used;
/* Everything is durable at once: whatever a cut is to lose, all is left. */
extern bool eadr;

void wrong(const char *name, const char *what, uint64_t got);
/* So many lines that nobody has used. */
uint8_t *fresh(unsigned int lines);
int64_t cut(enum powercut_kind kind);
/* What is left at an address after a cut. */
uint64_t left(int64_t number, const void *at);

static inline void store(void *at, uint64_t value)
{
	*(volatile uint64_t *)at = value;
}

static inline void clwb(void *at)
{
	__asm__ volatile("clwb (%0)" : : "r"(at) : "memory");
}

static inline void sfence(void)
{
	__asm__ volatile("sfence" : : : "memory");
}

static inline void movnti(void *at, uint64_t value)
{
	__asm__ volatile("movnti %1, (%0)" : : "r"(at), "r"(value) : "memory");
}

#define V 0x1122334455667788ULL
#define W 0x99aabbccddeeff00ULL

static inline void store_clwb(uint8_t *at)
{
	store(at, V);
	clwb(at);
}

/* known-programs.c */
void run_programs(void);

/* known-two.c */
void while_mappings_change(int fd, uint64_t offset);
void other_processor(void);

#pragma GCC visibility pop

#endif /* RDAX_POWERCUT_KNOWN_H */
