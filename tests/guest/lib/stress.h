/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of stress share: files, words that say where they belong, and how they are looked at. */
#ifndef STRESS_H
#define STRESS_H

#include "worker.h"

#define PAGE 4096ul
#define PMD (2ul << 20)
#define MAX (4 * PMD)		/* largest size of a file */
#define SHARED 3
#define WORKERS 16
#define SHARED_ID 0x40		/* file ids below are a worker's own */
#define DISK_PART (2 * PMD)	/* the disk: one part for each worker, then for each shared file */
#define LEAST 200		/* operations of each process, however long they take */

struct progress {
	volatile uint64_t ops, checks, busy, since;
	volatile int op;
};
extern struct progress *progress;	/* shared by all */

struct file {
	char path[256];
	int fd, id;
	uint8_t *huge, *small;	/* mappings at an aligned address and a page beside one */
	uint8_t *model;		/* what it must hold; own files only */
	size_t size;
};
extern struct file own, copy, shared[SHARED];
extern int disk;
extern uint8_t *bounce;

void fill(uint64_t *to, int id, size_t offset, size_t length);
void store(volatile uint64_t *to, const uint64_t *from, size_t length);
void load(uint64_t *to, const volatile uint64_t *from, size_t length);
void check_words(const uint64_t *words, int id, size_t offset, size_t length, const char *what);
uint8_t *map_at(int fd, size_t length, size_t skew, int flags);
void remap(struct file *f, uint8_t *at);
/* A range inside [0, size), aligned to the step, often small, sometimes 2 MiB at once. */
bool range(size_t size, size_t step, size_t *offset, size_t *length);

/* stress-own.c */
void check_by_read(const struct file *f, size_t offset, size_t length, const char *what);
void check_by_load(const struct file *f, const uint8_t *m, size_t offset, size_t length, const char *what);
void own_op(void);

/* stress-shared.c */
void read_other(void);
void shared_op(void);

#endif /* STRESS_H */
