// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages that were mapped ahead for writing somebody has stored to since.
 *
 * An entry of a page table that a store has led to is soft-dirty as well as dirty (page_table.c). One
 * that was made ahead is neither, and of the two the processor sets dirty only: a page that is dirty
 * and not soft-dirty was stored to without a fault that the filesystem has seen.
 *
 * The core sets both when it finds that it need not ask the filesystem: a processor may fault by what
 * it knew of the entry before that was made writable, or because another thread was faster. So such
 * entries are marked. The core does not know the mark and takes it off when the protection changes; of
 * a page that was stored to in no other way the times do not tell then.
 *
 * A store by physical address (a direct read, a debugger, a hypervisor) leaves no trace in the entry, but
 * the page was obtained through it, which the core notes in the folio (PG_referenced). It does so for
 * reads, too, and for accessed pages that are unmapped elsewhere. They count as stores: a time that moves
 * without need is better than one that does not move.
 */

#include <linux/fs.h>
#include <linux/interval_tree_generic.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/slab.h>
#include <linux/task_work.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>

#include "helpers.h"
#ifdef RDAX_TEST
#include "testing.h"
#endif

/* Whether an entry maps a page that the filesystem was told of no store to; it may be writable, or dirty. */
static __always_inline bool is_silent(pte_t pte)
{
	pteval_t flags = native_pte_val(pte);

	return (flags & (_PAGE_PRESENT | _PAGE_PROTNONE)) && !(flags & _PAGE_SPECIAL) &&
	       (rdax_pte_ahead(pte) || !(flags & _PAGE_SOFT_DIRTY));
}

static __always_inline unsigned int what_is(pte_t pte)
{
	return (pte_write(pte) ? RDAX_CONST_RDAX_OPEN : 0) |
	       (pte_dirty(pte) ? RDAX_CONST_RDAX_STORED : 0);
}

static unsigned long frame_of(pte_t pte)
{
	unsigned long frame = native_pte_val(pte);

	if (cpu_feature_enabled(X86_FEATURE_XENPV))
		return pte_pfn(pte);
	/* The same, where nobody has to be asked for each entry. */
	frame ^= protnone_mask(frame);
	return (frame & PTE_PFN_MASK) >> PAGE_SHIFT;
}

/* Whether somebody may have written to the page, whom the entry's lock keeps it for. */
static bool note_use(pte_t pte)
{
	struct folio *folio = pfn_folio(frame_of(pte));

	if (!folio_test_referenced(folio))
		return false;
	folio_clear_referenced(folio);
	return true;
}

/* Has what was stored to not found again. The processor may be changing the entries, too. */
static unsigned int note_stores(struct vm_area_struct *vma, pmd_t *pmdp, pmd_t pmd, pte_t *ptes,
				unsigned long n)
{
	spinlock_t *lock = pte_lockptr(vma->vm_mm, &pmd);
	unsigned int found = 0;
	unsigned long i;

	spin_lock(lock);
	/* The table is removed under this lock only. */
	if (unlikely(!pmd_same(pmd, pmdp_get_lockless(pmdp))))
		n = 0;
	for (i = 0; i < n; i++) {
		unsigned long *entry = (unsigned long *)(ptes + i);
		pte_t pte = ptep_get(ptes + i);

		if (!is_silent(pte))
			continue;
		found |= what_is(pte);
		if (rdax_pte_ahead(pte)) {
			if (note_use(pte))
				found |= RDAX_CONST_RDAX_STORED;
			/* One that can still be stored to is as it was. */
			if (pte_dirty(pte) || !pte_write(pte))
				clear_bit(RDAX_PAGE_BIT_AHEAD, entry);
		}
		/* Where stores are told from one another, it has to be seen that these were before. */
		if (pte_dirty(pte) && (vma->vm_flags & VM_SOFTDIRTY))
			set_bit(_PAGE_BIT_SOFT_DIRTY, entry);
	}
	spin_unlock(lock);
	return found;
}

static unsigned int look_for_stores(pte_t *ptes, unsigned long n)
{
	unsigned int found = 0;

	for (; n; n--, ptes++) {
		pte_t pte = ptep_get(ptes);

		if (is_silent(pte))
			found |= what_is(pte);
	}
	return found;
}

