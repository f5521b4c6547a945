//! What the sidecar knows about the app as a whole. The watch over the app writes it, the proxy reads it.

/// Whether the app runs, and whether the sidecar may govern it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppStatus {
    /// The app does not answer, and the sidecar cannot start it. Also the state before the first answer.
    Unreachable { cause: String },
    /// The app runs, but it is another one, or a flag that governing it needs is not set: `cause` says which.
    Unsuitable { cause: String },
    /// The app answers.
    Running { version: Option<String> },
    /// The sidecar starts the app itself, and the app does not run, or is not ready yet, because its models are unloaded: a
    /// request for one of them starts it.
    Stopped,
}

impl AppStatus {
    pub const fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }
}
