//! Sidecars on a machine that is short of processor time: each server answers late, each sidecar decides late, and commands
//! arrive late. Whatever the delays, the memory pressure on the GPU is relieved in bounded time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_controller::act::{Backoff, CommandVerdict};
use hush_controller::control_loop::pause_after;
use hush_controller::control_loop::peer_actions::{PEER_COMMAND_TIMEOUT, PeerActions};
use hush_core::{Action, CommandOutcome, GpuId, ModelPolicy, ObservedGpu, StepMemory, World, step};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::shared_gpu::{GIB, GPU_GIB, SCRAPE_MS, STALE_AFTER, SharedGpu, SharedGpuModel, key, millis, time};
use crate::together::{BELOW_GIB, hard};

const TICK_MS: i64 = 50;
/// A scrape that takes longer has failed.
const SCRAPE_TIMEOUT_MS: i64 = 5000;
const INTERVAL: Duration = Duration::from_secs(1);

/// The delays of one sidecar.
#[derive(Clone, Debug)]
pub struct ControllerDelays {
    /// For each server the time from the request until the answer is there.
    pub answers_ms: Vec<i64>,
    /// How long each step takes.
    pub step_ms: i64,
    /// When the machine stands still during a step, and for how long.
    pub stall: Option<(i64, i64)>,
    /// The time until a command has reached its server.
    pub command_ms: i64,
    /// How many of the first commands fail, because the server cannot have the token reviewed.
    pub failing_commands: u32,
}

/// One scrape of a server.
#[derive(Clone, Copy, Debug)]
struct Scrape {
    asked: i64,
    arrives: i64,
}

pub struct SlowController {
    own: usize,
    delays: ControllerDelays,
    memory: StepMemory,
    others: PeerActions,
    backoff: Backoff,
    next_step: i64,
    /// For each server the scrape whose answer is awaited.
    awaited: Vec<Scrape>,
    /// For each server the last scrape that was answered.
    known: Vec<Option<Scrape>>,
    failed: u32,
}

impl SlowController {
    pub fn new(own: usize, delays: ControllerDelays, phases: &[i64]) -> Self {
        let awaited: Vec<Scrape> = phases
            .iter()
            .zip(&delays.answers_ms)
            .map(|(asked, answer)| Scrape { asked: *asked, arrives: asked + answer })
            .collect();
        let known = vec![None; awaited.len()];
        Self {
            own,
            delays,
            memory: StepMemory::default(),
            others: PeerActions::default(),
            backoff: Backoff::default(),
            next_step: 0,
            awaited,
            known,
            failed: 0,
        }
    }

    fn receive_answers(&mut self, now: i64) {
        for (at, awaited) in self.awaited.iter_mut().enumerate() {
            if awaited.arrives > now {
                continue;
            }

            if awaited.arrives - awaited.asked <= SCRAPE_TIMEOUT_MS {
                self.known[at] = Some(*awaited);
            }

            let asked = now.max(awaited.asked + SCRAPE_MS);
            *awaited = Scrape { asked, arrives: asked + self.delays.answers_ms[at] };
        }
    }

    fn world(&self, gpu: &SharedGpu, now: i64, start: Instant) -> World {
        let models = self.known.iter().enumerate().filter_map(|(at, scrape)| {
            let scrape = (*scrape)?;
            let mut model = gpu.sample(at, scrape.asked, 0, now);
            model.back_off = self.backoff.holds(start + millis(now), &key(at));
            Some(model)
        });

        // The lower median of the fresh reports, as the controller merges the reports of several servers.
        let mut reports: Vec<(u64, i64)> = self
            .known
            .iter()
            .flatten()
            .map(|scrape| (GPU_GIB * GIB - gpu.available(scrape.asked), now - scrape.asked))
            .collect();
        let stale = i64::try_from(STALE_AFTER.as_millis()).unwrap();
        if reports.iter().any(|(_, age)| *age <= stale) {
            reports.retain(|(_, age)| *age <= stale);
        }

        reports.sort_unstable();
        let middle = reports.get(reports.len().saturating_sub(1) / 2).copied();
        let gpus = middle.into_iter().map(|(used_bytes, age)| ObservedGpu {
            uuid: GpuId::from("GPU-a"),
            node: "n1".to_owned(),
            total_bytes: GPU_GIB * GIB,
            used_bytes,
            sample_age: millis(age),
            disputed: false,
        });
        World { stale_after: STALE_AFTER, gpus: gpus.collect(), models: models.collect(), namespaces: BTreeMap::new() }
    }

