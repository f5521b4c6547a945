//! Columns of text.

use hush_log::printable;

/// Long enough for a cell that names a few policies.
const CELL_MAX_CHARS: usize = 200;

pub struct TextTable {
    rows: Vec<Vec<String>>,
}

impl TextTable {
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Each cell is made safe for one line of a terminal; an empty one is shown as a dash.
    pub fn push_row(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { printable(&cell, CELL_MAX_CHARS) };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Whether there is no row besides the header.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// One line for each row, the header first.
    pub fn lines(&self) -> Vec<String> {
        let widths = self.column_widths();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }

    fn column_widths(&self) -> Vec<usize> {
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
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = TextTable::new(&["POD", "MODEL", "WHY"]);
        assert!(table.is_empty());

        table.push_row(["media/a".to_owned(), "große".to_owned(), "two\nlines".to_owned()]);
        table.push_row(["b".to_owned(), String::new(), String::new()]);
        assert_eq!(table.lines(), ["POD      MODEL  WHY", "media/a  große  two\u{fffd}lines", "b        -      -"]);
    }
}
