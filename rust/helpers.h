/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C helpers: inline functions and macros of the kernel's headers that Rust cannot reach.
 *
 * A function rdax_NAME does what the kernel's NAME does, no more. A constant RDAX_CONST_NAME is
 * NAME in Rust.
 */
#ifndef RDAX_HELPERS_H
#define RDAX_HELPERS_H

#include "compat.h"
#include "page_table.h"
#include "stores.h"
#include <linux/badblocks.h>
#include <linux/blkdev.h>
#include <linux/dax.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/percpu-rwsem.h>
#include <linux/poison.h>
#include <linux/uio.h>
#include <linux/wait.h>
#include <linux/xarray.h>

void rdax_mapping_set_error(struct address_space *mapping, int error);

/* Keeps faults of the file out, unless a fatal signal comes. */
int rdax_invalidate_lock(struct address_space *mapping);
bool rdax_invalidate_trylock(struct address_space *mapping);
void rdax_invalidate_unlock(struct address_space *mapping);

/* Whether files like this one can share blocks with others. */
bool rdax_may_share_blocks(struct inode *inode);

/* The locks for the blocks of the files on one device. NULL for want of memory. */
struct rdax_blocks;
struct rdax_blocks *rdax_blocks_new(void);
void rdax_blocks_free(struct rdax_blocks *blocks);

/*
 * The blocks of a file that may share them, for whoever copies from them without holding the pages, or,
 * exclusively, puts a copy in their place. 0, -EAGAIN, or -EINTR for a fatal signal.
 */
int rdax_blocks_lock_shared(struct rdax_blocks *blocks, struct inode *inode, bool nowait);
void rdax_blocks_unlock_shared(struct rdax_blocks *blocks, struct inode *inode);
int rdax_blocks_lock(struct rdax_blocks *blocks, struct inode *inode);
void rdax_blocks_unlock(struct rdax_blocks *blocks, struct inode *inode);

/* Whether the task holds the file's invalidate_lock exclusively. */
bool rdax_invalidate_locked(struct address_space *mapping);

/* Sleeps, with the file's invalidate_lock let go meanwhile if the task holds it exclusively. */
void rdax_wait_with_faults(struct inode *inode);

/*
 * Whether the pages that a write is from, those of the @done bytes that were taken from @iter among
 * them, belong to @folio in part.
 */
bool rdax_iter_holds(const struct iov_iter *iter, size_t done, struct folio *folio);

/*
 * Copying between a device's memory and what a user gave, with page faults disabled: as far as the
 * user's is there. Nothing is copied when a fatal signal waits. With @flush, the copy is not left in
 * the processor's caches.
 */
size_t rdax_copy_from_iter(void *to, size_t bytes, struct iov_iter *iter, bool flush);
size_t rdax_copy_to_iter(const void *from, size_t bytes, struct iov_iter *iter);

/* Accesses to user memory that is not there fail instead of faulting. */
void rdax_pagefault_disable(void);
void rdax_pagefault_enable(void);

/*
 * The return value of a fault handler whose access is to be tried again later; the lock of the address
 * space may have been released by then, and with it the VMA. The file is kept until the task leaves the
 * kernel, where @begin and then @end is called. @for_table: it waits for a table of a lower level.
 */
vm_fault_t rdax_fault_later(struct vm_fault *vmf, bool for_table, void (*begin)(void),
			    void (*end)(void));

/* Whether the fault's caller does not want it to sleep. */
bool rdax_fault_is_nowait(const struct vm_fault *vmf);

/* The fault being handled needed I/O or allocation: counted as PGMAJFAULT. */
void rdax_count_major_fault(void);

/* The pfn of the page of zeros that a hole is mapped with at @addr. */
unsigned long rdax_zero_pfn(unsigned long addr);

/* Whether a VMA maps a part of the file: without one, no page table has a page of it. */
bool rdax_has_vmas(struct address_space *mapping);

/*
 * Whether the filesystem fails what needs nothing of it, as XFS does after it was shut down. Changes
 * nothing, takes no lock.
 */
bool rdax_is_shut_down(struct file *file);

/* The tree's lock. */
void rdax_xa_lock_irq(struct xarray *xa);
void rdax_xa_unlock_irq(struct xarray *xa);

/* The locks of the regions of device memory, hashed by the region's number. */
unsigned long rdax_region_lock(unsigned long region);
void rdax_region_unlock(unsigned long region, unsigned long flags);

