// SPDX-License-Identifier: GPL-2.0
/*
 * Threads, and allocations of a task that fail.
 */

#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/kthread.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/workqueue.h>

#include "../testing.h"

struct thread {
	int (*fn)(void *data);
	void *data;
	struct kunit *test;
	struct completion begun;
	struct completion done;
	bool finished;
};

static int run_thread(void *data)
{
	struct thread *thread = data;

	allow_signal(SIGKILL);
	allow_signal(SIGUSR1);
	current->kunit_test = thread->test;
	complete(&thread->begun);
	thread->fn(thread->data);
	current->kunit_test = NULL;
	WRITE_ONCE(thread->finished, true);
	/* Stays until it is joined. */
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		if (kthread_should_stop())
			break;
		complete(&thread->done);
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	kfree(thread);
	return 0;
}

struct rdax_test_work {
	struct work_struct work;
	int (*fn)(void *data);
	void *data;
};

static void run_work(struct work_struct *work)
{
	struct rdax_test_work *this = container_of(work, struct rdax_test_work, work);

	this->fn(this->data);
}

void rdax_test_in_worker(int (*fn)(void *data), void *data)
{
	struct rdax_test_work this = { .fn = fn, .data = data };

	INIT_WORK_ONSTACK(&this.work, run_work);
	queue_work(system_dfl_wq, &this.work);
	flush_work(&this.work);
	destroy_work_on_stack(&this.work);
}

struct task_struct *rdax_test_thread(int (*fn)(void *data), void *data)
{
	struct thread *thread = kzalloc(sizeof(*thread), GFP_KERNEL);
	struct task_struct *task;

	if (!thread)
		return NULL;
	thread->fn = fn;
	thread->data = data;
	thread->test = kunit_get_current_test();
	init_completion(&thread->begun);
	init_completion(&thread->done);
	task = kthread_create(run_thread, thread, "rdax-test");
	if (IS_ERR(task)) {
		kfree(thread);
		return NULL;
	}
	wake_up_process(task);
	/* Signals that come earlier are lost. */
	wait_for_completion(&thread->begun);
	return task;
}

void rdax_test_thread_join(struct task_struct *task)
{
	struct thread *thread = kthread_data(task);

	wait_for_completion(&thread->done);
	kthread_stop(task);
}

bool rdax_test_is_asleep(struct task_struct *task)
{
	unsigned int state = READ_ONCE(task->__state);
	struct thread *thread = kthread_data(task);

	/* To be joined is not what it is asked about. */
	return !READ_ONCE(thread->finished) && state & (TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE) && !task_is_running(task) &&
	       !READ_ONCE(task->on_cpu);
}

bool rdax_test_is_over(struct task_struct *task)
{
	struct thread *thread = kthread_data(task);

	return READ_ONCE(thread->finished);
}

unsigned long rdax_test_switches(struct task_struct *task)
{
	return READ_ONCE(task->nvcsw);
}

void rdax_test_signal(struct task_struct *task, bool fatal)
{
	send_sig(fatal ? SIGKILL : SIGUSR1, task, 1);
}

void rdax_test_flush_signals(void)
{
	flush_signals(current);
}

void rdax_test_fail_nth(unsigned int nth)
{
	WRITE_ONCE(current->fail_nth, nth);
}

unsigned int rdax_test_left_nth(void)
{
	return READ_ONCE(current->fail_nth);
}

void rdax_test_fail_all(bool fail)
{
	current->make_it_fail = fail;
}
