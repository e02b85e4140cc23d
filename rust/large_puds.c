// SPDX-License-Identifier: GPL-2.0
/*
 * Tables that come in the place of an entry of 1 GiB.
 *
 * get_user_pages() reads an entry of the third level without a lock. If it maps memory, it takes the lock, reads it
 * again and looks only whether it is present: if it is a table by then, the pages behind the table are taken for the
 * file's. Who unmaps such an entry and who makes a table hold the mmap lock for reading, as it does, or that of a
 * VMA, so both can happen in between.
 *
 * So a table is made only when all tasks that may have seen an entry of 1 GiB in its place are past this. All of
 * them hold the mmap lock for reading: once it was held for writing after the entry was unmapped, they are past.
 * The lock's sequence number tells; it is odd while the lock is held for writing, and changes each time. A task that
 * wants a table takes the lock for writing, for a moment, if it is free. If it is not, a fault gives up its locks and is
 * tried again. A caller that cannot be tried again, and holds the lock for reading itself, waits for a grace period
 * of RCU Tasks, in which each task has left the kernel or slept; others may draw that out. While a table is about to
 * be made, no such entry is mapped there.
 *
 * Lock order: the lock of the page table, then that of a bucket. A grace period may end in a softirq, where the
 * kernel has none of RCU Tasks and RCU's own serves.
 */
#include <linux/hash.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/objtool.h>
#include <linux/pgtable.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include <asm/ibt.h>
#include <asm/linkage.h>
#include <asm/nospec-branch.h>

#include "helpers.h"

/*
 * The kernel's functions, behind where ftrace calls from. Nobody may call them there, least of all where indirect
 * branches are tracked; so they are returned to.
 */
struct originals {
	unsigned long zap, split, make;
};

static struct originals __used rdax_large_puds;

void rdax_large_puds_begin(unsigned long zap, unsigned long split, unsigned long make)
{
	rdax_large_puds.zap = zap;
	rdax_large_puds.split = split;
	rdax_large_puds.make = make;
}

#define ORIGINAL(name, at)						\
asm(									\
"	.pushsection .text, \"ax\", @progbits\n"			\
"	.type " #name ", @function\n"					\
"	.globl " #name "\n"						\
#name ":\n"								\
"	" ASM_ENDBR							\
"	pushq rdax_large_puds + " #at "(%rip)\n"			\
"	" ASM_RET							\
"	.size " #name ", .-" #name "\n"					\
"	.popsection\n"							\
)

ORIGINAL(rdax_original_zap_huge_pud, 0);
STACK_FRAME_NON_STANDARD(rdax_original_zap_huge_pud);
ORIGINAL(rdax_original_split_huge_pud, 8);
STACK_FRAME_NON_STANDARD(rdax_original_split_huge_pud);
ORIGINAL(rdax_original_pmd_alloc, 16);
STACK_FRAME_NON_STANDARD(rdax_original_pmd_alloc);

#ifndef CONFIG_PER_VMA_LOCK
#error "rdax needs a kernel that locks each VMA (CONFIG_PER_VMA_LOCK)"
#endif

#define BUCKETS_BITS 10
/* So many places are remembered, some 6 MiB, before those who have many mappings get no more; and 100 MiB. */
#define MANY (1 << 16)
#define MOST (1 << 20)
#define FEW_MAPPINGS 1024
/* How long a table is waited for by who keeps the mmap lock. */
#define PATIENCE (10 * HZ)

static struct bucket {
	spinlock_t lock;
	struct hlist_head removed, made;
	/* All entries of this bucket that were unmapped when there was no memory to tell where. */
	struct rdax_place rest;
} buckets[1 << BUCKETS_BITS] = {
	[0 ... (1 << BUCKETS_BITS) - 1].lock = __SPIN_LOCK_UNLOCKED(bucket.lock),
};

static atomic_t removed_now = ATOMIC_INIT(0);

static DECLARE_WAIT_QUEUE_HEAD(all_past);

static struct bucket *bucket_of(const pud_t *entry)
{
	return &buckets[hash_ptr(entry, BUCKETS_BITS)];
}

/* The bucket is locked. */
static struct rdax_place *find(struct hlist_head *head, const struct mm_struct *mm, const pud_t *entry)
{
	struct rdax_place *place;

	hlist_for_each_entry(place, head, node) {
		if (place->entry == entry && place->mm == mm->context.ctx_id)
			return place;
	}
	return NULL;
}

