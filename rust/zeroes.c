// SPDX-License-Identifier: GPL-2.0
/*
 * Filesystems put zeroes on blocks that a file gets, through the driver. Where memory is bad that fails, and
 * what the filesystem does then is worse than bad memory (see ext4.c; XFS shuts itself down if it has just
 * allocated the blocks). And a page that has failed has no address in the kernel any more by which to write
 * it: an oops. So such pages get it back before they are overwritten, as all of them is, and zeroes are put
 * past the sectors that the driver cannot write. It gives those to nobody to read.
 */

#include <linux/blkdev.h>
#include <linux/dax.h>
#include <linux/fs.h>
#include <linux/mm.h>

#include "helpers.h"

/* A block device, and where it begins in the device of DAX that it is, or is a partition of, in bytes. */
struct place {
	struct block_device *bdev;
	struct dax_device *dax_dev;
	u64 start;
};

/* As Page::is_poisoned(): the mark of a failure that somebody made up is another one beside. */
static bool has_failed(const struct page *page)
{
	return PageHWPoison(page) && !test_bit(PG_owner_priv_1, (const unsigned long *)&page->flags);
}

/*
 * Whether pages have failed; with @see all of them can be written by their address in the kernel afterwards.
 * Looks at some pages at a time, and lets others have the processor, and the device go, in between.
 */
static bool find_failed(const struct place *place, u64 at, u64 end, bool see)
{
	unsigned long pfn, i;
	bool found = false;
	long n, most;
	int id;

	/* Ends, as each round looks at a page at least. */
	for (; at < end && (see || !found); at += PFN_PHYS((u64)n)) {
		most = min_t(u64, PHYS_PFN(end - at), PTRS_PER_PMD);
		id = dax_read_lock();
		n = dax_direct_access(place->dax_dev, PHYS_PFN(place->start + at), most,
				      DAX_RECOVERY_WRITE, NULL, &pfn);
		/* Where there is no memory, there is none that has failed. */
		if (n <= 0) {
			n = 1;
		} else {
			n = min(n, most);
			for (i = 0; pfn_valid(pfn) && i < n; i++) {
				if (!has_failed(pfn_to_page(pfn + i)))
					continue;
				found = true;
				if (see)
					rdax_see_again(pfn + i);
			}
		}
		dax_read_unlock(id);
		rdax_cond_resched();
	}
	return found;
}

/*
 * Whether the driver, or that of a device below, knows some of these sectors, or others of their pages, as bad.
 * It is asked while the device is there, and says so of memory that is to be read.
 */
static bool has_bad(const struct place *place, sector_t sector, sector_t sectors)
{
	u64 at = (u64)sector << SECTOR_SHIFT, end = PAGE_ALIGN(at + ((u64)sectors << SECTOR_SHIFT));
	unsigned long pfn;
	long n = 1;
	int id;

	id = dax_read_lock();
	/* Ends at the first bad one, and each round gets past a page at least. */
	for (at &= PAGE_MASK; at < end && n > 0; at += PFN_PHYS((u64)max(n, 1L)))
		n = dax_direct_access(place->dax_dev, PHYS_PFN(place->start + at), PHYS_PFN(end - at),
				      DAX_ACCESS, NULL, &pfn);
	dax_read_unlock(id);
	return n == -EHWPOISON || n == -EIO;
}

/* Zeroes on all sectors but bad ones. It calls itself for halves, so no deeper than 64 times. */
static int zero_sectors(const struct place *place, sector_t sector, sector_t sectors, gfp_t gfp)
{
	sector_t least = bdev_logical_block_size(place->bdev) >> SECTOR_SHIFT;
	sector_t half = rounddown(sectors / 2, least);
	int err = blkdev_issue_zeroout(place->bdev, sector, sectors, gfp, 0);

	if (err != -EIO || !place->dax_dev || !has_bad(place, sector, sectors))
		return err;
	if (!half)
		return 0;
	err = zero_sectors(place, sector, half, gfp);
	return err ?: zero_sectors(place, sector + half, sectors - half, gfp);
}

int rdax_put_zeroes(struct block_device *bdev, u64 at, u64 end, gfp_t gfp)
{
	struct place place = { .bdev = bdev };
	int err;

	place.dax_dev = fs_dax_get_by_bdev(bdev, &place.start, NULL, NULL);
	if (place.dax_dev)
		find_failed(&place, at, end, true);
	err = zero_sectors(&place, at >> SECTOR_SHIFT, (end - at) >> SECTOR_SHIFT, gfp);
	if (place.dax_dev)
		fs_put_dax(place.dax_dev, NULL);
	return err;
}

/* The driver writes to pages by their address in the kernel, which those that have failed have not. */
static bool has_failed_pages(struct block_device *bdev, u64 at, u64 end)
{
	struct place place = { .bdev = bdev };
	bool found;

	place.dax_dev = fs_dax_get_by_bdev(bdev, &place.start, NULL, NULL);
	if (!place.dax_dev)
		return false;
	found = find_failed(&place, at & PAGE_MASK, PAGE_ALIGN(end), false);
	fs_put_dax(place.dax_dev, NULL);
	return found;
}

int rdax_issue_zeroout(struct block_device *bdev, sector_t sector, sector_t sectors, gfp_t gfp,
		       unsigned int flags, bool failures)
{
	u64 at = (u64)sector << SECTOR_SHIFT, end = at + ((u64)sectors << SECTOR_SHIFT);
	/* Files get whole blocks. All others want metadata to be written, or an error. */
	bool may_be_files = !flags && PAGE_ALIGNED(at) && PAGE_ALIGNED(end);
	int err;

	/* To whom the blocks are given takes a look at all groups of ext4: it is asked where it matters only. */
	if (failures && has_failed_pages(bdev, at, end)) {
		if (!may_be_files || !rdax_holder_gives_to_file(bdev, at, end, gfp))
			return -EIO;
	} else {
		err = blkdev_issue_zeroout(bdev, sector, sectors, gfp, flags);
		if (err != -EIO || !may_be_files || !rdax_holder_gives_to_file(bdev, at, end, gfp))
			return err;
	}
	return rdax_put_zeroes(bdev, at, end, gfp);
}
