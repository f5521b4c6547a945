//! The right to act, to be looked at before each command.

use std::time::Duration;

use tokio::sync::watch;

use super::clock::Moment;

/// Where this candidate stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Until when it may act.
    pub claim: Option<Moment>,
    /// Whose name was last seen in the lease.
    pub holder: Option<String>,
    /// The installation of the holder, where that is another one than this candidate's.
    pub other_installation: Option<String>,
    /// How often the lease was seen to pass to another holder.
    pub leader_changes: u64,
    /// Why the lease could not be read or written last time.
    pub trouble: Option<String>,
}

impl Standing {
    fn remaining(&self) -> Duration {
        self.claim.map_or(Duration::ZERO, |until| Moment::now().until(until))
    }
}

/// Ends by itself: a process that was frozen and goes on sees that its claim is over.
#[derive(Clone, Debug)]
pub struct Claim(Option<watch::Receiver<Standing>>);

impl Claim {
    pub(super) const fn of(standing: watch::Receiver<Standing>) -> Self {
        Self(Some(standing))
    }

    /// Where nobody else could act.
    pub const fn unrivalled() -> Self {
        Self(None)
    }

    pub fn is_current(&self) -> bool {
        self.remaining() > Duration::ZERO
    }

    /// How much longer it holds at least; no command should take longer to be sent.
    pub fn remaining(&self) -> Duration {
        self.0.as_ref().map_or(Duration::MAX, |standing| standing.borrow().remaining())
    }

    /// Whose name was last seen in the lease.
    pub fn holder(&self) -> Option<String> {
        self.0.as_ref()?.borrow().holder.clone()
    }

    /// The installation of the holder, where that is another one than this candidate's.
    pub fn other_installation(&self) -> Option<String> {
        self.0.as_ref()?.borrow().other_installation.clone()
    }

    /// How often the lease was seen to pass to another holder.
    pub fn leader_changes(&self) -> u64 {
        self.0.as_ref().map_or(0, |standing| standing.borrow().leader_changes)
    }

    /// Why the lease could not be read or written last time.
    pub fn trouble(&self) -> Option<String> {
        self.0.as_ref()?.borrow().trouble.clone()
    }

    /// Until it is current. Never ends when the elector is gone.
    pub async fn wait(&mut self) {
        if let Some(standing) = &mut self.0
            && standing.wait_for(|standing| standing.remaining() > Duration::ZERO).await.is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}
