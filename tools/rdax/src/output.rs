// SPDX-License-Identifier: GPL-2.0

//! Answers, on the standard output.

use anyhow::{
    Context,
    Result, //
};
use rustix::ioctl::{
    ioctl,
    Getter, //
};
use serde::Serialize;
use std::{
    fmt::Display,
    io::{
        self,
        ErrorKind,
        Write, //
    },
    path::Path,
    sync::OnceLock,
};

/// Why the standard output took no more of what a command said while it worked.
static UNSAID: OnceLock<String> = OnceLock::new();

/// Whether a terminal, or what shows a text, would take it for a command: also those that turn the direction of what
/// comes after them, or end a line.
fn commands(sign: char) -> bool {
    const TURNS: [char; 3] = ['\u{61c}', '\u{200e}', '\u{200f}'];
    sign.is_control()
        || TURNS.contains(&sign)
        || matches!(sign, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text with signs in place of what a terminal would take for a command. Names of files, and of processes,
/// may be anything, and be made by anybody.
pub fn harmless(text: &str, keep: &[char]) -> String {
    let mut harmless = String::with_capacity(text.len());
    for sign in text.chars() {
        if commands(sign) && !keep.contains(&sign) {
            harmless.extend(sign.escape_default());
        } else {
            harmless.push(sign);
        }
    }
    harmless
}

/// A path as a word of a command that somebody may paste into a shell.
pub fn word(path: &Path) -> String {
    let text = harmless(&path.to_string_lossy(), &[]);
    let is_plain = |sign: char| sign.is_alphanumeric() || "/._-+=:@%,".contains(sign);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        return text;
    }
    // What is not shown as it is has escapes, which a shell understands in these quotes only.
    if text != path.to_string_lossy() || path.to_str().is_none() {
        let mut quoted = String::new();
        for &byte in path.as_os_str().as_encoded_bytes() {
            match byte {
                b'\'' | b'\\' => quoted += &format!("\\{}", char::from(byte)),
                b' '..=b'~' => quoted.push(char::from(byte)),
                _ => quoted += &format!("\\{byte:03o}"),
            }
        }
        return format!("$'{quoted}'");
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// How wide the terminal is that the standard output is; `None` if it is none, or does not tell.
pub fn columns() -> Option<usize> {
    const TIOCGWINSZ: u32 = 0x5413;
    // SAFETY: The operation writes a `struct winsize`, which is four numbers of 16 bits.
    let size = unsafe { ioctl(io::stdout(), Getter::<TIOCGWINSZ, [u16; 4]>::new()) };
    let [_, columns, ..] = size.ok()?;
    Some(usize::from(columns)).filter(|&columns| columns != 0)
}

/// Prints a text for people; whether there is somebody who reads on. That nobody does is no error.
pub fn print(text: &str) -> Result<bool> {
    as_it_is(&harmless(text, &['\n']))
}

/// The same for what a program reads, or the terminal.
pub fn as_it_is(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("the answer cannot be printed"),
    }
}

/// Says what was done, a line. The work goes on whether or not it can be printed; `unsaid` tells at the end.
pub fn say(what: impl Display) {
    if let Err(error) = print(&format!("{what}\n")) {
        // The first reason is the one that counts.
        let _ = UNSAID.set(format!("{error:#}"));
    }
}

/// Why something that was said could not be printed, if that is so.
pub fn unsaid() -> Option<&'static str> {
    UNSAID.get().map(String::as_str)
}

/// A path in a text for people. No line begins within it.
pub fn shown(path: &Path) -> String {
    harmless(&path.to_string_lossy(), &[])
}

/// Says what went wrong, on the standard error output.
pub fn complain(what: impl Display) {
    progress(&complaint(&what.to_string()));
}

/// Lines of which the first alone begins as all complaints do: others may be within a name.
fn complaint(what: &str) -> String {
    let what = harmless(&without_numbers(what), &['\n']);
    format!("rdax: {}\n", what.replace('\n', "\n  "))
}

/// Shows a text on the standard error output as it is.
pub fn progress(text: &str) {
    // There is nowhere else to say it, and the work goes on.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// A text in which no error of the system has its number.
pub fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => out += rest,
            _ => out += &format!(" (os error {part}"),
        }
    }
    out
}

/// Prints a value as JSON, for people, too.
pub fn json(value: &impl Serialize) -> Result<bool> {
    as_it_is(&(harmless_json(&serde_json::to_string_pretty(value)?) + "\n"))
}

/// JSON with escapes for the characters of this kind that it may have as they are, which are in strings only.
fn harmless_json(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for sign in text.chars() {
        if commands(sign) && sign != '\n' {
            harmless += &format!("\\u{:04x}", u32::from(sign));
        } else {
            harmless.push(sign);
        }
    }
    harmless
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_no_numbers() {
        assert_eq!(
            without_numbers("f: No such file (os error 2); g: (os error x) a (os error 13)b"),
            "f: No such file; g: (os error x) ab"
        );
    }

    #[test]
    fn paths_are_words_of_a_command() {
        for (path, as_word) in [
            ("/mnt/db-1.a", "/mnt/db-1.a"),
            ("/mnt/Zoë", "/mnt/Zoë"),
            ("/mnt/a b", "'/mnt/a b'"),
            ("/mnt/$(id)", "'/mnt/$(id)'"),
            ("/mnt/it's", "'/mnt/it'\\''s'"),
            ("/mnt/a\nb", "$'/mnt/a\\012b'"),
            ("/mnt/it's\u{9b}", "$'/mnt/it\\'s\\302\\233'"),
            ("/mnt/\u{202e}b", "$'/mnt/\\342\\200\\256b'"),
            ("-f", "'-f'"),
            ("", "''"),
        ] {
            assert_eq!(word(Path::new(path)), as_word);
        }
    }

    #[test]
    fn a_name_begins_no_complaint() {
        assert_eq!(
            complaint("a\nrdax: pmem0: adopted: no such file (os error 2)"),
            "rdax: a\n  rdax: pmem0: adopted: no such file\n"
        );
        assert_eq!(shown(Path::new("/mnt/a\nb")), "/mnt/a\\nb");
    }

    #[test]
    fn names_do_not_command_the_terminal() {
        assert_eq!(
            harmless("a\x1b[2Jb\r\n\u{9b}", &['\n']),
            "a\\u{1b}[2Jb\\r\n\\u{9b}"
        );
        assert_eq!(harmless("a\nb", &[]), "a\\nb");
        assert_eq!(harmless("Zoë's file █", &[]), "Zoë's file █");
        assert_eq!(
            harmless("a\u{202e}b\u{2028}c\u{2069}\u{200f}", &['\n']),
            "a\\u{202e}b\\u{2028}c\\u{2069}\\u{200f}"
        );
        let name = "a\u{9b}2J\u{7f}\u{1b}\nb\u{202e}\u{2029}";
        let json = harmless_json(&serde_json::to_string_pretty(&[name]).unwrap());
        assert!(
            json.chars().all(|sign| sign == '\n' || !commands(sign)),
            "{json:?}"
        );
        assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap(), [name]);
    }
}
