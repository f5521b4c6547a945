//! Rule 13: a model that waits for memory gets it from idle ones of lower priority, all that it needs or nothing.

use std::cmp::Reverse;
use std::time::Duration;

use crate::card::{Card, Terms, Turn};
use crate::plan::{Reason, SkipReason};
use crate::world::State;

pub fn apply<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>) {
    let waits = |turn: &Turn<'_>, place: usize| {
        let member = turn.member(place);
        member.model.state == State::WaitingForMemory && member.fresh && !member.pending
    };
    let mut waiting: Vec<usize> = card.ranked.iter().copied().filter(|&place| waits(turn, place)).collect();
    waiting.sort_by_key(|&place| (Reverse(turn.member(place).priority()), &turn.member(place).model.key));
    // What those before it will take.
    let mut promised: u64 = 0;
    for place in waiting {
        let demand = turn.member(place).model.demand_bytes;
        let wanted = promised.saturating_add(demand);
        if !card.fresh {
            let (reason, detail) = card.why_unknown();
            turn.skip(place, reason, detail);
        } else if card.expected() >= wanted {
            promised = wanted;
            turn.skip(place, SkipReason::RoomComing, "there is memory for it");
        } else if card.awaiting {
            turn.skip(place, SkipReason::AwaitingFreshSample, "the last unload is newer than the sample");
        } else if make(turn, card, place, wanted) {
            promised = wanted;
            turn.skip(place, SkipReason::RoomComing, "others leave for it");
        } else {
            turn.skip(place, SkipReason::CannotMakeRoom, "idle models of lower priority do not hold enough");
        }
    }
}

/// Whether `wanted` bytes can be reached; if not, nothing is decided.
fn make<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>, waiting: usize, wanted: u64) -> bool {
    let priority = turn.member(waiting).priority();
    let mut expected = card.expected();
    let mut taken = Vec::new();
    let mut held_back = Vec::new();
    // A priority that no operator's policy bounds takes nothing from models that one does.
    let under_the_floor = turn.member(waiting).operator_rules.is_some();
    for place in turn.kept_last(&card.ranked) {
        let member = turn.member(place);
        if expected >= wanted || turn.decided[place] || !member.nameable() || member.priority() >= priority {
            continue;
        }
        if member.model.busy() {
            held_back.push((place, SkipReason::Busy));
        } else if !member.old_enough() {
            held_back.push((place, SkipReason::MinResident));
        } else if turn.protected(place) {
            held_back.push((place, SkipReason::MinLoaded));
        } else if member.kept && !under_the_floor {
            held_back.push((place, SkipReason::NotNeeded));
        } else {
            expected = expected.saturating_add(member.model.vram_bytes);
            turn.take(place);
            taken.push(place);
        }
    }
    for (place, reason) in held_back {
        turn.skip(place, reason, "another model waits for memory");
    }
    if expected < wanted {
        taken.into_iter().for_each(|place| turn.give_back(place));
        return false;
    }
    for place in taken {
        let Some(rules) = turn.member(place).rules.clone() else { continue };
        let terms = Terms { if_idle: Some(Duration::ZERO), hold: Some(rules.hold_after_eviction), drain: None };
        turn.decide_taken(card, place, Reason::MakeRoom, rules.priority.policy, terms);
    }
    true
}
