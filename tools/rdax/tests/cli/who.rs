// SPDX-License-Identifier: GPL-2.0

//! What `rdax who` asks about, as far as that can be seen without the module.

use crate::system::*;

#[test]
fn a_disk_is_asked_for_with_its_partitions() {
    let system = System::new();
    system.partition(1);
    let did = system.run(&["who", "pmem0"]);
    assert!(!did.err.contains("says nothing of"), "{}", did.err);
    did.failed(1, &["the module rdax is not loaded"]);
}
