//! Whether somebody leads, for those who step back while somebody does and never stand for the lease themselves.

use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::sync::watch;

use super::candidate::Record;
use super::changes::{changes, record};
use super::clock::Moment;
use super::elector::LeaseName;

/// Of a watch that fails.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of a lease, judged by the local clock as a candidate does.
#[derive(Clone, Debug)]
pub struct Sight {
    seen: Option<(Option<Record>, Moment)>,
    began: Moment,
    patience: Duration,
}

impl Sight {
    /// Until the lease has been seen, or for `patience`, somebody might lead.
    pub const fn new(began: Moment, patience: Duration) -> Self {
        Self { seen: None, began, patience }
    }

    pub fn saw(&mut self, now: Moment, record: Option<Record>) {
        if self.seen.as_ref().is_none_or(|(before, _)| *before != record) {
            self.seen = Some((record, now));
        }
    }

    /// Who leads, as far as can be told.
    pub fn leader(&self, now: Moment) -> Option<&str> {
        match &self.seen {
            None => (now < self.began.plus(self.patience)).then_some("somebody, perhaps"),
            Some((Some(record), since)) => {
                let ends = since.plus(record.duration.unwrap_or(self.patience));
                record.holder.as_deref().filter(|_| now < ends)
            }
            Some((None, _)) => None,
        }
    }
}

/// Follows the lease of another controller.
#[derive(Clone, Debug)]
pub struct Leader {
    lease: LeaseName,
    followed: watch::Receiver<Followed>,
}

#[derive(Clone, Debug)]
struct Followed {
    sight: Sight,
    /// Why the lease cannot be watched.
    trouble: Option<String>,
}

impl Leader {
    /// Until nobody asks any more.
    pub fn follow(client: Client, lease: LeaseName, patience: Duration) -> Self {
        let sight = Sight::new(Moment::now(), patience);
        let (told, followed) = watch::channel(Followed { sight, trouble: None });
        let api = Api::<Lease>::namespaced(client, &lease.namespace);
        let mut changes = changes(api, &lease.name, RETRY);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(change) = changes.next() => told.send_modify(|followed| match change {
                        Ok(object) => {
                            followed.sight.saw(Moment::now(), object.as_ref().map(record));
                            followed.trouble = None;
                        }
                        Err(problem) => followed.trouble = Some(problem),
                    }),
                    () = told.closed() => return,
                }
            }
        });
        Self { lease, followed }
    }

    pub fn name(&self) -> Option<String> {
        self.followed.borrow().sight.leader(Moment::now()).map(str::to_owned)
    }

    /// Why it cannot be told who leads.
    pub fn trouble(&self) -> Option<String> {
        let problem = self.followed.borrow().trouble.clone()?;
        Some(format!("the lease {} cannot be watched, so its holder is not seen: {problem}", self.lease))
    }
}
