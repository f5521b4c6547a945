//! A decision for unit tests.

use hush_core::{Action, Decision, Reason};

/// An unload of the model on the server `a/w`, because it is idle, by the policy `a/p`.
pub fn unload_decision(model: &str) -> Decision {
    Decision {
        server: "a/w".into(),
        model: model.to_owned(),
        gpu: None,
        action: Action::Unload,
        reason: Reason::IdleTimeout,
        policy: "a/p".to_owned(),
        if_generation: Some(1),
        if_idle_seconds: None,
        drain_seconds: None,
        hold_seconds: None,
        vram_bytes: 0,
        dry_run: false,
    }
}
