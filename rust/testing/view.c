// SPDX-License-Identifier: GPL-2.0
/*
 * Mappings, and what page tables and counters have of them.
 */

#include <kunit/test.h>
#include <linux/file.h>
#include <linux/leafops.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "../compat.h"
#include "../testing.h"

int rdax_test_attach_mm(void)
{
	return kunit_attach_mm();
}

unsigned long rdax_test_map(struct file *file, unsigned long addr, unsigned long len,
			    unsigned long offset, bool private, bool sync)
{
	unsigned long flags = MAP_FIXED_NOREPLACE;

	if (private)
		flags |= MAP_PRIVATE;
	else if (sync)
		/* Which takes known flags only, and not the one above. */
		flags = MAP_FIXED | MAP_SHARED_VALIDATE | MAP_SYNC;
	else
		flags |= MAP_SHARED;
	return vm_mmap(file, addr, len, PROT_READ | PROT_WRITE, flags, offset);
}

void rdax_test_unmap(unsigned long addr, unsigned long len)
{
	vm_munmap(addr, len);
	/* A kthread has the times set by others, who have a reference to the file until then. */
	rdax_test_wait_for_times();
	/* Theirs and the mapping's, which a kthread drops later. */
	flush_delayed_fput();
}

static long node_sum(int nid, enum node_stat_item item)
{
	struct pglist_data *pgdat = NODE_DATA(nid);
	long sum = atomic_long_read(&pgdat->vm_stat[item]);
	int cpu;

	for_each_online_cpu(cpu)
		sum += per_cpu_ptr(pgdat->per_cpu_nodestats, cpu)->vm_node_stat_diff[item];
	return sum;
}

void rdax_test_count(unsigned long pfn, struct rdax_test_counts *counts)
{
	int nid = page_to_nid(pfn_to_page(pfn));

	counts->resident = percpu_counter_sum(&current->mm->rss_stat[MM_FILEPAGES]);
	counts->mapped = node_sum(nid, NR_FILE_MAPPED);
	counts->mapped_by_pmd = node_sum(nid, NR_FILE_PMDMAPPED);
}

void rdax_test_drop(unsigned long addr, unsigned long len)
{
	struct vm_area_struct *vma;

	mmap_read_lock(current->mm);
	vma = find_vma(current->mm, addr);
	if (vma)
		zap_vma_range(vma, addr, len);
	mmap_read_unlock(current->mm);
}

static pte_t *entry_of(unsigned long addr)
{
	pmd_t *pmd = pmd_offset(pud_offset(p4d_offset(pgd_offset(current->mm, addr), addr), addr),
				addr);

	/* Nobody but the test itself takes the table down. */
	return pte_offset_kernel(pmd, addr);
}

void rdax_test_guard(unsigned long addr, bool guard)
{
	pte_t marker = make_pte_marker(PTE_MARKER_GUARD);

	set_pte_at(current->mm, addr, entry_of(addr), guard ? marker : __pte(0));
}

bool rdax_test_soft_dirty(unsigned long addr)
{
	return pte_soft_dirty(ptep_get(entry_of(addr)));
}

void rdax_test_track_stores(unsigned long addr, bool track)
{
	struct vm_area_struct *vma;

	mmap_write_lock(current->mm);
	vma = find_vma(current->mm, addr);
	if (vma && track)
		vm_flags_clear(vma, VM_SOFTDIRTY);
	else if (vma)
		vm_flags_set(vma, VM_SOFTDIRTY);
	mmap_write_unlock(current->mm);
}

void rdax_test_set_random(unsigned long addr)
{
	struct vm_area_struct *vma;

	mmap_write_lock(current->mm);
	vma = find_vma(current->mm, addr);
	if (vma)
		vm_flags_set(vma, VM_RAND_READ);
	mmap_write_unlock(current->mm);
}

int rdax_test_load(unsigned long addr, u64 *value)
{
	return get_user(*value, (u64 __user *)addr);
}

