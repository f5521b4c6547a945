//! An app that runs all the time, because it loads and unloads its models itself: it is started again whenever it ends.

use std::time::Duration;

use hush_residency::{ModelRunner, RunnerEvent};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::{AppActivity, AppProcess, ProcessSettings};

const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// An app that was ready for this long had no lasting problem: its next failure counts as its first.
const STABLE_TIME: Duration = Duration::from_secs(60);

/// What an app that runs all the time does at the moment.
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
    /// It was told to end and is gone. `cause`: why it was not running at that moment.
    Stopped {
        cause: Option<String>,
    },
}

/// An app that is started again with growing pauses whenever it ends. When it is dropped the app is stopped.
#[derive(Debug)]
pub struct SupervisedApp {
    status: watch::Receiver<AppProcessStatus>,
    stop: Option<oneshot::Sender<()>>,
    supervisor: JoinHandle<()>,
}

impl SupervisedApp {
    /// Starts the app without waiting for it. Must be called inside a tokio runtime.
    pub fn start(settings: ProcessSettings, activity: AppActivity) -> Self {
        let (publish, status) = watch::channel(AppProcessStatus::Starting { pids: Vec::new() });
        let (stop, stop_requested) = oneshot::channel();
        let supervisor = tokio::spawn(supervise(settings, activity, publish, stop_requested));
        Self { status, stop: Some(stop), supervisor }
    }

    /// What the app does, now and later.
    pub fn status(&self) -> watch::Receiver<AppProcessStatus> {
        self.status.clone()
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
}

async fn supervise(
    settings: ProcessSettings,
    activity: AppActivity,
    publish: watch::Sender<AppProcessStatus>,
    mut stop_requested: oneshot::Receiver<()>,
) {
    let mut backoff = RestartBackoff::default();
    let cause = loop {
        let run = run_once(&settings, &activity, &publish, &mut stop_requested).await;
        let Some(cause) = run.cause else { break None };

        let delay = backoff.next_delay(run.ready_time);
        let until = Instant::now() + delay;
        tracing::warn!(app = settings.name, restart_seconds = delay.as_secs(), "the app has ended: {cause}");
        publish.send_replace(AppProcessStatus::BackingOff { until, cause: cause.clone() });
        tokio::select! {
            () = sleep_until(until) => {}
            _ = &mut stop_requested => break Some(cause),
        }
    };
    publish.send_replace(AppProcessStatus::Stopped { cause });
}

/// Runs the app once, until no process of it is left.
async fn run_once(
    settings: &ProcessSettings,
    activity: &AppActivity,
    publish: &watch::Sender<AppProcessStatus>,
    stop_requested: &mut oneshot::Receiver<()>,
) -> RunResult {
    publish.send_replace(AppProcessStatus::Starting { pids: Vec::new() });
    let (events, mut inbox) = mpsc::unbounded_channel();
    let notify = Box::new(move |event| {
        let _ = events.send(event);
    });
    let app = AppProcess::start_with(settings.clone(), activity.clone(), notify);

    let mut observed = ObservedRun::default();
    loop {
        let event = tokio::select! {
            event = inbox.recv() => event,
            _ = &mut *stop_requested, if !observed.is_stopping => {
                observed.is_stopping = true;
                app.stop();
                publish.send_replace(AppProcessStatus::Stopping);
                continue;
            }
        };
        match event {
            Some(RunnerEvent::Exited) | None => return observed.finish(Instant::now()),
            Some(event) => {
                if let Some(status) = observed.apply(event, Instant::now()) {
                    publish.send_replace(status);
                }
            }
        }
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

    fn finish(self, now: Instant) -> RunResult {
        let ready_time = self.ready_at.map_or(self.ready_time, |ready_at| now - ready_at);
        let cause = match (self.is_stopping, self.cause) {
            (true, _) => None,
            (false, cause) => Some(cause.unwrap_or_else(|| "it was ended".to_owned())),
        };
        RunResult { cause, ready_time }
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
