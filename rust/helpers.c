// SPDX-License-Identifier: GPL-2.0

#include <linux/dax.h>
#include <linux/iomap.h>
#include <linux/module.h>
#include <linux/vmstat.h>

#include "helpers.h"

#if !defined(CONFIG_X86_64)
#error "rdax needs a 64-bit x86 kernel (CONFIG_X86_64)"
#endif
#if !defined(CONFIG_FS_DAX)
#error "rdax needs a kernel with DAX filesystems (CONFIG_FS_DAX)"
#endif
#if !defined(CONFIG_ZONE_DEVICE)
#error "rdax needs a kernel with pages for device memory (CONFIG_ZONE_DEVICE)"
#endif
#if !defined(CONFIG_TRANSPARENT_HUGEPAGE)
#error "rdax needs a kernel with huge page mappings (CONFIG_TRANSPARENT_HUGEPAGE)"
#endif
#if !defined(CONFIG_XARRAY_MULTI)
#error "rdax needs a kernel with multi-index XArray entries (CONFIG_XARRAY_MULTI)"
#endif
#if !defined(CONFIG_DYNAMIC_FTRACE_WITH_ARGS)
#error "rdax replaces functions through ftrace and needs CONFIG_DYNAMIC_FTRACE_WITH_ARGS"
#endif
#if !IS_ENABLED(CONFIG_CONFIGFS_FS)
#error "rdax is controlled through configfs and needs CONFIG_CONFIGFS_FS"
#endif

MODULE_VERSION(RDAX_VERSION);
MODULE_SOFTDEP("pre: configfs");

void rdax_mapping_set_error(struct address_space *mapping, int error)
{
	mapping_set_error(mapping, error);
}

void rdax_count_major_fault(void)
{
	count_vm_event(PGMAJFAULT);
}

unsigned long rdax_zero_pfn(unsigned long addr)
{
	return zero_pfn(addr);
}
