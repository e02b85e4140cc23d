// SPDX-License-Identifier: GPL-2.0

//! Adopting and releasing devices.

use crate::{
    cli,
    device::{
        self,
        Block,
        Dax,
        Mode,
        DAX_BUS, //
    },
    module::{
        self,
        Log,
        Said, //
    },
    mounts,
    output::{
        self,
        harmless, //
    },
    persist::{
        self,
        Adoption,
        Switches, //
    },
    processes::{
        self,
        Wanted, //
    },
    system::{
        self,
        System,
        CONFIG,
        PERSISTENT, //
    },
    waits::Waits, //
};
use anyhow::{
    anyhow,
    bail,
    Context,
    Result, //
};
use std::{
    fs,
    io::{
        self,
        ErrorKind, //
    },
    path::PathBuf,
    process::{
        ExitCode,
        Stdio, //
    }, //
};

/// Whether something had to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Was {
    Done,
    Already,
}

/// Does something with each device, and tells of those with which it failed.
fn each(devices: &[String], mut what: impl FnMut(&str) -> Result<()>) -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for device in devices {
        if let Err(error) = what(device) {
            output::complain(format_args!("{error:#}"));
            status = ExitCode::FAILURE;
        }
    }
    status
}

/// `rdax adopt`
pub fn adopt(system: &System, arguments: &cli::Adopt) -> Result<ExitCode> {
    // Without the module, there is nothing else to say of any device.
    module::require(system, arguments.load)?;
    Ok(each(&arguments.devices, |given| {
        let name = device::named(system, given)?;
        let is_dax = Dax::find(system, &name).is_some();
        if is_dax && !arguments.switches.is_empty() {
            bail!("{name}: a device on the dax bus has no switches");
        }
        let mut switches = arguments.switches.values();
        let mut replaced = Vec::new();
        if arguments.persist {
            let (kept, others, adoption) = note(system, &name, &switches)?;
            replaced = others;
            output::say(format_args!(
                "{name}: will be adopted at every boot ({})",
                kept.display()
            ));
            // As at boot; what is adopted already stays as it is but for what was asked for.
            if device::is_adopted(system, &name) == Some(false) {
                switches = adoption.switches;
            }
        }
        let result = if is_dax {
            adopt_dax(system, &name)
        } else {
            adopt_block(system, &name, &switches)
        };
        for other in &replaced {
            let file = other.display();
            // What an administrator wrote there is not to be lost for nothing.
            if result.is_err() {
                output::complain(format_args!(
                    "{name}: {file} notes it, too, and stays: a boot goes by the first of such files"
                ));
                continue;
            }
            persist::forget(other)?;
            output::say(format_args!("{name}: {file} noted it, too, and is removed"));
        }
        let was = result?;
        forget_failure(system, &name);
        output::say(match was {
            Was::Done => format!("{name}: adopted"),
            Was::Already => format!("{name}: adopted already"),
        });
        Ok(())
    }))
}

/// `rdax release`
pub fn release(system: &System, arguments: &cli::Release) -> Result<ExitCode> {
    if arguments.persist {
        persist::all(system).wrong.iter().for_each(output::complain);
    }
    Ok(each(&arguments.devices, |given| {
        let name = device::named(system, given)?;
        let (mut forgotten, mut unclear) = (false, false);
        if arguments.persist {
            let noted = persist::all(system);
            let meant = noted.meant(system, &name)?;
            // A boot would go by any of them.
            for (path, _) in &meant {
                persist::forget(path)?;
            }
            forgotten = !meant.is_empty();
            unclear = noted.is_part || !forgotten && !noted.wrong.is_empty();
            if forgotten && !unclear {
                output::say(format_args!("{name}: will not be adopted at boot any more"));
            }
            if let Some((_, adoption)) = meant.first() {
                tell_twins(system, &name, adoption.uuid.as_deref());
            }
            if forgotten && system.is_dir("/etc/initramfs-tools") {
                output::say(
                    "(update-initramfs -u, where the initial file system has noted it, too)",
                );
            }
            // A name that is none of a device, but of a namespace that may be there.
            let is_identity = |(_, adoption): &&(_, persist::Adoption)| {
                adoption.uuid.is_some() && adoption.identity() == name
            };
            if meant.iter().any(is_identity) && !unclear {
                return Ok(());
            }
        }
        let was = if Dax::find(system, &name).is_some() {
            release_dax(system, &name)?
        } else {
            release_block(system, &name, forgotten)?
        };
        forget_failure(system, &name);
        output::say(match was {
            Was::Done => format!("{name}: released"),
            Was::Already => format!("{name}: not adopted"),
        });
        if unclear {
            bail!(
                "{name}: it may still be noted in a file of {PERSISTENT} that cannot be read or understood: \
                 mend or remove that"
            );
        }
        Ok(())
    }))
}

