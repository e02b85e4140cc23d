// SPDX-License-Identifier: GPL-2.0
/*
 * race: one thread stores to a file through mappings, all the time, while two others sync it. What a
 * store had put there before a sync began is there after it, whoever of the two wrote it back. In beside
 * yet another thread cuts off and punches what lies behind, and makes clones of the file.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "workload.h"

/*
 * A word in each of some places of the first three quarters, and of some of the rest. The first are many:
 * what was stored to a page while it was being written back may be lost only if nobody stores to it again
 * before the next sync.
 */
#define FIRST_SLOTS 1536
#define SLOTS (FIRST_SLOTS + 64)
#define MOST_PROMISES 8192
#define GIB (1ULL << 30)

/* Of the file. One of 1 GiB has one mapping, which may be a single entry of a page table; in others the
 * first part is mapped by pages, and the rest by 2 MiB.
 */
static uint64_t size = 4 * PMD;
#define SYNCERS 2
/*
 * So many stores come with each sync, while it is under way: if there were more, what was lost would be
 * stored again too soon to be missed.
 */
#define STORES 24
#define MOST_STORES (STORES * (1 + SYNCERS + SYNCERS * MOST_PROMISES))

/* For each of those who sync, what was stored before each of its syncs began. */
static uint64_t (*promises[SYNCERS])[SLOTS];
static _Atomic uint64_t stored[SLOTS];
static _Atomic uint64_t stores, allowed;
static atomic_bool over;
static uint8_t *small, *large;

static uint64_t first_part(void)
{
	return size / 4 * 3;
}

static uint64_t place(unsigned int slot)
{
	if (slot < FIRST_SLOTS)
		return first_part() / FIRST_SLOTS * slot + slot % 64 * UNIT;
	return first_part() + size / 4 / (SLOTS - FIRST_SLOTS) * (slot - FIRST_SLOTS) + slot % 64 * UNIT;
}

/* Every value that is stored is as large as this at least, and smaller than that of the next salt. */
static uint64_t first_value(void)
{
	return (uint64_t)(salt + 1) << 48;
}

/* Where the next store goes follows from the seed alone, so that it is known again of each value. */
struct choice {
	uint64_t state, left, near;
	bool first;
};

/*
 * For a while to one part, then for a while to the other; of the first to some pages that lie close to each
 * other, so that they are stored to while they are written back, and not again soon after that.
 */
static unsigned int next_slot(struct choice *choice)
{
	choice->state = choice->state * 6364136223846793005ULL + 1442695040888963407ULL;
	if (!choice->left--) {
		choice->first = choice->state >> 63;
		choice->left = (choice->state >> 20) % 128;
		choice->near = (choice->state >> 33) % FIRST_SLOTS;
	}
	if (choice->first)
		return (choice->near + (choice->state >> 33) % 16) % FIRST_SLOTS;
	return FIRST_SLOTS + (choice->state >> 33) % (SLOTS - FIRST_SLOTS);
}

static void *store_all_the_time(void *data)
{
	struct choice choice = { .state = (uintptr_t)data };
	uint64_t value = first_value();

	/* Until it is told that it is over. */
	while (!atomic_load(&over)) {
		volatile uint64_t *at;
		unsigned int slot;

		if (atomic_load(&stores) >= atomic_load(&allowed)) {
			usleep(50);
			continue;
		}
		slot = next_slot(&choice);
		at = (volatile uint64_t *)((slot < FIRST_SLOTS ? small : large) + place(slot));
		*at = value;
		atomic_store_explicit(&stored[slot], value++, memory_order_release);
		atomic_fetch_add_explicit(&stores, 1, memory_order_relaxed);
	}
	return NULL;
}

int race_prepare(const char *path, uint64_t bytes)
{
	static uint8_t zero[PMD];
	char name[300];
	uint64_t at;
	int to, wrong;

	size = bytes;
	snprintf(name, sizeof(name), "%s/race", path);
	to = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (to < 0)
		return -1;
	wrong = fallocate(to, 0, 0, size);
	for (at = 0; at < size && !wrong; at += PMD)
		wrong = pwrite(to, zero, PMD, at) != PMD;
	wrong |= fsync(to);
	close(to);
	return wrong ? -1 : 0;
}

static uint8_t *map(int from, uint64_t align, uint64_t skew)
{
	uint8_t *at = mmap(NULL, size + skew + align, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return NULL;
	at = (uint8_t *)(((uintptr_t)at + align - 1) & -align) + skew;
	at = mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, from, 0);
	return at == MAP_FAILED ? NULL : at;
}

static int fd;
static int64_t wanted;
static uint32_t most;
static _Atomic int64_t cuts;
static atomic_bool bad;
static atomic_uint under_way;

