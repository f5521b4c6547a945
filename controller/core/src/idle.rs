//! Rule 11: who has been idle for long enough leaves. Rests on the model's own sample, not on its card's.

use std::time::Duration;

use crate::card::{Card, Terms, Turn};
use crate::merge::{Pick, Rules};
use crate::plan::{Reason, SkipReason};
use crate::policy::Residency;

pub fn apply<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>) {
    for place in card.ranked.clone() {
        let member = turn.member(place);
        if turn.decided[place] || !member.counts_as_ready() {
            continue;
        }
        let Some(rules) = member.rules.clone() else { continue };
        let Some((timeout, reason)) = timeout(turn, place, &rules) else {
            turn.skip(place, SkipReason::Resident, "no idle timeout");
            continue;
        };
        let (model, used, old) = (member.model, member.used, member.old_enough());
        if model.busy() {
            turn.skip(place, SkipReason::Busy, format!("{} in flight, {} queued", model.inflight, model.queued));
        } else if model.idle < timeout.value {
            turn.skip(place, SkipReason::NotIdle, format!("{:?} of {:?}", model.idle, timeout.value));
        } else if used {
            turn.skip(place, SkipReason::AwaitingFreshSample, "decided on this sample already");
        } else if !old {
            turn.skip(
                place,
                SkipReason::MinResident,
                format!("loaded for {:?} of {:?}", model.loaded_for, rules.min_resident),
            );
        } else if turn.protected(place) {
            turn.skip(place, SkipReason::MinLoaded, format!("{} must stay", rules.min_loaded));
        } else {
            let terms = Terms { if_idle: Some(timeout.value), ..Terms::default() };
            turn.unload(card, place, reason, timeout.policy, terms);
        }
    }
}

/// How long it may be idle, and why it leaves then; `None`: idleness is no reason.
pub fn timeout(turn: &Turn<'_>, place: usize, rules: &Rules) -> Option<(Pick<Duration>, Reason)> {
    let policy = rules.residency.policy;
    match rules.residency.value {
        Residency::Resident => None,
        Residency::Idle => rules.idle_timeout.map(|timeout| (timeout, Reason::IdleTimeout)),
        Residency::OnDemand => Some((Pick { value: Duration::ZERO, policy }, Reason::OnDemand)),
        Residency::Adaptive => {
            let model = turn.member(place).model;
            let own = Pick { value: turn.learners.keep(turn.now, model), policy };
            let timeout = rules.idle_timeout.filter(|cap| cap.value < own.value).unwrap_or(own);
            Some((timeout, Reason::IdleTimeout))
        }
    }
}
