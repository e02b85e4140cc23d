// SPDX-License-Identifier: GPL-2.0
/*
 * bench: do what costs a DAX filesystem something, and say what it cost.
 *
 * Each row is printed as "name operations nanoseconds faults". On a machine whose clock counts
 * instructions (scripts/guest --count) the nanoseconds are instructions: of the kernel, of the
 * page fault's entry and exit, and of the few that this program needs around an operation.
 *
 * A row is part of a scenario: what runs before it in the same function is its past, which decides
 * what it measures. Before a row that is timed, everything older is durable (sync), so that no
 * journal is written out on its account.
 *
 * "first" rows find no entry in the file's tree. Their blocks are allocated and written: fill()
 * writes the file through pwrite(), which makes no entries. So no row but the "unwritten" and
 * "hole" ones allocates or converts blocks.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <regex.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define PMD ((size_t)2 << 20)
#define PUD ((size_t)1 << 30)

enum access { READ, WRITE };

static struct {
	const char *dir;
	size_t size;		/* of the file of most rows */
	size_t pmd;		/* of the file of the 2 MiB rows: larger, as its units are few */
	size_t large;		/* of the file of the rows that are named after it, 0 for none */
	size_t pud;		/* of the file of the 1 GiB rows, 0 for none */
	unsigned int procs;
	bool list;
	bool only;
	regex_t wanted;
} opt;

/* The row that is being timed. */
static struct {
	struct timespec start;
	long faults;
} now;

static long faults(void)
{
	struct rusage usage;

	if (getrusage(RUSAGE_SELF, &usage))
		err(1, "getrusage");
	return usage.ru_minflt + usage.ru_majflt;
}

static void start(void)
{
	now.faults = faults();
	clock_gettime(CLOCK_MONOTONIC, &now.start);
}

static bool wanted(const char *name)
{
	return !opt.only || !regexec(&opt.wanted, name, 0, NULL, 0);
}

/* Ends the row that start() began. The faults are this process's, or those of who took them. */
static void done_with(const char *name, size_t operations, const long *taken)
{
	struct timespec end;
	long long ns;

	clock_gettime(CLOCK_MONOTONIC, &end);
	ns = (end.tv_sec - now.start.tv_sec) * 1000000000LL + end.tv_nsec - now.start.tv_nsec;
	if (wanted(name)) {
		printf("%s %zu %lld %ld\n", name, operations, ns,
		       taken ? *taken : faults() - now.faults);
		fflush(stdout);
	}
}

static void done(const char *name, size_t operations)
{
	done_with(name, operations, NULL);
}

/* A file of which nothing is known yet, by a name that no scenario used before. */
static int fresh(size_t size)
{
	static unsigned int serial;
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/bench-%u", opt.dir, serial++);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0)
		err(1, "%s", path);
	if (unlink(path))
		err(1, "unlink %s", path);
	if (ftruncate(fd, size))
		err(1, "ftruncate to %zu", size);
	return fd;
}

static void allocate(int fd, size_t size)
{
	if (fallocate(fd, 0, 0, size))
		err(1, "fallocate of %zu", size);
}

/* Blocks in as few extents as the filesystem can, written, and no entry in the file's tree. */
static void fill(int fd, size_t size)
{
	static char *data;
	size_t at;

	if (!data) {
		data = aligned_alloc(PMD, PMD);
		if (!data)
			err(1, "memory");
		memset(data, 0x5a, PMD);
	}
	allocate(fd, size);
	for (at = 0; at < size; at += PMD)
		if (pwrite(fd, data, PMD, at) != (ssize_t)PMD)
			err(1, "pwrite at %zu", at);
	if (fsync(fd))
		err(1, "fsync");
}

static int filled(size_t size)
{
	int fd = fresh(size);

	fill(fd, size);
	return fd;
}

