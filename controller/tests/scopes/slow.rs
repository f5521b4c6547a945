//! Sidecars on a machine that is short of processor time: each server answers each of them late, each of them decides
//! late, and commands arrive late. Whatever the delays, the card is relieved in bounded time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_controller::act::{Backoff, Verdict};
use hush_controller::run::others::{Others, PATIENCE};
use hush_controller::run::pause_after;
use hush_core::{Action, CommandOutcome, GpuId, ModelPolicy, ObservedGpu, StepMemory, World, step};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::card::{CARD_GIB, Card, GIB, Guest, SCRAPE_MS, STALE_AFTER, key, millis, time};
use crate::together::{BELOW_GIB, hard};

const TICK_MS: i64 = 50;
/// A scrape that takes longer has failed.
const SCRAPE_TIMEOUT_MS: i64 = 5000;
const INTERVAL: Duration = Duration::from_secs(1);

/// How slow a sidecar is.
#[derive(Clone, Debug)]
pub struct Pace {
    /// From each question until the answer of each server is there.
    pub answers_ms: Vec<i64>,
    /// Each step takes so long.
    pub step_ms: i64,
    /// One step takes so long: the machine stood still.
    pub stall: Option<(i64, i64)>,
    /// Until a command has reached its server.
    pub command_ms: i64,
    /// So many of the first commands fail: the server cannot ask whose token it is.
    pub failing_commands: u32,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    asked: i64,
    arrives: i64,
}

pub struct SlowController {
    own: usize,
    pace: Pace,
    memory: StepMemory,
    others: Others,
    backoff: Backoff,
    next_step: i64,
    /// By server: the look whose answer is awaited, and the last one that came.
    awaited: Vec<Look>,
    known: Vec<Option<Look>>,
    failed: u32,
}

impl SlowController {
    pub fn new(own: usize, pace: Pace, phases: &[i64]) -> Self {
        let awaited: Vec<Look> = phases
            .iter()
            .zip(&pace.answers_ms)
            .map(|(asked, answer)| Look { asked: *asked, arrives: asked + answer })
            .collect();
        let known = vec![None; awaited.len()];
        Self {
            own,
            pace,
            memory: StepMemory::default(),
            others: Others::default(),
            backoff: Backoff::default(),
            next_step: 0,
            awaited,
            known,
            failed: 0,
        }
    }

    fn hear(&mut self, now: i64) {
        for (at, awaited) in self.awaited.iter_mut().enumerate() {
            if awaited.arrives > now {
                continue;
            }
            if awaited.arrives - awaited.asked <= SCRAPE_TIMEOUT_MS {
                self.known[at] = Some(*awaited);
            }
            let asked = now.max(awaited.asked + SCRAPE_MS);
            *awaited = Look { asked, arrives: asked + self.pace.answers_ms[at] };
        }
    }

    fn world(&self, card: &Card, now: i64, began: Instant) -> World {
        let models = self.known.iter().enumerate().filter_map(|(at, look)| {
            let look = (*look)?;
            let mut model = card.look(at, look.asked, 0, now);
            model.back_off = self.backoff.holds(began + millis(now), &key(at));
            Some(model)
        });
        // The lower median of the fresh reports, as it is put together from several servers.
        let mut reports: Vec<(u64, i64)> = self
            .known
            .iter()
            .flatten()
            .map(|look| (CARD_GIB * GIB - card.available(look.asked), now - look.asked))
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
            total_bytes: CARD_GIB * GIB,
            used_bytes,
            sample_age: millis(age),
            disputed: false,
        });
        World { stale_after: STALE_AFTER, gpus: gpus.collect(), models: models.collect(), namespaces: BTreeMap::new() }
    }

    /// Gives whether its own model is told to leave.
    fn step(&mut self, card: &Card, now: i64, began: Instant, policies: &[ModelPolicy]) -> bool {
        let mut took = self.pace.step_ms;
        if let Some((at, length)) = self.pace.stall
            && now <= at
            && at < now + took.max(TICK_MS)
        {
            took = length;
        }
        self.next_step = now + took + i64::try_from(pause_after(millis(took), INTERVAL).as_millis()).unwrap();
        let world = self.world(card, now, began);
        for missing in self.others.observe(time(now), &world, &mut self.memory) {
            self.backoff.absent(began + millis(now), &missing);
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

    fn ended(&mut self, now: i64, began: Instant, how: CommandOutcome, verdict: Verdict) {
        let own = key(self.own);
        self.memory.settle(&own, how);
        self.others.ended(time(now), &own);
        self.backoff.note(began + millis(now), &own, verdict);
    }
}

#[derive(Clone, Copy)]
enum Stage {
    Out,
    Leaving,
}

/// `rounds`: so often, once it has been calm for `calm_ms`, others take as much memory again.
pub fn play(
    mut card: Card,
    mut controllers: Vec<SlowController>,
    policies: &[ModelPolicy],
    end_ms: i64,
    rounds: Rounds,
) -> Played {
    let began = Instant::now();
    let mut flights: Vec<(i64, usize, Stage)> = Vec::new();
    let Rounds { count: mut rounds, calm_ms } = rounds;
    let mut played = Played { commanded: Vec::new(), relieved_at: None };
    for now in (0..end_ms).step_by(usize::try_from(TICK_MS).unwrap()) {
        let due: Vec<(i64, usize, Stage)> = flights.iter().copied().filter(|(at, ..)| *at <= now).collect();
        flights.retain(|(at, ..)| *at > now);
        for (_, own, stage) in due {
            let controller = &mut controllers[own];
            match stage {
                Stage::Out if controller.failed < controller.pace.failing_commands => {
                    controller.failed += 1;
                    controller.ended(now, began, CommandOutcome::Nothing, Verdict::Failed);
                }
                Stage::Out if card.guests[own].left_ms.is_some() => {
                    controller.ended(now, began, CommandOutcome::Nothing, Verdict::Refused);
                }
                Stage::Out => {
                    card.guests[own].left_ms = Some(now);
                    played.commanded.push(own);
                    flights.push((now + card.guests[own].unload_ms, own, Stage::Leaving));
                }
                Stage::Leaving => {
                    controller.ended(now, began, CommandOutcome::Unloaded { completed_at: time(now) }, Verdict::Done);
                }
            }
        }
        for controller in &mut controllers {
            controller.hear(now);
            if now >= controller.next_step && controller.step(&card, now, began, policies) {
                flights.push((now + controller.pace.command_ms, controller.own, Stage::Out));
            }
        }
        if card.available(now) < BELOW_GIB * GIB {
            played.relieved_at = None;
        } else if played.relieved_at.is_none() {
            played.relieved_at = Some(now);
        }
        // Once it has been calm for a while, others take as much again.
        if now > card.more_at_ms && played.relieved_at.is_some_and(|at| now - at >= calm_ms) && rounds > 0 {
            rounds -= 1;
            card.foreign_gib += 3;
        }
    }
    played
}

#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    count: u32,
    calm_ms: i64,
}

