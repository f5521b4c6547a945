//! Adaptive residency: the bound holds on every sequence of gaps.

use std::time::Duration;

use hush_core::adaptive::{Gap, Learner, break_even, clairvoyant_ms, cost_ms};
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #[test]
    fn never_worse_than_twice_the_clairvoyant(
        gaps in vec(prop_oneof![1..5_000_u64, 1..2_000_000_u64, 800_000..1_000_000_u64], 1..300),
        reload_ms in 0..8000_u64,
    ) {
        let price = break_even(Duration::from_millis(reload_ms));
        let ms = u64::try_from(price.as_millis()).unwrap();
        let mut learner = Learner::new(price);

        // Every strategy pays for the first load.
        let (mut paid, mut least) = (ms, ms);
        for gap in gaps {
            paid += cost_ms(&learner.choose(price), gap, ms);
            least += clairvoyant_ms(gap, ms);
            learner.observe(Gap::exactly(Duration::from_millis(gap)), price);
            prop_assert!(paid <= 2 * least, "{paid} {least}");
        }
    }

    /// A client whose next request always comes just after the model has left does not exceed the bound.
    #[test]
    fn an_adversary_gains_nothing(picks in vec(0..6_u64, 1..300)) {
        let price = break_even(Duration::from_millis(1500));
        let ms = u64::try_from(price.as_millis()).unwrap();
        let mut learner = Learner::new(price);
        let (mut paid, mut least) = (ms, ms);
        for pick in picks {
            let choice = learner.choose(price);
            let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
            let keep = millis(choice.keep);
            let (from, until) = choice.prewarm.map_or((keep, keep), |window| (millis(window.from), millis(window.until)));
            let gaps = [keep + 1, keep.max(1), 2 * ms, 1, from.saturating_sub(1).max(1), until + 1];
            let gap = gaps[usize::try_from(pick).unwrap()];
            paid += cost_ms(&learner.choose(price), gap, ms);
            least += clairvoyant_ms(gap, ms);
            learner.observe(Gap::exactly(Duration::from_millis(gap)), price);
            prop_assert!(paid <= 2 * least, "{paid} {least}");
        }
    }
}

#[test]
fn rare_requests_shorten_the_time_a_model_is_kept_and_frequent_ones_lengthen_it() {
    let price = break_even(Duration::from_millis(1500));
    let mut rare = Learner::new(price);
    let mut frequent = Learner::new(price);
    for index in 0..100 {
        rare.observe(Gap::exactly(price * 4 + Duration::from_secs(index * 97 % 5000)), price);
        frequent.observe(Gap::exactly(Duration::from_secs(20 + index % 40)), price);
    }

    assert_eq!(rare.choose(price).keep, Duration::ZERO);
    let keep = frequent.choose(price).keep;
    assert!(keep >= Duration::from_secs(50) && keep < price, "{keep:?}");
}

#[test]
fn a_regular_request_is_expected() {
    let price = break_even(Duration::from_millis(1500));
    let mut learner = Learner::new(price);
    for index in 0..50 {
        learner.observe(Gap::exactly(Duration::from_secs(7200 + index % 30)), price);
    }

    let window = learner.choose(price).prewarm.expect("no window");
    assert!(window.from <= Duration::from_secs(7200) && window.until >= Duration::from_secs(7230), "{window:?}");
    assert!(window.until - window.from < Duration::from_secs(3600), "{window:?}");
}
