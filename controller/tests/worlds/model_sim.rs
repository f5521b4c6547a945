//! One simulated model of a server: the state machine of the server, with a simulated runner and device.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hush_controller::observe::residency_state;
use hush_controller::simulate::trace::SplitMix64;
use hush_core::{ArrivalHistogram, Labels, ModelKey, ModelSample, ObservedModel, ProcessEnding, ResidencyState};
use hush_residency::machine::{
    CommandId, LeaseId, LeaseLossCause, LifecycleSettings, LoadCommand, LossCause, MachineEffect, MachineEvent,
    MachineTime, MemoryAvailability, MetricEvent, ModelMachine, ReclaimReport, ReclaimVerdict, RunnerLoss,
    UnloadCommand,
};

use crate::device_sim::DeviceSim;
use crate::dice_ext::DiceExt;

/// The bounds of the histogram of gaps, in seconds.
const ENDINGS: [ProcessEnding; 3] = [ProcessEnding::Always, ProcessEnding::OnRequest, ProcessEnding::Unavailable];
const BOUNDS: [u64; 12] = [1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400];
/// While a model waits for memory, its server measures the device at this interval.
const REMEASURE_MS: u64 = 1000;

/// What a simulated model is made of.
#[derive(Clone, Debug)]
pub struct ModelSimSpec {
    pub key: ModelKey,
    pub labels: Labels,
    /// The index of its device.
    pub device: usize,
    pub bytes: u64,
    pub headroom_bytes: u64,
    pub load_ms: u64,
    pub exit_ms: u64,
    pub settle_ms: u64,
    pub policy: LifecycleSettings,
    pub clients: ClientPattern,
    pub faults: ModelFaults,
}

/// When and how clients send requests for the model.
#[derive(Clone, Copy, Debug)]
pub struct ClientPattern {
    /// The mean gap in a burst.
    pub near_ms: u64,
    /// The mean gap between bursts.
    pub far_ms: u64,
    /// The most requests in a burst.
    pub burst: u64,
    /// The bursts come at regular times.
    pub regular: bool,
    pub work_ms: u64,
    /// How long a client waits for a cold model; `None`: as long as it takes.
    pub patience_ms: Option<u64>,
}

/// In how many of 100 cases something goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelFaults {
    pub load_fails: u64,
    pub runner_dies: u64,
    pub leaves_leftovers: u64,
}

/// How many requests came, and how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    pub arrived: u64,
    pub served: u64,
    /// Requests that were answered with an error.
    pub refused: u64,
}

/// What a server replies to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandReply {
    Accepted,
    Refused,
    Unloaded,
    Loaded,
}

/// The time and the device of a model, and the replies to its controller.
pub struct SimContext<'a> {
    pub now: u64,
    pub device: &'a mut DeviceSim,
    pub dice: &'a mut SplitMix64,
    pub replies: &'a mut Vec<(CommandId, CommandReply)>,
}

impl SimContext<'_> {
    fn reply(&mut self, command: CommandId, reply: CommandReply) {
        self.replies.push((command, reply));
    }
}

/// What will happen to the runner, its requests or the device.
#[derive(Clone, Copy, Debug)]
enum ScheduledEvent {
    Loaded(u64),
    LoadFails { generation: u64, out_of_memory: bool },
    RunnerExited(u64),
    MemoryReturned(u64),
    RequestEnds(LeaseId),
    RunnerDies(u64),
    Remeasure,
}

/// A simulated model.
#[derive(Debug)]
pub struct ModelSim {
    pub spec: ModelSimSpec,
    machine: ModelMachine,
    scheduled: Vec<(u64, ScheduledEvent)>,
    /// The requests without an answer, and how often each has lost its runner.
    waiting: BTreeMap<LeaseId, u32>,
    next_lease: u64,
    next_arrival: u64,
    left_in_burst: u64,
    held_bytes: u64,
    /// The memory in bytes that the model needs, as its server knows it.
    need_bytes: u64,
    ready_since: Option<u64>,
    last_load_ms: u64,
    gaps: [u64; BOUNDS.len()],
    gap_count: u64,
    pub answered: RequestCounts,
    pub served_at: u64,
    /// Since when the model is idle, or busy.
    pub idle_since: Option<u64>,
    /// How many loads have begun.
    pub loads: u64,
}

