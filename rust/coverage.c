// SPDX-License-Identifier: GPL-2.0
/*
 * In a coverage build: the compiler's counters, to be read from debugfs. The linker keeps the order
 * of the files, so what is defined here ends the counters that rust/coverage_begin.c begins.
 */

#include <linux/debugfs.h>

#include "helpers.h"

static u64 rdax_coverage_end __used __section("__llvm_prf_cnts");

static struct debugfs_blob_wrapper counters;
static struct dentry *file;

void rdax_coverage_show(void)
{
	/* The first word says how much there is to be read. */
	rdax_coverage_begin = (unsigned long)(&rdax_coverage_end + 1) -
			      (unsigned long)&rdax_coverage_begin;
	counters.data = &rdax_coverage_begin;
	counters.size = rdax_coverage_begin;
	file = debugfs_create_blob("rdax-coverage", 0400, NULL, &counters);
}

void rdax_coverage_hide(void)
{
	debugfs_remove(file);
}
