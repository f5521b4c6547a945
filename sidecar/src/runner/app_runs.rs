//! The runs of the app. A run is the life of the process that listens at the app's address: what was loaded in one run is
//! not in memory in the next.
//!
//! Two things tell that a request reaches the same run as before. The kernel numbers the sockets that listen, and a
//! process that is started again has another one. And a connection to the app, on which nothing is sent, ends with the
//! process that has accepted it. Both are looked at when the connection for a request is there already: this connection
//! can only lead to a process that listened before the look.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

use crate::process::listening_sockets;
use crate::upstream::UpstreamSettings;

/// How often the kernel's table is read for a listener that must be there.
const LOOKS_MAX: usize = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Counts the runs that the sidecar has seen. A later run has a larger number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunNumber(u64);

/// The run that is there, or the next one while the app is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CurrentRun {
    pub number: RunNumber,
    /// Whether the app accepts connections, as far as it is known.
    pub is_up: bool,
}

/// What tells one run from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunIdentity {
    pub number: RunNumber,
    /// The sockets that listen; none where the kernel's table does not show them, as those of another machine.
    pub listeners: Vec<u64>,
    /// Which silent connection was open: its end may have been the end of the run.
    connection: u64,
    /// The sidecar has seen that nothing listened before.
    pub was_seen_starting: bool,
}

impl RunIdentity {
    /// Whether both are known to be the same run.
    pub fn is_same(&self, other: &Self) -> bool {
        let share_listener = self.listeners.iter().any(|socket| other.listeners.contains(socket));

        self.number == other.number && (share_listener || self.connection == other.connection)
    }
}

/// The runs of one app. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct AppRuns {
    inner: Arc<AppRunsInner>,
}

struct AppRunsInner {
    /// The port whose listeners are looked at; `None`: the app is on another machine.
    local_port: Option<u16>,
    current: watch::Sender<CurrentRun>,
    facts: Mutex<RunFacts>,
}

#[derive(Default)]
struct RunFacts {
    identity: RunIdentity,
    silent: Option<Arc<TcpStream>>,
    was_seen_away: bool,
}

impl AppRuns {
    pub fn new(upstream: &UpstreamSettings) -> Self {
        let local_port = upstream.is_local().then_some(upstream.port);
        let current = watch::Sender::new(CurrentRun::default());

        Self { inner: Arc::new(AppRunsInner { local_port, current, facts: Mutex::default() }) }
    }

    pub fn current(&self) -> CurrentRun {
        *self.inner.current.borrow()
    }

    /// A change of the run cannot be missed: the numbers grow.
    pub fn follow(&self) -> watch::Receiver<CurrentRun> {
        self.inner.current.subscribe()
    }

    /// What tells the current run from others; `None`: the app is away.
    pub fn identity(&self) -> Option<RunIdentity> {
        let facts = self.lock();

        self.current().is_up.then(|| facts.identity.clone())
    }

    /// The app does not accept connections, or another process does: this run is over. Does nothing if it is known.
    pub fn end(&self, number: RunNumber) {
        let mut facts = self.lock();

        self.inner.current.send_if_modified(|current| {
            let is_news = current.number == number && current.is_up;
            if is_news {
                *current = CurrentRun { number: RunNumber(number.0 + 1), is_up: false };
                facts.was_seen_away = true;
                facts.silent = None;
            }
            is_news
        });
    }

    /// The app accepts connections, and this is one on which nothing is sent. Returns whether another process listens
    /// than in the run that was known.
    pub(super) async fn note_connection(&self, silent: Arc<TcpStream>) -> bool {
        let before = self.lock().identity.listeners.clone();
        let listeners = self.listeners_unlike_none(!before.is_empty()).await;

        // The process that has accepted the connection listens: if none of the listeners from before does, it is another process.
        let current = self.current();
        let is_other = current.is_up && !before.is_empty() && !before.iter().any(|socket| listeners.contains(socket));
        tracing::debug!(?before, ?listeners, is_other, "connected to the app");
        if is_other {
            self.end(current.number);
        }

        let mut facts = self.lock();
        let number = self.current().number;
        let is_known = current.is_up && !is_other && facts.identity.number == number;
        facts.identity = RunIdentity {
            number,
            listeners,
            connection: facts.identity.connection + 1,
            was_seen_starting: if is_known { facts.identity.was_seen_starting } else { facts.was_seen_away },
        };
        facts.silent = Some(silent);
        self.inner.current.send_if_modified(|current| !std::mem::replace(&mut current.is_up, true));
        is_other
    }

