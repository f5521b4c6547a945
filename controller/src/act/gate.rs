//! The last check before each command: whether this controller may act on the server now.

use hush_core::{Decision, ServerName};

/// Why this controller may not act on a server now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActionRefusal {
    #[error("this controller only observes (--dry-run)")]
    DryRun,
    #[error("{0} has a controller of its own")]
    OtherServer(ServerName),
    #[error("a controller with a wider scope leads: {0}")]
    WiderLeader(String),
    #[error("another controller leads: {0}")]
    OtherLeader(String),
    #[error("no controller leads yet")]
    NoLeader,
    #[error(
        "the controllers of the installation `{installation}` act for {scope}, so this installation acts on nothing and \
         writes no status; uninstall one of the two, or set `controller.scope` to `none` in one of them"
    )]
    OtherInstallation { installation: String, scope: &'static str },
}

/// Whether this controller may act on a server now. Asked right before each command.
pub trait Gate: Send + Sync {
    fn check(&self, server: &ServerName) -> Result<(), ActionRefusal>;

    /// Whether this controller reports what it observes: of several that observe the same, one does.
    fn may_report(&self) -> bool {
        true
    }

    /// Whether a controller beside this one comes to the same decision and carries it out.
    fn is_for_another(&self, _: &Decision) -> bool {
        false
    }
}

/// The gate of a controller that is the only one.
#[derive(Clone, Copy, Debug)]
pub struct OpenGate;

impl Gate for OpenGate {
    fn check(&self, _: &ServerName) -> Result<(), ActionRefusal> {
        Ok(())
    }
}

/// The gate of `--dry-run`: every decision is made and shown, and no command is sent.
#[derive(Clone, Copy, Debug)]
pub struct DryRunGate;

impl Gate for DryRunGate {
    fn check(&self, _: &ServerName) -> Result<(), ActionRefusal> {
        Err(ActionRefusal::DryRun)
    }
}
