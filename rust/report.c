// SPDX-License-Identifier: GPL-2.0
/*
 * What /dev/rdax tells of files, and of tasks that wait (src/report/).
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/hashtable.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/pid_namespace.h>
#include <linux/ratelimit.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "helpers.h"
#include "report.h"
#include "trace.h"

bool rdax_is_admin(void)
{
	return capable(CAP_SYS_ADMIN);
}

bool rdax_file_may_read(struct file *file)
{
	return file->f_mode & FMODE_READ;
}

struct inode *rdax_file_inode(struct file *file)
{
	struct inode *inode = file_inode(file);

	if (!S_ISREG(inode->i_mode) || file->f_mapping != inode->i_mapping ||
	    inode->i_mapping->host != inode)
		return NULL;
	return inode;
}

int rdax_folio_whole_maps(struct folio *folio)
{
	return folio_test_large(folio) ? atomic_read(&folio->_entire_mapcount) + 1 : 0;
}

int rdax_look_at_vmas(struct address_space *mapping, unsigned long first, unsigned long pages,
		      unsigned int most, struct rdax_vma_look *look)
{
	unsigned long last = first + pages - 1;
	struct vm_area_struct *vma;

	memset(look, 0, sizeof(*look));
	if (down_read_killable(&mapping->i_mmap_rwsem))
		return -EINTR;
	for (vma = rdax_first_vma(mapping, first, last); vma && look->vmas < most;
	     vma = rdax_next_vma(vma, first, last)) {
		unsigned long shift = (vma->vm_start >> PAGE_SHIFT) - vma->vm_pgoff;

		look->vmas++;
		look->address |= !IS_ALIGNED(shift, pages);
		look->ends |= vma->vm_pgoff > first || vma->vm_pgoff + vma_pages(vma) - 1 < last;
		/* The other flag is taken off shared mappings of files that are open for reading only. */
		look->copied |= !(vma->vm_flags & VM_MAYSHARE) ||
				(pages > PTRS_PER_PTE && rdax_vma_needs_copy(vma));
	}
	i_mmap_unlock_read(mapping);
	return 0;
}

/* What maps zeroes is special, and no folio counts it. */
static unsigned int count_in_table(pmd_t *pmdp, unsigned long addr, unsigned long n,
				   unsigned int *small)
{
	unsigned int whole = 0;
	unsigned long i;
	pte_t *ptes;
	pmd_t pmd;

	/* A table that is taken away is freed after a grace period. */
	rcu_read_lock();
	pmd = pmdp_get_lockless(pmdp);
	if (pmd_present(pmd) && pmd_leaf(pmd)) {
		whole = pmd_special(pmd);
	} else if (pmd_present(pmd) && !pmd_bad(pmd)) {
		ptes = (pte_t *)pmd_page_vaddr(pmd) + pte_index(addr);
		for (i = 0; i < n; i++) {
			pte_t pte = ptep_get(ptes + i);

			small[i] += pte_present(pte) && pte_special(pte);
		}
	}
	rcu_read_unlock();
	return whole;
}

static unsigned int count_at(struct mm_struct *mm, unsigned long addr, unsigned long n,
			     unsigned int *small)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t pud;

	if (pgd_none(pgdp_get(pgd)))
		return 0;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(p4dp_get(p4d)))
		return 0;
	pud = pudp_get(pud_offset(p4d, addr));
	if (!pud_present(pud) || pud_leaf(pud))
		return 0;
	return count_in_table(pmd_offset(&pud, addr), addr, n, small);
}

int rdax_count_zeroes(struct address_space *mapping, unsigned long first, unsigned int most,
		      unsigned int *whole, unsigned int *small)
{
	unsigned long last = first + PTRS_PER_PTE - 1;
	struct vm_area_struct *vma;
	unsigned int seen = 0;

	*whole = 0;
	memset(small, 0, PTRS_PER_PTE * sizeof(*small));
	/* Tables of mappings that are in the tree are not freed but as above. */
	if (down_read_killable(&mapping->i_mmap_rwsem))
		return -EINTR;
	for (vma = rdax_first_vma(mapping, first, last); vma && seen < most;
	     vma = rdax_next_vma(vma, first, last)) {
		unsigned long end = min(vma->vm_pgoff + vma_pages(vma) - 1, last) + 1;
		unsigned long at, next;

		seen++;
		for (at = max(vma->vm_pgoff, first); at < end; at = next) {
			unsigned long addr = vma->vm_start + ((at - vma->vm_pgoff) << PAGE_SHIFT);

			next = min(end, at + PTRS_PER_PTE - pte_index(addr));
			*whole += count_at(vma->vm_mm, addr, next - at, small + (at - first));
		}
		cond_resched();
	}
	i_mmap_unlock_read(mapping);
	return 0;
}

/* After so long a wait is worth a line in the log, and again when it is so many times as long as it was then. */
#define LONG_NS (10 * NSEC_PER_SEC)
#define LONGER 4

