// SPDX-License-Identifier: GPL-2.0
/*
 * oracle: what must, may and must not be in the files of workload.c after a power cut, and whether it is.
 *
 * It does on paper what the workload did, up to the cut. A file's page is a block: for each of its words
 * what was promised, and what was stored since, any of which may be found. What changes the file's
 * size or blocks leaves both states possible until a promise is made for the file, page by page, as a
 * filesystem may do it in several steps. Blocks that files share are blocks of each, as what is stored
 * to one file must not be seen in another. They are of the same kin, because of what is_relatives() says.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "workload.h"

#define STATES 32
#define NEVER 0xffffffffU
#define MOST_PAGES ((4ULL << 20) / PAGE)

struct alternative {
	uint64_t value;
	uint32_t next;		/* 0: none */
};

struct block {
	uint64_t promised[UNITS];
	/* The promise that counts, plus one; 0: none, it is what a new block has. */
	uint32_t promise[UNITS];
	/* What was stored since, the latest first. */
	uint32_t since[UNITS];
	unsigned int users;
	bool open;		/* whether anything was */
	/* Files that shared it have blocks of the same kin; 0: there is no other that may have it. */
	uint32_t kin;
	/*
	 * It may have been copied for this file since, by operation `left` at the earliest, but that this is
	 * so was not promised yet.
	 */
	bool leaving;
	uint32_t left;
	/* It was copied: another file had it when this one stored to it. */
	bool copied;
	/* Not all of its kin need be one block any more. */
	bool mixed;
};

struct state {
	uint64_t size;
	/* The step here from the state before may be found half done: pages may be missing, */
	bool gaps;
	/* and the size be any in between. */
	bool sizes;
	/* The operation that led here. */
	uint32_t by;
	uint32_t blocks[MOST_PAGES];	/* 0: a hole */
};

struct file {
	struct state *states;
	unsigned int count;
	/* The promise of its size. */
	uint32_t promise;
	/* One that is renamed over: the contents that it may have. */
	uint32_t old, new;
};

static const struct workload *workload;
static struct file files[FILES];
static struct block *blocks;
static uint32_t block_count, *free_blocks, free_count;
static struct alternative *alternatives;
static uint32_t alternative_count, free_alternative;
#define MOST_BLOCKS (1U << 17)
#define MOST_ALTERNATIVES (1U << 26)
/* How many blocks each kin has. */
#define MOST_KINS (1U << 22)
static uint32_t kins, *kin_blocks;
/* Of each operation that stored, where its pages' kins begin in `stored_kins`. */
#define MOST_STORED (1U << 24)
static uint32_t *stored_at, *stored_kins, stored_count;
/* What was zeroed in blocks that may be another file's as well. */
#define MOST_ZEROED (1U << 20)
static struct zeroed {
	uint32_t kin, by;
	uint16_t from, to;	/* of the words of the page */
} *zeroed;
static uint32_t zeroed_count;
/* Words found that are those of a file that shared the block. */
static uint64_t through_shared;
/* How many events of the workload have been gone through, and the operation of the last one. */
static uint64_t gone;
static uint32_t current;
/* When each promise was counted last. */
static uint32_t *counted, counting;

static char *said;
static size_t said_room;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
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

static uint32_t new_block(void)
{
	uint32_t number = free_count ? free_blocks[--free_count] : ++block_count;

	if (number >= MOST_BLOCKS)
		abort();
	memset(&blocks[number], 0, sizeof(blocks[number]));
	return number;
}

static void let_go_of(uint32_t list)
{
	while (list) {
		uint32_t next = alternatives[list].next;

		alternatives[list].next = free_alternative;
		free_alternative = list;
		list = next;
	}
}

static void set_kin(struct block *block, uint32_t kin)
{
	if (block->kin)
		kin_blocks[block->kin]--;
	if (kin)
		kin_blocks[kin]++;
	block->kin = kin;
}