/* Maps the file where a unit of the file can be one entry of a page table, or shall not be. */
static char *map(int fd, size_t size, size_t unit)
{
	size_t align = unit > PMD ? unit : PMD;
	char *area, *place;

	area = mmap(NULL, size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		err(1, "mmap of %zu", size + align);
	place = (char *)(((uintptr_t)area + align - 1) & -align);
	if (place > area)
		munmap(area, place - area);
	munmap(place + size, area + align - place);
	if (mmap(place, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		err(1, "mmap of %zu", size);
	if (unit == PAGE && madvise(place, size, MADV_NOHUGEPAGE))
		err(1, "madvise");
	return place;
}

static char *remap(int fd, char *at, size_t size, size_t unit)
{
	munmap(at, size);
	return map(fd, size, unit);
}

static void settle(int fd)
{
	if (syncfs(fd))
		err(1, "syncfs");
}

/* The order in which units are touched: an array in both cases, so that both cost the same. */
static uint32_t *sequence(size_t count, bool shuffled)
{
	uint32_t *order = malloc(count * sizeof(*order));
	uint64_t state = 88172645463325252ULL;
	size_t i;

	if (!order)
		err(1, "memory");
	for (i = 0; i < count; i++)
		order[i] = i;
	for (i = count; shuffled && i > 1; i--) {
		size_t j;
		uint32_t other;

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		j = state % i;
		other = order[j];
		order[j] = order[i - 1];
		order[i - 1] = other;
	}
	return order;
}

static void touch(char *at, const uint32_t *order, size_t count, size_t unit, enum access access)
{
	size_t i;

	for (i = 0; i < count; i++) {
		volatile char *byte = at + order[i] * unit;

		if (access == WRITE)
			*byte = 1;
		else
			(void)*byte;
	}
}

/* A row whose pages were to be mapped by larger units must leave nothing to fault. */
static void check_mapped(const char *name, char *at, size_t size, size_t unit)
{
	long before = faults(), more;
	size_t i;

	for (i = 0; i < size; i += PAGE)
		(void)*(volatile char *)(at + i);
	more = faults() - before;
	if (more)
		warnx("%s: not mapped by units of %zu KiB: %ld faults more", name, unit >> 10, more);
}

/* One pass over a mapping, timed. */
static void pass(const char *name, int fd, char *at, const uint32_t *order, size_t count,
		 size_t unit, enum access access)
{
	settle(fd);
	start();
	touch(at, order, count, unit, access);
	done(name, count);
	if (unit > PAGE && wanted(name))
		check_mapped(name, at, count * unit, unit);
}

static void timed_fsync(const char *name, int fd, size_t operations)
{
	start();
	if (fsync(fd))
		err(1, "fsync");
	done(name, operations);
}

static void timed_truncate(const char *name, int fd, size_t operations)
{
	start();
	if (ftruncate(fd, 0))
		err(1, "ftruncate");
	done(name, operations);
}

/*
 * The life of a file that is written through a mapping. The names are of: first write, write
 * again through a new mapping (entries dirty), fsync, write after that fsync (mapped, write
 * protected), write through a new mapping of clean entries, truncate of unmapped dirty entries.
 */
static void write_life(const char *const names[6], size_t size, size_t unit, bool shuffled)
{
	size_t count = size / unit;
	uint32_t *order = sequence(count, shuffled);
	int fd = filled(size);
	char *at = map(fd, size, unit);

	pass(names[0], fd, at, order, count, unit, WRITE);
	at = remap(fd, at, size, unit);
	start();
	touch(at, order, count, unit, WRITE);
	done(names[1], count);
	timed_fsync(names[2], fd, count);
	pass(names[3], fd, at, order, count, unit, WRITE);
	settle(fd);
	at = remap(fd, at, size, unit);
	pass(names[4], fd, at, order, count, unit, WRITE);
	munmap(at, size);
	timed_truncate(names[5], fd, count);
	close(fd);
	free(order);
}

/* Truncate of unmapped entries that are clean: written through a mapping, then synced. */
static void clean_truncate(const char *name, size_t size, size_t unit)
{
	size_t count = size / unit;
	uint32_t *order = sequence(count, false);
	int fd = filled(size);
	char *at = map(fd, size, unit);

	touch(at, order, count, unit, WRITE);
	settle(fd);
	munmap(at, size);
	timed_truncate(name, fd, count);
	close(fd);
	free(order);
}

/* First read, read again through a new mapping, unmapping. */
static void read_life(const char *const names[3], size_t size, size_t unit, bool shuffled)
{
	size_t count = size / unit;
	uint32_t *order = sequence(count, shuffled);
	int fd = filled(size);
	char *at = map(fd, size, unit);

	pass(names[0], fd, at, order, count, unit, READ);
	at = remap(fd, at, size, unit);
	pass(names[1], fd, at, order, count, unit, READ);
	start();
	munmap(at, size);
	done(names[2], count);
	close(fd);
	free(order);
}

static void hole_read(const char *name, size_t size, size_t unit)
{
	size_t count = size / unit;
	uint32_t *order = sequence(count, false);
	int fd = fresh(size);
	char *at = map(fd, size, unit);

	pass(name, fd, at, order, count, unit, READ);
	munmap(at, size);
	close(fd);
	free(order);
}

/* Writes that make the filesystem allocate or convert. */
static void block_write(const char *name, size_t size, size_t unit, bool unwritten)
{
	size_t count = size / unit;
	uint32_t *order = sequence(count, false);
	int fd = fresh(size);
	char *at = map(fd, size, unit);

	if (unwritten)
		allocate(fd, size);
	settle(fd);
	start();
	touch(at, order, count, unit, WRITE);
	done(name, count);
	munmap(at, size);
	close(fd);
	free(order);
}

static void pte_write(void)
{
	write_life((const char *const[]){ "pte-write-first", "pte-write-there", "pte-fsync",
		   "pte-write-protect", "pte-write-clean", "pte-truncate-dirty" },
		   opt.size, PAGE, false);
}

static void pte_write_random(void)
{
	write_life((const char *const[]){ "pte-write-first-random", "pte-write-there-random",
		   "pte-fsync-random", "pte-write-protect-random", "pte-write-clean-random",
		   "pte-truncate-dirty-random" },
		   opt.size, PAGE, true);
}

static void pte_truncate(void)
{
	clean_truncate("pte-truncate-clean", opt.size, PAGE);
}

static void pte_read(void)
{
	read_life((const char *const[]){ "pte-read-first", "pte-read-there", "pte-munmap" },
		  opt.size, PAGE, false);
}

static void pte_read_random(void)
{
	read_life((const char *const[]){ "pte-read-first-random", "pte-read-there-random",
		  "pte-munmap-random" },
		  opt.size, PAGE, true);
}

static void pte_hole(void)
{
	hole_read("pte-hole-read", opt.size, PAGE);
}

static void pmd_write(void)
{
	write_life((const char *const[]){ "pmd-write-first", "pmd-write-there", "pmd-fsync",
		   "pmd-write-protect", "pmd-write-clean", "pmd-truncate-dirty" },
		   opt.pmd, PMD, false);
}

static void pmd_truncate(void)
{
	clean_truncate("pmd-truncate-clean", opt.pmd, PMD);
}

static void pmd_read(void)
{
	read_life((const char *const[]){ "pmd-read-first", "pmd-read-there", "pmd-munmap" },
		  opt.pmd, PMD, false);
}

static void pmd_hole(void)
{
	hole_read("pmd-hole-read", opt.pmd, PMD);
}

static void blocks(void)
{
	block_write("pte-write-unwritten", opt.size, PAGE, true);
	block_write("pte-write-hole", opt.size, PAGE, false);
	block_write("pmd-write-unwritten", opt.pmd, PMD, true);
}

static void rw(const char *name, int fd, const uint32_t *order, size_t count, enum access access)
{
	static char data[PAGE] __attribute__((aligned(PAGE)));
	size_t i;

	memset(data, 0xa5, sizeof(data));
	settle(fd);
	start();
	for (i = 0; i < count; i++) {
		off_t at = order[i] * PAGE;
		ssize_t n = access == WRITE ? pwrite(fd, data, PAGE, at) : pread(fd, data, PAGE, at);

		if (n != (ssize_t)PAGE)
			err(1, "%s at %lld", name, (long long)at);
	}
	done(name, count);
}

static void calls(void)
{
	size_t count = opt.size / PAGE;
	uint32_t *order = sequence(count, false), *shuffled = sequence(count, true);
	int fd = filled(opt.size);

	rw("pread-4k", fd, order, count, READ);
	rw("pwrite-4k", fd, order, count, WRITE);
	rw("pread-4k-random", fd, shuffled, count, READ);
	rw("pwrite-4k-random", fd, shuffled, count, WRITE);
	close(fd);
	free(order);
	free(shuffled);
}

/* What a child of processes() does when told so; it answers with the faults it took. */
struct child {
	pid_t pid;
	int orders;
};

static void child(int orders, int answers, int fd, char *at, size_t size, const uint32_t *order)
{
	char command;

	while (read(orders, &command, 1) == 1) {
		long before, answer;

		if (command == 'u')
			at = remap(fd, at, size, PAGE);
		before = faults();
		if (command != 'u')
			touch(at, order, size / PAGE, PAGE, command == 'w' ? WRITE : READ);
		answer = faults() - before;
		if (write(answers, &answer, sizeof(answer)) != sizeof(answer))
			_exit(1);
	}
	_exit(0);
}

static long tell(const struct child *children, int answers, char command)
{
	long sum = 0, answer;
	unsigned int i;

	for (i = 0; i < opt.procs; i++)
		if (write(children[i].orders, &command, 1) != 1)
			err(1, "telling a child");
	for (i = 0; i < opt.procs; i++) {
		if (read(answers, &answer, sizeof(answer)) != sizeof(answer))
			err(1, "hearing from a child");
		sum += answer;
	}
	return sum;
}

static void timed_tell(const char *name, const struct child *children, int answers, char command,
		       size_t operations)
{
	long taken;

	start();
	taken = tell(children, answers, command);
	done_with(name, operations, &taken);
}

/* Processes that map the same pages of the same file, each in page tables of its own. */
static void processes(void)
{
	size_t size = opt.size / 4, count = size / PAGE, total = count * opt.procs;
	struct child *children = calloc(opt.procs, sizeof(*children));
	uint32_t *order = sequence(count, false);
	int fd = filled(size), answers[2];
	char *at = map(fd, size, PAGE);
	unsigned int i, j;

	if (!children || pipe(answers))
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
			child(orders[0], answers[1], fd, at, size, order);
		}
		close(orders[0]);
	}
	munmap(at, size);
	settle(fd);
	/* A first answer is awaited from each, so that no row pays for the start of a process. */
	tell(children, answers[0], 'u');
	timed_tell("procs-read-first", children, answers[0], 'r', total);
	tell(children, answers[0], 'u');
	timed_tell("procs-read-there", children, answers[0], 'r', total);
	timed_tell("procs-write-after-read", children, answers[0], 'w', total);
	tell(children, answers[0], 'u');
	timed_tell("procs-write-there", children, answers[0], 'w', total);
	timed_fsync("procs-fsync", fd, count);
	timed_tell("procs-write-after-fsync", children, answers[0], 'w', total);
	for (i = 0; i < opt.procs; i++) {
		int status;

		close(children[i].orders);
		if (waitpid(children[i].pid, &status, 0) < 0 || status)
			errx(1, "a child failed");
	}
	timed_truncate("procs-truncate-dirty", fd, count);
	close(answers[0]);
	close(answers[1]);
	close(fd);
	free(children);
	free(order);
}

/* What must not grow with the file: the cost of one entry. */
static void large(void)
{
	size_t count = opt.large / PAGE;
	uint32_t *order = sequence(count, false);
	int fd = filled(opt.large);
	char *at = map(fd, opt.large, PAGE);

	pass("pte-write-first-large", fd, at, order, count, PAGE, WRITE);
	timed_fsync("pte-fsync-large", fd, count);
	settle(fd);
	munmap(at, opt.large);
	timed_truncate("pte-truncate-clean-large", fd, count);
	fill(fd, opt.large);
	at = map(fd, opt.large, PAGE);
	touch(at, order, count, PAGE, WRITE);
	munmap(at, opt.large);
	timed_truncate("pte-truncate-dirty-large", fd, count);
	close(fd);
	free(order);
}

static void pud(void)
{
	write_life((const char *const[]){ "pud-write-first", "pud-write-there", "pud-fsync",
		   "pud-write-protect", "pud-write-clean", "pud-truncate-dirty" },
		   opt.pud, PUD, false);
	clean_truncate("pud-truncate-clean", opt.pud, PUD);
	read_life((const char *const[]){ "pud-read-first", "pud-read-there", "pud-munmap" },
		  opt.pud, PUD, false);
}

/* Which rows a scenario makes, so that one of which no row is wanted need not run. */
static const struct {
	void (*run)(void);
	const size_t *needs;
	const char *rows;
} scenarios[] = {
	{ pte_write, &opt.size,
	  "pte-write-first pte-write-there pte-fsync pte-write-protect pte-write-clean pte-truncate-dirty" },
	{ pte_truncate, &opt.size, "pte-truncate-clean" },
	{ pte_read, &opt.size, "pte-read-first pte-read-there pte-munmap" },
	{ pte_hole, &opt.size, "pte-hole-read" },
	{ pmd_write, &opt.size,
	  "pmd-write-first pmd-write-there pmd-fsync pmd-write-protect pmd-write-clean pmd-truncate-dirty" },
	{ pmd_truncate, &opt.size, "pmd-truncate-clean" },
	{ pmd_read, &opt.size, "pmd-read-first pmd-read-there pmd-munmap" },
	{ pmd_hole, &opt.size, "pmd-hole-read" },
	{ calls, &opt.size, "pread-4k pwrite-4k pread-4k-random pwrite-4k-random" },
	{ pte_write_random, &opt.size,
	  "pte-write-first-random pte-write-there-random pte-fsync-random pte-write-protect-random pte-write-clean-random pte-truncate-dirty-random" },
	{ pte_read_random, &opt.size, "pte-read-first-random pte-read-there-random pte-munmap-random" },
	{ blocks, &opt.size, "pte-write-unwritten pte-write-hole pmd-write-unwritten" },
	{ processes, &opt.size,
	  "procs-read-first procs-read-there procs-write-after-read procs-write-there procs-fsync procs-write-after-fsync procs-truncate-dirty" },
	{ large, &opt.large,
	  "pte-write-first-large pte-fsync-large pte-truncate-clean-large pte-truncate-dirty-large" },
	{ pud, &opt.pud,
	  "pud-write-first pud-write-there pud-fsync pud-write-protect pud-write-clean pud-truncate-dirty pud-truncate-clean pud-read-first pud-read-there pud-munmap" },
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

static size_t bytes(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	switch (*end) {
	case 'G':
		value <<= 10;
		/* fall through */
	case 'M':
		value <<= 20;
		end++;
	}
	if (end == text || *end)
		errx(1, "'%s' is not a size like 64M", text);
	return value;
}

static void usage(FILE *to)
{
	fprintf(to,
		"usage: bench [OPTION...] DIR\n"
		"\n"
		"Time DAX operations on files below DIR. Prints lines: name operations nanoseconds faults\n"
		"\n"
		"  -s SIZE   of the file of most rows, a multiple of 8M (default: 64M);\n"
		"            the pmd rows have four times that\n"
		"  -L SIZE   of the file of the rows whose names end in -large; 0: none (default)\n"
		"  -u SIZE   of the file of the 1 GiB rows; 0: none (default)\n"
		"  -p N      processes of the procs rows (default: 8)\n"
		"  -o REGEX  only rows whose names match this extended regular expression\n"
		"  -l        list the rows, do nothing\n");
}

int main(int argc, char **argv)
{
	size_t i;
	int c;

	opt.size = 64 << 20;
	opt.procs = 8;
	while ((c = getopt(argc, argv, "s:L:u:p:o:lh")) != -1) {
		switch (c) {
		case 's':
			opt.size = bytes(optarg);
			break;
		case 'L':
			opt.large = bytes(optarg);
			break;
		case 'u':
			opt.pud = bytes(optarg);
			break;
		case 'p':
			opt.procs = atoi(optarg);
			break;
		case 'o':
			if (regcomp(&opt.wanted, optarg, REG_EXTENDED | REG_NOSUB))
				errx(1, "'%s' is not a regular expression", optarg);
			opt.only = true;
			break;
		case 'l':
			opt.list = true;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 1;
		}
	}
	if (!opt.list && optind + 1 != argc) {
		usage(stderr);
		return 1;
	}
	if (!opt.size || opt.size % (4 * PMD) || opt.large % PMD || opt.pud % PUD || !opt.procs)
		errx(1, "sizes must be whole multiples (see bench -h)");
	opt.dir = argv[optind];
	opt.pmd = 4 * opt.size;
	for (i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		if (*scenarios[i].needs && any_wanted(scenarios[i].rows, opt.list) && !opt.list)
			scenarios[i].run();
	return 0;
}
