//! The last actions in the status of a policy.

use hush_core::PolicyKey;
use hush_crds::LastAction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::act::{CommandRecord, CommandResult};
use crate::amount::gib;

const ACTIONS_MAX: usize = 10;

/// The last actions of a policy, newest first: those that this controller remembers, and those that the status already has.
pub fn newest(records: &[CommandRecord], policy: &PolicyKey, before: Option<&[LastAction]>) -> Option<Vec<LastAction>> {
    let name = policy.to_string();
    let remembered = records.iter().rev().filter(|record| record.decision.policy == name).filter_map(action);

    let mut all: Vec<LastAction> = remembered.collect();
    for old in before.unwrap_or_default() {
        if !all.iter().any(|new| (&new.time, &new.server, &new.model) == (&old.time, &old.server, &old.model)) {
            all.push(old.clone());
        }
    }

    all.sort_by_key(|action| std::cmp::Reverse(action.time.0));
    all.truncate(ACTIONS_MAX);
    (!all.is_empty()).then_some(all)
}

/// `None`: the command was not sent.
fn action(record: &CommandRecord) -> Option<LastAction> {
    let outcome = match &record.outcome {
        CommandResult::Unloaded { reclaimed_bytes, .. } => {
            let came_back = reclaimed_bytes.map_or_else(String::new, |bytes| format!(", {} came back", gib(bytes)));
            let kept = record.outcome.kept_process(&record.decision).map(|kept| format!(", {kept}"));
            let ended = record.outcome.has_ended_process(&record.decision).then(|| ", with its process".to_owned());
            format!("unloaded{came_back}{}", kept.or(ended).unwrap_or_default())
        }
        CommandResult::Loading => "loading".to_owned(),
        CommandResult::Refused { code, .. } => format!("refused: {code}"),
        CommandResult::Failed { code, message } => format!("failed: {code}: {message}"),
        CommandResult::Withheld { .. } => return None,
    };

    let decision = &record.decision;
    Some(LastAction {
        // The status stores whole seconds. A more exact time would not equal the stored one.
        time: Time(whole_seconds(record.time)),
        server: truncated(decision.server.as_str(), 320),
        model: truncated(&decision.model, 128),
        action: decision.action.to_string(),
        reason: decision.reason.to_string(),
        outcome: truncated(&outcome, 256),
    })
}

fn whole_seconds(time: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn truncated(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}
