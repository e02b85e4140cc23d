// SPDX-License-Identifier: GPL-2.0

//! Long work gives way to others (spec, R8).

use kernel::prelude::*;

#[kunit_tests(rdax_fairness)]
mod tests {
    use crate::{
        dax::{
            devdax::DevDax,
            io::{self, Side},
            layout,
        },
        kern::{
            dax_bus::MemoryRange,
            fs::PageRange,
            order::Order,
            testing::{Buffer, Checked, TestExtent, Yields},
        },
        tests::helpers::*,
    };
    use kernel::{prelude::*, str::CString, sync::Arc};

    const PMD: usize = Order::PMD.pages();
    const BYTES: usize = 4 * Order::PMD.bytes();

    /// How often `work` gives way.
    fn yields<R>(work: impl FnOnce() -> R) -> Checked<(R, usize)> {
        let yields = Yields::watch()?;
        let result = work();
        let count = yields.count();
        Ok((result, count))
    }

    #[test]
    fn flushing_gives_way_every_2_mib() -> Checked {
        let world = world()?;
        let place = world.take_many(4 * PMD, Order::PMD)?;
        let ((), count) = yields(|| layout::flush(world.run(place, 4 * PMD)))?;
        check!(count >= 3, "{count} times");
        Ok(())
    }

    #[test]
    fn a_walk_gives_way_between_entries() -> Checked {
        const ENTRIES: usize = 10_000;
        let world = world()?;
        let file = world.file(ENTRIES)?;
        for index in 0..ENTRIES {
            put_zero(&file, index, Order::PTE)?;
        }
        let mapping = file.mapping();
        let (busy, count) = yields(|| layout::busy_folio(mapping, PageRange::ALL))?;
        check!(busy.is_none());
        check!(count >= ENTRIES / 4096, "looked at: {count} times");
        let ((), count) = yields(|| layout::delete_range(mapping, PageRange::ALL))?;
        check!(count >= ENTRIES / 4096, "removed: {count} times");
        check_eq!(file.nrpages(), 0);

        let place = world.take_many(4 * PMD, Order::PTE)?;
        for index in 0..4 * PMD {
            put(&file, index, Order::PTE, place + index, true)?;
        }
        let ((), count) = yields(|| layout::delete_range(mapping, PageRange::ALL))?;
        check!(count >= 4, "worked on: {count} times");
        world.check_clean()
    }

    #[test]
    fn reading_and_writing_give_way() -> Checked {
        let world = world()?;
        let file = world.file(4 * PMD)?;
        let place = world.take_many(4 * PMD, Order::PTE)?;
        file.set_extents(&[TestExtent::mapped(0, 4 * PMD, place)])?;
        let mut bytes = KVVec::from_elem(0x11u8, BYTES, GFP_KERNEL)?;
        let transfer = |buffer: Buffer<'_>| {
            file.transfer(0, 0, buffer, |iocb, iter| {
                io::iomap_rw(iocb, iter, file.ops())
            })
        };
        let (written, count) = yields(|| transfer(Buffer::Write(&bytes)))?;
        check_eq!(written, Ok(BYTES));
        check!(count >= 3, "writing: {count} times");
        let (got, count) = yields(|| transfer(Buffer::Read(&mut bytes)))?;
        check_eq!(got, Ok(BYTES));
        check!(count >= 3, "reading: {count} times");
        let mut zeroed = false;
        let (result, count) =
            yields(|| io::zero_range(file.inode(), 0, BYTES as u64, file.ops(), &mut zeroed))?;
        check_eq!(result, Ok(()));
        check!(count >= 3, "zeroing: {count} times");
        Ok(())
    }

    #[test]
    fn copying_and_comparing_give_way() -> Checked {
        let world = world()?;
        let (a, b) = (world.file(4 * PMD)?, world.file(4 * PMD)?);
        let (old, new) = (
            world.take_many(4 * PMD, Order::PTE)?,
            world.take_many(4 * PMD, Order::PTE)?,
        );
        a.set_extents_for_writing(&[TestExtent::mapped(0, 4 * PMD, new).shared().copy_of(old)])?;
        let (result, count) = yields(|| io::file_unshare(a.inode(), 0, BYTES as u64, a.ops()))?;
        check_eq!(result, Ok(()));
        check!(count >= 3, "unsharing: {count} times");
        a.set_extents(&[TestExtent::mapped(0, 4 * PMD, old)])?;
        b.set_extents(&[TestExtent::mapped(0, 4 * PMD, new)])?;
        let (same, count) = yields(|| {
            io::dedupe_compare(
                &Side {
                    inode: a.inode(),
                    position: 0,
                },
                &Side {
                    inode: b.inode(),
                    position: 0,
                },
                BYTES as u64,
                a.ops(),
            )
        })?;
        check_eq!(same, Ok(true));
        check!(count >= 3, "comparing: {count} times");
        Ok(())
    }

    #[test]
    fn folios_of_1_gib_are_made_and_unmade_in_pieces() -> Checked {
        let world = world()?;
        let Some(place) = place_of(&world, Order::PUD) else {
            return Ok(());
        };
        let file = world.file(Order::PUD.pages())?;
        let (result, count) = yields(|| put(&file, 0, Order::PUD, place, false))?;
        result?;
        check!(count >= Order::PUD.pages() / PMD, "made: {count} times");
        let page = world.page(place);
        let locked = lock(&file, 0, Order::PUD)?;
        let ((), count) = yields(|| disassociate(page))?;
        check!(count >= Order::PUD.pages() / PMD, "unmade: {count} times");
        locked.remove();
        world.check_clean()
    }

    #[test]
    fn unbinding_looks_at_many_folios_in_pieces() -> Checked {
        const PAGES: usize = 20 * PMD;
        let world = world()?;
        let place = world.take_many(PAGES, Order::PTE)?;
        let mut ranges = KVec::new();
        ranges.push(
            MemoryRange {
                index: at(0),
                pfn: world.pfn(place),
                pages: PAGES,
            },
            GFP_KERNEL,
        )?;
        let name = CString::try_from(c"test")?;
        let device = Arc::pin_init(DevDax::new(name, ranges, Order::PTE.bytes()), GFP_KERNEL)?;
        let memory = [world.run(place, PAGES)].into_iter();
        let ((), count) = yields(|| device.wait_until_idle(0, memory.clone()))?;
        check!(count >= PAGES / 4096, "{count} times");
        Ok(())
    }
}
