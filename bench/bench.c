// SPDX-License-Identifier: GPL-2.0
/*
 * bench: do what costs a DAX filesystem something, and say what it cost.
 *
 * Each row is printed as "name operations nanoseconds faults". On a machine whose clock counts
 * instructions (scripts/guest --count) the nanoseconds are instructions: of the kernel, of the
 * page fault's entry and exit, and of the few that this program needs around an operation.
 *
 * A row is part of a scenario: what runs before it in the same function is its past, which decides
 * what it measures. Before a row that is timed, everything older is durable (sync), so that no
 * journal is written out on its account.
 *
 * "first" rows find no entry in the file's tree. Their blocks are allocated and written: fill()
 * writes the file through pwrite(), which makes no entries. So no row but the "unwritten",
 * "hole" and "clone" ones allocates or converts blocks.
 */
#define _GNU_SOURCE
#include <err.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "bench.h"

struct options opt;

static size_t bytes(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	switch (*end) {
	case 'G':
		value <<= 10;
		/* fall through */
	case 'M':
		value <<= 20;
		end++;
	}
	if (end == text || *end)
		errx(1, "'%s' is not a size like 64M", text);
	return value;
}

static void usage(FILE *to)
{
	fprintf(to,
		"usage: bench [OPTION...] DIR\n"
		"\n"
		"Time DAX operations on files below DIR. Prints lines: name operations nanoseconds faults\n"
		"\n"
		"  -s SIZE   of the file of most rows, a multiple of 8M (default: 64M);\n"
		"            the pmd rows have four times that\n"
		"  -L SIZE   of the file of the rows whose names end in -large; 0: none (default)\n"
		"  -u SIZE   of the file of the 1 GiB rows; 0: none (default)\n"
		"  -p N      processes of the procs rows (default: 8)\n"
		"  -o REGEX  only rows whose names match this extended regular expression\n"
		"  -c        the rows of files without DAX, which DIR has then; else all others\n"
		"  -k        have a watching icount.c keep the instructions of each row\n"
		"  -l        list the rows, do nothing\n");
}

int main(int argc, char **argv)
{
	int c;

	opt.size = 64 << 20;
	opt.procs = 8;
	while ((c = getopt(argc, argv, "s:L:u:p:o:cklh")) != -1) {
		switch (c) {
		case 's':
			opt.size = bytes(optarg);
			break;
		case 'L':
			opt.large = bytes(optarg);
			break;
		case 'u':
			opt.pud = bytes(optarg);
			break;
		case 'p':
			opt.procs = atoi(optarg);
			break;
		case 'o':
			if (regcomp(&opt.wanted, optarg, REG_EXTENDED | REG_NOSUB))
				errx(1, "'%s' is not a regular expression", optarg);
			opt.only = true;
			break;
		case 'c':
			opt.cached = true;
			break;
		case 'k':
			opt.keep = true;
			break;
		case 'l':
			opt.list = true;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 1;
		}
	}
	if (!opt.list && optind + 1 != argc) {
		usage(stderr);
		return 1;
	}
	if (!opt.size || opt.size % (4 * PMD) || opt.large % PMD || opt.pud % PUD || !opt.procs)
		errx(1, "sizes must be whole multiples (see bench -h)");
	/* No row pays for this program's own pages. */
	if (mlockall(MCL_CURRENT))
		err(1, "mlockall");
	opt.dir = argv[optind];
	opt.pmd = 4 * opt.size;
	run_scenarios();
	return 0;
}
