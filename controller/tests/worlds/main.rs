//! Thousands of small simulated worlds over virtual days: GPUs and MIG instances, other programs that take and free memory,
//! requests, failing loads, runners that die, servers that stop answering, commands that are lost, controllers that restart
//! and clocks that are set. The models are the state machine of the server; the decisions are `hush_core::step`.
//! `invariants` has what must hold.
//!
//! `HUSH_WORLDS=N` plays N worlds, `HUSH_WORLDS_FROM=SEED` begins at another seed, `HUSH_WORLD=SEED` plays one world and
//! prints what happens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod controller_sim;
mod device_sim;
mod dice_ext;
mod expected_rules;
mod invariants;
mod model_sim;
mod play;
mod random_policies;
mod scenario;
mod world_sim;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use play::{PlayCounts, play};

/// This many worlds take some 20 seconds on two cores.
const WORLDS: u64 = 1000;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// Plays every seed; the texts say which worlds broke a law.
fn play_all(seeds: std::ops::Range<u64>) -> (PlayCounts, Vec<String>) {
    let next = AtomicU64::new(seeds.start);
    let results = Mutex::new((PlayCounts::default(), Vec::new()));
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
                        Ok(counts) => results.0.add(&counts),
                        Err(violation) => results.1.push(format!("HUSH_WORLD={seed}: {violation}")),
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
        let counts = play(seed, true).unwrap_or_else(|violation| panic!("HUSH_WORLD={seed}: {violation}"));
        eprintln!("{counts:#?}");
        return;
    }

    let from = variable("HUSH_WORLDS_FROM").unwrap_or(1);
    let count = variable("HUSH_WORLDS").unwrap_or(WORLDS);
    let (counts, violation) = play_all(from..from + count);
    println!("seeds {from}..{}: {counts:#?}", from + count);
    assert!(
        violation.is_empty(),
        "{} worlds broke a law; play one again with\n{}",
        violation.len(),
        violation.join("\n")
    );

    // A test proves nothing about what never happens in it.
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
        assert!(count < WORLDS || counts.by_name.contains_key(name), "no world had {name}");
    }

    assert!(counts.served > 0 && counts.served <= counts.requests);
}
