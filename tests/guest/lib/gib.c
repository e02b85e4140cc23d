// SPDX-License-Identifier: GPL-2.0
/*
 * What Python is too slow for: contents of files of 1 GiB, where each word says which page it belongs to, and in
 * whose writing; and races of threads that use them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define PIECE 2048ul		/* pages that are read or written at once */

static uint64_t word_of(uint64_t tag, uint64_t page, size_t at)
{
	return tag << 56 | page << 16 | at;
}

/* Make the pages from @first on, in the writing of @tag. */
void gib_fill(uint64_t *to, size_t pages, uint64_t first, unsigned int tag)
{
	for (size_t i = 0; i < pages; i++, to += WORDS) {
		uint64_t word = word_of(tag, first + i, 0);

		for (size_t at = 0; at < WORDS; at++)
			to[at] = word + at;
	}
}

/*
 * Look at the pages from @first on: all words of every page in @every, and three of each other
 * one. Each page must be in the writing of @tag or of @other. Returns the offset of the first
 * wrong word, or -1.
 */
long gib_check(const uint64_t *from, size_t pages, uint64_t first, unsigned int tag,
		 unsigned int other, size_t every)
{
	const uint64_t *at = from;

	for (size_t i = 0; i < pages; i++, at += WORDS) {
		uint64_t word = word_of(at[0] >> 56 == other ? other : tag, first + i, 0);
		size_t step = i % every ? (WORDS - 1) / 2 : 1;

		for (size_t j = 0; j < WORDS; j += step)
			if (at[j] != word + j)
				return (at + j - from) * 8;
		if (at[WORDS - 1] != word + WORDS - 1)
			return (at + WORDS - 1 - from) * 8;
	}
	return -1;
}

/* Fill the pages that somebody has stored to, by the look of three of their words. */
void gib_repair(uint64_t *at, size_t pages, unsigned int tag)
{
	for (size_t i = 0; i < pages; i++, at += WORDS) {
		uint64_t word = word_of(tag, i, 0);

		if (at[0] != word || at[WORDS / 2] != word + WORDS / 2 ||
		    at[WORDS - 1] != word + WORDS - 1)
			gib_fill(at, 1, i, tag);
	}
}

/* gib_check() for pages of zeroes. */
long gib_zero(const uint64_t *from, size_t pages, size_t every)
{
	for (size_t i = 0; i < pages; i++) {
		const uint64_t *at = from + i * WORDS;

		for (size_t j = 0; j < WORDS; j += i % every ? WORDS / 2 : 1)
			if (at[j])
				return (at + j - from) * 8;
	}
	return -1;
}

/* Write pages with write(); returns 0 or an errno. */
int gib_write(int fd, off_t offset, size_t pages, uint64_t first, unsigned int tag)
{
	uint64_t *piece = aligned_alloc(PAGE, PIECE * PAGE);
	int error = piece ? 0 : ENOMEM;

	while (pages && !error) {
		size_t now = pages < PIECE ? pages : PIECE;
		ssize_t done;

		gib_fill(piece, now, first, tag);
		done = pwrite(fd, piece, now * PAGE, offset);
		if (done != (ssize_t)(now * PAGE))
			error = done < 0 ? errno : EIO;
		offset += now * PAGE;
		first += now;
		pages -= now;
	}
	free(piece);
	return error;
}

/* gib_check() of what read() gives; -2 - errno if it gives too little. */
long gib_read(int fd, off_t offset, size_t pages, uint64_t first, unsigned int tag,
		unsigned int other, size_t every)
{
	uint64_t *piece = aligned_alloc(PAGE, PIECE * PAGE);
	long wrong = piece ? -1 : -2 - ENOMEM;
	size_t read = 0;

	while (read < pages && wrong == -1) {
		size_t now = pages - read < PIECE ? pages - read : PIECE;
		ssize_t done = pread(fd, piece, now * PAGE, offset + read * PAGE);

		if (done != (ssize_t)(now * PAGE)) {
			wrong = -2 - (done < 0 ? errno : 0);
		} else {
			wrong = gib_check(piece, now, first + read, tag, other, every);
			if (wrong >= 0)
				wrong += read * PAGE;
		}
		read += now;
	}
	free(piece);
	return wrong;
}

/* Threads that use a mapping of 1 GiB at once, half of them to take it out of the page table. */
#define RACERS 4

static struct {
	volatile uint8_t *memory;
	bool part;
	unsigned long rounds, done;
} race;

static void *touch_all_the_time(void *unused)
{
	unsigned long page = 0;

	(void)unused;
	while (__atomic_load_n(&race.done, __ATOMIC_RELAXED) < race.rounds) {
		race.memory[page * PAGE] = race.memory[page * PAGE];
		page = (page + 7919) % PIECE;
	}
	return NULL;
}

static void *drop_all_the_time(void *unused)
{
	unsigned long page = 1;

	(void)unused;
	while (__atomic_fetch_add(&race.done, 1, __ATOMIC_RELAXED) < race.rounds) {
		page = (page * 6364136223846793005ul + 1442695040888963407ul) % (1ul << 18);
		if (madvise((void *)(race.memory + (race.part ? page * PAGE : 0)),
			    race.part ? PAGE : 1ul << 30, MADV_DONTNEED))
			return (void *)1;
	}
	return NULL;
}

/* So many times the memory, or a page of it, leaves the page table while others use it. 0, or not if it cannot. */
int gib_race(void *memory, bool part, unsigned long rounds)
{
	pthread_t threads[RACERS];
	int i, wrong = 0;

	race.memory = memory;
	race.part = part;
	race.rounds = rounds;
	race.done = 0;
	for (i = 0; i < RACERS; i++)
		if (pthread_create(&threads[i], NULL, i % 2 ? drop_all_the_time : touch_all_the_time, NULL))
			abort();
	for (i = 0; i < RACERS; i++) {
		void *status;

		pthread_join(threads[i], &status);
		wrong |= status != NULL;
	}
	return wrong;
}
