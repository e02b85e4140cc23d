/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints, rdax:* (docs/tracing.md). Offsets are in pages, as index; a page-table entry of order 0 is
 * one of 4 KiB.
 */

#undef TRACE_SYSTEM
#undef TRACE_INCLUDE_FILE
#undef TRACE_INCLUDE_PATH
#define TRACE_SYSTEM rdax
#define TRACE_INCLUDE_FILE trace
#define TRACE_INCLUDE_PATH .

#if !defined(RDAX_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define RDAX_TRACE_H

#include <linux/fs.h>
#include <linux/kdev_t.h>
#include <linux/mm.h>
#include <linux/tracepoint.h>

TRACE_EVENT(rdax_fault,
	TP_PROTO(struct inode *inode, unsigned long index, unsigned long address,
		 unsigned int order, bool write, unsigned int result, unsigned int reason),
	TP_ARGS(inode, index, address, order, write, result, reason),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, ino)
		__field(unsigned long, index)
		__field(unsigned long, address)
		__field(unsigned int, order)
		__field(bool, write)
		__field(unsigned int, result)
		__field(unsigned int, reason)
	),
	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->index = index;
		__entry->address = address;
		__entry->order = order;
		__entry->write = write;
		__entry->result = result;
		__entry->reason = reason;
	),
	TP_printk("dev %d:%d ino %llu index %#lx address %#lx order %u %s result %s reason %s",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino, __entry->index,
		  __entry->address, __entry->order, __entry->write ? "write" : "read",
		  __print_flags(__entry->result, "|", VM_FAULT_RESULT_TRACE),
		  /* As Reason in trace.rs has them. */
		  __print_symbolic(__entry->reason,
				   { 0, "none" }, { 1, "alignment" }, { 2, "vma" },
				   { 3, "eof" }, { 4, "private" }, { 5, "extent" }, { 6, "hole" },
				   { 7, "conflict" }, { 8, "max_order" }, { 9, "poison" },
				   { 10, "nomem" }))
);

TRACE_EVENT(rdax_insert,
	TP_PROTO(struct inode *inode, unsigned long index, unsigned long pfn, unsigned int order,
		 bool write),
	TP_ARGS(inode, index, pfn, order, write),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, ino)
		__field(unsigned long, index)
		__field(unsigned long, pfn)
		__field(unsigned int, order)
		__field(bool, write)
	),
	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->index = index;
		__entry->pfn = pfn;
		__entry->order = order;
		__entry->write = write;
	),
	TP_printk("dev %d:%d ino %llu index %#lx pfn %#lx order %u %s",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino, __entry->index,
		  __entry->pfn, __entry->order, __entry->write ? "write" : "read")
);

DECLARE_EVENT_CLASS(rdax_wait,
	TP_PROTO(unsigned int who, dev_t dev, u64 ino, u64 waited),
	TP_ARGS(who, dev, ino, waited),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, ino)
		__field(u64, waited)
		__field(unsigned int, who)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->ino = ino;
		__entry->waited = waited;
		__entry->who = who;
	),
	TP_printk("dev %d:%d ino %llu who %s waited %llu ns",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __print_symbolic(__entry->who,
				   { 1, "layout" }, { 2, "write" }, { 3, "fault" },
				   { 4, "eviction" }, { 5, "device" }),
		  __entry->waited)
);

DEFINE_EVENT(rdax_wait, rdax_wait_begin,
	TP_PROTO(unsigned int who, dev_t dev, u64 ino, u64 waited),
	TP_ARGS(who, dev, ino, waited)
);

DEFINE_EVENT(rdax_wait, rdax_wait_end,
	TP_PROTO(unsigned int who, dev_t dev, u64 ino, u64 waited),
	TP_ARGS(who, dev, ino, waited)
);

DECLARE_EVENT_CLASS(rdax_range,
	TP_PROTO(struct inode *inode, unsigned long first, unsigned long last, unsigned long count),
	TP_ARGS(inode, first, last, count),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, ino)
		__field(unsigned long, first)
		__field(unsigned long, last)
		__field(unsigned long, count)
	),
	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->first = first;
		__entry->last = last;
		__entry->count = count;
	),
	TP_printk("dev %d:%d ino %llu index %#lx to %#lx count %lu",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino, __entry->first,
		  __entry->last, __entry->count)
);

/* A range was written back: how many pages of it were. */
DEFINE_EVENT(rdax_range, rdax_writeback,
	TP_PROTO(struct inode *inode, unsigned long first, unsigned long last, unsigned long count),
	TP_ARGS(inode, first, last, count)
);

/* Dirty entries are removed, or replaced: how many, which are flushed for that. */
DEFINE_EVENT(rdax_range, rdax_remove_flush,
	TP_PROTO(struct inode *inode, unsigned long first, unsigned long last, unsigned long count),
	TP_ARGS(inode, first, last, count)
);

/* A device is adopted, or not any more. */
TRACE_EVENT(rdax_adopt,
	TP_PROTO(dev_t dev, bool adopted),
	TP_ARGS(dev, adopted),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(bool, adopted)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->adopted = adopted;
	),
	TP_printk("dev %d:%d %s", MAJOR(__entry->dev), MINOR(__entry->dev),
		  __entry->adopted ? "adopted" : "released")
);

/* An entry is kept still while processes are told that memory has failed. */
TRACE_EVENT(rdax_poison,
	TP_PROTO(struct inode *inode, unsigned long index, unsigned int order),
	TP_ARGS(inode, index, order),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, ino)
		__field(unsigned long, index)
		__field(unsigned int, order)
	),
	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->index = index;
		__entry->order = order;
	),
	TP_printk("dev %d:%d ino %llu index %#lx order %u",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino, __entry->index,
		  __entry->order)
);

#endif /* RDAX_TRACE_H */

#include <trace/define_trace.h>
