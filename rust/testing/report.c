// SPDX-License-Identifier: GPL-2.0
/*
 * The reports of tests, and small things that they need of the kernel.
 */

#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/badblocks.h>
#include <linux/blkdev.h>
#include <linux/delay.h>
#include <linux/fs_struct.h>
#include <linux/ftrace.h>
#include <linux/kmsg_dump.h>
#include <linux/module.h>
#include <linux/page-flags.h>
#include <linux/uio.h>

#include "../testing.h"

#if !defined(CONFIG_KUNIT) || !defined(CONFIG_FAILSLAB)
#error "the tests need a kernel with KUnit and failing allocations (scripts/build --kernel debug)"
#endif

MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

void rdax_test_fail(const char *file, int line, const char *text)
{
	struct kunit *test = kunit_get_current_test();

	if (test)
		KUNIT_FAIL(test, "  %s:%d: %s", file, line, text);
	else
		pr_err("KUnit: %s:%d: %s (not in a test)\n", file, line, text);
}

struct folio *rdax_test_alloc_folio(unsigned int order)
{
	return folio_alloc((GFP_TRANSHUGE | __GFP_ZERO) & ~__GFP_MOVABLE, order);
}

void rdax_test_put_folio(struct folio *folio)
{
	folio_put(folio);
}

void rdax_test_skip(const char *why)
{
	struct kunit *test = kunit_get_current_test();

	if (test)
		kunit_mark_skipped(test, "%s", why);
}

void rdax_test_note(const char *text)
{
	struct kunit *test = kunit_get_current_test();

	if (test)
		kunit_info(test, "%s\n", text);
}

bool rdax_test_log_says(const char *text)
{
	struct kmsg_dump_iter iter;
	char line[512];
	size_t len;

	/* Ends with the log. */
	kmsg_dump_rewind(&iter);
	while (kmsg_dump_get_line(&iter, false, line, sizeof(line) - 1, &len)) {
		line[len] = 0;
		if (strstr(line, text))
			return true;
	}
	return false;
}

static notrace void do_nothing(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops,
			       struct ftrace_regs *fregs)
{
}

static struct ftrace_ops holder = { .func = do_nothing, .flags = FTRACE_OPS_FL_IPMODIFY };

int rdax_test_hold_function(const char *name)
{
	int err = ftrace_set_filter(&holder, (unsigned char *)name, strlen(name), 1);

	return err ?: register_ftrace_function(&holder);
}

void rdax_test_release_function(void)
{
	unregister_ftrace_function(&holder);
	ftrace_free_filter(&holder);
}

struct fs_struct *rdax_test_begin_paths(void)
{
	return __override_init_fs();
}

void rdax_test_end_paths(struct fs_struct *old)
{
	__revert_init_fs(old);
}

/* Memory errors */

void rdax_test_set_poison(struct page *page, bool poison)
{
	if (poison)
		SetPageHWPoison(page);
	else
		ClearPageHWPoison(page);
}

int rdax_test_set_bad_blocks(struct block_device *bdev, sector_t sector, sector_t n, bool bad)
{
	struct badblocks *bb = bdev->bd_disk->bb;

	if (!bb)
		return -EOPNOTSUPP;
	if (bad)
		return badblocks_set(bb, sector, n, 1) ? 0 : -EIO;
	return badblocks_clear(bb, sector, n) ? 0 : -EIO;
}

/* File I/O */

void rdax_test_iov_user(struct iov_iter *iter, bool source, unsigned long addr, size_t len)
{
	iov_iter_ubuf(iter, source ? ITER_SOURCE : ITER_DEST, (void __user *)addr, len);
}

void rdax_test_iov_kernel(struct iov_iter *iter, struct kvec *kvec, bool source, void *addr,
			  size_t len)
{
	kvec->iov_base = addr;
	kvec->iov_len = len;
	iov_iter_kvec(iter, source ? ITER_SOURCE : ITER_DEST, kvec, 1, len);
}

void rdax_test_kiocb(struct kiocb *iocb, struct file *file, loff_t pos, int flags)
{
	init_sync_kiocb(iocb, file);
	iocb->ki_pos = pos;
	iocb->ki_flags |= flags;
}

void rdax_test_pause(unsigned int ms)
{
	msleep(ms);
}
