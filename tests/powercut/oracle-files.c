// SPDX-License-Identifier: GPL-2.0
/* oracle-files: looks at the files of a directory, by read or through a mapping, page by page. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "oracle.h"

static bool size_may_be(const struct file *f, uint64_t size)
{
	unsigned int i;

	for (i = 0; i < f->count; i++) {
		const struct state *state = &f->states[i];

		if (state->size == size)
			return true;
		if (i && state->sizes && size < state->size && size % PAGE == 0)
			return true;
	}
	return false;
}

static sigjmp_buf no_page;

static void on_sigbus(int number)
{
	(void)number;
	siglongjmp(no_page, 1);
}

static void catch_sigbus(struct sigaction *before)
{
	const struct sigaction action = { .sa_handler = on_sigbus };

	sigaction(SIGBUS, &action, before);
}

/* Copy from a mapping; whether all of it was there. */
bool get_mapped(void *to, const void *from, size_t length)
{
	struct sigaction before;
	volatile bool there = false;

	catch_sigbus(&before);
	if (!sigsetjmp(no_page, 1)) {
		memcpy(to, from, length);
		there = true;
	}
	sigaction(SIGBUS, &before, NULL);
	return there;
}

/* A part of a file, at a multiple of PAGE, by read or through a mapping. */
bool get_contents(int fd, void *to, size_t length, uint64_t at, bool by_read)
{
	bool there;
	void *from;

	if (by_read)
		return pread(fd, to, length, at) == (ssize_t)length;
	if (!length)
		return true;
	from = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, at);
	if (from == MAP_FAILED)
		return false;
	there = get_mapped(to, from, length);
	munmap(from, length);
	return there;
}

static uint64_t buffer[64 * UNITS];

static int check_replaced(unsigned int file, int fd, uint64_t size, bool by_read, uint64_t *promises)
{
	const uint32_t wanted[2] = { files[file].old, files[file].new };
	const uint64_t length = workload->size / 8;
	bool may[2] = { size == (wanted[0] == FIRST ? 0 : length), size == length };
	uint64_t i;

	*promises += files[file].promise != 0;
	if (size > sizeof(buffer) || !get_contents(fd, buffer, size, 0, by_read)) {
		say("file%u: size %#llx\n", file, (unsigned long long)size);
		return 1;
	}
	for (i = 0; i < size; i += UNIT) {
		may[0] &= buffer[i / UNIT] == value_of(wanted[0], file, i);
		may[1] &= buffer[i / UNIT] == value_of(wanted[1], file, i);
	}
	if (may[0] || may[1])
		return 0;
	say("file%u is neither what operation %u nor what operation %u made it: %#llx of %#llx\n", file,
	    wanted[0], wanted[1], (unsigned long long)buffer[0], (unsigned long long)size);
	return 1;
}

static int check_pages(unsigned int file, const uint64_t *words, uint64_t at, uint64_t length,
		       uint64_t *promises)
{
	uint64_t page, left;
	int wrong = 0;

	for (page = 0; page * PAGE < length; page++) {
		if (at / PAGE + page >= MOST_PAGES)
			return wrong + 1;
		left = length - page * PAGE;
		wrong += !check_page(file, at / PAGE + page, words + page * UNITS,
				     (left < PAGE ? left : PAGE) / UNIT, promises);
	}
	return wrong;
}

static int check_by_reads(unsigned int file, int fd, uint64_t size, uint64_t *promises)
{
	int wrong = 0;
	uint64_t at;

	for (at = 0; at < size; at += sizeof(buffer)) {
		ssize_t got = pread(fd, buffer, sizeof(buffer), at);

		if (got < 0 || (got < (ssize_t)sizeof(buffer) && at + got != size)) {
			say("file%u: read at %#llx: %s\n", file, (unsigned long long)at,
			    got < 0 ? strerror(errno) : "too little");
			return wrong + 1;
		}
		wrong += check_pages(file, buffer, at, got, promises);
	}
	return wrong;
}

