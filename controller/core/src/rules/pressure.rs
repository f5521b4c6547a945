//! Rules 4, 5, 7, 9 and 10: when memory is short, the shortest prefix of the ranked candidates leaves, and a model that is
//! not needed in the end is spared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::duration_text::format_duration;
use crate::gpu_context::GpuContext;
use crate::model_table::ModelEntry;
use crate::plan::{DecisionReason, GpuPlan, GpuReason, PressureLevel, PressureThreshold, SkipReason, UnloadTerms};
use crate::policy_fields::ModelRules;
use crate::pressure_timers::{PressureSignal, PressureTimers, SignalReading, ThresholdLevel};
use crate::step_context::StepContext;

type Readings = BTreeMap<PressureSignal, SignalReading>;

/// A model that may leave because of pressure.
#[derive(Clone, Copy, Debug)]
struct EvictionCandidate {
    index: usize,
    vram_bytes: u64,
    target_bytes: u64,
    /// The target by the cluster policies alone, while their threshold of this level acts.
    cluster_target_bytes: Option<u64>,
    busy: bool,
    policy: usize,
}

impl EvictionCandidate {
    /// The target for which a busy model leaves: its own if that can be reached, else that of the cluster policies. So a
    /// target that cannot be reached, as a policy of a namespace may set it, does not keep a model on the GPU.
    fn reachable_target_bytes(&self, reachable: u64) -> Option<u64> {
        let targets = [Some(self.target_bytes), self.cluster_target_bytes];
        targets.into_iter().flatten().find(|target| *target <= reachable)
    }
}

/// Decides, and reports the pressure of a GPU that a server has reported.
pub fn apply<'a>(step: &mut StepContext<'a>, gpu: &mut GpuContext<'a>, timers: &mut PressureTimers) {
    let Some(sample) = gpu.gpu else { return };
    let mut report = GpuPlan {
        uuid: sample.uuid.clone(),
        node: sample.node.clone(),
        pressure: PressureLevel::Unknown,
        reason: Some(if sample.disputed { GpuReason::ReportsDisagree } else { GpuReason::MetricsStale }),
        available: gpu.available,
        target: None,
        thresholds: thresholds(step, gpu),
    };

    if gpu.fresh {
        gpu.readings = observe(step, gpu, timers);
        let in_force = signals(step, gpu, |entry| entry.rules.as_deref());
        let mut readings = gpu.readings.clone();
        readings.retain(|signal, _| in_force.contains(signal));

        let acting = readings.iter().filter(|(_, reading)| reading.acting);
        report.target = acting.map(|(signal, _)| signal.target_bytes).max();
        report.pressure = pressure_level(&readings);

        let hard_is_foreign = reclaim(step, gpu, &readings, ThresholdLevel::Hard);
        let soft_is_foreign = reclaim(step, gpu, &readings, ThresholdLevel::Soft);
        report.reason = gpu_reason(gpu, &readings, hard_is_foreign || soft_is_foreign);
    } else {
        skip_all(step, gpu);
    }

    step.gpus.push(report);
}

fn signal(rules: &ModelRules, level: ThresholdLevel) -> Option<PressureSignal> {
    let (below, grace) = match level {
        ThresholdLevel::Hard => (rules.hard_below()?, Duration::ZERO),
        ThresholdLevel::Soft => (rules.soft_below()?, rules.grace_period().value),
    };

    Some(PressureSignal {
        level,
        below_bytes: below.value,
        target_bytes: below.value.saturating_add(rules.min_reclaim().value),
        grace,
        transition: rules.transition_period().value,
    })
}

/// The thresholds of the models on the GPU, by the rules that `rules` picks.
pub fn signals<'t>(
    step: &'t StepContext<'_>,
    gpu: &GpuContext<'_>,
    rules: impl Fn(&'t ModelEntry<'_>) -> Option<&'t ModelRules>,
) -> BTreeSet<PressureSignal> {
    let rules = gpu.ranked.iter().filter_map(|&index| rules(step.entry(index)));
    rules
        .flat_map(|rules| [signal(rules, ThresholdLevel::Hard), signal(rules, ThresholdLevel::Soft)])
        .flatten()
        .collect()
}

