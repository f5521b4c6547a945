//! Sidecars that share a card.

use std::time::Duration;

use hush_controller::run::others::PATIENCE;
use hush_core::{MemoryAmount, ModelPolicy, PolicySpec};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::card::{Card, Controller, GIB, Guest, SCRAPE_MS, play, policy};

const END_MS: i64 = 60_000;
pub const BELOW_GIB: u64 = 4;

fn sidecars(card: &Card, phases: &[Vec<i64>]) -> Vec<Controller> {
    (0..card.guests.len()).map(|own| Controller::new(phases[own][..card.guests.len()].to_vec(), Some(own))).collect()
}

fn one_for_all(card: &Card) -> Vec<Controller> {
    vec![Controller::new(vec![0; card.guests.len()], None)]
}

fn sorted(mut places: Vec<usize>) -> Vec<usize> {
    places.sort_unstable();
    places
}

pub fn hard() -> ModelPolicy {
    policy(PolicySpec { hard_below: Some(MemoryAmount::Bytes(BELOW_GIB * GIB)), ..PolicySpec::default() })
}

fn soft() -> ModelPolicy {
    let grace_period = Some(Duration::from_secs(5));
    let min_resident = Some(Duration::ZERO);
    policy(PolicySpec {
        soft_below: Some(MemoryAmount::Bytes(BELOW_GIB * GIB)),
        grace_period,
        min_resident,
        ..PolicySpec::default()
    })
}

/// Two of the same size of whom one is enough, told apart by so much idleness; the first is idle for longer.
fn pair(apart_ms: i64) -> Card {
    let guests = vec![Guest::new(60_000 + apart_ms, 4, 500), Guest::new(60_000, 4, 500)];
    Card { guests, foreign_gib: 8, more_gib: 6, more_at_ms: 4500 }
}

/// Just before a step: neither sees yet what the other does in it.
const AT_ONCE: i64 = 990;

/// Each of two sidecars asks both servers at the same time, and is answered so much later.
fn answered(late: [[i64; 2]; 2]) -> Vec<Controller> {
    let sidecar = |own: usize| Controller::new(vec![AT_ONCE; 2], Some(own)).late(late[own].to_vec());
    vec![sidecar(0), sidecar(1)]
}

/// Servers that do not say since when they have been idle: two who have been so for the same time, to within what an
/// answer takes, can be taken for the idler one each by its own sidecar. Then both leave, once. With one controller for
/// both it is one.
#[test]
fn without_the_time_since_when_idleness_is_known_to_within_an_answer() {
    let silent = |apart_ms| {
        let mut card = pair(apart_ms);
        card.guests.iter_mut().for_each(|guest| guest.tells_since = false);
        card
    };
    let late = [[80, 20], [20, 80]];
    assert_eq!(play(silent(100), answered(late), &[hard()], END_MS), [0], "by more than it takes");
    let both = sorted(play(silent(10), answered(late), &[hard()], END_MS));
    assert_eq!(both, [0, 1], "by less: each takes its own for idler");
    // The other way round each waits for the other's, and after a while stands in for it with what it has: its own.
    let crossed = [[20, 80], [80, 20]];
    assert_eq!(sorted(play(silent(10), answered(crossed), &[hard()], END_MS)), [0, 1]);
    for late in [vec![80, 20], vec![20, 80]] {
        let one = Controller::new(vec![0, 0], None).late(late);
        assert_eq!(play(silent(10), vec![one], &[hard()], END_MS).len(), 1, "one for both");
    }
}

prop_compose! {
    /// Two or three guests who are told apart by their idleness, and an app that takes memory after a while.
    fn cards()(
        sizes in vec((1..5_u64, 100..4000_i64), 2..4),
        order in Just((0..3_i64).collect::<Vec<_>>()).prop_shuffle(),
        free in 4..8_u64,
        more_gib in 0..8_u64,
        more_at_ms in 3000..6000_i64,
    ) -> Card {
        let guests: Vec<Guest> =
            sizes.iter().zip(&order).map(|((gib, ms), order)| Guest::new(60_000 + 60_000 * order, *gib, *ms)).collect();
        let held: u64 = sizes.iter().map(|(gib, _)| gib).sum();
        Card { guests, foreign_gib: (24 - held).saturating_sub(free), more_gib, more_at_ms }
    }
}

