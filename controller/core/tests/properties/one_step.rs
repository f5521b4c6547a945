//! Properties of one step in any world.

use std::collections::BTreeSet;
use std::time::Duration;

use hush_core::{
    Action, DecisionReason, ModelKey, ModelPolicy, ObservedModel, Plan, ResidencyState, SkipReason, StepMemory, World,
    step,
};
use proptest::prelude::*;

use crate::support::{STALE_AFTER, at, policies, worlds};

fn plan(world: &World, policies: &[ModelPolicy]) -> Plan {
    step(&mut StepMemory::default(), at(0), world, policies)
}

fn enforced(policies: &[ModelPolicy]) -> Vec<ModelPolicy> {
    policies.iter().map(|policy| ModelPolicy { dry_run: false, ..policy.clone() }).collect()
}

fn find<'a>(world: &'a World, key: &ModelKey) -> &'a ObservedModel {
    world.models.iter().find(|model| model.key == *key).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_the_input_does_not_matter(world in worlds(), policies in policies(), seed in any::<u64>()) {
        let mut other = world.clone();
        let rotation = |len: usize| if len == 0 { 0 } else { usize::try_from(seed % 97).unwrap() % len };
        other.models.rotate_left(rotation(world.models.len()));
        other.gpus.reverse();
        let mut mixed = policies.clone();
        mixed.rotate_left(rotation(policies.len()));
        prop_assert_eq!(plan(&world, &policies), plan(&other, &mixed));
    }

    #[test]
    fn every_model_is_decided_on_once_or_has_a_reason(world in worlds(), policies in policies()) {
        let plan = plan(&world, &policies);
        let live: Vec<ModelKey> = plan.decisions.iter().filter(|d| !d.dry_run).map(|d| d.key()).collect();
        let unique: BTreeSet<&ModelKey> = live.iter().collect();
        prop_assert_eq!(live.len(), unique.len());
        for model in &world.models {
            let skipped = plan.skips.iter().any(|s| s.server == model.key.server && s.model == model.key.model);
            prop_assert!(unique.contains(&model.key) || skipped, "{} is not in {:?}", model.key, plan);
        }
    }

    #[test]
    fn stale_data_causes_no_action(world in worlds(), policies in policies()) {
        for decision in plan(&world, &policies).decisions {
            let model = find(&world, &decision.key());
            prop_assert!(model.sample_age <= STALE_AFTER, "{:?}", decision);
            let gpu = world.gpus.iter().find(|gpu| Some(&gpu.uuid) == model.sample.gpu.as_ref());
            let rests_on_the_gpu = !matches!(decision.reason, DecisionReason::IdleTimeout | DecisionReason::OnDemand);
            if let (Some(gpu), true) = (gpu, rests_on_the_gpu) {
                prop_assert!(gpu.sample_age <= STALE_AFTER, "{:?}", decision);
            }
        }
    }

    #[test]
    fn only_ready_models_leave_and_busy_ones_under_hard_pressure_only(world in worlds(), policies in policies()) {
        for decision in plan(&world, &policies).decisions {
            let model = find(&world, &decision.key());
            match decision.action {
                Action::Unload => {
                    prop_assert_eq!(model.sample.state, ResidencyState::Ready);
                    prop_assert!(!model.is_busy() || decision.reason == DecisionReason::HardPressure, "{:?}", decision);

                    // The command carries the conditions on which it was decided.
                    prop_assert_eq!(decision.if_generation, Some(model.sample.generation));
                    if decision.reason != DecisionReason::HardPressure {
                        let asked = decision.if_idle_seconds.unwrap();
                        prop_assert!(model.sample.idle.as_secs() >= asked, "{:?}", decision);
                    }
                }
                Action::Load => prop_assert_eq!(model.sample.state, ResidencyState::Unloaded),
            }
        }
    }

    #[test]
    fn a_young_model_leaves_under_hard_pressure_only(world in worlds(), policies in policies()) {
        let policies = enforced(&policies);
        for decision in plan(&world, &policies).decisions.iter().filter(|d| d.action == Action::Unload) {
            let model = find(&world, &decision.key());
            let selecting = policies.iter().filter(|policy| policy.selects(model, &Default::default()));

            // A cluster policy that leaves the field out bounds the others by the default, which is zero.
            let asked = selecting.filter_map(|policy| policy.asks.min_resident.or(policy.is_cluster().then_some(Duration::ZERO)));
            let stays = asked.min().unwrap_or_default();
            prop_assert!(model.sample.loaded_for >= stays || decision.reason == DecisionReason::HardPressure, "{:?}", decision);
        }
    }

    #[test]
    fn the_same_world_gives_the_same_plan_and_the_same_memory(world in worlds(), policies in policies()) {
        let (mut first, mut second) = (StepMemory::default(), StepMemory::default());
        for second_of_time in 0..3 {
            let now = at(second_of_time);
            prop_assert_eq!(step(&mut first, now, &world, &policies), step(&mut second, now, &world, &policies));
            prop_assert_eq!(&first, &second);
        }
    }

    #[test]
    fn a_model_that_a_policy_protects_is_no_victim(world in worlds(), policies in policies()) {
        let policies = enforced(&policies);
        let plan = plan(&world, &policies);
        for policy in &policies {
            let selected = |key: &ModelKey| {
                let model = find(&world, key);
                policy.selects(model, &Default::default())
            };

            // The least of the minima holds, so only the policy with the least is certain to be respected.
            let least = policies.iter().filter_map(|p| p.asks.min_loaded).min();
            let Some(keep) = policy.asks.min_loaded.filter(|keep| Some(*keep) == least && *keep > 0) else { continue };

            // A cluster policy that asks for less, or for nothing, releases models that the others would keep.
            if policies.iter().any(|other| other.is_cluster() && other != policy) {
                continue;
            }

            let ready = world.models.iter().filter(|m| m.is_ready() && m.sample_age <= STALE_AFTER && selected(&m.key)).count();
            let gone = plan.decisions.iter().filter(|d| d.action == Action::Unload && selected(&d.key())).count();
            prop_assert!(gone == 0 || ready - gone >= keep as usize, "{:?}", plan);
        }
    }

    #[test]
    fn a_dry_run_shows_what_enforcing_would_do(world in worlds(), policies in policies()) {
        // One policy at a time, because each dry run is computed alone.
        for policy in enforced(&policies) {
            let live = plan(&world, std::slice::from_ref(&policy));
            let dry = plan(&world, &[ModelPolicy { dry_run: true, ..policy }]);
            prop_assert!(dry.decisions.iter().all(|decision| decision.dry_run));
            let shown: Vec<_> = dry.decisions.into_iter().map(|d| hush_core::Decision { dry_run: false, ..d }).collect();
            prop_assert_eq!(shown, live.decisions);
        }
    }

    /// Beside policies that are in force, the dry run shows the difference to the plan in which it is in force too.
    #[test]
    fn a_dry_run_shows_what_it_would_change(world in worlds(), policies in policies()) {
        let Some((policy, others)) = enforced(&policies).split_first().map(|(first, rest)| (first.clone(), rest.to_vec())) else {
            return Ok(());
        };
        let with = |policy: ModelPolicy| plan(&world, &[others.clone(), vec![policy]].concat());
        let (without, live) = (plan(&world, &others), with(policy.clone()));
        let dry = with(ModelPolicy { dry_run: true, ..policy });

        // Two decisions that differ only in the policy that they name do the same.
        let nameless = |d: &hush_core::Decision| hush_core::Decision { policy: String::new(), dry_run: false, ..d.clone() };
        let in_force: Vec<_> = without.decisions.iter().map(nameless).collect();
        let differs = live.decisions.iter().map(nameless).filter(|d| !in_force.contains(d));
        let shown = dry.decisions.iter().filter(|d| d.dry_run).map(nameless);
        prop_assert!(shown.eq(differs), "{:?} {:?}", dry, live);
        for decision in &without.decisions {
            let spared = live.decisions.iter().all(|other| other.key() != decision.key());
            let said = dry.skips.iter().any(|s| s.reason == SkipReason::DryRun && s.server == decision.server && s.model == decision.model);
            prop_assert_eq!(spared, said);
        }
    }

    #[test]
    fn a_dry_run_changes_nothing(world in worlds(), policies in policies()) {
        let live: Vec<ModelPolicy> = policies.iter().filter(|policy| !policy.dry_run).cloned().collect();
        let with = plan(&world, &policies);
        let without = plan(&world, &live);
        let enforced: Vec<_> = with.decisions.into_iter().filter(|d| !d.dry_run).collect();
        prop_assert_eq!(enforced, without.decisions);
        prop_assert_eq!(with.gpus, without.gpus);
        let skips: Vec<_> = with.skips.into_iter().filter(|s| s.reason != SkipReason::DryRun).collect();
        prop_assert_eq!(skips, without.skips);
    }

    #[test]
    fn no_second_action_on_one_sample(world in worlds(), policies in policies()) {
        let mut memory = StepMemory::default();
        let first = step(&mut memory, at(0), &world, &policies);
        for decision in first.decisions.iter().filter(|d| !d.dry_run) {
            memory.settle(&decision.key(), hush_core::CommandOutcome::Nothing);
        }

        // A second later there is no new sample.
        let mut later = world.clone();
        later.gpus.iter_mut().for_each(|gpu| gpu.sample_age += std::time::Duration::from_secs(1));
        later.models.iter_mut().for_each(|model| model.sample_age += std::time::Duration::from_secs(1));
        let second = step(&mut memory, at(1), &later, &policies);
        let named: BTreeSet<ModelKey> = first.decisions.iter().filter(|d| !d.dry_run).map(|d| d.key()).collect();
        for decision in second.decisions.iter().filter(|d| !d.dry_run) {
            prop_assert!(!named.contains(&decision.key()), "{:?}", decision);
            let same_gpu = first.decisions.iter().any(|d| !d.dry_run && d.action == Action::Unload && d.gpu.is_some() && d.gpu == decision.gpu);
            let idle = matches!(decision.reason, DecisionReason::IdleTimeout | DecisionReason::OnDemand);
            prop_assert!(!same_gpu || idle || decision.action == Action::Load, "{:?}", decision);
        }
    }
}