/// Why its adoption at boot failed is of no interest any more.
fn forget_failure(system: &System, name: &str) {
    // Nothing can be done if it stays; rdax list shows it of what is not adopted only.
    let _ = fs::remove_file(persist::failure(system, name));
}

/// Notes that a device is to be adopted at every boot, with switches that were noted before where these say
/// nothing. What may be otherwise at the next boot, such as a mount, does not keep it from being noted. Also which
/// other files note it, in place of which this one is.
fn note(
    system: &System,
    name: &str,
    switches: &Switches,
) -> Result<(PathBuf, Vec<PathBuf>, Adoption)> {
    let adoption = if let Some(dax) = Dax::find(system, name) {
        Adoption::of_dax(&dax)
    } else {
        let block = find(system, name)?;
        if block.namespace.is_none() {
            bail!("{name}: only pmem devices and their partitions can be adopted at every boot");
        }
        if let Some(why) = wrong_mode(&block) {
            bail!("{name}: not adopted: {why}");
        }
        let noted = persist::all(system);
        // That which a boot goes by.
        match noted.of(system, name).first() {
            Some((_, before)) => Adoption::of_block(&block, &switches.or(&before.switches)),
            None => Adoption::of_block(&block, switches),
        }
    };
    let (path, others) = adoption.keep(system)?;
    tell_twins(system, name, adoption.uuid.as_deref());
    Ok((path, others, adoption))
}

/// What is noted, or forgotten, of one of several devices that cannot be told apart, is of all.
fn tell_twins(system: &System, name: &str, uuid: Option<&str>) {
    let twins = device::all_twins(system, name, uuid);
    if !twins.is_empty() {
        output::complain(format_args!("{name}: {}", device::twins_text(&twins)));
    }
}

/// The block device of this name, or what there is instead.
fn find(system: &System, name: &str) -> Result<Block> {
    if let Some(block) = Block::find(system, name) {
        return Ok(block);
    }
    let mut names: Vec<String> = device::blocks(system)
        .0
        .into_iter()
        .map(|block| block.name)
        .collect();
    names.extend(device::dax_devices(system).into_iter().map(|dax| dax.name));
    if names.is_empty() {
        bail!(
            "{name}: there is no such device, nor any pmem or dax device; ndctl list -N -i tells of \
             namespaces that are there but not enabled"
        );
    }
    bail!(
        "{name}: there is no such device; those that can be adopted are among {} (rdax list)",
        names.join(", ")
    );
}

/// Why a device cannot be adopted, as far as that can be seen before.
fn obstacle(system: &System, block: &Block) -> Option<String> {
    if let Some(what) = Waits::now(system).unbind(system, block) {
        return Some(format!("it {what}"));
    }
    let mounts = mounts::of(system, &block.number);
    if let Some(mount) = mounts.first() {
        return Some(format!(
            "it is mounted on {}; a device is adopted before: {}",
            mount.point.display(),
            mounts::how_to_adopt(&block.name, mount)
        ));
    }
    for name in &block.partitions {
        let number = Block::find(system, name).map(|partition| partition.number);
        let mounts = number.map_or_else(Vec::new, |number| mounts::of(system, &number));
        if let Some(mount) = mounts.first() {
            return Some(format!(
                "its partition {name} is mounted on {}; adopt that instead: {}",
                mount.point.display(),
                mounts::how_to_adopt(name, mount)
            ));
        }
    }
    block.is_part_of().or_else(|| wrong_mode(block))
}

