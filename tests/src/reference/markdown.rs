//! Text and tables as Markdown.

/// Each word that is typed as it stands, and nobody has marked, becomes code: options, variables, paths. Links of Rust's
/// documentation lead nowhere here.
pub fn marked(text: &str) -> String {
    let text = text.replace("[`", "`").replace("`]", "`");
    let pieces = text.split('`').enumerate();
    let pieces = pieces.map(|(index, piece)| if index % 2 == 0 { words(piece) } else { format!("`{piece}`") });
    pieces.collect()
}

fn words(text: &str) -> String {
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn word(word: &str) -> String {
    let core = word.trim_start_matches('(').trim_end_matches([',', '.', ';', ':', ')']).trim_end_matches("'s");
    let typed = core.starts_with("--") && core.len() > 2
        || core.contains('/') && core.starts_with(['/', '.', '$', '~'])
        || core.contains('_')
        || core.contains("<=");
    if !typed {
        return word.replace('<', "&lt;");
    }
    word.replacen(core, &format!("`{core}`"), 1)
}

/// One line that may stand in a table.
pub fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

pub fn code(text: &str) -> String {
    format!("`{text}`")
}

/// Columns that nothing stands in are left out.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let used: Vec<usize> = (0..head.len())
        .filter(|column| rows.iter().any(|row| row.get(*column).is_some_and(|c| !c.is_empty())))
        .collect();
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | ")).replace("|  |", "| |").replace("|  |", "| |");
    let mut text = line(used.iter().map(|column| head[*column]).collect());
    text += &format!("|{}\n", "---|".repeat(used.len()));
    for row in rows {
        let row: Vec<String> = row.iter().map(|text| cell(text)).collect();
        text += &line(used.iter().map(|column| row[*column].as_str()).collect());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_code() {
        assert_eq!(
            marked("after --idle-timeout, see `--x` and HF_TOKEN."),
            "after `--idle-timeout`, see `--x` and `HF_TOKEN`."
        );
        assert_eq!(marked("in ../lib of it; a -- b"), "in `../lib` of it; a -- b");
    }

    #[test]
    fn a_table_has_the_columns_that_are_used() {
        let rows = [vec!["a|b".to_owned(), String::new(), "c\n d".to_owned()]];
        assert_eq!(table(&["one", "two", "three"], &rows), "| one | three |\n|---|---|\n| a\\|b | c d |\n");
    }
}