impl ModelSim {
    pub fn new(spec: ModelSimSpec, dice: &mut SplitMix64) -> Self {
        let machine = ModelMachine::new(spec.policy);

        // The first estimate may be too low or too high.
        let need_bytes = spec.bytes * dice.between(85, 110) / 100;
        let next_arrival = dice.around_ms(spec.clients.near_ms);
        Self {
            spec,
            machine,
            scheduled: Vec::new(),
            waiting: BTreeMap::new(),
            next_lease: 0,
            next_arrival,
            left_in_burst: 0,
            held_bytes: 0,
            need_bytes,
            ready_since: None,
            last_load_ms: 0,
            gaps: [0; BOUNDS.len()],
            gap_count: 0,
            answered: RequestCounts::default(),
            served_at: 0,
            idle_since: None,
            loads: 0,
        }
    }

    /// Applies everything that is due by now.
    pub fn advance(&mut self, context: &mut SimContext<'_>) {
        while self.next_arrival <= context.now {
            self.arrive(context);
        }

        while let Some(at) = self.scheduled.iter().position(|(due, _)| *due <= context.now) {
            let (_, due) = self.scheduled.remove(at);
            if let Some(event) = self.event_for(due, context) {
                self.apply_event(event, context);
            }
        }

        if self.machine.deadline().is_some_and(|deadline| deadline.as_millis() <= context.now) {
            self.apply_event(MachineEvent::Tick, context);
        }
    }

    /// From now on no requests come, and nothing goes wrong.
    pub fn come_to_rest(&mut self) {
        self.next_arrival = u64::MAX;
        self.spec.faults = ModelFaults::default();
    }

    fn arrive(&mut self, context: &mut SimContext<'_>) {
        let clients = self.spec.clients;
        if self.left_in_burst == 0 {
            self.left_in_burst = context.dice.between(1, clients.burst);
            let irregular = context.dice.around_ms(clients.far_ms);
            self.next_arrival += if clients.regular { clients.far_ms } else { irregular };
        } else {
            self.next_arrival += context.dice.around_ms(clients.near_ms);
        }

        self.left_in_burst -= 1;
        self.answered.arrived += 1;
        self.send_request(0, context);
    }

    /// `losses`: how often the request has lost its runner.
    fn send_request(&mut self, losses: u32, context: &mut SimContext<'_>) {
        self.next_lease += 1;
        let (lease, again) = (LeaseId(self.next_lease), losses > 0);
        let patience = self.spec.clients.patience_ms.map(Duration::from_millis);
        self.waiting.insert(lease, losses);
        self.apply_event(MachineEvent::Arrive { lease, again, patience }, context);
    }

    pub fn unload(&mut self, command: CommandId, unload: UnloadCommand, context: &mut SimContext<'_>) {
        self.apply_event(MachineEvent::Unload { command, unload }, context);
    }

    pub fn load(&mut self, command: CommandId, context: &mut SimContext<'_>) {
        let load = LoadCommand { if_generation: None, despite_hold: false };
        self.apply_event(MachineEvent::Load { command, load }, context);
    }

    /// The event for the machine when something scheduled happens; `None`: it no longer matters.
    fn event_for(&mut self, due: ScheduledEvent, context: &mut SimContext<'_>) -> Option<MachineEvent> {
        let SimContext { now, device, dice, .. } = context;
        let now = *now;
        Some(match due {
            ScheduledEvent::Loaded(generation) => {
                self.last_load_ms = self.spec.load_ms;
                self.need_bytes = self.spec.bytes;
                if dice.chance(self.spec.faults.runner_dies) {
                    self.scheduled.push((now + dice.around_ms(60_000), ScheduledEvent::RunnerDies(generation)));
                }

                MachineEvent::Loaded { generation }
            }
            ScheduledEvent::LoadFails { generation, out_of_memory } => {
                self.need_bytes = self.need_bytes.max(self.spec.bytes);
                MachineEvent::LoadFailed { generation, cause: "simulated".to_owned(), out_of_memory }
            }
            ScheduledEvent::RunnerExited(generation) => {
                self.free_memory(now, device, dice);
                MachineEvent::Exited { generation }
            }
            ScheduledEvent::MemoryReturned(generation) => {
                MachineEvent::Reclaimed { generation, memory: Some(self.reclaimed()) }
            }
            ScheduledEvent::RequestEnds(lease) => {
                if self.waiting.remove(&lease).is_some() {
                    self.answered.served += 1;
                    self.served_at = now;
                }

                MachineEvent::End { lease }
            }
            ScheduledEvent::RunnerDies(generation) => {
                if self.held_bytes == 0 || self.machine.generation() != generation {
                    return None;
                }

                self.scheduled.push((now + self.spec.exit_ms, ScheduledEvent::RunnerExited(generation)));
                let loss = RunnerLoss { cause: LossCause::Killed, detail: "simulated".to_owned() };
                MachineEvent::RunnerLost { generation, loss }
            }
            ScheduledEvent::Remeasure => {
                self.machine.shortage()?;
                self.scheduled.push((now + REMEASURE_MS, ScheduledEvent::Remeasure));
                MachineEvent::Memory { memory: self.measure(device) }
            }
        })
    }

