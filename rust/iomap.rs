// SPDX-License-Identifier: GPL-2.0

//! A filesystem's answers to where a file's bytes are.
//!
//! C header: [`include/linux/iomap.h`](srctree/include/linux/iomap.h)

use super::{
    bindings,
    dax::{Access, DaxDevice, DaxPlace, DaxReadGuard},
    error::{ecanceled, eopnotsupp},
    fs::Inode,
    once::Once,
    order::Order,
    page::{FilePages, Frames, PageRun},
    xa::LockedSlot, //
};
use core::{
    marker::PhantomData,
    mem::{offset_of, size_of, MaybeUninit},
    ptr::{self, NonNull},
};
use kernel::{
    error::{code::*, Error, Result},
    sync::atomic::{Atomic, Relaxed, Release},
    types::Opaque, //
};

/// A filesystem's callbacks.
///
/// # Invariants
///
/// A reference to one is to callbacks that are valid for as long, of a filesystem that is mounted.
#[repr(transparent)]
pub(crate) struct IomapOps(Opaque<bindings::iomap_ops>);

impl IomapOps {
    /// # Safety
    ///
    /// The callbacks stay valid for `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(ops: NonNull<bindings::iomap_ops>) -> &'a Self {
        // SAFETY: The type is transparent; the caller vouches for the lifetime.
        unsafe { ops.cast::<Self>().as_ref() }
    }
}

/// The callbacks with which a filesystem that can share blocks reads, and that filesystem. Set once;
/// its module is kept from then on.
static READING: Atomic<*mut bindings::iomap_ops> = Atomic::new(ptr::null_mut());
static READER: Atomic<*mut bindings::file_system_type> = Atomic::new(ptr::null_mut());

impl IomapOps {
    /// Notes that these are the callbacks with which the inode's filesystem reads.
    #[inline]
    pub(crate) fn note_reading(&self, inode: &Inode) {
        if READING.read_once().is_null() {
            self.keep_reading(inode);
        }
    }

    #[cold]
    fn keep_reading(&self, inode: &Inode) {
        // SAFETY: The inode is alive.
        if unsafe {
            !bindings::rdax_can_share_blocks(inode.as_ptr())
                || !bindings::rdax_filesystem_get(inode.as_ptr())
        } {
            return;
        }
        let kind = inode.filesystem();
        let mine = READER.cmpxchg(ptr::null_mut(), kind, Relaxed);
        if mine.is_ok() {
            // Pairs with `read_ops_for`: whoever finds the table finds its filesystem's type.
            READING.store(self.0.get(), Release);
        } else {
            // SAFETY: Taken above.
            unsafe { bindings::rdax_filesystem_put(kind) };
        }
    }

    /// The callbacks to ask what is in a file that is to be written to, without anything being
    /// prepared for that: where blocks cannot be shared, these; otherwise those for reading, if they
    /// are known.
    pub(crate) fn read_ops_for<'a>(&'a self, inode: &Inode) -> Option<&'a Self> {
        // SAFETY: The inode is alive.
        if unsafe { !bindings::rdax_can_share_blocks(inode.as_ptr()) } {
            return Some(self);
        }
        self.for_reading(inode)
    }

    /// Those for reading a file whose filesystem can share blocks, if they are known.
    fn for_reading<'a>(&'a self, inode: &Inode) -> Option<&'a Self> {
        // Pairs with `keep_reading`.
        let reading = NonNull::new(READING.load_acquire())?;
        // The filesystem is noted before its callbacks are.
        if READER.read_once() != inode.filesystem() {
            return None;
        }
        // SAFETY: They are in the module of the inode's filesystem, which is kept.
        Some(unsafe { Self::from_raw(reading) })
    }

    /// Lets the filesystem go whose callbacks were noted.
    ///
    /// # Safety
    ///
    /// Nobody uses what [`IomapOps::read_ops_for`] gave.
    pub(super) unsafe fn release() {
        if READING.xchg(ptr::null_mut(), Relaxed).is_null() {
            return;
        }
        if let Some(kind) = NonNull::new(READER.xchg(ptr::null_mut(), Relaxed)) {
            // SAFETY: Taken when it was noted.
            unsafe { bindings::rdax_filesystem_put(kind.as_ptr()) };
        }
    }
}

