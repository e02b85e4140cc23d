// SPDX-License-Identifier: GPL-2.0
/*
 * System calls that would have to wait for a page which somebody holds.
 *
 * He may hold it for as long as he likes, and what calls the layer has the file locked: i_rwsem, which
 * nobody waits for in a way that a signal ends, and the freeze count. So the wait is put off to where the
 * task leaves the kernel and holds nothing. The call ends with -ERESTARTSYS, as with a signal, and this
 * work, which is run where signals are, waits; then the call is made again, by the kernel, from its
 * beginning. A signal ends the wait as one ends any wait: the call goes on after it, or ends with EINTR.
 *
 * While it waits nothing keeps the page: only its address is known, which is what the core wakes by when
 * a page's last reference goes.
 *
 * A task does not go round here by itself: a call is made again because it has found, that time too, a page
 * that somebody holds; its work is off the list when it runs; and the flag by which it came is cleared by
 * who looks for signals, before he runs what is on the list. So a task is busy for as long as pages are held,
 * but sleeps in between, here or for a moment in the call, and leaves when it is killed. Where it does not
 * sleep here there is something else to be done first (a signal, other work, the end of the task), or the
 * page is idle already.
 */

#include <asm/syscall.h>
#include <asm/unistd.h>
#include <asm/unistd_32_ia32.h>
#include <asm/unistd_64_x32.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/task_work.h>
#include <linux/wait_bit.h>

#include "helpers.h"
#include "report.h"

struct restart {
	struct hlist_node node;
	struct callback_head work;
	struct task_struct *task;
	unsigned int ms;
	/* The event has happened, or will not. */
	bool woken;
	struct wait_queue_head *queue;
	struct wait_bit_queue_entry wait;
	void (*begin)(void);
	void (*end)(void);
};

static DEFINE_HASHTABLE(all, 8);
static DEFINE_SPINLOCK(lock);

static struct restart *find(void)
{
	struct restart *restart;

	spin_lock(&lock);
	hash_for_each_possible(all, restart, node, (unsigned long)current) {
		if (restart->task == current)
			break;
	}
	spin_unlock(&lock);
	/* Only its task removes it. */
	return restart;
}

static int page_is_idle(struct wait_queue_entry *entry, unsigned int mode, int sync, void *key)
{
	struct restart *restart = container_of(entry, struct restart, wait.wq_entry);
	struct wait_bit_key *idle = key;

	if (restart->wait.key.flags != idle->flags || restart->wait.key.bit_nr != idle->bit_nr)
		return 0;
	/* Pairs with the task's look, by the locks that waking it takes. */
	WRITE_ONCE(restart->woken, true);
	return default_wake_function(entry, mode, sync, key);
}

static void wait_before_restart(struct callback_head *work)
{
	struct restart *restart = container_of(work, struct restart, work);
	void (*end)(void) = restart->end;
	/*
	 * Where somebody traces the task, this is run before it stops for him, with the flag still set by which
	 * it comes here, and it would not sleep. What else the flag was set for is on the list.
	 */
	bool notified = test_and_clear_thread_flag(TIF_NOTIFY_SIGNAL);

	set_current_state(TASK_INTERRUPTIBLE);
	/* A task that exits does not make the call again. */
	if (!READ_ONCE(restart->woken) && !(current->flags & PF_EXITING) &&
	    !task_work_pending(current))
		schedule_timeout(msecs_to_jiffies(restart->ms));
	__set_current_state(TASK_RUNNING);
	/* The call is made again by who finds it on the way out. */
	if (notified)
		set_thread_flag(TIF_NOTIFY_SIGNAL);
	remove_wait_queue(restart->queue, &restart->wait.wq_entry);
	rdax_wait_resumed();

	/* From here on the module waits for the end. */
	restart->begin();
	module_put(THIS_MODULE);
	spin_lock(&lock);
	hash_del(&restart->node);
	spin_unlock(&lock);
	kfree(restart);
	end();
}

bool rdax_deduplicates(void)
{
	struct pt_regs *regs = current_pt_regs();
	unsigned long arguments[6];
	bool is_ioctl;

	if (current->flags & (PF_KTHREAD | PF_USER_WORKER))
		return false;
	switch (syscall_get_nr(current, regs)) {
	case __NR_ia32_ioctl:
		is_ioctl = in_ia32_syscall();
		break;
	case __NR_ioctl:
	case __X32_SYSCALL_BIT + __NR_x32_ioctl:
		is_ioctl = !in_ia32_syscall();
		break;
	default:
		is_ioctl = false;
	}
	if (!is_ioctl)
		return false;
	syscall_get_arguments(current, regs, arguments);
	return (unsigned int)arguments[1] == FIDEDUPERANGE;
}

bool rdax_may_restart(void)
{
	/* These do not leave the kernel, or not to go on. */
	if (current->flags & (PF_KTHREAD | PF_USER_WORKER | PF_EXITING | PF_DUMPCORE))
		return false;
	/* These report each request by itself, in the caller's memory. */
	switch (syscall_get_nr(current, current_pt_regs())) {
	case -1:
	case __NR_io_submit:
	case __NR_io_uring_enter:
	/* Of programs of 32 bits. The first is add_key() of others, which has no file to wait for. */
	case __NR_ia32_io_submit:
	case __X32_SYSCALL_BIT + __NR_x32_io_submit:
	case __X32_SYSCALL_BIT + __NR_io_uring_enter:
		return false;
	}
	/* So it is here. */
	return !rdax_deduplicates();
}

bool rdax_restart_is_due(void)
{
	return find();
}

bool rdax_restart_after(struct folio *folio, unsigned int ms, void (*begin)(void),
			void (*end)(void))
{
	struct restart *restart;

	if (!rdax_may_restart())
		return false;
	/* A restart is already pending: the caller has tried another way since. */
	if (find())
		return true;
	restart = kzalloc_obj(*restart, GFP_NOFS | __GFP_NOWARN);
	if (!restart)
		return false;
	restart->task = current;
	restart->ms = ms;
	restart->begin = begin;
	restart->end = end;
	restart->queue = __var_waitqueue(&folio->page);
	init_wait_var_entry(&restart->wait, &folio->page, 0);
	restart->wait.wq_entry.func = page_is_idle;
	add_wait_queue(restart->queue, &restart->wait.wq_entry);
	init_task_work(&restart->work, wait_before_restart);
	__module_get(THIS_MODULE);
	if (task_work_add(current, &restart->work, TWA_SIGNAL)) {
		module_put(THIS_MODULE);
		remove_wait_queue(restart->queue, &restart->wait.wq_entry);
		kfree(restart);
		return false;
	}
	spin_lock(&lock);
	hash_add(all, &restart->node, (unsigned long)current);
	spin_unlock(&lock);
	rdax_wait_goes_on();
	return true;
}

void rdax_restart_at_once(void)
{
	struct restart *restart = find();

	if (restart)
		WRITE_ONCE(restart->woken, true);
}
