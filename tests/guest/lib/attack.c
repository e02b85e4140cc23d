// SPDX-License-Identifier: GPL-2.0
/*
 * An unprivileged user against the others: processes of several threads, of a user without any
 * right, issue system calls that take a mapping or a file, at random, with arguments that make
 * sense and arguments that do not, on mappings and files of all sizes. Beside them a victim uses
 * files of his own, and two that the attackers may read or write as well, and compares every byte.
 *
 * What must hold: the victim's operations complete and his files have what he wrote; no word of his
 * secret files is ever seen in what the attackers can read; a process that is killed goes away,
 * wherever it is. (What the kernel says meanwhile is for the caller to look at.) An attacker that
 * dies of its own doing, or waits for itself, is ended and has a successor until all calls are made.
 *
 * The files of the victim consist of words that say whose they are.
 */
#define _GNU_SOURCE
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <liburing.h>
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

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
static struct control {
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

static const char *dir, *excluded = "";
static uint64_t seed = 1, budget = 20000;
static int processes = 3;
static double pace = 1;

static int me;
static __thread int thread;
static __thread uint64_t rng;
static __thread sigjmp_buf fault_out;
static __thread volatile bool fault_ok;

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ull + t.tv_nsec / 1000000;
}

static uint64_t below(uint64_t n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return n ? (rng >> 8) % n : 0;
}

static void chance(uint64_t a, uint64_t b, uint64_t c)
{
	rng = (seed + 1) * 0x9e3779b97f4a7c15ull ^ (a + 1) << 48 ^ (b + 1) << 32 ^ (c + 1);
	for (int i = 0; i < 8; i++)
		below(1);
}

/* Something is not as it must be: say so once, and end. */
__attribute__((noreturn, format(printf, 1, 2)))
static void wrong(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	if (!control->wrong[0])
		vsnprintf(control->wrong, sizeof(control->wrong), format, arguments);
	va_end(arguments);
	_exit(1);
}

static void on_fault(int number)
{
	if (!fault_ok)
		_exit(100 + number);
	siglongjmp(fault_out, 1);
}

/* Run the statements; true if they came to their end, false if memory was not there. */
#define MAY_FAULT(statements) ({				\
	volatile bool through_ = false;				\
	fault_ok = true;					\
	if (!sigsetjmp(fault_out, 1)) {				\
		statements;					\
		through_ = true;				\
	}							\
	fault_ok = false;					\
	through_; })

static void catch_faults(void)
{
	struct sigaction action = { .sa_handler = on_fault };

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
}

/* ---- the attackers ---- */

enum { OWN_FILES = 5, FILES = OWN_FILES + 4 };
static const size_t sizes[OWN_FILES] = { PAGE, 16 * PAGE, PMD, 2 * PMD + 3 * PAGE, 4 * PMD };
static int files[FILES], direct[OWN_FILES], pipes[2][2], sockets[2], fault_fd = -1, self = -1;
static struct io_uring ring;
static bool has_ring;
static aio_context_t aio;
static int keys[2];
static uint8_t *scratch;

static long note(const char *what, uint64_t a, uint64_t b, uint64_t c)
{
	unsigned int at = control->threads[me][thread].at++ % 32;
	struct call *call = &control->threads[me][thread].last[at];

	call->what = what;
	call->a = a;
	call->b = b;
	call->c = c;
	call->result = -9999;
	return 0;
}

/* A system call, remembered before and after. */
#define CALL(a, b, c, call) ({					\
	long result_;						\
	note(#call, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c));	\
	errno = 0;						\
	result_ = (long)(call);					\
	control->threads[me][thread].last[(control->threads[me][thread].at - 1) % 32].result = \
		result_ == -1 ? -errno : result_;		\
	result_; })

/* No word that nobody but the victim may see. */
static void look(const uint64_t *words, size_t bytes, const char *where)
{
	for (size_t i = 0; i < bytes / 8; i++)
		if (words[i] >> 32 == SECRET)
			wrong("process %d thread %d sees the secret word %#lx at %#lx of %s", me,
			      thread, words[i], i * 8, where);
}

static int pick_file(void)
{
	return files[below(4) ? below(OWN_FILES) : below(FILES)];
}

static size_t pick_length(void)
{
	static const size_t lengths[] = {
		1, 8, 512, PAGE - 1, PAGE, PAGE, PAGE, 2 * PAGE, 4 * PAGE, 16 * PAGE, 16 * PAGE,
		64 * PAGE, PMD - PAGE, PMD, PMD, PMD + PAGE, 2 * PMD, 4 * PMD, 0, ~0ul, -PAGE,
		1ul << 63, 1ul << 47,
	};

	return lengths[below(below(8) ? 18 : sizeof(lengths) / sizeof(*lengths))];
}

static off_t pick_offset(void)
{
	switch (below(8)) {
	case 0:
		return below(MOST_FILE);
	case 1:
		return below(4) * PMD;
	case 2:
		return below(2) ? 0 : below(2) ? -(off_t)PAGE : (off_t)(1ull << (12 + below(51)));
	default:
		return below(2 * PMD / PAGE) * PAGE;
	}
}

static uint8_t *pick(void)
{
	if (!below(3))
		return ARENA + below(ARENA_BYTES / PMD) * PMD;
	return ARENA + below(ARENA_BYTES / PAGE) * PAGE + (below(16) ? 0 : below(PAGE));
}

/* A length from there on that stays inside, or is beyond all sense. */
static size_t length_at(const uint8_t *at)
{
	size_t length = pick_length(), room = ARENA + ARENA_BYTES - at;

	return length < 1ul << 40 && length > room ? room : length == 1ul << 47 ? ~0ul : length;
}

static size_t inside(const uint8_t *at)
{
	size_t length = pick_length(), room = ARENA + ARENA_BYTES - at;

	return length < room ? length : room;
}

/* A buffer: of the arena, or plain memory. */
static uint8_t *pick_buffer(size_t *length)
{
	uint8_t *at;

	if (!below(3)) {
		*length = 1 + below(PMD);
		return scratch;
	}
	at = pick();
	*length = inside(at);
	if (*length > PMD)
		*length = PMD;
	return at;
}

