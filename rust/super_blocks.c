// SPDX-License-Identifier: GPL-2.0
/* The filesystems of a block device, and their inodes. */

#include <linux/blkdev.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/module.h>

#include "helpers.h"

bool rdax_get_active_super(struct super_block *sb)
{
	return atomic_inc_not_zero(&sb->s_active);
}

/* The superblock has an active reference, so that its inodes are not evicted for an unmount. */
void rdax_visit_super(struct super_block *sb, rdax_inode_fn fn, void *data)
{
	struct inode *inode, *last = NULL;

	spin_lock(&sb->s_inode_list_lock);
	list_for_each_entry(inode, &sb->s_inodes, i_sb_list) {
		/* Those that are being freed go without us. */
		if (!igrab(inode))
			continue;
		spin_unlock(&sb->s_inode_list_lock);
		fn(inode, data);
		/* The one before is not needed any more to go on from. */
		iput(last);
		last = inode;
		cond_resched();
		spin_lock(&sb->s_inode_list_lock);
	}
	spin_unlock(&sb->s_inode_list_lock);
	iput(last);
}

/*
 * The next superblock of a type behind @last, which has an active reference, or the first; it gets
 * one, too. Those that are being unmounted are passed by. Superblocks are freed after a grace
 * period of RCU, so no lock is needed that anybody might be slow to let go of.
 */
static struct super_block *next_super(struct file_system_type *type, struct super_block *last)
{
	struct hlist_node *node, *next, **link;
	struct super_block *sb;

	rcu_read_lock();
	/* Begins anew when a superblock was taken off the list under us: each once. */
again:
	node = last ? READ_ONCE(last->s_instances.next) : READ_ONCE(type->fs_supers.first);
	while (node) {
		sb = hlist_entry(node, struct super_block, s_instances);
		if (atomic_inc_not_zero(&sb->s_active)) {
			rcu_read_unlock();
			return sb;
		}
		next = READ_ONCE(node->next);
		link = READ_ONCE(node->pprev);
		if (!link || READ_ONCE(*link) != node)
			goto again;
		node = next;
	}
	rcu_read_unlock();
	return NULL;
}

/*
 * The holder of a device, if its functions are the kernel's own (fs/super.c): a filesystem. Of others
 * nothing is known. Called with the lock of holders.
 */
static void *holder_of_kernel(struct block_device *bdev)
{
	unsigned long ops = (unsigned long)bdev->bd_holder_ops;

	return ops && !(ops >= MODULES_VADDR && ops < MODULES_END) ? bdev->bd_holder : NULL;
}

/* Types are static data, superblocks are allocated. */
static bool is_super(const void *holder)
{
	return (unsigned long)holder < __START_KERNEL_map;
}

bool rdax_holder_gives_to_file(struct block_device *bdev, u64 at, u64 end, gfp_t gfp)
{
	struct super_block *sb;
	bool gives = false;

	mutex_lock(&bdev->bd_holder_lock);
	sb = holder_of_kernel(bdev);
	if (sb && is_super(sb)) {
		if (sb->s_magic == XFS_SUPER_MAGIC)
			gives = true;
		else if (sb->s_magic == EXT4_SUPER_MAGIC && sb->s_bdev == bdev)
			gives = rdax_ext4_gives_to_file(sb, at, end, gfp);
	}
	mutex_unlock(&bdev->bd_holder_lock);
	return gives;
}

/*
 * The filesystem that holds a device: its superblock, with an active reference; or NULL, and the type
 * of several superblocks that may share the device, which is not unregistered until
 * module_put(), or NULL as well.
 */
static struct super_block *holder_of(struct block_device *bdev, struct file_system_type **type)
{
	struct super_block *sb = NULL;
	void *holder;

	*type = NULL;
	mutex_lock(&bdev->bd_holder_lock);
	holder = holder_of_kernel(bdev);
	if (holder && is_super(holder)) {
		sb = holder;
		/* One that is being unmounted evicts its inodes itself. */
		if (!atomic_inc_not_zero(&sb->s_active))
			sb = NULL;
	} else if (holder) {
		*type = holder;
		if (!try_module_get((*type)->owner))
			*type = NULL;
	}
	mutex_unlock(&bdev->bd_holder_lock);
	return sb;
}

void rdax_visit_inodes(struct block_device *bdev, rdax_inode_fn fn, void *data)
{
	struct file_system_type *type;
	struct super_block *sb, *next;

	sb = holder_of(bdev, &type);
	if (sb)
		rdax_visit_super(sb, fn, data);
	if (type) {
		while ((next = next_super(type, sb))) {
			rdax_visit_super(next, fn, data);
			if (sb)
				deactivate_super(sb);
			sb = next;
		}
	}
	if (sb)
		deactivate_super(sb);
	if (type)
		module_put(type->owner);
}
