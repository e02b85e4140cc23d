// SPDX-License-Identifier: GPL-2.0
/*
 * The blocks of a file that a read copies from.
 *
 * A read holds i_rwsem shared, and no reference to pages. A store to blocks that are shared with other
 * files makes a copy and has the filesystem put it in their place, without i_rwsem. When the other files
 * are gone, the old blocks are free, and somebody else's a moment later. So a read holds one of these
 * locks shared from the filesystem's answer until it has copied, and a fault holds it exclusively while
 * the filesystem puts the copy in place. The files on one device have the locks in common; nobody takes
 * two of them. Those of other devices have others: a filesystem may take long to answer, for its device's
 * sake, and readers of no other wait for that.
 *
 * A holder that has it shared only asks the filesystem and copies at most 2 MiB, without page faults, so that
 * a fault does not wait for long. The filesystem's own locks are taken inside.
 */

#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/rwsem.h>
#include <linux/slab.h>

#include "helpers.h"

#define LOCK_BITS 4

struct rdax_blocks {
	struct rw_semaphore locks[1 << LOCK_BITS];
};

struct rdax_blocks *rdax_blocks_new(void)
{
	struct rdax_blocks *blocks = kzalloc_obj(*blocks);
	int i;

	if (!blocks)
		return NULL;
	for (i = 0; i < ARRAY_SIZE(blocks->locks); i++)
		init_rwsem(&blocks->locks[i]);
	return blocks;
}

void rdax_blocks_free(struct rdax_blocks *blocks)
{
	kfree(blocks);
}

static struct rw_semaphore *lock_of(struct rdax_blocks *blocks, struct inode *inode)
{
	return &blocks->locks[hash_ptr(inode, LOCK_BITS)];
}

bool rdax_may_share_blocks(struct inode *inode)
{
	return S_ISREG(inode->i_mode) && inode->i_fop->remap_file_range;
}

int rdax_blocks_lock_shared(struct rdax_blocks *blocks, struct inode *inode, bool nowait)
{
	if (nowait)
		return down_read_trylock(lock_of(blocks, inode)) ? 0 : -EAGAIN;
	return down_read_killable(lock_of(blocks, inode));
}

void rdax_blocks_unlock_shared(struct rdax_blocks *blocks, struct inode *inode)
{
	up_read(lock_of(blocks, inode));
}

int rdax_blocks_lock(struct rdax_blocks *blocks, struct inode *inode)
{
	return down_write_killable(lock_of(blocks, inode));
}

void rdax_blocks_unlock(struct rdax_blocks *blocks, struct inode *inode)
{
	up_write(lock_of(blocks, inode));
}