static void *sync_all_the_time(void *data)
{
	unsigned int self = (uintptr_t)data, i;
	uint64_t state = self;
	uint32_t count = 0;

	/* Until there are so many cuts, or so many syncs were done. */
	while (atomic_load(&cuts) < wanted && count < most && !atomic_load(&bad)) {
		uint64_t *now = promises[self][++count];
		bool other_is_not_done;
		int status = 0;

		/* For something to sync. It ends: the storing thread does nothing else, until this one is over. */
		while (atomic_load(&stores) < atomic_load(&allowed))
			usleep(50);
		memcpy(now, promises[self][count - 1], SLOTS * sizeof(*now));
		/* By turns of everything, and of each part, whose other part keeps its last promise. */
		for (i = 0; i < SLOTS; i++)
			if (count % 3 == 0 || (count % 3 == 1) == (i < FIRST_SLOTS))
				now[i] = atomic_load_explicit(&stored[i], memory_order_acquire);
		atomic_fetch_add(&under_way, 1);
		atomic_fetch_add(&allowed, STORES);
		if (count % 3 == 0)
			status = fsync(fd);
		else if (count % 3 == 1)
			status = msync(small, first_part(), MS_SYNC);
		else
			status = msync(large + first_part(), size / 4, MS_SYNC);
		if (status)
			atomic_store(&bad, true);
		other_is_not_done = atomic_fetch_sub(&under_way, 1) > 1;
		atomic_store(&cuts, powercut_ask(POWERCUT_EVENT, self, count, 0));
		/*
		 * This sync has promised what the other one may still be writing back. At times the cut
		 * comes right now, because that does not last.
		 */
		state = state * 6364136223846793005ULL + 1442695040888963407ULL;
		if (other_is_not_done && (state >> 33) % 4 == 0)
			powercut_ask(POWERCUT_CUT, POWERCUT_LOSES_ALL, 0, 0);
	}
	return NULL;
}

/*
 * Changes the blocks of the file behind what is stored to, and shares those with another file, again and again
 * while others sync: nothing of what was promised may get lost by that.
 */
static void *change_blocks(void *data)
{
	const uint64_t end = size + PMD;
	uint64_t seen = 0, turn;
	volatile uint64_t *tail;
	char name[300];
	int copy;

	snprintf(name, sizeof(name), "%s/copy", (const char *)data);
	copy = open(name, O_RDWR | O_CREAT, 0600);
	tail = mmap(NULL, PMD, PROT_READ | PROT_WRITE, MAP_SHARED, fd, size);
	if (copy < 0 || tail == MAP_FAILED) {
		atomic_store(&bad, true);
		return NULL;
	}
	/* Until it is told that it is over; each turn while another sync is under way. */
	for (turn = 0; !atomic_load(&over); turn++) {
		int status = 0;

		if (atomic_load(&allowed) == seen) {
			usleep(50);
			continue;
		}
		seen = atomic_load(&allowed);
		switch (turn % 4) {
		case 0:
			status = ftruncate(fd, size) || ftruncate(fd, end);
			break;
		case 1:
			tail[turn % 512 * UNITS] = turn;
			status = fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
					   size + turn % 256 * PAGE, 64 * PAGE);
			break;
		case 2:
			tail[turn % 512 * UNITS] = turn;
			status = fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE, size, 16 * PAGE);
			break;
		case 3:
			/* Not all filesystems can. */
			status = ftruncate(copy, 0);
			if (!status && ioctl(copy, FICLONE, fd) && errno != EOPNOTSUPP)
				status = -1;
			break;
		}
		if (status)
			atomic_store(&bad, true);
	}
	munmap((void *)tail, PMD);
	close(copy);
	return NULL;
}

int64_t race_run(const char *path, uint64_t seed, int64_t cuts_wanted, uint32_t syncs, bool beside)
{
	pthread_t storer, syncer, changer;
	char name[300];
	uint32_t i;

	for (i = 0; i < SYNCERS; i++) {
		if (!promises[i])
			promises[i] = calloc(MOST_PROMISES, sizeof(*promises[i]));
		if (!promises[i])
			return -1;
	}
	for (i = 0; i < SLOTS; i++)
		atomic_store(&stored[i], 0);
	atomic_store(&over, false);
	atomic_store(&bad, false);
	atomic_store(&cuts, 0);
	atomic_store(&stores, 0);
	atomic_store(&allowed, STORES);
	atomic_store(&under_way, 0);
	wanted = cuts_wanted;
	most = syncs < MOST_PROMISES ? syncs : MOST_PROMISES - 1;
	snprintf(name, sizeof(name), "%s/race", path);
	fd = open(name, O_RDWR);
	if (fd < 0)
		return -1;
	large = map(fd, size < GIB ? PMD : GIB, 0);
	small = size < GIB ? map(fd, PMD, PAGE) : large;
	/* What happens during a write-back happens more often if that takes its time; 1 GiB does anyway. */
	powercut_ask(POWERCUT_LATE, 0, size < GIB ? 50 : 0, 0);
	if (!small || !large || pthread_create(&storer, NULL, store_all_the_time, (void *)seed) ||
	    pthread_create(&syncer, NULL, sync_all_the_time, (void *)1) ||
	    (beside && pthread_create(&changer, NULL, change_blocks, (void *)path)))
		return -1;
	sync_all_the_time((void *)0);
	pthread_join(syncer, NULL);
	atomic_store(&over, true);
	pthread_join(storer, NULL);
	if (beside)
		pthread_join(changer, NULL);
	powercut_ask(POWERCUT_LATE, 0, 0, 0);
	munmap(large, size);
	if (small != large)
		munmap(small, size);
	close(fd);
	return atomic_load(&bad) ? -1 : atomic_load(&cuts);
}