static void do_mmap(void)
{
	static const int flags[] = {
		MAP_SHARED, MAP_SHARED, MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE | MAP_SYNC,
		MAP_SHARED_VALIDATE, MAP_SHARED | MAP_POPULATE, MAP_SHARED | MAP_LOCKED,
		MAP_PRIVATE | MAP_POPULATE, MAP_PRIVATE | MAP_GROWSDOWN, MAP_SHARED | MAP_NORESERVE,
		MAP_SHARED | MAP_POPULATE | MAP_NONBLOCK, MAP_SHARED | MAP_HUGETLB,
		MAP_SHARED | MAP_STACK, MAP_SHARED | MAP_GROWSDOWN, MAP_DROPPABLE,
		MAP_SHARED | MAP_DENYWRITE | MAP_EXECUTABLE,
	};
	static const int prots[] = {
		PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ,
		PROT_NONE, PROT_WRITE, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC,
		PROT_READ | PROT_GROWSDOWN,
	};
	int flag = below(16) ? flags[below(sizeof(flags) / sizeof(*flags))] : (int)below(1ul << 32);
	int prot = prots[below(sizeof(prots) / sizeof(*prots))], fd = pick_file();
	size_t at = below(3) ? below(ARENA_BYTES / PMD) * PMD : below(ARENA_BYTES / PAGE) * PAGE;
	size_t length = length_at(ARENA + at);
	off_t offset = below(3) ? (off_t)(below(4) * PMD) : pick_offset();

	/* Whole files at places where huge entries fit are what the rest lives on. */
	if (!below(3)) {
		at = below(ARENA_BYTES / PMD - 2) * PMD;
		length = 2 * PMD;
		offset = 0;
	}
	if (!below(8)) {
		fd = -1;
		flag |= MAP_ANONYMOUS;
	}
	flag &= ~MAP_FIXED_NOREPLACE;
	CALL(at, length, flag, mmap(ARENA + at, length, prot, flag | MAP_FIXED, fd, offset));
}

static void do_munmap(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);

	CALL(at, length, 0, munmap(at, length));
}

static void do_mprotect(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);
	int prot = below(8) ? (int)below(8) : (int)below(1ul << 32);

	if (below(2))
		CALL(at, length, prot, mprotect(at, length, prot));
	else
		CALL(at, length, prot, syscall(SYS_pkey_mprotect, at, length, prot,
					       below(4) ? keys[below(2)] : (int)below(32) - 1));
}

static void do_mremap(void)
{
	uint8_t *from = pick(), *to = pick();
	size_t old = length_at(from), new = below(2) ? old : length_at(to);
	/* Moves to wherever there is room would leave the arena. */
	static const int ways[] = {
		0, MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_FIXED,
		MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_DONTUNMAP,
	};
	int flags = ways[below(6)];

	if (below(2)) {
		from = (uint8_t *)((uintptr_t)from & ~(PMD - 1));
		to = (uint8_t *)((uintptr_t)to & ~(PMD - 1));
	}
	if (flags & MREMAP_FIXED && new < 1ul << 40 && new > (size_t)(ARENA + ARENA_BYTES - to))
		new = ARENA + ARENA_BYTES - to;
	CALL(from, old, to, mremap(from, old, new, flags, to));
}

static int pick_advice(void)
{
	return below(16) ? (int)below(26) : below(4) ? 100 + (int)below(4) : (int)below(1ul << 32);
}

static void do_madvise(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);
	int advice = pick_advice();

	CALL(at, length, advice, madvise(at, length, advice));
}

static void do_guard(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);

	CALL(at, length, 0, madvise(at, length, 102 + below(2)));
}

static void do_process_madvise(void)
{
	struct iovec vector[3];

	for (int i = 0; i < 3; i++) {
		vector[i].iov_base = pick();
		vector[i].iov_len = length_at(vector[i].iov_base);
	}
	CALL(vector[0].iov_base, vector[0].iov_len, 0,
	     syscall(SYS_process_madvise, self, vector, 1 + below(3), pick_advice(),
		     below(8) ? 0 : below(4)));
}

static void do_load(void)
{
	uint8_t *at = (uint8_t *)((uintptr_t)pick() & ~7ul);
	size_t length = inside(at) & ~7ul;
	size_t step = (1 + length / (MOST_TOUCHED * PAGE)) * PAGE, missed = 0;
	static __thread uint64_t seen[512];

	note("load", (uint64_t)at, length, step);
	for (size_t i = 0; i < length && missed < MOST_MISSED; i += step) {
		size_t bytes = length - i < PAGE ? length - i : PAGE;

		if (MAY_FAULT(memcpy(seen, at + i, bytes)))
			look(seen, bytes, "a mapping");
		else
			missed++;
	}
}

static void put(volatile void *at, uint64_t word)
{
	*(volatile uint64_t *)at = word;
}

static void do_store(void)
{
	uint8_t *at = (uint8_t *)((uintptr_t)pick() & ~7ul);
	size_t length = inside(at), missed = 0;
	size_t step = (1 + length / (MOST_TOUCHED * PAGE)) * (below(2) ? PAGE : 8 + below(PAGE / 8) * 8);

	note("store", (uint64_t)at, length, step);
	for (size_t i = 0; i + 8 <= length && missed < MOST_MISSED; i += step)
		if (!MAY_FAULT(put(at + i, (uint64_t)OF_ATTACKER << 32 | i)))
			missed++;
}

static void do_sync(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);
	int fd = pick_file();

	switch (below(6)) {
	case 0 ... 1:
		CALL(at, length, 0, msync(at, length, below(8)));
		break;
	case 2:
		CALL(fd, 0, 0, fsync(fd));
		break;
	case 3:
		CALL(fd, 0, 0, fdatasync(fd));
		break;
	case 4:
		CALL(fd, 0, 0, sync_file_range(fd, pick_offset(), pick_length(), below(16)));
		break;
	case 5:
		CALL(fd, 0, 0, syncfs(fd));
		break;
	}
}

static void do_lock(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);

	switch (below(6)) {
	case 0:
		CALL(at, length, 0, mlock(at, length));
		break;
	case 1:
		CALL(at, length, 0, mlock2(at, length, below(3)));
		break;
	case 2 ... 3:
		CALL(at, length, 0, munlock(at, length));
		break;
	case 4:
		CALL(0, 0, 0, mlockall(1 + below(7)));
		break;
	case 5:
		CALL(0, 0, 0, munlockall());
		break;
	}
}

static void do_query(void)
{
	static __thread uint8_t vector[ARENA_BYTES / PAGE];
	static __thread uint64_t stat[16];
	uint8_t *at = pick();
	size_t length = length_at(at);
	struct { uint64_t offset, length; } range = { pick_offset(), pick_length() };
	int fd = pick_file();
	struct { struct fiemap head; struct fiemap_extent extents[8]; } map = {
		.head = { .fm_start = pick_offset(), .fm_length = pick_length(),
			  .fm_flags = below(8), .fm_extent_count = below(9) },
	};

	switch (below(6)) {
	case 0 ... 1:
		CALL(at, length, 0, mincore(at, length, vector));
		break;
	case 2 ... 3:
		CALL(fd, range.offset, range.length,
		     syscall(SYS_cachestat, fd, &range, stat, below(8) ? 0 : 1));
		break;
	case 4:
		CALL(fd, 0, 0, ioctl(fd, FS_IOC_FIEMAP, &map));
		break;
	case 5:
		CALL(fd, 0, 0, lseek(fd, pick_offset(), below(6)));
		break;
	}
}

