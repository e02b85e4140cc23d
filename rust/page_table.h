/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Faults, and what they map: entries of page tables, and map counts of folios.
 */
#ifndef RDAX_PAGE_TABLE_H
#define RDAX_PAGE_TABLE_H

#include "compat.h"
#include <linux/mm.h>
#include <linux/spinlock.h>

bool rdax_vmf_pmd_is_huge(struct vm_fault *vmf);

/* The kinds of entries of the second and third level. */
static const unsigned int RDAX_CONST_RDAX_NOTHING = 1;
static const unsigned int RDAX_CONST_RDAX_HUGE = 2;
static const unsigned int RDAX_CONST_RDAX_TABLE = 3;

unsigned int rdax_vmf_pmd_present(struct vm_fault *vmf);
unsigned int rdax_vmf_pud_present(struct vm_fault *vmf);
bool rdax_vmf_is_present(struct vm_fault *vmf);
void rdax_vma_start_write(struct vm_area_struct *vma);
void rdax_vma_unmap_straddling(struct vm_area_struct *vma, unsigned long address);

/* Takes the entries of the third level that the addresses from @start up to @end touch out of this VMA. Sleeps. */
void rdax_vma_unmap_puds(struct vm_area_struct *vma, unsigned long start, unsigned long end);
bool rdax_vma_needs_copy(struct vm_area_struct *vma);
bool rdax_vma_is_accessible(struct vm_area_struct *vma);
void rdax_vmf_give_zero_page(struct vm_fault *vmf);

/*
 * Page tables. The VMA is that of a fault which is being handled; an entry of the lowest level belongs
 * to the table that the fault's address is mapped by.
 */

/* The kinds of entries, besides RDAX_NOTHING, and RDAX_TABLE for those that are not looked at closely. */
static const unsigned int RDAX_CONST_RDAX_SAME = 4;	/* Maps the frame that is asked about. */
static const unsigned int RDAX_CONST_RDAX_PROTECTED = 5;	/* So, write-protected by userfaultfd. */
static const unsigned int RDAX_CONST_RDAX_MARKED = 6;	/* Maps nothing; that is write-protected. */
static const unsigned int RDAX_CONST_RDAX_OTHER = 7;	/* Anything else. */

/* The access that a page is mapped for. */
static const unsigned int RDAX_CONST_RDAX_LOAD = 1;
static const unsigned int RDAX_CONST_RDAX_STORE = 2;	/* There is one. */
static const unsigned int RDAX_CONST_RDAX_AHEAD = 3;	/* There may be one: writable, but clean. */
static const unsigned int RDAX_CONST_RDAX_ZERO = 4;	/* Zeroes, which are not counted. */

/* Whether it matters which pages of the VMA are mapped, or which of them are writable. */
bool rdax_vma_is_watched(struct vm_area_struct *vma, bool write);

/* Makes the table if there is none. Sleeps. */
int rdax_ptes_make(struct vm_fault *vmf);

/* Locks the table, and returns the entry for an address, or NULL if there is no table. */
pte_t *rdax_ptes_lock(struct vm_fault *vmf, unsigned long addr, spinlock_t **lock);
void rdax_ptes_unlock(spinlock_t *lock);

/*
 * Of @n entries (at most 64), a bit for each that is empty; or, if @protected, that maps a page and
 * could be made writable.
 */
unsigned long rdax_candidate_ptes(const pte_t *ptes, unsigned long n, bool protected);

/* The same without the lock: may be outdated at once. All are empty when there is no table. */
unsigned long rdax_vmf_candidate_ptes(struct vm_fault *vmf, unsigned long addr, unsigned long n,
				      bool protected);

unsigned int rdax_pte_look(struct vm_area_struct *vma, const pte_t *ptep, unsigned long pfn);

/* Maps frames from @pfn on by @n empty entries. With @protect they are so for userfaultfd. */
void rdax_ptes_set(struct vm_area_struct *vma, unsigned long addr, pte_t *ptes, unsigned long pfn,
		   unsigned long n, unsigned int how, bool protect);
/* Gives an entry the rights that it is to have. */
void rdax_pte_allow(struct vm_area_struct *vma, pte_t *ptep, unsigned int how);

/* The same for the fault's entries of the second and third level. */
spinlock_t *rdax_pmd_lock(struct vm_fault *vmf);
unsigned int rdax_pmd_look(struct vm_fault *vmf, unsigned long pfn);
void rdax_pmd_set(struct vm_fault *vmf, unsigned long pfn, unsigned int how);
void rdax_pmd_allow(struct vm_fault *vmf, unsigned int how);
spinlock_t *rdax_pud_lock(struct vm_fault *vmf);
unsigned int rdax_pud_look(struct vm_fault *vmf, unsigned long pfn);
void rdax_pud_set(struct vm_fault *vmf, unsigned long pfn, unsigned int how);
void rdax_pud_allow(struct vm_fault *vmf, unsigned int how);
void rdax_level_unlock(spinlock_t *lock);

/*
 * Count entries in the map counts of a large folio: @n of the lowest level, from @page on, or one for
 * the whole. Return how many pages became mapped that were not. @first: the folio was not mapped
 * whole before.
 */
/*
 * Counts an entry of a page table for each of the pages that are folios of their own, of n from page on,
 * up to the first that is not: a reference and a map count. Returns how many pages that are. Those that
 * were not mapped are added to *mapped.
 */
unsigned long rdax_map_small(struct page *page, unsigned long n, unsigned long *mapped);
unsigned long rdax_folio_map_some(struct folio *folio, struct page *page, unsigned long n,
				  struct vm_area_struct *vma);
unsigned long rdax_folio_map_whole(struct folio *folio, struct vm_area_struct *vma, bool *first);
/*
 * Whether somebody has a reference to a large folio that is not that of a page-table entry. The folio stays
 * large meanwhile.
 */
bool rdax_large_folio_is_held(struct folio *folio);
/* How many entries map all of a large folio. */
int rdax_folio_entire_mapcount(const struct folio *folio);

/* How many pages of files an address space has mapped, roughly. */
unsigned long rdax_file_pages_mapped(struct mm_struct *mm);
/* Count @added pages for the process, and those that became mapped for the folio's node. */
void rdax_count_mapped(struct mm_struct *mm, struct folio *folio, unsigned long added,
		       unsigned long mapped, unsigned long mapped_by_pmd);

/* Looks for the core's folio of zeroes, once, before any fault is served. Sleeps. */
void rdax_zero_folio_find(void);
/* Its first frame, for as long as the fault's address space is in use, or 0. Sleeps. */
unsigned long rdax_zero_folio_pfn(struct vm_fault *vmf);

#endif