/* What was promised by so many syncs of each, for whoever keeps it; the same once more from there. */
void race_promises(const uint64_t *events, uint64_t *to)
{
	unsigned int i;

	for (i = 0; i < SYNCERS; i++)
		memcpy(to + i * SLOTS, promises[i][events[i]], SLOTS * sizeof(*to));
}

int race_promises_are(uint64_t bytes, const uint64_t *events, const uint64_t *from)
{
	unsigned int i;

	size = bytes;
	for (i = 0; i < SYNCERS; i++) {
		if (!promises[i])
			promises[i] = calloc(MOST_PROMISES, sizeof(*promises[i]));
		if (!promises[i] || events[i] >= MOST_PROMISES)
			return -1;
		memcpy(promises[i][events[i]], from + i * SLOTS, SLOTS * sizeof(*from));
	}
	return 0;
}

/* Which slot each value was stored to, of the first `count` of a seed; a static array of them. */
static const uint16_t *slots_of(uint64_t seed, uint64_t count)
{
	static uint16_t slots[MOST_STORES];
	static struct choice choice;
	static uint64_t known, of;

	if (!known || of != seed) {
		choice = (struct choice){ .state = seed };
		known = 0;
		of = seed;
	}
	for (; known < count; known++)
		slots[known] = next_slot(&choice);
	return slots;
}

static const char *what_is_wrong(const uint64_t *page, unsigned int slot, uint64_t least, const uint16_t *slots,
				 uint64_t stores_at_most)
{
	const unsigned int unit = place(slot) % PAGE / UNIT;
	const uint64_t found = page[unit], number = found - first_value();
	unsigned int i;

	if (found < least)
		return "older";
	if (found && (number >= stores_at_most || slots[number] != slot))
		return "never stored there";
	for (i = 0; i < UNITS; i++)
		if (i != unit && page[i])
			return "right, but something is beside it in the page";
	return NULL;
}

/*
 * Each place has what was promised, or what was stored there later; the rest of its page is zero. `seed` is
 * that of the run.
 */
int race_check(const char *path, uint64_t seed, const uint64_t *events, bool by_read, char *to, size_t length,
	       uint64_t *kept)
{
	/* Those that had begun: one of each thread may not have been over. */
	const uint64_t most_stores = STORES * (1 + SYNCERS + events[0] + events[1]);
	const uint16_t *slots = slots_of(seed, most_stores);
	const uint8_t *memory = MAP_FAILED;
	int wrong = 0, from, n;
	uint64_t page[UNITS];
	char name[300];
	unsigned int i;

	to[0] = 0;
	snprintf(name, sizeof(name), "%s/race", path);
	from = open(name, O_RDONLY);
	if (!by_read)
		memory = mmap(NULL, size, PROT_READ, MAP_SHARED, from, 0);
	/* Of each of them the last sync of everything, and the last of each part. */
	for (i = 0; i < SYNCERS; i++)
		*kept += events[i] < 3 ? events[i] : 3;
	for (i = 0; i < SLOTS; i++) {
		const uint64_t one = promises[0][events[0]][i], two = promises[1][events[1]][i];
		const uint64_t least = one > two ? one : two, at = place(i) & -PAGE;
		const char *what;

		if (by_read ? pread(from, page, PAGE, at) != (ssize_t)PAGE :
			      memory == MAP_FAILED || !get_mapped(page, memory + at, PAGE)) {
			snprintf(to, length, "cannot %s: %s\n", by_read ? "read" : "be mapped", strerror(errno));
			wrong++;
			break;
		}
		what = what_is_wrong(page, i, least, slots, most_stores);
		if (!what)
			continue;
		wrong++;
		n = snprintf(to, length, "at %#llx: found %#llx (%s), promised %#llx by syncs %llu and %llu\n",
			     (unsigned long long)place(i), (unsigned long long)page[place(i) % PAGE / UNIT], what,
			     (unsigned long long)least, (unsigned long long)events[0],
			     (unsigned long long)events[1]);
		if (n > 0 && (size_t)n < length) {
			to += n;
			length -= n;
		}
	}
	if (memory != MAP_FAILED)
		munmap((void *)memory, size);
	close(from);
	return wrong;
}