fn thresholds(step: &StepContext<'_>, gpu: &GpuContext<'_>) -> Vec<PressureThreshold> {
    let mut first_policies: BTreeMap<(ThresholdLevel, u64, u64), usize> = BTreeMap::new();
    for rules in gpu.ranked.iter().filter_map(|&index| step.entry(index).rules.as_ref()) {
        for (level, below) in [(ThresholdLevel::Hard, rules.hard_below()), (ThresholdLevel::Soft, rules.soft_below())] {
            let (Some(below), Some(signal)) = (below, signal(rules, level)) else { continue };
            let key = (level, signal.below_bytes, signal.target_bytes);
            let policy = first_policies.entry(key).or_insert(below.policy);
            *policy = below.policy.min(*policy);
        }
    }

    let threshold = |((level, below_bytes, target_bytes), policy)| PressureThreshold {
        level: if level == ThresholdLevel::Hard { PressureLevel::Hard } else { PressureLevel::Soft },
        below_bytes,
        target_bytes,
        policy: step.table.policy_name(policy),
    };

    first_policies.into_iter().map(threshold).collect()
}

/// The thresholds of the cluster policies alone are observed too: a model of one namespace is not judged by what the
/// policies of another namespace ask for.
fn observe(step: &StepContext<'_>, gpu: &GpuContext<'_>, timers: &mut PressureTimers) -> Readings {
    let Some(sample) = gpu.gpu else { return BTreeMap::new() };
    let mut observed = signals(step, gpu, |entry| entry.rules.as_deref());
    observed.extend(signals(step, gpu, |entry| entry.cluster_rules.as_deref()));

    timers.observe(step.now, step.world.stale_after, &sample.uuid, observed, gpu.available, gpu.expected())
}

fn pressure_level(readings: &Readings) -> PressureLevel {
    let is_pressed = |level| readings.iter().any(|(signal, reading)| signal.level == level && reading.pressed);
    match (is_pressed(ThresholdLevel::Hard), is_pressed(ThresholdLevel::Soft)) {
        (true, _) => PressureLevel::Hard,
        (false, true) => PressureLevel::Soft,
        (false, false) => PressureLevel::None,
    }
}

fn gpu_reason(gpu: &GpuContext<'_>, readings: &Readings, foreign: bool) -> Option<GpuReason> {
    let any = |holds: fn(&SignalReading) -> bool| readings.values().any(holds);
    let soft_is_crossed =
        || readings.iter().any(|(signal, reading)| signal.level == ThresholdLevel::Soft && reading.crossed);

    if !any(|reading| reading.pressed) {
        None
    } else if foreign {
        Some(GpuReason::ForeignPressure)
    } else if any(|reading| reading.acting) {
        Some(if gpu.awaiting { GpuReason::AwaitingFreshSample } else { GpuReason::Reclaiming })
    } else if soft_is_crossed() {
        Some(GpuReason::GracePeriod)
    } else {
        Some(GpuReason::TransitionPeriod)
    }
}

/// Without a fresh sample of the GPU, nothing is decided by its memory.
fn skip_all(step: &mut StepContext<'_>, gpu: &GpuContext<'_>) {
    let has_threshold = |rules: &ModelRules| rules.hard_below().is_some() || rules.soft_below().is_some();
    for &index in &gpu.ranked {
        let entry = step.entry(index);
        let is_watched = entry.rules.as_deref().is_some_and(has_threshold);
        if is_watched && entry.counts_as_ready() && !step.decided[index] {
            let (reason, detail) = gpu.why_unknown();
            step.skip(index, reason, detail);
        }
    }
}

