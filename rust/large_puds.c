// SPDX-License-Identifier: GPL-2.0
/*
 * Tables that come in the place of an entry of 1 GiB.
 *
 * get_user_pages() reads an entry of the third level without a lock. If it maps memory, it takes the lock, reads it
 * again and looks only whether it is present: if it is a table by then, the pages behind the table are taken for the
 * file's. Who unmaps such an entry and who makes a table hold the mmap lock for reading, as it does, or that of a
 * VMA, so both can happen in between.
 *
 * So a table is made only when everybody is past this who may have seen an entry of 1 GiB in its place: a grace
 * period of RCU Tasks after it was unmapped, in which each task that was preempted in the kernel has got on. And
 * while one is about to be made, no such entry is mapped there.
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

#define BUCKETS_BITS 6

static struct bucket {
	spinlock_t lock;
	struct hlist_head removed, made;
} buckets[1 << BUCKETS_BITS] = {
	[0 ... (1 << BUCKETS_BITS) - 1].lock = __SPIN_LOCK_UNLOCKED(bucket.lock),
};

/* Entries that are unmapped while there is no memory to tell where: so many now, and some a moment ago. */
static struct {
	spinlock_t lock;
	unsigned int now;
	bool past_soon, again;
	struct rcu_head rcu;
} untold = { .lock = __SPIN_LOCK_UNLOCKED(untold.lock) };

static DECLARE_WAIT_QUEUE_HEAD(all_past);

static struct bucket *bucket_of(const pud_t *entry)
{
	return &buckets[hash_ptr(entry, BUCKETS_BITS)];
}

static bool has(const struct mm_struct *mm, const pud_t *entry, bool made)
{
	struct bucket *bucket = bucket_of(entry);
	struct rdax_place *place;
	bool found = false;

	spin_lock_bh(&bucket->lock);
	hlist_for_each_entry(place, made ? &bucket->made : &bucket->removed, node)
		found |= place->entry == entry && place->mm == mm->context.ctx_id;
	spin_unlock_bh(&bucket->lock);
	return found;
}

static void add(struct rdax_place *place, struct mm_struct *mm, const pud_t *entry, bool made)
{
	struct bucket *bucket = bucket_of(entry);

	place->entry = entry;
	place->mm = mm->context.ctx_id;
	spin_lock_bh(&bucket->lock);
	hlist_add_head(&place->node, made ? &bucket->made : &bucket->removed);
	spin_unlock_bh(&bucket->lock);
}

static void remove(struct rdax_place *place)
{
	struct bucket *bucket = bucket_of(place->entry);

	spin_lock_bh(&bucket->lock);
	hlist_del(&place->node);
	spin_unlock_bh(&bucket->lock);
}

static void past(struct rcu_head *rcu)
{
	struct rdax_place *place = container_of(rcu, struct rdax_place, rcu);

	remove(place);
	kfree(place);
	wake_up_all(&all_past);
}

static void untold_past(struct rcu_head *rcu)
{
	spin_lock_bh(&untold.lock);
	/* Those who came after this grace period had begun wait for another. */
	WRITE_ONCE(untold.past_soon, untold.again);
	untold.again = false;
	if (untold.past_soon)
		call_rcu_tasks(rcu, untold_past);
	spin_unlock_bh(&untold.lock);
	wake_up_all(&all_past);
}

/* Of an entry that nobody can have seen who does not hold it. */
static struct rdax_place unseen;

void *rdax_large_pud_begin_removal(struct vm_area_struct *vma, pud_t *entry)
{
	struct rdax_place *place;

	/*
	 * munmap has held the mmap lock for writing since it took the VMA out of the address space, and exit has
	 * nobody beside it.
	 */
	if (!vma_is_attached(vma) || !atomic_read(&vma->vm_mm->mm_users))
		return &unseen;
	place = kmalloc_obj(*place, GFP_NOWAIT | __GFP_NOWARN);
	if (place) {
		add(place, vma->vm_mm, entry, false);
		return place;
	}
	spin_lock_bh(&untold.lock);
	WRITE_ONCE(untold.now, untold.now + 1);
	spin_unlock_bh(&untold.lock);
	return NULL;
}

void rdax_large_pud_end_removal(void *removal)
{
	struct rdax_place *place = removal;

	if (place == &unseen)
		return;
	if (place) {
		call_rcu_tasks(&place->rcu, past);
		return;
	}
	spin_lock_bh(&untold.lock);
	if (untold.past_soon) {
		untold.again = true;
	} else {
		WRITE_ONCE(untold.past_soon, true);
		call_rcu_tasks(&untold.rcu, untold_past);
	}
	/* Pairs with the acquire in any_untold(): who does not find this entry in one finds it in the other. */
	smp_store_release(&untold.now, untold.now - 1);
	spin_unlock_bh(&untold.lock);
}

static bool any_untold(void)
{
	/* Pairs with the release in rdax_large_pud_end_removal(). */
	return smp_load_acquire(&untold.now) || READ_ONCE(untold.past_soon);
}

bool rdax_large_pud_was_removed(struct mm_struct *mm, pud_t *entry)
{
	return has(mm, entry, false) || any_untold();
}

bool rdax_is_made(struct mm_struct *mm, pud_t *entry)
{
	return has(mm, entry, true);
}

bool rdax_table_is_made(struct vm_fault *vmf)
{
	return rdax_is_made(vmf->vma->vm_mm, vmf->pud);
}

int rdax_begin_table(struct mm_struct *mm, pud_t *entry, struct rdax_place *place)
{
	spinlock_t *lock;
	bool present;

	add(place, mm, entry, true);
	/* Who maps 1 GiB there looks for this under the lock, so from here on nobody does. */
	lock = pud_lock(mm, entry);
	present = pud_present(pudp_get(entry));
	spin_unlock(lock);
	if (present)
		return 1;
	/* Ends: after the grace periods of the entries that were there; no more can come. */
	return wait_event_killable(all_past, !rdax_large_pud_was_removed(mm, entry)) ? -ENOMEM : 0;
}

void rdax_end_table(struct rdax_place *place)
{
	remove(place);
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
	rcu_barrier_tasks();
}
