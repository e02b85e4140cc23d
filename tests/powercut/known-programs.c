// SPDX-License-Identifier: GPL-2.0
/*
 * known-programs: what the model says of single instructions, and of pairs of them: of each program what is
 * left when all is lost that can be, and when nothing is.
 */
#include <cpuid.h>
#include <stddef.h>

#include "known.h"

static void store_alone(uint8_t *at)
{
	store(at, V);
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

void run_programs(void)
{
	unsigned int i;

	for (i = 0; i < PROGRAMS; i++)
		run_program(i);
}
