//! The merge of policies.

use hush_core::{Asks, Merged, Residency};
use proptest::prelude::*;

use crate::support::{GIB, asks, modes};

const TOTAL: Option<u64> = Some(24 * GIB);

prop_compose! {
    fn merged()(policy in 0..4_usize, asks in asks(), mode in proptest::option::of((modes(), any::<bool>()))) -> Merged {
        Merged::of(policy, &asks, mode, TOTAL)
    }
}

proptest! {
    #[test]
    fn commutative(a in merged(), b in merged()) {
        prop_assert_eq!(a.merge(&b), b.merge(&a));
    }

    #[test]
    fn associative(a in merged(), b in merged(), c in merged()) {
        prop_assert_eq!(a.merge(&b).merge(&c), a.merge(&b.merge(&c)));
    }

    #[test]
    fn idempotent(a in merged(), b in merged()) {
        prop_assert_eq!(a.merge(&a), a.clone());
        let both = a.merge(&b);
        prop_assert_eq!(both.merge(&b), both.clone());
    }

    #[test]
    fn a_policy_that_asks_for_nothing_changes_nothing(a in merged(), policy in 0..4_usize) {
        prop_assert_eq!(a.merge(&Merged::of(policy, &Asks::default(), None, TOTAL)), a);
    }

    #[test]
    fn a_tenant_can_only_tighten(floor in merged(), tenant in merged()) {
        let both = floor.merge(&tenant);
        let value = |merged: &Merged| merged.residency.map(|pick| pick.value);
        prop_assert!(value(&both).unwrap_or(Residency::Resident) >= value(&floor).unwrap_or(Residency::Resident));
        if let Some(timeout) = floor.idle_timeout {
            prop_assert!(both.idle_timeout.unwrap().value <= timeout.value);
        }
        if let Some(below) = floor.hard_below {
            prop_assert!(both.hard_below.unwrap().value >= below.value);
        }
        if let Some(priority) = floor.priority {
            prop_assert!(both.priority.unwrap().value <= priority.value);
        }
    }
}
