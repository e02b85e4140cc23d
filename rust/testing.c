// SPDX-License-Identifier: GPL-2.0

#include "compat.h"
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/badblocks.h>
#include <linux/blkdev.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs_struct.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/leafops.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/uaccess.h>

#include "testing.h"

#if !defined(CONFIG_KUNIT) || !defined(CONFIG_FAILSLAB)
#error "the tests need a kernel with KUnit and failing allocations (scripts/build --kernel debug)"
#endif

MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

void rdax_test_fail(const char *file, int line, const char *text)
{
	struct kunit *test = kunit_get_current_test();

	if (test)
		KUNIT_FAIL(test, "  %s:%d: %s", file, line, text);
	else
		pr_err("KUnit: %s:%d: %s (not in a test)\n", file, line, text);
}

struct folio *rdax_test_alloc_folio(unsigned int order)
{
	return folio_alloc((GFP_TRANSHUGE | __GFP_ZERO) & ~__GFP_MOVABLE, order);
}

void rdax_test_put_folio(struct folio *folio)
{
	folio_put(folio);
}

void rdax_test_skip(const char *why)
{
	struct kunit *test = kunit_get_current_test();

	if (test)
		kunit_mark_skipped(test, "%s", why);
}

void rdax_test_note(const char *text)
{
	struct kunit *test = kunit_get_current_test();

	if (test)
		kunit_info(test, "%s\n", text);
}

struct fs_struct *rdax_test_begin_paths(void)
{
	return __override_init_fs();
}

void rdax_test_end_paths(struct fs_struct *old)
{
	__revert_init_fs(old);
}

/* The filesystem */

static void evict_inode(struct inode *inode)
{
	if (inode->i_private)
		rdax_test_evict(inode);
	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
}

static const struct super_operations super_ops = {
	.statfs = simple_statfs,
	.evict_inode = evict_inode,
};

static int init_fs_context(struct fs_context *fc)
{
	struct pseudo_fs_context *ctx = init_pseudo(fc, 0x72646178);

	if (!ctx)
		return -ENOMEM;
	ctx->ops = &super_ops;
	return 0;
}

/* Of what the core calls for a page that was written to, there is nothing to do. */
static const struct address_space_operations address_ops = {
	.dirty_folio = noop_dirty_folio,
};

static struct file_system_type test_fs = {
	.name = "rdax-test",
	.owner = THIS_MODULE,
	.init_fs_context = init_fs_context,
	.kill_sb = kill_anon_super,
};

struct vfsmount *rdax_test_mount(struct block_device *bdev)
{
	struct vfsmount *mnt = kern_mount(&test_fs);

	if (!IS_ERR(mnt))
		mnt->mnt_sb->s_bdev = bdev;
	return mnt;
}

void rdax_test_set_device(struct vfsmount *mnt, struct block_device *bdev)
{
	WRITE_ONCE(mnt->mnt_sb->s_bdev, bdev);
}

void rdax_test_unmount(struct vfsmount *mnt)
{
	flush_delayed_fput();
	/* The device is not the filesystem's to be synced and closed. */
	mnt->mnt_sb->s_bdev = NULL;
	kern_unmount(mnt);
}

struct inode *rdax_test_inode(struct vfsmount *mnt, loff_t size, void *private)
{
	struct inode *inode = new_inode(mnt->mnt_sb);

	if (!inode)
		return NULL;
	inode->i_mode = S_IFREG | 0600;
	inode->i_private = private;
	inode->i_flags |= S_DAX;
	inode->i_mapping->a_ops = &address_ops;
	i_size_write(inode, size);
	return inode;
}

struct file *rdax_test_file(struct vfsmount *mnt, struct inode *inode,
			    const struct file_operations *fops)
{
	struct file *file;

	/* The file's. */
	ihold(inode);
	file = alloc_file_pseudo(inode, mnt, "rdax-test", O_RDWR, fops);
	if (IS_ERR(file))
		iput(inode);
	return file;
}

void rdax_test_close(struct file *file)
{
	__fput_sync(file);
}

void rdax_test_forget_times(struct inode *inode)
{
	inode_set_mtime(inode, 0, 0);
	inode_set_ctime(inode, 0, 0);
}

bool rdax_test_has_times(struct inode *inode)
{
	return inode_get_mtime_sec(inode) && inode_get_ctime_sec(inode);
}

void *rdax_test_private(struct inode *inode)
{
	return inode->i_private;
}

void rdax_test_set_size(struct inode *inode, loff_t size)
{
	i_size_write(inode, size);
}

void rdax_test_set_links(struct inode *inode, unsigned int links)
{
	if (links)
		set_nlink(inode, links);
	else
		clear_nlink(inode);
}

void rdax_test_set_dax(struct inode *inode, bool dax)
{
	inode_set_flags(inode, dax ? S_DAX : 0, S_DAX);
}