    /// Whether the sidecar unloads its own model.
    fn step(&mut self, gpu: &SharedGpu, now: i64, start: Instant, policies: &[ModelPolicy]) -> bool {
        let mut took = self.delays.step_ms;
        if let Some((at, length)) = self.delays.stall
            && now <= at
            && at < now + took.max(TICK_MS)
        {
            took = length;
        }
        self.next_step = now + took + i64::try_from(pause_after(millis(took), INTERVAL).as_millis()).unwrap();
        let world = self.world(gpu, now, start);
        for missing in self.others.observe(time(now), &world, &mut self.memory) {
            self.backoff.suspend(start + millis(now), &missing);
        }

        let plan = step(&mut self.memory, time(now), &world, policies);
        let mut commands = false;
        for decision in plan.decisions.iter().filter(|decision| decision.action == Action::Unload) {
            if decision.key() == key(self.own) {
                self.others.sent(decision.key());
                commands = true;
            } else {
                self.others.expect(time(now), decision);
            }
        }

        commands
    }

    fn ended(&mut self, now: i64, start: Instant, outcome: CommandOutcome, verdict: CommandVerdict) {
        let own = key(self.own);
        self.memory.settle(&own, outcome);
        self.others.ended(time(now), &own);
        self.backoff.note(start + millis(now), &own, verdict);
    }
}

#[derive(Clone, Copy)]
enum CommandStage {
    Out,
    Leaving,
}

/// `rounds`: how often other programs take as much memory again.
pub fn play(
    mut gpu: SharedGpu,
    mut controllers: Vec<SlowController>,
    policies: &[ModelPolicy],
    end_ms: i64,
    rounds: PressureRounds,
) -> PlayOutcome {
    let start = Instant::now();
    let mut commands_under_way: Vec<(i64, usize, CommandStage)> = Vec::new();
    let PressureRounds { count: mut rounds, calm_ms } = rounds;
    let mut played = PlayOutcome { commanded: Vec::new(), relieved_at: None };
    for now in (0..end_ms).step_by(usize::try_from(TICK_MS).unwrap()) {
        let due: Vec<(i64, usize, CommandStage)> =
            commands_under_way.iter().copied().filter(|(at, ..)| *at <= now).collect();
        commands_under_way.retain(|(at, ..)| *at > now);
        for (_, own, stage) in due {
            let controller = &mut controllers[own];
            match stage {
                CommandStage::Out if controller.failed < controller.delays.failing_commands => {
                    controller.failed += 1;
                    controller.ended(now, start, CommandOutcome::Nothing, CommandVerdict::Failed);
                }
                CommandStage::Out if gpu.models[own].unload_began_ms.is_some() => {
                    controller.ended(now, start, CommandOutcome::Nothing, CommandVerdict::Refused);
                }
                CommandStage::Out => {
                    gpu.models[own].unload_began_ms = Some(now);
                    played.commanded.push(own);
                    commands_under_way.push((now + gpu.models[own].unload_ms, own, CommandStage::Leaving));
                }
                CommandStage::Leaving => {
                    controller.ended(
                        now,
                        start,
                        CommandOutcome::Unloaded { completed_at: time(now) },
                        CommandVerdict::Done,
                    );
                }
            }
        }

        for controller in &mut controllers {
            controller.receive_answers(now);
            if now >= controller.next_step && controller.step(&gpu, now, start, policies) {
                commands_under_way.push((now + controller.delays.command_ms, controller.own, CommandStage::Out));
            }
        }

        played.note_pressure(now, gpu.available(now));
        if now > gpu.more_at_ms && played.relieved_at.is_some_and(|at| now - at >= calm_ms) && rounds > 0 {
            rounds -= 1;
            gpu.foreign_gib += 3;
        }
    }

    played
}

/// Once there has been no pressure for `calm_ms`, other programs take as much memory again, `count` times.
#[derive(Clone, Copy, Debug)]
pub struct PressureRounds {
    count: u32,
    calm_ms: i64,
}

const ONE_ROUND: PressureRounds = PressureRounds { count: 0, calm_ms: 0 };