static void do_numa(void)
{
	static __thread void *at[64];
	static __thread int nodes[64], status[64];
	unsigned long mask = below(8), other = below(8);
	uint8_t *from = pick();
	size_t length = length_at(from);
	int count = 1 + below(64), mode;

	for (int i = 0; i < count; i++) {
		at[i] = pick();
		nodes[i] = below(3);
	}
	switch (below(5)) {
	case 0 ... 1:
		CALL(count, 0, 0, syscall(SYS_move_pages, below(4) ? 0 : getppid(), count, at,
					  below(2) ? nodes : NULL, status, below(8)));
		break;
	case 2:
		CALL(from, length, 0, syscall(SYS_mbind, from, length, below(8) | below(2) << 14,
					      &mask, 8, below(8)));
		break;
	case 3:
		CALL(0, 0, 0, syscall(SYS_migrate_pages, 0, 8, &mask, &other));
		break;
	case 4:
		CALL(from, 0, 0, syscall(SYS_get_mempolicy, &mode, &mask, 64, from, below(8)));
		break;
	}
}

static void do_remap_file(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);

	CALL(at, length, 0, remap_file_pages(at, length, 0, below(2048), below(2) ? 0 : MAP_NONBLOCK));
}

static void do_copy(void)
{
	int from = pick_file(), to = pick_file();
	off_t in = pick_offset(), out = pick_offset();
	size_t length = pick_length();
	struct file_clone_range clone = {
		.src_fd = from, .src_offset = in & ~(PAGE - 1), .dest_offset = out & ~(PAGE - 1),
		.src_length = length & ~(PAGE - 1),
	};
	struct { struct file_dedupe_range head; struct file_dedupe_range_info info[2]; } same = {
		.head = { .src_offset = in, .src_length = length, .dest_count = 1 + below(2) },
		.info = { { .dest_fd = to, .dest_offset = out },
			  { .dest_fd = pick_file(), .dest_offset = in } },
	};

	switch (below(6)) {
	case 0:
		CALL(from, to, length, copy_file_range(from, &in, to, &out,
						       length > MOST_FILE ? MOST_FILE : length, 0));
		break;
	case 1:
		CALL(from, to, 0, ioctl(to, FICLONE, from));
		break;
	case 2 ... 3:
		CALL(from, to, length, ioctl(to, FICLONERANGE, &clone));
		break;
	case 4:
		CALL(from, to, length, ioctl(from, FIDEDUPERANGE, &same));
		break;
	case 5:
		CALL(from, to, length, sendfile(to, from, &in, length > PMD ? PMD : length));
		break;
	}
}

static void do_layout(void)
{
	static const int modes[] = {
		0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_COLLAPSE_RANGE,
		FALLOC_FL_INSERT_RANGE, FALLOC_FL_UNSHARE_RANGE, 0x80, 0x80 | FALLOC_FL_KEEP_SIZE,
	};
	int fd = pick_file(), mode = below(8) ? modes[below(11)] : (int)below(256);
	off_t at = pick_offset();
	size_t length = pick_length();

	/* The victim uses the file that both may write; cut is only what is the attackers' own. */
	if (below(2)) {
		CALL(fd, at, length, fallocate(fd, mode, at, length > MOST_FILE && below(8) ?
					       PMD : length));
	} else {
		fd = files[below(OWN_FILES)];
		at = below(4) ? below(MOST_FILE) : sizes[below(OWN_FILES)];
		CALL(fd, at, 0, ftruncate(fd, at));
	}
}

static void do_io(void)
{
	static const int all_flags[] = { 0, 0, 0, 1, 2, 4, 8, 8, 0x10, 0x20, 0x40, 0x80, 0x100 };
	int way = below(6), flags = below(16) ? all_flags[below(13)] : (int)below(1ul << 32);
	int fd = below(4) ? pick_file() : direct[below(OWN_FILES)];
	off_t at = below(4) ? pick_offset() : -1;
	struct iovec vector[2];
	long done;

	for (int i = 0; i < 2; i++)
		vector[i].iov_base = pick_buffer(&vector[i].iov_len);
	switch (way) {
	case 0 ... 2:
		done = CALL(fd, at, vector[0].iov_len, preadv2(fd, vector, 1 + below(2), at, flags));
		if (done > 0 && vector[0].iov_base == scratch)
			look((uint64_t *)scratch, done < (long)vector[0].iov_len ? (size_t)done :
			     vector[0].iov_len, "what was read");
		break;
	case 3 ... 5:
		if (vector[0].iov_base == scratch)
			for (size_t i = 0; i < vector[0].iov_len / 8; i++)
				((uint64_t *)scratch)[i] = (uint64_t)OF_ATTACKER << 32 | i;
		CALL(fd, at, vector[0].iov_len, pwritev2(fd, vector, 1 + below(2), at, flags));
		break;
	}
}

/* Pages of mappings in pipes, and on to files, sockets and other pipes. */
static void do_pipe(void)
{
	int *in = pipes[below(2)], *out = pipes[below(2)], fd = pick_file();
	struct iovec vector[4];
	off_t at = pick_offset();
	long done;

	for (int i = 0; i < 4; i++)
		vector[i].iov_base = pick_buffer(&vector[i].iov_len);
	switch (below(9)) {
	case 0 ... 1:
		CALL(vector[0].iov_base, vector[0].iov_len, 0,
		     vmsplice(in[1], vector, 1 + below(4), SPLICE_F_NONBLOCK |
			      (below(2) ? SPLICE_F_GIFT : 0)));
		break;
	case 2:
		CALL(vector[0].iov_base, vector[0].iov_len, 0,
		     vmsplice(in[0], vector, 1 + below(4), SPLICE_F_NONBLOCK));
		break;
	case 3 ... 4:
		done = CALL(in[0], 0, 0, read(in[0], scratch, 1 + below(64 * PAGE)));
		if (done > 0)
			look((uint64_t *)scratch, done, "a pipe");
		break;
	case 5:
		CALL(in[0], out[1], 0, tee(in[0], out[1], pick_length(), SPLICE_F_NONBLOCK));
		break;
	case 6:
		CALL(in[0], fd, at, splice(in[0], NULL, fd, &at, pick_length(), SPLICE_F_NONBLOCK |
					   SPLICE_F_MOVE));
		break;
	case 7:
		CALL(fd, in[1], at, splice(fd, &at, in[1], NULL, pick_length(), SPLICE_F_NONBLOCK));
		break;
	case 8:
		if (below(2))
			CALL(0, 0, 0, splice(in[0], NULL, sockets[0], NULL, PAGE, SPLICE_F_NONBLOCK));
		else if (below(2))
			CALL(0, 0, 0, splice(sockets[1], NULL, in[1], NULL, PAGE, SPLICE_F_NONBLOCK));
		else
			CALL(0, 0, 0, fcntl(in[1], F_SETPIPE_SZ, PAGE << below(8)));
		break;
	}
}

