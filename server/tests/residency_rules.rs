//! The rules of a model's life one by one, each with the exact effects.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::time::Duration;

use hush_contract::admin::UnloadOutcome;
use hush_contract::{ModelState, UnloadReason};
use hush_server::residency::machine::{
    Cold, CommandId, Count, DeviceMemory, Effect, Event, LeaseId, Load, Loss, LossCause, LostWhy, Machine, Moment,
    Policy, Reclaimed, Refusal, Residency, Unload, UnloadReport, Verdict,
};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn policy(residency: Residency) -> Policy {
    Policy { residency, ..Policy::default() }
}

fn at(seconds: u64) -> Moment {
    Moment::from_millis(seconds * 1000)
}

/// A machine whose model is loaded at second 1 and idle since then.
fn idle(residency: Residency) -> Machine {
    let mut machine = Machine::new(policy(residency));
    machine.step(at(0), Event::Load { command: CommandId(0), load: Load::now() });
    machine.step(at(1), Event::Loaded { generation: 1 });
    machine
}

fn arrive(lease: u64) -> Event {
    Event::Arrive { lease: LeaseId(lease), again: false, patience: None }
}

fn end(lease: u64) -> Event {
    Event::End { lease: LeaseId(lease) }
}

#[test]
fn the_idle_clock_starts_when_the_last_request_ends() {
    let mut machine = idle(Residency::Idle(Some(secs(10))));
    assert_eq!(machine.deadline(), Some(at(11)));
    machine.step(at(5), arrive(1));
    assert_eq!((machine.deadline(), machine.idle_since()), (None, None));
    assert_eq!(machine.step(at(30), Event::Tick), []);
    machine.step(at(40), end(1));
    assert_eq!(machine.idle_since(), Some(at(40)));
    assert_eq!(machine.step(at(49), Event::Tick), []);
    assert_eq!(machine.step(at(50), Event::Tick), [Effect::StopRunner { generation: 1 }]);
    let effects = machine.step(at(51), Event::Exited { generation: 1 });
    assert_eq!(effects, [Effect::Count(Count::Unloaded { reason: UnloadReason::IdleTimeout, total: secs(1) })]);
    assert_eq!(machine.state(), ModelState::Unloaded);
}

#[test]
fn an_arrival_during_an_unload_waits_and_brings_the_model_back() {
    let mut machine = idle(Residency::Idle(None));
    let unload = Unload::now(UnloadReason::Manual);
    let effects = machine.step(at(2), Event::Unload { command: CommandId(1), unload });
    assert_eq!(
        effects,
        [Effect::ReplyUnload { command: CommandId(1), result: Ok(()) }, Effect::StopRunner { generation: 1 }]
    );
    assert_eq!(machine.step(at(2), arrive(1)), []);
    let effects = machine.step(at(3), Event::Exited { generation: 1 });
    assert!(effects.contains(&Effect::StartRunner { generation: 2 }), "{effects:?}");
    let effects = machine.step(at(4), Event::Loaded { generation: 2 });
    assert!(effects.contains(&Effect::Grant { lease: LeaseId(1), generation: 2 }), "{effects:?}");
    assert!(effects.contains(&Effect::Count(Count::ColdStart(secs(2)))), "{effects:?}");
}

#[test]
fn what_outlasts_the_drain_is_displaced_not_dropped() {
    let mut machine = idle(Residency::Idle(None));
    machine.step(at(2), arrive(1));
    let unload = Unload { drain: Some(secs(5)), ..Unload::now(UnloadReason::HardPressure) };
    machine.step(at(3), Event::Unload { command: CommandId(1), unload });
    assert_eq!((machine.state(), machine.deadline()), (ModelState::Draining, Some(at(8))));
    let effects = machine.step(at(8), Event::Tick);
    assert_eq!(
        effects,
        [Effect::Lost { lease: LeaseId(1), why: LostWhy::Displaced }, Effect::KillRunner { generation: 1 }]
    );
    machine.step(at(8), Event::Arrive { lease: LeaseId(2), again: true, patience: None });
    let effects = machine.step(at(9), Event::Exited { generation: 1 });
    assert!(effects.contains(&Effect::StartRunner { generation: 2 }), "{effects:?}");
}

