// SPDX-License-Identifier: GPL-2.0
/*
 * workload: does things to files at random and tells the model (model.c) what it begins and what it was
 * promised. oracle.c knows what must be there after a power cut.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "chance.h"
#include "uring.h"
#include "workload.h"

#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

struct mapped {
	int fd, synchronous_fd, all_synchronous_fd;
	uint64_t size;
	/* The least size since the last promise for the whole file. */
	uint64_t sure;
	uint8_t *small, *large, *synchronous;
};

static const struct workload *workload;
static struct mapped files[FILES];
static int directory;
/* Where the filesystem is mounted, and what it is. */
static const char *mounted_at, *filesystem;
/* Whether files can share blocks. */
static bool clones;
static char failed[200];

static int give_up(const char *what)
{
	if (!failed[0])
		snprintf(failed, sizeof(failed), "operation %u: %s: %s", op_count, what, strerror(errno));
	return -1;
}

const char *workload_failure(void)
{
	return failed;
}

static uint8_t *map_file(int fd, uint64_t length, uint64_t skew, int flags)
{
	uint8_t *at = mmap(NULL, length + skew + PMD, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return NULL;
	at = (uint8_t *)(((uintptr_t)at + PMD - 1) & -PMD) + skew;
	at = mmap(at, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	return at == MAP_FAILED ? NULL : at;
}

static void name_of(unsigned int file, char *to)
{
	sprintf(to, "file%u", file);
}

static int fill(int fd, uint32_t number, unsigned int file, uint64_t size)
{
	static uint64_t buffer[PMD / UNIT];
	uint64_t at, i;

	for (at = 0; at < size; at += sizeof(buffer)) {
		uint64_t length = size - at < sizeof(buffer) ? size - at : sizeof(buffer);

		for (i = 0; i < length / UNIT; i++)
			buffer[i] = value_of(number, file, at + i * UNIT);
		if (pwrite(fd, buffer, length, at) != (ssize_t)length)
			return give_up("pwrite");
	}
	return 0;
}

/* Make the files. */
int workload_prepare(const char *path, const char *name)
{
	unsigned int i;
	char file[16];
	int at, fd;

	failed[0] = 0;
	workload = find_workload(name);
	at = open(path, O_RDONLY | O_DIRECTORY);
	if (!workload || at < 0)
		return give_up("no such workload or directory");
	for (i = 0; i < workload->files; i++) {
		name_of(i, file);
		fd = openat(at, file, O_RDWR | O_CREAT | O_TRUNC, 0600);
		if (fd < 0)
			return give_up("open");
		if (i < workload->full) {
			/* Blocks for as much as it may have, so that ext4 aligns them to 2 MiB. */
			if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, workload->most) ||
			    ftruncate(fd, workload->size) || fill(fd, FIRST, i, workload->size))
				return give_up("fill");
		}
		if (fsync(fd))
			return give_up("fsync");
		close(fd);
	}
	if (syncfs(at))
		return give_up("syncfs");
	close(at);
	return 0;
}

/* Whether files can share blocks. A copy on write of some is made of 2 MiB then. */
static bool share_large_parts(int fd)
{
	struct fsxattr attributes;
	struct statfs status;

	if (fstatfs(fd, &status) || status.f_type != XFS_SUPER_MAGIC)
		return false;
	if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes))
		return false;
	attributes.fsx_xflags |= FS_XFLAG_COWEXTSIZE;
	attributes.fsx_cowextsize = PMD;
	return !ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
}

static int open_file(unsigned int i)
{
	struct mapped *file = &files[i];
	struct stat status;
	char name[16];

	name_of(i, name);
	file->fd = openat(directory, name, O_RDWR);
	file->synchronous_fd = openat(directory, name, O_RDWR | O_DSYNC);
	file->all_synchronous_fd = openat(directory, name, O_RDWR | O_SYNC);
	if (file->fd < 0 || file->synchronous_fd < 0 || file->all_synchronous_fd < 0 ||
	    fstat(file->fd, &status))
		return give_up("open");
	if (workload->large)
		clones = share_large_parts(file->fd);
	file->size = file->sure = status.st_size;
	file->small = map_file(file->fd, workload->most, PAGE, MAP_SHARED);
	file->large = map_file(file->fd, workload->most, 0, MAP_SHARED);
	file->synchronous = map_file(file->fd, workload->most, below(2) ? 0 : PAGE,
				     MAP_SHARED_VALIDATE | MAP_SYNC);
	if (!file->small || !file->large || !file->synchronous)
		return give_up("mmap");
	return 0;
}

