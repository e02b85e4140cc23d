// SPDX-License-Identifier: GPL-2.0

//! Adopting and releasing devices.

use crate::system::*;
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{symlink, MetadataExt},
            net::UnixStream,
        }, //
    },
    process::{Command, Stdio}, //
};

/// A standard output that nobody reads, and one that takes nothing.
fn useless() -> [(&'static str, OwnedFd); 2] {
    let (_, closed) = UnixStream::pair().unwrap();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    [("closed", closed.into()), ("full", full.into())]
}

#[test]
fn what_is_done_does_not_depend_on_who_reads() {
    for (kind, out) in useless() {
        let system = System::with_module(&["pmem0"]);
        let name = system.partition(1);
        let out = || out.try_clone().unwrap();
        let adopted = |name: &str| system.get(&format!("sys/kernel/config/rdax/{name}/adopt"));
        let check = |did: Did| {
            if kind == "closed" {
                assert_eq!(did.err, "");
                did.succeeded();
            } else {
                assert_eq!(did.err.lines().count(), 1, "{}", did.err);
                did.failed(1, &["rdax: the answer cannot be printed: No space left"]);
            }
        };
        check(system.run_with_out(&["adopt", "--persist", "pmem0", &name], out()));
        assert_eq!((adopted("pmem0"), adopted(&name)), ("1".into(), "1".into()));
        assert_eq!(system.names("etc/rdax.d").len(), 2);
        // The directories stay, as they are not empty here; the module's go.
        let did = system.run_with_out(&["release", "--persist", "pmem0", &name], out());
        assert!(!did.err.contains("panicked"), "{}", did.err);
        assert_eq!((adopted("pmem0"), adopted(&name)), ("0".into(), "0".into()));
        assert!(system.names("etc/rdax.d").is_empty());
        system.put("etc/rdax.d/pmem0.conf", "device=pmem0\n");
        check(system.run_with_out(&["boot", "pmem0"], out()));
        assert_eq!(adopted("pmem0"), "1");
    }
}

#[test]
fn what_is_done_does_not_depend_on_who_reads_complaints() {
    for (kind, err) in useless() {
        let system = System::with_module(&["pmem0"]);
        let status = Command::new(env!("CARGO_BIN_EXE_rdax"))
            .args(["adopt", "pmem5", "pmem0"])
            .env("RDAX_ROOT", system.0.path())
            .stdout(Stdio::null())
            .stderr(err)
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(1), "{kind}");
        assert_eq!(system.get("sys/kernel/config/rdax/pmem0/adopt"), "1");
    }
}

#[test]
fn adopting_writes_switches_first() {
    let system = System::with_module(&["pmem0"]);
    let out = system
        .run(&[
            "adopt",
            "--max-order=2M",
            "--fault-around",
            "4k",
            "/dev/pmem0",
        ])
        .succeeded();
    assert_eq!(out, "pmem0: adopted\n");
    let config = "sys/kernel/config/rdax/pmem0";
    assert_eq!(system.get(&format!("{config}/adopt")), "1");
    assert_eq!(system.get(&format!("{config}/max_order")), "pmd");
    assert_eq!(system.get(&format!("{config}/fault_around")), "4096");
    assert_eq!(system.get(&format!("{config}/write_order")), "2\n");
    let again = system.run(&["adopt", "pmem0"]).succeeded();
    assert_eq!(again, "pmem0: adopted already\n");
}

#[test]
fn links_lead_to_the_kernels_name() {
    let system = System::with_module(&["pmem0"]);
    system.link("../../pmem0", "dev/disk/by-label/data");
    let out = system
        .run(&["adopt", "/dev/disk/by-label/data"])
        .succeeded();
    assert_eq!(out, "pmem0: adopted\n");
}

