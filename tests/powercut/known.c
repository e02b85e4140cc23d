// SPDX-License-Identifier: GPL-2.0
/*
 * known: what the model of persistent memory (model.c) says of small programs, where everybody knows
 * what it must say.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "known.h"

uint8_t *memory;
static uint64_t physical;
uint64_t bytes, used;
static struct powercut request;
static char *said;
static size_t room;
static int failures;
bool eadr;

void wrong(const char *name, const char *what, uint64_t got)
{
	int n = snprintf(said, room, "%s: %s (%#llx)\n", name, what, (unsigned long long)got);

	if (n > 0 && (size_t)n < room) {
		said += n;
		room -= n;
	}
	failures++;
}

/* So many lines that nobody has used. */
uint8_t *fresh(unsigned int lines)
{
	uint8_t *at = memory + used;

	used += lines * LINE;
	if (used > bytes)
		used = bytes = 0;
	return at;
}

int64_t cut(enum powercut_kind kind)
{
	request.op = POWERCUT_CUT;
	request.a[0] = kind;
	return powercut(&request);
}

/* What is left at an address after a cut. */
uint64_t left(int64_t number, const void *at)
{
	request.op = POWERCUT_PEEK;
	request.a[0] = number;
	request.a[1] = physical + ((const uint8_t *)at - memory);
	return powercut(&request);
}

/* A line that was stored to twice is left as it was at any time since, and never otherwise. */
static void any_time(void)
{
	bool found[3] = { false };
	uint8_t *at = fresh(1);
	unsigned int i;

	for (i = 0; i < 300; i++) {
		uint64_t got;

		/* A new line each time: which of its stores counts is drawn when it is made. */
		at = fresh(1);
		store(at, V);
		store(at, W);
		got = left(cut(POWERCUT_LOSES_SOME), at);
		if (eadr ? got != W : got != 0 && got != V && got != W)
			wrong("any time", "was never there", got);
		found[got == V ? 1 : got == W ? 2 : 0] = true;
	}
	for (i = 0; i < 3 && !eadr; i++)
		if (!found[i])
			wrong("any time", "never happens, state", i);
}

static void both_stored(uint8_t *at)
{
	store(at, V);
	store(at + 8, W);
}
static void both_nt(uint8_t *at)
{
	movnti(at, V);
	movnti(at + 8, W);
}
static void both_nt_second_fenced(uint8_t *at)
{
	movnti(at + 8, W);
	sfence();
	movnti(at, V);
}

/*
 * Of two stores to one line the second is not left without the first, unless they go around the cache. A
 * fence between them keeps the first.
 */
static void any_order(void)
{
	static const struct {
		const char *name;
		void (*program)(uint8_t *at);
		/* Whether it is left so: neither, the first alone, the second alone, both. */
		bool left[4];
	} both[] = {
		{ "two stores", both_stored, { true, true, false, true } },
		{ "two non-temporal stores", both_nt, { true, true, true, true } },
		{ "a fence between non-temporal stores", both_nt_second_fenced, { false, false, true, true } },
	};
	unsigned int i, j;

	for (i = 0; i < sizeof(both) / sizeof(both[0]); i++) {
		bool found[4] = { false };

		for (j = 0; j < 300; j++) {
			uint8_t *at = fresh(1);
			uint64_t first, second;
			int64_t number;

			both[i].program(at);
			number = cut(POWERCUT_LOSES_SOME);
			first = left(number, at);
			second = left(number, at + 8);
			if ((first && first != V) || (second && second != W))
				wrong(both[i].name, "was never there", first ^ second);
			found[(first ? 1 : 0) + (second ? 2 : 0)] = true;
		}
		for (j = 0; j < 4; j++)
			if (found[j] != (eadr ? j == 3 : both[i].left[j]))
				wrong(both[i].name, found[j] ? "is left, state" : "never happens, state", j);
	}
}

