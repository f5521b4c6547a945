//! What one candidate does next, from what it saw and when.

use std::time::Duration;

use super::clock::Moment;

/// What is written in a lease, as far as it decides anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub holder: Option<String>,
    /// What its writer promised; `None`: it promised nothing that can be read.
    pub duration: Option<Duration>,
    /// When it was written, by a clock that is not ours: told apart, never read as a time. No two writes have the same.
    pub renewed: String,
    pub transitions: i32,
}

/// How long things last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Of the lease: who does not hold it waits for so long.
    pub lease: Duration,
    /// Of the claim that a write gives.
    pub claim: Duration,
    /// From one write of the holder to the next.
    pub renew: Duration,
    /// From a failed try to the next.
    pub retry: Duration,
}

impl Terms {
    pub const SHORTEST: Duration = Duration::from_secs(3);
    pub const LONGEST: Duration = Duration::from_secs(3600);

    /// `None` unless the lease lasts for whole seconds between the bounds.
    pub fn of(lease: Duration) -> Option<Self> {
        let usual = (Self::SHORTEST..=Self::LONGEST).contains(&lease) && lease.subsec_nanos() == 0;
        usual.then(|| Self {
            lease,
            claim: lease * 2 / 3,
            renew: lease / 3,
            retry: (lease / 15).min(Duration::from_secs(1)),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read the lease.
    Look,
    /// Create the lease without a holder. Whoever held it until it was deleted may still claim it, and from nothing it
    /// cannot be told how long there has been nothing: it may have been there in between.
    Create,
    /// Write our name into the lease as it was seen.
    Write {
        transitions: i32,
    },
    /// Nothing before then, unless the lease is seen to change.
    Wait {
        until: Moment,
    },
    Lost(Loss),
}

/// Why a claim ended that was not given back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    #[error("the lease could not be renewed in time")]
    Expired,
    #[error("the lease was taken by {0}")]
    Taken(String),
    #[error("the lease was deleted, or emptied, by somebody")]
    Gone,
}

#[derive(Clone, Debug)]
pub struct Candidate {
    identity: String,
    terms: Terms,
    seen: Option<Seen>,
    /// What was seen may no longer be what is there.
    outdated: bool,
    /// When the last write of ours that succeeded was sent.
    held: Option<Moment>,
    loss: Option<Loss>,
    not_before: Option<Moment>,
}

#[derive(Clone, Debug)]
struct Seen {
    /// `None`: there is no lease.
    record: Option<Record>,
    /// First seen like this, and unchanged since as far as we know.
    since: Moment,
}

impl Candidate {
    /// Nobody else may ever have this identity: not even this program in an earlier life.
    pub const fn new(identity: String, terms: Terms) -> Self {
        Self { identity, terms, seen: None, outdated: true, held: None, loss: None, not_before: None }
    }

    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Until when we may act.
    pub fn claim(&self) -> Option<Moment> {
        self.held.filter(|_| self.loss.is_none()).map(|sent| sent.plus(self.terms.claim))
    }

    /// Whose name was last seen in the lease.
    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.record.as_ref()?.holder.as_deref()
    }

    /// The lease was read, or was reported, at `now` or a little before.
    pub fn saw(&mut self, now: Moment, record: Option<Record>) {
        if self.held.is_some() && self.loss.is_none() {
            let holder = record.as_ref().and_then(|record| record.holder.as_deref());
            match holder {
                Some(holder) if holder == self.identity => {}
                Some(other) => self.loss = Some(Loss::Taken(other.to_owned())),
                None => self.loss = Some(Loss::Gone),
            }
        }
        self.outdated = false;
        // Every write differs from the one before, so what looks the same has not been renewed meanwhile.
        if self.seen.as_ref().is_none_or(|seen| seen.record != record) {
            self.seen = Some(Seen { record, since: now });
        }
    }

    /// A write of ours, sent at `sent`, is now what the lease says.
    pub fn wrote(&mut self, sent: Moment, record: Record) {
        self.held = Some(sent);
        self.seen = Some(Seen { record: Some(record), since: sent });
        self.outdated = false;
        self.not_before = None;
    }

    /// What was seen is not what is there: somebody else wrote meanwhile.
    pub const fn overtaken(&mut self) {
        self.outdated = true;
    }

    /// Reading or writing failed; whether a write arrived is not known.
    pub const fn failed(&mut self, now: Moment) {
        self.outdated = true;
        self.not_before = Some(now.plus(self.terms.retry));
    }

    pub fn next(&self, now: Moment) -> Next {
        if let Some(loss) = &self.loss {
            return Next::Lost(loss.clone());
        }
        if self.claim().is_some_and(|until| now >= until) {
            return Next::Lost(Loss::Expired);
        }
        if let Some(until) = self.not_before.filter(|until| now < *until) {
            return Next::Wait { until };
        }
        let Some(seen) = self.seen.as_ref().filter(|_| !self.outdated) else { return Next::Look };
        let Some(record) = &seen.record else { return Next::Create };
        let ours = record.holder.as_ref() == Some(&self.identity);
        let due = match &self.held {
            Some(sent) => sent.plus(self.terms.renew),
            // A write of ours of which we never heard.
            None if ours => now,
            // A lease that was given back promises little, and is free soon. One whose holder was only wiped out lasts
            // as long as it promised to him.
            None => seen.since.plus(record.duration.unwrap_or(self.terms.lease)),
        };
        if now < due {
            return Next::Wait { until: due };
        }
        // Counts the holders.
        Next::Write { transitions: record.transitions.saturating_add(i32::from(!ours)) }
    }
}
