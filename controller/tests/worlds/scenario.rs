//! What a world is made of; everything is drawn from its seed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use hush_controller::simulate::trace::SplitMix64;
use hush_core::{GpuId, Labels, ModelKey, ModelPolicy, ServerName};
use hush_residency::machine as server;

use crate::device_sim::{DeviceSim, MemoryPattern, OtherProgram};
use crate::dice_ext::DiceExt;
use crate::model_sim::{ClientPattern, ModelFaults, ModelSimSpec};
use crate::random_policies;

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// One world before it is played.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything happens at multiples of this.
    pub tick_ms: u64,
    /// The interval at which the controller observes and decides.
    pub interval_ms: u64,
    pub stale_after_ms: u64,
    pub length_ms: u64,
    pub devices: Vec<DeviceSim>,
    pub models: Vec<ModelSimSpec>,
    pub namespaces: BTreeMap<String, Labels>,
    pub policies: Vec<ModelPolicy>,
    pub faults: ScenarioFaults,
}

/// What goes wrong between the controller and the servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScenarioFaults {
    /// How many of 100 scrapes get no answer.
    pub scrape_fails: u64,
    /// The mean time between the periods in which a server does not answer, and their mean length.
    pub silences: Option<(u64, u64)>,
    /// How many of 100 commands do not arrive.
    pub command_fails: u64,
    /// How many of 100 commands lose their answer.
    pub answer_lost: u64,
    /// How many of 100 commands are never reported as ended.
    pub never_settled: u64,
    /// The greatest delay of a message in one direction.
    pub latency_ms: u64,
    /// The mean time between restarts of the controller.
    pub restarts: Option<u64>,
    /// The mean time between steps of its clock.
    pub clock_steps: Option<u64>,
}

impl ScenarioFaults {
    pub const fn is_none(&self) -> bool {
        self.scrape_fails + self.command_fails + self.answer_lost + self.never_settled == 0
            && self.silences.is_none()
            && self.restarts.is_none()
            && self.clock_steps.is_none()
    }
}

impl Scenario {
    pub fn new(seed: u64) -> Self {
        let mut dice = SplitMix64(seed);
        let dice = &mut dice;

        // Short worlds have short intervals, long worlds long ones.
        let (interval_ms, steps) = dice.pick(&[(1000, 300), (2000, 400), (5000, 500), (15_000, 600), (60_000, 1500)]);
        let faulty = dice.chance(60);
        let devices = devices(dice);
        let models = models(dice, &devices, faulty);
        Self {
            tick_ms: interval_ms / 4,
            interval_ms,
            stale_after_ms: interval_ms * dice.pick(&[2, 3, 5]),
            length_ms: interval_ms * steps,
            devices,
            models,
            namespaces: [("a", "speech"), ("b", "batch")]
                .map(|(name, team)| (name.to_owned(), label("team", team)))
                .into(),
            policies: random_policies::random_policies(dice),
            faults: if faulty {
                faults(dice, interval_ms)
            } else {
                ScenarioFaults { latency_ms: interval_ms / 4, ..ScenarioFaults::default() }
            },
        }
    }
}

impl Scenario {
    /// Lengthens the intervals, for the time after everything has come to rest.
    pub fn slow_down(&mut self) {
        self.interval_ms = self.interval_ms.max(5000);
        self.tick_ms = self.interval_ms / 4;
        self.stale_after_ms = self.stale_after_ms.max(3 * self.interval_ms);
    }
}

pub fn label(key: &str, value: &str) -> Labels {
    Labels::from([(key.to_owned(), value.to_owned())])
}

fn devices(dice: &mut SplitMix64) -> Vec<DeviceSim> {
    let mut devices = Vec::new();
    for gpu in 0..dice.between(1, 2) {
        let total = dice.pick(&[8, 16, 24, 80]) * GIB;
        let parts = if total > 16 * GIB && dice.chance(30) { dice.between(2, 3) } else { 1 };
        for part in 0..parts {
            let uuid = if parts == 1 { format!("GPU-{gpu}") } else { format!("MIG-{gpu}-{part}") };
            let total_bytes = total / parts;
            let other_programs = (0..dice.below(3)).map(|_| other_program(dice, total_bytes)).collect();
            let (uuid, node) = (GpuId(uuid), format!("n{}", gpu / 2));
            devices.push(DeviceSim { uuid, node, total_bytes, models_bytes: 0, leftovers: Vec::new(), other_programs });
        }
    }

    devices
}

