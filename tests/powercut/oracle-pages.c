// SPDX-License-Identifier: GPL-2.0
/* oracle-pages: whether a page of a file may be what is found there, and what is wrong if not. */
#include <stdio.h>
#include <string.h>

#include "oracle.h"

uint64_t through_shared;

char *said;
size_t said_room;

void say(const char *format, ...)
{
	__builtin_va_list list;
	int n;

	__builtin_va_start(list, format);
	n = vsnprintf(said, said_room, format, list);
	__builtin_va_end(list);
	if (n > 0 && (size_t)n < said_room) {
		said += n;
		said_room -= n;
	}
}

/* The kernel zeroes by bytes, from the first on; a cut may come in between. */
static bool half_zeroed(uint64_t from, uint64_t value)
{
	unsigned int bits;

	for (bits = 8; bits < 64; bits += 8)
		if (value == (from & ~0ULL << bits))
			return true;
	return false;
}

/* Whether a word may be the file's; it may be zero if `zero` says so, too. */
static bool may_be(const struct block *block, unsigned int unit, uint64_t value, bool zero)
{
	uint32_t at;

	if (block->promised[unit] == value)
		return true;
	for (at = block->since[unit]; at; at = alternatives[at].next) {
		if (alternatives[at].value == value)
			return true;
		zero |= !alternatives[at].value;
	}
	if (!zero)
		return false;
	for (at = block->since[unit]; at; at = alternatives[at].next)
		if (half_zeroed(alternatives[at].value, value))
			return true;
	return !value || half_zeroed(block->promised[unit], value);
}

/* Of which kin the block was where an operation has stored a word; 0: none that others have, or no such word. */
static uint32_t kin_stored_to(uint64_t value)
{
	const uint64_t at = (value & 0xfffff) * UNIT;
	const uint32_t by = (value >> 32) - 1;

	/* Of operations that have begun. */
	if (!(value >> 32) || by > current || !stored_at[by])
		return 0;
	if (at < ops[by].offset || at >= ops[by].offset + ops[by].length || value != value_of(by, ops[by].file, at))
		return 0;
	return stored_kins[stored_at[by] - 1 + at / PAGE - ops[by].offset / PAGE];
}

static bool was_zeroed(uint32_t kin, uint32_t since, unsigned int unit)
{
	uint32_t i;

	for (i = zeroed_count; i-- > 0 && zeroed[i].by > since;)
		if (zeroed[i].kin == kin && zeroed[i].from <= unit && unit < zeroed[i].to)
			return true;
	return false;
}

/*
 * Whether a word is what was stored to this block after the file had left it, by operation `left`. XFS lets
 * another file that shared the block store in place as soon as this one does not use it; what it finds
 * in its log after a cut may be older than that, until a promise is made for this file. A block is at any
 * page of the other one.
 */
static bool is_relatives(const struct block *block, uint32_t left, unsigned int unit, uint64_t value)
{
	if (!block->kin || left == NEVER)
		return false;
	if (value % UNITS == unit && (value >> 32) - 1 > left && kin_stored_to(value) == block->kin)
		return true;
	return was_zeroed(block->kin, left, unit) && may_be(block, unit, value, true);
}

/*
 * The first of the words of a page that cannot be this block's, or UNITS. The file has not used the block
 * since operation `left`, or NEVER stopped to. To `others` is added how many words are those of a file that
 * shared it.
 */
static unsigned int differs(uint32_t number, uint32_t left, const uint64_t *words, unsigned int units,
			    uint64_t *others)
{
	const struct block *block = &blocks[number];
	unsigned int i;

	if (!number) {
		for (i = 0; i < units; i++)
			if (words[i])
				return i;
		return UNITS;
	}
	if (!memcmp(block->promised, words, units * UNIT))
		return UNITS;
	if (block->leaving && block->left < left)
		left = block->left;
	for (i = 0; i < units; i++) {
		if (words[i] == block->promised[i] || may_be(block, i, words[i], false))
			continue;
		if (!is_relatives(block, left, i, words[i]))
			return i;
		++*others;
	}
	return UNITS;
}

