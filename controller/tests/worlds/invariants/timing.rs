//! Invariants over several steps: grace periods, the pace of evictions, and relief within a deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_core::{DecisionReason, GpuId, ResidencyState};
use hush_residency::machine::ResidencyRule;

use super::{DecisionContext, KnownModel, Violation, ensure};
use crate::controller_sim::{ControllerSim, SentCommand};
use crate::expected_rules::expected_rules;
use crate::model_sim::ModelSim;
use crate::scenario::Scenario;
use crate::world_sim::WorldSim;

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

/// For each threshold of each GPU since when it is crossed, and whether that has lasted for its grace period.
#[derive(Debug, Default)]
pub struct Crossings {
    by_threshold: BTreeMap<ThresholdKey, Crossing>,
    known_since: u64,
}

/// GPU, bytes, grace period and transition period. Models with the same settings share a threshold.
type ThresholdKey = (GpuId, u64, Duration, Duration);

#[derive(Debug, Default)]
struct Crossing {
    since: Option<u64>,
    /// The part of the time since then that lies between two fresh samples.
    watched_ms: u64,
    /// Models may leave until the target is met or the pressure ends.
    may_act: bool,
    clear_ms: Option<u64>,
    seen_at: Option<u64>,
}

impl Crossings {
    pub fn observe(&mut self, context: &DecisionContext<'_>, known: &[KnownModel<'_>]) {
        let known_since = context.controller.restarted.max(context.controller.clock_stepped).unwrap_or(0);
        let interrupted = std::mem::replace(&mut self.known_since, known_since) != known_since;
        let fresh = |id: &GpuId| {
            context.world.gpus.iter().any(|gpu| gpu.uuid == *id && gpu.sample_age <= context.world.stale_after)
        };
        for ((id, ..), crossing) in &mut self.by_threshold {
            if interrupted || !fresh(id) {
                crossing.seen_at = None;
            }
        }

        for known in known.iter().filter(|known| known.is_gpu_fresh(context.world)) {
            let (Some(gpu), Some(expected)) = (known.gpu, &known.expected) else { continue };
            for (below, grace) in [(expected.hard_below, Duration::ZERO), (expected.soft_below, expected.grace)] {
                let Some(below) = below else { continue };
                let threshold = (gpu.uuid.clone(), below, grace, expected.transition);
                let crossing = self.by_threshold.entry(threshold).or_default();
                if crossing.seen_at != Some(context.now) {
                    let crossed = gpu.available_bytes() < below;
                    crossing.observe(context, crossed, interrupted, ms(grace), ms(expected.transition));
                }
            }
        }
    }

    /// Models leave only once the threshold has been crossed for its grace period without a break.
    pub fn check_grace(
        &self,
        context: &DecisionContext<'_>,
        known: &KnownModel<'_>,
        below: Option<u64>,
        grace: Duration,
    ) -> Result<(), Violation> {
        let crossing = self.crossing(known, below, grace);
        ensure(crossing.is_some_and(|crossing| crossing.may_act), || {
            format!("{} ms, before its grace of {grace:?} has passed: {crossing:?} {:?}", context.now, known.decision)
        })
    }

    /// For how long samples have shown that the threshold is crossed.
    pub fn crossed_for(&self, known: &KnownModel<'_>, below: Option<u64>, grace: Duration) -> Option<Duration> {
        let crossing = self.crossing(known, below, grace)?;
        crossing.since.map(|_| Duration::from_millis(crossing.watched_ms))
    }

    fn crossing(&self, known: &KnownModel<'_>, below: Option<u64>, grace: Duration) -> Option<&Crossing> {
        self.by_threshold.get(&(known.gpu?.uuid.clone(), below?, grace, known.expected.as_ref()?.transition))
    }
}

