// SPDX-License-Identifier: GPL-2.0
/*
 * Files whose last user is gone while somebody still holds pages of theirs. Their eviction waits for
 * the pages, and nothing ends that wait but whoever holds them. That may be the same task: a process
 * that exits closes its files one after the other, and one of the next may be the pipe that has the
 * page. So such a file is parked, which is what a cached inode without a user is, and evicted when a
 * look from time to time finds its pages idle. Or the filesystem is unmounted, which evicts all, and
 * waits.
 *
 * A parked inode has no reference. What keeps it is that its eviction begins with taking it off the
 * list, and that whoever looks at the list holds its lock.
 */

#include <asm/syscall.h>
#include <asm/unistd.h>
#include <asm/unistd_32_ia32.h>
#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "helpers.h"

/* The shortest and the longest pause between two looks. */
#define SHORTEST_MS 10u
#define LONGEST_MS 160u
/* Of all time, one part in so many is spent with looking. */
#define SHARE 16

static DEFINE_XARRAY(parked);
static void look_at_all(struct work_struct *work);
static DECLARE_DELAYED_WORK(look, look_at_all);
static bool (*is_held)(struct inode *inode);

static unsigned long place_of(struct inode *inode)
{
	return (unsigned long)inode >> ilog2(sizeof(long));
}

void rdax_revive(struct inode *inode)
{
	spin_lock(&inode->i_lock);
	inode_state_clear(inode, I_FREEING);
	atomic_set(&inode->i_count, 1);
	/* A lookup that found the inode meanwhile waits for its end. */
	inode_wake_up_bit(inode, __I_NEW);
	spin_unlock(&inode->i_lock);
}

/* The core warns of an allocation that must not fail by a task that reclaims memory; only there it may fail. */
static gfp_t flags_for_nofail(void)
{
	return GFP_NOFS | (current->flags & PF_MEMALLOC ? __GFP_NOWARN : __GFP_NOFAIL);
}

bool rdax_park(struct inode *inode, bool (*held)(struct inode *inode))
{
	WRITE_ONCE(is_held, held);
	if (xa_err(xa_store(&parked, place_of(inode), inode, flags_for_nofail())))
		return false;
	/* As iput() does, but that this is not the inode's end. */
	atomic_dec(&inode->i_count);
	mod_delayed_work(system_dfl_wq, &look, msecs_to_jiffies(SHORTEST_MS));
	return true;
}

void rdax_unpark(struct inode *inode)
{
	if (!xa_empty(&parked))
		xa_erase(&parked, place_of(inode));
}

/*
 * Evict the inode if its pages are idle. What its filesystem needs for that is had without waiting,
 * or it is left for the next look: nobody unmounts it meanwhile, and nobody freezes it, which would
 * have the eviction wait for the thaw, and that for the lock.
 *
 * Called with the list's lock, which is dropped.
 */
static bool evict_if_idle(struct inode *inode)
{
	struct super_block *sb = inode->i_sb;
	bool evicted = false;

	if (!down_read_trylock(&sb->s_umount)) {
		xa_unlock(&parked);
		return false;
	}
	if (!(sb->s_flags & SB_ACTIVE) || !sb_start_write_trylock(sb)) {
		xa_unlock(&parked);
		goto out;
	}
	inode = igrab(inode);
	xa_unlock(&parked);
	if (inode) {
		if (is_held(inode)) {
			atomic_dec(&inode->i_count);
		} else {
			iput(inode);
			evicted = true;
		}
	}
	sb_end_write(sb);
out:
	up_read(&sb->s_umount);
	return evicted;
}

static void look_at_all(struct work_struct *work)
{
	static unsigned int pause = SHORTEST_MS;
	ktime_t since = ktime_get();
	unsigned long index = 0;
	bool evicted = false;
	struct inode *inode;
	unsigned int busy;

	/* Ends with the list: each pass goes on behind the inode of the one before. */
	for (;; index++) {
		xa_lock(&parked);
		inode = xa_find(&parked, &index, ULONG_MAX, XA_PRESENT);
		if (!inode) {
			xa_unlock(&parked);
			break;
		}
		evicted |= evict_if_idle(inode);
		cond_resched();
	}
	busy = min_t(s64, ktime_ms_delta(ktime_get(), since), MSEC_PER_SEC);
	pause = evicted ? SHORTEST_MS : min(pause * 2, LONGEST_MS);
	if (!xa_empty(&parked))
		queue_delayed_work(system_dfl_wq, &look,
				   msecs_to_jiffies(max(pause, busy * SHARE)));
}

bool rdax_unmounts(void)
{
	struct pt_regs *regs = current_pt_regs();
	unsigned long arguments[6];
	bool compat = in_ia32_syscall();

	if (current->flags & (PF_KTHREAD | PF_USER_WORKER | PF_EXITING))
		return false;
	switch (syscall_get_nr(current, regs)) {
	case __NR_ia32_umount:
		return compat;
	case __NR_ia32_umount2:
		if (!compat)
			return false;
		break;
	case __NR_umount2:
	case __X32_SYSCALL_BIT + __NR_umount2:
		if (compat)
			return false;
		break;
	default:
		return false;
	}
	syscall_get_arguments(current, regs, arguments);
	/* Who has a mount detached does not want to wait. */
	return !(arguments[1] & MNT_DETACH);
}

bool rdax_put_active_super(struct super_block *sb)
{
	return atomic_add_unless(&sb->s_active, -1, 1);
}

void rdax_unlock_super(struct super_block *sb)
{
	up_write(&sb->s_umount);
}

void rdax_deactivate_super(struct super_block *sb)
{
	if (!rdax_put_active_super(sb)) {
		down_write(&sb->s_umount);
		deactivate_locked_super(sb);
	}
}

struct deactivation {
	struct work_struct work;
	struct super_block *sb;
	void (*fn)(struct super_block *sb);
	void (*begin)(void);
	void (*end)(void);
};

static void deactivate(struct work_struct *work)
{
	struct deactivation *this = container_of(work, struct deactivation, work);
	void (*end)(void) = this->end;

	this->fn(this->sb);
	/* From here on the module waits for the end. */
	this->begin();
	module_put(THIS_MODULE);
	kfree(this);
	end();
}

bool rdax_deactivate_later(struct super_block *sb, bool locked,
			   void (*fn)(struct super_block *sb), void (*begin)(void),
			   void (*end)(void))
{
	struct deactivation *this = kmalloc_obj(*this, flags_for_nofail());

	if (!this)
		return false;
	INIT_WORK(&this->work, deactivate);
	this->sb = sb;
	this->fn = fn;
	this->begin = begin;
	this->end = end;
	__module_get(THIS_MODULE);
	/* It is there as long as the thread has not begun. */
	if (locked)
		up_write(&sb->s_umount);
	queue_work(system_dfl_wq, &this->work);
	return true;
}

void rdax_parking_end(void)
{
	cancel_delayed_work_sync(&look);
}

struct inode *rdax_some_inode(void)
{
	static const struct file_operations none;
	struct file *file = anon_inode_getfile("[rdax]", &none, NULL, O_RDONLY);
	struct inode *inode;

	if (IS_ERR(file))
		return NULL;
	/* Of the filesystem that all such files are on, which is always there. */
	inode = alloc_anon_inode(file_inode(file)->i_sb);
	fput(file);
	return IS_ERR(inode) ? NULL : inode;
}
