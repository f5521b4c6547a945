//! Plays a world from its beginning to its end.

use std::collections::BTreeMap;

use hush_controller::simulate::trace::SplitMix64;
use hush_core::{Action, CommandOutcome, Plan};

use crate::controller_sim::ControllerSim;
use crate::invariants::{self, DecisionContext, InvariantTracker, Violation};
use crate::scenario::{Scenario, ScenarioFaults};
use crate::world_sim::WorldSim;

/// What has happened, so that the test can tell that it has seen everything.
#[derive(Clone, Debug, Default)]
pub struct PlayCounts {
    pub worlds: u64,
    pub virtual_ms: u64,
    pub steps: u64,
    pub requests: u64,
    pub served: u64,
    pub restarts: u64,
    pub clock_steps: u64,
    /// How often each decision, each skip and each outcome occurred.
    pub by_name: BTreeMap<String, u64>,
}

impl PlayCounts {
    pub fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.virtual_ms += other.virtual_ms;
        self.steps += other.steps;
        self.requests += other.requests;
        self.served += other.served;
        self.restarts += other.restarts;
        self.clock_steps += other.clock_steps;
        for (name, count) in &other.by_name {
            *self.by_name.entry(name.clone()).or_default() += count;
        }
    }

    fn count(&mut self, name: String) {
        *self.by_name.entry(name).or_default() += 1;
    }
}

/// A world that is being played.
pub struct PlayedWorld {
    scenario: Scenario,
    world_sim: WorldSim,
    controller: ControllerSim,
    tracker: InvariantTracker,
    counts: PlayCounts,
    /// Prints what happens.
    verbose: bool,
}

/// Plays a world; the error says which invariant was violated, and when.
pub fn play(seed: u64, verbose: bool) -> Result<PlayCounts, Violation> {
    let scenario = Scenario::new(seed);
    let mut dice = SplitMix64(seed ^ 0x5eed);
    let world_sim = WorldSim::new(&scenario, &mut dice);
    let controller = ControllerSim::new(&scenario, &mut dice);
    let counts = PlayCounts { worlds: 1, ..PlayCounts::default() };
    let mut game =
        PlayedWorld { scenario, world_sim, controller, tracker: InvariantTracker::default(), counts, verbose };
    if verbose {
        eprintln!("{:#?}", game.scenario);
    }

    let length = game.scenario.length_ms;
    let mut now = 0;
    let mut play_until = |game: &mut PlayedWorld, end: u64| -> Result<(), Violation> {
        while now < end {
            game.tick(now).map_err(|violation| format!("after {now} ms: {violation}"))?;
            now += game.scenario.tick_ms;
        }

        Ok(())
    };

    play_until(&mut game, length)?;
    game.come_to_rest();
    play_until(&mut game, length + invariants::REST_MS)?;
    invariants::at_the_end(now, &game.world_sim, &game.tracker)
        .map_err(|violation| format!("at the end: {violation}"))?;

    game.counts.virtual_ms = now;
    for model in &game.world_sim.models {
        game.counts.requests += model.answered.arrived;
        game.counts.served += model.answered.served;
    }

    Ok(game.counts)
}

impl PlayedWorld {
    fn come_to_rest(&mut self) {
        self.world_sim.come_to_rest();
        self.controller.come_to_rest();
        self.scenario.faults = ScenarioFaults::default();
        self.scenario.slow_down();
        self.tracker.come_to_rest();
    }

    fn tick(&mut self, now: u64) -> Result<(), Violation> {
        let replies = self.world_sim.advance(now);
        let latency = self.scenario.faults.latency_ms;
        let progress = self.controller.advance(now, &mut self.world_sim, replies, latency);

        for sent in &progress.accepted {
            self.counts.count(format!("taken {}", sent.decision.reason));
            self.tracker.command_accepted(now, sent, &self.scenario, &self.world_sim)?;
        }

        for (sent, outcome) in &progress.settled {
            if *outcome == CommandOutcome::Nothing {
                self.counts.count(format!("in vain {} {}", sent.decision.action, sent.decision.reason));
            }

            self.tracker.command_settled(now, sent, *outcome);
        }

        self.tracker.time_passed(now, &self.scenario, &self.world_sim, &self.controller)?;

        if now.is_multiple_of(self.scenario.interval_ms) {
            let before = (self.controller.restarted, self.controller.clock_stepped);
            self.controller.inject_faults(now, &self.scenario);
            self.counts.restarts += u64::from(before.0 != self.controller.restarted);
            self.counts.clock_steps += u64::from(before.1 != self.controller.clock_stepped);
            if self.controller.is_up(now) {
                self.decide(now)?;
            }
        }

        Ok(())
    }

    fn decide(&mut self, now: u64) -> Result<(), Violation> {
        let (scenario, world_sim) = (&self.scenario, &self.world_sim);
        self.controller.scrape(now, world_sim, scenario);
        let world = self.controller.world(now, world_sim, scenario);
        let memory = self.controller.memory.clone();
        let plan = self.controller.decide(now, &world, scenario);

        self.counts.steps += 1;
        for decision in plan.decisions.iter().filter(|decision| !decision.dry_run) {
            self.counts.count(format!("{} {}", decision.action, decision.reason));
        }

        for skip in &plan.skips {
            *self.counts.by_name.entry(format!("skip {}", skip.reason)).or_default() += 1;
        }

        if self.verbose {
            print_step(now, &world, &plan);
        }

        let wall = self.controller.wall(now);
        let context = DecisionContext {
            now,
            wall,
            scenario,
            controller: &self.controller,
            world: &world,
            plan: &plan,
            memory: &memory,
        };

        self.tracker.check_decisions(&context)
    }
}

fn print_step(now: u64, world: &hush_core::World, plan: &Plan) {
    if plan.decisions.is_empty() {
        return;
    }

    eprintln!("-- {now} ms");
    for gpu in &plan.gpus {
        eprintln!(
            "   {} {:?} {:?} available {} target {:?}",
            gpu.uuid, gpu.pressure, gpu.reason, gpu.available, gpu.target
        );
    }

    for model in &world.models {
        let busy = model.sample.inflight + model.sample.queued;
        eprintln!(
            "   {} {:?} busy {busy} idle {:?} loaded {:?} vram {} generation {} sampled {:?} ago",
            model.key,
            model.sample.state,
            model.sample.idle,
            model.sample.loaded_for,
            model.sample.vram_bytes,
            model.sample.generation,
            model.sample_age
        );
    }

    for decision in &plan.decisions {
        let what = if decision.action == Action::Load { "load" } else { "unload" };
        eprintln!(
            "   => {what} {} {} {:?} dry run {}",
            decision.key(),
            decision.reason,
            decision.if_idle_seconds,
            decision.dry_run
        );
    }
}
