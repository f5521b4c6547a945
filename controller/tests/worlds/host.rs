//! The controller: what it sees of a house and when, what it remembers, its commands on their way and back.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_contract::UnloadReason;
use hush_controller::simulate::trace::Dice;
use hush_core::{
    Action, CommandOutcome, Decision, ModelKey, ObservedGpu, ObservedModel, Plan, PressureMemory, Reason, StepMemory,
    World, step,
};
use hush_server::residency::machine::{CommandId, Unload};
use jiff::{SignedDuration, Timestamp};

use crate::device::Device;
use crate::dice::Throw;
use crate::guest::Reply;
use crate::house::{House, Order};
use crate::scenario::{Faults, Scenario};

/// So long after it was sent a command is in nobody's memory any more, if no clock is set.
pub const FORGOTTEN_COMMAND_MS: u64 = 800_000;
/// A card that nobody has reported for so many times the age at which a sample is stale is not in the world any more.
const FORGOTTEN: u64 = 20;

#[derive(Debug)]
pub struct Host {
    pub memory: StepMemory,
    /// How far its clock is ahead of the beginning of the world.
    clock_ms: i64,
    pub clock_stepped: Option<u64>,
    pub restarted: Option<u64>,
    down_until: u64,
    models: Vec<Option<(u64, ObservedModel)>>,
    /// By device: when, and the bytes used.
    gpus: Vec<Option<(u64, u64)>>,
    silent_until: Vec<u64>,
    pub flights: Vec<Flight>,
    next_command: u64,
    life: u32,
    dice: Dice,
}

/// A command and where it is.
#[derive(Clone, Debug)]
pub struct Flight {
    pub command: CommandId,
    pub guest: usize,
    pub decision: Decision,
    pub decided_at: u64,
    /// Of the controller that sent it; another one does not hear the answer.
    pub life: u32,
    pub stage: Stage,
    fate: Fate,
}

/// Commands that servers have just taken, and ends that the controller has just heard of.
#[derive(Debug)]
pub struct News {
    pub taken: Vec<Flight>,
    pub settled: Vec<(Flight, CommandOutcome)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Out {
        at: u64,
    },
    There,
    Back {
        at: u64,
        reply: Option<Reply>,
    },
    /// Carried out or not, the controller never hears of it.
    Unheard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// Does not reach the server, which the controller is told.
    Fails,
    AnswerLost,
    NeverSettled,
}

impl Host {
    pub fn new(scenario: &Scenario, dice: &mut Dice) -> Self {
        Self {
            memory: StepMemory::default(),
            clock_ms: 0,
            clock_stepped: None,
            restarted: None,
            down_until: 0,
            models: vec![None; scenario.guests.len()],
            gpus: vec![None; scenario.devices.len()],
            silent_until: vec![0; scenario.guests.len()],
            flights: Vec::new(),
            next_command: 0,
            life: 0,
            dice: Dice(dice.next()),
        }
    }

    pub fn wall(&self, now: u64) -> Timestamp {
        let ms = i64::try_from(now).unwrap() + self.clock_ms;
        Timestamp::from_second(1_795_000_000).unwrap() + SignedDuration::from_millis(ms)
    }

    pub const fn up(&self, now: u64) -> bool {
        now >= self.down_until
    }

    /// Accidents of this interval.
    pub fn accidents(&mut self, now: u64, scenario: &Scenario) {
        let happens = |dice: &mut Dice, mean: Option<u64>| {
            mean.is_some_and(|mean| dice.below(mean / scenario.interval_ms + 1) == 0)
        };
        if happens(&mut self.dice, scenario.faults.clock_steps) {
            // Forward by more than a sample may be old: less than that cannot be told from time that has passed.
            let forward = i64::try_from(scenario.stale_after_ms).unwrap() + 1;
            self.clock_ms += self.dice.pick(&[-90_000_000, -3_600_000, -7000, forward, 3_600_000, 90_000_000]);
            self.clock_stepped = Some(now);
        }
        if happens(&mut self.dice, scenario.faults.restarts) {
            self.restart(now, scenario);
        }
        if let Some((between, length)) = scenario.faults.silences {
            for guest in 0..self.silent_until.len() {
                if happens(&mut self.dice, Some(between)) {
                    self.silent_until[guest] = now + self.dice.around_ms(length);
                }
            }
        }
    }

