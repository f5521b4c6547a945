//! Durations as the Gateway API writes them (GEP-2257): `5m`, `1h30m`, `500ms`.

use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

/// Reads a duration of at most `max_parts` parts, each a whole number of at most `max_digits` digits and a unit. GEP-2257
/// allows four parts of five digits.
///
/// `None` where the text has another form or the duration is too long to hold.
pub fn parse(text: &str, max_digits: usize, max_parts: usize) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;

    for _ in 0..max_parts {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=max_digits).contains(&digits) {
            return None;
        }
        let (number, after_number) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;

        let (unit, milliseconds) = UNITS.into_iter().find(|(unit, _)| after_number.starts_with(unit))?;
        sum = sum.checked_add(Duration::from_millis(number.checked_mul(milliseconds)?))?;

        rest = &after_number[unit.len()..];
        if rest.is_empty() {
            return Some(sum);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_bounded_parts() {
        assert_eq!(parse("1h30m", 5, 4), Some(Duration::from_secs(5400)));
        assert_eq!(parse("1h2m3s4ms", 5, 4), Some(Duration::from_millis(3_723_004)));
        assert_eq!(parse("1000000ms", 15, 8), Some(Duration::from_secs(1000)));
        for text in ["", "5", "m", "5 m", "5mm", "1.5h", "123456s", "1s1s1s1s1s", "５m"] {
            assert_eq!(parse(text, 5, 4), None, "{text}");
        }
        assert_eq!(parse("999999999999999h", 15, 8), None, "too long to hold");
    }
}
