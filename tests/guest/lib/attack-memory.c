// SPDX-License-Identifier: GPL-2.0
/*
 * attack-memory: what an attacker does to its mappings.
 */
#include "attack.h"

#include <linux/fiemap.h>
#include <linux/mempolicy.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

void do_mmap(void)
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

void do_munmap(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);

	CALL(at, length, 0, munmap(at, length));
}

void do_mprotect(void)
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

void do_mremap(void)
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

int pick_advice(void)
{
	return below(16) ? (int)below(26) : below(4) ? 100 + (int)below(4) : (int)below(1ul << 32);
}

void do_madvise(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);
	int advice = pick_advice();

	CALL(at, length, advice, madvise(at, length, advice));
}

void do_guard(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);

	CALL(at, length, 0, madvise(at, length, 102 + below(2)));
}

void do_process_madvise(void)
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

void do_load(void)
{
	static __thread uint64_t seen[512];
	uint8_t *at = (uint8_t *)((uintptr_t)pick() & ~7ul);
	size_t length = inside(at) & ~7ul;
	size_t step = (1 + length / (MOST_TOUCHED * PAGE)) * PAGE, missed = 0;

	note("load", (uint64_t)at, length, step);
	for (size_t i = 0; i < length && missed < MOST_MISSED; i += step) {
		size_t bytes = length - i < PAGE ? length - i : PAGE;

		if (MAY_FAULT(memcpy(seen, at + i, bytes)))
			look(seen, bytes, "a mapping");
		else
			missed++;
	}
}

void do_store(void)
{
	uint8_t *at = (uint8_t *)((uintptr_t)pick() & ~7ul);
	size_t length = inside(at), missed = 0;
	size_t step = (1 + length / (MOST_TOUCHED * PAGE)) * (below(2) ? PAGE : 8 + below(PAGE / 8) * 8);

	note("store", (uint64_t)at, length, step);
	for (size_t i = 0; i + 8 <= length && missed < MOST_MISSED; i += step)
		if (!MAY_FAULT(put(at + i, (uint64_t)OF_ATTACKER << 32 | i)))
			missed++;
}

void do_sync(void)
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

void do_lock(void)
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

void do_query(void)
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

void do_numa(void)
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

void do_remap_file(void)
{
	uint8_t *at = pick();
	size_t length = length_at(at);

	CALL(at, length, 0, remap_file_pages(at, length, 0, below(2048), below(2) ? 0 : MAP_NONBLOCK));
}
