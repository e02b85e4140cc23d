// SPDX-License-Identifier: GPL-2.0

//! `rdax map`: how a file is held and mapped, and why not by more.

mod picture;
mod reasons;

use self::{
    picture::{picture, signs, Signs},
    reasons::{obstacles, reasons, REASONS}, //
};
use crate::{
    ask::{self, Answer, Module},
    cli::{self, MaxOrder},
    output,
    processes::{self, Process, Unclear, Users, Wanted},
    size::{amount, PAGE, PMD, PUD},
    system::System,
    table,
    uapi::{flag, kind, MapRecord}, //
};
use anyhow::Result;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    env,
    io::{self, IsTerminal},
    path::Path,
    process::ExitCode, //
};

/// What a part of a file is mapped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mapped {
    Not,
    Pages,
    Pmd,
    Pud,
}

impl Mapped {
    /// Of a record, by all that map it: the smallest.
    fn of(record: &MapRecord) -> Self {
        if record.maps == 0 {
            Self::Not
        } else if record.maps > record.whole {
            Self::Pages
        } else if bytes_of(record.order) >= PUD {
            Self::Pud
        } else {
            Self::Pmd
        }
    }

    const ALL: [Self; 4] = [Self::Not, Self::Pages, Self::Pmd, Self::Pud];

    /// In JSON: sizes of entries have the words of `max_order`.
    fn word(self) -> &'static str {
        match self {
            Self::Not => "none",
            Self::Pages => MaxOrder::Pte.name(),
            Self::Pmd => MaxOrder::Pmd.name(),
            Self::Pud => MaxOrder::Pud.name(),
        }
    }

    /// For people.
    fn name(self) -> &'static str {
        match self {
            Self::Not => "not mapped",
            Self::Pages => "4 KiB",
            Self::Pmd => "2 MiB",
            Self::Pud => "1 GiB",
        }
    }
}

fn bytes_of(order: u32) -> u64 {
    PAGE.checked_shl(order).unwrap_or(u64::MAX)
}

/// What a part of the file is held as, for people.
fn held(record: &MapRecord) -> String {
    match record.kind {
        kind::UNTOUCHED => "not touched".to_owned(),
        kind::EMPTY => "touched, nothing found".to_owned(),
        kind::HOLE => format!("hole, {}", amount(bytes_of(record.order))),
        _ => amount(bytes_of(record.order)),
    }
}

/// Numbers of bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    /// By what the file is held as, in the order of the first of each.
    held: Vec<(String, Held)>,
    mapped: BTreeMap<Mapped, u64>,
    /// Of what size, why not, and of how much.
    reasons: Vec<(u64, u32, u64)>,
    dirty: u64,
    shared: u64,
    used: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    bytes: u64,
    mapped: u64,
    dirty: u64,
    /// Memory that somebody refers to other than by mappings.
    used: u64,
    most_maps: u32,
}

impl Sums {
    fn of(answer: &Answer) -> Self {
        let mut sums = Self::default();
        for record in &answer.records {
            let name = held(record);
            let at = sums.held.iter().position(|(known, _)| *known == name);
            let at = at.unwrap_or_else(|| {
                sums.held.push((name, Held::default()));
                sums.held.len() - 1
            });
            let dirty = if record.flags & flag::DIRTY != 0 {
                record.length
            } else {
                0
            };
            let used = if record.references != 0 {
                record.length
            } else {
                0
            };
            if let Some((_, held)) = sums.held.get_mut(at) {
                held.bytes += record.length;
                held.mapped += if record.maps != 0 { record.length } else { 0 };
                held.dirty += dirty;
                held.used += used;
                held.most_maps = held.most_maps.max(record.maps);
            }
            sums.dirty += dirty;
            sums.used += used;
            sums.shared += if record.flags & flag::SHARED != 0 {
                record.length
            } else {
                0
            };
            *sums.mapped.entry(Mapped::of(record)).or_default() += record.length;
        }
        for size in [PMD, PUD] {
            if size > answer.size {
                continue;
            }
            for (bit, ..) in REASONS {
                let concerned = answer
                    .records
                    .iter()
                    .filter(|record| obstacles(record, size) & bit != 0);
                let bytes: u64 = concerned.map(|record| record.length).sum();
                if bytes != 0 {
                    sums.reasons.push((size, bit, bytes));
                }
            }
        }
        sums
    }
}

/// How much of the file is not mapped by entries of `size` alone.
fn missing(answer: &Answer, size: u64) -> u64 {
    let all = answer.size.next_multiple_of(PAGE);
    let as_wanted = answer.records.iter().filter(|record| {
        let mapped = Mapped::of(record);
        mapped == Mapped::Pud || mapped == Mapped::Pmd && size <= PMD
    });
    all.saturating_sub(as_wanted.map(|record| record.length).sum())
}