impl Crossing {
    fn observe(
        &mut self,
        context: &DecisionContext<'_>,
        crossed: bool,
        interrupted: bool,
        grace_ms: u64,
        transition_ms: u64,
    ) {
        let now = context.now;
        let last = self.seen_at.replace(now);
        let step = last.map(|last| now - last).filter(|step| *step <= context.scenario.stale_after_ms).unwrap_or(0);
        let lasts = |since: u64| now - since >= grace_ms;
        if interrupted {
            self.watched_ms = 0;
        }

        if crossed {
            self.watched_ms = if self.since.is_some() { self.watched_ms + step } else { 0 };
            self.may_act |= lasts(*self.since.get_or_insert(now));
            self.clear_ms = None;
        } else {
            // A controller that was restarted since knows only that the threshold was crossed.
            self.may_act |= interrupted && self.since.is_some_and(lasts);
            self.since = None;
            let clear_ms = self.clear_ms.map_or(0, |clear| clear + step);
            self.clear_ms = Some(clear_ms);
            self.may_act &= clear_ms < transition_ms;
        }
    }
}

/// The pace at which one model may be unloaded.
#[derive(Debug, Default)]
pub struct Evictions {
    last: BTreeMap<usize, Eviction>,
    /// Since the world came to rest: how often each model was unloaded, and the last reason.
    at_rest: Option<BTreeMap<usize, (u32, DecisionReason)>>,
}

/// In a world that has come to rest each model is unloaded at most this often: once because it is idle or for pressure, and
/// for the warm windows that open and close in that time.
const UNLOADS_AT_REST_MAX: u32 = 4;

#[derive(Debug)]
struct Eviction {
    ended: Option<u64>,
    hold_ms: u64,
}

impl Evictions {
    /// Between the end of an unload and the next unload lie the hold, a load and, unless pressure is hard, `minResident`.
    pub fn begin(
        &mut self,
        now: u64,
        sent: &SentCommand,
        scenario: &Scenario,
        world_sim: &WorldSim,
    ) -> Result<(), Violation> {
        let sim = &world_sim.models[sent.model_index];
        let device = &world_sim.devices[sim.spec.device];
        let rules =
            expected_rules(scenario, &sim.sample(now, device), Some(device.total_bytes), jiff::Timestamp::UNIX_EPOCH);
        let stays_ms =
            rules.filter(|_| sent.decision.reason != DecisionReason::HardPressure).map_or(0, |r| ms(r.min_resident));
        if let Some(Eviction { ended: Some(ended), hold_ms }) = self.last.get(&sent.model_index) {
            let earliest = ended + hold_ms + sim.spec.load_ms + stays_ms;
            ensure(now >= earliest, || format!("unloaded at {now}, and not after {earliest}: {:?}", sent.decision))?;
        }

        let hold_ms = sent.decision.hold_seconds.unwrap_or(0) * 1000;
        self.last.insert(sent.model_index, Eviction { ended: None, hold_ms });
        self.check_rest(sent, sim)
    }

    pub fn come_to_rest(&mut self) {
        self.at_rest.get_or_insert_default();
    }

    pub fn left_under_hard_pressure(&self, model_index: usize) -> bool {
        self.at_rest
            .as_ref()
            .and_then(|counts| counts.get(&model_index))
            .is_some_and(|(_, why)| *why == DecisionReason::HardPressure)
    }

    /// A server that loads its model into pressure, for a client or because of its own residency, accepts that the model is
    /// unloaded again at the pace above; such unloads do not count.
    fn check_rest(&mut self, sent: &SentCommand, sim: &ModelSim) -> Result<(), Violation> {
        let Some(counts) = &mut self.at_rest else { return Ok(()) };
        let (count, why) = counts.entry(sent.model_index).or_insert((0, sent.decision.reason));
        *why = sent.decision.reason;
        if sim.spec.policy.residency != ResidencyRule::Resident && sim.unanswered() == 0 {
            *count += 1;
        }

        ensure(*count <= UNLOADS_AT_REST_MAX, || {
            format!("loaded and unloaded while nothing changes: {:?}", sent.decision)
        })
    }

    pub fn observe(&mut self, now: u64, world_sim: &WorldSim) {
        for (model_index, eviction) in &mut self.last {
            let leaving =
                matches!(world_sim.models[*model_index].state(), ResidencyState::Draining | ResidencyState::Unloading);
            if eviction.ended.is_none() && !leaving {
                eviction.ended = Some(now);
            }
        }
    }
}

/// Where nothing goes wrong, every model that must leave has left within a deadline.
#[derive(Debug, Default)]
pub struct ReliefDeadlines {
    models: Vec<ModelDeadlines>,
    /// For each device the last time at which a model was being loaded or unloaded there.
    last_change: Vec<u64>,
}

