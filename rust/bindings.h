/* SPDX-License-Identifier: GPL-2.0 */
/*
 * bindgen's input: the kernel's headers and the module's own helpers. bindings.names lists the names that
 * are generated.
 */

#include <linux/hrtimer_types.h>

#include <linux/blkdev.h>
#include <linux/cdev.h>
#include <linux/configfs.h>
#include <linux/dax.h>
#include <linux/fs.h>
#include <linux/fserror.h>
#include <linux/ftrace.h>
#include <linux/huge_mm.h>
#include <linux/iomap.h>
#include <linux/ksm.h>
#include <linux/libnvdimm.h>
#include <linux/memremap.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/percpu-rwsem.h>
#include <linux/percpu.h>
#include <linux/rmap.h>
#include <linux/uio.h>
#include <linux/uprobes.h>
#include <linux/vmstat.h>
#include <linux/wait.h>
#include <linux/wait_bit.h>
#include <linux/writeback.h>
#include <linux/xarray.h>

#include "helpers.h"
#include "report.h"
#include "trace.h"

/* Static functions that are redirected. */
void evict(struct inode *inode);
#ifdef RDAX_TEST
#include "testing.h"
#endif
