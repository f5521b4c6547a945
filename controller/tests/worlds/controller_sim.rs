//! The simulated controller: what it observes of the world and when, what it remembers, and its commands on their way to
//! the servers and back.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_contract::UnloadReason;
use hush_controller::simulate::trace::SplitMix64;
use hush_core::{
    Action, CommandOutcome, Decision, DecisionReason, ModelKey, ObservedGpu, ObservedModel, Plan, PressureMemory,
    StepMemory, World, step,
};
use hush_residency::machine::{CommandId, UnloadCommand};
use jiff::{SignedDuration, Timestamp};

use crate::device_sim::DeviceSim;
use crate::dice_ext::DiceExt;
use crate::model_sim::CommandReply;
use crate::scenario::{Scenario, ScenarioFaults};
use crate::world_sim::{SimulatedCommand, WorldSim};

/// This long after it was sent, no controller remembers a command any more, unless a clock was set.
pub const FORGOTTEN_COMMAND_MS: u64 = 800_000;
/// A GPU that no server has reported for this many times the age at which a sample is stale is no longer in the world.
const FORGOTTEN_AFTER: u64 = 20;

#[derive(Debug)]
pub struct ControllerSim {
    pub memory: StepMemory,
    /// How far the clock of the controller is ahead of the time since the beginning of the world.
    clock_ms: i64,
    /// When its clock was last set.
    pub clock_stepped: Option<u64>,
    pub restarted: Option<u64>,
    down_until: u64,
    /// For each model the last sample and when it was taken.
    models: Vec<Option<(u64, ObservedModel)>>,
    /// For each device when it was last sampled, and the bytes used.
    gpus: Vec<Option<(u64, u64)>>,
    /// For each model until when its server does not answer.
    silent_until: Vec<u64>,
    pub sent_commands: Vec<SentCommand>,
    next_command: u64,
    /// Counts restarts.
    incarnation: u32,
    dice: SplitMix64,
}

/// A command and how far its delivery is.
#[derive(Clone, Debug)]
pub struct SentCommand {
    pub command: CommandId,
    pub model_index: usize,
    pub decision: Decision,
    pub decided_at: u64,
    /// The incarnation of the controller that sent the command; a later one does not receive the answer.
    pub incarnation: u32,
    pub stage: DeliveryStage,
    delivery: Delivery,
}

/// The unloads that servers have just accepted, and the commands that have just ended for the controller.
#[derive(Debug)]
pub struct CommandProgress {
    pub accepted: Vec<SentCommand>,
    pub settled: Vec<(SentCommand, CommandOutcome)>,
}

/// How far a command or its answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryStage {
    OnItsWay {
        at: u64,
    },
    AtServer,
    AnswerOnItsWay {
        at: u64,
        reply: Option<CommandReply>,
    },
    /// Whether it was carried out or not, the controller never learns of it.
    NeverReported,
}

/// What becomes of a command and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    Arrives,
    /// The command does not reach the server, and the controller learns that.
    Fails,
    AnswerLost,
    NeverSettled,
}

impl ControllerSim {
    pub fn new(scenario: &Scenario, dice: &mut SplitMix64) -> Self {
        Self {
            memory: StepMemory::default(),
            clock_ms: 0,
            clock_stepped: None,
            restarted: None,
            down_until: 0,
            models: vec![None; scenario.models.len()],
            gpus: vec![None; scenario.devices.len()],
            silent_until: vec![0; scenario.models.len()],
            sent_commands: Vec::new(),
            next_command: 0,
            incarnation: 0,
            dice: SplitMix64(dice.next()),
        }
    }

    /// The time by the clock of the controller.
    pub fn wall(&self, now: u64) -> Timestamp {
        let ms = i64::try_from(now).unwrap() + self.clock_ms;
        Timestamp::from_second(1_795_000_000).unwrap() + SignedDuration::from_millis(ms)
    }

    pub const fn is_up(&self, now: u64) -> bool {
        now >= self.down_until
    }

    /// Draws the faults of this interval.
    pub fn inject_faults(&mut self, now: u64, scenario: &Scenario) {
        let happens = |dice: &mut SplitMix64, mean: Option<u64>| {
            mean.is_some_and(|mean| dice.below(mean / scenario.interval_ms + 1) == 0)
        };

        if happens(&mut self.dice, scenario.faults.clock_steps) {
            // Forward by more than a sample may be old: a smaller step cannot be told from time that has passed.
            let forward = i64::try_from(scenario.stale_after_ms).unwrap() + 1;
            self.clock_ms += self.dice.pick(&[-90_000_000, -3_600_000, -7000, forward, 3_600_000, 90_000_000]);
            self.clock_stepped = Some(now);
        }

        if happens(&mut self.dice, scenario.faults.restarts) {
            self.restart(now, scenario);
        }

        if let Some((between, length)) = scenario.faults.silences {
            for index in 0..self.silent_until.len() {
                if happens(&mut self.dice, Some(between)) {
                    self.silent_until[index] = now + self.dice.around_ms(length);
                }
            }
        }
    }

