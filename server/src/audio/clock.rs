//! Maps the timestamps of a container to positions in the decoded audio. Audio may start later than the video, and may have
//! gaps. Subtitles need times of the container's clock, so gaps are filled with silence.

/// Timestamps jitter by tens of milliseconds; a smaller difference is not a gap.
const TOLERANCE_SECONDS: f64 = 0.1;
/// A clock that jumps by more than this was set anew, as in recordings that were joined; then no gap is filled.
pub(super) const LONGEST_GAP_SECONDS: f64 = 3600.0;
const LARGEST_STEP_BACK_SECONDS: f64 = 10.0;

/// The offset between times of the container and positions in the decoded audio. All values are in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ContainerClock {
    /// Where the container's time begins, if its headers say so.
    origin: Option<f64>,
    /// The earliest packet of any track before the first packet of the decoded track.
    earliest: Option<f64>,
    /// What is added to the time of a packet to get its position.
    offset: Option<f64>,
}

impl ContainerClock {
    pub(super) fn starting_at(origin: f64) -> Self {
        Self { origin: Some(origin), ..Self::default() }
    }

    /// Notes a packet of another track: the first picture of the video may be where the container's time begins.
    pub(super) fn note_other_track(&mut self, time: f64) {
        if self.offset.is_none() {
            self.earliest = Some(self.earliest.map_or(time, |earliest| earliest.min(time)));
        }
    }

    /// The seconds of silence before a packet of the decoded track. `position`: the seconds that were decoded before it.
    pub(super) fn silence_before(&mut self, time: f64, position: f64) -> f64 {
        let offset = *self.offset.get_or_insert_with(|| {
            let earliest = self.earliest.map_or(time, |earliest| earliest.min(time));
            position - self.origin.unwrap_or(earliest)
        });

        let gap = time + offset - position;
        if !(-LARGEST_STEP_BACK_SECONDS..=LONGEST_GAP_SECONDS).contains(&gap) {
            self.offset = Some(position - time);
            return 0.0;
        }
        if gap > TOLERANCE_SECONDS { gap } else { 0.0 }
    }

    /// Starts over for another stream in the same file, which has timestamps of its own.
    pub(super) fn restart(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The silence before each packet of 20 ms at these times.
    fn silences(mut clock: ContainerClock, times: &[f64]) -> Vec<f64> {
        let mut position = 0.0;
        let mut all = Vec::new();
        for time in times {
            let silence = clock.silence_before(*time, position);
            position += silence + 0.02;
            all.push((silence * 100.0).round() / 100.0);
        }
        all
    }

    #[test]
    fn audio_alone_begins_at_zero_at_any_first_timestamp() {
        assert_eq!(silences(ContainerClock::default(), &[7200.0, 7200.02, 7200.04]), [0.0; 3]);
        assert_eq!(silences(ContainerClock::default(), &[-0.04, -0.02, 0.0]), [0.0; 3]);
    }

    #[test]
    fn audio_that_starts_after_the_video_has_silence_before_it() {
        let mut clock = ContainerClock::default();
        clock.note_other_track(10.0);
        clock.note_other_track(10.04);
        assert_eq!(silences(clock, &[14.94, 14.96]), [4.94, 0.0]);
        assert_eq!(silences(ContainerClock::starting_at(0.0), &[4.94, 4.96]), [4.94, 0.0]);
    }

    #[test]
    fn a_gap_is_silence_and_jitter_is_not() {
        assert_eq!(silences(ContainerClock::default(), &[0.0, 0.02, 10.04, 10.06]), [0.0, 0.0, 10.0, 0.0]);
        assert_eq!(silences(ContainerClock::default(), &[0.0, 0.07, 0.04, 0.1, 0.05, 0.17]), [0.0; 6]);
    }

    #[test]
    fn a_clock_that_is_set_anew_makes_no_gap() {
        assert_eq!(silences(ContainerClock::default(), &[100.0, 100.02, 0.0, 0.02, 5.04]), [0.0, 0.0, 0.0, 0.0, 5.0]);
        assert_eq!(silences(ContainerClock::default(), &[0.0, 0.02, 90_000.0, 90_000.02]), [0.0; 4]);
        assert_eq!(silences(ContainerClock::default(), &[0.0, f64::NAN, f64::INFINITY, 0.06]), [0.0; 4]);
    }
}
