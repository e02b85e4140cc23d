// SPDX-License-Identifier: GPL-2.0

//! What `rdax list` shows.

use crate::system::*;
use std::{fs, process::Command};

#[test]
fn list_shows_modes_and_adoption() {
    let system = System::with_module(&["pmem0"]);
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    system.mount("259:0", "/mnt/a", "xfs", "rw,dax=always");
    system.dax("dax2.0", "device_dax");
    let out = system.run(&["list"]).succeeded();
    let words: Vec<Vec<&str>> = out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[1],
        ["pmem0", "fsdax", "4", "GiB", "2", "MiB", "yes", "no", "pud", "xfs", "always", "/mnt/a"]
    );
    assert_eq!(
        words[2],
        ["pmem1", "raw", "1", "GiB", "-", "no", "no", "-", "-", "-", "-"]
    );
    assert_eq!(words[3][..2], ["dax2.0", "devdax"]);
}

#[test]
fn list_has_the_keys_of_ndctl() {
    let system = System::with_module(&["pmem0"]);
    system.dax("dax2.0", "rdax");
    let list = system.json(&["list", "--json"]);
    let pmem = &list[0];
    assert_eq!(pmem["dev"], "namespace0.0");
    assert_eq!(pmem["blockdev"], "pmem0");
    assert_eq!(pmem["mode"], "fsdax");
    assert_eq!(pmem["map"], "dev");
    assert_eq!(pmem["uuid"], UUID);
    assert_eq!(pmem["size"], 4u64 << 30);
    assert_eq!(pmem["align"], 2 << 20);
    assert_eq!(pmem["adopted"], false);
    assert_eq!(pmem["max_order"], "pud");
    // What there is not has no key; what may be several is a list of none.
    assert_eq!(pmem["mountpoints"], serde_json::json!([]));
    let other = System::with_module(&["pmem7"]);
    let list_of_other = other.json(&["list", "--json", "pmem7"]);
    let directory = list_of_other[0].as_object().unwrap();
    assert!(!directory.contains_key("mode"), "{directory:?}");
    let dax = &list[2];
    assert_eq!(dax["chardev"], "dax2.0");
    assert_eq!(dax["adopted"], true);
    assert_eq!(dax["driver"], "rdax");
}

#[test]
fn list_tells_of_what_is_not_there() {
    let system = System::with_module(&["pmem7"]);
    system.put("etc/rdax.d/pmem9.conf", "device=pmem9\n");
    system.put("run/rdax/pmem0.failed", "pmem0: not adopted: no luck\n");
    let out = system.run(&["list"]).succeeded();
    assert!(out.contains("pmem7: there is no such device"), "{out}");
    assert!(out.contains("pmem9: there is no such device"), "{out}");
    assert!(
        out.contains("pmem0: at boot: not adopted: no luck"),
        "{out}"
    );
    system
        .run(&["list", "pmem5"])
        .failed(1, &["pmem5", "no such"]);
}

/// The entries of a list that have this name.
fn entries<'a>(list: &'a serde_json::Value, name: &str) -> Vec<&'a serde_json::Value> {
    let all = list.as_array().unwrap();
    all.iter()
        .filter(|entry| entry["blockdev"] == name)
        .collect()
}

#[test]
fn another_device_of_the_same_name_is_told_apart() {
    const OTHER: &str = "0d65c71f-299d-4b11-9a9f-92d92a164afb";
    let system = System::with_module(&["pmem0"]);
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    system.put(
        "etc/rdax.d/pmem0.conf",
        &format!("device=pmem0\nuuid={OTHER}\n"),
    );
    let list = system.json(&["list", "--json"]);
    let (there, missing) = match entries(&list, "pmem0")[..] {
        [there, missing] => (there, missing),
        _ => panic!("{list}"),
    };
    assert_eq!(
        (&there["adopted"], &there["persistent"]),
        (&true.into(), &false.into())
    );
    assert_eq!(
        (&missing["adopted"], &missing["persistent"]),
        (&false.into(), &true.into())
    );
    assert_eq!(missing["uuid"], OTHER);
    let note = missing["note"].as_str().unwrap();
    assert!(note.contains("no device with the namespace"), "{note}");
    assert!(
        note.contains(&format!("rdax release --persist {OTHER}")),
        "{note}"
    );

    // Each of the two has its own file, and each is forgotten by itself.
    system.run(&["adopt", "--persist", "pmem0"]).succeeded();
    let files = |system: &System| system.names("etc/rdax.d");
    assert_eq!(
        files(&system),
        [format!("{UUID}.conf"), "pmem0.conf".to_owned()]
    );
    let out = system.run(&["release", "--persist", OTHER]).succeeded();
    assert!(out.contains("not be adopted at boot"), "{out}");
    assert_eq!(files(&system), [format!("{UUID}.conf")]);
    assert_eq!(system.get("sys/kernel/config/rdax/pmem0/adopt"), "1\n");
}

