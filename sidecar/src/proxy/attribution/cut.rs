//! Leaves ranges of bytes out of a body.

use std::ops::Range;

use bytes::Bytes;

/// The parts of `piece`, which begins at `offset` of the body, that no range covers. `cuts` are in ascending order and do
/// not overlap.
pub fn kept_slices(cuts: &[Range<u64>], offset: u64, piece: Bytes) -> Vec<Bytes> {
    let end = offset + piece.len() as u64;
    let first = cuts.partition_point(|cut| cut.end <= offset);
    let within = |position: u64| (position.clamp(offset, end) - offset) as usize;

    let mut kept = Vec::new();
    let mut at = 0;
    for cut in cuts[first..].iter().take_while(|cut| cut.start < end) {
        kept.push(piece.slice(at..within(cut.start)));
        at = within(cut.end);
    }
    kept.push(piece.slice(at..));
    kept.retain(|slice| !slice.is_empty());
    kept
}

/// The length of a body of `len_bytes` without the ranges.
pub fn kept_bytes(cuts: &[Range<u64>], len_bytes: u64) -> u64 {
    len_bytes - cuts.iter().map(|cut| cut.end - cut.start).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_matter() {
        let text = Bytes::from_static(b"0123456789");
        for cuts in [vec![], vec![0..1, 1..3], vec![2..5, 5..6, 8..10], vec![0..4, 4..10]] {
            let expected: Vec<u8> =
                (0..10).filter(|at| !cuts.iter().any(|cut| cut.contains(at))).map(|at| b'0' + at as u8).collect();
            assert_eq!(kept_bytes(&cuts, 10), expected.len() as u64);

            for piece_bytes in 1..=10 {
                let pieces =
                    (0..10).step_by(piece_bytes).map(|at| (at as u64, text.slice(at..(at + piece_bytes).min(10))));
                let kept: Vec<u8> = pieces.flat_map(|(at, piece)| kept_slices(&cuts, at, piece).concat()).collect();
                assert_eq!(kept, expected, "{cuts:?} in pieces of {piece_bytes}");
            }
        }
    }
}
