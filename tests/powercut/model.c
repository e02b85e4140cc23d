// SPDX-License-Identifier: GPL-2.0
/*
 * model: what of a guest's persistent memory would be there after a power cut.
 *
 * It is told of each store to the device that is recorded, each write-back of a cache line and each fence,
 * and keeps what is durable beside what the processors see. At some moments it cuts the power: it
 * notes what would be left. docs/powercut.md describes it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "chance.h"
#include "model.h"

void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "powercut: %s\n", what);
	exit(1);
}

void *room(uint64_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		fail("no address space");
	return at;
}

static void forget(void *at, uint64_t bytes)
{
	if (bytes)
		madvise(at, bytes, MADV_DONTNEED);
}

/* Most of a device is never written to, and stays without memory if it is only compared. */
void make_equal(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
	uint64_t at;

	for (at = 0; at < bytes; at += PAGE)
		if (memcmp(to + at, from + at, PAGE))
			memcpy(to + at, from + at, PAGE);
}

struct device devices[DEVICES];

uint64_t physical, size;
static uint64_t longest;
uint8_t *seen, *durable, *base;

struct change *changes;
uint64_t changed;

/* A line that was stored to and is not known to be durable. */
struct line {
	uint32_t number;
	/* Stores since then. */
	uint32_t stores;
	/* Write-backs that no fence has waited for. */
	uint32_t pending;
	/* Bytes that were stored around the cache last, and that no fence has waited for. */
	uint64_t around;
	/* The instruction that stored last. */
	uint64_t pc;
	/* What the line was after one of the stores, each as likely as the others, and which. */
	uint64_t sampled;
	uint8_t sample[LINE];
};
/* All of them, in no order, and where the one with a number is, plus one. */
static struct line *lines;
static uint32_t active;
static uint32_t *where;

struct processor processors[PROCESSORS];

/*
 * A line that was written back with contents that no store explains. A processor may have made the store
 * and not have told of it yet: then that is what it tells of next. Else the model has missed a store.
 */
#define MOST_UNTOLD 4096
struct untold {
	uint32_t line;
	uint64_t told[PROCESSORS];
};
static struct untold untold[MOST_UNTOLD];
static uint32_t untold_count;

struct survivor *survivors;
static uint64_t survived;
struct loss *losses;
static uint64_t lost;
struct cut *cuts;
uint64_t cut_count;

/* A clock: each store and write-back is one tick. */
static uint64_t now;
uint64_t stores, writebacks, fences;
static uint64_t events[POWERCUT_THREADS];

enum recording state;
static bool eadr;

/* When the next cut comes: after so many fences or accesses, if any. */
uint64_t rate;
static uint64_t fences_left, accesses_left;

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/*
 * Stores around the cache may become durable in any order: each eight bytes of them are what they were or
 * what they are.
 */
static const uint8_t *some_units(const struct line *line, const uint8_t *current, const uint8_t *old)
{
	static uint8_t left[LINE];
	unsigned int unit, i;

	memcpy(left, old, LINE);
	for (unit = 0; unit < LINE; unit += 8) {
		if (!(line->around >> unit & 0xff) || below(2))
			continue;
		for (i = unit; i < unit + 8; i++)
			if (line->around >> i & 1)
				left[i] = current[i];
	}
	return left;
}

void cut(enum powercut_kind kind, enum powercut_moment moment)
{
	struct cut *this = &cuts[cut_count++];
	/* Out of eight lines, so many are lost. */
	uint64_t often = 1 + below(7);
	uint32_t i;

	*this = (struct cut){ .changed = changed, .survivors = survived, .losses = lost,
			      .kind = kind, .moment = moment };
	memcpy(this->events, events, sizeof(events));
	for (i = 0; i < active; i++) {
		const struct line *line = &lines[i];
		const uint8_t *current = seen + (uint64_t)line->number * LINE;
		const uint8_t *old = durable + (uint64_t)line->number * LINE;
		const uint8_t *left = old;

		if (eadr || kind == POWERCUT_KEEPS_ALL)
			left = current;
		else if (kind == POWERCUT_LOSES_SOME && below(8) >= often)
			left = line->around && below(2) ? some_units(line, current, old) :
			       below(2) ? current : line->sample;
		if (memcmp(left, old, LINE)) {
			struct survivor *survivor = &survivors[survived++];

			survivor->line = line->number;
			memcpy(survivor->data, left, LINE);
		}
		if (memcmp(left, current, LINE))
			losses[lost++] = (struct loss){ line->number, line->pc };
	}
	this->survived = survived - this->survivors;
	this->lost = lost - this->losses;
}

static void random_cut(enum powercut_moment moment)
{
	uint64_t dice = below(10);

	cut(dice < 4 ? POWERCUT_LOSES_ALL : dice < 5 ? POWERCUT_KEEPS_ALL : POWERCUT_LOSES_SOME,
	    moment);
}