static unsigned int count_promises(uint32_t number, unsigned int units)
{
	const struct block *block = &blocks[number];
	unsigned int i, new = 0;
	uint32_t before = 0;

	for (i = 0; i < units; i++) {
		uint32_t promise = block->promise[i];

		if (promise == before)
			continue;
		before = promise;
		if (promise && counted[promise] != counting) {
			counted[promise] = counting;
			new++;
		}
	}
	return new;
}

/* What a word is that should not be there. */
static void tell(unsigned int file, uint64_t offset, uint64_t found, uint32_t number)
{
	const struct block *block = &blocks[number];
	unsigned int unit = offset % PAGE / UNIT;
	const char *what = "something else";
	uint32_t by = (found >> 32) - 1;
	unsigned int of = found >> 28 & 15;
	bool found_by = found;

	/* No number of an operation: part of a word. */
	if (found && !(found >> 32))
		found_by = false;
	else if (!found)
		what = "zero";
	else if ((found >> 20 & 0xff) != salt)
		what = "of an earlier recording";
	else if (of != file && of < workload->files)
		what = "another file's";
	else if (of == file)
		what = "older";
	say("file%u at %#llx: found %#llx (%s", file, (unsigned long long)offset,
	    (unsigned long long)found, what);
	if (found_by && by == FIRST)
		say(", there from the first");
	else if (found_by)
		say(", stored by operation %u at %#llx", by,
		    (unsigned long long)(found & 0xfffff) * UNIT);
	if (!number)
		say("), a hole");
	else if (block->promise[unit])
		say("), promised %#llx by operation %u", (unsigned long long)block->promised[unit],
		    block->promise[unit] - 1);
	else
		say("), %#llx was there", (unsigned long long)block->promised[unit]);
	if (number && block->since[unit])
		say(", since then %#llx", (unsigned long long)alternatives[block->since[unit]].value);
	say("\n");
}

/* The operation by which a file left a state. */
static uint32_t left_by(const struct file *f, unsigned int state)
{
	return state + 1 < f->count ? f->states[state + 1].by : NEVER;
}

/* A page must be one of those that the file may have there. */
bool check_page(unsigned int file, uint64_t page, const uint64_t *words, unsigned int units,
		uint64_t *promises)
{
	const struct file *f = &files[file];
	uint32_t latest = last(file)->blocks[page];
	unsigned int i, at = 0;
	uint64_t others = 0;
	bool gap = false;

	for (i = 0; f->states[i].blocks[page] == latest && i + 1 < f->count; i++)
		;
	if (latest && i + 1 == f->count)
		*promises += count_promises(latest, units);
	for (i = f->count; i-- > 0;) {
		uint32_t number = f->states[i].blocks[page];

		if (i + 1 < f->count && number == f->states[i + 1].blocks[page])
			continue;
		others = 0;
		at = differs(number, left_by(f, i), words, units, &others);
		if (at == UNITS) {
			through_shared += others;
			return true;
		}
		if (i + 1 < f->count && f->states[i + 1].gaps)
			gap = true;
	}
	if (gap && differs(0, NEVER, words, units, &others) == UNITS)
		return true;
	/* Each of those that it may be has a word that is another. */
	for (i = f->count; i-- > 0;) {
		uint32_t number = f->states[i].blocks[page];

		if (i + 1 < f->count && number == f->states[i + 1].blocks[page])
			continue;
		at = differs(number, left_by(f, i), words, units, &others);
		tell(file, page * PAGE + at * UNIT, words[at], number);
	}
	return false;
}

/* Whether a page is let pass, for who knows the answer. */
bool oracle_allows(unsigned int file, uint64_t page, const uint64_t *words)
{
	char text[4000];
	uint64_t promises = 0;

	said = text;
	said_room = sizeof(text);
	counting++;
	return check_page(file, page, words, UNITS, &promises);
}
