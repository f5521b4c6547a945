//! One GPU and its models over virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_core::{
    Action, ArrivalHistogram, CommandOutcome, Decision, DecisionReason, GpuId, Labels, ModelKey, ModelPolicy,
    ModelSample, ObservedGpu, ObservedModel, ProcessEnding, ResidencyState, ServerName, StepMemory, World,
};
use jiff::{SignedDuration, Timestamp};

use super::figures::SimulationFigures;
use super::trace::TraceRequest;

/// The time between two decisions of the core.
const STEP: Duration = Duration::from_secs(5);
/// How long the simulation goes on after the last request, so that the cost of a model that stays is counted.
const AFTER_LAST_REQUEST: Duration = Duration::from_secs(3600);
/// Monday, 5 January 2026, midnight UTC.
const START_SECONDS: i64 = 1_767_571_200;
/// Upper bounds of the histogram of gaps between requests, in seconds, as servers have them.
const GAP_BOUNDS: [u64; 16] = [1, 5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 57_600, 86_400];

/// The simulated GPU and its models.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    pub gpu_bytes: u64,
    /// Memory that each model holds.
    pub vram_bytes: u64,
    /// How long a load takes.
    pub reload: Duration,
}

/// Runs the trace, which must be sorted by time, under the policies.
pub fn replay(
    requests: &[TraceRequest],
    policies: &[ModelPolicy],
    labels: &Labels,
    server: &str,
    hardware: &Hardware,
) -> SimulationFigures {
    let last = requests.last().map_or(Duration::ZERO, |request| request.at);
    replay_until(last + AFTER_LAST_REQUEST, requests, policies, labels, server, hardware)
}

/// As [`replay`], up to a time after the beginning of the trace.
pub fn replay_until(
    end: Duration,
    requests: &[TraceRequest],
    policies: &[ModelPolicy],
    labels: &Labels,
    server: &str,
    hardware: &Hardware,
) -> SimulationFigures {
    let mut gpu = SimulatedGpu::new(labels, server, hardware);
    let mut memory = StepMemory::default();
    let mut next = 0;
    let mut now = Duration::ZERO;

    while now <= end {
        while let Some(request) = requests.get(next).filter(|request| request.at <= now) {
            gpu.advance(request.at);
            gpu.add_request(request);
            next += 1;
        }
        gpu.advance(now);

        let plan = hush_core::step(&mut memory, timestamp(now), &gpu.world(now), policies);
        for decision in plan.decisions.iter().filter(|decision| !decision.dry_run) {
            let settled = gpu.carry_out(now, decision);
            memory.settle(&decision.key(), settled);
        }
        now += STEP;
    }
    gpu.finish(end)
}

/// The timestamp of a time since the beginning of the trace.
fn timestamp(at: Duration) -> Timestamp {
    let start = Timestamp::from_second(START_SECONDS).unwrap_or(Timestamp::UNIX_EPOCH);
    start + SignedDuration::try_from(at).unwrap_or(SignedDuration::MAX)
}

#[derive(Debug)]
struct SimulatedGpu<'a> {
    labels: &'a Labels,
    server: ServerName,
    hardware: &'a Hardware,
    models: BTreeMap<String, SimulatedModel>,
    figures: SimulationFigures,
}

#[derive(Debug, Default)]
struct SimulatedModel {
    /// When the load began, and when it ends or has ended.
    loaded: Option<(Duration, Duration)>,
    generation: u64,
    /// The arrival and the duration of requests that wait for the model.
    waiting: Vec<(Duration, Duration)>,
    /// The ends of requests in flight.
    working: Vec<Duration>,
    /// When the last request ended, or the load did.
    idle_since: Duration,
    held_until: Duration,
    last_arrival: Option<Duration>,
    /// How many gaps were at most as long as each bound.
    gaps: [u64; GAP_BOUNDS.len()],
    gap_count: u64,
}

impl<'a> SimulatedGpu<'a> {
    fn new(labels: &'a Labels, server: &str, hardware: &'a Hardware) -> Self {
        let server = ServerName(server.to_owned());
        Self { labels, server, hardware, models: BTreeMap::new(), figures: SimulationFigures::default() }
    }

    fn available_bytes(&self) -> u64 {
        let loaded = self.models.values().filter(|model| model.loaded.is_some()).count() as u64;
        self.hardware.gpu_bytes.saturating_sub(loaded * self.hardware.vram_bytes)
    }

    fn add_request(&mut self, request: &TraceRequest) {
        self.figures.requests += 1;
        let model = self.models.entry(request.model.clone()).or_default();

        if let Some(last) = model.last_arrival.replace(request.at) {
            let gap = request.at.saturating_sub(last);
            model.gap_count += 1;
            for (bound, count) in GAP_BOUNDS.iter().zip(&mut model.gaps) {
                *count += u64::from(gap <= Duration::from_secs(*bound));
            }
        }

        if model.loaded.is_none() && model.waiting.is_empty() {
            self.figures.cold_starts += 1;
        }
        model.waiting.push((request.at, request.busy));
        self.advance(request.at);
    }

