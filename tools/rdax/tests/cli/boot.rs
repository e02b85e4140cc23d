// SPDX-License-Identifier: GPL-2.0

//! What is done at boot.

use crate::system::*;
use std::{fs, process::Command};

#[test]
fn boot_notes_why_it_failed() {
    let system = System::new();
    system.put("etc/rdax.d/pmem0.conf", "device=pmem0\n");
    system.put("proc/sys/kernel/osrelease", "6.12.48+deb13-amd64\n");
    system
        .run(&["boot", "pmem0"])
        .failed(1, &["at boot", "6.12.48"]);
    let out = system.run(&["list"]).succeeded();
    assert!(out.contains("6.12.48"), "{out}");

    let system = System::with_module(&["pmem0"]);
    system.put("etc/rdax.d/pmem0.conf", "device=pmem0\n");
    system.put("etc/rdax.d/broken.conf", "colour=red\n");
    system.put("run/rdax/pmem0.failed", "no luck\n");
    let did = system.run(&["boot", "pmem0"]);
    assert!(
        did.err.contains("broken.conf: 'colour' is not known"),
        "{}",
        did.err
    );
    did.succeeded();
    assert!(!system.path("run/rdax/pmem0.failed").exists());
}

#[test]
fn boot_does_not_take_what_it_cannot_read_for_nothing() {
    let system = System::with_module(&["pmem0"]);
    system.put("etc/rdax.d", "");
    system.dir("run/systemd/system");
    system.program("systemctl", "echo \"$@\" >$ROOT/systemctl");
    // The service has a line in the journal; what udev runs has none.
    system.run(&["boot", "--udev", "pmem0"]).succeeded();
    assert_eq!(system.get("systemctl"), "start rdax-adopt@pmem0.service\n");
    system.run(&["boot", "pmem0"]).failed(
        1,
        &["at boot: pmem0: not adopted: whether it is to be is not known: /etc/rdax.d cannot be read"],
    );
    assert_eq!(system.get("sys/kernel/config/rdax/pmem0/adopt"), "0\n");
    let out = system.run(&["list"]);
    assert!(out.out.contains("is not known"), "{}", out.out);
}

#[test]
fn what_can_be_no_file_keeps_nothing_from_a_boot() {
    let system = System::with_module(&["pmem0"]);
    system.put("etc/rdax.d/file", "");
    for (name, to) in [
        ("loop", "loop.conf".to_owned()),
        ("none", "none".to_owned()),
        ("through", "file/below".to_owned()),
        ("long", "n".repeat(300)),
        ("dir", ".".to_owned()),
    ] {
        let link = format!("etc/rdax.d/{name}.conf");
        system.link(&to, &link);
        let did = system.run(&["boot", "pmem0"]);
        let told = format!("/{name}.conf cannot be read");
        assert!(did.err.contains(&told), "{name}: {}", did.err);
        assert_eq!(did.succeeded(), "", "{name}");
        assert_eq!(
            system.json(&["list", "--json"])[0]["persistent"],
            false,
            "{name}"
        );
        fs::remove_file(system.path(&link)).unwrap();
    }
}

#[test]
fn an_initial_file_system_gets_what_is_a_file() {
    let hook = include_str!("../../../boot/initramfs-hook")
        .replace(" /etc/rdax.d", " $ROOT/etc/rdax.d")
        .replace(" /usr/share/initramfs-tools", " $ROOT");
    let system = System::new();
    system.put(
        "hook-functions",
        "copy_exec() { :; }\nmanual_add_modules() { echo \"$@\"; }\n",
    );
    let run = || {
        // It would never end where it waits for a pipe.
        let output = Command::new("timeout")
            .args(["60", "sh", "-euc", &hook])
            .env("ROOT", system.0.path())
            .env("DESTDIR", system.path("initial"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    system.link("a.conf", "etc/rdax.d/a.conf");
    let pipe = system.path("etc/rdax.d/pipe.conf");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    assert_eq!(run(), "");
    system.put("etc/rdax.d/pmem0.conf", "device=pmem0\n");
    assert!(run().starts_with("rdax "));
    assert_eq!(system.names("initial/etc/rdax.d"), ["pmem0.conf"]);
}

#[test]
fn udev_hands_over_to_systemd() {
    let system = System::with_module(&["pmem0"]);
    system.dir("run/systemd/system");
    system.program("systemctl", "echo \"$@\" >$ROOT/systemctl");
    // Nothing is asked for.
    system.run(&["boot", "--udev", "pmem0"]).succeeded();
    assert!(!system.path("systemctl").exists());
    system.put("etc/rdax.d/pmem0.conf", "device=pmem0\n");
    system.run(&["boot", "--udev", "pmem0"]).succeeded();
    assert_eq!(system.get("systemctl"), "start rdax-adopt@pmem0.service\n");
    assert_eq!(system.get("sys/kernel/config/rdax/pmem0/adopt"), "0\n");
    // Without systemd it is done at once.
    fs::remove_dir(system.path("run/systemd/system")).unwrap();
    system.run(&["boot", "--udev", "pmem0"]).succeeded();
    assert_eq!(system.get("sys/kernel/config/rdax/pmem0/adopt"), "1");
}
