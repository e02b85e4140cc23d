// SPDX-License-Identifier: GPL-2.0
/*
 * What ext4 has in memory of a filesystem, as far as the module reads it, for the KUnit tests.
 */

#include <linux/fs.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "../helpers.h"
#include "../testing.h"

#if IS_ENABLED(CONFIG_EXT4_FS)

#include <ext4.h>

/* Two descriptors are in a block; the tables of inodes, of ten blocks each, are here. */
#define GROUPS_PER_BLOCK	2
#define TABLE_BLOCKS		10
static const u64 tables[] = { 100, 400, (1ULL << 32) + 900 };
#define BLOCKS			((1ULL << 32) + 1000)

struct made_up {
	struct super_block sb;
	struct ext4_sb_info sbi;
	struct ext4_super_block es;
	struct file_system_type type;
	struct buffer_head heads[2], *group_desc[2];
	struct ext4_group_desc descs[2][GROUPS_PER_BLOCK];
};

int rdax_test_ext4_gives(u64 first, u64 blocks, bool nofs, bool handle, bool ext4)
{
	struct made_up *fs = kvzalloc(sizeof(*fs), GFP_KERNEL);
	void *info = current->journal_info;
	unsigned int i;
	bool gives;

	if (!fs)
		return -ENOMEM;
	fs->type.name = ext4 ? "ext4" : "ext2";
	fs->sb.s_type = &fs->type;
	fs->sb.s_blocksize_bits = PAGE_SHIFT;
	fs->sb.s_fs_info = &fs->sbi;
	fs->es.s_feature_incompat = cpu_to_le32(EXT4_FEATURE_INCOMPAT_64BIT);
	ext4_blocks_count_set(&fs->es, BLOCKS);
	fs->sbi.s_es = &fs->es;
	fs->sbi.s_desc_size = sizeof(fs->descs[0][0]);
	fs->sbi.s_desc_per_block = GROUPS_PER_BLOCK;
	fs->sbi.s_desc_per_block_bits = ilog2(GROUPS_PER_BLOCK);
	fs->sbi.s_itb_per_group = TABLE_BLOCKS;
	fs->sbi.s_groups_count = ARRAY_SIZE(tables);
	RCU_INIT_POINTER(fs->sbi.s_group_desc, fs->group_desc);
	for (i = 0; i < ARRAY_SIZE(fs->heads); i++) {
		fs->heads[i].b_data = (void *)fs->descs[i];
		fs->group_desc[i] = &fs->heads[i];
	}
	for (i = 0; i < ARRAY_SIZE(tables); i++) {
		struct ext4_group_desc *desc = &fs->descs[i / GROUPS_PER_BLOCK][i % GROUPS_PER_BLOCK];

		desc->bg_inode_table_lo = cpu_to_le32((u32)tables[i]);
		desc->bg_inode_table_hi = cpu_to_le32(tables[i] >> 32);
	}
	current->journal_info = handle ? fs : NULL;
	gives = rdax_ext4_gives_to_file(&fs->sb, first << PAGE_SHIFT, (first + blocks) << PAGE_SHIFT,
					nofs ? GFP_NOFS : GFP_KERNEL);
	current->journal_info = info;
	kvfree(fs);
	return gives;
}

#else

int rdax_test_ext4_gives(u64 first, u64 blocks, bool nofs, bool handle, bool ext4)
{
	rdax_test_skip("the kernel has no ext4");
	return -EOPNOTSUPP;
}

#endif