static int check_by_mapping(unsigned int file, int fd, uint64_t size, uint64_t *promises)
{
	struct sigaction before;
	const uint64_t room = (size + PMD - 1) / PMD * PMD + PMD;
	uint8_t *reserved, *at;
	volatile int wrong = 1;

	if (!size)
		return 0;
	reserved = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (reserved == MAP_FAILED) {
		say("no address space\n");
		return 1;
	}
	at = (uint8_t *)(((uintptr_t)reserved + PMD - 1) & -PMD);
	at = mmap(at, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
	if (at == MAP_FAILED) {
		say("file%u: cannot be mapped: %s\n", file, strerror(errno));
	} else {
		catch_sigbus(&before);
		if (sigsetjmp(no_page, 1))
			say("file%u: a page cannot be read\n", file);
		else
			wrong = check_pages(file, (const uint64_t *)at, 0, size, promises);
		sigaction(SIGBUS, &before, NULL);
	}
	munmap(reserved, room);
	return wrong;
}

static int check_file(unsigned int file, int fd, uint64_t size, bool by_read, uint64_t *promises)
{
	struct file *f = &files[file];
	int wrong = 0;

	if (!size_may_be(f, size)) {
		say("file%u: size %#llx instead of %#llx (promised by operation %d)\n", file,
		    (unsigned long long)size, (unsigned long long)last(file)->size,
		    (int)f->promise - 1);
		wrong++;
	}
	if (f->promise && counted[f->promise] != counting) {
		counted[f->promise] = counting;
		++*promises;
	}
	if (by_read)
		return wrong + check_by_reads(file, fd, size, promises);
	return wrong + check_by_mapping(file, fd, size, promises);
}

/*
 * Look at the files in a directory, by read or through a mapping. What is wrong is told in `to`; how many pages or files are wrong is
 * the answer. To `promises` is added how many promises there were to keep: those of which at least a
 * word, or a file's size, is what counts now. In `others` is how many words are those of files that
 * shared blocks, which is not wrong of whoever serves them.
 */
int oracle_check(const char *path, bool by_read, char *to, size_t length, uint64_t *promises,
		 uint64_t *others)
{
	int directory = open(path, O_RDONLY | O_DIRECTORY), wrong = 0;
	unsigned int i;

	said = to;
	said_room = length;
	to[0] = 0;
	counting++;
	through_shared = 0;
	if (directory < 0) {
		say("%s: %s\n", path, strerror(errno));
		return 1;
	}
	for (i = 0; i < workload->files; i++) {
		bool replaced = workload->renames && i == workload->files - 1;
		struct stat status;
		char name[16];
		int fd;

		sprintf(name, "file%u", i);
		fd = openat(directory, name, O_RDONLY);
		if (fd < 0 || fstat(fd, &status)) {
			say("%s: %s\n", name, strerror(errno));
			wrong++;
		} else if (replaced) {
			wrong += check_replaced(i, fd, status.st_size, by_read, promises);
		} else {
			wrong += check_file(i, fd, status.st_size, by_read, promises);
		}
		if (fd >= 0)
			close(fd);
	}
	close(directory);
	*others = through_shared;
	return wrong;
}

/*
 * A word that was promised and not stored to since, as an example of what must be there: where it is in
 * the file, or -1. Its value is in `value`; another one that the word had is in `older`, and one that
 * another file has there in `others`.
 */
int64_t oracle_example(unsigned int file, uint64_t *value, uint64_t *older, uint64_t *others)
{
	const struct state *state = last(file);
	uint64_t at;

	for (at = 0; at < state->size / UNIT * UNIT; at += UNIT) {
		const struct block *block = &blocks[state->blocks[at / PAGE]];
		unsigned int unit = at % PAGE / UNIT;

		if (!state->blocks[at / PAGE] || !block->promise[unit] || block->since[unit] ||
		    !block->promised[unit])
			continue;
		*value = block->promised[unit];
		*older = value_of(FIRST, file, at);
		*others = value_of(FIRST, (file + 1) % workload->files, at);
		return at;
	}
	return -1;
}
