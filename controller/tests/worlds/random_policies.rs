//! Random policies of every kind, some of them on the same models.

use std::time::Duration;

use hush_controller::simulate::trace::SplitMix64;
use hush_core::{
    Glob, Labels, MemoryAmount, ModelPolicy, PolicyKey, PolicyResidency, PolicySpec, PolicyUnload, Selector, WarmWindow,
};

use crate::dice_ext::DiceExt;
use crate::scenario::{GIB, label};

const MODES: [PolicyResidency; 5] = [
    PolicyResidency::Resident,
    PolicyResidency::Idle,
    PolicyResidency::Idle,
    PolicyResidency::Adaptive,
    PolicyResidency::OnDemand,
];

pub fn random_policies(dice: &mut SplitMix64) -> Vec<ModelPolicy> {
    let mut policies: Vec<ModelPolicy> = (0..dice.between(1, 4)).map(|at| policy(dice, at)).collect();

    // Most worlds have a cluster policy for everything.
    if dice.chance(80) {
        policies.push(ModelPolicy {
            name: PolicyKey { namespace: None, name: "floor".to_owned() },
            selector: Selector::default(),
            namespace_selector: None,
            models: Vec::new(),
            dry_run: false,
            asks: asks(dice),
        });
    }

    // Without thresholds, models leave only for other models that need memory.
    if dice.chance(20) {
        for asks in policies.iter_mut().map(|policy| &mut policy.asks) {
            (asks.hard_below, asks.soft_below, asks.budget, asks.min_loaded) = (None, None, None, None);
        }
    }

    policies
}

fn policy(dice: &mut SplitMix64, at: u64) -> ModelPolicy {
    let cluster = dice.chance(25);
    let selector = match dice.below(4) {
        0 => Labels::new(),
        1 => label("tier", dice.pick(&["gold", "silver"])),
        _ => label("app", dice.pick(&["whisper", "vip"])),
    };

    ModelPolicy {
        name: PolicyKey {
            namespace: (!cluster).then(|| dice.pick(&["a", "a", "b"]).to_owned()),
            name: format!("p{at}"),
        },
        selector: Selector { labels: selector, expressions: Vec::new() },
        namespace_selector: (cluster && dice.chance(50))
            .then(|| Selector { labels: label("team", "speech"), expressions: Vec::new() }),
        models: if dice.chance(20) { vec![Glob::new("t*")] } else { Vec::new() },
        dry_run: dice.chance(20),
        asks: asks(dice),
    }
}

fn asks(dice: &mut SplitMix64) -> PolicySpec {
    let asks = asks_without_unload(dice);
    // Follows from what is drawn already, so that the worlds of each seed stay as they are.
    let unload = match (asks.drain_timeout, asks.hold_after_eviction) {
        (Some(drain), _) if drain.is_zero() => Some(PolicyUnload::App),
        (Some(_), _) | (None, Some(_)) => Some(PolicyUnload::Process),
        (None, None) => None,
    };

    PolicySpec { unload, ..asks }
}

fn asks_without_unload(dice: &mut SplitMix64) -> PolicySpec {
    let seconds = |dice: &mut SplitMix64, none: u64, from: &[u64]| dice.perhaps(none, from).map(Duration::from_secs);
    PolicySpec {
        residency: dice.perhaps(40, &MODES),
        idle_timeout: seconds(dice, 40, &[20, 60, 300, 1800, 86_400]),
        min_resident: seconds(dice, 60, &[0, 30, 120, 600]),
        schedule: if dice.chance(15) { vec![window(dice)] } else { Vec::new() },
        hard_below: amount(dice, 50),
        soft_below: amount(dice, 40),
        grace_period: seconds(dice, 50, &[0, 30, 120]),
        min_reclaim: dice
            .perhaps(60, &[MemoryAmount::Bytes(GIB / 2), MemoryAmount::Percent(5), MemoryAmount::Percent(20)]),
        transition_period: seconds(dice, 60, &[0, 60, 600]),
        priority: dice.perhaps(40, &[-5, 0, 5, 100]),
        budget: amount(dice, 75),
        min_loaded: dice.perhaps(75, &[0, 1, 2]),
        drain_timeout: seconds(dice, 60, &[0, 30, 120]),
        hold_after_eviction: seconds(dice, 60, &[0, 30, 300]),
        unload: None,
    }
}

fn amount(dice: &mut SplitMix64, none: u64) -> Option<MemoryAmount> {
    dice.perhaps(
        none,
        &[
            MemoryAmount::Bytes(GIB / 2),
            MemoryAmount::Bytes(2 * GIB),
            MemoryAmount::Percent(5),
            MemoryAmount::Percent(20),
            MemoryAmount::Percent(40),
            MemoryAmount::Percent(70),
        ],
    )
}

fn window(dice: &mut SplitMix64) -> WarmWindow {
    let cron = dice.pick(&["0 8 * * 1-5", "*/30 * * * *", "15 3 * * *"]);
    let zone = dice.pick(&["Europe/Berlin", "UTC", "America/New_York"]);
    let duration = Duration::from_secs(dice.pick(&[600, 3600, 36_000]));
    WarmWindow::new(
        cron,
        duration,
        zone,
        dice.pick(&[PolicyResidency::Resident, PolicyResidency::Resident, PolicyResidency::OnDemand]),
    )
    .unwrap()
}