/// The signal that acts for a model: hard before soft.
fn acting_signal(rules: &ModelRules, readings: &Readings) -> Option<PressureSignal> {
    [ThresholdLevel::Hard, ThresholdLevel::Soft].into_iter().find_map(|level| {
        let signal = signal(rules, level)?;
        readings.get(&signal).is_some_and(|reading| reading.acting).then_some(signal)
    })
}

/// Unloads models for the thresholds of one level. Whether the pressure is foreign: all candidates together do not reach a
/// target.
fn reclaim<'a>(
    step: &mut StepContext<'a>,
    gpu: &mut GpuContext<'a>,
    readings: &Readings,
    level: ThresholdLevel,
) -> bool {
    let mut candidates = Vec::new();
    let mut highest_target = None;
    for index in gpu.ranked.clone() {
        let Some(rules) = step.entry(index).rules.clone() else { continue };
        match acting_signal(&rules, readings) {
            Some(signal) if signal.level == level => {
                highest_target = highest_target.max(Some(signal.target_bytes));
                candidates.extend(candidate(step, gpu, index, &rules, signal));
            }
            None if level == ThresholdLevel::Soft => skip_in_grace(step, index, &rules, readings),
            _ => {}
        }
    }

    let Some(highest_target) = highest_target else { return false };
    if gpu.awaiting {
        return false;
    }

    // Models that would stay without the policies of other namespaces leave only where the rest is not enough.
    candidates.sort_by_key(|candidate| step.entry(candidate.index).leaves_last);
    let reachable = reachable_bytes(step, gpu, &candidates);
    let prefix = shortest_prefix(step, gpu, &candidates, reachable);
    let victims = spare(step, gpu.expected(), prefix);
    unload_all(step, gpu, victims, level);
    reachable < highest_target
}

fn unload_all<'a>(
    step: &mut StepContext<'a>,
    gpu: &mut GpuContext<'a>,
    victims: Vec<EvictionCandidate>,
    level: ThresholdLevel,
) {
    for victim in victims {
        let Some(rules) = step.entry(victim.index).rules.clone() else { continue };
        let hold = Some(rules.hold_after_eviction().value);

        // Under hard pressure requests in flight end first; under soft pressure the server refuses while it is busy.
        let (reason, terms) = match level {
            ThresholdLevel::Hard => {
                let drain = Some(rules.drain_timeout().value);
                (DecisionReason::HardPressure, UnloadTerms { if_idle: None, drain, hold })
            }
            ThresholdLevel::Soft => {
                (DecisionReason::SoftPressure, UnloadTerms { if_idle: Some(Duration::ZERO), drain: None, hold })
            }
        };

        step.unload_counted(gpu, victim.index, reason, victim.policy, terms);
    }
}

fn candidate(
    step: &mut StepContext<'_>,
    gpu: &GpuContext<'_>,
    index: usize,
    rules: &ModelRules,
    signal: PressureSignal,
) -> Option<EvictionCandidate> {
    let entry = step.entry(index);
    if step.decided[index] || !entry.counts_as_ready() {
        return None;
    }

    let is_soft = signal.level == ThresholdLevel::Soft;
    let why_not = if gpu.awaiting || entry.used {
        Some((SkipReason::AwaitingFreshSample, "the last unload is newer than the sample"))
    } else if is_soft && entry.model.is_busy() {
        Some((SkipReason::Busy, "soft pressure takes idle models only"))
    } else if is_soft && !entry.is_old_enough() {
        Some((SkipReason::MinResident, "soft pressure leaves young models"))
    } else {
        None
    };

    if let Some((reason, detail)) = why_not {
        step.skip(index, reason, detail);
        return None;
    }

    let below = if is_soft { rules.soft_below() } else { rules.hard_below() };
    let cluster_signal = entry.cluster_rules.as_deref().and_then(|rules| self::signal(rules, signal.level));
    let acts = |signal: &PressureSignal| gpu.readings.get(signal).is_some_and(|reading| reading.acting);

    Some(EvictionCandidate {
        index,
        vram_bytes: entry.model.sample.vram_bytes,
        target_bytes: signal.target_bytes,
        cluster_target_bytes: cluster_signal.filter(acts).map(|signal| signal.target_bytes),
        busy: entry.model.is_busy(),
        policy: below.map_or(rules.priority().policy, |below| below.policy),
    })
}