fn phases() -> impl Strategy<Value = Vec<Vec<i64>>> {
    vec(vec(0..SCRAPE_MS, 3), 3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// However long each answer takes, and however little they differ.
    #[test]
    fn the_longest_idle_leaves_and_nobody_else(
        apart_ms in prop_oneof![1..100_i64, 100..10_000_i64],
        late in vec(vec(0..100_i64, 2), 2),
    ) {
        let late = [[late[0][0], late[0][1]], [late[1][0], late[1][1]]];
        prop_assert_eq!(play(pair(apart_ms), answered(late), &[hard()], END_MS), [0]);
    }

    /// The same leave, each once. One who looks only after the first has left may never see the threshold crossed: then
    /// nothing forces it, and it stays; if that is not enough for who has seen it, another stands in for it.
    #[test]
    fn they_do_together_what_one_for_all_does(card in cards(), phases in phases(), soft_pressure in any::<bool>()) {
        let policies = [if soft_pressure { soft() } else { hard() }];
        let wide = sorted(play(card.clone(), one_for_all(&card), &policies, END_MS));
        let narrow = sorted(play(card.clone(), sidecars(&card, &phases), &policies, END_MS));
        if narrow != wide {
            let stay = (0..card.guests.len()).filter(|place| !narrow.contains(place));
            let held = card.foreign_gib + card.more_gib + stay.map(|place| card.guests[place].gib).sum::<u64>();
            prop_assert!(24 - held >= BELOW_GIB, "{narrow:?} of {wide:?}: still short of memory");
            prop_assert!(narrow.len() <= wide.len(), "{narrow:?} of {wide:?}: more than are needed");
            prop_assert!(narrow.iter().any(|place| wide.contains(place)), "{narrow:?} of {wide:?}: others began");
            prop_assert!(narrow.windows(2).all(|two| two[0] < two[1]), "{narrow:?}: twice");
        }
    }

    /// The one whose turn it is has nobody who acts for it: the next one leaves, not at once and not never.
    #[test]
    fn who_does_not_act_is_stood_in_for(mut card in cards(), phases in phases()) {
        let policies = [hard()];
        let wide = play(card.clone(), one_for_all(&card), &policies, END_MS);
        let Some(&first) = wide.first() else { return Ok(()) };
        card.guests[first].orphan = true;
        let patience = i64::try_from(PATIENCE.as_millis()).unwrap();
        let soon = play(card.clone(), sidecars(&card, &phases), &policies, card.more_at_ms + patience / 2);
        let others_in_plan = wide.len() > 1;
        prop_assert!(others_in_plan || soon.is_empty(), "{soon:?}");
        let narrow = play(card.clone(), sidecars(&card, &phases), &policies, END_MS);
        prop_assert!(!narrow.is_empty() && !narrow.contains(&first), "{narrow:?}");
        let all = narrow.len();
        let mut once = sorted(narrow);
        once.dedup();
        prop_assert_eq!(once.len(), all);
    }

    /// A person unloads enough in the very second in which memory becomes short.
    #[test]
    fn what_a_person_unloads_is_waited_for(mut card in cards(), phases in phases(), lead_ms in 0..800_i64) {
        let policies = [hard()];
        let wide = play(card.clone(), one_for_all(&card), &policies, END_MS);
        let [only] = wide[..] else { return Ok(()) };
        card.guests[only].by_hand_ms = Some(card.more_at_ms - lead_ms);
        for controllers in [one_for_all(&card), sidecars(&card, &phases)] {
            prop_assert_eq!(play(card.clone(), controllers, &policies, END_MS), Vec::<usize>::new());
        }
    }
}
