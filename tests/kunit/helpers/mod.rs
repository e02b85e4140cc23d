// SPDX-License-Identifier: GPL-2.0

//! Helpers that several suites use.

pub(crate) mod entries;
pub(crate) mod folios;
pub(crate) mod mapped;
pub(crate) mod prefaults;
pub(crate) mod transfers;

use crate::{
    dax::{
        adopt::Adopted,
        folio::{self, AssociateError},
        layout,
        poison,
        stats::Counter,
        tree::{self, LockError, LockedEntry, PrefaultEntries, PrefaultLimits, Wanted},
        writeback::{self, Request}, //
    },
    kern::{
        entry::Entry,
        fs::{Mapping, PageIndex, PageRange},
        order::Order,
        page::{Association, DevPage, EntryMemory, PageBlock},
        testing::{self, failed, Checked, File, TestExtent, View, World},
        vm::FaultCode, //
    },
};
use core::{ffi::CStr, mem};
use kernel::{
    new_mutex,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release},
    sync::{Arc, Mutex, SetOnce},
    time::{Delta, Instant, Monotonic}, //
};

/// The device that the tests work on.
pub(crate) const NAME: &CStr = c"pmem0";
pub(crate) const PATH: &CStr = c"/dev/pmem0";

/// The device as an adopted one, from the first test that needs it on.
static ADOPTED: SetOnce<Arc<Mutex<Option<Adopted>>>> = SetOnce::new();

pub(crate) fn adopted() -> Checked<&'static Mutex<Option<Adopted>>> {
    if ADOPTED.as_ref().is_none() {
        ADOPTED.populate(Arc::pin_init(new_mutex!(None), GFP_KERNEL)?);
    }
    let adopted = ADOPTED
        .as_ref()
        .ok_or_else(|| failed(file!(), line!(), fmt!("no room for the device")))?;
    Ok(adopted)
}

/// Held by the module, whose code is called for as long as a device is adopted.
pub(crate) struct GivesBack;

impl Drop for GivesBack {
    fn drop(&mut self) {
        let _ = release();
    }
}

/// The device adopted and opened, and a filesystem on it.
pub(crate) fn world() -> Checked<World> {
    adopt()?;
    mounted()
}

/// The device opened, and a filesystem on it.
pub(crate) fn mounted() -> Checked<World> {
    testing::with_paths(|| World::new(PATH, |raw| Entry::from_raw(raw).1))
}

pub(crate) fn adopt() -> Checked {
    let mut adopted = adopted()?.lock();
    if adopted.is_none() {
        *adopted = Some(testing::with_paths(|| Adopted::new(NAME))?);
    }
    // As if nothing had been set, and no memory had failed.
    if let Some(adopted) = &*adopted {
        adopted.set_defaults();
    }
    poison::forget();
    Ok(())
}

/// Gives the device back.
pub(crate) fn release() -> Checked {
    let mut adopted = adopted()?.lock();
    if let Some(device) = adopted.take() {
        if let Err((device, error)) = device.release() {
            *adopted = Some(device);
            return Err(error.into());
        }
    }
    Ok(())
}

/// The device's counts since it was adopted.
pub(crate) fn count(counter: Counter) -> u64 {
    let Ok(adopted) = adopted() else {
        return 0;
    };
    let adopted = adopted.lock();
    adopted.as_ref().map_or(0, |adopted| {
        adopted.device().stats().snapshot().get(counter)
    })
}

/// As the user says of the device.
pub(crate) fn set_max_order(order: Order) -> Checked {
    if let Some(adopted) = &*adopted()?.lock() {
        adopted.set_max_order(order);
    }
    Ok(())
}

/// As the user says of the device.
pub(crate) fn set_fault_around(order: Order) -> Checked {
    if let Some(adopted) = &*adopted()?.lock() {
        adopted.set_fault_around(order);
    }
    Ok(())
}

/// As the user says of the device.
pub(crate) fn set_write_order(order: Order) -> Checked {
    if let Some(adopted) = &*adopted()?.lock() {
        adopted.set_write_order(order);
    }
    Ok(())
}

