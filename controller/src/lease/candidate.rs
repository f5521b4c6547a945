//! The decision of one candidate for a lease: its next step, from what it observed and when. Pure: no clock, no cluster.

use std::time::Duration;

use super::clock::BootInstant;

/// The contents of a lease, as far as they matter for decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    pub holder: Option<String>,
    /// The lease duration that the writer has promised; `None`: the lease has no duration that can be read.
    pub duration: Option<Duration>,
    /// The time of the write by the writer's clock. It is compared for equality only, never read as a time; no two writes
    /// have the same.
    pub renewed: String,
    pub transitions: i32,
}

/// The durations of leader election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTiming {
    /// The lease duration: a candidate that does not hold the lease waits this long after its last change.
    pub lease: Duration,
    /// How long a write of the holder entitles it to act.
    pub claim: Duration,
    /// From one write of the holder to the next.
    pub renew: Duration,
    /// From a failed attempt to the next.
    pub retry: Duration,
}

impl LeaseTiming {
    pub const SHORTEST: Duration = Duration::from_secs(3);
    pub const LONGEST: Duration = Duration::from_secs(3600);

    /// `None` unless the lease duration is a whole number of seconds within the bounds.
    pub fn new(lease: Duration) -> Option<Self> {
        let is_valid = (Self::SHORTEST..=Self::LONGEST).contains(&lease) && lease.subsec_nanos() == 0;
        is_valid.then(|| Self {
            lease,
            claim: lease * 2 / 3,
            renew: lease / 3,
            retry: (lease / 15).min(Duration::from_secs(1)),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseStep {
    /// Read the lease.
    Read,
    /// Create the lease without a holder. A process that held the lease until it was deleted may still have its claim, and
    /// a candidate cannot tell since when there has been no lease: one may have existed in between.
    Create,
    /// Write the own name into the lease as it was observed.
    Write { transitions: i32 },
    /// Do nothing before `until`, unless the lease changes.
    Wait { until: BootInstant },
    /// End: the claim is lost.
    Lost(ClaimLoss),
}

/// Why a claim ended that was not given back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimLoss {
    #[error("the lease could not be renewed in time")]
    Expired,
    #[error("the lease was taken by {0}")]
    Taken(String),
    #[error("the lease was deleted, or its holder was removed")]
    Gone,
}

#[derive(Clone, Debug)]
pub struct LeaseCandidate {
    identity: String,
    timing: LeaseTiming,
    observed: Option<ObservedLease>,
    /// The lease may have changed since it was observed.
    is_outdated: bool,
    /// When the last successful write of this candidate was sent.
    written_at: Option<BootInstant>,
    loss: Option<ClaimLoss>,
    not_before: Option<BootInstant>,
}

#[derive(Clone, Debug)]
struct ObservedLease {
    /// `None`: there is no lease.
    record: Option<LeaseRecord>,
    /// When the record was first observed; no change has been observed since.
    since: BootInstant,
}

impl LeaseCandidate {
    /// `identity` must be unique: no other process may ever have it, not even an earlier process of this program.
    pub const fn new(identity: String, timing: LeaseTiming) -> Self {
        Self { identity, timing, observed: None, is_outdated: true, written_at: None, loss: None, not_before: None }
    }

    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub const fn timing(&self) -> &LeaseTiming {
        &self.timing
    }

    /// The time until which this candidate may act; `None`: it may not.
    pub fn claim(&self) -> Option<BootInstant> {
        self.written_at.filter(|_| self.loss.is_none()).map(|sent| sent.plus(self.timing.claim))
    }

    /// The holder as it was last observed.
    pub fn holder(&self) -> Option<&str> {
        self.observed.as_ref()?.record.as_ref()?.holder.as_deref()
    }

    /// Records that the lease was read, or reported by a watch, at `now` or a little before.
    pub fn observe(&mut self, now: BootInstant, record: Option<LeaseRecord>) {
        if self.written_at.is_some() && self.loss.is_none() {
            let holder = record.as_ref().and_then(|record| record.holder.as_deref());
            match holder {
                Some(holder) if holder == self.identity => {}
                Some(other) => self.loss = Some(ClaimLoss::Taken(other.to_owned())),
                None => self.loss = Some(ClaimLoss::Gone),
            }
        }
        self.is_outdated = false;

        // Every write differs from the one before, so an equal record has not been renewed meanwhile.
        if self.observed.as_ref().is_none_or(|observed| observed.record != record) {
            self.observed = Some(ObservedLease { record, since: now });
        }
    }

    /// Records that a write of this candidate, sent at `sent`, has succeeded.
    pub fn record_write(&mut self, sent: BootInstant, record: LeaseRecord) {
        self.written_at = Some(sent);
        self.observed = Some(ObservedLease { record: Some(record), since: sent });
        self.is_outdated = false;
        self.not_before = None;
    }

    /// Records that another process has changed the lease since it was observed.
    pub const fn mark_outdated(&mut self) {
        self.is_outdated = true;
    }

    /// Records that a read or a write failed. It is not known whether a write has taken effect.
    pub const fn record_failure(&mut self, now: BootInstant) {
        self.is_outdated = true;
        self.not_before = Some(now.plus(self.timing.retry));
    }

    pub fn next_step(&self, now: BootInstant) -> LeaseStep {
        if let Some(loss) = &self.loss {
            return LeaseStep::Lost(loss.clone());
        }
        if self.claim().is_some_and(|until| now >= until) {
            return LeaseStep::Lost(ClaimLoss::Expired);
        }
        if let Some(until) = self.not_before.filter(|until| now < *until) {
            return LeaseStep::Wait { until };
        }

        let Some(observed) = self.observed.as_ref().filter(|_| !self.is_outdated) else { return LeaseStep::Read };
        let Some(record) = &observed.record else { return LeaseStep::Create };

        let is_ours = record.holder.as_ref() == Some(&self.identity);
        let write_at = match &self.written_at {
            Some(sent) => sent.plus(self.timing.renew),
            // A write of this candidate whose answer never arrived.
            None if is_ours => now,
            // A lease that was given back promises a short duration, and is free soon. A lease whose holder was removed
            // lasts as long as it promised to that holder.
            None => observed.since.plus(record.duration.unwrap_or(self.timing.lease)),
        };
        if now < write_at {
            return LeaseStep::Wait { until: write_at };
        }

        // The number counts changes of the holder.
        LeaseStep::Write { transitions: record.transitions.saturating_add(i32::from(!is_ours)) }
    }
}
