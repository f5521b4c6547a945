//! The life of one process of an app as a pure function: what happened goes in with the time, what is to be done comes out.

use std::time::{Duration, Instant};

use hush_residency::{LoadTimings, LossCause, RunnerLoss};

use super::messages::MainExit;
use super::probe::ProbeOutcome;

/// When the main process has ended on request, the others get at most this long to follow it.
const FOLLOW_TIME: Duration = Duration::from_secs(1);
/// How long the last lines of an app that failed to load may take until they are read.
const LAST_LINES_TIME: Duration = Duration::from_secs(1);

/// The time limits of an app.
#[derive(Clone, Copy, Debug)]
pub(super) struct AppDeadlines {
    pub(super) load: Duration,
    pub(super) stop: Duration,
    pub(super) hang: Option<Duration>,
    pub(super) has_warm_up: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum AppEvent {
    /// The app's program runs.
    Launched,
    /// It could not be executed.
    NotLaunched {
        cause: String,
    },
    Probed(ProbeOutcome),
    /// A line of the output says that the app is ready.
    ReadyLine,
    WarmedUp,
    WarmUpFailed {
        cause: String,
    },
    MainExited(MainExit),
    /// The keeper ended before the app did.
    KeeperLost,
    /// No process of the app is left.
    AllGone,
    /// Standard output and standard error have ended.
    OutputEnded,
    StopRequested,
    KillRequested,
    /// Time has passed. The app last sent something through the proxy at `active_at`.
    Tick {
        active_at: Instant,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum AppEffect {
    BeginProbing,
    BeginWarmUp,
    TerminateGroup,
    TerminateRest,
    Kill,
    /// Kill without the keeper what is known of the app. [`AppEvent::AllGone`] must follow.
    KillWithoutKeeper,
    ReportLoaded(LoadTimings),
    /// `has_last_words`: the app itself ended, so that its last lines say why.
    ReportLoadFailure {
        cause: String,
        has_last_words: bool,
    },
    ReportLoss(RunnerLoss),
    ReportExited,
}

#[derive(Clone, Debug, PartialEq)]
enum AppPhase {
    Launching,
    /// Until the probe succeeds.
    Loading,
    WarmingUp,
    Ready {
        last_sign_at: Instant,
    },
    /// SIGTERM was sent.
    Stopping {
        kill_at: Instant,
    },
    /// SIGKILL was sent.
    Killed,
    /// No process is left.
    Gone,
    Ended,
}

/// A failure that is reported as soon as the last lines of the app are read.
#[derive(Clone, Debug, PartialEq)]
struct PendingFailure {
    cause: String,
    report_at: Instant,
}

#[derive(Clone, Debug)]
pub(super) struct AppMachine {
    deadlines: AppDeadlines,
    started_at: Instant,
    launched_at: Option<Instant>,
    phase: AppPhase,
    pending_failure: Option<PendingFailure>,
    has_output_ended: bool,
    /// The first lines of the output may be read before the keeper reports the launch.
    is_ready_at_launch: bool,
    /// What the last probe found, for the report of a load that takes too long.
    last_probe: Option<String>,
}

impl AppMachine {
    pub(super) fn new(deadlines: AppDeadlines, started_at: Instant) -> Self {
        Self {
            deadlines,
            started_at,
            launched_at: None,
            phase: AppPhase::Launching,
            pending_failure: None,
            has_output_ended: false,
            is_ready_at_launch: false,
            last_probe: None,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.phase == AppPhase::Ended
    }

    /// Whether the processes of the app are of interest: from its launch until they are gone.
    pub(super) fn is_running(&self) -> bool {
        self.launched_at.is_some() && !matches!(self.phase, AppPhase::Gone | AppPhase::Ended)
    }

    fn is_loading(&self) -> bool {
        matches!(self.phase, AppPhase::Launching | AppPhase::Loading | AppPhase::WarmingUp)
    }

    /// When [`AppEvent::Tick`] is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let of_phase = match self.phase {
            AppPhase::Launching | AppPhase::Loading | AppPhase::WarmingUp => Some(self.load_deadline()),
            AppPhase::Ready { last_sign_at } => self.deadlines.hang.map(|hang| last_sign_at + hang),
            AppPhase::Stopping { kill_at } => Some(kill_at),
            AppPhase::Killed | AppPhase::Gone | AppPhase::Ended => None,
        };
        let of_failure = self.pending_failure.as_ref().map(|failure| failure.report_at);
        of_phase.into_iter().chain(of_failure).min()
    }

    fn load_deadline(&self) -> Instant {
        self.started_at + self.deadlines.load
    }

    pub(super) fn step(&mut self, now: Instant, event: AppEvent) -> Vec<AppEffect> {
        let mut effects = match event {
            AppEvent::Launched => self.launched(now),
            AppEvent::NotLaunched { cause } => self.fail_load(cause),
            AppEvent::Probed(outcome) => self.probed(now, &outcome),
            AppEvent::ReadyLine => self.became_ready(now),
            AppEvent::WarmedUp if self.phase == AppPhase::WarmingUp => self.finish_load(now),
            AppEvent::WarmUpFailed { cause } if self.phase == AppPhase::WarmingUp => self.fail_load(cause),
            AppEvent::WarmedUp | AppEvent::WarmUpFailed { .. } => Vec::new(),
            AppEvent::MainExited(exit) => self.main_exited(now, exit),
            AppEvent::KeeperLost => self.keeper_lost(),
            AppEvent::AllGone => {
                self.phase = AppPhase::Gone;
                Vec::new()
            }
            AppEvent::OutputEnded => {
                self.has_output_ended = true;
                Vec::new()
            }
            AppEvent::StopRequested => self.stop(now),
            AppEvent::KillRequested => self.kill(),
            AppEvent::Tick { active_at } => self.tick(now, active_at),
        };

        effects.extend(self.report_end(now));
        effects
    }

    fn launched(&mut self, now: Instant) -> Vec<AppEffect> {
        self.launched_at = Some(now);
        if self.phase != AppPhase::Launching {
            return Vec::new();
        }

        self.phase = AppPhase::Loading;
        let mut effects = vec![AppEffect::BeginProbing];
        if self.is_ready_at_launch {
            effects.extend(self.became_ready(now));
        }
        effects
    }

    fn probed(&mut self, now: Instant, outcome: &ProbeOutcome) -> Vec<AppEffect> {
        if let AppPhase::Ready { last_sign_at } = &mut self.phase {
            // Whatever an app answers, it is not hung.
            if !matches!(outcome, ProbeOutcome::Silent { .. }) {
                *last_sign_at = now;
            }
            return Vec::new();
        }

        match outcome {
            ProbeOutcome::Ready => return self.became_ready(now),
            ProbeOutcome::Answered(status) => self.last_probe = Some(format!("the probe is answered with {status}")),
            ProbeOutcome::Silent { why } => self.last_probe = Some(format!("the probe has no answer: {why}")),
        }
        Vec::new()
    }

    fn became_ready(&mut self, now: Instant) -> Vec<AppEffect> {
        match self.phase {
            AppPhase::Loading => {}
            AppPhase::Launching => {
                self.is_ready_at_launch = true;
                return Vec::new();
            }
            _ => return Vec::new(),
        }

        if self.deadlines.has_warm_up {
            self.phase = AppPhase::WarmingUp;
            self.last_probe = Some("the warm-up request has no answer".to_owned());
            return vec![AppEffect::BeginWarmUp];
        }
        self.finish_load(now)
    }

    fn finish_load(&mut self, now: Instant) -> Vec<AppEffect> {
        self.phase = AppPhase::Ready { last_sign_at: now };
        let launched_at = self.launched_at.unwrap_or(now);
        vec![AppEffect::ReportLoaded(LoadTimings {
            spawn: launched_at.saturating_duration_since(self.started_at),
            libraries: Duration::ZERO,
            sessions: now.saturating_duration_since(launched_at),
            total: now.saturating_duration_since(self.started_at),
        })]
    }

    /// The load has failed for a reason that the sidecar knows.
    fn fail_load(&mut self, cause: String) -> Vec<AppEffect> {
        if !self.is_loading() {
            return Vec::new();
        }

        self.phase = AppPhase::Killed;
        vec![AppEffect::ReportLoadFailure { cause, has_last_words: false }, AppEffect::Kill]
    }

    fn main_exited(&mut self, now: Instant, exit: MainExit) -> Vec<AppEffect> {
        match &mut self.phase {
            AppPhase::Launching | AppPhase::Loading | AppPhase::WarmingUp => {
                self.phase = AppPhase::Killed;
                let cause = cause_of_early_exit(exit);
                self.pending_failure = Some(PendingFailure { cause, report_at: now + LAST_LINES_TIME });
                vec![AppEffect::Kill]
            }
            AppPhase::Ready { .. } => {
                self.phase = AppPhase::Killed;
                vec![AppEffect::ReportLoss(loss_of_exit(exit)), AppEffect::Kill]
            }
            AppPhase::Stopping { kill_at } => {
                *kill_at = (*kill_at).min(now + FOLLOW_TIME);
                vec![AppEffect::TerminateRest]
            }
            AppPhase::Killed | AppPhase::Gone | AppPhase::Ended => Vec::new(),
        }
    }

    fn keeper_lost(&mut self) -> Vec<AppEffect> {
        let detail = "the process that keeps the app was killed".to_owned();
        let mut effects = match self.phase {
            AppPhase::Gone | AppPhase::Ended => return Vec::new(),
            AppPhase::Stopping { .. } | AppPhase::Killed => Vec::new(),
            AppPhase::Launching | AppPhase::Loading | AppPhase::WarmingUp => {
                vec![AppEffect::ReportLoadFailure { cause: detail, has_last_words: false }]
            }
            AppPhase::Ready { .. } => vec![AppEffect::ReportLoss(RunnerLoss { cause: LossCause::Killed, detail })],
        };

        self.phase = AppPhase::Killed;
        effects.push(AppEffect::KillWithoutKeeper);
        effects
    }

    fn stop(&mut self, now: Instant) -> Vec<AppEffect> {
        match self.phase {
            // There is no app yet that could understand a signal.
            AppPhase::Launching => self.kill(),
            AppPhase::Loading | AppPhase::WarmingUp | AppPhase::Ready { .. } => {
                self.phase = AppPhase::Stopping { kill_at: now + self.deadlines.stop };
                vec![AppEffect::TerminateGroup]
            }
            AppPhase::Stopping { .. } | AppPhase::Killed | AppPhase::Gone | AppPhase::Ended => Vec::new(),
        }
    }

    fn kill(&mut self) -> Vec<AppEffect> {
        if matches!(self.phase, AppPhase::Killed | AppPhase::Gone | AppPhase::Ended) {
            return Vec::new();
        }

        self.phase = AppPhase::Killed;
        vec![AppEffect::Kill]
    }

    fn tick(&mut self, now: Instant, active_at: Instant) -> Vec<AppEffect> {
        if self.is_loading() && now >= self.load_deadline() {
            return self.lose(LossCause::LoadTimeout, self.load_timeout_detail());
        }

        match &mut self.phase {
            AppPhase::Ready { last_sign_at } => {
                *last_sign_at = (*last_sign_at).max(active_at);
                let silence = now.saturating_duration_since(*last_sign_at);
                if self.deadlines.hang.is_some_and(|hang| silence >= hang) {
                    let seconds = silence.as_secs_f64();
                    let detail = format!("the app has answered neither its probe nor a request for {seconds:.0} s");
                    return self.lose(LossCause::Hung, detail);
                }
                Vec::new()
            }
            AppPhase::Stopping { kill_at } if now >= *kill_at => self.kill(),
            _ => Vec::new(),
        }
    }

    fn lose(&mut self, cause: LossCause, detail: String) -> Vec<AppEffect> {
        self.phase = AppPhase::Killed;
        vec![AppEffect::ReportLoss(RunnerLoss { cause, detail }), AppEffect::Kill]
    }

    fn load_timeout_detail(&self) -> String {
        let seconds = self.deadlines.load.as_secs_f64();
        match &self.last_probe {
            Some(probe) => format!("not ready within {seconds} s: {probe}"),
            None => format!("not ready within {seconds} s"),
        }
    }

    /// The failure before the end, and the end last.
    fn report_end(&mut self, now: Instant) -> Vec<AppEffect> {
        let mut effects = Vec::new();
        let is_readable = self.has_output_ended;
        if let Some(failure) = self.pending_failure.take_if(|failure| is_readable || now >= failure.report_at) {
            effects.push(AppEffect::ReportLoadFailure { cause: failure.cause, has_last_words: true });
        }
        if self.phase == AppPhase::Gone && self.pending_failure.is_none() {
            self.phase = AppPhase::Ended;
            effects.push(AppEffect::ReportExited);
        }
        effects
    }
}

fn cause_of_early_exit(exit: MainExit) -> String {
    let hint = match exit {
        MainExit::Code(0) => " (an app must stay in the foreground)",
        MainExit::Code(_) | MainExit::Signal(_) => "",
    };
    format!("the app {exit} before it was ready{hint}")
}

fn loss_of_exit(exit: MainExit) -> RunnerLoss {
    let cause = match exit {
        MainExit::Code(_) => LossCause::Exited,
        MainExit::Signal(_) => LossCause::Killed,
    };
    RunnerLoss { cause, detail: format!("the app {exit}") }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
