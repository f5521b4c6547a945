//! Rule 12: the models of one policy on one card hold no more than its budget. Whoever is loaded by us must fit into it,
//! or it would leave again at once.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::card::{Card, Terms, Turn};
use crate::plan::{Reason, SkipReason};
use crate::world::Gpu;

/// The budgets of one card and what is held of each, by policy.
#[derive(Debug)]
pub struct Books(BTreeMap<usize, Book>);

#[derive(Debug)]
struct Book {
    budget: u64,
    held: u64,
}

impl Books {
    /// `places`: the governed models on the card.
    pub fn new(turn: &Turn<'_>, gpu: Option<&Gpu>, places: &[usize]) -> Self {
        let mut books = Self(BTreeMap::new());
        let total = gpu.map(|gpu| gpu.total_bytes);
        for &place in places {
            let member = turn.member(place);
            let bytes = if member.holds_memory() { member.model.vram_bytes } else { 0 };
            for &policy in turn.fleet.set(member) {
                if let Some(budget) = turn.fleet.policies[policy].asks.budget.and_then(|budget| budget.bytes(total)) {
                    let book = books.0.entry(policy).or_insert(Book { budget, held: 0 });
                    book.held = book.held.saturating_add(bytes);
                }
            }
        }
        books
    }

    /// Enters a model that is about to load, if every budget of its policies allows it.
    pub fn admit(&mut self, policies: &[usize], bytes: u64) -> bool {
        let fits = |book: &Book| book.held.saturating_add(bytes) <= book.budget;
        if !policies.iter().filter_map(|policy| self.0.get(policy)).all(fits) {
            return false;
        }
        for policy in policies {
            if let Some(book) = self.0.get_mut(policy) {
                book.held = book.held.saturating_add(bytes);
            }
        }
        true
    }

    /// Each policy whose budget is exceeded, with what it allows and what is held.
    fn overdrawn(&self) -> Vec<(usize, u64, u64)> {
        let over = self.0.iter().filter(|(_, book)| book.held > book.budget);
        over.map(|(policy, book)| (*policy, book.budget, book.held)).collect()
    }
}

/// Marks the models of policies that are over their budget: they rank first.
pub fn mark(turn: &mut Turn<'_>, card: &Card<'_>) {
    let over = card.books.overdrawn();
    if over.is_empty() {
        return;
    }
    for &place in &card.ranked {
        let set = turn.fleet.set(turn.member(place));
        let marked = over.iter().any(|(policy, ..)| set.contains(policy));
        turn.fleet.members[place].over_budget = marked;
    }
}

pub fn apply<'a>(turn: &mut Turn<'a>, card: &mut Card<'a>) {
    for (policy, budget, mut holds) in card.books.overdrawn() {
        for place in turn.kept_last(&card.ranked) {
            let member = turn.member(place);
            if !turn.fleet.set(member).contains(&policy) || !member.model.ready() {
                continue;
            }
            let vram = member.model.vram_bytes;
            if turn.decided[place] {
                // Another policy's budget took it.
                holds = holds.saturating_sub(vram);
                continue;
            }
            if holds <= budget || !member.counts_as_ready() {
                continue;
            }
            let Some(rules) = member.rules.clone() else { continue };
            if !card.fresh {
                let (reason, detail) = card.why_unknown();
                turn.skip(place, reason, detail);
            } else if card.awaiting || member.used {
                turn.skip(place, SkipReason::AwaitingFreshSample, "over budget");
            } else if member.model.busy() {
                turn.skip(place, SkipReason::Busy, "over budget");
            } else if !member.old_enough() {
                turn.skip(place, SkipReason::MinResident, "over budget");
            } else if turn.protected(place) {
                turn.skip(place, SkipReason::MinLoaded, "over budget");
            } else {
                holds = holds.saturating_sub(vram);
                let terms = Terms { if_idle: Some(Duration::ZERO), hold: Some(rules.hold_after_eviction), drain: None };
                turn.unload(card, place, Reason::OverBudget, policy, terms);
            }
        }
    }
}
