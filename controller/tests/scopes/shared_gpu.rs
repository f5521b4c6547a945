//! A GPU with several servers, and controllers each of which samples the servers at times of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_controller::control_loop::peer_actions::PeerActions;
use hush_core::{
    Action, CommandOutcome, GpuId, Labels, MemoryAmount, ModelKey, ModelPolicy, ModelSample, ObservedGpu,
    ObservedModel, PolicyKey, PolicyResidency, PolicySpec, ProcessEnding, ResidencyState, Selector, ServerName,
    StepMemory, World, step,
};
use jiff::Timestamp;

pub const GIB: u64 = 1 << 30;
pub const SCRAPE_MS: i64 = 1000;
const TICK_MS: i64 = 50;
pub const GPU_GIB: u64 = 24;
/// The beginning of the world, in Unix time.
const BEGAN_MS: i64 = 1_795_000_000_000;
pub const STALE_AFTER: Duration = Duration::from_secs(15);

/// A model whose behaviour is given.
#[derive(Clone, Copy, Debug)]
pub struct SharedGpuModel {
    pub idle_ms: i64,
    /// Whether its server also reports since when the model is idle.
    pub reports_idle_since: bool,
    pub gib: u64,
    /// The time from the command until the memory is free.
    pub unload_ms: i64,
    /// When the unload began.
    pub unload_began_ms: Option<i64>,
    /// The controller of its own server is gone.
    pub has_no_controller: bool,
    /// When a person unloads the model.
    pub manual_unload_ms: Option<i64>,
}

impl SharedGpuModel {
    pub const fn new(idle_ms: i64, gib: u64, unload_ms: i64) -> Self {
        Self {
            idle_ms,
            reports_idle_since: true,
            gib,
            unload_ms,
            unload_began_ms: None,
            has_no_controller: false,
            manual_unload_ms: None,
        }
    }

    const fn state(&self, ms: i64) -> ResidencyState {
        match self.unload_began_ms {
            Some(left) if ms >= left + self.unload_ms => ResidencyState::Unloaded,
            Some(left) if ms >= left => ResidencyState::Unloading,
            _ => ResidencyState::Ready,
        }
    }
}

/// A GPU that the models share with other programs.
#[derive(Clone, Debug)]
pub struct SharedGpu {
    pub models: Vec<SharedGpuModel>,
    /// What other programs hold from the beginning.
    pub foreign_gib: u64,
    /// What other programs hold in addition from `more_at_ms` on.
    pub more_gib: u64,
    pub more_at_ms: i64,
}

impl SharedGpu {
    pub fn available(&self, ms: i64) -> u64 {
        let held =
            self.models.iter().filter(|model| model.state(ms) != ResidencyState::Unloaded).map(|model| model.gib);
        let more = if ms >= self.more_at_ms { self.more_gib } else { 0 };
        GPU_GIB.saturating_sub(self.foreign_gib + more + held.sum::<u64>()) * GIB
    }

    /// The sample at `now` of a scrape that began at `ms` and was answered after `delay_ms`.
    pub fn sample(&self, index: usize, ms: i64, delay_ms: i64, now: i64) -> ObservedModel {
        let model = &self.models[index];
        ObservedModel {
            key: key(index),
            app: "whisper".to_owned(),
            labels: Labels::new(),
            sample: ModelSample {
                gpu: Some("GPU-a".into()),
                state: model.state(ms),
                idle: millis(model.idle_ms + ms + delay_ms),
                idle_since: model.reports_idle_since.then(|| millis(BEGAN_MS - model.idle_ms)),
                inflight: 0,
                queued: 0,
                vram_bytes: model.gib * GIB,
                generation: 1,
                loaded_for: Duration::from_secs(3600),
                reload: Duration::from_secs(1),
                demand_bytes: 0,
                hold: Duration::ZERO,
                arrivals: None,
            },
            sample_age: millis(now - ms),
            process_ending: ProcessEnding::Always,
            back_off: false,
        }
    }

    fn world(&self, sampled_ms: &[i64], answer_delays: &[i64], now: i64) -> World {
        let newest = sampled_ms.iter().copied().max().unwrap();
        let gpu = ObservedGpu {
            uuid: GpuId::from("GPU-a"),
            node: "n1".to_owned(),
            total_bytes: GPU_GIB * GIB,
            used_bytes: GPU_GIB * GIB - self.available(newest),
            sample_age: millis(now - newest),
            disputed: false,
        };

        let models = (0..self.models.len())
            .map(|index| self.sample(index, sampled_ms[index], answer_delays[index], now))
            .collect();
        World { stale_after: STALE_AFTER, gpus: vec![gpu], models, namespaces: BTreeMap::new() }
    }
}

