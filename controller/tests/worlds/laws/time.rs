//! Laws that hold from step to step: grace, the pace of evictions, and relief in time.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_core::{GpuId, Reason, ResidencyState};
use hush_server::residency::machine::Residency;

use super::{Broken, Known, Moment, ensure};
use crate::expected::expected;
use crate::guest::Guest;
use crate::host::{Flight, Host};
use crate::house::House;
use crate::scenario::Scenario;

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

/// Each threshold of each card: since when it is crossed, and whether that has lasted for its grace.
#[derive(Debug, Default)]
pub struct Crossings {
    by_threshold: BTreeMap<Threshold, Crossing>,
    known_since: u64,
}

/// Models with the same settings share one: card, bytes, grace and transition.
type Threshold = (GpuId, u64, Duration, Duration);

#[derive(Debug, Default)]
struct Crossing {
    since: Option<u64>,
    /// Of the time since then, what lies between two fresh samples.
    watched_ms: u64,
    /// It may be acted on until the target is met or the pressure is left.
    ripe: bool,
    clear_ms: Option<u64>,
    seen_at: Option<u64>,
}

impl Crossings {
    pub fn see(&mut self, moment: &Moment<'_>, known: &[Known<'_>]) {
        let known_since = moment.host.restarted.max(moment.host.clock_stepped).unwrap_or(0);
        let interrupted = std::mem::replace(&mut self.known_since, known_since) != known_since;
        let fresh = |id: &GpuId| {
            moment.world.gpus.iter().any(|gpu| gpu.uuid == *id && gpu.sample_age <= moment.world.stale_after)
        };
        for ((id, ..), crossing) in &mut self.by_threshold {
            if interrupted || !fresh(id) {
                crossing.seen_at = None;
            }
        }
        for known in known.iter().filter(|known| known.card_fresh(moment.world)) {
            let (Some(gpu), Some(expected)) = (known.gpu, &known.expected) else { continue };
            for (below, grace) in [(expected.hard_below, Duration::ZERO), (expected.soft_below, expected.grace)] {
                let Some(below) = below else { continue };
                let threshold = (gpu.uuid.clone(), below, grace, expected.transition);
                let crossing = self.by_threshold.entry(threshold).or_default();
                if crossing.seen_at != Some(moment.now) {
                    let crossed = gpu.available_bytes() < below;
                    crossing.see(moment, crossed, interrupted, ms(grace), ms(expected.transition));
                }
            }
        }
    }

    /// Pressure acts only once the threshold has been crossed for its grace without a break.
    pub fn ripe(
        &self,
        moment: &Moment<'_>,
        known: &Known<'_>,
        below: Option<u64>,
        grace: Duration,
    ) -> Result<(), Broken> {
        let crossing = self.crossing(known, below, grace);
        ensure(crossing.is_some_and(|crossing| crossing.ripe), || {
            format!("{} ms, before its grace of {grace:?} has passed: {crossing:?} {:?}", moment.now, known.decision)
        })
    }

    /// For how long it has been watched to be crossed.
    pub fn watched(&self, known: &Known<'_>, below: Option<u64>, grace: Duration) -> Option<Duration> {
        let crossing = self.crossing(known, below, grace)?;
        crossing.since.map(|_| Duration::from_millis(crossing.watched_ms))
    }

    fn crossing(&self, known: &Known<'_>, below: Option<u64>, grace: Duration) -> Option<&Crossing> {
        self.by_threshold.get(&(known.gpu?.uuid.clone(), below?, grace, known.expected.as_ref()?.transition))
    }
}

