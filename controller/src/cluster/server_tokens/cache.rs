//! A cache of tokens: one for each server, until shortly before it expires.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_contract::admin::ServerAudience;

/// The number of cached tokens, of about 1 kB each. With more servers, a command may need a new token each time.
const TOKENS_MAX: usize = 4096;
/// The shortest remaining lifetime of a token that is used: the command needs time to arrive, and the server then has the
/// API server review the token.
const LEAST_LEFT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct TokenCache {
    tokens: BTreeMap<ServerAudience, CachedToken>,
}

/// A token. Its text is sent to its server only, and never printed.
struct CachedToken {
    token: String,
    use_until: Instant,
    used_at: Instant,
}

impl std::fmt::Debug for CachedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedToken").field("use_until", &self.use_until).finish_non_exhaustive()
    }
}

impl TokenCache {
    pub(super) fn get(&mut self, now: Instant, audience: &ServerAudience) -> Option<String> {
        let cached = self.tokens.get_mut(audience).filter(|cached| now < cached.use_until)?;
        cached.used_at = now;
        Some(cached.token.clone())
    }

    /// Adds a token. `lifetime` is counted from `asked_at`, so that only the clock of this machine matters. Where the cache
    /// is full, expired tokens make room, or the token that has not been used for the longest time.
    pub(super) fn insert(&mut self, asked_at: Instant, audience: ServerAudience, token: String, lifetime: Duration) {
        if self.tokens.len() >= TOKENS_MAX && !self.tokens.contains_key(&audience) {
            self.tokens.retain(|_, cached| asked_at < cached.use_until);
        }
        if self.tokens.len() >= TOKENS_MAX && !self.tokens.contains_key(&audience) {
            let least_recent = self.tokens.iter().min_by_key(|(_, cached)| cached.used_at);
            let least_recent = least_recent.map(|(audience, _)| audience.clone());
            least_recent.map(|audience| self.tokens.remove(&audience));
        }

        let margin = LEAST_LEFT.max(lifetime / 5);
        let use_until = asked_at + lifetime.saturating_sub(margin);
        self.tokens.insert(audience, CachedToken { token, use_until, used_at: asked_at });
    }

    /// Drops the tokens of servers that are gone.
    pub(super) fn retain(&mut self, is_known: impl Fn(&ServerAudience) -> bool) {
        self.tokens.retain(|audience, _| is_known(audience));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audience(n: usize) -> ServerAudience {
        ServerAudience::new("a", &format!("uid-{n}")).unwrap()
    }

    #[test]
    fn a_token_is_used_until_shortly_before_it_expires() {
        let (mut cache, now) = (TokenCache::default(), Instant::now());
        cache.insert(now, audience(1), "t".to_owned(), Duration::from_secs(600));
        assert_eq!(cache.get(now, &audience(1)).as_deref(), Some("t"));
        assert_eq!(cache.get(now, &audience(2)), None);
        assert!(cache.get(now + Duration::from_secs(479), &audience(1)).is_some());
        assert_eq!(cache.get(now + Duration::from_secs(480), &audience(1)), None);

        // A token that is about to expire is never used.
        cache.insert(now, audience(3), "t".to_owned(), Duration::from_secs(30));
        assert_eq!(cache.get(now, &audience(3)), None);
        assert!(!format!("{cache:?}").contains("\"t\""));
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_the_tokens_that_are_used() {
        let (mut cache, now, day) = (TokenCache::default(), Instant::now(), Duration::from_secs(86400));
        for n in 0..2 * TOKENS_MAX {
            let now = now + Duration::from_millis(n as u64);
            cache.insert(now, audience(n), n.to_string(), day);
            assert!(cache.get(now, &audience(0)).is_some());
        }
        assert_eq!(cache.tokens.len(), TOKENS_MAX);
        cache.retain(|kept| *kept == audience(0));
        assert_eq!(cache.tokens.len(), 1);
    }
}
