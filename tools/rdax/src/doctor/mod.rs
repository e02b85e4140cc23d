// SPDX-License-Identifier: GPL-2.0

//! `rdax doctor`: what adoption and large mappings need, and how to get what is missing.

mod block;
mod file;
mod filesystem;
mod machine;

use crate::{
    cli,
    device::{self, Block, Dax},
    mounts::{self, Mount},
    output,
    system::System,
};
use anyhow::{anyhow, Result};
use serde::Serialize;
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Good to know, or in the way of the largest mappings only.
    Note,
    Problem,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Finding {
    subject: String,
    status: Status,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// What was found, one after the other.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, subject: &str, status: Status, text: impl Into<String>, fix: Option<String>) {
        self.0.push(Finding {
            subject: subject.to_owned(),
            status,
            text: text.into(),
            fix,
        });
    }

    pub(super) fn ok(&mut self, subject: &str, text: impl Into<String>) {
        self.add(subject, Status::Ok, text, None);
    }

    pub(super) fn note(&mut self, subject: &str, text: impl Into<String>) {
        self.add(subject, Status::Note, text, None);
    }

    pub(super) fn note_fix(
        &mut self,
        subject: &str,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(subject, Status::Note, text, Some(fix.into()));
    }

    pub(super) fn problem(
        &mut self,
        subject: &str,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(subject, Status::Problem, text, Some(fix.into()));
    }
}

/// What is asked about.
enum Target {
    All,
    Block(Block),
    Dax(Dax),
    /// A filesystem, by a directory in it.
    Mount(Mount),
    File(PathBuf, Mount),
}

impl Target {
    fn of(system: &System, given: Option<&str>) -> Result<Self> {
        let Some(given) = given else {
            return Ok(Self::All);
        };
        let name = device::kernel_name(system, given);
        // `/dev/pmem0` and `pmem0` are devices, `/mnt/pmem0` and `./pmem0` are not.
        let path = Path::new(given);
        if !given.contains('/') || path.starts_with("/dev") {
            if let Some(dax) = Dax::find(system, &name) {
                return Ok(Self::Dax(dax));
            }
            if let Some(block) = Block::find(system, &name) {
                return Ok(Self::Block(block));
            }
        }
        let path = if system.is_real() {
            std::path::absolute(path)?
        } else {
            path.to_path_buf()
        };
        let real = system.resolve(&path).ok_or_else(|| {
            anyhow!("{given}: there is no such device, directory or file (rdax list names devices)")
        })?;
        // What was mounted above a mount since hides it, so the device counts first, where mounts tell that of files.
        let number = system.path(&real).metadata().map(|status| status.dev());
        let number = number.map(|dev| {
            let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
            format!("{major}:{minor}")
        });
        let mount = mounts::all(system)
            .into_iter()
            .filter(|mount| real.starts_with(&mount.point))
            // The one that was mounted last, where several are.
            .max_by_key(|mount| {
                let is_its = number.as_ref().is_ok_and(|number| *number == mount.device);
                (is_its, mount.point.components().count())
            })
            .ok_or_else(|| anyhow!("{given}: is on no filesystem that is mounted here"))?;
        if system.is_dir(&real) {
            Ok(Self::Mount(mount))
        } else {
            Ok(Self::File(real, mount))
        }
    }
}

/// `rdax doctor`
pub fn run(system: &System, arguments: &cli::Doctor) -> Result<ExitCode> {
    let target = Target::of(system, arguments.target.as_deref())?;
    let mut found = Findings::default();
    machine::machine(system, &mut found);
    match target {
        Target::All => block::all(system, &mut found),
        Target::Block(block) => {
            block::whole_device(system, &block, &mut found);
            block::stale_of(system, &block.name, &mut found);
        }
        Target::Dax(dax) => {
            block::dax_device(system, &dax, &mut found);
            block::stale_of(system, &dax.name, &mut found);
        }
        Target::Mount(mount) => {
            let block = device_of(system, &mount)?;
            block::whole_device(system, &block, &mut found);
            block::stale_of(system, &block.name, &mut found);
        }
        Target::File(path, mount) => {
            let block = device_of(system, &mount)?;
            block::whole_device(system, &block, &mut found);
            file::file(system, &path, &block, &mount, &mut found)?;
        }
    }
    let problems = found
        .0
        .iter()
        .filter(|finding| finding.status == Status::Problem);
    let problems = problems.count();
    if arguments.json {
        output::json(&found.0)?;
    } else {
        print(&found, problems)?;
    }
    Ok(if problems == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(found: &Findings, problems: usize) -> Result<()> {
    let mut out = String::new();
    for finding in &found.0 {
        let status = match finding.status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Problem => "PROBLEM",
        };
        // No line begins within the name of a file.
        let line = |text: &str| output::harmless(text, &[]);
        let (subject, text) = (line(&finding.subject), line(&finding.text));
        out += &format!("{status:<8} {subject}: {text}\n");
        if let Some(fix) = finding.fix.as_deref().map(line) {
            out += &format!("{:<8}   {fix}\n", "");
        }
    }
    out += &match problems {
        0 => "Nothing is in the way.\n".to_owned(),
        1 => "There is 1 problem.\n".to_owned(),
        more => format!("There are {more} problems.\n"),
    };
    output::print(&out)?;
    Ok(())
}

fn device_of(system: &System, mount: &Mount) -> Result<Block> {
    Block::by_number(system, &mount.device).ok_or_else(|| {
        anyhow!(
            "{} is {} on {}, which is no block device: rdax is for filesystems on pmem devices, which rdax list \
             shows",
            mount.point.display(),
            mount.kind,
            mount.source
        )
    })
}
