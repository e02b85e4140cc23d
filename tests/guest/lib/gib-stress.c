// SPDX-License-Identifier: GPL-2.0
/*
 * Several processes use two files of 1 GiB through mappings of every order at once, and each word
 * says where it belongs (see gib.c).
 *
 * "steady" keeps its blocks. Some of its pages are a worker's own, which alone changes them and
 * knows what they must hold; the others never change. "wild" is cut, punched, cloned and made anew
 * by everybody, and nobody knows what it holds; but each word is zero or was made for this very
 * place of it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "worker.h"

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define PMD (2ul << 20)
#define GIB (1ul << 30)
#define PAGES (GIB / PAGE)
#define SPOTS 192		/* pages of "steady" that somebody owns */
#define WORKERS 8
#define MOST 1024ul		/* pages that are worked on at once */
#define DISK_PART (64 * PAGE)
#define LEAST 100		/* operations of each process, however long they take */
#define WILD 0x80		/* tags from here on are the wild file's */

static struct shared {
	uint8_t tag[SPOTS];	/* what each owned page of "steady" holds; 0: zeroes */
	volatile int renewing;
	volatile uint64_t renewed;
	volatile uint64_t ops[WORKERS];
} *shared;

struct file {
	int fd;
	uint8_t *map[3];	/* at addresses that agree with 1 GiB, 2 MiB and a page */
};

static struct file steady, wild, copy;
static int disk = -1;
static uint64_t *bounce;

static uint64_t word_of(unsigned int tag, uint64_t page, size_t at)
{
	return (uint64_t)tag << 56 | page << 16 | at;
}

/* Stored and loaded word by word, so that nobody sees half of one. */
static void store(volatile uint64_t *to, const uint64_t *from, size_t words)
{
	for (size_t i = 0; i < words; i++)
		to[i] = from[i];
}

static void load(uint64_t *to, const volatile uint64_t *from, size_t words)
{
	for (size_t i = 0; i < words; i++)
		to[i] = from[i];
}

static void fill(unsigned int tag, uint64_t page, size_t pages)
{
	for (size_t i = 0; i < pages * WORDS; i++)
		bounce[i] = tag ? word_of(tag, page + i / WORDS, i % WORDS) : 0;
}

static void must(unsigned int tag, uint64_t page, const char *what)
{
	for (size_t i = 0; i < WORDS; i++)
		if (bounce[i] != (tag ? word_of(tag, page, i) : 0))
			fail("%s: %#018lx at page %lu + %#lx of steady, which should be of %u",
			     what, bounce[i], page, i * 8, tag);
}

/* Words that may stand at this place of the file. */
static void may(bool is_wild, uint64_t page, size_t words, const char *what)
{
	for (size_t i = 0; i < words; i++) {
		uint64_t word = bounce[i], place = word_of(0, page + i / WORDS, i % WORDS);

		if (word && ((word << 8) >> 8 != place || (word >> 56 >= WILD) != is_wild))
			fail("%s: %#018lx at page %lu + %#lx of %s", what, word, page + i / WORDS,
			     i % WORDS * 8, is_wild ? "wild" : "steady");
	}
}

static void open_file(struct file *f, const char *name)
{
	static const size_t skews[3] = { 0, PMD, PAGE };
	char path[300];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f->fd = open(path, O_RDWR | O_CREAT, 0600);
	if (f->fd < 0)
		fail("open %s", path);
	for (int i = 0; i < 3; i++) {
		uint8_t *room = mmap(NULL, 3 * GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
				     MAP_NORESERVE, -1, 0);
		uint8_t *at = (uint8_t *)(((uintptr_t)room + GIB - 1) & ~(GIB - 1)) + skews[i];

		if (room == MAP_FAILED || mmap(at, GIB, PROT_READ | PROT_WRITE, MAP_SHARED |
					       MAP_FIXED, f->fd, 0) == MAP_FAILED)
			fail("mmap of %s", path);
		f->map[i] = at;
	}
}

/* The pages that somebody owns: in clusters at the edges of 2 MiB, spread over the GiB. */
static uint64_t page_of(unsigned int spot)
{
	uint64_t edge = (spot / 3) * (PAGES / (SPOTS / 3)) & ~511ul;

	return spot % 3 == 2 ? edge + 13 + spot : edge + 511 + spot % 3;
}

static bool is_owned(uint64_t page)
{
	for (unsigned int i = 0; i < SPOTS; i++)
		if (page_of(i) == page)
			return true;
	return false;
}

