//! The rules of a model's life one by one, each with the exact effects.

use std::num::NonZeroUsize;
use std::time::Duration;

use hush_contract::admin::{ProcessOutcome, UnloadMethod, UnloadOutcome};
use hush_contract::{ModelState, UnloadReason, UnloadRefusal};
use hush_residency::machine::{
    ColdReason, CommandId, DrainEnd, LeaseId, LeaseLossCause, LifecycleSettings, LoadCommand, LossCause, MachineEffect,
    MachineEvent, MachineTime, MemoryAvailability, MetricEvent, ModelMachine, ModelRefusal, ReclaimReport,
    ReclaimVerdict, ResidencyRule, RunnerLoss, UnloadCommand, UnloadReport,
};

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn settings(residency: ResidencyRule) -> LifecycleSettings {
    LifecycleSettings { residency, ..LifecycleSettings::default() }
}

pub fn at(seconds: u64) -> MachineTime {
    MachineTime::from_millis(seconds * 1000)
}

/// A machine whose model is loaded at second 1 and idle since then.
pub fn idle(residency: ResidencyRule) -> ModelMachine {
    let mut machine = ModelMachine::new(settings(residency));
    machine.step(at(0), MachineEvent::Load { command: CommandId(0), load: LoadCommand::now() });
    machine.step(at(1), MachineEvent::Loaded { generation: 1 });
    machine
}

pub fn arrive(lease: u64) -> MachineEvent {
    MachineEvent::Arrive { lease: LeaseId(lease), again: false, patience: None }
}

pub fn end(lease: u64) -> MachineEvent {
    MachineEvent::End { lease: LeaseId(lease) }
}

pub fn stop_runner(method: UnloadMethod) -> MachineEffect {
    MachineEffect::StopRunner { generation: 1, method }
}

#[test]
fn the_idle_clock_starts_when_the_last_request_ends() {
    let mut machine = idle(ResidencyRule::Idle(Some(secs(10))));
    assert_eq!(machine.deadline(), Some(at(11)));

    machine.step(at(5), arrive(1));
    assert_eq!((machine.deadline(), machine.idle_since()), (None, None));
    assert_eq!(machine.step(at(30), MachineEvent::Tick), []);

    machine.step(at(40), end(1));
    assert_eq!(machine.idle_since(), Some(at(40)));
    assert_eq!(machine.step(at(49), MachineEvent::Tick), []);
    assert_eq!(machine.step(at(50), MachineEvent::Tick), [stop_runner(UnloadMethod::App)]);

    let effects = machine.step(at(51), MachineEvent::Exited { generation: 1 });
    assert_eq!(
        effects,
        [MachineEffect::Count(MetricEvent::Unloaded { reason: UnloadReason::IdleTimeout, total: secs(1) })]
    );
    assert_eq!(machine.state(), ModelState::Unloaded);
}

#[test]
fn an_arrival_during_an_unload_waits_and_brings_the_model_back() {
    let mut machine = idle(ResidencyRule::Idle(None));
    let unload = UnloadCommand::now(UnloadReason::Manual);
    let effects = machine.step(at(2), MachineEvent::Unload { command: CommandId(1), unload });
    assert_eq!(
        effects,
        [MachineEffect::ReplyUnload { command: CommandId(1), result: Ok(()) }, stop_runner(UnloadMethod::App)]
    );
    assert_eq!(machine.step(at(2), arrive(1)), []);

    let effects = machine.step(at(3), MachineEvent::Exited { generation: 1 });
    assert!(effects.contains(&MachineEffect::StartRunner { generation: 2 }), "{effects:?}");

    let effects = machine.step(at(4), MachineEvent::Loaded { generation: 2 });
    assert!(effects.contains(&MachineEffect::Grant { lease: LeaseId(1), generation: 2 }), "{effects:?}");
    assert!(effects.contains(&MachineEffect::Count(MetricEvent::ColdStart(secs(2)))), "{effects:?}");
}