static void do_process_vm(void)
{
	struct iovec local, remote;
	pid_t pid = below(2) ? getpid() : getppid();

	local.iov_base = pick_buffer(&local.iov_len);
	remote.iov_base = pick();
	remote.iov_len = inside(remote.iov_base);
	if (below(2))
		CALL(remote.iov_base, remote.iov_len, pid,
		     process_vm_readv(pid, &local, 1, &remote, 1, 0));
	else
		CALL(remote.iov_base, remote.iov_len, pid,
		     process_vm_writev(pid, &local, 1, &remote, 1, 0));
}

/* What a child does with the mappings that it was given. */
__attribute__((noreturn)) static void child(void)
{
	switch (below(6)) {
	case 0 ... 1:
		for (int i = 0; i < 6; i++)
			if (below(2))
				do_load();
			else
				do_store();
		break;
	case 2:
		for (int i = 0; i < 3; i++) {
			do_munmap();
			do_store();
		}
		break;
	case 3:
		do_madvise();
		do_mremap();
		do_load();
		break;
	case 4: {
		struct rlimit limit = { 4 * PMD, 4 * PMD };
		int filter = open("/proc/self/coredump_filter", O_WRONLY);

		/* All mappings into a core, which is a file on the filesystem. */
		if (!below(4) && filter >= 0 && write(filter, "0x1ff", 5) > 0 && !chdir("own")) {
			setrlimit(RLIMIT_CORE, &limit);
			signal(SIGABRT, SIG_DFL);
			abort();
		}
		break;
	}
	case 5:
		break;
	}
	_exit(0);
}

static void do_fork(void)
{
	long kind = below(5), pid;
	int status;
	pid_t tracee;
	uint8_t *at = pick();

	switch (kind) {
	case 0 ... 1:
		pid = CALL(0, 0, 0, syscall(SYS_fork));
		if (!pid) {
			chance(rng, 1, getpid());
			child();
		}
		if (pid > 0 && below(4) == 0)
			kill(pid, SIGKILL);
		break;
	case 2:
		/* Shares everything until it ends. */
		pid = CALL(0, 0, 0, syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0));
		if (!pid)
			syscall(SYS_exit_group, 0);
		break;
	case 3:
		pid = CALL(0, 0, 0, syscall(SYS_clone, CLONE_FILES | CLONE_FS | SIGCHLD, 0, 0, 0, 0));
		if (!pid) {
			chance(rng, 2, getpid());
			child();
		}
		break;
	case 4:
		/* As a debugger does. */
		tracee = syscall(SYS_fork);
		if (!tracee) {
			ptrace(PTRACE_TRACEME, 0, 0, 0);
			kill(getpid(), SIGSTOP);
			_exit(0);
		}
		if (tracee < 0)
			break;
		if (waitpid(tracee, &status, __WALL) == tracee && WIFSTOPPED(status)) {
			for (int i = 0; i < 8; i++) {
				at = (uint8_t *)((uintptr_t)pick() & ~7ul);
				CALL(at, 0, 0, ptrace(PTRACE_PEEKDATA, tracee, at, 0));
				CALL(at, 0, 0, ptrace(PTRACE_POKEDATA, tracee, at,
						      (uint64_t)OF_ATTACKER << 32));
			}
		}
		kill(tracee, SIGKILL);
		waitpid(tracee, &status, __WALL);
		break;
	}
	while (waitpid(-1, &status, WNOHANG) > 0)
		;
}

static void do_userfault(void)
{
	uint8_t *at = (uint8_t *)((uintptr_t)pick() & ~(PAGE - 1));
	size_t length = inside(at) & ~(PAGE - 1);
	struct uffdio_api api = {
		.api = UFFD_API, .features = below(3) ? 1ull << 15 | 1ull << 13 : below(1 << 19),
	};
	struct uffdio_register range = { .range = { (uintptr_t)at, length }, .mode = 1 + below(7) };
	struct uffdio_writeprotect protect = { .range = range.range, .mode = below(4) };
	struct uffdio_copy copy = { .dst = (uintptr_t)at, .src = (uintptr_t)pick() & ~(PAGE - 1),
				    .len = length, .mode = below(4) };
	struct uffdio_zeropage zero = { .range = range.range, .mode = below(2) };
	struct uffdio_continue go_on = { .range = range.range, .mode = below(4) };
	uint64_t move[5] = { copy.dst, copy.src, length, below(4), 0 };
	uint64_t poison[4] = { copy.dst, length, below(2), 0 };
	struct uffd_msg message;

	switch (below(14)) {
	case 0:
		if (fault_fd >= 0)
			CALL(fault_fd, 0, 0, close(fault_fd));
		fault_fd = CALL(0, 0, 0, syscall(SYS_userfaultfd, O_NONBLOCK | O_CLOEXEC |
						 UFFD_USER_ONLY));
		CALL(api.features, 0, 0, ioctl(fault_fd, UFFDIO_API, &api));
		break;
	case 1 ... 3:
		if (below(2))
			range.mode = UFFDIO_REGISTER_MODE_WP;
		CALL(at, length, range.mode, ioctl(fault_fd, UFFDIO_REGISTER, &range));
		break;
	case 4 ... 6:
		CALL(at, length, protect.mode, ioctl(fault_fd, UFFDIO_WRITEPROTECT, &protect));
		break;
	case 7:
		CALL(at, length, 0, ioctl(fault_fd, UFFDIO_UNREGISTER, &range.range));
		break;
	case 8:
		CALL(at, copy.src, length, ioctl(fault_fd, UFFDIO_COPY, &copy));
		break;
	case 9:
		CALL(at, length, 0, ioctl(fault_fd, UFFDIO_ZEROPAGE, &zero));
		break;
	case 10:
		CALL(at, length, 0, ioctl(fault_fd, UFFDIO_CONTINUE, &go_on));
		break;
	case 11:
		CALL(at, move[1], length, ioctl(fault_fd, _IOWR(UFFDIO, 5, uint64_t[5]), move));
		break;
	case 12:
		CALL(at, length, 0, ioctl(fault_fd, _IOWR(UFFDIO, 8, uint64_t[4]), poison));
		break;
	case 13:
		CALL(0, 0, 0, read(fault_fd, &message, sizeof(message)));
		CALL(at, length, 0, ioctl(fault_fd, UFFDIO_WAKE, &range.range));
		break;
	}
}

