// SPDX-License-Identifier: GPL-2.0
/*
 * attack-process: an attacker, the files and the memory that it has, and how it picks what to do.
 */
#include "attack.h"

#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

const size_t sizes[OWN_FILES] = { PAGE, 16 * PAGE, PMD, 2 * PMD + 3 * PAGE, 4 * PMD };
int files[FILES], direct[OWN_FILES], pipes[2][2], sockets[2], fault_fd = -1, self = -1;
struct io_uring ring;
bool has_ring;
aio_context_t aio;
int keys[2];
uint8_t *scratch;

long note(const char *what, uint64_t a, uint64_t b, uint64_t c)
{
	unsigned int at = control->threads[me][thread].at++ % 32;
	struct call *call = &control->threads[me][thread].last[at];

	call->what = what;
	call->a = a;
	call->b = b;
	call->c = c;
	call->result = -9999;
	return 0;
}

/* No word that nobody but the victim may see. */
void look(const uint64_t *words, size_t bytes, const char *where)
{
	for (size_t i = 0; i < bytes / 8; i++)
		if (words[i] >> 32 == SECRET)
			wrong("process %d thread %d sees the secret word %#lx at %#lx of %s", me,
			      thread, words[i], i * 8, where);
}

int pick_file(void)
{
	return files[below(4) ? below(OWN_FILES) : below(FILES)];
}

size_t pick_length(void)
{
	static const size_t lengths[] = {
		1, 8, 512, PAGE - 1, PAGE, PAGE, PAGE, 2 * PAGE, 4 * PAGE, 16 * PAGE, 16 * PAGE,
		64 * PAGE, PMD - PAGE, PMD, PMD, PMD + PAGE, 2 * PMD, 4 * PMD, 0, ~0ul, -PAGE,
		1ul << 63, 1ul << 47,
	};

	return lengths[below(below(8) ? 18 : sizeof(lengths) / sizeof(*lengths))];
}

off_t pick_offset(void)
{
	switch (below(8)) {
	case 0:
		return below(MOST_FILE);
	case 1:
		return below(4) * PMD;
	case 2:
		return below(2) ? 0 : below(2) ? -(off_t)PAGE : (off_t)(1ull << (12 + below(51)));
	default:
		return below(2 * PMD / PAGE) * PAGE;
	}
}

uint8_t *pick(void)
{
	if (!below(3))
		return ARENA + below(ARENA_BYTES / PMD) * PMD;
	return ARENA + below(ARENA_BYTES / PAGE) * PAGE + (below(16) ? 0 : below(PAGE));
}

/* A length from there on that stays inside, or is beyond all sense. */
size_t length_at(const uint8_t *at)
{
	size_t length = pick_length(), room = ARENA + ARENA_BYTES - at;

	return length < 1ul << 40 && length > room ? room : length == 1ul << 47 ? ~0ul : length;
}

size_t inside(const uint8_t *at)
{
	size_t length = pick_length(), room = ARENA + ARENA_BYTES - at;

	return length < room ? length : room;
}

/* A buffer: of the arena, or plain memory. */
uint8_t *pick_buffer(size_t *length)
{
	uint8_t *at;

	if (!below(3)) {
		*length = 1 + below(PMD);
		return scratch;
	}
	at = pick();
	*length = inside(at);
	if (*length > PMD)
		*length = PMD;
	return at;
}

static const struct attack {
	const char *name;
	void (*try)(void);
	int weight;
} attacks[] = {
	{ "mmap", do_mmap, 14 }, { "munmap", do_munmap, 4 }, { "mprotect", do_mprotect, 4 },
	{ "mremap", do_mremap, 5 }, { "madvise", do_madvise, 8 }, { "guard", do_guard, 4 },
	{ "process_madvise", do_process_madvise, 3 }, { "load", do_load, 8 },
	{ "store", do_store, 10 }, { "sync", do_sync, 4 }, { "lock", do_lock, 3 },
	{ "query", do_query, 4 }, { "numa", do_numa, 3 }, { "remap_file", do_remap_file, 2 },
	{ "copy", do_copy, 6 }, { "layout", do_layout, 6 }, { "io", do_io, 10 },
	{ "pipe", do_pipe, 8 }, { "process_vm", do_process_vm, 3 }, { "fork", do_fork, 3 },
	{ "userfault", do_userfault, 8 }, { "uring", do_uring, 5 }, { "aio", do_aio, 3 },
	{ "proc", do_proc, 4 }, { "futex", do_futex, 3 }, { "file", do_file, 6 },
};

