// SPDX-License-Identifier: GPL-2.0

//! Numbers of bytes, as people write and read them.

use std::time::Duration;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const TIB: u64 = 1 << 40;

/// What a page-table entry of the lowest level maps.
pub const PAGE: u64 = 4 * KIB;
/// … of the second level.
pub const PMD: u64 = 2 * MIB;
/// … of the third level.
pub const PUD: u64 = GIB;

/// A number of bytes, for people: `2 MiB`, `2.441 GiB`.
pub fn amount(bytes: u64) -> String {
    for (unit, name) in [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit {
            let text = format!("{:.3}", bytes as f64 / unit as f64);
            let text = text.trim_end_matches('0').trim_end_matches('.');
            return format!("{text} {name}");
        }
    }
    format!("{bytes} bytes")
}

/// The number of bytes that a text like `2M`, `64k` or `4 GiB` says.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size like 4096, 64K, 2M or 1G");
    let trimmed = text.trim();
    let end = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(end);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" => 1,
        "k" | "kib" => KIB,
        "m" | "mib" => MIB,
        "g" | "gib" => GIB,
        "t" | "tib" => TIB,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// A duration of nanoseconds, for people: `2.5 ms`.
pub fn nanoseconds(ns: u64) -> String {
    let time = Duration::from_nanos(ns);
    if ns < 1_000 {
        format!("{ns} ns")
    } else if ns < 1_000_000 {
        format!("{:.1} us", ns as f64 / 1e3)
    } else if ns < 1_000_000_000 {
        format!("{:.1} ms", ns as f64 / 1e6)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        assert_eq!(amount(0), "0 bytes");
        assert_eq!(amount(512), "512 bytes");
        assert_eq!(amount(PAGE), "4 KiB");
        assert_eq!(amount(PMD), "2 MiB");
        assert_eq!(amount(2441 * GIB / 1000), "2.441 GiB");
        assert_eq!(amount(3 * TIB / 2), "1.5 TiB");
    }

    #[test]
    fn sizes() {
        assert_eq!(parse("4096"), Ok(PAGE));
        assert_eq!(parse("64k"), Ok(64 * KIB));
        assert_eq!(parse("2M"), Ok(PMD));
        assert_eq!(parse("1 GiB"), Ok(GIB));
        assert_eq!(parse("2T"), Ok(2 * TIB));
        for wrong in [
            "",
            "G",
            "1X",
            "-1",
            "1.5G",
            "99999999999999999999",
            "18014398509481984T",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(nanoseconds(999), "999 ns");
        assert_eq!(nanoseconds(1_500), "1.5 us");
        assert_eq!(nanoseconds(2_000_000), "2.0 ms");
        assert_eq!(nanoseconds(61_500_000_000), "61.5 s");
    }
}
