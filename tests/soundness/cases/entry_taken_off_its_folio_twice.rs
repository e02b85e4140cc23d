//! error: E0382
// SPDX-License-Identifier: GPL-2.0

//! What one entry stood for is taken off a folio twice.

use crate::{dax::folio, kern::page::Association};

pub(crate) fn case(association: Association<'_>) {
    folio::disassociate(association);
    folio::disassociate(association);
}