/* Which lines are lost is drawn for each cut, and how many with it: few, many, and not always the first. */
static void some_of_many(void)
{
	enum { LINES = 64, CUTS = 100 };
	bool few = false, many = false;
	unsigned int times[LINES] = { 0 }, i, j;
	uint8_t *at = fresh(LINES);

	for (i = 0; i < LINES; i++)
		store(at + i * LINE, V);
	for (i = 0; i < CUTS; i++) {
		int64_t number = cut(POWERCUT_LOSES_SOME);
		unsigned int lost = 0;

		for (j = 0; j < LINES; j++) {
			bool here = left(number, at + j * LINE) == 0;

			lost += here;
			times[j] += here;
		}
		few |= lost < LINES / 3;
		many |= lost > LINES * 2 / 3;
		if (eadr && lost)
			wrong("some lines are lost", "with eADR", lost);
	}
	if (eadr)
		return;
	if (!few || !many)
		wrong("some lines are lost", few ? "never many" : "never few", 0);
	for (i = 0; i < LINES; i++)
		if (times[i] == 0 || times[i] == CUTS)
			wrong("some lines are lost", times[i] ? "always the line" : "never the line", i);
}

static void mov_over(uint8_t *at)
{
	store(at, V);
}
static void movnti_over(uint8_t *at)
{
	movnti(at, V);
	sfence();
}
static void string_over(uint8_t *at)
{
	uint64_t value = V, n = 8;
	const void *source = &value;
	void *to = at;

	__asm__ volatile("rep movsb" : "+S"(source), "+D"(to), "+c"(n) : "m"(value) : "memory");
}
/* Its lower half begins 8 bytes before the place, and is zero. */
static void vector_over(uint8_t *at)
{
	__asm__ volatile("movq %1, %%xmm0; pslldq $8, %%xmm0; movdqu %%xmm0, -8(%0)"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
static void xadd_over(uint8_t *at)
{
	uint64_t value = V;

	__asm__ volatile("xadd %0, (%1)" : "+r"(value) : "r"(at) : "memory", "cc");
}

/* A store over a border, four bytes on each side; one of its two lines is written back, or none has to be. */
static void over_border(const char *name, uint8_t *one, uint8_t *other, void (*program)(uint8_t *at),
			uint8_t *address)
{
	unsigned int back;

	for (back = 0; back < 3; back++) {
		uint64_t first, second;
		int64_t all;

		store(one, 0);
		store(other, 0);
		clwb(one);
		clwb(other);
		sfence();
		program(address);
		if (back)
			clwb(address + 4 * (back - 1));
		sfence();
		all = cut(POWERCUT_LOSES_ALL);
		first = left(all, one);
		second = left(all, other);
		if (first != (eadr || back == 1 || program == movnti_over ? V << 32 : 0))
			wrong(name, "is left before the border", first);
		if (second != (eadr || back == 2 || program == movnti_over ? V >> 32 : 0))
			wrong(name, "is left behind the border", second);
	}
}

static const struct {
	const char *name;
	void (*program)(uint8_t *at);
} over[] = {
	{ "mov over a border", mov_over }, { "movnti over a border", movnti_over },
	{ "rep movsb over a border", string_over }, { "movdqu over a border", vector_over },
	{ "xadd over a border", xadd_over },
};

/* Borders of lines, of pages, and of pages that lie elsewhere in the device. */
static void borders(int fd, uint64_t offset)
{
	uint8_t *at, *pages, *to;
	unsigned int i;

	for (i = 0; i < sizeof(over) / sizeof(over[0]); i++) {
		at = fresh(2);
		over_border(over[i].name, at + LINE - 8, at + LINE, over[i].program, at + LINE - 4);
	}
	used = (used + PAGE - 1) / PAGE * PAGE;
	at = fresh(4 * PAGE / LINE);
	if (!bytes)
		return;
	for (i = 0; i < sizeof(over) / sizeof(over[0]); i++)
		over_border(over[i].name, at + PAGE - 8, at + PAGE, over[i].program, at + PAGE - 4);
	/* The second page of these, and behind it the first. */
	pages = at + 2 * PAGE;
	to = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset + (pages - memory));
	if (to == MAP_FAILED ||
	    mmap(to, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		 offset + (pages - memory) + PAGE) == MAP_FAILED ||
	    mmap(to + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		 offset + (pages - memory)) == MAP_FAILED) {
		wrong("pages the other way round", "mmap fails", 0);
		return;
	}
	for (i = 0; i < sizeof(over) / sizeof(over[0]); i++)
		over_border(over[i].name, pages + 2 * PAGE - 8, pages, over[i].program, to + PAGE - 4);
	munmap(to, 2 * PAGE);
}

/* What the kernel does for a write and for fsync. */
static void by_kernel(int fd, uint64_t offset)
{
	static const char text[] = "thirteen char";
	uint8_t *at = fresh(16);
	int64_t all;
	uint64_t got;

	offset += at - memory;
	if (pwrite(fd, text, 13, offset + 3) != 13 || fsync(fd))
		wrong("pwrite", "fails", 0);
	all = cut(POWERCUT_LOSES_ALL);
	got = left(all, at + 8);
	if (memcmp(&got, text + 5, 8))
		wrong("pwrite of odd bytes and fsync", "is left", got);
	store(at + 4 * LINE, V);
	all = cut(POWERCUT_LOSES_ALL);
	/* The page is mapped for MAP_SYNC or not; only this tells the kernel to write it back. */
	if (fsync(fd))
		wrong("fsync", "fails", 0);
	got = left(cut(POWERCUT_LOSES_ALL), at + 4 * LINE);
	if (got != V)
		wrong("a store and fsync", "is left", got);
	got = left(all, at + 4 * LINE);
	if (got != (eadr ? V : 0))
		wrong("a store before fsync", "is left", got);
}

/* What the kernel stores for a program: at the program's address, and at its own for the same page. */
static void by_kernel_for_user(void)
{
	uint64_t value = V, got;
	int ends[2];
	uint8_t *at;
	int i;

	if (pipe(ends)) {
		wrong("read to a mapping", "pipe fails", 0);
		return;
	}
	for (i = 0; i < 2; i++) {
		at = fresh(2);
		if (i == 0) {
			struct iovec from = { &value, sizeof(value) }, to = { at, sizeof(value) };

			if (process_vm_writev(getpid(), &from, 1, &to, 1, 0) != sizeof(value))
				wrong("process_vm_writev", "fails", 0);
		} else if (write(ends[1], &value, sizeof(value)) != sizeof(value) ||
			   read(ends[0], at, sizeof(value)) != sizeof(value)) {
			wrong("read to a mapping", "fails", 0);
		}
		got = left(cut(POWERCUT_KEEPS_ALL), at);
		if (got != V)
			wrong("stored by the kernel", "not there though nothing was lost", got);
		got = left(cut(POWERCUT_LOSES_ALL), at);
		if (got != (eadr ? V : 0))
			wrong("stored by the kernel", "is left without a write-back", got);
		clwb(at);
		sfence();
		got = left(cut(POWERCUT_LOSES_ALL), at);
		if (got != V)
			wrong("stored by the kernel and written back", "is left", got);
	}
	close(ends[0]);
	close(ends[1]);
}

/* Addresses relative to the instruction, and of 32 bits. */
static void addresses(int fd, uint64_t offset)
{
	/* clwb displacement(%rip); sfence; ret */
	uint8_t code[] = { 0x66, 0x0f, 0xae, 0x35, 0, 0, 0, 0, 0x0f, 0xae, 0xf8, 0xc3 };
	uint8_t *at, *low, *page;
	int64_t distance;
	int32_t narrow;
	uint64_t got;

	at = fresh(2);
	/* It is near: the kernel has mappings one below the other. */
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	distance = at - (page + 8);
	narrow = distance;
	if (page == MAP_FAILED || narrow != distance) {
		wrong("an address relative to the instruction", "mmap fails", distance);
		return;
	}
	memcpy(code + 4, &narrow, sizeof(narrow));
	memcpy(page, code, sizeof(code));
	store(at, V);
	((void (*)(void))page)();
	got = left(cut(POWERCUT_LOSES_ALL), at);
	if (got != V)
		wrong("a write-back relative to the instruction", "is left", got);
	munmap(page, PAGE);

	used = (used + PAGE - 1) / PAGE * PAGE;
	at = fresh(PAGE / LINE);
	low = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_32BIT, fd, offset + (at - memory));
	if (low == MAP_FAILED) {
		wrong("an address of 32 bits", "mmap fails", 0);
		return;
	}
	store(low, V);
	__asm__ volatile("clwb (%k0); sfence" : : "r"((uint64_t)low | 1ULL << 40) : "memory");
	got = left(cut(POWERCUT_LOSES_ALL), at);
	if (got != V)
		wrong("a write-back at an address of 32 bits", "is left", got);
	munmap(low, PAGE);
}