/// Flags of a question to the filesystem (`IOMAP_*`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct IomapFlags(u32);

impl IomapFlags {
    /// Where the bytes are, for DAX. The base of all others.
    pub(crate) const READ: Self = Self(bindings::IOMAP_DAX);
    /// Blocks to write to; new ones if there are none.
    pub(crate) const WRITE: Self = Self(bindings::IOMAP_DAX | bindings::IOMAP_WRITE);
    /// Where to write zeroes; holes may stay holes.
    pub(crate) const ZERO: Self = Self(bindings::IOMAP_DAX | bindings::IOMAP_ZERO);
    /// Blocks of the file's own for what it shares.
    pub(crate) const UNSHARE: Self = Self(Self::WRITE.0 | bindings::IOMAP_UNSHARE);

    /// The same for a page fault.
    #[inline]
    pub(crate) const fn fault(self) -> Self {
        Self(self.0 | bindings::IOMAP_FAULT)
    }

    /// Whether it is an error instead of waiting.
    #[inline]
    pub(crate) const fn is_nowait(self) -> bool {
        self.0 & bindings::IOMAP_NOWAIT != 0
    }

    /// The same, with an error instead of waiting.
    #[inline]
    pub(crate) const fn nowait(self) -> Self {
        Self(self.0 | bindings::IOMAP_NOWAIT)
    }
}

/// The kind of an extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExtentKind {
    /// Nothing: reads as zeroes.
    Hole,
    /// Blocks without data: reads as zeroes.
    Unwritten,
    /// Data.
    Mapped,
    /// An extent that DAX cannot serve: delayed allocation, data in the inode.
    Other,
}

/// An extent of a file, as the filesystem described it.
///
/// # Invariants
///
/// The filesystem on whose device the inode is has filled in the extent, and nobody changes it during
/// `'r`.
#[derive(Clone, Copy)]
pub(crate) struct Extent<'r, 'i> {
    raw: &'r bindings::iomap,
    _inode: PhantomData<&'i Inode>,
}

impl<'r, 'i> Extent<'r, 'i> {
    #[inline]
    fn new(raw: &'r bindings::iomap) -> Self {
        Self {
            raw,
            _inode: PhantomData,
        }
    }

    #[inline]
    pub(crate) fn kind(&self) -> ExtentKind {
        match u32::from(self.raw.type_) {
            bindings::IOMAP_HOLE => ExtentKind::Hole,
            bindings::IOMAP_UNWRITTEN => ExtentKind::Unwritten,
            bindings::IOMAP_MAPPED => ExtentKind::Mapped,
            _ => ExtentKind::Other,
        }
    }

    #[inline]
    fn has(&self, flag: u32) -> bool {
        u32::from(self.raw.flags) & flag != 0
    }

    /// The blocks were allocated by this very call.
    #[inline]
    pub(crate) fn is_new(&self) -> bool {
        self.has(bindings::IOMAP_F_NEW)
    }

    /// Other files have the blocks too, or had until this call gave new ones.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.has(bindings::IOMAP_F_SHARED)
    }

    /// Blocks with data that no other file has: to be written to as they are.
    #[inline]
    pub(crate) fn is_own(&self) -> bool {
        self.kind() == ExtentKind::Mapped && !self.is_shared()
    }

    /// Metadata that is needed to find the data is not durable yet.
    #[inline]
    pub(crate) fn needs_sync(&self) -> bool {
        self.has(bindings::IOMAP_F_DIRTY)
    }

    /// Bytes that are described from `position` on; none when that is not in the extent.
    #[inline]
    fn bytes_from(&self, position: u64) -> u64 {
        // A position before the extent is a distance that no extent is as long as.
        let before = position.wrapping_sub(self.raw.offset as u64);
        self.raw.length.saturating_sub(before)
    }

    /// A number that tells the device the extent is on from others: a file may be on several.
    #[inline]
    pub(crate) fn device_key(&self) -> usize {
        self.raw.dax_dev as usize
    }

    /// The byte of the device where `position` of the file is.
    #[inline]
    pub(crate) fn address(&self, position: u64) -> u64 {
        self.raw
            .addr
            .wrapping_add(position.wrapping_sub(self.raw.offset as u64))
    }

    /// The page of the device that `position` of the file is in. `EIO` when the filesystem
    /// named no DAX device or a place that is not aligned to pages.
    #[inline]
    pub(crate) fn place(&self, position: u64) -> Result<DaxPlace<'i>> {
        let device = NonNull::new(self.raw.dax_dev).ok_or(EIO)?;
        let page = position & !(Order::PTE.bytes() as u64 - 1);
        let address = self.address(page);
        if address & (Order::PTE.bytes() as u64 - 1) != 0 {
            return Err(EIO);
        }
        // SAFETY: The filesystem holds the device while it is mounted, and it is while we serve it.
        let device = unsafe { DaxDevice::from_raw(device) };
        // SAFETY: The filesystem says that its extent is there.
        Ok(unsafe { DaxPlace::new(device, (address >> Order::PAGE_SHIFT) as usize) })
    }
}