#[test]
fn adopting_says_what_to_do() {
    let system = System::new();
    system.run(&["adopt", "pmem0"]).failed(
        1,
        &["module rdax is not loaded", "not installed", "make kdir"],
    );
    system.put(
        "lib/modules/7.3.4+deb13-amd64/modules.dep",
        "updates/dkms/rdax.ko.xz: kernel/fs/configfs/configfs.ko.xz\n",
    );
    system
        .run(&["adopt", "pmem0"])
        .failed(1, &["modprobe rdax", "--load"]);
    system.put("sys/module/rdax/version", "0.1.0\n");
    system
        .run(&["adopt", "pmem0"])
        .failed(1, &["mount -t configfs"]);

    let system = System::new();
    system.put("proc/sys/kernel/osrelease", "6.12.48+deb13-amd64\n");
    for more in [&["adopt", "pmem0"][..], &["adopt", "--load", "pmem0"]] {
        system
            .run(more)
            .failed(1, &["6.12.48", "7.2 and 7.3", "trixie-backports"]);
    }

    let system = System::with_module(&["pmem0"]);
    system
        .run(&["adopt", "pmem4"])
        .failed(1, &["pmem4", "pmem0, pmem1"]);
    system.run(&["adopt", "pmem1"]).failed(
        1,
        &[
            "mode raw",
            "ndctl create-namespace -f -e namespace1.0 -m fsdax",
        ],
    );
    system.mount("259:0", "/mnt/a", "xfs", "rw");
    // The others are adopted all the same.
    let did = system.run(&["adopt", "pmem0"]);
    did.failed(1, &["mounted on /mnt/a", "umount /mnt/a"]);
}

#[test]
fn the_root_filesystem_is_not_to_be_unmounted() {
    let system = System::with_module(&["pmem0"]);
    system.mount("259:0", "/", "ext4", "rw,dax=always");
    let advice = [
        "mounted on /;",
        "rdax adopt --persist pmem0",
        "update-initramfs -u",
        "reboot",
    ];
    system.run(&["adopt", "pmem0"]).failed(1, &advice);
    system
        .run(&["adopt", "--persist", "pmem0"])
        .failed(1, &advice);
    let said = system.run(&["doctor", "pmem0"]);
    assert!(said.out.contains("update-initramfs -u"), "{}", said.out);
    assert!(!said.out.contains("umount"), "{}", said.out);
}

#[test]
fn adopting_what_is_part_of_something() {
    let system = System::with_module(&["pmem0"]);
    system.dir(&format!("{REGION}/region0/pfn0.0/block/pmem0/holders/dm-0"));
    system.run(&["adopt", "pmem0"]).failed(1, &["part of dm-0"]);
}

#[test]
fn programs_are_found_without_a_search_path() {
    let system = System::new();
    let run = |path: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rdax"));
        command.args(["adopt", "--load", "pmem0"]);
        command.env_remove("PATH").env("RDAX_ROOT", system.0.path());
        if let Some(path) = path {
            command.env("PATH", path);
        }
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    for path in [None, Some(""), Some("/bin"), Some("/nowhere")] {
        let said = run(path);
        assert!(!said.contains("cannot be run"), "{path:?}: {said}");
        assert!(said.contains("cannot be loaded"), "{path:?}: {said}");
    }
}

#[test]
fn the_module_can_be_loaded_first() {
    let system = System::new();
    system.program(
        "modprobe",
        "echo \"$@\" >$ROOT/modprobe; mkdir -p $ROOT/sys/module/rdax $ROOT/sys/kernel/config/rdax/pmem0; \
         echo 0 >$ROOT/sys/kernel/config/rdax/pmem0/adopt",
    );
    let out = system.run(&["adopt", "--load", "pmem0"]).succeeded();
    assert_eq!(out, "pmem0: adopted\n");
    assert_eq!(system.get("modprobe"), "rdax\n");
    let system = System::new();
    system.program(
        "modprobe",
        "echo 'modprobe: ERROR: Key was rejected by service' >&2; exit 1",
    );
    system
        .run(&["adopt", "--load", "pmem0"])
        .failed(1, &["Key was rejected", "mokutil --import"]);
}

#[test]
fn a_directory_that_goes_meanwhile_is_explained() {
    let system = System::with_module(&[]);
    system
        .run(&["adopt", "pmem0"])
        .failed(1, &["at the same time", "rdax list"]);
}

#[test]
fn a_mounted_device_is_not_released() {
    let system = System::with_module(&["pmem0"]);
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    system.mount("259:0", "/mnt/a", "ext4", "rw,dax=always");
    system
        .run(&["release", "pmem0"])
        .failed(1, &["umount /mnt/a"]);
    assert_eq!(system.get("sys/kernel/config/rdax/pmem0/adopt"), "1\n");
}

