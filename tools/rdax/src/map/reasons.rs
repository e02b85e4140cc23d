// SPDX-License-Identifier: GPL-2.0

//! Why parts of a file are not mapped by more, and what to do.

use super::bytes_of;
use crate::{
    size::PMD,
    uapi::{why, MapRecord}, //
};

/// What keeps something from being mapped by more, what to do, by the bit that says so.
pub(super) const REASONS: [(u32, &str, &str, &str); 9] = [
    (
        why::DEVICE,
        "device",
        "its place on the device is no multiple of the larger size, as in the file",
        "copy the file to where the filesystem aligns: mkfs.xfs -d su=2m,sw=1, mkfs.ext4 -E stride=512, or \
         rdax layout create for 1 GiB; rdax doctor FILE says more",
    ),
    (
        why::EXTENT,
        "extent",
        "what is beside it in the file lies elsewhere on the device, or is a hole",
        "write the file anew after fallocate, to a filesystem with room in one piece",
    ),
    (
        why::ADDRESS,
        "address",
        "a process maps it at an address that is no multiple of the larger size, as in the file",
        "have the program map at a multiple of 2 MiB or 1 GiB (mmap with an address), from an offset that is one",
    ),
    (
        why::END_OF_MAPPING,
        "end of mapping",
        "a process maps only a part of the larger piece",
        "have the program map whole pieces",
    ),
    (
        why::END_OF_FILE,
        "end of file",
        "the file ends within the larger piece",
        "truncate -s %2M FILE (%1G for 1 GiB) makes it a multiple of that, if its user does not mind",
    ),
    (
        why::PRIVATE,
        "private",
        "a process maps it privately, or in a way that fork copies",
        "have the program map with MAP_SHARED, without userfaultfd",
    ),
    (
        why::MAX_ORDER,
        "max_order",
        "the device's max_order does not allow more, or it is 1 GiB of erofs",
        "rdax adopt --max-order 1G DEV",
    ),
    (
        why::SMALLER,
        "smaller entries",
        "smaller entries were made before, and stay while the file is in use",
        "unmount the filesystem and mount it again, or make a copy of the file: what is mapped first then is \
         mapped by the larger size",
    ),
    (
        why::UNMAPPED,
        "not mapped",
        "no process maps it now",
        "",
    ),
];

pub(super) fn reasons(bits: u32) -> Vec<&'static str> {
    REASONS
        .iter()
        .filter(|(bit, ..)| bits & bit != 0)
        .map(|(_, name, ..)| *name)
        .collect()
}

/// What keeps a record from being mapped by this size, but that nobody maps it.
pub(super) fn obstacles(record: &MapRecord, size: u64) -> u32 {
    let entry = bytes_of(record.order);
    let mut found = 0;
    if entry < size && (entry >= PMD || size == PMD) {
        found |= record.why;
    }
    if entry == size {
        found |= record.why_mapped;
    }
    found & !why::UNMAPPED
}

#[cfg(test)]
mod tests {
    use super::{super::tests::data, *};
    use crate::size::{PAGE, PUD};

    #[test]
    fn reasons_are_for_the_next_size() {
        let mut huge = data(0, PMD, 9, 2, 1);
        (huge.why, huge.why_mapped) = (why::END_OF_FILE, why::ADDRESS);
        assert_eq!(obstacles(&huge, PMD), why::ADDRESS);
        assert_eq!(obstacles(&huge, PUD), why::END_OF_FILE);
        let mut small = data(0, PAGE, 0, 1, 0);
        small.why = why::EXTENT | why::UNMAPPED;
        assert_eq!(
            (obstacles(&small, PMD), obstacles(&small, PUD)),
            (why::EXTENT, 0)
        );
    }
}