/// Shorthand.
pub(crate) fn at(index: usize) -> PageIndex {
    PageIndex::new(index)
}

/// Pages of a file from `first` to `last`, both included.
pub(crate) fn range(first: usize, last: usize) -> PageRange {
    PageRange {
        first: at(first),
        last: at(last),
    }
}

/// Where on the device a folio of `order` may be. `None`, with a note, on one that is too small.
pub(crate) fn place_of(world: &World, order: Order) -> Option<usize> {
    let place = world.try_take(order.pages(), order);
    if place.is_none() {
        testing::note(fmt!(
            "order {} left out: the device is too small",
            order.bits()
        ));
    }
    place
}

/// A file of one extent of `order`, and where that is on the device. `None`, with a note, on a
/// device that is too small.
pub(crate) fn mapped_file(world: &World, order: Order) -> Checked<Option<(File<'_>, usize)>> {
    let Some(place) = place_of(world, order) else {
        return Ok(None);
    };
    let file = world.file(order.pages())?;
    file.set_extents(&[TestExtent::mapped(0, order.pages(), place)])?;
    Ok(Some((file, place)))
}

/// Locks an entry, as a fault does that looks at nothing but its own pages.
pub(crate) fn lock_entry<'m>(
    mapping: &'m Mapping,
    index: PageIndex,
    order: Order,
    dirty: bool,
) -> Result<LockedEntry<'m>, LockError> {
    let wanted = Wanted {
        index,
        order,
        dirty,
        prefault: None,
    };
    tree::lock_or_create(mapping, &wanted).map(|created| created.locked)
}

/// Locks an entry, as a fault does.
pub(crate) fn lock<'f>(file: &'f File<'_>, index: usize, order: Order) -> Checked<LockedEntry<'f>> {
    lock_entry(file.mapping(), at(index), order, false)
        .map_err(|error| failed(file!(), line!(), fmt!("lock_or_create: {error:?}")))
}

/// The pages that a fault prefaults.
pub(crate) struct Prefault<'f> {
    pub(crate) pages: usize,
    pub(crate) entries: Option<PrefaultEntries<'f, 'f>>,
}

/// An entry that was locked, or created, with what is prefaulted with it.
pub(crate) struct Created<'f> {
    pub(crate) locked: LockedEntry<'f>,
    pub(crate) prefault: Prefault<'f>,
}

/// Locks an entry of a page, and prefaults what may be had behind it.
pub(crate) fn lock_with_prefault<'f>(
    file: &'f File<'_>,
    index: usize,
    dirty: bool,
    limits: PrefaultLimits,
) -> Checked<Created<'f>> {
    let wanted = Wanted {
        index: at(index),
        order: Order::PTE,
        dirty,
        prefault: Some(limits),
    };
    let created = tree::lock_or_create(file.mapping(), &wanted)
        .map_err(|error| failed(file!(), line!(), fmt!("lock_or_create: {error:?}")))?;
    let mut entries = PrefaultEntries::new(&created.locked, created.prefault);
    if let Some(entries) = &mut entries {
        entries.insert(&created.locked);
    }
    Ok(Created {
        locked: created.locked,
        prefault: Prefault {
            pages: created.prefault.pages,
            entries,
        },
    })
}

/// Associates pages with an entry that there is not, which counts until [`disassociate`].
pub(crate) fn associate_block<'p>(
    block: PageBlock<'p>,
    mapping: &'p Mapping,
    index: PageIndex,
    shared: bool,
) -> Result<(), AssociateError<'p>> {
    folio::associate(EntryMemory::of_test(block, mapping, index), shared).map(mem::forget)
}

/// Takes an entry with this page off its folio.
pub(crate) fn disassociate(page: DevPage<'_>) {
    folio::disassociate(Association::of_test(page));
}

/// Makes a data entry, as a fault does.
pub(crate) fn put(
    file: &File<'_>,
    index: usize,
    order: Order,
    place: usize,
    dirty: bool,
) -> Checked {
    put_shared(file, index, order, place, dirty, false)
}

