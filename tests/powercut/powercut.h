/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How programs in the guest speak to the model of its persistent memory (model.c): a no-op that nobody
 * else has a reason to execute, with the address of a request in RAX. The request is answered by the
 * time the no-op is over.
 */
#ifndef RDAX_POWERCUT_H
#define RDAX_POWERCUT_H

#include <stdint.h>

/* What nopl DISPLACEMENT(%rax) begins with, and the displacement. */
#define POWERCUT_OPCODE "\x0f\x1f\x80"
#define POWERCUT_MARK 0x72646120

#define POWERCUT_THREADS 4

/* A cut after each fence that has something to wait for, and no others. */
#define POWERCUT_EVERY_FENCE (1ULL << 32)

enum powercut_op {
	/* A device: number (0 is the one that is recorded), physical address, bytes. */
	POWERCUT_DEVICE = 1,
	/* Record from now on: seed, cuts per 65536 events or POWERCUT_EVERY_FENCE, eADR. Poll STATE until
	 * it is 1.
	 */
	POWERCUT_RECORD,
	/* 1 while recording, 0 while not, -1 in between. */
	POWERCUT_STATE,
	/* Something was begun or promised: thread, events of the thread with this one. The answer is how
	 * many cuts there are.
	 */
	POWERCUT_EVENT,
	/* Cut now, unless cuts come after fences only: which lines survive (below). The answer is the
	 * number of the last cut.
	 */
	POWERCUT_CUT,
	/* No more is recorded. Poll STATE until it is 0. */
	POWERCUT_STOP,
	/* Put what a cut leaves on a device: cut, device. */
	POWERCUT_LOAD,
	/* What a cut leaves at an address: cut, physical address. The answer is 8 bytes. */
	POWERCUT_PEEK,
	/* How many lines a cut leaves with other contents than the processors saw: cut. */
	POWERCUT_LOST,
	/* A line that a cut lost: cut, number. The answer is its physical address; in a[0] the address of
	 * the instruction that stored there last.
	 */
	POWERCUT_LINE,
	/* Counts of what was recorded. a[0] stores, a[1] write-backs, a[2] fences that had something to
	 * wait for, a[3] lines made durable.
	 */
	POWERCUT_COUNTS,
	/* Keep what a cut leaves in a file of the host: cut, number of the file. */
	POWERCUT_KEEP,
	/* Put it on a device: number of the file, device. */
	POWERCUT_RESTORE,
	/* Copy a device to a file of the host, for the filesystem's own checker: device, number of the file. */
	POWERCUT_COPY,
	/* What has become of that file: number. The answer is one of enum powercut_copy. */
	POWERCUT_COPY_STATE,
	/* Processor time of the emulator so far, in nanoseconds. */
	POWERCUT_CLOCK,
	/* Be as slow as on a busy host: tell of what user space stores on this processor so many microseconds
	 * late; wait so many after the last line of each page that any writes back.
	 */
	POWERCUT_LATE,
	/* How many lines changed unseen during what was recorded last, which must be none. */
	POWERCUT_MISSED,
	/* How many lines that were not durable a cut leaves with other contents than the durable ones: cut. */
	POWERCUT_SURVIVED,
	/* Such a line: cut, number. The answer is its physical address. */
	POWERCUT_SURVIVOR,
};

enum powercut_kind {
	/* Every line that is not durable is lost, */
	POWERCUT_LOSES_ALL,
	/* none is, */
	POWERCUT_KEEPS_ALL,
	/* or some are; others have what they had at some time since. */
	POWERCUT_LOSES_SOME,
};

/* A copy waits to be checked, was found good and is gone, or was found damaged. */
enum powercut_copy { POWERCUT_COPY_WAITS, POWERCUT_COPY_IS_GOOD, POWERCUT_COPY_IS_DAMAGED };

/* When a cut comes. */
enum powercut_moment { POWERCUT_AT_EVENT, POWERCUT_AT_FENCE, POWERCUT_AT_ACCESS, POWERCUT_ON_REQUEST };

struct powercut {
	uint64_t op;
	uint64_t a[8];
	/* LOAD tells of the cut: how many events of each thread came before it, which, when. */
	uint64_t events[POWERCUT_THREADS];
	uint64_t kind;
	uint64_t moment;
	int64_t answer;
} __attribute__((aligned(256)));

static inline int64_t powercut(struct powercut *request)
{
	__asm__ volatile("nopl %c1(%%rax)" : : "a"(request), "i"(POWERCUT_MARK) : "memory");
	return request->answer;
}

#endif
