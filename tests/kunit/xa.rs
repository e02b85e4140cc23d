// SPDX-License-Identifier: GPL-2.0

//! The shortcuts within a node, compared with walking down from the root; what may be changed; and the
//! arithmetic of orders.

use kernel::prelude::*;

#[kunit_tests(rdax_xa)]
mod tests {
    use crate::{
        dax::tree,
        kern::{
            entry::Entry,
            fs::PageIndex,
            order::Order,
            testing::{Checked, File, Random},
            xa::{InsertError, Mark, RawValue, Reserve, XaState, NODE_ORDER},
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
                let locked = lock_entry(file.mapping(), at(index), order, dirty);
                if let Ok(locked) = locked {
                    // Data of nobody, which keeps its mark and is only erased.
                    let entry = file.world().any_block(locked.entry().order());
                    locked.set_of_test(entry.map_or(Entry::zero(order), Entry::data));
                }
            }
            index += order.pages();
        }
        Ok(())
    }

    fn erase_all(file: &File<'_>) {
        while let Some(first) = first_entry(file) {
            if let Some(locked) = tree::lock_present(file.mapping(), first) {
                locked.remove();
            }
        }
    }

    fn first_entry(file: &File<'_>) -> Option<PageIndex> {
        let mut guard = file.mapping().tree().lock();
        let mut xas = guard.xas(at(0));
        xas.find(PageIndex::MAX).map(|_| xas.index())
    }

    /// The value that a walk from the root finds, and whether it is marked.
    fn load(file: &File<'_>, index: usize) -> Option<(usize, bool)> {
        let mut guard = file.mapping().tree().lock();
        let mut xas = guard.xas(at(index));
        let value = xas.load()?.word();
        Some((value, xas.has_mark(Mark::Dirty)))
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
    fn a_state_that_is_moved_finds_what_a_walk_from_the_root_finds() -> Checked {
        with_random_trees(|file, random| {
            let tree = file.mapping().tree();
            for _ in 0..300 {
                let (from, to) = (random.below(PAGES), random.below(PAGES + 8));
                let wanted = load(file, to);
                let mut guard = tree.lock();
                let mut xas = guard.xas(at(from));
                xas.load();
                let found = xas.at(at(to)).map(|value| value.word());
                let marked = found.is_some() && xas.has_mark(Mark::Dirty);
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
                let mut guard = tree.lock();
                let mut xas = guard.xas(at(index));
                let here = xas.load().map(|value| value.word());
                let before = xas.before(Mark::Dirty);
                let before = before.map(|(value, marked)| (value.word(), marked));
                let free = xas.is_free_behind();
                let stays = xas.load().map(|value| value.word()) == here;
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

    /// What comes next from where the state is, up to `last`, with its index.
    fn next(
        xas: &mut XaState<'_, '_>,
        last: usize,
        mark: Option<Mark>,
    ) -> Option<(PageIndex, usize)> {
        let raw = match mark {
            Some(mark) => xas.find_marked(at(last), mark)?,
            None => xas.find(at(last))?,
        };
        Some((
            Entry::from_raw(raw).0.order().first(xas.index()),
            raw.word(),
        ))
    }

    #[test]
    fn whoever_goes_on_behind_an_index_finds_what_a_walk_from_the_root_finds() -> Checked {
        with_random_trees(|file, random| {
            let tree = file.mapping().tree();
            for _ in 0..300 {
                let (from, to) = (random.below(PAGES), random.below(PAGES));
                let last = random.below(PAGES);
                let mark = (random.below(2) == 0).then_some(Mark::Dirty);
                let mut guard = tree.lock();
                // Behind a value, or behind one index where there is none.
                let behind = guard
                    .xas(at(to))
                    .load()
                    .map_or(to, |raw| Entry::from_raw(raw).0.order().last(at(to)).get());
                let mut xas = guard.xas(at(behind + 1));
                let wanted = [0; 3].map(|_| next(&mut xas, last, mark));
                let mut xas = guard.xas(at(from));
                xas.load();
                xas.set_behind(at(behind));
                let found = [0; 3].map(|_| next(&mut xas, last, mark));
                drop(guard);
                check_eq!(found, wanted, "{from}, behind {behind}, up to {last}");
            }
            Ok(())
        })
    }

    /// Whether all values of some ranges are found once, one after the other: those with the mark, if any.
    fn all_are_found_once(file: &File<'_>, random: &mut Random, mark: Option<Mark>) -> Checked {
        let tree = file.mapping().tree();
        for _ in 0..20 {
            let first = random.below(PAGES);
            let last = first + random.below(PAGES - first);
            let mut covered = 0;
            let mut behind = first;
            let mut guard = tree.lock();
            let mut xas = guard.xas(at(first));
            let mut wrong = None;
            while let Some((found, _)) = next(&mut xas, last, mark) {
                let order = xas
                    .load()
                    .map_or(Order::PTE, |raw| Entry::from_raw(raw).0.order());
                let found = found.get();
                let end = order.last(at(found)).get() + 1;
                if found < behind && end <= behind || found > last {
                    wrong = Some(found);
                    break;
                }
                behind = end;
                covered += end.min(last + 1) - found.max(first);
            }
            drop(guard);
            check_eq!(wrong, None, "{first} to {last}");
            let wanted = (first..=last)
                .filter(|index| {
                    load(file, *index).is_some_and(|(_, marked)| mark.is_none() || marked)
                })
                .count();
            check_eq!(covered, wanted, "{first} to {last}");
        }
        Ok(())
    }

    #[test]
    fn finding_one_after_the_other_finds_all_once() -> Checked {
        with_random_trees(|file, random| {
            all_are_found_once(file, random, None)?;
            all_are_found_once(file, random, Some(Mark::Dirty))
        })
    }

    #[test]
    fn the_start_of_a_node_is_removed_up_to_what_stays() -> Checked {
        with_random_trees(|file, random| {
            let tree = file.mapping().tree();
            for node in (0..PAGES).step_by(NODE) {
                // One stays because it is locked, another because nobody lets it go.
                let locked = match random.below(2) {
                    0 => None,
                    _ => tree::lock_present(file.mapping(), at(node + random.below(NODE))),
                };
                let stays = node + random.below(2 * NODE);
                let goes = |first: PageIndex, entry: Entry<'_>| {
                    first > at(stays) || entry.order().last(first) < at(stays)
                };
                let there = pages_with(NODE, |page| load(file, node + page).is_some());
                let dirty = pages_with(NODE, |page| {
                    load(file, node + page).is_some_and(|(_, dirty)| dirty)
                });
                // By a walk from the root, up to the first that stays.
                let (mut wanted, mut end, mut all) = (0u64, node, true);
                let mut page = 0;
                while page < NODE {
                    let Some((entry, is_locked)) = look(file, node + page) else {
                        page += 1;
                        continue;
                    };
                    let first = entry.order().first(at(node + page));
                    if entry.order() >= NODE_ORDER || is_locked || !goes(first, entry) {
                        all = false;
                        break;
                    }
                    page += entry.order().pages();
                    end = node + page;
                    wanted |= bits(first.get() - node, page - 1);
                }
                let mut marked = 0;
                let mut guard = tree.lock();
                let mut xas = guard.xas(at(node));
                xas.load();
                let goes_noted = |first: PageIndex, raw: RawValue<'_>, dirty: bool| {
                    let (entry, _) = Entry::from_raw(raw);
                    if dirty && goes(first, entry) {
                        let last = entry.order().last(first).get();
                        marked |= bits(first.get() - node, last - node);
                    }
                    goes(first, entry)
                };
                let any = xas.erase_in_node(Mark::Dirty, goes_noted, drop);
                let index = xas.index();
                file.mapping()
                    .sub_pages(&guard, wanted.count_ones() as usize);
                drop(guard);
                let left = pages_with(NODE, |page| load(file, node + page).is_some());
                check_eq!(any, wanted != 0, "node {node}");
                check_eq!(left, there & !wanted, "node {node}");
                check_eq!(marked, dirty & wanted, "node {node}");
                if any {
                    let end = if all { node + NODE } else { end };
                    check_eq!(index, at(end), "node {node}");
                }
                drop(locked);
            }
            Ok(())
        })
    }

    #[test]
    fn what_is_there_is_not_stored_over() -> Checked {
        with_random_trees(|file, _| {
            let tree = file.mapping().tree();
            for bits in 0..=NODE_ORDER.bits() + 1 {
                let order = Order::from_bits(bits);
                for index in (0..PAGES).step_by(order.pages()) {
                    let taken =
                        (index..index + order.pages()).any(|page| load(file, page).is_some());
                    let before = load(file, index);
                    let mut guard = tree.lock();
                    let mut xas = guard.xas(at(index));
                    xas.load();
                    let value = Entry::empty(order).locked();
                    let result = xas.insert(value, &mut Reserve::none());
                    let occupied = match result {
                        Ok(mut slot) => {
                            let inserted = guard.xas(at(index)).load().map(|value| value.word());
                            let mut xas = guard.xas(at(0));
                            let erased = xas.erase_locked(&mut slot);
                            drop(guard);
                            check!(erased && inserted == Some(value.word()));
                            false
                        }
                        Err(error) => {
                            drop(guard);
                            error == InsertError::Occupied
                        }
                    };
                    check!(!occupied || taken, "order {bits} at {index}");
                    check!(!taken || occupied, "order {bits} at {index}");
                    check_eq!(load(file, index), before, "order {bits} at {index}");
                }
            }
            Ok(())
        })
    }

    #[test]
    fn a_locked_value_is_its_tokens_only() -> Checked {
        let world = world()?;
        let (file, other) = (world.file(PAGES)?, world.file(PAGES)?);
        let (tree, others) = (file.mapping().tree(), other.mapping().tree());
        let empty = Entry::empty(Order::PTE);
        for index in [0, 1, NODE] {
            let mut guard = tree.lock();
            let mut xas = guard.xas(at(index));
            let Ok(mut slot) = xas.insert(empty.locked(), &mut Reserve::none()) else {
                // No memory without patience.
                continue;
            };
            let locked_twice = xas.lock().is_some();
            let erased = xas.erase(drop);
            drop(guard);
            check!(!locked_twice && !erased);
            // Under the lock of another tree it is nothing.
            let mut guard = others.lock();
            let unlocked = slot.unlock(&guard);
            let removed = guard.xas(at(index)).erase_locked(&mut slot);
            let found = slot.xas(&mut guard).is_some();
            drop(guard);
            check!(!unlocked && !removed && !found);
            check!(look(&file, index) == Some((empty, true)));
            let mut guard = tree.lock();
            let unlocked = slot.unlock(&guard);
            // It is used up.
            let again = slot.unlock(&guard);
            let mut xas = guard.xas(at(index));
            let removed = xas.erase_locked(&mut slot);
            let erased = xas.load().is_some() && xas.erase(drop);
            drop(guard);
            check!(unlocked && !again && !removed && erased);
            check!(look(&file, index).is_none());
        }
        Ok(())
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