/* The queues of those who wait for an entry, by hash. */
struct wait_queue_head *rdax_entry_queue(unsigned long hash);
bool rdax_queue_is_empty(struct wait_queue_head *queue);

/* Makes the locks and queues ready, once. */
void rdax_tables_init(void);

/*
 * An inode that is being evicted is one with a user again, who has the only reference (rdax_revive);
 * it is put aside with that reference, to be evicted when @held says that nobody holds its pages any
 * more, unless there is no memory for that (rdax_park); and taken from there when it is evicted
 * (rdax_unpark). rdax_parking_end() waits until nobody is in this code, when no inode is parked.
 */
void rdax_revive(struct inode *inode);
bool rdax_park(struct inode *inode, bool (*held)(struct inode *inode));
void rdax_unpark(struct inode *inode);
void rdax_parking_end(void);

/*
 * Whether the task is in a system call that unmounts a filesystem, and is to return when that is done. Also
 * on its way out of the kernel, which is where that is done.
 */
bool rdax_unmounts(void);

/* Puts an active reference to a superblock unless it is the last one. Whether it was not. */
bool rdax_put_active_super(struct super_block *sb);

/* Puts an active reference to a superblock, as deactivate_super() does. */
void rdax_deactivate_super(struct super_block *sb);

/*
 * Has a thread of the kernel call @fn for the superblock, which puts an active reference when nobody holds
 * pages of its files. @begin and @end are called around what is done in the module afterwards. The superblock
 * may be locked by the caller, which is over then. False for want of memory.
 */
bool rdax_deactivate_later(struct super_block *sb, bool locked,
			   void (*fn)(struct super_block *sb), void (*begin)(void),
			   void (*end)(void));

/* Drops the lock of a superblock. */
void rdax_unlock_super(struct super_block *sb);

/* A new inode that nobody knows and that is evicted when it is put, or NULL. */
struct inode *rdax_some_inode(void);

void rdax_recalc_uprobes(struct mm_struct *mm);

#ifdef RDAX_CHECK
/* Between the two the task must not sleep; a debug kernel complains. They nest. */
void rdax_non_block_start(void);
void rdax_non_block_end(void);
#endif

struct task_struct *rdax_current(void);
void rdax_cond_resched(void);
void rdax_see_again(unsigned long pfn);

/*
 * Sleeps, by the callback if there is one, until the task is woken or the time has passed. The
 * task's state was set by the caller.
 */
void rdax_timed_wait(void (*callback)(struct inode *inode), struct inode *inode, unsigned int ms);
bool rdax_signal_pending(void);
bool rdax_fatal_signal_pending(void);
/* The same, or the task exits, which no signal ends any more. */
bool rdax_is_dying(void);

/*
 * Has the system call that the task is in made again, when the folio's last reference is gone, or the
 * time has passed: the caller ends it with -ERESTARTSYS. False where that is not possible. @begin and
 * @end are called around what is done in the module afterwards.
 */
bool rdax_restart_after(struct folio *folio, unsigned int ms, void (*begin)(void),
			void (*end)(void));
/* Without waiting, if so. */
void rdax_restart_at_once(void);
bool rdax_restart_is_due(void);
/* Whether the task is in a system call that is made again when it ends with -ERESTARTSYS. */
bool rdax_may_restart(void);
/* Whether it is in FIDEDUPERANGE. */
bool rdax_deduplicates(void);
bool rdax_is_kernel_thread(void);
bool rdax_is_worker(void);
bool rdax_in_transaction(void);

/*
 * Calls fn for every inode of the filesystems that hold the block device: the one that is mounted on
 * it, or whose further device it is. The superblock stays mounted meanwhile; no lock is held, and
 * those who unmount or freeze it, or any other, are not waited for. Sleeps.
 */
typedef void (*rdax_inode_fn)(struct inode *inode, void *data);

void rdax_visit_inodes(struct block_device *bdev, rdax_inode_fn fn, void *data);
/* The same for a superblock, which stays mounted meanwhile. */
void rdax_visit_super(struct super_block *sb, rdax_inode_fn fn, void *data);

/*
 * Keeps the filesystem from being shut down until deactivate_super(), unless that has begun. Does
 * not sleep.
 */
bool rdax_get_active_super(struct super_block *sb);

