// SPDX-License-Identifier: GPL-2.0
/*
 * The blocks of a file that a read copies from.
 *
 * A read holds i_rwsem shared, and no reference to pages. A store to blocks that are shared with other
 * files makes a copy and has the filesystem put it in their place, without i_rwsem. When the other files
 * are gone, the old blocks are free, and somebody else's a moment later. So a read holds one of these
 * locks shared from the filesystem's answer until it has copied, and a fault holds it exclusively while
 * the filesystem puts the copy in place. Files have the locks in common; nobody takes two of them.
 *
 * Whoever has it shared only asks the filesystem and copies at most 2 MiB, without page faults, so that
 * a fault does not wait for long. The filesystem's own locks are taken inside.
 */

#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/rwsem.h>

#include "helpers.h"

#define LOCK_BITS 4
#define LOCK(n) __RWSEM_INITIALIZER(locks[n])

static struct rw_semaphore locks[1 << LOCK_BITS] = {
	LOCK(0), LOCK(1), LOCK(2), LOCK(3), LOCK(4), LOCK(5), LOCK(6), LOCK(7),
	LOCK(8), LOCK(9), LOCK(10), LOCK(11), LOCK(12), LOCK(13), LOCK(14), LOCK(15),
};

static struct rw_semaphore *lock_of(struct inode *inode)
{
	return &locks[hash_ptr(inode, LOCK_BITS)];
}

bool rdax_may_share_blocks(struct inode *inode)
{
	return S_ISREG(inode->i_mode) && inode->i_fop->remap_file_range;
}

int rdax_blocks_lock_shared(struct inode *inode, bool nowait)
{
	if (nowait)
		return down_read_trylock(lock_of(inode)) ? 0 : -EAGAIN;
	return down_read_killable(lock_of(inode));
}

void rdax_blocks_unlock_shared(struct inode *inode)
{
	up_read(lock_of(inode));
}

int rdax_blocks_lock(struct inode *inode)
{
	return down_write_killable(lock_of(inode));
}

void rdax_blocks_unlock(struct inode *inode)
{
	up_write(lock_of(inode));
}
