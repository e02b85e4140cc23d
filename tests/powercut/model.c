// SPDX-License-Identifier: GPL-2.0
/*
 * model: plugin for QEMU's emulation that knows what of a guest's persistent memory would be there
 * after a power cut.
 *
 * It sees each store to the device that is recorded, each write-back of a cache line and each fence,
 * and keeps what is durable beside what the processors see. At some moments it cuts the power: it
 * notes what would be left. Afterwards it puts these images on other devices of the guest, one after
 * the other, which looks at them. docs/powercut.md describes the model; powercut.h, what programs in
 * the guest say to it.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "chance.h"
#include "emulator.h"
#include "powercut.h"

int qemu_plugin_version = 4;

#define LINE 64
#define PAGE 4096
#define DEVICES 4
#define PROCESSORS 16
/* Those that an address is made of: 16, and the bases of two segments. */
#define FS_BASE 16
#define GS_BASE 17
#define REGISTERS 18

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "powercut: %s\n", what);
	exit(1);
}

/*
 * An array that grows. Address space is taken for as much as it may ever hold, so that it never
 * moves.
 */
#define ROOM (64ULL << 30)

static void *room(uint64_t bytes)
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
static void make_equal(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
	uint64_t at;

	for (at = 0; at < bytes; at += PAGE)
		if (memcmp(to + at, from + at, PAGE))
			memcpy(to + at, from + at, PAGE);
}

static struct {
	uint64_t physical;
	uint64_t size;
	uint8_t *memory;
} devices[DEVICES];

/* Where the kernel has all memory, without randomisation: with four levels of page tables or five. */
static const uint64_t direct_maps[] = { 0xffff888000000000ULL, 0xff11000000000000ULL };
static uint64_t direct_map;

/* The device that is recorded: what the processors see, what is durable, and what was at first. */
static uint64_t physical, size, longest;
static uint8_t *seen, *durable, *base;

/* What became durable, in order: the line as it was then. */
struct change {
	uint32_t line;
	uint8_t data[LINE];
};
static struct change *changes;
static uint64_t changed;

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

/* What will be durable after the next fence of a processor: these bytes of a line. */
struct writeback {
	uint32_t line;
	uint64_t time;
	uint64_t bytes;
	uint8_t data[LINE];
};
static struct processor {
	struct writeback *pending;
	uint64_t count;
	/* Stores that the emulation has told of, and all that follows from them was done. */
	uint64_t told;
	/* POWERCUT_LATE */
	uint64_t late;
	struct qemu_plugin_register *registers[REGISTERS];
} processors[PROCESSORS];

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

struct survivor {
	uint32_t line;
	uint8_t data[LINE];
};
struct loss {
	uint32_t line;
	uint64_t pc;
};
struct cut {
	/* How many changes came before it, */
	uint64_t changed;
	/* what survived of lines that were not durable, */
	uint64_t survivors, survived;
	/* and what was lost. */
	uint64_t losses, lost;
	uint64_t events[POWERCUT_THREADS];
	enum powercut_kind kind;
	enum powercut_moment moment;
};
static struct survivor *survivors;
static uint64_t survived;
static struct loss *losses;
static uint64_t lost;
static struct cut *cuts;
static uint64_t cut_count;

/* A clock: each store and write-back is one tick. */
static uint64_t now;
static uint64_t stores, writebacks, fences;
static uint64_t events[POWERCUT_THREADS];

static enum { QUIET, BEGINNING, RECORDING } state;
static bool eadr;
/* Microseconds to wait after the last line of a page is written back. */
static uint64_t slow_writebacks;
/* Lines that changed unseen in what was recorded last. */
static uint64_t missed;

/* When the next cut comes: after so many fences or accesses, if any. */
static uint64_t rate;
static uint64_t fences_left, accesses_left;

static uint64_t plugin;
/* Held for whatever the recording is made of. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

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

static void cut(enum powercut_kind kind, enum powercut_moment moment)
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

static void event(uint64_t thread, uint64_t count)
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
static void stored(unsigned int vcpu, uint64_t offset, unsigned int bytes, uint64_t pc, bool around_cache)
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

static void write_back(unsigned int vcpu, uint64_t offset)
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

static void fence(unsigned int vcpu, void *data)
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

/* The physical address, all ones if there is none. */
static uint64_t translate(unsigned int vcpu, uint64_t address)
{
	uint64_t attributes;
	uint64_t page = cpu_get_phys_page_attrs_debug(qemu_get_cpu(vcpu), address & -PAGE, &attributes);

	return page == ~0ULL ? page : page + address % PAGE;
}

