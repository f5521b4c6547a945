//! Which log lines are written: a filter that can be changed while the program runs, for a time or until it ends.

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt as lines};

use crate::writer;

const LONGEST_FILTER_BYTES: usize = 1024;
/// The longest time after which a changed filter ends by itself.
pub const LONGEST_CHANGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The log of this process, once it is set up. A process has one.
static LOG: OnceLock<Log> = OnceLock::new();

/// How the lines look and which are written at the start.
#[derive(Clone, Copy, Debug)]
pub struct LogSetup<'a> {
    pub json: bool,
    /// Whether a line names the module that it comes from. JSON always does.
    pub with_target: bool,
    /// Directives before those of the filter; a later one of the same target holds.
    pub base: &'static str,
    /// Already checked, see [`check_filter`].
    pub filter: &'a str,
}

/// Text that is no filter of log lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be error, warn, info, debug, trace or off, or directives such as info,hush_server=debug: {0}")]
pub struct InvalidFilter(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Filter(#[from] InvalidFilter),
    #[error("must be more than nothing and at most {} s", LONGEST_CHANGE.as_secs())]
    Duration,
    #[error("this program has no log that can be changed: {0}")]
    Unavailable(String),
}

/// What is logged now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel {
    pub filter: String,
    /// What the program was started with.
    pub configured: String,
    /// How long the filter still holds; then the configured one does.
    pub remaining: Option<Duration>,
}

#[derive(Clone, Debug)]
struct InForce {
    filter: String,
    until: Option<Instant>,
}

/// Puts a filter into the place of the one before.
type Apply = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

struct Log {
    configured: String,
    base: &'static str,
    apply: Apply,
    in_force: watch::Sender<InForce>,
    /// Returns to the configured filter. The lock also keeps changes apart.
    timer: Mutex<Option<AbortHandle>>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("configured", &self.configured).finish_non_exhaustive()
    }
}

/// A filter as [`EnvFilter`] reads it, except for what it reads and is not meant: a word that is no level is the name of a
/// module to it, so that `debgu` would silence everything else.
pub fn check_filter(text: &str) -> Result<(), InvalidFilter> {
    if text.len() > LONGEST_FILTER_BYTES {
        return Err(InvalidFilter(format!("it is longer than {LONGEST_FILTER_BYTES} bytes")));
    }
    if text.trim().is_empty() {
        return Err(InvalidFilter("it is empty".to_owned()));
    }
    for directive in text.split(',').map(str::trim) {
        // `[SPAN]` stands for everything in a span.
        let is_word = !directive.contains(['=', '[']);
        if is_word && (directive.is_empty() || directive.parse::<LevelFilter>().is_err()) {
            return Err(InvalidFilter(format!("`{}` is no level", directive.escape_debug())));
        }
    }
    EnvFilter::try_new(text).map(drop).map_err(|error| InvalidFilter(error.to_string()))
}

/// Sets up the log of this process; a second call changes nothing, and answers `false`.
pub fn init_log(setup: &LogSetup<'_>) -> bool {
    let filter = EnvFilter::new(with_base(setup.base, setup.filter));
    // What the log reports of itself would go to standard error with a panic where that cannot be written.
    let builder = lines().with_env_filter(filter).log_internal_errors(false).with_writer(writer);
    let (apply, is_first): (Apply, bool) = if setup.json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        let apply = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        (Box::new(apply), builder.try_init().is_ok())
    } else {
        let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_target(setup.with_target);
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        let apply = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        (Box::new(apply), builder.try_init().is_ok())
    };
    if !is_first {
        return false;
    }
    let in_force = watch::Sender::new(InForce { filter: setup.filter.to_owned(), until: None });
    let log = Log { configured: setup.filter.to_owned(), base: setup.base, apply, in_force, timer: Mutex::default() };
    LOG.set(log).is_ok()
}

/// What is logged now; `None` before [`init_log`].
pub fn log_level() -> Option<LogLevel> {
    LOG.get().map(Log::level)
}

/// Logs by another filter from now on, or by the configured one if none is given. With a time the configured one is in
/// force again after it, unless the filter is changed before; that needs a runtime of tokio.
pub fn change_log_level(filter: Option<&str>, time: Option<Duration>) -> Result<LogLevel, ChangeError> {
    let log = LOG.get().ok_or_else(|| ChangeError::Unavailable("it has not been set up".to_owned()))?;
    log.change(filter, time)
}

