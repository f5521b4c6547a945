//! Where a packet belongs on the clock of its container: audio may start later than the video, and may have holes. Times
//! of subtitles are times of that clock, so the difference is filled with silence.

/// Timestamps waver by tens of milliseconds; a smaller difference than this is no hole.
const TOLERANCE_SECONDS: f64 = 0.1;
/// A clock that goes on so much later or earlier was set anew (recordings that were joined): time goes on without a hole.
pub(super) const LONGEST_HOLE_SECONDS: f64 = 3600.0;
const LARGEST_STEP_BACK_SECONDS: f64 = 10.0;

/// The way from times of the container to positions in what was decoded. Everything in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ContainerClock {
    /// Where the container's time begins, where something else than its first packets says so.
    origin: Option<f64>,
    /// The earliest packet of any track before the first of the one that is heard.
    earliest: Option<f64>,
    /// What a packet's time needs to become a position.
    offset: Option<f64>,
}

impl ContainerClock {
    pub(super) fn starting_at(origin: f64) -> Self {
        Self { origin: Some(origin), ..Self::default() }
    }

    /// A packet of a track that is not heard: the video's first picture is where the container's time begins.
    pub(super) fn saw_other_track(&mut self, time: f64) {
        if self.offset.is_none() {
            self.earliest = Some(self.earliest.map_or(time, |earliest| earliest.min(time)));
        }
    }

    /// The silence before a packet that is heard. `position`: seconds that were decoded before it.
    pub(super) fn silence_before(&mut self, time: f64, position: f64) -> f64 {
        let offset = *self.offset.get_or_insert_with(|| {
            let earliest = self.earliest.map_or(time, |earliest| earliest.min(time));
            position - self.origin.unwrap_or(earliest)
        });
        let ahead = time + offset - position;
        if !(-LARGEST_STEP_BACK_SECONDS..=LONGEST_HOLE_SECONDS).contains(&ahead) {
            self.offset = Some(position - time);
            return 0.0;
        }
        if ahead > TOLERANCE_SECONDS { ahead } else { 0.0 }
    }

    /// Another stream follows in the same file, with times of its own.
    pub(super) fn restart(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets of 20 ms at these times: the silence before each.
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
    fn audio_alone_begins_at_zero_whatever_its_first_time_is() {
        assert_eq!(silences(ContainerClock::default(), &[7200.0, 7200.02, 7200.04]), [0.0; 3]);
        assert_eq!(silences(ContainerClock::default(), &[-0.04, -0.02, 0.0]), [0.0; 3]);
    }

    #[test]
    fn audio_that_starts_after_the_video_is_late() {
        let mut clock = ContainerClock::default();
        clock.saw_other_track(10.0);
        clock.saw_other_track(10.04);
        assert_eq!(silences(clock, &[14.94, 14.96]), [4.94, 0.0]);
        assert_eq!(silences(ContainerClock::starting_at(0.0), &[4.94, 4.96]), [4.94, 0.0]);
    }

    #[test]
    fn a_hole_is_silence_and_wavering_is_not() {
        assert_eq!(silences(ContainerClock::default(), &[0.0, 0.02, 10.04, 10.06]), [0.0, 0.0, 10.0, 0.0]);
        assert_eq!(silences(ContainerClock::default(), &[0.0, 0.07, 0.04, 0.1, 0.05, 0.17]), [0.0; 6]);
    }

    #[test]
    fn a_clock_that_is_set_anew_makes_no_hole() {
        assert_eq!(silences(ContainerClock::default(), &[100.0, 100.02, 0.0, 0.02, 5.04]), [0.0, 0.0, 0.0, 0.0, 5.0]);
        assert_eq!(silences(ContainerClock::default(), &[0.0, 0.02, 90_000.0, 90_000.02]), [0.0; 4]);
        assert_eq!(silences(ContainerClock::default(), &[0.0, f64::NAN, f64::INFINITY, 0.06]), [0.0; 4]);
    }
}
