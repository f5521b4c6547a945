//! Rules 4, 5, 7, 9 and 10: when memory is short, the smallest prefix of the ranked candidates leaves, and whoever is not
//! needed in the end is spared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::card::{Card, Terms, Turn};
use crate::fleet::Member;
use crate::merge::Rules;
use crate::plan::{GpuPlan, GpuReason, Pressure, Reason, SkipReason, Threshold};
use crate::signal::{Level, Reading, Signal, Timers};
use crate::span::span;

/// A victim, or one who could be.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    place: usize,
    vram_bytes: u64,
    target_bytes: u64,
    /// The target by the operator's policies alone, while their threshold of this level acts.
    operator_target_bytes: Option<u64>,
    busy: bool,
    policy: usize,
}

impl Candidate {
    /// What a busy model leaves for: its own target if that can be reached, else the operator's. So a target that cannot
    /// be reached, as a policy of a namespace may set it, does not keep a model on the card.
    fn reachable_target_bytes(&self, reachable: u64) -> Option<u64> {
        [Some(self.target_bytes), self.operator_target_bytes].into_iter().flatten().find(|target| *target <= reachable)
    }
}

pub fn signal(rules: &Rules, level: Level) -> Option<Signal> {
    let (below, grace) = match level {
        Level::Hard => (rules.hard_below?, Duration::ZERO),
        Level::Soft => (rules.soft_below?, rules.grace_period),
    };
    let target_bytes = below.value.saturating_add(rules.min_reclaim_bytes);
    Some(Signal { level, below_bytes: below.value, target_bytes, grace, transition: rules.transition_period })
}

/// Decides, and reports the pressure of a card that a server has reported.
pub fn apply<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>, timers: &mut Timers) {
    let Some(gpu) = card.gpu else { return };
    let mut report = GpuPlan {
        uuid: gpu.uuid.clone(),
        node: gpu.node.clone(),
        pressure: Pressure::Unknown,
        reason: Some(if gpu.disputed { GpuReason::ReportsDisagree } else { GpuReason::MetricsStale }),
        available: card.available,
        target: None,
        thresholds: thresholds(turn, card),
    };
    if card.fresh {
        card.readings = observe(turn, card, timers);
        let in_force = signals(turn, card, |member| member.rules.as_deref());
        let mut readings = card.readings.clone();
        readings.retain(|signal, _| in_force.contains(signal));

        report.target = readings.iter().filter(|(_, r)| r.acting).map(|(signal, _)| signal.target_bytes).max();
        report.pressure = pressure(&readings);
        let foreign = reclaim(turn, card, &readings, Level::Hard) | reclaim(turn, card, &readings, Level::Soft);
        report.reason = reason(card, &readings, foreign);
    } else {
        stale(turn, card);
    }
    turn.plan.gpus.push(report);
}

fn thresholds(turn: &Turn<'_>, card: &Card<'_>) -> Vec<Threshold> {
    let mut first: BTreeMap<(Level, u64, u64), usize> = BTreeMap::new();
    for rules in card.ranked.iter().filter_map(|&place| turn.member(place).rules.as_ref()) {
        for (level, below) in [(Level::Hard, rules.hard_below), (Level::Soft, rules.soft_below)] {
            let (Some(below), Some(signal)) = (below, signal(rules, level)) else { continue };
            let policy = first.entry((level, signal.below_bytes, signal.target_bytes)).or_insert(below.policy);
            *policy = below.policy.min(*policy);
        }
    }
    let threshold = |((level, below_bytes, target_bytes), policy)| Threshold {
        level: if level == Level::Hard { Pressure::Hard } else { Pressure::Soft },
        below_bytes,
        target_bytes,
        policy: turn.fleet.policy_name(policy),
    };
    first.into_iter().map(threshold).collect()
}

/// The thresholds of the card's models, by the rules that `rules` picks.
pub fn signals<'t>(
    turn: &'t Turn<'_>,
    card: &Card<'_>,
    rules: impl Fn(&'t Member<'_>) -> Option<&'t Rules>,
) -> BTreeSet<Signal> {
    let rules = card.ranked.iter().filter_map(|&place| rules(turn.member(place)));
    rules.flat_map(|rules| [signal(rules, Level::Hard), signal(rules, Level::Soft)]).flatten().collect()
}

