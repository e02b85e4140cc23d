/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs have in common whose worker processes use files in every way at once: options,
 * chance, a record of what was done last, and accesses to a file that is cut meanwhile.
 */
#ifndef WORKER_H
#define WORKER_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "random.h"

extern const char *dir, *disk_path;
extern int seconds, workers;
extern uint64_t seed;
extern bool reflink;
extern bool until_told;		/* go on until standard input ends, too */

extern int me;			/* number of this worker */

/* Remember what is done next, with whatever tells most of it. */
void did(const char *what, uint64_t a, uint64_t b, uint64_t c);

/* End the worker with what is wrong and what was done before. */
__attribute__((noreturn, format(printf, 1, 2)))
void fail(const char *format, ...);

/*
 * Whether a worker that has done OPS operations goes on: for all of its time, for the LEAST that it
 * has to do however long they take, and until the program is told that enough was seen.
 */
bool go_on(uint64_t end, uint64_t ops, uint64_t least);

/* What a worker does first. */
void become_worker(int number);

/* Take an option that all of these programs have; false for another. */
bool take_option(int option);

#endif /* WORKER_H */
