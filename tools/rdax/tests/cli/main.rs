// SPDX-License-Identifier: GPL-2.0

//! The command as its users see it, on a system that is laid out in a directory.

mod adopt;
mod boot;
mod docs;
mod doctor;
mod list;
mod persist;
mod system;
mod who;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, net::UnixStream}, //
    },
    path::Path,
    process::{Command, Stdio}, //
};
use system::*;

#[test]
fn who_reads_no_further_is_no_error() {
    let system = System::with_module(&["pmem0"]);
    for command in ["list", "doctor", "completions bash"] {
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_rdax"))
            .args(command.split(' '))
            .env("RDAX_ROOT", system.0.path())
            .stdout(OwnedFd::from(writer))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
    }
}

#[test]
fn stat_shows_what_was_counted() {
    let system = System::with_module(&["pmem0"]);
    system.run(&["stat"]).failed(1, &["no device is adopted"]);
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    assert_eq!(
        system.run(&["stat"]).succeeded(),
        "COUNTER     pmem0\nread_pmd        7\nread_bytes  4 KiB\n"
    );
    assert!(system
        .run(&["stat", "-a", "pmem0"])
        .succeeded()
        .contains("read_pte"));
    let json = system.json(&["stat", "--json"]);
    assert_eq!(json["devices"][0]["blockdev"], "pmem0");
    assert_eq!(json["devices"][0]["counters"]["read_bytes"], 4096);
    system
        .run(&["stat", "pmem1"])
        .failed(1, &["rdax adopt pmem1"]);
    let lines = system
        .run(&["stat", "-j", "-i", "1", "-c", "2"])
        .succeeded();
    assert_eq!(lines.lines().count(), 2);
    for line in lines.lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(json["devices"][0]["per_second"]["read_pmd"], 0.0);
    }
}

/// Of all that are adopted, whichever those are.
#[test]
fn stat_goes_on_without_a_device_that_is_released() {
    let system = System::with_module(&["pmem0", "pmem1"]);
    for name in ["pmem0", "pmem1"] {
        system.put(&format!("sys/kernel/config/rdax/{name}/adopt"), "1\n");
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_rdax"))
        .args(["stat", "--json", "-i", "1"])
        .env("RDAX_ROOT", system.0.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Ends with the output, or when what is waited for is said.
    let mut wait_for = |count: usize| loop {
        let line = lines.next().expect("it has ended").unwrap();
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        let devices = json["devices"].as_array().unwrap();
        if devices.len() == count {
            break devices.clone();
        }
    };
    wait_for(2);
    fs::remove_dir_all(system.path("sys/kernel/config/rdax/pmem0")).unwrap();
    assert_eq!(wait_for(1)[0]["blockdev"], "pmem1");
    system.put("sys/kernel/config/rdax/pmem0/stats", "read_pte 3\n");
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    assert_eq!(wait_for(2)[0]["counters"]["read_pte"], 3);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn json_does_not_command_the_terminal() {
    let system = System::with_module(&["pmem0"]);
    system.mount("259:0", "/mnt/a\u{9b}2J", "xfs", "rw,dax=always");
    for command in ["doctor", "list"] {
        let did = system.run(&[command, "--json"]);
        assert!(did.out.contains("/mnt/a\\u009b2J"), "{}", did.out);
        assert!(!did.out.contains('\u{9b}'), "{}", did.out);
    }
}

#[test]
fn a_name_is_the_devices_wherever_it_is_asked_for() {
    let system = System::new();
    system.dir("mnt/pmem0");
    system.put("mnt/pmem1", "");
    for (name, says) in [
        ("pmem0", "rdax is not"),
        ("pmem1", "rdax is not"),
        ("./pmem0", "neither a file nor a device"),
        ("pmem7", "no such file or device"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_rdax"))
            .args(["who", name])
            .env("RDAX_ROOT", system.0.path())
            .current_dir(system.path("mnt"))
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(err.contains(says), "{name}: {err}");
    }
}

#[test]
fn a_layout_that_is_ended_leaves_nothing() {
    for signal in ["-INT", "-TERM", "-KILL"] {
        let system = System::with_module(&["pmem0"]);
        system.dir("mnt");
        let device = fs::metadata(system.path("mnt")).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let number = format!("sys/dev/block/{major}:{minor}");
        system.dir(&number);
        let pipe = system.path(&format!("{number}/dev"));
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        // Who runs the tests in the background may have SIGINT ignored, which is handed on.
        let mut child = Command::new("env")
            .arg("--default-signal=INT")
            .arg(env!("CARGO_BIN_EXE_rdax"))
            .args(["layout", "create"])
            .arg(system.path("mnt/file"))
            .arg("1G")
            .env("RDAX_ROOT", system.0.path())
            .spawn()
            .unwrap();
        // Open when the command wants to know of the file's device, and waits for what is written.
        let writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        let sent = Command::new("sh")
            .args(["-c", "kill $0 $1", signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        let status = child.wait().unwrap();
        drop(writer);
        assert_eq!(status.code(), None, "{signal}: {status}");
        let left = fs::read_dir(system.path("mnt")).unwrap().count();
        assert_eq!(left, 0, "{signal}");
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let system = System::new();
    let script = system.run(&["completions", "bash"]).succeeded();
    assert!(script.contains("rdax") && !script.contains("man-pages DIR"));
    let dir = system.path("man");
    fs::create_dir(&dir).unwrap();
    system
        .run(&["man-pages", dir.to_str().unwrap()])
        .succeeded();
    for page in ["rdax.8", "rdax-adopt.8", "rdax-layout-create.8"] {
        assert!(Path::new(&dir).join(page).exists(), "{page}");
    }
    assert!(!dir.join("rdax-boot.8").exists());
}
