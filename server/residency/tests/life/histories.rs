//! Random and adversarial histories of one model: whatever happens in whatever order, no request is lost, there is at
//! most one runner, none without room for it, and an unload does exactly what its condition says.

use std::num::NonZeroUsize;
use std::time::Duration;

use hush_contract::admin::UnloadMethod;
use hush_residency::machine::{DrainEnd, LifecycleSettings, LossCause, ResidencyRule};
use proptest::prelude::*;

use crate::actions::MachineAction;
use crate::world::MachineWorld;

fn actions() -> impl Strategy<Value = MachineAction> {
    let cause = prop_oneof![
        Just(LossCause::Exited),
        Just(LossCause::Killed),
        Just(LossCause::Hung),
        Just(LossCause::LoadTimeout)
    ];
    let unload = (
        proptest::option::weighted(0.5, prop_oneof![4 => Just(0_u64), 1 => Just(1)]),
        proptest::option::of(0_u64..3000),
        proptest::option::of(prop_oneof![Just(0_u64), 1_u64..2000]),
        proptest::option::weighted(0.3, 0_u64..4000),
    )
        .prop_map(|(generation_off, if_idle, drain, hold)| MachineAction::Unload {
            generation_off,
            if_idle,
            drain,
            hold,
        });

    prop_oneof![
        8 => proptest::option::weighted(0.4, 0_u64..3000).prop_map(MachineAction::Arrive),
        6 => any::<usize>().prop_map(MachineAction::End),
        3 => any::<usize>().prop_map(MachineAction::ArriveAgain),
        1 => Just(MachineAction::Load),
        4 => unload,
        10 => Just(MachineAction::Answer),
        2 => any::<bool>().prop_map(|out_of_memory| MachineAction::FailLoad { out_of_memory }),
        1 => Just(MachineAction::Settle),
        1 => any::<bool>().prop_map(|accounted| MachineAction::ChangeDevice { accounted }),
        3 => any::<bool>().prop_map(|has_room| MachineAction::MeasureMemory { has_room }),
        1 => Just(MachineAction::NeverFits),
        1 => Just(MachineAction::RunOutOfMemory),
        2 => cause.prop_map(MachineAction::LoseRunner),
        3 => Just(MachineAction::RefuseStop),
        1 => Just(MachineAction::Appear),
        1 => Just(MachineAction::Occupy),
        3 => Just(MachineAction::Visit),
        2 => any::<usize>().prop_map(MachineAction::EndVisit),
        1 => Just(MachineAction::LeaveByItself),
        1 => Just(MachineAction::ReapUnannounced),
        1 => Just(MachineAction::SendStaleEvents),
        4 => (0_u64..2500).prop_map(MachineAction::LetTimePass),
        2 => Just(MachineAction::ToDeadline),
    ]
}

fn lifecycle_settings() -> impl Strategy<Value = LifecycleSettings> {
    let residency = prop_oneof![
        Just(ResidencyRule::Resident),
        Just(ResidencyRule::Idle(None)),
        (1_u64..3000).prop_map(|ms| ResidencyRule::Idle(Some(Duration::from_millis(ms)))),
        Just(ResidencyRule::OnDemand),
    ];

    let drain_end = prop_oneof![3 => Just(DrainEnd::Displace), 1 => Just(DrainEnd::GiveUp)];
    let numbers = (1_usize..5, 1_usize..4);

    let unload_method = prop_oneof![Just(UnloadMethod::App), Just(UnloadMethod::Process)];

    (residency, numbers, any::<bool>(), drain_end, unload_method).prop_map(
        |(residency, (queue, concurrency), accounted, drain_end, unload_method)| LifecycleSettings {
            unload_method,
            residency,
            queue_limit: NonZeroUsize::new(queue).unwrap(),
            concurrency: NonZeroUsize::new(concurrency).unwrap(),
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            drain: Duration::from_secs(2),
            drain_end,
            accounted,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_well(
        settings in lifecycle_settings(),
        history in proptest::collection::vec(actions(), 0..120),
        shutdown in proptest::option::weighted(0.4, (0_u64..3000, proptest::collection::vec(actions(), 0..30))),
    ) {
        let mut world = MachineWorld::new(settings);

        for action in &history {
            world.act(action);
        }
        if let Some((after, rest)) = shutdown {
            world.act(&MachineAction::Shutdown(after));
            for action in &rest {
                world.act(action);
            }
        }

        world.run_to_the_end();
    }
}
