// SPDX-License-Identifier: GPL-2.0
/*
 * Several processes use the same files in every way at once, and each word of the files says
 * where it belongs.
 *
 * Own files: one process alone changes the file and knows what it must hold, byte by byte; the
 * others read it, and use its pages for direct I/O to a disk. Shared files: all change them, and
 * nobody knows what they hold; but each word must be zero or one that was made for a shared file
 * at this very offset. Blocks that are reused too early, zero pages left behind, pages that are
 * mapped at the wrong place, stores that are lost: each leaves a word that is not allowed.
 *
 * A word: 16 bits of check, 16 of generation, 24 of offset (in words), 8 of file. Words are
 * stored and copied whole, so that a reader never sees half of one.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "worker.h"

#define PAGE 4096ul
#define PMD (2ul << 20)
#define MAX (4 * PMD)		/* largest size of a file */
#define SHARED 3
#define WORKERS 16
#define SHARED_ID 0x40		/* file ids below are a worker's own */
#define DISK_PART (2 * PMD)	/* the disk: one part for each worker, then for each shared file */
#define LEAST 200		/* operations of each process, however long they take */

static uint16_t generation;
static uint64_t limit = 40000;	/* ms after which an operation is taken for hanging */

struct progress {
	volatile uint64_t ops, checks, busy, since;
	volatile int op;
};
static struct progress *progress;	/* shared by all */

struct file {
	char path[256];
	int fd, id;
	uint8_t *huge, *small;	/* mappings at an aligned address and a page beside one */
	uint8_t *model;		/* what it must hold; own files only */
	size_t size;
};

static struct file own, copy, shared[SHARED];
static int disk = -1;
static uint8_t *bounce;

static uint16_t check_of(uint64_t word)
{
	word = (word & 0xffffffffffffull) * 0x9e3779b97f4a7c15ull;
	return (word >> 48) ^ 0x5aa5;
}

static uint64_t make_word(int id, size_t offset)
{
	uint64_t word = (uint64_t)generation << 32 | (uint64_t)(offset / 8) << 8 | id;

	return word | (uint64_t)check_of(word) << 48;
}

/* Whether a word may stand in the file with this id (a worker's own, or any shared one). */
static bool allowed(uint64_t word, int id, size_t offset)
{
	if (!word)
		return true;
	if (word >> 48 != check_of(word))
		return false;
	if (id >= SHARED_ID)
		return (word & 0xff) >= SHARED_ID && (word >> 8 & 0xffffff) == offset / 8;
	return (int)(word & 0xff) == id;
}

static void fill(uint64_t *to, int id, size_t offset, size_t length)
{
	generation++;
	for (size_t i = 0; i < length / 8; i++)
		to[i] = make_word(id, offset + i * 8);
}

static void store(volatile uint64_t *to, const uint64_t *from, size_t length)
{
	for (size_t i = 0; i < length / 8; i++)
		to[i] = from[i];
}

static void load(uint64_t *to, const volatile uint64_t *from, size_t length)
{
	for (size_t i = 0; i < length / 8; i++)
		to[i] = from[i];
}

static void check_words(const uint64_t *words, int id, size_t offset, size_t length,
			const char *what)
{
	for (size_t i = 0; i < length / 8; i++)
		if (!allowed(words[i], id, offset + i * 8))
			fail("%s: word %#016lx at %#lx of file %#x", what, words[i],
			     offset + i * 8, id);
	progress[me].checks += length / 8;
}