/// The rules that apply to one model, and since when.
#[derive(Debug, Default)]
struct ModelDeadlines {
    hard: ThresholdDeadline,
    soft: ThresholdDeadline,
    idle_timeout_ms: Option<u64>,
    stays_ms: u64,
}

#[derive(Debug, Default)]
struct ThresholdDeadline {
    below: Option<u64>,
    grace_ms: u64,
    crossed_since: Option<u64>,
}

impl ReliefDeadlines {
    pub fn observe(
        &mut self,
        now: u64,
        scenario: &Scenario,
        world_sim: &WorldSim,
        controller: &ControllerSim,
    ) -> Result<(), Violation> {
        if !scenario.faults.is_none() {
            return Ok(());
        }

        if self.models.is_empty() {
            self.models =
                (0..world_sim.models.len()).map(|index| model_deadlines(now, scenario, world_sim, index)).collect();
            self.last_change = vec![now; world_sim.devices.len()];
        }

        for sent in &controller.sent_commands {
            self.last_change[scenario.models[sent.model_index].device] = now;
        }

        for sim in &world_sim.models {
            if matches!(sim.state(), ResidencyState::Loading | ResidencyState::Draining | ResidencyState::Unloading) {
                self.last_change[sim.spec.device] = now;
            }
        }

        // The time until the next step, the latency of the command, and the ticks by which each may be late.
        let bound = 2 * scenario.interval_ms + 2 * scenario.faults.latency_ms + 4 * scenario.tick_ms;
        for (sim, deadlines) in world_sim.models.iter().zip(&mut self.models) {
            let available = world_sim.devices[sim.spec.device].available_bytes();
            deadlines.hard.observe(now, available);
            deadlines.soft.observe(now, available);

            let idle_ms = sim.idle_since.map_or(0, |since| now - since);
            let old_ms = sim.ready_since().map_or(0, |since| now - since);
            let quiet = now - self.last_change[sim.spec.device] > bound && idle_ms > bound;
            let young = old_ms <= deadlines.stays_ms + bound;
            let late =
                |limit: &ThresholdDeadline| limit.crossed_since.is_some_and(|at| now - at > limit.grace_ms + bound);

            ensure(!(quiet && late(&deadlines.hard)), || {
                format!("hard pressure is not relieved: {:?} {deadlines:?}", sim.spec.key)
            })?;
            ensure(!(quiet && !young && late(&deadlines.soft)), || {
                format!("soft pressure is not relieved: {:?} {deadlines:?}", sim.spec.key)
            })?;
            let idle = deadlines.idle_timeout_ms.is_some_and(|timeout| idle_ms > timeout + bound);
            ensure(!(quiet && !young && idle), || format!("idle, and still there: {:?} {deadlines:?}", sim.spec.key))?;
        }

        Ok(())
    }
}

impl ThresholdDeadline {
    fn observe(&mut self, now: u64, available: u64) {
        let crossed = self.below.is_some_and(|below| available < below);
        self.crossed_since = if crossed { self.crossed_since.or(Some(now)) } else { None };
    }
}

fn model_deadlines(now: u64, scenario: &Scenario, world_sim: &WorldSim, model_index: usize) -> ModelDeadlines {
    let model = &world_sim.models[model_index];
    let device = &world_sim.devices[model.spec.device];
    let sample = model.sample(now, device);
    let rules = expected_rules(scenario, &sample, Some(device.total_bytes), jiff::Timestamp::UNIX_EPOCH);
    let Some(rules) = rules.filter(|rules| rules.min_loaded == 0) else { return ModelDeadlines::default() };
    let scheduled = scenario.policies.iter().any(|policy| !policy.asks.schedule.is_empty());
    ModelDeadlines {
        hard: ThresholdDeadline { below: rules.hard_below, grace_ms: 0, crossed_since: None },
        soft: ThresholdDeadline { below: rules.soft_below, grace_ms: ms(rules.grace), crossed_since: None },
        idle_timeout_ms: rules.idle_timeout.filter(|_| !scheduled).map(ms),
        stays_ms: ms(rules.min_resident),
    }
}
