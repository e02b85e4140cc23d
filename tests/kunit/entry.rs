// SPDX-License-Identifier: GPL-2.0

//! The packed entry (spec, section 3).

use kernel::prelude::*;

#[kunit_tests(rdax_entry)]
mod tests {
    use crate::kern::{
        entry::Entry,
        order::Order,
        testing::{Checked, MadeUpEntry, MadeUpKind, Random},
    };

    /// The largest frame number that there is room for: a machine with 52 bits of physical address has
    /// fewer.
    const LAST_PFN: usize = (1 << 42) - 1;
    /// What `cachestat` takes for a NUMA node, in the kernel for the most nodes.
    const NODE: usize = 0x3ff << 2;
    const ORDERS: usize = Order::PUD.bits() + 1;
    const ROUNDS: usize = 5000;

    /// One of the three kinds.
    fn kind(number: usize, pfn: usize) -> MadeUpKind {
        match number % 3 {
            0 => MadeUpKind::Empty,
            1 => MadeUpKind::Zero,
            _ => MadeUpKind::Data(pfn),
        }
    }

    /// The same entry with some of its three marks, by the bits of a number.
    fn marked(plain: MadeUpEntry, marks: usize) -> MadeUpEntry {
        let made = if marks & 1 != 0 {
            plain.writable()
        } else {
            plain
        };
        let made = if marks & 2 != 0 { made.fresh() } else { made };
        if marks & 4 != 0 {
            made.ahead()
        } else {
            made
        }
    }

    fn same_everywhere(number: usize, pfn: usize, order: Order, marks: usize) -> Checked {
        let kind = kind(number, pfn);
        let plain = MadeUpEntry::new(kind, order);
        let made = marked(plain, marks);
        for (word, locked) in [(made.locked(), true), (made.unlocked(), false)] {
            check!(word & 1 == 1, "{word:#x} is no value for an XArray");
            check_eq!(word & NODE, 0, "{word:#x} is of another NUMA node");
            let (read, is_locked) = MadeUpEntry::from_word(word);
            check_eq!(is_locked, locked);
            check!(read == made);
            check!(read.kind() == kind, "order {order:?} pfn {pfn:#x}");
            check_eq!(read.order(), order);
            check_eq!(read.is_writable(), marks & 1 != 0);
            check_eq!(read.is_fresh(), marks & 2 != 0);
            check_eq!(read.is_ahead(), marks & 4 != 0);
            check!(read.protected() == marked(plain, marks & 3));
        }
        // The lock is one bit, and not part of the entry.
        check_eq!((made.locked() ^ made.unlocked()).count_ones(), 1);
        Ok(())
    }

    #[test]
    fn unpacked_is_what_was_packed() -> Checked {
        let mut random = Random::new(0x0072_6461_7865_6e74);
        for _ in 0..ROUNDS {
            let order = Order::from_bits(random.below(ORDERS));
            let pfn = random.next() as usize & LAST_PFN & !(order.pages() - 1);
            let kind = random.below(3);
            same_everywhere(kind, pfn, order, random.below(8))?;
        }
        Ok(())
    }

    #[test]
    fn limits_of_pfn_and_order_are_kept() -> Checked {
        for order in 0..ORDERS {
            let order = Order::from_bits(order);
            for pfn in [0, 1, order.pages(), (1 << 40) - 1, LAST_PFN - 1, LAST_PFN] {
                for number in 0..24 {
                    same_everywhere(number / 8, pfn, order, number % 8)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn entries_that_differ_have_words_that_differ() -> Checked {
        let mut random = Random::new(0x0077_6f72_6473);
        for _ in 0..ROUNDS {
            let of = |random: &mut Random| {
                let order = Order::from_bits(random.below(ORDERS));
                // Few frames, so that everything else is often what differs.
                let kind = kind(random.below(3), random.below(4));
                let entry = MadeUpEntry::new(kind, order);
                let marks = random.below(8);
                let locked = random.below(2) == 1;
                let entry = marked(entry, marks);
                let raw = if locked {
                    entry.locked()
                } else {
                    entry.unlocked()
                };
                (raw, kind, order, marks, locked)
            };
            let (a, b) = (of(&mut random), of(&mut random));
            let same = a.1 == b.1 && a.2 == b.2 && a.3 == b.3 && a.4 == b.4;
            check_eq!(a.0 == b.0, same, "{:#x} and {:#x}", a.0, b.0);
        }
        Ok(())
    }

    #[test]
    fn only_data_has_a_page() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            check!(Entry::empty(order).page().is_none());
            check!(Entry::zero(order).page().is_none());
        }
        Ok(())
    }

    #[test]
    fn an_index_belongs_to_the_stretch_of_its_order() -> Checked {
        use crate::kern::fs::PageIndex;
        let mut random = Random::new(0x6964_7800);
        for _ in 0..ROUNDS {
            let order = Order::from_bits(random.below(ORDERS));
            let index = PageIndex::new(random.next() as usize & PageIndex::MAX.get());
            let (first, last) = (order.first(index), order.last(index));
            check!(first <= index && index <= last);
            check_eq!(first.get() % order.pages(), 0);
            check_eq!(last.get() - first.get() + 1, order.pages());
        }
        Ok(())
    }
}
