//! Which model leaves first: a total order.

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

use crate::model_table::ModelEntry;

/// A reload never counts as faster than this: shorter measurements are noise.
const RELOAD_MIN: Duration = Duration::from_millis(500);

/// `Less`: `a` leaves before `b`.
pub fn compare(a: &ModelEntry<'_>, b: &ModelEntry<'_>) -> Ordering {
    let first = |entry: &ModelEntry<'_>| (Reverse(entry.over_budget), entry.priority(), entry.model.is_busy());
    first(a)
        .cmp(&first(b))
        .then_with(|| compare_idleness(b, a))
        .then_with(|| b.model.sample.vram_bytes.cmp(&a.model.sample.vram_bytes))
        .then_with(|| a.model.key.cmp(&b.model.key))
}

/// Compares `idleness / max(reload, RELOAD_MIN)` exactly, by cross multiplication.
fn compare_idleness(a: &ModelEntry<'_>, b: &ModelEntry<'_>) -> Ordering {
    let weighed = |entry: &ModelEntry<'_>, other: &ModelEntry<'_>| {
        entry.idleness.as_nanos().saturating_mul(other.model.sample.reload.max(RELOAD_MIN).as_nanos())
    };
    weighed(a, b).cmp(&weighed(b, a))
}