#[test]
fn a_request_that_outlasts_the_drain_is_displaced_not_dropped() {
    let mut machine = idle(ResidencyRule::Idle(None));
    machine.step(at(2), arrive(1));
    let unload = UnloadCommand { drain: Some(secs(5)), ..UnloadCommand::now(UnloadReason::HardPressure) };
    machine.step(at(3), MachineEvent::Unload { command: CommandId(1), unload });
    assert_eq!((machine.state(), machine.deadline()), (ModelState::Draining, Some(at(8))));

    let effects = machine.step(at(8), MachineEvent::Tick);
    assert_eq!(
        effects,
        [
            MachineEffect::Lost { lease: LeaseId(1), why: LeaseLossCause::Displaced },
            MachineEffect::KillRunner { generation: 1 }
        ]
    );

    machine.step(at(8), MachineEvent::Arrive { lease: LeaseId(2), again: true, patience: None });
    let effects = machine.step(at(9), MachineEvent::Exited { generation: 1 });
    assert!(effects.contains(&MachineEffect::StartRunner { generation: 2 }), "{effects:?}");
}

#[test]
fn a_hold_keeps_requests_waiting_and_ends_by_itself() {
    let mut machine = idle(ResidencyRule::Idle(None));
    let unload = UnloadCommand { hold: Some(secs(60)), ..UnloadCommand::now(UnloadReason::SoftPressure) };
    machine.step(at(2), MachineEvent::Unload { command: CommandId(1), unload });
    machine.step(at(3), MachineEvent::Exited { generation: 1 });
    assert_eq!(machine.step(at(4), arrive(1)), []);
    assert_eq!((machine.state(), machine.deadline()), (ModelState::WaitingForMemory, Some(at(63))));
    assert_eq!(machine.step(at(63), MachineEvent::Tick), [MachineEffect::StartRunner { generation: 2 }]);
}

#[test]
fn a_failed_load_backs_off_and_says_why() {
    let mut machine = ModelMachine::new(settings(ResidencyRule::Idle(None)));
    machine.step(at(0), arrive(1));
    let failed = |generation| MachineEvent::LoadFailed {
        generation,
        cause: "weights.bin is truncated".to_owned(),
        out_of_memory: false,
    };
    let refused = |lease, seconds| MachineEffect::Refuse {
        lease: LeaseId(lease),
        refusal: ModelRefusal::LoadFailed {
            cause: "weights.bin is truncated".to_owned(),
            retry_after: Duration::from_secs(seconds),
        },
    };
    assert!(machine.step(at(0), failed(1)).contains(&refused(1, 1)));

    machine.step(at(0), MachineEvent::Exited { generation: 1 });
    assert_eq!(machine.state(), ModelState::Failed);
    assert!(machine.step(at(0), arrive(2)).contains(&refused(2, 1)));

    let mut pauses = Vec::new();
    let mut now = 1;
    for generation in 2..10 {
        let lease = generation + 10;
        assert!(machine.step(at(now), arrive(lease)).contains(&MachineEffect::StartRunner { generation }));

        machine.step(at(now), failed(generation));
        machine.step(at(now), MachineEvent::Exited { generation });
        let (_, until) = machine.failure().unwrap();
        pauses.push(until.since(at(now)).as_secs());
        now = until.as_millis() / 1000;
    }
    assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);

    machine.step(at(now), arrive(30));
    machine.step(at(now), MachineEvent::Loaded { generation: 10 });
    assert_eq!((machine.state(), machine.failure()), (ModelState::Ready, None));

    machine.step(at(now), MachineEvent::FullyLoaded { generation: 10 });
    assert!(machine.step(at(now), failed(10)).contains(&MachineEffect::KillRunner { generation: 10 }));
    assert_eq!(machine.failure().unwrap().1, at(now + 1), "after a whole load the pause is short again");
}

