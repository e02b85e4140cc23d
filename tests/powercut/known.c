// SPDX-License-Identifier: GPL-2.0
/*
 * known: what the model of persistent memory (model.c) says of small programs, where everybody knows
 * what it must say.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <fcntl.h>
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
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
/* Everything is durable at once: whatever a cut is to lose, all is left. */
static bool eadr;

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
static void store_clwb_mfence(uint8_t *at)
{
	store_clwb(at);
	__asm__ volatile("mfence" : : : "memory");
}
static void store_clflushopt(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("clflushopt (%0)" : : "r"(at) : "memory");
}
static void store_clflush(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("clflush (%0)" : : "r"(at) : "memory");
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
static void store_clwb_xchg_of_registers(uint8_t *at)
{
	store_clwb(at);
	/* Not of RAX, for which there is another form. */
	__asm__ volatile("xchg %%rcx, %%rdx" : : : "rcx", "rdx");
}
static void store_clwb_cmpxchg(uint8_t *at)
{
	uint64_t other = 0, value = 0;

	store_clwb(at);
	__asm__ volatile("cmpxchg %2, %1" : "+a"(value), "+m"(other) : "r"(1ULL) : "cc");
}
static void store_clwb_cpuid(uint8_t *at)
{
	unsigned int eax, ebx, ecx, edx;

	store_clwb(at);
	__cpuid(0, eax, ebx, ecx, edx);
}
static void store_clwb_iret(uint8_t *at)
{
	store_clwb(at);
	/* To what comes next. */
	__asm__ volatile("mov %%rsp, %%rax; sub $128, %%rsp; mov %%ss, %%ecx; push %%rcx; push %%rax;"
			 "pushfq; mov %%cs, %%ecx; push %%rcx; lea 1f(%%rip), %%rcx; push %%rcx; iretq; 1:"
			 : : : "rax", "rcx", "memory");
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
static void nt_narrow(uint8_t *at)
{
	__asm__ volatile("movnti %1, (%0); sfence" : : "r"(at), "r"((uint32_t)V) : "memory");
}
static void nt_narrow_beside_store(uint8_t *at)
{
	store(at, W);
	nt_narrow(at);
}
static void nt_mmx(uint8_t *at)
{
	__asm__ volatile("movq %1, %%mm0; movntq %%mm0, (%0); emms; sfence"
			 : : "r"(at), "r"(V) : "memory", "mm0");
}
static void nt_singles(uint8_t *at)
{
	__asm__ volatile("movq %1, %%xmm0; movntps %%xmm0, (%0); sfence"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
static void nt_doubles(uint8_t *at)
{
	__asm__ volatile("movq %1, %%xmm0; movntpd %%xmm0, (%0); sfence"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
static void nt_one_double(uint8_t *at)
{
	__asm__ volatile("movq %1, %%xmm0; movntsd %%xmm0, (%0); sfence"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
static void nt_wide_doubles(uint8_t *at)
{
	__asm__ volatile("vmovq %1, %%xmm0; vmovntpd %%ymm0, (%0); sfence; vzeroupper"
			 : : "r"(at), "r"(V) : "memory", "xmm0");
}
/* Of each vector the lower half. */
static void nt_masked_alone(uint8_t *at)
{
	__asm__ volatile("movq %1, %%xmm0; punpcklqdq %%xmm0, %%xmm0; movq %2, %%xmm1;"
			 "maskmovdqu %%xmm1, %%xmm0"
			 : : "D"(at), "r"(V), "r"(~0ULL) : "memory", "xmm0", "xmm1");
}
static void nt_masked(uint8_t *at)
{
	nt_masked_alone(at);
	sfence();
}
static void nt_masked_vex(uint8_t *at)
{
	__asm__ volatile("vmovq %1, %%xmm0; vpunpcklqdq %%xmm0, %%xmm0, %%xmm0; vmovq %2, %%xmm1;"
			 "vmaskmovdqu %%xmm1, %%xmm0; sfence"
			 : : "D"(at), "r"(V), "r"(~0ULL) : "memory", "xmm0", "xmm1");
}
static void nt_masked_mmx(uint8_t *at)
{
	__asm__ volatile("movq %1, %%mm0; movq %2, %%mm1; maskmovq %%mm1, %%mm0; emms; sfence"
			 : : "D"(at), "r"(V), "r"(~0ULL) : "memory", "mm0", "mm1");
}
static void nt_again_after_fence(uint8_t *at)
{
	nt_sfence(at);
	movnti(at, W);
}
static void masked_vector(uint8_t *at)
{
	__asm__ volatile("vmovq %1, %%xmm0; vpunpcklqdq %%xmm0, %%xmm0, %%xmm0; vmovq %2, %%xmm1;"
			 "vpmaskmovq %%xmm0, %%xmm1, (%0); sfence"
			 : : "r"(at), "r"(V), "r"(~0ULL) : "memory", "xmm0", "xmm1");
}
static void masked_vector_written_back(uint8_t *at)
{
	masked_vector(at);
	clwb(at);
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
static void string_backwards(uint8_t *at)
{
	uint64_t n = LINE / 8 + 1;
	void *to = at + LINE;

	__asm__ volatile("std; rep stosq; cld" : "+D"(to), "+c"(n) : "a"(V) : "memory", "cc");
	clwb(at + LINE);
	sfence();
}
static void string_once(uint8_t *at)
{
	uint64_t value = V;
	const void *source = &value;
	void *to = at;

	__asm__ volatile("movsq" : "+S"(source), "+D"(to) : "m"(value) : "memory");
	__asm__ volatile("stosl" : "+D"(to) : "a"((uint32_t)W) : "memory");
	clwb(at);
	sfence();
}
static void xchg_store(uint8_t *at)
{
	uint64_t value = V;

	__asm__ volatile("xchg %0, (%1)" : "+r"(value) : "r"(at) : "memory");
}
static void xchg_store_written_back(uint8_t *at)
{
	xchg_store(at);
	clwb(at);
	sfence();
}
static void pair_store(uint8_t *at)
{
	__asm__ volatile("lock cmpxchg16b (%0)"
			 : : "r"(at), "a"(0ULL), "d"(0ULL), "b"(V), "c"(W) : "memory", "cc");
}
static void pair_store_written_back(uint8_t *at)
{
	pair_store(at);
	clwb(at);
	sfence();
}
static void compared_store(uint8_t *at)
{
	uint64_t compared = 0;

	__asm__ volatile("cmpzxadd %2, %0, (%1)" : "+r"(compared) : "r"(at), "r"(V) : "memory", "cc");
}
static void compared_store_written_back(uint8_t *at)
{
	compared_store(at);
	clwb(at);
	sfence();
}
static void store_clwb_cmpzxadd(uint8_t *at)
{
	uint64_t compared = 0, other = 0;

	store_clwb(at);
	__asm__ volatile("cmpzxadd %2, %0, %1" : "+r"(compared), "+m"(other) : "r"(1ULL) : "cc");
}
static void state_store(uint8_t *at)
{
	/* It stores 512 bytes, of which these are the register's; others are nobody's afterwards. */
	fresh(8);
	__asm__ volatile("pxor %%xmm4, %%xmm4; movq %1, %%xmm0; fxsave64 -160(%0); clwb (%0); sfence"
			 : : "r"(at), "r"(V) : "memory", "xmm0", "xmm4");
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
static void addressed_by_rbp(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("push %%rbp; mov %0, %%rbp; clwb 8(%%rbp); pop %%rbp; sfence"
			 : : "r"(at) : "memory");
}
static void addressed_without_base(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("clwb 64(,%0,8); sfence" : : "r"(((uint64_t)at - LINE) / 8) : "memory");
}
static void addressed_by_segment(uint8_t *at)
{
	store(at, V);
	__asm__ volatile("mov %%fs:0, %%rax; sub %%rax, %0; clwb %%fs:(%0); sfence"
			 : "+r"(at) : : "memory", "rax", "cc");
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
	{ "a write-back and mfence", store_clwb_mfence, { V }, { V } },
	{ "clflushopt without a fence", store_clflushopt, { 0 }, { V } },
	{ "clflush without a fence", store_clflush, { 0 }, { V } },
	{ "clflushopt and sfence", store_clflushopt_sfence, { V }, { V } },
	{ "clflush and mfence", store_clflush_mfence, { V }, { V } },
	{ "a write-back and a locked instruction", store_clwb_lock, { V }, { V } },
	{ "a write-back and xchg", store_clwb_xchg, { V }, { V } },
	{ "xchg of registers does not wait for a write-back", store_clwb_xchg_of_registers, { 0 }, { V } },
	{ "cmpxchg without lock does not wait for a write-back", store_clwb_cmpxchg, { 0 }, { V } },
	{ "cmpzxadd does not wait for a write-back", store_clwb_cmpzxadd, { 0 }, { V } },
	{ "cpuid does not wait for a write-back", store_clwb_cpuid, { 0 }, { V } },
	{ "iret does not wait for a write-back", store_clwb_iret, { 0 }, { V } },
	{ "lfence does not wait for a write-back", store_clwb_lfence, { 0 }, { V } },
	{ "a fence writes nothing back", store_sfence, { 0 }, { V } },
	{ "a write-back before the store", clwb_store_sfence, { 0 }, { V } },
	{ "a write-back of another line", clwb_of_the_next_line, { 0 }, { V } },
	{ "a non-temporal store without a fence", nt_alone, { 0 }, { V } },
	{ "a non-temporal store and sfence", nt_sfence, { V }, { V } },
	{ "a non-temporal store beside a store", nt_beside_store, { 0, V }, { V, V } },
	{ "a store beside a non-temporal store", store_beside_nt, { V, 0 }, { V, V } },
	{ "another non-temporal store after the fence", nt_again_after_fence, { V }, { W } },
	{ "movnti of 32 bits", nt_narrow, { (uint32_t)V }, { (uint32_t)V } },
	{ "movnti of 32 bits over a store", nt_narrow_beside_store, { (uint32_t)V },
	  { (W & ~0xffffffffULL) | (uint32_t)V } },
	{ "movntq", nt_mmx, { V }, { V } },
	{ "movntps", nt_singles, { V }, { V } },
	{ "movntpd", nt_doubles, { V }, { V } },
	{ "movntsd", nt_one_double, { V }, { V } },
	{ "vmovntpd", nt_wide_doubles, { V }, { V } },
	{ "maskmovdqu without a fence", nt_masked_alone, { 0 }, { V } },
	{ "maskmovdqu", nt_masked, { V }, { V } },
	{ "vmaskmovdqu", nt_masked_vex, { V }, { V } },
	{ "maskmovq", nt_masked_mmx, { V }, { V } },
	{ "vpmaskmovq without a write-back", masked_vector, { 0 }, { V } },
	{ "vpmaskmovq and a write-back", masked_vector_written_back, { V }, { V } },
	{ "movntdq", nt_vector, { V }, { V } },
	{ "vmovntdq", nt_wide_vector, { V }, { V } },
	{ "vmovntps without a fence", nt_wide_vector_alone, { 0 }, { V } },
	{ "movdqu and a write-back", vector, { V }, { V } },
	{ "vmovdqu without a write-back", vector_alone, { 0 }, { V } },
	{ "rep movsb without a write-back", string_alone, { 0 }, { V, V, V } },
	{ "rep movsb and a write-back", string_written_back, { V, V, V }, { V, V, V } },
	{ "rep stosq and a write-back of the first line", string_stored, { V, V, 0 }, { V, V, V } },
	{ "rep stosq backwards and a write-back of the second line", string_backwards, { 0, 0, V },
	  { V, V, V } },
	{ "movsq and stosl", string_once, { V, (uint32_t)W }, { V, (uint32_t)W } },
	{ "xchg is a store", xchg_store, { 0 }, { V } },
	{ "xchg and a write-back", xchg_store_written_back, { V }, { V } },
	{ "cmpxchg16b is a store", pair_store, { 0 }, { V, W } },
	{ "cmpxchg16b and a write-back", pair_store_written_back, { V, W }, { V, W } },
	{ "cmpzxadd is a store", compared_store, { 0 }, { V } },
	{ "cmpzxadd and a write-back", compared_store_written_back, { V }, { V } },
	{ "fxsave and a write-back", state_store, { V }, { V } },
	{ "a locked store is lost", locked_store, { 0 }, { V } },
	{ "a locked store and a write-back", locked_store_written_back, { V }, { V } },
	{ "stored to again after the write-back", stored_again_after_clwb, { V }, { W } },
	{ "a write-back by base, index and displacement", addressed_by_index, { V }, { V } },
	{ "a write-back by r12", addressed_by_r12, { V }, { V } },
	{ "a write-back by rsp", addressed_by_rsp, { V }, { V } },
	{ "a write-back by rbp", addressed_by_rbp, { V }, { V } },
	{ "a write-back by index alone", addressed_without_base, { V }, { V } },
	{ "a write-back in another segment", addressed_by_segment, { V }, { V } },
};

#define PROGRAMS (sizeof(programs) / sizeof(programs[0]))

/* What these lose waits for a fence only. Any interrupt is one, and keeps it. */
static void (*const pending[])(uint8_t *at) = {
	store_clwb, store_clflushopt, store_clflush, store_clwb_xchg_of_registers,
	store_clwb_cmpxchg, store_clwb_cmpzxadd, store_clwb_cpuid, store_clwb_iret,
	store_clwb_lfence, nt_alone, nt_again_after_fence, nt_masked_alone, nt_wide_vector_alone,
};

static bool is_pending(void (*program)(uint8_t *at))
{
	unsigned int i;

	for (i = 0; i < sizeof(pending) / sizeof(pending[0]); i++)
		if (pending[i] == program)
			return true;
	return false;
}

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
	const bool waits = is_pending(programs[i].program);
	const unsigned int tries = waits ? 50 : 8;
	unsigned int turn, lost = 0;
	uint64_t got = 0, other = 0;
	uint8_t *at;

	/* What waits for a fence need be lost once; whatever else is, each time. */
	for (turn = 0; turn < tries && !(waits && lost); turn++) {
		int64_t all, none;

		at = fresh(3);
		programs[i].program(at);
		all = cut(POWERCUT_LOSES_ALL);
		none = cut(POWERCUT_KEEPS_ALL);
		if (!as_wanted(none, at, programs[i].kept, &got))
			wrong(programs[i].name, "not there though nothing was lost", got);
		if (as_wanted(all, at, eadr ? programs[i].kept : programs[i].lost, &got))
			lost++;
		else if (!waits || !as_wanted(all, at, programs[i].kept, &other))
			wrong(programs[i].name, "not what is left when all is lost", got);
	}
	if (!lost)
		wrong(programs[i].name, "is never lost", got);
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

/* This thread has a processor that the other does not use. */
static void use_processor(unsigned int number)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(number, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		wrong("a processor", "cannot be used", number);
}

/* What another processor does: it is asked by this, and answers by clearing it. */
static _Atomic unsigned int asked;
static uint8_t *asked_of;
#define WRITE_BACK 1
#define FENCE 2
#define END 4

static void *do_elsewhere(void *data)
{
	(void)data;
	use_processor(1);
	/* Until it is told to end. */
	for (;;) {
		unsigned int what = atomic_load_explicit(&asked, memory_order_acquire);

		if (what & END)
			return NULL;
		if (what & WRITE_BACK)
			clwb(asked_of);
		if (what & FENCE)
			sfence();
		if (what)
			atomic_store_explicit(&asked, 0, memory_order_release);
	}
}

static void elsewhere(unsigned int what, uint8_t *at)
{
	asked_of = at;
	atomic_store_explicit(&asked, what, memory_order_release);
	/* The other thread does nothing else than what it is asked. */
	while (atomic_load_explicit(&asked, memory_order_relaxed))
		;
}

/* A fence waits for write-backs of its own processor, of whatever line, and for no others. */
static void other_processor(void)
{
	unsigned int i, lost[2] = { 0 };
	pthread_t thread;
	uint64_t got;
	uint8_t *at;

	use_processor(0);
	atomic_store(&asked, 0);
	pthread_create(&thread, NULL, do_elsewhere, NULL);
	/*
	 * An interrupt between the write-back and the cut fences, too, and comes in most turns where the
	 * emulator has to share its processors: until one went without.
	 */
	for (i = 0; i < (eadr ? 20 : 5000) && !lost[0]; i++) {
		at = fresh(1);
		store_clwb(at);
		elsewhere(FENCE, NULL);
		lost[0] += left(cut(POWERCUT_LOSES_ALL), at) == 0;
	}
	for (i = 0; i < (eadr ? 20 : 5000) && !lost[1]; i++) {
		at = fresh(1);
		store(at, V);
		elsewhere(WRITE_BACK, at);
		sfence();
		lost[1] += left(cut(POWERCUT_LOSES_ALL), at) == 0;
	}
	if (eadr && (lost[0] || lost[1]))
		wrong("two processors", "lose something with eADR", lost[0]);
	at = fresh(1);
	store(at, V);
	elsewhere(WRITE_BACK | FENCE, at);
	got = left(cut(POWERCUT_LOSES_ALL), at);
	if (got != V)
		wrong("another processor's write-back and fence", "is left", got);
	/* What was written back first does not come after what was written back last. */
	store(at, W);
	elsewhere(WRITE_BACK, at);
	store(at, V + 1);
	clwb(at);
	sfence();
	elsewhere(FENCE, NULL);
	got = left(cut(POWERCUT_LOSES_ALL), at);
	if (got != V + 1)
		wrong("an older write-back of another processor", "is left", got);
	atomic_store(&asked, END);
	pthread_join(thread, NULL);
	if (!lost[0] && !eadr)
		wrong("another processor's fence", "waits for this one's write-backs", 0);
	if (!lost[1] && !eadr)
		wrong("this processor's fence", "waits for another one's write-backs", 0);
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
	if (!bytes)
		return;
	use_processor(0);
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
	unsigned int i;

	begin(at, size, address, all_durable, to, length);
	for (i = 0; i < PROGRAMS; i++)
		run_program(i);
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
