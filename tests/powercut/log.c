// SPDX-License-Identifier: GPL-2.0
/*
 * log: a log as programs keep one in persistent memory. Records are appended through a MAP_SYNC mapping and
 * written back by the program itself; fsync is called only where the file grows or the log begins anew.
 * A record counts once its first word is there, which is stored when the rest is durable.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chance.h"
#include "workload.h"

#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

/* No log becomes larger. It grows by some pages at a time, or has its full size from the first. */
#define FULL (4ULL << 20)
#define SOME (32 * PAGE)
#define MOST_RECORDS (FULL / (8 * UNIT))

enum step_kind { APPEND, GROW, ANEW };

struct record {
	uint64_t number, at, length;
};

/* A log as it is after some steps, which follow from the seed alone. */
struct log {
	uint64_t chance, number, end, size;
	struct record records[MOST_RECORDS];
	unsigned int count;
};

struct step {
	enum step_kind kind;
	struct record record;
	uint64_t size;
};

static struct log *made, *checked;
static uint64_t seed;

static bool begin(struct log **log)
{
	if (!*log)
		*log = malloc(sizeof(**log));
	if (!*log)
		return false;
	(*log)->chance = seed;
	(*log)->number = (*log)->end = (*log)->size = 0;
	(*log)->count = 0;
	return true;
}

static uint64_t word(const struct record *record, uint64_t i)
{
	return value_of(record->number, i % 15, record->at + i * UNIT);
}

/* What comes next. */
static struct step next(struct log *log)
{
	struct step step = { .kind = APPEND };

	random_state = log->chance;
	step.record = (struct record){ log->number, log->end, (1 + below(1ULL << below(11))) * UNIT };
	if (step.record.at + step.record.length > FULL) {
		step.kind = ANEW;
		step.size = below(2) ? SOME : FULL;
	} else if (step.record.at + step.record.length > log->size) {
		step.kind = GROW;
		step.size = (step.record.at + step.record.length + SOME - 1) / SOME * SOME;
	}
	return step;
}

static void done(struct log *log, const struct step *step)
{
	switch (step->kind) {
	case APPEND:
		/* The next one has another length. */
		log->chance = random_state;
		log->records[log->count++] = step->record;
		log->number++;
		log->end += step->record.length;
		break;
	case GROW:
		log->size = step->size;
		break;
	case ANEW:
		log->chance = random_state;
		log->size = step->size;
		log->end = log->count = 0;
		break;
	}
}

static void write_back(const uint8_t *at, uint64_t length)
{
	const uint8_t *line = (const uint8_t *)((uintptr_t)at & -64ULL);

	for (; line < at + length; line += 64)
		__asm__ volatile("clwb (%0)" : : "r"(line) : "memory");
	__asm__ volatile("sfence" : : : "memory");
}

static void append(uint8_t *memory, const struct record *record)
{
	volatile uint64_t *to = (volatile uint64_t *)(memory + record->at);
	uint64_t i;

	for (i = 1; i < record->length / UNIT; i++)
		to[i] = word(record, i);
	write_back(memory + record->at, record->length);
	to[0] = word(record, 0);
	write_back(memory + record->at, UNIT);
}

static int perform(int fd, uint8_t *memory, const struct step *step)
{
	switch (step->kind) {
	case APPEND:
		append(memory, &step->record);
		return 0;
	case GROW:
		return ftruncate(fd, step->size) || fsync(fd);
	case ANEW:
		return ftruncate(fd, 0) || fsync(fd) ||
		       (step->size == FULL ? fallocate(fd, 0, 0, FULL) : ftruncate(fd, step->size)) ||
		       fsync(fd);
	}
	return -1;
}

static int open_log(const char *path, int flags)
{
	char name[300];

	snprintf(name, sizeof(name), "%s/log", path);
	return open(name, flags, 0600);
}

int log_prepare(const char *path)
{
	int fd = open_log(path, O_RDWR | O_CREAT | O_TRUNC), bad;

	if (fd < 0)
		return -1;
	bad = fsync(fd);
	close(fd);
	return bad;
}