struct wait {
	struct task_struct *task;	/* Not to be used when the wait has ended. */
	u64 task_start;
	struct address_space *mapping;
	kuid_t uid;
	u64 since;
	/* For how long it is to have lasted when the log is told next. */
	u64 say_at;
	/* It does not end with what was begun. */
	bool goes_on;
	struct rdax_wait_record record;
	/* When it has ended. */
	u64 end;
	struct hlist_node same;
	struct list_head younger;
};

/* By task. A task takes its wait away before it goes on, so it is there while the lock is held. */
static DEFINE_XARRAY(waits);

/*
 * Faults that wait, and system calls, do so by being made again and again. What begins soon after the last try
 * of the same task goes on with it. So the last wait of each task is kept for a while: by task, and in the order
 * of their ends. Under the lock of waits.
 */
#define RECENT_NS NSEC_PER_SEC
#define RECENT_MOST 4096

static DEFINE_HASHTABLE(recent, 8);
static LIST_HEAD(recent_in_order);
static unsigned int recent_count;

static unsigned long place_of(struct task_struct *task)
{
	return (unsigned long)task >> ilog2(sizeof(long));
}

static struct wait *forget(struct wait *last)
{
	hash_del(&last->same);
	list_del(&last->younger);
	recent_count--;
	return last;
}

/*
 * Takes away the oldest one if nobody will go on with it, or if there are more than RECENT_MOST. As each wait that
 * ends does this, there are no more.
 */
static struct wait *forget_stale(void)
{
	struct wait *last = list_first_entry_or_null(&recent_in_order, struct wait, younger);

	if (!last || (recent_count <= RECENT_MOST && ktime_get_ns() - last->end < RECENT_NS))
		return NULL;
	return forget(last);
}

/* Takes away the last one of this task. */
static struct wait *forget_own(void)
{
	struct wait *last;

	hash_for_each_possible(recent, last, same, (unsigned long)current) {
		/* Another task may have had this one's place. */
		if (last->task == current && last->task_start == current->start_time)
			return forget(last);
	}
	return NULL;
}

static void remember(struct wait *wait)
{
	wait->end = ktime_get_ns();
	hash_add(recent, &wait->same, (unsigned long)wait->task);
	list_add_tail(&wait->younger, &recent_in_order);
	recent_count++;
}

static bool is_again(const struct wait *last, const struct wait *wait)
{
	const struct rdax_wait_record *before = &last->record, *now = &wait->record;

	return before->inode == now->inode && before->kind == now->kind &&
	       before->dev_major == now->dev_major && before->dev_minor == now->dev_minor &&
	       before->dev_type == now->dev_type && wait->since - last->end < RECENT_NS;
}

bool rdax_wait_begin(unsigned int kind, struct inode *inode, dev_t dev, unsigned int dev_type)
{
	struct wait *wait, *last = NULL, *stale;
	int ret;

	/* Only this task puts something here. */
	if (xa_load(&waits, place_of(current)))
		return false;
	wait = kzalloc_obj(*wait, GFP_NOWAIT | __GFP_NOWARN);
	if (!wait)
		return false;
	wait->task = current;
	wait->task_start = current->start_time;
	wait->uid = current_euid();
	wait->since = ktime_get_ns();
	wait->say_at = LONG_NS;
	wait->record.kind = kind;
	wait->record.offset = RDAX_WAIT_NOWHERE;
	if (inode) {
		wait->mapping = inode->i_mapping;
		wait->record.inode = inode->i_ino;
		/* Of a filesystem on a block device, as all are that have pmem for themselves. */
		dev = inode->i_sb->s_dev;
		dev_type = RDAX_DEV_BLOCK;
	}
	wait->record.dev_major = MAJOR(dev);
	wait->record.dev_minor = MINOR(dev);
	wait->record.dev_type = dev_type;
	xa_lock(&waits);
	ret = xa_err(__xa_store(&waits, place_of(current), wait, GFP_NOWAIT | __GFP_NOWARN));
	if (!ret) {
		last = forget_own();
		if (last && is_again(last, wait)) {
			wait->since = last->since;
			wait->say_at = last->say_at;
		}
	}
	stale = forget_stale();
	xa_unlock(&waits);
	kfree(last);
	kfree(stale);
	if (ret) {
		kfree(wait);
		return false;
	}
	trace_rdax_wait_begin(kind, dev, wait->record.inode, ktime_get_ns() - wait->since);
	return true;
}

/* False if too much was said before. */
static bool say(const struct rdax_wait_record *record, u64 waited)
{
	/* It does not count what was not said: that will be. */
	static struct ratelimit_state limit =
		RATELIMIT_STATE_INIT_FLAGS(limit, 10 * HZ, 5, RATELIMIT_MSG_ON_RELEASE);
	static const char * const who[] = {
		[RDAX_WAIT_LAYOUT] = "a truncate or the like",
		[RDAX_WAIT_WRITE] = "a write",
		[RDAX_WAIT_FAULT] = "a page fault",
		[RDAX_WAIT_EVICTION] = "the end of a file",
		[RDAX_WAIT_DEVICE] = "the end of a device",
	};
	static const char * const what[] = {
		[RDAX_DEV_UNKNOWN] = "device",
		[RDAX_DEV_BLOCK] = "block device",
		[RDAX_DEV_CHARACTER] = "character device",
	};

	if (!__ratelimit(&limit))
		return false;
	pr_warn("%s[%d]: %s has waited for %llu s for others who use a page: %s %u:%u inode %llu offset %lld, %u references, %u of mappings; rdax who says more\n",
		current->comm, task_pid_nr(current), who[record->kind], div_u64(waited, NSEC_PER_SEC),
		what[record->dev_type], record->dev_major, record->dev_minor, record->inode,
		(s64)record->offset, record->references, record->maps);
	return true;
}

