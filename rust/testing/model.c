// SPDX-License-Identifier: GPL-2.0
/*
 * A filesystem in memory, for the KUnit tests.
 */

#include <linux/blkdev.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>

#include "../testing.h"

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

static int read_folio(struct file *file, struct folio *folio)
{
	folio_unlock(folio);
	return -EIO;
}

/* As of a filesystem with the same operations for files without DAX. */
static const struct address_space_operations reading_ops = {
	.dirty_folio = noop_dirty_folio,
	.read_folio = read_folio,
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

void rdax_test_can_read_folios(struct inode *inode)
{
	inode->i_mapping->a_ops = &reading_ops;
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

int rdax_test_set_cached(struct inode *inode, pgoff_t index, bool cached)
{
	struct folio *folio = cached ? page_folio(ZERO_PAGE(0)) : NULL;

	return xa_err(xa_store_irq(&inode->i_mapping->i_pages, index, folio, GFP_KERNEL));
}

static loff_t remap(struct file *from, loff_t at, struct file *to, loff_t start, loff_t len,
		    unsigned int flags)
{
	return -EOPNOTSUPP;
}

/* Whether the inode's filesystem can share blocks. */
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
