//! Joins the texts of segments.

/// Joins the texts of segments. The pieces in order make up the whole text, without white space at its beginning and end.
#[derive(Debug, Default)]
pub struct SegmentJoiner {
    text: String,
    /// White space that is left out if no text follows it.
    trailing: String,
}

impl SegmentJoiner {
    /// Appends a segment and returns the piece that it adds; empty when it adds nothing.
    pub fn push(&mut self, segment: &str) -> String {
        let mut piece = std::mem::take(&mut self.trailing);
        piece.push_str(segment);

        let start = if self.text.is_empty() { piece.len() - piece.trim_start().len() } else { 0 };
        let end = piece.trim_end().len().max(start);

        if end == start && self.text.is_empty() {
            return String::new();
        }

        self.trailing = piece[end..].to_owned();
        let piece = piece[start..end].to_owned();
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
    fn the_first_space_is_dropped_and_the_others_stay_between_segments() {
        let mut joiner = SegmentJoiner::default();
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
            let mut joiner = SegmentJoiner::default();
            let pieces: String = segments.iter().map(|segment| joiner.push(segment)).collect();
            let whole = segments.concat();
            prop_assert_eq!(&pieces, whole.trim());
            prop_assert_eq!(joiner.into_text(), pieces);
        }
    }
}
