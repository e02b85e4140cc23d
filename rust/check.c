// SPDX-License-Identifier: GPL-2.0
/*
 * The state that src/check.rs checks, read by the kernel's own means and none of those by which the
 * module writes it.
 */

#include <linux/dax.h>
#include <linux/memory_hotplug.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/rbtree.h>
#include <linux/set_memory.h>
#include <linux/workqueue.h>

#include "helpers.h"

void rdax_complain(void)
{
	WARN_ON(1);
}

static long fail_memory(void *data)
{
	unsigned long pfn = *(unsigned long *)data;
	int ret = memory_failure(pfn, 0);

	if (!ret)
		set_mce_nospec(pfn);
	return ret;
}

int rdax_fail_memory(unsigned long pfn)
{
	/* Ordinary memory may be the kernel's. */
	if (!pfn_valid(pfn) || pfn_to_online_page(pfn))
		return -EINVAL;
	/* In a worker, as it is told of: the caller has not run into it. */
	return work_on_cpu(raw_smp_processor_id(), fail_memory, &pfn);
}

int rdax_restore_memory(unsigned long pfn)
{
	if (!pfn_valid(pfn) || pfn_to_online_page(pfn))
		return -EINVAL;
	return clear_mce_nospec(pfn);
}

static bool is_odd(struct folio *folio)
{
	struct page *head = &folio->page;
	unsigned long i, pages = 1UL << folio_order(folio);

	/* Nobody takes such a page out of a pipe for his page cache, though it may have no mapping. */
	if (!PageReserved(head))
		return true;
	if (!folio_test_large(folio))
		return PageTail(head);
	if (folio_nr_pages(folio) != pages || atomic_read(&folio->_pincount) ||
	    !IS_ALIGNED(page_to_pfn(head), pages))
		return true;
	for (i = 1; i < pages; i++)
		if (compound_head(head + i) != head || page_ref_count(head + i) ||
		    !PageReserved(head + i))
			return true;
	return false;
}

void rdax_folio_state(unsigned long pfn, struct rdax_folio_state *state)
{
	struct folio *folio = page_folio(pfn_to_page(pfn));
	unsigned long i;

	state->head = page_to_pfn(&folio->page);
	state->order = folio_order(folio);
	state->refcount = folio_ref_count(folio);
	state->mapcount = folio_mapcount(folio);
	state->owner = (unsigned long)folio->mapping;
	state->index = folio->index;
	state->odd = is_odd(folio);
	state->poisoned = false;
	for (i = 0; i < 1UL << state->order; i++)
		state->poisoned |= PageHWPoison(&folio->page + i);
}

unsigned long rdax_find_used(unsigned long first, unsigned long end, unsigned long *whole)
{
	struct dev_pagemap *pgmap = page_pgmap(pfn_to_page(first));
	unsigned long pfn, pages;

	for (pfn = first; pfn < end; pfn += pages) {
		struct page *page = pfn_to_page(pfn);
		struct folio *folio = (struct folio *)page;

		pages = 1;
		if (PageTail(page))
			break;
		if (folio_test_large(folio)) {
			pages = folio_nr_pages(folio);
			if (is_odd(folio))
				break;
			++*whole;
		}
		if (folio->mapping || folio->index || folio_mapcount(folio) ||
		    folio->pgmap != pgmap)
			break;
		/* memory-failure keeps a reference to bad memory. */
		if (folio_ref_count(folio) && !PageHWPoison(page))
			break;
	}
	return min(pfn, end);
}

static void emit(struct vm_area_struct *vma, unsigned long addr, unsigned long pfn,
		 unsigned int order, bool writable, rdax_leaf_fn fn, void *data)
{
	struct rdax_leaf leaf = {
		.index = linear_page_index(vma, addr),
		.pfn = pfn,
		.order = order,
		.writable = writable,
		.shared = vma->vm_flags & VM_SHARED,
		.device = pfn_valid(pfn) && is_zone_device_page(pfn_to_page(pfn)),
	};

	fn(&leaf, data);
}

/* Page tables stay as long as i_mmap_rwsem keeps the VMA in its tree. */
static void visit_vma(struct vm_area_struct *vma, rdax_leaf_fn fn, void *data)
{
	unsigned long addr = vma->vm_start, next;

	for (; addr < vma->vm_end; addr = next) {
		pgd_t *pgdp = pgd_offset(vma->vm_mm, addr);
		p4d_t *p4dp;
		pud_t *pudp, pud;
		pmd_t *pmdp, pmd;
		pte_t pte;

		next = pgd_addr_end(addr, vma->vm_end);
		if (pgd_none(READ_ONCE(*pgdp)))
			continue;
		p4dp = p4d_offset(pgdp, addr);
		next = p4d_addr_end(addr, vma->vm_end);
		if (p4d_none(READ_ONCE(*p4dp)))
			continue;
		pudp = pud_offset(p4dp, addr);
		pud = READ_ONCE(*pudp);
		next = pud_addr_end(addr, vma->vm_end);
		if (pud_none(pud))
			continue;
		if (pud_leaf(pud)) {
			emit(vma, addr, pud_pfn(pud), PUD_SHIFT - PAGE_SHIFT, pud_write(pud),
			     fn, data);
			continue;
		}
		pmdp = pmd_offset(pudp, addr);
		pmd = READ_ONCE(*pmdp);
		next = pmd_addr_end(addr, vma->vm_end);
		if (pmd_none(pmd))
			continue;
		if (pmd_leaf(pmd)) {
			emit(vma, addr, pmd_pfn(pmd), PMD_SHIFT - PAGE_SHIFT, pmd_write(pmd),
			     fn, data);
			continue;
		}
		pte = ptep_get(pte_offset_kernel(&pmd, addr));
		next = addr + PAGE_SIZE;
		if (pte_present(pte))
			emit(vma, addr, pte_pfn(pte), 0, pte_write(pte), fn, data);
	}
}

void rdax_visit_leaves(struct address_space *mapping, rdax_leaf_fn fn, void *data)
{
	struct rb_node *node;

	i_mmap_lock_read(mapping);
	for (node = rb_first_cached(&mapping->i_mmap); node; node = rb_next(node)) {
		visit_vma(rb_entry(node, struct vm_area_struct, shared.rb), fn, data);
		cond_resched();
	}
	i_mmap_unlock_read(mapping);
}