static pthread_mutex_t ring_lock = PTHREAD_MUTEX_INITIALIZER;

static void do_uring(void)
{
	struct io_uring_cqe *done;
	struct io_uring_sqe *entry;
	struct iovec vector;
	size_t length;
	uint8_t *at;
	int fd = pick_file();

	if (!has_ring || pthread_mutex_trylock(&ring_lock))
		return;
	while (!io_uring_peek_cqe(&ring, &done))
		io_uring_cqe_seen(&ring, done);
	at = pick_buffer(&length);
	if (!below(6)) {
		vector.iov_base = below(2) ? scratch : at;
		vector.iov_len = PMD;
		if (below(2))
			CALL(0, 0, 0, io_uring_unregister_buffers(&ring));
		CALL(vector.iov_base, PMD, 0, io_uring_register_buffers(&ring, &vector, 1));
	}
	for (int i = 1 + below(4); i; i--) {
		entry = io_uring_get_sqe(&ring);
		if (!entry)
			break;
		at = pick_buffer(&length);
		switch (below(11)) {
		case 0 ... 1:
			io_uring_prep_read(entry, fd, at, length, pick_offset());
			break;
		case 2 ... 3:
			io_uring_prep_write(entry, fd, at, length, pick_offset());
			break;
		case 4:
			io_uring_prep_read_fixed(entry, fd, scratch, length, pick_offset(), 0);
			break;
		case 5:
			io_uring_prep_write_fixed(entry, fd, scratch, length, pick_offset(), 0);
			break;
		case 6:
			io_uring_prep_fsync(entry, fd, below(2));
			break;
		case 7:
			io_uring_prep_fallocate(entry, files[below(OWN_FILES)], below(4),
						pick_offset(), pick_length());
			break;
		case 8:
			at = pick();
			io_uring_prep_madvise(entry, at, length_at(at), pick_advice());
			break;
		case 9:
			io_uring_prep_splice(entry, fd, pick_offset(), pipes[0][1], -1, PAGE, 0);
			break;
		case 10:
			io_uring_prep_ftruncate(entry, files[below(OWN_FILES)], below(MOST_FILE));
			break;
		}
		if (below(2))
			entry->flags |= IOSQE_ASYNC;
		if (!below(4))
			entry->flags |= IOSQE_IO_LINK;
	}
	CALL(fd, 0, 0, io_uring_submit(&ring));
	pthread_mutex_unlock(&ring_lock);
}

static void do_aio(void)
{
	size_t length;
	uint8_t *at = pick_buffer(&length);
	struct iocb request = {
		.aio_lio_opcode = below(2) ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE,
		.aio_fildes = below(2) ? direct[below(OWN_FILES)] : pick_file(),
		.aio_buf = (uintptr_t)at, .aio_nbytes = length, .aio_offset = pick_offset(),
	}, *list = &request;
	struct io_event events[4];
	struct timespec now = { 0 };

	CALL(at, length, 0, syscall(SYS_io_submit, aio, 1, &list));
	CALL(0, 0, 0, syscall(SYS_io_getevents, aio, 0, 4, events, &now));
}

static void do_proc(void)
{
	static const char *const names[] = {
		"smaps", "smaps_rollup", "maps", "numa_maps", "pagemap", "stat", "status", "statm",
	};
	uint64_t regions[3 * 16];
	uint64_t scan[12] = { 96, below(4), (uintptr_t)pick(), (uintptr_t)(ARENA + ARENA_BYTES), 0,
			      (uintptr_t)regions, 16, 0, 0, below(256), below(256), below(256) };
	char path[64];
	static __thread char text[16 * PAGE];
	uint8_t *at = pick();
	int fd;

	switch (below(8)) {
	case 0 ... 2:
		snprintf(path, sizeof(path), "/proc/%d/%s", below(2) ? getpid() : getppid(),
			 names[below(8)]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		note("read of /proc", 0, 0, 0);
		if (fd >= 0 && strstr(path, "pagemap"))
			pread(fd, text, sizeof(text), (uintptr_t)at / PAGE * 8);
		else
			while (fd >= 0 && read(fd, text, sizeof(text)) > 0)
				;
		break;
	case 3:
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		CALL(scan[1], scan[2], 0, ioctl(fd, PAGEMAP_SCAN_CALL, scan));
		break;
	case 4 ... 5:
		fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
		if (below(2))
			CALL(at, 0, 0, pread(fd, scratch, 1 + below(PMD), (off_t)(uintptr_t)at));
		else
			CALL(at, 0, 0, pwrite(fd, scratch, inside(at), (off_t)(uintptr_t)at));
		break;
	case 6:
		fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
		CALL(0, 0, 0, write(fd, &"123456"[below(6)], 1));
		break;
	case 7:
		snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (uintptr_t)ARENA,
			 (uintptr_t)ARENA + 2 * PMD);
		fd = open(path, O_RDWR | O_CLOEXEC);
		break;
	}
	if (fd >= 0)
		close(fd);
}

static void do_futex(void)
{
	uint8_t *at = (uint8_t *)((uintptr_t)pick() & ~3ul), *to = (uint8_t *)((uintptr_t)pick() & ~3ul);
	struct timespec moment = { .tv_nsec = 1000 };
	static const int ops[] = {
		FUTEX_WAIT, FUTEX_WAKE, FUTEX_REQUEUE, FUTEX_CMP_REQUEUE, FUTEX_WAKE_OP,
		FUTEX_TRYLOCK_PI, FUTEX_UNLOCK_PI, FUTEX_WAIT | FUTEX_PRIVATE_FLAG,
	};

	CALL(at, to, 0, syscall(SYS_futex, at, ops[below(8)], 0, &moment, to, below(4)));
}