/* Whether the filesystem can give blocks of one file to another. */
bool rdax_can_share_blocks(struct inode *inode);

/* Keeps the code of the inode's filesystem, and lets it go. */
bool rdax_filesystem_get(struct inode *inode);
void rdax_filesystem_put(struct file_system_type *type);

/* The device of DAX of a block device, or NULL. To be compared only. */
const struct dax_device *rdax_dax_of(struct block_device *bdev);

/*
 * The page map of a frame of a device's memory, which has one and keeps it meanwhile: a number that tells whose it
 * is, the range of it that the frame is in, and whether stores to it last only when the device's host was told to
 * flush them, which no store of a program can wait for (virtio-pmem).
 */
struct rdax_page_map {
	unsigned long owner;
	unsigned long first;
	unsigned long pages;
	bool asynchronous;
};

void rdax_page_map(unsigned long pfn, struct rdax_page_map *map);

/*
 * The frame of page @at of a block device that is capable of DAX, and in @pages how many pages from
 * there on are contiguous; 0 if there is no memory. If @map is not NULL, also the frame's page map, looked at
 * while the device cannot take it away.
 */
unsigned long rdax_device_memory(struct block_device *bdev, unsigned long at,
				 unsigned long *pages, struct rdax_page_map *map);

/*
 * The number of the page maps that the driver of the block device made, and that go with it. A
 * device that is made of others has none.
 */
unsigned long rdax_memory_owner(struct block_device *bdev);

/* Where in a list of known memory errors their number is. */
static const unsigned int RDAX_CONST_BADBLOCKS_COUNT = offsetof(struct badblocks, count);

/* What userfaultfd has changed of a page table, among the flags of change_protection(). */
static const unsigned long RDAX_CONST_MM_CP_USERFAULT = MM_CP_UFFD_WP_ALL | MM_CP_UFFD_RWP_ALL;

/*
 * Whether an entry of the third level is none of those that there may be: empty, a table, or one that maps memory
 * of a device. Does not sleep.
 */
bool rdax_pud_is_broken(pud_t *entry);

/* Tables in the place of entries of 1 GiB (large_puds.c). */

/*
 * An entry of 1 GiB of this address space is about to be unmapped. What is returned belongs to
 * rdax_large_pud_end_removal(), which is called when it is. Neither sleeps.
 */
void *rdax_large_pud_begin_removal(struct vm_area_struct *vma, pud_t *entry);
void rdax_large_pud_end_removal(struct vm_area_struct *vma, void *removal);
/* Whether somebody may still take what is in this place for such an entry that was unmapped. Does not sleep. */
bool rdax_large_pud_was_removed(struct mm_struct *mm, pud_t *entry);
/*
 * A place in a page table that had an entry of 1 GiB a moment ago, or where a table is being made. Page tables are
 * freed and used again; of which address space one is tells its number, which none has twice.
 */
struct rdax_place {
	struct hlist_node node;
	const pud_t *entry;
	u64 mm;
	/* Of an entry that was there: the mmap lock's, when it was gone. */
	unsigned int number;
	/* So many are about to unmap it. */
	unsigned int removing;
	/* Somebody may have seen it before; a grace period is under way since, and another is wanted. */
	bool is_seen, is_queued, again;
	struct rcu_head rcu;
};

/*
 * A table is about to be made: nobody maps 1 GiB there until rdax_end_table(), which has to be called. 0 when nobody
 * may take the table for such an entry any more, 1 if something is there, -ENOMEM. Sleeps, killable.
 */
int rdax_begin_table(struct mm_struct *mm, pud_t *entry, struct rdax_place *place);
void rdax_end_table(struct rdax_place *place);
bool rdax_is_made(struct mm_struct *mm, pud_t *entry);
/* Whether that is so in the place of the fault, whose lock is held. */
bool rdax_table_is_made(struct vm_fault *vmf);
/*
 * For a fault of 1 GiB that is to be served by less: whether it has to be tried again, without the locks that it has,
 * before a table is made there. May sleep for a tick, killable.
 */
bool rdax_table_is_for_later(struct vm_fault *vmf);
/* How many places of entries that were unmapped are remembered. Does not sleep. */
unsigned int rdax_large_puds_removed(void);
/*
 * Whether so many are that none is to be mapped anew in this address space: first in those that have many mappings, as
 * others are not to lose theirs by what one does. Does not sleep.
 */
