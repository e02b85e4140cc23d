// SPDX-License-Identifier: GPL-2.0
/*
 * One system call, or one access to memory, in which a certain allocation of the kernel fails: what
 * is between the arming and the disarming must not be Python. Built as a shared library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static sigjmp_buf out;
static volatile sig_atomic_t signalled;

static void caught(int signal)
{
	signalled = signal;
	siglongjmp(out, 1);
}

/* The task's n-th allocation from now on fails; none with 0. */
static void arm(int fd, unsigned int n)
{
	char text[16];

	snprintf(text, sizeof(text), "%u", n);
	if (pwrite(fd, text, strlen(text), 0) < 0)
		abort();
}

/* How many more allocations there would have to be; 0 if one has failed. */
static unsigned int disarm(int fd)
{
	char text[16] = "";

	if (pread(fd, text, sizeof(text) - 1, 0) < 0)
		abort();
	arm(fd, 0);
	return atoi(text);
}

/* Returns the result of the system call, or a negative errno. */
long sweep_call(int fd, unsigned int n, unsigned int *left, long number, const long *args)
{
	long result;

	arm(fd, n);
	result = syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]);
	if (result == -1)
		result = -errno;
	*left = disarm(fd);
	return result;
}

/* Loads a byte every @step, or with @value >= 0 stores it. Returns the signal that came. */
int sweep_touch(int fd, unsigned int n, unsigned int *left, volatile uint8_t *at, size_t length,
		size_t step, int value)
{
	struct sigaction action = { .sa_handler = caught };

	signalled = 0;
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	if (!sigsetjmp(out, 1)) {
		arm(fd, n);
		for (size_t i = 0; i < length; i += step) {
			if (value >= 0)
				at[i] = value;
			else
				(void)at[i];
		}
	}
	*left = disarm(fd);
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	return signalled;
}

/*
 * Forks a child that loads from each page at @at, and waits for its end. Returns its number, a negative
 * errno, or -1000 less what wait() says of a child that did not end well.
 */
long sweep_fork(int fd, unsigned int n, unsigned int *left, volatile uint8_t *at, size_t length)
{
	long child;
	int status;

	arm(fd, n);
	child = syscall(SYS_fork);
	if (!child) {
		/* What fails for the parent does not for the child, which has inherited whether it can. */
		int own = open("/proc/self/make-it-fail", O_RDWR);

		if (own >= 0)
			arm(own, 0);
		for (size_t i = 0; i < length; i += 4096)
			(void)at[i];
		_exit(0);
	}
	if (child < 0)
		child = -errno;
	*left = disarm(fd);
	if (child > 0 && (waitpid(child, &status, 0) != child || status))
		return -1000 - status;
	return child;
}