/*
 * Where a processor has stored last, page by page. Another processor may have taken the page's entry out
 * of the page table, and waits until this one has dropped what it remembers of it: until then this one
 * goes by what it remembers, as its own stores do.
 */
#define REMEMBERED 256
static struct {
	uint64_t page, at;
} remembered[PROCESSORS][REMEMBERED];

static void remember(unsigned int vcpu, uint64_t address, uint64_t at)
{
	uint64_t page = address / PAGE;

	remembered[vcpu][page % REMEMBERED].page = page;
	remembered[vcpu][page % REMEMBERED].at = at - address % PAGE;
}

/* The place in the device, at least its size if it is elsewhere. */
static uint64_t place_of(unsigned int vcpu, uint64_t address)
{
	uint64_t page = address / PAGE, at;

	/* The kernel uses the device through this mapping alone; else STOP would find differences. */
	if (address >> 63)
		return address - direct_map - physical;
	at = translate(vcpu, address);
	if (at == ~0ULL && remembered[vcpu][page % REMEMBERED].page == page)
		at = remembered[vcpu][page % REMEMBERED].at + address % PAGE;
	return at - physical;
}

/*
 * As place_of(), of a store by user space that was just made: where it went to. The page table need not
 * say that any more.
 */
static uint64_t place_of_store(unsigned int vcpu, uint32_t info, uint64_t address)
{
	struct qemu_plugin_hwaddr *where_to = qemu_plugin_get_hwaddr(info, address);
	uint64_t at;

	if (!where_to)
		return place_of(vcpu, address);
	if (qemu_plugin_hwaddr_is_io(where_to))
		return ~0ULL;
	at = qemu_plugin_hwaddr_phys_addr(where_to);
	if (at - physical < size)
		remember(vcpu, address, at);
	return at - physical;
}

static void stored_by_user(unsigned int vcpu, uint32_t info, uint64_t address, uint64_t pc,
			   bool around_cache)
{
	unsigned int bytes = 1U << qemu_plugin_mem_size_shift(info), first = bytes;
	uint64_t offset;

	if (processors[vcpu].late)
		usleep(processors[vcpu].late);
	if (address % PAGE + bytes > PAGE)
		first = PAGE - address % PAGE;
	offset = place_of_store(vcpu, info, address);
	if (offset < size)
		stored(vcpu, offset, first, pc, around_cache);
	if (first < bytes) {
		offset = place_of_store(vcpu, info, address + first);
		if (offset < size)
			stored(vcpu, offset, bytes - first, pc, around_cache);
	}
}

static void user_or_kernel(unsigned int vcpu, uint32_t info, uint64_t address, void *pc,
			   bool around_cache)
{
	unsigned int bytes = 1U << qemu_plugin_mem_size_shift(info);
	uint64_t offset = address - direct_map - physical;

	if (state != RECORDING)
		return;
	/* Most are by the kernel, and to ordinary memory. */
	if (!(address >> 63))
		stored_by_user(vcpu, info, address, (uint64_t)pc, around_cache);
	else if (offset + bytes - 1 < size + bytes - 1)
		stored(vcpu, offset, bytes, (uint64_t)pc, around_cache);
	/* Others only read it. */
	__atomic_store_n(&processors[vcpu].told, processors[vcpu].told + 1, __ATOMIC_RELEASE);
}

static void on_store(unsigned int vcpu, uint32_t info, uint64_t address, void *pc)
{
	user_or_kernel(vcpu, info, address, pc, false);
}

static void on_store_around_cache(unsigned int vcpu, uint32_t info, uint64_t address, void *pc)
{
	user_or_kernel(vcpu, info, address, pc, true);
}

/* An address as an instruction has it. */
struct operand {
	signed char base, index, segment;	/* registers, -1: none */
	bool narrow;			/* 32 bits */
	unsigned char scale;
	int64_t displacement;		/* with the address of the next instruction where it counts */
};

