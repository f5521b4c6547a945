//! A card with servers, and controllers that look at each server at times of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_controller::run::others::Others;
use hush_core::{
    Action, CommandOutcome, GpuId, Labels, MemoryAmount, ModelKey, ModelPolicy, ObservedGpu, ObservedModel, PolicyKey,
    PolicyResidency, PolicySpec, ResidencyState, Selector, ServerName, StepMemory, World, step,
};
use jiff::Timestamp;

pub const GIB: u64 = 1 << 30;
pub const SCRAPE_MS: i64 = 1000;
const TICK_MS: i64 = 50;
pub const CARD_GIB: u64 = 24;
/// In Unix time.
const BEGAN_MS: i64 = 1_795_000_000_000;
pub const STALE_AFTER: Duration = Duration::from_secs(15);

/// A model, and what is true of it.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    pub idle_ms: i64,
    /// Whether its server also says since when.
    pub tells_since: bool,
    pub gib: u64,
    /// From the command until the memory is back.
    pub unload_ms: i64,
    /// When each unload began.
    pub left_ms: Option<i64>,
    /// Its own controller is gone.
    pub orphan: bool,
    /// A person unloads it then.
    pub by_hand_ms: Option<i64>,
}

impl Guest {
    pub const fn new(idle_ms: i64, gib: u64, unload_ms: i64) -> Self {
        Self { idle_ms, tells_since: true, gib, unload_ms, left_ms: None, orphan: false, by_hand_ms: None }
    }

    const fn state(&self, ms: i64) -> ResidencyState {
        match self.left_ms {
            Some(left) if ms >= left + self.unload_ms => ResidencyState::Unloaded,
            Some(left) if ms >= left => ResidencyState::Unloading,
            _ => ResidencyState::Ready,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Card {
    pub guests: Vec<Guest>,
    /// What others hold from when on.
    pub foreign_gib: u64,
    pub more_gib: u64,
    pub more_at_ms: i64,
}

impl Card {
    pub fn available(&self, ms: i64) -> u64 {
        let held =
            self.guests.iter().filter(|guest| guest.state(ms) != ResidencyState::Unloaded).map(|guest| guest.gib);
        let more = if ms >= self.more_at_ms { self.more_gib } else { 0 };
        CARD_GIB.saturating_sub(self.foreign_gib + more + held.sum::<u64>()) * GIB
    }

    /// What a scrape at `ms` shows of a server that answers so much later, to somebody who thinks about it at `now`.
    pub fn look(&self, place: usize, ms: i64, late_ms: i64, now: i64) -> ObservedModel {
        let guest = &self.guests[place];
        ObservedModel {
            key: key(place),
            gpu: Some("GPU-a".into()),
            labels: Labels::new(),
            state: guest.state(ms),
            idle: millis(guest.idle_ms + ms + late_ms),
            idle_since: guest.tells_since.then(|| millis(BEGAN_MS - guest.idle_ms)),
            inflight: 0,
            queued: 0,
            vram_bytes: guest.gib * GIB,
            generation: 1,
            loaded_for: Duration::from_secs(3600),
            reload: Duration::from_secs(1),
            demand_bytes: 0,
            sample_age: millis(now - ms),
            back_off: false,
            arrivals: None,
        }
    }

    fn world(&self, looks: &[i64], late: &[i64], now: i64) -> World {
        let newest = looks.iter().copied().max().unwrap();
        let card = ObservedGpu {
            uuid: GpuId::from("GPU-a"),
            node: "n1".to_owned(),
            total_bytes: CARD_GIB * GIB,
            used_bytes: CARD_GIB * GIB - self.available(newest),
            sample_age: millis(now - newest),
            disputed: false,
        };
        let models = (0..self.guests.len()).map(|place| self.look(place, looks[place], late[place], now)).collect();
        World { stale_after: STALE_AFTER, gpus: vec![card], models, namespaces: BTreeMap::new() }
    }
}

pub fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap())
}

pub fn key(place: usize) -> ModelKey {
    ModelKey { server: ServerName(format!("a/w{place}")), model: "turbo".to_owned() }
}

pub fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(BEGAN_MS + ms).unwrap()
}

/// A controller: when it looks at each server, and whose commands it sends.
pub struct Controller {
    phases: Vec<i64>,
    /// How long each server takes to answer it.
    late: Vec<i64>,
    /// `None`: for all of them.
    own: Option<usize>,
    memory: StepMemory,
    others: Others,
    absent: Vec<usize>,
}

impl Controller {
    pub fn new(phases: Vec<i64>, own: Option<usize>) -> Self {
        let late = vec![0; phases.len()];
        Self { phases, late, own, memory: StepMemory::default(), others: Others::default(), absent: Vec::new() }
    }

    pub fn late(self, late: Vec<i64>) -> Self {
        Self { late, ..self }
    }

    /// Gives the guests that it commands to leave.
    fn step(&mut self, card: &Card, now: i64, policies: &[ModelPolicy]) -> Vec<usize> {
        let looks: Vec<i64> = self.phases.iter().map(|phase| now - (now - phase).rem_euclid(SCRAPE_MS)).collect();
        let mut world = card.world(&looks, &self.late, now);
        for model in &mut world.models {
            model.back_off = self.absent.iter().any(|place| key(*place) == model.key);
        }
        for missing in self.others.observe(time(now), &world, &mut self.memory) {
            self.absent.extend((0..card.guests.len()).find(|place| key(*place) == missing));
        }
        let plan = step(&mut self.memory, time(now), &world, policies);
        let mut commands = Vec::new();
        for decision in plan.decisions.iter().filter(|decision| decision.action == Action::Unload) {
            let place = (0..card.guests.len()).find(|place| key(*place) == decision.key()).unwrap();
            if self.own.is_none_or(|own| own == place) {
                self.others.sent(decision.key());
                commands.push(place);
            } else {
                self.others.expect(time(now), decision);
            }
        }
        commands
    }

    fn ended(&mut self, now: i64, place: usize, how: CommandOutcome) {
        self.memory.settle(&key(place), how);
        self.others.ended(time(now), &key(place));
    }
}

/// Who was commanded to leave, in that order: more than once if it was.
pub fn play(mut card: Card, mut controllers: Vec<Controller>, policies: &[ModelPolicy], end_ms: i64) -> Vec<usize> {
    let mut commanded = Vec::new();
    let mut under_way: Vec<(i64, usize, usize)> = Vec::new();
    for now in (SCRAPE_MS..end_ms).step_by(usize::try_from(TICK_MS).unwrap()) {
        for guest in &mut card.guests {
            if guest.by_hand_ms.is_some_and(|at| at <= now) && guest.left_ms.is_none() {
                guest.left_ms = Some(now);
            }
        }
        under_way.retain(|(ends, controller, place)| {
            let over = *ends <= now;
            if over {
                let how = CommandOutcome::Unloaded { completed_at: time(*ends) };
                controllers[*controller].ended(now, *place, how);
            }
            !over
        });
        for (at, controller) in controllers.iter_mut().enumerate() {
            if controller.own.is_some_and(|own| card.guests[own].orphan) {
                continue;
            }
            for place in controller.step(&card, now, policies) {
                let guest = &mut card.guests[place];
                if guest.left_ms.is_some() {
                    // The generation is another, or it leaves already: refused.
                    controller.ended(now, place, CommandOutcome::Nothing);
                    continue;
                }
                guest.left_ms = Some(now);
                commanded.push(place);
                under_way.push((now + guest.unload_ms, at, place));
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
