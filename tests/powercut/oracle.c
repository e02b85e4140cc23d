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
#include <stdlib.h>
#include <string.h>

#include "oracle.h"

const struct workload *workload;
struct file files[FILES];
struct block *blocks;
static uint32_t block_count, *free_blocks, free_count;
struct alternative *alternatives;
static uint32_t alternative_count, free_alternative;
#define MOST_BLOCKS (1U << 17)
#define MOST_ALTERNATIVES (1U << 26)
/* How many blocks each kin has. */
#define MOST_KINS (1U << 22)
static uint32_t kins, *kin_blocks;
#define MOST_STORED (1U << 24)
uint32_t *stored_at, *stored_kins;
static uint32_t stored_count;
#define MOST_ZEROED (1U << 20)
struct zeroed *zeroed;
uint32_t zeroed_count;
/* How many events of the workload have been gone through, and the operation of the last one. */
static uint64_t gone;
uint32_t current;
uint32_t *counted, counting;

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

struct state *last(unsigned int file)
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
