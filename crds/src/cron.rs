//! Which numbers and names a cron expression may hold, as far as a schema can say it: an hour of 25 is refused when the
//! policy is applied, and not only when a controller reads it.

pub const RANGES_MESSAGE: &str = "must have minutes of 0-59, hours of 0-23, days of 1-31, months of 1-12 or JAN-DEC, and \
     weekdays of 0-7 or SUN-SAT";

macro_rules! list_of {
    ($value:expr) => {
        concat!(
            "([*?]|",
            $value,
            "(-",
            $value,
            ")?)(/[0-9]{1,2})?(,([*?]|",
            $value,
            "(-",
            $value,
            ")?)(/[0-9]{1,2})?)*"
        )
    };
}

/// An expression that is no five fields at all has a rule of its own.
pub const RULE: &str = concat!(
    "!self.matches('^[0-9A-Za-z*/,#?-]+( +[0-9A-Za-z*/,#?-]+){4}$') || self.matches('(?i)^",
    list_of!("[0-5]?[0-9]"),
    " +",
    list_of!("([01]?[0-9]|2[0-3])"),
    " +",
    list_of!("((0?[1-9]|[12][0-9]|3[01])W?|LW?)"),
    " +",
    list_of!("(0?[1-9]|1[0-2]|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)"),
    " +",
    list_of!("([0-7]|SUN|MON|TUE|WED|THU|FRI|SAT)(#[1-5]|#?L)?"),
    "$')"
);

const MONTHS: &[&str] = &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: &[&str] = &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// The same as [`RULE`]. Whether the expression means anything is for its parser to say.
pub fn in_range(expression: &str) -> bool {
    let fields: Vec<String> = expression.split_ascii_whitespace().map(str::to_ascii_uppercase).collect();
    let [minute, hour, day, month, weekday] = &fields[..] else { return true };
    let number = |text: &str, least: u8, most: u8| {
        let digits = matches!(text.len(), 1 | 2) && text.bytes().all(|byte| byte.is_ascii_digit());
        digits && text.parse().is_ok_and(|number: u8| (least..=most).contains(&number))
    };
    list(minute, |text| number(text, 0, 59))
        && list(hour, |text| number(text, 0, 23))
        && list(day, |text| text == "L" || text == "LW" || number(text.strip_suffix('W').unwrap_or(text), 1, 31))
        && list(month, |text| number(text, 1, 12) || MONTHS.contains(&text))
        && list(weekday, |text| {
            let day = match text.split_once('#') {
                Some((day, "1" | "2" | "3" | "4" | "5" | "L")) => day,
                Some(_) => return false,
                None => text.strip_suffix('L').unwrap_or(text),
            };
            (day.len() == 1 && number(day, 0, 7)) || WEEKDAYS.contains(&day)
        })
}

fn list(field: &str, value: impl Fn(&str) -> bool) -> bool {
    field.split(',').all(|part| {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let step = matches!(step.len(), 1 | 2) && step.bytes().all(|byte| byte.is_ascii_digit());
        let in_range = match range.split_once('-') {
            Some((from, to)) => value(from) && value(to),
            None => range == "*" || range == "?" || value(range),
        };
        step && in_range
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_range() {
        for expression in [
            "0 8 * * 1-5",
            "*/15 0-6,22 1,15 JAN-MAR SUN",
            "59 23 31 12 7",
            "00 08 L * mon#2",
            "0 8 15W,LW ? 5L",
            "0 8 * * fri#L",
            "no cron at all, which another rule says",
        ] {
            assert!(in_range(expression), "{expression}");
        }
        for expression in [
            "60 8 * * *",
            "0 24 * * *",
            "0 8 0 * *",
            "0 8 * 13 *",
            "0 8 * * 8",
            "0 8 * FOO *",
            "0 8-25 * * *",
            "*/ 8 * * *",
            "0 8 * * 1#6",
        ] {
            assert!(!in_range(expression), "{expression}");
        }
    }
}
