//! One model of a server: the server's own state machine, with a runner and a device that are played.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hush_controller::simulate::trace::Dice;
use hush_core::{ArrivalHistogram, Labels, ModelKey, ObservedModel, ResidencyState};
use hush_server::residency::machine::{
    CommandId, Count, DeviceMemory, Effect, Event, LeaseId, Load, Loss, LossCause, LostWhy, Machine, Moment, Policy,
    Reclaimed, Unload, Verdict,
};

use crate::device::Device;
use crate::dice::Throw;

/// Bounds of the histogram of gaps, in seconds.
const BOUNDS: [u64; 12] = [1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400];
/// While a model waits for memory its server looks at the device so often.
const LOOK_MS: u64 = 1000;

#[derive(Clone, Debug)]
pub struct GuestSpec {
    pub key: ModelKey,
    pub labels: Labels,
    /// Place of its device.
    pub device: usize,
    pub bytes: u64,
    pub headroom_bytes: u64,
    pub load_ms: u64,
    pub exit_ms: u64,
    pub settle_ms: u64,
    pub policy: Policy,
    pub clients: Clients,
    pub troubles: Troubles,
}

/// Who asks for the model.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// Mean of the gaps in a burst, and between bursts.
    pub near_ms: u64,
    pub far_ms: u64,
    /// Requests in a burst, at most.
    pub burst: u64,
    /// The bursts come like clockwork.
    pub regular: bool,
    pub work_ms: u64,
    /// How long a client waits for a cold model; `None`: as long as it takes.
    pub patience_ms: Option<u64>,
}

/// In so many of a hundred cases.
#[derive(Clone, Copy, Debug, Default)]
pub struct Troubles {
    pub load_fails: u64,
    pub runner_dies: u64,
    pub leaves_residue: u64,
}

/// What became of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    pub arrived: u64,
    pub served: u64,
    /// An error that says why.
    pub refused: u64,
}

/// What a controller hears of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Accepted,
    Refused,
    Unloaded,
    Loaded,
}

/// Where and when a model lives, and what its controller is to hear.
pub struct Scene<'a> {
    pub now: u64,
    pub device: &'a mut Device,
    pub dice: &'a mut Dice,
    pub replies: &'a mut Vec<(CommandId, Reply)>,
}

impl Scene<'_> {
    fn reply(&mut self, command: CommandId, reply: Reply) {
        self.replies.push((command, reply));
    }
}

#[derive(Clone, Copy, Debug)]
enum Due {
    Loaded(u64),
    LoadFails { generation: u64, out_of_memory: bool },
    Exited(u64),
    Settled(u64),
    Ends(LeaseId),
    Dies(u64),
    Look,
}

#[derive(Debug)]
pub struct Guest {
    pub spec: GuestSpec,
    machine: Machine,
    agenda: Vec<(u64, Due)>,
    /// Requests without an answer, and how often each has lost its runner.
    waiting: BTreeMap<LeaseId, u32>,
    next_lease: u64,
    next_arrival: u64,
    left_in_burst: u64,
    held_bytes: u64,
    /// What its server knows that it needs.
    need_bytes: u64,
    ready_since: Option<u64>,
    last_load_ms: u64,
    gaps: [u64; BOUNDS.len()],
    gap_count: u64,
    pub answered: Answered,
    pub served_at: u64,
    /// Since when it is as idle, or as busy, as it is.
    pub idle_since: Option<u64>,
    /// Loads begun.
    pub loads: u64,
}

impl Guest {
    pub fn new(spec: GuestSpec, dice: &mut Dice) -> Self {
        let machine = Machine::new(spec.policy);
        // A first estimate may be wrong either way.
        let need_bytes = spec.bytes * dice.between(85, 110) / 100;
        let next_arrival = dice.around_ms(spec.clients.near_ms);
        Self {
            spec,
            machine,
            agenda: Vec::new(),
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
            answered: Answered::default(),
            served_at: 0,
            idle_since: None,
            loads: 0,
        }
    }

    /// Everything that is due by now.
    pub fn advance(&mut self, scene: &mut Scene<'_>) {
        while self.next_arrival <= scene.now {
            self.arrive(scene);
        }
        while let Some(at) = self.agenda.iter().position(|(due, _)| *due <= scene.now) {
            let (_, due) = self.agenda.remove(at);
            if let Some(event) = self.due(due, scene) {
                self.feed(event, scene);
            }
        }
        if self.machine.deadline().is_some_and(|deadline| deadline.as_millis() <= scene.now) {
            self.feed(Event::Tick, scene);
        }
    }