static loff_t remap(struct file *from, loff_t at, struct file *to, loff_t start, loff_t len,
		    unsigned int flags)
{
	return -EOPNOTSUPP;
}

/* What says of the inode's filesystem whether it can share blocks. */
static const struct file_operations sharing = {
	.remap_file_range = remap,
};

void rdax_test_can_share_blocks(struct inode *inode)
{
	inode->i_fop = &sharing;
}

void rdax_test_set_block_bits(struct inode *inode, unsigned int bits)
{
	inode->i_blkbits = bits;
}

int rdax_test_take_error(struct inode *inode)
{
	return filemap_check_errors(&inode->i_data);
}

void rdax_test_lock_faults_shared(struct inode *inode)
{
	filemap_invalidate_lock_shared(&inode->i_data);
}

void rdax_test_unlock_faults_shared(struct inode *inode)
{
	filemap_invalidate_unlock_shared(&inode->i_data);
}

bool rdax_test_take_dirty_pages(struct inode *inode)
{
	bool dirty;

	spin_lock(&inode->i_lock);
	dirty = inode_state_read(inode) & I_DIRTY_PAGES;
	inode_state_clear(inode, I_DIRTY_PAGES);
	spin_unlock(&inode->i_lock);
	return dirty;
}

void rdax_test_make_table(struct vm_fault *vmf)
{
	struct vm_fault other = {
		.vma = vmf->vma,
		.address = (vmf->address & PMD_MASK) + 3 * PAGE_SIZE,
		.flags = vmf->flags,
	};

	vmf_insert_page_mkwrite(&other, ZERO_PAGE(other.address), false);
}

/* User memory */

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

/* Threads */

struct thread {
	int (*fn)(void *data);
	void *data;
	struct kunit *test;
	struct completion begun;
	struct completion done;
	bool finished;
};

static int run_thread(void *data)
{
	struct thread *thread = data;

	allow_signal(SIGKILL);
	allow_signal(SIGUSR1);
	current->kunit_test = thread->test;
	complete(&thread->begun);
	thread->fn(thread->data);
	current->kunit_test = NULL;
	WRITE_ONCE(thread->finished, true);
	/* Stays until it is joined. */
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		if (kthread_should_stop())
			break;
		complete(&thread->done);
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	kfree(thread);
	return 0;
}

struct task_struct *rdax_test_thread(int (*fn)(void *data), void *data)
{
	struct thread *thread = kzalloc(sizeof(*thread), GFP_KERNEL);
	struct task_struct *task;

	if (!thread)
		return NULL;
	thread->fn = fn;
	thread->data = data;
	thread->test = kunit_get_current_test();
	init_completion(&thread->begun);
	init_completion(&thread->done);
	task = kthread_create(run_thread, thread, "rdax-test");
	if (IS_ERR(task)) {
		kfree(thread);
		return NULL;
	}
	wake_up_process(task);
	/* Signals that come earlier are lost. */
	wait_for_completion(&thread->begun);
	return task;
}

void rdax_test_thread_join(struct task_struct *task)
{
	struct thread *thread = kthread_data(task);

	wait_for_completion(&thread->done);
	kthread_stop(task);
}

bool rdax_test_is_asleep(struct task_struct *task)
{
	unsigned int state = READ_ONCE(task->__state);
	struct thread *thread = kthread_data(task);

	/* To be joined is not what it is asked about. */
	return !READ_ONCE(thread->finished) && state & (TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE) && !task_is_running(task) &&
	       !READ_ONCE(task->on_cpu);
}

bool rdax_test_is_over(struct task_struct *task)
{
	struct thread *thread = kthread_data(task);

	return READ_ONCE(thread->finished);
}

unsigned long rdax_test_switches(struct task_struct *task)
{
	return READ_ONCE(task->nvcsw);
}

void rdax_test_signal(struct task_struct *task, bool fatal)
{
	send_sig(fatal ? SIGKILL : SIGUSR1, task, 1);
}

void rdax_test_flush_signals(void)
{
	flush_signals(current);
}

void rdax_test_fail_nth(unsigned int nth)
{
	WRITE_ONCE(current->fail_nth, nth);
}

unsigned int rdax_test_left_nth(void)
{
	return READ_ONCE(current->fail_nth);
}

void rdax_test_fail_all(bool fail)
{
	current->make_it_fail = fail;
}

/* Write-back of cache lines */

static void (*flush_fn)(unsigned long addr, size_t size);

static int on_flush(struct kprobe *probe, struct pt_regs *regs)
{
	flush_fn(regs_get_kernel_argument(regs, 0), regs_get_kernel_argument(regs, 1));
	return 0;
}

static struct kprobe flush_probe;

int rdax_test_watch_flushes(void (*fn)(unsigned long addr, size_t size))
{
	flush_fn = fn;
	memset(&flush_probe, 0, sizeof(flush_probe));
	flush_probe.symbol_name = "arch_wb_cache_pmem";
	flush_probe.pre_handler = on_flush;
	return register_kprobe(&flush_probe);
}

