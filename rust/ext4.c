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
 *
 * Where ext4 zeroes bad memory (ext4_issue_zeroout()) it is worse: by then it has converted the blocks, or
 * takes them for converted, so that those without zeroes are shown, or stores to them are lost with the
 * cache. And a failed page that is not among the driver's bad blocks is no longer mapped by the kernel:
 * writing it is an oops. So the module zeroes in place of ext4 (zeroes.c). A compiler may put
 * ext4_issue_zeroout() into callers in the same file; these come by where they call the block layer, and are told
 * from those who zero metadata by where they want zeroes (rdax_ext4_gives_to_file()).
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

static_assert(__same_type(ext4_ext_map_blocks,
			  int (handle_t *, struct inode *, struct ext4_map_blocks *, int)));
static_assert(__same_type(ext4_issue_zeroout,
			  int (struct inode *, ext4_lblk_t, ext4_fsblk_t, ext4_lblk_t)));

/* A module's function has the module's name before its own, so that no other's is found. */
#define RDAX_EXT4(name)	(IS_BUILTIN(CONFIG_EXT4_FS) ? name : "ext4:" name)

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

/* Serves in place of ext4_issue_zeroout(). The files are not encrypted, which DAX excludes. */
static int rdax_ext4_zeroout(struct inode *inode, ext4_lblk_t lblk, ext4_fsblk_t pblk,
			     ext4_lblk_t len)
{
	u64 at = pblk << inode->i_blkbits;

	return rdax_put_zeroes(inode->i_sb->s_bdev, at, at + ((u64)len << inode->i_blkbits),
			       GFP_NOFS);
}

/* ftrace calls it where ext4_issue_zeroout() begins, and goes on at the address in @fregs. */
static void rdax_ext4_issue_zeroout(unsigned long ip, unsigned long parent_ip,
				    struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	const struct inode *inode = (const struct inode *)ftrace_regs_get_argument(fregs, 0);

	if (IS_DAX(inode) && rdax_is_member(ops->private, inode->i_sb->s_bdev))
		ftrace_regs_set_instruction_pointer(fregs, (unsigned long)rdax_ext4_zeroout);
}

/*
 * ext4 zeroes blocks of files with GFP_NOFS; so it does tables of inodes, and the metadata of groups by which it
 * grows, which it does not count yet. The journal is zeroed so, too (EXT4_IOC_CHECKPOINT), but without a handle,
 * which whoever maps blocks has; where ext4 zeroes blocks of files without one is in another file of its source
 * than ext4_issue_zeroout(), and comes by there.
 */
bool rdax_ext4_gives_to_file(struct super_block *sb, u64 at, u64 end, gfp_t gfp)
{
	struct ext4_sb_info *sbi = EXT4_SB(sb);
	ext4_fsblk_t first = at >> sb->s_blocksize_bits, last = (end - 1) >> sb->s_blocksize_bits;
	ext4_group_t group, groups;

	if (!current->journal_info)
		return false;
	/* The driver of ext2 has the same magic number. */
	if (gfp != GFP_NOFS || strcmp(sb->s_type->name, "ext4") || !sbi || end <= at)
		return false;
	if (last >= ext4_blocks_count(sbi->s_es))
		return false;
	groups = ext4_get_groups_count(sb);
	for (group = 0; group < groups; group++) {
		unsigned int in_block = group & (EXT4_DESC_PER_BLOCK(sb) - 1);
		const struct buffer_head *bh = sbi_array_rcu_deref(sbi, s_group_desc,
						group >> EXT4_DESC_PER_BLOCK_BITS(sb));
		const struct ext4_group_desc *desc = (const void *)(bh->b_data +
						in_block * EXT4_DESC_SIZE(sb));
		ext4_fsblk_t table = le32_to_cpu(desc->bg_inode_table_lo);

		if (EXT4_DESC_SIZE(sb) >= EXT4_MIN_DESC_SIZE_64BIT)
			table |= (ext4_fsblk_t)le32_to_cpu(desc->bg_inode_table_hi) << 32;
		if (first < table + sbi->s_itb_per_group && table <= last)
			return false;
		if (!(group % 1024))
			rdax_cond_resched();
	}
	return true;
}

/* Permanent: kernel.ftrace_enabled cannot switch it off. */
static struct ftrace_ops rdax_ext4_ops[] = {
	{ .func = rdax_ext4_map_blocks, .flags = FTRACE_OPS_FL_PERMANENT },
	{
		.func = rdax_ext4_issue_zeroout,
		.flags = FTRACE_OPS_FL_PERMANENT | FTRACE_OPS_FL_IPMODIFY,
	},
};

static int rdax_ext4_detach(struct ftrace_ops *ops)
{
	int err = unregister_ftrace_function(ops);

	/* ftrace is broken, and may call on. */
	if (err)
		rdax_ext4_error = err;
	else
		ftrace_free_filter(ops);
	return err;
}

static int rdax_ext4_attach(struct ftrace_ops *ops, unsigned long entry)
{
	int err;

	ops->private = (void *)rdax_ext4_members;
	err = ftrace_set_filter_ip(ops, entry, 0, 1);
	if (!err) {
		err = register_ftrace_function(ops);
		if (err)
			ftrace_free_filter(ops);
	}
	return err;
}

/* Finds the functions where ext4 is loaded. */
static int rdax_ext4_start(void)
{
	static const char * const names[] = {
		RDAX_EXT4("ext4_ext_map_blocks"),
		RDAX_EXT4("ext4_issue_zeroout"),
	};
	unsigned long entries[ARRAY_SIZE(names)];
	int found, err;

	lockdep_assert_held(&rdax_ext4_lock);
	if (rdax_ext4_on || rdax_ext4_error)
		return rdax_ext4_error;
	found = rdax_function_entries(names, entries, ARRAY_SIZE(names));
	if (found != ARRAY_SIZE(names))
		return found < 0 ? found : -ENOENT;
	err = rdax_ext4_attach(&rdax_ext4_ops[0], entries[0]);
	if (err)
		return err;
	err = rdax_ext4_attach(&rdax_ext4_ops[1], entries[1]);
	if (err)
		rdax_ext4_detach(&rdax_ext4_ops[0]);
	rdax_ext4_on = !err;
	return err;
}

static int rdax_ext4_stop(void)
{
	int err = 0;

	lockdep_assert_held(&rdax_ext4_lock);
	if (rdax_ext4_on) {
		err = rdax_ext4_detach(&rdax_ext4_ops[0]);
		err = rdax_ext4_detach(&rdax_ext4_ops[1]) ?: err;
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

bool rdax_ext4_gives_to_file(struct super_block *sb, u64 at, u64 end, gfp_t gfp)
{
	return false;
}

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