/// Room for a walk, in the frame of the function that walks.
pub(crate) struct IomapSpace(MaybeUninit<bindings::iomap_iter>);

impl IomapSpace {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }
}

/// A walk over a range of a file, extent by extent.
///
/// Every extent that [`IomapIter::next`] gave is finished by the next call of it, which tells the
/// filesystem how far the walk was advanced meanwhile: a walk must be called until it says that it
/// is over, or be ended by [`IomapIter::finish`].
///
/// # Invariants
///
/// All of `raw` is set, for the inode and with the callbacks of its filesystem, which alone changes the
/// extents in it.
pub(crate) struct IomapIter<'a> {
    raw: &'a mut bindings::iomap_iter,
    ops: &'a IomapOps,
    _inode: PhantomData<&'a Inode>,
}

impl<'a> IomapIter<'a> {
    /// A walk over `len` bytes from `position` on.
    #[inline(always)]
    pub(crate) fn new(
        space: &'a mut IomapSpace,
        inode: &'a Inode,
        position: u64,
        len: u64,
        ask: IomapFlags,
        ops: &'a IomapOps,
    ) -> Self {
        const WORD: usize = size_of::<usize>();
        const WORDS: usize = size_of::<bindings::iomap_iter>() / WORD;
        // The walk itself; the extents and what belongs to them follow.
        const HEAD: usize = offset_of!(bindings::iomap_iter, iomap) / WORD;
        const {
            assert!(size_of::<bindings::iomap_iter>() % WORD == 0);
            // The six fields that are set below are all of the head.
            assert!(offset_of!(bindings::iomap_iter, iomap) == 4 * WORD + 2 * size_of::<u32>());
        }
        let place = space.0.as_mut_ptr();
        // SAFETY: The place is ours. All of the head is set, and for the words behind it zeroes are
        // valid. Word by word, because the compiler makes a call of anything else, which costs more
        // than this.
        let raw = unsafe {
            (&raw mut (*place).inode).write(inode.as_ptr());
            (&raw mut (*place).pos).write(position as i64);
            (&raw mut (*place).len).write(len);
            (&raw mut (*place).iter_start_pos).write(0);
            (&raw mut (*place).status).write(0);
            (&raw mut (*place).flags).write(ask.0);
            for word in HEAD..WORDS {
                place.cast::<usize>().add(word).write_volatile(0);
            }
            &mut *place
        };
        Self {
            raw,
            ops,
            _inode: PhantomData,
        }
    }

