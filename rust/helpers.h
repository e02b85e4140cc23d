/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C helpers: inline functions and macros of the kernel's headers that Rust cannot reach.
 *
 * A function rdax_NAME does what the kernel's NAME does, no more. A constant RDAX_CONST_NAME is
 * NAME in Rust.
 */
#ifndef RDAX_HELPERS_H
#define RDAX_HELPERS_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

void rdax_mapping_set_error(struct address_space *mapping, int error);

/* The fault being handled needed I/O or allocation: counted as PGMAJFAULT. */
void rdax_count_major_fault(void);

/* The pfn of the page of zeros that a hole is mapped with at @addr. */
unsigned long rdax_zero_pfn(unsigned long addr);

#endif /* RDAX_HELPERS_H */