static uint8_t *map_at(int fd, size_t length, size_t skew, int flags)
{
	uint8_t *room = mmap(NULL, length + 2 * PMD, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *at;

	if (room == MAP_FAILED)
		fail("no address space");
	at = (uint8_t *)(((uintptr_t)room + PMD - 1) & ~(PMD - 1)) + skew;
	/* What is left of the room stays reserved for good. */
	if (mmap(at, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == MAP_FAILED)
		fail("mmap");
	return at;
}

static void remap(struct file *f, uint8_t *at)
{
	if (mmap(at, MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, f->fd, 0) == MAP_FAILED)
		fail("mmap again");
}

static void open_file(struct file *f, int id, const char *format, int number)
{
	snprintf(f->path, sizeof(f->path), "%s/", dir);
	snprintf(f->path + strlen(f->path), sizeof(f->path) - strlen(f->path), format, number);
	f->fd = open(f->path, O_RDWR | O_CREAT, 0600);
	if (f->fd < 0)
		fail("open %s", f->path);
	f->id = id;
	f->huge = map_at(f->fd, MAX, 0, MAP_SHARED);
	f->small = map_at(f->fd, MAX, PAGE, MAP_SHARED);
}

/* A range inside [0, size), aligned to the step, often small, sometimes 2 MiB at once. */
static bool range(size_t size, size_t step, size_t *offset, size_t *length)
{
	static const size_t most[] = {
		8, 64, 512, PAGE, PAGE, 4 * PAGE, 4 * PAGE, 16 * PAGE, 16 * PAGE, 64 * PAGE,
	};

	size &= ~(step - 1);
	if (!size)
		return false;
	*offset = below(size / step) * step;
	*length = (1 + below((below(64) ? most[below(10)] : PMD) / step)) * step;
	if (*length > size - *offset)
		*length = size - *offset;
	return true;
}

/* ---- the file that this worker alone changes ---- */

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

static void check_by_read(const struct file *f, size_t offset, size_t length, const char *what)
{
	ssize_t done = pread(f->fd, bounce, length, offset);

	if (done != (ssize_t)length)
		fail("%s: pread of %#lx at %#lx of %s gave %ld", what, length, offset, f->path,
		     done);
	must(f, bounce, offset, length, what);
}

static void check_by_load(const struct file *f, const uint8_t *m, size_t offset, size_t length,
			  const char *what)
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

static void own_op(void)
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

/* ---- files of others, and of all ---- */

static void read_other(void)
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

static void shared_op(void)
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

static void work(uint64_t end)
{
	while (now_ms() < end || progress[me].ops < LEAST) {
		uint64_t kind = below(10);

		progress[me].busy = now_ms();
		progress[me].op = kind;
		if (kind < 5)
			own_op();
		else if (kind < 6)
			read_other();
		else
			shared_op();
		progress[me].ops++;
	}
	progress[me].busy = 0;
	check_by_load(&own, own.huge, 0, own.size, "at the end, huge mapping");
	check_by_load(&own, own.small, 0, own.size, "at the end, small mapping");
	check_by_read(&own, 0, own.size, "at the end");
	if (reflink)
		check_by_read(&copy, 0, copy.size, "copy at the end");
}

static uint32_t crc(const uint8_t *data, size_t length)
{
	uint32_t value = ~0u;

	while (length--) {
		value ^= *data++;
		for (int i = 0; i < 8; i++)
			value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
	}
	return ~value;
}

static void worker(int number, uint64_t end)
{
	become_worker(number);
	bounce = aligned_alloc(PAGE, MAX);
	open_file(&own, me, "own%d", me);
	own.model = calloc(1, MAX);
	if (reflink) {
		open_file(&copy, me, "copy%d", me);
		copy.model = calloc(1, MAX);
	}
	for (int i = 0; i < SHARED; i++)
		open_file(&shared[i], SHARED_ID + i, "shared%d", i);
	if (disk_path) {
		disk = open(disk_path, O_RDWR | O_DIRECT);
		if (disk < 0)
			fail("open %s", disk_path);
	}
	work(end);
	printf("file %s %zu %08x\n", own.path, own.size, crc(own.model, own.size));
	if (reflink)
		printf("file %s %zu %08x\n", copy.path, copy.size, crc(copy.model, copy.size));
	fflush(stdout);
	_exit(0);
}

static void show_stack(int pid)
{
	char path[64], line[200];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stack", pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		printf("    %s", line);
	if (f)
		fclose(f);
}

/* The shared files are still in order, and so are their parts of the disk. */
static void check_shared(void)
{
	bounce = aligned_alloc(PAGE, MAX);
	for (int i = 0; i < SHARED; i++) {
		struct file *f = &shared[i];
		ssize_t done;

		open_file(f, SHARED_ID + i, "shared%d", i);
		done = pread(f->fd, bounce, MAX, 0);
		if (done < 0)
			fail("pread of %s", f->path);
		check_words((uint64_t *)bounce, f->id, 0, done & ~7l, "shared file at the end");
		if (!disk_path)
			continue;
		disk = open(disk_path, O_RDONLY | O_DIRECT);
		if (disk < 0 || pread(disk, bounce, DISK_PART, (workers + i) * DISK_PART) !=
				DISK_PART)
			fail("reading the disk");
		check_words((uint64_t *)bounce, f->id, 0, DISK_PART, "disk at the end");
		close(disk);
	}
}

/* The disk starts with words of the shared files, which direct reads bring into these. */
static void prepare_disk(void)
{
	int fd = open(disk_path, O_RDWR | O_DIRECT);

	bounce = aligned_alloc(PAGE, MAX);
	for (int i = 0; i < SHARED; i++) {
		fill((uint64_t *)bounce, SHARED_ID + i, 0, DISK_PART);
		if (pwrite(fd, bounce, DISK_PART, (workers + i) * DISK_PART) != DISK_PART)
			fail("writing the disk");
	}
	close(fd);
}

int main(int argc, char **argv)
{
	pid_t pids[WORKERS];
	uint64_t end, ops = 0, checks = 0;
	int option, failed = 0, left;

	seconds = 60;
	while ((option = getopt(argc, argv, "d:t:l:s:w:D:r")) > 0) {
		if (option == 'l')
			limit = strtoull(optarg, NULL, 0);
		else if (!take_option(option))
			return 2;
	}
	if (!dir || workers < 1 || workers > WORKERS) {
		fputs("usage: stress -d DIR [-t SECONDS] [-l LIMIT] [-s SEED] [-w WORKERS] [-D DISK] [-r]\n",
		      stderr);
		return 2;
	}
	progress = mmap(NULL, sizeof(*progress) * WORKERS, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (disk_path)
		prepare_disk();
	end = now_ms() + seconds * 1000ull;
	for (int i = 0; i < workers; i++) {
		pids[i] = fork();
		if (!pids[i])
			worker(i, end);
	}
	for (left = workers; left;) {
		int status;
		pid_t pid = waitpid(-1, &status, WNOHANG);

		if (pid > 0) {
			for (int i = 0; i < workers; i++)
				if (pids[i] == pid)
					pids[i] = 0;
			left--;
			if (status && !failed) {
				printf("a worker ended with status %#x\n", status);
				failed = 1;
			}
		} else {
			usleep(20000);
		}
		for (int i = 0; i < workers; i++) {
			uint64_t busy = progress[i].busy;

			if (pids[i] && busy && !failed && now_ms() > busy + limit) {
				printf("worker %d hangs (kind %d):\n", i, progress[i].op);
				for (int j = 0; j < workers; j++)
					if (pids[j])
						show_stack(pids[j]);
				failed = 1;
			}
			if (failed && pids[i])
				kill(pids[i], SIGKILL);
		}
		fflush(stdout);
		if (failed && now_ms() > end + limit)
			break;
	}
	for (int i = 0; i < workers; i++) {
		ops += progress[i].ops;
		checks += progress[i].checks;
	}
	if (!failed)
		check_shared();
	printf("%lu operations, %lu words checked, seed %lu\n", ops, checks, seed);
	return failed;
}
