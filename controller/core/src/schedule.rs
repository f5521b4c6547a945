//! Warm windows: from each time that a cron expression names, for a duration.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::policy::Residency;

#[derive(Clone, Debug)]
pub struct Window {
    text: String,
    cron: Cron,
    zone: TimeZone,
    pub duration: Duration,
    pub mode: Residency,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    #[error("must be a cron expression of five fields (minute hour day month weekday), as in \"0 8 * * 1-5\": {0}")]
    Cron(String),
    #[error("must name a time zone of the IANA database, as in \"Europe/Berlin\"")]
    TimeZone,
}

impl Window {
    /// `zone` is a name of the IANA database.
    pub fn new(cron: &str, duration: Duration, zone: &str, mode: Residency) -> Result<Self, WindowError> {
        // croner takes `@daily` and its kin too; the schema's pattern does not.
        let fields = cron.split_whitespace().count();
        if fields != 5 {
            return Err(WindowError::Cron(format!("it has {fields} fields")));
        }
        let parsed = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build().parse(cron);
        let parsed = parsed.map_err(|error| WindowError::Cron(error.to_string()))?;
        let zone = TimeZone::get(zone).map_err(|_| WindowError::TimeZone)?;
        Ok(Self { text: format!("{cron} {}", zone.iana_name().unwrap_or("UTC")), cron: parsed, zone, duration, mode })
    }

    pub fn cron(&self) -> &str {
        self.text.rsplit_once(' ').map_or("", |(cron, _)| cron)
    }

    pub fn time_zone(&self) -> &str {
        self.text.rsplit_once(' ').map_or("", |(_, zone)| zone)
    }

    /// Whether `now` is in a window: `start <= now < start + duration`, the duration being true hours, also over a
    /// change of the clocks. A time that a change of the clocks skips opens the window when the clocks have moved on.
    pub fn open(&self, now: Timestamp) -> bool {
        let local = now.to_zoned(self.zone.clone());
        // An expression that never matches finds nothing.
        let Ok(start) = self.cron.find_previous_occurrence(&local, true) else { return false };
        let open_for = now.duration_since(start.timestamp());
        u128::try_from(open_for.as_nanos()).is_ok_and(|nanos| nanos < self.duration.as_nanos())
    }
}

impl PartialEq for Window {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, self.duration, self.mode) == (&other.text, other.duration, other.mode)
    }
}

impl Eq for Window {}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn berlin(cron: &str, hours: u32) -> Window {
        Window::new(cron, HOUR * hours, "Europe/Berlin", Residency::Resident).unwrap()
    }

    fn open(window: &Window, times: &[(&str, bool)]) {
        for (time, expected) in times {
            assert_eq!(window.open(time.parse().unwrap()), *expected, "{time}");
        }
    }

    #[test]
    fn a_window_opens_at_its_minute_and_closes_after_its_duration() {
        open(
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
        open(&berlin("0 22 * * 5", 8), &[("2026-11-28T04:59:00Z", true), ("2026-11-28T05:00:00Z", false)]);
    }

    #[test]
    fn a_skipped_hour_opens_the_window_when_the_clocks_have_moved() {
        // 29 March 2026: 02:00 becomes 03:00 at 01:00Z.
        open(
            &berlin("30 2 * * *", 2),
            &[("2026-03-29T00:59:00Z", false), ("2026-03-29T01:00:00Z", true), ("2026-03-29T02:59:00Z", true)],
        );
    }

    #[test]
    fn a_window_lasts_true_hours_when_the_clocks_change_in_it() {
        // 25 October 2026: 03:00 becomes 02:00 at 01:00Z. 01:00 local is 23:00Z; four hours later is 03:00Z.
        open(&berlin("0 1 * * *", 4), &[("2026-10-25T02:59:00Z", true), ("2026-10-25T03:00:00Z", false)]);
        // 29 March: 01:00 local is 00:00Z.
        open(&berlin("0 1 * * *", 4), &[("2026-03-29T03:59:00Z", true), ("2026-03-29T04:00:00Z", false)]);
    }

    #[test]
    fn a_repeated_hour_opens_the_window_once() {
        // 02:30 comes at 00:30Z and again at 01:30Z.
        open(
            &Window::new("30 2 * * *", Duration::from_secs(1800), "Europe/Berlin", Residency::Resident).unwrap(),
            &[("2026-10-25T00:45:00Z", true), ("2026-10-25T01:15:00Z", false), ("2026-10-25T01:45:00Z", false)],
        );
    }

    #[test]
    fn a_window_that_cannot_be_is_refused() {
        let error = |cron: &str, zone: &str| Window::new(cron, HOUR, zone, Residency::Resident).unwrap_err();
        assert!(matches!(error("0 8 * *", "UTC"), WindowError::Cron(_)));
        assert!(matches!(error("0 25 * * *", "UTC"), WindowError::Cron(_)));
        assert!(matches!(error("0 0 8 * * 1", "UTC"), WindowError::Cron(_)));
        assert!(matches!(error("@daily", "UTC"), WindowError::Cron(_)));
        assert_eq!(error("0 8 * * *", "Mars/Olympus"), WindowError::TimeZone);
    }

    #[test]
    fn an_expression_that_never_matches_is_never_open() {
        open(&berlin("0 0 30 2 *", 24), &[("2026-03-01T00:00:00Z", false)]);
    }
}
