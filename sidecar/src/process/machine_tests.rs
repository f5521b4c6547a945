use http::StatusCode;

use super::*;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

struct Timeline {
    machine: AppMachine,
    start: Instant,
}

impl Timeline {
    fn new(has_warm_up: bool) -> Self {
        let deadlines = AppDeadlines { load: seconds(600), stop: seconds(10), hang: Some(seconds(30)), has_warm_up };
        let start = Instant::now();
        Self { machine: AppMachine::new(deadlines, start), start }
    }

    fn ready() -> Self {
        let mut timeline = Self::new(false);
        timeline.at(1, AppEvent::Launched);
        timeline.at(2, AppEvent::Probed(ProbeOutcome::Ready));
        timeline
    }

    fn at(&mut self, after: u64, event: AppEvent) -> Vec<AppEffect> {
        self.machine.step(self.start + seconds(after), event)
    }

    fn tick(&mut self, after: u64) -> Vec<AppEffect> {
        let active_at = self.start;
        self.at(after, AppEvent::Tick { active_at })
    }

    fn deadline(&self) -> Option<u64> {
        self.machine.next_deadline().map(|deadline| deadline.duration_since(self.start).as_secs())
    }
}

fn silent() -> AppEvent {
    AppEvent::Probed(ProbeOutcome::Silent { why: "refused".to_owned() })
}

fn loss(cause: LossCause, detail: &str) -> AppEffect {
    AppEffect::ReportLoss(RunnerLoss { cause, detail: detail.to_owned() })
}

#[test]
fn an_app_is_loaded_when_its_probe_succeeds() {
    let mut timeline = Timeline::new(false);
    assert_eq!(timeline.at(1, AppEvent::Launched), [AppEffect::BeginProbing]);
    assert_eq!(timeline.at(2, silent()), []);
    assert_eq!(timeline.at(3, AppEvent::Probed(ProbeOutcome::Answered(StatusCode::SERVICE_UNAVAILABLE))), []);

    let timings = LoadTimings { spawn: seconds(1), libraries: Duration::ZERO, sessions: seconds(3), total: seconds(4) };
    assert_eq!(timeline.at(4, AppEvent::Probed(ProbeOutcome::Ready)), [AppEffect::ReportLoaded(timings)]);
    assert_eq!(timeline.at(5, AppEvent::Probed(ProbeOutcome::Ready)), []);
}

#[test]
fn the_warm_up_belongs_to_the_load() {
    let mut timeline = Timeline::new(true);
    timeline.at(1, AppEvent::Launched);
    assert_eq!(timeline.at(2, AppEvent::ReadyLine), [AppEffect::BeginWarmUp]);
    assert_eq!(timeline.at(3, AppEvent::ReadyLine), []);
    assert_eq!(timeline.deadline(), Some(600));

    let loaded = timeline.at(30, AppEvent::WarmedUp);
    assert!(matches!(&loaded[..], [AppEffect::ReportLoaded(timings)] if timings.total == seconds(30)));
}

#[test]
fn a_line_that_is_read_before_the_launch_is_reported_counts_from_the_launch() {
    let mut timeline = Timeline::new(false);
    assert_eq!(timeline.at(1, AppEvent::ReadyLine), []);
    let launched = timeline.at(2, AppEvent::Launched);
    assert!(matches!(&launched[..], [AppEffect::BeginProbing, AppEffect::ReportLoaded(timings)]
        if timings.total == seconds(2)));
}

#[test]
fn a_failed_warm_up_is_a_failed_load() {
    let mut timeline = Timeline::new(true);
    timeline.at(1, AppEvent::Launched);
    timeline.at(2, AppEvent::ReadyLine);

    let failed = timeline.at(3, AppEvent::WarmUpFailed { cause: "500".to_owned() });
    let report = AppEffect::ReportLoadFailure { cause: "500".to_owned(), has_last_words: false };
    assert_eq!(failed, [report, AppEffect::Kill]);
    assert_eq!(timeline.at(4, AppEvent::MainExited(MainExit::Signal(9))), []);
    assert_eq!(timeline.at(5, AppEvent::AllGone), [AppEffect::ReportExited]);
}

#[test]
fn a_load_that_takes_too_long_is_ended_with_what_the_probe_found() {
    let mut timeline = Timeline::new(false);
    timeline.at(1, AppEvent::Launched);
    timeline.at(2, silent());
    assert_eq!(timeline.deadline(), Some(600));
    assert_eq!(timeline.tick(599), []);

    let detail = "not ready within 600 s: the probe has no answer: refused";
    assert_eq!(timeline.tick(600), [loss(LossCause::LoadTimeout, detail), AppEffect::Kill]);
    assert_eq!(timeline.deadline(), None);
}

#[test]
fn the_last_lines_are_read_before_a_failed_load_is_reported() {
    let mut timeline = Timeline::new(false);
    timeline.at(1, AppEvent::Launched);
    assert_eq!(timeline.at(2, AppEvent::MainExited(MainExit::Code(1))), [AppEffect::Kill]);
    assert_eq!(timeline.at(2, AppEvent::AllGone), []);

    let cause = "the app ended with exit status 1 before it was ready".to_owned();
    let report = AppEffect::ReportLoadFailure { cause, has_last_words: true };
    assert_eq!(timeline.at(2, AppEvent::OutputEnded), [report, AppEffect::ReportExited]);
    assert!(timeline.machine.has_ended());
}