#[test]
fn a_dax_device_that_is_in_use_is_left() {
    let system = System::with_module(&[]);
    system.dax("dax2.0", "device_dax");
    system.put("sys/bus/dax/drivers/rdax/new_id", "");
    system.put("sys/bus/dax/drivers/rdax/remove_id", "");
    system.put("sys/bus/dax/drivers/device_dax/bind", "");
    system.put("proc/77/comm", "qemu\n");
    // Any character device will do.
    let dir = format!("{REGION}/region2/dax2.0/dax2.0");
    system.put(&format!("{dir}/dev"), "1:3\n");
    system.put("dev/dax2.0", "");
    let used = || {
        system
            .run(&["adopt", "dax2.0"])
            .failed(1, &["not adopted", "in use by qemu (77)"]);
        let driver = system.path(&format!("{dir}/driver"));
        let kernels_own = fs::read_link(&driver).unwrap();
        fs::remove_file(&driver).unwrap();
        symlink("../../../../../../bus/dax/drivers/rdax", &driver).unwrap();
        system
            .run(&["release", "dax2.0"])
            .failed(1, &["not released", "in use by qemu (77)"]);
        fs::remove_file(&driver).unwrap();
        symlink(kernels_own, &driver).unwrap();
    };
    system.link("/dev/null", "proc/77/fd/5");
    used();
    fs::remove_file(system.path("proc/77/fd/5")).unwrap();
    // The first thread has ended.
    system.link("/dev/null", "proc/77/task/78/fd/5");
    used();
    fs::remove_file(system.path("proc/77/task/78/fd/5")).unwrap();
    let status = fs::metadata(system.path("dev/dax2.0")).unwrap();
    let (device, inode) = (status.dev(), status.ino());
    let number = format!(
        "{:x}:{:x}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    system.put(
        "proc/77/task/78/maps",
        &format!("7f0000200000-7f0000400000 rw-s 00000000 {number} {inode} /dev/dax2.0\n"),
    );
    used();
    fs::remove_file(system.path("proc/77/task/78/maps")).unwrap();
    // Whether the driver took it is looked at: the bus says nothing.
    system
        .run(&["adopt", "dax2.0"])
        .failed(1, &["did not take it"]);
    assert_eq!(
        system.get("sys/bus/dax/drivers/device_dax/unbind"),
        "dax2.0"
    );
    assert_eq!(system.get("sys/bus/dax/drivers/rdax/remove_id"), "dax2.0");
    assert_eq!(system.get("sys/bus/dax/drivers/device_dax/bind"), "dax2.0");
}

#[test]
fn a_path_of_something_else_is_no_device() {
    let system = System::with_module(&["pmem0"]);
    system.mount("259:1", "/mnt/pmem0", "xfs", "rw");
    system.put("etc/rdax.d/pmem0.conf", "device=pmem0\n");
    for given in ["/mnt/pmem0", "./pmem0", "nosuch/pmem0", ".."] {
        for command in [
            &["adopt"][..],
            &["adopt", "--persist"],
            &["release", "--persist"],
            &["list"],
            &["stat"],
            &["boot"],
        ] {
            let all = [command, &[given]].concat();
            let did = system.run(&all);
            assert!(
                did.err.contains("there is no such device"),
                "{all:?}: {}",
                did.err
            );
        }
    }
    assert_eq!(system.get("sys/kernel/config/rdax/pmem0/adopt").trim(), "0");
    assert_eq!(system.names("etc/rdax.d"), ["pmem0.conf"]);
    system.run(&["adopt", "/dev/pmem0"]).succeeded();
}

#[test]
fn a_mounted_partition_is_told_of() {
    let system = System::with_module(&["pmem0"]);
    let name = system.partition(1);
    system.mount("259:17", "/mnt/a", "xfs", "rw,dax=always");
    let did = system.run(&["adopt", "pmem0"]);
    did.failed(
        1,
        &[&format!(
            "its partition {name} is mounted on /mnt/a; adopt that instead"
        )],
    );
}

#[test]
fn what_was_given_back_has_no_counters() {
    let system = System::with_module(&["pmem0"]);
    system.put("sys/kernel/config/rdax/pmem0/stats", "read_pte 0\n");
    let did = system.run(&["stat", "pmem0"]);
    did.failed(1, &["pmem0: not adopted; rdax adopt pmem0 hands it over"]);
}

