// SPDX-License-Identifier: GPL-2.0

//! Files whose extents a test makes up.

use super::{
    failed,
    model::{Model, ModelState, FILE_OPERATIONS},
    Checked, Ended, Failing, Fault, TestExtent, World,
};
use crate::kern::{
    bindings,
    compat::this_module,
    entry::Entry,
    fs::{Inode, Mapping, PageIndex},
    iomap::IomapOps,
    iov::{IovIter, Kiocb},
    order::Order,
    xa::RawValue,
};
use core::{
    ffi::c_int,
    mem::MaybeUninit,
    ptr::{self, NonNull},
};
use kernel::{
    error::{from_err_ptr, to_result},
    new_mutex,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed},
};

/// A file on the device, open for reading and writing, whose extents a test makes up.
pub(crate) struct File<'w> {
    inode: NonNull<bindings::inode>,
    file: NonNull<bindings::file>,
    model: Pin<KBox<Model>>,
    world: &'w World,
}

// SAFETY: It points to objects of the kernel, which have locks; the model is behind a lock.
unsafe impl Sync for File<'_> {}

impl<'w> File<'w> {
    pub(super) fn new(world: &'w World, pages: usize) -> Checked<Self> {
        let model = KBox::pin_init(
            pin_init!(Model {
                state <- new_mutex!(ModelState {
                    read: KVec::new(),
                    write: KVec::new(),
                    begins: 0,
                    ends: KVec::new(),
                    asked: 0,
                    fail_begin: None,
                    fail_end: None,
                    fail_sync: None,
                    make_table: false,
                    accessed: 0,
                    guarded: 0,
                    under_way: 0,
                    other_memory: false,
                    fails_at_sync: None,
                    syncs: 0,
                    synced: (0, -1),
                    faults: KVec::with_capacity(64, GFP_KERNEL).unwrap_or_default(),
                }),
                dax: world.dax,
                evicted: Atomic::new(false),
                strict: Atomic::new(false),
                is_locked: world.is_locked,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The filesystem is mounted; the model outlives the inode, see `drop`.
        let inode = NonNull::new(unsafe {
            bindings::rdax_test_inode(
                world.mount.as_ptr(),
                (pages << Order::PAGE_SHIFT) as i64,
                ptr::from_ref::<Model>(&model).cast_mut().cast(),
            )
        })
        .ok_or(ENOMEM)?;
        // SAFETY: The inode is alive.
        let file = from_err_ptr(unsafe {
            bindings::rdax_test_file(world.mount.as_ptr(), inode.as_ptr(), &FILE_OPERATIONS.0)
        });
        match file.and_then(|file| NonNull::new(file).ok_or(ENOMEM)) {
            Ok(file) => Ok(Self {
                inode,
                file,
                model,
                world,
            }),
            Err(error) => {
                // SAFETY: The reference is ours.
                unsafe { bindings::iput(inode.as_ptr()) };
                Err(error.into())
            }
        }
    }

    /// The device.
    pub(crate) fn world(&self) -> &'w World {
        self.world
    }

    /// The file's inode.
    pub(crate) fn inode(&self) -> &Inode {
        // SAFETY: A reference is held.
        unsafe { Inode::from_raw(self.inode) }
    }

    /// Gives the core a way to read folios of the file, which nobody may have mapped yet.
    pub(crate) fn let_read_folios(&self) {
        // SAFETY: A reference is held, and the operations are the filesystem's own.
        unsafe { bindings::rdax_test_can_read_folios(self.inode.as_ptr()) };
    }

    /// The file's contents.
    pub(crate) fn mapping(&self) -> &Mapping {
        self.inode().mapping()
    }

    /// The entry that covers a page, and whether it is locked: what the tree has now, to be looked at.
    pub(crate) fn entry_at(&self, index: PageIndex) -> Option<(Entry<'_>, bool)> {
        let mut guard = self.mapping().tree().lock();
        let word = guard.xas(index).load()?.word();
        drop(guard);
        // SAFETY: It was found in a tree. Its pages are those of the world's device, which is there as long as
        // the file.
        Some(Entry::from_raw(unsafe { RawValue::from_word(word) }))
    }

    pub(super) fn raw(&self) -> *mut bindings::file {
        self.file.as_ptr()
    }

    /// The filesystem's callbacks.
    pub(crate) fn ops(&self) -> &IomapOps {
        self.model.ops()
    }

    /// Makes it a filesystem with an `iomap_next` of its own, which tells of every error of
    /// `iomap_end`. That of the kernel keeps those to itself that come after something was done.
    pub(crate) fn set_strict(&self) {
        self.model.strict.store(true, Relaxed);
    }

    /// The number of pages that entries cover (`nrpages`).
    pub(crate) fn nrpages(&self) -> usize {
        // SAFETY: The inode is alive; the test is not counting meanwhile.
        unsafe { (&raw const (*self.mapping().as_ptr()).nrpages).read_volatile() }
    }

    /// Says what is in the file, to those who read and to those who write.
    pub(crate) fn set_extents(&self, extents: &[TestExtent]) -> Checked {
        self.set_extents_for_writing(extents)?;
        let mut state = self.model.state.lock();
        state.read.clear();
        state.read.extend_from_slice(extents, GFP_KERNEL)?;
        Ok(())
    }

    /// Says what is told to those who write.
    pub(crate) fn set_extents_for_writing(&self, extents: &[TestExtent]) -> Checked {
        let mut state = self.model.state.lock();
        state.write.clear();
        state.write.extend_from_slice(extents, GFP_KERNEL)?;
        Ok(())
    }

    /// Has a call of `iomap_begin` fail, counted from now on.
    pub(crate) fn fail_begin(&self, failing: Option<Failing>) {
        let mut state = self.model.state.lock();
        state.begins = 0;
        state.fail_begin = failing;
    }

    /// Has a call of `iomap_end` fail, counted from now on.
    pub(crate) fn fail_end(&self, failing: Option<Failing>) {
        let mut state = self.model.state.lock();
        state.ends.clear();
        state.fail_end = failing;
    }

    /// Makes the file one of a filesystem that can share blocks.
    pub(crate) fn can_share_blocks(&self) {
        // SAFETY: The inode is alive.
        unsafe { bindings::rdax_test_can_share_blocks(self.inode().as_ptr()) };
    }

    /// Has it forgotten how files of this filesystem are read, when no test uses one that can share blocks.
    pub(crate) fn forget_reading() {
        // SAFETY: Nothing that belongs to the filesystem is under way.
        unsafe { IomapOps::release() };
    }

    /// Has an address of the test's be read from in the next call of `iomap_begin`, as if another thread
    /// did.
    pub(crate) fn access_at_begin(&self, address: usize) {
        self.model.state.lock().accessed = address;
    }

    /// Has a guard page be installed at an address of the test's, whose table is there, in the next call of
    /// `iomap_begin`, as if another thread did.
    pub(crate) fn guard_at_begin(&self, address: usize) {
        self.model.state.lock().guarded = address;
    }

    /// Has `fsync` fail.
    pub(crate) fn fail_sync(&self, error: Option<Error>) {
        self.model.state.lock().fail_sync = error;
    }

    /// Has another page be mapped, as by another thread, whenever a fault of 2 MiB has come.
    pub(crate) fn make_table(&self) {
        self.model.state.lock().make_table = true;
    }

    /// Has another page be mapped, as by another thread, during a fault of 2 MiB that waits now and
    /// does so until this returns.
    pub(crate) fn make_table_now(&self) {
        let fault = self.model.state.lock().under_way as *mut bindings::vm_fault;
        if !fault.is_null() {
            // SAFETY: The fault is under way.
            unsafe { bindings::rdax_test_make_table(fault) };
        }
    }

    /// Whether the inode has dirty pages to be written back by those who go through all inodes
    /// (`I_DIRTY_PAGES`), which is forgotten.
    pub(crate) fn take_dirty_pages(&self) -> bool {
        // SAFETY: The inode is alive.
        unsafe { bindings::rdax_test_take_dirty_pages(self.inode.as_ptr()) }
    }

    /// Has the next synchronous fault end as if other memory had been told of at its beginning.
    pub(crate) fn tell_of_other_memory(&self) {
        self.model.state.lock().other_memory = true;
    }

    /// Has the memory at a place of the device fail at the next call of `fsync`.
    pub(crate) fn fail_memory_at_sync(&self, place: usize) {
        let world = core::ptr::from_ref(self.world) as usize;
        self.model.state.lock().fails_at_sync = Some((world, place));
    }

    /// Calls of `fsync`.
    pub(crate) fn syncs(&self) -> usize {
        self.model.state.lock().syncs
    }

    /// The first and the last byte that the last call of `fsync` was for.
    pub(crate) fn synced(&self) -> (i64, i64) {
        self.model.state.lock().synced
    }

    /// Calls of `iomap_begin` since they were counted anew.
    pub(crate) fn begins(&self) -> usize {
        self.model.state.lock().begins
    }

    /// Calls of `iomap_end` since they were counted anew.
    pub(crate) fn ends(&self) -> usize {
        self.model.state.lock().ends.len()
    }

    /// The first call of `iomap_end` since they were counted anew.
    pub(crate) fn first_end(&self) -> Option<Ended> {
        self.model.state.lock().ends.first().copied()
    }

    /// The last call of `iomap_end`.
    pub(crate) fn last_end(&self) -> Option<Ended> {
        self.model.state.lock().ends.last().copied()
    }

    /// The flags of the last call of `iomap_begin`.
    pub(crate) fn asked(&self) -> u32 {
        self.model.state.lock().asked
    }

    /// Forgets what faults there were.
    pub(crate) fn forget_faults(&self) {
        self.model.state.lock().faults.clear();
    }

    /// The faults of the file, the first 64 of them since they were forgotten.
    pub(crate) fn fault(&self, number: usize) -> Option<Fault> {
        self.model.state.lock().faults.get(number).copied()
    }

    /// The number of faults, no more than 64.
    pub(crate) fn faults(&self) -> usize {
        self.model.state.lock().faults.len()
    }

    /// The last fault.
    pub(crate) fn last_fault(&self) -> Option<Fault> {
        self.model.state.lock().faults.last().copied()
    }

    /// The size in bytes.
    pub(crate) fn set_size(&self, bytes: u64) {
        // SAFETY: The inode is alive.
        unsafe { bindings::rdax_test_set_size(self.inode.as_ptr(), bytes as i64) };
    }

    /// The number of names.
    pub(crate) fn set_links(&self, links: u32) {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_set_links(self.inode.as_ptr(), links) };
    }

    /// Whether it is a file with DAX.
    pub(crate) fn set_dax(&self, dax: bool) {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_set_dax(self.inode.as_ptr(), dax) };
    }

