// SPDX-License-Identifier: GPL-2.0
/*
 * attack-victim: uses its files meanwhile and compares every byte.
 */
#include "attack.h"

#include <linux/falloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>

struct file {
	const char *path;
	int fd;
	uint32_t whose;
	uint8_t *map;
	uint8_t *model;
	size_t size;
};

static void fill(struct file *f, size_t at, size_t length)
{
	static uint32_t number;

	number++;
	for (size_t i = at; i < at + length; i += 8)
		*(uint64_t *)(f->model + i) = (uint64_t)f->whose << 32 | number << 8 |
					      (i >> 3 & 0xff);
}

static void compare(struct file *f, const uint8_t *got, size_t at, size_t length, const char *how)
{
	size_t i;

	if (!memcmp(got, f->model + at, length))
		return;
	for (i = 0; got[i] == f->model[at + i]; i++)
		;
	i &= ~7ul;
	wrong("the victim's %s by %s: %#lx at %#lx (size %#lx), not %#lx", f->path, how,
	      *(uint64_t *)(got + i), at + i, f->size, *(uint64_t *)(f->model + at + i));
}

#define MUST(what, condition)						\
	do {								\
		control->victim_is_in = what;				\
		if (!(condition))					\
			wrong("the victim's " what " of %s: errno %d", f->path, errno);	\
	} while (0)

static void open_file(struct file *f, const char *path, uint32_t whose, mode_t mode)
{
	f->path = path;
	f->whose = whose;
	f->fd = open(path, O_RDWR | O_CREAT, mode);
	if (f->fd < 0 || fchmod(f->fd, mode))
		wrong("the victim's open of %s: errno %d", path, errno);
	f->map = mmap(NULL, MOST_FILE + PMD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	f->map = (uint8_t *)(((uintptr_t)f->map + PMD - 1) & ~(PMD - 1));
	if (mmap(f->map, MOST_FILE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, f->fd, 0) != f->map)
		wrong("the victim's mmap of %s: errno %d", path, errno);
	f->model = calloc(1, MOST_FILE);
}

/* One operation on a file that the victim alone changes. */
static void use(struct file *f, uint8_t *bounce, bool may_cut)
{
	size_t at = below(4) ? below(4 * PMD / PAGE) * PAGE : below(4) * PMD;
	size_t length = below(8) ? (1 + below(16)) * PAGE : PMD;

	if (at + length > f->size) {
		at = at < f->size ? at : 0;
		length = f->size - at < length ? f->size - at : length;
	}
	switch (below(may_cut ? 10 : 7)) {
	case 0 ... 1:
		fill(f, at, length);
		MUST("write", pwrite(f->fd, f->model + at, length, at) == (ssize_t)length);
		break;
	case 2 ... 3:
		control->victim_is_in = "store";
		fill(f, at, length);
		memcpy(f->map + at, f->model + at, length);
		break;
	case 4:
		MUST("fsync", !(below(2) ? fsync(f->fd) : msync(f->map, MOST_FILE, MS_SYNC)));
		break;
	case 5:
		MUST("read", pread(f->fd, bounce, length, at) == (ssize_t)length);
		compare(f, bounce, at, length, "read");
		break;
	case 6:
		control->victim_is_in = "load";
		memcpy(bounce, f->map + at, length);
		compare(f, bounce, at, length, "mapping");
		break;
	case 7:
		at = below(4 * PMD / PAGE) * PAGE;
		MUST("truncate", !ftruncate(f->fd, at));
		memset(f->model + at, 0, MOST_FILE - at);
		at = PMD + below(3 * PMD / PAGE) * PAGE;
		MUST("growth", !ftruncate(f->fd, at));
		memset(f->model + at, 0, MOST_FILE - at);
		f->size = at;
		break;
	case 8:
		MUST("hole", !fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
					length));
		memset(f->model + at, 0, length);
		break;
	case 9:
		/* The blocks go to whoever wants some next. */
		MUST("removal", !unlink(f->path));
		close(f->fd);
		munmap(f->map, MOST_FILE);
		free(f->model);
		open_file(f, f->path, f->whose, 0600);
		f->size = 2 * PMD;
		MUST("growth", !ftruncate(f->fd, f->size));
		break;
	}
}

/* The file that all may write: who knows what it holds, but using it must not take for ever. */
static void use_shared(int fd, uint8_t *map)
{
	size_t at = below(4 * PMD / PAGE) * PAGE;

	switch (below(4)) {
	case 0:
		control->victim_is_in = "write of the shared file";
		pwrite(fd, map, 8, at);
		break;
	case 1:
		control->victim_is_in = "store to the shared file";
		(void)MAY_FAULT(put(map + at, (uint64_t)OF_VICTIM << 32));
		break;
	case 2:
		control->victim_is_in = "load from the shared file";
		(void)MAY_FAULT(*(volatile uint64_t *)(map + at));
		break;
	case 3:
		control->victim_is_in = "fsync of the shared file";
		fsync(fd);
		break;
	}
}

__attribute__((noreturn)) void victim(void)
{
	struct file secrets[2] = { 0 }, lent = { 0 };
	uint8_t *bounce = malloc(MOST_FILE), *map;
	int shared;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setpgid(0, 0);
	catch_faults();
	chance(1000, 0, 0);
	open_file(&secrets[0], "secret0", SECRET, 0600);
	open_file(&secrets[1], "secret1", SECRET, 0600);
	open_file(&lent, "lent", OF_VICTIM, 0644);
	for (int i = 0; i < 2; i++) {
		secrets[i].size = 2 * PMD;
		if (ftruncate(secrets[i].fd, secrets[i].size))
			wrong("ftruncate");
	}
	lent.size = 4 * PMD;
	fill(&lent, 0, lent.size);
	if (pwrite(lent.fd, lent.model, lent.size, 0) != (ssize_t)lent.size)
		wrong("the victim's first write");
	shared = open("shared", O_RDWR | O_CREAT, 0666);
	if (shared < 0 || fchmod(shared, 0666) || ftruncate(shared, 4 * PMD))
		wrong("shared file");
	map = mmap(NULL, 4 * PMD, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
	control->rounds = 1;
	while (!control->stop) {
		switch (below(5)) {
		case 0 ... 2:
			use(&secrets[below(2)], bounce, true);
			break;
		case 3:
			use(&lent, bounce, false);
			break;
		case 4:
			use_shared(shared, map);
			break;
		}
		control->rounds++;
	}
	for (int i = 0; i < 3; i++) {
		struct file *f = i < 2 ? &secrets[i] : &lent;

		MUST("last read", pread(f->fd, bounce, f->size, 0) == (ssize_t)f->size);
		compare(f, bounce, 0, f->size, "the last read");
		compare(f, f->map, 0, f->size, "the last look at the mapping");
	}
	_exit(0);
}
