// SPDX-License-Identifier: GPL-2.0

#include "compat.h"
#include <linux/blkdev.h>
#include <linux/dax.h>
#include <linux/iomap.h>
#include <linux/kprobes.h>
#include <linux/leafops.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/sched/signal.h>
#include <linux/set_memory.h>
#include <linux/srcu.h>
#include <linux/timer.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>

#include "helpers.h"

#if !defined(CONFIG_X86_64)
#error "rdax needs a 64-bit x86 kernel (CONFIG_X86_64)"
#endif
#if !defined(CONFIG_FS_DAX)
#error "rdax needs a kernel with DAX filesystems (CONFIG_FS_DAX)"
#endif
#if !defined(CONFIG_ZONE_DEVICE)
#error "rdax needs a kernel with pages for device memory (CONFIG_ZONE_DEVICE)"
#endif
#if !defined(CONFIG_TRANSPARENT_HUGEPAGE)
#error "rdax needs a kernel with huge page mappings (CONFIG_TRANSPARENT_HUGEPAGE)"
#endif
#if !defined(CONFIG_XARRAY_MULTI)
#error "rdax needs a kernel with multi-index XArray entries (CONFIG_XARRAY_MULTI)"
#endif
#if !defined(CONFIG_DYNAMIC_FTRACE_WITH_ARGS)
#error "rdax replaces functions through ftrace and needs CONFIG_DYNAMIC_FTRACE_WITH_ARGS"
#endif
#if !defined(CONFIG_KPROBES)
#error "rdax looks up the functions it replaces through kprobes and needs CONFIG_KPROBES"
#endif
#if defined(CONFIG_LTO)
#error "rdax replaces functions where they are called, and needs a kernel without CONFIG_LTO"
#endif
#if !IS_ENABLED(CONFIG_CONFIGFS_FS)
#error "rdax is controlled through configfs and needs CONFIG_CONFIGFS_FS"
#endif

MODULE_VERSION(RDAX_VERSION);
MODULE_SOFTDEP("pre: configfs");

DEFINE_STATIC_SRCU(rdax_calls);

int rdax_calls_enter(void)
{
	return srcu_read_lock(&rdax_calls);
}

void rdax_calls_leave(int index)
{
	srcu_read_unlock(&rdax_calls, index);
}

void rdax_calls_synchronize(void)
{
	synchronize_srcu(&rdax_calls);
}

void rdax_mapping_set_error(struct address_space *mapping, int error)
{
	mapping_set_error(mapping, error);
}

int rdax_invalidate_lock(struct address_space *mapping)
{
	return down_write_killable(&mapping->invalidate_lock);
}

bool rdax_invalidate_trylock(struct address_space *mapping)
{
	return down_write_trylock(&mapping->invalidate_lock);
}

void rdax_invalidate_unlock(struct address_space *mapping)
{
	filemap_invalidate_unlock(mapping);
}

/* Whether this task holds the lock for writing; no, where that cannot be told. */
static bool is_mine(struct rw_semaphore *lock)
{
#ifdef CONFIG_PREEMPT_RT
	return false;
#else
	/* The low bits are flags, the lowest one of which says that the owner reads. */
	return atomic_long_read(&lock->owner) == (long)current;
#endif
}

bool rdax_invalidate_locked(struct address_space *mapping)
{
	return is_mine(&mapping->invalidate_lock);
}

void rdax_wait_with_faults(struct inode *inode)
{
	struct rw_semaphore *lock = &inode->i_mapping->invalidate_lock;
	bool mine = is_mine(lock);

	if (mine)
		up_write(lock);
	schedule();
	if (mine)
		down_write(lock);
}

bool rdax_iter_holds(const struct iov_iter *iter, size_t done, struct folio *folio)
{
	struct iov_iter all = *iter;
	const struct bio_vec *vector, *end;

	if (!iov_iter_is_bvec(iter))
		return false;
	iov_iter_revert(&all, done);
	end = all.bvec + all.nr_segs;
	for (vector = all.bvec; vector < end; vector++) {
		unsigned long pfn = page_to_pfn(vector->bv_page) + (vector->bv_offset >> PAGE_SHIFT);
		unsigned long last = page_to_pfn(vector->bv_page);

		last += (vector->bv_offset + vector->bv_len - 1) >> PAGE_SHIFT;
		for (; vector->bv_len && pfn <= last; pfn++)
			if (page_folio(pfn_to_page(pfn)) == folio)
				return true;
	}
	return false;
}

size_t rdax_copy_from_iter(void *to, size_t bytes, struct iov_iter *iter, bool flush)
{
	size_t done;

	if (unlikely(fatal_signal_pending(current)))
		return 0;
	pagefault_disable();
	if (flush)
		done = _copy_from_iter_flushcache(to, bytes, iter);
	else
		done = _copy_from_iter(to, bytes, iter);
	pagefault_enable();
	return done;
}

