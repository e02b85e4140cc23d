// SPDX-License-Identifier: GPL-2.0

//! What the documents have one type is what the command takes.

use crate::system::*;
use std::{collections::BTreeMap, fs, path::PathBuf};

/// The documents of the checkout.
fn documents() -> Vec<PathBuf> {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = vec![top.join("README.md")];
    let docs = fs::read_dir(top.join("docs")).unwrap();
    found.extend(docs.map(|file| file.unwrap().path()));
    found.retain(|path| path.extension().is_some_and(|kind| kind == "md"));
    assert!(found.len() > 10, "{found:?}");
    found
}

/// What is typed, or may be: lines that are set off, and what is between backticks.
fn code(line: &str) -> Vec<&str> {
    if line.starts_with("    ") {
        return vec![line.trim()];
    }
    line.split('`').skip(1).step_by(2).collect()
}

/// The words behind `rdax`, up to the end of the command.
fn calls(code: &str) -> Vec<Vec<&str>> {
    let mut calls = Vec::new();
    let words: Vec<&str> = code.split_whitespace().collect();
    for (at, word) in words.iter().enumerate() {
        if *word != "rdax" {
            continue;
        }
        let rest = words[at + 1..].iter();
        let rest = rest.take_while(|word| !["|", "#", "&&", ";", "rdax"].contains(word));
        let mut call = Vec::new();
        for word in rest {
            call.push(word.trim_end_matches([';', ',', ')', '…', ':', ']']));
            if word.ends_with([';', ',', ')', ':']) {
                break;
            }
        }
        calls.push(call);
    }
    calls
}

/// The words that begin a line of a command's help, which are its options, or the commands below it.
fn in_help(system: &System, command: &[&str]) -> Vec<String> {
    let help = system.run(&[command, &["--help"]].concat()).succeeded();
    help.lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("          "))
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches(',').to_owned())
        .collect()
}

#[test]
fn commands_in_the_documents_are_taken() {
    let system = System::new();
    let commands = in_help(&system, &[]);
    let known = [
        "list",
        "adopt",
        "release",
        "stat",
        "map",
        "who",
        "layout",
        "doctor",
        "completions",
    ];
    for command in known {
        assert!(commands.iter().any(|word| word == command), "{command}");
    }
    let mut helps: BTreeMap<Vec<&str>, Vec<String>> = BTreeMap::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let documents: Vec<(PathBuf, String)> = documents()
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    for (path, text) in &documents {
        for call in text.lines().flat_map(code).flat_map(calls) {
            // Others are what the module says.
            let Some(command) = known.iter().find(|known| call.first() == Some(known)) else {
                continue;
            };
            *seen.entry(command).or_default() += 1;
            let mut command = vec![*command];
            // `layout create|check` is either.
            if command == ["layout"] {
                match call.get(1) {
                    Some(&below @ ("create" | "check")) => command.push(below),
                    None | Some(&"create|check") => continue,
                    Some(other) => panic!("{}: rdax layout {other}", path.display()),
                }
            }
            let options = helps
                .entry(command.clone())
                .or_insert_with(|| in_help(&system, &command));
            for word in &call {
                let option = word.trim_start_matches('[');
                let option = option.split('=').next().unwrap();
                if option.starts_with('-') && option != "-" {
                    assert!(
                        options.iter().any(|known| known == option),
                        "{}: rdax {} does not take {option} (it takes {options:?})",
                        path.display(),
                        command.join(" ")
                    );
                }
            }
        }
    }
    for command in &known[..8] {
        assert!(seen.contains_key(command), "no document has rdax {command}");
    }
}
