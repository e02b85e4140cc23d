// SPDX-License-Identifier: GPL-2.0

//! What `rdax doctor` finds.

use crate::system::*;
use std::{
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    process::Command, //
};

fn xfs(block_size: u32, unit: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(b"XFSB");
    bytes[4..8].copy_from_slice(&block_size.to_be_bytes());
    bytes[84..88].copy_from_slice(&(1u32 << 20).to_be_bytes());
    bytes[88..92].copy_from_slice(&1u32.to_be_bytes());
    bytes[184..188].copy_from_slice(&unit.to_be_bytes());
    bytes
}

#[test]
fn doctor_finds_nothing_where_all_is_well() {
    let system = System::with_module(&["pmem0"]);
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    system.put(
        &format!("{REGION}/region0/pfn0.0/resource"),
        "0x140000000\n",
    );
    system.put(
        "etc/rdax.d/pmem0.conf",
        &format!("device=pmem0\nuuid={UUID}\n"),
    );
    fs::write(system.path("dev/pmem0"), xfs(4096, 512)).unwrap();
    system.mount("259:0", "/mnt/a", "xfs", "rw,dax=always");
    for target in ["pmem0", "/dev/pmem0", "/mnt/a"] {
        let (status, found) = doctor(&system, &[target]);
        assert_eq!(status, 0, "{found:?}");
        assert!(found.iter().all(|(status, _)| status == "ok"), "{found:?}");
    }
    let text = system.run(&["doctor", "pmem0"]).succeeded();
    assert!(text.ends_with("Nothing is in the way.\n"), "{text}");
}

#[test]
fn doctor_has_a_fix_for_each_problem() {
    let system = System::new();
    system.put("proc/sys/kernel/osrelease", "6.12.48+deb13-amd64\n");
    system.put(
        "sys/kernel/security/lockdown",
        "none [integrity] confidentiality\n",
    );
    system.put("sys/module/module/parameters/sig_enforce", "N\n");
    system.put(
        &format!("{REGION}/region0/pfn0.0/resource"),
        "0x101201000\n",
    );
    fs::write(system.path("dev/pmem0"), xfs(1024, 0)).unwrap();
    system.mount("259:0", "/mnt/a", "xfs", "rw,dax=never");
    let (status, found) = doctor(&system, &[]);
    assert_eq!(status, 1);
    for (status, parts) in [
        ("problem", "kernel | 6.12.48"),
        ("note", "module | there is none for 6.12.48"),
        ("note", "signature | the kernel is locked down"),
        (
            "problem",
            "4 KiB past a multiple of 2 MiB | ndctl create-namespace -f -e namespace0.0",
        ),
        ("problem", "pmem0 | is not adopted | umount /mnt/a"),
        ("problem", "pmem0 | the blocks of its xfs have 1 KiB"),
        ("problem", "/mnt/a | mounted with dax=never"),
        (
            "problem",
            "pmem1 | namespace1.0 is in mode raw, not fsdax | ndctl",
        ),
    ] {
        assert!(
            found
                .iter()
                .any(|(is, what)| is == status && what.contains(parts)),
            "no {parts} in {found:#?}"
        );
    }
    for (status, what) in &found {
        assert!(
            status != "problem" || !what.ends_with("| "),
            "no fix: {what}"
        );
    }
    system.put("proc/sys/kernel/osrelease", "7.3.4+deb13-amd64\n");
    let (_, found) = doctor(&system, &[]);
    let missing = |(status, what): &(String, String)| {
        status == "problem" && what.contains("module | rdax is not installed for 7.3.4")
    };
    assert!(found.iter().any(missing), "{found:#?}");
}

#[test]
fn doctor_notes_what_is_in_the_way_of_the_largest() {
    let system = System::with_module(&["pmem0"]);
    system.put("sys/kernel/config/rdax/pmem0/adopt", "1\n");
    system.put("sys/kernel/config/rdax/pmem0/max_order", "pmd\n");
    fs::remove_dir(system.path("sys/kernel/mm/ksm")).unwrap();
    fs::write(system.path("dev/pmem0"), xfs(4096, 0)).unwrap();
    system.mount("259:0", "/mnt/a", "xfs", "rw");
    let (status, found) = doctor(&system, &["/mnt/a"]);
    assert_eq!(status, 0, "{found:?}");
    for part in [
        "CONFIG_KSM",
        "18 MiB past a multiple of 1 GiB",
        "rdax release pmem0, then ndctl create-namespace",
        "rdax adopt --max-order 1G pmem0",
        "rdax adopt --persist pmem0",
        "su: no stripe unit",
        "mounted without dax=always",
    ] {
        assert!(
            found
                .iter()
                .any(|(is, what)| is == "note" && what.contains(part)),
            "no {part} in {found:#?}"
        );
    }
}

/// An XFS with groups of 1 GiB.
fn xfs_in_small_groups() -> Vec<u8> {
    let mut bytes = xfs(4096, 512);
    bytes[84..88].copy_from_slice(&(1u32 << 18).to_be_bytes());
    bytes
}