static unsigned int look_at_table(struct vm_area_struct *vma, pmd_t *pmdp, unsigned long addr,
				  unsigned long end, bool note)
{
	unsigned long n = (end - addr) >> PAGE_SHIFT;
	unsigned int found = 0;
	pte_t *ptes;
	pmd_t pmd;

	/* A table that is taken away is freed after a grace period. */
	rcu_read_lock();
	pmd = pmdp_get_lockless(pmdp);
	if (pmd_present(pmd) && !pmd_leaf(pmd) && !pmd_bad(pmd)) {
		ptes = (pte_t *)pmd_page_vaddr(pmd) + pte_index(addr);
		found = note ? note_stores(vma, pmdp, pmd, ptes, n) : look_for_stores(ptes, n);
	}
	rcu_read_unlock();
	return found;
}

unsigned int rdax_vma_stores(struct vm_area_struct *vma, unsigned long addr, unsigned long end,
			     bool note)
{
	unsigned int found = 0;
	unsigned long next;

	if (!IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) || !(vma->vm_flags & VM_SHARED))
		return 0;
	for (; addr < end; addr = next) {
		pgd_t *pgd = pgd_offset(vma->vm_mm, addr);
		p4d_t *p4d;
		pud_t *pudp, pud;

		next = pgd_addr_end(addr, end);
		if (pgd_none(pgdp_get(pgd)))
			continue;
		p4d = p4d_offset(pgd, addr);
		next = p4d_addr_end(addr, end);
		if (p4d_none(p4dp_get(p4d)))
			continue;
		pudp = pud_offset(p4d, addr);
		pud = pudp_get(pudp);
		next = pud_addr_end(addr, end);
		if (!pud_present(pud) || pud_leaf(pud))
			continue;
		next = pmd_addr_end(addr, end);
		found |= look_at_table(vma, pmd_offset(&pud, addr), addr, next, note);
		cond_resched();
	}
	return found;
}

static unsigned long first_page(struct vm_area_struct *vma)
{
	return vma->vm_pgoff;
}

static unsigned long last_page(struct vm_area_struct *vma)
{
	return vma->vm_pgoff + vma_pages(vma) - 1;
}

/* The core's own are not for modules. */
INTERVAL_TREE_DEFINE(struct vm_area_struct, shared.rb, unsigned long, shared.rb_subtree_last,
		     first_page, last_page, static __maybe_unused, vmas)

struct vm_area_struct *rdax_first_vma(struct address_space *mapping, unsigned long first,
				      unsigned long last)
{
	return vmas_iter_first(&mapping->i_mmap, first, last);
}

struct vm_area_struct *rdax_next_vma(struct vm_area_struct *vma, unsigned long first,
				     unsigned long last)
{
	return vmas_iter_next(vma, first, last);
}

bool rdax_mapping_note_stores(struct address_space *mapping, unsigned long first,
			      unsigned long pages, bool small)
{
	unsigned long last = first + pages - 1;
	struct vm_area_struct *vma;
	/*
	 * Where somebody can still store when we look, it may happen before the protection, which takes the
	 * trace away. So it counts as a store that it can.
	 */
	unsigned int wanted = RDAX_CONST_RDAX_STORED | RDAX_CONST_RDAX_OPEN;
	unsigned int found = 0;

#ifdef CONFIG_MAPPING_DIRTY_HELPERS
	/* This is not for entries of higher levels, which the kernel does not expect here. */
	if (small) {
		wp_shared_mapping_range(mapping, first, pages);
		wanted = RDAX_CONST_RDAX_STORED;
	}
#endif
	i_mmap_lock_read(mapping);
	/* Of those that map other pages only, there may be as many as anybody likes. */
	for (vma = rdax_first_vma(mapping, first, last); vma; vma = rdax_next_vma(vma, first, last)) {
		unsigned long start = max(first_page(vma), first) - vma->vm_pgoff;
		unsigned long end = min(last_page(vma), last) - vma->vm_pgoff;

		found |= rdax_vma_stores(vma, vma->vm_start + (start << PAGE_SHIFT),
					 vma->vm_start + ((end + 1) << PAGE_SHIFT), true);
	}
	i_mmap_unlock_read(mapping);
	return found & wanted;
}

