// SPDX-License-Identifier: GPL-2.0
/* row: begins and ends a row, and does what most rows time. */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "mark.h"

/* The row that is being timed. */
static struct {
	struct timespec start;
	long faults;
} now;

long faults(void)
{
	struct rusage usage;

	if (getrusage(RUSAGE_SELF, &usage))
		err(1, "getrusage");
	return usage.ru_minflt + usage.ru_majflt;
}

void start(void)
{
	now.faults = faults();
	/* The marks are outside of what the clock sees. */
	mark(MARK_BEGIN);
	clock_gettime(CLOCK_MONOTONIC, &now.start);
}

bool wanted(const char *name)
{
	return !opt.only || !regexec(&opt.wanted, name, 0, NULL, 0);
}

/* Ends the row that start() began. The faults are this process's, or those of who took them. */
void done_with(const char *name, size_t operations, const long *taken)
{
	struct timespec end;
	long long ns;

	clock_gettime(CLOCK_MONOTONIC, &end);
	mark(MARK_END);
	ns = (end.tv_sec - now.start.tv_sec) * 1000000000LL + end.tv_nsec - now.start.tv_nsec;
	if (wanted(name)) {
		if (opt.keep)
			mark(MARK_KEEP);
		printf("%s %zu %lld %ld\n", name, operations, ns,
		       taken ? *taken : faults() - now.faults);
		fflush(stdout);
	}
}

void done(const char *name, size_t operations)
{
	done_with(name, operations, NULL);
}

void touch(const struct file *file, enum access access)
{
	size_t i;

	for (i = 0; i < file->touches; i++) {
		volatile char *byte = file->at + file->steps[i] * file->step;

		if (access == WRITE)
			*byte = 1;
		else
			(void)*byte;
	}
}

/* A file that was to be mapped by large units must leave nothing to fault. */
static void check_mapped(const char *name, const struct file *file)
{
	long before = faults(), more;
	size_t i;

	for (i = 0; i < file->size; i += PAGE)
		(void)*(volatile char *)(file->at + i);
	more = faults() - before;
	if (more)
		warnx("%s: not mapped by 2 MiB or more: %ld faults more", name, more);
}

void settle(const struct file *file)
{
	if (syncfs(file->fd))
		err(1, "syncfs");
}

void timed_touch(const char *name, const struct file *file, enum access access)
{
	start();
	touch(file, access);
	done(name, file->operations);
	if (file->unit > PAGE && wanted(name))
		check_mapped(name, file);
}

void timed_fsync(const char *name, const struct file *file)
{
	start();
	if (fsync(file->fd))
		err(1, "fsync");
	done(name, file->operations);
}

void timed_truncate(const char *name, struct file *file)
{
	if (file->at)
		unmap(file);
	start();
	if (ftruncate(file->fd, 0))
		err(1, "ftruncate");
	done(name, file->operations);
}

void timed_unmap(const char *name, struct file *file)
{
	start();
	unmap(file);
	done(name, file->operations);
}