#[test]
fn a_load_that_fails_under_its_first_work_is_a_failed_load() {
    let mut machine = ModelMachine::new(settings(ResidencyRule::Idle(None)));
    for lease in [1, 2] {
        machine.step(at(0), arrive(lease));
    }
    machine.step(at(1), MachineEvent::Loaded { generation: 1 });
    let cause = "decoder.onnx is broken".to_owned();
    let effects =
        machine.step(at(2), MachineEvent::LoadFailed { generation: 1, cause: cause.clone(), out_of_memory: false });
    let refusal = ModelRefusal::LoadFailed { cause: cause.clone(), retry_after: secs(1) };
    let loss = RunnerLoss { cause: LossCause::Exited, detail: cause };
    let expected = [
        MachineEffect::Count(MetricEvent::LoadFailed),
        MachineEffect::Refuse { lease: LeaseId(2), refusal: refusal.clone() },
        MachineEffect::Lost { lease: LeaseId(1), why: LeaseLossCause::Runner(loss) },
        MachineEffect::KillRunner { generation: 1 },
    ];
    assert_eq!(effects, expected);
    // A request that has lost its lease arrives again, and is refused with the cause.
    let again = machine.step(at(2), MachineEvent::Arrive { lease: LeaseId(3), again: true, patience: None });
    assert_eq!(again, [MachineEffect::Refuse { lease: LeaseId(3), refusal }]);

    machine.step(at(2), MachineEvent::Exited { generation: 1 });
    assert_eq!(machine.state(), ModelState::Failed);

    // The pause grows although each load had begun well.
    machine.step(at(3), arrive(4));
    machine.step(at(3), MachineEvent::Loaded { generation: 2 });
    machine.step(at(3), MachineEvent::LoadFailed { generation: 2, cause: "again".to_owned(), out_of_memory: false });
    assert_eq!(machine.failure(), Some(("again", at(5))));
}

#[test]
fn a_runner_killed_while_it_loads_is_replaced_once() {
    let mut machine = ModelMachine::new(settings(ResidencyRule::Idle(None)));
    machine.step(at(0), arrive(1));
    let loss = RunnerLoss { cause: LossCause::Killed, detail: "killed by signal 9".to_owned() };
    let lost = |generation| MachineEvent::RunnerLost { generation, loss: loss.clone() };
    assert_eq!(machine.step(at(1), lost(1)), [MachineEffect::Count(MetricEvent::RunnerLost(LossCause::Killed))]);
    assert_eq!(
        machine.step(at(1), MachineEvent::Exited { generation: 1 }),
        [MachineEffect::StartRunner { generation: 2 }]
    );

    let effects = machine.step(at(2), lost(2));
    assert!(effects.iter().any(|effect| matches!(effect, MachineEffect::Refuse { .. })), "{effects:?}");

    machine.step(at(2), MachineEvent::Exited { generation: 2 });
    assert_eq!(machine.state(), ModelState::Failed);
}

#[test]
fn a_resident_model_loads_at_start_and_after_a_loss_and_does_not_spin() {
    let mut machine = ModelMachine::new(settings(ResidencyRule::Resident));
    assert_eq!(machine.step(at(0), MachineEvent::Tick), [MachineEffect::StartRunner { generation: 1 }]);

    let loss = RunnerLoss { cause: LossCause::Exited, detail: "exited".to_owned() };
    let mut loads = 0;
    for generation in 1..6 {
        let now = machine.deadline().unwrap_or(at(0)).max(at(0));
        loads += machine.step(now, MachineEvent::Tick).len();
        machine.step(now, MachineEvent::Loaded { generation });
        machine.step(now, MachineEvent::RunnerLost { generation, loss: loss.clone() });
        loads += machine.step(now, MachineEvent::Exited { generation }).len();
    }
    assert_eq!(loads, 4);
    assert_eq!(machine.deadline(), Some(at(1 + 2 + 4 + 8)), "1, 2, 4 s were waited for, 8 s are due");
}

#[test]
fn an_on_demand_model_leaves_when_no_request_waits() {
    let mut machine = ModelMachine::new(settings(ResidencyRule::OnDemand));
    machine.step(at(0), arrive(1));
    machine.step(at(0), arrive(2));
    machine.step(at(1), MachineEvent::Loaded { generation: 1 });
    assert_eq!(machine.step(at(2), end(1)), [MachineEffect::Grant { lease: LeaseId(2), generation: 1 }]);
    assert_eq!(machine.step(at(3), end(2)), [stop_runner(UnloadMethod::App)]);
}

