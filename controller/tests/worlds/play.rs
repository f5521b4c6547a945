//! A world from its beginning to its end.

use std::collections::BTreeMap;

use hush_controller::simulate::trace::Dice;
use hush_core::{Action, CommandOutcome, Plan};

use crate::host::Host;
use crate::house::House;
use crate::laws::{self, Broken, Moment, Watch};
use crate::scenario::{Faults, Scenario};

/// What has happened, so that a test can tell that it has seen everything.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub worlds: u64,
    pub virtual_ms: u64,
    pub steps: u64,
    pub requests: u64,
    pub served: u64,
    pub restarts: u64,
    pub clock_steps: u64,
    /// Decisions by reason, skips by reason, and unloads that servers took or refused.
    pub counts: BTreeMap<String, u64>,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.virtual_ms += other.virtual_ms;
        self.steps += other.steps;
        self.requests += other.requests;
        self.served += other.served;
        self.restarts += other.restarts;
        self.clock_steps += other.clock_steps;
        for (name, count) in &other.counts {
            *self.counts.entry(name.clone()).or_default() += count;
        }
    }

    fn count(&mut self, name: String) {
        *self.counts.entry(name).or_default() += 1;
    }
}

pub struct Game {
    scenario: Scenario,
    house: House,
    host: Host,
    watch: Watch,
    tally: Tally,
    /// Says what happens.
    loud: bool,
}

/// Plays a world; the error says when which law was broken.
pub fn play(seed: u64, loud: bool) -> Result<Tally, Broken> {
    let scenario = Scenario::new(seed);
    let mut dice = Dice(seed ^ 0x5eed);
    let (house, host) = (House::new(&scenario, &mut dice), Host::new(&scenario, &mut dice));
    let tally = Tally { worlds: 1, ..Tally::default() };
    let mut game = Game { scenario, house, host, watch: Watch::default(), tally, loud };
    if loud {
        eprintln!("{:#?}", game.scenario);
    }
    let length = game.scenario.length_ms;
    let mut now = 0;
    let mut play_until = |game: &mut Game, end: u64| -> Result<(), Broken> {
        while now < end {
            game.tick(now).map_err(|broken| format!("after {now} ms: {broken}"))?;
            now += game.scenario.tick_ms;
        }
        Ok(())
    };
    play_until(&mut game, length)?;
    game.calm();
    play_until(&mut game, length + laws::REST_MS)?;
    laws::at_the_end(now, &game.house, &game.watch).map_err(|broken| format!("at the end: {broken}"))?;
    game.tally.virtual_ms = now;
    for guest in &game.house.guests {
        game.tally.requests += guest.answered.arrived;
        game.tally.served += guest.answered.served;
    }
    Ok(game.tally)
}

impl Game {
    fn calm(&mut self) {
        self.house.calm();
        self.host.calm();
        self.scenario.faults = Faults::default();
        self.scenario.slow_down();
        self.watch.calm();
    }

    fn tick(&mut self, now: u64) -> Result<(), Broken> {
        let replies = self.house.advance(now);
        let latency = self.scenario.faults.latency_ms;
        let news = self.host.advance(now, &mut self.house, replies, latency);
        for flight in &news.taken {
            self.tally.count(format!("taken {}", flight.decision.reason));
            self.watch.taken(now, flight, &self.scenario, &self.house)?;
        }
        for (flight, how) in &news.settled {
            if *how == CommandOutcome::Nothing {
                self.tally.count(format!("in vain {} {}", flight.decision.action, flight.decision.reason));
            }
            self.watch.settled(now, flight, *how);
        }
        self.watch.passed(now, &self.scenario, &self.house, &self.host)?;
        if now.is_multiple_of(self.scenario.interval_ms) {
            let before = (self.host.restarted, self.host.clock_stepped);
            self.host.accidents(now, &self.scenario);
            self.tally.restarts += u64::from(before.0 != self.host.restarted);
            self.tally.clock_steps += u64::from(before.1 != self.host.clock_stepped);
            if self.host.up(now) {
                self.decide(now)?;
            }
        }
        Ok(())
    }

    fn decide(&mut self, now: u64) -> Result<(), Broken> {
        let (scenario, house) = (&self.scenario, &self.house);
        self.host.scrape(now, house, scenario);
        let world = self.host.world(now, house, scenario);
        let memory = self.host.memory.clone();
        let plan = self.host.decide(now, &world, scenario);
        self.tally.steps += 1;
        for decision in plan.decisions.iter().filter(|decision| !decision.dry_run) {
            self.tally.count(format!("{} {}", decision.action, decision.reason));
        }
        for skip in &plan.skips {
            *self.tally.counts.entry(format!("skip {}", skip.reason)).or_default() += 1;
        }
        if self.loud {
            tell(now, &world, &plan);
        }
        let wall = self.host.wall(now);
        let moment = Moment { now, wall, scenario, host: &self.host, world: &world, plan: &plan, memory: &memory };
        self.watch.decided(&moment)
    }
}

fn tell(now: u64, world: &hush_core::World, plan: &Plan) {
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
        let busy = model.inflight + model.queued;
        eprintln!(
            "   {} {:?} busy {busy} idle {:?} loaded {:?} vram {} generation {} sampled {:?} ago",
            model.key, model.state, model.idle, model.loaded_for, model.vram_bytes, model.generation, model.sample_age
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