    fn restart(&mut self, now: u64, scenario: &Scenario) {
        self.down_until = now + self.dice.pick(&[0, 30_000, 300_000]);
        self.life += 1;
        self.restarted = Some(now);
        self.memory = match self.dice.below(3) {
            // Another took over who knows everything but the answers on their way.
            0 => std::mem::take(&mut self.memory),
            1 => StepMemory::default(),
            _ => self.restored(now, scenario),
        };
        self.models.fill(None);
        self.gpus.fill(None);
    }

    /// What a careful clerk has written down: the cards on which every soft threshold was crossed when it ended.
    fn restored(&self, now: u64, scenario: &Scenario) -> StepMemory {
        let crossed = scenario.devices.iter().zip(&self.gpus).filter(|(device, seen)| {
            let total = device.total_bytes;
            let softs = scenario.policies.iter().filter_map(|policy| policy.asks.soft_below?.bytes(Some(total)));
            let fresh = seen.filter(|(at, _)| now - at <= scenario.stale_after_ms);
            fresh.zip(softs.min()).is_some_and(|((_, used), lowest)| total - used < lowest)
        });
        let since = Some(self.wall(now));
        let entry = |device: &Device| PressureMemory {
            gpu: device.uuid.clone(),
            soft_since: since,
            hard_since: None,
            clear_since: None,
        };
        let pressure: Vec<PressureMemory> = crossed.map(|(device, _)| entry(device)).collect();
        StepMemory::restore(self.wall(now), &pressure, &[])
    }

    /// Every server answers from now on.
    pub fn calm(&mut self) {
        self.silent_until.fill(0);
        self.down_until = 0;
    }

    pub fn silent(&self, now: u64, guest: usize) -> bool {
        now < self.silent_until[guest]
    }

    /// Asks every server for its metrics.
    pub fn scrape(&mut self, now: u64, house: &House, scenario: &Scenario) {
        for (at, guest) in house.guests.iter().enumerate() {
            if self.silent(now, at) || self.dice.chance(scenario.faults.scrape_fails) {
                continue;
            }
            let device = &house.devices[guest.spec.device];
            self.models[at] = Some((now, guest.sample(now, device)));
            self.gpus[guest.spec.device] = Some((now, device.used_bytes()));
        }
    }

    /// The world as it is known, and when each sample was taken.
    pub fn world(&self, now: u64, house: &House, scenario: &Scenario) -> World {
        let forgotten = scenario.stale_after_ms * FORGOTTEN;
        let gpus = house.devices.iter().zip(&self.gpus).filter_map(|(device, seen)| {
            let (at, used_bytes) = seen.filter(|(at, _)| now - at < forgotten)?;
            Some(ObservedGpu {
                uuid: device.uuid.clone(),
                node: device.node.clone(),
                total_bytes: device.total_bytes,
                used_bytes,
                sample_age: Duration::from_millis(now - at),
                disputed: false,
            })
        });
        let models = self.models.iter().flatten();
        let models =
            models.map(|(at, model)| ObservedModel { sample_age: Duration::from_millis(now - at), ..model.clone() });
        World {
            stale_after: Duration::from_millis(scenario.stale_after_ms),
            gpus: gpus.collect(),
            models: models.collect(),
            namespaces: scenario.namespaces.clone(),
        }
    }

    /// Decides, and sends what was decided.
    pub fn decide(&mut self, now: u64, world: &World, scenario: &Scenario) -> Plan {
        let wall = self.wall(now);
        let plan = step(&mut self.memory, wall, world, &scenario.policies);
        let places: BTreeMap<&ModelKey, usize> =
            scenario.guests.iter().enumerate().map(|(at, spec)| (&spec.key, at)).collect();
        for decision in plan.decisions.iter().filter(|decision| !decision.dry_run) {
            self.next_command += 1;
            let fate = fate(&mut self.dice, &scenario.faults);
            let at = now + self.dice.below(scenario.faults.latency_ms + 1);
            self.flights.push(Flight {
                command: CommandId(self.next_command),
                guest: places[&decision.key()],
                decision: decision.clone(),
                decided_at: now,
                life: self.life,
                stage: Stage::Out { at },
                fate,
            });
        }
        plan
    }

