/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C helpers of the KUnit tests; in test builds only. All sleep where nothing else is said.
 */
#ifndef RDAX_TESTING_H
#define RDAX_TESTING_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/uio.h>

/* Report a failed check of the present task's test, and go on. Does not sleep. */
void rdax_test_fail(const char *file, int line, const char *text);
/* The present test cannot be run. */
void rdax_test_skip(const char *why);
/* A line for the results. */
void rdax_test_note(const char *text);
/* Whether there is a line in the kernel's log that has the text in it. */
bool rdax_test_log_says(const char *text);

/* Has nobody else redirect a function, until it is released; one at a time. 0 or an error. */
int rdax_test_hold_function(const char *name);
void rdax_test_release_function(void);


/*
 * Whether ext4, as its driver or that of ext2, with a handle of its journal or without, is taken to give these
 * blocks of a made-up filesystem to a file: it has 2^32 + 1000 blocks of a page, and tables of inodes, of 10
 * blocks each, at 100, 400 and 2^32 + 900. 1, 0 or an error.
 */
int rdax_test_ext4_gives(u64 first, u64 blocks, bool nofs, bool handle, bool ext4);

/* An address space in use with this number, which the VMA, of zeroes, is of. NULL without memory. */
struct mm_struct *rdax_test_new_mm(struct vm_area_struct *vma, u64 number);
void rdax_test_mmap_lock(struct mm_struct *mm, bool write);
void rdax_test_mmap_unlock(struct mm_struct *mm, bool write);
void rdax_test_free_mm(struct mm_struct *mm);
/* As if munmap had taken it out. */
void rdax_test_detach(struct vm_area_struct *vma);

/* A folio of ordinary memory, full of zeroes. */
struct folio *rdax_test_alloc_folio(unsigned int order);
void rdax_test_put_folio(struct folio *folio);

/* The counts of file pages that the present task has mapped, and of the node of a frame. */
struct rdax_test_counts {
	long resident;
	long mapped;
	long mapped_by_pmd;
};

void rdax_test_count(unsigned long pfn, struct rdax_test_counts *counts);

/* Take what maps a part of the present task's mapping at @addr away, as MADV_DONTNEED. */
void rdax_test_drop(unsigned long addr, unsigned long len);

/* Put a marker of a guard page at an address whose table is there, or take it away. */
void rdax_test_guard(unsigned long addr, bool guard);

/* Whether the present task's entry of the lowest level for an address is soft-dirty. */
bool rdax_test_soft_dirty(unsigned long addr);
/* Have stores to the mapping at @addr told from one another from now on, or not any more. */
void rdax_test_track_stores(unsigned long addr, bool track);

/* Have no folio of zeroes to give, or make no tables of the lowest level, as without memory. Do not sleep. */
void rdax_test_withhold_zeroes(bool withhold);
void rdax_test_withhold_tables(bool withhold);

/* Look at paths as the first process does; kernel threads have none. To be ended. */
struct fs_struct *rdax_test_begin_paths(void);
void rdax_test_end_paths(struct fs_struct *old);

/*
 * A filesystem without names, in memory, that says that it is on @bdev. Its inodes are regular
 * files with DAX.
 */
struct vfsmount *rdax_test_mount(struct block_device *bdev);
/* Say that it is on another device, or on none. */
void rdax_test_set_device(struct vfsmount *mnt, struct block_device *bdev);
void rdax_test_unmount(struct vfsmount *mnt);
/* A new inode with a reference, or NULL. */
struct inode *rdax_test_inode(struct vfsmount *mnt, loff_t size, void *private);
void rdax_test_can_read_folios(struct inode *inode);
/* An open file of the inode, or an error pointer. */
struct file *rdax_test_file(struct vfsmount *mnt, struct inode *inode,
			    const struct file_operations *fops);
void rdax_test_close(struct file *file);
/* Sets a file's times to 0, and tells whether somebody has set them since. */
void rdax_test_forget_times(struct inode *inode);
bool rdax_test_has_times(struct inode *inode);
/* Waits until times that are to be set later have been, but for those that a task sets itself. */
void rdax_test_wait_for_times(void);
void *rdax_test_private(struct inode *inode);
void rdax_test_set_size(struct inode *inode, loff_t size);
void rdax_test_set_links(struct inode *inode, unsigned int links);
void rdax_test_set_dax(struct inode *inode, bool dax);
/* Puts a folio into the file's tree, as one of a page cache, or takes it out. */
int rdax_test_set_cached(struct inode *inode, pgoff_t index, bool cached);
void rdax_test_can_share_blocks(struct inode *inode);
void rdax_test_set_block_bits(struct inode *inode, unsigned int bits);
/* What the inode's contents did wrong in write-back, and forget it. */
int rdax_test_take_error(struct inode *inode);
void rdax_test_lock_faults_shared(struct inode *inode);
void rdax_test_unlock_faults_shared(struct inode *inode);
bool rdax_test_take_dirty_pages(struct inode *inode);
void rdax_test_make_table(struct vm_fault *vmf);
/* Called by the filesystem when an inode goes away. Implemented in Rust. */
void rdax_test_evict(struct inode *inode);

