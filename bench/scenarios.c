// SPDX-License-Identifier: GPL-2.0
/* scenarios: what is done in turn, and the rows that this makes. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

/*
 * The life of a file that is written through a mapping. The rows are: first write, write again
 * through a new mapping (entries dirty), fsync, write after that (mapped, write-protected), write
 * through a new mapping of clean entries, truncate of unmapped dirty entries.
 */
static void write_life(const char *const rows[6], struct file file)
{
	settle(&file);
	timed_touch(rows[0], &file, WRITE);
	remap(&file);
	timed_touch(rows[1], &file, WRITE);
	timed_fsync(rows[2], &file);
	settle(&file);
	timed_touch(rows[3], &file, WRITE);
	settle(&file);
	remap(&file);
	timed_touch(rows[4], &file, WRITE);
	timed_truncate(rows[5], &file);
	discard(&file);
}

/* Truncate of unmapped entries that are clean: written through a mapping, then synced. */
static void clean_truncate(const char *row, struct file file)
{
	touch(&file, WRITE);
	settle(&file);
	timed_truncate(row, &file);
	discard(&file);
}

/* First read, read again through a new mapping, unmapping. */
static void read_life(const char *const rows[3], struct file file)
{
	settle(&file);
	timed_touch(rows[0], &file, READ);
	remap(&file);
	timed_touch(rows[1], &file, READ);
	timed_unmap(rows[2], &file);
	discard(&file);
}

static void only_touch(const char *row, struct file file, enum access access)
{
	settle(&file);
	timed_touch(row, &file, access);
	discard(&file);
}

static void pte_write(void)
{
	write_life((const char *const[]){ "pte-write-first", "pte-write-there", "pte-fsync",
		   "pte-write-protect", "pte-write-clean", "pte-truncate-dirty" },
		   make(opt.size, PAGE, SEQUENTIAL, FILLED));
}

static void pte_write_random(void)
{
	write_life((const char *const[]){ "pte-write-first-random", "pte-write-there-random",
		   "pte-fsync-random", "pte-write-protect-random", "pte-write-clean-random",
		   "pte-truncate-dirty-random" },
		   make(opt.size, PAGE, RANDOM, FILLED));
}

static void pte_truncate(void)
{
	clean_truncate("pte-truncate-clean", make(opt.size, PAGE, SEQUENTIAL, FILLED));
}

static void pte_read(void)
{
	read_life((const char *const[]){ "pte-read-first", "pte-read-there", "pte-munmap" },
		  make(opt.size, PAGE, SEQUENTIAL, FILLED));
}

static void pte_read_random(void)
{
	read_life((const char *const[]){ "pte-read-first-random", "pte-read-there-random",
		  "pte-munmap-random" },
		  make(opt.size, PAGE, RANDOM, FILLED));
}

/* Random order, and told so: nobody has a reason to map neighbours. */
static void pte_read_advised(void)
{
	struct file file = make(opt.size, PAGE, RANDOM, FILLED);

	settle(&file);
	if (madvise(file.at, file.size, MADV_RANDOM))
		err(1, "madvise");
	timed_touch("pte-read-first-advised", &file, READ);
	discard(&file);
}

/* Few pages of many: what is dirty or mapped beyond what was touched is paid for here. */
static void pte_sparse(void)
{
	struct file file = make(opt.size, PAGE, SPARSE, FILLED);

	settle(&file);
	timed_touch("pte-write-sparse", &file, WRITE);
	timed_fsync("pte-fsync-sparse", &file);
	discard(&file);
}

static void pte_bursts(void)
{
	struct file file = make(opt.size, PAGE, BURSTS, FILLED);

	settle(&file);
	timed_touch("pte-write-bursts", &file, WRITE);
	timed_fsync("pte-fsync-bursts", &file);
	discard(&file);
}

static void pte_hole(void)
{
	only_touch("pte-hole-read", make(opt.size, PAGE, SEQUENTIAL, HOLE), READ);
}

