//! Requests that must find the model in memory, and are no activity.

use std::time::Duration;

use hush_contract::admin::UnloadMethod;
use hush_contract::{ModelState, UnloadReason, UnloadRefusal};
use hush_residency::machine::{
    CommandId, DrainEnd, LeaseId, LeaseLossCause, LifecycleSettings, LoadCommand, LossCause, MachineEffect,
    MachineEvent, MachineTime, MetricEvent, ModelMachine, ModelRefusal, ResidencyRule, RunnerLoss, UnloadCommand,
};

const STOP: MachineEffect = MachineEffect::StopRunner { generation: 1, method: UnloadMethod::App };

fn at(seconds: u64) -> MachineTime {
    MachineTime::from_millis(seconds * 1000)
}

fn visit(lease: u64) -> MachineEvent {
    MachineEvent::Visit { lease: LeaseId(lease) }
}

fn end(lease: u64) -> MachineEvent {
    MachineEvent::End { lease: LeaseId(lease) }
}

/// A model that is idle since second 1, and a visit since second 5.
fn visited(residency: ResidencyRule) -> ModelMachine {
    let settings = LifecycleSettings { residency, drain_end: DrainEnd::GiveUp, ..LifecycleSettings::default() };
    let mut machine = ModelMachine::new(settings);
    machine.step(at(0), MachineEvent::Load { command: CommandId(0), load: LoadCommand::now() });
    machine.step(at(1), MachineEvent::Loaded { generation: 1 });

    let granted = MachineEffect::Grant { lease: LeaseId(1), generation: 1 };
    assert_eq!(machine.step(at(5), visit(1)), [granted]);
    machine
}

fn unload(drain: u64, if_idle: Option<u64>) -> MachineEvent {
    let command = UnloadCommand {
        drain: Some(Duration::from_secs(drain)),
        if_idle: if_idle.map(Duration::from_secs),
        ..UnloadCommand::now(UnloadReason::Manual)
    };
    MachineEvent::Unload { command: CommandId(1), unload: command }
}

#[test]
fn a_visit_is_no_activity_and_an_unload_waits_for_it() {
    let mut machine = visited(ResidencyRule::Idle(None));
    assert_eq!((machine.idle_since(), machine.inflight()), (Some(at(1)), 0));

    // The condition on the idle time holds, and the runner is not stopped before the visit has ended.
    let accepted = MachineEffect::ReplyUnload { command: CommandId(1), result: Ok(()) };
    assert_eq!(machine.step(at(6), unload(30, Some(5))), [accepted]);
    assert_eq!(machine.state(), ModelState::Draining);
    assert_eq!(machine.step(at(8), end(1)), [STOP]);
}

#[test]
fn a_visit_to_a_model_that_is_about_to_leave_is_refused() {
    let mut machine = visited(ResidencyRule::Idle(None));
    machine.step(at(6), unload(30, None));

    let refused = |lease| MachineEffect::Refuse { lease: LeaseId(lease), refusal: ModelRefusal::NotLoaded };
    assert_eq!(machine.step(at(7), visit(2)), [refused(2)]);
    machine.step(at(8), end(1));
    machine.step(at(9), MachineEvent::Exited { generation: 1 });
    assert_eq!(machine.step(at(10), visit(3)), [refused(3)]);
    assert_eq!(machine.state(), ModelState::Unloaded, "a visit loads nothing");
}

#[test]
fn an_unload_that_a_visit_outlasts_is_given_up_and_the_model_is_as_idle_as_before() {
    let mut machine = visited(ResidencyRule::Idle(None));
    machine.step(at(6), unload(2, None));

    let effects = machine.step(at(8), MachineEvent::Tick);
    let given_up = MachineEffect::UnloadGivenUp { command: CommandId(1), refusal: UnloadRefusal::Busy };
    assert_eq!(effects, [MachineEffect::Count(MetricEvent::UnloadRefused(UnloadRefusal::Busy)), given_up]);
    assert_eq!((machine.state(), machine.idle_since()), (ModelState::Ready, Some(at(1))));
}

#[test]
fn the_idle_timeout_waits_for_the_end_of_a_visit() {
    let mut machine = visited(ResidencyRule::Idle(Some(Duration::from_secs(10))));
    assert_eq!(machine.deadline(), None, "the end of the visit is an event");
    assert_eq!(machine.step(at(20), MachineEvent::Tick), []);

    assert_eq!(machine.step(at(21), end(1)), [STOP], "its idle time went on meanwhile");
}

#[test]
fn a_visit_ends_with_the_runner() {
    let mut machine = visited(ResidencyRule::Idle(None));
    let loss = RunnerLoss { cause: LossCause::Killed, detail: "x".to_owned() };

    let effects = machine.step(at(6), MachineEvent::RunnerLost { generation: 1, loss: loss.clone() });
    let lost = MachineEffect::Lost { lease: LeaseId(1), why: LeaseLossCause::Runner(loss) };
    assert!(effects.contains(&lost), "{effects:?}");
    assert_eq!(machine.step(at(7), end(1)), [], "its own end comes late");
}
