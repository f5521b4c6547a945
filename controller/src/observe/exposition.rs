//! A parser of the Prometheus text exposition format, version 0.0.4, for families that begin with `hush_`.
//!
//! It is a parser of its own because a fleet is scraped every second or two: it skips the lines of other families without
//! parsing them, and allocates only for the labels of the rest.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::borrow::Cow;

/// The prefix of all families of Hush.
const PREFIX: &str = "hush_";

/// One sample line of the exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Series<'a> {
    pub name: &'a str,
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
    pub value: f64,
}

impl Series<'_> {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_ref())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the metrics: {what}")]
pub struct MalformedMetrics {
    /// The number of the line, from 1.
    pub line: usize,
    pub what: &'static str,
}

/// Every sample line of a `hush_` family, in order. After an error the rest of the text should not be used.
pub fn series(text: &str) -> impl Iterator<Item = Result<Series<'_>, MalformedMetrics>> {
    let is_ours = |(_, line): &(usize, &str)| line.starts_with(PREFIX);
    let numbered_lines = text.lines().enumerate().filter(is_ours);
    numbered_lines.map(|(index, line)| parse(line).map_err(|what| MalformedMetrics { line: index + 1, what }))
}

fn parse(line: &str) -> Result<Series<'_>, &'static str> {
    const NO_VALUE: &str = "a name without a value";
    let is_name_char = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let name_end = line.find(|c: char| !is_name_char(c)).ok_or(NO_VALUE)?;
    let (name, after_name) = line.split_at(name_end);

    let mut labels = Vec::new();
    let after_labels = match after_name.strip_prefix('{') {
        Some(inside) => read_labels(inside, &mut labels)?,
        None => after_name,
    };

    let mut fields = after_labels.split_ascii_whitespace();
    let value = fields.next().ok_or(NO_VALUE)?;
    let value = value.parse().map_err(|_| "the value is not a number")?;
    // A timestamp may follow. Servers of Hush send none: the age of a sample is a family of its own.
    if fields.next().is_some_and(|field| field.parse::<i64>().is_err()) || fields.next().is_some() {
        return Err("there is more than a value and a timestamp");
    }

    Ok(Series { name, labels, value })
}

/// Reads the labels that begin after `{`, and returns the text after `}`.
fn read_labels<'a>(mut rest: &'a str, labels: &mut Vec<(&'a str, Cow<'a, str>)>) -> Result<&'a str, &'static str> {
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }

        let (name, after_name) = rest.split_once('=').ok_or("a label without a value")?;
        let opened = after_name.trim_start().strip_prefix('"').ok_or("the value of a label must be in quotes")?;
        let (value, after_value) = read_quoted(opened)?;
        labels.push((name.trim(), value));
        rest = after_value;
    }
}

/// The text up to the closing quote, and the text after it.
fn read_quoted(text: &str) -> Result<(Cow<'_, str>, &str), &'static str> {
    const UNCLOSED: &str = "the value of a label does not end";
    let stop = text.find(['"', '\\']).ok_or(UNCLOSED)?;
    if text[stop..].starts_with('"') {
        return Ok((Cow::Borrowed(&text[..stop]), &text[stop + 1..]));
    }

    let mut value = text[..stop].to_owned();
    let mut chars = text[stop..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Cow::Owned(value), &text[stop + at + 1..])),
            '\\' => match chars.next().ok_or(UNCLOSED)?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    Err(UNCLOSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_prometheus_writes() {
        let text = "# HELP hush_a A.\n# TYPE hush_a gauge\nhush_a{model=\"a \\\"b\\\"\\\\ c\",le=\"+Inf\"} 1.5\nother_b 3\n\
                    hush_c 1e3 1700000000000\nhush_d{} +Inf\n";
        let found: Vec<_> = series(text).collect::<Result<_, _>>().unwrap();

        assert_eq!(found.len(), 3);
        assert_eq!((found[0].name, found[0].value), ("hush_a", 1.5));
        assert_eq!((found[0].label("model"), found[0].label("le")), (Some("a \"b\"\\ c"), Some("+Inf")));
        assert_eq!((found[1].name, found[1].value), ("hush_c", 1000.0));
        assert_eq!(found[2].value, f64::INFINITY);
    }

    #[test]
    fn a_malformed_line_is_named_by_its_number() {
        for (line, what) in [
            ("hush_a", "a name without a value"),
            ("hush_a ", "a name without a value"),
            ("hush_a x", "the value is not a number"),
            ("hush_a{b} 1", "a label without a value"),
            ("hush_a{b=c} 1", "the value of a label must be in quotes"),
            ("hush_a{b=\"c} 1", "the value of a label does not end"),
            ("hush_a 1 2 3", "there is more than a value and a timestamp"),
        ] {
            let error = series(&format!("hush_ok 1\n{line}\n")).find_map(Result::err);
            assert_eq!(error, Some(MalformedMetrics { line: 2, what }), "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_label_comes_back_as_prometheus_writes_it(label in "\\PC{0,20}[\\n\\\\\"]{0,3}\\PC{0,5}", value in proptest::num::f64::NORMAL) {
            use prometheus::{Encoder, GaugeVec, Opts, Registry, TextEncoder};

            let registry = Registry::new();
            let gauge = GaugeVec::new(Opts::new("hush_test", "Help."), &["model"]).unwrap();
            registry.register(Box::new(gauge.clone())).unwrap();
            gauge.with_label_values(&[label.as_str()]).set(value);

            let mut text = Vec::new();
            TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();

            let found: Vec<_> = series(&text).collect::<Result<_, _>>().unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].label("model"), found[0].value), (Some(label.as_str()), value));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(hush_[a-z{}=\"\\\\ ,0-9.\\PC]{0,40}\\n?){0,5}") {
            let _ = series(&text).collect::<Vec<_>>();
        }
    }
}
