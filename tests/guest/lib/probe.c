// SPDX-License-Identifier: GPL-2.0
/*
 * What Python cannot do: touch memory that may fault and say how it faulted, and keep storing
 * while other threads of the same process run Python. Built as a shared library at the first use.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct fault {
	int32_t signal;		/* 0: the access went through */
	int32_t code;
	uint64_t address;
	int32_t lsb;		/* log2 of the poisoned range, for BUS_MCEERR_* only */
	int32_t error;		/* errno of the call, where there is one */
};

static __thread sigjmp_buf out;
static __thread struct fault *fault;

static void caught(int signal, siginfo_t *info, void *context)
{
	(void)context;
	fault->signal = signal;
	fault->code = info->si_code;
	fault->address = (uint64_t)info->si_addr;
	fault->lsb = info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO ?
		     info->si_addr_lsb : 0;
	siglongjmp(out, 1);
}

static void catch(struct fault *f)
{
	struct sigaction action = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO };

	memset(f, 0, sizeof(*f));
	fault = f;
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
}

static void uncatch(void)
{
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
}

int probe_load(const volatile uint8_t *at, uint8_t *value, struct fault *f)
{
	catch(f);
	if (!sigsetjmp(out, 1))
		*value = *at;
	uncatch();
	return f->signal;
}

int probe_store(volatile uint8_t *at, uint8_t value, struct fault *f)
{
	catch(f);
	if (!sigsetjmp(out, 1))
		*at = value;
	uncatch();
	return f->signal;
}

/* madvise() that may raise a signal in the caller, as MADV_HWPOISON does. */
int probe_madvise(void *at, size_t length, int advice, struct fault *f)
{
	catch(f);
	if (!sigsetjmp(out, 1)) {
		if (madvise(at, length, advice))
			f->error = errno;
	}
	uncatch();
	return f->signal;
}

/*
 * Wait for a signal that somebody else's poison raises in this process. A byte into @ready says that
 * it will be caught.
 */
int probe_await(int ready, struct fault *f)
{
	catch(f);
	if (!sigsetjmp(out, 1) && write(ready, "r", 1) == 1) {
		for (;;)
			pause();
	}
	uncatch();
	return f->signal;
}

/* Touch a byte every @step; to write is one access that leaves the byte as it is. */
void touch(volatile uint8_t *at, size_t length, size_t step, int write)
{
	for (size_t i = 0; i < length; i += step) {
		if (write)
			__atomic_fetch_add(at + i, 0, __ATOMIC_RELAXED);
		else
			(void)at[i];
	}
}

