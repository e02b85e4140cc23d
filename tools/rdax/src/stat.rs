// SPDX-License-Identifier: GPL-2.0

//! `rdax stat`

use crate::{
    cli,
    device::{
        self,
        Block,
        Dax,
        DAX_BUS, //
    },
    module,
    output,
    size,
    system::{
        System,
        CONFIG, //
    },
    table, //
};
use anyhow::{
    bail,
    Context,
    Result, //
};
use serde::Serialize;
use std::{
    io::{
        self,
        ErrorKind,
        IsTerminal, //
    },
    process::ExitCode,
    thread,
    time::{
        Duration,
        Instant,
        SystemTime, //
    }, //
};

/// The counters of a device, in the module's order.
type Counters = Vec<(String, u64)>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    name: String,
    file: String,
    is_dax: bool,
}

/// What was counted for a device.
#[derive(Debug, Serialize)]
struct Sample {
    #[serde(skip_serializing_if = "Option::is_none")]
    blockdev: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chardev: Option<String>,
    counters: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_second: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Seconds since 1970.
    time: f64,
    devices: Vec<Sample>,
}

/// Lines "name value".
fn parse(text: &str) -> Counters {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// Where the counters of the devices are: those that are named, or all that are adopted.
fn sources(system: &System, devices: &[String]) -> Result<Vec<Source>> {
    let block = |name: &str| Source {
        name: name.to_owned(),
        file: format!("{CONFIG}/{name}/stats"),
        is_dax: false,
    };
    let dax = |name: &str| Source {
        name: name.to_owned(),
        file: format!("{DAX_BUS}/devices/{name}/rdax/stats"),
        is_dax: true,
    };
    if devices.is_empty() {
        module::require(system, false)?;
        let mut found: Vec<Source> = system
            .names(CONFIG)
            .iter()
            .filter(|name| device::is_adopted(system, name) == Some(true))
            .map(|name| block(name))
            .collect();
        let adopted = device::dax_devices(system);
        let adopted = adopted.iter().filter(|dax| dax.is_adopted());
        found.extend(adopted.map(|device| dax(&device.name)));
        if found.is_empty() {
            bail!("no device is adopted; rdax adopt DEV hands one over");
        }
        return Ok(found);
    }
    let mut found = Vec::new();
    for given in devices {
        let name = device::named(system, given)?;
        let source = if Dax::find(system, &name).is_some_and(|dax| dax.is_adopted()) {
            dax(&name)
        } else {
            block(&name)
        };
        let is_given_back = Block::find(system, &name).is_some()
            && device::is_adopted(system, &name) == Some(false);
        if is_given_back || !system.exists(&source.file) {
            module::require(system, false)?;
            bail!("{name}: not adopted; rdax adopt {name} hands it over");
        }
        found.push(source);
    }
    Ok(found)
}

fn read(system: &System, source: &Source) -> Result<Counters> {
    match system.read(&source.file) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("{}: permission denied; run rdax as root", source.name)
        }
        Err(error) => Err(error).with_context(|| {
            format!(
                "{}: the counters are gone, as it was released or has gone; rdax list shows what is adopted",
                source.name
            )
        }),
    }
}

/// What is counted now for the devices that are named, or for all that are adopted now.
fn sample(system: &System, devices: &[String]) -> Result<Vec<(Source, Counters)>> {
    let mut samples = Vec::new();
    for source in sources(system, devices)? {
        match read(system, &source) {
            Ok(counters) => samples.push((source, counters)),
            // Released since it was found.
            Err(_) if devices.is_empty() && !system.exists(&source.file) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(samples)
}

/// What was counted before for each of these; nothing for one that was not adopted then.
fn before(samples: &[(Source, Counters)], sources: &[Source]) -> Vec<Counters> {
    let of = |source: &Source| {
        let found = samples.iter().find(|(known, _)| known == source);
        found.map_or_else(Vec::new, |(_, counters)| counters.clone())
    };
    sources.iter().map(of).collect()
}

/// What was counted in a second, from two values; a device that was adopted anew begins at 0.
fn rate(now: u64, before: u64, seconds: f64) -> f64 {
    (now.checked_sub(before).unwrap_or(now)) as f64 / seconds
}

fn value_of(counters: &Counters, name: &str) -> Option<u64> {
    counters
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| *value)
}

/// A value as people read it, by what the counter's name says it counts.
fn shown(name: &str, value: f64) -> String {
    if name.ends_with("_bytes") {
        size::amount(value as u64)
    } else if name.ends_with("_ns") {
        size::nanoseconds(value as u64)
    } else if value == value.trunc() {
        format!("{value}")
    } else {
        format!("{value:.1}")
    }
}

/// Two samples, and the seconds between them.
struct Interval<'a> {
    before: &'a [Counters],
    seconds: f64,
}

