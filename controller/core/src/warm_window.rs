//! Warm windows: each opens at the times that a cron expression names, and stays open for a duration.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::residency::PolicyResidency;

/// A time window of a policy in which another residency mode holds.
#[derive(Clone, Debug)]
pub struct WarmWindow {
    /// The cron expression, a space, and the name of the time zone.
    text: String,
    cron: Cron,
    zone: TimeZone,
    pub duration: Duration,
    /// The mode that holds while the window is open.
    pub mode: PolicyResidency,
}

/// Why a warm window cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WarmWindowError {
    #[error("must be a cron expression of five fields (minute hour day month weekday), as in \"0 8 * * 1-5\": {0}")]
    Cron(String),
    #[error("must name a time zone of the IANA database, as in \"Europe/Berlin\"")]
    TimeZone,
}

impl WarmWindow {
    /// `zone` is a name of the IANA database.
    pub fn new(cron: &str, duration: Duration, zone: &str, mode: PolicyResidency) -> Result<Self, WarmWindowError> {
        // croner also accepts `@daily` and similar names; the schema's pattern does not.
        let fields = cron.split_whitespace().count();
        if fields != 5 {
            return Err(WarmWindowError::Cron(format!("it has {fields} fields")));
        }

        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let expression = parser.parse(cron).map_err(|error| WarmWindowError::Cron(error.to_string()))?;
        let zone = TimeZone::get(zone).map_err(|_| WarmWindowError::TimeZone)?;
        let text = format!("{cron} {}", zone.iana_name().unwrap_or("UTC"));

        Ok(Self { text, cron: expression, zone, duration, mode })
    }

    pub fn cron(&self) -> &str {
        self.text.rsplit_once(' ').map_or("", |(cron, _)| cron)
    }

    pub fn time_zone(&self) -> &str {
        self.text.rsplit_once(' ').map_or("", |(_, zone)| zone)
    }

    /// Whether `now` is in a window: `start <= now < start + duration`. The duration is counted in elapsed time, also
    /// across a change between winter and summer time. A start that such a change skips opens the window when the clocks
    /// have moved on.
    pub fn is_open(&self, now: Timestamp) -> bool {
        let local = now.to_zoned(self.zone.clone());

        // There is no previous occurrence of an expression that never matches.
        let Ok(start) = self.cron.find_previous_occurrence(&local, true) else { return false };

        let open_for = now.duration_since(start.timestamp());
        u128::try_from(open_for.as_nanos()).is_ok_and(|nanos| nanos < self.duration.as_nanos())
    }
}

impl PartialEq for WarmWindow {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, self.duration, self.mode) == (&other.text, other.duration, other.mode)
    }
}

impl Eq for WarmWindow {}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn berlin(cron: &str, hours: u32) -> WarmWindow {
        WarmWindow::new(cron, HOUR * hours, "Europe/Berlin", PolicyResidency::Resident).unwrap()
    }

    fn assert_open(window: &WarmWindow, times: &[(&str, bool)]) {
        for (time, expected) in times {
            assert_eq!(window.is_open(time.parse().unwrap()), *expected, "{time}");
        }
    }

    #[test]
    fn a_window_opens_at_its_minute_and_closes_after_its_duration() {
        assert_open(
            &berlin("0 8 * * 1-5", 10),
            &[
                ("2026-11-23T06:59:59Z", false),
                ("2026-11-23T07:00:00Z", true),
                ("2026-11-23T16:59:59Z", true),
                ("2026-11-23T17:00:00Z", false),
                // A Saturday.
                ("2026-11-28T08:00:00Z", false),
                // Summer: an hour earlier.
                ("2026-07-06T06:00:00Z", true),
                ("2026-07-06T16:00:00Z", false),
            ],
        );
    }

    #[test]
    fn a_window_reaches_over_midnight() {
        assert_open(&berlin("0 22 * * 5", 8), &[("2026-11-28T04:59:00Z", true), ("2026-11-28T05:00:00Z", false)]);
    }

    #[test]
    fn a_skipped_hour_opens_the_window_when_the_clocks_have_moved() {
        // 29 March 2026: 02:00 becomes 03:00 at 01:00Z.
        assert_open(
            &berlin("30 2 * * *", 2),
            &[("2026-03-29T00:59:00Z", false), ("2026-03-29T01:00:00Z", true), ("2026-03-29T02:59:00Z", true)],
        );
    }

    #[test]
    fn a_window_lasts_true_hours_when_the_clocks_change_in_it() {
        // 25 October 2026: 03:00 becomes 02:00 at 01:00Z. 01:00 local is 23:00Z; four hours later is 03:00Z.
        assert_open(&berlin("0 1 * * *", 4), &[("2026-10-25T02:59:00Z", true), ("2026-10-25T03:00:00Z", false)]);
        // 29 March: 01:00 local is 00:00Z.
        assert_open(&berlin("0 1 * * *", 4), &[("2026-03-29T03:59:00Z", true), ("2026-03-29T04:00:00Z", false)]);
    }

    #[test]
    fn a_repeated_hour_opens_the_window_once() {
        // 02:30 comes at 00:30Z and again at 01:30Z.
        assert_open(
            &WarmWindow::new("30 2 * * *", Duration::from_secs(1800), "Europe/Berlin", PolicyResidency::Resident)
                .unwrap(),
            &[("2026-10-25T00:45:00Z", true), ("2026-10-25T01:15:00Z", false), ("2026-10-25T01:45:00Z", false)],
        );
    }

    #[test]
    fn a_window_that_cannot_be_is_refused() {
        let error = |cron: &str, zone: &str| WarmWindow::new(cron, HOUR, zone, PolicyResidency::Resident).unwrap_err();
        assert!(matches!(error("0 8 * *", "UTC"), WarmWindowError::Cron(_)));
        assert!(matches!(error("0 25 * * *", "UTC"), WarmWindowError::Cron(_)));
        assert!(matches!(error("0 0 8 * * 1", "UTC"), WarmWindowError::Cron(_)));
        assert!(matches!(error("@daily", "UTC"), WarmWindowError::Cron(_)));
        assert_eq!(error("0 8 * * *", "Mars/Olympus"), WarmWindowError::TimeZone);
    }

    #[test]
    fn an_expression_that_never_matches_is_never_open() {
        assert_open(&berlin("0 0 30 2 *", 24), &[("2026-03-01T00:00:00Z", false)]);
    }
}