    fn restart(&mut self, now: u64, scenario: &Scenario) {
        self.down_until = now + self.dice.pick(&[0, 30_000, 300_000]);
        self.incarnation += 1;
        self.restarted = Some(now);
        self.memory = match self.dice.below(3) {
            // Another controller takes over, which knows everything but the answers on their way.
            0 => std::mem::take(&mut self.memory),
            1 => StepMemory::default(),
            _ => self.restored(now, scenario),
        };

        self.models.fill(None);
        self.gpus.fill(None);
    }

    /// A memory from what was written down: the GPUs on which every soft threshold was crossed when the controller ended.
    fn restored(&self, now: u64, scenario: &Scenario) -> StepMemory {
        let crossed = scenario.devices.iter().zip(&self.gpus).filter(|(device, seen)| {
            let total = device.total_bytes;
            let softs = scenario.policies.iter().filter_map(|policy| policy.asks.soft_below?.bytes(Some(total)));
            let fresh = seen.filter(|(at, _)| now - at <= scenario.stale_after_ms);
            fresh.zip(softs.min()).is_some_and(|((_, used), lowest)| total - used < lowest)
        });

        let since = Some(self.wall(now));
        let entry = |device: &DeviceSim| PressureMemory {
            gpu: device.uuid.clone(),
            soft_since: since,
            hard_since: None,
            clear_since: None,
        };

        let pressure: Vec<PressureMemory> = crossed.map(|(device, _)| entry(device)).collect();
        StepMemory::restore(self.wall(now), &pressure, &[])
    }

    /// From now on every server answers, and the controller is up.
    pub fn come_to_rest(&mut self) {
        self.silent_until.fill(0);
        self.down_until = 0;
    }

    /// Whether the server of the model does not answer.
    pub fn is_silent(&self, now: u64, model_index: usize) -> bool {
        now < self.silent_until[model_index]
    }

    /// Asks every server for its metrics.
    pub fn scrape(&mut self, now: u64, world_sim: &WorldSim, scenario: &Scenario) {
        for (index, model) in world_sim.models.iter().enumerate() {
            if self.is_silent(now, index) || self.dice.chance(scenario.faults.scrape_fails) {
                continue;
            }

            let device = &world_sim.devices[model.spec.device];
            self.models[index] = Some((now, model.sample(now, device)));
            self.gpus[model.spec.device] = Some((now, device.used_bytes()));
        }
    }

