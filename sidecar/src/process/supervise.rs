//! An app that loads and unloads its models itself: it is started again whenever it ends by itself, and may be ended while
//! none of its models is in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hush_residency::{ModelRunner, RunnerEvent};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::{AppActivity, AppProcess, AppSurvivors, ProcessSettings};

const FIRST_DELAY: Duration = Duration::from_secs(1);
/// The supervisor has ended with the sidecar.
const SUPERVISOR_GONE: &str = "the sidecar ends";

const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// An app that was ready for this long had no lasting problem: its next failure counts as its first.
const STABLE_TIME: Duration = Duration::from_secs(60);

/// What an app that loads its models itself does at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppProcessStatus {
    /// Not ready. `pids`: its processes, the main process first; none before it runs.
    Starting {
        pids: Vec<u32>,
    },
    Ready {
        pids: Vec<u32>,
    },
    /// It has ended, and is started again at `until`.
    BackingOff {
        until: Instant,
        cause: String,
    },
    /// It was told to end, and has not.
    Stopping,
    /// [`AppControl::end`] has ended it: no process of it is left, until [`AppControl::start`].
    Ended,
    /// It was told to end and is gone. `cause`: why it was not running at that moment.
    Stopped {
        cause: Option<String>,
    },
}

/// An app that is started again with growing pauses whenever it ends. When it is dropped the app is stopped.
#[derive(Debug)]
pub struct SupervisedApp {
    control: AppControl,
    stop: Option<oneshot::Sender<()>>,
    supervisor: JoinHandle<()>,
}

/// Ends and starts an app between its loads. Clones are handles to the same app.
#[derive(Clone, Debug)]
pub struct AppControl {
    wanted: Arc<watch::Sender<bool>>,
    status: watch::Receiver<AppProcessStatus>,
    /// From the command to end it until it is ready again.
    is_absent: Arc<AtomicBool>,
}

impl AppControl {
    /// Ends the app, and waits until none of its processes is left.
    pub async fn end(&self) {
        self.is_absent.store(true, Ordering::Release);
        self.wanted.send_replace(false);

        let has_ended =
            |status: &AppProcessStatus| matches!(status, AppProcessStatus::Ended | AppProcessStatus::Stopped { .. });
        // Without its supervisor the app is gone too.
        let _ = self.status.clone().wait_for(has_ended).await;
    }

    /// Starts the app if [`Self::end`] has ended it, and waits until it is ready. Returns whether it was started.
    ///
    /// # Errors
    /// Why it is not ready.
    pub async fn start(&self) -> Result<bool, String> {
        if !self.is_absent() {
            return Ok(false);
        }

        self.wanted.send_replace(true);
        let mut status = self.status.clone();
        let is_decided = |status: &AppProcessStatus| {
            !matches!(status, AppProcessStatus::Starting { .. } | AppProcessStatus::Stopping | AppProcessStatus::Ended)
        };
        let Ok(status) = status.wait_for(is_decided).await else { return Err(SUPERVISOR_GONE.to_owned()) };

        match &*status {
            AppProcessStatus::BackingOff { cause, .. } => Err(cause.clone()),
            AppProcessStatus::Stopped { cause } => Err(cause.clone().unwrap_or_else(|| SUPERVISOR_GONE.to_owned())),
            _ => {
                self.is_absent.store(false, Ordering::Release);
                Ok(true)
            }
        }
    }

    /// Whether the app is away because of [`Self::end`], or not ready again since.
    pub fn is_absent(&self) -> bool {
        self.is_absent.load(Ordering::Acquire)
    }
}

impl SupervisedApp {
    /// Starts the app without waiting for it. Must be called inside a tokio runtime.
    pub fn start(settings: ProcessSettings, activity: AppActivity) -> Self {
        Self::start_with(settings, activity, AppSurvivors::default())
    }

    /// As [`Self::start`]; processes that cannot be killed are listed in `survivors`.
    pub fn start_with(settings: ProcessSettings, activity: AppActivity, survivors: AppSurvivors) -> Self {
        let (publish, status) = watch::channel(AppProcessStatus::Starting { pids: Vec::new() });
        let (stop, stop_requested) = oneshot::channel();
        let (wanted, is_wanted) = watch::channel(true);
        let control = AppControl { wanted: Arc::new(wanted), status, is_absent: Arc::default() };

        let supervisor = AppSupervisor { settings, activity, survivors, publish, is_wanted };
        let supervisor = tokio::spawn(supervisor.run(stop_requested));
        Self { control, stop: Some(stop), supervisor }
    }

    /// What the app does, now and later.
    pub fn status(&self) -> watch::Receiver<AppProcessStatus> {
        self.control.status.clone()
    }

    pub fn control(&self) -> AppControl {
        self.control.clone()
    }

    /// Stops the app, and waits until none of its processes is left.
    pub async fn stop(mut self) {
        self.stop.take();
        // Its only other end is a panic, after which there is nothing to stop.
        let _ = self.supervisor.await;
    }
}

/// How long to wait before an app is started again.
#[derive(Clone, Copy, Debug, Default)]
struct RestartBackoff {
    failures: u32,
}

impl RestartBackoff {
    /// The app has failed after it had been ready for this long.
    fn next_delay(&mut self, ready_time: Duration) -> Duration {
        if ready_time >= STABLE_TIME {
            self.failures = 0;
        }
        let delay = FIRST_DELAY.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST_DELAY);
        self.failures = self.failures.saturating_add(1);
        delay
    }
}

/// How one process of the app went.
struct RunResult {
    /// Why it ended by itself; `None`: it was told to.
    cause: Option<String>,
    ready_time: Duration,
    /// The app is not wanted any more, now or later.
    is_over: bool,
}

