/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Stores to pages that were mapped ahead.
 */
#ifndef RDAX_STORES_H
#define RDAX_STORES_H

#include "compat.h"
#include <linux/fs.h>
#include <linux/mm.h>

/*
 * A bit of an entry that the core has no use for, and leaves as it is but when it changes the
 * protection: the page was mapped ahead for writing.
 */
#define RDAX_PAGE_BIT_AHEAD	_PAGE_BIT_SOFTW4
#ifdef _PAGE_BIT_DEVMAP
#error "rdax needs a bit of page-table entries that this kernel uses"
#endif

static inline bool rdax_pte_ahead(pte_t pte)
{
	return native_pte_val(pte) & BIT(RDAX_PAGE_BIT_AHEAD);
}

static inline pte_t rdax_pte_mkahead(pte_t pte)
{
	return pte_set_flags(pte, BIT(RDAX_PAGE_BIT_AHEAD));
}

static inline pte_t rdax_pte_clear_ahead(pte_t pte)
{
	return pte_clear_flags(pte, BIT(RDAX_PAGE_BIT_AHEAD));
}

/* The pages found: stored to, or such that a store to them would not be noticed. */
static const unsigned int RDAX_CONST_RDAX_STORED = 1;
static const unsigned int RDAX_CONST_RDAX_OPEN = 2;

/* Which of these a part of a VMA has. With @note, those that were stored to are not found again. */
unsigned int rdax_vma_stores(struct vm_area_struct *vma, unsigned long addr, unsigned long end,
			     bool note);

/*
 * The first VMA that maps one of the pages of a file from @first to @last, and the next one behind @vma. NULL
 * at the end. The caller holds i_mmap_rwsem.
 */
struct vm_area_struct *rdax_first_vma(struct address_space *mapping, unsigned long first,
				      unsigned long last);
struct vm_area_struct *rdax_next_vma(struct vm_area_struct *vma, unsigned long first,
				     unsigned long last);

/*
 * Whether one of @pages pages of a file from @first on was stored to. If @small, they are mapped by
 * entries of the lowest level only, and write-protected as well. Sleeps.
 */
bool rdax_mapping_note_stores(struct address_space *mapping, unsigned long first,
			      unsigned long pages, bool small);

/* Whether a file may have pages that were mapped ahead for writing. */
bool rdax_may_have_stores(struct address_space *mapping);

/* Sets the times of a file that was written to, now. Sleeps. */
void rdax_update_times(struct inode *inode);
/*
 * The same at the end of the system call, or fault, that the task is in, or soon if it is a thread of
 * the kernel; and not while the filesystem is frozen. Up to begin() there is a reference to the module, and
 * from there to end() whoever gives functions back waits. Nothing happens without memory.
 */
void rdax_update_times_later(struct file *file, void (*begin)(void), void (*end)(void));

#endif
