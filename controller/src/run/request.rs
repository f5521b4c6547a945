//! What people ask of the loop, through the page or a plugin. The loop alone changes its state.

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
    /// From now on the policy only shows what it would do; `None`: until it is resumed.
    Pause(PolicyName, Option<Duration>, oneshot::Sender<Paused>),
    /// Answers whether it was paused.
    Resume(PolicyName, oneshot::Sender<bool>),
}

/// A policy that a person has stopped for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    pub since: Timestamp,
    /// `None`: until it is resumed.
    pub until: Option<Timestamp>,
}
