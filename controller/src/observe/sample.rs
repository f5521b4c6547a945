//! What one server says of itself, read out of its metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_contract::{ModelState, metrics as names};
use hush_core::{Arrivals, GpuId, State};
use hush_log::{is_printable, printable};

use super::exposition::{Malformed, Series, series};

/// The largest whole number that a metric's value carries exactly.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
/// A server with more is broken, or not one of ours.
const MODELS_MAX: usize = 1000;
const GPUS_MAX: usize = 256;
/// The longest name of a model, and the longest id of a GPU.
const NAME_MAX_CHARS: usize = 200;
/// The problems of one server that are told.
const PROBLEMS_MAX: usize = 10;
const PROBLEM_MAX_CHARS: usize = 300;
/// A name that is left out, as a problem says it.
const SHOWN_NAME_CHARS: usize = 60;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    pub models: BTreeMap<String, ModelSample>,
    pub gpus: BTreeMap<GpuId, GpuSample>,
    /// Models and GPUs that are left out, and why.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ModelSample {
    pub state: State,
    pub idle: Duration,
    /// Since when, in Unix time by its server's clock; `None`: it is busy, or of a version that does not tell.
    pub idle_since: Option<Duration>,
    pub inflight: u64,
    pub queued: u64,
    pub generation: u64,
    /// `None`: not on a GPU, or not measured.
    pub gpu: Option<GpuId>,
    /// Held while it is loaded, else needed for the next load.
    pub vram_bytes: u64,
    pub demand_bytes: u64,
    pub loaded_for: Duration,
    pub reload: Duration,
    /// So much longer it may not be loaded; zero: no hold, or its server is of a version that does not tell.
    pub hold: Duration,
    pub arrivals: Option<Arrivals>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct GpuSample {
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// When it was scraped.
    pub age: Duration,
    /// The device answered the last time that it was asked.
    pub up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the metrics tell of no model: this is not the operations port of a hush-server")]
    NoModel,
    #[error("the metrics tell of more than {MODELS_MAX} models or {GPUS_MAX} GPUs")]
    TooMany,
    #[error("every model has a name that is longer than {NAME_MAX_CHARS} characters or cannot be printed")]
    NoName,
}

/// Values of one model or GPU by family; only families that are known.
#[derive(Debug, Default)]
struct Raw {
    values: BTreeMap<&'static str, f64>,
    states: Vec<String>,
    gpu: Option<String>,
    gaps: Vec<(Duration, f64)>,
    gap_count: Option<f64>,
}

const OF_MODEL: [&str; 11] = [
    names::MODEL_IDLE_SECONDS,
    names::MODEL_IDLE_SINCE_TIMESTAMP_SECONDS,
    names::MODEL_INFLIGHT_REQUESTS,
    names::MODEL_QUEUED_REQUESTS,
    names::MODEL_GENERATION,
    names::MODEL_VRAM_BYTES,
    names::MODEL_NEED_BYTES,
    names::MODEL_MEMORY_DEMAND_BYTES,
    names::MODEL_LOADED_SECONDS,
    names::MODEL_LAST_LOAD_SECONDS,
    names::MODEL_HOLD_SECONDS,
];
const OF_GPU: [&str; 4] =
    [names::GPU_MEMORY_TOTAL_BYTES, names::GPU_MEMORY_USED_BYTES, names::GPU_SAMPLE_AGE_SECONDS, names::GPU_DEVICE_UP];

