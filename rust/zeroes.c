// SPDX-License-Identifier: GPL-2.0
/*
 * Filesystems put zeroes on blocks that a file gets, through the driver. Where memory is bad that fails, and
 * what the filesystem does then is worse than bad memory (see ext4.c; XFS shuts itself down if it has just
 * allocated the blocks). And where a page has failed that is on no list of the driver's, there is no address
 * in the kernel any more by which to write it: an oops. So zeroes are put past what is bad, which nobody can
 * read.
 */

#include <linux/badblocks.h>
#include <linux/blkdev.h>
#include <linux/dax.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/mm.h>

#include "helpers.h"

/*
 * The driver's list of bad blocks, until put_list(); NULL if there is none, or the device has gone. The list
 * goes with the driver, which waits for whoever uses the queue.
 */
static struct badblocks *get_list(struct block_device *bdev)
{
	struct badblocks *list = bdev->bd_disk->bb;

	if (list && !percpu_ref_tryget_live(&bdev_get_queue(bdev)->q_usage_counter))
		list = NULL;
	return list;
}

static void put_list(struct block_device *bdev)
{
	percpu_ref_put(&bdev_get_queue(bdev)->q_usage_counter);
}

bool rdax_has_bad_blocks(struct block_device *bdev)
{
	struct badblocks *list = get_list(bdev);
	bool has = list && READ_ONCE(list->count);

	if (list)
		put_list(bdev);
	return has;
}

/* Whether the driver knows some of the sectors as bad, so that nobody reads those. */
static bool rdax_has_bad(struct block_device *bdev, sector_t sector, sector_t sectors)
{
	struct badblocks *list = get_list(bdev);
	sector_t first, bad;
	bool has;

	if (!list)
		return false;
	has = badblocks_check(list, get_start_sect(bdev) + sector, sectors, &first, &bad);
	put_list(bdev);
	return has;
}

/* Zeroes on all sectors but bad ones. It calls itself for halves, so no deeper than 64 times. */
static int rdax_zero_sectors(struct block_device *bdev, sector_t sector, sector_t sectors, gfp_t gfp)
{
	sector_t least = bdev_logical_block_size(bdev) >> SECTOR_SHIFT;
	sector_t half = rounddown(sectors / 2, least);
	int err = blkdev_issue_zeroout(bdev, sector, sectors, gfp, 0);

	if (err != -EIO || !rdax_has_bad(bdev, sector, sectors))
		return err;
	if (!half)
		return 0;
	err = rdax_zero_sectors(bdev, sector, half, gfp);
	return err ?: rdax_zero_sectors(bdev, sector + half, sectors - half, gfp);
}

/*
 * Whether the page at a byte of the device has failed. How many there are that are the same, at most
 * @pages, is put there.
 */
static bool rdax_has_failed(struct dax_device *dax_dev, u64 at, unsigned long *pages)
{
	unsigned long pfn, i;
	bool failed;
	long n;
	int id;

	id = dax_read_lock();
	n = dax_direct_access(dax_dev, PHYS_PFN(at), *pages, DAX_RECOVERY_WRITE, NULL, &pfn);
	/* Where there is no memory, there is none that has failed. */
	if (n <= 0 || !pfn_valid(pfn)) {
		dax_read_unlock(id);
		return false;
	}
	failed = PageHWPoison(pfn_to_page(pfn));
	/* Of a device's page map there are all pages, or none. */
	for (i = 1; i < min_t(unsigned long, n, *pages); i++) {
		if (PageHWPoison(pfn_to_page(pfn + i)) != failed)
			break;
	}
	dax_read_unlock(id);
	*pages = i;
	return failed;
}

int rdax_put_zeroes(struct block_device *bdev, u64 at, u64 end, gfp_t gfp)
{
	struct dax_device *dax_dev;
	u64 start;
	int err = 0;

	dax_dev = fs_dax_get_by_bdev(bdev, &start, NULL, NULL);
	while (at < end && !err) {
		unsigned long pages = PHYS_PFN(end - at);
		bool failed = dax_dev && rdax_has_failed(dax_dev, start + at, &pages);
		u64 bytes = PFN_PHYS((u64)pages);

		if (!failed)
			err = rdax_zero_sectors(bdev, at >> SECTOR_SHIFT, bytes >> SECTOR_SHIFT,
						gfp);
		at += bytes;
	}
	if (dax_dev)
		fs_put_dax(dax_dev, NULL);
	return err;
}

int rdax_issue_zeroout(struct block_device *bdev, sector_t sector, sector_t sectors, gfp_t gfp,
		       unsigned int flags)
{
	u64 at = (u64)sector << SECTOR_SHIFT, end = at + ((u64)sectors << SECTOR_SHIFT);

	/* XFS asks for zeroes for files only, in whole blocks. Others want metadata to be written, or nothing. */
	if (flags || !PAGE_ALIGNED(at) || !PAGE_ALIGNED(end) ||
	    rdax_magic_of_holder(bdev) != XFS_SUPER_MAGIC)
		return blkdev_issue_zeroout(bdev, sector, sectors, gfp, flags);
	return rdax_put_zeroes(bdev, at, end, gfp);
}
