//! The last commands, and the commands that dry-run policies would have caused.

use std::collections::VecDeque;

use hush_core::Decision;
use jiff::Timestamp;

use crate::act::{CommandRecord, CommandResult};

/// The number of records that the page and the status can show.
const RECORDS_MAX: usize = 200;

#[derive(Debug, Default)]
pub struct CommandTimeline(VecDeque<CommandRecord>);

impl CommandTimeline {
    /// Adds a record. A decision that is made again in each step because it is not carried out is added once.
    pub fn push(&mut self, record: CommandRecord) {
        if matches!(record.outcome, CommandResult::Withheld { .. }) {
            let last = self.0.iter().rev().find(|last| last.decision.key() == record.decision.key());
            if last.is_some_and(|last| is_same_decision(&last.decision, &record.decision)) {
                return;
            }
        }

        if self.0.len() == RECORDS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(record);
    }

    /// Adds a decision of a dry-run policy, which is not carried out.
    pub fn push_dry_run(&mut self, now: Timestamp, decision: &Decision) {
        let outcome = CommandResult::Withheld { message: "its policy only shows what it would do".to_owned() };
        self.push(CommandRecord { time: now, decided_at: now, decision: decision.clone(), outcome, seconds: 0.0 });
    }

    /// Oldest first.
    pub fn records(&self) -> Vec<CommandRecord> {
        self.0.iter().cloned().collect()
    }
}

/// Whether `b` is decision `a` made again, because it was not carried out.
pub fn is_same_decision(a: &Decision, b: &Decision) -> bool {
    (&a.server, &a.model, a.action, a.reason, a.if_generation, a.dry_run)
        == (&b.server, &b.model, b.action, b.reason, b.if_generation, b.dry_run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::test_decision::unload_decision;

    fn decision(generation: u64) -> Decision {
        Decision { if_generation: Some(generation), dry_run: true, ..unload_decision("m") }
    }

    #[test]
    fn a_decision_that_is_not_carried_out_is_recorded_once() {
        let (mut timeline, now) = (CommandTimeline::default(), Timestamp::UNIX_EPOCH);
        for generation in [1, 1, 1, 2, 2] {
            timeline.push_dry_run(now, &decision(generation));
        }
        assert_eq!(timeline.records().len(), 2);
        let outcome = CommandResult::Loading;
        for _ in 0..2 {
            let (decision, outcome) = (decision(2), outcome.clone());
            timeline.push(CommandRecord { time: now, decided_at: now, decision, outcome, seconds: 0.0 });
        }
        assert_eq!(timeline.records().len(), 4, "every command is recorded");
        (0..300).for_each(|generation| timeline.push_dry_run(now, &decision(generation)));
        assert_eq!(timeline.records().len(), RECORDS_MAX);
    }
}
