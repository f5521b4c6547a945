//! The limit of open files, and the number of connections that it leaves.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_limit_of_open_files() {
        assert_eq!(connections_within(1024, None), 1024);
        assert_eq!(connections_within(1024, Some(1 << 20)), 1024);
        assert_eq!(connections_within(1024, Some(1024)), 320);
        assert_eq!(connections_within(1024, Some(128)), 21);
        assert_eq!(connections_within(1024, Some(10)), 1);
    }
}