static uint8_t *a_map(const struct file *f)
{
	static const int chosen[8] = { 0, 0, 0, 0, 0, 1, 1, 2 };

	return f->map[chosen[below(8)]];
}

static void look_at(const char *name)
{
	char path[64], text[4096];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/%s", name);
	fd = open(path, O_RDONLY);
	while (fd >= 0 && read(fd, text, sizeof(text)) > 0)
		;
	close(fd);
}

/* What leaves the content as it is, and may be done to either file. */
static void disturb(struct file *f, bool is_wild)
{
	uint64_t page = below(PAGES - MOST);
	size_t pages = 1 + below(MOST);
	uint8_t *m = a_map(f);
	int status;
	pid_t child;

	switch (below(8)) {
	case 0:
		did("sync", is_wild, 0, 0);
		if (fsync(f->fd))
			fail("fsync");
		break;
	case 1:
		did("msync", page, pages, 0);
		/* What is behind the end of the file is nothing to write. */
		if (msync(m + page * PAGE, pages * PAGE, MS_SYNC))
			fail("msync");
		break;
	case 2 ... 3:
		did("drop", page, pages, 0);
		if (madvise(m + page * PAGE, pages * PAGE, MADV_DONTNEED))
			fail("MADV_DONTNEED");
		break;
	case 4:
		did("look", 0, 0, 0);
		look_at("smaps");
		break;
	case 5:
		did("protect", page, pages, 0);
		if (mprotect(m + page * PAGE, pages * PAGE, PROT_READ) ||
		    mprotect(m + page * PAGE, pages * PAGE, PROT_READ | PROT_WRITE))
			fail("mprotect");
		break;
	case 6:
		did("map anew", is_wild, 0, 0);
		if (mmap(m, GIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, f->fd, 0) ==
		    MAP_FAILED)
			fail("mmap again");
		break;
	case 7:
		did("fork", is_wild, page, 0);
		child = fork();
		if (!child) {
			if (MAY_FAULT(load(bounce, (uint64_t *)(m + page * PAGE), WORDS)))
				may(is_wild, page, WORDS, "a child");
			_exit(0);
		}
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			fail("child: status %#x", status);
		break;
	}
}

static void steady_op(void)
{
	unsigned int spot = below(SPOTS / workers) * workers + me, tag = 1 + below(WILD - 2);
	uint64_t page = page_of(spot), other = below(PAGES);
	uint8_t *m = a_map(&steady);

	switch (below(12)) {
	case 0 ... 2:
		did("store", page, tag, 0);
		fill(tag, page, 1);
		store((uint64_t *)(m + page * PAGE), bounce, WORDS);
		shared->tag[spot] = tag;
		break;
	case 3 ... 4:
		did("load", page, 0, 0);
		load(bounce, (uint64_t *)(m + page * PAGE), WORDS);
		must(shared->tag[spot], page, "mapping");
		break;
	case 5:
		did("write", page, tag, 0);
		fill(tag, page, 1);
		if (pwrite(steady.fd, bounce, PAGE, page * PAGE) != PAGE)
			fail("pwrite");
		shared->tag[spot] = tag;
		break;
	case 6:
		did("read", page, 0, 0);
		if (pread(steady.fd, bounce, PAGE, page * PAGE) != PAGE)
			fail("pread");
		must(shared->tag[spot], page, "pread");
		break;
	case 7:
		/* Straight to the disk and back. */
		did("to disk and back", page, 0, 0);
		if (disk < 0)
			break;
		if (pwrite(disk, m + page * PAGE, PAGE, me * DISK_PART) != PAGE)
			fail("direct write");
		m = a_map(&steady);
		if (pread(disk, m + page * PAGE, PAGE, me * DISK_PART) != PAGE)
			fail("direct read");
		load(bounce, (uint64_t *)(m + page * PAGE), WORDS);
		must(shared->tag[spot], page, "read back from the disk");
		break;
	case 8:
		if (below(16))
			break;
		/*
		 * Have the filesystem drop the entries, small ones among them, which it does when
		 * the size changes.
		 */
		did("forget", 0, 0, 0);
		if (ftruncate(steady.fd, GIB + PAGE) || ftruncate(steady.fd, GIB))
			fail("ftruncate of steady");
		/*
		 * ext4 keeps the blocks, which are not written until somebody writes them; XFS
		 * takes others, and there would be no entry of 1 GiB any more.
		 */
		if (reflink)
			break;
		did("zero", page, 0, 0);
		if (fallocate(steady.fd, FALLOC_FL_ZERO_RANGE, page * PAGE, PAGE))
			fail("FALLOC_FL_ZERO_RANGE");
		shared->tag[spot] = 0;
		load(bounce, (uint64_t *)(m + page * PAGE), WORDS);
		must(0, page, "zeroed page");
		fill(tag, page, 1);
		if (pwrite(steady.fd, bounce, PAGE, page * PAGE) != PAGE)
			fail("pwrite");
		shared->tag[spot] = tag;
		break;
	case 9 ... 10:
		did("load other", other, 0, 0);
		load(bounce, (uint64_t *)(m + other * PAGE), WORDS);
		if (is_owned(other))
			may(false, other, WORDS, "mapping of another's page");
		else
			must(1, other, "mapping of a page that never changes");
		break;
	case 11:
		disturb(&steady, false);
		break;
	}
}

