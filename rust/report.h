/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What /dev/rdax tells of files and of tasks that wait.
 */
#ifndef RDAX_REPORT_H
#define RDAX_REPORT_H

#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm_types.h>
#include <linux/types.h>

#include "../uapi/rdax.h"

/* As the header has them, for Rust, which looks whether its own are the same. */
static const unsigned int RDAX_CONST_UAPI_IOC_VERSION = RDAX_IOC_VERSION;
static const unsigned int RDAX_CONST_UAPI_IOC_MAP = RDAX_IOC_MAP;
static const unsigned int RDAX_CONST_UAPI_IOC_WAITS = RDAX_IOC_WAITS;

/* Whether the caller may see everything. */
bool rdax_is_admin(void);

/* Whether a file may be read through this descriptor. */
bool rdax_file_may_read(struct file *file);
/*
 * The inode of a regular file whose contents are its own, not those of a file of another filesystem; or
 * NULL.
 */
struct inode *rdax_file_inode(struct file *file);

/* Entries of page tables that map all of a large folio; 0 for a page. */
int rdax_folio_whole_maps(struct folio *folio);

/* The mappings of processes that some pages of a file are part of. */
struct rdax_vma_look {
	unsigned int vmas;	/* How many. */
	bool address;		/* One has them at an address that does not agree with the file's pages. */
	bool ends;		/* One begins or ends within. */
	bool copied;		/* One is private, or, of more than 2 MiB, one that fork copies. */
};

/*
 * Looks at the mappings of @pages pages, a power of two, of the file from @first on, but at no more than
 * @most of them. 0, or -EINTR for a fatal signal. Sleeps.
 */
int rdax_look_at_vmas(struct address_space *mapping, unsigned long first, unsigned long pages,
		      unsigned int most, struct rdax_vma_look *look);

/*
 * Counts the entries of page tables that map zeroes where the file has a hole, for 2 MiB of it from @first on, in
 * no more than @most mappings of processes: those of 2 MiB in @whole, and those of single pages in
 * @small[PTRS_PER_PTE]. 0, or -EINTR for a fatal signal. Sleeps.
 */
int rdax_count_zeroes(struct address_space *mapping, unsigned long first, unsigned int most,
		      unsigned int *whole, unsigned int *small);

/*
 * Tasks that wait for somebody's reference to a page. One who waits says so with begin() and end(), and, each
 * time that it looks, with note(): of which folio, its owner (the address of an address space, or 0) and its
 * place there, or, for a device's own pages, with note_at(): of which byte of the device. Waits that others see
 * begin in inode's file or, without one, with the device's number, which is one of RDAX_DEV_…. A wait in another one, and one that there is no
 * memory for, is not known: false, and no end().
 */
bool rdax_wait_begin(unsigned int kind, struct inode *inode, dev_t dev, unsigned int dev_type);
void rdax_wait_note(unsigned long owner, unsigned long index, unsigned long pfn, unsigned int order,
		    int references, int maps);
void rdax_wait_note_at(u64 offset, unsigned long pfn, unsigned int order, int references, int maps);
void rdax_wait_end(void);
/*
 * The wait of this task, if it is known, goes on past its end(), where the task leaves the kernel to make
 * its call again, up to resumed().
 */
void rdax_wait_goes_on(void);
void rdax_wait_resumed(void);

/* Forgets what is left of waits when nobody begins one any more. */
void rdax_report_exit(void);

/* Waits that are looked at with the lock held. */
#define RDAX_WAITS_AT_ONCE 64

/*
 * The next task that waits, behind *@cursor, which begins with 0: of the file of @inode, if that is not NULL,
 * and, unless it is for an administrator (@admin), those of the caller only that his PID namespace has. 1, 0
 * when there is none, or -EAGAIN when there was none among the first RDAX_WAITS_AT_ONCE. It is not known
 * before begin() was and not after end() is called.
 */
int rdax_wait_next(unsigned long *cursor, struct inode *inode, bool admin,
		   struct rdax_wait_record *record);

#endif
