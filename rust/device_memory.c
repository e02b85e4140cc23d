// SPDX-License-Identifier: GPL-2.0
/* The memory of a block device: where it is, whose its pages are, and what it promises. */

#include "compat.h"
#include <linux/blkdev.h>
#include <linux/dax.h>
#include <linux/libnvdimm.h>
#include <linux/memremap.h>

/* The driver's own header, beside its source. */
#include <pmem.h>

#include "helpers.h"

unsigned long rdax_device_memory(struct block_device *bdev, unsigned long at,
				 unsigned long *pages, struct rdax_page_map *map)
{
	unsigned long end = bdev_nr_bytes(bdev) >> PAGE_SHIFT;
	struct dax_device *dax_dev;
	unsigned long pfn = 0;
	u64 start;
	long n = 0;
	int id;

	*pages = 0;
	if (at >= end)
		return 0;
	dax_dev = fs_dax_get_by_bdev(bdev, &start, NULL, NULL);
	if (dax_dev) {
		id = dax_read_lock();
		n = dax_direct_access(dax_dev, (start >> PAGE_SHIFT) + at,
				      end - at,
				      DAX_RECOVERY_WRITE, NULL, &pfn);
		if (map && n > 0)
			rdax_page_map(pfn, map);
		dax_read_unlock(id);
		fs_put_dax(dax_dev, NULL);
	}
	*pages = max(n, 0L);
	return pfn;
}

const struct dax_device *rdax_dax_of(struct block_device *bdev)
{
	struct dax_device *dax_dev;
	u64 start;

	dax_dev = fs_dax_get_by_bdev(bdev, &start, NULL, NULL);
	fs_put_dax(dax_dev, NULL);
	return dax_dev;
}

/*
 * Whether the page map is that of a pmem device whose host has to be told to flush. dax_synchronous() does not
 * tell: devices of DAX are allocated from a cache, and what the driver of an earlier one said of it is not cleared;
 * and the device mapper has asked it, once, what it says of its own. The region knows.
 */
static bool is_asynchronous(struct dev_pagemap *pgmap)
{
#if IS_ENABLED(CONFIG_LIBNVDIMM)
	struct pmem_device *pmem = container_of(pgmap, struct pmem_device, pgmap);
	struct device *dev;

	/* Whoever else has page maps of this type names another owner. */
	if (pgmap->type != MEMORY_DEVICE_FS_DAX || pgmap->owner != pmem)
		return false;
	dev = disk_to_dev(pmem->disk)->parent;
	while (dev && !(dev->type && dev->type->name && !strcmp(dev->type->name, "nd_pmem")))
		dev = dev->parent;
	return dev && !is_nvdimm_sync(to_nd_region(dev));
#else
	return false;
#endif
}

void rdax_page_map(unsigned long pfn, struct rdax_page_map *map)
{
	struct dev_pagemap *pgmap = page_pgmap(pfn_to_page(pfn));
	const struct vmem_altmap *altmap = pgmap_altmap(pgmap);
	int i;

	map->owner = (unsigned long)pgmap->owner;
	map->asynchronous = is_asynchronous(pgmap);
	map->first = pfn;
	map->pages = 1;
	for (i = 0; i < pgmap->nr_range; i++) {
		unsigned long first = PHYS_PFN(pgmap->ranges[i].start);
		unsigned long last = PHYS_PFN(pgmap->ranges[i].end);

		if (pfn < first || pfn > last)
			continue;
		/* The memory of the driver and of the page map itself has no pages. */
		if (!i && altmap)
			first += altmap->reserve + altmap->free;
		map->first = first;
		map->pages = last - first + 1;
	}
}

unsigned long rdax_memory_owner(struct block_device *bdev)
{
	return (unsigned long)bdev->bd_disk->private_data;
}
