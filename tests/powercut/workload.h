/* SPDX-License-Identifier: GPL-2.0 */
/* What the guest's programs have in common; model.py has the names of what is called from Python. */
#ifndef RDAX_POWERCUT_WORKLOAD_H
#define RDAX_POWERCUT_WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "powercut.h"

#define PAGE 4096ULL
#define PMD (2ULL << 20)
#define UNIT 8ULL
#define UNITS (PAGE / UNIT)

#define FILES 8
#define MOST_OPS (1U << 20)

enum op_kind {
	OP_STORE,	/* through a mapping: how: 0 of pages, 1 of 2 MiB or more */
	OP_WRITE,	/* pwrite */
	OP_WRITE_SYNC,	/* a write that is durable when it is over: how: one of enum write_how */
	OP_STORE_SYNC,	/* through a MAP_SYNC mapping, written back by the program */
	OP_FSYNC,	/* how: 1 by io_uring */
	OP_FDATASYNC,
	OP_MSYNC,
	OP_SYNCFS,	/* how: one of enum sync_how */
	OP_TRUNCATE,
	OP_PUNCH,
	OP_ZERO,
	OP_COLLAPSE,
	OP_INSERT,
	OP_CLONE,	/* how: of which file */
	OP_RENAME,	/* a new file takes the place of the old one */
	OP_UNSHARE,	/* shared blocks of a part are replaced by copies */
	OP_REOPEN,	/* the file is unmapped, closed, evicted if that is possible, and opened again */
	OP_UMOUNT,	/* of the filesystem; always followed by */
	OP_MOUNT,
	OPS,
};

enum write_how {
	WRITE_DSYNC,	/* O_DSYNC */
	WRITE_SYNC,	/* O_SYNC */
	WRITE_RWF_DSYNC,
	WRITE_RWF_SYNC,
	WRITE_URING,	/* io_uring, RWF_DSYNC */
	WRITE_HOWS,
};

enum sync_how {
	SYNC_FS,	/* syncfs */
	SYNC_FREEZE,	/* frozen, and thawed */
	SYNC_REMOUNT,	/* mounted for reading only, and for writing again, with no file open */
	SYNC_HOWS,
};

/* What was done, in order. Everything is in bytes, and a multiple of UNIT. */
struct op {
	uint8_t kind, file, how;
	uint64_t offset, length;
};

/*
 * Another one for each recording of a guest, so that what an earlier one left in blocks that are free now
 * is not taken for what this one stored.
 */
extern uint8_t salt;

static inline uint64_t place_of(uint64_t offset)
{
	return (uint64_t)salt << 20 | (offset / UNIT & 0xfffff);
}

/* What the operation of this number stores at this offset of this file. Zero is nobody's. */
static inline uint64_t value_of(uint32_t number, unsigned int file, uint64_t offset)
{
	return (uint64_t)(number + 1) << 32 | (uint64_t)file << 28 | place_of(offset);
}

/* The contents that a file has at first. */
#define FIRST 0xfffffffeU

struct workload {
	/* Files that have pages at first, of so many bytes; the others are empty. */
	unsigned int files, full;
	uint64_t size, most;
	/* How often each operation is done, relative to the others. */
	unsigned int weights[OPS];
	/* The last file only is renamed over, and no other. */
	bool renames;
	/* What changes blocks changes whole entries of 2 MiB in half of all cases. */
	bool large;
};

extern struct op *ops;
extern uint32_t op_count;
bool make_room(void);

const struct workload *find_workload(const char *name);

bool get_mapped(void *to, const void *from, size_t length);
bool get_contents(int fd, void *to, size_t length, uint64_t at, bool by_read);

int oracle_begin(const char *name);
int oracle_advance(uint64_t events);
bool oracle_allows(unsigned int file, uint64_t page, const uint64_t *words);

int64_t powercut_ask(uint64_t op, uint64_t a, uint64_t b, uint64_t c);

#endif
