//! Warm windows in every time zone, also where the clocks change.

use std::time::Duration;

use hush_core::{DecisionReason, PolicyResidency, PolicySpec, SkipReason, StepMemory, WarmWindow, step};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use crate::support::{gpu, model, policy, world};

const ZONES: [&str; 8] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "Pacific/Chatham",
    "Africa/Casablanca",
];

const DAY: i64 = 86_400;
const YEAR_2026: i64 = 1_767_225_600;

/// The first time, to the minute, at which the clocks of the zone show `wanted` or a later time: a time that the clocks
/// skip comes when they have moved, and a repeated time comes when it is first shown.
fn first_shown(zone: &TimeZone, wanted: DateTime) -> Timestamp {
    let as_utc = TimeZone::UTC.to_timestamp(wanted).unwrap();
    (-15 * 60..15 * 60)
        .map(|minutes| as_utc + SignedDuration::from_mins(minutes))
        .find(|at| zone.to_datetime(*at) >= wanted)
        .unwrap()
}

/// Whether a daily window is open, by its definition.
fn is_open_by_definition(
    zone: &TimeZone,
    hour: i8,
    minute: i8,
    weekday: Option<i8>,
    duration: Duration,
    now: Timestamp,
) -> bool {
    let days = i64::try_from(duration.as_secs()).unwrap() / DAY + 2;
    let today = zone.to_datetime(now).date();
    (-days..=1).any(|offset| {
        let date = today.checked_add(SignedDuration::from_hours(24 * offset)).unwrap();
        if weekday.is_some_and(|weekday| date.weekday().to_sunday_zero_offset() != weekday) {
            return false;
        }

        let start = first_shown(zone, date.at(hour, minute, 0, 0));
        start <= now && now.duration_since(start) < SignedDuration::try_from(duration).unwrap()
    })
}

/// Any time of the year, and more often one near a change of the clocks in one of the zones.
fn moments() -> impl Strategy<Value = Timestamp> {
    let changes = [
        "2026-03-29T01:00:00Z",
        "2026-10-25T01:00:00Z",
        "2026-03-08T07:00:00Z",
        "2026-11-01T06:00:00Z",
        "2026-04-04T15:00:00Z",
        "2026-10-03T15:30:00Z",
    ];
    let near = (0..changes.len(), -200_000..200_000_i64)
        .prop_map(move |(at, offset)| changes[at].parse::<Timestamp>().unwrap() + SignedDuration::from_secs(offset));
    let any = (0..365 * DAY).prop_map(|second| Timestamp::from_second(YEAR_2026 + second).unwrap());
    prop_oneof![near, any]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn a_window_is_open_from_its_time_for_true_hours(
        zone in 0..ZONES.len(), hour in 0..24_i8, minute in 0..60_i8, weekday in proptest::option::of(0..7_i8),
        minutes in 1..3000_u64, now in moments(),
    ) {
        let duration = Duration::from_secs(minutes * 60);
        let day = weekday.map_or("*".to_owned(), |weekday| weekday.to_string());
        let cron = format!("{minute} {hour} * * {day}");
        let window = WarmWindow::new(&cron, duration, ZONES[zone], PolicyResidency::Resident).unwrap();
        let expected = is_open_by_definition(&TimeZone::get(ZONES[zone]).unwrap(), hour, minute, weekday, duration, now);
        prop_assert_eq!(window.is_open(now), expected, "{} in {} for {:?} at {}", cron, ZONES[zone], duration, now);
    }

    /// The mode of the window replaces the policy's own, no longer than it is open.
    #[test]
    fn a_model_is_kept_in_its_window_and_leaves_after_it(zone in 0..ZONES.len(), hour in 0..24_u8, now in moments()) {
        let window = WarmWindow::new(&format!("0 {hour} * * *"), Duration::from_secs(7200), ZONES[zone], PolicyResidency::Resident);
        let window = window.unwrap();
        let asks = PolicySpec {
            residency: Some(PolicyResidency::OnDemand),
            schedule: vec![window.clone()],
            ..PolicySpec::default()
        };

        let seen = world(vec![gpu("GPU-a", 10 << 30)], vec![model("w1", "GPU-a")]);
        let plan = step(&mut StepMemory::default(), now, &seen, &[policy("p", asks)]);
        let leaves = plan.decisions.iter().any(|decision| decision.reason == DecisionReason::OnDemand);
        let kept = plan.skips.iter().any(|skip| skip.reason == SkipReason::Resident);
        prop_assert_eq!((leaves, kept), (!window.is_open(now), window.is_open(now)));
    }
}
