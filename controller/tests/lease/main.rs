//! The rules of the lease in a simulation: clocks that differ, messages that are late or lost, answers for which no process
//! waits any more, processes that freeze and end, and people who delete the lease or remove its holder.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod lease_sim;

use std::time::Duration;

use hush_controller::lease::candidate::{LeaseCandidate, LeaseRecord, LeaseStep, LeaseTiming};
use hush_controller::lease::{BootInstant, ClaimLoss};
use lease_sim::{LeaseFaults, LeaseSim};
use proptest::prelude::*;

fn terms() -> LeaseTiming {
    LeaseTiming::new(Duration::from_secs(15)).unwrap()
}

fn at(seconds: f64) -> BootInstant {
    BootInstant::after_boot(Duration::from_secs_f64(seconds))
}

fn record(holder: &str, renewed: u32) -> LeaseRecord {
    let holder = (!holder.is_empty()).then(|| holder.to_owned());
    LeaseRecord { holder, duration: Some(terms().lease), renewed: renewed.to_string(), transitions: 3 }
}

fn candidate() -> LeaseCandidate {
    LeaseCandidate::new("me".to_owned(), terms())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn never_two_and_in_the_end_one(seed in any::<u64>(), faults in LeaseFaults::any()) {
        let mut sim = LeaseSim::new(seed, terms(), faults);
        sim.run_with_faults(Duration::from_secs(180));
        prop_assert!(sim.most_claims() <= 1, "{} claims at once\n{}", sim.most_claims(), sim.history());
        sim.run_without_faults(terms().lease * 3);
        prop_assert_eq!(sim.claims(), 1, "{}", sim.history());
        prop_assert!(sim.most_claims() <= 1, "{}", sim.history());
    }

    #[test]
    fn a_dead_leader_is_replaced_within_the_lease_and_two_seconds(seed in any::<u64>()) {
        let mut sim = LeaseSim::new(seed, terms(), LeaseFaults::none());
        sim.run_without_faults(terms().lease * 3);
        sim.kill_leader();
        sim.run_without_faults(terms().lease + Duration::from_secs(2));
        prop_assert_eq!(sim.claims(), 1, "{}", sim.history());
    }
}

#[test]
fn a_claim_ends_before_the_lease_whatever_the_answer_took() {
    let mut me = candidate();
    me.observe(at(0.0), None);
    assert_eq!(me.next_step(at(0.0)), LeaseStep::Create);
    me.observe(at(0.0), Some(LeaseRecord { transitions: 0, ..record("", 0) }));
    assert_eq!(
        me.next_step(at(14.9)),
        LeaseStep::Wait { until: at(15.0) },
        "a candidate may have held it until it was deleted"
    );
    assert_eq!(me.next_step(at(15.0)), LeaseStep::Write { transitions: 1 });

    // The answer came four seconds after the write was sent.
    me.record_write(at(15.0), record("me", 1));
    assert_eq!(me.claim(), Some(at(25.0)));
    assert_eq!(me.next_step(at(19.0)), LeaseStep::Wait { until: at(20.0) });

    me.record_failure(at(23.0));
    assert_eq!(me.next_step(at(23.5)), LeaseStep::Wait { until: at(24.0) });
    assert_eq!(me.next_step(at(24.0)), LeaseStep::Read);
    me.observe(at(24.1), Some(record("me", 1)));
    assert_eq!(me.next_step(at(24.1)), LeaseStep::Write { transitions: 3 });
    assert_eq!(me.next_step(at(25.0)), LeaseStep::Lost(ClaimLoss::Expired));
}

#[test]
fn the_time_since_a_change_is_what_counts() {
    let mut me = candidate();
    me.observe(at(100.0), Some(record("other", 1)));
    me.observe(at(110.0), Some(record("other", 2)));
    assert_eq!(me.next_step(at(120.0)), LeaseStep::Wait { until: at(125.0) });

    // An attempt that failed does not restart the wait.
    me.record_failure(at(126.0));
    me.observe(at(127.0), Some(record("other", 2)));
    assert_eq!(me.next_step(at(127.0)), LeaseStep::Write { transitions: 4 });
    me.mark_outdated();
    assert_eq!(me.next_step(at(127.1)), LeaseStep::Read);
}

#[test]
fn a_lease_that_was_given_back_is_free_after_what_it_promises() {
    let mut me = candidate();
    me.observe(at(0.0), Some(LeaseRecord { duration: Some(Duration::from_secs(1)), ..record("", 1) }));
    assert_eq!(me.next_step(at(0.5)), LeaseStep::Wait { until: at(1.0) });
    assert_eq!(me.next_step(at(1.0)), LeaseStep::Write { transitions: 4 });
}

#[test]
fn a_write_that_was_never_answered_is_found_again() {
    let mut me = candidate();
    me.observe(at(0.0), Some(record("", 0)));
    me.record_failure(at(20.0));
    me.observe(at(21.0), Some(LeaseRecord { transitions: 0, ..record("me", 1) }));
    assert_eq!(
        (me.claim(), me.next_step(at(21.0))),
        (None, LeaseStep::Write { transitions: 0 }),
        "no claim before it is written again"
    );
}

#[test]
fn a_lost_lease_names_the_new_holder() {
    for (seen, loss) in [
        (Some(record("other", 9)), ClaimLoss::Taken("other".to_owned())),
        (Some(record("", 9)), ClaimLoss::Gone),
        (None, ClaimLoss::Gone),
    ] {
        let mut me = candidate();
        me.observe(at(0.0), Some(record("", 1)));
        me.record_write(at(15.0), record("me", 2));
        me.mark_outdated();
        me.observe(at(20.1), seen);
        assert_eq!((me.claim(), me.next_step(at(20.1))), (None, LeaseStep::Lost(loss)));
    }
}

#[test]
fn terms_are_whole_seconds_between_bounds() {
    let terms = terms();
    assert!(terms.claim < terms.lease && terms.renew * 2 <= terms.claim && terms.retry < terms.renew);
    for wrong in [Duration::from_secs(2), Duration::from_millis(3500), Duration::from_secs(3601)] {
        assert_eq!(LeaseTiming::new(wrong), None);
    }
}
