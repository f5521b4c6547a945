//! Several controllers, each for one server of the same card and each with its own look at it: together they do what one
//! controller for all of them does.

use std::collections::BTreeSet;
use std::time::Duration;

use hush_core::{Action, Amount, Asks, Memory, Plan, Policy, Residency, Settled, State, World, step};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{GIB, at, gpu, model, policy, world};

/// From one look of a controller at a server to the next, and from the command until the memory is back.
const SCRAPE_MS: i64 = 1000;
const UNLOAD_MS: i64 = 700;
const END_MS: i64 = 20_000;
const TICK_MS: i64 = 100;
const CARD: u64 = 24;

/// A model, and what is true of it.
#[derive(Clone, Copy, Debug)]
struct Truth {
    idle_at_start_seconds: i64,
    gib: u64,
    /// When its unload began.
    left_ms: Option<i64>,
}

fn millis(ms: i64) -> jiff::Timestamp {
    at(0) + jiff::SignedDuration::from_millis(ms)
}

/// What a scrape at `ms` shows of server `place`, seen by somebody at `now`.
fn look(truth: &[Truth], place: usize, ms: i64, now: i64) -> hush_core::Model {
    let mut seen = model(&format!("w{place}"), "GPU-a");
    let this = truth[place];
    seen.idle = Duration::from_millis(u64::try_from(this.idle_at_start_seconds * 1000 + ms).unwrap());
    seen.vram_bytes = this.gib * GIB;
    seen.reload = Duration::from_secs(1);
    seen.sample_age = Duration::from_millis(u64::try_from(now - ms).unwrap());
    seen.state = match this.left_ms {
        Some(left) if ms >= left + UNLOAD_MS => State::Unloaded,
        Some(left) if ms >= left => State::Unloading,
        _ => State::Ready,
    };
    seen
}

fn available(truth: &[Truth], foreign_gib: u64, ms: i64) -> u64 {
    let held: u64 = truth.iter().filter(|t| t.left_ms.is_none_or(|left| ms < left + UNLOAD_MS)).map(|t| t.gib).sum();
    (CARD - foreign_gib - held) * GIB
}

/// The world of a controller that looked at each server at its own time.
fn world_of(truth: &[Truth], foreign_gib: u64, looks: &[i64], now: i64) -> World {
    let newest = looks.iter().copied().max().unwrap();
    let mut card = gpu("GPU-a", available(truth, foreign_gib, newest));
    card.sample_age = Duration::from_millis(u64::try_from(now - newest).unwrap());
    world(vec![card], (0..truth.len()).map(|place| look(truth, place, looks[place], now)).collect())
}

fn unloads(plan: &Plan) -> impl Iterator<Item = (usize, hush_core::ModelKey)> {
    let unloads = plan.decisions.iter().filter(|decision| decision.action == Action::Unload);
    unloads.map(|decision| {
        let key = decision.key();
        (key.server.as_str().strip_prefix("a/w").unwrap().parse().unwrap(), key)
    })
}

/// Who has left in the end. `phases`: when each controller looks at each server; one controller for all if it has one row.
fn run(mut truth: Vec<Truth>, foreign_gib: u64, policies: &[Policy], phases: &[Vec<i64>]) -> BTreeSet<usize> {
    let mut memories: Vec<Memory> = phases.iter().map(|_| Memory::default()).collect();
    let alone = phases.len() == 1;
    let mut under_way: Vec<(i64, usize, hush_core::ModelKey)> = Vec::new();
    for now in (SCRAPE_MS..END_MS).step_by(usize::try_from(TICK_MS).unwrap()) {
        under_way.retain(|(ends, controller, key)| {
            let over = *ends <= now;
            if over {
                memories[*controller].settle(key, Settled::Unloaded { completed_at: millis(*ends) });
            }
            !over
        });
        for (controller, phases) in phases.iter().enumerate() {
            let looks: Vec<i64> = phases.iter().map(|phase| now - (now - phase).rem_euclid(SCRAPE_MS)).collect();
            let world = world_of(&truth, foreign_gib, &looks, now);
            let plan = step(&mut memories[controller], millis(now), &world, policies);
            for (place, key) in unloads(&plan) {
                if (alone || place == controller) && truth[place].left_ms.is_none() {
                    truth[place].left_ms = Some(now);
                    under_way.push((now + UNLOAD_MS, controller, key));
                } else {
                    memories[controller].settle(&key, Settled::Nothing);
                }
            }
        }
    }
    (0..truth.len()).filter(|place| truth[*place].left_ms.is_some()).collect()
}

fn policies() -> Vec<Policy> {
    let asks = Asks {
        residency: Some(Residency::Resident),
        hard_below: Some(Amount::Bytes(4 * GIB)),
        min_reclaim: Some(Amount::Bytes(GIB)),
        ..Asks::default()
    };
    vec![policy("hard", asks)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn many_narrow_controllers_do_what_one_wide_one_does(
        sizes in vec(1..5_u64, 2..4),
        order in Just((0..3_i64).collect::<Vec<_>>()).prop_shuffle(),
        free in 0..6_u64,
        phases in vec(vec(0..SCRAPE_MS, 3), 3),
    ) {
        let truth: Vec<Truth> = sizes.iter().zip(&order)
            // Told apart by more than a look's age.
            .map(|(gib, order)| Truth { idle_at_start_seconds: 60 + 60 * order, gib: *gib, left_ms: None })
            .collect();
        let held: u64 = sizes.iter().sum();
        let foreign = CARD - held - free.min(CARD - held);
        let narrow: Vec<Vec<i64>> = phases.iter().take(truth.len()).map(|row| row[..truth.len()].to_vec()).collect();
        let wide = vec![vec![0; truth.len()]];
        let expected = run(truth.clone(), foreign, &policies(), &wide);
        let got = run(truth, foreign, &policies(), &narrow);
        prop_assert_eq!(got, expected);
    }
}
