//! Makes text from outside safe to print in a log line, a table or a page.

/// Replaces a character that must not be printed.
const REPLACEMENT: char = '\u{fffd}';

/// The text in one line that shows its real content: control characters (terminals act on them, and a line break begins what
/// looks like another entry) and characters that are invisible or reorder others are replaced. A text of more than `max_chars`
/// characters is cut, and its last character is `…`.
pub fn printable(text: &str, max_chars: usize) -> String {
    let shown = |letter: char| if is_printable(letter) { letter } else { REPLACEMENT };

    // The characters of a very long text are not counted to the end.
    match text.char_indices().nth(max_chars) {
        None => text.chars().map(shown).collect(),
        Some(_) => text.chars().take(max_chars.saturating_sub(1)).map(shown).chain(['…']).collect(),
    }
}

/// As [`printable`], for a text with several lines that this program wrote; `max_chars` applies to each line.
pub fn printable_lines(text: &str, max_chars: usize) -> String {
    text.lines().map(|line| printable(line, max_chars)).collect::<Vec<_>>().join("\n")
}

/// Whether a terminal, a log and a page show the character itself at its position.
pub fn is_printable(letter: char) -> bool {
    !letter.is_control() && !is_unseen(letter)
}

/// Format characters: bidirectional controls, line separators, and characters without width. The joiners U+200C and U+200D are
/// letters of scripts and stay.
fn is_unseen(letter: char) -> bool {
    matches!(
        letter,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_replaced() {
        assert_eq!(printable("\u{1b}]0;owned\u{7}a\r\nFAKE\u{9b}2J\u{7f}", 99), "�]0;owned�a��FAKE�2J�");
        assert_eq!(printable("a\u{202e}txt.exe\u{2069}\u{2028}b\u{feff}\u{e0041}", 99), "a�txt.exe��b��");
        assert_eq!(printable("größe 模型 👩\u{200d}🚀 e\u{301}", 99), "größe 模型 👩\u{200d}🚀 e\u{301}");
    }

    #[test]
    fn what_is_too_long_shows_its_beginning() {
        assert_eq!(printable("abcd", 4), "abcd");
        assert_eq!(printable("äbcde", 4), "äbc…");
        assert_eq!(printable("ab", 1), "…");
        assert_eq!(printable("", 0), "");
        assert_eq!(printable_lines("a\nb\u{1b}[1m\r\nabcdef", 5), "a\nb�[1m\nabcd…");
    }
}
