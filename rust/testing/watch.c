// SPDX-License-Identifier: GPL-2.0
/*
 * Probes: functions of the kernel that are watched.
 */

#include <linux/fs.h>
#include <linux/kprobes.h>

#include "../testing.h"

/* Write-back of cache lines */

static void (*flush_fn)(unsigned long addr, size_t size);

static int on_flush(struct kprobe *probe, struct pt_regs *regs)
{
	flush_fn(regs_get_kernel_argument(regs, 0), regs_get_kernel_argument(regs, 1));
	return 0;
}

static struct kprobe flush_probe;

int rdax_test_watch_flushes(void (*fn)(unsigned long addr, size_t size))
{
	flush_fn = fn;
	memset(&flush_probe, 0, sizeof(flush_probe));
	flush_probe.symbol_name = "arch_wb_cache_pmem";
	flush_probe.pre_handler = on_flush;
	return register_kprobe(&flush_probe);
}

void rdax_test_unwatch_flushes(void)
{
	unregister_kprobe(&flush_probe);
}

/* Calls */

static atomic_t calls;
static struct kprobe call_probe;

static int on_call(struct kprobe *probe, struct pt_regs *regs)
{
	atomic_inc(&calls);
	return 0;
}

int rdax_test_watch_calls(const char *name)
{
	atomic_set(&calls, 0);
	memset(&call_probe, 0, sizeof(call_probe));
	call_probe.symbol_name = name;
	call_probe.pre_handler = on_call;
	return register_kprobe(&call_probe);
}

unsigned int rdax_test_calls(void)
{
	return atomic_read(&calls);
}

void rdax_test_unwatch_calls(void)
{
	unregister_kprobe(&call_probe);
}

/* Giving way */

static struct kprobe yield_probe;
static struct task_struct *yielding;
static unsigned long yields;

static int on_yield(struct kprobe *probe, struct pt_regs *regs)
{
	if (current == yielding)
		yields++;
	return 0;
}

int rdax_test_watch_yields(void)
{
	yielding = current;
	yields = 0;
	memset(&yield_probe, 0, sizeof(yield_probe));
	yield_probe.symbol_name = "rdax_cond_resched";
	yield_probe.pre_handler = on_yield;
	return register_kprobe(&yield_probe);
}

unsigned long rdax_test_yields(void)
{
	return yields;
}

void rdax_test_unwatch_yields(void)
{
	unregister_kprobe(&yield_probe);
}

/* Locks of a tree */

static struct {
	struct address_space *mapping;
	struct kprobe lock;
	struct kprobe unlock;
	/* Under the tree's lock. */
	unsigned long before;
	unsigned long holds;
	unsigned long most;
} watched;

/* Only one task works on the tree: the pages before the lock are those under it. */
static int on_lock(struct kprobe *probe, struct pt_regs *regs)
{
	if (regs_get_kernel_argument(regs, 0) == (unsigned long)&watched.mapping->i_pages)
		watched.before = watched.mapping->nrpages;
	return 0;
}

static int on_unlock(struct kprobe *probe, struct pt_regs *regs)
{
	unsigned long now = watched.mapping->nrpages;

	if (regs_get_kernel_argument(regs, 0) != (unsigned long)&watched.mapping->i_pages)
		return 0;
	watched.holds++;
	if (watched.before > now)
		watched.most = max(watched.most, watched.before - now);
	return 0;
}

int rdax_test_watch_tree(struct address_space *mapping)
{
	int err;

	memset(&watched, 0, sizeof(watched));
	watched.mapping = mapping;
	watched.lock.symbol_name = "rdax_xa_lock_irq";
	watched.lock.pre_handler = on_lock;
	watched.unlock.symbol_name = "rdax_xa_unlock_irq";
	watched.unlock.pre_handler = on_unlock;
	err = register_kprobe(&watched.lock);
	if (err)
		return err;
	err = register_kprobe(&watched.unlock);
	if (err)
		unregister_kprobe(&watched.lock);
	return err;
}

unsigned long rdax_test_tree_holds(void)
{
	return watched.holds;
}

unsigned long rdax_test_tree_most(void)
{
	return watched.most;
}

void rdax_test_unwatch_tree(void)
{
	unregister_kprobe(&watched.unlock);
	unregister_kprobe(&watched.lock);
}
