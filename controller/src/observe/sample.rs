//! The sample of one server, parsed from its metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_contract::{ModelState, metrics as names};
use hush_core::{ArrivalHistogram, GpuId, ModelSample, ResidencyState};
use hush_log::{is_printable, printable};

use super::app_sample::{AppSample, RawApp};
use super::exposition::{MalformedMetrics, Series, series};

/// The largest whole number that a metric's value carries exactly.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
/// A server with more models is broken, or is no server of Hush.
const MODELS_MAX: usize = 1000;
const GPUS_MAX: usize = 256;
/// The longest name of a model, and the longest id of a GPU.
const NAME_MAX_CHARS: usize = 200;
/// The number of problems that are kept of one server.
const PROBLEMS_MAX: usize = 10;
const PROBLEM_MAX_CHARS: usize = 300;
/// How much of an unusable name a problem repeats.
const SHOWN_NAME_CHARS: usize = 60;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerSample {
    pub models: BTreeMap<String, ModelSample>,
    pub gpus: BTreeMap<GpuId, GpuSample>,
    /// `None`: the server is no sidecar, and its models are Whisper models.
    pub app: Option<AppSample>,
    /// Models and GPUs that are left out, and why.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct GpuSample {
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// The age of the figures at the time of the scrape.
    pub age: Duration,
    /// Whether the device answered the last time that the server queried it.
    pub up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    #[error(transparent)]
    Malformed(#[from] MalformedMetrics),
    #[error("the metrics contain no model: this is not the operations port of a hush-server or a hush-sidecar")]
    NoModel,
    #[error("the metrics contain more than {MODELS_MAX} models or {GPUS_MAX} GPUs")]
    TooMany,
    #[error("every model has a name that is longer than {NAME_MAX_CHARS} characters or cannot be printed")]
    NoName,
}

/// Why a model or a GPU is left out of a sample.
#[derive(Debug, thiserror::Error)]
enum ImplausibleSample {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{family} is {value}, not a whole number")]
    NotWhole { family: &'static str, value: f64 },
    #[error("{family} is {value}, not a time")]
    NotATime { family: &'static str, value: f64 },
    #[error("{used_bytes} bytes used of {total_bytes}")]
    Memory { used_bytes: u64, total_bytes: u64 },
    #[error("it holds {vram_bytes} bytes of a GPU of {total_bytes}")]
    LargerThanGpu { vram_bytes: u64, total_bytes: u64 },
    #[error("its state `{0}` is not known")]
    UnknownState(String),
    #[error("it has no state")]
    NoState,
    #[error("it is in {0} states at once")]
    SeveralStates(usize),
}

/// The values of one model by family, before they are checked; only families that are known.
#[derive(Debug, Default)]
struct RawModel {
    values: BTreeMap<&'static str, f64>,
    states: Vec<String>,
    gpu: Option<String>,
    gaps: Vec<(Duration, f64)>,
    gap_count: Option<f64>,
}

const MODEL_FAMILIES: [&str; 11] = [
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
const GPU_FAMILIES: [&str; 4] =
    [names::GPU_MEMORY_TOTAL_BYTES, names::GPU_MEMORY_USED_BYTES, names::GPU_SAMPLE_AGE_SECONDS, names::GPU_DEVICE_UP];

impl ServerSample {
    /// Parses the metrics of a server. A malformed line is an error, because a broken answer may break anywhere. A single
    /// model or GPU with implausible values is left out and named in `problems`.
    ///
    /// Names and problems go to logs, terminals and pages, so all of them are printable. A name that is not printable is
    /// refused and not repaired: with other characters in its place it could be the name of another model.
    pub fn read(text: &str) -> Result<Self, SampleError> {
        let mut problems = SampleProblems::default();
        let RawSample { mut models, gpus, app } = RawSample::read(text, &mut problems)?;
        let mut sample = Self { app: app.into_sample(), ..Self::default() };

        for (uuid, values) in gpus {
            match gpu_sample(&values) {
                Ok(gpu) => drop(sample.gpus.insert(GpuId(uuid), gpu)),
                Err(problem) => problems.push(format!("GPU {}: {problem}", shown_name(&uuid))),
            }
        }

        // Request counters outlive a model that was removed: a name without any other value is no model any more.
        models.retain(|_, raw| !raw.states.is_empty() || !raw.values.is_empty());
        if models.is_empty() {
            return Err(if problems.has_unusable_model { SampleError::NoName } else { SampleError::NoModel });
        }

        for (name, raw) in models {
            match model_sample(&raw, &sample.gpus) {
                Ok(model) => drop(sample.models.insert(name, model)),
                Err(problem) => problems.push(format!("model {}: {problem}", shown_name(&name))),
            }
        }

        sample.problems = problems.into_lines();
        Ok(sample)
    }
}

/// The known families of an exposition, by model and by GPU, and those of the app.
#[derive(Debug, Default)]
struct RawSample {
    models: BTreeMap<String, RawModel>,
    gpus: BTreeMap<String, BTreeMap<&'static str, f64>>,
    app: RawApp,
}

impl RawSample {
    fn read(text: &str, problems: &mut SampleProblems) -> Result<Self, SampleError> {
        let mut raw = Self::default();

        for line in series(text) {
            let line = line?;
            if let Some(family) = GPU_FAMILIES.into_iter().find(|family| *family == line.name) {
                let Some(uuid) = line.label(names::LABEL_GPU_UUID).filter(|uuid| !uuid.is_empty()) else { continue };
                if !is_usable_name(uuid) {
                    problems.push_unusable("GPU", uuid);
                    continue;
                }
                raw.gpus.entry(uuid.to_owned()).or_default().insert(family, line.value);
            } else if raw.app.take(&line) {
                continue;
            } else if let Some(model) = line.label(names::LABEL_MODEL) {
                if !is_usable_name(model) {
                    problems.push_unusable("model", model);
                    continue;
                }
                raw.models.entry(model.to_owned()).or_default().add(&line);
            }

            if raw.models.len() > MODELS_MAX || raw.gpus.len() > GPUS_MAX {
                return Err(SampleError::TooMany);
            }
        }
        Ok(raw)
    }
}

impl RawModel {
    fn add(&mut self, line: &Series<'_>) {
        if let Some(family) = MODEL_FAMILIES.into_iter().find(|family| *family == line.name) {
            self.values.insert(family, line.value);
            // An unusable id is reported as a problem of the GPU.
            if let Some(uuid) = line.label(names::LABEL_GPU_UUID).filter(|uuid| is_usable_name(uuid)) {
                self.gpu = Some(uuid.to_owned());
            }
        } else if line.name == names::MODEL_STATE {
            if line.value == 1.0 {
                self.states.push(shown_name(line.label(names::LABEL_STATE).unwrap_or_default()));
            }
        } else if let Some(suffix) = line.name.strip_prefix(names::MODEL_INTERARRIVAL_SECONDS) {
            self.add_interarrival(suffix, line);
        }
    }

    fn add_interarrival(&mut self, suffix: &str, line: &Series<'_>) {
        let bound = line.label("le").and_then(|bound| bound.parse::<f64>().ok());
        match (suffix, bound) {
            ("_bucket", Some(bound)) => {
                if let Ok(bound) = Duration::try_from_secs_f64(bound) {
                    self.gaps.push((bound, line.value));
                }
            }
            ("_count", _) => self.gap_count = Some(line.value),
            _ => {}
        }
    }
}

/// The problems of one sample. Their number is bounded: a server decides how much is wrong with its metrics, and must not
/// decide how much is logged.
#[derive(Debug, Default)]
struct SampleProblems {
    lines: Vec<String>,
    omitted: usize,
    has_unusable_model: bool,
}

impl SampleProblems {
    fn push(&mut self, problem: String) {
        if self.lines.len() < PROBLEMS_MAX {
            self.lines.push(printable(&problem, PROBLEM_MAX_CHARS));
        } else {
            self.omitted += 1;
        }
    }

    /// Adds an unusable name once: a name has many lines, most of them in a row.
    fn push_unusable(&mut self, what: &str, name: &str) {
        self.has_unusable_model |= what == "model";

        let rule = format!("must have at most {NAME_MAX_CHARS} characters that can all be printed");
        let problem = format!("{what} {}: its name {rule}; it is left out", shown_name(name));
        if self.lines.last() != Some(&problem) {
            self.push(problem);
        }
    }

    fn into_lines(mut self) -> Vec<String> {
        if self.omitted > 0 {
            self.lines.push(format!("and {} more", self.omitted));
        }
        self.lines
    }
}

fn shown_name(name: &str) -> String {
    printable(name, SHOWN_NAME_CHARS)
}

fn is_usable_name(name: &str) -> bool {
    name.chars().nth(NAME_MAX_CHARS).is_none() && name.chars().all(is_printable)
}

fn gpu_sample(values: &BTreeMap<&'static str, f64>) -> Result<GpuSample, ImplausibleSample> {
    let total_bytes = whole(values, names::GPU_MEMORY_TOTAL_BYTES)?;
    let used_bytes = whole(values, names::GPU_MEMORY_USED_BYTES)?;
    if total_bytes == 0 || used_bytes > total_bytes {
        return Err(ImplausibleSample::Memory { used_bytes, total_bytes });
    }

    let age = seconds(values, names::GPU_SAMPLE_AGE_SECONDS)?;
    let up = values.get(names::GPU_DEVICE_UP).is_none_or(|up| *up == 1.0);
    Ok(GpuSample { total_bytes, used_bytes, age, up })
}

fn model_sample(raw: &RawModel, gpus: &BTreeMap<GpuId, GpuSample>) -> Result<ModelSample, ImplausibleSample> {
    let values = &raw.values;
    let state = match raw.states.as_slice() {
        [one] => parse_state(one).ok_or_else(|| ImplausibleSample::UnknownState(one.clone()))?,
        [] => return Err(ImplausibleSample::NoState),
        more => return Err(ImplausibleSample::SeveralStates(more.len())),
    };

    let optional_whole = |family| if values.contains_key(family) { whole(values, family) } else { Ok(0) };
    let optional_seconds =
        |family| if values.contains_key(family) { seconds(values, family) } else { Ok(Duration::ZERO) };

    let held = optional_whole(names::MODEL_VRAM_BYTES)?;
    let needed = optional_whole(names::MODEL_NEED_BYTES)?;
    let vram_bytes = if state.has_measured_memory() { held } else { needed };
    let gpu = raw.gpu.clone().map(GpuId);
    if let Some(GpuSample { total_bytes, .. }) = gpu.as_ref().and_then(|gpu| gpus.get(gpu))
        && vram_bytes > *total_bytes
    {
        return Err(ImplausibleSample::LargerThanGpu { vram_bytes, total_bytes: *total_bytes });
    }

    let idle_since = optional_seconds(names::MODEL_IDLE_SINCE_TIMESTAMP_SECONDS)?;
    Ok(ModelSample {
        state,
        idle: seconds(values, names::MODEL_IDLE_SECONDS)?,
        idle_since: (!idle_since.is_zero()).then_some(idle_since),
        inflight: whole(values, names::MODEL_INFLIGHT_REQUESTS)?,
        queued: whole(values, names::MODEL_QUEUED_REQUESTS)?,
        generation: whole(values, names::MODEL_GENERATION)?,
        gpu,
        vram_bytes,
        demand_bytes: optional_whole(names::MODEL_MEMORY_DEMAND_BYTES)?,
        loaded_for: optional_seconds(names::MODEL_LOADED_SECONDS)?,
        reload: optional_seconds(names::MODEL_LAST_LOAD_SECONDS)?,
        hold: optional_seconds(names::MODEL_HOLD_SECONDS)?,
        arrivals: arrivals(raw),
    })
}

fn parse_state(name: &str) -> Option<ResidencyState> {
    ModelState::ALL.into_iter().find(|state| state.as_str() == name).map(residency_state)
}

/// The state of a server's contract as the core knows it.
pub const fn residency_state(state: ModelState) -> ResidencyState {
    match state {
        ModelState::Unloaded => ResidencyState::Unloaded,
        ModelState::Loading => ResidencyState::Loading,
        ModelState::Ready => ResidencyState::Ready,
        ModelState::Draining => ResidencyState::Draining,
        ModelState::Unloading => ResidencyState::Unloading,
        ModelState::WaitingForMemory => ResidencyState::WaitingForMemory,
        ModelState::Failed => ResidencyState::Failed,
    }
}

/// The histogram of the gaps between requests; `None`: there is none, or it contradicts itself. Adaptive residency then
/// does without it.
fn arrivals(raw: &RawModel) -> Option<ArrivalHistogram> {
    let count = exact(raw.gap_count?)?;
    let mut buckets = Vec::with_capacity(raw.gaps.len());
    for (bound, value) in &raw.gaps {
        buckets.push((*bound, exact(*value)?));
    }
    buckets.sort_unstable();

    let is_ascending = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
    let is_within_count = buckets.last().is_none_or(|(_, last)| *last <= count);
    (is_ascending && is_within_count).then_some(ArrivalHistogram { buckets, count })
}

fn value(values: &BTreeMap<&'static str, f64>, family: &'static str) -> Result<f64, ImplausibleSample> {
    values.get(family).copied().ok_or(ImplausibleSample::Missing(family))
}

fn whole(values: &BTreeMap<&'static str, f64>, family: &'static str) -> Result<u64, ImplausibleSample> {
    let value = value(values, family)?;
    exact(value).ok_or(ImplausibleSample::NotWhole { family, value })
}

/// The value as a whole number, where it is one that a metric carries exactly.
fn exact(value: f64) -> Option<u64> {
    ((0.0..=EXACT_MAX).contains(&value) && value.fract() == 0.0).then_some(value as u64)
}

fn seconds(values: &BTreeMap<&'static str, f64>, family: &'static str) -> Result<Duration, ImplausibleSample> {
    let value = value(values, family)?;
    Duration::try_from_secs_f64(value).map_err(|_| ImplausibleSample::NotATime { family, value })
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
    fn the_core_answers_questions_about_a_state_as_the_contract_does() {
        for state in ModelState::ALL {
            let of_core = residency_state(state);
            assert_eq!(of_core.is_loaded(), state.is_loaded(), "{state:?}");
            assert_eq!(of_core.holds_memory(), state.holds_memory(), "{state:?}");
            assert_eq!(of_core.has_measured_memory(), state.has_measured_memory(), "{state:?}");
            assert_eq!(of_core.is_leaving(), state.is_leaving(), "{state:?}");
        }
    }

    #[test]
    fn a_server_with_one_model_on_one_gpu() {
        let sample = ServerSample::read(GOOD).unwrap();
        assert!(sample.problems.is_empty(), "{:?}", sample.problems);

        let model = &sample.models["a"];
        assert_eq!((model.state, model.generation, model.vram_bytes), (ResidencyState::Ready, 3, 2 << 30));
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
        let sample = ServerSample::read(&text).unwrap();
        assert_eq!(
            (sample.models["a"].state, sample.models["a"].vram_bytes),
            (ResidencyState::Unloaded, (2 << 30) + 1)
        );
    }

    #[test]
    fn an_implausible_model_or_gpu_is_left_out_and_named() {
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
            let sample = ServerSample::read(&GOOD.replace(good, bad)).unwrap();
            assert!(sample.problems.iter().any(|p| p.contains(problem)), "{problem}: {:?}", sample.problems);
            assert!(sample.models.is_empty() || sample.gpus.is_empty());
        }
    }

    #[test]
    fn a_name_that_cannot_be_printed_is_refused() {
        for name in ["\u{1b}]0;owned\u{7}", "a\u{202e}b", "a\\nWARN all is well", &"a".repeat(201)] {
            let renamed = |text: &str| text.replace("model=\"a\"", &format!("model=\"{name}\""));
            assert_eq!(ServerSample::read(&renamed(GOOD)), Err(SampleError::NoName), "{name:?}");
            let both = ServerSample::read(&format!("{GOOD}{}", renamed(GOOD))).unwrap();
            assert_eq!(both.models.keys().collect::<Vec<_>>(), ["a"], "{name:?}");
            assert!(both.problems[0].contains("its name must have at most 200 characters"), "{:?}", both.problems);
        }

        let gpu = GOOD.replace("GPU-1", "GPU-\u{1b}[5m");
        let sample = ServerSample::read(&gpu).unwrap();
        assert!(sample.gpus.is_empty() && sample.models["a"].gpu.is_none(), "{sample:?}");

        let state = GOOD.replace("state=\"ready\"} 1", &format!("state=\"\u{9b}2J{}\"}} 1", "x".repeat(7000)));
        let problems = ServerSample::read(&state).unwrap().problems;
        assert!(problems[0].contains("`�2Jxxx") && problems[0].chars().count() < 200, "{problems:?}");
    }

    /// Every model of the server is implausible.
    #[test]
    fn many_problems_are_reported_in_a_few_lines() {
        let line = |n| format!("hush_model_generation{{model=\"{}{n}\"}} NaN\n", "b".repeat(190));
        let sample = ServerSample::read(&(0..999).map(line).collect::<String>()).unwrap();
        assert_eq!(sample.problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(sample.problems[PROBLEMS_MAX], "and 989 more");
        assert!(sample.problems.iter().map(String::len).sum::<usize>() < 4000, "{:?}", sample.problems);
    }

    proptest::proptest! {
        #[test]
        fn names_and_problems_can_be_printed_whatever_a_server_reports(label in ".{0,250}", value in "[0-9NaInf.e+-]{1,9}") {
            let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let text = format!("{GOOD}hush_model_generation{{model=\"{label}\",gpu_uuid=\"{label}\"}} {value}\n\
                                hush_gpu_memory_used_bytes{{gpu_uuid=\"{label}\"}} {value}\n\
                                hush_model_state{{model=\"x\",state=\"{label}\"}} 1\n");

            if let Ok(sample) = ServerSample::read(&text) {
                let names = sample.models.keys().map(String::as_str).chain(sample.gpus.keys().map(GpuId::as_str));
                for text in names.chain(sample.problems.iter().map(String::as_str)) {
                    proptest::prop_assert!(text.chars().all(is_printable) && text.chars().count() <= 300, "{text:?}");
                }
            }
        }
    }

    #[test]
    fn metrics_of_another_program_are_refused() {
        assert_eq!(ServerSample::read("up 1\n"), Err(SampleError::NoModel));
        assert_eq!(ServerSample::read("hush_gpu_up 1\n"), Err(SampleError::NoModel));
        let many: String = (0..2000).map(|n| format!("hush_model_generation{{model=\"{n}\"}} 1\n")).collect();
        assert_eq!(ServerSample::read(&many), Err(SampleError::TooMany));
        assert!(matches!(ServerSample::read("hush_model_generation{model=\"a\" 1\n"), Err(SampleError::Malformed(_))));
    }
}