/* Names, attributes, and what he has no right to. */
static void do_file(void)
{
	int i = below(OWN_FILES), fd = files[i];
	char path[64], other[64];
	struct fsxattr attributes;
	int flags;
	struct rlimit limit = { below(2) ? RLIM_INFINITY : below(64) << 20, RLIM_INFINITY };
	struct flock lock = { .l_type = below(3), .l_start = pick_offset(), .l_len = below(PMD) };

	snprintf(path, sizeof(path), "own/%d.%d", me, i);
	snprintf(other, sizeof(other), "own/%d.%d", me, OWN_FILES + (int)below(3));
	switch (below(16)) {
	case 0 ... 1:
		/* Another file of that name; who has the old one goes on with it. */
		if (below(2))
			CALL(0, 0, 0, unlink(path));
		else
			CALL(0, 0, 0, rename(path, other));
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd >= 0) {
			dup3(fd, files[i], O_CLOEXEC);
			close(fd);
		}
		break;
	case 2:
		fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
		if (fd >= 0) {
			dup3(fd, direct[i], O_CLOEXEC);
			close(fd);
		}
		break;
	case 3:
		CALL(0, 0, 0, link(path, other));
		CALL(0, 0, 0, unlink(other));
		break;
	case 4 ... 5:
		if (!ioctl(fd, FS_IOC_FSGETXATTR, &attributes)) {
			attributes.fsx_xflags ^= below(2) ? FS_XFLAG_DAX : 1u << below(32);
			attributes.fsx_extsize = below(2) ? 0 : PAGE << below(11);
			CALL(fd, attributes.fsx_xflags, 0, ioctl(fd, FS_IOC_FSSETXATTR, &attributes));
		}
		break;
	case 6:
		if (!ioctl(fd, FS_IOC_GETFLAGS, &flags)) {
			flags ^= 1u << below(30);
			CALL(fd, flags, 0, ioctl(fd, FS_IOC_SETFLAGS, &flags));
		}
		break;
	case 7:
		CALL(fd, 0, 0, ioctl(fd, FS_IOC_SHUTDOWN, (flags = below(4), &flags)));
		break;
	case 8:
		CALL(fd, 0, 0, ioctl(fd, _IO('f', 17 + below(3)), 0));
		break;
	case 9:
		CALL(0, 0, 0, syscall(SYS_swapon, path, 0));
		break;
	case 10:
		CALL(fd, 0, 0, posix_fadvise(fd, pick_offset(), pick_length(), below(8)));
		CALL(fd, 0, 0, readahead(fd, pick_offset(), PMD));
		break;
	case 11:
		CALL(fd, 0, 0, fcntl(fd, below(2) ? F_OFD_SETLK : F_SETLEASE, &lock));
		break;
	case 12:
		CALL(0, 0, 0, setrlimit(below(2) ? RLIMIT_AS : below(2) ? RLIMIT_DATA :
					RLIMIT_MEMLOCK, &limit));
		limit.rlim_cur = RLIM_INFINITY;
		setrlimit(RLIMIT_AS, &limit);
		setrlimit(RLIMIT_DATA, &limit);
		break;
	case 13:
		CALL(0, 0, 0, syscall(SYS_map_shadow_stack, below(2) ? pick() : NULL, PAGE << below(4),
				      below(4)));
		break;
	case 14:
		CALL(0, 0, 0, prctl(PR_SET_VMA, 0, pick(), pick_length() % PMD, "attack"));
		break;
	case 15:
		if (!below(64))
			CALL(0, 0, 0, syscall(SYS_mseal, (uintptr_t)pick() & ~(PAGE - 1), PAGE, 0));
		break;
	}
}

static const struct attack {
	const char *name;
	void (*try)(void);
	int weight;
} attacks[] = {
	{ "mmap", do_mmap, 14 }, { "munmap", do_munmap, 4 }, { "mprotect", do_mprotect, 4 },
	{ "mremap", do_mremap, 5 }, { "madvise", do_madvise, 8 }, { "guard", do_guard, 4 },
	{ "process_madvise", do_process_madvise, 3 }, { "load", do_load, 8 },
	{ "store", do_store, 10 }, { "sync", do_sync, 4 }, { "lock", do_lock, 3 },
	{ "query", do_query, 4 }, { "numa", do_numa, 3 }, { "remap_file", do_remap_file, 2 },
	{ "copy", do_copy, 6 }, { "layout", do_layout, 6 }, { "io", do_io, 10 },
	{ "pipe", do_pipe, 8 }, { "process_vm", do_process_vm, 3 }, { "fork", do_fork, 3 },
	{ "userfault", do_userfault, 8 }, { "uring", do_uring, 5 }, { "aio", do_aio, 3 },
	{ "proc", do_proc, 4 }, { "futex", do_futex, 3 }, { "file", do_file, 6 },
};

static bool is_excluded(const char *name)
{
	size_t length = strlen(name);

	for (const char *at = excluded; (at = strstr(at, name)); at += length)
		if ((at == excluded || at[-1] == ',') && (!at[length] || at[length] == ','))
			return true;
	return false;
}

static int wheel[256], wheel_size;
static uint64_t share, life;

static void *attacker_thread(void *number)
{
	thread = (intptr_t)number;
	control->threads[me][thread].tid = gettid();
	chance(me, thread, life);
	catch_faults();
	while (control->calls[me] < share && !control->wrong[0]) {
		attacks[wheel[below(wheel_size)]].try();
		__atomic_fetch_add(&control->calls[me], 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static int must_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		wrong("open of %s: errno %d", path, errno);
	return fd;
}

__attribute__((noreturn)) static void attacker(void)
{
	struct rlimit limit = { MOST_FILE, MOST_FILE };
	pthread_t threads[THREADS];
	char path[64];

	setpgid(0, 0);
	setrlimit(RLIMIT_FSIZE, &limit);
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 4 * PMD });
	if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY))
		wrong("cannot become nobody");
	/* Both are forgotten with the rights. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 1);
	umask(077);
	for (int i = 0; i < OWN_FILES; i++) {
		snprintf(path, sizeof(path), "own/%d.%d", me, i);
		files[i] = must_open(path, O_RDWR | O_CREAT);
		if (below(4) && !ftruncate(files[i], sizes[i]) && below(2))
			fallocate(files[i], 0, 0, sizes[i]);
		direct[i] = must_open(path, O_RDWR | O_DIRECT);
	}
	files[OWN_FILES] = must_open("lent", O_RDONLY);
	files[OWN_FILES + 1] = must_open("lent", O_RDONLY);
	files[OWN_FILES + 2] = must_open("shared", O_RDWR);
	files[OWN_FILES + 3] = memfd_create("attack", MFD_CLOEXEC);
	if (files[OWN_FILES + 3] < 0 || ftruncate(files[OWN_FILES + 3], 2 * PMD) ||
	    pipe2(pipes[0], O_NONBLOCK | O_CLOEXEC) || pipe2(pipes[1], O_NONBLOCK | O_CLOEXEC) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets))
		wrong("the attackers' other files: errno %d", errno);
	self = syscall(SYS_pidfd_open, getpid(), 0);
	has_ring = !io_uring_queue_init(16, &ring, 0);
	syscall(SYS_io_setup, 16, &aio);
	keys[0] = pkey_alloc(0, 0);
	keys[1] = pkey_alloc(0, PKEY_DISABLE_WRITE);
	scratch = mmap(NULL, PMD + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mmap(ARENA, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
		 MAP_FIXED_NOREPLACE, -1, 0) != ARENA || scratch == MAP_FAILED)
		wrong("no memory");
	for (int i = 1; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, attacker_thread, (void *)(intptr_t)i))
			wrong("no thread");
	attacker_thread(0);
	for (int i = 1; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	_exit(0);
}

/* ---- the victim ---- */