/* The bucket is locked. Nobody is past unmapping this place or waits for a grace period of it. */
static void forget(struct bucket *bucket, struct rdax_place *place)
{
	if (place == &bucket->rest) {
		place->is_seen = place->is_queued = false;
		return;
	}
	hlist_del(&place->node);
	kfree(place);
	atomic_dec(&removed_now);
}

bool rdax_mmap_write_lock_once(struct mm_struct *mm)
{
	if (!down_write_trylock(&mm->mmap_lock))
		return false;
	mm_lock_seqcount_begin(mm);
	mmap_write_unlock(mm);
	return true;
}

static void past(struct rcu_head *rcu)
{
	struct rdax_place *place = container_of(rcu, struct rdax_place, rcu);
	struct bucket *bucket = bucket_of(place->entry);
	bool again;

	spin_lock_bh(&bucket->lock);
	/* Those who came after this grace period had begun wait for another. */
	again = place->again || place->removing;
	place->again = false;
	if (again)
		call_rcu_tasks(rcu, past);
	else
		forget(bucket, place);
	spin_unlock_bh(&bucket->lock);
	if (!again)
		wake_up_all(&all_past);
}

/* Of an entry that nobody can have seen who does not hold it. */
static struct rdax_place unseen;

void *rdax_large_pud_begin_removal(struct vm_area_struct *vma, pud_t *entry)
{
	struct rdax_place *place, *new;
	struct bucket *bucket;

	/*
	 * munmap has held the mmap lock for writing since it took the VMA out of the address space, and exit has
	 * nobody beside it.
	 */
	if (!vma_is_attached(vma) || !atomic_read(&vma->vm_mm->mm_users))
		return &unseen;
	bucket = bucket_of(entry);
	new = kmalloc_obj(*new, GFP_ATOMIC | __GFP_NOWARN);
	spin_lock_bh(&bucket->lock);
	/* One for each entry, however often it is unmapped. */
	place = find(&bucket->removed, vma->vm_mm, entry);
	if (!place && new) {
		*new = (struct rdax_place) { .entry = entry, .mm = vma->vm_mm->context.ctx_id };
		hlist_add_head(&new->node, &bucket->removed);
		atomic_inc(&removed_now);
		place = new;
		new = NULL;
	}
	if (!place) {
		place = &bucket->rest;
		place->entry = entry;
	}
	place->removing++;
	spin_unlock_bh(&bucket->lock);
	kfree(new);
	return place;
}

void rdax_large_pud_end_removal(struct vm_area_struct *vma, void *removal)
{
	struct rdax_place *place = removal;
	struct bucket *bucket;
	unsigned int number;
	bool is_seen;

	if (place == &unseen)
		return;
	bucket = bucket_of(place->entry);
	/* The entry is gone: whoever has the lock for writing from here on excludes those who have seen it. */
	smp_mb();
	number = READ_ONCE(vma->vm_mm->mm_lock_seq.sequence);
	is_seen = !(number & 1);
	spin_lock_bh(&bucket->lock);
	place->removing--;
	if (is_seen) {
		place->number = number;
		place->is_seen = true;
	}
	if (place->is_queued) {
		place->again |= is_seen;
	} else if (place->is_seen) {
		place->is_queued = true;
		call_rcu_tasks(&place->rcu, past);
	} else if (!place->removing) {
		/* Nobody can have seen it. */
		forget(bucket, place);
	}
	spin_unlock_bh(&bucket->lock);
	wake_up_all(&all_past);
}

bool rdax_large_pud_was_removed(struct mm_struct *mm, pud_t *entry)
{
	struct bucket *bucket = bucket_of(entry);
	struct rdax_place *place;
	bool seen;

	/* While somebody has the mmap lock for writing, nobody reads page tables under it. */
	if (READ_ONCE(mm->mm_lock_seq.sequence) & 1)
		return false;
	spin_lock_bh(&bucket->lock);
	place = find(&bucket->removed, mm, entry);
	/* Read after the place was found: it changes when the lock was held for writing since. */
	seen = place && (place->removing || (place->is_seen &&
			 place->number == READ_ONCE(mm->mm_lock_seq.sequence)));
	/* They are of many address spaces, so a number would not tell. */
	seen |= bucket->rest.removing || bucket->rest.is_queued;
	spin_unlock_bh(&bucket->lock);
	return seen;
}

