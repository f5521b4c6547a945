//! Which numbers and names a cron expression may hold, as far as a schema can express it: the API server refuses an hour
//! of 25 when the policy is applied, before a controller reads it.

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

/// The rule of the schema. Another rule refuses an expression that does not have five fields.
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

/// The same as [`RULE`]. Whether the expression is valid as a whole is checked by its parser.
pub fn is_in_range(expression: &str) -> bool {
    let fields: Vec<String> = expression.split_ascii_whitespace().map(str::to_ascii_uppercase).collect();
    let [minute, hour, day, month, weekday] = &fields[..] else { return true };
    let number = |text: &str, least: u8, most: u8| {
        let is_number = matches!(text.len(), 1 | 2) && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number && text.parse().is_ok_and(|number: u8| (least..=most).contains(&number))
    };

    is_list(minute, |text| number(text, 0, 59))
        && is_list(hour, |text| number(text, 0, 23))
        && is_list(day, |text| text == "L" || text == "LW" || number(text.strip_suffix('W').unwrap_or(text), 1, 31))
        && is_list(month, |text| number(text, 1, 12) || MONTHS.contains(&text))
        && is_list(weekday, |text| {
            let day = match text.split_once('#') {
                Some((day, "1" | "2" | "3" | "4" | "5" | "L")) => day,
                Some(_) => return false,
                None => text.strip_suffix('L').unwrap_or(text),
            };

            (day.len() == 1 && number(day, 0, 7)) || WEEKDAYS.contains(&day)
        })
}

/// Whether every part of a comma-separated field is a value, a range of values, `*` or `?`, with or without a step.
fn is_list(field: &str, is_value: impl Fn(&str) -> bool) -> bool {
    field.split(',').all(|part| {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let step_is_number = matches!(step.len(), 1 | 2) && step.bytes().all(|byte| byte.is_ascii_digit());
        let range_is_valid = match range.split_once('-') {
            Some((from, to)) => is_value(from) && is_value(to),
            None => range == "*" || range == "?" || is_value(range),
        };

        step_is_number && range_is_valid
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_in_range() {
        for expression in [
            "0 8 * * 1-5",
            "*/15 0-6,22 1,15 JAN-MAR SUN",
            "59 23 31 12 7",
            "00 08 L * mon#2",
            "0 8 15W,LW ? 5L",
            "0 8 * * fri#L",
            "no cron at all, which another rule says",
        ] {
            assert!(is_in_range(expression), "{expression}");
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
            assert!(!is_in_range(expression), "{expression}");
        }
    }
}
