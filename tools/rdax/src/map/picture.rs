// SPDX-License-Identifier: GPL-2.0

//! A picture of a file in blocks.

use super::Mapped;
use crate::{
    ask::Answer,
    size::{amount, PAGE},
    uapi::{kind, MapRecord}, //
};

/// What the signs of a picture are for.
const LEGEND: [&str; 6] = [
    "mapped by 1 GiB",
    "2 MiB",
    "4 KiB",
    "held, not mapped",
    "hole",
    "not touched",
];

/// The signs, in this order.
pub(super) type Signs = [char; 6];

pub(super) const BLOCKS: Signs = ['█', '▓', '▒', '░', '_', '·'];

/// Those that every terminal has.
const LETTERS: Signs = ['#', '=', '-', 'o', '_', '.'];

/// What the locale's terminal shows.
pub(super) fn signs(variable: impl Fn(&str) -> Option<String>) -> &'static Signs {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| variable(name).filter(|value| !value.is_empty()));
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    match locale.contains("utf-8") || locale.contains("utf8") {
        true => &BLOCKS,
        false => &LETTERS,
    }
}

/// How wide a picture is on a terminal of so many columns.
pub(super) fn width(columns: Option<usize>) -> usize {
    const MOST: usize = 64;
    columns.unwrap_or(MOST).clamp(8, MOST)
}

fn sign(record: &MapRecord, signs: &Signs) -> char {
    let [pud, pmd, pages, held, hole, untouched] = *signs;
    match (record.kind, Mapped::of(record)) {
        (kind::DATA, Mapped::Pud) => pud,
        (kind::DATA, Mapped::Pmd) => pmd,
        (kind::DATA, Mapped::Pages) => pages,
        (kind::DATA, Mapped::Not) => held,
        (kind::HOLE, _) => hole,
        _ => untouched,
    }
}

/// The file in blocks, each as most of its part is: lines of `width`, of at most `most` blocks together.
pub(super) fn picture(answer: &Answer, width: usize, most: usize, signs: &Signs) -> String {
    let all = answer.size.next_multiple_of(PAGE);
    if all == 0 || width == 0 {
        return String::new();
    }
    let most = most.max(1) as u64;
    // A block is a power of two, so that what is large is not cut by them.
    let block = all.div_ceil(most).next_power_of_two().max(PAGE);
    let mut text = String::new();
    let mut records = answer.records.iter().peekable();
    let mut at = 0;
    let mut column = 0;
    while at < all {
        let end = at + block;
        let mut shares: Vec<(char, u64)> = Vec::new();
        // Ends: each turn is for the next record, or is the last.
        while let Some(record) = records.peek() {
            let (from, to) = (
                record.offset.max(at),
                (record.offset + record.length).min(end),
            );
            if from < to {
                let sign = sign(record, signs);
                match shares.iter_mut().find(|(known, _)| *known == sign) {
                    Some((_, bytes)) => *bytes += to - from,
                    None => shares.push((sign, to - from)),
                }
            }
            if record.offset + record.length > end {
                break;
            }
            records.next();
        }
        let most = shares.iter().max_by_key(|(_, bytes)| *bytes);
        text.push(most.map_or(signs[5], |(sign, _)| *sign));
        at = end;
        column += 1;
        if column == width || at >= all {
            text.push('\n');
            column = 0;
        }
    }
    let legend: Vec<String> = signs
        .iter()
        .zip(LEGEND)
        .filter(|(sign, _)| text.contains(**sign))
        .map(|(sign, what)| format!("{sign} {what}"))
        .collect();
    format!("{text}{} each; {}\n", amount(block), legend.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::data, *};
    use crate::size::MIB;

    #[test]
    fn pictures() {
        let answer = Answer {
            size: 8 * MIB,
            max_order: 18,
            records: vec![
                data(0, 4 * MIB, 9, 1, 1),
                data(4 * MIB, MIB, 0, 1, 0),
                data(5 * MIB, MIB, 0, 0, 0),
                MapRecord {
                    offset: 6 * MIB,
                    length: 2 * MIB,
                    ..MapRecord::default()
                },
            ],
        };
        assert_eq!(
            picture(&answer, 4, 8, &BLOCKS),
            "▓▓▓▓\n▒░··\n1 MiB each; ▓ 2 MiB, ▒ 4 KiB, ░ held, not mapped, · not touched\n"
        );
        assert_eq!(
            picture(&answer, 4, 8, &LETTERS),
            "====\n-o..\n1 MiB each; = 2 MiB, - 4 KiB, o held, not mapped, . not touched\n"
        );
        assert_eq!(picture(&Answer::default(), 4, 8, &BLOCKS), "");
    }

    #[test]
    fn a_picture_is_not_wider_than_the_terminal() {
        let columns = [None, Some(200), Some(40), Some(1)];
        assert_eq!(columns.map(width), [64, 64, 40, 8]);
    }

    #[test]
    fn signs_are_what_the_terminal_has() {
        let chosen = |set: &[(&str, &str)]| {
            signs(|name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(chosen(&[("LANG", "de_DE.UTF-8")]), &BLOCKS);
        assert_eq!(chosen(&[("LANG", "C"), ("LC_CTYPE", "C.utf8")]), &BLOCKS);
        assert_eq!(chosen(&[("LC_ALL", ""), ("LANG", "C.UTF-8")]), &BLOCKS);
        assert_eq!(chosen(&[("LC_ALL", "C"), ("LANG", "C.UTF-8")]), &LETTERS);
        assert_eq!(chosen(&[("LANG", "de_DE")]), &LETTERS);
        assert_eq!(chosen(&[]), &LETTERS);
        assert!(LETTERS.iter().all(char::is_ascii));
    }
}