/// Why a device of this mode can never be adopted.
fn wrong_mode(block: &Block) -> Option<String> {
    match block.mode {
        Mode::Sector | Mode::Raw => Some(format!(
            "it is in mode {}, in which memory cannot be mapped; ndctl create-namespace -f -e {} -m \
             fsdax makes it fsdax, and erases it",
            block.mode.name(),
            block.namespace.as_deref().unwrap_or("NAMESPACE"),
        )),
        _ => None,
    }
}

/// With a task that waits for whoever uses its pages, which may be why.
fn with_waits(system: &System, name: &str, error: anyhow::Error) -> anyhow::Error {
    let waits = Waits::now(system);
    let told = match (Dax::find(system, name), Block::find(system, name)) {
        (Some(dax), _) => waits.for_device(name, dax.number),
        (None, Some(block)) => waits.for_family(name, &block.family(system)),
        (None, None) => None,
    };
    match told {
        Some(text) => anyhow!("{error:#}; {text}"),
        None => error,
    }
}

/// An attribute could not be written: what the module said of this device, what errno means, and what to do.
fn failure(name: &str, deed: &str, error: &io::Error, said: &Said) -> anyhow::Error {
    let lines = said.of(name);
    let gap = || {
        said.gap(name)
            .map_or(String::new(), |gap| format!("; {gap}"))
    };
    if error.kind() == ErrorKind::NotFound && lines.is_empty() {
        return anyhow!(
            "{name}: not {deed}: what belongs to it in sysfs or configfs has gone: the device went, or somebody \
             else releases it, or unloads the module, at the same time; rdax list shows what it is now{}",
            gap()
        );
    }
    if error.kind() == ErrorKind::PermissionDenied {
        return anyhow!("{name}: not {deed}: {}", system::reason(error));
    }
    if lines.is_empty() {
        return anyhow!("{name}: not {deed}: {}{}", system::reason(error), gap());
    }
    let advice = lines.iter().find_map(|line| module::advice(line));
    let advice = advice.map_or(String::new(), |advice| format!(" ({advice})"));
    anyhow!("{name}: not {deed}: {}{advice}", lines.join("; "))
}

fn adopt_block(system: &System, name: &str, switches: &Switches) -> Result<Was> {
    let block = find(system, name)?;
    let dir = block.config();
    let was = device::is_adopted(system, name).unwrap_or(false);
    let deed = if was { "changed" } else { "adopted" };
    if !was {
        if let Some(why) = obstacle(system, &block) {
            bail!("{name}: not adopted: {why}");
        }
    }
    let made = match fs::create_dir(system.path(&dir)) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failure(name, "adopted", &error, &Said::default())),
    };
    let mut log = Log::begin(system);
    let mut attempt = || -> Result<()> {
        for (switch, value) in switches.set() {
            system
                .write(dir.join(switch), value)
                .map_err(|error| failure(name, deed, &error, &log.said()))
                .with_context(|| format!("{switch} cannot be set to {value}"))?;
        }
        if !was {
            system
                .write(dir.join("adopt"), "1")
                .map_err(|error| failure(name, "adopted", &error, &log.said()))?;
        }
        Ok(())
    };
    let result = attempt();
    if result.is_err() && made {
        // Nothing can be done if it stays, and nothing is lost.
        let _ = fs::remove_dir(system.path(&dir));
    }
    result
        .map(|()| if was { Was::Already } else { Was::Done })
        .map_err(|error| with_waits(system, name, error))
}

