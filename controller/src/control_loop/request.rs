//! Requests of users to the loop, through the page or the kubectl plugin. Only the loop changes its own state.

use std::fmt;
use std::time::Duration;

use hush_core::{Decision, PolicyKey, StepMemory};
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::act::CommandRecord;

pub enum LoopRequest {
    /// A copy of the loop's memory, to compute a plan that is not carried out.
    Memory(oneshot::Sender<StepMemory>),
    /// A command beside the plan. The answer comes when the command has ended; where its server is not known, the sender
    /// is dropped without an answer.
    Command(Box<Decision>, oneshot::Sender<CommandRecord>),
    /// Pauses a policy: from now on it only shows what it would do.
    Pause(PolicyKey, PauseOrder, oneshot::Sender<PausedPolicy>),
    /// Resumes a policy. The answer says whether it was paused.
    Resume(PolicyKey, Option<ClaimedName>, oneshot::Sender<bool>),
}

/// An order to pause a policy.
#[derive(Clone, Debug)]
pub struct PauseOrder {
    /// `None`: until the policy is resumed.
    pub span: Option<Duration>,
    pub claimed_by: Option<ClaimedName>,
}

/// The name that a request gives for its sender. It is not verified: all users who may act share one token.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct ClaimedName(String);

impl ClaimedName {
    const MAX_CHARS: usize = 100;

    /// `None`: the text is empty.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(hush_log::printable(text, Self::MAX_CHARS)))
    }
}

impl fmt::Display for ClaimedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A policy that a user has paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PausedPolicy {
    pub since: Timestamp,
    /// `None`: until the policy is resumed.
    pub until: Option<Timestamp>,
    pub claimed_by: Option<ClaimedName>,
}

impl fmt::Display for PausedPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            Some(until) => write!(f, "paused until {}", until.strftime("%Y-%m-%dT%H:%M:%SZ"))?,
            None => f.write_str("paused until it is resumed")?,
        }
        write_requester(f, self.claimed_by.as_ref())
    }
}

/// A change of the pause of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PauseChange {
    Paused(PausedPolicy),
    Resumed(Option<ClaimedName>),
    /// The time of the pause has expired.
    Expired,
}

impl fmt::Display for PauseChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(paused) => write!(f, "{paused}; until then it only shows what it would do"),
            Self::Resumed(by) => {
                f.write_str("in force again")?;
                write_requester(f, by.as_ref())
            }
            Self::Expired => f.write_str("in force again: the time of its pause is over"),
        }
    }
}

fn write_requester(f: &mut fmt::Formatter<'_>, name: Option<&ClaimedName>) -> fmt::Result {
    match name {
        Some(name) => write!(f, ", asked for by {name} as the request says"),
        None => f.write_str(", asked for with the page's token and without a name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_says_until_when_and_who_asked_and_that_it_is_not_proven() {
        let since = Timestamp::from_second(1_795_000_000).unwrap();
        let until = Some(since + jiff::SignedDuration::from_millis(90_250));
        let claimed_by = ClaimedName::new(" anna\u{1b}[2J ");
        let paused = PausedPolicy { since, until, claimed_by };
        assert_eq!(paused.to_string(), "paused until 2026-11-18T11:08:10Z, asked for by anna�[2J as the request says");
        let unnamed = PausedPolicy { until: None, claimed_by: ClaimedName::new(" "), ..paused };
        assert_eq!(
            unnamed.to_string(),
            "paused until it is resumed, asked for with the page's token and without a name"
        );
        assert!(PauseChange::Expired.to_string().contains("its pause is over"));
    }
}
