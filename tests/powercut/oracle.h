/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of the oracle share: the paper. */
#ifndef RDAX_POWERCUT_ORACLE_H
#define RDAX_POWERCUT_ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "workload.h"

/* Of the library's own use, so that nothing stands between its parts. */
#pragma GCC visibility push(hidden)

#define STATES 32
#define NEVER 0xffffffffU
#define MOST_PAGES ((4ULL << 20) / PAGE)

struct alternative {
	uint64_t value;
	uint32_t next;		/* 0: none */
};

struct block {
	uint64_t promised[UNITS];
	/* The promise that counts, plus one; 0: none, it is what a new block has. */
	uint32_t promise[UNITS];
	/* What was stored since, the latest first. */
	uint32_t since[UNITS];
	unsigned int users;
	bool open;		/* whether anything was */
	/* Files that shared it have blocks of the same kin; 0: there is no other that may have it. */
	uint32_t kin;
	/*
	 * It may have been copied for this file since, by operation `left` at the earliest, but that this is
	 * so was not promised yet.
	 */
	bool leaving;
	uint32_t left;
	/* It was copied: another file had it when this one stored to it. */
	bool copied;
	/* Not all of its kin need be one block any more. */
	bool mixed;
};

struct state {
	uint64_t size;
	/* The step here from the state before may be found half done: pages may be missing, */
	bool gaps;
	/* and the size be any in between. */
	bool sizes;
	/* The operation that led here. */
	uint32_t by;
	uint32_t blocks[MOST_PAGES];	/* 0: a hole */
};

struct file {
	struct state *states;
	unsigned int count;
	/* The promise of its size. */
	uint32_t promise;
	/* One that is renamed over: the contents that it may have. */
	uint32_t old, new;
};

/* oracle.c */
extern const struct workload *workload;
extern struct file files[FILES];
extern struct block *blocks;
extern struct alternative *alternatives;
/* Of each operation that stored, where its pages' kins begin in `stored_kins`. */
extern uint32_t *stored_at, *stored_kins;
/* What was zeroed in blocks that may be another file's as well. */
struct zeroed {
	uint32_t kin, by;
	uint16_t from, to;	/* of the words of the page */
};
extern struct zeroed *zeroed;
extern uint32_t zeroed_count;
/* The operation of the last event that has been gone through. */
extern uint32_t current;
/* When each promise was counted last. */
extern uint32_t *counted, counting;

struct state *last(unsigned int file);

/* oracle-pages.c */
/* Words found that are those of a file that shared the block. */
extern uint64_t through_shared;
/* Where what is wrong is told. */
extern char *said;
extern size_t said_room;

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool check_page(unsigned int file, uint64_t page, const uint64_t *words, unsigned int units,
		uint64_t *promises);

#pragma GCC visibility pop

#endif /* RDAX_POWERCUT_ORACLE_H */