    /// Nobody asks any more, and nothing goes wrong.
    pub fn calm(&mut self) {
        self.next_arrival = u64::MAX;
        self.spec.troubles = Troubles::default();
    }

    fn arrive(&mut self, scene: &mut Scene<'_>) {
        let clients = self.spec.clients;
        if self.left_in_burst == 0 {
            self.left_in_burst = scene.dice.between(1, clients.burst);
            let irregular = scene.dice.around_ms(clients.far_ms);
            self.next_arrival += if clients.regular { clients.far_ms } else { irregular };
        } else {
            self.next_arrival += scene.dice.around_ms(clients.near_ms);
        }
        self.left_in_burst -= 1;
        self.answered.arrived += 1;
        self.enter(0, scene);
    }

    fn enter(&mut self, losses: u32, scene: &mut Scene<'_>) {
        self.next_lease += 1;
        let (lease, again) = (LeaseId(self.next_lease), losses > 0);
        let patience = self.spec.clients.patience_ms.map(Duration::from_millis);
        self.waiting.insert(lease, losses);
        self.feed(Event::Arrive { lease, again, patience }, scene);
    }

    pub fn unload(&mut self, command: CommandId, unload: Unload, scene: &mut Scene<'_>) {
        self.feed(Event::Unload { command, unload }, scene);
    }

    pub fn load(&mut self, command: CommandId, scene: &mut Scene<'_>) {
        let load = Load { if_generation: None, despite_hold: false };
        self.feed(Event::Load { command, load }, scene);
    }

    fn due(&mut self, due: Due, scene: &mut Scene<'_>) -> Option<Event> {
        let Scene { now, device, dice, .. } = scene;
        let now = *now;
        Some(match due {
            Due::Loaded(generation) => {
                self.last_load_ms = self.spec.load_ms;
                self.need_bytes = self.spec.bytes;
                if dice.chance(self.spec.troubles.runner_dies) {
                    self.agenda.push((now + dice.around_ms(60_000), Due::Dies(generation)));
                }
                Event::Loaded { generation }
            }
            Due::LoadFails { generation, out_of_memory } => {
                self.need_bytes = self.need_bytes.max(self.spec.bytes);
                Event::LoadFailed { generation, cause: "played".to_owned(), out_of_memory }
            }
            Due::Exited(generation) => {
                device.guests_bytes -= self.held_bytes;
                if dice.chance(self.spec.troubles.leaves_residue) {
                    let stays_ms = dice.pick(&[5_000, 60_000, 900_000]);
                    device.residue.push((now + stays_ms, self.held_bytes / 4));
                }
                self.held_bytes = 0;
                self.agenda.retain(|(_, due)| !matches!(due, Due::Ends(_)));
                Event::Exited { generation }
            }
            Due::Settled(generation) => {
                let bytes = self.spec.bytes;
                let memory = Reclaimed {
                    vram_before_bytes: bytes,
                    reclaimed_bytes: bytes,
                    residual_bytes: 0,
                    taken_bytes: 0,
                    verdict: Verdict::Returned,
                };
                Event::Reclaimed { generation, memory: Some(memory) }
            }
            Due::Ends(lease) => {
                if self.waiting.remove(&lease).is_some() {
                    self.answered.served += 1;
                    self.served_at = now;
                }
                Event::End { lease }
            }
            Due::Dies(generation) => {
                if self.held_bytes == 0 || self.machine.generation() != generation {
                    return None;
                }
                self.agenda.push((now + self.spec.exit_ms, Due::Exited(generation)));
                let loss = Loss { cause: LossCause::Killed, detail: "played".to_owned() };
                Event::RunnerLost { generation, loss }
            }
            Due::Look => {
                self.machine.shortage()?;
                self.agenda.push((now + LOOK_MS, Due::Look));
                Event::Memory { memory: self.measure(device) }
            }
        })
    }

    fn measure(&self, device: &Device) -> DeviceMemory {
        let demand_bytes = self.need_bytes + self.spec.headroom_bytes;
        DeviceMemory { available_bytes: Some(device.available_bytes()), demand_bytes }
    }