static uint64_t read_register(unsigned int vcpu, int number)
{
	static __thread struct byte_array *bytes;
	uint64_t value;

	if (!bytes)
		bytes = g_byte_array_new();
	g_byte_array_set_size(bytes, 0);
	if (qemu_plugin_read_register(processors[vcpu].registers[number], bytes) != sizeof(value))
		fail("cannot read a register");
	memcpy(&value, bytes->data, sizeof(value));
	return value;
}

static void on_write_back(unsigned int vcpu, void *data)
{
	const struct operand *operand = data;
	uint64_t address = operand->displacement, offset;

	if (state != RECORDING)
		return;
	if (operand->base >= 0)
		address += read_register(vcpu, operand->base);
	if (operand->index >= 0)
		address += read_register(vcpu, operand->index) << operand->scale;
	if (operand->narrow)
		address = (uint32_t)address;
	if (operand->segment >= 0)
		address += read_register(vcpu, operand->segment);
	offset = place_of(vcpu, address);
	if (offset < size)
		write_back(vcpu, offset);
	if (slow_writebacks && offset % PAGE / LINE == PAGE / LINE - 1)
		usleep(slow_writebacks);
}

/* What an instruction is, as far as it matters here. */
struct decoded {
	bool locked, repeated, operand_size, address_size;
	unsigned char segment, rex, opcode_map, opcode, modrm;
	/* From the ModRM byte on. */
	const unsigned char *rest;
	size_t left;
	bool vex;
};

static bool decode(const unsigned char *at, size_t length, struct decoded *to)
{
	const unsigned char *end = at + length;

	memset(to, 0, sizeof(*to));
	for (; at < end; at++) {
		if (*at == 0xf0)
			to->locked = true;
		else if (*at == 0x66)
			to->operand_size = true;
		else if (*at == 0xf2 || *at == 0xf3)
			to->repeated = true;
		else if (*at == 0x67)
			to->address_size = true;
		else if (*at == 0x64 || *at == 0x65)
			to->segment = *at;
		else if (*at != 0x2e && *at != 0x36 && *at != 0x3e && *at != 0x26)
			break;
	}
	if (at < end && (*at & 0xf0) == 0x40)
		to->rex = *at++;
	if (at == end)
		return false;
	if ((*at == 0xc5 && end - at > 3) || (*at == 0xc4 && end - at > 4)) {
		/* In 64-bit code these are always VEX prefixes. */
		to->vex = true;
		to->opcode_map = *at == 0xc5 ? 1 : at[1] & 0x1f;
		to->operand_size = (*at == 0xc5 ? at[1] & 3 : at[2] & 3) == 1;
		at += *at == 0xc5 ? 2 : 3;
	} else if (*at == 0x0f) {
		if (++at == end)
			return false;
		to->opcode_map = 1;
		if (*at == 0x38 || *at == 0x3a)
			to->opcode_map = *at++ == 0x38 ? 2 : 3;
	}
	if (at == end)
		return false;
	to->opcode = *at++;
	to->rest = at;
	to->left = end - at;
	if (at < end)
		to->modrm = *at;
	return true;
}

static bool in_memory(const struct decoded *insn)
{
	return insn->left && insn->modrm >> 6 != 3;
}

static bool goes_around_cache(const struct decoded *insn)
{
	if (insn->opcode_map != 1 || !insn->left)
		return false;
	if (!in_memory(insn))
		return insn->opcode == 0xf7;		/* maskmovq, maskmovdqu */
	return (insn->opcode == 0xc3 && !insn->vex) ||	/* movnti */
	       insn->opcode == 0xe7 ||			/* movntq, movntdq */
	       insn->opcode == 0x2b;			/* movntps, movntpd, movntss, movntsd */
}

static bool is_fence(const struct decoded *insn)
{
	if (insn->locked)
		return true;
	if (insn->opcode_map == 0 && (insn->opcode == 0x86 || insn->opcode == 0x87))
		return in_memory(insn);			/* xchg */
	return insn->opcode_map == 1 && insn->opcode == 0xae && insn->left && !insn->repeated &&
	       !insn->operand_size && insn->modrm >= 0xf0;	/* mfence, sfence */
}

