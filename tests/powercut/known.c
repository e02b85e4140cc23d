// SPDX-License-Identifier: GPL-2.0
/*
 * known: what the model of persistent memory (model.c) says of small programs, where everybody knows
 * what it must say.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "powercut.h"

#define LINE 64
#define PAGE 4096

/* Memory of the device that is recorded, all of it zero and durable at first, and its address. */
static uint8_t *memory;
static uint64_t physical;
static uint64_t bytes, used;
static struct powercut request;
static char *said;
static size_t room;
static int failures;

static void wrong(const char *name, const char *what, uint64_t got)
{
	int n = snprintf(said, room, "%s: %s (%#llx)\n", name, what, (unsigned long long)got);

	if (n > 0 && (size_t)n < room) {
		said += n;
		room -= n;
	}
	failures++;
}

/* So many lines that nobody has used. */
static uint8_t *fresh(unsigned int lines)
{
	uint8_t *at = memory + used;

	used += lines * LINE;
	if (used > bytes)
		used = bytes = 0;
	return at;
}

static int64_t cut(enum powercut_kind kind)
{
	request.op = POWERCUT_CUT;
	request.a[0] = kind;
	return powercut(&request);
}

/* What is left at an address after a cut. */
static uint64_t left(int64_t number, const void *at)
{
	request.op = POWERCUT_PEEK;
	request.a[0] = number;
	request.a[1] = physical + ((const uint8_t *)at - memory);
	return powercut(&request);
}

static inline void store(void *at, uint64_t value)
{
	*(volatile uint64_t *)at = value;
}

static inline void clwb(void *at)
{
	__asm__ volatile("clwb (%0)" : : "r"(at) : "memory");
}

static inline void sfence(void)
{
	__asm__ volatile("sfence" : : : "memory");
}

static inline void movnti(void *at, uint64_t value)
{
	__asm__ volatile("movnti %1, (%0)" : : "r"(at), "r"(value) : "memory");
}

#define V 0x1122334455667788ULL
#define W 0x99aabbccddeeff00ULL