#[test]
fn shutdown_serves_what_has_arrived_and_takes_nothing_new() {
    let mut machine = ModelMachine::new(settings(ResidencyRule::Resident));
    machine.step(at(0), arrive(1));
    machine.step(at(0), arrive(2));
    machine.step(at(1), MachineEvent::Loaded { generation: 1 });
    assert_eq!(machine.step(at(2), MachineEvent::Shutdown { deadline: at(10) }), []);

    let refused = MachineEffect::Refuse { lease: LeaseId(3), refusal: ModelRefusal::ShuttingDown };
    assert!(machine.step(at(3), arrive(3)).contains(&refused));

    machine.step(at(4), end(1));
    assert_eq!(machine.step(at(5), end(2)), [stop_runner(UnloadMethod::App)]);

    let effects = machine.step(at(6), MachineEvent::Exited { generation: 1 });
    assert_eq!(effects.last(), Some(&MachineEffect::Stopped));
}

/// A measurement: 8 bytes are needed, this many are available.
fn memory(available: u64) -> MachineEvent {
    MachineEvent::Memory { memory: short(available) }
}

fn short(available: u64) -> MemoryAvailability {
    MemoryAvailability { available_bytes: Some(available), demand_bytes: 8 }
}

fn accounted() -> ModelMachine {
    ModelMachine::new(LifecycleSettings { accounted: true, ..settings(ResidencyRule::Idle(None)) })
}

#[test]
fn a_model_asks_for_room_and_waits_until_there_is_some() {
    let mut machine = accounted();
    assert_eq!(machine.step(at(0), arrive(1)), [MachineEffect::Measure]);
    assert_eq!((machine.state(), machine.deadline()), (ModelState::Unloaded, None));
    assert_eq!(machine.step(at(0), memory(7)), []);
    assert_eq!((machine.state(), machine.shortage()), (ModelState::WaitingForMemory, Some(short(7))));
    assert_eq!(machine.step(at(5), memory(6)), []);
    assert_eq!(machine.shortage(), Some(short(6)), "the newest measurement counts");
    assert_eq!(machine.step(at(6), memory(8)), [MachineEffect::StartRunner { generation: 1 }]);
    assert_eq!((machine.state(), machine.shortage()), (ModelState::Loading, None));
}

#[test]
fn a_device_that_cannot_be_measured_forbids_no_load() {
    let mut machine = accounted();
    machine.step(at(0), arrive(1));
    let unknown = MemoryAvailability { available_bytes: None, demand_bytes: 8 };
    assert_eq!(
        machine.step(at(0), MachineEvent::Memory { memory: unknown }),
        [MachineEffect::StartRunner { generation: 1 }]
    );
}

#[test]
fn the_demand_of_a_waiting_model_ends_with_its_last_request() {
    let mut machine = accounted();
    machine.step(at(0), arrive(1));
    machine.step(at(0), memory(1));
    machine.step(at(1), end(1));
    assert_eq!((machine.state(), machine.shortage()), (ModelState::Unloaded, None));
    assert_eq!(machine.step(at(2), memory(8)), [], "no request wants the model any more");

    let effects = machine.step(at(3), arrive(2));
    assert_eq!(
        effects,
        [MachineEffect::Count(MetricEvent::Interarrival(secs(3))), MachineEffect::Measure],
        "measured again"
    );
}

