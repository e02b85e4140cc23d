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
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "stress.h"

static uint16_t generation;
static uint64_t limit = 40000;	/* ms after which an operation is taken for hanging */

struct progress *progress;

struct file own, copy, shared[SHARED];
int disk = -1;
uint8_t *bounce;

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

void fill(uint64_t *to, int id, size_t offset, size_t length)
{
	generation++;
	for (size_t i = 0; i < length / 8; i++)
		to[i] = make_word(id, offset + i * 8);
}

void store(volatile uint64_t *to, const uint64_t *from, size_t length)
{
	for (size_t i = 0; i < length / 8; i++)
		to[i] = from[i];
}

void load(uint64_t *to, const volatile uint64_t *from, size_t length)
{
	for (size_t i = 0; i < length / 8; i++)
		to[i] = from[i];
}

void check_words(const uint64_t *words, int id, size_t offset, size_t length, const char *what)
{
	for (size_t i = 0; i < length / 8; i++)
		if (!allowed(words[i], id, offset + i * 8))
			fail("%s: word %#016lx at %#lx of file %#x", what, words[i],
			     offset + i * 8, id);
	progress[me].checks += length / 8;
}

uint8_t *map_at(int fd, size_t length, size_t skew, int flags)
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

void remap(struct file *f, uint8_t *at)
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
bool range(size_t size, size_t step, size_t *offset, size_t *length)
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
static void work(uint64_t end)
{
	while (go_on(end, progress[me].ops, LEAST)) {
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
	while ((option = getopt(argc, argv, "d:t:l:s:w:D:ru")) > 0) {
		if (option == 'l')
			limit = strtoull(optarg, NULL, 0);
		else if (!take_option(option))
			return 2;
	}
	if (!dir || workers < 1 || workers > WORKERS) {
		fputs("usage: stress -d DIR [-t SECONDS] [-l LIMIT] [-s SEED] [-w WORKERS] [-D DISK] [-ru]\n",
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
