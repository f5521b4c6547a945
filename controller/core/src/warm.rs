//! Rule 14 and pre-warming: models that should be there before they are asked for, where they disturb nobody.

use std::cmp::Reverse;

use crate::card::{Card, Turn};
use crate::plan::{Pressure, Reason, SkipReason};
use crate::policy::Residency;
use crate::world::State;

pub fn apply<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>, pressure: Option<Pressure>) {
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
    let floor = highest_threshold(turn, card);
    let mut available = card.available;
    for (place, (reason, policy)) in wanted {
        let member = turn.member(place);
        let vram = member.model.vram_bytes;
        let fits = available >= vram && available - vram >= floor;
        if member.used {
            turn.skip(place, SkipReason::AwaitingFreshSample, "decided on this sample already");
        } else if card.id.is_none() {
            turn.load(place, reason, policy);
        } else if !card.fresh {
            turn.skip(place, SkipReason::MetricsStale, "the sample of its GPU is too old");
        } else if !fits {
            turn.skip(place, SkipReason::NoRoom, "it would cross a threshold, or not fit");
        } else if pressure != Some(Pressure::None) {
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

fn highest_threshold(turn: &Turn<'_>, card: &Card<'_>) -> u64 {
    let rules = card.ranked.iter().filter_map(|&place| turn.member(place).rules.as_ref());
    rules.flat_map(|rules| [rules.hard_below, rules.soft_below]).flatten().map(|pick| pick.value).max().unwrap_or(0)
}
