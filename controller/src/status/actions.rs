//! The last actions of a policy.

use hush_core::PolicyName;
use hush_crds::LastAction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::act::{Outcome, Record};
use crate::amount::gib;

const KEPT: usize = 10;

/// Newest first: those that this controller remembers, and before them what is written already.
pub fn newest(records: &[Record], policy: &PolicyName, before: Option<&[LastAction]>) -> Option<Vec<LastAction>> {
    let name = policy.to_string();
    let ours = records.iter().rev().filter(|record| record.decision.policy == name).filter_map(action);
    let mut all: Vec<LastAction> = ours.collect();
    for old in before.unwrap_or_default() {
        if !all.iter().any(|new| (&new.time, &new.server, &new.model) == (&old.time, &old.server, &old.model)) {
            all.push(old.clone());
        }
    }
    all.sort_by_key(|action| std::cmp::Reverse(action.time.0));
    all.truncate(KEPT);
    (!all.is_empty()).then_some(all)
}

/// `None` for what was never sent.
fn action(record: &Record) -> Option<LastAction> {
    let outcome = match &record.outcome {
        Outcome::Unloaded { reclaimed_bytes: Some(bytes), .. } => format!("unloaded, {} came back", gib(*bytes)),
        Outcome::Unloaded { .. } => "unloaded".to_owned(),
        Outcome::Loading => "loading".to_owned(),
        Outcome::Refused { code, .. } => format!("refused: {code}"),
        Outcome::Failed { code, message } => format!("failed: {code}: {message}"),
        Outcome::Withheld { .. } => return None,
    };
    let decision = &record.decision;
    Some(LastAction {
        // What is written has whole seconds; more could not be found again in it.
        time: Time(whole_seconds(record.time)),
        server: bounded(decision.server.as_str(), 320),
        model: bounded(&decision.model, 128),
        action: decision.action.to_string(),
        reason: decision.reason.to_string(),
        outcome: bounded(&outcome, 256),
    })
}

fn whole_seconds(time: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn bounded(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}