#[test]
fn the_longest_wait_holds_while_the_model_is_away_and_not_behind_one_that_is_there() {
    let with_limit = |lease| MachineEvent::Arrive { lease: LeaseId(lease), again: false, patience: Some(secs(60)) };
    let refused = |lease, waited, why, retry| MachineEffect::Refuse {
        lease: LeaseId(lease),
        refusal: ModelRefusal::ColdHold { waited: secs(waited), why, retry_after: secs(retry) },
    };
    let mut machine = accounted();
    machine.step(at(0), with_limit(1));
    machine.step(at(0), arrive(2));
    machine.step(at(0), memory(1));
    assert_eq!(machine.deadline(), Some(at(60)));
    assert_eq!(machine.step(at(60), MachineEvent::Tick), [refused(1, 60, ColdReason::NoRoom(short(1)), 15)]);
    assert_eq!((machine.queued(), machine.deadline()), (1, None), "the other waits as long as it takes");

    let mut machine = idle(ResidencyRule::Idle(None));
    machine.step(at(2), arrive(1));
    machine.step(at(2), with_limit(2));
    assert_eq!(machine.step(at(100), MachineEvent::Tick), [], "a queue that moves");

    let unload = UnloadCommand { hold: Some(secs(600)), ..UnloadCommand::now(UnloadReason::HardPressure) };
    let effects = machine.step(at(100), MachineEvent::Unload { command: CommandId(1), unload });
    assert!(effects.contains(&refused(2, 98, ColdReason::Loading, 15)), "{effects:?}");

    machine.step(at(101), end(1));
    machine.step(at(102), MachineEvent::Exited { generation: 1 });
    machine.step(at(103), with_limit(3));
    let effects = machine.step(at(163), MachineEvent::Tick);
    assert_eq!(effects, [refused(3, 60, ColdReason::Held, 120)], "never more than clients honour");
}

#[test]
fn an_unload_is_complete_when_the_memory_is_back() {
    let mut machine = accounted();
    machine.step(at(0), MachineEvent::Load { command: CommandId(0), load: LoadCommand::now() });
    machine.step(at(0), memory(8));
    machine.step(at(1), MachineEvent::Loaded { generation: 1 });
    let unload = UnloadCommand { hold: Some(secs(60)), ..UnloadCommand::now(UnloadReason::SoftPressure) };
    machine.step(at(2), MachineEvent::Unload { command: CommandId(1), unload });
    let counted = MachineEffect::Count(MetricEvent::Unloaded { reason: UnloadReason::SoftPressure, total: secs(1) });
    let effects = machine.step(at(3), MachineEvent::Exited { generation: 1 });
    assert_eq!(effects, [counted, MachineEffect::Reclaim { generation: 1 }]);
    assert_eq!(machine.step(at(4), arrive(1)), [], "a load now would blur which memory comes back");
    assert_eq!(machine.state(), ModelState::Unloading);

    let back = ReclaimReport {
        vram_before_bytes: 9,
        reclaimed_bytes: 7,
        residual_bytes: 2,
        taken_bytes: 0,
        verdict: ReclaimVerdict::Residual,
    };
    let effects = machine.step(at(8), MachineEvent::Reclaimed { generation: 1, memory: Some(back) });
    let outcome = UnloadOutcome::Unloaded;
    let report = UnloadReport {
        outcome,
        generation: 1,
        drain: secs(0),
        exit: secs(1),
        reclaim: secs(5),
        memory: Some(back),
        process: Some(ProcessOutcome::Ended),
    };
    let expected = [
        MachineEffect::Count(MetricEvent::Reclaimed { memory: back, took: secs(5) }),
        MachineEffect::Unloaded { command: CommandId(1), report },
    ];
    assert_eq!(effects, expected);
    assert_eq!(
        (machine.state(), machine.deadline()),
        (ModelState::WaitingForMemory, Some(at(68))),
        "then the hold begins"
    );
}

#[test]
fn a_load_that_runs_out_of_memory_is_tried_once_more() {
    let mut machine = accounted();
    machine.step(at(0), arrive(1));
    machine.step(at(0), memory(8));
    let full = |generation| MachineEvent::LoadFailed { generation, cause: "full".to_owned(), out_of_memory: true };
    let effects = machine.step(at(1), full(1));
    assert_eq!(effects, [MachineEffect::Count(MetricEvent::OutOfMemory), MachineEffect::KillRunner { generation: 1 }]);
    assert_eq!(
        machine.step(at(2), MachineEvent::Exited { generation: 1 }),
        [MachineEffect::Measure],
        "measured with the need that is known now"
    );
    assert_eq!(machine.step(at(2), memory(8)), [MachineEffect::StartRunner { generation: 2 }]);

    let effects = machine.step(at(3), full(2));
    assert!(effects.iter().any(|effect| matches!(effect, MachineEffect::Refuse { .. })), "{effects:?}");

    machine.step(at(3), MachineEvent::Exited { generation: 2 });
    assert_eq!(machine.state(), ModelState::Failed);
}