/* Give the wild file 1 GiB in one piece again, sometimes unwritten. */
static void renew(void)
{
	if (now_ms() < shared->renewed + 4000 ||
	    __atomic_exchange_n(&shared->renewing, 1, __ATOMIC_ACQUIRE))
		return;
	did("renew", 0, 0, 0);
	if (ftruncate(copy.fd, 0) || ftruncate(wild.fd, 0))
		fail("ftruncate to 0");
	syncfs(wild.fd);
	if (fallocate(wild.fd, 0, 0, GIB) && errno != ENOSPC)
		fail("fallocate");
	if (below(3)) {
		unsigned int tag = WILD + below(WILD);

		for (uint64_t page = 0; page < PAGES; page += MOST) {
			fill(tag, page, MOST);
			if (pwrite(wild.fd, bounce, MOST * PAGE, page * PAGE) !=
			    (ssize_t)(MOST * PAGE) && errno != ENOSPC)
				fail("pwrite of a new wild file");
		}
	}
	if (below(2)) {
		/* Before anybody's smaller accesses, if it comes in time. */
		fill(WILD + below(WILD), 0, 1);
		MAY_FAULT(store((uint64_t *)wild.map[0], bounce, WORDS));
	}
	shared->renewed = now_ms();
	__atomic_store_n(&shared->renewing, 0, __ATOMIC_RELEASE);
}

static void wild_op(void)
{
	struct file *f = reflink && !below(8) ? &copy : &wild;
	uint64_t page = below(PAGES);
	size_t pages = 1 + (below(16) ? below(16) : below(MOST));
	unsigned int tag = WILD + below(WILD);
	uint8_t *m = a_map(f);
	struct file_clone_range clone;
	ssize_t done;

	if (pages > PAGES - page)
		pages = PAGES - page;
	switch (below(16)) {
	case 0 ... 3:
		did("wild store", page, pages, 0);
		fill(tag, page, pages);
		MAY_FAULT(store((uint64_t *)(m + page * PAGE), bounce, pages * WORDS));
		break;
	case 4 ... 6:
		did("wild load", page, pages, 0);
		if (MAY_FAULT(load(bounce, (uint64_t *)(m + page * PAGE), pages * WORDS)))
			may(true, page, pages * WORDS, "mapping");
		break;
	case 7:
		did("wild write", page, pages, 0);
		fill(tag, page, pages);
		if (pwrite(f->fd, bounce, pages * PAGE, page * PAGE) < 0 && errno != ENOSPC)
			fail("pwrite");
		break;
	case 8:
		did("wild read", page, pages, 0);
		done = pread(f->fd, bounce, pages * PAGE, page * PAGE);
		if (done < 0)
			fail("pread");
		may(true, page, done / 8, "pread");
		break;
	case 9:
		if (below(8))
			break;
		did("wild truncate", page, 0, 0);
		if (ftruncate(f->fd, below(3) ? page * PAGE : page * PAGE + 8 * below(WORDS)) ||
		    (below(2) && ftruncate(f->fd, GIB)))
			fail("ftruncate");
		break;
	case 10:
		if (below(4))
			break;
		did("wild punch or zero", page, pages, 0);
		if (fallocate(f->fd, (below(2) ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) |
			      FALLOC_FL_KEEP_SIZE, page * PAGE, pages * PAGE) && errno != ENOSPC)
			fail("fallocate");
		break;
	case 11 ... 12:
		/* To the disk, and back to the same place. */
		if (disk < 0)
			break;
		if (pages > DISK_PART / PAGE)
			pages = DISK_PART / PAGE;
		did("wild to disk and back", page, pages, 0);
		done = pwrite(disk, m + page * PAGE, pages * PAGE, me * DISK_PART);
		if (done > 0)
			done = pread(disk, a_map(f) + page * PAGE, done & -PAGE, me * DISK_PART);
		if (done < 0 && errno != EFAULT)
			fail("direct I/O");
		break;
	case 13:
		if (!reflink || below(4))
			break;
		clone.src_fd = wild.fd;
		clone.src_offset = clone.dest_offset = page * PAGE;
		clone.src_length = pages * PAGE;
		did("wild clone", page, pages, 0);
		if (ioctl(copy.fd, FICLONERANGE, &clone) && errno != EINVAL && errno != ENOSPC)
			fail("FICLONERANGE");
		break;
	case 14:
		disturb(f, true);
		break;
	case 15:
		renew();
		break;
	}
}