impl Sample {
    /// Strict about form, because a broken answer may break anywhere; a single model or GPU that makes no sense is left
    /// out and named in `problems`.
    ///
    /// Names and problems go to logs, terminals and pages: what comes out of here may be printed. A name that may not is no
    /// name: the same letters in place of others could be those of another model.
    pub fn read(text: &str) -> Result<Self, SampleError> {
        let mut models: BTreeMap<String, Raw> = BTreeMap::new();
        let mut gpus: BTreeMap<String, BTreeMap<&'static str, f64>> = BTreeMap::new();
        let mut problems = Problems::default();
        for line in series(text) {
            let line = line?;
            if let Some(family) = OF_GPU.into_iter().find(|family| *family == line.name) {
                let Some(uuid) = line.label(names::LABEL_GPU_UUID).filter(|uuid| !uuid.is_empty()) else { continue };
                if !is_name(uuid) {
                    problems.unusable("GPU", uuid);
                    continue;
                }
                gpus.entry(uuid.to_owned()).or_default().insert(family, line.value);
            } else if let Some(model) = line.label(names::LABEL_MODEL) {
                if !is_name(model) {
                    problems.unusable("model", model);
                    continue;
                }
                collect(models.entry(model.to_owned()).or_default(), &line);
            }
            if models.len() > MODELS_MAX || gpus.len() > GPUS_MAX {
                return Err(SampleError::TooMany);
            }
        }
        let mut sample = Self::default();
        for (uuid, values) in gpus {
            match gpu(&values) {
                Ok(gpu) => drop(sample.gpus.insert(GpuId(uuid), gpu)),
                Err(problem) => problems.push(format!("GPU {}: {problem}", shown(&uuid))),
            }
        }
        // Request counters outlive a model that was removed; what has no state is no model any more.
        models.retain(|_, raw| !raw.states.is_empty() || !raw.values.is_empty());
        if models.is_empty() {
            return Err(if problems.unusable_models { SampleError::NoName } else { SampleError::NoModel });
        }
        for (name, raw) in models {
            match model(&raw, &sample.gpus) {
                Ok(model) => drop(sample.models.insert(name, model)),
                Err(problem) => problems.push(format!("model {}: {problem}", shown(&name))),
            }
        }
        sample.problems = problems.told();
        Ok(sample)
    }
}

/// What is left out of a sample. A server decides how much is wrong with it, and not how much is said.
#[derive(Debug, Default)]
struct Problems {
    told: Vec<String>,
    untold: usize,
    unusable_models: bool,
}

impl Problems {
    fn push(&mut self, problem: String) {
        if self.told.len() < PROBLEMS_MAX {
            self.told.push(printable(&problem, PROBLEM_MAX_CHARS));
        } else {
            self.untold += 1;
        }
    }

    /// Each name has many lines, most of them in a row.
    fn unusable(&mut self, what: &str, name: &str) {
        self.unusable_models |= what == "model";
        let rule = format!("must have at most {NAME_MAX_CHARS} characters that can all be printed");
        let problem = format!("{what} {}: its name {rule}; it is left out", shown(name));
        if self.told.last() != Some(&problem) {
            self.push(problem);
        }
    }

    fn told(mut self) -> Vec<String> {
        if self.untold > 0 {
            self.told.push(format!("and {} more", self.untold));
        }
        self.told
    }
}

fn shown(name: &str) -> String {
    printable(name, SHOWN_NAME_CHARS)
}

fn is_name(name: &str) -> bool {
    name.chars().nth(NAME_MAX_CHARS).is_none() && name.chars().all(is_printable)
}

fn collect(raw: &mut Raw, line: &Series<'_>) {
    if let Some(family) = OF_MODEL.into_iter().find(|family| *family == line.name) {
        raw.values.insert(family, line.value);
        // One that is no name is told of as a GPU, and is none.
        if let Some(uuid) = line.label(names::LABEL_GPU_UUID).filter(|uuid| is_name(uuid)) {
            raw.gpu = Some(uuid.to_owned());
        }
    } else if line.name == names::MODEL_STATE {
        if line.value == 1.0 {
            raw.states.push(shown(line.label(names::LABEL_STATE).unwrap_or_default()));
        }
    } else if let Some(part) = line.name.strip_prefix(names::MODEL_INTERARRIVAL_SECONDS) {
        match (part, line.label("le").and_then(|bound| bound.parse::<f64>().ok())) {
            ("_bucket", Some(bound)) => {
                if let Ok(bound) = Duration::try_from_secs_f64(bound) {
                    raw.gaps.push((bound, line.value));
                }
            }
            ("_count", _) => raw.gap_count = Some(line.value),
            _ => {}
        }
    }
}