/// Those by the operator's policies alone are watched too: a model of one namespace is not judged by what the policies of
/// another ask for.
fn observe(turn: &Turn<'_>, card: &Card<'_>, timers: &mut Timers) -> BTreeMap<Signal, Reading> {
    let Some(gpu) = card.gpu else { return BTreeMap::new() };
    let mut signals = signals(turn, card, |member| member.rules.as_deref());
    signals.extend(self::signals(turn, card, |member| member.operator_rules.as_deref()));

    timers.observe(turn.now, turn.stale_after, &gpu.uuid, signals, card.available, card.expected())
}

fn pressure(readings: &BTreeMap<Signal, Reading>) -> Pressure {
    let at = |level| readings.iter().any(|(signal, reading)| signal.level == level && reading.pressed);
    match (at(Level::Hard), at(Level::Soft)) {
        (true, _) => Pressure::Hard,
        (false, true) => Pressure::Soft,
        (false, false) => Pressure::None,
    }
}

fn reason(card: &Card<'_>, readings: &BTreeMap<Signal, Reading>, foreign: bool) -> Option<GpuReason> {
    let any = |holds: fn(&Reading) -> bool| readings.values().any(holds);
    if !any(|reading| reading.pressed) {
        None
    } else if foreign {
        Some(GpuReason::ForeignPressure)
    } else if any(|reading| reading.acting) {
        Some(if card.awaiting { GpuReason::AwaitingFreshSample } else { GpuReason::Reclaiming })
    } else if readings.iter().any(|(signal, reading)| signal.level == Level::Soft && reading.crossed) {
        Some(GpuReason::GracePeriod)
    } else {
        Some(GpuReason::TransitionPeriod)
    }
}

fn stale(turn: &mut Turn<'_>, card: &Card<'_>) {
    for &place in &card.ranked {
        let member = turn.member(place);
        let watched = member.rules.as_ref().is_some_and(|r| r.hard_below.is_some() || r.soft_below.is_some());
        if watched && member.counts_as_ready() && !turn.decided[place] {
            let (reason, detail) = card.why_unknown();
            turn.skip(place, reason, detail);
        }
    }
}

/// The level that acts for a model: hard wins over soft.
fn level(rules: &Rules, readings: &BTreeMap<Signal, Reading>) -> Option<(Level, Signal)> {
    [Level::Hard, Level::Soft].into_iter().find_map(|level| {
        let signal = signal(rules, level)?;
        readings.get(&signal).is_some_and(|reading| reading.acting).then_some((level, signal))
    })
}

/// Whether the pressure is foreign: all candidates together do not reach a target.
fn reclaim<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>, readings: &BTreeMap<Signal, Reading>, at: Level) -> bool {
    let mut candidates = Vec::new();
    let mut highest_target = None;
    for place in card.ranked.clone() {
        let Some(rules) = turn.member(place).rules.clone() else { continue };
        match level(&rules, readings) {
            Some((level, signal)) if level == at => {
                highest_target = highest_target.max(Some(signal.target_bytes));
                candidates.extend(candidate(turn, card, place, &rules, signal));
            }
            None if at == Level::Soft => in_grace(turn, place, &rules, readings),
            _ => {}
        }
    }
    let Some(highest_target) = highest_target else { return false };
    if card.awaiting {
        return false;
    }
    // Those that stay without the policies of other namespaces leave only where the rest is not enough.
    candidates.sort_by_key(|candidate| turn.member(candidate.place).kept);
    let reachable = reachable(turn, card, &candidates);
    let taken = walk(turn, card, &candidates, reachable);
    let kept = spare(turn, card.expected(), taken);
    let reason = if at == Level::Hard { Reason::HardPressure } else { Reason::SoftPressure };
    for victim in kept {
        let Some(rules) = turn.member(victim.place).rules.clone() else { continue };
        // What is in flight ends first under hard pressure; under soft pressure the server refuses while it is busy.
        let (if_idle, drain) = match at {
            Level::Hard => (None, Some(rules.drain_timeout)),
            Level::Soft => (Some(Duration::ZERO), None),
        };
        let terms = Terms { if_idle, drain, hold: Some(rules.hold_after_eviction) };
        turn.decide_taken(card, victim.place, reason, victim.policy, terms);
    }
    reachable < highest_target
}