static void close_file(unsigned int i)
{
	munmap(files[i].small, workload->most);
	munmap(files[i].large, workload->most);
	munmap(files[i].synchronous, workload->most);
	close(files[i].fd);
	close(files[i].synchronous_fd);
	close(files[i].all_synchronous_fd);
}

/* Have who opens the file next find nothing of it in memory, if the kernel lets go of it. */
static int drop_caches(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
	int bad = fd < 0 || write(fd, "3", 1) != 1;

	if (fd >= 0)
		close(fd);
	return bad ? -1 : 0;
}

static int reopen_file(unsigned int i)
{
	const uint64_t sure = files[i].sure;

	close_file(i);
	if (drop_caches() || open_file(i))
		return -1;
	files[i].sure = sure;
	return 0;
}

static int open_all(void)
{
	unsigned int i;

	directory = open(mounted_at, O_RDONLY | O_DIRECTORY);
	if (directory < 0)
		return give_up("open");
	for (i = 0; i < workload->files - workload->renames; i++)
		if (open_file(i))
			return -1;
	return 0;
}

static void close_all(void)
{
	unsigned int i;

	for (i = 0; i < workload->files - workload->renames; i++)
		close_file(i);
	close(directory);
}

/* A part of the file: mostly short, at times some pages. */
static bool some_part(const struct mapped *file, struct op *op, uint64_t most)
{
	if (file->size < UNIT)
		return false;
	op->offset = below(file->size / UNIT) * UNIT;
	op->length = (1 + below(1ULL << below(11))) * UNIT;
	if (op->length > most)
		op->length = most;
	if (op->length > file->size - op->offset)
		op->length = file->size - op->offset;
	return true;
}

/* The same of whole pages. */
static bool some_pages(const struct mapped *file, struct op *op)
{
	uint64_t pages = file->size / PAGE;

	if (!pages)
		return false;
	/* Blocks that move by less would not be aligned any more. */
	if (workload->large && file->size >= PMD &&
	    (op->kind == OP_COLLAPSE || op->kind == OP_INSERT || below(2))) {
		op->offset = below(file->size / PMD) * PMD;
		op->length = PMD;
		return true;
	}
	op->offset = below(pages) * PAGE;
	op->length = (1 + below(1ULL << below(8))) * PAGE;
	if (op->length > pages * PAGE - op->offset)
		op->length = pages * PAGE - op->offset;
	return true;
}

static bool choose(struct op *op)
{
	unsigned int i, all = 0;
	const struct mapped *file;
	uint64_t dice;

	memset(op, 0, sizeof(*op));
	for (i = 0; i < OPS; i++)
		all += workload->weights[i];
	dice = below(all);
	for (i = 0; dice >= workload->weights[i]; i++)
		dice -= workload->weights[i];
	op->kind = i;
	op->file = below(workload->files - workload->renames);
	if (i == OP_RENAME)
		op->file = workload->files - 1;
	file = &files[op->file];
	switch (op->kind) {
	case OP_STORE:
		op->how = workload->large ? below(8) != 0 : below(2);
		return some_part(file, op, workload->most);
	case OP_SYNCFS:
		op->how = below(SYNC_HOWS);
		return true;
	case OP_FSYNC:
		op->how = below(4) == 0;
		return true;
	case OP_WRITE_SYNC:
		op->how = below(WRITE_HOWS);
		/* fallthrough */
	case OP_WRITE:
		/* At times behind the end. */
		if (!below(6) && file->size + 64 * UNIT < workload->most) {
			op->offset = file->size + below(2) * below(1000) * UNIT;
			op->length = (1 + below(1000)) * UNIT;
			return op->offset + op->length <= workload->most;
		}
		return some_part(file, op, workload->most);
	case OP_STORE_SYNC: {
		struct mapped sure = { .size = file->sure & -PAGE };

		return some_part(&sure, op, workload->most);
	}
	case OP_MSYNC:
		if (!some_part(file, op, workload->most))
			return false;
		op->length += op->offset % PAGE;
		op->offset &= -PAGE;
		return true;
	case OP_TRUNCATE:
		op->length = below(3) ? below(workload->most / UNIT) * UNIT :
			     below(workload->most / PAGE) * PAGE;
		/* A part of what is mapped by 2 MiB stays, or none of it. */
		if (workload->large && below(2)) {
			op->length = (1 + below(workload->most / PMD)) * PMD;
			return true;
		}
		/* Mostly a little. */
		if (below(3) && file->size > 80 * PAGE)
			op->length = file->size - below(64 * PAGE / UNIT) * UNIT;
		return true;
	case OP_PUNCH:
	case OP_ZERO:
	case OP_UNSHARE:
		return below(2) ? some_part(file, op, workload->most) : some_pages(file, op);
	case OP_COLLAPSE:
		return some_pages(file, op) && op->offset + op->length < file->size;
	case OP_INSERT:
		return some_pages(file, op) && file->size + op->length <= workload->most;
	case OP_CLONE:
		op->how = below(workload->files);
		return clones && op->how != op->file;
	}
	return true;
}