void rdax_update_times(struct inode *inode)
{
	if (IS_NOCMTIME(inode) || sb_rdonly(inode->i_sb))
		return;
	/* Of an error the filesystem has told already. */
	if (inode->i_op->update_time)
		inode->i_op->update_time(inode, FS_UPD_CMTIME, 0);
	else
		generic_update_time(inode, FS_UPD_CMTIME, 0);
}

struct later {
	union {
		struct callback_head in_task;
		struct delayed_work elsewhere;
	};
	struct file *file;
	void (*begin)(void);
	void (*end)(void);
};

/* False, and nothing happens, while the filesystem is frozen, or is about to be for page faults. */
static bool update_now(struct later *later)
{
	struct super_block *sb = file_inode(later->file)->i_sb;
	void (*end)(void) = later->end;

	/* As a store that faults; one that has a write(2) before it in its way does not wait for it. */
	if (!__sb_start_write_trylock(sb, SB_FREEZE_PAGEFAULT))
		return false;
	file_update_time(later->file);
	sb_end_pagefault(sb);
	/* From here on the module waits for the end. */
	later->begin();
	module_put(THIS_MODULE);
	fput(later->file);
	kfree(later);
	end();
	return true;
}

static void update_elsewhere(struct work_struct *work);

static void hand_over(struct later *later, unsigned long delay)
{
	INIT_DELAYED_WORK(&later->elsewhere, update_elsewhere);
	queue_delayed_work(system_dfl_wq, &later->elsewhere, delay);
}

#ifdef RDAX_TEST
static atomic_t elsewhere;

void rdax_test_wait_for_times(void)
{
	/* Ends: each of them is queued, and waits for no test. */
	wait_var_event(&elsewhere, !atomic_read(&elsewhere));
}

static void count_elsewhere(int by)
{
	if (!atomic_add_return(by, &elsewhere))
		wake_up_var(&elsewhere);
}
#else
static void count_elsewhere(int by)
{
}
#endif

static void update_in_task(struct callback_head *work)
{
	struct later *later = container_of(work, struct later, in_task);

	if (!update_now(later)) {
		count_elsewhere(1);
		hand_over(later, HZ / 10);
	}
}

static void update_elsewhere(struct work_struct *work)
{
	struct later *later = container_of(work, struct later, elsewhere.work);

	/*
	 * Ends with the freeze, which takes as long as others like. Nobody waits for it: who unmounts is told
	 * that the filesystem is in use, and who unloads the module that this is.
	 */
	if (update_now(later))
		count_elsewhere(-1);
	else
		hand_over(later, HZ / 10);
}

void rdax_update_times_later(struct file *file, void (*begin)(void), void (*end)(void))
{
	struct later *later = kmalloc_obj(*later, GFP_ATOMIC | __GFP_NOWARN);

	if (!later)
		return;
	/* The mapping's own may go before we come to it, and the mount with that. */
	later->file = get_file(file);
	later->begin = begin;
	later->end = end;
	__module_get(THIS_MODULE);
	/*
	 * A thread of the kernel may have borrowed the address space, or be the last who uses it. It does
	 * not leave the kernel, and would hold the file for ever. Nor does a task that is at its end come
	 * to it any more. What the VMA holds itself is given back in the same way then.
	 */
	if (!(current->flags & (PF_KTHREAD | PF_USER_WORKER))) {
		init_task_work(&later->in_task, update_in_task);
		if (!task_work_add(current, &later->in_task, TWA_RESUME))
			return;
	}
	count_elsewhere(1);
	hand_over(later, 0);
}

bool rdax_may_have_stores(struct address_space *mapping)
{
	/* Entries mapped ahead for writing are marked. */
	return mapping_tagged(mapping, PAGECACHE_TAG_DIRTY);
}

#ifdef CONFIG_UPROBES
void rdax_recalc_uprobes(struct mm_struct *mm)
{
	/* As uprobe_munmap() would do for a uprobe in the unmapped range. */
	if (mm_flags_test(MMF_HAS_UPROBES, mm))
		mm_flags_set(MMF_RECALC_UPROBES, mm);
}
#endif