static void pmd_write(void)
{
	write_life((const char *const[]){ "pmd-write-first", "pmd-write-there", "pmd-fsync",
		   "pmd-write-protect", "pmd-write-clean", "pmd-truncate-dirty" },
		   make(opt.pmd, PMD, SEQUENTIAL, FILLED));
}

static void pmd_truncate(void)
{
	clean_truncate("pmd-truncate-clean", make(opt.pmd, PMD, SEQUENTIAL, FILLED));
}

static void pmd_read(void)
{
	read_life((const char *const[]){ "pmd-read-first", "pmd-read-there", "pmd-munmap" },
		  make(opt.pmd, PMD, SEQUENTIAL, FILLED));
}

static void pmd_hole(void)
{
	only_touch("pmd-hole-read", make(opt.pmd, PMD, SEQUENTIAL, HOLE), READ);
}

/* The only writes for which the filesystem has to convert blocks, or to find them first. */
static void blocks(void)
{
	only_touch("pte-write-unwritten", make(opt.size, PAGE, SEQUENTIAL, UNWRITTEN), WRITE);
	only_touch("pte-write-hole", make(opt.size, PAGE, SEQUENTIAL, HOLE), WRITE);
	only_touch("pmd-write-unwritten", make(opt.pmd, PMD, SEQUENTIAL, UNWRITTEN), WRITE);
}

static void timed_calls(const char *name, const struct file *file, enum access access)
{
	static char data[PAGE] __attribute__((aligned(PAGE)));
	size_t i;

	memset(data, 0xa5, sizeof(data));
	settle(file);
	start();
	for (i = 0; i < file->touches; i++) {
		off_t at = file->steps[i] * PAGE;
		ssize_t n = access == WRITE ? pwrite(file->fd, data, PAGE, at) :
					      pread(file->fd, data, PAGE, at);

		if (n != (ssize_t)PAGE)
			err(1, "%s at %lld", name, (long long)at);
	}
	done(name, file->operations);
}

static void calls(void)
{
	struct file file = make(opt.size, PAGE, SEQUENTIAL, FILLED);

	timed_calls("pread-4k", &file, READ);
	timed_calls("pwrite-4k", &file, WRITE);
	shuffle(file.steps, file.touches);
	timed_calls("pread-4k-random", &file, READ);
	timed_calls("pwrite-4k-random", &file, WRITE);
	discard(&file);
}

/* A file without DAX. Each page is added to the page cache when it is accessed. */
static void cached(void)
{
	struct file file = {
		.fd = fresh(opt.size),
		.size = opt.size,
		.unit = PAGE,
		.step = PAGE,
	};
	enum access access;

	fill(file.fd, file.size);
	plan(&file, SEQUENTIAL);
	for (access = READ; access <= WRITE; access++) {
		errno = posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED);
		if (errno)
			err(1, "posix_fadvise");
		timed_calls(access == WRITE ? "cached-write-4k" : "cached-read-4k", &file, access);
	}
	discard(&file);
}

/* A file whose blocks another one has, too; false where files cannot share blocks. */
static bool make_shared(struct file *file, int *other, enum order order)
{
	*file = make(opt.size, PAGE, order, FILLED);
	*other = fresh(0);
	if (!ioctl(*other, FICLONE, file->fd))
		return true;
	if (errno != EOPNOTSUPP)
		err(1, "FICLONE");
	close(*other);
	discard(file);
	return false;
}

/* Writes and stores that give a file blocks of its own. */
static void clones(void)
{
	struct file file;
	enum order order;
	int other;

	for (order = SEQUENTIAL; order <= RANDOM; order++) {
		if (!make_shared(&file, &other, order))
			return;
		timed_calls(order == RANDOM ? "pwrite-4k-clone-random" : "pwrite-4k-clone", &file,
			    WRITE);
		discard(&file);
		close(other);
		if (!make_shared(&file, &other, order))
			return;
		only_touch(order == RANDOM ? "pte-write-clone-random" : "pte-write-clone", file,
			   WRITE);
		close(other);
	}
}

/* One of the processes that share a file, as its parent sees it. */
struct child {
	pid_t pid;
	int orders;
};