/// Makes a data entry for an extent that is shared, or not.
pub(crate) fn put_shared(
    file: &File<'_>,
    index: usize,
    order: Order,
    place: usize,
    dirty: bool,
    shared: bool,
) -> Checked {
    let locked = lock_entry(file.mapping(), at(index), order, dirty)
        .map_err(|error| failed(file!(), line!(), fmt!("lock_or_create: {error:?}")))?;
    let own = locked
        .takes(file.world().block(place, order))
        .ok_or_else(|| failed(file!(), line!(), fmt!("memory of another order")))?;
    let association = folio::associate(own.memory(), shared)
        .map_err(|error| failed(file!(), line!(), fmt!("associate: {error:?}")))?;
    tree::set_memory(own, association, |entry| entry);
    Ok(())
}

/// Makes an entry for a hole.
pub(crate) fn put_zero(file: &File<'_>, index: usize, order: Order) -> Checked {
    lock(file, index, order)?.set(Entry::zero(order));
    Ok(())
}

/// Makes a file share the blocks of `old` with others, and get those of `new` when it is written to.
pub(crate) fn set_shared(file: &File<'_>, pages: usize, old: usize, new: usize) -> Checked {
    file.set_extents(&[TestExtent::mapped(0, pages, old).shared()])?;
    file.set_extents_for_writing(&[TestExtent::mapped(0, pages, new).shared().copy_of(old)])?;
    Ok(())
}

/// Has a thread work that needs a spinning lock, which is held from before it begins, and `change`
/// something while it waits, if it does: then what the work has looked at without the lock is
/// outdated. The caller repeats this, for a thread may come too late.
pub(crate) fn contend<G, T: Send, R>(
    lock: impl FnOnce() -> G,
    work: impl Fn() -> T + Sync,
    change: impl FnOnce(&mut G) -> R,
) -> Checked<(T, R)> {
    let (beats, begin) = (Atomic::new(0), Atomic::new(false));
    testing::with_thread(
        || {
            while !begin.load(Acquire) {
                beats.fetch_add(1, Relaxed);
            }
            work()
        },
        |_| {
            let spin = |time| {
                let since = Instant::<Monotonic>::now();
                while since.elapsed() < time {
                    core::hint::spin_loop();
                }
            };
            // On another processor.
            let runs = testing::until(|| {
                let before = beats.load(Relaxed);
                spin(Delta::from_micros(200));
                beats.load(Relaxed) != before
            });
            let mut guard = lock();
            begin.store(true, Release);
            if runs {
                spin(Delta::from_millis(25));
            }
            let changed = change(&mut guard);
            drop(guard);
            changed
        },
    )
}

/// Removes all entries of a file.
pub(crate) fn clear(file: &File<'_>) {
    layout::delete_range(file.mapping(), PageRange::ALL);
}

/// What an entry is, to be compared when it is not there any more.
pub(crate) fn word_of(entry: Entry<'_>) -> usize {
    entry.unlocked().word()
}

/// The entry that covers an index, and whether it is locked.
pub(crate) fn look<'f>(file: &'f File<'_>, index: usize) -> Option<(Entry<'f>, bool)> {
    file.entry_at(at(index))
}

/// Whether the entry that covers an index has a mark.
pub(crate) fn is_marked(file: &File<'_>, index: usize, mark: crate::kern::xa::Mark) -> bool {
    let mut guard = file.mapping().tree().lock();
    let mut xas = guard.xas(at(index));
    xas.load().is_some() && xas.has_mark(mark)
}

/// A file of `pages` pages that lie on the device as they do in the file, up to orders of
/// [`Order::PMD`], and where.
pub(crate) fn straight_file(world: &World, pages: usize) -> Checked<(File<'_>, usize)> {
    let place = world.take_many(pages, Order::PMD)?;
    let file = world.file(pages)?;
    file.set_extents(&[TestExtent::mapped(0, pages, place)])?;
    Ok((file, place))
}

