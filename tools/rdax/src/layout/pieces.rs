// SPDX-License-Identifier: GPL-2.0

//! Which parts of a file are a GiB of memory at its place.

use crate::{extents::Extent, size::GIB};
use std::collections::BTreeMap;

/// A piece of a file and where it is in memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    logical: u64,
    address: u64,
    length: u64,
}

/// The pieces of a file, in order, that together are one physical GiB at its place; a list for each
/// GiB of which the file has all, in order. GiBs that the file has in another order are of no use
/// and left out.
pub(super) fn whole_gibs(extents: &[Extent], start: u64) -> Vec<Vec<Piece>> {
    let mut parts: BTreeMap<u64, Vec<Piece>> = BTreeMap::new();
    for extent in extents.iter().filter(|extent| extent.has_blocks()) {
        let mut address = start.wrapping_add(extent.physical);
        let end = address.saturating_add(extent.length);
        let mut logical = extent.logical;
        while address < end {
            let length = end.min((address / GIB + 1).saturating_mul(GIB)) - address;
            parts.entry(address / GIB).or_default().push(Piece {
                logical,
                address,
                length,
            });
            address += length;
            logical += length;
        }
    }
    let mut candidates: Vec<Vec<Piece>> = parts.into_values().collect();
    candidates.sort_by_key(|pieces| pieces.first().map(|piece| piece.logical));
    let mut found: Vec<Vec<Piece>> = Vec::new();
    for pieces in candidates {
        let in_order = pieces.windows(2).all(|pair| {
            let [one, two] = pair else { return true };
            one.address + one.length == two.address
        });
        let whole = pieces.iter().map(|piece| piece.length).sum::<u64>() == GIB;
        let last = found.last().and_then(|pieces| pieces.last());
        let behind = last.is_none_or(|last| {
            pieces
                .first()
                .is_some_and(|first| last.logical < first.logical)
        });
        if in_order && whole && behind {
            found.push(pieces);
        }
    }
    found
}

/// What has to be cut out of a file so that only these pieces are left: ranges, the last one first;
/// and where it ends before that.
pub(super) fn cuts(gibs: &[Vec<Piece>]) -> (Vec<(u64, u64)>, u64) {
    let mut kept: Vec<Piece> = gibs.iter().flatten().copied().collect();
    kept.sort_by_key(|piece| piece.logical);
    let mut gaps = Vec::new();
    let mut end = 0;
    for piece in kept {
        if end < piece.logical {
            gaps.push((end, piece.logical - end));
        }
        end = piece.logical + piece.length;
    }
    gaps.reverse();
    (gaps, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::MIB;

    #[test]
    fn an_extent_has_whole_gibs_and_rests() {
        // From half a GiB on, three GiB: two of them whole.
        let extents = [Extent::of(0, GIB / 2, 3 * GIB)];
        let gibs = whole_gibs(&extents, 0);
        assert_eq!(gibs.len(), 2);
        assert_eq!(gibs[0][0].logical, GIB / 2);
        let (gaps, end) = cuts(&gibs);
        assert_eq!(gaps, [(0, GIB / 2)]);
        assert_eq!(end, 2 * GIB + GIB / 2);
    }

    #[test]
    fn a_gib_of_several_extents() {
        let part = 128 * MIB;
        // Each on the device behind the one before, with something else between them in the file.
        let extents: Vec<Extent> = (0..8)
            .map(|number| Extent::of(number * 2 * part, GIB + number * part, part))
            .collect();
        let gibs = whole_gibs(&extents, 4 * GIB);
        assert_eq!(gibs.len(), 1);
        let (gaps, end) = cuts(&gibs);
        assert_eq!(gaps.len(), 7);
        assert_eq!(gaps[0], (13 * part, part));
        assert_eq!(end, 15 * part);
    }

    #[test]
    fn gibs_in_another_order_are_left_out() {
        let half = GIB / 2;
        // The second half comes first.
        assert!(whole_gibs(&[Extent::of(0, half, half), Extent::of(half, 0, half)], 0).is_empty());
        // Two GiB, the later one first: one of them can be kept.
        let swapped = [Extent::of(0, 2 * GIB, GIB), Extent::of(GIB, GIB, GIB)];
        assert_eq!(whole_gibs(&swapped, 0).len(), 2);
        // Interleaved: only one of them.
        let mixed = [
            Extent::of(0, 2 * GIB, half),
            Extent::of(half, GIB, half),
            Extent::of(GIB, 2 * GIB + half, half),
            Extent::of(GIB + half, GIB + half, half),
        ];
        assert_eq!(whole_gibs(&mixed, 0).len(), 1);
    }

    #[test]
    fn what_has_no_blocks_is_no_use() {
        let delayed = Extent {
            flags: 0x4,
            ..Extent::of(0, 0, GIB)
        };
        assert!(whole_gibs(&[delayed], 0).is_empty());
    }
}