int rdax_test_store(unsigned long addr, u64 value)
{
	return put_user(value, (u64 __user *)addr);
}

int rdax_test_ask_for(unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	int locked = 1;
	long got;

	mmap_read_lock(mm);
	got = get_user_pages_remote(mm, addr, 1, FOLL_WRITE, NULL, &locked);
	if (locked)
		mmap_read_unlock(mm);
	return got < 0 ? got : 0;
}

static unsigned int entry_flags(bool writable, bool dirty)
{
	return RDAX_CONST_TEST_PRESENT | (writable ? RDAX_CONST_TEST_WRITABLE : 0) |
	       (dirty ? RDAX_CONST_TEST_DIRTY : 0);
}

unsigned int rdax_test_mapping(unsigned long addr, unsigned int *order, unsigned long *pfn)
{
	struct mm_struct *mm = current->mm;
	pgd_t *pgd;
	p4d_t *p4d;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;
	pte_t pte;

	if (!mm)
		return 0;
	/* Nobody but the test itself takes these tables down. */
	pgd = pgd_offset(mm, addr);
	if (pgd_none(*pgd))
		return 0;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d))
		return 0;
	pudp = pud_offset(p4d, addr);
	pud = READ_ONCE(*pudp);
	if (pud_none(pud))
		return 0;
	if (pud_trans_huge(pud)) {
		*order = PUD_SHIFT - PAGE_SHIFT;
		*pfn = pud_pfn(pud) + ((addr & ~PUD_MASK) >> PAGE_SHIFT);
		return entry_flags(pud_write(pud), pud_dirty(pud));
	}
	pmdp = pmd_offset(pudp, addr);
	pmd = pmdp_get_lockless(pmdp);
	if (pmd_none(pmd))
		return 0;
	if (pmd_trans_huge(pmd)) {
		*order = PMD_ORDER;
		*pfn = pmd_pfn(pmd) + ((addr & ~PMD_MASK) >> PAGE_SHIFT);
		return entry_flags(pmd_write(pmd), pmd_dirty(pmd));
	}
	pte = ptep_get(pte_offset_kernel(pmdp, addr));
	if (!pte_present(pte))
		return 0;
	*order = 0;
	*pfn = pte_pfn(pte);
	return entry_flags(pte_write(pte), pte_dirty(pte));
}

struct page *rdax_test_pin(unsigned long addr, bool write, bool longterm)
{
	unsigned int flags = (write ? FOLL_WRITE : 0) | (longterm ? FOLL_LONGTERM : 0);
	struct page *page;

	return pin_user_pages_fast(addr, 1, flags, &page) == 1 ? page : NULL;
}

void rdax_test_unpin(struct page *page)
{
	unpin_user_page(page);
}

struct mm_struct *rdax_test_new_mm(struct vm_area_struct *vma, u64 number)
{
	struct mm_struct *mm = kzalloc(sizeof(*mm), GFP_KERNEL);

	if (!mm)
		return NULL;
	atomic_set(&mm->mm_users, 1);
	mm->context.ctx_id = number;
	spin_lock_init(&mm->page_table_lock);
	init_rwsem(&mm->mmap_lock);
	mm_lock_seqcount_init(mm);
	vma->vm_mm = mm;
#ifdef CONFIG_PER_VMA_LOCK
	refcount_set(&vma->vm_refcnt, 1);
#endif
	return mm;
}

void rdax_test_mmap_lock(struct mm_struct *mm, bool write)
{
	if (write)
		mmap_write_lock(mm);
	else
		mmap_read_lock(mm);
}

void rdax_test_mmap_unlock(struct mm_struct *mm, bool write)
{
	if (write)
		mmap_write_unlock(mm);
	else
		mmap_read_unlock(mm);
}

void rdax_test_free_mm(struct mm_struct *mm)
{
	kfree(mm);
}

void rdax_test_detach(struct vm_area_struct *vma)
{
#ifdef CONFIG_PER_VMA_LOCK
	refcount_set(&vma->vm_refcnt, 0);
#endif
}
