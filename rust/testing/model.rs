// SPDX-License-Identifier: GPL-2.0

//! A filesystem in memory: what it knows of a file, and the functions that the kernel and the layer call.

use super::{call_notify_failure, Ended, Failing, Fault, TestExtent, World};
use crate::kern::{
    bindings,
    check::complain,
    entry_points,
    fs::{Inode, Mapping, PageIndex},
    iomap::IomapOps,
    order::Order,
    vm::{FaultCode, VmFault},
    xa::RawValue,
};
use core::{
    ffi::c_int,
    ptr::{self, NonNull},
};
use kernel::{
    ffi::c_uint,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed, Release},
        Mutex,
    },
};

/// The filesystem's knowledge of a file.
pub(super) struct ModelState {
    /// The answers to reads.
    pub(super) read: KVec<TestExtent>,
    /// The answers to writes, zeroing and unsharing.
    pub(super) write: KVec<TestExtent>,
    pub(super) begins: usize,
    pub(super) ends: KVec<Ended>,
    pub(super) asked: u32,
    pub(super) fail_begin: Option<Failing>,
    pub(super) fail_end: Option<Failing>,
    pub(super) fail_sync: Option<Error>,
    pub(super) make_table: bool,
    /// An address that somebody reads from when a call begins, 0 for none.
    pub(super) accessed: usize,
    /// An address for which a guard page is installed when a call begins, 0 for none.
    pub(super) guarded: usize,
    /// The fault that is under way, 0 if none is.
    pub(super) under_way: usize,
    pub(super) other_memory: bool,
    /// The address of the world and a place there that fails at the next sync.
    pub(super) fails_at_sync: Option<(usize, usize)>,
    pub(super) syncs: usize,
    pub(super) synced: (i64, i64),
    pub(super) faults: KVec<Fault>,
}

#[pin_data]
pub(super) struct Model {
    #[pin]
    pub(super) state: Mutex<ModelState>,
    pub(super) dax: NonNull<bindings::dax_device>,
    pub(super) evicted: Atomic<bool>,
    pub(super) strict: Atomic<bool>,
    pub(super) is_locked: fn(RawValue<'_>) -> bool,
}

impl Model {
    pub(super) fn ops(&self) -> &'static IomapOps {
        let table = if self.strict.load(Relaxed) {
            &STRICT_OPS
        } else {
            &OPS
        };
        // SAFETY: The table is never changed.
        unsafe { IomapOps::from_raw(NonNull::from(&table.0)) }
    }

    /// Whether the entry that covers a byte of a file is locked.
    fn is_locked_at(&self, mapping: &Mapping, byte: bindings::loff_t) -> bool {
        let mut guard = mapping.tree().lock();
        guard
            .xas(PageIndex::of_byte(byte as u64))
            .load()
            .is_some_and(self.is_locked)
    }
}

/// A table of functions for the core.
#[repr(transparent)]
pub(super) struct Table<T>(pub(super) T);

// SAFETY: The tables below are never written.
unsafe impl<T> Sync for Table<T> {}

static OPS: Table<bindings::iomap_ops> = Table(bindings::iomap_ops {
    iomap_begin: Some(begin),
    iomap_end: Some(end),
    iomap_next: None,
});

static STRICT_OPS: Table<bindings::iomap_ops> = Table(bindings::iomap_ops {
    iomap_begin: None,
    iomap_end: None,
    iomap_next: Some(strict_next),
});

// Without an owner: the tests keep the module.
pub(super) static FILE_OPERATIONS: Table<bindings::file_operations> =
    Table(bindings::file_operations {
        fop_flags: bindings::FOP_MMAP_SYNC,
        mmap_prepare: Some(mmap_prepare),
        fsync: Some(fsync),
        ..pin_init::zeroed()
    });

static VM_OPERATIONS: Table<bindings::vm_operations_struct> =
    Table(bindings::vm_operations_struct {
        fault: Some(small_fault),
        huge_fault: Some(huge_fault),
        pfn_mkwrite: Some(small_fault),
        page_mkwrite: Some(small_fault),
        ..pin_init::zeroed()
    });

/// # Safety
///
/// The inode is one of a [`File`], which outlives the result.
unsafe fn model_of<'a>(inode: *mut bindings::inode) -> &'a Model {
    // SAFETY: By this function's safety requirements.
    unsafe { &*bindings::rdax_test_private(inode).cast::<Model>() }
}

