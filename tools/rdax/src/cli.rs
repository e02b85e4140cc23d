// SPDX-License-Identifier: GPL-2.0

//! The command line. Manual pages and completions are made of it, too.

use crate::size;
use clap::{
    builder::PossibleValue,
    Args,
    Parser,
    Subcommand,
    ValueEnum,
    ValueHint, //
};
use std::path::PathBuf;

/// That of the package or of the commit, where one was given when this was built.
const VERSION: &str = match option_env!("RDAX_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Hand pmem devices over to the rdax kernel module, and see what it does with them.
///
/// rdax serves the DAX files (and device DAX) of adopted pmem devices: faults by 4 KiB, 2 MiB or
/// 1 GiB, write-back, truncate, memory errors. A device is adopted before its filesystem is mounted.
///
/// The exit status is 0, or 1 if not all could be done as asked, 2 for a command line that is wrong. map, layout and
/// doctor have 1 for an answer, and 2 for errors.
#[derive(Debug, Parser)]
#[command(name = "rdax", version = VERSION, max_term_width = 100)]
pub struct Cli {
    /// Where /sys, /proc, /etc, /dev and /run are.
    #[arg(
        long,
        env = "RDAX_ROOT",
        default_value = "/",
        hide = true,
        global = true
    )]
    pub root: PathBuf,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List pmem and dax devices: mode, alignment, whether adopted, where mounted.
    List(List),
    /// Hand devices over to rdax.
    ///
    /// A block device is adopted before its filesystem is mounted, in mode fsdax. A device on the dax
    /// bus (dax0.0) is taken from its driver.
    Adopt(Adopt),
    /// Give devices back to the kernel's own code.
    Release(Release),
    /// Show what is counted for adopted devices.
    Stat(Stat),
    /// Show by which sizes a file is mapped, and why not by larger ones.
    ///
    /// Read permission on the file is enough. Physical addresses and other users' processes are shown to root.
    ///
    /// The exit status is 0, or 1 if not all of it is mapped as --expect says, 2 if that cannot be said.
    Map(Map),
    /// Show what waits for pages of a file or device, and which processes have them.
    ///
    /// A truncate, hole punch, write, unmount or unbind waits while somebody reads or writes a page of a
    /// file by its memory (O_DIRECT, io_uring, a pipe). Waits of other users are shown to root only. A disk
    /// answers for its partitions and for what is made of them, too. Where it cannot be seen whether a process
    /// has it, by an io_uring or through overlayfs, it says so.
    Who(Who),
    /// Make files that can be mapped by 1 GiB, and check whether files can.
    Layout(Layout),
    /// Go through what adoption and large mappings need, and say how to get what is missing.
    ///
    /// It changes nothing. The exit status is 0 if there is no problem, 1 if there is one, 2 if that cannot be
    /// said.
    Doctor(Doctor),
    /// Print a completion script for a shell.
    Completions {
        /// Which one.
        shell: clap_complete::Shell,
    },
    /// Adopt a device if it is noted to be adopted at boot.
    #[command(hide = true)]
    Boot(Boot),
    /// Write the manual pages to a directory.
    #[command(hide = true)]
    ManPages { dir: PathBuf },
}

#[derive(Debug, Args)]
pub struct List {
    /// Devices to list; all without any.
    pub devices: Vec<String>,

    /// Print JSON, with the keys of ndctl and daxctl, sizes in bytes, and max_order as pte, pmd or pud.
    #[arg(short, long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Adopt {
    /// Devices, such as pmem0, /dev/pmem0p1 or dax0.0.
    #[arg(required = true, value_name = "DEV")]
    pub devices: Vec<String>,

    /// Adopt them at every boot, too, before their filesystems are mounted. Switches that are not given stay
    /// as they were noted.
    #[arg(short, long)]
    pub persist: bool,

    /// Load the module and mount configfs if that was not done.
    #[arg(short, long)]
    pub load: bool,