/// Unbinding holds the lock that reading some attributes takes; here whoever reads them fails.
#[test]
fn what_waits_for_an_unbind_is_not_read() {
    let system = System::with_module(&["pmem0"]);
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    fs::remove_file(system.path(&format!("{REGION}/region0/pfn0.0/driver"))).unwrap();
    let resource = system.path(&format!("{REGION}/region0/pfn0.0/resource"));
    fs::remove_file(&resource).unwrap();
    // A reader of a pipe waits until somebody writes.
    let made = Command::new("mkfifo").arg(&resource).status().unwrap();
    assert!(made.success());
    let mode = system.path(&format!("{REGION}/region1/namespace1.0/mode"));
    assert!(Command::new("mkfifo")
        .arg(&mode)
        .status()
        .unwrap()
        .success());
    let out = system.run(&["list"]).succeeded();
    assert!(out.contains("pmem0: is being unbound"), "{out}");
    let list = system.json(&["list", "--json", "pmem0"]);
    assert!(list[0].get("resource").is_none(), "{list}");
    let (_, found) = doctor(&system, &["pmem0"]);
    let all = format!("{found:?}");
    assert!(
        all.contains("is being unbound") && all.contains("rdax who pmem0"),
        "{all}"
    );
}

#[test]
fn a_failure_at_boot_is_told_until_it_is_none() {
    let system = System::with_module(&["pmem0"]);
    let fails = || system.put("run/rdax/pmem0.failed", "pmem0: not adopted: no luck\n");
    let is_told = || system.run(&["list"]).succeeded().contains("no luck");
    fails();
    assert!(is_told());
    let (_, found) = doctor(&system, &["pmem0"]);
    assert!(format!("{found:?}").contains("no luck"), "{found:?}");
    // Adopted by other means.
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    assert!(!is_told());
    system.put("sys/kernel/config/rdax/pmem0/adopt", "0\n");
    system.run(&["adopt", "pmem0"]).succeeded();
    system.put("sys/kernel/config/rdax/pmem0/adopt", "0\n");
    assert!(!is_told());
    // One that is not wanted any more, and another device of the name.
    for command in [&["release", "--persist", "pmem0"][..], &["boot", "pmem0"]] {
        let system = System::with_module(&[]);
        system.put("run/rdax/pmem0.failed", "no luck\n");
        system.run(command).succeeded();
        assert!(
            !system.path("run/rdax/pmem0.failed").exists(),
            "{command:?}"
        );
    }
}

#[test]
fn what_is_being_unbound_is_called_so() {
    let pfn = format!("{REGION}/region0/pfn0.0");
    // A namespace's own driver goes first; of a region's, all that its namespaces have does.
    for gone in [
        &["driver"][..],
        &[
            "driver",
            "devtype",
            "mode",
            "align",
            "resource",
            "namespace",
            "uuid",
        ],
    ] {
        let system = System::with_module(&["pmem0"]);
        for name in gone {
            fs::remove_file(system.path(&format!("{pfn}/{name}"))).unwrap();
        }
        system.mount("259:0", "/mnt/a", "xfs", "rw,dax=always");
        for target in ["pmem0", "/mnt/a"] {
            let (status, found) = doctor(&system, &[target]);
            assert_eq!(status, 1, "{found:?}");
            let (_, of_it): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|(_, what)| !what.starts_with("pmem0") && !what.starts_with("/mnt"));
            match &of_it[..] {
                [(status, what)] => {
                    assert_eq!(status, "problem");
                    assert!(what.contains("is being unbound"), "{what}");
                    assert!(what.contains("rdax who pmem0"), "{what}");
                }
                _ => panic!("{of_it:#?}"),
            }
        }
        let out = system.run(&["list"]).succeeded();
        assert!(out.contains("pmem0: is being unbound"), "{out}");
        system
            .run(&["adopt", "pmem0"])
            .failed(1, &["not adopted: it is being unbound"]);
    }
}

#[test]
fn a_copy_of_a_namespace_is_told() {
    let system = System::with_module(&["pmem0"]);
    let note = "the same UUID as that of pmem";
    assert!(!system.run(&["list"]).succeeded().contains(note));
    system.put(
        &format!("{REGION}/region1/namespace1.0/uuid"),
        &format!("{UUID}\n"),
    );
    let out = system.run(&["list"]).succeeded();
    for text in [
        format!("pmem0: its namespace has {note}1"),
        format!("pmem1: its namespace has {note}0"),
    ] {
        assert!(out.contains(&text), "{out}");
    }
    let (_, found) = doctor(&system, &["pmem0"]);
    assert!(format!("{found:?}").contains(note), "{found:#?}");
    let did = system.run(&["adopt", "--persist", "pmem0"]);
    assert!(did.err.contains(note), "{}", did.err);
    did.succeeded();
    let did = system.run(&["release", "--persist", "pmem1"]);
    assert!(did.err.contains(note), "{}", did.err);
    did.succeeded();
    assert!(system.names("etc/rdax.d").is_empty());
    // A partition is not the whole.
    let system = System::with_module(&["pmem0"]);
    system.partition(1);
    assert!(!system.run(&["list"]).succeeded().contains(note));
}