fn release_block(system: &System, name: &str, forgotten: bool) -> Result<Was> {
    let dir = device::config(name);
    if !system.is_dir(&dir) {
        if !forgotten {
            // To tell a device that is not adopted from a name that is wrong.
            find(system, name)?;
        }
        return Ok(Was::Already);
    }
    let was = device::is_adopted(system, name).unwrap_or(true);
    if was {
        if let Some(block) = Block::find(system, name) {
            if let Some(mount) = mounts::of(system, &block.number).first() {
                let (point, as_word) = (mount.point.display(), output::word(&mount.point));
                bail!("{name}: not released: it is mounted on {point}; umount {as_word} first");
            }
        }
    }
    let mut log = Log::begin(system);
    let gone = |error: &io::Error| error.kind() == ErrorKind::NotFound;
    match system.write(dir.join("adopt"), "0") {
        // Somebody else has released it at the same time.
        Err(error) if gone(&error) && !system.is_dir(&dir) => return Ok(Was::Already),
        Err(error) => {
            let error = failure(name, "released", &error, &log.said());
            return Err(with_waits(system, name, error));
        }
        Ok(()) => {}
    }
    match fs::remove_dir(system.path(&dir)) {
        Err(error) if !gone(&error) => Err(error)
            .with_context(|| format!("{name}: released, but {CONFIG}/{name} cannot be removed"))?,
        _ => {}
    }
    Ok(if was { Was::Done } else { Was::Already })
}

/// Whoever unbinds a device waits for those who use its pages.
fn refuse_used(system: &System, dax: &Dax, deed: &str) -> Result<()> {
    let name = &dax.name;
    // Without a number it has no node either.
    let Some((major, minor)) = dax.number else {
        return Ok(());
    };
    let wanted = Wanted::character(system, name, rustix::fs::makedev(major, minor));
    let users = processes::find(system, &wanted);
    if !users.processes.is_empty() {
        let names: Vec<String> = users
            .processes
            .iter()
            .map(|process| format!("{} ({})", harmless(&process.name, &[]), process.pid))
            .collect();
        bail!(
            "{name}: not {deed}: it is in use by {}; end them first",
            names.join(", ")
        );
    }
    for unclear in &users.unclear {
        output::complain(format_args!("{name}: {}", unclear.text().trim_end()));
    }
    Ok(())
}

/// Whoever unbinds a device holds its lock until nobody uses its pages any more, and who asks for that cannot be
/// interrupted.
fn refuse_unbound(system: &System, dax: &Dax, deed: &str) -> Result<()> {
    // The link goes before anything is waited for. What is waited for is a device of the same number then, by an
    // older module, which does not say of which kind it is.
    if dax.driver.is_some() {
        return Ok(());
    }
    match Waits::now(system).for_device(&dax.name, dax.number) {
        Some(text) => bail!("{}: not {deed}: it is being unbound: {text}", dax.name),
        None => Ok(()),
    }
}

fn adopt_dax(system: &System, name: &str) -> Result<Was> {
    let dax = Dax::find(system, name).ok_or_else(|| anyhow!("{name}: there is no such device"))?;
    if dax.is_adopted() {
        return Ok(Was::Already);
    }
    refuse_unbound(system, &dax, "adopted")?;
    if dax.driver.as_deref() == Some("kmem") {
        bail!(
            "{name}: not adopted: it is ordinary memory; daxctl reconfigure-device -m devdax {name} \
             takes it out of use if nobody needs it"
        );
    }
    refuse_used(system, &dax, "adopted")?;
    let mut log = Log::begin(system);
    if let Some(driver) = &dax.driver {
        system
            .write(format!("{DAX_BUS}/drivers/{driver}/unbind"), name)
            .map_err(|error| failure(name, "adopted", &error, &log.said()))?;
    }
    // A name that the driver was told before is refused.
    let _ = system.write(format!("{DAX_BUS}/drivers/rdax/remove_id"), name);
    let asked = system.write(format!("{DAX_BUS}/drivers/rdax/new_id"), name);
    // The bus takes the name whether the driver takes the device or not.
    if asked.is_ok() && Dax::find(system, name).is_some_and(|dax| dax.is_adopted()) {
        return Ok(Was::Done);
    }
    let said = log.said();
    let _ = system.write(format!("{DAX_BUS}/drivers/rdax/remove_id"), name);
    if let Some(driver) = &dax.driver {
        let _ = system.write(format!("{DAX_BUS}/drivers/{driver}/bind"), name);
    }
    let error = asked
        .err()
        .unwrap_or_else(|| io::Error::other("the driver did not take it; dmesg may say why"));
    Err(failure(name, "adopted", &error, &said))
}

