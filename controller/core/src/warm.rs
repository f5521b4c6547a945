//! Rule 14 and pre-warming: models that should be there before they are asked for, where they disturb nobody.

use std::cmp::Reverse;

use crate::card::{Card, Turn};
use crate::fleet::Member;
use crate::plan::{Reason, SkipReason};
use crate::policy::Residency;
use crate::pressure;
use crate::world::State;

pub fn apply<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>) {
    let mut wanted = Vec::new();
    for &place in &card.ranked {
        let member = turn.member(place);
        if member.model.state != State::Unloaded || !member.fresh || member.pending {
            continue;
        }
        match call(turn, place) {
            Some(call) => wanted.push((place, call)),
            None => turn.skip(place, SkipReason::NotLoaded, "nobody asks for it"),
        }
    }
    if wanted.is_empty() {
        return;
    }
    wanted.sort_by_key(|&(place, _)| (Reverse(turn.member(place).priority()), &turn.member(place).model.key));
    let mut available = card.available;
    for (place, (reason, policy)) in wanted {
        let member = turn.member(place);
        let vram = member.model.vram_bytes;
        let Limits { highest_threshold, pressed } = limits(turn, card, place);
        let fits = available >= vram && available - vram >= highest_threshold;
        if member.used {
            turn.skip(place, SkipReason::AwaitingFreshSample, "decided on this sample already");
        } else if card.id.is_none() {
            turn.load(place, reason, policy);
        } else if !card.fresh {
            let (reason, detail) = card.why_unknown();
            turn.skip(place, reason, detail);
        } else if !fits {
            turn.skip(place, SkipReason::NoRoom, "it would cross a threshold, or not fit");
        } else if pressed {
            turn.skip(place, SkipReason::NoRoom, "the GPU is under pressure");
        } else if !card.books.admit(turn.fleet.set(member), vram) {
            turn.skip(place, SkipReason::NoRoom, "it would exceed a budget");
        } else {
            available -= vram;
            turn.load(place, reason, policy);
        }
    }
}

/// Why a model should be loaded now, and which policy says so.
fn call(turn: &Turn<'_>, place: usize) -> Option<(Reason, usize)> {
    let member = turn.member(place);
    let rules = member.rules.as_ref()?;
    match (rules.residency.value, rules.window) {
        (Residency::Resident, Some(policy)) => Some((Reason::WarmWindow, policy)),
        (Residency::Adaptive, _) => {
            turn.learners.expects_request(turn.now, member.model).then_some((Reason::PreWarm, rules.residency.policy))
        }
        _ => None,
    }
}

/// What a load must respect on its card.
struct Limits {
    highest_threshold: u64,
    pressed: bool,
}

/// A model that an operator's policy selects is not kept away by what the policies of other namespaces ask for.
fn limits(turn: &Turn<'_>, card: &Card<'_>, place: usize) -> Limits {
    let loaded = turn.member(place);
    let namespace = loaded.model.key.server.namespace();
    let apart = |member: &Member<'_>| {
        loaded.operator_rules.is_some()
            && member.operator_rules.is_some()
            && member.model.key.server.namespace() != namespace
    };
    let signals = pressure::signals(turn, card, |member| {
        if apart(member) { member.operator_rules.as_deref() } else { member.rules.as_deref() }
    });
    Limits {
        highest_threshold: signals.iter().map(|signal| signal.below_bytes).max().unwrap_or(0),
        pressed: signals.iter().any(|signal| card.readings.get(signal).is_some_and(|reading| reading.pressed)),
    }
}
