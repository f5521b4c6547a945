//! Rate limits for commands, to one server and to all servers together. They hold whatever the servers report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_core::ServerName;

/// A burst of commands, and one more command after each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandRate {
    pub burst: u32,
    pub period: Duration,
}

/// The limit for one server: enough for an unload of each of its models, which can be unloaded again only after a load.
pub const PER_SERVER: CommandRate = CommandRate { burst: 32, period: Duration::from_secs(1) };
/// The limit for all servers: enough to unload a large fleet at once when all of its GPUs run short of memory.
pub const ALL_SERVERS: CommandRate = CommandRate { burst: 2000, period: Duration::from_millis(5) };

/// Why a command is not sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    OneServer,
    AllServers,
}

impl LimitReached {
    pub const fn label(self) -> &'static str {
        match self {
            Self::OneServer => "server",
            Self::AllServers => "all",
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct CommandLimits {
    all: TokenBucket,
    servers: BTreeMap<ServerName, TokenBucket>,
}

/// A token bucket, as the time at which it is full again; `None`: it is full.
#[derive(Clone, Copy, Debug, Default)]
struct TokenBucket(Option<Instant>);

impl TokenBucket {
    /// The bucket after one more command; `None`: it has no token left now.
    fn with_one_more(self, now: Instant, rate: CommandRate) -> Option<Self> {
        let full_at = self.0.filter(|at| *at > now).unwrap_or(now) + rate.period;
        (full_at.saturating_duration_since(now) <= rate.period * rate.burst).then_some(Self(Some(full_at)))
    }
}

impl CommandLimits {
    /// Counts a command to this server. `Err`: the command must not be sent now.
    pub fn take(&mut self, now: Instant, server: &ServerName) -> Result<(), LimitReached> {
        let bucket = self.servers.get(server).copied().unwrap_or_default();
        let bucket = bucket.with_one_more(now, PER_SERVER).ok_or(LimitReached::OneServer)?;
        let all = self.all.with_one_more(now, ALL_SERVERS).ok_or(LimitReached::AllServers)?;

        self.servers.insert(server.clone(), bucket);
        self.all = all;
        Ok(())
    }

    /// Forgets servers that are gone. A server that comes back under the same name begins with a full burst; the limit for
    /// all servers still bounds it.
    pub fn retain(&mut self, is_known: impl Fn(&ServerName) -> bool) {
        self.servers.retain(|server, _| is_known(server));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_after_each_period() {
        let (mut limits, now) = (CommandLimits::default(), Instant::now());
        let (one, other) = (ServerName::from("a/one"), ServerName::from("a/other"));
        for sent in 0..PER_SERVER.burst {
            assert_eq!(limits.take(now, &one), Ok(()), "{sent}");
        }
        assert_eq!(limits.take(now, &one), Err(LimitReached::OneServer));
        assert_eq!(limits.take(now, &other), Ok(()), "another server has a limit of its own");
        let later = now + PER_SERVER.period;
        assert_eq!(limits.take(later, &one), Ok(()));
        assert_eq!(limits.take(later, &one), Err(LimitReached::OneServer));
        let rested = later + PER_SERVER.period * PER_SERVER.burst;
        assert!((0..PER_SERVER.burst).all(|_| limits.take(rested, &one).is_ok()), "the burst is there again");
    }

    #[test]
    fn many_servers_share_the_limit_for_all() {
        let (mut limits, now) = (CommandLimits::default(), Instant::now());
        let server = |n: u32| ServerName(format!("a/w{n}"));
        let sent = (0..ALL_SERVERS.burst * 2).filter(|n| limits.take(now, &server(*n)).is_ok()).count();
        assert_eq!(sent, ALL_SERVERS.burst as usize);
        assert_eq!(limits.take(now, &server(0)), Err(LimitReached::AllServers));
        assert_eq!(limits.take(now + ALL_SERVERS.period, &server(0)), Ok(()));
    }
}