fn release_dax(system: &System, name: &str) -> Result<Was> {
    let dax = Dax::find(system, name).ok_or_else(|| anyhow!("{name}: there is no such device"))?;
    refuse_unbound(system, &dax, "released")?;
    if !dax.is_adopted() {
        return Ok(Was::Already);
    }
    refuse_used(system, &dax, "released")?;
    let mut log = Log::begin(system);
    system
        .write(format!("{DAX_BUS}/drivers/rdax/unbind"), name)
        .map_err(|error| failure(name, "released", &error, &log.said()))?;
    // Or it would come back by itself.
    let _ = system.write(format!("{DAX_BUS}/drivers/rdax/remove_id"), name);
    let kernels_own = format!("{DAX_BUS}/drivers/device_dax");
    if system.is_dir(&kernels_own) {
        system
            .write(format!("{kernels_own}/bind"), name)
            .with_context(|| format!("{name}: released, but device_dax does not take it"))?;
    } else {
        output::say(format_args!(
            "{name}: no driver has it now; modprobe device_dax gives it to the kernel's own"
        ));
    }
    Ok(Was::Done)
}

/// `rdax boot`: adopts a device that has appeared, if that is wanted.
pub fn boot(system: &System, arguments: &cli::Boot) -> Result<ExitCode> {
    let name = device::named(system, &arguments.device)?;
    let noted = persist::all(system);
    noted.wrong.iter().for_each(output::complain);
    let meant = noted.of(system, &name);
    let adoption = meant.first().map(|(_, adoption)| adoption);
    if adoption.is_none() && noted.wrong.is_empty() {
        // There may have been another device of this name.
        forget_failure(system, &name);
        return Ok(ExitCode::SUCCESS);
    }
    // What is wrong, too, is for the journal: what udev runs has no line there.
    if arguments.udev && system.is_dir("/run/systemd/system") {
        // udev tells of the device when this has returned, so no mount is begun before. The
        // service ends by itself, in time.
        let status = system::program("systemctl")
            .arg("start")
            .arg(format!("rdax-adopt@{name}.service"))
            .stdin(Stdio::null())
            .status()
            .context("systemctl cannot be run")?;
        return Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let adopt = |adoption: &Adoption| {
        module::require(system, true)?;
        if Dax::find(system, &name).is_some() {
            adopt_dax(system, &name)?;
        } else {
            adopt_block(system, &name, &adoption.switches)?;
        }
        output::say(format_args!("{name}: adopted"));
        Ok(())
    };
    let result = match adoption {
        Some(adoption) => adopt(adoption),
        None if noted.is_part => Err(anyhow!(
            "{name}: not adopted: whether it is to be is not known: {}",
            noted.wrong.join("; ")
        )),
        None => Ok(()),
    };
    match result {
        Ok(()) => {
            forget_failure(system, &name);
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            // For rdax list. The message below is in the journal, too.
            let _ = persist::note_failure(system, &name, &format!("{error:#}"));
            Err(error.context("at boot"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_module_says_counts_most() {
        let gone = io::Error::from(ErrorKind::NotFound);
        let text = |records: &str| {
            failure("pmem0", "adopted", &gone, &Said::in_records(records)).to_string()
        };
        assert_eq!(
            text("3,1,1,-;rdax: pmem0: no such thing\n"),
            "pmem0: not adopted: no such thing"
        );
        for none in ["", "3,1,1,-;rdax: pmem1: no such thing\n"] {
            assert!(text(none).contains("at the same time"), "{none}");
        }
    }
}
