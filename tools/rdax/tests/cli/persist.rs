// SPDX-License-Identifier: GPL-2.0

//! Adoptions that are noted for every boot.

use crate::system::*;
use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
    process::Command,
    thread, //
};

#[test]
fn what_is_persistent_is_found_by_the_namespace() {
    let system = System::with_module(&["pmem0"]);
    let out = system
        .run(&["adopt", "--persist", "--max-order=1G", "pmem0"])
        .succeeded();
    assert!(out.contains("at every boot"), "{out}");
    let file = format!("etc/rdax.d/{UUID}.conf");
    let kept = system.get(&file);
    assert!(
        kept.contains(&format!("device=pmem0\nuuid={UUID}\nmax_order=pud\n")),
        "{kept}"
    );

    // The next boot numbers the devices in another way.
    let system = System::with_module(&["pmem0"]);
    system.put(
        "etc/rdax.d/pmem3.conf",
        &format!("device=pmem3\nuuid={UUID}\nmax_order=pmd\n"),
    );
    assert_eq!(system.json(&["list", "-j"])[0]["persistent"], true);
    assert_eq!(system.run(&["boot", "pmem1"]).succeeded(), "");
    assert_eq!(
        system.run(&["boot", "pmem0"]).succeeded(),
        "pmem0: adopted\n"
    );
    assert_eq!(system.get("sys/kernel/config/rdax/pmem0/max_order"), "pmd");
    // Asked for again it has one file.
    system.run(&["adopt", "--persist", "pmem0"]).succeeded();
    assert!(!system.path("etc/rdax.d/pmem3.conf").exists());
    assert!(system.path(&file).exists());
}

#[test]
fn partitions_that_are_missing_are_forgotten_by_what_list_prints() {
    const OTHER: &str = "0d65c71f-299d-4b11-9a9f-92d92a164afb";
    let system = System::with_module(&["pmem0"]);
    let file = |number| format!("{OTHER}p{number}.conf");
    for number in [1, 2] {
        system.put(
            &format!("etc/rdax.d/{}", file(number)),
            &format!("device=pmem7p{number}\nuuid={OTHER}\npartition={number}\n"),
        );
    }
    let out = system.run(&["list"]).succeeded();
    let command = format!("rdax release --persist {OTHER}p2");
    assert!(out.contains(&format!("{command} forgets it")), "{out}");
    // Neither is meant.
    system
        .run(&["release", "--persist", OTHER])
        .failed(1, &[&format!("{OTHER}p1, {OTHER}p2")]);
    assert_eq!(system.names("etc/rdax.d"), [file(1), file(2)]);
    let arguments: Vec<&str> = command.split(' ').skip(1).collect();
    system.run(&arguments).succeeded();
    assert_eq!(system.names("etc/rdax.d"), [file(1)]);
    // The comment in a file says what works, too.
    let system = System::with_module(&[]);
    let name = system.partition(2);
    system.run(&["adopt", "--persist", &name]).succeeded();
    let kept = system.get(&format!("etc/rdax.d/{UUID}p2.conf"));
    assert!(
        kept.contains(&format!("--persist {UUID}p2 removes")),
        "{kept}"
    );
}

#[test]
fn all_that_is_noted_for_a_device_is_forgotten() {
    let system = System::with_module(&[]);
    let text = format!("device=pmem3\nuuid={UUID}\n");
    for name in [UUID, "mine"] {
        system.put(&format!("etc/rdax.d/{name}.conf"), &text);
    }
    system.put("etc/rdax.d/pmem0.conf", "device=pmem0\n");
    system.put("etc/rdax.d/pmem9.conf", "device=pmem9\n");
    system.run(&["release", "--persist", "pmem0"]).succeeded();
    assert_eq!(system.names("etc/rdax.d"), ["pmem9.conf"]);
    assert_eq!(system.run(&["boot", "pmem0"]).succeeded(), "");
    // A name that two had is of one or the other.
    for uuid in ["1111", "2222"] {
        system.put(
            &format!("etc/rdax.d/{uuid}.conf"),
            &format!("device=pmem8\nuuid={uuid}\n"),
        );
    }
    system
        .run(&["release", "--persist", "pmem8"])
        .failed(1, &["1111, 2222"]);
    system.run(&["release", "--persist", "1111"]).succeeded();
    system.run(&["release", "--persist", "pmem8"]).succeeded();
    assert_eq!(system.names("etc/rdax.d"), ["pmem9.conf"]);
}

