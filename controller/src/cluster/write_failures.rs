//! Status writes that failed. Each is tried again after a pause that grows, and each cause is logged once while it lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hush_core::PolicyKey;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The number of policies that the summary names; of the remaining ones it shows the count.
const NAMES_MAX: usize = 3;

#[derive(Debug, Default)]
pub struct WriteFailures(BTreeMap<PolicyKey, FailedWrite>);

#[derive(Debug)]
struct FailedWrite {
    /// The value of the metric label `result`.
    result: &'static str,
    cause: String,
    pause: Duration,
    retry_at: Instant,
}

impl WriteFailures {
    pub fn retain(&mut self, mut exists: impl FnMut(&PolicyKey) -> bool) {
        self.0.retain(|name, _| exists(name));
    }

    /// Whether the status of this policy may be written now.
    pub fn is_due(&self, now: Instant, name: &PolicyKey) -> bool {
        self.0.get(name).is_none_or(|failed| failed.retry_at <= now)
    }

    /// Records a failed write. Returns whether the failure is new: no other write has the same result now.
    pub fn failed(&mut self, now: Instant, name: &PolicyKey, result: &'static str, cause: String) -> bool {
        let is_new = self.0.values().all(|failed| failed.result != result);

        let pause = self.0.get(name).map_or(FIRST_PAUSE, |failed| (failed.pause * 2).min(LONGEST_PAUSE));
        self.0.insert(name.clone(), FailedWrite { result, cause, pause, retry_at: now + pause });
        is_new
    }

    /// Records a write that succeeded. Returns whether it was the last one of those that had failed.
    pub fn succeeded(&mut self, name: &PolicyKey) -> bool {
        self.0.remove(name).is_some() && self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The failures as a text for users; `None`: every status is written.
    pub fn summary(&self) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }

        let mut names = self.0.keys().take(NAMES_MAX).map(PolicyKey::to_string).collect::<Vec<_>>().join(", ");
        let more = self.0.len().saturating_sub(NAMES_MAX);
        if more > 0 {
            names = format!("{names} and {more} more");
        }

        let all_causes: BTreeSet<&str> = self.0.values().map(|failed| failed.cause.as_str()).collect();
        let causes = all_causes.into_iter().take(NAMES_MAX).collect::<Vec<_>>().join("; ");
        Some(format!("the status of {names} could not be written: {causes}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str) -> PolicyKey {
        PolicyKey { namespace: Some("a".to_owned()), name: name.to_owned() }
    }

    #[test]
    fn a_failure_is_new_once_and_again_after_it_was_gone() {
        let (now, one, two) = (Instant::now(), policy("one"), policy("two"));
        let mut failures = WriteFailures::default();
        assert!(failures.failed(now, &one, "forbidden", "no".to_owned()));
        assert!(!failures.failed(now, &two, "forbidden", "no".to_owned()));
        assert!(!failures.failed(now, &one, "forbidden", "no".to_owned()));
        assert!(failures.failed(now, &one, "busy", "later".to_owned()), "another cause");
        assert!(!failures.succeeded(&one));
        assert!(failures.succeeded(&two), "the last one");
        assert!(!failures.succeeded(&two), "it is written already");
        assert!(failures.failed(now, &one, "forbidden", "no".to_owned()));
    }

    #[test]
    fn the_pause_grows_up_to_a_minute_and_holds_one_policy() {
        let (mut now, one) = (Instant::now(), policy("one"));
        let mut failures = WriteFailures::default();
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            failures.failed(now, &one, "forbidden", "no".to_owned());
            let almost = now + Duration::from_secs(seconds) - Duration::from_millis(1);
            assert!(!failures.is_due(almost, &one), "{seconds}");
            assert!(failures.is_due(almost, &policy("two")));
            now += Duration::from_secs(seconds);
            assert!(failures.is_due(now, &one), "{seconds}");
        }
    }

    #[test]
    fn the_summary_names_a_few_policies_and_each_cause_once() {
        let now = Instant::now();
        let mut failures = WriteFailures::default();
        assert_eq!(failures.summary(), None);
        for name in ["a", "b", "c", "d", "e"] {
            failures.failed(now, &policy(name), "forbidden", "no right".to_owned());
        }
        assert_eq!(
            failures.summary().unwrap(),
            "the status of a/a, a/b, a/c and 2 more could not be written: no right"
        );
        failures.retain(|name| name.name == "e");
        assert_eq!(failures.summary().unwrap(), "the status of a/e could not be written: no right");
    }
}