    /// The memory of a runner that has exited becomes free, or a part of it after a while.
    fn free_memory(&mut self, now: u64, device: &mut DeviceSim, dice: &mut SplitMix64) {
        device.models_bytes -= self.held_bytes;
        if dice.chance(self.spec.faults.leaves_leftovers) {
            let stays_ms = dice.pick(&[5_000, 60_000, 900_000]);
            device.leftovers.push((now + stays_ms, self.held_bytes / 4));
        }

        self.held_bytes = 0;
        self.scheduled.retain(|(_, due)| !matches!(due, ScheduledEvent::RequestEnds(_)));
    }

    const fn reclaimed(&self) -> ReclaimReport {
        ReclaimReport {
            vram_before_bytes: self.spec.bytes,
            reclaimed_bytes: self.spec.bytes,
            residual_bytes: 0,
            taken_bytes: 0,
            verdict: ReclaimVerdict::Returned,
        }
    }

    fn measure(&self, device: &DeviceSim) -> MemoryAvailability {
        let demand_bytes = self.need_bytes + self.spec.headroom_bytes;
        MemoryAvailability { available_bytes: Some(device.available_bytes()), demand_bytes }
    }

    /// Gives an event to the machine, and simulates the effects that it asks for.
    fn apply_event(&mut self, event: MachineEvent, context: &mut SimContext<'_>) {
        let moment = MachineTime::from_millis(context.now);
        let mut events = VecDeque::from([event]);
        let mut lost = Vec::new();
        while let Some(event) = events.pop_front() {
            for effect in self.machine.step(moment, event) {
                match effect {
                    MachineEffect::Measure => {
                        events.push_back(MachineEvent::Memory { memory: self.measure(context.device) });
                        self.scheduled.retain(|(_, due)| !matches!(due, ScheduledEvent::Remeasure));
                        self.scheduled.push((context.now + REMEASURE_MS, ScheduledEvent::Remeasure));
                    }
                    MachineEffect::Lost { lease, why } => {
                        self.scheduled
                            .retain(|(_, due)| !matches!(due, ScheduledEvent::RequestEnds(other) if *other == lease));
                        lost.extend(self.waiting.remove(&lease).map(|losses| (losses, why)));
                    }
                    other => self.simulate(other, context),
                }
            }
        }

        let ready = self.state() == ResidencyState::Ready;
        self.ready_since = if ready { self.ready_since.or(Some(context.now)) } else { None };
        self.idle_since = self.machine.idle_since().map(MachineTime::as_millis);

        for (losses, why) in lost {
            self.handle_loss(losses, &why, context);
        }
    }

