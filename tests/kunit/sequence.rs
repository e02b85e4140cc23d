// SPDX-License-Identifier: GPL-2.0

//! Recognising writes in sequence (spec, section 10).

use kernel::prelude::*;

#[kunit_tests(rdax_sequence)]
mod tests {
    use crate::{
        dax::sequence,
        kern::{order::Order, testing::Checked},
        tests::helpers::*,
    };

    const PMD: usize = Order::PMD.pages();

    #[test]
    fn a_little_further_on_is_next() -> Checked {
        let world = world()?;
        let file = world.file(2 * PMD)?;
        let is_next = |index: usize| sequence::is_next(file.mapping(), at(index), 16);
        // Another file may have been where this one is.
        is_next(PMD - 1);
        check!(!is_next(100));
        for step in [1, 1, 2, 15, 16] {
            let mut index = 100;
            is_next(index);
            for _ in 0..4 {
                index += step;
                check!(is_next(index), "{step} pages on");
            }
        }
        for (from, to) in [
            (100, 100),
            (100, 99),
            (100, 117),
            (100, 200),
            (300, 0),
            (0, 100),
        ] {
            is_next(from);
            check!(!is_next(to), "{to} after {from}");
        }
        Ok(())
    }

    #[test]
    fn each_2_mib_has_a_sequence_of_its_own() -> Checked {
        let world = world()?;
        let file = world.file(2 * PMD)?;
        let is_next = |index: usize| sequence::is_next(file.mapping(), at(index), 16);
        is_next(PMD + 300);
        is_next(PMD - 1);
        check!(!is_next(PMD));
        check!(is_next(PMD + 1));
        Ok(())
    }

    #[test]
    fn each_file_has_a_sequence_of_its_own() -> Checked {
        let world = world()?;
        let files = [(); 9].map(|()| world.file(PMD));
        let first = files.first().and_then(|file| file.as_ref().ok());
        // Two files may happen to be remembered in the same place, but hardly all of them.
        let kept = files.iter().flatten().filter(|file| {
            let turn = |index: usize| {
                let both = [first, Some(file)].into_iter().flatten();
                both.filter(|file| sequence::is_next(file.mapping(), at(index), 16))
                    .count()
            };
            turn(100);
            (101..105).all(|index| turn(index) == 2)
        });
        check!(kept.count() > 1);
        Ok(())
    }
}
