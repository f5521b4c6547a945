//! Which model leaves when only so many may be in memory: a pure decision.
//!
//! The least recently used idle model makes room. When no model is idle, the models that want a slot wait in the order of
//! their arrival. After [`BUSY_LIMIT`] the model that has had its slot for longest finishes what it has begun and leaves,
//! so that two busy models can neither keep a third out for ever nor wait for each other.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::machine::MachineTime;

/// How long busy models may keep another one waiting.
pub const BUSY_LIMIT: Duration = Duration::from_secs(30);

/// What a model that has a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotUse {
    Idle {
        since: MachineTime,
    },
    /// Requests hold the model. `entered`: when it took its slot.
    Busy {
        entered: MachineTime,
    },
    Loading,
    /// The model is being unloaded: its slot will be free.
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotDecision {
    /// There is a free slot.
    Enter,
    /// Unload the n-th model, if it is still idle.
    UnloadIdle(usize),
    /// Let the n-th model finish what it has begun, and then unload it.
    Drain(usize),
    /// Wait until something changes, or until this time.
    Wait(Option<MachineTime>),
}

/// What the first of the waiting models, which waits since `waiting_since`, is to do. `taken`: one entry for each slot
/// that is taken.
pub fn decide(limit: NonZeroUsize, taken: &[SlotUse], now: MachineTime, waiting_since: MachineTime) -> SlotDecision {
    if taken.len() < limit.get() {
        return SlotDecision::Enter;
    }
    if taken.contains(&SlotUse::Leaving) {
        return SlotDecision::Wait(None);
    }

    let longest_idle = position_of_earliest(taken, |slot_use| match slot_use {
        SlotUse::Idle { since } => Some(*since),
        _ => None,
    });
    if let Some(at) = longest_idle {
        return SlotDecision::UnloadIdle(at);
    }

    let longest_busy = position_of_earliest(taken, |slot_use| match slot_use {
        SlotUse::Busy { entered } => Some(*entered),
        _ => None,
    });
    let limit_reached = waiting_since + BUSY_LIMIT;
    match longest_busy {
        Some(at) if now >= limit_reached => SlotDecision::Drain(at),
        Some(_) => SlotDecision::Wait(Some(limit_reached)),
        // Every load ends, and that is a change.
        None => SlotDecision::Wait(None),
    }
}

