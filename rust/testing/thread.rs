// SPDX-License-Identifier: GPL-2.0

//! Threads of a test, which end before what started them goes on.
//!
//! C header: [`include/linux/kthread.h`](srctree/include/linux/kthread.h)

use super::{failed, Checked};
use crate::kern::bindings;
use core::{ffi::c_void, marker::PhantomData, ptr::NonNull};
use kernel::prelude::*;

/// A thread that works for the present test.
pub(crate) struct Thread<'a> {
    task: NonNull<bindings::task_struct>,
    _job: PhantomData<&'a ()>,
}

impl Thread<'_> {
    /// Whether the thread sleeps at this moment.
    pub(crate) fn is_asleep(&self) -> bool {
        // SAFETY: The task is kept until it is joined.
        unsafe { bindings::rdax_test_is_asleep(self.task.as_ptr()) }
    }

    /// Whether the thread waits for something and goes on waiting; it may look around now and then.
    /// False when it has finished. Sleeps.
    pub(crate) fn waits(&self) -> bool {
        self.goes_to_sleep() && {
            pause(50);
            self.goes_to_sleep()
        }
    }

    /// Whether the thread comes to sleep, and does not finish before.
    fn goes_to_sleep(&self) -> bool {
        // SAFETY: As above.
        let is_over = || unsafe { bindings::rdax_test_is_over(self.task.as_ptr()) };
        until(|| self.is_asleep() || is_over()) && !is_over()
    }

    /// How often the thread went to sleep.
    pub(crate) fn sleeps(&self) -> usize {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_switches(self.task.as_ptr()) as usize }
    }

    /// Sends a signal, one that kills or another.
    pub(crate) fn signal(&self, fatal: bool) {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_signal(self.task.as_ptr(), fatal) };
    }
}

/// Lets others work for some milliseconds.
pub(crate) fn pause(milliseconds: u32) {
    // SAFETY: Tests may sleep.
    unsafe { bindings::rdax_test_pause(milliseconds) };
}

/// How often [`until`] looks, a millisecond apart at least: a machine may be a hundred times slower than
/// another, and only a failure takes that long.
const LOOKS: usize = 30_000;

/// Waits for a condition, not forever. Whether it came true.
pub(crate) fn until(condition: impl Fn() -> bool) -> bool {
    for _ in 0..LOOKS {
        if condition() {
            return true;
        }
        pause(1);
    }
    condition()
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        // SAFETY: The task is kept until this, and joined once.
        unsafe { bindings::rdax_test_thread_join(self.task.as_ptr()) };
    }
}

struct Job<'f, F, T> {
    work: &'f F,
    number: usize,
    result: Option<T>,
}

/// # Safety
///
/// `data` is a `Job` that nobody else uses until the thread is joined.
unsafe extern "C" fn run<F: Fn(usize) -> T + Sync, T: Send>(data: *mut c_void) -> i32 {
    // SAFETY: By this function's safety requirements.
    let job = unsafe { &mut *data.cast::<Job<'_, F, T>>() };
    job.result = Some((job.work)(job.number));
    0
}

fn start<'a, F: Fn(usize) -> T + Sync, T: Send>(job: &'a mut Job<'_, F, T>) -> Result<Thread<'a>> {
    // SAFETY: The job is borrowed until the thread is joined, which is before the result ends: it
    // is given to nobody who could forget it.
    let task = unsafe { bindings::rdax_test_thread(Some(run::<F, T>), (&raw mut *job).cast()) };
    Ok(Thread {
        task: NonNull::new(task).ok_or(ENOMEM)?,
        _job: PhantomData,
    })
}

/// Has `n` threads work, each told its number, while this one does `meanwhile`, and returns what
/// all came to when they have ended.
pub(crate) fn with_threads<T: Send, R>(
    n: usize,
    work: impl Fn(usize) -> T + Sync,
    meanwhile: impl FnOnce(&[Thread<'_>]) -> R,
) -> Checked<(KVec<T>, R)> {
    let mut jobs = KVec::with_capacity(n, GFP_KERNEL)?;
    for number in 0..n {
        let job = Job {
            work: &work,
            number,
            result: None,
        };
        jobs.push(job, GFP_KERNEL)?;
    }
    let value = {
        let mut threads = KVec::with_capacity(n, GFP_KERNEL)?;
        for job in jobs.iter_mut() {
            threads.push(start(job)?, GFP_KERNEL)?;
        }
        meanwhile(&threads)
    };
    let mut results = KVec::with_capacity(n, GFP_KERNEL)?;
    for job in jobs {
        match job.result {
            Some(result) => results.push(result, GFP_KERNEL)?,
            None => return Err(failed(file!(), line!(), fmt!("a thread has no result"))),
        }
    }
    Ok((results, value))
}

/// The same with one thread.
pub(crate) fn with_thread<T: Send, R>(
    work: impl Fn() -> T + Sync,
    meanwhile: impl FnOnce(&Thread<'_>) -> R,
) -> Checked<(T, R)> {
    let (mut results, value) =
        with_threads(1, |_| work(), |threads| threads.first().map(meanwhile))?;
    match (results.pop(), value) {
        (Some(result), Some(value)) => Ok((result, value)),
        _ => Err(failed(file!(), line!(), fmt!("there is no thread"))),
    }
}

/// The same, with `then` done when the thread waits (or does not, even given time); returns whether
/// it waited.
pub(crate) fn with_thread_waiting<T: Send>(
    work: impl Fn() -> T + Sync,
    then: impl FnOnce(),
) -> Checked<(T, bool)> {
    with_thread(work, |thread| {
        let waited = thread.waits();
        then();
        waited
    })
}

/// The same, by a worker of the kernel's work queues, which is no thread of the test: its checks are for the
/// caller. Sleeps.
pub(crate) fn in_worker<T: Send>(work: impl Fn() -> T + Sync) -> Checked<T> {
    fn job_of<F: Fn(usize) -> T + Sync, T: Send>(
        _: &Job<'_, F, T>,
    ) -> unsafe extern "C" fn(*mut c_void) -> i32 {
        run::<F, T>
    }
    let work = |_| work();
    let mut job = Job {
        work: &work,
        number: 0,
        result: None,
    };
    let run = job_of(&job);
    // SAFETY: The job is this function's own, and given to the worker until it has ended.
    unsafe { bindings::rdax_test_in_worker(Some(run), (&raw mut job).cast()) };
    job.result
        .ok_or_else(|| failed(file!(), line!(), fmt!("a worker has no result")))
}