static void store_words(uint8_t *at, const struct op *op, uint32_t number)
{
	volatile uint64_t *to = (volatile uint64_t *)(at + op->offset);
	uint64_t i;

	for (i = 0; i < op->length / UNIT; i++)
		to[i] = value_of(number, op->file, op->offset + i * UNIT);
}

static void store_synchronously(uint8_t *at, const struct op *op, uint32_t number)
{
	uint64_t line;

	store_words(at, op, number);
	for (line = op->offset & -64ULL; line < op->offset + op->length; line += 64)
		__asm__ volatile("clwb (%0)" : : "r"(at + line) : "memory");
	__asm__ volatile("sfence" : : : "memory");
}

static int write_words(const struct mapped *file, const struct op *op, uint32_t number)
{
	static uint64_t buffer[PMD / UNIT];
	const struct iovec all = { buffer, op->length };
	int64_t written = -1;
	uint64_t i;

	for (i = 0; i < op->length / UNIT; i++)
		buffer[i] = value_of(number, op->file, op->offset + i * UNIT);
	if (op->kind == OP_WRITE)
		written = pwrite(file->fd, buffer, op->length, op->offset);
	else if (op->how == WRITE_DSYNC)
		written = pwrite(file->synchronous_fd, buffer, op->length, op->offset);
	else if (op->how == WRITE_SYNC)
		written = pwrite(file->all_synchronous_fd, buffer, op->length, op->offset);
	else if (op->how == WRITE_URING)
		written = write_by_uring(file->fd, buffer, op);
	else
		written = pwritev2(file->fd, &all, 1, op->offset,
				   op->how == WRITE_RWF_DSYNC ? RWF_DSYNC : RWF_SYNC);
	return written == (int64_t)op->length ? 0 : -1;
}