fn other_program(dice: &mut SplitMix64, total: u64) -> OtherProgram {
    let share = |dice: &mut SplitMix64, least: u64, most: u64| total * dice.between(least, most) / 100;
    let pattern = match dice.below(4) {
        0 | 1 => MemoryPattern::Batch {
            bytes: share(dice, 10, 90),
            rests_ms: dice.pick(&[2 * MINUTE, 20 * MINUTE, 4 * HOUR]),
            works_ms: dice.pick(&[MINUTE, 15 * MINUTE, 2 * HOUR]),
        },
        2 => MemoryPattern::Leaks {
            by: share(dice, 1, 6),
            most: share(dice, 30, 95),
            every_ms: dice.pick(&[10_000, 2 * MINUTE]),
        },
        _ => MemoryPattern::Flickers { most: share(dice, 1, 10), every_ms: dice.pick(&[1000, 10_000]) },
    };

    OtherProgram { pattern, bytes: 0, changes_at: dice.around_ms(5 * MINUTE) }
}

fn models(dice: &mut SplitMix64, devices: &[DeviceSim], faulty: bool) -> Vec<ModelSimSpec> {
    let mut models = Vec::new();
    for server in 0..dice.between(1, 5) {
        let namespace = dice.pick(&["a", "a", "b"]);
        let device = usize::try_from(dice.below(devices.len() as u64)).unwrap();
        let mut labels = label("app", dice.pick(&["whisper", "whisper", "vip"]));
        labels.extend(label("tier", dice.pick(&["gold", "silver"])));
        for model in 0..dice.between(1, 2) {
            let name = ["turbo", "base"][usize::try_from(model).unwrap()];
            let total = devices[device].total_bytes;
            models.push(ModelSimSpec {
                key: ModelKey { server: ServerName(format!("{namespace}/w{server}")), model: name.to_owned() },
                labels: labels.clone(),
                device,
                bytes: total * dice.between(4, 45) / 100 / MIB * MIB,
                headroom_bytes: dice.pick(&[0, 256 * MIB]),
                load_ms: dice.pick(&[300, 1500, 8000, 30_000]),
                exit_ms: dice.pick(&[100, 1000, 4000]),
                settle_ms: dice.pick(&[10, 200, 2000]),
                policy: own_policy(dice),
                clients: clients(dice),
                faults: if faulty { model_faults(dice) } else { ModelFaults::default() },
            });
        }
    }

    models
}

fn own_policy(dice: &mut SplitMix64) -> server::LifecycleSettings {
    let residency = match dice.below(6) {
        0 => server::ResidencyRule::Resident,
        1 => server::ResidencyRule::OnDemand,
        2 | 3 => server::ResidencyRule::Idle(None),
        _ => server::ResidencyRule::Idle(Some(Duration::from_secs(dice.pick(&[60, 300, 1800])))),
    };

    let concurrency = NonZeroUsize::new(dice.pick(&[1, 1, 4])).unwrap();
    server::LifecycleSettings { residency, concurrency, accounted: true, ..server::LifecycleSettings::default() }
}

fn clients(dice: &mut SplitMix64) -> ClientPattern {
    ClientPattern {
        near_ms: dice.pick(&[2000, 10_000, MINUTE]),
        far_ms: dice.pick(&[MINUTE, 10 * MINUTE, HOUR, 6 * HOUR]),
        burst: dice.pick(&[1, 5, 30]),
        regular: dice.chance(20),
        work_ms: dice.pick(&[1000, 5000, 20_000]),
        patience_ms: dice.perhaps(50, &[MINUTE]),
    }
}

fn model_faults(dice: &mut SplitMix64) -> ModelFaults {
    ModelFaults {
        load_fails: dice.pick(&[0, 0, 5, 30]),
        runner_dies: dice.pick(&[0, 0, 10]),
        leaves_leftovers: dice.pick(&[0, 0, 10]),
    }
}

fn faults(dice: &mut SplitMix64, interval_ms: u64) -> ScenarioFaults {
    ScenarioFaults {
        scrape_fails: dice.pick(&[0, 5, 30]),
        silences: dice.perhaps(50, &[(30 * MINUTE, MINUTE), (2 * HOUR, 20 * MINUTE)]),
        command_fails: dice.pick(&[0, 10]),
        answer_lost: dice.pick(&[0, 10]),
        never_settled: dice.pick(&[0, 5]),
        // The controller gives up on a command before it would send it again.
        // The controller gives up on a command before it would send it again.
        latency_ms: (interval_ms * dice.pick(&[1, 1, 8]) / 4).min(15_000),
        restarts: dice.perhaps(50, &[20 * MINUTE, 3 * HOUR]),
        clock_steps: dice.perhaps(70, &[20 * MINUTE, 3 * HOUR]),
    }
}