#[test]
fn work_that_runs_out_of_memory_unloads_the_model_when_the_others_are_done() {
    let mut machine = idle(ResidencyRule::Idle(None));
    machine.step(at(2), arrive(1));
    let effects = machine.step(at(3), MachineEvent::OutOfMemory { generation: 1 });
    assert_eq!(
        (effects, machine.state()),
        (vec![MachineEffect::Count(MetricEvent::OutOfMemory)], ModelState::Draining)
    );
    assert_eq!(machine.step(at(3), MachineEvent::OutOfMemory { generation: 1 }), [], "counted once");
    assert_eq!(machine.step(at(3), end(1)), [stop_runner(UnloadMethod::App)]);

    machine.step(at(3), MachineEvent::Arrive { lease: LeaseId(2), again: true, patience: None });
    let effects = machine.step(at(4), MachineEvent::Exited { generation: 1 });
    let counted = MachineEffect::Count(MetricEvent::Unloaded { reason: UnloadReason::OutOfMemory, total: secs(1) });
    assert_eq!(effects, [counted, MachineEffect::StartRunner { generation: 2 }]);
}

#[test]
fn a_model_that_can_never_fit_is_a_failed_load() {
    let mut machine = accounted();
    machine.step(at(0), arrive(1));
    let effects = machine.step(at(0), MachineEvent::NeverFits { cause: "larger than the device".to_owned() });
    let refusal = ModelRefusal::LoadFailed { cause: "larger than the device".to_owned(), retry_after: secs(1) };
    assert!(effects.contains(&MachineEffect::Refuse { lease: LeaseId(1), refusal }), "{effects:?}");
    assert_eq!(machine.state(), ModelState::Failed);
}

#[test]
fn a_server_that_ends_waits_for_no_memory() {
    let mut machine = accounted();
    machine.step(at(0), MachineEvent::Load { command: CommandId(0), load: LoadCommand::now() });
    machine.step(at(0), memory(8));
    machine.step(at(1), MachineEvent::Loaded { generation: 1 });
    machine
        .step(at(2), MachineEvent::Unload { command: CommandId(1), unload: UnloadCommand::now(UnloadReason::Manual) });
    machine.step(at(3), MachineEvent::Exited { generation: 1 });
    let effects = machine.step(at(4), MachineEvent::Shutdown { deadline: at(9) });
    let outcome = UnloadOutcome::Unloaded;
    let report = UnloadReport {
        outcome,
        generation: 1,
        drain: secs(0),
        exit: secs(1),
        reclaim: secs(1),
        memory: None,
        process: Some(ProcessOutcome::Ended),
    };
    assert_eq!(effects, [MachineEffect::Unloaded { command: CommandId(1), report }, MachineEffect::Stopped]);
}

/// A machine whose requests cannot be started again, with a loaded model and one request at work since second 2.
pub fn busy_and_not_repeatable() -> ModelMachine {
    let settings =
        LifecycleSettings { drain_end: DrainEnd::GiveUp, concurrency: two(), ..settings(ResidencyRule::Idle(None)) };
    let mut machine = ModelMachine::new(settings);
    machine.step(at(0), MachineEvent::Load { command: CommandId(0), load: LoadCommand::now() });
    machine.step(at(1), MachineEvent::Loaded { generation: 1 });
    machine.step(at(2), arrive(1));
    machine
}

fn two() -> NonZeroUsize {
    NonZeroUsize::MIN.saturating_add(1)
}

#[test]
fn an_unload_is_given_up_where_a_request_outlasts_it_and_cannot_be_repeated() {
    let mut machine = busy_and_not_repeatable();
    let unload =
        UnloadCommand { drain: Some(secs(5)), hold: Some(secs(60)), ..UnloadCommand::now(UnloadReason::Manual) };
    machine.step(at(3), MachineEvent::Unload { command: CommandId(1), unload });
    assert_eq!(machine.step(at(4), arrive(2)), [MachineEffect::Count(MetricEvent::Interarrival(secs(2)))]);
    assert_eq!((machine.state(), machine.queued()), (ModelState::Draining, 1));

    let effects = machine.step(at(8), MachineEvent::Tick);
    assert_eq!(
        effects,
        [
            MachineEffect::Count(MetricEvent::UnloadRefused(UnloadRefusal::Busy)),
            MachineEffect::UnloadGivenUp { command: CommandId(1), refusal: UnloadRefusal::Busy },
            MachineEffect::Grant { lease: LeaseId(2), generation: 1 },
        ]
    );
    assert_eq!((machine.state(), machine.inflight(), machine.hold_until()), (ModelState::Ready, 2, None));
}

