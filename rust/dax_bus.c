// SPDX-License-Identifier: GPL-2.0
/*
 * The dax bus for rust/dax_bus/: struct dev_dax is private to drivers/dax, and its headers are
 * read here only.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cdev.h>
#include <linux/dax.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/percpu-rwsem.h>
#include <linux/ratelimit.h>
#include <linux/sysfs.h>

#include "bus.h"
#include "dax-private.h"
#include "helpers.h"

static const struct rdax_dax_driver *calls;

static int probe(struct dev_dax *dev_dax)
{
	return calls->probe(dev_dax);
}

static void remove(struct dev_dax *dev_dax)
{
	struct device *dev = &dev_dax->dev;

	calls->remove(dev_dax, dev_get_drvdata(dev));
	dev_set_drvdata(dev, NULL);
}

/* The core removes the attributes before it calls remove(), and adds them after probe(). */
static ssize_t stats_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return calls->stats(dev_get_drvdata(dev), buf, PAGE_SIZE);
}
static DEVICE_ATTR_RO(stats);

static struct attribute *rdax_attrs[] = {
	&dev_attr_stats.attr,
	NULL,
};

static const struct attribute_group rdax_group = {
	.name = "rdax",
	.attrs = rdax_attrs,
};

static const struct attribute_group *rdax_groups[] = {
	&rdax_group,
	NULL,
};

/*
 * Of no type that the bus matches by itself: a device comes to this driver only when the user
 * writes its name to new_id.
 */
static struct dax_device_driver driver = {
	.type = DAXDRV_FSDEV_TYPE + 1,
	.probe = probe,
	.remove = remove,
	.drv = {
		.dev_groups = rdax_groups,
	},
};

/*
 * The bus takes any name for new_id, and says nothing of what became of it. So the driver has a
 * file of its own in the place of the bus's, which hands on what is written, and tells of a
 * device that this driver has not got by that.
 */
static const struct driver_attribute *bus_new_id;

static void tell_who_has(const char *text)
{
	char buf[32], *name;
	struct device *dev;

	/* The bus has seen that it is a name, maybe with the end of the line. */
	strscpy(buf, text);
	name = strim(buf);
	dev = bus_find_device_by_name(driver.drv.bus, NULL, name);
	if (!dev) {
		pr_warn("%s: there is no such device; if it is made, it comes to this driver\n",
			name);
		return;
	}
	device_lock(dev);
	if (!dev->driver)
		pr_warn("%s: not taken, and no driver has it; see the lines before\n", name);
	else if (dev->driver != &driver.drv)
		pr_warn("%s: not taken, %s has it: write its name to drivers/%s/unbind, and then to drivers/%s/bind\n",
			name, dev->driver->name, dev->driver->name, driver.drv.name);
	device_unlock(dev);
	put_device(dev);
}

static ssize_t new_id_store(struct device_driver *drv, const char *buf, size_t count)
{
	ssize_t taken = bus_new_id->store(drv, buf, count);

	if (taken > 0)
		tell_who_has(buf);
	return taken;
}
static DRIVER_ATTR_WO(new_id);

static const struct driver_attribute *find_bus_attribute(const char *name)
{
	const struct attribute_group *const *group = driver.drv.bus->drv_groups;
	struct attribute *const *attr;

	for (; group && *group; group++)
		for (attr = (*group)->attrs; attr && *attr; attr++)
			if (!strcmp((*attr)->name, name))
				return container_of(*attr, struct driver_attribute, attr);
	return NULL;
}

int rdax_dax_register(const struct rdax_dax_driver *driver_calls)
{
	int err;

	calls = driver_calls;
	err = dax_driver_register(&driver);
	if (err)
		return err;
	bus_new_id = find_bus_attribute("new_id");
	if (!bus_new_id || !bus_new_id->store)
		/* It works without words, too. */
		return 0;
	driver_remove_file(&driver.drv, bus_new_id);
	err = driver_create_file(&driver.drv, &driver_attr_new_id);
	if (err)
		dax_driver_unregister(&driver);
	return err;
}

static int tell_of_end(struct device *dev, void *unused)
{
	if (dev->driver == &driver.drv)
		pr_warn("%s: has no driver from now on; modprobe device_dax, and write its name to drivers/device_dax/bind\n",
			dev_name(dev));
	return 0;
}

void rdax_dax_unregister(void)
{
	bus_for_each_dev(driver.drv.bus, NULL, NULL, tell_of_end);
	dax_driver_unregister(&driver);
}

const char *rdax_dax_name(struct dev_dax *dev_dax)
{
	return dev_name(&dev_dax->dev);
}

dev_t rdax_dax_devt(struct dev_dax *dev_dax)
{
	return dev_dax->dev.devt;
}

unsigned long rdax_dax_align(struct dev_dax *dev_dax)
{
	return dev_dax->align;
}

int rdax_dax_nr_ranges(struct dev_dax *dev_dax)
{
	return dev_dax->nr_range;
}

struct rdax_dax_range rdax_dax_range(struct dev_dax *dev_dax, int i)
{
	const struct dev_dax_range *range = &dev_dax->ranges[i];

