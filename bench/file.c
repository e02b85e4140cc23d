// SPDX-License-Identifier: GPL-2.0
/* file: the files that rows are about, their mappings, and the order in which they are touched. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"

/* A new file, by a name that no scenario used before. */
int fresh(size_t size)
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
	/* What older files gave back is free from here on. */
	if (syncfs(fd))
		err(1, "syncfs");
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
void fill(int fd, size_t size)
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
	/* With the first read the module learns how the filesystem does it, which stores in a row need. */
	if (pread(fd, data, 1, 0) != 1)
		err(1, "pread");
}

void map(struct file *file)
{
	size_t align = file->unit > PMD ? file->unit : PMD, size = file->size;
	char *area, *at;

	area = mmap(NULL, size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		    0);
	if (area == MAP_FAILED)
		err(1, "mmap of %zu", size + align);
	at = (char *)(((uintptr_t)area + align - 1) & -align);
	if (at > area)
		munmap(area, at - area);
	munmap(at + size, area + align - at);
	if (mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file->fd, 0) ==
	    MAP_FAILED)
		err(1, "mmap of %zu", size);
	if (file->unit == PAGE && madvise(at, size, MADV_NOHUGEPAGE))
		err(1, "madvise");
	file->at = at;
}

void unmap(struct file *file)
{
	munmap(file->at, file->size);
	file->at = NULL;
}

void remap(struct file *file)
{
	unmap(file);
	map(file);
}

#define SEED 88172645463325252ULL

static uint64_t noise_state;

static uint64_t noise(void)
{
	noise_state ^= noise_state << 13;
	noise_state ^= noise_state >> 7;
	noise_state ^= noise_state << 17;
	return noise_state;
}

void shuffle(uint32_t *steps, size_t count)
{
	size_t i;

	for (i = count; i > 1; i--) {
		size_t j = noise() % i;
		uint32_t other = steps[j];

		steps[j] = steps[i - 1];
		steps[i - 1] = other;
	}
}

void plan(struct file *file, enum order order)
{
	size_t count = file->size / file->step, i, j;
	uint32_t *steps = malloc(count * sizeof(*steps));

	if (!steps)
		err(1, "memory");
	/* The same plan in every run, whatever ran before. */
	noise_state = SEED;
	file->touches = count;
	file->operations = file->size / file->unit;
	switch (order) {
	case SEQUENTIAL:
	case RANDOM:
		for (i = 0; i < count; i++)
			steps[i] = i;
		if (order == RANDOM)
			shuffle(steps, count);
		break;
	case SPARSE:
	case BURSTS:
		/* Both touch as much; bursts lie anywhere in their range, and come in any order. */
		count /= SPARSITY;
		file->touches = count;
		file->operations = count;
		if (order == SPARSE) {
			for (i = 0; i < count; i++)
				steps[i] = i * SPARSITY;
			break;
		}
		count /= BURST;
		for (i = 0; i < count; i++)
			steps[i] = i * SPARSITY * BURST + noise() % ((SPARSITY - 1) * BURST);
		shuffle(steps, count);
		for (i = count; i-- > 0;)
			for (j = 0; j < BURST; j++)
				steps[i * BURST + j] = steps[i] + j;
		break;
	}
	file->steps = steps;
}

/* A mapped file of which nothing was touched yet. */
struct file make(size_t size, size_t unit, enum order order, enum content content)
{
	struct file file = {
		.fd = fresh(size),
		.size = size,
		.unit = unit,
		.step = unit < PMD ? unit : PMD,
	};

	if (content == FILLED)
		fill(file.fd, size);
	else if (content == UNWRITTEN)
		allocate(file.fd, size);
	plan(&file, order);
	map(&file);
	return file;
}

void discard(struct file *file)
{
	if (file->at)
		unmap(file);
	close(file->fd);
	free(file->steps);
}
