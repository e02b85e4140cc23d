// SPDX-License-Identifier: GPL-2.0
/*
 * An unprivileged user against the others: processes of several threads, of a user without any
 * right, issue system calls that take a mapping or a file, at random, with arguments that make
 * sense and arguments that do not, on mappings and files of all sizes. Beside them a victim uses
 * files of his own, and two that the attackers may read or write as well, and compares every byte.
 *
 * What must hold: the victim's operations complete and his files have what he wrote; no word of his
 * secret files is ever seen in what the attackers can read; a process that is killed goes away,
 * wherever it is. (What the kernel says meanwhile is for the caller to look at.) An attacker that
 * dies of its own doing, or waits for itself, is ended and has a successor until all calls are made.
 *
 * The files of the victim consist of words that say whose they are.
 */
#include <dirent.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "attack.h"

struct control *control;
uint64_t seed = 1;
int me;
__thread int thread;

static const char *dir, *excluded = "";
static uint64_t budget = 20000, share;
static int processes = 3;
static double pace = 1;

void chance(uint64_t a, uint64_t b, uint64_t c)
{
	rng = (seed + 1) * 0x9e3779b97f4a7c15ull ^ (a + 1) << 48 ^ (b + 1) << 32 ^ (c + 1);
	for (int i = 0; i < 8; i++)
		below(1);
}

/* Something is not as it must be: say so once, and end. */
__attribute__((noreturn, format(printf, 1, 2)))
void wrong(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	if (!control->wrong[0])
		vsnprintf(control->wrong, sizeof(control->wrong), format, arguments);
	va_end(arguments);
	_exit(1);
}

static void on_fault(int number)
{
	if (!fault_ok)
		_exit(100 + number);
	siglongjmp(fault_out, 1);
}

void catch_faults(void)
{
	struct sigaction action = { .sa_handler = on_fault };

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
}

static void show_file(const char *path)
{
	char line[200];
	FILE *f = fopen(path, "r");

	while (f && fgets(line, sizeof(line), f))
		printf("    %s", line);
	if (f)
		fclose(f);
}

static void show(int number, pid_t pid)
{
	char path[64];

	printf("process %d (%d):\n", number, pid);
	for (int i = 0; i < THREADS && number < PROCESSES; i++) {
		unsigned int at = control->threads[number][i].at;

		printf("  thread %d\n", i);
		for (unsigned int j = at > 12 ? at - 12 : 0; j < at; j++) {
			struct call *call = &control->threads[number][i].last[j % 32];

			printf("    %.60s: %#lx %#lx %#lx = %ld\n", call->what, call->a, call->b,
			       call->c, call->result);
		}
		snprintf(path, sizeof(path), "/proc/%d/stack", control->threads[number][i].tid);
		show_file(path);
	}
	snprintf(path, sizeof(path), "/proc/%d/stack", pid);
	show_file(path);
}

static void show_all(const pid_t *pids, pid_t victim_pid)
{
	for (int i = 0; i < processes; i++)
		show(i, pids[i]);
	printf("the victim (%d) is in %s:\n", victim_pid, (const char *)control->victim_is_in);
	show(PROCESSES, victim_pid);
	fflush(stdout);
}

/* Whether no thread of a process works, or wants to. */
static bool sleeps(pid_t pid)
{
	struct dirent *entry;
	bool sleep = true;
	char path[300], line[300], *state;
	FILE *f;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	tasks = opendir(path);
	while (tasks && sleep && (entry = readdir(tasks))) {
		snprintf(path, sizeof(path), "/proc/%d/task/%s/stat", pid, entry->d_name);
		f = fopen(path, "r");
		if (!f)
			continue;
		state = fgets(line, sizeof(line), f) ? strrchr(line, ')') : NULL;
		if (state)
			sleep = state[2] != 'R';
		fclose(f);
	}
	if (tasks)
		closedir(tasks);
	return sleep;
}

/*
 * End a process and what it has forked. Until it is reaped its group is there, so nothing but a signal
 * that was not sent keeps it alive.
 */
static bool end_group(pid_t pid)
{
	if (!kill(-pid, SIGKILL))
		return true;
	printf("group %d cannot be killed: errno %d\n", pid, errno);
	return false;
}

/* A limit is for what should never happen; nothing is taken for right because of the time. */
#define LIMIT_MS ((uint64_t)(60000 * pace))
/* After how long without a call a process is ended, and how often before it is looked whether it sleeps. */
#define IDLE_MS ((uint64_t)(1500 * pace))
#define LOOK_MS 1500

