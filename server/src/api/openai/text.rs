//! Text that is cut into segments.

/// Joins the texts of segments so that the pieces, one behind the other, are the whole text without blanks around it.
#[derive(Debug, Default)]
pub struct Joiner {
    text: String,
    /// Blanks that may turn out to be the last.
    blanks: String,
}

impl Joiner {
    /// The piece that `segment` adds; empty when it adds none.
    pub fn push(&mut self, segment: &str) -> String {
        let mut piece = std::mem::take(&mut self.blanks);
        piece.push_str(segment);
        let begins = if self.text.is_empty() { piece.len() - piece.trim_start().len() } else { 0 };
        let ends = piece.trim_end().len().max(begins);
        if ends == begins && self.text.is_empty() {
            return String::new();
        }
        self.blanks = piece[ends..].to_owned();
        let piece = piece[begins..ends].to_owned();
        self.text.push_str(&piece);
        piece
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_blank_is_dropped_and_the_others_stay_between() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.push(" "), "");
        assert_eq!(joiner.push(" Hello."), "Hello.");
        assert_eq!(joiner.push(" Bye. "), " Bye.");
        assert_eq!(joiner.push(""), "");
        assert_eq!(joiner.push("你好"), " 你好");
        assert_eq!(joiner.into_text(), "Hello. Bye. 你好");
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_text(segments in proptest::collection::vec("[ a\u{3000}é]{0,4}", 0..8)) {
            let mut joiner = Joiner::default();
            let pieces: String = segments.iter().map(|segment| joiner.push(segment)).collect();
            let whole = segments.concat();
            prop_assert_eq!(&pieces, whole.trim());
            prop_assert_eq!(joiner.into_text(), pieces);
        }
    }
}
