// SPDX-License-Identifier: GPL-2.0

//! Tables on a terminal, or for programs that read columns.

use crate::output::harmless;
use comfy_table::{
    presets,
    CellAlignment,
    Table, //
};

/// A table of columns that are separated by spaces; those in `right` are numbers.
pub fn plain(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| harmless(cell, &[])));
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let rows = vec![
            vec!["pmem0".to_owned(), "2".to_owned()],
            vec!["pmem0p1".to_owned(), "1024".to_owned()],
        ];
        assert_eq!(
            plain(&["DEVICE", "SIZE"], &[1], rows),
            "DEVICE   SIZE\npmem0       2\npmem0p1  1024\n"
        );
        let rows = vec![vec!["two\nlines".to_owned()]];
        assert_eq!(plain(&["NAME"], &[], rows), "NAME\ntwo\\nlines\n");
    }
}