/// A system whose pmem0 has this size, in bytes, and such an XFS, and what the doctor says of its groups.
fn with_small_groups(size: u64) -> (System, String) {
    let system = System::with_module(&[]);
    let above = format!("{REGION}/region0/pfn0.0");
    system.put(&format!("{above}/resource"), "0x140000000\n");
    let sectors = (size / 512).to_string();
    system.put(&format!("{above}/block/pmem0/size"), &sectors);
    fs::write(system.path("dev/pmem0"), xfs_in_small_groups()).unwrap();
    let (_, found) = doctor(&system, &["pmem0"]);
    let what = found
        .iter()
        .find(|(_, what)| what.contains("allocation groups of 1 GiB"));
    let what = what.unwrap_or_else(|| panic!("{size}: {found:#?}"));
    (system, what.1.clone())
}

#[test]
fn mkfs_takes_what_doctor_advises() {
    const MIB: u64 = 1 << 20;
    for size in [2560, 3022, 4096, 5120, 8192, 9700, 11264, 12289, 31900] {
        let (system, what) = with_small_groups(size * MIB);
        let command = what
            .rsplit(" | ")
            .next()
            .and_then(|fix| fix.strip_suffix(" /dev/pmem0 (this erases it)"));
        let command = command.unwrap_or_else(|| panic!("{size}: {what}"));
        let image = system.path("image");
        fs::File::create(&image)
            .unwrap()
            .set_len(size * MIB)
            .unwrap();
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("mkfs.xfs"));
        let made = Command::new("/usr/sbin/mkfs.xfs")
            .args(words)
            .arg(&image)
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{size} MiB: {command}: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        // It lets a file of 1 GiB have a place of its own, which doctor sees, too.
        let mut bytes = vec![0; 4096];
        fs::File::open(&image)
            .unwrap()
            .read_exact(&mut bytes)
            .unwrap();
        fs::write(system.path("dev/pmem0"), bytes).unwrap();
        let (_, found) = doctor(&system, &["pmem0"]);
        assert!(
            !format!("{found:?}").contains("allocation groups"),
            "{size}: {found:#?}"
        );
    }
}

#[test]
fn doctor_advises_what_can_be_mounted() {
    let system = System::with_module(&["pmem0"]);
    let advice = |name: &str| format!("{:#?}", doctor(&system, &[name]).1);
    // It does not begin on 1 GiB, so that groups of another size are of no use.
    fs::write(system.path("dev/pmem0"), xfs_in_small_groups()).unwrap();
    let said = advice("pmem0");
    assert!(!said.contains("allocation groups"), "{said}");
    let name = system.partition(1);
    let partition = format!("{REGION}/region0/pfn0.0/block/pmem0/{name}");
    let node = format!("dev/{name}");
    for (text, size, command) in [
        (vec![0; 4096], 1u64 << 30, "mkfs.xfs -f -m reflink=0 -d su"),
        (vec![0; 4096], 1 << 28, "mkfs.ext4 -b 4096 -E"),
        (xfs(1024, 512), 1 << 30, "mkfs.xfs -f -m reflink=0 -b size"),
        (xfs(4096, 0), 1 << 30, "mkfs.xfs -f -m reflink=0 -d su"),
    ] {
        system.put(&format!("{partition}/size"), &(size / 512).to_string());
        fs::write(system.path(&node), text).unwrap();
        let said = advice(&name);
        assert!(said.contains(command), "no {command}: {said}");
    }
}

#[test]
fn doctor_says_what_is_too_small() {
    for (size, says) in [
        (1u64 << 30, "nor on a device of 1 GiB"),
        // Too small for XFS, but not for ext4.
        (2 << 30, "packed_meta_blocks=1"),
        ((2 << 30) + (32 << 20), "packed_meta_blocks=1"),
    ] {
        let (_, what) = with_small_groups(size);
        assert!(
            what.contains(says) && !what.contains("agsize"),
            "{size}: {what}"
        );
    }
}

#[test]
fn doctor_tells_of_what_was_made_anew() {
    const OTHER: &str = "0d65c71f-299d-4b11-9a9f-92d92a164afb";
    let system = System::with_module(&["pmem0"]);
    system.put(
        "etc/rdax.d/pmem0.conf",
        &format!("device=pmem0\nuuid={OTHER}\n"),
    );
    system.mount("259:0", "/mnt/a", "xfs", "rw,dax=always");
    let is_told = |target: &[&str]| {
        let (_, found) = doctor(&system, target);
        found.iter().any(|(status, what)| {
            status == "note" && what.contains(&format!("rdax release --persist {OTHER}"))
        })
    };
    for target in [&[][..], &["pmem0"], &["/mnt/a"]] {
        assert!(is_told(target), "{target:?}");
    }
    assert!(!is_told(&["pmem1"]));
}

