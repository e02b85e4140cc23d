/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How the benchmark tells whoever watches its instructions (icount.c) where a row begins and ends:
 * by no-ops that nobody else has a reason to execute.
 */
#ifndef RDAX_BENCH_MARK_H
#define RDAX_BENCH_MARK_H

#define MARK_BEGIN 0x72646101
#define MARK_END 0x72646102
#define MARK_KEEP 0x72646103	/* the row that ended last is wanted */

/* What nopl DISPLACEMENT(%rax) begins with; the displacement, four bytes, is the mark. */
#define MARK_OPCODE "\x0f\x1f\x80"

static inline __attribute__((always_inline)) void mark(unsigned int value)
{
	asm volatile("nopl %c0(%%rax)" : : "i"(value) : "memory");
}

#endif