static void put_block(uint32_t number)
{
	unsigned int i;

	if (!number || --blocks[number].users)
		return;
	set_kin(&blocks[number], 0);
	if (blocks[number].open)
		for (i = 0; i < UNITS; i++)
			let_go_of(blocks[number].since[i]);
	free_blocks[free_count++] = number;
}

static void set_block(struct state *state, uint64_t page, uint32_t number)
{
	if (number)
		blocks[number].users++;
	put_block(state->blocks[page]);
	state->blocks[page] = number;
}

static uint32_t new_alternative(uint64_t value, uint32_t next)
{
	uint32_t number = free_alternative;

	if (number)
		free_alternative = alternatives[number].next;
	else
		number = ++alternative_count;
	if (number >= MOST_ALTERNATIVES)
		abort();
	alternatives[number].value = value;
	alternatives[number].next = next;
	return number;
}

static void add(struct block *block, unsigned int unit, uint64_t value)
{
	block->since[unit] = new_alternative(value, block->since[unit]);
	block->open = true;
}

static uint32_t copy_of(uint32_t number)
{
	const struct block *from = &blocks[number];
	struct block *to;
	uint32_t copy, at;
	unsigned int i;

	if (!number)
		return 0;
	copy = new_block();
	to = &blocks[copy];
	memcpy(to->promised, from->promised, sizeof(to->promised));
	memcpy(to->promise, from->promise, sizeof(to->promise));
	if (!from->open)
		return copy;
	to->open = true;
	for (i = 0; i < UNITS; i++) {
		uint32_t *end = &to->since[i];

		for (at = from->since[i]; at; at = alternatives[at].next) {
			*end = new_alternative(alternatives[at].value, 0);
			end = &alternatives[*end].next;
		}
	}
	return copy;
}

static struct state *last(unsigned int file)
{
	return &files[file].states[files[file].count - 1];
}

/* The state that follows, the same so far. */
static struct state *push(unsigned int file)
{
	struct state *from = last(file), *to = from + 1;
	unsigned int i;

	if (files[file].count++ == STATES)
		abort();
	to->size = from->size;
	to->gaps = to->sizes = false;
	to->by = current;
	for (i = 0; i < MOST_PAGES; i++)
		set_block(to, i, from->blocks[i]);
	return to;
}

static uint64_t pages_of(uint64_t size)
{
	return (size + PAGE - 1) / PAGE;
}

/* Whether another file has this block now, as far as that is known. */
static bool is_shared(unsigned int file, const struct block *block)
{
	unsigned int other;
	uint64_t page;

	if (block->mixed)
		return false;
	for (other = 0; other < workload->files; other++) {
		if (other == file)
			continue;
		for (page = 0; page < MOST_PAGES; page++) {
			const struct block *its = &blocks[last(other)->blocks[page]];

			if (its->kin == block->kin && !its->leaving && !its->mixed)
				return true;
		}
	}
	return false;
}

/* The file has its own copy of this block from now on, or may have. */
static void leave(unsigned int file, struct block *block, bool for_sure)
{
	if (!block->kin)
		return;
	/* Whoever else had it is gone, and that this is so was promised. */
	if (kin_blocks[block->kin] == 1) {
		set_kin(block, 0);
		block->leaving = false;
		return;
	}
	if (block->leaving && block->copied)
		return;
	block->copied = for_sure && is_shared(file, block);
	if (!block->leaving)
		block->left = current;
	block->leaving = true;
}

static void leave_range(unsigned int file, uint64_t from, uint64_t to, bool for_sure)
{
	const struct state *state = last(file);
	uint64_t page;

	for (page = from / PAGE; page * PAGE < to; page++)
		if (state->blocks[page])
			leave(file, &blocks[state->blocks[page]], for_sure);
}

/* It was promised that the file has the block that it has now. */
static void settle_block(struct block *block)
{
	if (!block->leaving)
		return;
	if (block->copied)
		set_kin(block, 0);
	else
		block->mixed = true;
	block->leaving = block->copied = false;
}