/* A thread that stores a counter into a few pages in turn, and when it last did. */
struct writer {
	pthread_t thread;
	volatile uint8_t *at;
	size_t pages;
	volatile int stop;
	volatile uint64_t stores;
	uint64_t last_ns[64];
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void *writing(void *p)
{
	struct writer *w = p;

	while (!w->stop) {
		size_t i = w->stores % w->pages;

		*(volatile uint64_t *)(w->at + i * 4096) = w->stores + 1;
		w->last_ns[i] = now();
		w->stores++;
	}
	return NULL;
}

int writer_start(struct writer *w, void *at, size_t pages)
{
	memset(w, 0, sizeof(*w));
	w->at = at;
	w->pages = pages;
	return pages > 64 ? EINVAL : pthread_create(&w->thread, NULL, writing, w);
}

void writer_stop(struct writer *w)
{
	w->stop = 1;
	pthread_join(w->thread, NULL);
}

size_t writer_size(void)
{
	return sizeof(struct writer);
}

uint64_t writer_stores(struct writer *w)
{
	return w->stores;
}

uint64_t writer_last(struct writer *w, size_t page)
{
	return w->last_ns[page];
}

/*
 * Store into a private mapping of a file that somebody else cuts and grows. Each page of the file
 * holds nothing but its own byte, or zero. Returns the number of copies made, or a negative value
 * at the first byte that is neither: -(offset) - 1.
 */
long private_race(int fd, size_t length, const uint8_t *bytes, int ms)
{
	uint64_t end = now() + ms * 1000000ull;
	struct fault f;
	long copies = 0;

	while (now() < end || !copies) {
		uint8_t *m = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

		if (m == MAP_FAILED)
			return -1;
		for (size_t i = 0; i < length; i += 4096) {
			if (probe_store(m + i, 0xa5, &f))
				continue;
			copies++;
			for (size_t j = 1; j < 4096; j += 7) {
				uint8_t b;

				/* The file was cut after the copy: the copy goes with it. */
				if (probe_load(m + i + j, &b, &f))
					break;
				if (b && b != bytes[i / 4096]) {
					munmap(m, length);
					return -(long)(i + j) - 1;
				}
			}
		}
		munmap(m, length);
	}
	return copies;
}

/* A thread that makes pages guard pages and takes that back, over and over. */
struct guard {
	pthread_t thread;
	uint8_t *at;
	size_t length;
	volatile int stop;
	volatile long rounds;
};

static void *guard_loop(void *arg)
{
	struct guard *guard = arg;

	while (!guard->stop) {
		madvise(guard->at, guard->length, 102);
		madvise(guard->at, guard->length, 103);
		guard->rounds++;
	}
	return NULL;
}

/*
 * Unmap a mapping and access it every @step, for @milliseconds and until the thread had as many rounds
 * as pages are guarded at times. In @counts: accesses; those that ended in SIGSEGV inside and outside of
 * the guarded part; those that ended in any other signal.
 */
int guard_race(uint8_t *at, size_t length, size_t step, size_t guarded, size_t guarded_length,
	       int milliseconds, long *counts)
{
	struct guard guard = { .at = at + guarded, .length = guarded_length };
	uint64_t end = now() + milliseconds * 1000000ULL;
	struct fault f;
	uint8_t value;

	memset(counts, 0, 4 * sizeof(*counts));
	if (pthread_create(&guard.thread, NULL, guard_loop, &guard))
		return errno;
	while (now() < end || guard.rounds < 20 || counts[0] < 200) {
		madvise(at, length, MADV_DONTNEED);
		for (size_t i = 0; i < length; i += step) {
			if (i / step % 2)
				probe_store(at + i, 1, &f);
			else
				probe_load(at + i, &value, &f);
			counts[0]++;
			if (f.signal == SIGSEGV)
				counts[i >= guarded && i < guarded + guarded_length ? 1 : 2]++;
			else if (f.signal)
				counts[3]++;
		}
	}
	guard.stop = 1;
	pthread_join(guard.thread, NULL);
	return 0;
}

/* A thread that stores to where it is told, once each time. */
struct storer {
	pthread_t thread;
	uint8_t *volatile at;
	volatile long wanted, begun, done;
	volatile int stop;
};

static void *store_loop(void *arg)
{
	struct storer *storer = arg;

	while (!storer->stop) {
		if (storer->done == storer->wanted) {
			sched_yield();
			continue;
		}
		storer->begun++;
		*storer->at = 1;
		storer->done++;
	}
	return NULL;
}

/*
 * Two threads store to the same 2 MiB of a new mapping of @fd at once, one of them while the process does
 * without huge pages, for @milliseconds. Returns how often, or -1.
 */
long table_race(int fd, size_t length, int milliseconds)
{
	struct storer storer = { .stop = 0 };
	uint64_t end = now() + milliseconds * 1000000ULL;
	long rounds = 0;

	if (pthread_create(&storer.thread, NULL, store_loop, &storer))
		return -1;
	while (now() < end || rounds < 1000) {
		uint8_t *m = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

		if (m == MAP_FAILED) {
			rounds = -1;
			break;
		}
		for (size_t i = 0; i < length; i += 2 << 20) {
			prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
			storer.at = m + i + 4096;
			storer.wanted++;
			while (storer.begun != storer.wanted)
				sched_yield();
			/* Some time until the other is where it has found no table. */
			for (volatile long wait = rounds % 64 * 32; wait > 0; wait--)
				;
			prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
			*(volatile uint8_t *)(m + i) = 1;
			while (storer.done != storer.wanted)
				sched_yield();
			rounds++;
		}
		munmap(m, length);
	}
	storer.stop = 1;
	pthread_join(storer.thread, NULL);
	return rounds;
}
