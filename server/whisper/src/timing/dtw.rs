//! Dynamic time warping: the cheapest monotone path through a table from its first corner to its last.

/// For each row of `costs` (`[rows, columns]`, row after row), the column where the path enters it. Sums are kept in
/// f32 and compared like in the reference, so that ties are resolved in the same way.
pub fn entry_columns(costs: &[f32], rows: usize, columns: usize) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum DtwStep {
        Both,
        Row,
        Column,
    }

    if rows == 0 || columns == 0 {
        return Vec::new();
    }

    let width = columns + 1;
    let mut steps = vec![DtwStep::Both; (rows + 1) * width];
    let mut before = vec![f32::INFINITY; rows + 1];
    before[0] = 0.0;
    let mut now = vec![f32::INFINITY; rows + 1];

    for column in 1..=columns {
        now[0] = f32::INFINITY;

        for row in 1..=rows {
            let (both, along_rows, along_columns) = (before[row - 1], now[row - 1], before[row]);
            let (least, step) = if both < along_rows && both < along_columns {
                (both, DtwStep::Both)
            } else if along_rows < both && along_rows < along_columns {
                (along_rows, DtwStep::Row)
            } else {
                (along_columns, DtwStep::Column)
            };

            now[row] = (f64::from(costs[(row - 1) * columns + column - 1]) + f64::from(least)) as f32;
            steps[row * width + column] = step;
        }

        std::mem::swap(&mut before, &mut now);
    }

    let mut entries = vec![0; rows];
    let (mut row, mut column) = (rows, columns);

    while row > 0 && column > 0 {
        entries[row - 1] = column - 1;

        match steps[row * width + column] {
            DtwStep::Both => {
                row -= 1;
                column -= 1;
            }
            DtwStep::Row => row -= 1,
            DtwStep::Column => column -= 1,
        }
    }

    entries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn follows_the_cheap_cells() {
        #[rustfmt::skip]
        let costs = [
            0.0, 0.0, 9.0, 9.0, 9.0,
            9.0, 9.0, 0.0, 9.0, 9.0,
            9.0, 9.0, 9.0, 0.0, 0.0,
        ];
        assert_eq!(entry_columns(&costs, 3, 5), [0, 2, 3]);
    }

    #[test]
    fn more_rows_than_columns_share_them() {
        assert_eq!(entry_columns(&[0.0; 4], 4, 1), [0, 0, 0, 0]);
        assert_eq!(entry_columns(&[1.0], 1, 1), [0]);
        assert!(entry_columns(&[], 0, 5).is_empty());
        assert!(entry_columns(&[], 3, 0).is_empty());
    }

    /// The cost of the cheapest monotone path, found by trying all of them.
    fn cheapest(costs: &[f32], rows: usize, columns: usize, at: (usize, usize)) -> f32 {
        let here = costs[at.0 * columns + at.1];
        let onward = [(1, 1), (1, 0), (0, 1)].into_iter().map(|(down, right)| (at.0 + down, at.1 + right));
        let onward = onward.filter(|(row, column)| *row < rows && *column < columns);
        let rest = onward.map(|next| cheapest(costs, rows, columns, next)).reduce(f32::min);
        here + rest.unwrap_or(0.0)
    }

    proptest! {
        // Without ties: there the reference does not always choose the cheapest path, and neither does this implementation.
        #[test]
        fn no_path_is_cheaper(rows in 1_usize..5, columns in 1_usize..6, all in prop::collection::vec(-8.0_f32..8.0, 20)) {
            let costs = &all[..rows * columns];
            let entries = entry_columns(costs, rows, columns);

            prop_assert!(entries.is_sorted());

            // The last column of a row is where the next row is entered, or the one before it.
            let mut best = f32::INFINITY;

            for mask in 0..1_u32 << rows.saturating_sub(1) {
                let mut total = 0.0;
                let mut possible = true;
                for row in 0..rows {
                    let end = match entries.get(row + 1) {
                        Some(next) if mask >> row & 1 == 0 => *next + 1,
                        Some(next) => *next,
                        None => columns,
                    };
                    possible &= end > entries[row];
                    total += costs[row * columns + entries[row]..row * columns + end.max(entries[row])].iter().sum::<f32>();
                }

                if possible {
                    best = best.min(total);
                }
            }

            let expected = cheapest(costs, rows, columns, (0, 0));

            prop_assert!((best - expected).abs() < 1e-3, "{} {}", best, expected);
        }
    }
}