bool rdax_large_puds_are_many(struct mm_struct *mm);
/*
 * Has the mmap lock of an address space for writing, for a moment. False if somebody has it, be it the caller. Does not
 * sleep.
 */
bool rdax_mmap_write_lock_once(struct mm_struct *mm);
/*
 * As the kernel's __pmd_alloc(), when nobody may take the table for an entry of 1 GiB any more. Sleeps, killable:
 * -ENOMEM.
 */
int rdax_make_table(struct mm_struct *mm, pud_t *entry, unsigned long address);
/* Where the kernel's functions are behind the places that ftrace calls from. */
void rdax_large_puds_begin(unsigned long zap, unsigned long split, unsigned long make);
/* The kernel's functions, though they are redirected. */
int rdax_original_zap_huge_pud(struct mmu_gather *tlb, struct vm_area_struct *vma, pud_t *entry,
			       unsigned long address);
void rdax_original_split_huge_pud(struct vm_area_struct *vma, pud_t *entry, unsigned long address);
int rdax_original_pmd_alloc(struct mm_struct *mm, pud_t *entry, unsigned long address);
/* Waits until nothing of this is called any more, when nobody calls it. Sleeps, not interruptible. */
void rdax_large_puds_end(void);

/*
 * Sections of readers of what adopted devices have, by an index. They may sleep; whoever synchronizes waits for those that
 * were begun before, and must be in none.
 */
int rdax_calls_enter(void);
void rdax_calls_leave(int index);
void rdax_calls_synchronize(void);

/* Without it, nobody may access what an entry of a page table maps. */
static const unsigned long RDAX_CONST_PAGE_PRESENT = _PAGE_PRESENT;

/* Flags of a VMA that bindgen cannot read. */
static const unsigned int RDAX_CONST_VM_RAND_READ = 1U << VMA_RAND_READ_BIT;
static const unsigned int RDAX_CONST_VM_ACCESSIBLE = VM_ACCESS_FLAGS;

/* TAIL_MAPPING in halves, as bindgen takes no constant that large; compared in helpers.c. */
static const unsigned int RDAX_CONST_TAIL_MAPPING_LOW = 0x400 + (unsigned int)POISON_POINTER_DELTA;
static const unsigned int RDAX_CONST_TAIL_MAPPING_HIGH = POISON_POINTER_DELTA >> 32;
static const int RDAX_CONST_XA_CHUNK_SHIFT = XA_CHUNK_SHIFT;
static const int RDAX_CONST_NODES_SHIFT = NODES_SHIFT;
static const unsigned int RDAX_CONST_SB_ACTIVE = SB_ACTIVE;
static const int RDAX_CONST_IOCB_NOWAIT = IOCB_NOWAIT;
static const int RDAX_CONST_IOCB_ATOMIC = IOCB_ATOMIC;

/* Per-CPU memory for @n u64, set to 0, or NULL. To be freed with free_percpu(). May sleep. */
u64 *rdax_alloc_percpu_u64(size_t n);

/* The sum of what all CPUs have at @counter, which points into such memory. */
u64 rdax_sum_percpu_u64(u64 *counter);

/*
 * Look up at which addresses ftrace knows the functions @names, @n of them. Returns how many were
 * found before the first that was not, or an error. May sleep.
 */
int rdax_function_entries(const char *const *names, unsigned long *entries, int n);

/* Whether a block device is in the table of adopted devices. */
bool rdax_is_member(const void *members, const void *bdev);

/*
 * Whether the filesystem that holds the block device, and asks for zeroes on these bytes of it, gives them to a
 * file. May sleep.
 */
bool rdax_holder_gives_to_file(struct block_device *bdev, u64 at, u64 end, gfp_t gfp);

/*
 * Puts zeroes on these bytes of the device, whole pages, but for sectors that the driver cannot write. 0 or an
 * error. May sleep.
 */
int rdax_put_zeroes(struct block_device *bdev, u64 at, u64 end, gfp_t gfp);

/*
 * As blkdev_issue_zeroout(), which it calls; for blocks that XFS or ext4 gives a file as rdax_put_zeroes(). @failures:
 * whether pages may have failed.
 */
int rdax_issue_zeroout(struct block_device *bdev, sector_t sector, sector_t sectors, gfp_t gfp,
		       unsigned int flags, bool failures);