enum { TOUCH_READ = 'r', TOUCH_WRITE = 'w', REMAP = 'm' };

/* Does what it is told, and answers with the faults that it took. */
static void obey(int orders, int answers, struct file *file)
{
	char what;

	while (read(orders, &what, 1) == 1) {
		long before, answer;

		if (what == REMAP)
			remap(file);
		before = faults();
		if (what != REMAP)
			touch(file, what == TOUCH_WRITE ? WRITE : READ);
		answer = faults() - before;
		if (write(answers, &answer, sizeof(answer)) != sizeof(answer))
			_exit(1);
	}
	_exit(0);
}

/* Has every child do it, and waits for all. */
static long tell(const struct child *children, int answers, char what)
{
	long sum = 0, answer;
	unsigned int i;

	for (i = 0; i < opt.procs; i++)
		if (write(children[i].orders, &what, 1) != 1)
			err(1, "telling a child");
	for (i = 0; i < opt.procs; i++) {
		if (read(answers, &answer, sizeof(answer)) != sizeof(answer))
			err(1, "hearing from a child");
		sum += answer;
	}
	return sum;
}

static void timed_tell(const char *name, const struct child *children, int answers, char what,
		       const struct file *file)
{
	long taken;

	start();
	taken = tell(children, answers, what);
	done_with(name, file->operations * opt.procs, &taken);
}

/* Processes that map the same pages of the same file, each in page tables of its own. */
static void processes(void)
{
	struct file file = make(opt.size / 4, PAGE, SEQUENTIAL, FILLED);
	struct child *children = calloc(opt.procs, sizeof(*children));
	unsigned int i, j;
	int answers[2];

	if (!children)
		err(1, "memory");
	if (pipe(answers))
		err(1, "pipe");
	for (i = 0; i < opt.procs; i++) {
		int orders[2];

		if (pipe(orders))
			err(1, "pipe");
		children[i].orders = orders[1];
		children[i].pid = fork();
		if (children[i].pid < 0)
			err(1, "fork");
		if (!children[i].pid) {
			for (j = 0; j <= i; j++)
				close(children[j].orders);
			obey(orders[0], answers[1], &file);
		}
		close(orders[0]);
	}
	unmap(&file);
	settle(&file);
	/* A first answer is awaited from each, so that no row pays for the start of a process. */
	tell(children, answers[0], REMAP);
	timed_tell("procs-read-first", children, answers[0], TOUCH_READ, &file);
	tell(children, answers[0], REMAP);
	timed_tell("procs-read-there", children, answers[0], TOUCH_READ, &file);
	timed_tell("procs-write-after-read", children, answers[0], TOUCH_WRITE, &file);
	tell(children, answers[0], REMAP);
	timed_tell("procs-write-there", children, answers[0], TOUCH_WRITE, &file);
	timed_fsync("procs-fsync", &file);
	timed_tell("procs-write-after-fsync", children, answers[0], TOUCH_WRITE, &file);
	for (i = 0; i < opt.procs; i++) {
		int status;

		close(children[i].orders);
		if (waitpid(children[i].pid, &status, 0) < 0 || status)
			errx(1, "a child failed");
	}
	timed_truncate("procs-truncate-dirty", &file);
	close(answers[0]);
	close(answers[1]);
	free(children);
	discard(&file);
}

/* What must not grow with the file: the cost of one entry. */
static void large(void)
{
	struct file file = make(opt.large, PAGE, SEQUENTIAL, FILLED);

	settle(&file);
	timed_touch("pte-write-first-large", &file, WRITE);
	timed_fsync("pte-fsync-large", &file);
	settle(&file);
	timed_truncate("pte-truncate-clean-large", &file);
	fill(file.fd, file.size);
	map(&file);
	touch(&file, WRITE);
	timed_truncate("pte-truncate-dirty-large", &file);
	discard(&file);
}

/*
 * An operation is 1 GiB here; each 2 MiB of it is touched, so that all of it gets mapped. All files
 * are there before the first is truncated: what that gives back is not what is used next.
 */