    /// Commands arrive, answers come back.
    pub fn advance(&mut self, now: u64, house: &mut House, replies: Vec<(CommandId, Reply)>, latency: u64) -> News {
        self.hear(now, replies, latency);
        let mut taken = Vec::new();
        for at in 0..self.flights.len() {
            let flight = &self.flights[at];
            if !matches!(flight.stage, Stage::Out { at } if at <= now) {
                continue;
            }
            if flight.fate == Fate::Fails || self.silent(now, flight.guest) {
                self.flights[at].stage = Stage::Back { at: now, reply: None };
                continue;
            }
            let (guest, command, order) = (flight.guest, flight.command, order(&flight.decision));
            self.flights[at].stage = Stage::There;
            let replies = house.order(now, guest, command, order);
            if replies.contains(&(command, Reply::Accepted)) {
                taken.push(self.flights[at].clone());
            }
            self.hear(now, replies, latency);
        }
        let settled = self.settle(now);
        News { taken, settled }
    }

    fn hear(&mut self, now: u64, replies: Vec<(CommandId, Reply)>, latency: u64) {
        for (command, reply) in replies.into_iter().filter(|(_, reply)| *reply != Reply::Accepted) {
            let at = now + self.dice.below(latency + 1);
            let Some(flight) = self.flights.iter_mut().find(|flight| flight.command == command) else { continue };
            flight.stage = match flight.fate {
                Fate::NeverSettled => Stage::Unheard,
                // Its caller gives up after a while.
                Fate::AnswerLost => Stage::Back { at: at + 10_000, reply: None },
                _ => Stage::Back { at, reply: Some(reply) },
            };
        }
    }

    fn settle(&mut self, now: u64) -> Vec<(Flight, CommandOutcome)> {
        let mut settled = Vec::new();
        let wall = self.wall(now);
        let clock_stepped = self.clock_stepped.unwrap_or(0);
        let (life, memory) = (self.life, &mut self.memory);
        self.flights.retain_mut(|flight| match flight.stage {
            Stage::Back { at, .. } if at > now => true,
            Stage::Back { reply, .. } if flight.life == life => {
                let how = match reply {
                    Some(Reply::Unloaded) => CommandOutcome::Unloaded { completed_at: wall },
                    Some(Reply::Loaded) => CommandOutcome::Loaded,
                    _ => CommandOutcome::Nothing,
                };
                memory.settle(&flight.decision.key(), how);
                settled.push((flight.clone(), how));
                false
            }
            Stage::Back { .. } => {
                flight.stage = Stage::Unheard;
                true
            }
            Stage::Unheard => now - flight.decided_at.max(clock_stepped) < FORGOTTEN_COMMAND_MS,
            Stage::Out { .. } | Stage::There => true,
        });
        settled
    }

    /// Commands of this life that it has not heard of.
    pub fn unsettled(&self) -> impl Iterator<Item = &Flight> {
        self.flights.iter().filter(|flight| flight.life == self.life)
    }
}

fn fate(dice: &mut Dice, faults: &Faults) -> Fate {
    if dice.chance(faults.command_fails) {
        Fate::Fails
    } else if dice.chance(faults.answer_lost) {
        Fate::AnswerLost
    } else if dice.chance(faults.never_settled) {
        Fate::NeverSettled
    } else {
        Fate::Arrives
    }
}

fn order(decision: &Decision) -> Order {
    let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    match decision.action {
        Action::Load => Order::Load,
        Action::Unload => Order::Unload(Unload {
            if_generation: decision.if_generation,
            if_idle: seconds(decision.if_idle_seconds),
            drain: seconds(decision.drain_seconds),
            hold: seconds(decision.hold_seconds),
            reason: match decision.reason {
                Reason::HardPressure => UnloadReason::HardPressure,
                Reason::SoftPressure => UnloadReason::SoftPressure,
                Reason::MakeRoom => UnloadReason::MakeRoom,
                Reason::OverBudget => UnloadReason::OverBudget,
                Reason::OnDemand => UnloadReason::OnDemand,
                _ => UnloadReason::IdleTimeout,
            },
        }),
    }
}