static void note_zeroed(const struct block *block, unsigned int from, unsigned int to)
{
	if (zeroed_count == MOST_ZEROED)
		abort();
	zeroed[zeroed_count++] = (struct zeroed){ block->kin, current, from, to };
}

/* Make room for the kins of the pages that an operation stores to. */
static uint32_t *note_stored(uint32_t number, uint64_t pages)
{
	uint32_t at = stored_count;

	if (MOST_STORED - stored_count < pages)
		abort();
	stored_at[number] = at + 1;
	stored_count += pages;
	return &stored_kins[at];
}

static void store(unsigned int file, uint64_t from, uint64_t length, uint32_t number, bool zero)
{
	const uint64_t first = from / PAGE, end = from + length;
	struct state *state = last(file);
	uint32_t *stored = NULL;
	uint64_t page, at;

	if (!zero)
		stored = note_stored(number, (end + PAGE - 1) / PAGE - first);
	for (page = first; page * PAGE < end; page++) {
		const uint64_t start = page * PAGE > from ? page * PAGE : from;
		const uint64_t stop = (page + 1) * PAGE < end ? (page + 1) * PAGE : end;
		struct block *block;

		if (!state->blocks[page]) {
			if (zero)
				continue;
			set_block(state, page, new_block());
		}
		block = &blocks[state->blocks[page]];
		leave(file, block, true);
		/* To what others may have, unless it is a copy. */
		if (!zero)
			stored[page - first] = block->copied ? 0 : block->kin;
		else if (block->kin && !block->copied)
			note_zeroed(block, start % PAGE / UNIT, (stop - 1) % PAGE / UNIT + 1);
		for (at = start; at < stop; at += UNIT)
			add(block, at % PAGE / UNIT, zero ? 0 : value_of(number, file, at));
	}
}

static void promise_words(struct block *block, uint64_t from, uint64_t to, uint32_t number)
{
	uint64_t unit;

	for (unit = from; unit < to; unit++) {
		uint32_t latest = block->since[unit];

		if (!latest)
			continue;
		block->promised[unit] = alternatives[latest].value;
		block->promise[unit] = number + 1;
		let_go_of(latest);
		block->since[unit] = 0;
	}
	if (from == 0 && to == UNITS)
		block->open = false;
}

static void promise_range(unsigned int file, uint64_t from, uint64_t to, uint32_t number)
{
	struct state *state = last(file);
	uint64_t page;

	for (page = from / PAGE; page < MOST_PAGES && page * PAGE < to; page++) {
		uint64_t start = page * PAGE;
		struct block *block = &blocks[state->blocks[page]];

		if (!state->blocks[page] || !block->open)
			continue;
		promise_words(block, from > start ? (from - start) / UNIT : 0,
			      to - start < PAGE ? (to - start) / UNIT : UNITS, number);
	}
}

/* The file's size and blocks are what they are now. */
static void settle(unsigned int file, uint32_t number)
{
	struct file *f = &files[file];
	unsigned int i;
	uint64_t page;

	for (i = 0; i + 1 < f->count; i++)
		for (page = 0; page < MOST_PAGES; page++)
			set_block(&f->states[i], page, 0);
	if (f->count > 1) {
		memcpy(&f->states[0], last(file), sizeof(f->states[0]));
		memset(last(file)->blocks, 0, sizeof(last(file)->blocks));
		f->count = 1;
	}
	f->states[0].gaps = f->states[0].sizes = false;
	for (page = 0; page < MOST_PAGES; page++)
		settle_block(&blocks[f->states[0].blocks[page]]);
	f->promise = number + 1;
}

/* What a MAP_SYNC mapping's page shows is the file's, whatever else becomes of it. */
static void settle_pages(unsigned int file, uint64_t from, uint64_t to)
{
	struct file *f = &files[file];
	unsigned int i;
	uint64_t page;

	for (i = 0; i + 1 < f->count; i++) {
		for (page = from / PAGE; page * PAGE < to; page++)
			set_block(&f->states[i], page, last(file)->blocks[page]);
		if (f->states[i].size < to)
			f->states[i].size = last(file)->size;
	}
	for (page = from / PAGE; page * PAGE < to; page++)
		settle_block(&blocks[last(file)->blocks[page]]);
}

