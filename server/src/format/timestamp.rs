//! Seconds as milliseconds and as clock times.

use std::fmt;

/// Python's `round(1000 * seconds)`: a tie is rounded to the even neighbour. A negative result becomes 0.
pub fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round_ties_even() as u64
}

/// A clock time as subtitles write it.
pub struct ClockTime {
    milliseconds: u64,
    always_hours: bool,
    decimal_mark: char,
}

impl ClockTime {
    /// `MM:SS.mmm`, with hours only when they are not zero.
    pub fn vtt(milliseconds: u64) -> Self {
        Self { milliseconds, always_hours: false, decimal_mark: '.' }
    }

    /// `HH:MM:SS,mmm`.
    pub fn srt(milliseconds: u64) -> Self {
        Self { milliseconds, always_hours: true, decimal_mark: ',' }
    }
}

impl fmt::Display for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, milliseconds) = (self.milliseconds / 1000, self.milliseconds % 1000);
        let (minutes, seconds) = (seconds / 60, seconds % 60);
        let (hours, minutes) = (minutes / 60, minutes % 60);

        if self.always_hours || hours > 0 {
            write!(f, "{hours:02}:")?;
        }
        write!(f, "{minutes:02}:{seconds:02}{}{milliseconds:03}", self.decimal_mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even() {
        // Expected values: python3 -c 'print([round(1000 * t) for t in (0.0005, 0.0015, 0.0025, 3661.2345, 1.0005, 0.3, 2.675)])'
        let given = [0.0005, 0.0015, 0.0025, 3661.2345, 1.0005, 0.3, 2.675];
        assert_eq!(given.map(milliseconds), [0, 2, 2, 3_661_234, 1000, 300, 2675]);
        assert_eq!(milliseconds(-0.1), 0);
        assert_eq!(milliseconds(f64::NAN), 0);
    }

    #[test]
    fn rounding_carries_into_the_next_hour() {
        assert_eq!(ClockTime::srt(milliseconds(3599.9996)).to_string(), "01:00:00,000");
        assert_eq!(ClockTime::vtt(milliseconds(3599.9996)).to_string(), "01:00:00.000");
        assert_eq!(ClockTime::vtt(milliseconds(59.9996)).to_string(), "01:00.000");
        assert_eq!(ClockTime::srt(milliseconds(360_000.0)).to_string(), "100:00:00,000");
    }
}