static bool is_write_back(const struct decoded *insn)
{
	if (insn->opcode_map != 1 || insn->opcode != 0xae || !in_memory(insn) || insn->vex ||
	    insn->repeated)
		return false;
	switch (insn->modrm >> 3 & 7) {
	case 6:
		return insn->operand_size;		/* clwb; else xsaveopt */
	case 7:
		return true;				/* clflushopt, clflush */
	}
	return false;
}

static struct operand *operand_of(const struct decoded *insn, uint64_t next)
{
	/* As long as the translation lasts, and after: there are few of them. */
	struct operand *to = calloc(1, sizeof(*to));
	unsigned int mode = insn->modrm >> 6, rm = insn->modrm & 7;
	const unsigned char *at = insn->rest + 1;
	int32_t wide;

	if (!to)
		fail("no memory");
	to->index = to->segment = -1;
	if (insn->segment)
		to->segment = insn->segment == 0x64 ? FS_BASE : GS_BASE;
	to->narrow = insn->address_size;
	to->base = rm | (insn->rex & 1) << 3;
	if (rm == 4) {
		unsigned int sib = *at++;

		to->base = (sib & 7) | (insn->rex & 1) << 3;
		to->index = (sib >> 3 & 7) | (insn->rex & 2) << 2;
		if (to->index == 4)
			to->index = -1;
		to->scale = sib >> 6;
		if ((sib & 7) == 5 && mode == 0) {
			to->base = -1;
			mode = 2;
		}
	} else if (rm == 5 && mode == 0) {
		to->base = -1;
		to->displacement = next;
		mode = 2;
	}
	if (mode == 1) {
		to->displacement += (signed char)*at;
	} else if (mode == 2) {
		memcpy(&wide, at, sizeof(wide));
		to->displacement += wide;
	}
	return to;
}

static void *guest_memory(uint64_t at, uint64_t bytes)
{
	uint64_t length = bytes;
	void *memory = cpu_physical_memory_map(at, &length, true);

	if (!memory || length < bytes)
		fail("a device's memory is not where the guest says");
	return memory;
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb);

/* How many lines differ from what is known of them, or did when they were written back. */
static uint64_t unseen(void)
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

/* What is durable before a cut, in the memory that had it during the recording. */
static uint64_t applied;

