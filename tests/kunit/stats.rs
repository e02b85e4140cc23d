// SPDX-License-Identifier: GPL-2.0

//! The counters (`docs/guide.md` says what they mean).

use kernel::prelude::*;

#[kunit_tests(rdax_stats)]
mod tests {
    use crate::{
        dax::stats::{Counter, Stats},
        kern::testing::{with_threads, Checked},
    };
    use kernel::prelude::*;

    fn lines(text: &[u8]) -> impl Iterator<Item = &str> {
        core::str::from_utf8(text).unwrap_or("").lines()
    }

    #[test]
    fn counters_begin_at_0_and_add_up_over_all_processors() -> Checked {
        const THREADS: usize = 4;
        const ROUNDS: usize = 20_000;
        let stats = Stats::new()?;
        check_eq!(stats.snapshot().get(Counter::ReadPte), 0);
        let work = |number: usize| {
            for _ in 0..ROUNDS {
                stats.add(Counter::ReadPte, 1);
                stats.add(Counter::DedupeCompares, number as u64);
            }
        };
        with_threads(THREADS, work, |_| ())?;
        let snapshot = stats.snapshot();
        check_eq!(snapshot.get(Counter::ReadPte), (THREADS * ROUNDS) as u64);
        check_eq!(snapshot.get(Counter::DedupeCompares), (6 * ROUNDS) as u64);
        check_eq!(snapshot.get(Counter::ReadPmd), 0);
        Ok(())
    }

    #[test]
    fn each_is_a_line_with_a_name_of_its_own() -> Checked {
        let stats = Stats::new()?;
        stats.add(Counter::LayoutWaitNs, 77);
        let mut buffer = KVec::from_elem(0u8, 4096, GFP_KERNEL)?;
        let len = stats.snapshot().print(&mut buffer)?;
        let text = &buffer[..len];
        let mut counted = 0;
        for (number, line) in lines(text).enumerate() {
            let mut words = line.split(' ');
            let (name, value) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            check!(words.next().is_none());
            check!(!name.is_empty());
            check_eq!(value, if name == "layout_wait_ns" { "77" } else { "0" });
            let same = lines(text)
                .enumerate()
                .any(|(other, line)| other != number && line.split(' ').next() == Some(name));
            check!(!same, "{name} is there twice");
            counted += 1;
        }
        check!(counted > 30);
        let some = [Counter::LayoutWaitNs, Counter::ReadPte];
        let len = stats.snapshot().print_some(&some, &mut buffer)?;
        check!(lines(&buffer[..len]).eq(["layout_wait_ns 77", "read_pte 0"]));
        Ok(())
    }

    #[test]
    fn a_buffer_that_is_too_small_is_an_error() -> Checked {
        let stats = Stats::new()?;
        let mut buffer = [0; 20];
        check_eq!(stats.snapshot().print(&mut buffer), Err(ENOSPC));
        Ok(())
    }
}