/*
 * Instructions that write to memory in a way of which the model knows nothing, or in a form that it
 * cannot read. The emulated processor has none of them.
 */
static void unknown_instructions(void)
{
	unsigned int a, b, c, d;

	if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
		if (b & bit_AVX512F)
			wrong("the processor", "has AVX-512", b);
		if (c & (1U << 27 | 1U << 28 | 1U << 29))
			wrong("the processor", "has movdiri, movdir64b or enqcmd", c);
		if (d & (1U << 24))
			wrong("the processor", "has AMX", d);
	}
	if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
		if (a & (1U << 3))
			wrong("the processor", "has aadd", a);
		if (d & (1U << 19 | 1U << 21))
			wrong("the processor", "has AVX10 or APX", d);
	}
	if (__get_cpuid(0x80000008, &a, &b, &c, &d) && b & 1)
		wrong("the processor", "has clzero", b);
}

static void begin(uint8_t *at, uint64_t size, uint64_t address, bool all_durable, char *to, size_t length)
{
	memory = at;
	eadr = all_durable;
	physical = address;
	bytes = size;
	/* Some addresses are below that of the line. */
	used = 8192;
	said = to;
	room = length;
	failures = 0;
	*to = 0;
}

/*
 * Everything that one processor does, in `size` bytes of the device that are mapped at `at`, and are a file's
 * at `offset`. What is wrong goes to `to`; the answer is how much of it there is.
 */
