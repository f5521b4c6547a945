//! What an unload ends: the model alone, or the process that holds it too.

use hush_contract::admin::{ProcessOutcome, UnloadMethod};
use hush_contract::{UnloadReason, UnloadRefusal};
use hush_residency::machine::{
    CommandId, LifecycleSettings, MachineEffect, MachineEvent, ModelMachine, ResidencyRule, UnloadCommand,
};

use crate::rules::{arrive, at, busy_and_not_repeatable, end, idle, secs, stop_runner};

#[test]
fn an_unload_that_asks_for_the_process_ends_it_and_says_so() {
    let mut machine = idle(ResidencyRule::Idle(None));
    let unload = UnloadCommand { method: Some(UnloadMethod::Process), ..UnloadCommand::now(UnloadReason::Manual) };

    let effects = machine.step(at(3), MachineEvent::Unload { command: CommandId(1), unload });
    assert!(effects.contains(&stop_runner(UnloadMethod::Process)), "{effects:?}");
    let effects = machine.step(at(4), MachineEvent::Exited { generation: 1 });
    assert_eq!(process_of(&effects), Some(ProcessOutcome::Ended));

    // Nothing of the model is left that a second command could unload, but its process may be there.
    let effects = machine.step(at(5), MachineEvent::Unload { command: CommandId(2), unload });
    assert!(effects.contains(&MachineEffect::EndUnusedProcess), "{effects:?}");
    let unload = UnloadCommand::now(UnloadReason::Manual);
    let effects = machine.step(at(6), MachineEvent::Unload { command: CommandId(3), unload });
    assert!(!effects.contains(&MachineEffect::EndUnusedProcess), "{effects:?}");
}

#[test]
fn a_process_that_goes_on_is_told_of_its_own_generation_alone() {
    for (generation, expected) in [(1, ProcessOutcome::KeptForOthers), (2, ProcessOutcome::Ended)] {
        let mut machine = idle(ResidencyRule::Idle(None));
        let unload = UnloadCommand { method: Some(UnloadMethod::Process), ..UnloadCommand::now(UnloadReason::Manual) };
        machine.step(at(3), MachineEvent::Unload { command: CommandId(1), unload });

        machine.step(at(4), MachineEvent::ProcessKept { generation, outcome: ProcessOutcome::KeptForOthers });
        let effects = machine.step(at(5), MachineEvent::Exited { generation: 1 });
        assert_eq!(process_of(&effects), Some(expected));
    }
}

#[test]
fn own_unloads_and_commands_that_say_nothing_end_what_the_settings_say() {
    let settings = LifecycleSettings {
        unload_method: UnloadMethod::Process,
        residency: ResidencyRule::Idle(Some(secs(10))),
        ..LifecycleSettings::default()
    };
    let loaded = || {
        let mut machine = ModelMachine::new(settings);
        machine.step(at(0), arrive(1));
        machine.step(at(1), MachineEvent::Loaded { generation: 1 });
        machine.step(at(2), end(1));
        machine
    };

    let effects = loaded().step(at(12), MachineEvent::Tick);
    assert!(effects.contains(&stop_runner(UnloadMethod::Process)), "{effects:?}");
    for (method, expected) in [(None, UnloadMethod::Process), (Some(UnloadMethod::App), UnloadMethod::App)] {
        let unload = UnloadCommand { method, ..UnloadCommand::now(UnloadReason::Manual) };
        let effects = loaded().step(at(3), MachineEvent::Unload { command: CommandId(1), unload });
        assert!(effects.contains(&stop_runner(expected)), "{effects:?}");
    }
}

/// A refusal of the runner leaves everything as it was, also the process.
#[test]
fn a_busy_app_keeps_its_process() {
    let mut machine = busy_and_not_repeatable();
    let unload = UnloadCommand {
        method: Some(UnloadMethod::Process),
        drain: Some(secs(1)),
        ..UnloadCommand::now(UnloadReason::HardPressure)
    };
    machine.step(at(3), MachineEvent::Unload { command: CommandId(1), unload });

    let effects = machine.step(at(5), MachineEvent::Tick);
    let given_up = MachineEffect::UnloadGivenUp { command: CommandId(1), refusal: UnloadRefusal::Busy };
    assert!(effects.contains(&given_up), "{effects:?}");
    let stops =
        |effect: &MachineEffect| matches!(effect, MachineEffect::StopRunner { .. } | MachineEffect::KillRunner { .. });
    assert!(!effects.iter().any(stops), "{effects:?}");
}

/// What an unload that is complete says of the process.
fn process_of(effects: &[MachineEffect]) -> Option<ProcessOutcome> {
    effects.iter().find_map(|effect| match effect {
        MachineEffect::Unloaded { report, .. } => report.process,
        _ => None,
    })
}