static bool is_excluded(const char *excluded, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = excluded; (at = strstr(at, name)); at += length)
		if ((at == excluded || at[-1] == ',') && (!at[length] || at[length] == ','))
			return true;
	return false;
}

static int wheel[256], wheel_size;
static uint64_t share, life;

/* Which attacks there are, and how many of them each process makes. Before the processes are there. */
void choose_attacks(const char *excluded, uint64_t calls)
{
	share = calls;
	for (size_t i = 0; i < sizeof(attacks) / sizeof(*attacks); i++)
		for (int j = 0; j < attacks[i].weight && !is_excluded(excluded, attacks[i].name); j++)
			wheel[wheel_size++] = i;
}

static void *attacker_thread(void *number)
{
	thread = (intptr_t)number;
	control->threads[me][thread].tid = gettid();
	chance(me, thread, life);
	catch_faults();
	while (control->calls[me] < share && !control->wrong[0]) {
		attacks[wheel[below(wheel_size)]].try();
		__atomic_fetch_add(&control->calls[me], 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static int must_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		wrong("open of %s: errno %d", path, errno);
	return fd;
}

__attribute__((noreturn)) void attacker(uint64_t number)
{
	struct rlimit limit = { MOST_FILE, MOST_FILE };
	pthread_t threads[THREADS];
	char path[64];

	life = number;
	setpgid(0, 0);
	setrlimit(RLIMIT_FSIZE, &limit);
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 4 * PMD });
	if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY))
		wrong("cannot become nobody");
	/* Both are forgotten with the rights. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 1);
	umask(077);
	for (int i = 0; i < OWN_FILES; i++) {
		snprintf(path, sizeof(path), "own/%d.%d", me, i);
		files[i] = must_open(path, O_RDWR | O_CREAT);
		if (below(4) && !ftruncate(files[i], sizes[i]) && below(2))
			fallocate(files[i], 0, 0, sizes[i]);
		direct[i] = must_open(path, O_RDWR | O_DIRECT);
	}
	files[OWN_FILES] = must_open("lent", O_RDONLY);
	files[OWN_FILES + 1] = must_open("lent", O_RDONLY);
	files[OWN_FILES + 2] = must_open("shared", O_RDWR);
	files[OWN_FILES + 3] = memfd_create("attack", MFD_CLOEXEC);
	if (files[OWN_FILES + 3] < 0 || ftruncate(files[OWN_FILES + 3], 2 * PMD) ||
	    pipe2(pipes[0], O_NONBLOCK | O_CLOEXEC) || pipe2(pipes[1], O_NONBLOCK | O_CLOEXEC) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets))
		wrong("the attackers' other files: errno %d", errno);
	self = syscall(SYS_pidfd_open, getpid(), 0);
	has_ring = !io_uring_queue_init(16, &ring, 0);
	syscall(SYS_io_setup, 16, &aio);
	keys[0] = pkey_alloc(0, 0);
	keys[1] = pkey_alloc(0, PKEY_DISABLE_WRITE);
	scratch = mmap(NULL, PMD + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mmap(ARENA, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
		 MAP_FIXED_NOREPLACE, -1, 0) != ARENA || scratch == MAP_FAILED)
		wrong("no memory");
	for (int i = 1; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, attacker_thread, (void *)(intptr_t)i))
			wrong("no thread");
	attacker_thread(0);
	for (int i = 1; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	_exit(0);
}