impl Crossing {
    fn see(&mut self, moment: &Moment<'_>, crossed: bool, interrupted: bool, grace_ms: u64, transition_ms: u64) {
        let now = moment.now;
        let last = self.seen_at.replace(now);
        let step = last.map(|last| now - last).filter(|step| *step <= moment.scenario.stale_after_ms).unwrap_or(0);
        let lasts = |since: u64| now - since >= grace_ms;
        if interrupted {
            self.watched_ms = 0;
        }
        if crossed {
            self.watched_ms = if self.since.is_some() { self.watched_ms + step } else { 0 };
            self.ripe |= lasts(*self.since.get_or_insert(now));
            self.clear_ms = None;
        } else {
            // Who was restarted meanwhile knows only that it was crossed.
            self.ripe |= interrupted && self.since.is_some_and(lasts);
            self.since = None;
            let clear_ms = self.clear_ms.map_or(0, |clear| clear + step);
            self.clear_ms = Some(clear_ms);
            self.ripe &= clear_ms < transition_ms;
        }
    }
}

/// The pace at which one model may be told to leave.
#[derive(Debug, Default)]
pub struct Evictions {
    last: BTreeMap<usize, Eviction>,
    /// Since the world came to rest: how often each was told to leave, and for the last time for what.
    in_rest: Option<BTreeMap<usize, (u32, Reason)>>,
}

/// A world that has come to rest settles within so many unloads of each model: one for idleness or pressure, and those
/// of the warm windows that open and close meanwhile.
const IN_REST: u32 = 4;

#[derive(Debug)]
struct Eviction {
    ended: Option<u64>,
    hold_ms: u64,
}

impl Evictions {
    /// Between the end of an unload and the next order to leave lie the hold, a load and, unless pressure is hard,
    /// `minResident`.
    pub fn begin(&mut self, now: u64, flight: &Flight, scenario: &Scenario, house: &House) -> Result<(), Broken> {
        let guest = &house.guests[flight.guest];
        let device = &house.devices[guest.spec.device];
        let rules =
            expected(scenario, &guest.sample(now, device), Some(device.total_bytes), jiff::Timestamp::UNIX_EPOCH);
        let stays_ms =
            rules.filter(|_| flight.decision.reason != Reason::HardPressure).map_or(0, |r| ms(r.min_resident));
        if let Some(Eviction { ended: Some(ended), hold_ms }) = self.last.get(&flight.guest) {
            let earliest = ended + hold_ms + guest.spec.load_ms + stays_ms;
            ensure(now >= earliest, || {
                format!("told to leave at {now}, not before {earliest}: {:?}", flight.decision)
            })?;
        }
        let hold_ms = flight.decision.hold_seconds.unwrap_or(0) * 1000;
        self.last.insert(flight.guest, Eviction { ended: None, hold_ms });
        self.rests(flight, guest)
    }

    pub fn calm(&mut self) {
        self.in_rest.get_or_insert_default();
    }

    pub fn not_suffered(&self, guest: usize) -> bool {
        self.in_rest.as_ref().and_then(|counts| counts.get(&guest)).is_some_and(|(_, why)| *why == Reason::HardPressure)
    }

    /// Who brings its model back into pressure, for a client or by its own residency, has chosen to see it leave again,
    /// at the pace above.
    fn rests(&mut self, flight: &Flight, guest: &Guest) -> Result<(), Broken> {
        let Some(counts) = &mut self.in_rest else { return Ok(()) };
        let (count, why) = counts.entry(flight.guest).or_insert((0, flight.decision.reason));
        *why = flight.decision.reason;
        if guest.spec.policy.residency != Residency::Resident && guest.unanswered() == 0 {
            *count += 1;
        }
        ensure(*count <= IN_REST, || format!("comes and goes while nothing stirs: {:?}", flight.decision))
    }

    pub fn see(&mut self, now: u64, house: &House) {
        for (guest, eviction) in &mut self.last {
            let leaving = matches!(house.guests[*guest].state(), ResidencyState::Draining | ResidencyState::Unloading);
            if eviction.ended.is_none() && !leaving {
                eviction.ended = Some(now);
            }
        }
    }
}

