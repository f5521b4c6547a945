//! Rule 11: who has been idle for long enough leaves. Rests on the model's own sample, not on its card's.

use std::time::Duration;

use crate::adaptive::Why;
use crate::card::{Card, Terms, Turn, whole_seconds};
use crate::merge::{Pick, Rules};
use crate::plan::{Reason, SkipReason};
use crate::policy::Residency;
use crate::span::span;

pub fn apply<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>) {
    for place in card.ranked.clone() {
        let member = turn.member(place);
        if turn.decided[place] || !member.counts_as_ready() {
            continue;
        }
        let Some(rules) = member.rules.clone() else { continue };
        let Some(Timeout { after, reason, why }) = timeout(turn, place, &rules) else {
            turn.skip(place, SkipReason::Resident, "no idle timeout");
            continue;
        };
        // The command speaks of whole seconds; sooner the server would refuse it.
        let timeout = Pick { value: Duration::from_secs(whole_seconds(after.value)), ..after };
        let (model, used, old) = (member.model, member.used, member.old_enough());
        if model.busy() {
            turn.skip(place, SkipReason::Busy, format!("{} in flight, {} queued", model.inflight, model.queued));
        } else if model.idle < timeout.value {
            let why = why.map(|why| format!(": {}", why.words())).unwrap_or_default();
            turn.skip(place, SkipReason::NotIdle, format!("{} of {}{why}", span(model.idle), span(timeout.value)));
        } else if used {
            turn.skip(place, SkipReason::AwaitingFreshSample, "decided on this sample already");
        } else if !old {
            turn.skip(
                place,
                SkipReason::MinResident,
                format!("loaded for {} of {}", span(model.loaded_for), span(rules.min_resident)),
            );
        } else if turn.protected(place) {
            turn.skip(place, SkipReason::MinLoaded, format!("{} must stay", rules.min_loaded));
        } else {
            let terms = Terms { if_idle: Some(timeout.value), ..Terms::default() };
            turn.unload(card, place, reason, timeout.policy, terms);
        }
    }
}

pub struct Timeout {
    pub after: Pick<Duration>,
    pub reason: Reason,
    /// Of a timeout that was chosen for this model alone.
    pub why: Option<Why>,
}

/// How long it may be idle, and why it leaves then; `None`: idleness is no reason.
pub fn timeout(turn: &Turn<'_>, place: usize, rules: &Rules) -> Option<Timeout> {
    let policy = rules.residency.policy;
    let own = |value| Pick { value, policy };
    match rules.residency.value {
        Residency::Resident => None,
        Residency::Idle => rules.idle_timeout.map(|after| Timeout { after, reason: Reason::IdleTimeout, why: None }),
        Residency::OnDemand => Some(Timeout { after: own(Duration::ZERO), reason: Reason::OnDemand, why: None }),
        Residency::Adaptive => {
            let (keep, why) = turn.learners.keep(turn.now, turn.member(place).model);
            let cap = rules.idle_timeout.filter(|cap| cap.value < keep);
            let why = cap.is_none().then_some(why);
            Some(Timeout { after: cap.unwrap_or(own(keep)), reason: Reason::IdleTimeout, why })
        }
    }
}