#[test]
fn what_can_never_be_adopted_is_not_noted() {
    let system = System::with_module(&["pmem0"]);
    system.dax("dax2.0", "device_dax");
    system
        .run(&["adopt", "--persist", "--max-order=2M", "dax2.0"])
        .failed(1, &["no switches"]);
    system
        .run(&["adopt", "--persist", "pmem1"])
        .failed(1, &["mode raw"]);
    assert!(system.names("etc/rdax.d").is_empty());
}

#[test]
fn switches_that_are_noted_stay() {
    let system = System::with_module(&["pmem0"]);
    let file = format!("etc/rdax.d/{UUID}.conf");
    system
        .run(&[
            "adopt",
            "--persist",
            "--max-order=2M",
            "--write-order=3",
            "pmem0",
        ])
        .succeeded();
    let config = "sys/kernel/config/rdax/pmem0";
    system.put(&format!("{config}/adopt"), "0\n");
    system.put(&format!("{config}/max_order"), "pud\n");
    system
        .run(&["adopt", "--persist", "--write-order=4", "pmem0"])
        .succeeded();
    let kept = system.get(&file);
    assert!(kept.contains("max_order=pmd\nwrite_order=4\n"), "{kept}");
    // It is adopted as it will be at boot.
    assert_eq!(system.get(&format!("{config}/max_order")), "pmd");
    system.run(&["adopt", "--persist", "pmem0"]).succeeded();
    assert_eq!(system.get(&file), kept);
}

#[test]
fn only_regular_files_are_read() {
    let system = System::with_module(&["pmem0"]);
    system.put("etc/rdax.d/pmem0.conf", "device=pmem0\n");
    system.dir("etc/rdax.d/dir.conf");
    let pipe = system.path("etc/rdax.d/pipe.conf");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    // Whoever reads it gets something, rather than wait. Ends when the pipe is removed, with the system.
    thread::spawn(move || {
        while let Ok(mut pipe) = OpenOptions::new().write(true).open(&pipe) {
            let _ = pipe.write_all(b"colour=red\n");
        }
    });
    for command in [&["list"][..], &["list", "--json"], &["boot", "pmem0"]] {
        let did = system.run(command);
        for name in ["dir", "pipe"] {
            let part = format!("{name}.conf cannot be read: it is not a regular file");
            assert!(did.err.contains(&part), "{command:?}: {}", did.err);
        }
        did.succeeded();
    }
    assert_eq!(system.get("sys/kernel/config/rdax/pmem0/adopt"), "1");
    // Others are not in doubt, as a boot does not read it either.
    system.link("nowhere", "etc/rdax.d/link.conf");
    assert_eq!(system.json(&["list", "--json"])[1]["persistent"], false);
}

#[test]
fn what_cannot_be_read_is_not_denied() {
    let system = System::with_module(&["pmem0"]);
    // No directory, whoever asks.
    system.put("etc/rdax.d", "");
    let did = system.run(&["list"]);
    assert!(
        did.err.contains("/etc/rdax.d cannot be read"),
        "{}",
        did.err
    );
    let out = did.succeeded();
    let words: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words[6..8], ["no", "?"], "{out}");
    assert!(system.json(&["list", "-j"])[0]["persistent"].is_null());
    let (_, found) = doctor(&system, &["pmem0"]);
    let all = format!("{found:?}");
    assert!(all.contains("adopted at boot is not known"), "{all}");
    // Nothing is in the directory that it has in configfs.
    let system = System::with_module(&[]);
    system.put("etc/rdax.d", "");
    system
        .run(&["release", "--persist", "pmem0"])
        .failed(1, &["cannot be read", "may still be noted"]);
}

#[test]
fn files_that_cannot_be_understood_are_told_of() {
    let system = System::with_module(&[]);
    system.put("etc/rdax.d/pmem0.conf", "device=pmem0\nuuid=\n");
    system.put("etc/rdax.d/esc.conf", "\x1b[2J\u{9b}\n");
    for command in [&["list"][..], &["list", "--json"], &["boot", "pmem0"]] {
        let did = system.run(command);
        for part in ["pmem0.conf: 'uuid=' has no value", "\\u{1b}[2J\\u{9b}"] {
            assert!(did.err.contains(part), "{command:?}: {}", did.err);
        }
        assert!(!did.err.contains(['\x1b', '\u{9b}']), "{}", did.err);
        did.succeeded();
    }
    system
        .run(&["release", "--persist", "pmem0"])
        .failed(1, &["'uuid=' has no value", "pmem0: it may still be noted"]);
}