#[test]
fn a_runner_that_refuses_to_end_is_asked_again_until_the_drain_is_over() {
    let mut machine = busy_and_not_repeatable();
    machine.step(at(2), end(1));
    let unload = UnloadCommand { drain: Some(secs(1)), ..UnloadCommand::now(UnloadReason::Manual) };
    let stop = stop_runner(UnloadMethod::App);
    assert!(machine.step(at(3), MachineEvent::Unload { command: CommandId(1), unload }).contains(&stop));

    machine.step(at(3), MachineEvent::StopRefused { generation: 1 });
    assert_eq!((machine.state(), machine.deadline()), (ModelState::Draining, Some(MachineTime::from_millis(3250))));
    assert_eq!(machine.step(MachineTime::from_millis(3250), MachineEvent::Tick), [stop]);

    machine.step(MachineTime::from_millis(3900), MachineEvent::StopRefused { generation: 1 });
    let effects = machine.step(at(4), MachineEvent::Tick);
    assert!(effects.contains(&MachineEffect::UnloadGivenUp { command: CommandId(1), refusal: UnloadRefusal::Busy }));
    assert_eq!((machine.state(), machine.idle_since()), (ModelState::Ready, Some(at(4))), "it was at work until now");
}

#[test]
fn a_model_that_appears_is_a_new_generation_and_serves_the_requests_that_wait() {
    let mut machine = idle(ResidencyRule::Idle(None));
    let unload = UnloadCommand { hold: Some(secs(60)), ..UnloadCommand::now(UnloadReason::HardPressure) };
    machine.step(at(2), MachineEvent::Unload { command: CommandId(1), unload });
    machine.step(at(3), MachineEvent::Exited { generation: 1 });
    machine.step(at(4), arrive(1));
    assert_eq!(machine.state(), ModelState::WaitingForMemory);

    let effects = machine.step(at(5), MachineEvent::Appeared);
    assert_eq!(effects[0], MachineEffect::AdoptRunner { generation: 2 });
    assert!(effects.contains(&MachineEffect::Grant { lease: LeaseId(1), generation: 2 }), "{effects:?}");
    assert_eq!(machine.step(at(6), MachineEvent::Appeared), [], "it is known now");

    machine.step(at(7), end(1));
    machine.step(at(8), MachineEvent::LeftByItself { generation: 2 });
    let effects = machine.step(at(8), MachineEvent::Exited { generation: 2 });
    let unloaded = MetricEvent::Unloaded { reason: UnloadReason::Other, total: Duration::ZERO };
    assert_eq!(effects, [MachineEffect::Count(unloaded)]);
    assert_eq!(machine.hold_until(), Some(at(63)), "the hold of the command goes on");
}

#[test]
fn work_that_is_seen_late_counts_and_loads_nothing() {
    let mut machine = idle(ResidencyRule::Idle(Some(secs(10))));
    let occupy = |lease| MachineEvent::Occupy { lease: LeaseId(lease) };
    assert_eq!(machine.step(at(5), occupy(1)), [MachineEffect::Grant { lease: LeaseId(1), generation: 1 }]);
    assert_eq!((machine.inflight(), machine.deadline()), (1, None));

    machine.step(at(50), end(1));
    machine.step(at(60), MachineEvent::Tick);
    machine.step(at(61), MachineEvent::Exited { generation: 1 });
    let refused = MachineEffect::Refuse { lease: LeaseId(2), refusal: ModelRefusal::NotLoaded };
    assert_eq!(machine.step(at(62), occupy(2)), [refused]);
    assert_eq!(machine.state(), ModelState::Unloaded);
}
