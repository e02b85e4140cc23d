//! error: `alive` does not live long enough
// SPDX-License-Identifier: GPL-2.0

//! Pages of a device that may be gone since it has given them.

use crate::kern::dax::{Access, DaxPlace, DaxReadGuard};

pub(crate) fn case(place: DaxPlace<'_>) -> bool {
    let found = {
        let alive = DaxReadGuard::new();
        let memory = place.access(&alive, 1, Access::Normal);
        memory.map(|memory| memory.run())
    };
    found.is_ok_and(|run| run.first().is_poisoned())
}