/// The table of what the file is held as.
fn summary(sums: &Sums) -> String {
    let some = |bytes: u64| {
        if bytes == 0 {
            "-".to_owned()
        } else {
            amount(bytes)
        }
    };
    let rows = sums.held.iter().map(|(name, held)| {
        vec![
            name.clone(),
            amount(held.bytes),
            some(held.mapped),
            held.most_maps.to_string(),
            some(held.dirty),
            some(held.used),
        ]
    });
    let header = ["HELD BY", "SIZE", "MAPPED", "TIMES", "DIRTY", "IN USE"];
    table::plain(&header, &[1, 2, 3, 4, 5], rows.collect())
}

fn details(records: &[MapRecord]) -> String {
    let rows = records.iter().map(|record| {
        let mut flags = Vec::new();
        for (bit, name) in [
            (flag::DIRTY, "dirty"),
            (flag::SHARED, "shared"),
            (flag::LOCKED, "locked"),
        ] {
            if record.flags & bit != 0 {
                flags.push(name.to_owned());
            }
        }
        if record.references != 0 {
            flags.push(format!("{} references", record.references));
        }
        let at = match record.physical {
            0 => "-".to_owned(),
            address => format!("{address:#x}"),
        };
        vec![
            format!("{:#x}", record.offset),
            amount(record.length),
            held(record),
            Mapped::of(record).name().to_owned(),
            record.maps.to_string(),
            at,
            flags.join(","),
            reasons(record.why | record.why_mapped).join(","),
        ]
    });
    let header = [
        "OFFSET",
        "SIZE",
        "HELD BY",
        "MAPPED BY",
        "TIMES",
        "PHYSICAL",
        "STATE",
        "NOT LARGER FOR",
    ];
    table::plain(&header, &[1, 4], rows.collect())
}

/// A line for each mapping of each process. Anybody may have tens of thousands: of a process all are shown with
/// `verbose` alone.
fn mappings(users: &Users, verbose: bool) -> String {
    const MOST: usize = 16;
    let most = if verbose { usize::MAX } else { MOST };
    let (mut rows, mut more) = (Vec::new(), String::new());
    for Process {
        pid,
        name,
        mappings,
        ..
    } in &users.processes
    {
        for vma in mappings.iter().take(most) {
            rows.push(vec![
                pid.to_string(),
                name.clone(),
                format!("{:#x}", vma.address),
                amount(vma.length),
                format!("{:#x}", vma.offset),
                if vma.private { "private" } else { "shared" }.to_owned(),
                amount(vma.largest()),
            ]);
        }
        if let Some(rest) = mappings.get(most..).filter(|rest| !rest.is_empty()) {
            let bytes = rest.iter().map(|vma| vma.length).sum();
            more += &format!(
                "({} more mappings of {} ({pid}), of {}: -v shows them)\n",
                rest.len(),
                output::harmless(name, &[]),
                amount(bytes)
            );
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let header = ["PID", "NAME", "ADDRESS", "SIZE", "OFFSET", "KIND", "UP TO"];
    table::plain(&header, &[0, 3], rows) + &more
}

#[derive(Serialize)]
struct Range {
    offset: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    physical: Option<u64>,
    held: &'static str,
    /// In bytes; what one entry covers.
    entry: u64,
    dirty: bool,
    shared: bool,
    references: u32,
    mappings: u32,
    whole_mappings: u32,
    why: Vec<&'static str>,
    why_mapped: Vec<&'static str>,
}

#[derive(Serialize)]
struct Report<'a> {
    file: String,
    size: u64,
    max_order: &'static str,
    /// Bytes by what they are mapped by, all of these.
    mapped: BTreeMap<&'static str, u64>,
    dirty: u64,
    shared: u64,
    in_use: u64,
    ranges: Vec<Range>,
    processes: &'a [Process],
    /// Those of which it cannot be seen whether an io_uring has it.
    unclear_processes: &'a [Unclear],
    hidden_processes: usize,
}

fn range(record: &MapRecord) -> Range {
    Range {
        offset: record.offset,
        length: record.length,
        physical: Some(record.physical).filter(|&address| address != 0),
        held: match record.kind {
            kind::UNTOUCHED => "untouched",
            kind::EMPTY => "empty",
            kind::HOLE => "hole",
            _ => "data",
        },
        entry: match record.kind {
            kind::UNTOUCHED => 0,
            _ => bytes_of(record.order),
        },
        dirty: record.flags & flag::DIRTY != 0,
        shared: record.flags & flag::SHARED != 0,
        references: record.references,
        mappings: record.maps,
        whole_mappings: record.whole,
        why: reasons(record.why),
        why_mapped: reasons(record.why_mapped),
    }
}

/// All that is to be said, for people.
fn text(
    path: &Path,
    answer: &Answer,
    users: &Users,
    verbose: bool,
    picture_of: Option<(usize, &Signs)>,
) -> String {
    let sums = Sums::of(answer);
    let mut text = format!(
        "{}: {}, max_order {}\n",
        output::shown(path),
        amount(answer.size),
        amount(bytes_of(answer.max_order))
    );
    if let Some((width, signs)) = picture_of {
        text += &picture(answer, width, 8 * width, signs);
    }
    text += "\n";
    text += &summary(&sums);
    let mapped: Vec<String> = sums
        .mapped
        .iter()
        .rev()
        .map(|(by, bytes)| match by {
            Mapped::Not => format!("{} {}", amount(*bytes), by.name()),
            _ => format!("{} by {}", amount(*bytes), by.name()),
        })
        .collect();
    if !mapped.is_empty() {
        text += &format!("\nmapped: {}\n", mapped.join(", "));
    }
    let mut last = 0;
    for (size, bit, bytes) in &sums.reasons {
        if *size != last {
            text += &format!("\nwhy not by {}:\n", amount(*size));
            last = *size;
        }
        for (_, name, what, advice) in REASONS.iter().filter(|(known, ..)| known == bit) {
            text += &format!("{name} ({}): {what}\n", amount(*bytes));
            if !advice.is_empty() {
                text += &format!("  {advice}\n");
            }
        }
    }
    if verbose {
        text += "\n";
        text += &details(&answer.records);
    }
    let mappings = mappings(users, verbose);
    if !mappings.is_empty() {
        text += "\n";
        text += &mappings;
    }
    text.extend(users.unclear.iter().map(Unclear::text));
    if users.hidden != 0 {
        text += &format!("({} processes may not be looked at)\n", users.hidden);
    }
    text
}

fn report<'a>(path: &Path, answer: &Answer, users: &'a Users) -> Report<'a> {
    let sums = Sums::of(answer);
    let bytes = |by: Mapped| (by.word(), sums.mapped.get(&by).copied().unwrap_or(0));
    Report {
        file: path.display().to_string(),
        size: answer.size,
        max_order: MaxOrder::of(bytes_of(answer.max_order)).name(),
        mapped: Mapped::ALL.map(bytes).into(),
        dirty: sums.dirty,
        shared: sums.shared,
        in_use: sums.used,
        ranges: answer.records.iter().map(range).collect(),
        processes: &users.processes,
        unclear_processes: &users.unclear,
        hidden_processes: users.hidden,
    }
}

