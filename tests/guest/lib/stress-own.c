// SPDX-License-Identifier: GPL-2.0
/* stress-own: the file that this worker alone changes. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "stress.h"

static void must(const struct file *f, const uint8_t *got, size_t offset, size_t length,
		 const char *what)
{
	size_t i;

	if (memcmp(got, f->model + offset, length)) {
		for (i = 0; got[i] == f->model[offset + i]; i++)
			;
		i &= ~7ul;
		fail("%s: word %#016lx at %#lx of %s (size %#lx), not %#016lx", what,
		     *(uint64_t *)(got + i), offset + i, f->path, f->size,
		     *(uint64_t *)(f->model + offset + i));
	}
	progress[me].checks += length / 8;
}

void check_by_read(const struct file *f, size_t offset, size_t length, const char *what)
{
	ssize_t done = pread(f->fd, bounce, length, offset);

	if (done != (ssize_t)length)
		fail("%s: pread of %#lx at %#lx of %s gave %ld", what, length, offset, f->path,
		     done);
	must(f, bounce, offset, length, what);
}

void check_by_load(const struct file *f, const uint8_t *m, size_t offset, size_t length, const char *what)
{
	load((uint64_t *)bounce, (const uint64_t *)(m + offset), length);
	must(f, bounce, offset, length, what);
}

static void resize(struct file *f, size_t size)
{
	if (ftruncate(f->fd, size))
		fail("ftruncate to %#lx", size);
	if (size < f->size)
		memset(f->model + size, 0, f->size - size);
	f->size = size;
}

static bool change_layout(struct file *f, int mode, size_t offset, size_t length,
			  const char *what)
{
	did(what, offset, length, f->size);
	if (!fallocate(f->fd, mode, offset, length))
		return true;
	if (errno != EOPNOTSUPP && errno != EINVAL)
		fail("%s of %#lx at %#lx", what, length, offset);
	return false;
}

static void own_clone(void)
{
	size_t offset, length;

	did("clone", own.size, copy.size, 0);
	/* A file that ends inside a block can only be cloned to the end of another. */
	resize(&copy, 0);
	if (ioctl(copy.fd, FICLONE, own.fd))
		fail("FICLONE");
	memcpy(copy.model, own.model, MAX);
	copy.size = own.size;
	if (range(copy.size, PAGE, &offset, &length))
		check_by_read(&copy, offset, length, "clone");
}

void own_op(void)
{
	struct file *f = reflink && !below(4) ? &copy : &own;
	uint8_t *m = below(2) ? f->huge : f->small;
	size_t offset, length, to;
	int status;
	pid_t child;

	switch (below(reflink ? 23 : 21)) {
	case 0 ... 3:
		if (!range(f->size, 8, &offset, &length))
			break;
		did(m == f->huge ? "store huge" : "store small", offset, length, f->id);
		fill((uint64_t *)(f->model + offset), f->id, offset, length);
		store((uint64_t *)(m + offset), (uint64_t *)(f->model + offset), length);
		break;
	case 4 ... 5:
		range(MAX, 8, &offset, &length);
		did("pwrite", offset, length, f->id);
		fill((uint64_t *)(f->model + offset), f->id, offset, length);
		if (pwrite(f->fd, f->model + offset, length, offset) != (ssize_t)length)
			fail("pwrite of %#lx at %#lx", length, offset);
		if (offset + length > f->size)
			f->size = offset + length;
		break;
	case 6 ... 8:
		if (range(f->size, 8, &offset, &length))
			check_by_load(f, m, offset, length, m == f->huge ? "huge mapping" :
				      "small mapping");
		break;
	case 9:
		if (range(f->size, 8, &offset, &length))
			check_by_read(f, offset, length, "pread");
		break;
	case 10:
		to = below(MAX / 8) * 8;
		if (below(2))
			to &= ~(PAGE - 1);
		did("truncate", f->size, to, f->id);
		resize(f, to);
		break;
	case 11 ... 12:
		if (!range(f->size, below(2) ? PAGE : 8, &offset, &length))
			break;
		if (change_layout(f, (below(2) ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) |
				  FALLOC_FL_KEEP_SIZE, offset, length, "punch or zero"))
			memset(f->model + offset, 0, length);
		break;
	case 13:
		if (!range(f->size, PAGE, &offset, &length) || offset + length >= f->size)
			break;
		if (change_layout(f, FALLOC_FL_COLLAPSE_RANGE, offset, length, "collapse")) {
			memmove(f->model + offset, f->model + offset + length,
				f->size - offset - length);
			memset(f->model + f->size - length, 0, length);
			f->size -= length;
		}
		break;
	case 14:
		if (!range(f->size, PAGE, &offset, &length) || f->size + length > MAX)
			break;
		if (change_layout(f, FALLOC_FL_INSERT_RANGE, offset, length, "insert")) {
			memmove(f->model + offset + length, f->model + offset, f->size - offset);
			memset(f->model + offset, 0, length);
			f->size += length;
		}
		break;
	case 15:
		range(MAX, PAGE, &offset, &length);
		if (change_layout(f, 0, offset, length, "allocate") && offset + length > f->size)
			f->size = offset + length;
		break;
	case 16:
		did("sync", 0, 0, f->id);
		if (range(f->size, PAGE, &offset, &length) && below(2)) {
			if (msync(m + offset, length, MS_SYNC))
				fail("msync");
		} else if (fsync(f->fd)) {
			fail("fsync");
		}
		break;
	case 17:
		/* Pages of a mapping straight to the disk and back to another place. */
		if (disk < 0 || !range(f->size, PAGE, &offset, &length))
			break;
		if (length > 32 * PAGE)
			length = 32 * PAGE;
		to = below((f->size - length) / PAGE + 1) * PAGE;
		did("to disk and back", offset, length, to);
		if (pwrite(disk, m + offset, length, me * DISK_PART) != (ssize_t)length)
			fail("direct write");
		if (pread(disk, m + to, length, me * DISK_PART) != (ssize_t)length)
			fail("direct read");
		memmove(f->model + to, f->model + offset, length);
		break;
	case 18:
		if (!range(f->size, PAGE, &offset, &length))
			break;
		did("fork", offset, length, f->id);
		fflush(stdout);
		child = fork();
		if (child < 0)
			fail("fork");
		if (!child) {
			check_by_load(f, f->huge, offset, length, "child, huge mapping");
			check_by_load(f, f->small, offset, length, "child, small mapping");
			_exit(0);
		}
		/* Meanwhile fault the same pages here. */
		check_by_load(f, m, offset, length, "parent beside a child");
		if (waitpid(child, &status, 0) != child || status)
			fail("child ended with %#x", status);
		break;
	case 19:
		if (!range(f->size, PAGE, &offset, &length))
			break;
		did("private", offset, length, f->id);
		m = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, f->fd, offset);
		if (m == MAP_FAILED)
			fail("private mmap");
		memset(m + below(length / PAGE) * PAGE, 0xee, 64);
		munmap(m, length);
		check_by_read(f, offset, length, "file under a private mapping");
		break;
	case 20:
		did("remap", 0, 0, f->id);
		if (below(2))
			remap(f, m);
		else
			madvise(m, MAX, MADV_DONTNEED);
		break;
	case 21:
		own_clone();
		break;
	case 22:
		if (range(f->size, PAGE, &offset, &length))
			change_layout(f, FALLOC_FL_UNSHARE_RANGE, offset, length, "unshare");
		break;
	}
}
