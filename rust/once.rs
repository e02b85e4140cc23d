// SPDX-License-Identifier: GPL-2.0

//! `READ_ONCE`, `WRITE_ONCE`, `smp_load_acquire`, `smp_store_release`, barriers, and what changes a word
//! without returning it, inlined.
//!
//! [`Atomic`] calls a C helper for each of its operations where the kernel does not inline these (it
//! can only when built with clang). Where an operation is executed for each page or for each call that
//! is redirected, the calls would be a good part of the work. On x86 loads and stores are plain moves
//! that the compiler neither splits, merges nor moves past a barrier of its own, and what is locked is
//! fully ordered; what they guarantee is that of the kernel's memory model, and they go with the
//! operations of [`Atomic`].
//!
//! C headers: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h),
//! [`arch/x86/include/asm/barrier.h`](srctree/arch/x86/include/asm/barrier.h)

use core::arch::asm;
use kernel::sync::atomic::{Atomic, AtomicType};

#[cfg(not(CONFIG_X86_64))]
compile_error!("acquire and release are plain moves on x86 only");

/// A compiler barrier: no access to memory is moved past it.
#[inline(always)]
fn barrier() {
    // An assembly block is taken to access all memory.
    //
    // SAFETY: It is empty.
    unsafe { asm!("", options(nostack, preserves_flags)) };
}

/// `smp_wmb`: no store that follows comes before one that precedes.
#[inline(always)]
pub(super) fn write_barrier() {
    // Stores are seen in their order on x86.
    barrier();
}

/// `smp_mb`.
#[inline(always)]
pub(super) fn full_barrier() {
    // SAFETY: Adding nothing to a word below the stack changes nothing.
    unsafe { asm!("lock add dword ptr [rsp - 4], 0", options(nostack)) };
}

/// `atomic_long_or` and `atomic_long_andnot`, fully ordered.
pub(super) trait Bits {
    /// Sets bits of the word.
    fn set_bits(&self, bits: usize);
    /// Clears bits of the word.
    fn clear_bits(&self, bits: usize);
}

impl Bits for Atomic<usize> {
    #[inline(always)]
    fn set_bits(&self, bits: usize) {
        // SAFETY: The pointer is valid and aligned, and any bits are a value, by the invariant of
        // `Atomic`.
        unsafe { asm!("lock or [{}], {}", in(reg) self.as_ptr(), in(reg) bits, options(nostack)) };
    }

    #[inline(always)]
    fn clear_bits(&self, bits: usize) {
        // SAFETY: As in `set_bits`.
        unsafe {
            asm!("lock and [{}], {}", in(reg) self.as_ptr(), in(reg) !bits, options(nostack))
        };
    }
}

/// `atomic_add`, fully ordered.
#[inline(always)]
pub(super) fn add(word: &Atomic<i32>, n: i32) {
    // SAFETY: The pointer is valid and aligned, and any bits are a value, by the invariant of `Atomic`.
    unsafe { asm!("lock add [{}], {:e}", in(reg) word.as_ptr(), in(reg) n, options(nostack)) };
}

/// Words that are read and written once, in one go.
pub(crate) trait Once {
    /// The word's value.
    type Value;

    /// `READ_ONCE`.
    fn read_once(&self) -> Self::Value;
    /// `WRITE_ONCE`.
    fn write_once(&self, value: Self::Value);
    /// `smp_load_acquire`: nothing that follows comes before it.
    fn load_acquire(&self) -> Self::Value;
    /// `smp_store_release`: nothing that precedes comes behind it.
    fn store_release(&self, value: Self::Value);
}

impl<T: AtomicType> Once for Atomic<T> {
    type Value = T;

    #[inline(always)]
    fn read_once(&self) -> T {
        const { assert!(size_of::<T>() <= size_of::<usize>()) };
        // SAFETY: The pointer is valid and aligned, and whatever is written there is a `T`, by the
        // invariant of `Atomic`. A volatile access of a machine word or less is one access.
        unsafe { self.as_ptr().read_volatile() }
    }

    #[inline(always)]
    fn write_once(&self, value: T) {
        const { assert!(size_of::<T>() <= size_of::<usize>()) };
        // SAFETY: As in `read_once`.
        unsafe { self.as_ptr().write_volatile(value) };
    }

    #[inline(always)]
    fn load_acquire(&self) -> T {
        let value = self.read_once();
        barrier();
        value
    }

    #[inline(always)]
    fn store_release(&self, value: T) {
        barrier();
        self.write_once(value);
    }
}

/// Reads a word of a structure in C that others may change meanwhile.
///
/// # Safety
///
/// The pointer is valid for reads and aligned, and others write to the word atomically.
#[inline(always)]
pub(super) unsafe fn read_once<T: AtomicType>(word: *const T) -> T {
    // SAFETY: By this function's safety requirements; nothing is written.
    unsafe { Atomic::from_ptr(word.cast_mut()) }.read_once()
}
