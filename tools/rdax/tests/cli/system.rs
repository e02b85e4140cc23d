// SPDX-License-Identifier: GPL-2.0

//! A system that is laid out in a directory.

use std::{
    fs,
    os::unix::fs::{symlink, PermissionsExt},
    path::PathBuf,
    process::{Command, Stdio}, //
};
use tempfile::TempDir;

/// A system with two pmem devices: pmem0 in mode fsdax, pmem1 in mode raw.
pub struct System(pub TempDir);

/// What a command did.
pub struct Did {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Did {
    pub fn succeeded(self) -> String {
        assert_eq!(self.status, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// What it said when it failed, and that it says all of these.
    pub fn failed(self, status: i32, parts: &[&str]) {
        assert_eq!(self.status, status, "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.err.contains(part), "no '{part}' in: {}", self.err);
        }
    }
}

pub const UUID: &str = "fd65c71f-299d-4b11-9a9f-92d92a164afb";
pub const REGION: &str = "sys/devices/platform/ndbus0";

impl System {
    pub fn new() -> Self {
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
    pub fn with_module(names: &[&str]) -> Self {
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

    pub fn disk(&self, above: &str, name: &str, number: &str, bytes: u64) {
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
    pub fn dax(&self, name: &str, driver: &str) {
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

    pub fn mount(&self, number: &str, point: &str, kind: &str, options: &str) {
        self.dir(point.trim_start_matches('/'));
        let line = format!("40 22 {number} / {point} rw - {kind} /dev/pmem0 {options}\n");
        let file = self.path("proc/self/mountinfo");
        let before = fs::read_to_string(&file).unwrap();
        fs::write(file, before + &line).unwrap();
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn dir(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    pub fn link(&self, to: &str, path: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    pub fn get(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Programs that stand for those of the system, found first.
    pub fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        self.put(&format!("bin/{name}"), &format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn run(&self, arguments: &[&str]) -> Did {
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
    pub fn run_with_out(&self, arguments: &[&str], out: impl Into<Stdio>) -> Did {
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
    pub fn names(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(dir))
            .into_iter()
            .flatten()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A partition of pmem0, with a directory of the module's.
    pub fn partition(&self, number: u64) -> String {
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

    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.run(arguments).succeeded()).unwrap()
    }
}

/// What the doctor says, by status.
pub fn doctor(system: &System, arguments: &[&str]) -> (i32, Vec<(String, String)>) {
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