pub fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap())
}

pub fn key(index: usize) -> ModelKey {
    ModelKey { server: ServerName(format!("a/w{index}")), model: "turbo".to_owned() }
}

pub fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(BEGAN_MS + ms).unwrap()
}

/// A controller with the times at which it scrapes each server, and the models that it commands.
pub struct ScopedController {
    phases: Vec<i64>,
    /// How long each server takes to answer this controller.
    answer_delays: Vec<i64>,
    /// The only model that the controller commands; `None`: all of them.
    own: Option<usize>,
    memory: StepMemory,
    others: PeerActions,
    absent: Vec<usize>,
}

impl ScopedController {
    pub fn new(phases: Vec<i64>, own: Option<usize>) -> Self {
        let answer_delays = vec![0; phases.len()];
        Self {
            phases,
            answer_delays,
            own,
            memory: StepMemory::default(),
            others: PeerActions::default(),
            absent: Vec::new(),
        }
    }

    pub fn answer_delays(self, answer_delays: Vec<i64>) -> Self {
        Self { answer_delays, ..self }
    }

    /// Gives the models that the controller unloads.
    fn step(&mut self, gpu: &SharedGpu, now: i64, policies: &[ModelPolicy]) -> Vec<usize> {
        let sampled_ms: Vec<i64> = self.phases.iter().map(|phase| now - (now - phase).rem_euclid(SCRAPE_MS)).collect();
        let mut world = gpu.world(&sampled_ms, &self.answer_delays, now);
        for model in &mut world.models {
            model.back_off = self.absent.iter().any(|index| key(*index) == model.key);
        }

        for missing in self.others.observe(time(now), &world, &mut self.memory) {
            self.absent.extend((0..gpu.models.len()).find(|index| key(*index) == missing));
        }

        let plan = step(&mut self.memory, time(now), &world, policies);
        let mut commands = Vec::new();
        for decision in plan.decisions.iter().filter(|decision| decision.action == Action::Unload) {
            let index = (0..gpu.models.len()).find(|index| key(*index) == decision.key()).unwrap();
            if self.own.is_none_or(|own| own == index) {
                self.others.sent(decision.key());
                commands.push(index);
            } else {
                self.others.expect(time(now), decision);
            }
        }

        commands
    }

    fn ended(&mut self, now: i64, index: usize, outcome: CommandOutcome) {
        self.memory.settle(&key(index), outcome);
        self.others.ended(time(now), &key(index));
    }
}

/// The models that were unloaded, in that order; a model that was unloaded again is there again.
pub fn play(
    mut gpu: SharedGpu,
    mut controllers: Vec<ScopedController>,
    policies: &[ModelPolicy],
    end_ms: i64,
) -> Vec<usize> {
    let mut commanded = Vec::new();
    let mut under_way: Vec<(i64, usize, usize)> = Vec::new();
    for now in (SCRAPE_MS..end_ms).step_by(usize::try_from(TICK_MS).unwrap()) {
        for model in &mut gpu.models {
            if model.manual_unload_ms.is_some_and(|at| at <= now) && model.unload_began_ms.is_none() {
                model.unload_began_ms = Some(now);
            }
        }

        under_way.retain(|(ends, controller, index)| {
            let over = *ends <= now;
            if over {
                let outcome = CommandOutcome::Unloaded { completed_at: time(*ends) };
                controllers[*controller].ended(now, *index, outcome);
            }

            !over
        });

        for (at, controller) in controllers.iter_mut().enumerate() {
            if controller.own.is_some_and(|own| gpu.models[own].has_no_controller) {
                continue;
            }

            for index in controller.step(&gpu, now, policies) {
                let model = &mut gpu.models[index];
                if model.unload_began_ms.is_some() {
                    // The server refuses: the generation is another, or the model is leaving already.
                    controller.ended(now, index, CommandOutcome::Nothing);
                    continue;
                }

                model.unload_began_ms = Some(now);
                commanded.push(index);
                under_way.push((now + model.unload_ms, at, index));
            }
        }
    }

    commanded
}

pub fn policy(asks: PolicySpec) -> ModelPolicy {
    let asks =
        PolicySpec { residency: Some(PolicyResidency::Resident), min_reclaim: Some(MemoryAmount::Bytes(GIB)), ..asks };
    ModelPolicy {
        name: PolicyKey { namespace: Some("a".to_owned()), name: "speech".to_owned() },
        selector: Selector::default(),
        namespace_selector: None,
        models: Vec::new(),
        dry_run: false,
        asks,
    }
}