struct file {
	const char *path;
	int fd;
	uint32_t whose;
	uint8_t *map;
	uint8_t *model;
	size_t size;
};

static void fill(struct file *f, size_t at, size_t length)
{
	static uint32_t number;

	number++;
	for (size_t i = at; i < at + length; i += 8)
		*(uint64_t *)(f->model + i) = (uint64_t)f->whose << 32 | number << 8 |
					      (i >> 3 & 0xff);
}

static void compare(struct file *f, const uint8_t *got, size_t at, size_t length, const char *how)
{
	size_t i;

	if (!memcmp(got, f->model + at, length))
		return;
	for (i = 0; got[i] == f->model[at + i]; i++)
		;
	i &= ~7ul;
	wrong("the victim's %s by %s: %#lx at %#lx (size %#lx), not %#lx", f->path, how,
	      *(uint64_t *)(got + i), at + i, f->size, *(uint64_t *)(f->model + at + i));
}

#define MUST(what, condition)						\
	do {								\
		control->victim_is_in = what;				\
		if (!(condition))					\
			wrong("the victim's " what " of %s: errno %d", f->path, errno);	\
	} while (0)

static void open_file(struct file *f, const char *path, uint32_t whose, mode_t mode)
{
	f->path = path;
	f->whose = whose;
	f->fd = open(path, O_RDWR | O_CREAT, mode);
	if (f->fd < 0 || fchmod(f->fd, mode))
		wrong("the victim's open of %s: errno %d", path, errno);
	f->map = mmap(NULL, MOST_FILE + PMD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	f->map = (uint8_t *)(((uintptr_t)f->map + PMD - 1) & ~(PMD - 1));
	if (mmap(f->map, MOST_FILE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, f->fd, 0) != f->map)
		wrong("the victim's mmap of %s: errno %d", path, errno);
	f->model = calloc(1, MOST_FILE);
}

/* One operation on a file that the victim alone changes. */
static void use(struct file *f, uint8_t *bounce, bool may_cut)
{
	size_t at = below(4) ? below(4 * PMD / PAGE) * PAGE : below(4) * PMD;
	size_t length = below(8) ? (1 + below(16)) * PAGE : PMD;

	if (at + length > f->size) {
		at = at < f->size ? at : 0;
		length = f->size - at < length ? f->size - at : length;
	}
	switch (below(may_cut ? 10 : 7)) {
	case 0 ... 1:
		fill(f, at, length);
		MUST("write", pwrite(f->fd, f->model + at, length, at) == (ssize_t)length);
		break;
	case 2 ... 3:
		control->victim_is_in = "store";
		fill(f, at, length);
		memcpy(f->map + at, f->model + at, length);
		break;
	case 4:
		MUST("fsync", !(below(2) ? fsync(f->fd) : msync(f->map, MOST_FILE, MS_SYNC)));
		break;
	case 5:
		MUST("read", pread(f->fd, bounce, length, at) == (ssize_t)length);
		compare(f, bounce, at, length, "read");
		break;
	case 6:
		control->victim_is_in = "load";
		memcpy(bounce, f->map + at, length);
		compare(f, bounce, at, length, "mapping");
		break;
	case 7:
		at = below(4 * PMD / PAGE) * PAGE;
		MUST("truncate", !ftruncate(f->fd, at));
		memset(f->model + at, 0, MOST_FILE - at);
		at = PMD + below(3 * PMD / PAGE) * PAGE;
		MUST("growth", !ftruncate(f->fd, at));
		memset(f->model + at, 0, MOST_FILE - at);
		f->size = at;
		break;
	case 8:
		MUST("hole", !fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
					length));
		memset(f->model + at, 0, length);
		break;
	case 9:
		/* The blocks go to whoever wants some next. */
		MUST("removal", !unlink(f->path));
		close(f->fd);
		munmap(f->map, MOST_FILE);
		free(f->model);
		open_file(f, f->path, f->whose, 0600);
		f->size = 2 * PMD;
		MUST("growth", !ftruncate(f->fd, f->size));
		break;
	}
}

/* The file that all may write: who knows what it holds, but using it must not take for ever. */
static void use_shared(int fd, uint8_t *map)
{
	size_t at = below(4 * PMD / PAGE) * PAGE;

	switch (below(4)) {
	case 0:
		control->victim_is_in = "write of the shared file";
		pwrite(fd, map, 8, at);
		break;
	case 1:
		control->victim_is_in = "store to the shared file";
		(void)MAY_FAULT(put(map + at, (uint64_t)OF_VICTIM << 32));
		break;
	case 2:
		control->victim_is_in = "load from the shared file";
		(void)MAY_FAULT(*(volatile uint64_t *)(map + at));
		break;
	case 3:
		control->victim_is_in = "fsync of the shared file";
		fsync(fd);
		break;
	}
}