    /// Simulates an effect that leads to no further event at once.
    fn simulate(&mut self, effect: MachineEffect, context: &mut SimContext<'_>) {
        let now = context.now;
        match effect {
            MachineEffect::StartRunner { generation } => self.start_runner(generation, context),
            MachineEffect::StopRunner { generation, .. } | MachineEffect::KillRunner { generation } => {
                self.scheduled
                    .retain(|(_, due)| matches!(due, ScheduledEvent::Remeasure | ScheduledEvent::RequestEnds(_)));
                self.scheduled.push((now + self.spec.exit_ms, ScheduledEvent::RunnerExited(generation)));
            }
            MachineEffect::Reclaim { generation } => {
                self.scheduled.push((now + self.spec.settle_ms, ScheduledEvent::MemoryReturned(generation)));
            }
            MachineEffect::Grant { lease, .. } => {
                let work_ms = context.dice.around_ms(self.spec.clients.work_ms);
                self.scheduled.push((now + work_ms, ScheduledEvent::RequestEnds(lease)));
            }
            MachineEffect::Refuse { lease, .. } => {
                self.waiting.remove(&lease);
                self.answered.refused += 1;
            }
            MachineEffect::ReplyLoad { command, result } => {
                context.reply(command, if result.is_ok() { CommandReply::Loaded } else { CommandReply::Refused });
            }
            MachineEffect::ReplyUnload { command, result } => {
                context.reply(command, if result.is_ok() { CommandReply::Accepted } else { CommandReply::Refused });
            }
            MachineEffect::Unloaded { command, .. } => context.reply(command, CommandReply::Unloaded),
            MachineEffect::Count(MetricEvent::Interarrival(gap)) => self.count_gap(gap),
            // Models of the simulation are loaded and unloaded by the machine alone.
            MachineEffect::AdoptRunner { .. }
            | MachineEffect::UnloadGivenUp { .. }
            | MachineEffect::EndUnusedProcess => {}
            MachineEffect::Measure | MachineEffect::Lost { .. } | MachineEffect::Count(_) | MachineEffect::Stopped => {}
        }
    }

    /// As the server does it: displaced requests start again, and a request whose runner died is tried once more.
    fn handle_loss(&mut self, losses: u32, why: &LeaseLossCause, context: &mut SimContext<'_>) {
        if matches!(why, LeaseLossCause::Runner(_)) && losses > 0 {
            self.answered.refused += 1;
        } else {
            self.send_request(losses + 1, context);
        }
    }

    fn start_runner(&mut self, generation: u64, context: &mut SimContext<'_>) {
        self.loads += 1;
        let available = context.device.available_bytes();
        let fits = available >= self.spec.bytes;
        self.held_bytes = self.spec.bytes.min(available);
        context.device.models_bytes += self.held_bytes;

        let fails = !fits || context.dice.chance(self.spec.faults.load_fails);
        let due = if fails {
            ScheduledEvent::LoadFails { generation, out_of_memory: !fits }
        } else {
            ScheduledEvent::Loaded(generation)
        };

        self.scheduled.push((context.now + self.spec.load_ms, due));
    }

    fn count_gap(&mut self, gap: Duration) {
        self.gap_count += 1;
        for (bound, count) in BOUNDS.iter().zip(&mut self.gaps) {
            *count += u64::from(gap <= Duration::from_secs(*bound));
        }
    }

    pub fn state(&self) -> ResidencyState {
        residency_state(self.machine.state())
    }

    pub const fn ready_since(&self) -> Option<u64> {
        self.ready_since
    }

    pub const fn generation(&self) -> u64 {
        self.machine.generation()
    }

    /// The number of requests that have no answer yet.
    pub fn unanswered(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// What the metrics of the server show of the model.
    pub fn sample(&self, now: u64, device: &DeviceSim) -> ObservedModel {
        let since = |at: Option<u64>| Duration::from_millis(at.map_or(0, |at| now - at));
        ObservedModel {
            key: self.spec.key.clone(),
            app: "whisper".to_owned(),
            labels: self.spec.labels.clone(),
            sample: ModelSample {
                gpu: Some(device.uuid.clone()),
                state: self.state(),
                idle: since(self.idle_since),
                idle_since: self.idle_since.map(Duration::from_millis),
                inflight: self.machine.inflight() as u64,
                queued: self.machine.queued() as u64,
                vram_bytes: if self.held_bytes > 0 { self.held_bytes } else { self.need_bytes },
                generation: self.generation(),
                loaded_for: since(self.ready_since),
                reload: Duration::from_millis(self.last_load_ms),
                demand_bytes: self.machine.shortage().map_or(0, |memory| memory.demand_bytes),
                hold: Duration::ZERO,
                arrivals: Some(ArrivalHistogram {
                    buckets: BOUNDS.iter().map(|bound| Duration::from_secs(*bound)).zip(self.gaps).collect(),
                    count: self.gap_count,
                }),
            },
            sample_age: Duration::ZERO,
            process_ending: ENDINGS[self.spec.key.model.len() % ENDINGS.len()],
            back_off: false,
        }
    }
}
