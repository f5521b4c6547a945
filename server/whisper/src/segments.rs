//! Splits the tokens of one window into segments, and determines how far to seek: the middle of `transcribe` in
//! openai/whisper (`whisper/transcribe.py`).

/// A run of tokens with its times, in timestamps of 0.02 s from the start of the window.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenSpan<'a> {
    pub tokens: &'a [u32],
    /// Index of the first of them in the window's tokens.
    pub from: usize,
    pub start: u32,
    /// `None`: the end of the window.
    pub end: Option<u32>,
}

/// Where the next window begins, relative to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekAdvance {
    WholeWindow,
    /// At this timestamp: the text after it is incomplete.
    To(u32),
}

/// Whether the text ends with a single timestamp, after which nothing is said.
pub fn is_finished(tokens: &[u32], timestamp_begin: u32) -> bool {
    matches!(tokens, [.., before, last] if *before < timestamp_begin && *last >= timestamp_begin)
}

/// The segments of a window's tokens. `timestamp_begin` is the token `<|0.00|>`.
pub fn split(tokens: &[u32], timestamp_begin: u32) -> (Vec<TokenSpan<'_>>, SeekAdvance) {
    let is_timestamp = |token: u32| token >= timestamp_begin;
    let ends_with_one = is_finished(tokens, timestamp_begin);

    // Segments are split between two consecutive timestamps.
    let mut cuts: Vec<usize> =
        (1..tokens.len()).filter(|at| is_timestamp(tokens[at - 1]) && is_timestamp(tokens[*at])).collect();

    if cuts.is_empty() {
        let latest = tokens.iter().rev().copied().find(|token| is_timestamp(*token));
        let end = latest.filter(|token| *token != timestamp_begin).map(|token| token - timestamp_begin);
        return (vec![TokenSpan { tokens, from: 0, start: 0, end }], SeekAdvance::WholeWindow);
    }

    if ends_with_one {
        cuts.push(tokens.len());
    }

    let mut pieces = Vec::with_capacity(cuts.len());
    let mut from = 0;
    for cut in cuts {
        let piece = &tokens[from..cut];

        // By rule the first token of a window is a timestamp, and every other segment begins after a split.
        let at = |token: Option<&u32>| token.map_or(0, |token| token.saturating_sub(timestamp_begin));
        pieces.push(TokenSpan { tokens: piece, from, start: at(piece.first()), end: Some(at(piece.last())) });
        from = cut;
    }

    let advance =
        if ends_with_one { SeekAdvance::WholeWindow } else { SeekAdvance::To(tokens[from - 1] - timestamp_begin) };

    (pieces, advance)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u32 = 100;

    type PlainSpan = (Vec<u32>, u32, Option<u32>);

    fn cut(tokens: &[u32]) -> (Vec<PlainSpan>, SeekAdvance) {
        let (pieces, advance) = split(tokens, T);
        (pieces.into_iter().map(|piece| (piece.tokens.to_vec(), piece.start, piece.end)).collect(), advance)
    }

    #[test]
    fn one_finished_segment_takes_the_whole_window() {
        let tokens = [T, 1, 2, T + 50];
        assert_eq!(cut(&tokens), (vec![(tokens.to_vec(), 0, Some(50))], SeekAdvance::WholeWindow));

        // The start is not read from the first timestamp.
        let later_start = [T + 10, 1, 2, T + 50];
        assert_eq!(cut(&later_start), (vec![(later_start.to_vec(), 0, Some(50))], SeekAdvance::WholeWindow));
    }

    #[test]
    fn no_timestamps_take_the_whole_window() {
        assert_eq!(cut(&[1, 2]), (vec![(vec![1, 2], 0, None)], SeekAdvance::WholeWindow));
        assert_eq!(cut(&[T, 1]), (vec![(vec![T, 1], 0, None)], SeekAdvance::WholeWindow));
        assert_eq!(cut(&[]), (vec![(vec![], 0, None)], SeekAdvance::WholeWindow));
    }

    #[test]
    fn pairs_cut_and_the_unfinished_rest_is_left() {
        let tokens = [T, 1, T + 5, T + 5, 2, T + 9, T + 9, 3];
        let expected = vec![(vec![T, 1, T + 5], 0, Some(5)), (vec![T + 5, 2, T + 9], 5, Some(9))];
        assert_eq!(cut(&tokens), (expected, SeekAdvance::To(9)));
    }

    #[test]
    fn a_single_timestamp_at_the_end_finishes_the_window() {
        let tokens = [T, 1, T + 5, T + 6, 2, T + 9];
        let expected = vec![(vec![T, 1, T + 5], 0, Some(5)), (vec![T + 6, 2, T + 9], 6, Some(9))];
        assert_eq!(cut(&tokens), (expected, SeekAdvance::WholeWindow));
    }

    #[test]
    fn a_pair_at_the_end_seeks_to_it() {
        let tokens = [T, 1, T + 5, T + 5];
        assert_eq!(cut(&tokens), (vec![(vec![T, 1, T + 5], 0, Some(5))], SeekAdvance::To(5)));
    }
}
