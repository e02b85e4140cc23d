/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of the benchmark share. */
#ifndef RDAX_BENCH_H
#define RDAX_BENCH_H

#include <regex.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE ((size_t)4096)
#define PMD ((size_t)2 << 20)
#define PUD ((size_t)1 << 30)

enum access { READ, WRITE };

struct options {
	const char *dir;
	size_t size;		/* of the file of most rows */
	size_t pmd;		/* of the file of the 2 MiB rows: larger, as its units are few */
	size_t large;		/* of the file of the rows that are named after it, 0 for none */
	size_t pud;		/* of the file of the 1 GiB rows, 0 for none */
	unsigned int procs;
	bool list;
	bool keep;
	bool cached;		/* the rows of files without DAX, not the others */
	bool only;
	regex_t wanted;
};
extern struct options opt;

/* The order in which the parts of a file are touched. */
enum order { SEQUENTIAL, RANDOM, SPARSE, BURSTS };

/* Every so many pages are touched in a SPARSE order, and one burst of BURST pages in BURSTS. */
#define SPARSITY 8
#define BURST 4

/* A file, its mapping, and how it is touched. */
struct file {
	int fd;
	size_t size;
	size_t unit;		/* by which it is mapped: PAGE, PMD or PUD */
	char *at;		/* NULL if it is not mapped */
	size_t step;		/* between touched bytes: nobody maps more than a PMD but on request */
	uint32_t *steps;	/* in which order: an array for all orders, so that all cost the same */
	size_t touches;
	size_t operations;	/* that touching it once counts as */
};

enum content { HOLE, UNWRITTEN, FILLED };

/* file.c */
int fresh(size_t size);
void fill(int fd, size_t size);
void map(struct file *file);
void unmap(struct file *file);
void remap(struct file *file);
void shuffle(uint32_t *steps, size_t count);
void plan(struct file *file, enum order order);
struct file make(size_t size, size_t unit, enum order order, enum content content);
void discard(struct file *file);

/* row.c */
long faults(void);
void start(void);
bool wanted(const char *name);
void done_with(const char *name, size_t operations, const long *taken);
void done(const char *name, size_t operations);
void touch(const struct file *file, enum access access);
void settle(const struct file *file);
void timed_touch(const char *name, const struct file *file, enum access access);
void timed_fsync(const char *name, const struct file *file);
void timed_truncate(const char *name, struct file *file);
void timed_unmap(const char *name, struct file *file);

/* scenarios.c */
void run_scenarios(void);

#endif /* RDAX_BENCH_H */
