//! Caches verdicts. Good tokens have room of their own, so that bad tokens, however many, do not displace them.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::super::{AccessDenied, Caller, CredentialDigest};

/// Each caller has a few tokens at a time.
const GOOD_MAX: usize = 64;
const REFUSED_MAX: usize = 1024;
/// How long after a good verdict a token counts as known; then its next review does not wait for those of unknown
/// peers.
const KNOWN_FOR: Duration = Duration::from_secs(3600);

/// How long verdicts are valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct VerdictPeriods {
    pub good: Duration,
    pub refused: Duration,
}

#[derive(Default)]
pub(super) struct VerdictCache {
    good: HashMap<CredentialDigest, (Caller, Instant)>,
    refused: HashMap<CredentialDigest, (AccessDenied, Instant)>,
}

impl VerdictCache {
    /// The verdict on a token that is still valid.
    pub(super) fn recall(
        &self,
        now: Instant,
        key: &CredentialDigest,
        periods: VerdictPeriods,
    ) -> Option<Result<Caller, AccessDenied>> {
        let holds = |at: &Instant, period| now.saturating_duration_since(*at) < period;
        if let Some((caller, _)) = self.good.get(key).filter(|(_, at)| holds(at, periods.good)) {
            return Some(Ok(caller.clone()));
        }

        let refused = self.refused.get(key).filter(|(_, at)| holds(at, periods.refused));
        refused.map(|(denied, _)| Err(denied.clone()))
    }

    /// Whether the last verdict on a token was good, at most [`KNOWN_FOR`] ago.
    pub(super) fn is_known(&self, now: Instant, key: &CredentialDigest) -> bool {
        self.good.get(key).is_some_and(|(_, at)| now.saturating_duration_since(*at) < KNOWN_FOR)
    }

    pub(super) fn remember(
        &mut self,
        now: Instant,
        key: CredentialDigest,
        verdict: &Result<Caller, AccessDenied>,
        periods: VerdictPeriods,
    ) {
        match verdict {
            Ok(caller) => {
                self.refused.remove(&key);
                if self.good.len() >= GOOD_MAX && !self.good.contains_key(&key) {
                    let oldest = self.good.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| *key);
                    oldest.map(|key| self.good.remove(&key));
                }

                self.good.insert(key, (caller.clone(), now));
            }
            Err(denied @ (AccessDenied::Invalid(_) | AccessDenied::Forbidden(_))) => {
                self.good.remove(&key);
                if self.refused.len() >= REFUSED_MAX {
                    self.refused.retain(|_, (_, at)| now.saturating_duration_since(*at) < periods.refused);
                }

                if self.refused.len() >= REFUSED_MAX {
                    self.refused.clear();
                }

                self.refused.insert(key, (denied.clone(), now));
            }

            // The API server may answer the next request.
            Err(AccessDenied::Unavailable(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;

    const PERIODS: VerdictPeriods = VerdictPeriods { good: Duration::from_secs(10), refused: Duration::from_secs(2) };

    fn refused() -> Result<Caller, AccessDenied> {
        Err(AccessDenied::Invalid("no".to_owned()))
    }

    #[test]
    fn bad_tokens_take_no_room_from_good_ones() {
        let (mut verdicts, now, good) = (VerdictCache::default(), Instant::now(), digest("good"));
        verdicts.remember(now, good, &Ok(Caller("controller".to_owned())), PERIODS);
        for n in 0..5 * REFUSED_MAX {
            verdicts.remember(now, digest(&format!("bad-{n}")), &refused(), PERIODS);
        }

        assert!(verdicts.refused.len() <= REFUSED_MAX);
        assert_eq!(verdicts.recall(now, &good, PERIODS), Some(Ok(Caller("controller".to_owned()))));

        let later = now + PERIODS.good;
        assert_eq!(verdicts.recall(later, &good, PERIODS), None);
        assert!(verdicts.is_known(later, &good));
        assert!(!verdicts.is_known(now + KNOWN_FOR, &good));
    }

    #[test]
    fn good_tokens_are_bounded_and_a_revoked_one_is_known_no_more() {
        let (mut verdicts, now) = (VerdictCache::default(), Instant::now());
        for n in 0..2 * GOOD_MAX {
            let at = now + Duration::from_millis(n as u64);
            verdicts.remember(at, digest(&format!("good-{n}")), &Ok(Caller(String::new())), PERIODS);
        }

        assert_eq!(verdicts.good.len(), GOOD_MAX);
        assert!(!verdicts.is_known(now, &digest("good-0")));

        let last = digest(&format!("good-{}", 2 * GOOD_MAX - 1));
        assert!(verdicts.is_known(now, &last));
        verdicts.remember(now, last, &refused(), PERIODS);
        assert!(!verdicts.is_known(now, &last));
        assert_eq!(verdicts.recall(now, &last, PERIODS), Some(refused()));
    }
}