/// A library that writes down the names of files that are made to stay and moved, for a program that is to have
/// it loaded first.
const CALLS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void say(const char *what, const char *path)
{
	FILE *log = fopen(getenv("CALLS"), "a");
	const char *name = strrchr(path, '/');

	fprintf(log, "%s %s\n", what, strstr(path, ".new") ? "new" : name + 1);
	fclose(log);
}

int fsync(int fd)
{
	char link[64], path[4096] = "";

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	readlink(link, path, sizeof(path) - 1);
	say("fsync", path);
	if (getenv("FAIL") && strstr(path, ".new")) {
		errno = EIO;
		return -1;
	}
	return 0;
}

int rename(const char *from, const char *to)
{
	int (*next)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");

	say("rename", to);
	return next(from, to);
}
"#;

#[test]
fn what_is_noted_outlasts_a_power_cut() {
    let system = System::with_module(&["pmem0"]);
    system.put("calls.c", CALLS);
    let library = system.path("calls.so");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &system.path("calls.c")])
        .status()
        .unwrap();
    assert!(made.success());
    let run = |arguments: &[&str], fail: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rdax"));
        command
            .args(arguments)
            .env("RDAX_ROOT", system.0.path())
            .env("LD_PRELOAD", &library)
            .env("CALLS", system.path("calls"));
        if fail {
            command.env("FAIL", "1");
        }
        let output = command.output().unwrap();
        let calls = fs::read_to_string(system.path("calls")).unwrap_or_default();
        let _ = fs::remove_file(system.path("calls"));
        (output, calls)
    };
    let (did, calls) = run(&["adopt", "--persist", "pmem0"], false);
    assert!(did.status.success());
    assert_eq!(
        calls,
        format!("fsync etc\nfsync new\nrename {UUID}.conf\nfsync rdax.d\n")
    );
    let file = format!("etc/rdax.d/{UUID}.conf");
    let kept = system.get(&file);
    let (did, _) = run(&["adopt", "--persist", "--max-order=2M", "pmem0"], true);
    let err = String::from_utf8(did.stderr).unwrap();
    assert!(
        err.contains("cannot be written: Input/output error"),
        "{err}"
    );
    assert_eq!(system.get(&file), kept);
    assert_eq!(system.names("etc/rdax.d").len(), 1);
    let (_, calls) = run(&["release", "--persist", "pmem0"], false);
    assert_eq!(calls, "fsync rdax.d\n");
}

#[test]
fn many_may_note_a_device_at_once() {
    let system = System::with_module(&["pmem0"]);
    for _ in 0..20 {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| system.run(&["adopt", "--persist", "pmem0"]).succeeded());
            }
        });
    }
    assert_eq!(system.names("etc/rdax.d"), [format!("{UUID}.conf")]);
}

#[test]
fn names_of_files_may_be_any_bytes() {
    let system = System::with_module(&["pmem0"]);
    let file = system
        .path("etc/rdax.d")
        .join(OsStr::from_bytes(b"\xff.conf"));
    system.dir("etc/rdax.d");
    fs::write(&file, "device=pmem0\n").unwrap();
    let persistent = || system.json(&["list", "--json"])[0]["persistent"].clone();
    assert_eq!(persistent(), true);
    system.run(&["boot", "pmem0"]).succeeded();
    assert_eq!(system.get("sys/kernel/config/rdax/pmem0/adopt"), "1");
    fs::remove_dir_all(system.path("sys/kernel/config/rdax/pmem0")).unwrap();
    system.run(&["release", "--persist", "pmem0"]).succeeded();
    assert!(!file.exists());
    fs::write(&file, "colour\n").unwrap();
    let did = system.run(&["list"]);
    assert!(did.err.contains(".conf: 'colour' is no"), "{}", did.err);
}

#[test]
fn files_that_are_replaced_are_told() {
    let system = System::with_module(&["pmem0"]);
    let text = format!("# ours\ndevice=pmem0\nuuid={UUID}\n");
    let admins = ["etc/rdax.d/admin.conf", "etc/rdax.d/zz.conf"];
    for file in admins {
        system.put(file, &text);
    }
    system.mount("259:0", "/mnt/a", "xfs", "rw");
    let did = system.run(&["adopt", "--persist", "pmem0"]);
    for file in admins {
        let told = format!("{file} notes it, too, and stays");
        assert!(did.err.contains(&told), "{}", did.err);
        assert_eq!(system.get(file), text);
    }
    did.failed(1, &["it is mounted on /mnt/a"]);
    system.put("proc/self/mountinfo", "");
    let out = system.run(&["adopt", "--persist", "pmem0"]).succeeded();
    for file in admins {
        let told = format!("{file} noted it, too, and is removed");
        assert!(out.contains(&told), "{out}");
    }
    assert_eq!(system.names("etc/rdax.d"), [format!("{UUID}.conf")]);
}

