//! Prometheus' text format, as far as a sum of one metric needs it.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

/// The sum of the series of a metric that have all of `labels`; `None`: there is no such series with a number.
pub(super) fn sum_of(text: &str, metric: &str, labels: &[(String, String)]) -> Option<f64> {
    let values = text.lines().filter_map(|line| value_of(line.trim_start(), metric, labels));
    values.filter(|value| value.is_finite()).reduce(|sum, value| sum + value)
}

/// The value of a line, if it is a series of this metric with these labels.
fn value_of(line: &str, metric: &str, labels: &[(String, String)]) -> Option<f64> {
    let after_name = line.strip_prefix(metric)?;
    let value_part = match after_name.strip_prefix('{') {
        Some(inside) => {
            let (found, rest) = read_labels(inside)?;
            let has = |(name, value): &(String, String)| found.iter().any(|(n, v)| *n == name && v == value);
            labels.iter().all(has).then_some(rest)?
        }
        None if labels.is_empty() => after_name.strip_prefix([' ', '\t'])?,
        None => return None,
    };
    value_part.split_ascii_whitespace().next()?.parse().ok()
}

/// The labels up to `}`, and the text after it.
fn read_labels(text: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    let mut rest = text;

    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after_name) = rest.split_once('=')?;
        let (value, after_value) = read_quoted(after_name.trim_start().strip_prefix('"')?)?;
        labels.push((name.trim(), value));
        rest = after_value;
    }
}

/// A value up to its closing quote, and the text after it.
fn read_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();

    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "# HELP a_running Running.\n# TYPE a_running gauge\na_running{model=\"m\",rank=\"0\"} 2.0\n\
                        a_running{model=\"n\",rank=\"0\"} 3 1700000000\na_running_extra 9\nplain 4\nplain2 5\n\
                        a:colon{} 1e1\nodd{l=\"a,\\\"}\\\\b\"} 7\nbroken{l=\"x\nnan NaN\n";

    fn label(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), value.to_owned())]
    }

    #[test]
    fn series_of_one_metric_are_added() {
        assert_eq!(sum_of(TEXT, "a_running", &[]), Some(5.0));
        assert_eq!(sum_of(TEXT, "a_running", &label("model", "n")), Some(3.0));
        assert_eq!(sum_of(TEXT, "a_running", &label("model", "x")), None);
        assert_eq!(sum_of(TEXT, "plain", &[]), Some(4.0));
        assert_eq!(sum_of(TEXT, "plain", &label("a", "b")), None);
        assert_eq!(sum_of(TEXT, "a:colon", &[]), Some(10.0));
        assert_eq!(sum_of(TEXT, "odd", &label("l", "a,\"}\\b")), Some(7.0));
        assert_eq!(sum_of(TEXT, "broken", &[]), None);
        assert_eq!(sum_of(TEXT, "nan", &[]), None);
        assert_eq!(sum_of(TEXT, "absent", &[]), None);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in ".{0,200}", tail in "[a-z{}=\",\\\\ 0-9\n]{0,60}") {
            sum_of(&format!("{text}\nm{{{tail}"), "m", &[]);
            sum_of(&format!("m{tail}"), "m", &label("a", "b"));
        }
    }
}
