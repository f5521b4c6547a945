//! One card in one step: its models in rank order, and what the rules have decided so far.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::adaptive::Learners;
use crate::budget::Books;
use crate::fleet::{Fleet, Member, gpu_fresh};
use crate::floor::Floor;
use crate::plan::{Action, Decision, Plan, Reason, SkipReason};
use crate::rank;
use crate::signal::{Reading, Signal};
use crate::world::{Gpu, GpuId};

/// What all cards of a step share.
#[derive(Debug)]
pub struct Turn<'a> {
    pub now: Timestamp,
    pub stale_after: Duration,
    pub fleet: Fleet<'a>,
    pub floor: Floor,
    pub learners: &'a Learners,
    /// By place in the fleet.
    pub decided: Vec<bool>,
    pub skips: Vec<WhyNot>,
    pub plan: Plan,
}

/// Why the model at this place of the fleet is left alone.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WhyNot {
    pub place: usize,
    pub reason: SkipReason,
    pub detail: String,
}

#[derive(Debug)]
pub struct Card<'a> {
    pub id: Option<&'a GpuId>,
    /// `None`: nobody reported it.
    pub gpu: Option<&'a Gpu>,
    pub fresh: bool,
    /// The sample is not newer than the last unload here, or one is under way, or a model that was named has not been seen
    /// since: nobody else leaves in its stead.
    pub awaiting: bool,
    /// Places in the fleet of the governed models, in rank order.
    pub ranked: Vec<usize>,
    pub books: Books,
    /// Every threshold that matters here, by the operator's policies alone too.
    pub readings: BTreeMap<Signal, Reading>,
    pub available: u64,
    /// What this step's decisions give back.
    pub freed: u64,
}

impl<'a> Card<'a> {
    /// `places`: the governed models on the card.
    pub fn new(
        turn: &mut Turn<'a>,
        id: Option<&'a GpuId>,
        gpu: Option<&'a Gpu>,
        places: Vec<usize>,
        awaiting: bool,
    ) -> Self {
        let fresh = gpu.is_some_and(|gpu| gpu_fresh(gpu, turn.stale_after));
        let available = gpu.map_or(0, Gpu::available_bytes);
        let books = Books::new(turn, gpu, &places);
        let named = |&place: &usize| turn.member(place).used && turn.member(place).counts_as_ready();
        let awaiting = awaiting || places.iter().any(named);
        let readings = BTreeMap::new();
        let mut card = Self { id, gpu, fresh, awaiting, ranked: places, books, readings, available, freed: 0 };
        crate::budget::mark(turn, &card);
        let members = &turn.fleet.members;
        card.ranked.sort_by(|&a, &b| rank::compare(&members[a], &members[b]));
        card
    }

    /// Why no decision may rest on its memory.
    pub fn why_unknown(&self) -> (SkipReason, &'static str) {
        if self.gpu.is_some_and(|gpu| gpu.disputed) {
            (SkipReason::ReportsDisagree, "the servers of its GPU do not agree on its memory")
        } else {
            (SkipReason::MetricsStale, "the sample of its GPU is too old")
        }
    }

    pub const fn expected(&self) -> u64 {
        self.available.saturating_add(self.freed)
    }
}

/// The condition and the aftermath of an unload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    pub if_idle: Option<Duration>,
    pub drain: Option<Duration>,
    pub hold: Option<Duration>,
}

impl<'a> Turn<'a> {
    pub fn member(&self, place: usize) -> &Member<'a> {
        &self.fleet.members[place]
    }

    pub fn protected(&self, place: usize) -> bool {
        self.floor.protects(&self.fleet, self.member(place))
    }

    /// In their order, but those that stay without the policies of other namespaces after the rest.
    pub fn kept_last(&self, ranked: &[usize]) -> Vec<usize> {
        let (kept, others): (Vec<usize>, Vec<usize>) = ranked.iter().partition(|&&place| self.member(place).kept);
        [others, kept].concat()
    }

    /// Counts the model as gone for `minLoaded`; [`Self::unload`] does it too.
    pub fn take(&mut self, place: usize) {
        self.floor.take(&self.fleet, &self.fleet.members[place]);
    }

    pub fn give_back(&mut self, place: usize) {
        self.floor.give_back(&self.fleet, &self.fleet.members[place]);
    }

    pub fn unload(&mut self, card: &mut Card<'a>, place: usize, reason: Reason, policy: usize, terms: Terms) {
        self.take(place);
        self.decide_taken(card, place, reason, policy, terms);
    }

    /// The same for a model that was taken already.
    pub fn decide_taken(&mut self, card: &mut Card<'a>, place: usize, reason: Reason, policy: usize, terms: Terms) {
        let model = self.member(place).model;
        card.freed = card.freed.saturating_add(model.vram_bytes);
        self.decided[place] = true;
        let decision = Decision {
            server: model.key.server.clone(),
            model: model.key.model.clone(),
            gpu: model.gpu.clone(),
            action: Action::Unload,
            reason,
            policy: self.fleet.policy_name(policy),
            if_generation: Some(model.generation),
            if_idle_seconds: terms.if_idle.map(whole_seconds),
            drain_seconds: terms.drain.map(whole_seconds),
            hold_seconds: terms.hold.map(whole_seconds),
            vram_bytes: model.vram_bytes,
            dry_run: false,
        };
        self.plan.decisions.push(decision);
    }

    pub fn load(&mut self, place: usize, reason: Reason, policy: usize) {
        let model = self.member(place).model;
        self.decided[place] = true;
        let decision = Decision {
            server: model.key.server.clone(),
            model: model.key.model.clone(),
            gpu: model.gpu.clone(),
            action: Action::Load,
            reason,
            policy: self.fleet.policy_name(policy),
            if_generation: None,
            if_idle_seconds: None,
            drain_seconds: None,
            hold_seconds: None,
            vram_bytes: model.vram_bytes,
            dry_run: false,
        };
        self.plan.decisions.push(decision);
    }

    pub fn skip(&mut self, place: usize, reason: SkipReason, detail: impl Into<String>) {
        self.skips.push(WhyNot { place, reason, detail: detail.into() });
    }
}

/// Rounded up, so that a condition is never weaker than the rule.
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