/// Where nothing goes wrong, what must leave has left in time.
#[derive(Debug, Default)]
pub struct Patience {
    guests: Vec<Waits>,
    /// By device: the last time that somebody was coming or going there.
    stirred: Vec<u64>,
}

/// What one guest is subject to, and since when.
#[derive(Debug, Default)]
struct Waits {
    hard: Limit,
    soft: Limit,
    idle_timeout_ms: Option<u64>,
    stays_ms: u64,
}

#[derive(Debug, Default)]
struct Limit {
    below: Option<u64>,
    patience_ms: u64,
    crossed_since: Option<u64>,
}

impl Patience {
    pub fn see(&mut self, now: u64, scenario: &Scenario, house: &House, host: &Host) -> Result<(), Broken> {
        if !scenario.faults.none() {
            return Ok(());
        }
        if self.guests.is_empty() {
            self.guests = (0..house.guests.len()).map(|guest| waits(now, scenario, house, guest)).collect();
            self.stirred = vec![now; house.devices.len()];
        }
        for flight in &host.flights {
            self.stirred[scenario.guests[flight.guest].device] = now;
        }
        for guest in &house.guests {
            if matches!(guest.state(), ResidencyState::Loading | ResidencyState::Draining | ResidencyState::Unloading) {
                self.stirred[guest.spec.device] = now;
            }
        }
        // Until the next look, the way there, and the ticks by which either is late.
        let bound = 2 * scenario.interval_ms + 2 * scenario.faults.latency_ms + 4 * scenario.tick_ms;
        for (guest, waits) in house.guests.iter().zip(&mut self.guests) {
            let available = house.devices[guest.spec.device].available_bytes();
            waits.hard.see(now, available);
            waits.soft.see(now, available);
            let idle_ms = guest.idle_since.map_or(0, |since| now - since);
            let old_ms = guest.ready_since().map_or(0, |since| now - since);
            let quiet = now - self.stirred[guest.spec.device] > bound && idle_ms > bound;
            let young = old_ms <= waits.stays_ms + bound;
            let late = |limit: &Limit| limit.crossed_since.is_some_and(|at| now - at > limit.patience_ms + bound);
            ensure(!(quiet && late(&waits.hard)), || {
                format!("hard pressure is not relieved: {:?} {waits:?}", guest.spec.key)
            })?;
            ensure(!(quiet && !young && late(&waits.soft)), || {
                format!("soft pressure is not relieved: {:?} {waits:?}", guest.spec.key)
            })?;
            let idle = waits.idle_timeout_ms.is_some_and(|timeout| idle_ms > timeout + bound);
            ensure(!(quiet && !young && idle), || format!("idle, and still there: {:?} {waits:?}", guest.spec.key))?;
        }
        Ok(())
    }
}

impl Limit {
    fn see(&mut self, now: u64, available: u64) {
        let crossed = self.below.is_some_and(|below| available < below);
        self.crossed_since = if crossed { self.crossed_since.or(Some(now)) } else { None };
    }
}

fn waits(now: u64, scenario: &Scenario, house: &House, guest: usize) -> Waits {
    let guest = &house.guests[guest];
    let device = &house.devices[guest.spec.device];
    let sample = guest.sample(now, device);
    let rules = expected(scenario, &sample, Some(device.total_bytes), jiff::Timestamp::UNIX_EPOCH);
    let Some(rules) = rules.filter(|rules| rules.min_loaded == 0) else { return Waits::default() };
    let scheduled = scenario.policies.iter().any(|policy| !policy.asks.schedule.is_empty());
    Waits {
        hard: Limit { below: rules.hard_below, patience_ms: 0, crossed_since: None },
        soft: Limit { below: rules.soft_below, patience_ms: ms(rules.grace), crossed_since: None },
        idle_timeout_ms: rules.idle_timeout.filter(|_| !scheduled).map(ms),
        stays_ms: ms(rules.min_resident),
    }
}