static void worker(int number, uint64_t end)
{
	become_worker(number);
	bounce = aligned_alloc(PAGE, MOST * PAGE);
	open_file(&steady, "steady");
	open_file(&wild, "wild");
	open_file(&copy, "copy");
	load(bounce, (uint64_t *)steady.map[0], WORDS);
	if (disk_path) {
		disk = open(disk_path, O_RDWR | O_DIRECT);
		if (disk < 0)
			fail("open %s", disk_path);
	}
	while (go_on(end, shared->ops[me], LEAST)) {
		if (below(2))
			steady_op();
		else
			wild_op();
		shared->ops[me]++;
	}
	_exit(0);
}

/* All of "steady" is what it must be; the wild files hold nothing that is not theirs. */
static void check_all(void)
{
	bounce = aligned_alloc(PAGE, MOST * PAGE);
	open_file(&steady, "steady");
	for (unsigned int i = 0; i < SPOTS; i++) {
		if (pread(steady.fd, bounce, PAGE, page_of(i) * PAGE) != PAGE)
			fail("pread of steady");
		must(shared->tag[i], page_of(i), "at the end, pread");
		load(bounce, (uint64_t *)(steady.map[0] + page_of(i) * PAGE), WORDS);
		must(shared->tag[i], page_of(i), "at the end, mapping");
	}
	for (uint64_t page = 0; page < PAGES; page += 61) {
		load(bounce, (uint64_t *)(steady.map[0] + page * PAGE), WORDS);
		if (!is_owned(page))
			must(1, page, "at the end");
	}
	for (int i = 0; i < 1 + reflink; i++) {
		open_file(&wild, i ? "copy" : "wild");
		for (uint64_t page = 0; page < PAGES; page += 8 * MOST) {
			ssize_t done = pread(wild.fd, bounce, MOST * PAGE, page * PAGE);

			if (done < 0)
				fail("pread of wild");
			may(true, page, done / 8, "wild file at the end");
		}
	}
}

static void keep_model(bool read_it)
{
	char path[300];
	int fd;

	snprintf(path, sizeof(path), "%s/model", dir);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || (read_it ? read(fd, shared->tag, SPOTS) :
		       write(fd, shared->tag, SPOTS)) != SPOTS)
		fail("%s", path);
	close(fd);
}

int main(int argc, char **argv)
{
	int option, status, failed = 0;
	bool verify = false;
	uint64_t end, ops = 0;
	pid_t pids[WORKERS];

	seconds = 30;
	while ((option = getopt(argc, argv, "d:t:s:w:D:ruv")) > 0) {
		if (option == 'v')
			verify = true;
		else if (!take_option(option))
			return 2;
	}
	if (!dir || workers < 1 || workers > WORKERS || SPOTS % workers) {
		fprintf(stderr, "usage: gib-stress -d DIRECTORY [-t SECONDS] [-s SEED] [-w WORKERS] "
				"[-D DISK] [-ruv]\n");
		return 2;
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	me = -1;
	if (verify) {
		keep_model(true);
		check_all();
		return 0;
	}
	memset(shared->tag, 1, SPOTS);
	shared->renewed = now_ms();
	end = now_ms() + seconds * 1000ull;
	for (int i = 0; i < workers; i++) {
		pids[i] = fork();
		if (!pids[i])
			worker(i, end);
	}
	for (int left = workers; left; left--) {
		wait(&status);
		if (status && !failed) {
			printf("a worker ended with status %#x\n", status);
			failed = 1;
			for (int i = 0; i < workers; i++)
				kill(pids[i], SIGKILL);
		}
	}
	for (int i = 0; i < workers; i++)
		ops += shared->ops[i];
	if (!failed) {
		check_all();
		keep_model(false);
	}
	printf("%lu operations, seed %lu\n", ops, seed);
	return failed;
}
