//! Text and tables as Markdown.

/// Marks words that a user types as they stand as code, where they are not marked yet: options, variables, paths. Links
/// of Rust's documentation lose their brackets, since they lead nowhere here.
pub fn marked(text: &str) -> String {
    let text = text.replace("[`", "`").replace("`]", "`");

    let pieces = text.split('`').enumerate();
    pieces.map(|(index, piece)| if index % 2 == 0 { marked_words(piece) } else { format!("`{piece}`") }).collect()
}

fn marked_words(text: &str) -> String {
    text.split(' ').map(marked_word).collect::<Vec<_>>().join(" ")
}

fn marked_word(word: &str) -> String {
    let core = word.trim_start_matches('(').trim_end_matches([',', '.', ';', ':', ')']).trim_end_matches("'s");

    let is_typed = core.starts_with("--") && core.len() > 2
        || core.contains('/') && core.starts_with(['/', '.', '$', '~'])
        || core.contains('_')
        || core.contains("<=");
    if !is_typed {
        return word.replace('<', "&lt;");
    }
    word.replacen(core, &format!("`{core}`"), 1)
}

/// A text as it may stand in a table: in one line, without columns of its own.
pub fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

pub fn code(text: &str) -> String {
    format!("`{text}`")
}

/// A table without the columns that are empty.
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
