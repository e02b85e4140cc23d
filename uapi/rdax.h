/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/rdax: what the module knows of a file, and whom it waits for. docs/ioctl.md explains it; rdax.rs
 * says the same in Rust.
 *
 * Structures grow at their end only. The size that a program knows is part of the number of its call, and
 * that of records is in the structure: an older module refuses what it does not know unless it is zero
 * (E2BIG), a newer one leaves out what a program does not know.
 */
#ifndef _UAPI_RDAX_H
#define _UAPI_RDAX_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The version of this interface, which RDAX_IOC_VERSION writes. */
#define RDAX_VERSION_NOW	1

/* What a range of a file is held as. */
#define RDAX_KIND_UNTOUCHED	0	/* Nothing is known: no fault has come here. */
#define RDAX_KIND_EMPTY		1	/* A fault has come here that found nothing. */
#define RDAX_KIND_HOLE		2	/* A hole, mapped with zeroes. */
#define RDAX_KIND_DATA		3	/* Memory of the device. */

/* More of it. */
#define RDAX_MAP_DIRTY		(1 << 0)	/* Written to since the last write-back. */
#define RDAX_MAP_SHARED		(1 << 1)	/* Other files have the blocks, too. */
#define RDAX_MAP_LOCKED		(1 << 2)	/* A fault, write-back or the like is under way. */

/* Why an entry, or a mapping, is not of the next larger size. */
#define RDAX_WHY_EXTENT		(1 << 0)	/* What is beside it in the file is not on the device. */
#define RDAX_WHY_DEVICE		(1 << 1)	/* Its place on the device is no multiple, as in the file. */
#define RDAX_WHY_ADDRESS	(1 << 2)	/* A mapping's address is no multiple, as in the file. */
#define RDAX_WHY_END_OF_MAPPING	(1 << 3)	/* A mapping begins or ends within. */
#define RDAX_WHY_END_OF_FILE	(1 << 4)	/* The file ends within. */
#define RDAX_WHY_PRIVATE	(1 << 5)	/* A mapping is private, or one that fork copies. */
#define RDAX_WHY_MAX_ORDER	(1 << 6)	/* The device's max_order, or 1 GiB of erofs. */
#define RDAX_WHY_SMALLER	(1 << 7)	/* None of these: smaller entries were made before. */
#define RDAX_WHY_UNMAPPED	(1 << 8)	/* No process maps it now. */

/* A range of a file that is held alike. */
struct rdax_map_record {
	__u64 offset;		/* Of the file, in bytes. */
	__u64 length;		/* In bytes. */
	__u64 physical;		/* Address of its first byte; 0: unknown, or not for the caller. */
	__u32 kind;		/* RDAX_KIND_… */
	__u32 flags;		/* RDAX_MAP_… */
	__u32 order;		/* Log2 of the pages of each entry; of no meaning for UNTOUCHED. */
	__u32 why;		/* RDAX_WHY_…: why its entries are not larger. */
	__u32 why_mapped;	/* RDAX_WHY_…: why some mappings are smaller than the entries. */
	__u32 maps;		/* Entries of page tables that map each entry, or parts of it. */
	__u32 whole;		/* Those of them that map it whole, of 2 MiB or 1 GiB. */
	__u32 references;	/* To each entry's memory, besides those of mappings. */
	__u32 vmas;		/* Mappings of processes that this is a part of. */
	__u32 reserved;
};

#define RDAX_MAP_SIZE_VER0		64
#define RDAX_MAP_RECORD_SIZE_VER0	64

/* No record follows up to the end of the range. */
#define RDAX_MAP_END		(1 << 0)

struct rdax_map {
	__s32 fd;		/* In: a file that may be read. */
	__u32 flags;		/* In: 0. Out: RDAX_MAP_END. */
	__u64 start;		/* In: the range, in bytes. */
	__u64 length;
	__u64 records;		/* In: address of the first record. */
	__u32 record_size;	/* In: bytes from one record to the next. */
	__u32 count;		/* In: room for records. Out: those that were written. */
	__u64 next;		/* Out: where the next call is to start. */
	__u64 size;		/* Out: of the file, in bytes. */
	__u32 max_order;	/* Out: of the device. */
	__u32 reserved;		/* In: 0. */
};

/* Who waits. */
#define RDAX_WAIT_LAYOUT	1	/* Truncate, hole punch or the like. */
#define RDAX_WAIT_WRITE		2	/* A write, or zeroing. */
#define RDAX_WAIT_FAULT		3	/* A page fault that has to copy. */
#define RDAX_WAIT_EVICTION	4	/* A file that goes: unlink, unmount. */
#define RDAX_WAIT_DEVICE	5	/* A device that goes: unbind. */

#define RDAX_WAIT_NOWHERE	(~0ULL)

/* Whose numbers dev_major and dev_minor are: block and character devices have the same. */
#define RDAX_DEV_UNKNOWN	0	/* Or the module is too old to tell. */
#define RDAX_DEV_BLOCK		1
#define RDAX_DEV_CHARACTER	2

struct rdax_wait_record {
	__u64 waited;		/* Nanoseconds. */
	__u64 inode;		/* 0: none. */
	__u64 offset;		/* Of the page in the file, in bytes, or in device DAX; RDAX_WAIT_NOWHERE. */
	__u64 physical;		/* Address of the page; 0: not for the caller. */
	__u32 kind;		/* RDAX_WAIT_… */
	__u32 dev_major;	/* Of the file, or of the device that goes. */
	__u32 dev_minor;
	__s32 pid;		/* Of the process, as the caller sees it; 0: it does not. */
	__s32 tid;
	__u32 order;		/* Log2 of the pages of the folio. */
	__u32 references;	/* To the folio, when it was last looked at. */
	__u32 maps;		/* Entries of page tables that map it, likewise. */
	__u8 comm[16];		/* The name of the task, with a zero at its end. */
	__u32 dev_type;		/* RDAX_DEV_…; VER0 ends before it. */
	__u32 reserved;
};

#define RDAX_WAITS_SIZE_VER0		32
#define RDAX_WAIT_RECORD_SIZE_VER0	80
#define RDAX_WAIT_RECORD_SIZE_VER1	88

struct rdax_waits {
	__s32 fd;		/* In: those of this file only; -1: of all. */
	__u32 flags;		/* In: 0. */
	__u64 records;		/* In: address of the first record. */
	__u32 record_size;	/* In: bytes from one record to the next. */
	__u32 count;		/* In: room for records. Out: those that were written. */
	__u32 total;		/* Out: those that there are and the caller may see. */
	__u32 reserved;		/* In: 0. */
};

#define RDAX_IOC_TYPE		0xda
#define RDAX_IOC_VERSION	_IOR(RDAX_IOC_TYPE, 0, __u32)
#define RDAX_IOC_MAP		_IOWR(RDAX_IOC_TYPE, 1, struct rdax_map)
#define RDAX_IOC_WAITS		_IOWR(RDAX_IOC_TYPE, 2, struct rdax_waits)

#endif
