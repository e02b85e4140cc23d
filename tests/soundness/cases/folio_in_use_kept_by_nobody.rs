//! error: no method named `refcount` found
// SPDX-License-Identifier: GPL-2.0

//! A folio that was in use when it was found, by somebody who may have removed it since.

use crate::{
    dax::layout,
    kern::fs::{Mapping, PageRange},
};

pub(crate) fn case(mapping: &Mapping) -> bool {
    layout::busy_folio(mapping, PageRange::ALL).is_some_and(|folio| folio.refcount() > 0)
}
