// SPDX-License-Identifier: GPL-2.0
/*
 * ext4, when it writes to blocks that were allocated and never written, enters them into its cache
 * of extents as written (in ext4_split_convert_extents()) before it has put zeroes there (in
 * ext4_map_create_blocks()), and ext4_map_blocks() answers from that cache without waiting for the lock
 * that is held meanwhile: whoever loads from the file through a mapping in between sees what was in
 * the blocks before, and a store in between is overwritten. With EXT4_EX_NOCACHE, as
 * FALLOC_FL_WRITE_ZEROES passes it, the cache learns of the blocks when the zeroes are there, and
 * until then whoever asks waits for the lock. So that flag is added to the calls for files of adopted
 * devices.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>

#include "helpers.h"

#if IS_ENABLED(CONFIG_EXT4_FS)

/* ext4's own header: in the kernel's tree, beside its source. */
#include <ext4.h>

#define RDAX_MAP_BLOCKS "ext4_ext_map_blocks"

static_assert(__same_type(ext4_ext_map_blocks,
			  int (handle_t *, struct inode *, struct ext4_map_blocks *, int)));

/* Guards what is below. */
static DEFINE_MUTEX(rdax_ext4_lock);
static bool rdax_ext4_on;
/* The table of adopted devices, between rdax_ext4_begin() and rdax_ext4_end(). */
static const void *rdax_ext4_members;

/* Why ext4 cannot be watched; 0 if it can. */
static int rdax_ext4_error;

static bool rdax_zeroes_later(unsigned long flags)
{
	return flags & EXT4_GET_BLOCKS_ZERO && !(flags & EXT4_EX_NOCACHE);
}

/* ftrace calls it where ext4_ext_map_blocks() begins, and takes the arguments from @fregs afterwards. */
static void rdax_ext4_map_blocks(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops,
				 struct ftrace_regs *fregs)
{
	struct pt_regs *regs = &arch_ftrace_regs(fregs)->regs;
	const struct inode *inode = (const struct inode *)regs->si;

	if (rdax_zeroes_later(regs->cx) && IS_DAX(inode) &&
	    rdax_is_member(ops->private, inode->i_sb->s_bdev))
		regs->cx |= EXT4_EX_NOCACHE;
}

/* Permanent: kernel.ftrace_enabled cannot switch it off. */
static struct ftrace_ops rdax_ext4_ops = {
	.func = rdax_ext4_map_blocks,
	.flags = FTRACE_OPS_FL_PERMANENT,
};

/* Finds the function where ext4 is loaded. */
static int rdax_ext4_start(void)
{
	/* A module's function has the module's name before its own, so that no other's is found. */
	const char *name = IS_BUILTIN(CONFIG_EXT4_FS) ? RDAX_MAP_BLOCKS : "ext4:" RDAX_MAP_BLOCKS;
	unsigned long entry;
	int found, err;

	lockdep_assert_held(&rdax_ext4_lock);
	if (rdax_ext4_on || rdax_ext4_error)
		return rdax_ext4_error;
	found = rdax_function_entries(&name, &entry, 1);
	if (found != 1)
		return found < 0 ? found : -ENOENT;
	rdax_ext4_ops.private = (void *)rdax_ext4_members;
	err = ftrace_set_filter_ip(&rdax_ext4_ops, entry, 0, 1);
	if (!err) {
		err = register_ftrace_function(&rdax_ext4_ops);
		if (err)
			ftrace_free_filter(&rdax_ext4_ops);
	}
	rdax_ext4_on = !err;
	return err;
}

static int rdax_ext4_stop(void)
{
	int err = 0;

	lockdep_assert_held(&rdax_ext4_lock);
	if (rdax_ext4_on) {
		err = unregister_ftrace_function(&rdax_ext4_ops);
		if (err)
			rdax_ext4_error = err;
		else
			ftrace_free_filter(&rdax_ext4_ops);
		rdax_ext4_on = false;
	}
	return err;
}

/* ext4 comes before its first mount, and goes after its last. */
static int rdax_ext4_moves(struct notifier_block *nb, unsigned long state, void *data)
{
	const struct module *mod = data;
	int err = 0;

	if (strcmp(mod->name, "ext4"))
		return NOTIFY_DONE;
	mutex_lock(&rdax_ext4_lock);
	if (state == MODULE_STATE_COMING && rdax_ext4_members) {
		err = rdax_ext4_start();
		if (err)
			pr_err("ext4 is not loaded, as it cannot be kept from telling of blocks before it has cleared them (%d): on adopted devices its users could see each other's deleted data; release the devices to use ext4\n",
			       err);
	} else if (state == MODULE_STATE_GOING) {
		rdax_ext4_stop();
	}
	mutex_unlock(&rdax_ext4_lock);
	return notifier_from_errno(err);
}

static struct notifier_block rdax_ext4_notifier = { .notifier_call = rdax_ext4_moves };

void rdax_ext4_init(void)
{
	rdax_ext4_error = register_module_notifier(&rdax_ext4_notifier);
}

void rdax_ext4_exit(void)
{
	unregister_module_notifier(&rdax_ext4_notifier);
}

int rdax_ext4_begin(const void *members)
{
	int err;

	mutex_lock(&rdax_ext4_lock);
	rdax_ext4_members = members;
	err = rdax_ext4_start();
	/* It is not loaded. */
	if (err == -ENOENT && !IS_BUILTIN(CONFIG_EXT4_FS))
		err = 0;
	if (err)
		rdax_ext4_members = NULL;
	mutex_unlock(&rdax_ext4_lock);
	return err;
}

int rdax_ext4_end(void)
{
	int err;

	mutex_lock(&rdax_ext4_lock);
	rdax_ext4_members = NULL;
	err = rdax_ext4_stop();
	mutex_unlock(&rdax_ext4_lock);
	return err;
}

#else

void rdax_ext4_init(void)
{
}

void rdax_ext4_exit(void)
{
}

int rdax_ext4_begin(const void *members)
{
	return 0;
}

int rdax_ext4_end(void)
{
	return 0;
}

#endif