void rdax_test_unwatch_flushes(void)
{
	unregister_kprobe(&flush_probe);
}

/* Calls */

static atomic_t calls;
static struct kprobe call_probe;

static int on_call(struct kprobe *probe, struct pt_regs *regs)
{
	atomic_inc(&calls);
	return 0;
}

int rdax_test_watch_calls(const char *name)
{
	atomic_set(&calls, 0);
	memset(&call_probe, 0, sizeof(call_probe));
	call_probe.symbol_name = name;
	call_probe.pre_handler = on_call;
	return register_kprobe(&call_probe);
}

unsigned int rdax_test_calls(void)
{
	return atomic_read(&calls);
}

void rdax_test_unwatch_calls(void)
{
	unregister_kprobe(&call_probe);
}

/* Giving way */

static struct kprobe yield_probe;
static struct task_struct *yielding;
static unsigned long yields;

static int on_yield(struct kprobe *probe, struct pt_regs *regs)
{
	if (current == yielding)
		yields++;
	return 0;
}

int rdax_test_watch_yields(void)
{
	yielding = current;
	yields = 0;
	memset(&yield_probe, 0, sizeof(yield_probe));
	yield_probe.symbol_name = "rdax_cond_resched";
	yield_probe.pre_handler = on_yield;
	return register_kprobe(&yield_probe);
}

unsigned long rdax_test_yields(void)
{
	return yields;
}

void rdax_test_unwatch_yields(void)
{
	unregister_kprobe(&yield_probe);
}

/* Locks of a tree */

static struct {
	struct address_space *mapping;
	struct kprobe lock;
	struct kprobe unlock;
	/* Under the tree's lock. */
	unsigned long before;
	unsigned long holds;
	unsigned long most;
} watched;

/* Only one task works on the tree: the pages before the lock are those under it. */
static int on_lock(struct kprobe *probe, struct pt_regs *regs)
{
	if (regs_get_kernel_argument(regs, 0) == (unsigned long)&watched.mapping->i_pages)
		watched.before = watched.mapping->nrpages;
	return 0;
}

static int on_unlock(struct kprobe *probe, struct pt_regs *regs)
{
	unsigned long now = watched.mapping->nrpages;

	if (regs_get_kernel_argument(regs, 0) != (unsigned long)&watched.mapping->i_pages)
		return 0;
	watched.holds++;
	if (watched.before > now)
		watched.most = max(watched.most, watched.before - now);
	return 0;
}

int rdax_test_watch_tree(struct address_space *mapping)
{
	int err;

	memset(&watched, 0, sizeof(watched));
	watched.mapping = mapping;
	watched.lock.symbol_name = "rdax_xa_lock_irq";
	watched.lock.pre_handler = on_lock;
	watched.unlock.symbol_name = "rdax_xa_unlock_irq";
	watched.unlock.pre_handler = on_unlock;
	err = register_kprobe(&watched.lock);
	if (err)
		return err;
	err = register_kprobe(&watched.unlock);
	if (err)
		unregister_kprobe(&watched.lock);
	return err;
}

unsigned long rdax_test_tree_holds(void)
{
	return watched.holds;
}

unsigned long rdax_test_tree_most(void)
{
	return watched.most;
}

void rdax_test_unwatch_tree(void)
{
	unregister_kprobe(&watched.unlock);
	unregister_kprobe(&watched.lock);
}

/* Memory errors */

void rdax_test_set_poison(struct page *page, bool poison)
{
	if (poison)
		SetPageHWPoison(page);
	else
		ClearPageHWPoison(page);
}

int rdax_test_set_bad_blocks(struct block_device *bdev, sector_t sector, sector_t n, bool bad)
{
	struct badblocks *bb = bdev->bd_disk->bb;

	if (!bb)
		return -EOPNOTSUPP;
	if (bad)
		return badblocks_set(bb, sector, n, 1) ? 0 : -EIO;
	return badblocks_clear(bb, sector, n) ? 0 : -EIO;
}

/* File I/O */

void rdax_test_iov_user(struct iov_iter *iter, bool source, unsigned long addr, size_t len)
{
	iov_iter_ubuf(iter, source ? ITER_SOURCE : ITER_DEST, (void __user *)addr, len);
}

void rdax_test_iov_kernel(struct iov_iter *iter, struct kvec *kvec, bool source, void *addr,
			  size_t len)
{
	kvec->iov_base = addr;
	kvec->iov_len = len;
	iov_iter_kvec(iter, source ? ITER_SOURCE : ITER_DEST, kvec, 1, len);
}

void rdax_test_kiocb(struct kiocb *iocb, struct file *file, loff_t pos, int flags)
{
	init_sync_kiocb(iocb, file);
	iocb->ki_pos = pos;
	iocb->ki_flags |= flags;
}

void rdax_test_pause(unsigned int ms)
{
	msleep(ms);
}
