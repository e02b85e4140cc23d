// SPDX-License-Identifier: GPL-2.0
/*
 * attack-kernel: what an attacker does with processes, userfaultfd, /proc, futexes and files as such.
 */
#include "attack.h"

#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

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

void do_fork(void)
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

void do_userfault(void)
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

void do_proc(void)
{
	static __thread char text[16 * PAGE];
	static const char *const names[] = {
		"smaps", "smaps_rollup", "maps", "numa_maps", "pagemap", "stat", "status", "statm",
	};
	uint64_t regions[3 * 16];
	uint64_t scan[12] = { 96, below(4), (uintptr_t)pick(), (uintptr_t)(ARENA + ARENA_BYTES), 0,
			      (uintptr_t)regions, 16, 0, 0, below(256), below(256), below(256) };
	char path[64];
	uint8_t *at = pick();
	int fd = -1;

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

void do_futex(void)
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
void do_file(void)
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
