// SPDX-License-Identifier: GPL-2.0

//! The command as its users see it, on a system that is laid out in a directory.

use std::{
    ffi::OsStr,
    fs::{
        self,
        OpenOptions, //
    },
    io::{
        Read,
        Write, //
    },
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{
                symlink,
                MetadataExt,
                PermissionsExt, //
            },
            net::UnixStream, //
        }, //
    },
    path::{
        Path,
        PathBuf, //
    },
    process::{
        Command,
        Stdio, //
    },
    thread, //
};
use tempfile::TempDir;

/// A system with two pmem devices: pmem0 in mode fsdax, pmem1 in mode raw.
struct System(TempDir);

/// What a command did.
struct Did {
    status: i32,
    out: String,
    err: String,
}

impl Did {
    fn succeeded(self) -> String {
        assert_eq!(self.status, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// What it said when it failed, and that it says all of these.
    fn failed(self, status: i32, parts: &[&str]) {
        assert_eq!(self.status, status, "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.err.contains(part), "no '{part}' in: {}", self.err);
        }
    }
}

const UUID: &str = "fd65c71f-299d-4b11-9a9f-92d92a164afb";
const REGION: &str = "sys/devices/platform/ndbus0";

impl System {
    fn new() -> Self {
        let system = Self(TempDir::new().unwrap());
        system.put("proc/sys/kernel/osrelease", "7.3.4+deb13-amd64\n");
        system.put("proc/cpuinfo", "processor : 0\nflags : fpu pdpe1gb\n");
        system.put(
            "proc/self/mountinfo",
            "22 1 0:1 / / rw - overlay overlay rw\n",
        );
        system.dir("sys/kernel/mm/ksm");
        system.dir("dev");
        system.put("dev/kmsg", "");
        system.dir("etc");
        system.dir("sys/bus/dax/devices");
        let pfn = format!("{REGION}/region0/pfn0.0");
        for (name, value) in [
            ("devtype", "nd_pfn"),
            ("mode", "pmem"),
            ("align", "2097152"),
            ("resource", "0x101200000"),
            ("namespace", "namespace0.0"),
            ("uuid", UUID),
        ] {
            system.put(&format!("{pfn}/{name}"), &format!("{value}\n"));
        }
        system.dir("sys/bus/nd/drivers/nd_pmem");
        system.link(
            "../../../../../bus/nd/drivers/nd_pmem",
            &format!("{pfn}/driver"),
        );
        system.disk(&pfn, "pmem0", "259:0", 4 << 30);
        let raw = format!("{REGION}/region1/namespace1.0");
        system.put(&format!("{raw}/devtype"), "nd_namespace_io\n");
        system.link(
            "../../../../../bus/nd/drivers/nd_pmem",
            &format!("{raw}/driver"),
        );
        system.disk(&raw, "pmem1", "259:1", 1 << 30);
        // Only what has a page map is capable of DAX.
        system.put("sys/class/block/pmem1/queue/dax", "0\n");
        system
    }

    /// One on which the module is loaded and has a directory for each of these.
    fn with_module(names: &[&str]) -> Self {
        let system = Self::new();
        system.put("sys/module/rdax/version", "0.1.0\n");
        system.dir("sys/kernel/config/rdax");
        for name in names {
            let config = format!("sys/kernel/config/rdax/{name}");
            system.put(&format!("{config}/adopt"), "0\n");
            system.put(&format!("{config}/max_order"), "pud\n");
            system.put(&format!("{config}/fault_around"), "65536\n");
            system.put(&format!("{config}/write_order"), "2\n");
            system.put(
                &format!("{config}/stats"),
                "read_pte 0\nread_pmd 7\nread_bytes 4096\n",
            );
        }
        system
    }

    fn disk(&self, above: &str, name: &str, number: &str, bytes: u64) {
        let dir = format!("{above}/block/{name}");
        self.put(&format!("{dir}/dev"), number);
        self.put(&format!("{dir}/size"), &(bytes / 512).to_string());
        self.put(&format!("{dir}/queue/dax"), "1\n");
        self.dir(&format!("{dir}/holders"));
        self.link("../..", &format!("{dir}/device"));
        let to = dir.strip_prefix("sys/").unwrap();
        self.link(&format!("../../{to}"), &format!("sys/class/block/{name}"));
        self.link(&format!("../../{to}"), &format!("sys/dev/block/{number}"));
        self.put(&format!("dev/{name}"), "");
    }

    /// A device on the dax bus, with its driver's directory.
    fn dax(&self, name: &str, driver: &str) {
        let dir = format!("{REGION}/region2/dax2.0/{name}");
        self.put(&format!("{dir}/size"), "1054867456\n");
        self.put(&format!("{dir}/align"), "2097152\n");
        self.put(&format!("sys/bus/dax/drivers/{driver}/unbind"), "");
        let up = "../../../../../..";
        self.link(
            &format!("{up}/bus/dax/drivers/{driver}"),
            &format!("{dir}/driver"),
        );
        let to = dir.strip_prefix("sys/").unwrap();
        self.link(
            &format!("../../../{to}"),
            &format!("sys/bus/dax/devices/{name}"),
        );
    }

    fn mount(&self, number: &str, point: &str, kind: &str, options: &str) {
        self.dir(point.trim_start_matches('/'));
        let line = format!("40 22 {number} / {point} rw - {kind} /dev/pmem0 {options}\n");
        let file = self.path("proc/self/mountinfo");
        let before = fs::read_to_string(&file).unwrap();
        fs::write(file, before + &line).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn dir(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    fn link(&self, to: &str, path: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    fn get(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Programs that stand for those of the system, found first.
    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        self.put(&format!("bin/{name}"), &format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Did {
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        let output = Command::new(env!("CARGO_BIN_EXE_rdax"))
            .args(arguments)
            .env("RDAX_ROOT", self.0.path())
            .env("PATH", path)
            .env("ROOT", self.0.path())
            .output()
            .unwrap();
        Did {
            status: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The same, with this as the standard output.
    fn run_with_out(&self, arguments: &[&str], out: impl Into<Stdio>) -> Did {
        let output = Command::new(env!("CARGO_BIN_EXE_rdax"))
            .args(arguments)
            .env("RDAX_ROOT", self.0.path())
            .stdout(out)
            .output()
            .unwrap();
        Did {
            status: output.status.code().unwrap(),
            out: String::new(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The names in a directory.
    fn names(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(dir))
            .into_iter()
            .flatten()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A partition of pmem0, with a directory of the module's.
    fn partition(&self, number: u64) -> String {
        let name = format!("pmem0p{number}");
        let dir = format!("{REGION}/region0/pfn0.0/block/pmem0/{name}");
        self.put(&format!("{dir}/dev"), &format!("259:{}", 16 + number));
        self.put(&format!("{dir}/size"), "2097152");
        self.put(&format!("{dir}/start"), "2048");
        self.put(&format!("{dir}/partition"), &number.to_string());
        let to = dir.strip_prefix("sys/").unwrap();
        self.link(&format!("../../{to}"), &format!("sys/class/block/{name}"));
        self.put(&format!("sys/kernel/config/rdax/{name}/adopt"), "0\n");
        name
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.run(arguments).succeeded()).unwrap()
    }
}

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
fn a_directory_that_goes_meanwhile_is_explained() {
    let system = System::with_module(&[]);
    system
        .run(&["adopt", "pmem0"])
        .failed(1, &["at the same time", "rdax list"]);
}

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
    let hook = include_str!("../../boot/initramfs-hook")
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

/// What the doctor says, by status.
fn doctor(system: &System, arguments: &[&str]) -> (i32, Vec<(String, String)>) {
    let all: Vec<&str> = ["doctor", "--json"]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    let did = system.run(&all);
    let json: serde_json::Value = serde_json::from_str(&did.out).expect(&did.err);
    let text =
        |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap_or("").to_owned();
    let findings = json
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let what = ["subject", "text", "fix"]
                .map(|key| text(finding, key))
                .join(" | ");
            (text(finding, "status"), what)
        })
        .collect();
    (did.status, findings)
}

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
        ("problem", "module | rdax is not installed"),
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

#[test]
fn mkfs_takes_what_doctor_advises() {
    const MIB: u64 = 1 << 20;
    for size in [2560, 3022, 4096, 5120, 8192, 9700, 11264, 12289, 31900] {
        let system = System::with_module(&[]);
        system.put(
            &format!("{REGION}/region0/pfn0.0/resource"),
            "0x140000000\n",
        );
        let dir = format!("{REGION}/region0/pfn0.0/block/pmem0");
        system.put(&format!("{dir}/size"), &(size * MIB / 512).to_string());
        fs::write(system.path("dev/pmem0"), xfs_in_small_groups()).unwrap();
        let (_, found) = doctor(&system, &["pmem0"]);
        let what = found
            .iter()
            .find(|(_, what)| what.contains("allocation groups of 1 GiB"));
        let what = &what.unwrap_or_else(|| panic!("{size}: {found:#?}")).1;
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
        let system = System::with_module(&[]);
        system.put(
            &format!("{REGION}/region0/pfn0.0/resource"),
            "0x140000000\n",
        );
        let dir = format!("{REGION}/region0/pfn0.0/block/pmem0");
        system.put(&format!("{dir}/size"), &(size / 512).to_string());
        fs::write(system.path("dev/pmem0"), xfs_in_small_groups()).unwrap();
        let (_, found) = doctor(&system, &["pmem0"]);
        let what = found
            .iter()
            .find(|(_, what)| what.contains("allocation groups of 1 GiB"));
        let what = &what.unwrap_or_else(|| panic!("{size}: {found:#?}")).1;
        assert!(
            what.contains(says) && !what.contains("agsize"),
            "{size}: {what}"
        );
    }
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