#[test]
fn a_hold_keeps_requests_waiting_and_ends_by_itself() {
    let mut machine = idle(Residency::Idle(None));
    let unload = Unload { hold: Some(secs(60)), ..Unload::now(UnloadReason::SoftPressure) };
    machine.step(at(2), Event::Unload { command: CommandId(1), unload });
    machine.step(at(3), Event::Exited { generation: 1 });
    assert_eq!(machine.step(at(4), arrive(1)), []);
    assert_eq!((machine.state(), machine.deadline()), (ModelState::WaitingForMemory, Some(at(63))));
    assert_eq!(machine.step(at(63), Event::Tick), [Effect::StartRunner { generation: 2 }]);
}

#[test]
fn a_failed_load_backs_off_and_says_why() {
    let mut machine = Machine::new(policy(Residency::Idle(None)));
    machine.step(at(0), arrive(1));
    let failed = |generation| Event::LoadFailed {
        generation,
        cause: "weights.bin is truncated".to_owned(),
        out_of_memory: false,
    };
    let refused = |lease, seconds| Effect::Refuse {
        lease: LeaseId(lease),
        refusal: Refusal::LoadFailed {
            cause: "weights.bin is truncated".to_owned(),
            retry_after: Duration::from_secs(seconds),
        },
    };
    assert!(machine.step(at(0), failed(1)).contains(&refused(1, 1)));
    machine.step(at(0), Event::Exited { generation: 1 });
    assert_eq!(machine.state(), ModelState::Failed);
    assert!(machine.step(at(0), arrive(2)).contains(&refused(2, 1)));
    let mut pauses = Vec::new();
    let mut now = 1;
    for generation in 2..10 {
        let lease = generation + 10;
        assert!(machine.step(at(now), arrive(lease)).contains(&Effect::StartRunner { generation }));
        machine.step(at(now), failed(generation));
        machine.step(at(now), Event::Exited { generation });
        let (_, until) = machine.failure().unwrap();
        pauses.push(until.since(at(now)).as_secs());
        now = until.as_millis() / 1000;
    }
    assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
    machine.step(at(now), arrive(30));
    machine.step(at(now), Event::Loaded { generation: 10 });
    assert_eq!((machine.state(), machine.failure()), (ModelState::Ready, None));
    machine.step(at(now), Event::Settled { generation: 10 });
    assert!(machine.step(at(now), failed(10)).contains(&Effect::KillRunner { generation: 10 }));
    assert_eq!(machine.failure().unwrap().1, at(now + 1), "after a whole load the pause is short again");
}

#[test]
fn a_load_that_fails_under_its_first_work_is_a_failed_load() {
    let mut machine = Machine::new(policy(Residency::Idle(None)));
    for lease in [1, 2] {
        machine.step(at(0), arrive(lease));
    }
    machine.step(at(1), Event::Loaded { generation: 1 });
    let cause = "decoder.onnx is broken".to_owned();
    let effects = machine.step(at(2), Event::LoadFailed { generation: 1, cause: cause.clone(), out_of_memory: false });
    let refusal = Refusal::LoadFailed { cause: cause.clone(), retry_after: secs(1) };
    let loss = Loss { cause: LossCause::Exited, detail: cause };
    let expected = [
        Effect::Count(Count::LoadFailed),
        Effect::Refuse { lease: LeaseId(2), refusal: refusal.clone() },
        Effect::Lost { lease: LeaseId(1), why: LostWhy::Runner(loss) },
        Effect::KillRunner { generation: 1 },
    ];
    assert_eq!(effects, expected);
    // Whoever lost its lease asks again, and is told why.
    let again = machine.step(at(2), Event::Arrive { lease: LeaseId(3), again: true, patience: None });
    assert_eq!(again, [Effect::Refuse { lease: LeaseId(3), refusal }]);
    machine.step(at(2), Event::Exited { generation: 1 });
    assert_eq!(machine.state(), ModelState::Failed);
    // The pause grows although each load had begun well.
    machine.step(at(3), arrive(4));
    machine.step(at(3), Event::Loaded { generation: 2 });
    machine.step(at(3), Event::LoadFailed { generation: 2, cause: "again".to_owned(), out_of_memory: false });
    assert_eq!(machine.failure(), Some(("again", at(5))));
}