int64_t log_run(const char *path, uint64_t with, int64_t wanted, uint32_t most)
{
	int fd = open_log(path, O_RDWR), bad = 0;
	int64_t cuts = 0;
	uint8_t *memory;
	uint32_t i;

	seed = with;
	if (fd < 0 || !begin(&made))
		return -1;
	memory = mmap(NULL, FULL, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
	if (memory == MAP_FAILED)
		return -1;
	for (i = 0; i < most && cuts < wanted && !bad; i++) {
		struct step step = next(made);

		powercut_ask(POWERCUT_EVENT, 0, 2ULL * i + 1, 0);
		bad = perform(fd, memory, &step);
		done(made, &step);
		cuts = powercut_ask(POWERCUT_EVENT, 0, 2ULL * i + 2, 0);
	}
	munmap(memory, FULL);
	close(fd);
	return bad ? -1 : cuts;
}

/* What another run of this seed has promised. */
void log_recall(uint64_t with)
{
	seed = with;
}

static uint64_t contents[FULL / UNIT];

static int complain(char *to, size_t length, const char *what, uint64_t at)
{
	snprintf(to, length, "log at %#llx: %s: %#llx\n", (unsigned long long)at, what,
		 (unsigned long long)contents[at / UNIT]);
	return 1;
}

/* How many of the words of a record are there, from the first. */
static uint64_t there(const struct record *record)
{
	uint64_t i;

	for (i = 0; i < record->length / UNIT; i++)
		if (contents[record->at / UNIT + i] != word(record, i))
			break;
	return i;
}

static bool size_may_be(uint64_t size, const struct log *log, const struct step *begun)
{
	if (size == log->size)
		return true;
	if (!begun || begun->kind == APPEND)
		return false;
	return size == begun->size || (begun->kind == ANEW && !size);
}

int log_check(const char *path, uint64_t events, bool by_read, char *to, size_t length, uint64_t *promises)
{
	struct step step, *begun = NULL;
	struct stat status;
	uint64_t i, end;
	int fd;

	to[0] = 0;
	if (!begin(&checked))
		return complain(to, length, "no memory", 0);
	for (i = 0; i < events / 2; i++) {
		step = next(checked);
		done(checked, &step);
	}
	if (events % 2) {
		step = next(checked);
		begun = &step;
	}
	*promises += checked->count + (checked->size != 0);
	fd = open_log(path, O_RDONLY);
	memset(contents, 0, sizeof(contents));
	if (fd < 0 || fstat(fd, &status) || status.st_size > (off_t)FULL ||
	    !get_contents(fd, contents, status.st_size, 0, by_read)) {
		snprintf(to, length, "log: cannot be read: %s\n", strerror(errno));
		if (fd >= 0)
			close(fd);
		return 1;
	}
	close(fd);
	if (!size_may_be(status.st_size, checked, begun)) {
		snprintf(to, length, "log: size %#llx instead of %#llx\n",
			 (unsigned long long)status.st_size, (unsigned long long)checked->size);
		return 1;
	}
	end = checked->end;
	/* It begins anew with a new size, and nothing of the old log. */
	if (begun && begun->kind == ANEW && (uint64_t)status.st_size != checked->size)
		checked->count = end = 0;
	/* Of the same size it is the old one, or the new one already. */
	if (begun && begun->kind == ANEW && !contents[0])
		checked->count = end = 0;
	for (i = 0; i < checked->count; i++) {
		const struct record *record = &checked->records[i];
		uint64_t words = there(record);

		if (words * UNIT < record->length)
			return complain(to, length, "a record was promised, found is",
					record->at + words * UNIT);
	}
	if (begun && begun->kind == APPEND) {
		const struct record *record = &begun->record;

		end += record->length;
		if (contents[record->at / UNIT] == word(record, 0) && there(record) * UNIT < record->length)
			return complain(to, length, "a record counts and is not complete, found is",
					record->at + there(record) * UNIT);
		for (i = 0; i < record->length / UNIT; i++)
			if (contents[record->at / UNIT + i] && contents[record->at / UNIT + i] != word(record, i))
				return complain(to, length, "neither zero nor the record's, found is",
						record->at + i * UNIT);
	}
	for (i = end / UNIT; i < FULL / UNIT; i++)
		if (contents[i])
			return complain(to, length, "nothing was stored here, found is", i * UNIT);
	return 0;
}