/* Small numbers as likely as large ones of the same number of digits. */
static uint64_t scattered(unsigned int bits)
{
	return 1 + below(1ULL << below(bits + 1));
}

void event(uint64_t thread, uint64_t count)
{
	if (state != RECORDING)
		return;
	events[thread] = count;
	if (rate == POWERCUT_EVERY_FENCE || below(65536) >= rate)
		return;
	switch (below(5)) {
	case 0:
		random_cut(POWERCUT_AT_EVENT);
		break;
	case 1:
	case 2:
		fences_left = scattered(6);
		break;
	default:
		accesses_left = scattered(13);
		break;
	}
}

static void accessed(void)
{
	now++;
	if (accesses_left && !--accesses_left)
		random_cut(POWERCUT_AT_ACCESS);
}

/* The line is durable as it is, and nothing is under way that could make it older. */
static void retire(struct line *line)
{
	struct line *last = &lines[--active];

	where[line->number] = 0;
	if (line != last) {
		*line = *last;
		where[line->number] = line - lines + 1;
	}
}

static struct line *line_of(uint32_t number)
{
	struct line *line;

	if (where[number])
		return &lines[where[number] - 1];
	line = &lines[active++];
	where[number] = active;
	memset(line, 0, sizeof(*line));
	line->number = number;
	return line;
}

/* What is written back is what the line has, whether or not it is known who stored it. */
static void make_line_of_untold(uint32_t number)
{
	struct line *line = line_of(number);
	unsigned int i;

	line->stores = 1;
	line->sampled = now;
	memcpy(line->sample, seen + (uint64_t)number * LINE, LINE);
	if (untold_count == MOST_UNTOLD)
		fail("the model misses all that is stored");
	untold[untold_count].line = number;
	for (i = 0; i < PROCESSORS; i++)
		untold[untold_count].told[i] = __atomic_load_n(&processors[i].told, __ATOMIC_ACQUIRE);
	untold_count++;
}

/* A processor tells of a store to the line. */
static void explain(unsigned int vcpu, uint32_t number)
{
	uint32_t i;

	for (i = 0; i < untold_count; i++)
		if (untold[i].line == number && untold[i].told[vcpu] == processors[vcpu].told) {
			untold[i] = untold[--untold_count];
			return;
		}
}

static struct writeback *begin_writeback(struct processor *cpu, struct line *line, uint64_t bytes)
{
	struct writeback *writeback = &cpu->pending[cpu->count++];

	line->pending++;
	writeback->line = line->number;
	writeback->time = now;
	writeback->bytes = bytes;
	memcpy(writeback->data, seen + (uint64_t)line->number * LINE, LINE);
	return writeback;
}

static void stored_to_line(unsigned int vcpu, uint64_t offset, unsigned int bytes, uint64_t pc,
			   bool around_cache)
{
	struct line *line = line_of(offset / LINE);
	const uint8_t *current = seen + (uint64_t)line->number * LINE;
	uint64_t mask = (bytes < 64 ? (1ULL << bytes) - 1 : ~0ULL) << offset % LINE;
	struct processor *cpu = &processors[vcpu];

	explain(vcpu, line->number);
	line->pc = pc;
	line->around = around_cache ? line->around | mask : line->around & ~mask;
	if (!below(++line->stores)) {
		line->sampled = now;
		memcpy(line->sample, current, LINE);
	}
	if (around_cache) {
		struct writeback *last = cpu->count ? &cpu->pending[cpu->count - 1] : NULL;

		if (!last || last->line != line->number)
			last = begin_writeback(cpu, line, 0);
		last->bytes |= mask;
		last->time = now;
		memcpy(last->data + offset % LINE, current + offset % LINE, bytes);
	}
}

/* A store is seen when it was made. */
void stored(unsigned int vcpu, uint64_t offset, unsigned int bytes, uint64_t pc, bool around_cache)
{
	pthread_mutex_lock(&lock);
	stores++;
	while (bytes) {
		unsigned int part = LINE - offset % LINE;

		if (part > bytes)
			part = bytes;
		if (offset < size)
			stored_to_line(vcpu, offset, part, pc, around_cache);
		offset += part;
		bytes -= part;
	}
	accessed();
	pthread_mutex_unlock(&lock);
}

void write_back(unsigned int vcpu, uint64_t offset)
{
	uint32_t number = offset / LINE;

	pthread_mutex_lock(&lock);
	writebacks++;
	if (!where[number] &&
	    memcmp(seen + (uint64_t)number * LINE, durable + (uint64_t)number * LINE, LINE))
		make_line_of_untold(number);
	if (where[number]) {
		begin_writeback(&processors[vcpu], &lines[where[number] - 1], ~0ULL);
		accessed();
	}
	pthread_mutex_unlock(&lock);
}