unsigned int rdax_large_puds_removed(void)
{
	return atomic_read(&removed_now);
}

bool rdax_large_puds_are_many(struct mm_struct *mm)
{
	unsigned int now = rdax_large_puds_removed();

	return now > MANY && (now > MOST || READ_ONCE(mm->map_count) > FEW_MAPPINGS);
}

/* Whether the place is remembered by itself: where a table is being made, or where an entry was. */
static bool is_remembered(struct mm_struct *mm, pud_t *entry, bool made)
{
	struct bucket *bucket = bucket_of(entry);
	bool found;

	spin_lock_bh(&bucket->lock);
	found = find(made ? &bucket->made : &bucket->removed, mm, entry);
	spin_unlock_bh(&bucket->lock);
	return found;
}

bool rdax_is_made(struct mm_struct *mm, pud_t *entry)
{
	return is_remembered(mm, entry, true);
}

bool rdax_table_is_made(struct vm_fault *vmf)
{
	return rdax_is_made(vmf->vma->vm_mm, vmf->pud);
}

/* Whether somebody may have seen an entry there, and is not past that. Does not sleep. */
static bool is_seen(struct mm_struct *mm, pud_t *entry)
{
	return rdax_large_pud_was_removed(mm, entry) &&
	       (!rdax_mmap_write_lock_once(mm) || rdax_large_pud_was_removed(mm, entry));
}

bool rdax_table_is_for_later(struct vm_fault *vmf)
{
	if (!is_seen(vmf->vma->vm_mm, vmf->pud))
		return false;
	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return true;
	/* Who is not tried again without the lock waits for it in rdax_begin_table(). */
	if (!(vmf->flags & (FAULT_FLAG_USER | FAULT_FLAG_VMA_LOCK | FAULT_FLAG_ALLOW_RETRY)))
		return false;
	/* For those who have the lock to get on; whoever has called holds the file's locks meanwhile. */
	schedule_timeout_killable(1);
	return true;
}

int rdax_begin_table(struct mm_struct *mm, pud_t *entry, struct rdax_place *place)
{
	struct bucket *bucket = bucket_of(entry);
	unsigned long end = jiffies + PATIENCE;
	spinlock_t *lock;
	bool present;

	*place = (struct rdax_place) { .entry = entry, .mm = mm->context.ctx_id };
	spin_lock_bh(&bucket->lock);
	hlist_add_head(&place->node, &bucket->made);
	spin_unlock_bh(&bucket->lock);
	/* Who maps 1 GiB there looks for this under the lock, so from here on nobody does. */
	lock = pud_lock(mm, entry);
	present = pud_present(pudp_get(entry));
	spin_unlock(lock);
	if (present)
		return 1;
	/*
	 * Ends: when nobody has the mmap lock at one of these looks, of which nothing tells, or after the grace periods of
	 * the entries that were there; no more can come. Others may draw these out while the caller keeps the lock, for which
	 * others wait in turn, so this has an end. Where memory had run out, all entries of the bucket are waited for.
	 */
	while (is_seen(mm, entry)) {
		if (time_after(jiffies, end) && is_remembered(mm, entry, false))
			return -ENOMEM;
		if (wait_event_killable_timeout(all_past, !rdax_large_pud_was_removed(mm, entry), 2) < 0)
			return -ENOMEM;
	}
	return 0;
}

void rdax_end_table(struct rdax_place *place)
{
	struct bucket *bucket = bucket_of(place->entry);

	spin_lock_bh(&bucket->lock);
	hlist_del(&place->node);
	spin_unlock_bh(&bucket->lock);
}

int rdax_make_table(struct mm_struct *mm, pud_t *entry, unsigned long address)
{
	struct rdax_place place;
	int result;

	/* The kernel's own addresses: no file is mapped there, and who may not sleep makes tables for them, too. */
	if (address >= TASK_SIZE_MAX)
		return rdax_original_pmd_alloc(mm, entry, address);
	result = rdax_begin_table(mm, entry, &place);
	if (!result)
		result = rdax_original_pmd_alloc(mm, entry, address);
	rdax_end_table(&place);
	return min(result, 0);
}

void rdax_large_puds_end(void)
{
	/* What is called after a grace period may want another, but nobody has it want one more then. */
	rcu_barrier_tasks();
	rcu_barrier_tasks();
}
