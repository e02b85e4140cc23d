// SPDX-License-Identifier: GPL-2.0

//! DAX for filesystems and devices on persistent memory, in Rust.
//!
//! Serves the files of the block devices that the user hands over through configfs; every other
//! DAX file stays with the kernel's own code.

use kernel::prelude::*;

#[path = "src/mod.rs"]
mod dax;
#[path = "rust/mod.rs"]
mod kern;

module! {
    type: Rdax,
    name: "rdax",
    authors: ["The rdax developers"],
    description: "DAX for adopted persistent memory devices",
    license: "GPL",
}

struct Rdax;

impl kernel::Module for Rdax {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        pr_info!("version {} loaded\n", env!("RDAX_VERSION"));
        Ok(Self)
    }
}