#[test]
fn a_runner_killed_while_it_loads_is_replaced_once() {
    let mut machine = Machine::new(policy(Residency::Idle(None)));
    machine.step(at(0), arrive(1));
    let loss = Loss { cause: LossCause::Killed, detail: "killed by signal 9".to_owned() };
    let lost = |generation| Event::RunnerLost { generation, loss: loss.clone() };
    assert_eq!(machine.step(at(1), lost(1)), [Effect::Count(Count::RunnerLost(LossCause::Killed))]);
    assert_eq!(machine.step(at(1), Event::Exited { generation: 1 }), [Effect::StartRunner { generation: 2 }]);
    let effects = machine.step(at(2), lost(2));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Refuse { .. })), "{effects:?}");
    machine.step(at(2), Event::Exited { generation: 2 });
    assert_eq!(machine.state(), ModelState::Failed);
}

#[test]
fn a_resident_model_loads_at_start_and_after_a_loss_and_does_not_spin() {
    let mut machine = Machine::new(policy(Residency::Resident));
    assert_eq!(machine.step(at(0), Event::Tick), [Effect::StartRunner { generation: 1 }]);
    let loss = Loss { cause: LossCause::Exited, detail: "exited".to_owned() };
    let mut loads = 0;
    for generation in 1..6 {
        let now = machine.deadline().unwrap_or(at(0)).max(at(0));
        loads += machine.step(now, Event::Tick).len();
        machine.step(now, Event::Loaded { generation });
        machine.step(now, Event::RunnerLost { generation, loss: loss.clone() });
        loads += machine.step(now, Event::Exited { generation }).len();
    }
    assert_eq!(loads, 4);
    assert_eq!(machine.deadline(), Some(at(1 + 2 + 4 + 8)), "1, 2, 4 s were waited for, 8 s are due");
}

#[test]
fn on_demand_leaves_when_nobody_waits() {
    let mut machine = Machine::new(policy(Residency::OnDemand));
    machine.step(at(0), arrive(1));
    machine.step(at(0), arrive(2));
    machine.step(at(1), Event::Loaded { generation: 1 });
    assert_eq!(machine.step(at(2), end(1)), [Effect::Grant { lease: LeaseId(2), generation: 1 }]);
    assert_eq!(machine.step(at(3), end(2)), [Effect::StopRunner { generation: 1 }]);
}

#[test]
fn shutdown_serves_what_has_arrived_and_takes_nothing_new() {
    let mut machine = Machine::new(policy(Residency::Resident));
    machine.step(at(0), arrive(1));
    machine.step(at(0), arrive(2));
    machine.step(at(1), Event::Loaded { generation: 1 });
    assert_eq!(machine.step(at(2), Event::Shutdown { deadline: at(10) }), []);
    let refused = Effect::Refuse { lease: LeaseId(3), refusal: Refusal::ShuttingDown };
    assert!(machine.step(at(3), arrive(3)).contains(&refused));
    machine.step(at(4), end(1));
    assert_eq!(machine.step(at(5), end(2)), [Effect::StopRunner { generation: 1 }]);
    let effects = machine.step(at(6), Event::Exited { generation: 1 });
    assert_eq!(effects.last(), Some(&Effect::Stopped));
}

/// 8 bytes are needed, this many are there.
fn memory(available: u64) -> Event {
    Event::Memory { memory: short(available) }
}

fn short(available: u64) -> DeviceMemory {
    DeviceMemory { available_bytes: Some(available), demand_bytes: 8 }
}

fn accounted() -> Machine {
    Machine::new(Policy { accounted: true, ..policy(Residency::Idle(None)) })
}