fn gpu(values: &BTreeMap<&'static str, f64>) -> Result<GpuSample, String> {
    let total_bytes = whole(values, names::GPU_MEMORY_TOTAL_BYTES)?;
    let used_bytes = whole(values, names::GPU_MEMORY_USED_BYTES)?;
    if total_bytes == 0 || used_bytes > total_bytes {
        return Err(format!("{used_bytes} bytes used of {total_bytes}"));
    }
    let age = seconds(values, names::GPU_SAMPLE_AGE_SECONDS)?;
    let up = values.get(names::GPU_DEVICE_UP).is_none_or(|up| *up == 1.0);
    Ok(GpuSample { total_bytes, used_bytes, age, up })
}

fn model(raw: &Raw, gpus: &BTreeMap<GpuId, GpuSample>) -> Result<ModelSample, String> {
    let state = match raw.states.as_slice() {
        [one] => state(one).ok_or_else(|| format!("its state `{one}` is not known"))?,
        [] => return Err("it is in no state".to_owned()),
        more => return Err(format!("it is in {} states at once", more.len())),
    };
    let optional = |family| if raw.values.contains_key(family) { whole(&raw.values, family) } else { Ok(0) };
    let held = optional(names::MODEL_VRAM_BYTES)?;
    let need = optional(names::MODEL_NEED_BYTES)?;
    let vram_bytes = if matches!(state, State::Ready | State::Draining | State::Unloading) { held } else { need };
    let gpu = raw.gpu.clone().map(GpuId);
    if let Some(card) = gpu.as_ref().and_then(|gpu| gpus.get(gpu))
        && vram_bytes > card.total_bytes
    {
        return Err(format!("it holds {vram_bytes} bytes of a GPU of {}", card.total_bytes));
    }
    let lasting =
        |family| if raw.values.contains_key(family) { seconds(&raw.values, family) } else { Ok(Duration::ZERO) };
    Ok(ModelSample {
        state,
        idle: seconds(&raw.values, names::MODEL_IDLE_SECONDS)?,
        idle_since: Some(lasting(names::MODEL_IDLE_SINCE_TIMESTAMP_SECONDS)?).filter(|since| !since.is_zero()),
        inflight: whole(&raw.values, names::MODEL_INFLIGHT_REQUESTS)?,
        queued: whole(&raw.values, names::MODEL_QUEUED_REQUESTS)?,
        generation: whole(&raw.values, names::MODEL_GENERATION)?,
        gpu,
        vram_bytes,
        demand_bytes: optional(names::MODEL_MEMORY_DEMAND_BYTES)?,
        loaded_for: lasting(names::MODEL_LOADED_SECONDS)?,
        reload: lasting(names::MODEL_LAST_LOAD_SECONDS)?,
        hold: lasting(names::MODEL_HOLD_SECONDS)?,
        arrivals: arrivals(raw),
    })
}

fn state(word: &str) -> Option<State> {
    let known = ModelState::ALL.into_iter().find(|state| state.as_str() == word)?;
    Some(match known {
        ModelState::Unloaded => State::Unloaded,
        ModelState::Loading => State::Loading,
        ModelState::Ready => State::Ready,
        ModelState::Draining => State::Draining,
        ModelState::Unloading => State::Unloading,
        ModelState::WaitingForMemory => State::WaitingForMemory,
        ModelState::Failed => State::Failed,
    })
}

/// `None` when there is none, or it contradicts itself: adaptive residency then does without.
fn arrivals(raw: &Raw) -> Option<Arrivals> {
    let number = |value: f64| exact(value).ok();
    let count = number(raw.gap_count?)?;
    let mut buckets = Vec::with_capacity(raw.gaps.len());
    for (bound, value) in &raw.gaps {
        buckets.push((*bound, number(*value)?));
    }
    buckets.sort_unstable();
    let rises = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
    let fits = buckets.last().is_none_or(|(_, last)| *last <= count);
    (rises && fits).then_some(Arrivals { buckets, count })
}

