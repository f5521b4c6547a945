//! Who leaves first: a total order.

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

use crate::fleet::Member;

/// A reload is never counted as cheaper than this: below it, measurements are noise.
const RELOAD_FLOOR: Duration = Duration::from_millis(500);

pub fn compare(a: &Member<'_>, b: &Member<'_>) -> Ordering {
    let first = |m: &Member<'_>| (Reverse(m.over_budget), m.priority(), m.model.busy());
    first(a)
        .cmp(&first(b))
        .then_with(|| idleness(b, a))
        .then_with(|| b.model.vram_bytes.cmp(&a.model.vram_bytes))
        .then_with(|| a.model.key.cmp(&b.model.key))
}

/// Compares `idle / max(reload, floor)` exactly, by cross multiplication.
fn idleness(a: &Member<'_>, b: &Member<'_>) -> Ordering {
    let weighed = |member: &Member<'_>, other: &Member<'_>| {
        member.idleness.as_nanos().saturating_mul(other.model.reload.max(RELOAD_FLOOR).as_nanos())
    };
    weighed(a, b).cmp(&weighed(b, a))
}