static void pud(void)
{
	struct file one = make(opt.pud, PUD, SEQUENTIAL, FILLED);
	struct file two = make(opt.pud, PUD, SEQUENTIAL, FILLED);
	struct file three = make(opt.pud, PUD, SEQUENTIAL, FILLED);

	write_life((const char *const[]){ "pud-write-first", "pud-write-there", "pud-fsync",
		   "pud-write-protect", "pud-write-clean", "pud-truncate-dirty" }, one);
	clean_truncate("pud-truncate-clean", two);
	read_life((const char *const[]){ "pud-read-first", "pud-read-there", "pud-munmap" },
		  three);
}

/* Which rows a scenario makes, so that one of which no row is wanted need not run. */
static const struct {
	void (*run)(void);
	const size_t *needs;
	const char *rows;
} scenarios[] = {
	{ pte_write, &opt.size,
	  "pte-write-first pte-write-there pte-fsync pte-write-protect pte-write-clean "
	  "pte-truncate-dirty" },
	{ pte_truncate, &opt.size, "pte-truncate-clean" },
	{ pte_read, &opt.size, "pte-read-first pte-read-there pte-munmap" },
	{ pte_hole, &opt.size, "pte-hole-read" },
	{ pmd_write, &opt.size,
	  "pmd-write-first pmd-write-there pmd-fsync pmd-write-protect pmd-write-clean "
	  "pmd-truncate-dirty" },
	{ pmd_truncate, &opt.size, "pmd-truncate-clean" },
	{ pmd_read, &opt.size, "pmd-read-first pmd-read-there pmd-munmap" },
	{ pmd_hole, &opt.size, "pmd-hole-read" },
	{ calls, &opt.size,
	  "pread-4k pwrite-4k pread-4k-random pwrite-4k-random" },
	{ cached, &opt.size, "cached-read-4k cached-write-4k" },
	{ clones, &opt.size,
	  "pwrite-4k-clone pte-write-clone pwrite-4k-clone-random pte-write-clone-random" },
	{ pte_write_random, &opt.size,
	  "pte-write-first-random pte-write-there-random pte-fsync-random "
	  "pte-write-protect-random pte-write-clean-random pte-truncate-dirty-random" },
	{ pte_read_random, &opt.size,
	  "pte-read-first-random pte-read-there-random pte-munmap-random" },
	{ pte_read_advised, &opt.size, "pte-read-first-advised" },
	{ pte_sparse, &opt.size, "pte-write-sparse pte-fsync-sparse" },
	{ pte_bursts, &opt.size, "pte-write-bursts pte-fsync-bursts" },
	{ blocks, &opt.size,
	  "pte-write-unwritten pte-write-hole pmd-write-unwritten" },
	{ processes, &opt.size,
	  "procs-read-first procs-read-there procs-write-after-read procs-write-there "
	  "procs-fsync procs-write-after-fsync procs-truncate-dirty" },
	{ large, &opt.large,
	  "pte-write-first-large pte-fsync-large pte-truncate-clean-large "
	  "pte-truncate-dirty-large" },
	{ pud, &opt.pud,
	  "pud-write-first pud-write-there pud-fsync pud-write-protect pud-write-clean "
	  "pud-truncate-dirty pud-truncate-clean pud-read-first pud-read-there pud-munmap" },
};

/* Prints the wanted rows of a scenario, or says only whether there are any. */
static bool any_wanted(const char *rows, bool print)
{
	char *copy = strdup(rows), *name, *rest = copy;
	bool any = false;

	if (!copy)
		err(1, "memory");
	while ((name = strsep(&rest, " "))) {
		if (!wanted(name))
			continue;
		any = true;
		if (print)
			puts(name);
	}
	free(copy);
	return any;
}

void run_scenarios(void)
{
	size_t i;

	for (i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		if (*scenarios[i].needs && any_wanted(scenarios[i].rows, opt.list) && !opt.list &&
		    opt.cached == !strncmp(scenarios[i].rows, "cached-", 7))
			scenarios[i].run();
}