static void store_alone(uint8_t *at)
{
	store(at, V);
}
static void store_clwb(uint8_t *at)
{
	store(at, V);
	clwb(at);
}
static void store_clwb_sfence(uint8_t *at)
{
	store_clwb(at);
	sfence();
}
static void store_clflushopt_sfence(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("clflushopt (%0); sfence" : : "r"(at) : "memory");
}
static void store_clflush_mfence(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("clflush (%0); mfence" : : "r"(at) : "memory");
}
static void store_clwb_lock(uint8_t *at)
{
	store_clwb(at);
	__asm__ volatile("lock addl $0, (%%rsp)" : : : "memory", "cc");
}
static void store_clwb_xchg(uint8_t *at)
{
	uint64_t other = 0, value = 1;

	store_clwb(at);
	__asm__ volatile("xchg %0, %1" : "+r"(value), "+m"(other));
}
static void store_clwb_lfence(uint8_t *at)
{
	store_clwb(at);
	__asm__ volatile("lfence" : : : "memory");
}
static void store_sfence(uint8_t *at)
{
	store(at, V);
	sfence();
}
static void clwb_store_sfence(uint8_t *at)
{
	clwb(at);
	store_sfence(at);
}
static void clwb_of_the_next_line(uint8_t *at)
{
	store(at, V);
	clwb(at + LINE);
	sfence();
}
static void nt_alone(uint8_t *at)
{
	movnti(at, V);
}
static void nt_sfence(uint8_t *at)
{
	movnti(at, V);
	sfence();
}
static void nt_beside_store(uint8_t *at)
{
	store(at, V);
	movnti(at + 8, V);
	sfence();
}
static void store_beside_nt(uint8_t *at)
{
	movnti(at, V);
	store(at + 8, V);
	sfence();
}
static void nt_vector(uint8_t *at)
{
	__asm__ volatile("movq %1, %%xmm0; movntdq %%xmm0, (%0); sfence"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
static void nt_wide_vector(uint8_t *at)
{
	__asm__ volatile("vmovq %1, %%xmm0; vmovntdq %%ymm0, (%0); sfence; vzeroupper"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
static void nt_wide_vector_alone(uint8_t *at)
{
	__asm__ volatile("vmovq %1, %%xmm0; vmovntps %%ymm0, (%0); vzeroupper"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
static void vector(uint8_t *at)
{
	__asm__ volatile("movq %1, %%xmm0; movdqu %%xmm0, (%0); clwb (%0); sfence"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
static void vector_alone(uint8_t *at)
{
	__asm__ volatile("vmovq %1, %%xmm0; vmovdqu %%ymm0, (%0); sfence; vzeroupper"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
static void string_of(uint8_t *at, uint64_t value)
{
	uint64_t from[3 * LINE / 8], n = sizeof(from);
	const void *source = from;
	void *to = at;
	size_t i;

	for (i = 0; i < sizeof(from) / 8; i++)
		from[i] = value;
	__asm__ volatile("rep movsb" : "+S"(source), "+D"(to), "+c"(n) : : "memory");
}
static void string_alone(uint8_t *at)
{
	string_of(at, V);
	sfence();
}
static void string_written_back(uint8_t *at)
{
	string_of(at, V);
	clwb(at);
	clwb(at + LINE);
	clwb(at + 2 * LINE);
	sfence();
}
static void string_stored(uint8_t *at)
{
	uint64_t n = 2 * LINE / 8;
	void *to = at;

	__asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(V) : "memory");
	clwb(at);
	sfence();
}
static void locked_store(uint8_t *at)
{
	uint64_t value = V;

	__asm__ volatile("lock xadd %0, (%1)" : "+r"(value) : "r"(at) : "memory", "cc");
}
static void locked_store_written_back(uint8_t *at)
{
	locked_store(at);
	clwb(at);
	sfence();
}
static void stored_again_after_clwb(uint8_t *at)
{
	store(at, V);
	clwb(at);
	store(at, W);
	sfence();
}
static void addressed_by_index(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("mov %0, %%r13; mov $-5, %%r12; clwb 168(%%r13,%%r12,8); sfence"
			 : : "r"(at - 128) : "memory", "r12", "r13");
}
static void addressed_by_r12(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("mov %0, %%r12; clwb 0x1000(%%r12); sfence"
			 : : "r"(at - 0x1000) : "memory", "r12");
}
static void addressed_by_rsp(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("mov %%rsp, %%r11; mov %0, %%rsp; clwb (%%rsp); mov %%r11, %%rsp; sfence"
			 : : "r"(at) : "memory", "r11");
}

static const struct {
	const char *name;
	void (*program)(uint8_t *at);
	/* Of the words at 0, 8 and 64, what is left when all is lost that can be, and when nothing is. */
	uint64_t lost[3], kept[3];
} programs[] = {
	{ "a store is lost", store_alone, { 0 }, { V } },
	{ "a write-back without a fence may be lost", store_clwb, { 0 }, { V } },
	{ "a write-back and sfence", store_clwb_sfence, { V }, { V } },
	{ "clflushopt and sfence", store_clflushopt_sfence, { V }, { V } },
	{ "clflush and mfence", store_clflush_mfence, { V }, { V } },
	{ "a write-back and a locked instruction", store_clwb_lock, { V }, { V } },
	{ "a write-back and xchg", store_clwb_xchg, { V }, { V } },
	{ "lfence does not wait for a write-back", store_clwb_lfence, { 0 }, { V } },
	{ "a fence writes nothing back", store_sfence, { 0 }, { V } },
	{ "a write-back before the store", clwb_store_sfence, { 0 }, { V } },
	{ "a write-back of another line", clwb_of_the_next_line, { 0 }, { V } },
	{ "a non-temporal store without a fence", nt_alone, { 0 }, { V } },
	{ "a non-temporal store and sfence", nt_sfence, { V }, { V } },
	{ "a non-temporal store beside a store", nt_beside_store, { 0, V }, { V, V } },
	{ "a store beside a non-temporal store", store_beside_nt, { V, 0 }, { V, V } },
	{ "movntdq", nt_vector, { V }, { V } },
	{ "vmovntdq", nt_wide_vector, { V }, { V } },
	{ "vmovntps without a fence", nt_wide_vector_alone, { 0 }, { V } },
	{ "movdqu and a write-back", vector, { V }, { V } },
	{ "vmovdqu without a write-back", vector_alone, { 0 }, { V } },
	{ "rep movsb without a write-back", string_alone, { 0 }, { V, V, V } },
	{ "rep movsb and a write-back", string_written_back, { V, V, V }, { V, V, V } },
	{ "rep stosq and a write-back of the first line", string_stored, { V, V, 0 }, { V, V, V } },
	{ "a locked store is lost", locked_store, { 0 }, { V } },
	{ "a locked store and a write-back", locked_store_written_back, { V }, { V } },
	{ "stored to again after the write-back", stored_again_after_clwb, { V }, { W } },
	{ "a write-back by base, index and displacement", addressed_by_index, { V }, { V } },
	{ "a write-back by r12", addressed_by_r12, { V }, { V } },
	{ "a write-back by rsp", addressed_by_rsp, { V }, { V } },
};

#define PROGRAMS (sizeof(programs) / sizeof(programs[0]))

static bool as_wanted(int64_t number, uint8_t *at, const uint64_t wanted[3], uint64_t *got)
{
	static const unsigned int places[3] = { 0, 8, LINE };
	unsigned int i;

	for (i = 0; i < 3; i++) {
		*got = left(number, at + places[i]);
		if (*got != wanted[i])
			return false;
	}
	return true;
}

static void run_program(unsigned int i)
{
	/* An interrupt is a fence, so what may be lost need not be each time. */
	unsigned int tries = programs[i].lost[0] == programs[i].kept[0] ? 1 : 50;
	bool lost = false;
	uint64_t got = 0;
	uint8_t *at;

	do {
		int64_t all, none;

		at = fresh(3);
		programs[i].program(at);
		all = cut(POWERCUT_LOSES_ALL);
		none = cut(POWERCUT_KEEPS_ALL);
		if (!as_wanted(none, at, programs[i].kept, &got))
			wrong(programs[i].name, "not there though nothing was lost", got);
		lost = as_wanted(all, at, programs[i].lost, &got);
	} while (!lost && --tries);
	if (!lost)
		wrong(programs[i].name, "not what is left when all is lost", got);
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
		if (got != 0 && got != V && got != W)
			wrong("any time", "was never there", got);
		found[got == V ? 1 : got == W ? 2 : 0] = true;
	}
	for (i = 0; i < 3; i++)
		if (!found[i])
			wrong("any time", "never happens, state", i);
}

/* A store over the border of two lines, of which one is written back. */
static void border(void)
{
	uint8_t *at = fresh(2);
	int64_t all;

	*(volatile uint64_t *)(at + LINE - 4) = V;
	clwb(at);
	sfence();
	all = cut(POWERCUT_LOSES_ALL);
	if (left(all, at + LINE - 8) != V << 32 || left(all, at + LINE) != 0)
		wrong("border of lines", "is left", left(all, at + LINE));
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
	if (got)
		wrong("a store before fsync", "is left", got);
}

/* Whether this thread has a processor that the others do not use: if there are two. */
static bool use_processor(unsigned int number)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(number, &set);
	return sysconf(_SC_NPROCESSORS_ONLN) > 1 && !sched_setaffinity(0, sizeof(set), &set);
}

static _Atomic int turn;
static void *fence_elsewhere(void *data)
{
	(void)data;
	use_processor(1);
	/* Until the other is done: its turns are counted. */
	for (;;) {
		int now = atomic_load_explicit(&turn, memory_order_relaxed);

		if (now < 0)
			return NULL;
		if (now & 1) {
			sfence();
			atomic_store_explicit(&turn, now + 1, memory_order_relaxed);
		}
	}
}

/* A fence waits for write-backs of its own processor only. */
static void other_processor(void)
{
	unsigned int i, lost = 0;
	pthread_t thread;

	if (!use_processor(0))
		return;
	pthread_create(&thread, NULL, fence_elsewhere, NULL);
	/*
	 * An interrupt between the write-back and the cut fences, too, and comes in most turns where the
	 * emulator has to share its processors: until one went without.
	 */
	for (i = 0; i < 5000 && !lost; i++) {
		uint8_t *at = fresh(1);

		store_clwb(at);
		atomic_store_explicit(&turn, 2 * i + 1, memory_order_relaxed);
		/* The other thread does nothing else than to take its turn. */
		while (atomic_load_explicit(&turn, memory_order_relaxed) == (int)(2 * i + 1))
			;
		lost += left(cut(POWERCUT_LOSES_ALL), at) == 0;
	}
	atomic_store(&turn, -1);
	pthread_join(thread, NULL);
	if (!lost)
		wrong("another processor's fence", "waits for this one's write-backs", lost);
}

/* Lines of some pages, which a thread stores to through pages of its own. */
#define PAGES 4
#define LINES (PAGES * PAGE / LINE)
static uint8_t *mapped;

static void *store_to_each_line(void *data)
{
	static struct powercut late;
	unsigned int i;

	(void)data;
	use_processor(1);
	late.op = POWERCUT_LATE;
	late.a[0] = 300;
	powercut(&late);
	/* Once to each: a store that is missed would be hidden by another one to the same line. */
	for (i = 0; i < LINES; i++)
		store(mapped + i * LINE, V + i);
	late.a[0] = 0;
	powercut(&late);
	return NULL;
}

/*
 * A processor stores, and before the emulation tells of it another one takes the page out of the page
 * table, or write-protects it. No store may escape the model; how many did, it says in the end.
 */
static void while_mappings_change(int fd, uint64_t offset)
{
	volatile uint64_t *at;
	pthread_t thread;
	unsigned int i;

	used = (used + PAGE - 1) / PAGE * PAGE;
	at = (volatile uint64_t *)fresh(LINES);
	if (!bytes || !use_processor(0))
		return;
	/* By pages, as this is no place for a larger entry. */
	mapped = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		      offset + ((uint8_t *)at - memory));
	if (mapped == MAP_FAILED) {
		wrong("stores while mappings change", "mmap fails", 0);
		return;
	}
	pthread_create(&thread, NULL, store_to_each_line, NULL);
	for (i = 0; i < LINES; i++) {
		uint8_t *page = mapped + i * LINE / PAGE * PAGE;

		/* The other thread does nothing else than to store there. */
		while (at[i * LINE / sizeof(*at)] != V + i)
			;
		if (i % 8 ? madvise(page, PAGE, MADV_DONTNEED) : msync(page, PAGE, MS_SYNC))
			wrong("stores while mappings change", "msync or madvise fails", i);
	}
	pthread_join(thread, NULL);
	munmap(mapped, PAGES * PAGE);
}

/*
 * Everything, in `size` bytes of the device that are mapped at `at`, and are a file's at `offset`.
 * What is wrong goes to `to`; the answer is how much of it there is.
 */
int known_answers(uint8_t *at, uint64_t size, uint64_t address, int fd, uint64_t offset, char *to,
		  size_t length)
{
	unsigned int i;

	memory = at;
	physical = address;
	bytes = size;
	/* Some addresses are below that of the line. */
	used = 8192;
	said = to;
	room = length;
	failures = 0;
	*to = 0;
	for (i = 0; i < PROGRAMS; i++)
		run_program(i);
	any_time();
	border();
	by_kernel(fd, offset);
	while_mappings_change(fd, offset);
	other_processor();
	if (!bytes)
		wrong("the memory", "is too small", used);
	return failures;
}

/* With everything durable at once. */
int known_answers_eadr(uint8_t *at, uint64_t address, char *to, size_t length)
{
	uint64_t got;

	memory = at;
	physical = address;
	bytes = 1 << 20;
	used = 0;
	said = to;
	room = length;
	failures = 0;
	*to = 0;
	store(at, V);
	got = left(cut(POWERCUT_LOSES_ALL), at);
	if (got != V)
		wrong("a store with eADR", "is left", got);
	return failures;
}
