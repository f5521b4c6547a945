//! Pressure over time: when a threshold was crossed, for how long, and whether it acts.
//!
//! Timers are sums of the time between fresh observations, not points on a clock. So a gap in the samples adds nothing
//! and takes nothing away, and a clock that is set forward or back changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::memory::{PressureMemory, elapsed};
use crate::world::GpuId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Soft,
    Hard,
}

/// One threshold with everything that governs its timer. Models with the same settings on one card share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signal {
    pub level: Level,
    pub below_bytes: u64,
    pub target_bytes: u64,
    pub grace: Duration,
    pub transition: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Timer {
    /// Without a break, up to now or to the moment it cleared.
    crossed_for: Duration,
    /// `Some` while it is not crossed and the pressure has not been left.
    clear_for: Option<Duration>,
    /// Reclaiming until the target is met.
    acting: bool,
}

/// What a signal says now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Under pressure: crossed, or not left yet.
    pub pressed: bool,
    pub crossed: bool,
    pub acting: bool,
    pub crossed_for: Duration,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timers(BTreeMap<GpuId, Card>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Card {
    observed_at: Option<Timestamp>,
    signals: BTreeMap<Signal, Timer>,
    /// What was known before this memory began; used up by the first observation.
    restored: BTreeMap<Level, Timer>,
}

impl Timers {
    pub fn restore(&mut self, now: Timestamp, entry: &PressureMemory) {
        let card = self.0.entry(entry.gpu.clone()).or_default();
        for (level, since) in [(Level::Soft, entry.soft_since), (Level::Hard, entry.hard_since)] {
            let Some(since) = since else { continue };
            let timer = Timer {
                crossed_for: elapsed(since, entry.clear_since.unwrap_or(now)),
                clear_for: entry.clear_since.map(|clear| elapsed(clear, now)),
                acting: false,
            };
            card.restored.insert(level, timer);
        }
    }

    /// No fresh sample came from any card but these: the time until their next adds nothing.
    pub fn freeze_all_but(&mut self, fresh: &BTreeSet<&GpuId>) {
        for (gpu, card) in &mut self.0 {
            if !fresh.contains(gpu) {
                card.observed_at = None;
            }
        }
    }

    /// Takes a fresh sample of one card. `available` is what was sampled, `expected` adds what is about to leave for
    /// other reasons. Gives a reading for each signal.
    pub fn observe(
        &mut self,
        now: Timestamp,
        stale_after: Duration,
        gpu: &GpuId,
        signals: impl IntoIterator<Item = Signal>,
        available: u64,
        expected: u64,
    ) -> BTreeMap<Signal, Reading> {
        let card = self.0.entry(gpu.clone()).or_default();
        let step = match card.observed_at {
            Some(last) if last <= now && elapsed(last, now) <= stale_after => elapsed(last, now),
            _ => Duration::ZERO,
        };
        card.observed_at = Some(now);
        let before = std::mem::take(&mut card.signals);
        let restored = std::mem::take(&mut card.restored);
        let mut readings = BTreeMap::new();
        for signal in signals {
            let crossed = available < signal.below_bytes;
            let timer = before.get(&signal).map(|timer| timer.advance(crossed, step));
            let timer = timer
                .or_else(|| sibling(&before, &signal).map(|timer| timer.advance(crossed, step)))
                .or_else(|| restored.get(&signal.level).map(|timer| timer.resume(crossed, &signal)))
                .or_else(|| crossed.then(Timer::default))
                .filter(|timer| timer.clear_for.is_none_or(|clear| clear < signal.transition));
            let Some(mut timer) = timer else {
                readings.insert(signal, Reading::default());
                continue;
            };
            timer.acting |= crossed && expected < signal.below_bytes && timer.crossed_for >= signal.grace;
            timer.acting &= expected < signal.target_bytes;
            let Timer { crossed_for, acting, .. } = timer;
            readings.insert(signal, Reading { pressed: true, crossed, acting, crossed_for });
            card.signals.insert(signal, timer);
        }
        readings
    }
}

/// The same threshold under settings that have changed since: how long it has been crossed still counts.
fn sibling(signals: &BTreeMap<Signal, Timer>, signal: &Signal) -> Option<Timer> {
    let same = |other: &&Signal| other.level == signal.level && other.below_bytes == signal.below_bytes;
    let found = signals.iter().find(|(other, _)| same(other))?.1;
    Some(Timer { acting: false, ..*found })
}

impl Timer {
    fn advance(mut self, crossed: bool, step: Duration) -> Self {
        if !crossed {
            self.clear_for = Some(self.clear_for.map_or(Duration::ZERO, |clear| clear + step));
        } else if self.clear_for.take().is_none() {
            self.crossed_for += step;
        } else if !self.acting {
            // A break: the grace period starts again.
            self.crossed_for = Duration::ZERO;
        }
        self
    }

    /// A timer that was written down elsewhere and does not say whether it acted.
    fn resume(mut self, crossed: bool, signal: &Signal) -> Self {
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