#[test]
fn advice_can_be_pasted() {
    let system = System::with_module(&["pmem0"]);
    system.mount("259:0", "/mnt/a\\040$(b)", "xfs", "rw,dax=never");
    let umount = "umount '/mnt/a $(b)'";
    system.run(&["adopt", "pmem0"]).failed(1, &[umount]);
    let said = system.run(&["doctor", "pmem0"]).out;
    let mount = format!("{umount}, mount -o dax=always /dev/pmem0 '/mnt/a $(b)'");
    assert!(said.contains(&mount), "{said}");
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    system.run(&["release", "pmem0"]).failed(1, &[umount]);
}

/// Has the adoption of pmem0 fail, for no room, when the log has got these lines since it began.
fn fails_with_log(system: &System, since: &str) -> Did {
    let config = "sys/kernel/config/rdax/pmem0";
    let pipes = ["max_order", "fault_around"].map(|name| {
        let pipe = system.path(&format!("{config}/{name}"));
        fs::remove_file(&pipe).unwrap();
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        pipe
    });
    fs::remove_file(system.path(&format!("{config}/write_order"))).unwrap();
    system.link("/dev/full", &format!("{config}/write_order"));
    let child = Command::new(env!("CARGO_BIN_EXE_rdax"))
        .args(["adopt", "--max-order=2M", "--fault-around=4k"])
        .args(["--write-order=0", "pmem0"])
        .env("RDAX_ROOT", system.0.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Open when the command has begun; it waits at the second one meanwhile.
    let first = File::open(&pipes[0]).unwrap();
    if !since.is_empty() {
        let log = OpenOptions::new()
            .append(true)
            .open(system.path("dev/kmsg"));
        log.unwrap().write_all(since.as_bytes()).unwrap();
    }
    let second = File::open(&pipes[1]).unwrap();
    let output = child.wait_with_output().unwrap();
    drop((first, second));
    Did {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What is said of others than pmem0 while it is adopted.
const OF_OTHERS: &str = "\
3,11,11,-;rdax: pmem1: in use; unmount it first
3,12,12,-;rdax: pmem10: in use; unmount it first
3,13,13,-;rdax: pmem0p1: in use; unmount it first
4,14,14,-;rdax: run[335]: a truncate or the like has waited for 10 s for others who use a page: block device \
259:1 inode 5 offset 0, 1 references, 0 of mappings; rdax who says more
4,15,15,-;rdax: pmem0: [336]: a write has waited for 10 s for others who use a page: block device 259:1 \
inode 5 offset 0, 1 references, 0 of mappings; rdax who says more
3,16,16,-;rdax: dax_layout is held by somebody else, a live patch; have it let go and adopt again
3,17,17,-;rdax: pmem1: not adopted (-16)
6,18,18,-;pmem0: detected capacity change
";

#[test]
fn what_the_log_says_of_other_devices_is_no_reason() {
    let before = "3,9,9,-;rdax: pmem0: not capable of DAX; adopt a pmem device in fsdax mode\n";
    let said = |since: &str| {
        let system = System::with_module(&["pmem0"]);
        system.put("dev/kmsg", before);
        let did = fails_with_log(&system, since);
        assert_eq!(did.status, 1, "{}", did.err);
        did.err
    };
    assert_eq!(
        said(OF_OTHERS),
        "rdax: write_order cannot be set to 0: pmem0: not adopted: No space left on device\n"
    );
    let own = "3,20,20,-;rdax: pmem0: write_order is 0 to 8; it stays as it was\n SUBSYSTEM=x\n";
    assert_eq!(
        said(&format!("{OF_OTHERS}{own}")),
        "rdax: write_order cannot be set to 0: pmem0: not adopted: write_order is 0 to 8; it stays as it was\n"
    );
    // What keeps every device from being adopted is followed by whose adoption that has ended.
    let general = "\
3,21,21,-;rdax: ftrace did not take the functions: -16
3,22,22,-;rdax: pmem0: not adopted (-16)
";
    assert_eq!(
        said(&format!("{OF_OTHERS}{general}")),
        "rdax: write_order cannot be set to 0: pmem0: not adopted: ftrace did not take the functions: -16 \
         (ftrace is broken; an earlier warning in dmesg says why)\n"
    );
}

#[test]
fn that_the_log_cannot_be_read_is_said() {
    let system = System::with_module(&["pmem0"]);
    fs::remove_file(system.path("dev/kmsg")).unwrap();
    fails_with_log(&system, "").failed(
        1,
        &[
            "No space left on device",
            "the kernel's log, which may say why, cannot be read (/dev/kmsg: No such file or directory)",
            "dmesg | grep 'rdax: pmem0: '",
        ],
    );
}
