//! Applies the edit list of an MP4 track to decoded frames.

use std::collections::VecDeque;

use super::headers::EditCut;

/// Applies [`EditCut`]s to a stream of frames at one rate.
#[derive(Debug)]
pub(super) struct CutFrames {
    rate: f64,
    rest: VecDeque<EditCut>,
    /// Frames that are still to be hidden, then frames that are still to be shown.
    hidden: u64,
    shown: u64,
}

/// What is done with a run of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CutAction {
    Hide(u64),
    Show(u64),
    /// Frames of silence that are inserted.
    Silence(u64),
}

impl CutFrames {
    /// A list without cuts: shows everything.
    pub(super) fn none() -> Self {
        Self { rate: 1.0, rest: VecDeque::new(), hidden: 0, shown: u64::MAX }
    }

    pub(super) fn new(cuts: Vec<EditCut>, hertz: u32) -> Self {
        Self { rate: f64::from(hertz), rest: cuts.into(), hidden: 0, shown: 0 }
    }

    /// The action for the first of the next `frames`; `None` where there are no frames.
    pub(super) fn next(&mut self, frames: u64) -> Option<CutAction> {
        if frames == 0 {
            return None;
        }

        if self.hidden > 0 {
            let hidden = self.hidden.min(frames);
            self.hidden -= hidden;
            return Some(CutAction::Hide(hidden));
        }

        if self.shown > 0 {
            let shown = self.shown.min(frames);
            if self.shown != u64::MAX {
                self.shown -= shown;
            }
            return Some(CutAction::Show(shown));
        }
        let Some(cut) = self.rest.pop_front() else { return Some(CutAction::Hide(frames)) };

        let in_frames = |seconds: f64| (seconds * self.rate).round() as u64;
        self.hidden = in_frames(cut.skip_seconds);
        self.shown = cut.keep_seconds.map_or(u64::MAX, in_frames);
        Some(CutAction::Silence(in_frames(cut.pause_seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(mut cuts: CutFrames, mut frames: u64) -> Vec<CutAction> {
        let mut all = Vec::new();
        while let Some(action) = cuts.next(frames) {
            all.push(action);
            if let CutAction::Hide(n) | CutAction::Show(n) = action {
                frames -= n;
            }
        }
        all
    }

    #[test]

    fn pauses_and_cuts_follow_each_other() {
        let cuts = vec![
            EditCut { pause_seconds: 2.0, skip_seconds: 1.0, keep_seconds: Some(3.0) },
            EditCut { pause_seconds: 0.5, skip_seconds: 0.0, keep_seconds: Some(1.0) },
        ];
        let expected = [
            CutAction::Silence(20),
            CutAction::Hide(10),
            CutAction::Show(30),
            CutAction::Silence(5),
            CutAction::Show(10),
            CutAction::Hide(50),
        ];
        assert_eq!(actions(CutFrames::new(cuts, 10), 100), expected);

        let open = vec![EditCut { pause_seconds: 0.0, skip_seconds: 0.1, keep_seconds: None }];
        assert_eq!(
            actions(CutFrames::new(open, 10), 9),
            [CutAction::Silence(0), CutAction::Hide(1), CutAction::Show(8)]
        );
        assert_eq!(actions(CutFrames::none(), 9), [CutAction::Show(9)]);
    }
}
