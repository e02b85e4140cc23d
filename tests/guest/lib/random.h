/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What programs that use files at random have in common: time, chance, and accesses to memory that may
 * not be there.
 */
#ifndef RANDOM_H
#define RANDOM_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

/* Of this thread, which sets it first: not 0. */
extern __thread uint64_t rng;
extern __thread sigjmp_buf fault_out;
extern __thread volatile bool fault_ok;

uint64_t now_ms(void);

/* A number below n; 0 if that is 0. */
uint64_t below(uint64_t n);

/*
 * Run the statements; true if they came to their end, false if memory was not there. The handler of the
 * signals ends with siglongjmp(fault_out, 1) if fault_ok is set.
 */
#define MAY_FAULT(statements) ({				\
	volatile bool through_ = false;				\
	fault_ok = true;					\
	if (!sigsetjmp(fault_out, 1)) {				\
		statements;					\
		through_ = true;				\
	}							\
	fault_ok = false;					\
	through_; })

#endif /* RANDOM_H */
