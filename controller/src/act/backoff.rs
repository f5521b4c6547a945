//! When to leave a server alone after commands to it failed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_core::{ModelKey, ServerName};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A condition that no longer holds is no fault; one that never holds is a server that says one thing in its metrics and
/// does another.
const REFUSALS_IN_A_ROW: u32 = 3;

/// What a command's end says of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Done,
    /// The condition did not hold.
    Refused,
    /// It could not be reached, or did not do what it was asked to.
    Failed,
    /// It said that it did, and its samples show that it did not.
    NoEffect,
}

/// While a server backs off, its models are no candidates, so that it never stands in for others who would obey.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    servers: BTreeMap<ServerName, Pause>,
    models: BTreeMap<ModelKey, Pause>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pause {
    failures: u32,
    until: Option<Instant>,
}

impl Pause {
    fn fail(&mut self, now: Instant, free: u32) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= free {
            let doubled = FIRST.saturating_mul(1 << (self.failures - free).min(10)).min(LONGEST);
            self.until = Some(now + doubled);
        }
    }

    fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Backoff {
    pub fn note(&mut self, now: Instant, key: &ModelKey, verdict: Verdict) {
        match verdict {
            Verdict::Done => {
                self.servers.remove(&key.server);
                self.models.remove(key);
            }
            // It answered.
            Verdict::Refused => {
                self.servers.remove(&key.server);
                self.models.entry(key.clone()).or_default().fail(now, REFUSALS_IN_A_ROW);
            }
            Verdict::Failed => self.servers.entry(key.server.clone()).or_default().fail(now, 1),
            // What another of its models does is no proof for this one.
            Verdict::NoEffect => {
                self.servers.entry(key.server.clone()).or_default().fail(now, 1);
                self.models.entry(key.clone()).or_default().fail(now, 1);
            }
        }
    }

    /// Nobody acts on it who should: for a while it is no candidate.
    pub fn absent(&mut self, now: Instant, key: &ModelKey) {
        self.models.entry(key.clone()).or_default().until = Some(now + LONGEST);
    }

    pub fn holds(&self, now: Instant, key: &ModelKey) -> bool {
        self.servers.get(&key.server).is_some_and(|pause| pause.holds(now))
            || self.models.get(key).is_some_and(|pause| pause.holds(now))
    }

    /// Forgets servers that are gone.
    pub fn retain(&mut self, known: impl Fn(&ServerName) -> bool) {
        self.servers.retain(|server, _| known(server));
        self.models.retain(|key, _| known(&key.server));
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
            backoff.note(now, &one, Verdict::Failed);
            assert!(backoff.holds(now + Duration::from_secs(seconds) - Duration::from_millis(1), &other));
            now += Duration::from_secs(seconds);
            assert!(!backoff.holds(now, &one), "{seconds}");
        }
        backoff.note(now, &other, Verdict::Done);
        backoff.note(now, &one, Verdict::Failed);
        assert!(!backoff.holds(now + Duration::from_secs(1), &one), "a success starts anew");
    }

    #[test]
    fn a_model_that_stays_is_left_alone_for_longer_although_others_of_its_server_leave() {
        let (mut backoff, mut now, stays, leaves) = (Backoff::default(), Instant::now(), key("stays"), key("leaves"));
        for seconds in [1, 2, 4, 8] {
            backoff.note(now, &stays, Verdict::NoEffect);
            backoff.note(now, &leaves, Verdict::Done);
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
            backoff.note(now, &one, Verdict::Refused);
            assert!(!backoff.holds(now, &one));
        }
        backoff.note(now, &one, Verdict::Refused);
        assert!(backoff.holds(now, &one));
        assert!(!backoff.holds(now, &key("other")));
        backoff.note(now, &one, Verdict::Done);
        assert!(!backoff.holds(now, &one));
    }
}