/// A store to a page or a load of it.
pub(crate) fn access(view: &View<'_>, page: usize, write: bool) -> Result {
    if write {
        view.store(page, 1)
    } else {
        view.load(page).map(|_| ())
    }
}

/// Bits from `first` to `last`, both included; a set of up to 64 pages.
pub(crate) fn bits(first: usize, last: usize) -> u64 {
    (first..=last).fold(0, |bits, bit| bits | 1 << bit)
}

/// Which of the first `pages` pages, at most 64, have what `has` looks for.
pub(crate) fn pages_with(pages: usize, has: impl Fn(usize) -> bool) -> u64 {
    (0..pages.min(64)).fold(0, |bits, page| bits | u64::from(has(page)) << page)
}

/// Which of the first `pages` pages of a file are covered by an entry with a mark.
pub(crate) fn marked_pages(file: &File<'_>, pages: usize, mark: crate::kern::xa::Mark) -> u64 {
    pages_with(pages, |page| is_marked(file, page, mark))
}

/// Which of the first `pages` pages of a file have an entry.
pub(crate) fn present_pages(file: &File<'_>, pages: usize) -> u64 {
    pages_with(pages, |page| look(file, page).is_some())
}

/// Which of the first `pages` pages of a file are covered by a locked entry.
pub(crate) fn locked_pages(file: &File<'_>, pages: usize) -> u64 {
    pages_with(pages, |page| {
        look(file, page).is_some_and(|(_, locked)| locked)
    })
}

/// Writes back all of a file that is dirty, and returns the number of pages.
pub(crate) fn fsync(file: &File<'_>) -> Result<usize> {
    let request = Request {
        range: PageRange::ALL,
        sync: true,
    };
    writeback::writeback(file.mapping(), file.world().dax(), &request)
}

/// Gives the device back, and says what came of it.
pub(crate) fn release_now() -> Result {
    let Ok(adopted) = adopted() else {
        return Err(ENOMEM);
    };
    let mut adopted = adopted.lock();
    match adopted.take().map(Adopted::release) {
        Some(Err((device, error))) => {
            *adopted = Some(device);
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Whether the device is adopted.
pub(crate) fn is_adopted() -> Checked<bool> {
    Ok(adopted()?.lock().is_some())
}

/// Whether a page of a file is mapped by an entry of this order, at this place.
pub(crate) fn check_mapped(
    world: &World,
    view: &View<'_>,
    page: usize,
    order: Order,
    place: usize,
    writable: bool,
) -> Checked {
    let Some(mapped) = view.mapped(page) else {
        return Err(failed(file!(), line!(), fmt!("page {page} is not mapped")));
    };
    check_eq!(mapped.order, order.bits());
    check_eq!(mapped.pfn, world.pfn(place).to_bits());
    check_eq!(mapped.writable, writable);
    Ok(())
}

/// Has one access fall back from [`Order::PMD`] and be served by a page, and returns how often
/// the reason was counted. 1 GiB is not tried.
pub(crate) fn fallback(
    file: &File<'_>,
    view: &View<'_>,
    page: usize,
    write: bool,
    reason: Counter,
) -> Checked<u64> {
    set_max_order(Order::PMD)?;
    let before = count(reason);
    file.forget_faults();
    if write {
        view.store(page, 1)?;
    } else {
        view.load(page)?;
    }
    let fell = (0..file.faults())
        .filter_map(|number| file.fault(number))
        .any(|fault| fault.order == 9 && fault.code == FaultCode::FALLBACK);
    check!(fell, "no fault of 2 MiB fell back");
    check!(view.mapped(page).is_some_and(|mapped| mapped.order == 0));
    Ok(count(reason) - before)
}

/// Whether the entry that covers a page of the file is locked.
pub(crate) fn is_locked(file: &File<'_>, index: usize) -> bool {
    look(file, index).is_some_and(|(_, locked)| locked)
}

/// Writes a range of the file back, as `fsync` does.
pub(crate) fn write_back(file: &File<'_>, range: PageRange) -> Result<usize> {
    let request = Request { range, sync: true };
    writeback::writeback(file.mapping(), file.world().dax(), &request)
}