/// Shows how a file is held and mapped. The status is 1 if it is not as expected.
pub fn run(system: &System, arguments: &cli::Map) -> Result<ExitCode> {
    let path = &arguments.file;
    let file = ask::open(path)?;
    let answer = Module::open(system)?.map(&file, path)?;
    let users = processes::find(system, &Wanted::file(&file.metadata()?));
    if arguments.json {
        output::json(&report(path, &answer, &users))?;
    } else {
        let signs = signs(|name| env::var(name).ok());
        let width = picture::width(output::columns());
        let picture = io::stdout().is_terminal().then_some((width, signs));
        output::print(&text(path, &answer, &users, arguments.verbose, picture))?;
    }
    let Some(size) = arguments.expect else {
        return Ok(ExitCode::SUCCESS);
    };
    if answer.size == 0 {
        output::complain(format_args!(
            "{}: the file is empty, so nothing of it is mapped",
            path.display()
        ));
        return Ok(ExitCode::FAILURE);
    }
    match missing(&answer, size.bytes()) {
        0 => Ok(ExitCode::SUCCESS),
        bytes => {
            output::complain(format_args!(
                "{}: {} of {} are not mapped by {} or more",
                path.display(),
                amount(bytes),
                amount(answer.size.next_multiple_of(PAGE)),
                amount(size.bytes()),
            ));
            Ok(ExitCode::FAILURE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{picture::BLOCKS, *};
    use crate::size::{GIB, MIB};
    use crate::uapi::why;

    pub(super) fn data(offset: u64, length: u64, order: u32, maps: u32, whole: u32) -> MapRecord {
        MapRecord {
            offset,
            length,
            kind: kind::DATA,
            order,
            maps,
            whole,
            ..MapRecord::default()
        }
    }

    /// 1 GiB by one entry, 4 MiB by 2 MiB, some pages, 1 MiB that nobody has touched.
    fn sample() -> Answer {
        let mut pages = data(GIB + 4 * MIB, MIB, 0, 1, 0);
        pages.why = why::DEVICE | why::END_OF_FILE;
        pages.flags = flag::DIRTY;
        Answer {
            size: GIB + 6 * MIB,
            max_order: 18,
            records: vec![
                data(0, GIB, 18, 1, 1),
                data(GIB, 4 * MIB, 9, 3, 3),
                pages,
                MapRecord {
                    offset: GIB + 5 * MIB,
                    length: MIB,
                    ..MapRecord::default()
                },
            ],
        }
    }

    #[test]
    fn sums() {
        let sums = Sums::of(&sample());
        let mapped: Vec<(Mapped, u64)> = sums.mapped.into_iter().collect();
        assert_eq!(
            mapped,
            [
                (Mapped::Not, MIB),
                (Mapped::Pages, MIB),
                (Mapped::Pmd, 4 * MIB),
                (Mapped::Pud, GIB)
            ]
        );
        assert_eq!(sums.dirty, MIB);
        assert_eq!(
            sums.reasons,
            [(PMD, why::DEVICE, MIB), (PMD, why::END_OF_FILE, MIB)]
        );
    }

    #[test]
    fn json_has_the_words_of_the_switch() {
        let mut answer = sample();
        let users = Users::default();
        let json = |answer: &Answer| {
            serde_json::to_value(report(Path::new("/mnt/f"), answer, &users)).unwrap()
        };
        let found = json(&answer);
        assert_eq!(found["max_order"], "pud");
        assert_eq!(
            found["mapped"],
            serde_json::json!({"none": MIB, "pte": MIB, "pmd": 4 * MIB, "pud": GIB})
        );
        for (order, word) in [(0, "pte"), (9, "pmd"), (18, "pud")] {
            answer.max_order = order;
            assert_eq!(json(&answer)["max_order"], word);
        }
        answer.records.clear();
        assert_eq!(json(&answer)["mapped"]["pmd"], 0);
    }

    #[test]
    fn what_is_mapped_by_parts_counts_as_pages() {
        assert_eq!(Mapped::of(&data(0, PMD, 9, 3, 1)), Mapped::Pages);
        assert_eq!(Mapped::of(&data(0, PMD, 9, 1, 1)), Mapped::Pmd);
        assert_eq!(Mapped::of(&data(0, PMD, 9, 0, 0)), Mapped::Not);
    }

    #[test]
    fn expectations() {
        let mut answer = sample();
        assert_eq!(missing(&answer, PMD), 2 * MIB);
        assert_eq!(missing(&answer, PUD), 6 * MIB);
        answer.size = GIB;
        answer.records.truncate(1);
        assert_eq!(missing(&answer, PMD), 0);
        assert_eq!(missing(&answer, PUD), 0);
        // The end of a file that is no multiple.
        answer.size = GIB + 1;
        assert_eq!(missing(&answer, PMD), PAGE);
    }

    #[test]
    fn mappings_are_no_more_than_somebody_reads() {
        let vma = |number| processes::Vma {
            address: number * PMD,
            length: PAGE,
            offset: 0,
            private: false,
            path: "/mnt/f".to_owned(),
        };
        let process = |pid, count| Process {
            pid,
            name: "a\nb".to_owned(),
            mappings: (1..=count).map(vma).collect(),
            ..Process::default()
        };
        let users = Users {
            processes: vec![process(7, 65_530), process(8, 16)],
            ..Users::default()
        };
        let text = mappings(&users, false);
        assert_eq!(text.lines().count(), 1 + 16 + 16 + 1, "{text}");
        let more = "(65514 more mappings of a\\nb (7), of 255.914 MiB: -v shows them)\n";
        assert!(text.ends_with(more), "{text}");
        let all = mappings(&users, true);
        assert_eq!(all.lines().count(), 1 + 65_530 + 16);
    }

    #[test]
    fn a_text_says_what_to_do() {
        let text = text(
            Path::new("/mnt/f"),
            &sample(),
            &Users {
                unclear: vec![Unclear {
                    pid: 8,
                    name: "ring".to_owned(),
                    overlay: None,
                }],
                ..Users::default()
            },
            true,
            Some((64, &BLOCKS)),
        );
        for part in [
            "/mnt/f: 1.006 GiB, max_order 1 GiB",
            "mapped: 1 GiB by 1 GiB, 4 MiB by 2 MiB, 1 MiB by 4 KiB, 1 MiB not mapped",
            "end of file (1 MiB)",
            "truncate -s %2M",
            "device,end of file",
            "not touched",
            "io_uring of ring (8)",
        ] {
            assert!(text.contains(part), "no '{part}' in:\n{text}");
        }
    }
}
