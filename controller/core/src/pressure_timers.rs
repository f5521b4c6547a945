//! Pressure over time: when a threshold was crossed, for how long, and whether models leave because of it.
//!
//! Timers are sums of the time between fresh observations, not points in time. So a gap in the samples adds nothing and
//! takes nothing away, and a clock that is set forward or back changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::time::elapsed;
use crate::world::GpuId;

/// Which of the two thresholds of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThresholdLevel {
    Soft,
    Hard,
}

/// One threshold with every setting of its timer. Models with the same settings on one GPU share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PressureSignal {
    pub level: ThresholdLevel,
    /// The threshold is crossed while less than this is available.
    pub below_bytes: u64,
    /// Once models leave, they leave until this much is available.
    pub target_bytes: u64,
    /// How long the threshold must have been crossed before models leave.
    pub grace: Duration,
    /// Pressure ends when the threshold has not been crossed for this long.
    pub transition: Duration,
}

/// The state of a signal at one observation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalReading {
    /// There is pressure: the threshold is crossed, or the transition period has not passed since.
    pub pressed: bool,
    pub crossed: bool,
    /// Models leave until the target is met.
    pub acting: bool,
    pub crossed_for: Duration,
}

/// Pressure on a GPU as another memory wrote it down; it holds for every threshold on that GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PressureMemory {
    pub gpu: GpuId,
    pub soft_since: Option<Timestamp>,
    pub hard_since: Option<Timestamp>,
    /// Since when the threshold has not been crossed.
    pub clear_since: Option<Timestamp>,
}

/// The timers of every signal on every GPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PressureTimers(BTreeMap<GpuId, GpuTimers>);

#[derive(Clone, Debug, Default, PartialEq)]
struct GpuTimers {
    observed_at: Option<Timestamp>,
    signals: BTreeMap<PressureSignal, SignalTimer>,
    /// What was written down before this memory began; the first observation uses it up.
    restored: BTreeMap<ThresholdLevel, SignalTimer>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SignalTimer {
    /// Without a break, up to now or to the time at which the threshold was no longer crossed.
    crossed_for: Duration,
    /// `Some` while the threshold is not crossed and the pressure has not ended.
    clear_for: Option<Duration>,
    /// Models leave until the target is met.
    acting: bool,
}

impl PressureTimers {
    /// Continues from what another memory wrote down of one GPU.
    pub fn restore(&mut self, now: Timestamp, entry: &PressureMemory) {
        let timers = self.0.entry(entry.gpu.clone()).or_default();
        for (level, since) in [(ThresholdLevel::Soft, entry.soft_since), (ThresholdLevel::Hard, entry.hard_since)] {
            let Some(since) = since else { continue };
            let timer = SignalTimer {
                crossed_for: elapsed(since, entry.clear_since.unwrap_or(now)),
                clear_for: entry.clear_since.map(|clear| elapsed(clear, now)),
                acting: false,
            };

            timers.restored.insert(level, timer);
        }
    }

    /// For every GPU without a fresh sample: the time until its next fresh sample adds nothing.
    pub fn freeze_all_but(&mut self, fresh: &BTreeSet<&GpuId>) {
        for (gpu, timers) in &mut self.0 {
            if !fresh.contains(gpu) {
                timers.observed_at = None;
            }
        }
    }

    /// Takes a fresh sample of one GPU and gives a reading for each signal. `available` is what was sampled in bytes;
    /// `expected` adds what is about to be freed for other reasons.
    pub fn observe(
        &mut self,
        now: Timestamp,
        stale_after: Duration,
        gpu: &GpuId,
        signals: impl IntoIterator<Item = PressureSignal>,
        available: u64,
        expected: u64,
    ) -> BTreeMap<PressureSignal, SignalReading> {
        let timers = self.0.entry(gpu.clone()).or_default();
        let step = match timers.observed_at {
            Some(last) if last <= now && elapsed(last, now) <= stale_after => elapsed(last, now),
            _ => Duration::ZERO,
        };

        timers.observed_at = Some(now);

        let before = std::mem::take(&mut timers.signals);
        let restored = std::mem::take(&mut timers.restored);
        let mut readings = BTreeMap::new();
        for signal in signals {
            let crossed = available < signal.below_bytes;
            let timer = before.get(&signal).map(|timer| timer.advance(crossed, step));
            let timer = timer
                .or_else(|| same_threshold(&before, &signal).map(|timer| timer.advance(crossed, step)))
                .or_else(|| restored.get(&signal.level).map(|timer| timer.resume(crossed, &signal)))
                .or_else(|| crossed.then(SignalTimer::default))
                .filter(|timer| timer.clear_for.is_none_or(|clear| clear < signal.transition));
            let Some(mut timer) = timer else {
                readings.insert(signal, SignalReading::default());
                continue;
            };

            timer.acting |= crossed && expected < signal.below_bytes && timer.crossed_for >= signal.grace;
            timer.acting &= expected < signal.target_bytes;

            let SignalTimer { crossed_for, acting, .. } = timer;
            readings.insert(signal, SignalReading { pressed: true, crossed, acting, crossed_for });
            timers.signals.insert(signal, timer);
        }

        readings
    }
}

/// The timer of the same threshold under settings that have changed since: the time for which it has been crossed still
/// counts.
fn same_threshold(signals: &BTreeMap<PressureSignal, SignalTimer>, signal: &PressureSignal) -> Option<SignalTimer> {
    let is_same = |other: &&PressureSignal| other.level == signal.level && other.below_bytes == signal.below_bytes;
    let found = signals.iter().find(|(other, _)| is_same(other))?.1;
    Some(SignalTimer { acting: false, ..*found })
}

impl SignalTimer {
    fn advance(mut self, crossed: bool, step: Duration) -> Self {
        if !crossed {
            self.clear_for = Some(self.clear_for.map_or(Duration::ZERO, |clear| clear + step));
        } else if self.clear_for.take().is_none() {
            self.crossed_for += step;
        } else if !self.acting {
            // The threshold was not crossed for a while: the grace period starts again.
            self.crossed_for = Duration::ZERO;
        }

        self
    }

    /// Continues a timer that was written down elsewhere, which does not say whether models were leaving.
    fn resume(mut self, crossed: bool, signal: &PressureSignal) -> Self {
        match (crossed, self.clear_for) {
            (true, Some(_)) => Self::default(),
            (true, None) => self,
            (false, clear) => {
                self.acting = self.crossed_for >= signal.grace;
                self.clear_for = Some(clear.unwrap_or(Duration::ZERO));
                self
            }
        }
    }
}
