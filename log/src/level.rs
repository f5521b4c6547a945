//! The filter of log lines, which can be changed while the program runs, for a time or until the program ends.

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
/// The longest time for which a filter can be changed.
pub const LONGEST_CHANGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The log of this process, once it is set up.
static LOG: OnceLock<ProcessLog> = OnceLock::new();

/// The form of log lines, and the initial filter.
#[derive(Clone, Copy, Debug)]
pub struct LogSetup<'a> {
    pub json: bool,
    /// Whether a line names its module. A line in JSON always does.
    pub with_target: bool,
    /// Directives before those of the filter. A later directive for the same target wins.
    pub base: &'static str,
    /// The filter, which [`check_filter`] has accepted.
    pub filter: &'a str,
}

/// The text is not a filter of log lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be error, warn, info, debug, trace or off, or directives such as info,hush_server=debug: {0}")]
pub struct InvalidFilter(String);

/// Why the filter was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Filter(#[from] InvalidFilter),
    #[error("must be more than 0 and at most {} s", LONGEST_CHANGE.as_secs())]
    Duration,
    #[error("this program has no log that can be changed: {0}")]
    Unavailable(String),
}

/// The current log filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveLogLevel {
    pub filter: String,
    /// The filter that the program was started with.
    pub configured: String,
    /// Time after which the configured filter applies again.
    pub remaining: Option<Duration>,
}

#[derive(Clone, Debug)]
struct ActiveFilter {
    filter: String,
    until: Option<Instant>,
}

/// Replaces the filter of the subscriber.
type ReplaceFilter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

struct ProcessLog {
    configured: String,
    base: &'static str,
    replace: ReplaceFilter,
    active: watch::Sender<ActiveFilter>,
    /// Returns to the configured filter. The lock also serialises changes.
    timer: Mutex<Option<AbortHandle>>,
}

impl fmt::Debug for ProcessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessLog").field("configured", &self.configured).finish_non_exhaustive()
    }
}

/// Checks a filter as [`EnvFilter`] parses it, but refuses words that are no level: [`EnvFilter`] takes them for names
/// of modules, so that `debgu` would silence everything else.
pub fn check_filter(text: &str) -> Result<(), InvalidFilter> {
    if text.len() > LONGEST_FILTER_BYTES {
        return Err(InvalidFilter(format!("it is longer than {LONGEST_FILTER_BYTES} bytes")));
    }

    if text.trim().is_empty() {
        return Err(InvalidFilter("it is empty".to_owned()));
    }

    for directive in text.split(',').map(str::trim) {
        // `[SPAN]` stands for everything within a span.
        let is_word = !directive.contains(['=', '[']);
        if is_word && (directive.is_empty() || directive.parse::<LevelFilter>().is_err()) {
            return Err(InvalidFilter(format!("`{}` is not a level", directive.escape_debug())));
        }
    }

    EnvFilter::try_new(text).map(drop).map_err(|error| InvalidFilter(error.to_string()))
}

/// Sets up the log of this process. A second call changes nothing and returns `false`.
pub fn init_log(setup: &LogSetup<'_>) -> bool {
    let filter = EnvFilter::new(with_base(setup.base, setup.filter));
    // By default the subscriber would report internal errors on standard error, with a panic where that cannot be
    // written.
    let builder = lines().with_env_filter(filter).log_internal_errors(false).with_writer(writer);

    let (replace, is_first): (ReplaceFilter, bool) = if setup.json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        let replace = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        (Box::new(replace), builder.try_init().is_ok())
    } else {
        let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_target(setup.with_target);
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        let replace = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        (Box::new(replace), builder.try_init().is_ok())
    };

    if !is_first {
        return false;
    }

    let active = watch::Sender::new(ActiveFilter { filter: setup.filter.to_owned(), until: None });
    let log =
        ProcessLog { configured: setup.filter.to_owned(), base: setup.base, replace, active, timer: Mutex::default() };
    LOG.set(log).is_ok()
}

/// The current filter; `None` before [`init_log`].
pub fn log_level() -> Option<ActiveLogLevel> {
    LOG.get().map(ProcessLog::level)
}

/// Sets another filter, or the configured one if `filter` is `None`. After `time` the configured filter applies again,
/// unless the filter is changed before; this needs a tokio runtime.
pub fn change_log_level(filter: Option<&str>, time: Option<Duration>) -> Result<ActiveLogLevel, ChangeError> {
    let log = LOG.get().ok_or_else(|| ChangeError::Unavailable("it has not been set up".to_owned()))?;
    log.change(filter, time)
}

/// Follows the current filter; `None` before [`init_log`].
pub fn follow_log_level() -> Option<LogLevelChanges> {
    LOG.get().map(|log| LogLevelChanges {
        configured: &log.configured,
        changes: log.active.subscribe(),
        is_first: true,
    })
}

/// The changes of the filter, for other processes that should use the same filter.
#[derive(Debug)]
pub struct LogLevelChanges {
    configured: &'static str,
    changes: watch::Receiver<ActiveFilter>,
    is_first: bool,
}

impl LogLevelChanges {
    /// Waits for the next filter. The first call returns the current filter at once, if it is not the configured one.
    pub async fn next(&mut self) -> String {
        loop {
            if std::mem::take(&mut self.is_first) {
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

impl ProcessLog {
    fn level(&self) -> ActiveLogLevel {
        let ActiveFilter { filter, until } = self.active.borrow().clone();
        let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
        ActiveLogLevel { filter, configured: self.configured.clone(), remaining }
    }

    fn change(&'static self, filter: Option<&str>, time: Option<Duration>) -> Result<ActiveLogLevel, ChangeError> {
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
        (self.replace)(EnvFilter::new(with_base(self.base, filter))).map_err(ChangeError::Unavailable)?;

        let until = time.map(|time| Instant::now() + time);
        self.active.send_replace(ActiveFilter { filter: filter.to_owned(), until });
        Ok(())
    }

    async fn return_after(&'static self, time: Duration) {
        let until = Instant::now() + time;
        tokio::time::sleep_until(until).await;

        let timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        // A change between the end of the sleep and the lock has set another time, or none.
        if self.active.borrow().until.is_none_or(|until| until > Instant::now()) {
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
    fn filters_are_checked() {
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
            ("debgu", "`debgu` is not a level"),
            ("info,hush_server", "`hush_server` is not a level"),
            ("info,", "`` is not a level"),
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
