//! Properties of pressure over many steps.

use std::time::Duration;

use hush_core::{
    CommandOutcome, DecisionReason, MemoryAmount, ModelPolicy, Plan, PolicyResidency, PolicySpec, PressureLevel,
    PressureMemory, SkipReason, StepMemory, World, step,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{GIB, at, gpu, model, policy, world};

const GRACE: i64 = 60;

fn soft(min_reclaim: u64) -> Vec<ModelPolicy> {
    let asks = PolicySpec {
        residency: Some(PolicyResidency::Resident),
        soft_below: Some(MemoryAmount::Bytes(4 * GIB)),
        grace_period: Some(Duration::from_secs(60)),
        min_reclaim: Some(MemoryAmount::Bytes(min_reclaim)),
        transition_period: Some(Duration::from_secs(30)),
        ..PolicySpec::default()
    };

    vec![policy("soft", asks)]
}

fn seen(available: u64) -> World {
    world(vec![gpu("GPU-a", available)], vec![model("w1", "GPU-a"), model("w2", "GPU-a"), model("w3", "GPU-a")])
}

fn stale(mut world: World) -> World {
    world.gpus[0].sample_age = Duration::from_secs(60);
    world
}

fn acts(plan: &Plan) -> bool {
    plan.decisions.iter().any(|decision| decision.reason == DecisionReason::SoftPressure)
}

fn refuse(memory: &mut StepMemory, plan: &Plan) {
    for decision in &plan.decisions {
        memory.settle(&decision.key(), CommandOutcome::Nothing);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// In each second memory is short, there is enough of it, or there is no sample.
    #[test]
    fn grace_is_never_shortened_by_noise(seconds in vec(0..12_u8, 1..240)) {
        let (mut memory, policies) = (StepMemory::default(), soft(GIB));
        let mut crossed_for: Option<i64> = None;
        let mut previous_fresh = false;
        for (second, kind) in seconds.into_iter().enumerate() {
            let world = match kind {
                0 => seen(20 * GIB),
                1 => stale(seen(GIB)),
                _ => seen(GIB),
            };

            let fresh = kind != 1;
            if fresh {
                // A gap in the samples does not reset the time, and adds nothing to it.
                crossed_for = (kind != 0).then(|| crossed_for.map_or(0, |seconds| seconds + i64::from(previous_fresh)));
            }

            previous_fresh = fresh;
            let plan = step(&mut memory, at(second as i64), &world, &policies);
            prop_assert!(!acts(&plan) || crossed_for.is_some_and(|seconds| seconds >= GRACE), "{second} {crossed_for:?}");
            if acts(&plan) {
                return Ok(());
            }
        }
    }

    #[test]
    fn without_noise_models_leave_exactly_when_the_grace_period_has_passed(start in 0..1000_i64) {
        let (mut memory, policies) = (StepMemory::default(), soft(GIB));
        for second in 0..=GRACE {
            let plan = step(&mut memory, at(start + second), &seen(GIB), &policies);
            prop_assert_eq!(acts(&plan), second == GRACE, "{}", second);
            let waits = plan.skips.iter().any(|skip| skip.reason == SkipReason::GracePeriod);
            prop_assert_eq!(waits, second < GRACE);
            prop_assert_eq!(plan.gpus[0].pressure, PressureLevel::Soft);
        }
    }

    /// In each second memory is short, there is enough of it, there is no sample, the clock is set, or another controller
    /// takes over that knows nothing or only what was written down.
    #[test]
    fn grace_is_never_shortened_by_restarts_and_clocks(seconds in vec(0..24_u8, 1..240)) {
        let (mut memory, policies) = (StepMemory::default(), soft(GIB));
        let mut clock = 0;

        // In true seconds: since when every sample has shown that memory is short.
        let mut crossed_since: Option<i64> = None;
        for (second, kind) in (0_i64..).zip(seconds) {
            match kind {
                2 => clock += 100_000,
                3 => clock -= 3600,
                4 => memory = StepMemory::default(),
                5 => {
                    let since = crossed_since.map(|since| at(clock + since));
                    let gpu = hush_core::GpuId::from("GPU-a");
                    let entry = PressureMemory { gpu, soft_since: since, hard_since: None, clear_since: None };
                    memory = StepMemory::restore(at(clock + second), &[entry], &[]);
                }
                _ => {}
            }

            let world = match kind {
                0 => seen(20 * GIB),
                1 => stale(seen(GIB)),
                _ => seen(GIB),
            };

            crossed_since = match kind {
                0 => None,
                1 => crossed_since,
                _ => crossed_since.or(Some(second)),
            };

            let plan = step(&mut memory, at(clock + second), &world, &policies);
            let lasted = crossed_since.map(|since| second - since);
            prop_assert!(!acts(&plan) || lasted >= Some(GRACE), "{second} {lasted:?}");
            if acts(&plan) {
                return Ok(());
            }
        }
    }

    #[test]
    fn a_dry_run_acts_when_it_would_act_live(seconds in vec(0..12_u8, 1..240)) {
        let live = soft(GIB);
        let dry: Vec<ModelPolicy> = live.iter().map(|policy| ModelPolicy { dry_run: true, ..policy.clone() }).collect();
        let (mut memory, mut other) = (StepMemory::default(), StepMemory::default());
        for (second, kind) in (0_i64..).zip(seconds) {
            let world = match kind {
                0 => seen(20 * GIB),
                1 => stale(seen(GIB)),
                _ => seen(GIB),
            };

            let (plan, shown) = (step(&mut memory, at(second), &world, &live), step(&mut other, at(second), &world, &dry));
            prop_assert_eq!(acts(&plan), acts(&shown), "{}", second);
            prop_assert!(shown.decisions.iter().all(|decision| decision.dry_run));
            if acts(&plan) {
                return Ok(());
            }
        }
    }

    /// The wait for a newer sample ends with the next sample, however the clock was set in the meantime.
    #[test]
    fn a_clock_that_is_set_back_neither_repeats_nor_blocks(back in 1..100_000_i64) {
        let (mut memory, policies) = (StepMemory::default(), soft(GIB));
        for second in 0..=GRACE {
            let plan = step(&mut memory, at(second), &seen(GIB), &policies);
            if acts(&plan) {
                for decision in &plan.decisions {
                    memory.settle(&decision.key(), CommandOutcome::Unloaded { completed_at: at(GRACE) });
                }
            }
        }

        let aged = |age: u64| {
            let mut world = seen(GIB);
            world.gpus[0].sample_age = Duration::from_secs(age);
            world.models.iter_mut().for_each(|model| model.sample_age = Duration::from_secs(age));
            world
        };

        // The same sample, two seconds later by a clock that was set back.
        prop_assert!(!acts(&step(&mut memory, at(GRACE + 2 - back), &aged(2), &policies)));
        prop_assert!(acts(&step(&mut memory, at(GRACE + 4 - back), &aged(1), &policies)));
    }

    #[test]
    fn a_missing_sample_freezes_the_timers(before in 1..GRACE, missing in 16..1000_i64) {
        let (mut memory, policies) = (StepMemory::default(), soft(GIB));
        for second in 0..=before {
            prop_assert!(!acts(&step(&mut memory, at(second), &seen(GIB), &policies)));
        }

        let plan = step(&mut memory, at(before + 1), &stale(seen(GIB)), &policies);
        prop_assert_eq!(plan.gpus[0].pressure, PressureLevel::Unknown);
        let back = before + missing;

        // The timer has neither advanced nor been reset: the rest of the grace period still has to pass.
        for second in 0..=(GRACE - before) {
            let plan = step(&mut memory, at(back + second), &seen(GIB), &policies);
            prop_assert_eq!(acts(&plan), second == GRACE - before, "{}", second);
        }
    }

    #[test]
    fn a_clock_that_is_set_changes_nothing(jump in prop_oneof![-100_000..-1_i64, 16..100_000_i64], after in 1..GRACE) {
        let (mut memory, policies) = (StepMemory::default(), soft(GIB));
        for second in 0..=after {
            prop_assert!(!acts(&step(&mut memory, at(second), &seen(GIB), &policies)));
        }

        for second in 0..=(GRACE - after) {
            let plan = step(&mut memory, at(after + jump + second), &seen(GIB), &policies);
            prop_assert_eq!(acts(&plan), second == GRACE - after, "{}", second);
        }
    }

    #[test]
    fn once_models_leave_they_leave_until_the_target_is_met(reclaim in 1..4_u64, steps in 1..6_u64) {
        let (mut memory, policies) = (StepMemory::default(), soft(reclaim * GIB));
        for second in 0..=GRACE {
            let plan = step(&mut memory, at(second), &seen(GIB), &policies);
            refuse(&mut memory, &plan);
        }

        // Above the threshold and below the target, models go on leaving.
        let between = 4 * GIB + (reclaim * GIB - 1) * steps / 6;
        let plan = step(&mut memory, at(GRACE + 1), &seen(between), &policies);
        prop_assert!(acts(&plan));
        refuse(&mut memory, &plan);

        // At the target no more models leave, and none before the threshold is crossed again.
        for (second, available) in [(2, (4 + reclaim) * GIB), (3, between), (4, 4 * GIB)] {
            prop_assert!(!acts(&step(&mut memory, at(GRACE + second), &seen(available), &policies)), "{}", second);
        }
    }

    #[test]
    fn pressure_ends_after_the_transition_period(clear in 0..40_i64) {
        let (mut memory, policies) = (StepMemory::default(), soft(GIB));
        step(&mut memory, at(0), &seen(GIB), &policies);
        for second in 0..=clear {
            let plan = step(&mut memory, at(1 + second), &seen(20 * GIB), &policies);
            let expected = if second >= 30 { PressureLevel::None } else { PressureLevel::Soft };
            prop_assert_eq!(plan.gpus[0].pressure, expected, "{}", second);
        }
    }
}

#[test]
fn after_an_unload_only_a_newer_sample_counts() {
    let (mut memory, policies) = (StepMemory::default(), soft(GIB));
    let mut acted = false;
    for second in 0..=GRACE {
        let plan = step(&mut memory, at(second), &seen(GIB), &policies);
        acted = acts(&plan);
    }

    assert!(acted);

    // While the unloads are under way there are no more decisions, whatever is sampled.
    assert!(!acts(&step(&mut memory, at(GRACE + 1), &seen(GIB), &policies)));
    let key = model("w1", "GPU-a").key;
    for name in ["w1", "w2", "w3"] {
        memory.settle(&model(name, "").key, CommandOutcome::Unloaded { completed_at: at(GRACE + 3) });
    }

    let without = |age: u64| {
        let mut world = seen(GIB);
        world.models.retain(|model| model.key != key);
        world.gpus[0].sample_age = Duration::from_secs(age);
        world
    };

    let plan = step(&mut memory, at(GRACE + 4), &without(1), &policies);
    assert!(!acts(&plan), "sampled when the unload ended");
    assert!(acts(&step(&mut memory, at(GRACE + 5), &without(1), &policies)), "sampled a second later");
}

#[test]
fn a_sample_from_before_the_end_of_its_unload_does_not_count_for_a_model() {
    let (mut memory, policies) = (StepMemory::default(), soft(GIB));
    for second in 0..=GRACE {
        step(&mut memory, at(second), &seen(GIB), &policies);
    }
    for name in ["w1", "w2", "w3"] {
        memory.settle(&model(name, "").key, CommandOutcome::Unloaded { completed_at: at(GRACE + 3) });
    }

    // Another server on the same card has newer figures of the card than the servers of these models.
    let with_models_of = |age: u64| {
        let mut world = seen(GIB);
        for model in &mut world.models {
            model.sample_age = Duration::from_secs(age);
        }
        world
    };
    let plan = step(&mut memory, at(GRACE + 4), &with_models_of(2), &policies);
    assert!(!acts(&plan), "sampled after the decision and before the unload ended");
    assert!(acts(&step(&mut memory, at(GRACE + 5), &with_models_of(1), &policies)), "sampled after the unload ended");
}