    /// The world as the controller knows it, with the age of each sample.
    pub fn world(&self, now: u64, world_sim: &WorldSim, scenario: &Scenario) -> World {
        let forgotten = scenario.stale_after_ms * FORGOTTEN_AFTER;
        let gpus = world_sim.devices.iter().zip(&self.gpus).filter_map(|(device, seen)| {
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

        let sampled = self.models.iter().flatten();
        let models =
            sampled.map(|(at, model)| ObservedModel { sample_age: Duration::from_millis(now - at), ..model.clone() });

        World {
            stale_after: Duration::from_millis(scenario.stale_after_ms),
            gpus: gpus.collect(),
            models: models.collect(),
            namespaces: scenario.namespaces.clone(),
        }
    }

    /// Decides, and sends the commands.
    pub fn decide(&mut self, now: u64, world: &World, scenario: &Scenario) -> Plan {
        let wall = self.wall(now);
        let plan = step(&mut self.memory, wall, world, &scenario.policies);
        let indexes: BTreeMap<&ModelKey, usize> =
            scenario.models.iter().enumerate().map(|(index, spec)| (&spec.key, index)).collect();

        for decision in plan.decisions.iter().filter(|decision| !decision.dry_run) {
            self.next_command += 1;
            let delivery = delivery(&mut self.dice, &scenario.faults);
            let at = now + self.dice.below(scenario.faults.latency_ms + 1);
            self.sent_commands.push(SentCommand {
                command: CommandId(self.next_command),
                model_index: indexes[&decision.key()],
                decision: decision.clone(),
                decided_at: now,
                incarnation: self.incarnation,
                stage: DeliveryStage::OnItsWay { at },
                delivery,
            });
        }

        plan
    }

    /// Delivers commands and answers that are due. `replies` are those that the servers have given since.
    pub fn advance(
        &mut self,
        now: u64,
        world_sim: &mut WorldSim,
        replies: Vec<(CommandId, CommandReply)>,
        latency: u64,
    ) -> CommandProgress {
        self.deliver_replies(now, replies, latency);
        let mut accepted = Vec::new();
        for at in 0..self.sent_commands.len() {
            let sent = &self.sent_commands[at];
            if !matches!(sent.stage, DeliveryStage::OnItsWay { at } if at <= now) {
                continue;
            }

            if sent.delivery == Delivery::Fails || self.is_silent(now, sent.model_index) {
                self.sent_commands[at].stage = DeliveryStage::AnswerOnItsWay { at: now, reply: None };
                continue;
            }

            let (model_index, command, to_server) = (sent.model_index, sent.command, server_command(&sent.decision));
            self.sent_commands[at].stage = DeliveryStage::AtServer;
            let replies = world_sim.carry_out(now, model_index, command, to_server);
            if replies.contains(&(command, CommandReply::Accepted)) {
                accepted.push(self.sent_commands[at].clone());
            }

            self.deliver_replies(now, replies, latency);
        }

        let settled = self.settle(now);
        CommandProgress { accepted, settled }
    }

    /// Puts the replies that end a command on their way to the controller.
    fn deliver_replies(&mut self, now: u64, replies: Vec<(CommandId, CommandReply)>, latency: u64) {
        for (command, reply) in replies.into_iter().filter(|(_, reply)| *reply != CommandReply::Accepted) {
            let at = now + self.dice.below(latency + 1);
            let Some(sent) = self.sent_commands.iter_mut().find(|sent| sent.command == command) else { continue };
            sent.stage = match sent.delivery {
                Delivery::NeverSettled => DeliveryStage::NeverReported,
                // The controller gives up after a while.
                Delivery::AnswerLost => DeliveryStage::AnswerOnItsWay { at: at + 10_000, reply: None },
                _ => DeliveryStage::AnswerOnItsWay { at, reply: Some(reply) },
            };
        }
    }

    /// Tells the memory how the commands ended whose answers have arrived.
    fn settle(&mut self, now: u64) -> Vec<(SentCommand, CommandOutcome)> {
        let mut settled = Vec::new();
        let wall = self.wall(now);
        let clock_stepped = self.clock_stepped.unwrap_or(0);
        let (incarnation, memory) = (self.incarnation, &mut self.memory);

        self.sent_commands.retain_mut(|sent| match sent.stage {
            DeliveryStage::AnswerOnItsWay { at, .. } if at > now => true,
            DeliveryStage::AnswerOnItsWay { reply, .. } if sent.incarnation == incarnation => {
                let outcome = match reply {
                    Some(CommandReply::Unloaded) => CommandOutcome::Unloaded { completed_at: wall },
                    Some(CommandReply::Loaded) => CommandOutcome::Loaded,
                    _ => CommandOutcome::Nothing,
                };

                memory.settle(&sent.decision.key(), outcome);
                settled.push((sent.clone(), outcome));
                false
            }
            DeliveryStage::AnswerOnItsWay { .. } => {
                sent.stage = DeliveryStage::NeverReported;
                true
            }
            DeliveryStage::NeverReported => now - sent.decided_at.max(clock_stepped) < FORGOTTEN_COMMAND_MS,
            DeliveryStage::OnItsWay { .. } | DeliveryStage::AtServer => true,
        });
        settled
    }

    /// The commands of this incarnation that have not ended for the controller.
    pub fn unsettled(&self) -> impl Iterator<Item = &SentCommand> {
        self.sent_commands.iter().filter(|sent| sent.incarnation == self.incarnation)
    }
}

fn delivery(dice: &mut SplitMix64, faults: &ScenarioFaults) -> Delivery {
    if dice.chance(faults.command_fails) {
        Delivery::Fails
    } else if dice.chance(faults.answer_lost) {
        Delivery::AnswerLost
    } else if dice.chance(faults.never_settled) {
        Delivery::NeverSettled
    } else {
        Delivery::Arrives
    }
}

/// The command as the server gets it.
fn server_command(decision: &Decision) -> SimulatedCommand {
    let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    match decision.action {
        Action::Load => SimulatedCommand::Load,
        Action::Unload => SimulatedCommand::Unload(UnloadCommand {
            if_generation: decision.if_generation,
            if_idle: seconds(decision.if_idle_seconds),
            drain: seconds(decision.drain_seconds),
            hold: seconds(decision.hold_seconds),
            method: None,
            reason: match decision.reason {
                DecisionReason::HardPressure => UnloadReason::HardPressure,
                DecisionReason::SoftPressure => UnloadReason::SoftPressure,
                DecisionReason::MakeRoom => UnloadReason::MakeRoom,
                DecisionReason::OverBudget => UnloadReason::OverBudget,
                DecisionReason::OnDemand => UnloadReason::OnDemand,
                _ => UnloadReason::IdleTimeout,
            },
        }),
    }
}