    #[command(flatten)]
    pub switches: Switches,
}

/// What can be set for a block device.
#[derive(Debug, Args)]
pub struct Switches {
    /// The largest size that files are mapped with.
    #[arg(long, value_name = "SIZE")]
    pub max_order: Option<MaxOrder>,

    /// The aligned block around an address that the fault of a page may map: 4K to 2M.
    #[arg(long, value_name = "SIZE", value_parser = fault_around)]
    pub fault_around: Option<u64>,

    /// Log2 of the pages of a folio that sequential writes make.
    #[arg(long, value_name = "ORDER", value_parser = clap::value_parser!(u8).range(0..=8))]
    pub write_order: Option<u8>,
}

impl Switches {
    /// As the files in configfs take them.
    pub fn values(&self) -> crate::persist::Switches {
        crate::persist::Switches {
            max_order: self.max_order.map(|order| order.name().to_owned()),
            fault_around: self.fault_around.map(|bytes| bytes.to_string()),
            write_order: self.write_order.map(|order| order.to_string()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.values() == crate::persist::Switches::default()
    }
}

/// A size of mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxOrder {
    Pte,
    Pmd,
    Pud,
}

impl MaxOrder {
    /// That of entries of so many bytes.
    pub fn of(bytes: u64) -> Self {
        match bytes {
            size::PUD.. => Self::Pud,
            size::PMD.. => Self::Pmd,
            _ => Self::Pte,
        }
    }

    /// As the file in configfs has it, and all JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pte => "pte",
            Self::Pmd => "pmd",
            Self::Pud => "pud",
        }
    }
}

impl ValueEnum for MaxOrder {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Pte, Self::Pmd, Self::Pud]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Pte => PossibleValue::new("4K").aliases(["pte", "PTE", "4k"]),
            Self::Pmd => PossibleValue::new("2M").aliases(["pmd", "PMD", "2m"]),
            Self::Pud => PossibleValue::new("1G").aliases(["pud", "PUD", "1g"]),
        })
    }
}

fn fault_around(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if bytes.is_power_of_two() && (size::PAGE..=512 * size::PAGE).contains(&bytes) {
        Ok(bytes)
    } else {
        Err("it is 4K, 8K, 16K and so on, up to 2M".to_owned())
    }
}

#[derive(Debug, Args)]
pub struct Release {
    /// Devices, such as pmem0 or dax0.0; with --persist also the UUID of a namespace that is there no more, or
    /// UUIDpN for its partition N.
    #[arg(required = true, value_name = "DEV")]
    pub devices: Vec<String>,

    /// Do not adopt them at boot any more, either.
    #[arg(short, long)]
    pub persist: bool,
}

#[derive(Debug, Args)]
pub struct Stat {
    /// Devices; all that are adopted without any.
    #[arg(value_name = "DEV")]
    pub devices: Vec<String>,

    /// Show again every SECONDS what was counted meanwhile, until interrupted.
    #[arg(short, long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub interval: Option<u64>,

    /// End after this many intervals.
    #[arg(short, long, value_name = "N", requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Show counters that are 0, too.
    #[arg(short, long)]
    pub all: bool,

    /// Print JSON, an object on a line for each interval.
    #[arg(short, long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Map {
    /// A file on an adopted device.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,

    /// Show each range of the file, and each mapping of a process that has many.
    #[arg(short, long)]
    pub verbose: bool,

    /// Fail, with status 1, unless all of the file is mapped by entries of this size or larger.
    #[arg(long, value_name = "SIZE")]
    pub expect: Option<Expected>,

    /// Print JSON, with sizes in bytes, and those of mappings as pte, pmd or pud.
    #[arg(short, long)]
    pub json: bool,
}

/// A size of entries that are larger than pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Pmd,
    Pud,
}

