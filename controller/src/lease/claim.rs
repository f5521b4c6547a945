//! The claim of a candidate: the right to act, checked before each command.

use std::time::Duration;

use tokio::sync::watch;

use super::clock::BootInstant;

/// The position of a candidate in the election.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The time until which the candidate may act.
    pub claim: Option<BootInstant>,
    /// The holder as it was last observed.
    pub holder: Option<String>,
    /// The installation of the holder, where it is not the candidate's own.
    pub other_installation: Option<String>,
    /// The number of times that the lease was observed to pass to another holder.
    pub leader_changes: u64,
    /// Why the last read or write of the lease failed.
    pub last_error: Option<String>,
}

impl Standing {
    fn remaining(&self) -> Duration {
        self.claim.map_or(Duration::ZERO, |until| BootInstant::now().until(until))
    }
}

/// The right to act. It expires by itself: a process that was frozen sees when it goes on that its claim is over.
#[derive(Clone, Debug)]
pub struct Claim(Option<watch::Receiver<Standing>>);

impl Claim {
    pub(super) const fn new(standing: watch::Receiver<Standing>) -> Self {
        Self(Some(standing))
    }

    /// The claim of a controller that is the only one: it is always current.
    pub const fn always_current() -> Self {
        Self(None)
    }

    pub fn is_current(&self) -> bool {
        self.remaining() > Duration::ZERO
    }

    /// The shortest time for which the claim still holds. No command should take longer to be sent.
    pub fn remaining(&self) -> Duration {
        self.0.as_ref().map_or(Duration::MAX, |standing| standing.borrow().remaining())
    }

    /// The holder as it was last observed.
    pub fn holder(&self) -> Option<String> {
        self.0.as_ref()?.borrow().holder.clone()
    }

    /// The installation of the holder, where it is not the candidate's own.
    pub fn other_installation(&self) -> Option<String> {
        self.0.as_ref()?.borrow().other_installation.clone()
    }

    /// The number of times that the lease was observed to pass to another holder.
    pub fn leader_changes(&self) -> u64 {
        self.0.as_ref().map_or(0, |standing| standing.borrow().leader_changes)
    }

    /// Why the last read or write of the lease failed.
    pub fn last_error(&self) -> Option<String> {
        self.0.as_ref()?.borrow().last_error.clone()
    }

    /// Waits until the claim is current. Never returns when the elector is gone.
    pub async fn wait(&mut self) {
        if let Some(standing) = &mut self.0
            && standing.wait_for(|standing| standing.remaining() > Duration::ZERO).await.is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}