/* The wait of this task; only this task changes it, and takes it away. */
static struct wait *own_wait(void)
{
	return xa_empty(&waits) ? NULL : xa_load(&waits, place_of(current));
}

void rdax_wait_note_at(u64 offset, unsigned long pfn, unsigned int order, int references, int maps)
{
	struct rdax_wait_record record;
	struct wait *wait = own_wait();
	bool is_long = false;
	u64 waited = 0;

	if (wait) {
		xa_lock(&waits);
		wait->record.offset = offset;
		wait->record.physical = PFN_PHYS(pfn);
		wait->record.order = order;
		wait->record.references = max(references, 0);
		wait->record.maps = max(maps, 0);
		waited = ktime_get_ns() - wait->since;
		is_long = waited >= wait->say_at;
		if (is_long)
			record = wait->record;
		xa_unlock(&waits);
	}
	/* What cannot be said now is when it looks again. */
	if (is_long && say(&record, waited)) {
		xa_lock(&waits);
		wait->say_at = LONGER * waited;
		xa_unlock(&waits);
	}
}

void rdax_wait_note(unsigned long owner, unsigned long index, unsigned long pfn, unsigned int order,
		    int references, int maps)
{
	struct wait *wait = own_wait();
	u64 offset = RDAX_WAIT_NOWHERE;

	if (wait && owner && owner == (unsigned long)wait->mapping)
		offset = (u64)index << PAGE_SHIFT;
	rdax_wait_note_at(offset, pfn, order, references, maps);
}

static void end_wait(bool resumed)
{
	struct wait *wait, *stale = NULL;
	struct rdax_wait_record record;
	u64 waited = 0;

	if (xa_empty(&waits))
		return;
	xa_lock(&waits);
	wait = xa_load(&waits, place_of(current));
	if (wait && wait->goes_on != resumed)
		wait = NULL;
	if (wait) {
		__xa_erase(&waits, place_of(current));
		record = wait->record;
		waited = ktime_get_ns() - wait->since;
		/* Others may free it as soon as the lock is free. */
		remember(wait);
		stale = forget_stale();
	}
	xa_unlock(&waits);
	if (wait)
		trace_rdax_wait_end(record.kind, MKDEV(record.dev_major, record.dev_minor), record.inode,
				    waited);
	kfree(stale);
}

void rdax_report_exit(void)
{
	struct wait *last, *next;

	/* Nobody waits any more. */
	list_for_each_entry_safe(last, next, &recent_in_order, younger)
		kfree(forget(last));
}

void rdax_wait_end(void)
{
	end_wait(false);
}

void rdax_wait_goes_on(void)
{
	struct wait *wait;

	xa_lock(&waits);
	wait = xa_load(&waits, place_of(current));
	if (wait)
		wait->goes_on = true;
	xa_unlock(&waits);
}

void rdax_wait_resumed(void)
{
	end_wait(true);
}

/* Of its neighbours a container is told no more than its /proc shows. */
static bool is_wanted(const struct wait *wait, struct inode *inode, bool admin,
		      struct pid_namespace *ns)
{
	if (inode && wait->mapping != inode->i_mapping)
		return false;
	return admin || (uid_eq(wait->uid, current_euid()) && task_pid_nr_ns(wait->task, ns));
}

int rdax_wait_next(unsigned long *cursor, struct inode *inode, bool admin,
		   struct rdax_wait_record *record)
{
	struct pid_namespace *ns = task_active_pid_ns(current);
	unsigned int left = RDAX_WAITS_AT_ONCE;
	struct wait *wait;
	int ret = 0;

	xa_lock(&waits);
	/* Ends: each turn goes on behind the wait of the one before, and there are so many at most. */
	do {
		++*cursor;
		wait = xa_find(&waits, cursor, ULONG_MAX, XA_PRESENT);
	} while (wait && !is_wanted(wait, inode, admin, ns) && --left);
	if (wait && !left) {
		ret = -EAGAIN;
	} else if (wait) {
		ret = 1;
		*record = wait->record;
		record->waited = ktime_get_ns() - wait->since;
		record->pid = task_tgid_nr_ns(wait->task, ns);
		record->tid = task_pid_nr_ns(wait->task, ns);
		strscpy_pad(record->comm, wait->task->comm);
		if (!admin)
			record->physical = 0;
	}
	xa_unlock(&waits);
	return ret;
}
