// SPDX-License-Identifier: GPL-2.0
/* known-two: what the model says of two processors. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "known.h"

/* This thread has a processor that the other does not use. */
static void use_processor(unsigned int number)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(number, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		wrong("a processor", "cannot be used", number);
}

/* What another processor does: it is asked by this, and answers by clearing it. */
static _Atomic unsigned int asked;
static uint8_t *asked_of;
#define WRITE_BACK 1
#define FENCE 2
#define END 4

static void *do_elsewhere(void *data)
{
	(void)data;
	use_processor(1);
	/* Until it is told to end. */
	for (;;) {
		unsigned int what = atomic_load_explicit(&asked, memory_order_acquire);

		if (what & END)
			return NULL;
		if (what & WRITE_BACK)
			clwb(asked_of);
		if (what & FENCE)
			sfence();
		if (what)
			atomic_store_explicit(&asked, 0, memory_order_release);
	}
}

static void elsewhere(unsigned int what, uint8_t *at)
{
	asked_of = at;
	atomic_store_explicit(&asked, what, memory_order_release);
	/* The other thread does nothing else than what it is asked. */
	while (atomic_load_explicit(&asked, memory_order_relaxed))
		;
}

/* A fence waits for write-backs of its own processor, of whatever line, and for no others. */
void other_processor(void)
{
	unsigned int i, lost[2] = { 0 };
	pthread_t thread;
	uint64_t got;
	uint8_t *at;

	use_processor(0);
	atomic_store(&asked, 0);
	pthread_create(&thread, NULL, do_elsewhere, NULL);
	/*
	 * An interrupt between the write-back and the cut fences, too, and comes in most turns where the
	 * emulator has to share its processors: until one went without.
	 */
	for (i = 0; i < (eadr ? 20 : 5000) && !lost[0]; i++) {
		at = fresh(1);
		store_clwb(at);
		elsewhere(FENCE, NULL);
		lost[0] += left(cut(POWERCUT_LOSES_ALL), at) == 0;
	}
	for (i = 0; i < (eadr ? 20 : 5000) && !lost[1]; i++) {
		at = fresh(1);
		store(at, V);
		elsewhere(WRITE_BACK, at);
		sfence();
		lost[1] += left(cut(POWERCUT_LOSES_ALL), at) == 0;
	}
	if (eadr && (lost[0] || lost[1]))
		wrong("two processors", "lose something with eADR", lost[0]);
	at = fresh(1);
	store(at, V);
	elsewhere(WRITE_BACK | FENCE, at);
	got = left(cut(POWERCUT_LOSES_ALL), at);
	if (got != V)
		wrong("another processor's write-back and fence", "is left", got);
	/* What was written back first does not come after what was written back last. */
	store(at, W);
	elsewhere(WRITE_BACK, at);
	store(at, V + 1);
	clwb(at);
	sfence();
	elsewhere(FENCE, NULL);
	got = left(cut(POWERCUT_LOSES_ALL), at);
	if (got != V + 1)
		wrong("an older write-back of another processor", "is left", got);
	atomic_store(&asked, END);
	pthread_join(thread, NULL);
	if (!lost[0] && !eadr)
		wrong("another processor's fence", "waits for this one's write-backs", 0);
	if (!lost[1] && !eadr)
		wrong("this processor's fence", "waits for another one's write-backs", 0);
}

/* Lines of some pages, which a thread stores to through pages of its own. */
#define PAGES 4
#define LINES (PAGES * PAGE / LINE)
static uint8_t *mapped;

static void *store_to_each_line(void *data)
{
	static struct powercut late;
	unsigned int i;

	(void)data;
	use_processor(1);
	late.op = POWERCUT_LATE;
	late.a[0] = 300;
	powercut(&late);
	/* Once to each: a store that is missed would be hidden by another one to the same line. */
	for (i = 0; i < LINES; i++)
		store(mapped + i * LINE, V + i);
	late.a[0] = 0;
	powercut(&late);
	return NULL;
}

/*
 * A processor stores, and before the emulation tells of it another one takes the page out of the page
 * table, or write-protects it. No store may escape the model; how many did, it says in the end.
 */
void while_mappings_change(int fd, uint64_t offset)
{
	volatile uint64_t *at;
	pthread_t thread;
	unsigned int i;

	used = (used + PAGE - 1) / PAGE * PAGE;
	at = (volatile uint64_t *)fresh(LINES);
	if (!bytes)
		return;
	use_processor(0);
	/* By pages, as this is no place for a larger entry. */
	mapped = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		      offset + ((uint8_t *)at - memory));
	if (mapped == MAP_FAILED) {
		wrong("stores while mappings change", "mmap fails", 0);
		return;
	}
	pthread_create(&thread, NULL, store_to_each_line, NULL);
	for (i = 0; i < LINES; i++) {
		uint8_t *page = mapped + i * LINE / PAGE * PAGE;

		/* The other thread does nothing else than to store there. */
		while (at[i * LINE / sizeof(*at)] != V + i)
			;
		if (i % 8 ? madvise(page, PAGE, MADV_DONTNEED) : msync(page, PAGE, MS_SYNC))
			wrong("stores while mappings change", "msync or madvise fails", i);
	}
	pthread_join(thread, NULL);
	munmap(mapped, PAGES * PAGE);
}
