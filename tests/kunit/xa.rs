// SPDX-License-Identifier: GPL-2.0

//! The cursor's shortcuts within a node, compared with walking down from the root, and the
//! arithmetic of orders.

use kernel::prelude::*;

#[kunit_tests(rdax_xa)]
mod tests {
    use crate::{
        dax::entry::Entry,
        kern::{
            fs::PageIndex,
            order::Order,
            testing::{Checked, File, Random},
            xa::{Cursor, Mark, RawValue, NODE_ORDER},
        },
        tests::helpers::*,
    };

    const NODE: usize = NODE_ORDER.pages();
    const PAGES: usize = 4 * NODE;

    /// Entries of many orders with gaps between them, some marked.
    fn random_tree(file: &File<'_>, random: &mut Random, largest: usize) -> Checked {
        let mut index = 0;
        while index < PAGES {
            let order = Order::from_bits(random.below(largest + 1)).fitting(index, PAGES - index);
            if random.below(3) != 0 {
                let dirty = random.below(2) == 0;
                let locked = grab_entry(file.mapping(), at(index), order, dirty);
                if let Ok(mut locked) = locked {
                    // Data of nobody, which keeps its mark and is only erased.
                    locked.set(Entry::data(
                        crate::kern::page::Pfn::from_bits(1 << 20),
                        order,
                    ));
                }
            }
            index += order.pages();
        }
        Ok(())
    }

    fn erase_all(file: &File<'_>) {
        while let Some(first) = first_entry(file) {
            if let Some(locked) = crate::dax::tree::lock_present(file.mapping(), first) {
                locked.remove();
            }
        }
    }

    fn first_entry(file: &File<'_>) -> Option<PageIndex> {
        let tree = file.mapping().tree();
        let guard = tree.lock();
        let mut cursor = Cursor::new(tree, at(0));
        cursor.find(&guard, PageIndex::MAX).map(|_| cursor.index())
    }

    /// What a walk from the root finds, and whether it is marked.
    fn load(file: &File<'_>, index: usize) -> Option<(RawValue, bool)> {
        let tree = file.mapping().tree();
        let guard = tree.lock();
        let mut cursor = Cursor::new(tree, at(index));
        let value = cursor.load(&guard)?;
        Some((value, cursor.has_mark(&guard, Mark::Dirty)))
    }