/* rdax_holder_gives_to_file() for a filesystem with ext4's magic number, which is on the device. May sleep. */
bool rdax_ext4_gives_to_file(struct super_block *sb, u64 at, u64 end, gfp_t gfp);

/* Begins to watch for ext4 as a module, and ends. */
void rdax_ext4_init(void);
void rdax_ext4_exit(void);

/*
 * Keep ext4, whenever it is loaded, from telling of blocks of files on adopted devices before it has
 * put zeroes there (ext4.c), until rdax_ext4_end(). 0 or an error. May sleep.
 */
int rdax_ext4_begin(const void *members);

/* Stops that. No device is adopted. An error if ftrace is broken, and calls on. May sleep. */
int rdax_ext4_end(void);

/* The running kernel's BTF: see prototypes.c. */
ssize_t rdax_read_btf(void **data);

#ifdef CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS
/* The data by which rdax_direct_call() decides. Nothing is redirected by it while this is written. */
struct rdax_direct {
	/* The table of adopted devices. */
	const void *members;
	/* Where dax_iomap_fault() goes on behind its entry. */
	unsigned long fault_return;
	/* The functions that serve in place of dax_iomap_fault() and dax_iomap_rw(). */
	unsigned long fault_to;
	unsigned long rw_to;
};

void rdax_direct_set(const struct rdax_direct *direct);

/*
 * For ftrace to call at the entries of dax_iomap_fault() and dax_iomap_rw(), and of no others: goes
 * on in what serves in their place when the file is on an adopted device.
 */
void rdax_direct_call(void);

#ifdef RDAX_TEST
/*
 * Where rdax_direct_call() sends a call of dax_iomap_rw() or dax_iomap_fault() with this first
 * argument, when these are the adopted devices: to the kernel's function (1: fault, 2: rw) or what
 * serves in its place (3, 4). Nothing may be redirected meanwhile.
 */
int rdax_direct_decide(bool rw, void *first, const void *members);
#endif
#endif

static const int RDAX_CONST_MCOUNT_INSN_SIZE = MCOUNT_INSN_SIZE;

/* The table of adopted devices: log2 of its places, and what a device's address is multiplied by. */
#define RDAX_MEMBER_BITS	7
#define RDAX_MEMBER_FACTOR	0x9e3779b97f4a7c15
static const unsigned int RDAX_CONST_MEMBER_BITS = RDAX_MEMBER_BITS;
static const unsigned long RDAX_CONST_MEMBER_FACTOR = RDAX_MEMBER_FACTOR;

static const blk_mode_t RDAX_CONST_BLK_OPEN_READ = BLK_OPEN_READ;

/*
 * The dax bus. A device is passed only while it is bound to this driver, or is being bound to it
 * or unbound from it.
 */
struct dev_dax;
struct dev_pagemap_ops;
struct cdev;

struct rdax_dax_driver {
	int (*probe)(struct dev_dax *dev_dax);
	/* @data is what rdax_dax_publish() was given. */
	void (*remove)(struct dev_dax *dev_dax, void *data);
	/* The text of the attribute rdax/stats: the number of bytes, or an error. */
	ssize_t (*stats)(void *data, char *buf, size_t size);
};

/* Register the driver with what it calls, once. Sleeps. */
int rdax_dax_register(const struct rdax_dax_driver *calls);
/* Sleeps until all devices are unbound. */
void rdax_dax_unregister(void);

const char *rdax_dax_name(struct dev_dax *dev_dax);
dev_t rdax_dax_devt(struct dev_dax *dev_dax);
/* Bytes. */
unsigned long rdax_dax_align(struct dev_dax *dev_dax);

struct rdax_dax_range {
	/* The place in the device, in pages. */
	unsigned long pgoff;
	unsigned long pfn;
	unsigned long pages;
};

int rdax_dax_nr_ranges(struct dev_dax *dev_dax);
/* @i is less than the number of ranges. */
struct rdax_dax_range rdax_dax_range(struct dev_dax *dev_dax, int i);

/* The inode whose address space all mappings of the device are in, with a reference, or NULL. */
struct inode *rdax_dax_inode(struct dev_dax *dev_dax);

/*
 * Have drop(data) called when the device is unbound or could not be bound, after what is made
 * after this call is gone. On failure it has been called.
 */
int rdax_dax_keep(struct dev_dax *dev_dax, void *data, void (*drop)(void *data));