/// What happened in a play.
#[derive(Debug)]
pub struct PlayOutcome {
    /// The models that were unloaded, in that order.
    pub commanded: Vec<usize>,
    /// Since when the GPU has enough memory; `None`: it is short of memory at the end.
    pub relieved_at: Option<i64>,
}

impl PlayOutcome {
    fn note_pressure(&mut self, now: i64, available: u64) {
        if available < BELOW_GIB * GIB {
            self.relieved_at = None;
        } else if self.relieved_at.is_none() {
            self.relieved_at = Some(now);
        }
    }
}

prop_compose! {
    fn paces()(
        answers_ms in vec(prop_oneof![20..400_i64, 400..4500_i64], 3),
        step_ms in prop_oneof![1..50_i64, 50..600_i64],
        stall in proptest::option::of((4000..9000_i64, 500..9000_i64)),
        command_ms in prop_oneof![10..500_i64, 500..4000_i64],
        failing_commands in prop_oneof![3 => Just(0_u32), 1 => 1..4_u32],
    ) -> ControllerDelays {
        ControllerDelays { answers_ms, step_ms, stall, command_ms, failing_commands }
    }
}

prop_compose! {
    /// Three models of 3 GiB of which one is enough.
    fn gpus()(order in Just((0..3_i64).collect::<Vec<_>>()).prop_shuffle()) -> SharedGpu {
        let models = order.iter().map(|order| SharedGpuModel::new(60_000 + 60_000 * order, 3, 500)).collect();
        SharedGpu { models, foreign_gib: 9, more_gib: 4, more_at_ms: 5000 }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// The whole machine stands still for some seconds, in the middle of a step of each sidecar.
    #[test]
    fn a_machine_that_stood_still_goes_on_at_once(gpu in gpus(), at in 4000..9000_i64, length in 3000..9000_i64, phases in vec(vec(0..SCRAPE_MS, 3), 3)) {
        let delays = ControllerDelays { answers_ms: vec![50; 3], step_ms: 5, stall: Some((at, length)), command_ms: 50, failing_commands: 0 };
        let controllers = (0..3).map(|own| SlowController::new(own, delays.clone(), &phases[own])).collect();
        let played = play(gpu.clone(), controllers, &[hard()], 120_000, ONE_ROUND);
        prop_assert!(played.relieved_at.is_some_and(|relieved| relieved < at.max(gpu.more_at_ms) + length + 5000), "{played:?}");
        let idlest = (0..3).max_by_key(|index| gpu.models[*index].idle_ms).unwrap();
        prop_assert_eq!(&played.commanded[..1], &[idlest]);
    }

    /// Three times one model is enough, and every sidecar has seen that it was.
    #[test]
    fn one_model_after_the_other_leaves_however_slow_the_sidecars_are(calm_ms in 500..4000_i64, gpu in gpus(), paces in vec(paces(), 3), phases in vec(vec(0..SCRAPE_MS, 3), 3)) {
        let controllers = (0..3).map(|own| SlowController::new(own, ControllerDelays{stall: None, failing_commands: 0, ..paces[own].clone()}, &phases[own])).collect();
        let played = play(gpu.clone(), controllers, &[hard()], gpu.more_at_ms + 180_000, PressureRounds { count: 2, calm_ms });
        let mut order: Vec<usize> = (0..3).collect();
        order.sort_by_key(|index| -gpu.models[*index].idle_ms);
        prop_assert!(played.commanded.len() == 3, "never {played:?}");
        prop_assert!(played.commanded == order, "wrong {order:?} {played:?}");
    }

    /// Also where commands fail, and where one sidecar stands still for longer than the others wait for it.
    #[test]
    fn the_gpu_is_relieved_in_bounded_time(gpu in gpus(), paces in vec(paces(), 3), phases in vec(vec(0..SCRAPE_MS, 3), 3)) {
        let controllers = (0..3).map(|own| SlowController::new(own, paces[own].clone(), &phases[own])).collect();
        let patience = i64::try_from(PEER_COMMAND_TIMEOUT.as_millis()).unwrap();
        let played = play(gpu.clone(), controllers, &[hard()], gpu.more_at_ms + 60_000 + patience, ONE_ROUND);
        prop_assert!(played.relieved_at.is_some_and(|at| at < gpu.more_at_ms + 60_000), "{played:?}");
    }
}