/* An address space for the present kthread, which is the present test's. */
int rdax_test_attach_mm(void);
/*
 * Map a file at @addr to be read and written: MAP_PRIVATE, MAP_SHARED_VALIDATE | MAP_SYNC or else
 * MAP_SHARED. The address, or an error.
 */
unsigned long rdax_test_map(struct file *file, unsigned long addr, unsigned long len,
			    unsigned long offset, bool private, bool sync);
void rdax_test_unmap(unsigned long addr, unsigned long len);
/* As madvise(MADV_RANDOM), for what is mapped at @addr. */
void rdax_test_set_random(unsigned long addr);
int rdax_test_load(unsigned long addr, u64 *value);
int rdax_test_store(unsigned long addr, u64 value);
/* Has a page there that can be written to, as one that works for somebody else does. */
int rdax_test_ask_for(unsigned long addr);

static const unsigned int RDAX_CONST_TEST_PRESENT = 1 << 0;
static const unsigned int RDAX_CONST_TEST_WRITABLE = 1 << 1;
static const unsigned int RDAX_CONST_TEST_DIRTY = 1 << 2;

/*
 * What the page table of the present task has for an address: RDAX_CONST_TEST_* or 0, the order of
 * the entry and the page that it maps there. Does not sleep.
 */
unsigned int rdax_test_mapping(unsigned long addr, unsigned int *order, unsigned long *pfn);

/* Pins a page of user memory as direct I/O does; NULL without one. */
struct page *rdax_test_pin(unsigned long addr, bool write, bool longterm);
void rdax_test_unpin(struct page *page);

/* A task that calls fn(data), for the present test. To be joined. NULL without memory. */
struct task_struct *rdax_test_thread(int (*fn)(void *data), void *data);
void rdax_test_thread_join(struct task_struct *task);
/* Has a worker of the kernel's work queues call fn(data), and waits for it. */
void rdax_test_in_worker(int (*fn)(void *data), void *data);
/* Whether the thread's function sleeps, uninterruptible or interruptible. */
bool rdax_test_is_asleep(struct task_struct *task);
bool rdax_test_is_over(struct task_struct *task);
/* How often the task has given the processor away. */
unsigned long rdax_test_switches(struct task_struct *task);
/* Send a signal to a thread of the tests; they take SIGKILL and SIGUSR1. */
void rdax_test_signal(struct task_struct *task, bool fatal);
/* Forget the signals that came to the present thread. */
void rdax_test_flush_signals(void);

/* Have the nth allocation of the present task fail, counted from 1; 0 for none. Does not sleep. */
void rdax_test_fail_nth(unsigned int nth);
/* The rest of it: 0 when it has failed. */
unsigned int rdax_test_left_nth(void);

/* Have all allocations of the present task fail, or none. Does not sleep. */
void rdax_test_fail_all(bool fail);

/* Watch what is written back: called with preemption off for every call of arch_wb_cache_pmem(). */
int rdax_test_watch_flushes(void (*fn)(unsigned long addr, size_t size));
void rdax_test_unwatch_flushes(void);

/* Count the calls of a function of the kernel, one at a time. */
int rdax_test_watch_calls(const char *name);
unsigned int rdax_test_calls(void);
void rdax_test_unwatch_calls(void);

/*
 * Watch the tree of @mapping: how often it is locked, and by how many pages mapping->nrpages gets
 * less under one lock at most.
 */
int rdax_test_watch_tree(struct address_space *mapping);
unsigned long rdax_test_tree_holds(void);
unsigned long rdax_test_tree_most(void);
void rdax_test_unwatch_tree(void);

/* Watch how often the present task gives way to others. */
int rdax_test_watch_yields(void);
unsigned long rdax_test_yields(void);
void rdax_test_unwatch_yields(void);

/* Mark a page as bad, or take the mark off. */
void rdax_test_set_poison(struct page *page, bool poison);
/* Have the device say that a part of it is bad, or good again. In sectors. */
int rdax_test_set_bad_blocks(struct block_device *bdev, sector_t sector, sector_t n, bool bad);

void rdax_test_iov_user(struct iov_iter *iter, bool source, unsigned long addr, size_t len);
void rdax_test_iov_kernel(struct iov_iter *iter, struct kvec *kvec, bool source, void *addr,
			  size_t len);
void rdax_test_kiocb(struct kiocb *iocb, struct file *file, loff_t pos, int flags);

/* Whether the present task is waited for, or would be held up; gives others a moment. */
void rdax_test_pause(unsigned int ms);

#endif /* RDAX_TESTING_H */
