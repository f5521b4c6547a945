//! Rule 12: the models of one policy on one card hold no more than its budget.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::card::{Card, Terms, Turn};
use crate::plan::{Reason, SkipReason};

/// Budget and bytes held, by policy.
fn held(turn: &Turn<'_>, card: &Card<'_>) -> BTreeMap<usize, (u64, u64)> {
    let mut held: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    let total = card.gpu.map(|gpu| gpu.total_bytes);
    for &place in &card.ranked {
        let member = turn.member(place);
        if !member.holds_memory() {
            continue;
        }
        for &policy in turn.fleet.set(member) {
            let Some(budget) = turn.fleet.policies[policy].asks.budget.and_then(|budget| budget.bytes(total)) else {
                continue;
            };
            let entry = held.entry(policy).or_insert((budget, 0));
            entry.1 = entry.1.saturating_add(member.model.vram_bytes);
        }
    }
    held.retain(|_, (budget, held)| held > budget);
    held
}

/// Marks the models of policies that are over their budget: they rank first.
pub fn mark(turn: &mut Turn<'_>, card: &Card<'_>) {
    let over = held(turn, card);
    if over.is_empty() {
        return;
    }
    for &place in &card.ranked {
        let set = turn.fleet.set(turn.member(place));
        let marked = set.iter().any(|policy| over.contains_key(policy));
        turn.fleet.members[place].over_budget = marked;
    }
}

pub fn apply<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>) {
    for (policy, (budget, mut holds)) in held(turn, card) {
        for place in card.ranked.clone() {
            let member = turn.member(place);
            if !turn.fleet.set(member).contains(&policy) || !member.model.ready() {
                continue;
            }
            let vram = member.model.vram_bytes;
            if turn.decided[place] {
                // Another policy's budget took it.
                holds = holds.saturating_sub(vram);
                continue;
            }
            if holds <= budget || !member.counts_as_ready() {
                continue;
            }
            let Some(rules) = member.rules.clone() else { continue };
            if !card.fresh {
                turn.skip(place, SkipReason::MetricsStale, "the sample of its GPU is too old");
            } else if card.awaiting || member.used {
                turn.skip(place, SkipReason::AwaitingFreshSample, "over budget");
            } else if member.model.busy() {
                turn.skip(place, SkipReason::Busy, "over budget");
            } else if !member.old_enough() {
                turn.skip(place, SkipReason::MinResident, "over budget");
            } else if turn.protected(place) {
                turn.skip(place, SkipReason::MinLoaded, "over budget");
            } else {
                holds = holds.saturating_sub(vram);
                let terms = Terms { if_idle: Some(Duration::ZERO), hold: Some(rules.hold_after_eviction), drain: None };
                turn.unload(card, place, Reason::OverBudget, policy, terms);
            }
        }
    }
}