static void cut_off(unsigned int file, uint64_t size)
{
	uint64_t old = last(file)->size, page, edge;
	struct state *state;

	if (size < old) {
		edge = pages_of(size) * PAGE;
		store(file, size, (edge < old ? edge : pages_of(old) * PAGE) - size, 0, true);
	}
	state = push(file);
	state->size = size;
	state->gaps = size < old;
	for (page = pages_of(size); page < MOST_PAGES; page++)
		set_block(state, page, 0);
}

static void punch(unsigned int file, uint64_t from, uint64_t length)
{
	uint64_t to = from + length, first = pages_of(from), end = to / PAGE, page;
	struct state *state;

	if (first > end) {
		store(file, from, length, 0, true);
		return;
	}
	store(file, from, first * PAGE - from, 0, true);
	store(file, end * PAGE, to - end * PAGE, 0, true);
	state = push(file);
	state->gaps = true;
	for (page = first; page < end; page++)
		set_block(state, page, 0);
}

/*
 * What reads as a hole may have blocks, of zeroes: a store through a large entry allocates for all of it.
 * Where they move, or are shared, a store to them shows wherever the file had them before.
 */
static void back_holes(unsigned int file, uint64_t from)
{
	struct state *state = last(file);
	uint64_t page;

	for (page = from / PAGE; page < pages_of(state->size); page++)
		if (!state->blocks[page])
			set_block(state, page, new_block());
}

static void shift(unsigned int file, uint64_t offset, uint64_t length, bool out)
{
	uint64_t by = length / PAGE, first = offset / PAGE, page;
	struct state *state, *before;

	back_holes(file, offset);
	state = push(file);
	before = state - 1;
	state->gaps = true;
	state->size += out ? -length : length;
	for (page = first; page < MOST_PAGES; page++) {
		uint64_t from = out ? page + by : page - by;

		if (out ? from >= MOST_PAGES : page < first + by)
			set_block(state, page, 0);
		else
			set_block(state, page, before->blocks[from]);
	}
}

static void clone(unsigned int file, unsigned int of)
{
	struct state *state = push(file);
	uint64_t page;

	back_holes(of, 0);
	state->size = last(of)->size;
	state->gaps = state->sizes = true;
	for (page = 0; page < MOST_PAGES; page++) {
		uint32_t from = last(of)->blocks[page], copy = copy_of(from);

		set_block(state, page, copy);
		if (!from)
			continue;
		if (!blocks[from].kin) {
			if (++kins == MOST_KINS)
				abort();
			set_kin(&blocks[from], kins);
		}
		set_kin(&blocks[copy], blocks[from].kin);
		/* The copy that it may be of one that others still have. */
		if (blocks[from].leaving) {
			blocks[from].mixed = true;
			blocks[from].copied = false;
		}
		blocks[copy].mixed = blocks[from].mixed;
	}
}

static void begins(const struct op *op, uint32_t number)
{
	uint64_t end = op->offset + op->length;

	switch (op->kind) {
	case OP_WRITE:
	case OP_WRITE_SYNC:
		if (end > last(op->file)->size)
			push(op->file)->size = end;
		store(op->file, op->offset, op->length, number, false);
		break;
	case OP_STORE:
	case OP_STORE_SYNC:
		/* What is shared may be copied by 2 MiB, if it is mapped by that. */
		if (op->how || op->kind == OP_STORE_SYNC)
			leave_range(op->file, op->offset & -PMD, (end + PMD - 1) & -PMD, false);
		store(op->file, op->offset, op->length, number, false);
		break;
	case OP_TRUNCATE:
		cut_off(op->file, op->length);
		break;
	case OP_PUNCH:
		punch(op->file, op->offset, op->length);
		break;
	case OP_ZERO:
		/* In place or not. */
		store(op->file, op->offset, op->length, number, true);
		break;
	case OP_COLLAPSE:
	case OP_INSERT:
		shift(op->file, op->offset, op->length, op->kind == OP_COLLAPSE);
		break;
	case OP_CLONE:
		clone(op->file, op->how);
		break;
	case OP_RENAME:
		files[op->file].new = number;
		break;
	case OP_UNSHARE:
		leave_range(op->file, op->offset, end, true);
		break;
	}
}

