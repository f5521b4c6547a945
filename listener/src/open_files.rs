//! The limit of open files, and the number of connections that it leaves.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connections::ConnectionLimit;

/// Open files that belong to no request: listeners, runners, connections of the operations listener, libraries.
const OTHER_FILES: u64 = 64;

/// Open files of one request: its connection, its upload, its samples.
const FILES_PER_REQUEST: u64 = 3;

/// Raises the soft limit to the hard limit. A request that waits for the model holds a connection and a file. The soft
/// limit, often 1024, exists for programs that use `select`; the hard limit is the one that an operator sets.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(soft_limit = limit.current, "the limit of open files stays as it is: {error}");
    }
}

/// `max_connections`, or fewer if the limit of open files leaves fewer.
pub fn connections_within_limit(max_connections: usize) -> usize {
    connections_within(max_connections, getrlimit(Resource::Nofile).current)
}

fn connections_within(max_connections: usize, open_files: Option<u64>) -> usize {
    let Some(open_files) = open_files else { return max_connections };

    let requests = open_files.saturating_sub(OTHER_FILES) / FILES_PER_REQUEST;
    let possible = usize::try_from(requests).unwrap_or(usize::MAX).max(1);
    if possible < max_connections {
        tracing::warn!(open_files, "the limit of open files leaves {possible} connections, not {max_connections}");
    }
    possible.min(max_connections)
}

/// How long an idle connection, which loses its slot so that its file becomes free, may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The open files that the connections and requests of a listener share. An idle connection has one file; a request has more.
/// Cheap to clone; clones share the files.
#[derive(Clone, Debug)]
pub struct FileBudget {
    free: Arc<Semaphore>,
}

/// An open file; its drop frees it.
#[derive(Debug)]
pub struct FilePermit {
    _permit: OwnedSemaphorePermit,
}

impl FileBudget {
    pub fn new(files: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(files.min(Semaphore::MAX_PERMITS))) }
    }

    /// What the limit of open files leaves beside `reserved` files.
    pub fn within_limit(reserved: usize) -> Self {
        Self::new(files_within(getrlimit(Resource::Nofile).current, reserved))
    }

    /// `max_connections`, or fewer if there are not as many files.
    pub fn connections(&self, max_connections: usize) -> usize {
        let possible = self.free.available_permits().max(1);

        if possible < max_connections {
            tracing::warn!("the limit of open files leaves {possible} idle connections, not {max_connections}");
        }
        possible.min(max_connections)
    }

    /// Takes a file, or the one of an idle connection of `limit`. `None`: none becomes free within a second.
    pub async fn take(&self, limit: &ConnectionLimit) -> Option<FilePermit> {
        if let Some(permit) = self.try_take() {
            return Some(permit);
        }
        if !limit.close_longest_idle() {
            return None;
        }

        let freed = tokio::time::timeout(CLOSE_TIMEOUT, Arc::clone(&self.free).acquire_owned()).await;
        Some(FilePermit { _permit: freed.ok()?.ok()? })
    }

    /// Takes a file where one is free.
    pub fn try_take(&self) -> Option<FilePermit> {
        Some(FilePermit { _permit: Arc::clone(&self.free).try_acquire_owned().ok()? })
    }
}

fn files_within(open_files: Option<u64>, reserved: usize) -> usize {
    let Some(open_files) = open_files else { return usize::MAX };

    let shared = open_files.saturating_sub(OTHER_FILES).saturating_sub(reserved as u64);
    usize::try_from(shared).unwrap_or(usize::MAX).max(FILES_PER_REQUEST as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_connections_need_one_file_each() {
        assert_eq!(files_within(Some(20_000), 256), 19_680);
        assert_eq!(files_within(Some(10), 256), 3);
        assert_eq!(files_within(None, 256), usize::MAX);
        assert_eq!(FileBudget::new(19_680).connections(16_384), 16_384);
        assert_eq!(FileBudget::new(900).connections(16_384), 900);
    }

    #[tokio::test]
    async fn a_request_gets_the_file_of_an_idle_connection() {
        let (budget, limit) = (FileBudget::new(2), ConnectionLimit::new(2));
        let held = budget.take(&limit).await.unwrap();
        let idle = budget.take(&limit).await.unwrap();
        assert!(budget.take(&limit).await.is_none(), "no connection is idle");

        let slot = match limit.admit() {
            crate::connections::ConnectionAdmission::Served(slot) => slot,
            other => panic!("{other:?}"),
        };
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let connection = tokio::spawn(async move {
            slot.phase.evicted().await;
            drop(idle);
        });
        assert!(budget.take(&limit).await.is_some());
        connection.await.unwrap();
        drop(held);
        assert!(budget.try_take().is_some());
    }

    #[test]
    fn connections_fit_into_the_limit_of_open_files() {
        assert_eq!(connections_within(1024, None), 1024);
        assert_eq!(connections_within(1024, Some(1 << 20)), 1024);
        assert_eq!(connections_within(1024, Some(1024)), 320);
        assert_eq!(connections_within(1024, Some(128)), 21);
        assert_eq!(connections_within(1024, Some(10)), 1);
    }
}