#[test]
fn lines_that_do_not_end_do_not_keep_a_failed_load_from_being_reported() {
    let mut timeline = Timeline::new(false);
    timeline.at(1, AppEvent::Launched);
    timeline.at(2, AppEvent::MainExited(MainExit::Code(0)));
    assert_eq!(timeline.deadline(), Some(3));

    let reported = timeline.tick(3);
    assert!(matches!(&reported[..], [AppEffect::ReportLoadFailure { cause, .. }] if cause.contains("foreground")));
    assert_eq!(timeline.at(60, AppEvent::AllGone), [AppEffect::ReportExited]);
}

#[test]
fn a_program_that_cannot_be_executed_is_a_failed_load() {
    let mut timeline = Timeline::new(false);
    let failed = timeline.at(0, AppEvent::NotLaunched { cause: "`x` is missing".to_owned() });
    let report = AppEffect::ReportLoadFailure { cause: "`x` is missing".to_owned(), has_last_words: false };
    assert_eq!(failed, [report, AppEffect::Kill]);
    assert_eq!(timeline.at(0, AppEvent::AllGone), [AppEffect::ReportExited]);
}

#[test]
fn a_stop_asks_first_and_kills_at_the_deadline() {
    let mut timeline = Timeline::ready();
    assert_eq!(timeline.at(20, AppEvent::StopRequested), [AppEffect::TerminateGroup]);
    assert_eq!(timeline.at(21, AppEvent::StopRequested), []);
    assert_eq!(timeline.deadline(), Some(30));
    assert_eq!(timeline.tick(29), []);
    assert_eq!(timeline.tick(30), [AppEffect::Kill]);
    assert_eq!(timeline.at(31, AppEvent::MainExited(MainExit::Signal(9))), []);
    assert_eq!(timeline.at(31, AppEvent::AllGone), [AppEffect::ReportExited]);
}

#[test]
fn children_that_do_not_follow_the_main_process_are_killed_soon() {
    let mut timeline = Timeline::ready();
    timeline.at(20, AppEvent::StopRequested);
    assert_eq!(timeline.at(22, AppEvent::MainExited(MainExit::Code(0))), [AppEffect::TerminateRest]);
    assert_eq!(timeline.deadline(), Some(23));
    assert_eq!(timeline.tick(23), [AppEffect::Kill]);
}

#[test]
fn a_kill_does_not_wait() {
    let mut timeline = Timeline::ready();
    timeline.at(20, AppEvent::StopRequested);
    assert_eq!(timeline.at(21, AppEvent::KillRequested), [AppEffect::Kill]);
    assert_eq!(timeline.at(22, AppEvent::KillRequested), []);
}

#[test]
fn a_stop_during_the_load_reports_no_failure() {
    let mut timeline = Timeline::new(false);
    timeline.at(1, AppEvent::Launched);
    timeline.at(2, AppEvent::StopRequested);
    assert_eq!(timeline.at(3, AppEvent::Probed(ProbeOutcome::Ready)), []);
    assert_eq!(timeline.at(3, AppEvent::MainExited(MainExit::Code(1))), [AppEffect::TerminateRest]);
    assert_eq!(timeline.at(4, AppEvent::AllGone), [AppEffect::ReportExited]);
}

#[test]
fn a_stop_before_the_launch_kills() {
    let mut timeline = Timeline::new(false);
    assert_eq!(timeline.at(1, AppEvent::StopRequested), [AppEffect::Kill]);
    assert_eq!(timeline.at(1, AppEvent::Launched), []);
    assert_eq!(timeline.at(1, AppEvent::AllGone), [AppEffect::ReportExited]);
}

#[test]
fn a_crash_is_reported_at_once_and_what_is_left_is_killed() {
    let mut timeline = Timeline::ready();
    let crash = timeline.at(20, AppEvent::MainExited(MainExit::Signal(11)));
    assert_eq!(crash, [loss(LossCause::Killed, "the app was killed by SIGSEGV"), AppEffect::Kill]);

    let mut timeline = Timeline::ready();
    let exit = timeline.at(20, AppEvent::MainExited(MainExit::Code(0)));
    assert_eq!(exit, [loss(LossCause::Exited, "the app ended with exit status 0"), AppEffect::Kill]);
}

#[test]
fn an_app_is_hung_when_neither_its_probe_nor_a_request_is_answered() {
    let mut timeline = Timeline::ready();
    timeline.at(20, silent());
    assert_eq!(timeline.deadline(), Some(32));

    // An answer of any kind is a sign of life.
    timeline.at(21, AppEvent::Probed(ProbeOutcome::Answered(StatusCode::SERVICE_UNAVAILABLE)));
    assert_eq!(timeline.deadline(), Some(51));

    // So is a byte of a stream.
    let active_at = timeline.start + seconds(40);
    assert_eq!(timeline.at(51, AppEvent::Tick { active_at }), []);
    assert_eq!(timeline.deadline(), Some(70));

    let detail = "the app has answered neither its probe nor a request for 30 s";
    assert_eq!(timeline.at(70, AppEvent::Tick { active_at }), [loss(LossCause::Hung, detail), AppEffect::Kill]);
}

#[test]
fn a_keeper_that_was_killed_takes_the_app_with_it() {
    let mut timeline = Timeline::ready();
    let lost = timeline.at(20, AppEvent::KeeperLost);
    let detail = "the process that keeps the app was killed";
    assert_eq!(lost, [loss(LossCause::Killed, detail), AppEffect::KillWithoutKeeper]);
    assert_eq!(timeline.at(21, AppEvent::AllGone), [AppEffect::ReportExited]);
    assert_eq!(timeline.at(21, AppEvent::KeeperLost), []);
}

#[test]
fn a_kill_that_loses_its_keeper_goes_on_without_it() {
    let mut timeline = Timeline::ready();
    timeline.at(20, AppEvent::KillRequested);
    assert_eq!(timeline.at(21, AppEvent::KeeperLost), [AppEffect::KillWithoutKeeper]);
}