/// Says of a ready model that the soft threshold has not been crossed for long enough.
fn skip_in_grace(step: &mut StepContext<'_>, index: usize, rules: &ModelRules, readings: &Readings) {
    let entry = step.entry(index);
    if step.decided[index] || !entry.counts_as_ready() {
        return;
    }

    let reading = signal(rules, ThresholdLevel::Soft).and_then(|signal| readings.get(&signal));
    let Some(reading) = reading.filter(|reading| reading.crossed) else { return };

    // A threshold that has been crossed for long enough does not act where what leaves anyway is enough.
    let grace_period = rules.grace_period().value;
    if reading.crossed_for < grace_period {
        let crossed_for = format_duration(reading.crossed_for);
        let detail = format!("crossed for {crossed_for} of {}", format_duration(grace_period));
        step.skip(index, SkipReason::GracePeriod, detail);
    }
}

/// The memory in bytes that would be available without any of the candidates that `minLoaded` lets go.
fn reachable_bytes(step: &mut StepContext<'_>, gpu: &GpuContext<'_>, candidates: &[EvictionCandidate]) -> u64 {
    let mut gone = Vec::new();
    let mut bytes = gpu.expected();
    for candidate in candidates {
        if !step.is_protected(candidate.index) {
            step.count_as_gone(candidate.index);
            gone.push(candidate.index);
            bytes = bytes.saturating_add(candidate.vram_bytes);
        }
    }

    gone.into_iter().for_each(|index| step.count_as_ready(index));
    bytes
}

/// In rank order, each candidate whose own target is not met yet.
fn shortest_prefix(
    step: &mut StepContext<'_>,
    gpu: &GpuContext<'_>,
    candidates: &[EvictionCandidate],
    reachable: u64,
) -> Vec<EvictionCandidate> {
    let mut available = gpu.expected();
    let mut prefix = Vec::new();
    for candidate in candidates {
        let busy_target = candidate.reachable_target_bytes(reachable).filter(|_| candidate.busy);
        let target_bytes = busy_target.unwrap_or(candidate.target_bytes);

        if available >= target_bytes {
            step.skip(candidate.index, SkipReason::NotNeeded, "the target is met without it");
        } else if step.is_protected(candidate.index) {
            step.skip(candidate.index, SkipReason::MinLoaded, "a policy keeps it loaded");
        } else if candidate.busy && busy_target.is_none() {
            step.skip(candidate.index, SkipReason::ForeignPressure, "others hold the memory; its work goes on");
        } else {
            step.count_as_gone(candidate.index);
            available = available.saturating_add(candidate.vram_bytes);
            prefix.push(EvictionCandidate { target_bytes, ..*candidate });
        }
    }

    prefix
}

/// From the last victim to the first: a model stays if every target is still met without its memory.
fn spare(step: &mut StepContext<'_>, available: u64, mut victims: Vec<EvictionCandidate>) -> Vec<EvictionCandidate> {
    let Some(target) = victims.iter().map(|victim| victim.target_bytes).max() else { return victims };
    let mut sum = victims.iter().fold(available, |sum, victim| sum.saturating_add(victim.vram_bytes));

    for at in (0..victims.len()).rev() {
        let victim = victims[at];
        let without = sum.saturating_sub(victim.vram_bytes);
        if without >= target {
            sum = without;
            victims.remove(at);
            step.count_as_ready(victim.index);
            step.skip(victim.index, SkipReason::NotNeeded, "spared: the others are enough");
        }
    }

    victims
}
