//! Columns of text.

use hush_log::printable;

/// The widest cell: one that names a few policies.
const CELL_MAX_CHARS: usize = 200;

pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// What a cell says is shown in one line, whatever is in it; nothing is a dash.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { printable(&cell, CELL_MAX_CHARS) };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// A line each, the head first.
    pub fn lines(&self) -> Vec<String> {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let width = cell.chars().count();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = Table::new(&["POD", "MODEL", "WHY"]);
        assert!(table.is_empty());
        table.row(["media/a".to_owned(), "große".to_owned(), "two\nlines".to_owned()]);
        table.row(["b".to_owned(), String::new(), String::new()]);
        assert_eq!(table.lines(), ["POD      MODEL  WHY", "media/a  große  two\u{fffd}lines", "b        -      -"]);
    }
}
