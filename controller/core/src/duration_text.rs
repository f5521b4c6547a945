//! Durations as people read them.

use std::time::Duration;

/// The two largest units (`2m10s`, `1h05m`, `3d04h`); tenths of a second below ten seconds (`1.5s`); milliseconds below
/// one second (`250ms`). The text is rounded down: a duration that has not reached a limit never reads as if it had.
pub fn format_duration(duration: Duration) -> String {
    let (seconds, milliseconds) = (duration.as_secs(), duration.subsec_millis());
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);

    match (days, hours, minutes) {
        (0, 0, 0) if seconds == 0 && milliseconds > 0 => format!("{milliseconds}ms"),
        (0, 0, 0) if seconds < 10 && milliseconds >= 100 => format!("{seconds}.{}s", milliseconds / 100),
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => two_units(minutes, "m", seconds % 60, "s"),
        (0, ..) => two_units(hours, "h", minutes, "m"),
        _ => two_units(days, "d", hours, "h"),
    }
}

fn two_units(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small:02}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (milliseconds, text) in [
            (0, "0s"),
            (250, "250ms"),
            (1000, "1s"),
            (1050, "1s"),
            (1599, "1.5s"),
            (9999, "9.9s"),
            (45_900, "45s"),
            (300_000, "5m"),
            (130_000, "2m10s"),
            (3_600_000, "1h"),
            (3_599_999, "59m59s"),
            (3_900_000, "1h05m"),
            (7_200_000, "2h"),
            (273_600_000, "3d04h"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(milliseconds)), text);
        }
    }
}