    fn with_random_trees(work: impl Fn(&File<'_>, &mut Random) -> Checked) -> Checked {
        let world = world()?;
        let mut random = Random::new(0x7861_7272);
        for largest in [0, 0, 2, 3, 5, 6, 7] {
            let file = world.file(PAGES)?;
            random_tree(&file, &mut random, largest)?;
            let result = work(&file, &mut random);
            erase_all(&file);
            check_eq!(file.nrpages(), 0);
            result?;
        }
        Ok(())
    }

    #[test]
    fn a_cursor_that_is_moved_finds_what_a_walk_from_the_root_finds() -> Checked {
        with_random_trees(|file, random| {
            let tree = file.mapping().tree();
            for _ in 0..300 {
                let (from, to) = (random.below(PAGES), random.below(PAGES + 8));
                let wanted = load(file, to);
                let guard = tree.lock();
                let mut cursor = Cursor::new(tree, at(from));
                cursor.load(&guard);
                let found = cursor.at(&guard, at(to));
                let marked = found.is_some() && cursor.has_mark(&guard, Mark::Dirty);
                drop(guard);
                check_eq!(found.map(|value| (value, marked)), wanted, "{from} to {to}");
            }
            Ok(())
        })
    }

    #[test]
    fn what_is_before_and_behind_is_what_a_walk_finds_there() -> Checked {
        with_random_trees(|file, _| {
            let tree = file.mapping().tree();
            for index in 0..PAGES {
                let wanted = index.checked_sub(1).and_then(|before| load(file, before));
                let behind = load(file, index + 1);
                let guard = tree.lock();
                let mut cursor = Cursor::new(tree, at(index));
                let here = cursor.load(&guard);
                let before = cursor.before(&guard, Mark::Dirty);
                let free = cursor.is_free_behind(&guard);
                let stays = cursor.load(&guard) == here;
                drop(guard);
                check_eq!(before, wanted, "before {index}");
                // Of another node it does not tell; nor within a larger entry.
                if here.is_none() && index % NODE != NODE - 1 {
                    check!(free || behind.is_some(), "behind {index}");
                    check!(!free || behind.is_none(), "behind {index}");
                }
                check!(stays);
            }
            Ok(())
        })
    }

    #[test]
    fn finding_one_after_the_other_finds_all_once() -> Checked {
        with_random_trees(|file, random| {
            let tree = file.mapping().tree();
            for _ in 0..20 {
                let first = random.below(PAGES);
                let last = first + random.below(PAGES - first);
                let mut covered = 0;
                let mut next = first;
                let guard = tree.lock();
                let mut cursor = Cursor::new(tree, at(first));
                let mut wrong = None;
                while let Some(raw) = cursor.find(&guard, at(last)) {
                    let order = Entry::from_raw(raw).0.order();
                    let found = order.first(cursor.index()).get();
                    if found < next && order.last(cursor.index()).get() < next || found > last {
                        wrong = Some(found);
                        break;
                    }
                    next = order.last(cursor.index()).get() + 1;
                    covered += next.min(last + 1) - found.max(first);
                }
                drop(guard);
                check_eq!(wrong, None, "{first} to {last}");
                let wanted = (first..=last)
                    .filter(|index| load(file, *index).is_some())
                    .count();
                check_eq!(covered, wanted, "{first} to {last}");
            }
            Ok(())
        })
    }

    #[test]
    fn a_node_is_visited_whole() -> Checked {
        with_random_trees(|file, _| {
            let tree = file.mapping().tree();
            for node in (0..PAGES).step_by(NODE) {
                let (mut visited, mut marked, mut entries) = (0u64, 0u64, 0);
                let guard = tree.lock();
                let mut cursor = Cursor::new(tree, at(node));
                cursor.load(&guard);
                let all = cursor.visit_node(&guard, Mark::Dirty, |index, raw, dirty| {
                    let order = Entry::from_raw(raw).0.order();
                    for page in index.get()..=order.last(index).get() {
                        visited |= 1u64.checked_shl((page - node) as u32).unwrap_or(0);
                        if dirty {
                            marked |= 1u64.checked_shl((page - node) as u32).unwrap_or(0);
                        }
                    }
                    entries += 1;
                    true
                });
                // It can be ended.
                let mut seen = 0;
                let ended = cursor.visit_node(&guard, Mark::Dirty, |_, _, _| {
                    seen += 1;
                    seen < 2
                });
                drop(guard);
                let Some(all) = all else {
                    // No node of single pages: nothing is there, or one large entry.
                    let large = load(file, node)
                        .is_some_and(|(raw, _)| Entry::from_raw(raw).0.order() >= NODE_ORDER);
                    let empty = (node..node + NODE).all(|page| load(file, page).is_none());
                    check!(large || empty);
                    continue;
                };
                check!(all);
                check_eq!(
                    visited,
                    pages_with(NODE, |page| load(file, node + page).is_some())
                );
                check_eq!(
                    marked,
                    pages_with(NODE, |page| load(file, node + page)
                        .is_some_and(|(_, dirty)| dirty))
                );
                check_eq!(ended, Some(entries < 2));
                check_eq!(seen, entries.min(2));
            }
            Ok(())
        })
    }

    #[test]
    fn room_for_a_larger_entry_is_where_nothing_is() -> Checked {
        with_random_trees(|file, _| {
            let tree = file.mapping().tree();
            for bits in 0..NODE_ORDER.bits() {
                let order = Order::from_bits(bits);
                for index in (0..PAGES).step_by(order.pages()) {
                    let taken =
                        (index..index + order.pages()).any(|page| load(file, page).is_some());
                    let guard = tree.lock();
                    let mut cursor = Cursor::new(tree, at(index));
                    if cursor.load(&guard).is_some() {
                        continue;
                    }
                    let free = cursor.widen(&guard, order);
                    cursor.narrow();
                    drop(guard);
                    // Nobody knows of a node that is not there; a page alone needs none.
                    check!(!free || !taken, "order {bits} at {index}");
                    let node = index & !(NODE - 1);
                    let whole = (node..node + NODE).all(|page| load(file, page).is_none());
                    check!(free || taken || whole, "order {bits} at {index}");
                }
            }
            Ok(())
        })
    }

    #[test]
    fn the_order_that_fits_is_the_largest() -> Checked {
        for limit in 0..=18 {
            for index in [
                0,
                1,
                2,
                3,
                4,
                6,
                8,
                24,
                511,
                512,
                1 << 17,
                1 << 18,
                3 << 18,
                1 << 40,
            ] {
                for pages in [
                    1,
                    2,
                    3,
                    4,
                    5,
                    7,
                    8,
                    9,
                    511,
                    512,
                    513,
                    1 << 18,
                    (1 << 18) - 1,
                    1 << 30,
                ] {
                    let fitting = Order::from_bits(limit).fitting(index, pages);
                    let fits = |bits: usize| {
                        bits <= limit && index % (1 << bits) == 0 && 1 << bits <= pages
                    };
                    let wanted = (0..=18).rev().find(|bits| fits(*bits));
                    check_eq!(Some(fitting.bits()), wanted, "{index}, {pages}, {limit}");
                }
            }
        }
        Ok(())
    }
}