/// # Safety
///
/// Called by the tests' filesystem for an inode of a [`File`] that goes away.
#[no_mangle]
unsafe extern "C" fn rdax_test_evict(inode: *mut bindings::inode) {
    // SAFETY: By this function's safety requirements.
    unsafe {
        entry_points::layout::dax_break_layout_final(inode);
        model_of(inode).evicted.store(true, Release);
    }
}

/// # Safety
///
/// Called for an inode of a [`File`], as a filesystem is.
unsafe extern "C" fn begin(
    inode: *mut bindings::inode,
    position: bindings::loff_t,
    length: bindings::loff_t,
    flags: c_uint,
    iomap: *mut bindings::iomap,
    source: *mut bindings::iomap,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let (model, iomap, source) = unsafe { (model_of(inode), &mut *iomap, &mut *source) };
    let accessed = core::mem::take(&mut model.state.lock().accessed);
    if accessed != 0 {
        let mut value = 0;
        // SAFETY: User memory, accessed as such; whether it is there, the test will see.
        unsafe { bindings::rdax_test_load(accessed, &mut value) };
    }
    let guarded = core::mem::take(&mut model.state.lock().guarded);
    if guarded != 0 {
        // SAFETY: The table is there, by what `guard_at_begin` asks for.
        unsafe { bindings::rdax_test_guard(guarded, true) };
    }
    let mut state = model.state.lock();
    let call = state.begins;
    state.begins += 1;
    state.asked = flags;
    if let Some(failing) = state.fail_begin.filter(|failing| failing.call == call) {
        return failing.error.to_errno();
    }
    let changes = bindings::IOMAP_WRITE | bindings::IOMAP_ZERO | bindings::IOMAP_UNSHARE;
    let extents = if flags & changes != 0 {
        &state.write
    } else {
        &state.read
    };
    let page = position as usize >> Order::PAGE_SHIFT;
    let here = extents
        .iter()
        .find(|extent| extent.first <= page && page < extent.first + extent.pages);
    let end = (position as u64).saturating_add(length as u64);
    let fill = |map: &mut bindings::iomap, extent: &TestExtent, place: usize| {
        map.type_ = extent.kind as u16;
        map.flags = extent.flags as u16;
        map.offset = (extent.first << Order::PAGE_SHIFT) as i64;
        map.length = (extent.pages << Order::PAGE_SHIFT) as u64;
        map.addr = (place << Order::PAGE_SHIFT) as u64;
        map.dax_dev = match extent.elsewhere {
            false => model.dax.as_ptr(),
            true => NonNull::dangling().as_ptr(),
        };
    };
    match here {
        Some(extent) => {
            fill(iomap, extent, extent.place);
            if extent.kind == bindings::IOMAP_HOLE {
                iomap.addr = u64::MAX;
            }
            if let Some(place) = extent.source {
                fill(source, extent, place);
                source.type_ = bindings::IOMAP_MAPPED as u16;
                source.flags = 0;
            }
        }
        None => {
            let next = extents
                .iter()
                .map(|extent| extent.first)
                .filter(|first| *first > page)
                .min()
                .map_or(end, |first| (first << Order::PAGE_SHIFT) as u64);
            let first = (page << Order::PAGE_SHIFT) as u64;
            iomap.type_ = bindings::IOMAP_HOLE as u16;
            iomap.offset = first as i64;
            iomap.length = next.saturating_sub(first);
            iomap.addr = u64::MAX;
            iomap.dax_dev = model.dax.as_ptr();
        }
    }
    0
}

/// # Safety
///
/// Called for an inode of a [`File`], as a filesystem is.
unsafe extern "C" fn end(
    inode: *mut bindings::inode,
    position: bindings::loff_t,
    length: bindings::loff_t,
    written: isize,
    _flags: c_uint,
    _iomap: *mut bindings::iomap,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let model = unsafe { model_of(inode) };
    let mut state = model.state.lock();
    let call = state.ends.len();
    let ended = Ended {
        position: position as u64,
        length: length as u64,
        written: written as usize,
    };
    if state.ends.push(ended, GFP_KERNEL).is_err() {
        return ENOMEM.to_errno();
    }
    match state.fail_end.filter(|failing| failing.call == call) {
        Some(failing) => failing.error.to_errno(),
        None => 0,
    }
}