static void changed_over(uint64_t id)
{
	unsigned int i;

	/* No processor runs meanwhile. */
	if (state == BEGINNING) {
		memset(remembered, 0, sizeof(remembered));
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
	} else {
		/* All stores have been reported by now. */
		missed = unseen();
		applied = changed;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	state = state == BEGINNING ? RECORDING : QUIET;
}

static void advance(const struct cut *to)
{
	if (applied > to->changed) {
		make_equal(durable, base, size);
		applied = 0;
	}
	for (; applied < to->changed; applied++)
		memcpy(durable + (uint64_t)changes[applied].line * LINE, changes[applied].data, LINE);
}

/* Exchanges what survived with what is durable; once more undoes it. */
static void exchange(const struct cut *of)
{
	uint64_t i;

	for (i = 0; i < of->survived; i++) {
		struct survivor *survivor = &survivors[of->survivors + i];
		uint8_t *at = durable + (uint64_t)survivor->line * LINE, data[LINE];

		memcpy(data, at, LINE);
		memcpy(at, survivor->data, LINE);
		memcpy(survivor->data, data, LINE);
	}
}

static int64_t load(struct powercut *request)
{
	const struct cut *this = &cuts[request->a[0]];
	uint8_t *to = devices[request->a[1]].memory;

	if (devices[request->a[1]].size != size)
		fail("the devices are not of one size");
	advance(this);
	exchange(this);
	make_equal(to, durable, size);
	exchange(this);
	memcpy(request->events, this->events, sizeof(this->events));
	request->kind = this->kind;
	request->moment = this->moment;
	return 0;
}

static int64_t peek(const struct powercut *request)
{
	const struct cut *this = &cuts[request->a[0]];
	const uint64_t offset = request->a[1] - physical;
	const uint8_t *line = base + offset / LINE * LINE;
	int64_t value;
	uint64_t i;

	/* The recording goes on, so what is durable now has to stay. */
	for (i = 0; i < this->changed; i++)
		if (changes[i].line == offset / LINE)
			line = changes[i].data;
	for (i = 0; i < this->survived; i++)
		if (survivors[this->survivors + i].line == offset / LINE)
			line = survivors[this->survivors + i].data;
	memcpy(&value, line + offset % LINE, sizeof(value));
	return value;
}

/* An image as a file: each page that is not zero, behind its place. */
static void name_of(uint64_t serial, char *to, size_t length)
{
	snprintf(to, length, "image-%" PRIu64, serial);
}

static int64_t keep(const struct powercut *request)
{
	static const uint8_t zero[PAGE];
	const struct cut *this = &cuts[request->a[0]];
	char name[40];
	uint64_t at;
	FILE *to;

	name_of(request->a[1], name, sizeof(name));
	to = fopen(name, "w");
	if (!to)
		return -1;
	advance(this);
	exchange(this);
	for (at = 0; at < size; at += PAGE) {
		if (!memcmp(durable + at, zero, PAGE))
			continue;
		fwrite(&at, sizeof(at), 1, to);
		fwrite(durable + at, PAGE, 1, to);
	}
	exchange(this);
	return fclose(to) ? -1 : 0;
}

static int64_t restore(const struct powercut *request)
{
	static const uint8_t zero[PAGE];
	uint8_t *to = devices[request->a[1]].memory;
	char name[40];
	uint64_t at;
	FILE *from;

	name_of(request->a[0], name, sizeof(name));
	from = fopen(name, "r");
	if (!from)
		return -1;
	for (at = 0; at < size; at += PAGE)
		make_equal(to + at, zero, PAGE);
	while (fread(&at, sizeof(at), 1, from) == 1)
		if (at > size - PAGE || fread(to + at, PAGE, 1, from) != 1)
			break;
	fclose(from);
	return 0;
}

/* The device as it is now, where the checker of the host finds it. */
static int64_t copy(const struct powercut *request)
{
	static const uint8_t zero[PAGE];
	const uint8_t *from = devices[request->a[0]].memory;
	uint64_t at, end;
	char name[40];
	bool bad;
	int to;

	snprintf(name, sizeof(name), "copy-%" PRIu64, request->a[1]);
	to = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (to < 0)
		return -1;
	bad = ftruncate(to, size);
	for (at = 0; at < size && !bad; at = end + PAGE) {
		for (end = at; end < size && memcmp(from + end, zero, PAGE); end += PAGE)
			;
		bad = end > at && pwrite(to, from + at, end - at, at) != (ssize_t)(end - at);
	}
	return close(to) || bad ? -1 : 0;
}

static int64_t copy_state(const struct powercut *request)
{
	char name[40];

	snprintf(name, sizeof(name), "copy-%" PRIu64, request->a[0]);
	if (!access(name, F_OK))
		return POWERCUT_COPY_WAITS;
	snprintf(name, sizeof(name), "damaged-%" PRIu64, request->a[0]);
	return access(name, F_OK) ? POWERCUT_COPY_IS_GOOD : POWERCUT_COPY_IS_DAMAGED;
}

static int64_t processor_time(void)
{
	struct timespec time;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int64_t set_device(const struct powercut *request)
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

static int64_t serve(unsigned int vcpu, struct powercut *request)
{
	const uint64_t *a = request->a;
	const struct loss *loss;

	switch (request->op) {
	case POWERCUT_DEVICE:
		return set_device(request);
	case POWERCUT_RECORD:
		direct_map = direct_maps[0];
		if (translate(vcpu, direct_map + physical) != physical)
			direct_map = direct_maps[1];
		if (translate(vcpu, direct_map + physical) != physical)
			fail("the kernel's mapping of the device is not where it was expected");
		random_state = a[0];
		rate = a[1];
		eadr = a[2];
		state = BEGINNING;
		qemu_plugin_reset(plugin, changed_over);
		return 0;
	case POWERCUT_STATE:
		return state == RECORDING ? 1 : state == QUIET ? 0 : -1;
	case POWERCUT_EVENT:
		event(a[0], a[1]);
		return cut_count;
	case POWERCUT_CUT:
		if (rate != POWERCUT_EVERY_FENCE)
			cut(a[0], POWERCUT_ON_REQUEST);
		return cut_count - 1;
	case POWERCUT_STOP:
		qemu_plugin_reset(plugin, changed_over);
		return 0;
	case POWERCUT_LATE:
		processors[vcpu].late = a[0];
		slow_writebacks = a[1];
		return 0;
	case POWERCUT_MISSED:
		return missed;
	case POWERCUT_LOAD:
		return load(request);
	case POWERCUT_PEEK:
		return peek(request);
	case POWERCUT_LOST:
		return cuts[a[0]].lost;
	case POWERCUT_LINE:
		loss = &losses[cuts[a[0]].losses + a[1]];
		request->a[0] = loss->pc;
		return physical + (uint64_t)loss->line * LINE;
	case POWERCUT_COUNTS:
		request->a[0] = stores;
		request->a[1] = writebacks;
		request->a[2] = fences;
		request->a[3] = changed;
		return 0;
	case POWERCUT_KEEP:
		return keep(request);
	case POWERCUT_RESTORE:
		return restore(request);
	case POWERCUT_COPY:
		return copy(request);
	case POWERCUT_COPY_STATE:
		return copy_state(request);
	case POWERCUT_CLOCK:
		return processor_time();
	}
	return -1;
}

static void on_request(unsigned int vcpu, void *data)
{
	uint64_t address = read_register(vcpu, 0), at = translate(vcpu, address);
	struct powercut *request;

	(void)data;
	if (at == ~0ULL)
		fail("a request that is not there");
	request = guest_memory(at, sizeof(*request));
	pthread_mutex_lock(&lock);
	request->answer = serve(vcpu, request);
	pthread_mutex_unlock(&lock);
	cpu_physical_memory_unmap(request, sizeof(*request), true, sizeof(*request));
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	static const char mark[] = POWERCUT_OPCODE;
	size_t i, n = qemu_plugin_tb_n_insns(tb);

	(void)id;
	for (i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		size_t length = qemu_plugin_insn_size(insn);
		uint64_t pc = qemu_plugin_insn_vaddr(insn);
		unsigned char bytes[16] = { 0 };
		struct decoded decoded;
		uint32_t value;

		if (length >= sizeof(bytes))
			continue;
		qemu_plugin_insn_data(insn, bytes, length);
		if (length == 7 && !memcmp(bytes, mark, 3)) {
			memcpy(&value, bytes + 3, sizeof(value));
			if (value == POWERCUT_MARK)
				qemu_plugin_register_vcpu_insn_exec_cb(insn, on_request,
								       QEMU_PLUGIN_CB_R_REGS, NULL);
			continue;
		}
		if (state != RECORDING)
			continue;
		if (!decode(bytes, length, &decoded))
			continue;
		if (is_fence(&decoded))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, fence, QEMU_PLUGIN_CB_NO_REGS,
							       NULL);
		if (is_write_back(&decoded))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_write_back,
							       QEMU_PLUGIN_CB_R_REGS,
							       operand_of(&decoded, pc + length));
		qemu_plugin_register_vcpu_mem_cb(insn, goes_around_cache(&decoded) ?
						 on_store_around_cache : on_store,
						 QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_W,
						 (void *)pc);
	}
}

static void started(uint64_t id, unsigned int vcpu)
{
	static const char *const names[] = {
		"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
		"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "fs_base", "gs_base",
	};
	struct register_array *all = qemu_plugin_get_registers();
	unsigned int i, j;

	(void)id;
	if (vcpu >= PROCESSORS)
		fail("too many processors");
	for (i = 0; i < REGISTERS; i++) {
		for (j = 0; j < all->count; j++)
			if (!strcmp(all->registers[j].name, names[i]))
				processors[vcpu].registers[i] = all->registers[j].handle;
		if (!processors[vcpu].registers[i])
			fail("a processor lacks a register");
	}
	processors[vcpu].pending = room(ROOM);
}

int qemu_plugin_install(uint64_t id, const struct machine *machine, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	if (!machine->system_emulation) {
		fprintf(stderr, "powercut: for machines, not for programs\n");
		return -1;
	}
	plugin = id;
	changes = room(ROOM);
	lines = room(ROOM);
	survivors = room(ROOM);
	losses = room(ROOM);
	cuts = room(1ULL << 30);
	qemu_plugin_register_vcpu_init_cb(id, started);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