/// The position of the slot for which `time_of` gives the earliest time.
fn position_of_earliest(taken: &[SlotUse], time_of: fn(&SlotUse) -> Option<MachineTime>) -> Option<usize> {
    let times = taken.iter().enumerate().filter_map(|(at, slot_use)| Some((time_of(slot_use)?, at)));

    times.min().map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> MachineTime {
        MachineTime::from_millis(seconds * 1000)
    }

    fn limit(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn the_least_recently_used_idle_model_leaves() {
        let idle = |since| SlotUse::Idle { since: at(since) };
        let busy = SlotUse::Busy { entered: at(0) };

        assert_eq!(decide(limit(2), &[busy], at(9), at(9)), SlotDecision::Enter);
        assert_eq!(decide(limit(3), &[idle(5), busy, idle(3)], at(9), at(9)), SlotDecision::UnloadIdle(2));

        let a_slot_is_coming = decide(limit(2), &[idle(5), SlotUse::Leaving], at(9), at(9));
        assert_eq!(a_slot_is_coming, SlotDecision::Wait(None));
        assert_eq!(decide(limit(1), &[SlotUse::Loading], at(99), at(9)), SlotDecision::Wait(None));
    }

    #[test]
    fn busy_models_leave_only_after_the_limit() {
        let taken = [SlotUse::Busy { entered: at(7) }, SlotUse::Busy { entered: at(3) }, SlotUse::Loading];

        assert_eq!(decide(limit(3), &taken, at(39), at(10)), SlotDecision::Wait(Some(at(40))));
        assert_eq!(decide(limit(3), &taken, at(40), at(10)), SlotDecision::Drain(1));
    }

    /// A model with endless work: it is busy as soon as it has a slot, and wants another as soon as it has lost it.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum SlotSeeker {
        Out,
        Waiting { since: u64 },
        In { slot_use: SlotUse, until: u64 },
    }

    struct SlotSimulation {
        slots: usize,
        models: Vec<SlotSeeker>,
        /// A greedy model has the next request at once and is never seen idle.
        is_greedy: Vec<bool>,
        queue: VecDeque<usize>,
        /// How often each model got a slot.
        entered: Vec<usize>,
        work_seconds: Box<dyn Iterator<Item = u64>>,
    }

    impl SlotSimulation {
        fn new(slots: usize, is_greedy: Vec<bool>, work_seconds: Vec<u64>) -> Self {
            Self {
                slots,
                models: vec![SlotSeeker::Out; is_greedy.len()],
                queue: VecDeque::new(),
                entered: vec![0; is_greedy.len()],
                is_greedy,
                work_seconds: Box::new(work_seconds.into_iter().cycle()),
            }
        }

        fn let_time_pass(&mut self, now: u64) {
            for (n, model) in self.models.iter_mut().enumerate() {
                match model {
                    SlotSeeker::Out => {
                        *model = SlotSeeker::Waiting { since: now };
                        self.queue.push_back(n);
                    }
                    SlotSeeker::In { slot_use: SlotUse::Leaving, until } if *until <= now => *model = SlotSeeker::Out,
                    SlotSeeker::In { slot_use: slot_use @ SlotUse::Loading, until } if *until <= now => {
                        *slot_use = SlotUse::Busy { entered: at(now) };
                        *until = now + self.work_seconds.next().unwrap();
                    }
                    SlotSeeker::In { slot_use: slot_use @ SlotUse::Busy { .. }, until } if *until <= now => {
                        if self.is_greedy[n] {
                            *until = now + self.work_seconds.next().unwrap();
                        } else {
                            *slot_use = SlotUse::Idle { since: at(now) };
                        }
                    }
                    _ => {}
                }
            }
        }

        /// Lets the first model of the queue act; `false`: it waits.
        fn decide_for_the_first(&mut self, now: u64) -> Result<bool, TestCaseError> {
            let Some(first) = self.queue.front().copied() else { return Ok(false) };
            let SlotSeeker::Waiting { since } = self.models[first] else { panic!("not waiting") };

            let holders: Vec<usize> =
                (0..self.models.len()).filter(|n| matches!(self.models[*n], SlotSeeker::In { .. })).collect();
            prop_assert!(holders.len() <= self.slots);
            let taken: Vec<SlotUse> = holders
                .iter()
                .filter_map(|n| match self.models[*n] {
                    SlotSeeker::In { slot_use, .. } => Some(slot_use),
                    _ => None,
                })
                .collect();

            match decide(limit(self.slots), &taken, at(now), at(since)) {
                SlotDecision::Enter => {
                    self.queue.pop_front();
                    self.models[first] = SlotSeeker::In { slot_use: SlotUse::Loading, until: now + 2 };
                    self.entered[first] += 1;
                }
                SlotDecision::UnloadIdle(at) => {
                    let is_idle = matches!(taken[at], SlotUse::Idle { .. });
                    prop_assert!(is_idle);
                    self.models[holders[at]] = SlotSeeker::In { slot_use: SlotUse::Leaving, until: now + 1 };
                }
                SlotDecision::Drain(at) => {
                    let SlotSeeker::In { until, .. } = self.models[holders[at]] else { panic!("not in") };
                    self.models[holders[at]] = SlotSeeker::In { slot_use: SlotUse::Leaving, until };
                }
                SlotDecision::Wait(until) => {
                    prop_assert!(until.is_none_or(|until| until > at(now)));
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }

    proptest! {
        #[test]
        fn every_model_gets_in_and_never_too_many(
            slots in 1_usize..4,
            is_greedy in proptest::collection::vec(any::<bool>(), 2..7),
            work_seconds in proptest::collection::vec(1_u64..200, 40),
        ) {
            let mut simulation = SlotSimulation::new(slots, is_greedy, work_seconds);

            for now in 0..6000_u64 {
                simulation.let_time_pass(now);
                while simulation.decide_for_the_first(now)? {}
            }

            // The longest round: every model in the queue waits its limit, and for a job of 200 s. With a slot for each
            // model none ever has to leave.
            let entered = simulation.entered;
            let least = if entered.len() > slots { 2 } else { 1 };
            prop_assert!(entered.iter().all(|times| *times >= least), "{entered:?}");
        }
    }
}