/*
 * Make pages for the device's memory, in folios of @order, for as long as it is bound. All ranges
 * begin and end at multiples of the folios' size. The page map, or an error pointer. Sleeps.
 */
struct dev_pagemap *rdax_dax_map(struct dev_dax *dev_dax, unsigned int order,
				 const struct dev_pagemap_ops *ops, void *owner);

/*
 * Let user space at the device, whose page map rdax_dax_map() made. The character device, or an
 * error pointer. Sleeps.
 */
struct cdev *rdax_dax_publish(struct dev_dax *dev_dax, struct dev_pagemap *pgmap,
			      const struct file_operations *fops, void *data);
/* Let nobody open it any more, and remove all mappings that user space has of it. Sleeps. */
void rdax_dax_retire(struct dev_dax *dev_dax, struct cdev *cdev);

static const fop_flags_t RDAX_CONST_FOP_MMAP_SYNC = FOP_MMAP_SYNC;

dev_t rdax_inode_rdev(struct inode *inode);
/* MAP_SHARED or MAP_SHARED_VALIDATE. */
bool rdax_desc_is_shared(struct vm_area_desc *desc);

/* Have the core merge the mapping with no other, and not grow it. */
void rdax_desc_keep_apart(struct vm_area_desc *desc);
/*
 * For a VMA that is made of another one in the same process, and not linked yet: remove what maps
 * the same part of the file, that other VMA's entries among it.
 */
void rdax_vma_unmap_moved(struct vm_area_struct *vma);

int rdax_percpu_init_rwsem(struct percpu_rw_semaphore *sem);
void rdax_percpu_down_read(struct percpu_rw_semaphore *sem);
void rdax_percpu_up_read(struct percpu_rw_semaphore *sem);

/* Whether a message that users can cause may be written now. */
bool rdax_ratelimit(void);

#ifdef RDAX_CHECK
/* The state of the folio that a page of device memory is part of, by its struct page. */
struct rdax_folio_state {
	unsigned long head;		/* The first page's frame. */
	unsigned int order;
	int refcount;
	int mapcount;
	unsigned long owner;		/* The address space, or 0. */
	unsigned long index;		/* In the owner, or the share count. */
	bool poisoned;			/* One of the pages is. */
	bool odd;			/* What makes it one folio is not as it must be. */
};

void rdax_folio_state(unsigned long pfn, struct rdax_folio_state *state);

/*
 * The first page from frame @first up to @end that is not a page of its own which nobody uses, or
 * @end. Folios that are whole but idle and owned by nobody are passed over, and counted.
 */
unsigned long rdax_find_used(unsigned long first, unsigned long end, unsigned long *whole);

/* Leaves a report in the kernel's log that ends a test with an error. */
void rdax_complain(void);

/*
 * Does about a page of device memory what the kernel does when the hardware reports that it has
 * failed, which nobody made up.
 */
int rdax_fail_memory(unsigned long pfn);

/* Makes it visible to the kernel again, which the mark does not say. */
int rdax_restore_memory(unsigned long pfn);

/* A page-table entry of any size that maps a part of a file. */
struct rdax_leaf {
	unsigned long index;
	unsigned long pfn;
	unsigned int order;
	bool writable;
	bool shared;			/* The mapping is. */
	bool device;			/* The memory is that of a device. */
};

typedef void (*rdax_leaf_fn)(const struct rdax_leaf *leaf, void *data);

/* Calls fn for each page-table entry that maps the file, under i_mmap_rwsem. */
void rdax_visit_leaves(struct address_space *mapping, rdax_leaf_fn fn, void *data);
#endif

#ifdef RDAX_COVERAGE
/* Shows in debugfs, until it is hidden, how often each piece of the Rust code was executed. */
void rdax_coverage_show(void);
void rdax_coverage_hide(void);
extern u64 rdax_coverage_begin;
#endif

#ifndef RDAX_HAVE_SRCU
struct rdax_srcu;
struct rdax_srcu *rdax_srcu_new(void);
void rdax_srcu_free(struct rdax_srcu *srcu);
int rdax_srcu_read_lock(struct rdax_srcu *srcu);
void rdax_srcu_read_unlock(struct rdax_srcu *srcu, int index);
void rdax_srcu_synchronize(struct rdax_srcu *srcu);
#endif

#endif /* RDAX_HELPERS_H */
