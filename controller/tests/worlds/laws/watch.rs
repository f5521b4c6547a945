//! What is watched from step to step, and the laws in their order.

use std::collections::BTreeMap;

use hush_core::{Action, CommandOutcome, GpuId};

use super::time::{Crossings, Evictions, Patience};
use super::{Broken, Known, Moment, duty, safety, tenants};
use crate::host::{Flight, Host, Stage};
use crate::house::House;
use crate::scenario::Scenario;

/// Every so many decisions are made again, with everything in another order and without the dry runs.
const AGAIN: u64 = 16;

#[derive(Debug, Default)]
pub struct Watch {
    steps: u64,
    /// By guest: when it was last named.
    pub decided: BTreeMap<usize, u64>,
    /// By guest: when its server last took an unload of ours.
    pub accepted: BTreeMap<usize, u64>,
    /// When an unload on the card was last decided, and when one was last reported to have ended.
    pub card_decided: BTreeMap<GpuId, u64>,
    pub card_settled: BTreeMap<GpuId, u64>,
    pub crossings: Crossings,
    evictions: Evictions,
    patience: Patience,
}

impl Watch {
    /// After each decision of the controller.
    pub fn decided(&mut self, moment: &Moment<'_>) -> Result<(), Broken> {
        let known = moment.known();
        self.crossings.see(moment, &known);
        safety::check(self, moment, &known)?;
        duty::check(self, moment, &known)?;
        tenants::check(moment, &known)?;
        self.steps += 1;
        if self.steps.is_multiple_of(AGAIN) {
            safety::again(moment)?;
        }
        self.remember(moment, &known);
        Ok(())
    }

    fn remember(&mut self, moment: &Moment<'_>, known: &[Known<'_>]) {
        for known in known {
            let Some(decision) = known.decision else { continue };
            self.decided.insert(known.guest, moment.now);
            if let (Action::Unload, Some(gpu)) = (decision.action, &decision.gpu) {
                self.card_decided.insert(gpu.clone(), moment.now);
            }
        }
    }

    /// A server has taken a command.
    pub fn taken(&mut self, now: u64, flight: &Flight, scenario: &Scenario, house: &House) -> Result<(), Broken> {
        if flight.decision.action == Action::Unload {
            self.accepted.insert(flight.guest, now);
            self.evictions.begin(now, flight, scenario, house)?;
        }
        Ok(())
    }

    /// From now on nothing stirs; see [`super::end`].
    pub fn calm(&mut self) {
        self.evictions.calm();
    }

    pub fn settled(&mut self, now: u64, flight: &Flight, how: CommandOutcome) {
        if let (CommandOutcome::Unloaded { .. }, Some(gpu)) = (how, &flight.decision.gpu) {
            self.card_settled.insert(gpu.clone(), now);
        }
    }

    /// Hard pressure has sent the model away since the world came to rest.
    pub fn not_suffered(&self, guest: usize) -> bool {
        self.evictions.not_suffered(guest)
    }

    /// Whenever time has passed.
    pub fn passed(&mut self, now: u64, scenario: &Scenario, house: &House, host: &Host) -> Result<(), Broken> {
        self.evictions.see(now, house);
        self.patience.see(now, scenario, house, host)
    }

    /// Facts from before this time may be unknown to the controller, or be older than its clock says.
    pub fn known_since(&self, host: &Host) -> u64 {
        host.restarted.max(host.clock_stepped).unwrap_or(0)
    }

    /// The controller may have to wait on this card: a command is under way, or the sample does not show the last one.
    pub fn may_wait(&self, moment: &Moment<'_>, known: &Known<'_>) -> bool {
        let Some(gpu) = known.gpu else { return true };
        let sampled_at = moment.now - u64::try_from(gpu.sample_age.as_millis()).unwrap();
        let newer = |times: &BTreeMap<GpuId, u64>| times.get(&gpu.uuid).is_some_and(|at| sampled_at <= *at);
        let under_way = moment.host.flights.iter().filter(|flight| flight.decided_at < moment.now);
        let mut under_way = under_way.filter(|flight| flight.decision.action == Action::Unload);
        under_way.any(|flight| flight.decision.gpu.as_ref() == Some(&gpu.uuid))
            || newer(&self.card_decided)
            || newer(&self.card_settled)
    }

    /// The controller may think that a command for the model is under way, or that its sample was used.
    pub fn may_spare(&self, moment: &Moment<'_>, known: &Known<'_>) -> bool {
        let under_way = moment.host.flights.iter().filter(|flight| flight.decided_at < moment.now);
        let mut under_way = under_way.filter(|flight| flight.guest == known.guest);
        under_way.next().is_some() || self.decided.get(&known.guest).is_some_and(|at| known.sampled_at <= *at)
    }

    /// An unload of ours that is on its way to the server of this guest.
    pub fn on_its_way(&self, moment: &Moment<'_>, guest: usize) -> bool {
        let out = |flight: &&Flight| matches!(flight.stage, Stage::Out { .. }) && flight.decided_at < moment.now;
        let mut flights = moment.host.flights.iter().filter(out);
        flights.any(|flight| flight.guest == guest && flight.decision.action == Action::Unload)
    }
}