	return (struct rdax_dax_range) {
		.pgoff = range->pgoff,
		.pfn = PHYS_PFN(range->range.start),
		.pages = PHYS_PFN(range_len(&range->range)),
	};
}

struct inode *rdax_dax_inode(struct dev_dax *dev_dax)
{
	return igrab(dax_inode(dev_dax->dax_dev));
}

int rdax_dax_keep(struct dev_dax *dev_dax, void *data, void (*drop)(void *data))
{
	return devm_add_action_or_reset(&dev_dax->dev, drop, data);
}

struct dev_pagemap *rdax_dax_map(struct dev_dax *dev_dax, unsigned int order,
				 const struct dev_pagemap_ops *ops, void *owner)
{
	/* The namespace's word on its page map; a pattern that is left as it is. */
	const struct dev_pagemap *given = static_dev_dax(dev_dax) ? dev_dax->pgmap : NULL;
	struct device *dev = &dev_dax->dev;
	struct dev_pagemap *pgmap;
	void *address;
	int i;

	pgmap = devm_kzalloc(dev, struct_size(pgmap, ranges, dev_dax->nr_range), GFP_KERNEL);
	if (!pgmap)
		return ERR_PTR(-ENOMEM);

	for (i = 0; i < dev_dax->nr_range; i++) {
		const struct range *range = &dev_dax->ranges[i].range;

		if (!devm_request_mem_region(dev, range->start, range_len(range), dev_name(dev))) {
			dev_warn(dev, "%#llx-%#llx is in use by somebody else\n",
				 range->start, range->end);
			return ERR_PTR(-EBUSY);
		}
		pgmap->ranges[i] = *range;
	}
	pgmap->nr_range = dev_dax->nr_range;

	if (given && dev_dax->nr_range == 1) {
		bool altmap = given->flags & PGMAP_ALTMAP_VALID;

		if (altmap) {
			pgmap->flags = PGMAP_ALTMAP_VALID;
			memcpy(&pgmap->altmap, &given->altmap, sizeof(pgmap->altmap));
			pgmap->altmap.align = 0;
			pgmap->altmap.alloc = 0;
		}
		/* With the metadata in front, unless the folios would not begin where the data do. */
		if (altmap || IS_ALIGNED(given->range.start, PAGE_SIZE << order))
			pgmap->range = given->range;
	}

	pgmap->type = MEMORY_DEVICE_GENERIC;
	pgmap->vmemmap_shift = order;
	pgmap->ops = ops;
	pgmap->owner = owner;
	address = devm_memremap_pages(dev, pgmap);
	return IS_ERR(address) ? ERR_CAST(address) : pgmap;
}

struct cdev *rdax_dax_publish(struct dev_dax *dev_dax, struct dev_pagemap *pgmap,
			      const struct file_operations *fops, void *data)
{
	struct device *dev = &dev_dax->dev;
	struct cdev *cdev = cdev_alloc();
	int err;

	if (!cdev)
		return ERR_PTR(-ENOMEM);
	cdev->owner = THIS_MODULE;
	cdev->ops = fops;
	cdev_set_parent(cdev, &dev->kobj);

	dev_set_drvdata(dev, data);
	/*
	 * A device that is alive has a page map: files that were opened while it had another driver
	 * may look at it. kill_dev_dax() takes it out again, unless it is the namespace's.
	 */
	if (!static_dev_dax(dev_dax))
		dev_dax->pgmap = pgmap;
	run_dax(dev_dax->dax_dev);
	err = cdev_add(cdev, dev->devt, 1);
	if (err) {
		/* The reference to the parent was not taken. */
		cdev->kobj.parent = NULL;
		kobject_put(&cdev->kobj);
		kill_dev_dax(dev_dax);
		dev_set_drvdata(dev, NULL);
		return ERR_PTR(err);
	}
	return cdev;
}

void rdax_dax_retire(struct dev_dax *dev_dax, struct cdev *cdev)
{
	cdev_del(cdev);
	kill_dev_dax(dev_dax);
}

dev_t rdax_inode_rdev(struct inode *inode)
{
	return inode->i_rdev;
}

bool rdax_desc_is_shared(struct vm_area_desc *desc)
{
	return vma_desc_test(desc, VMA_MAYSHARE_BIT);
}

void rdax_desc_keep_apart(struct vm_area_desc *desc)
{
	vma_desc_set_flags(desc, VMA_DONTEXPAND_BIT);
}

void rdax_vma_unmap_moved(struct vm_area_struct *vma)
{
	if (vma->vm_mm == current->mm)
		unmap_mapping_range(vma->vm_file->f_mapping, (loff_t)vma->vm_pgoff << PAGE_SHIFT,
				    vma->vm_end - vma->vm_start, 0);
}

int rdax_percpu_init_rwsem(struct percpu_rw_semaphore *sem)
{
	return percpu_init_rwsem(sem);
}

void rdax_percpu_down_read(struct percpu_rw_semaphore *sem)
{
	percpu_down_read(sem);
}

void rdax_percpu_up_read(struct percpu_rw_semaphore *sem)
{
	percpu_up_read(sem);
}

bool rdax_ratelimit(void)
{
	static DEFINE_RATELIMIT_STATE(state, DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&state);
}
