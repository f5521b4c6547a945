//! Cutting the tokens of one window into segments, and how far to seek: the middle of `transcribe` in openai/whisper
//! (`whisper/transcribe.py`).

/// A run of tokens with its times, in timestamps of 0.02 s from the start of the window.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece<'a> {
    pub tokens: &'a [u32],
    /// Where they begin in the window's tokens.
    pub from: usize,
    pub start: u32,
    /// `None`: it lasts as long as the window.
    pub end: Option<u32>,
}

/// How far the next window begins behind this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    WholeWindow,
    /// To this timestamp: what comes after it was not finished.
    To(u32),
}

/// Whether the text ends with a single timestamp: nothing is said behind it.
pub fn is_finished(tokens: &[u32], timestamp_begin: u32) -> bool {
    matches!(tokens, [.., before, last] if *before < timestamp_begin && *last >= timestamp_begin)
}

/// `timestamp_begin` is the token `<|0.00|>`.
pub fn split(tokens: &[u32], timestamp_begin: u32) -> (Vec<Piece<'_>>, Advance) {
    let is_timestamp = |token: u32| token >= timestamp_begin;
    let ends_with_one = is_finished(tokens, timestamp_begin);

    // A cut lies between two timestamps in a row.
    let mut cuts: Vec<usize> =
        (1..tokens.len()).filter(|at| is_timestamp(tokens[at - 1]) && is_timestamp(tokens[*at])).collect();

    if cuts.is_empty() {
        let latest = tokens.iter().rev().copied().find(|token| is_timestamp(*token));
        let end = latest.filter(|token| *token != timestamp_begin).map(|token| token - timestamp_begin);
        return (vec![Piece { tokens, from: 0, start: 0, end }], Advance::WholeWindow);
    }

    if ends_with_one {
        cuts.push(tokens.len());
    }

    let mut pieces = Vec::with_capacity(cuts.len());
    let mut from = 0;
    for cut in cuts {
        let piece = &tokens[from..cut];

        // The first piece of a window may begin, by rule, only with a timestamp; others begin behind a cut.
        let at = |token: Option<&u32>| token.map_or(0, |token| token.saturating_sub(timestamp_begin));
        pieces.push(Piece { tokens: piece, from, start: at(piece.first()), end: Some(at(piece.last())) });
        from = cut;
    }

    let advance = if ends_with_one { Advance::WholeWindow } else { Advance::To(tokens[from - 1] - timestamp_begin) };

    (pieces, advance)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u32 = 100;

    type Plain = (Vec<u32>, u32, Option<u32>);

    fn cut(tokens: &[u32]) -> (Vec<Plain>, Advance) {
        let (pieces, advance) = split(tokens, T);
        (pieces.into_iter().map(|piece| (piece.tokens.to_vec(), piece.start, piece.end)).collect(), advance)
    }

    #[test]
    fn one_finished_segment_takes_the_whole_window() {
        let tokens = [T, 1, 2, T + 50];
        assert_eq!(cut(&tokens), (vec![(tokens.to_vec(), 0, Some(50))], Advance::WholeWindow));

        // Its start is not read from its first timestamp.
        let tokens = [T + 10, 1, 2, T + 50];
        assert_eq!(cut(&tokens), (vec![(tokens.to_vec(), 0, Some(50))], Advance::WholeWindow));
    }

    #[test]
    fn no_timestamps_take_the_whole_window() {
        assert_eq!(cut(&[1, 2]), (vec![(vec![1, 2], 0, None)], Advance::WholeWindow));
        assert_eq!(cut(&[T, 1]), (vec![(vec![T, 1], 0, None)], Advance::WholeWindow));
        assert_eq!(cut(&[]), (vec![(vec![], 0, None)], Advance::WholeWindow));
    }

    #[test]
    fn pairs_cut_and_the_unfinished_rest_is_left() {
        let tokens = [T, 1, T + 5, T + 5, 2, T + 9, T + 9, 3];
        let expected = vec![(vec![T, 1, T + 5], 0, Some(5)), (vec![T + 5, 2, T + 9], 5, Some(9))];
        assert_eq!(cut(&tokens), (expected, Advance::To(9)));
    }

    #[test]
    fn a_single_timestamp_at_the_end_finishes_the_window() {
        let tokens = [T, 1, T + 5, T + 6, 2, T + 9];
        let expected = vec![(vec![T, 1, T + 5], 0, Some(5)), (vec![T + 6, 2, T + 9], 6, Some(9))];
        assert_eq!(cut(&tokens), (expected, Advance::WholeWindow));
    }

    #[test]
    fn a_pair_at_the_end_seeks_to_it() {
        let tokens = [T, 1, T + 5, T + 5];
        assert_eq!(cut(&tokens), (vec![(vec![T, 1, T + 5], 0, Some(5))], Advance::To(5)));
    }
}