impl Expected {
    pub fn bytes(self) -> u64 {
        match self {
            Self::Pmd => size::PMD,
            Self::Pud => size::PUD,
        }
    }
}

impl ValueEnum for Expected {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Pmd, Self::Pud]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Pmd => PossibleValue::new("2M").aliases(["pmd", "PMD", "2m"]),
            Self::Pud => PossibleValue::new("1G").aliases(["pud", "PUD", "1g"]),
        })
    }
}

#[derive(Debug, Args)]
pub struct Who {
    /// A file, or a device such as pmem0; all waits without any.
    #[arg(value_name = "FILE|DEV", value_hint = ValueHint::AnyPath)]
    pub target: Option<String>,

    /// Print JSON.
    #[arg(short, long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Layout {
    #[command(subcommand)]
    pub command: LayoutCommand,
}

#[derive(Debug, Subcommand)]
pub enum LayoutCommand {
    /// Make a file, full of zeroes, of which every GiB can be mapped by one entry.
    ///
    /// It is for a mounted ext4 or XFS, and needs root. The file takes more space than SIZE for a
    /// moment, all that is free if need be, and gives back what is not in the right place. It has its
    /// name when it is finished: nothing is left of it if that fails or is interrupted.
    ///
    /// The exit status is 0 if every GiB can be mapped by one entry, 1 if not, 2 if the file cannot
    /// be made.
    Create {
        /// The file, which must not be there.
        #[arg(value_hint = ValueHint::FilePath)]
        path: PathBuf,
        /// Whole GiB, such as 4G or 1T.
        #[arg(value_parser = whole_gib)]
        size: u64,
    },
    /// Say for each GiB of a file whether one entry can map it and, if not, why. Needs root.
    ///
    /// The exit status is 0 if every GiB can be mapped by one entry, 1 if not, 2 if that cannot be
    /// said.
    Check {
        /// A file on a mounted ext4 or XFS.
        #[arg(value_hint = ValueHint::FilePath)]
        path: PathBuf,
        /// Print JSON.
        #[arg(short, long)]
        json: bool,
    },
}

fn whole_gib(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if bytes == 0 || bytes % size::GIB != 0 {
        return Err("it is a number of whole GiB, like 4G".to_owned());
    }
    Ok(bytes)
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// A device, where one is mounted, or a file; all pmem devices without any.
    #[arg(value_name = "DEV|MOUNT|FILE", value_hint = ValueHint::AnyPath)]
    pub target: Option<String>,

    /// Print JSON.
    #[arg(short, long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Boot {
    /// The device that appeared.
    pub device: String,

    /// Called by udev: have systemd do it, if it runs, and wait for it.
    #[arg(long)]
    pub udev: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn adopt(arguments: &[&str]) -> Result<Adopt, clap::Error> {
        let all = ["rdax", "adopt", "pmem0"].iter().chain(arguments);
        Cli::try_parse_from(all).map(|cli| match cli.command {
            Command::Adopt(adopt) => adopt,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn switches_are_sizes() {
        let adopt = adopt(&["--max-order", "2M", "--fault-around=64k", "--write-order=3"]).unwrap();
        let values = adopt.switches.values();
        assert_eq!(values.max_order.as_deref(), Some("pmd"));
        assert_eq!(values.fault_around.as_deref(), Some("65536"));
        assert_eq!(values.write_order.as_deref(), Some("3"));
    }

    #[test]
    fn switches_that_are_none() {
        for wrong in [
            "--max-order=3M",
            "--fault-around=12k",
            "--fault-around=4M",
            "--fault-around=2k",
            "--write-order=9",
        ] {
            assert!(adopt(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn layouts_are_of_whole_gibs() {
        assert_eq!(whole_gib("4G"), Ok(4 * size::GIB));
        assert_eq!(whole_gib("1T"), Ok(size::TIB));
        assert!(whole_gib("512M").is_err());
        assert!(whole_gib("0").is_err());
    }
}