    /// Nothing listened when the sidecar looked.
    pub(super) fn note_absence(&self) {
        self.lock().was_seen_away = true;
    }

    /// Whether a connection that exists already leads to this run, if it leads anywhere.
    pub(super) async fn is_still(&self, run: &RunIdentity) -> bool {
        if !run.listeners.is_empty() {
            let listeners = self.listeners().await;
            if !listeners.is_empty() {
                return run.listeners.iter().any(|socket| listeners.contains(socket));
            }
        }

        let facts = self.lock();
        let is_open = facts.silent.as_deref().is_some_and(is_open);
        is_open && facts.identity.is_same(run)
    }

    /// The sockets that listen on the app's port; none where that cannot be seen.
    async fn listeners(&self) -> Vec<u64> {
        let Some(port) = self.inner.local_port else { return Vec::new() };
        let found = tokio::task::spawn_blocking(move || listening_sockets(port)).await;

        found.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// As [`Self::listeners`], and looks again where there must be some: the kernel's table may miss an entry while it
    /// changes.
    async fn listeners_unlike_none(&self, must_be_some: bool) -> Vec<u64> {
        for _ in 0..LOOKS_MAX {
            let listeners = self.listeners().await;
            if !listeners.is_empty() || !must_be_some {
                return listeners;
            }
            sleep(LOOK_PAUSE).await;
        }
        Vec::new()
    }

    fn lock(&self) -> MutexGuard<'_, RunFacts> {
        self.inner.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the other side has not closed the connection. Does not wait.
fn is_open(connection: &TcpStream) -> bool {
    let peeked = recv(connection, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);

    matches!(peeked, Err(error) if error == Errno::AGAIN || error == Errno::INTR)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn connected(listener: &TcpListener) -> (Arc<TcpStream>, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();

        (Arc::new(client), listener.accept().await.unwrap().0)
    }

    async fn listening() -> (TcpListener, AppRuns) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();

        (listener, AppRuns::new(&UpstreamSettings::new("127.0.0.1", port)))
    }

    #[tokio::test]
    async fn a_process_that_listens_anew_is_another_run_though_nothing_else_tells_it() {
        let (listener, runs) = listening().await;
        let (silent, _accepted) = connected(&listener).await;
        assert!(!runs.note_connection(silent).await);
        let first = runs.identity().unwrap();
        assert!(runs.is_still(&first).await);
        assert!(!first.was_seen_starting);

        let address = listener.local_addr().unwrap();
        drop(listener);
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(8).unwrap();

        // Before the watch knows it.
        assert!(!runs.is_still(&first).await);
        let (silent, _accepted) = connected(&listener).await;
        assert!(runs.note_connection(silent).await);
        assert!(runs.current().number > first.number);
        assert!(runs.identity().unwrap().was_seen_starting);
    }

    #[tokio::test]
    async fn where_listeners_are_not_seen_the_silent_connection_tells() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let runs = AppRuns::new(&UpstreamSettings::new("app.example.org", 1));
        let (silent, accepted) = connected(&listener).await;
        runs.note_connection(silent).await;
        let run = runs.identity().unwrap();
        assert!(runs.is_still(&run).await);

        drop(accepted);
        tokio::time::timeout(std::time::Duration::from_secs(5), async {
            while runs.is_still(&run).await {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();

        // The app has another connection, and may have been another process in between.
        let (silent, _accepted) = connected(&listener).await;
        assert!(!runs.note_connection(silent).await);
        assert!(!runs.is_still(&run).await);
        assert_eq!(runs.current().number, run.number);
    }

    #[tokio::test]
    async fn a_run_ends_once() {
        let (listener, runs) = listening().await;
        let (silent, _accepted) = connected(&listener).await;
        runs.note_connection(silent).await;
        let run = runs.current();

        runs.end(run.number);
        runs.end(run.number);
        assert_eq!(runs.current(), CurrentRun { number: RunNumber(run.number.0 + 1), is_up: false });
        assert_eq!(runs.identity(), None);
    }
}