    /// Starts loads that requests wait for, starts the requests of ready models, and ends requests.
    fn advance(&mut self, now: Duration) {
        for name in self.models.keys().cloned().collect::<Vec<_>>() {
            let has_room = self.available_bytes() >= self.hardware.vram_bytes;
            let Some(model) = self.models.get_mut(&name) else { continue };

            if model.loaded.is_none() && !model.waiting.is_empty() && has_room && now >= model.held_until {
                model.load(now, self.hardware.reload);
            }
            if let Some((_, ready)) = model.loaded.filter(|(_, ready)| *ready <= now) {
                for (arrived, busy) in std::mem::take(&mut model.waiting) {
                    let start = ready.max(arrived);
                    self.figures.waited += start - arrived;
                    model.working.push(start + busy);
                }
            }

            let ended = model.working.iter().filter(|end| **end <= now).max().copied();
            model.idle_since = model.idle_since.max(ended.unwrap_or_default());
            model.working.retain(|end| *end > now);
        }
    }

    fn world(&self, now: Duration) -> World {
        let used = self.hardware.gpu_bytes - self.available_bytes();
        let gpu = ObservedGpu {
            uuid: GpuId("GPU-simulated".to_owned()),
            node: "simulated".to_owned(),
            total_bytes: self.hardware.gpu_bytes,
            used_bytes: used,
            sample_age: Duration::ZERO,
            disputed: false,
        };
        let models = self.models.iter().map(|(name, model)| self.model(now, name, model)).collect();
        World { stale_after: STEP * 3, gpus: vec![gpu], models, namespaces: BTreeMap::new() }
    }

    fn model(&self, now: Duration, name: &str, model: &SimulatedModel) -> ObservedModel {
        let is_asked_for = !model.waiting.is_empty();
        let (state, loaded_for) = match model.loaded {
            Some((_, ready)) if ready <= now => (ResidencyState::Ready, now - ready),
            Some(_) => (ResidencyState::Loading, Duration::ZERO),
            None if is_asked_for => (ResidencyState::WaitingForMemory, Duration::ZERO),
            None => (ResidencyState::Unloaded, Duration::ZERO),
        };
        let is_idle = state == ResidencyState::Ready && model.working.is_empty() && !is_asked_for;

        ObservedModel {
            key: ModelKey { server: self.server.clone(), model: name.to_owned() },
            app: "whisper".to_owned(),
            labels: self.labels.clone(),
            sample: ModelSample {
                gpu: Some(GpuId("GPU-simulated".to_owned())),
                state,
                idle: if is_idle { now.saturating_sub(model.idle_since) } else { Duration::ZERO },
                idle_since: None,
                inflight: model.working.len() as u64,
                queued: model.waiting.len() as u64,
                vram_bytes: self.hardware.vram_bytes,
                generation: model.generation,
                loaded_for,
                reload: self.hardware.reload,
                demand_bytes: if state == ResidencyState::WaitingForMemory { self.hardware.vram_bytes } else { 0 },
                hold: Duration::ZERO,
                arrivals: Some(ArrivalHistogram {
                    buckets: GAP_BOUNDS.iter().map(|bound| Duration::from_secs(*bound)).zip(model.gaps).collect(),
                    count: model.gap_count,
                }),
            },
            sample_age: Duration::ZERO,
            process_ending: ProcessEnding::Always,
            back_off: false,
        }
    }

    fn carry_out(&mut self, now: Duration, decision: &Decision) -> CommandOutcome {
        let has_room = self.available_bytes() >= self.hardware.vram_bytes;
        let Some(model) = self.models.get_mut(&decision.model) else { return CommandOutcome::Nothing };

        if decision.action == Action::Load {
            if model.loaded.is_some() || !has_room || now < model.held_until {
                return CommandOutcome::Nothing;
            }
            model.load(now, self.hardware.reload);
            self.figures.warm_loads += 1;
            return CommandOutcome::Loaded;
        }

        let Some((since, _)) = model.loaded else { return CommandOutcome::Nothing };
        // Requests in flight end first, and the model holds its memory until then.
        let end = model.working.iter().max().copied().unwrap_or(now).max(now);
        model.loaded = None;
        model.working.clear();
        model.held_until = end + Duration::from_secs(decision.hold_seconds.unwrap_or(0));
        self.figures.held_byte_ms += u128::from(self.hardware.vram_bytes) * (end - since).as_millis();

        match decision.reason {
            DecisionReason::IdleTimeout | DecisionReason::OnDemand => self.figures.idle_unloads += 1,
            _ => self.figures.evictions += 1,
        }
        CommandOutcome::Unloaded { completed_at: timestamp(now) }
    }

    fn finish(mut self, end: Duration) -> SimulationFigures {
        for (since, _) in self.models.values().filter_map(|model| model.loaded) {
            self.figures.held_byte_ms += u128::from(self.hardware.vram_bytes) * end.saturating_sub(since).as_millis();
        }
        self.figures
    }
}

impl SimulatedModel {
    fn load(&mut self, now: Duration, reload: Duration) {
        self.loaded = Some((now, now + reload));
        self.idle_since = now + reload;
        self.generation += 1;
    }
}