    /// The pages of the device that byte `position` of the present extent is in, up to `pages` of them; less
    /// when less is contiguous. They are there as long as `locked`, a value of the file's tree, is locked.
    ///
    /// Errors: as [`DaxPlace::access`]; also `EIO` if the value is not one of the file's.
    #[inline]
    pub(crate) fn pages_for<'l>(
        &self,
        locked: &'l LockedSlot<'_>,
        position: u64,
        pages: usize,
    ) -> Result<FilePages<'l>> {
        let place = self.extent().place(position)?;
        // SAFETY: By the type invariant the walk is over this inode, which is alive.
        let inode = unsafe { Inode::from_raw(NonNull::new_unchecked(self.raw.inode)) };
        let tree = inode.mapping().tree();
        if !locked.is_in(tree) {
            return Err(EIO);
        }
        // A device that goes away first waits for this guard, then for the locked value.
        let Frames { first, pages } = place
            .access(&DaxReadGuard::new(), pages, Access::Normal)?
            .run()
            .frames();
        // SAFETY: The frames are those of a run, on a device that the filesystem holds for the file. By the
        // invariant of `LockedSlot` their pages are there as long as the value is locked.
        Ok(unsafe { FilePages::new(PageRun::from_frames(first, pages), tree.key()) })
    }

    /// Finishes the present extent and asks for the next. False when the range is done or the
    /// present extent was not advanced at all. Sleeps.
    ///
    /// Errors are the filesystem's, or the one that [`IomapIter::fail`] was given. After an error
    /// the walk is over.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<bool> {
        let iter: *mut bindings::iomap_iter = &raw mut *self.raw;
        // SAFETY: The callbacks and the inode are valid; the walk is ours alone, and the two
        // extents in it are what the callbacks may write to.
        let ret = unsafe {
            let iomap = &raw mut (*iter).iomap;
            let source = &raw mut (*iter).srcmap;
            let ops = self.ops.0.get();
            match (*ops).iomap_next {
                Some(next) => next(iter, iomap, source),
                None => Self::next_by_begin(ops, iter),
            }
        };
        if ret <= 0 {
            return match ret {
                0 => Ok(false),
                _ => Err(Error::from_errno(ret)),
            };
        }
        if self.extent().bytes_from(self.position()) == 0 {
            // Not where we asked: the filesystem is broken, and nothing may be done to it.
            return Err(EIO);
        }
        self.raw.iter_start_pos = self.raw.pos;
        Ok(true)
    }

    /// # Safety
    ///
    /// `ops` and `iter` are valid, and `iter` is used by nobody else.
    #[inline(never)]
    unsafe fn next_by_begin(
        ops: *const bindings::iomap_ops,
        iter: *mut bindings::iomap_iter,
    ) -> i32 {
        // SAFETY: By this function's safety requirements.
        unsafe {
            let iomap = &raw mut (*iter).iomap;
            let source = &raw mut (*iter).srcmap;
            if (*iomap).length != 0 {
                let mut ret = 0;
                if let Some(end) = (*ops).iomap_end {
                    let advanced = (*iter).pos - (*iter).iter_start_pos;
                    let end_of = |map: *const bindings::iomap| {
                        ((*map).offset as u64).saturating_add((*map).length)
                    };
                    let mut last = end_of(iomap);
                    if u32::from((*source).type_) != bindings::IOMAP_HOLE {
                        last = last.min(end_of(source));
                    }
                    let length = ((*iter).len + advanced as u64)
                        .min(last.saturating_sub((*iter).iter_start_pos as u64));
                    ret = end(
                        (*iter).inode,
                        (*iter).iter_start_pos,
                        length as i64,
                        advanced as isize,
                        (*iter).flags,
                        iomap,
                    );
                }
                ret = bindings::iomap_iter_continue(iter, iomap, source, ret);
                if ret <= 0 {
                    return ret;
                }
            }
            let Some(begin) = (*ops).iomap_begin else {
                return eopnotsupp().to_errno();
            };
            let ret = begin(
                (*iter).inode,
                (*iter).pos,
                (*iter).len as i64,
                (*iter).flags,
                iomap,
                source,
            );
            if ret < 0 {
                ret
            } else {
                1
            }
        }
    }

    /// As [`IomapIter::next`], for who has written to a present extent that is shared: sees that the
    /// filesystem has put the copy in the place of the old blocks. It tells of no error in doing so when
    /// the walk was advanced; the file still has the old blocks then, and the new ones, which are nobody's,
    /// must not be used any more.
    ///
    /// `EIO` if it has not; the walk is where it was before the present extent then, and over.
    pub(crate) fn next_copied(&mut self) -> Result<bool> {
        let start = self.raw.iter_start_pos;
        let done = self.raw.pos.wrapping_sub(start);
        let copied = (done > 0 && self.is_change() && self.extent().is_shared()).then(|| {
            let extent = self.extent();
            (extent.device_key(), extent.address(start as u64))
        });
        let more = self.next()?;
        let Some((device, address)) = copied else {
            return Ok(more);
        };
        if self.is_in_place(start as u64, done as u64, device, address) {
            return Ok(more);
        }
        if more {
            self.fail(EIO);
            let _ = self.next();
        }
        self.raw.pos = start;
        Err(EIO)
    }

    fn is_change(&self) -> bool {
        let changes = bindings::IOMAP_WRITE | bindings::IOMAP_ZERO | bindings::IOMAP_UNSHARE;
        self.raw.flags & changes != 0
    }

    /// Whether the file has data there at this address of the device, as far as that can be asked.
    fn is_in_place(&self, position: u64, bytes: u64, device: usize, address: u64) -> bool {
        // SAFETY: The caller of [`IomapIter::new`] has shown the inode.
        let inode: &Inode = unsafe { Inode::from_raw(NonNull::new_unchecked(self.raw.inode)) };
        let Some(ops) = self.ops.for_reading(inode) else {
            return true;
        };
        let mut space = IomapSpace::new();
        let mut walk = IomapIter::new(&mut space, inode, position, bytes, IomapFlags::READ, ops);
        // Ends: each turn comes to the end of an extent.
        loop {
            match walk.next() {
                Ok(true) => (),
                Ok(false) => return true,
                Err(_) => return false,
            }
            let (extent, at) = (walk.extent(), walk.position());
            if extent.kind() != ExtentKind::Mapped
                || extent.device_key() != device
                || extent.address(at) != address.wrapping_add(at - position)
            {
                walk.abandon();
                return false;
            }
            let available = walk.available();
            walk.advance(available);
        }
    }

    /// The position in the file, in bytes.
    #[inline]
    pub(crate) fn position(&self) -> u64 {
        self.raw.pos as u64
    }

    /// The present extent: where to write to, or to read from if there is no other source.
    #[inline]
    pub(crate) fn extent(&self) -> Extent<'_, 'a> {
        Extent::new(&self.raw.iomap)
    }

    /// The extent to read from: for a copy on write, where the data still is.
    #[inline]
    pub(crate) fn source(&self) -> Extent<'_, 'a> {
        if u32::from(self.raw.srcmap.type_) == bindings::IOMAP_HOLE {
            return self.extent();
        }
        Extent::new(&self.raw.srcmap)
    }

    /// Where the data of a copy on write still is; `None` when there is none.
    #[inline]
    pub(crate) fn copy_source(&self) -> Option<Extent<'_, 'a>> {
        (u32::from(self.raw.srcmap.type_) == bindings::IOMAP_MAPPED)
            .then(|| Extent::new(&self.raw.srcmap))
    }

    /// Bytes from the position on that the present extent, and its source, describe.
    #[inline]
    pub(crate) fn available(&self) -> u64 {
        let position = self.position();
        let bytes = self.raw.len.min(self.extent().bytes_from(position));
        if u32::from(self.raw.srcmap.type_) == bindings::IOMAP_HOLE {
            return bytes;
        }
        bytes.min(Extent::new(&self.raw.srcmap).bytes_from(position))
    }

    /// Counts bytes as done; at most what is [`IomapIter::available`].
    #[inline]
    pub(crate) fn advance(&mut self, bytes: u64) {
        let bytes = bytes.min(self.raw.len);
        let raw = &mut *self.raw;
        raw.pos = raw.pos.wrapping_add(bytes as i64);
        raw.len = raw.len.wrapping_sub(bytes);
    }

    /// Ends the walk: the present extent is finished, and [`IomapIter::next`] will return `error`
    /// unless finishing fails in another way.
    #[inline]
    pub(crate) fn fail(&mut self, error: Error) {
        self.raw.status = error.to_errno();
    }

    /// Finishes the present extent, which ends where the walk was advanced to, and asks for no other.
    #[inline]
    pub(crate) fn finish(&mut self) -> Result {
        self.raw.len = 0;
        self.next().map(|_| ())
    }

    /// The same, after a present extent that is shared was written to ([`IomapIter::next_copied`]).
    pub(crate) fn finish_copied(&mut self) -> Result {
        self.raw.len = 0;
        self.next_copied().map(|_| ())
    }

    /// Ends the walk where it is: the filesystem takes back what it has prepared of the present
    /// extent, all of which it is told of. An error of its own in doing so does not make it worse.
    pub(crate) fn abandon(&mut self) {
        self.fail(ecanceled());
        let _ = self.next();
    }
}