size_t rdax_copy_to_iter(const void *from, size_t bytes, struct iov_iter *iter)
{
	size_t done;

	if (unlikely(fatal_signal_pending(current)))
		return 0;
	pagefault_disable();
	done = _copy_mc_to_iter(from, bytes, iter);
	pagefault_enable();
	return done;
}

bool rdax_fault_is_nowait(const struct vm_fault *vmf)
{
	return vmf->flags & FAULT_FLAG_RETRY_NOWAIT;
}

void rdax_pagefault_disable(void)
{
	pagefault_disable();
}

void rdax_pagefault_enable(void)
{
	pagefault_enable();
}

void rdax_count_major_fault(void)
{
	count_vm_event(PGMAJFAULT);
}

unsigned long rdax_zero_pfn(unsigned long addr)
{
	return zero_pfn(addr);
}

bool rdax_has_vmas(struct address_space *mapping)
{
	return mapping_mapped(mapping);
}

bool rdax_is_shut_down(struct file *file)
{
	return vfs_llseek(file, 0, SEEK_CUR) == -EIO;
}

void rdax_xa_lock_irq(struct xarray *xa)
{
	xa_lock_irq(xa);
}

void rdax_xa_unlock_irq(struct xarray *xa)
{
	xa_unlock_irq(xa);
}

#define REGION_LOCKS	256
#define ENTRY_QUEUES	512

static struct {
	spinlock_t lock;
} ____cacheline_aligned_in_smp region_locks[REGION_LOCKS];

static struct wait_queue_head entry_queues[ENTRY_QUEUES];

void rdax_tables_init(void)
{
	int i;

	BUILD_BUG_ON((unsigned long)TAIL_MAPPING !=
		     ((unsigned long)RDAX_CONST_TAIL_MAPPING_HIGH << 32 |
		      RDAX_CONST_TAIL_MAPPING_LOW));
	for (i = 0; i < REGION_LOCKS; i++)
		spin_lock_init(&region_locks[i].lock);
	for (i = 0; i < ENTRY_QUEUES; i++)
		init_waitqueue_head(&entry_queues[i]);
}

unsigned long rdax_region_lock(unsigned long region)
{
	unsigned long flags;

	spin_lock_irqsave(&region_locks[region % REGION_LOCKS].lock, flags);
	return flags;
}

void rdax_region_unlock(unsigned long region, unsigned long flags)
{
	spin_unlock_irqrestore(&region_locks[region % REGION_LOCKS].lock, flags);
}

struct wait_queue_head *rdax_entry_queue(unsigned long hash)
{
	return &entry_queues[hash % ENTRY_QUEUES];
}

bool rdax_queue_is_empty(struct wait_queue_head *queue)
{
	/* Waiters queue under the tree's lock, which the caller has held since. */
	return !waitqueue_active(queue);
}

bool rdax_vmf_pmd_is_huge(struct vm_fault *vmf)
{
	return pmd_trans_huge(pmdp_get_lockless(vmf->pmd));
}

unsigned int rdax_vmf_pmd_present(struct vm_fault *vmf)
{
	pmd_t pmd = pmdp_get_lockless(vmf->pmd);

	if (pmd_none(pmd))
		return RDAX_CONST_RDAX_NOTHING;
	return pmd_trans_huge(pmd) ? RDAX_CONST_RDAX_HUGE : RDAX_CONST_RDAX_TABLE;
}

unsigned int rdax_vmf_pud_present(struct vm_fault *vmf)
{
	pud_t pud = READ_ONCE(*vmf->pud);

	if (pud_none(pud))
		return RDAX_CONST_RDAX_NOTHING;
	return pud_trans_huge(pud) ? RDAX_CONST_RDAX_HUGE : RDAX_CONST_RDAX_TABLE;
}

bool rdax_vmf_is_present(struct vm_fault *vmf)
{
	return vmf->flags & FAULT_FLAG_ORIG_PTE_VALID && pte_present(vmf->orig_pte);
}

void rdax_vma_start_write(struct vm_area_struct *vma)
{
	vma_start_write(vma);
}

/* The size of the entry that maps an address, if that is larger than a page, or 0. */
static unsigned long huge_size(struct mm_struct *mm, unsigned long address)
{
	pgd_t *pgd = pgd_offset(mm, address);
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd;

	if (!pgd_present(*pgd))
		return 0;
	p4d = p4d_offset(pgd, address);
	if (!p4d_present(*p4d))
		return 0;
	pud = pud_offset(p4d, address);
	if (pud_none(*pud))
		return 0;
	/* Also where nobody may access the memory, and it is not said to be present. */
	if (pud_leaf(*pud))
		return PUD_SIZE;
	if (!pud_present(*pud))
		return 0;
	pmd = pmd_offset(pud, address);
	return pmd_present(*pmd) && pmd_leaf(*pmd) ? PMD_SIZE : 0;
}