int known_answers(uint8_t *at, uint64_t size, uint64_t address, int fd, uint64_t offset, bool all_durable,
		  char *to, size_t length)
{
	begin(at, size, address, all_durable, to, length);
	run_programs();
	any_time();
	any_order();
	some_of_many();
	borders(fd, offset);
	by_kernel(fd, offset);
	by_kernel_for_user();
	addresses(fd, offset);
	unknown_instructions();
	if (!bytes)
		wrong("the memory", "is too small", used);
	return failures;
}

/* What two processors do; -1 if there is only one. */
int known_answers_of_two(uint8_t *at, uint64_t size, uint64_t address, int fd, uint64_t offset, bool all_durable,
			 char *to, size_t length)
{
	begin(at, size, address, all_durable, to, length);
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return -1;
	while_mappings_change(fd, offset);
	other_processor();
	if (!bytes)
		wrong("the memory", "is too small", used);
	return failures;
}

/*
 * What no processor stores, as a device would: the model itself, which answers a request where it is. It
 * must be missed, whether or not the line is written back. How many lines changed in this way is the answer.
 */
int known_answers_unseen(uint8_t *at, uint64_t size, uint64_t address, char *to, size_t length)
{
	unsigned int i;

	begin(at, size, address, false, to, length);
	for (i = 0; i < 2; i++) {
		struct powercut *here;

		used = (used + sizeof(*here) - 1) / sizeof(*here) * sizeof(*here);
		here = (struct powercut *)fresh(sizeof(*here) / LINE);
		here->op = POWERCUT_STATE;
		/* No line has more than one of these, so that of the answer was not stored to. */
		if (powercut(here) != 1)
			wrong("a request in the device", "is answered", here->answer);
		if (i == 0)
			continue;
		clwb(&here->answer);
		sfence();
		if (left(cut(POWERCUT_LOSES_ALL), &here->answer) != 1)
			wrong("written back, but unseen", "is left", 0);
	}
	return i;
}
