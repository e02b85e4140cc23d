// SPDX-License-Identifier: GPL-2.0
/* worker: what worker.h says. */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdarg.h>

#include "worker.h"

const char *dir, *disk_path;
int seconds, workers = 4;
uint64_t seed = 1;
bool reflink, until_told;

int me;

static struct {
	const char *what;
	uint64_t a, b, c;
} history[24];
static unsigned int history_at;

/* Remember what is done next, with whatever tells most of it. */
void did(const char *what, uint64_t a, uint64_t b, uint64_t c)
{
	history[history_at % 24].what = what;
	history[history_at % 24].a = a;
	history[history_at % 24].b = b;
	history[history_at % 24].c = c;
	history_at++;
}

/* End the worker with what is wrong and what was done before. */
__attribute__((noreturn, format(printf, 1, 2)))
void fail(const char *format, ...)
{
	int error = errno;
	char text[400];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	printf("worker %d: %s (errno %d)\n", me, text, error);
	for (unsigned int i = history_at > 24 ? history_at - 24 : 0; i < history_at; i++)
		printf("  %s %#lx %#lx %#lx\n", history[i % 24].what, history[i % 24].a,
		       history[i % 24].b, history[i % 24].c);
	fflush(stdout);
	_exit(1);
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	if (!fault_ok)
		fail("SIGBUS at %p where the file has data", info->si_addr);
	siglongjmp(fault_out, 1);
}

/* Nothing is ever written to it. */
static bool input_has_ended(void)
{
	struct pollfd input = { .fd = STDIN_FILENO };

	return poll(&input, 1, 0) > 0;
}

/* Whether a worker goes on; see worker.h. */
bool go_on(uint64_t end, uint64_t ops, uint64_t least)
{
	return now_ms() < end || ops < least || (until_told && !input_has_ended());
}

/* What a worker does first. */
void become_worker(int number)
{
	struct sigaction action = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO };

	me = number;
	rng = (seed + 1) * 0x9e3779b97f4a7c15ull ^ (uint64_t)(me + 1) << 32;
	sigaction(SIGBUS, &action, NULL);
}

/* Take an option that all of these programs have; false for another. */
bool take_option(int option)
{
	switch (option) {
	case 'd':
		dir = optarg;
		return true;
	case 't':
		seconds = atoi(optarg);
		return true;
	case 's':
		seed = strtoull(optarg, NULL, 0);
		return true;
	case 'w':
		workers = atoi(optarg);
		return true;
	case 'D':
		disk_path = optarg;
		return true;
	case 'r':
		reflink = true;
		return true;
	case 'u':
		until_told = true;
		return true;
	default:
		return false;
	}
}