/* Other processors' write-backs of the line that began earlier have nothing to say of these bytes. */
static void supersede(const struct writeback *by, const struct processor *except)
{
	unsigned int i;
	uint64_t j;

	for (i = 0; i < PROCESSORS; i++) {
		struct processor *cpu = &processors[i];

		if (cpu == except)
			continue;
		for (j = 0; j < cpu->count; j++)
			if (cpu->pending[j].line == by->line && cpu->pending[j].time < by->time)
				cpu->pending[j].bytes &= ~by->bytes;
	}
}

static void copy_bytes(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
	unsigned int i;

	if (bytes == ~0ULL) {
		memcpy(to, from, LINE);
		return;
	}
	for (i = 0; i < LINE; i++)
		if (bytes >> i & 1)
			to[i] = from[i];
}

static void complete(const struct processor *cpu, const struct writeback *writeback)
{
	struct line *line = &lines[where[writeback->line] - 1];
	uint8_t *at = durable + (uint64_t)writeback->line * LINE;
	uint8_t before[LINE];

	memcpy(before, at, LINE);
	copy_bytes(at, writeback->data, writeback->bytes);
	line->around &= ~writeback->bytes;
	if (--line->pending)
		supersede(writeback, cpu);
	if (line->sampled < writeback->time)
		copy_bytes(line->sample, writeback->data, writeback->bytes);
	if (memcmp(before, at, LINE)) {
		changes[changed].line = writeback->line;
		memcpy(changes[changed++].data, at, LINE);
	}
	if (!line->pending && !memcmp(at, seen + (uint64_t)writeback->line * LINE, LINE))
		retire(line);
}

void fence(unsigned int vcpu, void *data)
{
	struct processor *cpu = &processors[vcpu];
	uint64_t i;

	(void)data;
	/* Nobody else adds to it. */
	if (state != RECORDING || !cpu->count)
		return;
	pthread_mutex_lock(&lock);
	fences++;
	for (i = 0; i < cpu->count; i++)
		complete(cpu, &cpu->pending[i]);
	cpu->count = 0;
	if (rate == POWERCUT_EVERY_FENCE || (fences_left && !--fences_left))
		random_cut(POWERCUT_AT_FENCE);
	pthread_mutex_unlock(&lock);
}

/* How many lines differ from what is known of them, or did when they were written back. */
uint64_t unseen(void)
{
	uint64_t count = untold_count;
	uint64_t at;

	if (count)
		fprintf(stderr, "powercut: written back, but not seen before: %" PRIx64 "\n",
			physical + (uint64_t)untold[0].line * LINE);
	for (at = 0; at < size; at += LINE) {
		if (where[at / LINE] || !memcmp(seen + at, durable + at, LINE))
			continue;
		if (!count++)
			fprintf(stderr, "powercut: changed unseen: %" PRIx64 "\n", physical + at);
	}
	return count;
}

void make_rooms(void)
{
	changes = room(ROOM);
	lines = room(ROOM);
	survivors = room(ROOM);
	losses = room(ROOM);
	cuts = room(1ULL << 30);
}

int64_t set_device(const struct powercut *request)
{
	uint64_t number = request->a[0];

	if (number >= DEVICES)
		fail("there are not so many devices");
	devices[number].physical = request->a[1];
	devices[number].size = request->a[2];
	devices[number].memory = guest_memory(request->a[1], request->a[2]);
	if (number)
		return 0;
	physical = request->a[1];
	size = request->a[2];
	seen = devices[0].memory;
	if (!durable) {
		longest = size;
		durable = room(size);
		base = room(size);
		where = room(size / LINE * sizeof(*where));
	}
	if (size > longest)
		fail("the first filesystem is to be the largest");
	return 0;
}

void prepare_recording(uint64_t seed, uint64_t often, bool all_durable)
{
	random_state = seed;
	rate = often;
	eadr = all_durable;
	state = BEGINNING;
}

/* No processor runs meanwhile. */
void begin_recording(void)
{
	unsigned int i;

	make_equal(base, seen, size);
	make_equal(durable, seen, size);
	forget(changes, changed * sizeof(*changes));
	forget(survivors, survived * sizeof(*survivors));
	forget(losses, lost * sizeof(*losses));
	for (i = 0; i < active; i++)
		where[lines[i].number] = 0;
	for (i = 0; i < PROCESSORS; i++)
		processors[i].count = 0;
	active = untold_count = 0;
	changed = survived = lost = cut_count = 0;
	stores = writebacks = fences = now = 0;
	fences_left = accesses_left = 0;
	memset(events, 0, sizeof(events));
}
