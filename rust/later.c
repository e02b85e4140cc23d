// SPDX-License-Identifier: GPL-2.0
/*
 * Accesses that the kernel makes for somebody (get_user_pages()) and that have to be tried again
 * later: with the address space's lock given back in between, where its caller allows that.
 *
 * Without the lock nothing keeps the file of the VMA, and the filesystem is not yet done with it when
 * its fault handler comes to know. So the file is kept until the task leaves the kernel.
 */

#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/task_work.h>

#include "helpers.h"

/* How long an access is tried by a caller that keeps the address space's lock. */
#define PATIENCE HZ
/* After such a pause the access has succeeded, or was given up: the next one is another. */
#define PAUSE (HZ / 2)

struct kept {
	struct hlist_node node;
	struct callback_head work;
	struct task_struct *task;
	struct file *file;
	/* The page that was tried last, since when, and when last. */
	unsigned long index;
	unsigned long since;
	unsigned long last;
	void (*begin)(void);
	void (*end)(void);
};

static DEFINE_HASHTABLE(all, 8);
static DEFINE_SPINLOCK(lock);

static void leaves_kernel(struct callback_head *work)
{
	struct kept *kept = container_of(work, struct kept, work);
	void (*end)(void) = kept->end;

	/* From here on the module waits for the end. */
	kept->begin();
	module_put(THIS_MODULE);
	spin_lock(&lock);
	hash_del(&kept->node);
	spin_unlock(&lock);
	fput(kept->file);
	kfree(kept);
	end();
}

static struct kept *find(struct file *file)
{
	struct kept *kept;

	spin_lock(&lock);
	hash_for_each_possible(all, kept, node, (unsigned long)current) {
		if (kept->task == current && kept->file == file)
			break;
	}
	spin_unlock(&lock);
	/* Only its task removes it. */
	return kept;
}

static struct kept *keep(struct file *file, void (*begin)(void), void (*end)(void))
{
	struct kept *kept;

	/* These do not leave the kernel; io_uring's come by the work of their tasks all the same. */
	if (current->flags & PF_KTHREAD ||
	    (current->flags & (PF_USER_WORKER | PF_IO_WORKER)) == PF_USER_WORKER)
		return NULL;
	kept = kzalloc_obj(*kept, GFP_NOWAIT | __GFP_NOWARN);
	if (!kept)
		return NULL;
	kept->task = current;
	kept->index = ULONG_MAX;
	kept->begin = begin;
	kept->end = end;
	init_task_work(&kept->work, leaves_kernel);
	kept->file = get_file(file);
	__module_get(THIS_MODULE);
	if (task_work_add(current, &kept->work, TWA_RESUME)) {
		/* Not the last: the VMA has one. */
		fput(file);
		module_put(THIS_MODULE);
		kfree(kept);
		return NULL;
	}
	spin_lock(&lock);
	hash_add(all, &kept->node, (unsigned long)current);
	spin_unlock(&lock);
	return kept;
}

vm_fault_t rdax_fault_later(struct vm_fault *vmf, bool for_table, void (*begin)(void),
			    void (*end)(void))
{
	struct mm_struct *mm = vmf->vma->vm_mm;
	struct file *file = vmf->vma->vm_file;
	struct kept *kept;

	/* The lock stays with a caller who does not wait. */
	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_NOPAGE | VM_FAULT_RETRY;
	/* A fault from user space returns there, without any lock. */
	if (vmf->flags & (FAULT_FLAG_USER | FAULT_FLAG_VMA_LOCK))
		return VM_FAULT_NOPAGE;
	kept = find(file) ?: keep(file, begin, end);
	if (!kept) {
		/*
		 * A thread of the kernel that gets pages there ahead of somebody (KVM), who comes himself when
		 * that fails. It would ask again and again with the lock.
		 */
		if (current->flags & PF_KTHREAD && vmf->flags & FAULT_FLAG_REMOTE &&
		    vmf->flags & FAULT_FLAG_ALLOW_RETRY)
			return VM_FAULT_SIGBUS;
		return VM_FAULT_NOPAGE;
	}
	if (vmf->flags & FAULT_FLAG_ALLOW_RETRY) {
		mmap_read_unlock(mm);
		/* Who comes back with the lock each time is in the way of a table himself. */
		if (for_table)
			rdax_mmap_write_lock_once(mm);
		return VM_FAULT_NOPAGE | VM_FAULT_RETRY;
	}
	if (kept->index != vmf->pgoff || time_after(jiffies, kept->last + PAUSE)) {
		kept->index = vmf->pgoff;
		kept->since = jiffies;
	}
	kept->last = jiffies;
	return time_after(jiffies, kept->since + PATIENCE) ? VM_FAULT_SIGBUS : VM_FAULT_NOPAGE;
}
