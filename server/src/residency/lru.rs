//! Which model leaves when only so many may be in memory: a pure decision.
//!
//! The least recently used idle model makes room. When none is idle, whoever waits does so in the order of arrival;
//! after [`PATIENCE`] the model that has been busy longest finishes what it has begun and leaves, so that two busy
//! models cannot keep a third out for ever, nor wait for each other.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::machine::Moment;

/// How long busy models may keep another one waiting.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a model that takes one of the places is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Idle {
        since: Moment,
    },
    /// Requests hold it; `entered`: when it took its place.
    Busy {
        entered: Moment,
    },
    Loading,
    /// On its way out: its place will be free.
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is a place.
    Enter,
    /// The n-th model is to leave, if it is still idle.
    UnloadIdle(usize),
    /// The n-th model is to finish what it has begun, and then to leave.
    Drain(usize),
    /// Until something changes, or until then.
    Wait(Option<Moment>),
}

/// What the first of those who wait, since `waiting_since`, is to do. `taken`: one entry for each place that is taken.
pub fn decide(limit: NonZeroUsize, taken: &[Use], now: Moment, waiting_since: Moment) -> Decision {
    if taken.len() < limit.get() {
        return Decision::Enter;
    }
    if taken.contains(&Use::Leaving) {
        return Decision::Wait(None);
    }
    let oldest = |of: fn(&Use) -> Option<Moment>| {
        let found = taken.iter().enumerate().filter_map(|(at, used)| Some((of(used)?, at)));
        found.min().map(|(_, at)| at)
    };
    let idle = oldest(|used| match used {
        Use::Idle { since } => Some(*since),
        _ => None,
    });
    if let Some(at) = idle {
        return Decision::UnloadIdle(at);
    }
    let busy = oldest(|used| match used {
        Use::Busy { entered } => Some(*entered),
        _ => None,
    });
    let end = waiting_since + PATIENCE;
    match busy {
        Some(at) if now >= end => Decision::Drain(at),
        Some(_) => Decision::Wait(Some(end)),
        // Loads end: a change will come.
        None => Decision::Wait(None),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(seconds * 1000)
    }

    fn limit(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn the_least_recently_used_idle_model_leaves() {
        let idle = |since| Use::Idle { since: at(since) };
        let busy = Use::Busy { entered: at(0) };
        assert_eq!(decide(limit(2), &[busy], at(9), at(9)), Decision::Enter);
        assert_eq!(decide(limit(3), &[idle(5), busy, idle(3)], at(9), at(9)), Decision::UnloadIdle(2));
        assert_eq!(decide(limit(2), &[idle(5), Use::Leaving], at(9), at(9)), Decision::Wait(None), "a place is coming");
        assert_eq!(decide(limit(1), &[Use::Loading], at(99), at(9)), Decision::Wait(None));
    }

    #[test]
    fn busy_models_leave_only_when_patience_is_over() {
        let taken = [Use::Busy { entered: at(7) }, Use::Busy { entered: at(3) }, Use::Loading];
        assert_eq!(decide(limit(3), &taken, at(39), at(10)), Decision::Wait(Some(at(40))));
        assert_eq!(decide(limit(3), &taken, at(40), at(10)), Decision::Drain(1));
    }

    /// Models with endless work: each is busy as soon as it is in, and wants back in as soon as it is out.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Place {
        Out,
        Waiting { since: u64 },
        In { used: Use, until: u64 },
    }

    proptest! {
        #[test]
        fn everybody_gets_in_and_never_too_many(
            places in 1_usize..4,
            greedy in proptest::collection::vec(any::<bool>(), 2..7),
            work in proptest::collection::vec(1_u64..200, 40),
        ) {
            let mut models = vec![Place::Out; greedy.len()];
            let mut queue = VecDeque::new();
            let mut entered = vec![0; models.len()];
            let mut work = work.into_iter().cycle();
            for now in 0..6000_u64 {
                for (n, place) in models.iter_mut().enumerate() {
                    match place {
                        Place::Out => {
                            *place = Place::Waiting { since: now };
                            queue.push_back(n);
                        }
                        Place::In { used: Use::Leaving, until } if *until <= now => *place = Place::Out,
                        Place::In { used: used @ Use::Loading, until } if *until <= now => {
                            *used = Use::Busy { entered: at(now) };
                            *until = now + work.next().unwrap();
                        }
                        // A greedy model has the next request at once and is never seen idle.
                        Place::In { used: used @ Use::Busy { .. }, until } if *until <= now => {
                            if greedy[n] { *until = now + work.next().unwrap(); } else { *used = Use::Idle { since: at(now) }; }
                        }
                        _ => {}
                    }
                }
                while let Some(first) = queue.front().copied() {
                    let holders: Vec<usize> =
                        (0..models.len()).filter(|n| matches!(models[*n], Place::In { .. })).collect();
                    prop_assert!(holders.len() <= places);
                    let taken: Vec<Use> = holders
                        .iter()
                        .filter_map(|n| match models[*n] { Place::In { used, .. } => Some(used), _ => None })
                        .collect();
                    let Place::Waiting { since } = models[first] else { panic!("not waiting") };
                    match decide(limit(places), &taken, at(now), at(since)) {
                        Decision::Enter => {
                            queue.pop_front();
                            models[first] = Place::In { used: Use::Loading, until: now + 2 };
                            entered[first] += 1;
                        }
                        Decision::UnloadIdle(at) => {
                            let is_idle = matches!(taken[at], Use::Idle { .. });
                            prop_assert!(is_idle);
                            models[holders[at]] = Place::In { used: Use::Leaving, until: now + 1 };
                        }
                        Decision::Drain(at) => {
                            let Place::In { until, .. } = models[holders[at]] else { panic!("not in") };
                            models[holders[at]] = Place::In { used: Use::Leaving, until };
                        }
                        Decision::Wait(until) => {
                            prop_assert!(until.is_none_or(|until| until > at(now)));
                            break;
                        }
                    }
                }
            }
            // The longest round: everybody before me waits its patience, and for a job of 200 s. With a place for each
            // nobody ever has to leave.
            let least = if entered.len() > places { 2 } else { 1 };
            prop_assert!(entered.iter().all(|times| *times >= least), "{entered:?}");
        }
    }
}
