//! How many commands a controller sends at most, whatever servers report: to one server, and to all together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_core::ServerName;

/// A burst, and one more command after each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub period: Duration,
}

/// Each model of a server leaves once, and comes back no sooner than it is loaded.
pub const PER_SERVER: Rate = Rate { burst: 32, period: Duration::from_secs(1) };
/// A large fleet may be told to leave at once when all of its cards run short.
pub const ALL_SERVERS: Rate = Rate { burst: 2000, period: Duration::from_millis(5) };

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
    all: Bucket,
    servers: BTreeMap<ServerName, Bucket>,
}

/// The time at which it would be full again.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(Option<Instant>);

impl Bucket {
    /// When it is full again with one command more; `None`: it holds none more now.
    fn with_one_more(self, now: Instant, rate: Rate) -> Option<Self> {
        let full_at = self.0.filter(|at| *at > now).unwrap_or(now) + rate.period;
        (full_at.saturating_duration_since(now) <= rate.period * rate.burst).then_some(Self(Some(full_at)))
    }
}

impl CommandLimits {
    /// Counts a command to this server, if it may be sent.
    pub fn take(&mut self, now: Instant, server: &ServerName) -> Result<(), LimitReached> {
        let own = self.servers.get(server).copied().unwrap_or_default();
        let own = own.with_one_more(now, PER_SERVER).ok_or(LimitReached::OneServer)?;
        let all = self.all.with_one_more(now, ALL_SERVERS).ok_or(LimitReached::AllServers)?;
        self.servers.insert(server.clone(), own);
        self.all = all;
        Ok(())
    }

    /// Forgets servers that are gone. One that comes back under its name within the time that a burst takes to fill again
    /// begins with a full one, which the limit for all bounds.
    pub fn retain(&mut self, known: impl Fn(&ServerName) -> bool) {
        self.servers.retain(|server, _| known(server));
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
