// SPDX-License-Identifier: GPL-2.0
/*
 * paper: what oracle.c must and must not let pass of files that shared blocks. Operations on paper, and pages
 * that a cut may have left of them.
 */
#include <stdio.h>
#include <string.h>

#include "workload.h"

static struct op list[16];
static char *said;
static size_t room;
static int failures;

/* What happens to the files of reflink, of which the first two have 2 MiB, from the first on. */
static void happens(const struct op *what, uint32_t count)
{
	memcpy(list, what, count * sizeof(*what));
	if (oracle_begin("reflink") || oracle_advance(2ULL * count))
		failures++;
}

/* The first words of a page are `number`'s, and the rest what is there from the first; of a file, at a page. */
static void page_of(uint64_t *words, uint32_t number, unsigned int by, uint64_t stored, unsigned int file,
		    uint64_t page)
{
	unsigned int i;

	for (i = 0; i < UNITS; i++) {
		uint64_t at = page * PAGE + i * UNIT;

		words[i] = value_of(i < stored ? number : FIRST, i < stored ? by : file, at);
	}
}

static void is_let_pass(const char *what, bool wanted, unsigned int file, uint64_t page, const uint64_t *words)
{
	int n;

	if (oracle_allows(file, page, words) == wanted)
		return;
	n = snprintf(said, room, "%s: is%s let pass\n", what, wanted ? " not" : "");
	if (n > 0 && (size_t)n < room) {
		said += n;
		room -= n;
	}
	failures++;
}

#define DONE(...) happens((const struct op[]){ __VA_ARGS__ }, \
			  sizeof((const struct op[]){ __VA_ARGS__ }) / sizeof(struct op))
#define CLONE(to, from) { OP_CLONE, to, from, 0, 0 }
#define FSYNC(file) { OP_FSYNC, file, 0, 0, 0 }
#define STORE(file, offset, length) { OP_STORE, file, 0, offset, length }
#define PUNCH(file, offset, length) { OP_PUNCH, file, 0, offset, length }
#define EMPTY(file) { OP_TRUNCATE, file, 0, 0, 0 }
#define COLLAPSE(file, offset, length) { OP_COLLAPSE, file, 0, offset, length }

/* Of a file that has a copy: what must be there, and what the copy's block had before. */
static void copies(void)
{
	uint64_t words[UNITS];

	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), STORE(2, 0, PAGE), FSYNC(2));
	page_of(words, 0, 0, 0, 1, 77);
	is_let_pass("a page of a file that never shared, in place of a copy", false, 2, 0, words);
	page_of(words, 3, 2, UNITS, 0, 0);
	is_let_pass("a copy", true, 2, 0, words);

	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), STORE(2, 0, PAGE), FSYNC(2), STORE(2, 8, 8));
	page_of(words, 0, 0, 0, 1, 77);
	is_let_pass("the same, when one word was stored since", false, 2, 0, words);
	page_of(words, 0, 0, 0, 1, 0);
	is_let_pass("the same, from the same place", false, 2, 0, words);

	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), STORE(2, 8, 8), FSYNC(1));
	is_let_pass("a page of a file that never shared, and the copy is not promised", false, 2, 0, words);
	memset(words, 0, sizeof(words));
	is_let_pass("zeroes, and the copy is not promised", false, 2, 0, words);
	page_of(words, 0, 0, 0, 0, 0);
	is_let_pass("the old block, and the copy is not promised", true, 2, 0, words);

	/* The first to store copies; the second stores to the block itself. */
	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), STORE(0, 0, 64), STORE(2, 0, 64));
	page_of(words, 4, 2, 8, 0, 0);
	is_let_pass("what a relative stored in place, and the copy is not promised", true, 0, 0, words);
	page_of(words, 3, 0, 8, 0, 0);
	is_let_pass("what a relative stored to its copy", false, 2, 0, words);

	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), STORE(0, 0, 64), FSYNC(0), STORE(2, 0, 64), STORE(0, 8, 8));
	page_of(words, 5, 2, 8, 0, 0);
	is_let_pass("what a relative stored in place, and the copy was promised", false, 0, 0, words);
}

/* Of a file that was cut off, which was not promised: a cut may bring it back with what others stored. */
static void in_place(void)
{
	uint64_t words[UNITS];

	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), EMPTY(0), STORE(2, PAGE, 64));
	page_of(words, 4, 2, 8, 0, 1);
	is_let_pass("what a relative stored to a block that was cut off", true, 0, 1, words);
	page_of(words, 4, 2, 9, 0, 1);
	is_let_pass("the same, and a word that was not stored", false, 0, 1, words);
	page_of(words, 4, 2, 8, 0, 1);
	is_let_pass("the same, at another page", false, 0, 2, words);

	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), EMPTY(0), FSYNC(0), STORE(2, PAGE, 64));
	page_of(words, 5, 2, 8, 0, 1);
	is_let_pass("the same, and that it was cut off was promised", false, 0, 1, words);

	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), STORE(2, PAGE, 64), EMPTY(0));
	page_of(words, 3, 2, 8, 0, 1);
	is_let_pass("what a relative stored before, which was to its copy", false, 0, 1, words);

	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), EMPTY(0), COLLAPSE(2, 0, PAGE), STORE(2, PAGE, 64));
	page_of(words, 0, 0, 0, 0, 2);
	words[1] = value_of(5, 2, PAGE + UNIT);
	is_let_pass("what a relative stored at another page of its own", true, 0, 2, words);
	is_let_pass("the same, in another block", false, 0, 3, words);
	words[2] = words[1];
	is_let_pass("the same, at another place in the page", false, 0, 2, words);

	/* A store through an entry of 2 MiB may have copied all of it, so that file0 and file3 share no more. */
	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), { OP_STORE, 2, 1, 9 * PAGE, 8 }, CLONE(3, 2), FSYNC(2), FSYNC(3),
	     EMPTY(2), STORE(3, PAGE, 64));
	page_of(words, 8, 3, 8, 0, 1);
	is_let_pass("what a relative stored to a copy of 2 MiB", true, 2, 1, words);

	DONE(CLONE(2, 0), FSYNC(2), FSYNC(0), EMPTY(0), PUNCH(2, 8, 16));
	page_of(words, 0, 0, 0, 0, 0);
	words[1] = words[2] = 0;
	is_let_pass("what a relative zeroed in place", true, 0, 0, words);
	words[2] = value_of(FIRST, 0, 2 * UNIT) & ~0xffffULL;
	is_let_pass("what a relative zeroed in place, half done", true, 0, 0, words);
	words[3] = 0;
	is_let_pass("what a relative zeroed in place, and a word more", false, 0, 0, words);
}

/* How many answers are wrong, and which in `to`. */
int oracle_answers(char *to, size_t length)
{
	struct op *const done = ops;

	ops = list;
	said = to;
	room = length;
	failures = 0;
	*to = 0;
	copies();
	in_place();
	ops = done;
	return failures;
}
