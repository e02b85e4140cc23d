// SPDX-License-Identifier: GPL-2.0

//! DAX for filesystems and devices on persistent memory, in Rust.
//!
//! Serves the files of the block devices that the user hands over through configfs; every other
//! DAX file stays with the kernel's own code. It also is a driver on the dax bus, for the devices
//! that the user binds to it.

use dax::{
    adopt::{
        self,
        Root, //
    },
    report,
};
use kern::{
    entry_points,
    Runtime, //
};
use kernel::{
    configfs::Subsystem,
    prelude::*, //
};

#[path = "src/mod.rs"]
mod dax;
#[path = "rust/mod.rs"]
mod kern;
#[cfg(RDAX_TEST)]
#[path = "tests/kunit/mod.rs"]
mod tests;

module! {
    type: Rdax,
    name: "rdax",
    authors: ["The rdax developers"],
    description: "DAX for adopted persistent memory devices",
    license: "GPL",
}

#[pin_data]
struct Rdax {
    // Dropped in this order.
    #[pin]
    report: kern::report::Device,
    #[cfg(RDAX_TEST)]
    adopted: tests::helpers::GivesBack,
    #[cfg(RDAX_CHECK)]
    check: dax::check::Shown,
    devices: entry_points::DaxDriver,
    #[pin]
    config: Subsystem<Root>,
    runtime: Runtime,
}

impl kernel::InPlaceModule for Rdax {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            #[cfg(RDAX_TEST)]
            adopted: tests::helpers::GivesBack,
            #[cfg(RDAX_CHECK)]
            check: dax::check::Shown::new()?,
            // SAFETY: Once in a module's life, and nothing of src/ is called before.
            runtime: unsafe { Runtime::new() },
            config <- adopt::subsystem(),
            devices: entry_points::DaxDriver::new()?,
            report <- report::device(),
            _: {
                pr_info!(
                    "version {} loaded; devices are adopted in /sys/kernel/config/rdax\n",
                    env!("RDAX_VERSION")
                );
            },
        })
    }
}