    /// Puts a folio of a page cache into the file's tree, where nothing is, or takes it out again.
    pub(crate) fn set_cached(&self, index: usize, cached: bool) -> Result {
        // SAFETY: The inode is alive, and the layer passes over what is no value. Nobody else looks
        // at what is in the tree before the test takes it out.
        to_result(unsafe { bindings::rdax_test_set_cached(self.inode.as_ptr(), index, cached) })
    }

    /// Log2 of the block size.
    pub(crate) fn set_block_bits(&self, bits: u32) {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_set_block_bits(self.inode.as_ptr(), bits) };
    }

    /// Sets the file's times to 0.
    pub(crate) fn forget_times(&self) {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_forget_times(self.inode.as_ptr()) };
    }

    /// Whether the file's times were set since.
    pub(crate) fn has_times(&self) -> bool {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_has_times(self.inode.as_ptr()) }
    }

    /// The errors of write-back, which are forgotten.
    pub(crate) fn take_error(&self) -> i32 {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_take_error(self.inode.as_ptr()) }
    }

    /// Reads or writes the file: calls `work` with what `read` and `write` make. `flags` are
    /// `IOCB_*`.
    pub(crate) fn transfer<R>(
        &self,
        position: u64,
        flags: u32,
        buffer: Buffer<'_>,
        work: impl FnOnce(&mut Kiocb, &mut IovIter<'_>) -> R,
    ) -> R {
        let mut iocb = MaybeUninit::<bindings::kiocb>::zeroed();
        let mut iter = MaybeUninit::<bindings::iov_iter>::zeroed();
        let mut kvec = MaybeUninit::<bindings::kvec>::zeroed();
        // SAFETY: The helpers fill in what they are given; the buffers live for the call, and user
        // memory is accessed as such.
        unsafe {
            bindings::rdax_test_kiocb(
                iocb.as_mut_ptr(),
                self.raw(),
                position as i64,
                flags as c_int,
            );
            match buffer {
                Buffer::Write(bytes) => bindings::rdax_test_iov_kernel(
                    iter.as_mut_ptr(),
                    kvec.as_mut_ptr(),
                    true,
                    bytes.as_ptr().cast_mut().cast(),
                    bytes.len(),
                ),
                Buffer::Read(bytes) => bindings::rdax_test_iov_kernel(
                    iter.as_mut_ptr(),
                    kvec.as_mut_ptr(),
                    false,
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                ),
                Buffer::WriteUser(address, len) => {
                    bindings::rdax_test_iov_user(iter.as_mut_ptr(), true, address, len)
                }
                Buffer::ReadUser(address, len) => {
                    bindings::rdax_test_iov_user(iter.as_mut_ptr(), false, address, len)
                }
            }
            work(
                Kiocb::from_raw(NonNull::new_unchecked(iocb.as_mut_ptr())),
                &mut IovIter::from_raw(NonNull::new_unchecked(iter.as_mut_ptr())),
            )
        }
    }
}

/// The memory of a read or write.
pub(crate) enum Buffer<'a> {
    Write(&'a [u8]),
    Read(&'a mut [u8]),
    /// An address in user space and a length.
    WriteUser(usize, usize),
    ReadUser(usize, usize),
}

impl Drop for File<'_> {
    fn drop(&mut self) {
        // SAFETY: The file and the reference to the inode are this value's. Mappings of the file
        // borrow it, so this is the end of the inode, and the model may go.
        unsafe {
            bindings::rdax_test_close(self.file.as_ptr());
            bindings::iput(self.inode.as_ptr());
        }
        if !self.model.evicted.load(Acquire) {
            failed(
                file!(),
                line!(),
                fmt!("somebody still uses the file: its memory is given up"),
            );
            // Never to be freed.
            // SAFETY: The module stays as long as the file.
            unsafe { bindings::__module_get(this_module().as_ptr()) };
        }
    }
}