/// The task behind a [`SupervisedApp`].
struct AppSupervisor {
    settings: ProcessSettings,
    activity: AppActivity,
    survivors: AppSurvivors,
    publish: watch::Sender<AppProcessStatus>,
    is_wanted: watch::Receiver<bool>,
}

impl AppSupervisor {
    async fn run(mut self, mut stop_requested: oneshot::Receiver<()>) {
        let mut backoff = RestartBackoff::default();

        let cause = loop {
            if !*self.is_wanted.borrow_and_update() {
                tracing::info!(app = self.settings.name, "the app has been ended; the next load starts it");
                self.publish.send_replace(AppProcessStatus::Ended);
                tokio::select! {
                    () = wait_for_value(&mut self.is_wanted, true) => {}
                    _ = &mut stop_requested => break None,
                }
            }

            let run = self.run_once(&mut stop_requested).await;
            if run.is_over {
                break None;
            }
            let Some(cause) = run.cause else { continue };

            let delay = backoff.next_delay(run.ready_time);
            let until = Instant::now() + delay;
            let restart_seconds = delay.as_secs();
            tracing::warn!(app = self.settings.name, restart_seconds, "the app has ended: {cause}");
            self.publish.send_replace(AppProcessStatus::BackingOff { until, cause: cause.clone() });
            tokio::select! {
                () = sleep_until(until) => {}
                () = wait_for_value(&mut self.is_wanted, false) => {}
                _ = &mut stop_requested => break Some(cause),
            }
        };
        self.publish.send_replace(AppProcessStatus::Stopped { cause });
    }

    /// Runs the app once, until no process of it is left.
    async fn run_once(&mut self, stop_requested: &mut oneshot::Receiver<()>) -> RunResult {
        self.publish.send_replace(AppProcessStatus::Starting { pids: Vec::new() });
        let (events, mut inbox) = mpsc::unbounded_channel();
        let notify = Box::new(move |event| {
            let _ = events.send(event);
        });
        let (settings, activity) = (self.settings.clone(), self.activity.clone());
        let app = AppProcess::start_reporting(settings, activity, self.survivors.clone(), notify);

        let mut observed = ObservedRun::default();
        let mut is_over = false;
        loop {
            let event = tokio::select! {
                event = inbox.recv() => event,
                _ = &mut *stop_requested, if !is_over => {
                    is_over = true;
                    self.stop(&app, &mut observed);
                    continue;
                }
                () = wait_for_value(&mut self.is_wanted, false), if !observed.is_stopping => {
                    self.stop(&app, &mut observed);
                    continue;
                }
            };
            match event {
                Some(RunnerEvent::Exited) | None => return observed.finish(Instant::now(), is_over),
                Some(event) => {
                    if let Some(status) = observed.apply(event, Instant::now()) {
                        self.publish.send_replace(status);
                    }
                }
            }
        }
    }

    fn stop(&self, app: &AppProcess, observed: &mut ObservedRun) {
        if !observed.is_stopping {
            observed.is_stopping = true;
            app.stop();
            self.publish.send_replace(AppProcessStatus::Stopping);
        }
    }
}

/// Returns when the channel has this value; never, when it cannot get it any more.
async fn wait_for_value(channel: &mut watch::Receiver<bool>, value: bool) {
    if channel.wait_for(|current| *current == value).await.is_err() {
        std::future::pending().await
    }
}

#[derive(Debug, Default)]
struct ObservedRun {
    pids: Vec<u32>,
    ready_at: Option<Instant>,
    ready_time: Duration,
    cause: Option<String>,
    is_stopping: bool,
}

impl ObservedRun {
    /// The status after the event, if it is another one.
    fn apply(&mut self, event: RunnerEvent, now: Instant) -> Option<AppProcessStatus> {
        match event {
            RunnerEvent::Started { pids } => self.pids = pids,
            RunnerEvent::Loaded(_) => self.ready_at = Some(now),
            RunnerEvent::LoadFailed { cause, .. } => self.end(cause, now),
            RunnerEvent::Lost(loss) => self.end(loss.to_string(), now),
            RunnerEvent::FullyLoaded(_)
            | RunnerEvent::OutOfMemory(_)
            | RunnerEvent::StopRefused { .. }
            | RunnerEvent::ProcessKept(_)
            | RunnerEvent::LeftByItself
            | RunnerEvent::Exited => return None,
        }
        if self.is_stopping {
            return None;
        }

        let pids = self.pids.clone();
        Some(if self.ready_at.is_some() {
            AppProcessStatus::Ready { pids }
        } else {
            AppProcessStatus::Starting { pids }
        })
    }

    fn end(&mut self, cause: String, now: Instant) {
        self.cause = Some(cause);
        self.ready_time = self.ready_at.take().map(|ready_at| now - ready_at).unwrap_or_default();
        self.pids.clear();
    }

    fn finish(self, now: Instant, is_over: bool) -> RunResult {
        let ready_time = self.ready_at.map_or(self.ready_time, |ready_at| now - ready_at);
        let cause = match (self.is_stopping, self.cause) {
            (true, _) => None,
            (false, cause) => Some(cause.unwrap_or_else(|| "it was ended".to_owned())),
        };
        RunResult { cause, ready_time, is_over }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_anew_after_a_stable_time() {
        let mut backoff = RestartBackoff::default();
        let delays: Vec<u64> = (0..8).map(|_| backoff.next_delay(Duration::from_secs(5)).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);

        assert_eq!(backoff.next_delay(STABLE_TIME).as_secs(), 1);
        assert_eq!(backoff.next_delay(Duration::ZERO).as_secs(), 2);
        for _ in 0..100 {
            assert!(backoff.next_delay(Duration::ZERO) <= LONGEST_DELAY);
        }
    }
}
