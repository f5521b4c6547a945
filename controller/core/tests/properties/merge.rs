//! The merge of policies.

use hush_core::{MergedSpec, PickedValue, PolicySpec, ResidencyNow};
use proptest::prelude::*;

use crate::support::{GIB, asks, modes};

const TOTAL: Option<u64> = Some(24 * GIB);

prop_compose! {
    fn merged()(policy in 0..4_usize, asks in asks(), mode in proptest::option::of((modes(), any::<bool>()))) -> MergedSpec {
        let residency = mode.map(|(mode, by_window)| ResidencyNow { mode, by_window });
        MergedSpec::of_spec(policy, &asks, residency, TOTAL)
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
        prop_assert_eq!(a.merge(&MergedSpec::of_spec(policy, &PolicySpec::default(), None, TOTAL)), a);
    }

    /// A policy of a namespace never makes a field more lenient than the cluster policies do.
    #[test]
    fn a_tenant_can_only_tighten(floor in merged(), tenant in merged()) {
        fn least<T: Ord + Copy>(floor: Option<PickedValue<T>>, both: Option<PickedValue<T>>) -> bool {
            floor.is_none_or(|floor| both.is_some_and(|both| both.value <= floor.value))
        }

        fn greatest<T: Ord + Copy>(floor: Option<PickedValue<T>>, both: Option<PickedValue<T>>) -> bool {
            floor.is_none_or(|floor| both.is_some_and(|both| both.value >= floor.value))
        }

        let both = floor.merge(&tenant);
        prop_assert!(greatest(floor.residency, both.residency));
        prop_assert!(least(floor.idle_timeout, both.idle_timeout));
        prop_assert!(least(floor.min_resident, both.min_resident));
        prop_assert!(greatest(floor.hard_below, both.hard_below));
        prop_assert!(greatest(floor.soft_below, both.soft_below));
        prop_assert!(least(floor.grace_period, both.grace_period));
        prop_assert!(greatest(floor.min_reclaim, both.min_reclaim));
        prop_assert!(greatest(floor.transition_period, both.transition_period));
        prop_assert!(least(floor.priority, both.priority));
        prop_assert!(least(floor.min_loaded, both.min_loaded));
        prop_assert!(least(floor.drain_timeout, both.drain_timeout));
        prop_assert!(greatest(floor.hold_after_eviction, both.hold_after_eviction));
    }
}