/// # Safety
///
/// Called for an inode of a [`File`], as a filesystem is.
unsafe extern "C" fn strict_next(
    iter: *const bindings::iomap_iter,
    iomap: *mut bindings::iomap,
    source: *mut bindings::iomap,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    unsafe {
        let (inode, flags) = ((*iter).inode, (*iter).flags);
        if (*iomap).length != 0 {
            let start = (*iter).iter_start_pos;
            let done = (*iter).pos - start;
            let length = done + (*iter).len as i64;
            let ret = end(inode, start, length, done as isize, flags, iomap);
            if ret < 0 {
                return ret;
            }
            let ret = bindings::iomap_iter_continue(iter, iomap, source, 0);
            if ret <= 0 {
                return ret;
            }
        }
        let ret = begin(inode, (*iter).pos, (*iter).len as i64, flags, iomap, source);
        if ret < 0 {
            ret
        } else {
            1
        }
    }
}

/// # Safety
///
/// Called by the core for a [`File`].
unsafe extern "C" fn fsync(
    file: *mut bindings::file,
    start: bindings::loff_t,
    end: bindings::loff_t,
    _datasync: c_int,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let (inode, model) = unsafe {
        let inode = (*file).f_inode;
        let model = model_of(inode);
        (Inode::from_raw(NonNull::new_unchecked(inode)), model)
    };
    // Write-back would wait for it.
    if model.is_locked_at(inode.mapping(), start) {
        complain();
    }
    let fails = model.state.lock().fails_at_sync.take();
    if let Some((world, place)) = fails {
        // SAFETY: The world is there as long as its files.
        let world = unsafe { &*(world as *const World) };
        call_notify_failure(world, place, 1, false);
        // Of a small folio the core does that, when it was told that nobody else has.
        world.set_poison(place, true);
    }
    let mut state = model.state.lock();
    state.syncs += 1;
    state.synced = (start, end);
    state.fail_sync.map_or(0, |error| error.to_errno())
}

/// # Safety
///
/// Called by the core for a [`File`].
unsafe extern "C" fn mmap_prepare(desc: *mut bindings::vm_area_desc) -> c_int {
    // SAFETY: The description is the core's and being filled in.
    unsafe { (*desc).vm_ops = &VM_OPERATIONS.0 };
    0
}

/// # Safety
///
/// Called by the core for a mapping of a [`File`].
unsafe extern "C" fn small_fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By this function's safety requirements.
    unsafe { huge_fault(vmf, 0) }
}

/// # Safety
///
/// Called by the core for a mapping of a [`File`].
unsafe extern "C" fn huge_fault(
    raw: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    // SAFETY: By this function's safety requirements.
    let inode = unsafe {
        VmFault::from_raw(NonNull::new_unchecked(raw))
            .mapping()
            .host()
            .as_ptr()
    };
    // SAFETY: The inode is alive, and one of a `File`.
    let model = unsafe {
        bindings::rdax_test_lock_faults_shared(inode);
        model_of(inode)
    };
    if order as usize == Order::PMD.bits() && model.state.lock().make_table {
        // SAFETY: The fault is under way.
        unsafe { bindings::rdax_test_make_table(raw) };
    }
    model.state.lock().under_way = raw as usize;
    let (mut pfn, mut error) = (usize::MAX, 0);
    // SAFETY: The fault is under way.
    let mut code = FaultCode(unsafe {
        entry_points::fault::dax_iomap_fault(
            raw,
            order,
            &raw mut pfn,
            &raw mut error,
            ptr::from_ref(model.ops()).cast(),
        )
    });
    model.state.lock().under_way = 0;
    let note = |code| {
        let mut state = model.state.lock();
        if state.faults.len() < state.faults.capacity() {
            let fault = Fault { order, code, error };
            let _ = state.faults.push(fault, GFP_KERNEL);
        }
    };
    note(code);
    if order == 0 && code == FaultCode::FALLBACK {
        // Which would end the machine.
        complain();
        code = FaultCode::SIGBUS;
    }
    if code == FaultCode::LATER {
        // As of those to whom the lock of the address space is not given back.
        code = FaultCode::NOPAGE;
    }
    if code.0 & FaultCode::NEED_SYNC.0 != 0 {
        let other = core::mem::take(&mut model.state.lock().other_memory);
        let pfn = pfn + (usize::from(other) << order);
        // SAFETY: The fault is under way.
        code = FaultCode(unsafe { entry_points::fault::dax_finish_sync_fault(raw, order, pfn) });
        note(code);
    }
    // SAFETY: Taken above.
    unsafe { bindings::rdax_test_unlock_faults_shared(inode) };
    code.0
}