int main(int argc, char **argv)
{
	pid_t pids[PROCESSES] = { 0 }, victim_pid, pid;
	uint64_t seen[PROCESSES] = { 0 }, since[PROCESSES] = { 0 }, killed_at[PROCESSES] = { 0 };
	uint64_t looked[PROCESSES] = { 0 };
	uint64_t rounds = 0, rounds_since, lives = 0, kills = 0, idle = 0, next_kill, total;
	int option, status, failed = 0, left;

	while ((option = getopt(argc, argv, "d:n:s:w:x:p:")) > 0) {
		switch (option) {
		case 'd':
			dir = optarg;
			break;
		case 'n':
			budget = strtoull(optarg, NULL, 0);
			break;
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 'w':
			processes = atoi(optarg);
			break;
		case 'x':
			excluded = optarg;
			break;
		case 'p':
			pace = atof(optarg);
			break;
		default:
			return 2;
		}
	}
	if (!dir || processes < 1 || processes > PROCESSES || chdir(dir)) {
		fputs("usage: attack -d DIR [-n CALLS] [-s SEED] [-w PROCESSES] [-x ATTACK,...] [-p PACE]\n",
		      stderr);
		return 2;
	}
	control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	if (control == MAP_FAILED || mkdir("own", 0700) || chown("own", NOBODY, NOBODY))
		return 2;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	share = budget / processes;
	choose_attacks(excluded, share);
	chance(2000, 0, 0);
	victim_pid = fork();
	if (!victim_pid)
		victim();
	rounds_since = now_ms();
	while (!control->rounds && !control->wrong[0] && now_ms() < rounds_since + LIMIT_MS)
		usleep(1000);
	next_kill = budget / 40;
	for (;;) {
		left = 0;
		total = 0;
		for (int i = 0; i < processes; i++) {
			total += control->calls[i];
			if (!pids[i] && control->calls[i] < share && !control->wrong[0]) {
				lives++;
				fflush(stdout);
				pid = fork();
				if (!pid) {
					me = i;
					chance(i, 100, lives);
					attacker(lives);
				}
				if (pid < 0) {
					printf("fork: errno %d\n", errno);
					failed = 1;
					break;
				}
				/* It may have to be killed before it comes to do that by itself. */
				setpgid(pid, pid);
				pids[i] = pid;
				since[i] = now_ms();
				killed_at[i] = 0;
			}
			left += pids[i] != 0;
		}
		if (!left || failed)
			break;
		/* Reaped is what was started here, and what it has left. */
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
			if (pid == victim_pid) {
				failed = 1;
				victim_pid = 0;
			}
			for (int i = 0; i < processes; i++)
				if (pids[i] == pid) {
					kill(-pid, SIGKILL);
					pids[i] = 0;
				}
		}
		if (control->wrong[0])
			failed = 1;
		if (total >= next_kill) {
			int i = below(processes);

			next_kill += 1 + below(budget / 20);
			if (pids[i] && !killed_at[i]) {
				failed |= !end_group(pids[i]);
				killed_at[i] = now_ms();
				kills++;
			}
		}
		for (int i = 0; i < processes; i++) {
			if (control->calls[i] != seen[i]) {
				seen[i] = control->calls[i];
				since[i] = now_ms();
			}
			if (!pids[i])
				continue;
			if (!killed_at[i] && now_ms() > looked[i] + LOOK_MS) {
				looked[i] = now_ms();
				/* Waits for itself: its own affair, as long as it can be killed. */
				if (looked[i] > since[i] + IDLE_MS ||
				    (looked[i] > since[i] + LOOK_MS && sleeps(pids[i]))) {
					failed |= !end_group(pids[i]);
					killed_at[i] = now_ms();
					idle++;
				}
			}
			if (killed_at[i] && now_ms() > killed_at[i] + LIMIT_MS) {
				printf("process %d was killed and does not go away\n", i);
				failed = 1;
			}
		}
		if (control->rounds != rounds) {
			rounds = control->rounds;
			rounds_since = now_ms();
		} else if (now_ms() > rounds_since + LIMIT_MS) {
			printf("the victim does not get on\n");
			failed = 1;
		}
		usleep(2000);
	}
	if (control->wrong[0])
		printf("%s\n", control->wrong);
	if (failed)
		show_all(pids, victim_pid);
	/* The victim must come to an end that satisfies him, and everybody else go away. */
	control->stop = true;
	rounds_since = now_ms();
	for (;;) {
		for (int i = 0; i < processes && failed; i++)
			if (pids[i])
				kill(-pids[i], SIGKILL);
		pid = waitpid(-1, &status, WNOHANG);
		if (pid == victim_pid && pid > 0) {
			victim_pid = 0;
			if (status) {
				printf("the victim ended with %#x: %s\n", status, control->wrong);
				failed = 1;
			}
		}
		if (pid < 0)
			break;
		if (!pid && now_ms() > rounds_since + LIMIT_MS) {
			printf("somebody does not go away\n");
			show_all(pids, victim_pid);
			failed = 1;
			break;
		}
		if (!pid)
			usleep(2000);
	}
	printf("%lu calls by %lu processes, %lu killed at random and %lu that waited for themselves, %lu rounds of the victim, seed %lu\n",
	       total, lives, kills, idle, control->rounds, seed);
	return failed;
}
