//! The last commands, and what would have been commanded.

use std::collections::VecDeque;

use hush_core::Decision;
use jiff::Timestamp;

use crate::act::{Outcome, Record};

/// What the page and the status show of the past.
const REMEMBERED: usize = 200;

#[derive(Debug, Default)]
pub struct Timeline(VecDeque<Record>);

impl Timeline {
    /// What is decided again and again because nobody carries it out is told once.
    pub fn push(&mut self, record: Record) {
        if matches!(record.outcome, Outcome::Withheld { .. }) {
            let last = self.0.iter().rev().find(|last| last.decision.key() == record.decision.key());
            if last.is_some_and(|last| same(&last.decision, &record.decision)) {
                return;
            }
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(record);
    }

    /// A decision of a policy that only shows what it would do.
    pub fn would(&mut self, now: Timestamp, decision: &Decision) {
        let outcome = Outcome::Withheld { message: "its policy only shows what it would do".to_owned() };
        self.push(Record { time: now, decided_at: now, decision: decision.clone(), outcome, seconds: 0.0 });
    }

    /// Oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.0.iter().cloned().collect()
    }
}

/// The same decision, made again because it was not carried out.
pub fn same(a: &Decision, b: &Decision) -> bool {
    (&a.server, &a.model, a.action, a.reason, a.if_generation, a.dry_run)
        == (&b.server, &b.model, b.action, b.reason, b.if_generation, b.dry_run)
}

#[cfg(test)]
mod tests {
    use hush_core::{Action, Reason};

    use super::*;

    fn decision(generation: u64) -> Decision {
        Decision {
            server: "a/b".into(),
            model: "m".to_owned(),
            gpu: None,
            action: Action::Unload,
            reason: Reason::IdleTimeout,
            policy: "a/p".to_owned(),
            if_generation: Some(generation),
            if_idle_seconds: None,
            drain_seconds: None,
            hold_seconds: None,
            vram_bytes: 0,
            dry_run: true,
        }
    }

    #[test]
    fn what_nobody_carries_out_is_told_once() {
        let (mut timeline, now) = (Timeline::default(), Timestamp::UNIX_EPOCH);
        for generation in [1, 1, 1, 2, 2] {
            timeline.would(now, &decision(generation));
        }
        assert_eq!(timeline.records().len(), 2);
        let outcome = Outcome::Loading;
        for _ in 0..2 {
            let (decision, outcome) = (decision(2), outcome.clone());
            timeline.push(Record { time: now, decided_at: now, decision, outcome, seconds: 0.0 });
        }
        assert_eq!(timeline.records().len(), 4, "commands are all told");
        (0..300).for_each(|generation| timeline.would(now, &decision(generation)));
        assert_eq!(timeline.records().len(), REMEMBERED);
    }
}