__attribute__((noreturn)) static void victim(void)
{
	struct file secrets[2] = { 0 }, lent = { 0 };
	uint8_t *bounce = malloc(MOST_FILE), *map;
	int shared;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setpgid(0, 0);
	catch_faults();
	chance(1000, 0, 0);
	open_file(&secrets[0], "secret0", SECRET, 0600);
	open_file(&secrets[1], "secret1", SECRET, 0600);
	open_file(&lent, "lent", OF_VICTIM, 0644);
	for (int i = 0; i < 2; i++) {
		secrets[i].size = 2 * PMD;
		if (ftruncate(secrets[i].fd, secrets[i].size))
			wrong("ftruncate");
	}
	lent.size = 4 * PMD;
	fill(&lent, 0, lent.size);
	if (pwrite(lent.fd, lent.model, lent.size, 0) != (ssize_t)lent.size)
		wrong("the victim's first write");
	shared = open("shared", O_RDWR | O_CREAT, 0666);
	if (shared < 0 || fchmod(shared, 0666) || ftruncate(shared, 4 * PMD))
		wrong("shared file");
	map = mmap(NULL, 4 * PMD, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
	control->rounds = 1;
	while (!control->stop) {
		switch (below(5)) {
		case 0 ... 2:
			use(&secrets[below(2)], bounce, true);
			break;
		case 3:
			use(&lent, bounce, false);
			break;
		case 4:
			use_shared(shared, map);
			break;
		}
		control->rounds++;
	}
	for (int i = 0; i < 3; i++) {
		struct file *f = i < 2 ? &secrets[i] : &lent;

		MUST("last read", pread(f->fd, bounce, f->size, 0) == (ssize_t)f->size);
		compare(f, bounce, 0, f->size, "the last read");
		compare(f, f->map, 0, f->size, "the last look at the mapping");
	}
	_exit(0);
}

/* ---- who looks after all of them ---- */

static void show_file(const char *path)
{
	char line[200];
	FILE *f = fopen(path, "r");

	while (f && fgets(line, sizeof(line), f))
		printf("    %s", line);
	if (f)
		fclose(f);
}

static void show(int number, pid_t pid)
{
	char path[64];

	printf("process %d (%d):\n", number, pid);
	for (int i = 0; i < THREADS && number < PROCESSES; i++) {
		unsigned int at = control->threads[number][i].at;

		printf("  thread %d\n", i);
		for (unsigned int j = at > 12 ? at - 12 : 0; j < at; j++) {
			struct call *call = &control->threads[number][i].last[j % 32];

			printf("    %.60s: %#lx %#lx %#lx = %ld\n", call->what, call->a, call->b,
			       call->c, call->result);
		}
		snprintf(path, sizeof(path), "/proc/%d/stack", control->threads[number][i].tid);
		show_file(path);
	}
	snprintf(path, sizeof(path), "/proc/%d/stack", pid);
	show_file(path);
}

static void show_all(const pid_t *pids, pid_t victim_pid)
{
	for (int i = 0; i < processes; i++)
		show(i, pids[i]);
	printf("the victim (%d) is in %s:\n", victim_pid, (const char *)control->victim_is_in);
	show(PROCESSES, victim_pid);
	fflush(stdout);
}

/* Limits are for what should never happen; nothing is taken for right because of the time. */
#define LIMIT_MS ((uint64_t)(60000 * pace))
#define IDLE_MS ((uint64_t)(1500 * pace))

int main(int argc, char **argv)
{
	pid_t pids[PROCESSES] = { 0 }, victim_pid, pid;
	uint64_t seen[PROCESSES] = { 0 }, since[PROCESSES] = { 0 }, killed_at[PROCESSES] = { 0 };
	uint64_t rounds = 0, rounds_since, lives = 0, kills = 0, idle = 0, next_kill, total;
	int option, status, failed = 0, left;

	while ((option = getopt(argc, argv, "d:n:s:w:x:p:")) > 0) {
		switch (option) {
		case 'd':
			dir = optarg;
			break;
		case 'n':
			budget = strtoull(optarg, NULL, 0);
			break;
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 'w':
			processes = atoi(optarg);
			break;
		case 'x':
			excluded = optarg;
			break;
		case 'p':
			pace = atof(optarg);
			break;
		default:
			return 2;
		}
	}
	if (!dir || processes < 1 || processes > PROCESSES || chdir(dir)) {
		fputs("usage: attack -d DIR [-n CALLS] [-s SEED] [-w PROCESSES] [-x ATTACK,...] [-p PACE]\n",
		      stderr);
		return 2;
	}
	for (size_t i = 0; i < sizeof(attacks) / sizeof(*attacks); i++)
		for (int j = 0; j < attacks[i].weight && !is_excluded(attacks[i].name); j++)
			wheel[wheel_size++] = i;
	control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	if (control == MAP_FAILED || mkdir("own", 0700) || chown("own", NOBODY, NOBODY))
		return 2;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	share = budget / processes;
	chance(2000, 0, 0);
	victim_pid = fork();
	if (!victim_pid)
		victim();
	rounds_since = now_ms();
	while (!control->rounds && !control->wrong[0] && now_ms() < rounds_since + LIMIT_MS)
		usleep(1000);
	next_kill = budget / 40;
	for (;;) {
		left = 0;
		total = 0;
		for (int i = 0; i < processes; i++) {
			total += control->calls[i];
			if (!pids[i] && control->calls[i] < share && !control->wrong[0]) {
				life = ++lives;
				fflush(stdout);
				pid = fork();
				if (!pid) {
					me = i;
					chance(i, 100, life);
					attacker();
				}
				pids[i] = pid;
				since[i] = now_ms();
				killed_at[i] = 0;
			}
			left += pids[i] != 0;
		}
		if (!left || failed)
			break;
		/* Reaped is what was started here, and what it has left. */
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
			if (pid == victim_pid) {
				failed = 1;
				victim_pid = 0;
			}
			for (int i = 0; i < processes; i++)
				if (pids[i] == pid) {
					kill(-pid, SIGKILL);
					pids[i] = 0;
				}
		}
		if (control->wrong[0])
			failed = 1;
		if (total >= next_kill) {
			int i = below(processes);

			next_kill += 1 + below(budget / 20);
			if (pids[i] && !killed_at[i]) {
				kill(-pids[i], SIGKILL);
				killed_at[i] = now_ms();
				kills++;
			}
		}
		for (int i = 0; i < processes; i++) {
			if (control->calls[i] != seen[i]) {
				seen[i] = control->calls[i];
				since[i] = now_ms();
			}
			if (!pids[i])
				continue;
			if (!killed_at[i] && now_ms() > since[i] + IDLE_MS) {
				/* Waits for itself: its own affair, as long as it can be killed. */
				kill(-pids[i], SIGKILL);
				killed_at[i] = now_ms();
				idle++;
			}
			if (killed_at[i] && now_ms() > killed_at[i] + LIMIT_MS) {
				printf("process %d was killed and does not go away\n", i);
				failed = 1;
			}
		}
		if (control->rounds != rounds) {
			rounds = control->rounds;
			rounds_since = now_ms();
		} else if (now_ms() > rounds_since + LIMIT_MS) {
			printf("the victim does not get on\n");
			failed = 1;
		}
		usleep(2000);
	}
	if (control->wrong[0])
		printf("%s\n", control->wrong);
	if (failed)
		show_all(pids, victim_pid);
	/* The victim must come to an end that satisfies him, and everybody else go away. */
	control->stop = true;
	rounds_since = now_ms();
	for (;;) {
		for (int i = 0; i < processes && failed; i++)
			if (pids[i])
				kill(-pids[i], SIGKILL);
		pid = waitpid(-1, &status, WNOHANG);
		if (pid == victim_pid && pid > 0) {
			victim_pid = 0;
			if (status) {
				printf("the victim ended with %#x: %s\n", status, control->wrong);
				failed = 1;
			}
		}
		if (pid < 0)
			break;
		if (!pid && now_ms() > rounds_since + LIMIT_MS) {
			printf("somebody does not go away\n");
			show_all(pids, victim_pid);
			failed = 1;
			break;
		}
		if (!pid)
			usleep(2000);
	}
	printf("%lu calls by %lu processes, %lu killed at random and %lu that waited for themselves, %lu rounds of the victim, seed %lu\n",
	       total, lives, kills, idle, control->rounds, seed);
	return failed;
}