#[test]
fn releasing_forgets_what_was_persistent() {
    let system = System::with_module(&[]);
    system.put(
        "etc/rdax.d/pmem0.conf",
        &format!("device=pmem0\nuuid={UUID}\n"),
    );
    let out = system.run(&["release", "--persist", "pmem0"]).succeeded();
    assert!(out.contains("not be adopted at boot"), "{out}");
    assert!(!system.path("etc/rdax.d/pmem0.conf").exists());
    // Also when the device is there no more.
    system.put("etc/rdax.d/pmem8.conf", "device=pmem8\n");
    system.run(&["release", "--persist", "pmem8"]).succeeded();
    system
        .run(&["release", "pmem8"])
        .failed(1, &["no such device"]);
    assert_eq!(
        system.run(&["release", "pmem0"]).succeeded(),
        "pmem0: not adopted\n"
    );
}

#[test]
fn device_dax_is_noted_by_its_namespace() {
    const OTHER: &str = "0d65c71f-299d-4b11-9a9f-92d92a164afb";
    let system = System::with_module(&[]);
    system.dax("dax2.0", "device_dax");
    let uuid = format!("{REGION}/region2/dax2.0/uuid");
    system.put(&uuid, &format!("{OTHER}\n"));
    let list = |system: &System| system.json(&["list", "--json", "dax2.0"])[0].clone();
    assert_eq!(list(&system)["uuid"], OTHER);
    // A note of its name, of an earlier version, is for it still, and for whatever has the name.
    system.put("etc/rdax.d/dax2.0.conf", "device=dax2.0\n");
    assert_eq!(list(&system)["persistent"], true);
    let (_, found) = doctor(&system, &["dax2.0"]);
    assert!(format!("{found:?}").contains("by its name"), "{found:#?}");
    // It is noted before the driver is asked, which takes nothing here.
    let did = system.run(&["adopt", "--persist", "dax2.0"]);
    assert!(did.out.contains("at every boot"), "{}{}", did.out, did.err);
    let both = [format!("{OTHER}.conf"), "dax2.0.conf".to_owned()];
    assert_eq!(system.names("etc/rdax.d"), both);
    assert!(did.err.contains("dax2.0.conf notes it, too"), "{}", did.err);
    let driver = system.path(&format!("{REGION}/region2/dax2.0/dax2.0/driver"));
    let kernels_own = fs::read_link(&driver).unwrap();
    let bind = |to: &Path| {
        fs::remove_file(&driver).unwrap();
        symlink(to, &driver).unwrap();
    };
    bind(Path::new("../../../../../../bus/dax/drivers/rdax"));
    system.dir("sys/bus/dax/drivers/rdax");
    let out = system.run(&["adopt", "--persist", "dax2.0"]).succeeded();
    assert!(out.contains("dax2.0.conf noted it, too, and is"), "{out}");
    assert_eq!(system.names("etc/rdax.d"), [format!("{OTHER}.conf")]);
    bind(&kernels_own);
    assert!(system
        .get(&format!("etc/rdax.d/{OTHER}.conf"))
        .contains(&format!("device=dax2.0\nuuid={OTHER}\n")));
    assert_eq!(list(&system)["persistent"], true);
    let (_, found) = doctor(&system, &["dax2.0"]);
    assert!(format!("{found:?}").contains("at every boot"), "{found:#?}");
    // Another one has the name.
    system.put(&uuid, &format!("{UUID}\n"));
    let list = system.json(&["list", "--json"]);
    let of_it: Vec<_> = list.as_array().unwrap().iter().collect();
    let (there, missing) = (of_it[2], of_it[3]);
    assert_eq!(
        (&there["chardev"], &there["persistent"]),
        (&"dax2.0".into(), &false.into())
    );
    assert_eq!(
        (&missing["uuid"], &missing["persistent"]),
        (&OTHER.into(), &true.into())
    );
    assert_eq!(missing["chardev"], "dax2.0");
    assert!(missing.get("blockdev").is_none(), "{missing}");
    system.put("sys/bus/dax/drivers/device_dax/unbind", "");
    system.run(&["boot", "dax2.0"]).succeeded();
    assert_eq!(system.get("sys/bus/dax/drivers/device_dax/unbind"), "");
    system.run(&["release", "--persist", OTHER]).succeeded();
    assert!(system.names("etc/rdax.d").is_empty());
}
