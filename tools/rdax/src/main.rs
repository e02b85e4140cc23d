// SPDX-License-Identifier: GPL-2.0

//! The command `rdax`: hands pmem devices over to the kernel module, and shows what becomes of them.

mod adopt;
mod ask;
mod cli;
mod device;
mod doctor;
mod extents;
mod layout;
mod list;
mod map;
mod module;
mod mounts;
mod output;
mod persist;
mod processes;
mod size;
mod stat;
mod superblock;
mod system;
mod table;
#[path = "../../../uapi/rdax.rs"]
mod uapi;
mod waits;
mod who;

use clap::{
    CommandFactory,
    Parser, //
};
use cli::{
    Cli,
    Command, //
};
use std::{
    io,
    path::Path,
    process::ExitCode, //
};
use system::System;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let system = System::new(&cli.root);
    // As these say, 1 is an answer of theirs.
    let failed = match cli.command {
        Command::Layout(_) | Command::Doctor(_) | Command::Map(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    };
    let status = match run(&system, cli.command) {
        Ok(status) => status,
        Err(error) => {
            output::complain(format_args!("{error:#}"));
            failed
        }
    };
    match output::unsaid() {
        Some(why) => {
            output::complain(why);
            failed
        }
        None => status,
    }
}

fn run(system: &System, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(arguments) => list::run(system, &arguments),
        Command::Adopt(arguments) => adopt::adopt(system, &arguments),
        Command::Release(arguments) => adopt::release(system, &arguments),
        Command::Stat(arguments) => stat::run(system, &arguments),
        Command::Map(arguments) => map::run(system, &arguments),
        Command::Who(arguments) => who::run(system, &arguments),
        Command::Layout(arguments) => layout::run(system, &arguments.command),
        Command::Doctor(arguments) => doctor::run(system, &arguments),
        Command::Boot(arguments) => adopt::boot(system, &arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rdax", &mut script);
            output::as_it_is(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ManPages { dir } => {
            let mut command = Cli::command().disable_help_subcommand(true);
            command.build();
            man_pages(&command, &dir).map_err(|error| {
                anyhow::anyhow!("{}: {}", dir.display(), system::reason(&error))
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The page of a command, and those of the commands below it.
fn man_pages(command: &clap::Command, dir: &Path) -> io::Result<()> {
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        man_pages(below, dir)?;
    }
    clap_mangen::Man::new(command.clone())
        .section("8")
        .manual("rdax")
        .generate_to(dir)?;
    Ok(())
}