#[test]
fn doctor_says_what_it_does_not_know() {
    let system = System::with_module(&[]);
    system.run(&["doctor", "/nowhere"]).failed(2, &["/nowhere"]);
    system.dir("root");
    system
        .run(&["doctor", "/root"])
        .failed(2, &["overlay", "no block device"]);
}

#[test]
fn doctor_has_nothing_erased_that_somebody_has() {
    let no_mkfs = |system: &System, says: &str| {
        let (status, found) = doctor(system, &["pmem0"]);
        let said = format!("{found:#?}");
        assert!(!said.contains("mkfs") && said.contains(says), "{said}");
        status
    };
    let system = System::with_module(&["pmem0"]);
    fs::write(system.path("dev/pmem0"), vec![0; 4096]).unwrap();
    let (_, found) = doctor(&system, &["pmem0"]);
    assert!(
        format!("{found:?}").contains("/dev/pmem0 (this erases what is on it)"),
        "{found:#?}"
    );
    let unless = "unless it is the realtime or log device of an XFS that is not mounted";
    assert!(format!("{found:?}").contains(unless), "{found:#?}");
    // Something is there, at the beginning or at the end.
    for at in [600, (2 << 20) - 600] {
        let mut text = vec![0; 2 << 20];
        text[at] = 1;
        fs::write(system.path("dev/pmem0"), text).unwrap();
        no_mkfs(&system, "something else");
        no_mkfs(&system, unless);
    }
    fs::write(system.path("dev/pmem0"), vec![0; 4096]).unwrap();
    let name = system.partition(1);
    assert_eq!(
        no_mkfs(
            &system,
            &format!("it has partitions; adopt these instead: {name}")
        ),
        0
    );
    system.dir(&format!("{REGION}/region0/pfn0.0/block/pmem0/holders/dm-0"));
    assert_eq!(no_mkfs(&system, "it is part of dm-0"), 0);
}

#[test]
fn doctor_knows_what_is_part_of_a_filesystem_elsewhere() {
    for (option, says) in [
        (
            "rtdev",
            "is the realtime device of the xfs that is mounted on /mnt/a",
        ),
        ("logdev", "is the log of the xfs that is mounted on /mnt/a"),
    ] {
        let system = System::with_module(&["pmem0"]);
        fs::write(system.path("dev/pmem0"), vec![0; 4096]).unwrap();
        system.mount("259:9", "/mnt/a", "xfs", &format!("rw,{option}=/dev/pmem0"));
        let (_, found) = doctor(&system, &["pmem0"]);
        let said = format!("{found:#?}");
        for part in [says, "umount /mnt/a, rdax adopt pmem0"] {
            assert!(said.contains(part), "no '{part}' in: {said}");
        }
        assert!(!said.contains("mkfs"), "{said}");
    }
}

#[test]
fn doctor_goes_by_the_device_that_a_file_is_on() {
    let system = System::with_module(&["pmem0"]);
    system.put("mnt/a/f", "");
    let device = fs::metadata(system.path("mnt/a/f")).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let number = format!("{major}:{minor}");
    let disk = REGION.strip_prefix("sys/").unwrap().to_owned() + "/region0/pfn0.0/block/pmem0";
    system.link(&format!("../../{disk}"), &format!("sys/dev/block/{number}"));
    // The first is hidden by the second.
    system.mount("259:1", "/mnt/a", "xfs", "rw");
    system.mount(&number, "/mnt", "xfs", "rw");
    let (_, found) = doctor(&system, &["/mnt/a/f"]);
    let said = format!("{found:#?}");
    assert!(
        said.contains("pmem0 |") && !said.contains("pmem1 |"),
        "{said}"
    );
}

#[test]
fn a_name_begins_no_line_of_doctors() {
    let system = System::with_module(&["pmem0"]);
    system.mount("259:0", "/mnt", "xfs", "rw");
    const LINE: &str = "ok       all: is well";
    let name = format!("mnt/f\n{LINE}\n");
    system.put(&name, "");
    let did = system.run(&["doctor", &format!("/{name}")]);
    assert!(did.out.contains("all: is well"), "{}{}", did.out, did.err);
    assert!(
        !did.out.lines().any(|line| line.starts_with(LINE)),
        "{}",
        did.out
    );
}

#[test]
fn doctor_mounts_no_more_than_was_bound() {
    let system = System::with_module(&["pmem0"]);
    system.put(
        "proc/self/mountinfo",
        "40 22 259:0 /app /srv rw - xfs /dev/pmem0 rw,dax=never\n\
         41 22 259:0 / /mnt rw - xfs /dev/pmem0 rw,dax=never\n",
    );
    let (_, found) = doctor(&system, &["pmem0"]);
    let said = format!("{found:#?}");
    assert!(!said.contains("/dev/pmem0 /srv"), "{said}");
    assert!(said.contains("this is /app of /dev/pmem0"), "{said}");
    assert!(
        said.contains("mount -o dax=always /dev/pmem0 /mnt"),
        "{said}"
    );
}