void rdax_vma_unmap_straddling(struct vm_area_struct *vma, unsigned long address)
{
	unsigned long size, start;

	if (address <= vma->vm_start || address >= vma->vm_end)
		return;
	size = huge_size(vma->vm_mm, address);
	if (!size || IS_ALIGNED(address, size))
		return;
	start = ALIGN_DOWN(address, size);
	if (range_in_vma(vma, start, start + size))
		zap_vma_range(vma, start, size);
}

void rdax_vma_unmap_puds(struct vm_area_struct *vma, unsigned long start, unsigned long end)
{
	unsigned long addr;

	start = max(ALIGN_DOWN(start, PUD_SIZE), ALIGN(vma->vm_start, PUD_SIZE));
	end = min(ALIGN(end, PUD_SIZE), ALIGN_DOWN(vma->vm_end, PUD_SIZE));
	for (addr = start; addr < end; addr += PUD_SIZE) {
		if (huge_size(vma->vm_mm, addr) == PUD_SIZE)
			zap_vma_range(vma, addr, PUD_SIZE);
		cond_resched();
	}
}

bool rdax_vma_needs_copy(struct vm_area_struct *vma)
{
	return vma->anon_vma || userfaultfd_wp(vma);
}

bool rdax_vma_is_accessible(struct vm_area_struct *vma)
{
	return vma_is_accessible(vma);
}

void rdax_vmf_give_zero_page(struct vm_fault *vmf)
{
	vmf->page = ZERO_PAGE(vmf->address);
	get_page(vmf->page);
}

#ifdef RDAX_CHECK
void rdax_non_block_start(void)
{
	non_block_start();
}

void rdax_non_block_end(void)
{
	non_block_end();
}
#endif

struct task_struct *rdax_current(void)
{
	return current;
}

void rdax_see_again(unsigned long pfn)
{
	clear_mce_nospec(pfn);
}

void rdax_cond_resched(void)
{
	cond_resched();
}

bool rdax_can_share_blocks(struct inode *inode)
{
	return inode->i_fop->remap_file_range;
}

bool rdax_filesystem_get(struct inode *inode)
{
	return try_module_get(inode->i_sb->s_type->owner);
}

void rdax_filesystem_put(struct file_system_type *type)
{
	module_put(type->owner);
}

struct timed_wait {
	struct timer_list timer;
	struct task_struct *task;
};

static void timed_wait_is_over(struct timer_list *timer)
{
	struct timed_wait *wait = timer_container_of(wait, timer, timer);

	wake_up_process(wait->task);
}

void rdax_timed_wait(void (*callback)(struct inode *inode), struct inode *inode, unsigned int ms)
{
	struct timed_wait wait = { .task = current };

	timer_setup_on_stack(&wait.timer, timed_wait_is_over, 0);
	mod_timer(&wait.timer, jiffies + msecs_to_jiffies(ms));
	if (callback)
		callback(inode);
	else
		schedule();
	timer_delete_sync(&wait.timer);
	timer_destroy_on_stack(&wait.timer);
}

bool rdax_in_transaction(void)
{
	return current->journal_info;
}

bool rdax_is_dying(void)
{
	return fatal_signal_pending(current) || current->flags & PF_EXITING;
}

bool rdax_is_kernel_thread(void)
{
	return current->flags & PF_KTHREAD;
}

bool rdax_is_worker(void)
{
	return current->flags & PF_WQ_WORKER;
}

bool rdax_signal_pending(void)
{
	return signal_pending(current);
}

bool rdax_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

u64 *rdax_alloc_percpu_u64(size_t n)
{
	return (__force u64 *)(unsigned long)__alloc_percpu(array_size(n, sizeof(u64)),
							    SMP_CACHE_BYTES);
}

u64 rdax_sum_percpu_u64(u64 *counter)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr((u64 __percpu *)(unsigned long)counter, cpu));
	return sum;
}

/*
 * A kprobe finds its function by name, and finds the place in it that ftrace uses. Being disabled
 * it is never put into the code.
 */
int rdax_function_entries(const char *const *names, unsigned long *entries, int n)
{
	struct kprobe *probes __free(kfree) = kcalloc(n, sizeof(*probes), GFP_KERNEL);
	struct kprobe **list __free(kfree) = kcalloc(n, sizeof(*list), GFP_KERNEL);
	int err = 0;
	int i;

	if (!probes || !list)
		return -ENOMEM;

	for (i = 0; i < n; i++) {
		probes[i].symbol_name = names[i];
		probes[i].flags = KPROBE_FLAG_DISABLED;
		err = register_kprobe(&probes[i]);
		if (err)
			break;
		list[i] = &probes[i];
		entries[i] = (unsigned long)probes[i].addr;
	}
	if (i)
		unregister_kprobes(list, i);
	return err && err != -ENOENT ? err : i;
}
