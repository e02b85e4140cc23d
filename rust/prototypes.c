// SPDX-License-Identifier: GPL-2.0
/* The running kernel's description of its types. */

#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>

#include "helpers.h"

/*
 * The running kernel's BTF, in a buffer that the caller frees with kvfree(), and its length; an errno if
 * there is none, or it cannot be read. Sleeps.
 *
 * Not kernel_read_file(), which asks the security modules about what is going to be trusted.
 */
ssize_t rdax_read_btf(void **data)
{
	struct file *file __free(fput) = NULL;
	void *buffer __free(kvfree) = NULL;
	struct file *opened;
	loff_t size, pos = 0;

	opened = filp_open("/sys/kernel/btf/vmlinux", O_RDONLY | O_LARGEFILE, 0);
	if (IS_ERR(opened))
		return PTR_ERR(opened);
	file = opened;
	size = i_size_read(file_inode(file));
	if (size <= 0 || size > INT_MAX)
		return -EINVAL;
	buffer = kvmalloc(size, GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	/* Ends, as each round reads something, or fails. */
	while (pos < size) {
		ssize_t n = kernel_read(file, buffer + pos, size - pos, &pos);

		if (n <= 0)
			return n ?: -EIO;
	}
	*data = no_free_ptr(buffer);
	return size;
}