fn value(values: &BTreeMap<&'static str, f64>, family: &'static str) -> Result<f64, String> {
    values.get(family).copied().ok_or_else(|| format!("{family} is missing"))
}

fn whole(values: &BTreeMap<&'static str, f64>, family: &'static str) -> Result<u64, String> {
    exact(value(values, family)?).map_err(|value| format!("{family} is {value}, not a whole number"))
}

fn exact(value: f64) -> Result<u64, f64> {
    if (0.0..=EXACT_MAX).contains(&value) && value.fract() == 0.0 { Ok(value as u64) } else { Err(value) }
}

fn seconds(values: &BTreeMap<&'static str, f64>, family: &'static str) -> Result<Duration, String> {
    let value = value(values, family)?;
    Duration::try_from_secs_f64(value).map_err(|_| format!("{family} is {value}, not a time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
hush_model_state{model="a",state="ready"} 1
hush_model_state{model="a",state="unloaded"} 0
hush_model_idle_seconds{model="a"} 12.5
hush_model_idle_since_timestamp_seconds{model="a"} 1795630969.125
hush_model_inflight_requests{model="a"} 0
hush_model_queued_requests{model="a"} 0
hush_model_generation{model="a"} 3
hush_model_loaded_seconds{model="a"} 90
hush_model_last_load_seconds{model="a"} 1.25
hush_model_vram_bytes{gpu_uuid="GPU-1",model="a"} 2147483648
hush_model_need_bytes{gpu_uuid="GPU-1",model="a"} 2147483649
hush_model_memory_demand_bytes{model="a"} 0
hush_model_interarrival_seconds_bucket{model="a",le="1"} 2
hush_model_interarrival_seconds_bucket{model="a",le="60"} 5
hush_model_interarrival_seconds_bucket{model="a",le="+Inf"} 6
hush_model_interarrival_seconds_count{model="a"} 6
hush_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 8589934592
hush_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 3221225472
hush_gpu_sample_age_seconds{gpu_uuid="GPU-1"} 0.2
hush_gpu_device_up{gpu_uuid="GPU-1"} 1
"#;

    #[test]
    fn a_server_with_one_model_on_one_gpu() {
        let sample = Sample::read(GOOD).unwrap();
        assert!(sample.problems.is_empty(), "{:?}", sample.problems);
        let model = &sample.models["a"];
        assert_eq!((model.state, model.generation, model.vram_bytes), (State::Ready, 3, 2 << 30));
        assert_eq!((model.idle, model.reload), (Duration::from_millis(12500), Duration::from_millis(1250)));
        assert_eq!(model.idle_since, Some(Duration::from_millis(1_795_630_969_125)));
        assert_eq!(model.loaded_for, Duration::from_secs(90));
        let arrivals = model.arrivals.as_ref().unwrap();
        assert_eq!((arrivals.count, arrivals.buckets.len()), (6, 2));
        let gpu = &sample.gpus[&GpuId("GPU-1".into())];
        assert_eq!((gpu.total_bytes, gpu.used_bytes, gpu.up), (8 << 30, 3 << 30, true));
    }

    #[test]
    fn an_unloaded_model_counts_what_it_will_need() {
        let text =
            GOOD.replace("state=\"ready\"} 1", "state=\"ready\"} 0").replace("\"unloaded\"} 0", "\"unloaded\"} 1");
        let sample = Sample::read(&text).unwrap();
        assert_eq!((sample.models["a"].state, sample.models["a"].vram_bytes), (State::Unloaded, (2 << 30) + 1));
    }

    #[test]
    fn nonsense_is_left_out_and_named() {
        for (good, bad, problem) in [
            ("idle_seconds{model=\"a\"} 12.5", "idle_seconds{model=\"a\"} NaN", "hush_model_idle_seconds is NaN"),
            ("idle_seconds{model=\"a\"} 12.5", "idle_seconds{model=\"a\"} -1", "hush_model_idle_seconds is -1"),
            ("generation{model=\"a\"} 3", "generation{model=\"a\"} 3.5", "hush_model_generation is 3.5"),
            ("\"unloaded\"} 0", "\"unloaded\"} 1", "2 states at once"),
            ("state=\"ready\"} 1", "state=\"resting\"} 1", "`resting` is not known"),
            ("model=\"a\"} 2147483648", "model=\"a\"} 9000000000", "of a GPU of 8589934592"),
            ("used_bytes{gpu_uuid=\"GPU-1\"} 3221225472", "used_bytes{gpu_uuid=\"GPU-1\"} 9e9", "bytes used of"),
            ("hush_gpu_sample_age_seconds", "hush_gpu_sample_ages", "hush_gpu_sample_age_seconds is missing"),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let sample = Sample::read(&GOOD.replace(good, bad)).unwrap();
            assert!(sample.problems.iter().any(|p| p.contains(problem)), "{problem}: {:?}", sample.problems);
            assert!(sample.models.is_empty() || sample.gpus.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_printed_is_no_name() {
        for name in ["\u{1b}]0;owned\u{7}", "a\u{202e}b", "a\\nWARN all is well", &"a".repeat(201)] {
            let of = |text: &str| text.replace("model=\"a\"", &format!("model=\"{name}\""));
            assert_eq!(Sample::read(&of(GOOD)), Err(SampleError::NoName), "{name:?}");
            let both = Sample::read(&format!("{GOOD}{}", of(GOOD))).unwrap();
            assert_eq!(both.models.keys().collect::<Vec<_>>(), ["a"], "{name:?}");
            assert!(both.problems[0].contains("its name must have at most 200 characters"), "{:?}", both.problems);
        }
        let card = GOOD.replace("GPU-1", "GPU-\u{1b}[5m");
        let sample = Sample::read(&card).unwrap();
        assert!(sample.gpus.is_empty() && sample.models["a"].gpu.is_none(), "{sample:?}");
        let state = GOOD.replace("state=\"ready\"} 1", &format!("state=\"\u{9b}2J{}\"}} 1", "x".repeat(7000)));
        let problems = Sample::read(&state).unwrap().problems;
        assert!(problems[0].contains("`�2Jxxx") && problems[0].chars().count() < 200, "{problems:?}");
    }

    /// A server that is wrong in everything that it says.
    #[test]
    fn much_that_is_wrong_is_told_in_a_few_lines() {
        let line = |n| format!("hush_model_generation{{model=\"{}{n}\"}} NaN\n", "b".repeat(190));
        let sample = Sample::read(&(0..999).map(line).collect::<String>()).unwrap();
        assert_eq!(sample.problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(sample.problems[PROBLEMS_MAX], "and 989 more");
        assert!(sample.problems.iter().map(String::len).sum::<usize>() < 4000, "{:?}", sample.problems);
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_server_says_can_be_printed(label in ".{0,250}", value in "[0-9NaInf.e+-]{1,9}") {
            let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let text = format!("{GOOD}hush_model_generation{{model=\"{label}\",gpu_uuid=\"{label}\"}} {value}\n\
                                hush_gpu_memory_used_bytes{{gpu_uuid=\"{label}\"}} {value}\n\
                                hush_model_state{{model=\"x\",state=\"{label}\"}} 1\n");
            if let Ok(sample) = Sample::read(&text) {
                let names = sample.models.keys().map(String::as_str).chain(sample.gpus.keys().map(GpuId::as_str));
                for text in names.chain(sample.problems.iter().map(String::as_str)) {
                    proptest::prop_assert!(text.chars().all(is_printable) && text.chars().count() <= 300, "{text:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_server_of_ours_is_refused() {
        assert_eq!(Sample::read("up 1\n"), Err(SampleError::NoModel));
        assert_eq!(Sample::read("hush_gpu_up 1\n"), Err(SampleError::NoModel));
        let many: String = (0..2000).map(|n| format!("hush_model_generation{{model=\"{n}\"}} 1\n")).collect();
        assert_eq!(Sample::read(&many), Err(SampleError::TooMany));
        assert!(matches!(Sample::read("hush_model_generation{model=\"a\" 1\n"), Err(SampleError::Malformed(_))));
    }
}