/// Follows the filter that is in force; `None` before [`init_log`].
pub fn follow_log_level() -> Option<LogLevelChanges> {
    LOG.get().map(|log| LogLevelChanges {
        configured: &log.configured,
        changes: log.in_force.subscribe(),
        is_new: true,
    })
}

/// The filter that is in force, for processes that are to log by it too.
#[derive(Debug)]
pub struct LogLevelChanges {
    configured: &'static str,
    changes: watch::Receiver<InForce>,
    is_new: bool,
}

impl LogLevelChanges {
    /// The next filter: the first time the one that is in force, if it is not the configured one.
    pub async fn next(&mut self) -> String {
        loop {
            if std::mem::take(&mut self.is_new) {
                let filter = self.changes.borrow_and_update().filter.clone();
                if filter != self.configured {
                    return filter;
                }
            }
            match self.changes.changed().await {
                Ok(()) => return self.changes.borrow_and_update().filter.clone(),
                // The sender is never dropped.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl Log {
    fn level(&self) -> LogLevel {
        let InForce { filter, until } = self.in_force.borrow().clone();
        let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
        LogLevel { filter, configured: self.configured.clone(), remaining }
    }

    fn change(&'static self, filter: Option<&str>, time: Option<Duration>) -> Result<LogLevel, ChangeError> {
        let filter = filter.unwrap_or(&self.configured);
        check_filter(filter)?;
        if time.is_some_and(|time| time.is_zero() || time > LONGEST_CHANGE) {
            return Err(ChangeError::Duration);
        }
        let runtime = time.map(|_| Handle::try_current().map_err(|error| ChangeError::Unavailable(error.to_string())));
        let runtime = runtime.transpose()?;

        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        self.apply(filter, time)?;
        if let Some(timer) = timer.take() {
            timer.abort();
        }
        if let (Some(runtime), Some(time)) = (runtime, time) {
            *timer = Some(runtime.spawn(self.return_after(time)).abort_handle());
        }
        Ok(self.level())
    }

    fn apply(&self, filter: &str, time: Option<Duration>) -> Result<(), ChangeError> {
        (self.apply)(EnvFilter::new(with_base(self.base, filter))).map_err(ChangeError::Unavailable)?;
        let until = time.map(|time| Instant::now() + time);
        self.in_force.send_replace(InForce { filter: filter.to_owned(), until });
        Ok(())
    }

    async fn return_after(&'static self, time: Duration) {
        let until = Instant::now() + time;
        tokio::time::sleep_until(until).await;
        let timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        // A change that came between the end of the sleep and the lock has set another time, or none.
        if self.in_force.borrow().until.is_none_or(|until| until > Instant::now()) {
            return;
        }
        match self.apply(&self.configured, None) {
            Ok(()) => tracing::warn!(level = self.configured, "the time of the changed log level is over"),
            Err(error) => tracing::error!("the configured log level is not in force again: {error}"),
        }
        drop(timer);
    }
}

fn with_base(base: &str, filter: &str) -> String {
    if base.is_empty() { filter.to_owned() } else { format!("{base},{filter}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_filter() {
        for text in [
            "info",
            "WARN",
            "off",
            "info,hush_server=debug",
            "debug,hyper=off",
            "info,[request{id=7}]=trace",
            "hush_server=trace",
        ] {
            assert_eq!(check_filter(text), Ok(()), "{text}");
        }
        for (text, says) in [
            ("", "empty"),
            (" ", "empty"),
            ("debgu", "`debgu` is no level"),
            ("info,hush_server", "`hush_server` is no level"),
            ("info,", "`` is no level"),
            ("hush_server=verbose", "must be error, warn"),
            ("debug, hyper=off", "must be error, warn"),
            ("info\u{1b}[31m", "must be error, warn"),
        ] {
            let error = check_filter(text).expect_err(text).to_string();
            assert!(error.contains(says) && error.starts_with("must be"), "{text:?}: {error}");
        }
        assert!(check_filter(&"info,".repeat(300)).unwrap_err().to_string().contains("longer than 1024"));
    }
}