fn candidate(turn: &mut Turn<'_>, card: &Card<'_>, place: usize, rules: &Rules, signal: Signal) -> Option<Candidate> {
    let member = turn.member(place);
    if turn.decided[place] || !member.counts_as_ready() {
        return None;
    }
    let (model, soft) = (member.model, signal.level == Level::Soft);
    let why_not = if card.awaiting || member.used {
        Some((SkipReason::AwaitingFreshSample, "the last unload is newer than the sample"))
    } else if soft && model.busy() {
        Some((SkipReason::Busy, "soft pressure takes idle models only"))
    } else if soft && !member.old_enough() {
        Some((SkipReason::MinResident, "soft pressure leaves young models"))
    } else {
        None
    };
    if let Some((reason, detail)) = why_not {
        turn.skip(place, reason, detail);
        return None;
    }
    let below = if soft { rules.soft_below } else { rules.hard_below };
    let policy = below.map_or(rules.priority.policy, |pick| pick.policy);
    let (vram_bytes, busy) = (model.vram_bytes, model.busy());
    let operator = turn.member(place).operator_rules.as_deref();
    let operator = operator.and_then(|rules| self::signal(rules, signal.level));
    let operator = operator.filter(|signal| card.readings.get(signal).is_some_and(|reading| reading.acting));
    let operator_target_bytes = operator.map(|signal| signal.target_bytes);
    Some(Candidate { place, vram_bytes, target_bytes: signal.target_bytes, operator_target_bytes, busy, policy })
}

fn in_grace(turn: &mut Turn<'_>, place: usize, rules: &Rules, readings: &BTreeMap<Signal, Reading>) {
    let member = turn.member(place);
    if turn.decided[place] || !member.counts_as_ready() {
        return;
    }
    let reading = signal(rules, Level::Soft).and_then(|signal| readings.get(&signal));
    // Crossed for long enough, it does not act because what leaves anyway is enough.
    let Some(reading) = reading.filter(|reading| reading.crossed) else { return };
    if reading.crossed_for < rules.grace_period {
        let detail = format!("crossed for {} of {}", span(reading.crossed_for), span(rules.grace_period));
        turn.skip(place, SkipReason::GracePeriod, detail);
    }
}

/// What would be available without any of the candidates that `minLoaded` lets go.
fn reachable(turn: &mut Turn<'_>, card: &Card<'_>, candidates: &[Candidate]) -> u64 {
    let mut gone = Vec::new();
    let mut bytes = card.expected();
    for candidate in candidates {
        if !turn.protected(candidate.place) {
            turn.take(candidate.place);
            gone.push(candidate.place);
            bytes = bytes.saturating_add(candidate.vram_bytes);
        }
    }
    gone.into_iter().for_each(|place| turn.give_back(place));
    bytes
}

/// The prefix: in rank order, each whose own target is not met yet.
fn walk(turn: &mut Turn<'_>, card: &Card<'_>, candidates: &[Candidate], reachable: u64) -> Vec<Candidate> {
    let mut available = card.expected();
    let mut taken = Vec::new();
    for candidate in candidates {
        let busy_target = candidate.reachable_target_bytes(reachable).filter(|_| candidate.busy);
        if available >= busy_target.unwrap_or(candidate.target_bytes) {
            turn.skip(candidate.place, SkipReason::NotNeeded, "the target is met without it");
        } else if turn.protected(candidate.place) {
            turn.skip(candidate.place, SkipReason::MinLoaded, "a policy keeps it loaded");
        } else if candidate.busy && busy_target.is_none() {
            turn.skip(candidate.place, SkipReason::ForeignPressure, "others hold the memory; its work goes on");
        } else {
            turn.take(candidate.place);
            available = available.saturating_add(candidate.vram_bytes);
            taken.push(Candidate { target_bytes: busy_target.unwrap_or(candidate.target_bytes), ..*candidate });
        }
    }
    taken
}

/// From the last to the first: one without whom every target of the taken is still met stays.
fn spare(turn: &mut Turn<'_>, available: u64, mut taken: Vec<Candidate>) -> Vec<Candidate> {
    let Some(target) = taken.iter().map(|candidate| candidate.target_bytes).max() else { return taken };
    let mut sum = taken.iter().fold(available, |sum, candidate| sum.saturating_add(candidate.vram_bytes));
    for index in (0..taken.len()).rev() {
        let candidate = taken[index];
        if sum.saturating_sub(candidate.vram_bytes) >= target {
            sum = sum.saturating_sub(candidate.vram_bytes);
            taken.remove(index);
            turn.give_back(candidate.place);
            turn.skip(candidate.place, SkipReason::NotNeeded, "spared: the others are enough");
        }
    }
    taken
}
