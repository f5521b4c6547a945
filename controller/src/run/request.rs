//! What people ask of the loop, through the page or a plugin. The loop alone changes its state.

use std::fmt;
use std::time::Duration;

use hush_core::{Decision, Memory, PolicyName};
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::act::Record;

pub enum Request {
    /// A copy of what is remembered, for plans that nobody carries out.
    Memory(oneshot::Sender<Memory>),
    /// A command beside the plan; answered when it has ended. Nobody answers when its server is not known.
    Command(Box<Decision>, oneshot::Sender<Record>),
    /// From now on the policy only shows what it would do.
    Pause(PolicyName, Pause, oneshot::Sender<Paused>),
    /// Answers whether it was paused.
    Resume(PolicyName, Option<ClaimedName>, oneshot::Sender<bool>),
}

/// An order to pause a policy.
#[derive(Clone, Debug)]
pub struct Pause {
    /// `None`: until it is resumed.
    pub span: Option<Duration>,
    pub claimed_by: Option<ClaimedName>,
}

/// Who a request says that it is from. Those who act have one token in common, so that nothing proves it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct ClaimedName(String);

impl ClaimedName {
    const MAX_CHARS: usize = 100;

    /// `None`: it says nothing.
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

/// A policy that a person has stopped for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paused {
    pub since: Timestamp,
    /// `None`: until it is resumed.
    pub until: Option<Timestamp>,
    pub claimed_by: Option<ClaimedName>,
}

impl fmt::Display for Paused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            Some(until) => write!(f, "paused until {}", until.strftime("%Y-%m-%dT%H:%M:%SZ"))?,
            None => f.write_str("paused until it is resumed")?,
        }
        asked_by(f, self.claimed_by.as_ref())
    }
}

/// What becomes of a pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PauseChange {
    Paused(Paused),
    Resumed(Option<ClaimedName>),
    /// Its time is over.
    Over,
}

impl fmt::Display for PauseChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(paused) => write!(f, "{paused}; until then it only shows what it would do"),
            Self::Resumed(by) => {
                f.write_str("in force again")?;
                asked_by(f, by.as_ref())
            }
            Self::Over => f.write_str("in force again: the time of its pause is over"),
        }
    }
}

fn asked_by(f: &mut fmt::Formatter<'_>, name: Option<&ClaimedName>) -> fmt::Result {
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
        let paused = Paused { since, until, claimed_by };
        assert_eq!(paused.to_string(), "paused until 2026-11-18T11:08:10Z, asked for by anna�[2J as the request says");
        let unnamed = Paused { until: None, claimed_by: ClaimedName::new(" "), ..paused };
        assert_eq!(
            unnamed.to_string(),
            "paused until it is resumed, asked for with the page's token and without a name"
        );
        assert!(PauseChange::Over.to_string().contains("its pause is over"));
    }
}
