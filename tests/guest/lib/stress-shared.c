// SPDX-License-Identifier: GPL-2.0
/* stress-shared: files of others, and of all. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "stress.h"

void read_other(void)
{
	int other = below(workers);
	char path[300];
	size_t offset, length;
	ssize_t done;
	uint8_t *m;
	int fd;

	snprintf(path, sizeof(path), "%s/%s%d", dir, reflink && below(2) ? "copy" : "own", other);
	fd = open(path, O_RDWR);
	if (fd < 0)
		return;
	range(MAX, PAGE, &offset, &length);
	if (length > 64 * PAGE)
		length = 64 * PAGE;
	did("read other's", other, offset, length);
	switch (below(3)) {
	case 0:
		done = pread(fd, bounce, length, offset);
		if (done < 0)
			fail("pread of %s", path);
		check_words((uint64_t *)bounce, other, offset, done, "pread of another's file");
		break;
	case 1:
		m = map_at(fd, MAX, below(2) * PAGE, MAP_SHARED);
		if (MAY_FAULT(load((uint64_t *)bounce, (uint64_t *)(m + offset), length)))
			check_words((uint64_t *)bounce, other, offset, length,
				    "mapping of another's file");
		munmap(m, MAX);
		break;
	case 2:
		/* Hold its pages for a direct write, while it may be cut. */
		if (disk < 0)
			break;
		m = map_at(fd, MAX, below(2) * PAGE, MAP_SHARED);
		if (length > 16 * PAGE)
			length = 16 * PAGE;
		done = pwrite(disk, m + offset, length, me * DISK_PART);
		munmap(m, MAX);
		if (done < 0 && errno != EFAULT)
			fail("direct write from another's file");
		if (done <= 0)
			break;
		done &= ~511l;
		if (pread(disk, bounce, done, me * DISK_PART) != done)
			fail("direct read");
		check_words((uint64_t *)bounce, other, offset, done,
			    "direct write from another's file");
		break;
	}
	close(fd);
}

void shared_op(void)
{
	int number = below(SHARED);
	struct file *f = &shared[number];
	uint8_t *m = below(2) ? f->huge : f->small;
	size_t part = (workers + number) * DISK_PART;
	struct file_clone_range clone;
	size_t offset, length;
	ssize_t done;

	range(MAX, 8, &offset, &length);
	switch (below(reflink ? 14 : 13)) {
	case 0 ... 2:
		did("shared store", number, offset, length);
		fill((uint64_t *)bounce, f->id, offset, length);
		MAY_FAULT(store((uint64_t *)(m + offset), (uint64_t *)bounce, length));
		break;
	case 3 ... 5:
		did("shared load", number, offset, length);
		if (MAY_FAULT(load((uint64_t *)bounce, (uint64_t *)(m + offset), length)))
			check_words((uint64_t *)bounce, f->id, offset, length, "shared mapping");
		break;
	case 6:
		did("shared pwrite", number, offset, length);
		fill((uint64_t *)bounce, f->id, offset, length);
		if (pwrite(f->fd, bounce, length, offset) != (ssize_t)length)
			fail("pwrite to a shared file");
		break;
	case 7:
		did("shared pread", number, offset, length);
		done = pread(f->fd, bounce, length, offset);
		if (done < 0)
			fail("pread of a shared file");
		check_words((uint64_t *)bounce, f->id, offset, done & ~7l, "pread, shared file");
		break;
	case 8:
		did("shared truncate", number, offset, 0);
		if (ftruncate(f->fd, below(3) ? MAX - offset % PMD : offset))
			fail("ftruncate of a shared file");
		break;
	case 9:
		did("shared punch", number, offset, length);
		if (fallocate(f->fd, (below(2) ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) |
			      FALLOC_FL_KEEP_SIZE, offset, length))
			fail("punching a shared file");
		break;
	case 10:
		did("shared sync", number, 0, 0);
		if (fsync(f->fd))
			fail("fsync of a shared file");
		break;
	case 11 ... 12:
		/* To and from the disk's part for this file, at the same offset. */
		if (disk < 0)
			break;
		offset = offset % DISK_PART & ~(PAGE - 1);
		length = (1 + below(16)) * PAGE;
		if (length > DISK_PART - offset)
			length = DISK_PART - offset;
		did("shared to or from disk", number, offset, length);
		if (below(2))
			done = pwrite(disk, m + offset, length, part + offset);
		else
			done = pread(disk, m + offset, length, part + offset);
		if (done < 0 && errno != EFAULT)
			fail("direct I/O of a shared file");
		break;
	case 13:
		clone.src_fd = f->fd;
		clone.src_offset = clone.dest_offset = offset & ~(PAGE - 1);
		clone.src_length = (length + PAGE - 1) & ~(PAGE - 1);
		did("shared clone", number, clone.src_offset, clone.src_length);
		number = (number + 1 + below(SHARED - 1)) % SHARED;
		/* The source may have been cut, or end inside the range. */
		if (ioctl(shared[number].fd, FICLONERANGE, &clone) && errno != EINVAL)
			fail("FICLONERANGE between shared files");
		break;
	}
}
