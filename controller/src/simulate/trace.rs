//! Traces of requests, read from a file or generated from a seed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

/// A request; `at` is the time since the beginning of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRequest {
    pub at: Duration,
    pub model: String,
    /// How long the request keeps the model busy.
    pub busy: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceLine {
    at: f64,
    #[serde(default = "default_model")]
    model: String,
    #[serde(default)]
    busy: f64,
}

fn default_model() -> String {
    "whisper".to_owned()
}

/// CSV with a header line that names `at` and, if there are more, `model` and `busy`; or JSON lines with these fields.
pub fn read(path: &Path) -> anyhow::Result<Vec<TraceRequest>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

pub fn parse(text: &str) -> anyhow::Result<Vec<TraceRequest>> {
    let json = text.trim_start().starts_with('{');
    let mut requests = if json { json_lines(text)? } else { csv(text)? };
    requests.sort_by(|a, b| (a.at, &a.model).cmp(&(b.at, &b.model)));
    Ok(requests)
}

fn json_lines(text: &str) -> anyhow::Result<Vec<TraceRequest>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let line: TraceLine = serde_json::from_str(line).with_context(|| format!("line {}", index + 1))?;
            to_request(line).with_context(|| format!("line {}", index + 1))
        })
        .collect()
}

fn csv(text: &str) -> anyhow::Result<Vec<TraceRequest>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let Some((_, header)) = lines.next() else { bail!("it is empty") };
    let columns: Vec<&str> = header.split(',').map(str::trim).collect();
    let column = |name: &str| columns.iter().position(|column| *column == name);

    let at = column("at").context("line 1: the header must name the column `at`")?;
    let unknown = columns.iter().find(|column| !["at", "model", "busy"].contains(column));
    ensure!(unknown.is_none(), "line 1: unknown column `{}`; there are at, model, busy", unknown.unwrap_or(&""));
    let (model, busy) = (column("model"), column("busy"));

    lines
        .map(|(index, line)| {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let field = |at: usize| fields.get(at).copied().unwrap_or_default();
            let number = |at: usize, name: &str| {
                field(at).parse::<f64>().with_context(|| format!("line {}: `{name}` must be seconds", index + 1))
            };

            let line = TraceLine {
                at: number(at, "at")?,
                model: model.map_or_else(default_model, |at| field(at).to_owned()),
                busy: busy.map_or(Ok(0.0), |at| number(at, "busy"))?,
            };
            to_request(line).with_context(|| format!("line {}", index + 1))
        })
        .collect()
}

fn to_request(line: TraceLine) -> anyhow::Result<TraceRequest> {
    let seconds = |value: f64, name: &str| {
        ensure!((0.0..=1e9).contains(&value), "`{name}` must be seconds from 0 to 1000000000");
        Ok(Duration::from_secs_f64(value))
    };

    ensure!(!line.model.is_empty(), "`model` must not be empty");
    Ok(TraceRequest { at: seconds(line.at, "at")?, model: line.model, busy: seconds(line.busy, "busy")? })
}

/// How the requests of a generated trace are spread over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceKind {
    /// A Poisson process, with a request in half an hour on average.
    Poisson,
    /// Bursts of some dozen requests that are seconds apart, with hours between the bursts.
    Bursty,
    /// Many requests on weekdays from eight to eighteen, and few at other times.
    Office,
    /// Gaps that are a little longer than what a learner has learned to wait for.
    Adversarial,
}

impl TraceKind {
    pub const ALL: [(&str, Self); 4] = [
        ("poisson", Self::Poisson),
        ("bursty", Self::Bursty),
        ("office", Self::Office),
        ("adversarial", Self::Adversarial),
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, kind)| kind)
    }

    /// Generates the requests of one model over this many seconds.
    pub fn generate(self, seed: u64, seconds: u64) -> Vec<TraceRequest> {
        let mut random = SplitMix64(seed);
        let mut at = 0.0;
        let mut requests = Vec::new();
        let mut left_in_burst = 0;
        let mut gap_index = 0_u32;

        loop {
            at += match self {
                Self::Poisson => random.exponential(1800.0),
                Self::Bursty if left_in_burst > 0 => {
                    left_in_burst -= 1;
                    random.exponential(15.0)
                }
                Self::Bursty => {
                    left_in_burst = 8 + random.below(32);
                    random.exponential(7200.0)
                }
                Self::Office => {
                    let hour = (at / 3600.0) % 168.0;
                    let open = hour < 120.0 && (8.0..18.0).contains(&(hour % 24.0));
                    // Outside of office hours gaps are twenty times as long.
                    let gap = random.exponential(120.0);
                    if open { gap } else { gap * 20.0 }
                }
                Self::Adversarial => {
                    // The gaps rise and fall around the break-even of a load of 1.5 s, so that what was learned is out of date.
                    gap_index += 1;
                    let mean = [60.0, 300.0, 905.0, 930.0, 20.0, 1810.0][(gap_index / 12 % 6) as usize];
                    mean + random.uniform() * 5.0
                }
            };
            if at >= seconds as f64 {
                return requests;
            }

            let busy = Duration::from_secs_f64(1.0 + random.exponential(4.0).min(120.0));
            requests.push(TraceRequest { at: Duration::from_secs_f64(at), model: default_model(), busy });
        }
    }
}

/// A random number generator, which yields the same numbers on every machine and in every version.
#[derive(Clone, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    #[allow(
        clippy::should_implement_trait,
        reason = "the numbers never end, so that an iterator's Option would be noise"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number x with 0 <= x < 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// An integer below the limit; 0 when the limit is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// A number of the exponential distribution.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.uniform()).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_and_json_lines_give_the_same_requests() {
        let csv = parse("at, busy, model\n1.5,2,turbo\n0,1,base\n").unwrap();
        let json =
            parse("{\"at\":0,\"busy\":1,\"model\":\"base\"}\n{\"at\":1.5,\"busy\":2,\"model\":\"turbo\"}\n").unwrap();
        assert_eq!(csv, json);
        assert_eq!(csv[0].model, "base");
        assert_eq!(csv[1].at, Duration::from_millis(1500));
    }

    #[test]
    fn a_bad_trace_names_its_line() {
        for (text, part) in [
            ("at\nsoon\n", "line 2"),
            ("when\n1\n", "`at`"),
            ("at,color\n1,red\n", "color"),
            ("at\n1\n-1\n", "line 3"),
            ("{\"at\":1}\n{\"at\":\"x\"}\n", "line 2"),
            ("", "empty"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_trace() {
        for (name, kind) in TraceKind::ALL {
            let trace = kind.generate(7, 7 * 86_400);
            assert_eq!(trace, kind.generate(7, 7 * 86_400), "{name}");
            assert!(trace.len() > 100 && trace.is_sorted_by_key(|request| request.at), "{name}");
        }
    }
}