    /// Steps the machine and plays what it asks for.
    fn feed(&mut self, event: Event, scene: &mut Scene<'_>) {
        let now = scene.now;
        let moment = Moment::from_millis(now);
        let mut events = VecDeque::from([event]);
        let mut again = Vec::new();
        while let Some(event) = events.pop_front() {
            for effect in self.machine.step(moment, event) {
                match effect {
                    Effect::Measure => {
                        events.push_back(Event::Memory { memory: self.measure(scene.device) });
                        self.agenda.retain(|(_, due)| !matches!(due, Due::Look));
                        self.agenda.push((now + LOOK_MS, Due::Look));
                    }
                    Effect::StartRunner { generation } => self.start(generation, scene),
                    Effect::StopRunner { generation } | Effect::KillRunner { generation } => {
                        self.agenda.retain(|(_, due)| matches!(due, Due::Look | Due::Ends(_)));
                        self.agenda.push((now + self.spec.exit_ms, Due::Exited(generation)));
                    }
                    Effect::Reclaim { generation } => {
                        self.agenda.push((now + self.spec.settle_ms, Due::Settled(generation)));
                    }
                    Effect::Grant { lease, .. } => {
                        let work_ms = scene.dice.around_ms(self.spec.clients.work_ms);
                        self.agenda.push((now + work_ms, Due::Ends(lease)));
                    }
                    Effect::Refuse { lease, .. } => {
                        self.waiting.remove(&lease);
                        self.answered.refused += 1;
                    }
                    Effect::Lost { lease, why } => {
                        self.agenda.retain(|(_, due)| !matches!(due, Due::Ends(other) if *other == lease));
                        again.extend(self.waiting.remove(&lease).map(|losses| (losses, why)));
                    }
                    Effect::ReplyLoad { command, result } => {
                        scene.reply(command, if result.is_ok() { Reply::Loaded } else { Reply::Refused });
                    }
                    Effect::ReplyUnload { command, result } => {
                        scene.reply(command, if result.is_ok() { Reply::Accepted } else { Reply::Refused });
                    }
                    Effect::Unloaded { command, .. } => scene.reply(command, Reply::Unloaded),
                    Effect::Count(Count::Interarrival(gap)) => self.count(gap),
                    Effect::Count(_) | Effect::Stopped => {}
                }
            }
        }
        let ready = self.state() == ResidencyState::Ready;
        self.ready_since = if ready { self.ready_since.or(Some(now)) } else { None };
        self.idle_since = self.machine.idle_since().map(Moment::as_millis);
        for (losses, why) in again {
            self.lost(losses, &why, scene);
        }
    }

    /// As the server does it: displaced work starts again, work whose runner died is tried once more.
    fn lost(&mut self, losses: u32, why: &LostWhy, scene: &mut Scene<'_>) {
        if matches!(why, LostWhy::Runner(_)) && losses > 0 {
            self.answered.refused += 1;
        } else {
            self.enter(losses + 1, scene);
        }
    }

    fn start(&mut self, generation: u64, scene: &mut Scene<'_>) {
        self.loads += 1;
        let available = scene.device.available_bytes();
        let fits = available >= self.spec.bytes;
        self.held_bytes = self.spec.bytes.min(available);
        scene.device.guests_bytes += self.held_bytes;
        let fails = !fits || scene.dice.chance(self.spec.troubles.load_fails);
        let due = if fails { Due::LoadFails { generation, out_of_memory: !fits } } else { Due::Loaded(generation) };
        self.agenda.push((scene.now + self.spec.load_ms, due));
    }

    fn count(&mut self, gap: Duration) {
        self.gap_count += 1;
        for (bound, count) in BOUNDS.iter().zip(&mut self.gaps) {
            *count += u64::from(gap <= Duration::from_secs(*bound));
        }
    }

    pub fn state(&self) -> ResidencyState {
        use hush_contract::ModelState;
        match self.machine.state() {
            ModelState::Unloaded => ResidencyState::Unloaded,
            ModelState::Loading => ResidencyState::Loading,
            ModelState::Ready => ResidencyState::Ready,
            ModelState::Draining => ResidencyState::Draining,
            ModelState::Unloading => ResidencyState::Unloading,
            ModelState::WaitingForMemory => ResidencyState::WaitingForMemory,
            ModelState::Failed => ResidencyState::Failed,
        }
    }

    pub const fn ready_since(&self) -> Option<u64> {
        self.ready_since
    }

    pub const fn generation(&self) -> u64 {
        self.machine.generation()
    }

    /// Requests that have no answer yet.
    pub fn unanswered(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// What its server's metrics say.
    pub fn sample(&self, now: u64, device: &Device) -> ObservedModel {
        let since = |at: Option<u64>| Duration::from_millis(at.map_or(0, |at| now - at));
        ObservedModel {
            key: self.spec.key.clone(),
            gpu: Some(device.uuid.clone()),
            labels: self.spec.labels.clone(),
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
            sample_age: Duration::ZERO,
            back_off: false,
            arrivals: Some(ArrivalHistogram {
                buckets: BOUNDS.iter().map(|bound| Duration::from_secs(*bound)).zip(self.gaps).collect(),
                count: self.gap_count,
            }),
        }
    }
}
