//! What the edit list of an MP4 shows of a track, on its way from decoded frames to those that are heard.

use std::collections::VecDeque;

use super::headers::Cut;

/// Applies [`Cut`]s to a stream of frames at one rate.
#[derive(Debug)]
pub(super) struct CutFrames {
    rate: f64,
    rest: VecDeque<Cut>,
    hidden: u64,
    shown: u64,
}

/// What becomes of some frames, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Hidden(u64),
    Shown(u64),
    /// Frames of silence that come between.
    Silence(u64),
}

impl CutFrames {
    /// Shows everything.
    pub(super) fn none() -> Self {
        Self { rate: 1.0, rest: VecDeque::new(), hidden: 0, shown: u64::MAX }
    }

    pub(super) fn new(cuts: Vec<Cut>, hertz: u32) -> Self {
        Self { rate: f64::from(hertz), rest: cuts.into(), hidden: 0, shown: 0 }
    }

    /// What is done with the next of `frames`; `None` where there are none.
    pub(super) fn next(&mut self, frames: u64) -> Option<Piece> {
        if frames == 0 {
            return None;
        }
        if self.hidden > 0 {
            let hidden = self.hidden.min(frames);
            self.hidden -= hidden;
            return Some(Piece::Hidden(hidden));
        }
        if self.shown > 0 {
            let shown = self.shown.min(frames);
            if self.shown != u64::MAX {
                self.shown -= shown;
            }
            return Some(Piece::Shown(shown));
        }
        let Some(cut) = self.rest.pop_front() else { return Some(Piece::Hidden(frames)) };
        let in_frames = |seconds: f64| (seconds * self.rate).round() as u64;
        self.hidden = in_frames(cut.skip_seconds);
        self.shown = cut.keep_seconds.map_or(u64::MAX, in_frames);
        Some(Piece::Silence(in_frames(cut.pause_seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(mut cuts: CutFrames, mut frames: u64) -> Vec<Piece> {
        let mut all = Vec::new();
        while let Some(piece) = cuts.next(frames) {
            all.push(piece);
            if let Piece::Hidden(n) | Piece::Shown(n) = piece {
                frames -= n;
            }
        }
        all
    }

    #[test]
    fn pauses_and_cuts_follow_each_other() {
        let cuts = vec![
            Cut { pause_seconds: 2.0, skip_seconds: 1.0, keep_seconds: Some(3.0) },
            Cut { pause_seconds: 0.5, skip_seconds: 0.0, keep_seconds: Some(1.0) },
        ];
        let expected = [
            Piece::Silence(20),
            Piece::Hidden(10),
            Piece::Shown(30),
            Piece::Silence(5),
            Piece::Shown(10),
            Piece::Hidden(50),
        ];
        assert_eq!(pieces(CutFrames::new(cuts, 10), 100), expected);
        let open = vec![Cut { pause_seconds: 0.0, skip_seconds: 0.1, keep_seconds: None }];
        assert_eq!(pieces(CutFrames::new(open, 10), 9), [Piece::Silence(0), Piece::Hidden(1), Piece::Shown(8)]);
        assert_eq!(pieces(CutFrames::none(), 9), [Piece::Shown(9)]);
    }
}