const ONE_ROUND: Rounds = Rounds { count: 0, calm_ms: 0 };

#[derive(Debug)]
pub struct Played {
    /// The models that were told to leave, in that order.
    pub commanded: Vec<usize>,
    /// Since when the card has memory; `None`: it is short of memory at the end.
    pub relieved_at: Option<i64>,
}

prop_compose! {
    fn paces()(
        answers_ms in vec(prop_oneof![20..400_i64, 400..4500_i64], 3),
        step_ms in prop_oneof![1..50_i64, 50..600_i64],
        stall in proptest::option::of((4000..9000_i64, 500..9000_i64)),
        command_ms in prop_oneof![10..500_i64, 500..4000_i64],
        failing_commands in prop_oneof![3 => Just(0_u32), 1 => 1..4_u32],
    ) -> Pace {
        Pace { answers_ms, step_ms, stall, command_ms, failing_commands }
    }
}

prop_compose! {
    /// Three of 2 GiB of whom one is enough.
    fn cards()(order in Just((0..3_i64).collect::<Vec<_>>()).prop_shuffle()) -> Card {
        let guests = order.iter().map(|order| Guest::new(60_000 + 60_000 * order, 3, 500)).collect();
        Card { guests, foreign_gib: 9, more_gib: 4, more_at_ms: 5000 }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// The whole machine stands still for some seconds, in the middle of a step of each of them.
    #[test]
    fn a_machine_that_stood_still_goes_on_at_once(card in cards(), at in 4000..9000_i64, length in 3000..9000_i64, phases in vec(vec(0..SCRAPE_MS, 3), 3)) {
        let pace = Pace { answers_ms: vec![50; 3], step_ms: 5, stall: Some((at, length)), command_ms: 50, failing_commands: 0 };
        let controllers = (0..3).map(|own| SlowController::new(own, pace.clone(), &phases[own])).collect();
        let played = play(card.clone(), controllers, &[hard()], 120_000, ONE_ROUND);
        prop_assert!(played.relieved_at.is_some_and(|relieved| relieved < at.max(card.more_at_ms) + length + 5000), "{played:?}");
        let idlest = (0..3).max_by_key(|place| card.guests[*place].idle_ms).unwrap();
        prop_assert_eq!(&played.commanded[..1], &[idlest]);
    }

    /// Three times one is enough, and all of them have seen that it was.
    #[test]
    fn one_after_the_other_leaves_however_slow_they_are(calm_ms in 500..4000_i64, card in cards(), paces in vec(paces(), 3), phases in vec(vec(0..SCRAPE_MS, 3), 3)) {
        let controllers = (0..3).map(|own| SlowController::new(own, Pace{stall: None, failing_commands: 0, ..paces[own].clone()}, &phases[own])).collect();
        let played = play(card.clone(), controllers, &[hard()], card.more_at_ms + 180_000, Rounds { count: 2, calm_ms });
        let mut order: Vec<usize> = (0..3).collect();
        order.sort_by_key(|place| -card.guests[*place].idle_ms);
        prop_assert!(played.commanded.len() == 3, "never {played:?}");
        prop_assert!(played.commanded == order, "wrong {order:?} {played:?}");
    }

    /// Also where commands fail and one of them stands still for longer than the others wait for it.
    #[test]
    fn the_card_is_relieved_in_bounded_time(card in cards(), paces in vec(paces(), 3), phases in vec(vec(0..SCRAPE_MS, 3), 3)) {
        let controllers = (0..3).map(|own| SlowController::new(own, paces[own].clone(), &phases[own])).collect();
        let patience = i64::try_from(PATIENCE.as_millis()).unwrap();
        let played = play(card.clone(), controllers, &[hard()], card.more_at_ms + 60_000 + patience, ONE_ROUND);
        prop_assert!(played.relieved_at.is_some_and(|at| at < card.more_at_ms + 60_000), "{played:?}");
    }
}