static void ends(const struct op *op, uint32_t number)
{
	unsigned int i;

	switch (op->kind) {
	case OP_WRITE_SYNC:
	case OP_MSYNC:
		settle(op->file, number);
		promise_range(op->file, op->offset, op->offset + op->length, number);
		break;
	case OP_STORE_SYNC:
		settle_pages(op->file, op->offset, op->offset + op->length);
		promise_range(op->file, op->offset, op->offset + op->length, number);
		break;
	case OP_FSYNC:
	case OP_FDATASYNC:
		settle(op->file, number);
		promise_range(op->file, 0, ~0ULL, number);
		break;
	case OP_SYNCFS:
	case OP_UMOUNT:
		for (i = 0; i < workload->files - workload->renames; i++) {
			settle(i, number);
			promise_range(i, 0, ~0ULL, number);
		}
		break;
	case OP_RENAME:
		files[op->file].old = number;
		files[op->file].promise = number + 1;
		break;
	}
}

/* Begin with what workload_prepare made. */
int oracle_begin(const char *name)
{
	unsigned int i, j;
	uint64_t page;

	workload = find_workload(name);
	if (!workload)
		return -1;
	if (!blocks) {
		blocks = calloc(MOST_BLOCKS, sizeof(*blocks));
		free_blocks = calloc(MOST_BLOCKS, sizeof(*free_blocks));
		alternatives = calloc(MOST_ALTERNATIVES, sizeof(*alternatives));
		counted = calloc(1 << 21, sizeof(*counted));
		kin_blocks = calloc(MOST_KINS, sizeof(*kin_blocks));
		stored_at = calloc(MOST_OPS, sizeof(*stored_at));
		stored_kins = calloc(MOST_STORED, sizeof(*stored_kins));
		zeroed = calloc(MOST_ZEROED, sizeof(*zeroed));
		for (i = 0; i < FILES; i++)
			files[i].states = calloc(STATES, sizeof(struct state));
	}
	if (!blocks || !free_blocks || !alternatives || !counted || !kin_blocks || !stored_at ||
	    !stored_kins || !zeroed)
		return -1;
	for (i = 0; i < FILES; i++)
		if (!files[i].states)
			return -1;
	for (i = 0; i < FILES; i++)
		memset(files[i].states, 0, STATES * sizeof(struct state));
	block_count = free_count = alternative_count = free_alternative = 0;
	memset(kin_blocks, 0, (kins + 1) * sizeof(*kin_blocks));
	memset(stored_at, 0, MOST_OPS * sizeof(*stored_at));
	kins = stored_count = zeroed_count = current = 0;
	gone = 0;
	for (i = 0; i < workload->files; i++) {
		struct state *state = files[i].states;

		files[i].count = 1;
		files[i].promise = 0;
		files[i].old = files[i].new = FIRST;
		state->size = i < workload->full ? workload->size : 0;
		for (page = 0; page < state->size / PAGE; page++) {
			uint32_t number = new_block();

			set_block(state, page, number);
			for (j = 0; j < UNITS; j++)
				blocks[number].promised[j] =
					value_of(FIRST, i, page * PAGE + j * UNIT);
		}
	}
	return 0;
}

/* Go on to the cut that came after so many events. */
int oracle_advance(uint64_t events)
{
	if (events < gone)
		return -1;
	for (; gone < events; gone++) {
		const struct op *op = &ops[gone / 2];

		current = gone / 2;
		if (gone % 2)
			ends(op, current);
		else
			begins(op, current);
	}
	return 0;
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
static bool check_page(unsigned int file, uint64_t page, const uint64_t *words, unsigned int units,
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
