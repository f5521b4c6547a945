//! Backoff: how long a server is left alone after commands to it failed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_core::{ModelKey, ServerName};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The number of refusals in a row from which a model is left alone. A single refusal is no fault: the condition of the
/// command no longer held. A server whose conditions never hold shows one thing in its metrics and does another.
const REFUSALS_IN_A_ROW: u32 = 3;

/// What the end of a command says about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandVerdict {
    Done,
    /// The condition of the command did not hold.
    Refused,
    /// The server could not be reached, or did not do what the command asked for.
    Failed,
    /// The server reported success, and its samples show the state as before.
    NoEffect,
}

/// The servers and models that are left alone for a while. They are no candidates meanwhile, so that a server that does not
/// obey is never chosen in place of one that would.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    servers: BTreeMap<ServerName, BackoffState>,
    models: BTreeMap<ModelKey, BackoffState>,
}

#[derive(Clone, Copy, Debug, Default)]
struct BackoffState {
    failures: u32,
    until: Option<Instant>,
}

impl BackoffState {
    /// Counts a failure. From the failure with the number `threshold` on, each one doubles the pause.
    fn fail(&mut self, now: Instant, threshold: u32) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= threshold {
            let doublings = (self.failures - threshold).min(10);
            self.until = Some(now + FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE));
        }
    }

    fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Backoff {
    pub fn note(&mut self, now: Instant, key: &ModelKey, verdict: CommandVerdict) {
        match verdict {
            CommandVerdict::Done => {
                self.servers.remove(&key.server);
                self.models.remove(key);
            }
            // The server itself has answered.
            CommandVerdict::Refused => {
                self.servers.remove(&key.server);
                self.models.entry(key.clone()).or_default().fail(now, REFUSALS_IN_A_ROW);
            }
            CommandVerdict::Failed => self.servers.entry(key.server.clone()).or_default().fail(now, 1),
            // Both, because a success with another model of the server ends the backoff of the server alone.
            CommandVerdict::NoEffect => {
                self.servers.entry(key.server.clone()).or_default().fail(now, 1);
                self.models.entry(key.clone()).or_default().fail(now, 1);
            }
        }
    }

    /// Leaves a model alone for the longest pause, because the controller that should act on it does not.
    pub fn suspend(&mut self, now: Instant, key: &ModelKey) {
        self.models.entry(key.clone()).or_default().until = Some(now + LONGEST_PAUSE);
    }

    /// Whether the model, or its server, is left alone now.
    pub fn holds(&self, now: Instant, key: &ModelKey) -> bool {
        self.servers.get(&key.server).is_some_and(|state| state.holds(now))
            || self.models.get(key).is_some_and(|state| state.holds(now))
    }

    /// Forgets servers that are gone.
    pub fn retain(&mut self, is_known: impl Fn(&ServerName) -> bool) {
        self.servers.retain(|server, _| is_known(server));
        self.models.retain(|key, _| is_known(&key.server));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: &str) -> ModelKey {
        ModelKey { server: "a/b".into(), model: model.to_owned() }
    }

    #[test]
    fn a_server_that_fails_is_left_alone_for_longer_and_longer() {
        let (mut backoff, mut now, one, other) = (Backoff::default(), Instant::now(), key("one"), key("other"));
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            backoff.note(now, &one, CommandVerdict::Failed);
            assert!(backoff.holds(now + Duration::from_secs(seconds) - Duration::from_millis(1), &other));
            now += Duration::from_secs(seconds);
            assert!(!backoff.holds(now, &one), "{seconds}");
        }

        backoff.note(now, &other, CommandVerdict::Done);
        backoff.note(now, &one, CommandVerdict::Failed);
        assert!(!backoff.holds(now + Duration::from_secs(1), &one), "a success starts anew");
    }

    #[test]
    fn a_model_that_stays_is_left_alone_for_longer_although_others_of_its_server_leave() {
        let (mut backoff, mut now, stays, leaves) = (Backoff::default(), Instant::now(), key("stays"), key("leaves"));
        for seconds in [1, 2, 4, 8] {
            backoff.note(now, &stays, CommandVerdict::NoEffect);
            backoff.note(now, &leaves, CommandVerdict::Done);
            assert!(!backoff.holds(now, &leaves));
            assert!(backoff.holds(now + Duration::from_secs(seconds) - Duration::from_millis(1), &stays), "{seconds}");
            now += Duration::from_secs(seconds);
            assert!(!backoff.holds(now, &stays), "{seconds}");
        }
    }

    #[test]
    fn refusals_count_for_their_model_and_only_in_a_row() {
        let (mut backoff, now, one) = (Backoff::default(), Instant::now(), key("one"));
        for _ in 0..2 {
            backoff.note(now, &one, CommandVerdict::Refused);
            assert!(!backoff.holds(now, &one));
        }

        backoff.note(now, &one, CommandVerdict::Refused);
        assert!(backoff.holds(now, &one));
        assert!(!backoff.holds(now, &key("other")));

        backoff.note(now, &one, CommandVerdict::Done);
        assert!(!backoff.holds(now, &one));
    }
}
