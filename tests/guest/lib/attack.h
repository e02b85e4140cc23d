/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of attack share: what is known of all processes, and what an attacker has and picks
 * from.
 */
#ifndef ATTACK_H
#define ATTACK_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "random.h"

#define PAGE 4096ul
#define PMD (2ul << 20)
#define ARENA ((uint8_t *)0x100000000000ul)
#define ARENA_BYTES (12 * PMD)
#define MOST_FILE (8 * PMD)
#define MOST_TOUCHED 128ul	/* pages by one load or store ... */
#define MOST_MISSED 3		/* of which so many were not there */
#define PROCESSES 8
#define THREADS 3
#define NOBODY 65534

/* Numbers that the C library's headers may not have yet. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
#ifndef SYS_map_shadow_stack
#define SYS_map_shadow_stack 453
#endif
#ifndef SYS_mseal
#define SYS_mseal 462
#endif
#ifndef FS_IOC_SHUTDOWN
#define FS_IOC_SHUTDOWN _IOR('X', 125, uint32_t)
#endif
#define PAGEMAP_SCAN_CALL 0xc0606610
#define UFFD_USER_ONLY 1

/* The upper half of a word says who wrote it. */
enum { OF_ATTACKER = 0x4154544b, OF_VICTIM = 0x56494354, SECRET = 0x53454352 };

struct call {
	const char *volatile what;
	volatile uint64_t a, b, c;
	volatile long result;
};

/* Shared by all, outside of what the attackers play with. */
extern struct control {
	volatile uint64_t calls[PROCESSES];
	volatile uint64_t rounds;		/* of the victim */
	volatile bool stop;
	volatile const char *victim_is_in;
	char wrong[400];
	struct {
		struct call last[32];
		volatile unsigned int at;
		volatile int tid;
	} threads[PROCESSES][THREADS];
} *control;

extern uint64_t seed;
extern int me;			/* the number of this process */
extern __thread int thread;

void chance(uint64_t a, uint64_t b, uint64_t c);
__attribute__((noreturn, format(printf, 1, 2))) void wrong(const char *format, ...);
void catch_faults(void);

/* ---- what an attacker has ---- */

enum { OWN_FILES = 5, FILES = OWN_FILES + 4 };
extern const size_t sizes[OWN_FILES];
extern int files[FILES], direct[OWN_FILES], pipes[2][2], sockets[2], fault_fd, self;
extern struct io_uring ring;
extern bool has_ring;
extern aio_context_t aio;
extern int keys[2];
extern uint8_t *scratch;

long note(const char *what, uint64_t a, uint64_t b, uint64_t c);

/* A system call, remembered before and after. */
#define CALL(a, b, c, call) ({					\
	long result_;						\
	note(#call, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c));	\
	errno = 0;						\
	result_ = (long)(call);					\
	control->threads[me][thread].last[(control->threads[me][thread].at - 1) % 32].result = \
		result_ == -1 ? -errno : result_;		\
	result_; })

void look(const uint64_t *words, size_t bytes, const char *where);
int pick_file(void);
size_t pick_length(void);
off_t pick_offset(void);
uint8_t *pick(void);
size_t length_at(const uint8_t *at);
size_t inside(const uint8_t *at);
uint8_t *pick_buffer(size_t *length);
int pick_advice(void);

static inline void put(volatile void *at, uint64_t word)
{
	*(volatile uint64_t *)at = word;
}

/* ---- what it does ---- */

void do_mmap(void);
void do_munmap(void);
void do_mprotect(void);
void do_mremap(void);
void do_madvise(void);
void do_guard(void);
void do_process_madvise(void);
void do_load(void);
void do_store(void);
void do_sync(void);
void do_lock(void);
void do_query(void);
void do_numa(void);
void do_remap_file(void);
void do_copy(void);
void do_layout(void);
void do_io(void);
void do_pipe(void);
void do_process_vm(void);
void do_fork(void);
void do_userfault(void);
void do_uring(void);
void do_aio(void);
void do_proc(void);
void do_futex(void);
void do_file(void);

void choose_attacks(const char *excluded, uint64_t calls);
__attribute__((noreturn)) void attacker(uint64_t life);
__attribute__((noreturn)) void victim(void);

#endif /* ATTACK_H */