#[test]
fn a_model_asks_for_room_and_waits_until_there_is_some() {
    let mut machine = accounted();
    assert_eq!(machine.step(at(0), arrive(1)), [Effect::Measure]);
    assert_eq!((machine.state(), machine.deadline()), (ModelState::Unloaded, None));
    assert_eq!(machine.step(at(0), memory(7)), []);
    assert_eq!((machine.state(), machine.shortage()), (ModelState::WaitingForMemory, Some(short(7))));
    assert_eq!(machine.step(at(5), memory(6)), []);
    assert_eq!(machine.shortage(), Some(short(6)), "the newest measurement counts");
    assert_eq!(machine.step(at(6), memory(8)), [Effect::StartRunner { generation: 1 }]);
    assert_eq!((machine.state(), machine.shortage()), (ModelState::Loading, None));
}

#[test]
fn what_cannot_be_measured_forbids_nothing() {
    let mut machine = accounted();
    machine.step(at(0), arrive(1));
    let unknown = DeviceMemory { available_bytes: None, demand_bytes: 8 };
    assert_eq!(machine.step(at(0), Event::Memory { memory: unknown }), [Effect::StartRunner { generation: 1 }]);
}

#[test]
fn whoever_leaves_a_waiting_model_takes_its_demand_along() {
    let mut machine = accounted();
    machine.step(at(0), arrive(1));
    machine.step(at(0), memory(1));
    machine.step(at(1), end(1));
    assert_eq!((machine.state(), machine.shortage()), (ModelState::Unloaded, None));
    assert_eq!(machine.step(at(2), memory(8)), [], "nobody wants it any more");
    let effects = machine.step(at(3), arrive(2));
    assert_eq!(effects, [Effect::Count(Count::Interarrival(secs(3))), Effect::Measure], "measured anew");
}

#[test]
fn patience_ends_while_the_model_is_away_and_not_behind_one_that_is_there() {
    let impatient = |lease| Event::Arrive { lease: LeaseId(lease), again: false, patience: Some(secs(60)) };
    let refused = |lease, waited, why, retry| Effect::Refuse {
        lease: LeaseId(lease),
        refusal: Refusal::ColdHold { waited: secs(waited), why, retry_after: secs(retry) },
    };
    let mut machine = accounted();
    machine.step(at(0), impatient(1));
    machine.step(at(0), arrive(2));
    machine.step(at(0), memory(1));
    assert_eq!(machine.deadline(), Some(at(60)));
    assert_eq!(machine.step(at(60), Event::Tick), [refused(1, 60, Cold::NoRoom(short(1)), 15)]);
    assert_eq!((machine.queued(), machine.deadline()), (1, None), "the other waits as long as it takes");

    let mut machine = idle(Residency::Idle(None));
    machine.step(at(2), arrive(1));
    machine.step(at(2), impatient(2));
    assert_eq!(machine.step(at(100), Event::Tick), [], "a queue that moves");
    let unload = Unload { hold: Some(secs(600)), ..Unload::now(UnloadReason::HardPressure) };
    let effects = machine.step(at(100), Event::Unload { command: CommandId(1), unload });
    assert!(effects.contains(&refused(2, 98, Cold::Loading, 15)), "{effects:?}");
    machine.step(at(101), end(1));
    machine.step(at(102), Event::Exited { generation: 1 });
    machine.step(at(103), impatient(3));
    let effects = machine.step(at(163), Event::Tick);
    assert_eq!(effects, [refused(3, 60, Cold::Held, 120)], "never more than clients honour");
}

#[test]
fn an_unload_is_complete_when_the_memory_is_back() {
    let mut machine = accounted();
    machine.step(at(0), Event::Load { command: CommandId(0), load: Load::now() });
    machine.step(at(0), memory(8));
    machine.step(at(1), Event::Loaded { generation: 1 });
    let unload = Unload { hold: Some(secs(60)), ..Unload::now(UnloadReason::SoftPressure) };
    machine.step(at(2), Event::Unload { command: CommandId(1), unload });
    let counted = Effect::Count(Count::Unloaded { reason: UnloadReason::SoftPressure, total: secs(1) });
    let effects = machine.step(at(3), Event::Exited { generation: 1 });
    assert_eq!(effects, [counted, Effect::Reclaim { generation: 1 }]);
    assert_eq!(machine.step(at(4), arrive(1)), [], "it would not know whose memory comes and goes");
    assert_eq!(machine.state(), ModelState::Unloading);
    let back = Reclaimed {
        vram_before_bytes: 9,
        reclaimed_bytes: 7,
        residual_bytes: 2,
        taken_bytes: 0,
        verdict: Verdict::Residual,
    };
    let effects = machine.step(at(8), Event::Reclaimed { generation: 1, memory: Some(back) });
    let outcome = UnloadOutcome::Unloaded;
    let report =
        UnloadReport { outcome, generation: 1, drain: secs(0), exit: secs(1), settle: secs(5), memory: Some(back) };
    let expected = [
        Effect::Count(Count::Reclaimed { memory: back, took: secs(5) }),
        Effect::Unloaded { command: CommandId(1), report },
    ];
    assert_eq!(effects, expected);
    assert_eq!((machine.state(), machine.deadline()), (ModelState::WaitingForMemory, Some(at(68))), "then it is held");
}

