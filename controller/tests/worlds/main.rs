//! Thousands of small worlds over virtual days: cards and MIG instances, others who take and give memory, requests,
//! failing loads, runners that die, servers that fall silent, commands that are lost, controllers that restart and
//! clocks that are set. The models are the servers' own state machine; the decisions are `hush_core::step`. `laws` says
//! what must hold.
//!
//! `HUSH_WORLDS=N` plays so many worlds, `HUSH_WORLDS_FROM=SEED` begins at another seed, `HUSH_WORLD=SEED` plays one and
//! tells what happens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod device;
mod dice;
mod expected;
mod guest;
mod host;
mod house;
mod laws;
mod play;
mod policies;
mod scenario;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use play::{Tally, play};

/// Some 20 seconds on two cores.
const WORLDS: u64 = 1000;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// Plays every seed and says which worlds broke a law.
fn all(seeds: std::ops::Range<u64>) -> (Tally, Vec<String>) {
    let next = AtomicU64::new(seeds.start);
    let results = Mutex::new((Tally::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(4));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let played = std::panic::catch_unwind(|| play(seed, false))
                        .unwrap_or_else(|_| Err("a panic, see above".to_owned()));
                    let mut results = results.lock().unwrap();
                    match played {
                        Ok(tally) => results.0.add(&tally),
                        Err(broken) => results.1.push(format!("HUSH_WORLD={seed}: {broken}")),
                    }
                }
            });
        }
    });
    results.into_inner().unwrap()
}

#[test]
fn no_world_breaks_a_law() {
    if let Some(seed) = variable("HUSH_WORLD") {
        let tally = play(seed, true).unwrap_or_else(|broken| panic!("HUSH_WORLD={seed}: {broken}"));
        eprintln!("{tally:#?}");
        return;
    }
    let from = variable("HUSH_WORLDS_FROM").unwrap_or(1);
    let count = variable("HUSH_WORLDS").unwrap_or(WORLDS);
    let (tally, broken) = all(from..from + count);
    println!("seeds {from}..{}: {tally:#?}", from + count);
    assert!(broken.is_empty(), "{} worlds broke a law; play one again with\n{}", broken.len(), broken.join("\n"));
    // A test that never sees a thing proves nothing about it.
    for name in [
        "Unload IdleTimeout",
        "Unload OnDemand",
        "Unload HardPressure",
        "Unload SoftPressure",
        "Unload OverBudget",
        "Unload MakeRoom",
        "Load WarmWindow",
        "Load PreWarm",
        "skip Busy",
        "skip MinLoaded",
        "skip MinResident",
        "skip GracePeriod",
        "skip AwaitingFreshSample",
        "skip MetricsStale",
        "skip ForeignPressure",
        "skip DryRun",
        "skip NotNeeded",
        "skip CannotMakeRoom",
        "skip NoRoom",
        "skip Transition",
    ] {
        assert!(count < WORLDS || tally.counts.contains_key(name), "no world had {name}");
    }
    assert!(tally.served > 0 && tally.served <= tally.requests);
}