/* A new file, whole and synced, takes the name of the old one. */
static int replace(const struct op *op, uint32_t number)
{
	char name[16];
	int fd, bad;

	name_of(op->file, name);
	fd = openat(directory, "new", O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		return -1;
	bad = fill(fd, number, op->file, workload->size / 8) || fsync(fd);
	bad |= close(fd);
	return bad || renameat(directory, "new", directory, name) || fsync(directory) ? -1 : 0;
}

static int unmount_it(void)
{
	return umount(mounted_at);
}

static int make_read_only(void)
{
	return mount(NULL, mounted_at, NULL, MS_REMOUNT | MS_RDONLY, NULL);
}

/* Who serves a request of io_uring has its file for a moment yet when it has answered. */
static int when_not_busy(int (*call)(void))
{
	int tries, status;

	/* Ends: when he is done, or with an error if he never is. */
	for (tries = 0; (status = call()) && errno == EBUSY && tries < 100000; tries++)
		usleep(1000);
	return status;
}

static int sync_all(uint8_t how)
{
	switch (how) {
	case SYNC_FREEZE:
		return ioctl(directory, FIFREEZE, 0) || ioctl(directory, FITHAW, 0) ? -1 : 0;
	case SYNC_REMOUNT:
		close_all();
		if (when_not_busy(make_read_only) ||
		    mount(NULL, mounted_at, NULL, MS_REMOUNT, NULL))
			return -1;
		return open_all();
	default:
		return syncfs(directory);
	}
}

static int perform(const struct op *op, uint32_t number)
{
	struct mapped *file = &files[op->file];
	uint64_t end = op->offset + op->length;
	int status = 0;

	switch (op->kind) {
	case OP_STORE:
		store_words(op->how ? file->large : file->small, op, number);
		break;
	case OP_WRITE:
	case OP_WRITE_SYNC:
		status = write_words(file, op, number);
		if (end > file->size)
			file->size = end;
		break;
	case OP_STORE_SYNC:
		store_synchronously(file->synchronous, op, number);
		break;
	case OP_FSYNC:
		status = op->how ? sync_by_uring(file->fd) : fsync(file->fd);
		file->sure = file->size;
		break;
	case OP_FDATASYNC:
		status = fdatasync(file->fd);
		file->sure = file->size;
		break;
	case OP_MSYNC:
		status = msync(file->small + op->offset, op->length, MS_SYNC);
		break;
	case OP_SYNCFS:
		status = sync_all(op->how);
		break;
	case OP_TRUNCATE:
		status = ftruncate(file->fd, op->length);
		file->size = op->length;
		break;
	case OP_PUNCH:
	case OP_ZERO:
		status = fallocate(file->fd, FALLOC_FL_KEEP_SIZE |
				   (op->kind == OP_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
				   op->offset, op->length);
		break;
	case OP_COLLAPSE:
		status = fallocate(file->fd, FALLOC_FL_COLLAPSE_RANGE, op->offset, op->length);
		file->size -= op->length;
		break;
	case OP_INSERT:
		status = fallocate(file->fd, FALLOC_FL_INSERT_RANGE, op->offset, op->length);
		file->size += op->length;
		break;
	case OP_CLONE:
		status = ioctl(file->fd, FICLONE, files[op->how].fd);
		file->size = files[op->how].size;
		break;
	case OP_RENAME:
		status = replace(op, number);
		break;
	case OP_UNSHARE:
		status = fallocate(file->fd, FALLOC_FL_UNSHARE_RANGE, op->offset, op->length);
		break;
	case OP_REOPEN:
		status = reopen_file(op->file);
		break;
	case OP_UMOUNT:
		close_all();
		status = when_not_busy(unmount_it);
		break;
	case OP_MOUNT:
		status = mount("/dev/pmem0", mounted_at, filesystem, 0, "dax=always") || open_all();
		break;
	}
	if (file->size < file->sure)
		file->sure = file->size;
	return status;
}

static bool changes_blocks(uint8_t kind)
{
	return kind >= OP_TRUNCATE && kind <= OP_CLONE;
}

/*
 * Does one operation. It is on record with its number before it begins, and the model is told when it
 * begins and when it is over, which is when it is a promise if it is one that promises.
 */
static int do_op(const struct op *op, int64_t *cuts)
{
	uint32_t number = op_count;

	if (op_count == MOST_OPS)
		return give_up("too many");
	ops[op_count] = *op;
	powercut_ask(POWERCUT_EVENT, 0, 2ULL * number + 1, 0);
	if (perform(op, number)) {
		char what[60];

		sprintf(what, "kind %d of file %d at %#llx, length %#llx", op->kind, op->file,
			(unsigned long long)op->offset, (unsigned long long)op->length);
		return give_up(what);
	}
	op_count++;
	*cuts = powercut_ask(POWERCUT_EVENT, 0, 2ULL * number + 2, 0);
	return 0;
}

/* Until there are so many cuts, or so many operations were done. Which, is the answer. */
int64_t workload_run(const char *path, const char *name, uint64_t seed, int64_t wanted, uint32_t most)
{
	unsigned int unsynced[FILES] = { 0 }, i;
	struct statfs status;
	int64_t cuts = 0;

	workload = find_workload(name);
	failed[0] = 0;
	op_count = 0;
	random_state = seed;
	clones = true;
	if (!make_room() || set_up_uring() || statfs(path, &status))
		return give_up("cannot begin");
	mounted_at = path;
	filesystem = status.f_type == XFS_SUPER_MAGIC ? "xfs" : "ext4";
	if (open_all())
		return -1;
	/* What is to be shared is shared from the first. */
	for (i = workload->full; i < workload->files && workload->weights[OP_CLONE] && clones; i++) {
		const struct op clone = { .kind = OP_CLONE, .file = i, .how = i % workload->full };
		const struct op sync = { .kind = OP_FSYNC, .file = i };

		if (do_op(&clone, &cuts) || do_op(&sync, &cuts))
			return -1;
	}
	while (cuts < wanted && op_count < most) {
		struct op op;

		/* A part of all choices is not possible; there are always others. */
		if (!choose(&op))
			continue;
		/* The oracle keeps what a file may be like for each of these. */
		if (changes_blocks(op.kind) && ++unsynced[op.file] > 12)
			op = (struct op){ .kind = OP_FSYNC, .file = op.file };
		if (op.kind == OP_FSYNC)
			unsynced[op.file] = 0;
		if (op.kind == OP_CLONE && files[op.file].size) {
			struct op cut = { .kind = OP_TRUNCATE, .file = op.file };

			if (do_op(&cut, &cuts))
				return -1;
			unsynced[op.file]++;
		}
		if (op.kind == OP_CLONE && !files[op.how].size)
			continue;
		if (do_op(&op, &cuts))
			return -1;
		/* What it has promised is so before the filesystem is mounted again, and while it is. */
		if (op.kind == OP_UMOUNT) {
			const struct op again = { .kind = OP_MOUNT };

			if (do_op(&again, &cuts))
				return -1;
			memset(unsynced, 0, sizeof(unsynced));
		}
	}
	close_all();
	return cuts;
}