#[test]
fn a_load_that_runs_out_of_memory_is_tried_once_more() {
    let mut machine = accounted();
    machine.step(at(0), arrive(1));
    machine.step(at(0), memory(8));
    let full = |generation| Event::LoadFailed { generation, cause: "full".to_owned(), out_of_memory: true };
    let effects = machine.step(at(1), full(1));
    assert_eq!(effects, [Effect::Count(Count::OutOfMemory), Effect::KillRunner { generation: 1 }]);
    assert_eq!(machine.step(at(2), Event::Exited { generation: 1 }), [Effect::Measure], "with what it needs now");
    assert_eq!(machine.step(at(2), memory(8)), [Effect::StartRunner { generation: 2 }]);
    let effects = machine.step(at(3), full(2));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Refuse { .. })), "{effects:?}");
    machine.step(at(3), Event::Exited { generation: 2 });
    assert_eq!(machine.state(), ModelState::Failed);
}

#[test]
fn work_that_runs_out_of_memory_unloads_the_model_when_the_others_are_done() {
    let mut machine = idle(Residency::Idle(None));
    machine.step(at(2), arrive(1));
    let effects = machine.step(at(3), Event::OutOfMemory { generation: 1 });
    assert_eq!((effects, machine.state()), (vec![Effect::Count(Count::OutOfMemory)], ModelState::Draining));
    assert_eq!(machine.step(at(3), Event::OutOfMemory { generation: 1 }), [], "once");
    assert_eq!(machine.step(at(3), end(1)), [Effect::StopRunner { generation: 1 }]);
    machine.step(at(3), Event::Arrive { lease: LeaseId(2), again: true, patience: None });
    let effects = machine.step(at(4), Event::Exited { generation: 1 });
    let counted = Effect::Count(Count::Unloaded { reason: UnloadReason::OutOfMemory, total: secs(1) });
    assert_eq!(effects, [counted, Effect::StartRunner { generation: 2 }]);
}

#[test]
fn a_model_that_can_never_fit_is_a_failed_load() {
    let mut machine = accounted();
    machine.step(at(0), arrive(1));
    let effects = machine.step(at(0), Event::NeverFits { cause: "larger than the device".to_owned() });
    let refusal = Refusal::LoadFailed { cause: "larger than the device".to_owned(), retry_after: secs(1) };
    assert!(effects.contains(&Effect::Refuse { lease: LeaseId(1), refusal }), "{effects:?}");
    assert_eq!(machine.state(), ModelState::Failed);
}

#[test]
fn a_server_that_ends_waits_for_no_memory() {
    let mut machine = accounted();
    machine.step(at(0), Event::Load { command: CommandId(0), load: Load::now() });
    machine.step(at(0), memory(8));
    machine.step(at(1), Event::Loaded { generation: 1 });
    machine.step(at(2), Event::Unload { command: CommandId(1), unload: Unload::now(UnloadReason::Manual) });
    machine.step(at(3), Event::Exited { generation: 1 });
    let effects = machine.step(at(4), Event::Shutdown { deadline: at(9) });
    let outcome = UnloadOutcome::Unloaded;
    let report = UnloadReport { outcome, generation: 1, drain: secs(0), exit: secs(1), settle: secs(1), memory: None };
    assert_eq!(effects, [Effect::Unloaded { command: CommandId(1), report }, Effect::Stopped]);
}