fn table(sources: &[Source], now: &[Counters], since: Option<&Interval<'_>>, all: bool) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in now.iter().flatten() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut header = vec!["COUNTER".to_owned()];
    for source in sources {
        header.push(source.name.clone());
        if since.is_some() {
            header.push("/s".to_owned());
        }
    }
    let mut rows = Vec::new();
    for name in names {
        let values: Vec<Option<u64>> = now.iter().map(|all| value_of(all, name)).collect();
        if !all && values.iter().all(|value| value.unwrap_or(0) == 0) {
            continue;
        }
        let mut row = vec![name.to_owned()];
        for (number, value) in values.into_iter().enumerate() {
            let Some(value) = value else {
                row.extend(vec!["-".to_owned(); 1 + usize::from(since.is_some())]);
                continue;
            };
            row.push(shown(name, value as f64));
            if let Some(since) = since {
                let before = since.before.get(number);
                let before = before.and_then(|before| value_of(before, name));
                row.push(shown(name, rate(value, before.unwrap_or(0), since.seconds)));
            }
        }
        rows.push(row);
    }
    if rows.is_empty() {
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        return format!("{}: nothing was counted yet\n", names.join(", "));
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let right: Vec<usize> = (1..header.len()).collect();
    table::plain(&header, &right, rows)
}

fn report(sources: &[Source], now: &[Counters], since: Option<&Interval<'_>>) -> Report {
    let devices = sources
        .iter()
        .zip(now)
        .enumerate()
        .map(|(number, (source, now))| {
            let rates = since.map(|since| {
                now.iter()
                    .map(|(name, value)| {
                        let before = since.before.get(number);
                        let before = before.and_then(|before| value_of(before, name));
                        let rate = rate(*value, before.unwrap_or(0), since.seconds);
                        (name.clone(), rate.into())
                    })
                    .collect()
            });
            Sample {
                blockdev: (!source.is_dax).then(|| source.name.clone()),
                chardev: source.is_dax.then(|| source.name.clone()),
                counters: now
                    .iter()
                    .map(|(name, value)| (name.clone(), (*value).into()))
                    .collect(),
                per_second: rates,
            }
        });
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Report {
        time: time.map_or(0.0, |time| time.as_secs_f64()),
        devices: devices.collect(),
    }
}

/// Shows counters, once or again and again.
pub fn run(system: &System, arguments: &cli::Stat) -> Result<ExitCode> {
    let mut last = sample(system, &arguments.devices)?;
    let Some(interval) = arguments.interval else {
        let (sources, now): (Vec<Source>, Vec<Counters>) = last.into_iter().unzip();
        if arguments.json {
            output::json(&report(&sources, &now, None))?;
        } else {
            output::print(&table(&sources, &now, None, arguments.all))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let refresh = !arguments.json && io::stdout().is_terminal();
    let (mut at, mut left) = (Instant::now(), arguments.count);
    // Ends after as many intervals as were asked for, or when the user or the reader ends it.
    while left != Some(0) {
        thread::sleep(Duration::from_secs(interval));
        let samples = sample(system, &arguments.devices)?;
        let (sources, now): (Vec<Source>, Vec<Counters>) = samples.iter().cloned().unzip();
        let since = Interval {
            before: &before(&last, &sources),
            seconds: at.elapsed().as_secs_f64(),
        };
        at = Instant::now();
        let text = if arguments.json {
            serde_json::to_string(&report(&sources, &now, Some(&since)))? + "\n"
        } else {
            let table = table(&sources, &now, Some(&since), arguments.all);
            // From the top, without what was there before.
            let clear = if refresh { "\x1b[H\x1b[J" } else { "" };
            let end = if refresh { "(^C ends this)\n" } else { "\n" };
            format!("{clear}{table}{end}")
        };
        if !output::as_it_is(&text)? {
            break;
        }
        last = samples;
        left = left.map(|left| left - 1);
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str) -> Source {
        Source {
            name: name.to_owned(),
            file: String::new(),
            is_dax: false,
        }
    }

    #[test]
    fn values_are_shown_by_what_they_count() {
        assert_eq!(shown("read_pte", 12.0), "12");
        assert_eq!(shown("read_pte", 12.25), "12.2");
        assert_eq!(shown("write_bytes", 2097152.0), "2 MiB");
        assert_eq!(shown("layout_wait_ns", 2e9), "2.0 s");
    }

    #[test]
    fn rates() {
        assert_eq!(rate(30, 10, 2.0), 10.0);
        // Adopted anew meanwhile.
        assert_eq!(rate(4, 10, 2.0), 2.0);
    }

    #[test]
    fn tables() {
        let before = parse("read_pte 1\nread_pmd 0\nread_bytes 0\n");
        let now = parse("read_pte 5\nread_pmd 0\nread_bytes 4096\n");
        let sources = [source("pmem0")];
        assert_eq!(
            table(&sources, std::slice::from_ref(&before), None, false),
            "COUNTER   pmem0\nread_pte      1\n"
        );
        let since = Interval {
            before: &[before],
            seconds: 2.0,
        };
        assert_eq!(
            table(&sources, &[now], Some(&since), false),
            "COUNTER     pmem0     /s\nread_pte        5      2\nread_bytes  4 KiB  2 KiB\n"
        );
        assert_eq!(
            table(&sources, &[parse("read_pte 0\n")], None, false),
            "pmem0: nothing was counted yet\n"
        );
    }

    #[test]
    fn lines_that_are_no_counters() {
        assert_eq!(
            parse("read_pte\nwrite_pte x\n\nread_pmd 2"),
            [("read_pmd".to_owned(), 2)]
        );
    }
}
