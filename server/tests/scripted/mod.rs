//! A real runner process with a scripted engine: the test executable runs itself again. What the engine does is in
//! the model's directory name (for loads) and in the prompt (for work), as words `name` or `name=value`.

#![allow(dead_code, reason = "each test executable uses its part")]
#![allow(clippy::unwrap_used, reason = "test support, though no test itself")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use hush_listener::spool::{Spool, SpoolOptions};
use hush_server::audio::{Pcm, decode_raw_s16le};
use hush_server::job::JobTask;
use hush_server::runner::child::{self, LoadedModel, RunnerBackend, WorkFailure};
use hush_server::runner::wire::LoadSpec;
use hush_server::runner::{RunnerSettings, child::PARENT_VARIABLE};
use hush_whisper::{
    FirstToken, LanguageProbability, PcmSource, Segment, TranscribeOptions, Transcript, TranscriptSink,
};
use rustix::process::{Pid, Signal, kill_process};

const START_MILLIS: &str = "HUSH_LOG_TEST_START_MILLIS";

/// The body of the test named `runner_child`: in a child it never returns.
pub fn child_entry() {
    if env::var_os(PARENT_VARIABLE).is_some() {
        let code = child::main::<ScriptedBackend>();
        process::exit(if code == process::ExitCode::SUCCESS { 0 } else { 1 });
    }
}

pub fn settings() -> RunnerSettings {
    let args = ["--exact", "runner_child", "--nocapture", "--test-threads=1", "-q"];
    RunnerSettings {
        stall_timeout: Duration::from_secs(10),
        load_timeout: Duration::from_secs(20),
        exit_timeout: Duration::from_secs(5),
        ..RunnerSettings::this_program(args.map(Into::into).to_vec())
    }
}

pub fn spec(script: &str) -> LoadSpec {
    let (model_dir, device) = (PathBuf::from(script), "cpu".to_owned());
    LoadSpec { model_dir, device, threads: None, prepack: false, max_batch: 1, memory_limit_bytes: None }
}

pub fn options(script: &str) -> TranscribeOptions {
    TranscribeOptions { initial_prompt: Some(script.to_owned()), ..TranscribeOptions::default() }
}

pub fn work(script: &str) -> JobTask {
    JobTask::Transcribe(options(script))
}

/// Seconds of audio whose samples count up, so that their sum tells whether all of them came, once each.
pub fn samples(seconds: usize) -> Vec<i16> {
    (0..seconds * 16_000).map(|n| (n % 7) as i16).collect()
}

pub fn audio(seconds: usize) -> Pcm {
    pcm(&samples(seconds))
}

pub fn pcm(samples: &[i16]) -> Pcm {
    let mut spool = Spool::new(SpoolOptions::default());
    spool.write(&samples.iter().flat_map(|sample| sample.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    decode_raw_s16le(spool.finish(), 24 * 3600).unwrap()
}

pub fn sum(samples: &[i16]) -> i64 {
    samples.iter().map(|sample| i64::from(*sample)).sum()
}

pub struct ScriptedBackend;

/// A loaded model whose load goes on for `load_rest` after jobs may begin, and then succeeds or fails.
pub struct ScriptedModel {
    load_rest: Duration,
    broken: bool,
}

fn word<'a>(script: &'a str, name: &str) -> Option<&'a str> {
    script.split_whitespace().find_map(|word| match word.split_once('=') {
        Some((key, value)) => (key == name).then_some(value),
        None => (word == name).then_some(""),
    })
}

fn millis(script: &str, name: &str) -> Duration {
    Duration::from_millis(word(script, name).map_or(0, |value| value.parse().unwrap()))
}

/// True for the first request with this path.
fn first_time(path: &str) -> bool {
    File::create_new(path).is_ok()
}

impl RunnerBackend for ScriptedBackend {
    type Model = ScriptedModel;

    fn start() -> Result<(Self, String), String> {
        thread::sleep(millis(&env::var(START_MILLIS).unwrap_or_default(), "sleep"));
        Ok((Self, "scripted".to_owned()))
    }

    fn load(&mut self, spec: &LoadSpec) -> Result<ScriptedModel, String> {
        let script = spec.model_dir.to_str().unwrap();
        thread::sleep(millis(script, "sleep"));
        match (word(script, "fail"), word(script, "fail_once"), word(script, "hang_once")) {
            (Some(_), ..) => Err("weights.bin is truncated".to_owned()),
            (_, Some(path), _) if first_time(path) => Err("the disk was away".to_owned()),
            _ if word(script, "full_once").is_some_and(first_time) => {
                Err("CUDA failure 2: out of memory ; GPU=0".to_owned())
            }
            (_, _, Some(path)) if first_time(path) => loop {
                thread::park();
            },
            _ => Ok(ScriptedModel {
                load_rest: millis(script, "load_rest"),
                broken: word(script, "broken").is_some() || word(script, "broken_once").is_some_and(first_time),
            }),
        }
    }
}

impl LoadedModel for ScriptedModel {
    fn wait_until_loaded(&self) -> Result<(), String> {
        thread::sleep(self.load_rest);
        if self.broken { Err("decoder.onnx is broken".to_owned()) } else { Ok(()) }
    }

    fn transcribe(
        &self,
        audio: &mut dyn PcmSource,
        options: &TranscribeOptions,
        sink: &mut dyn TranscriptSink,
    ) -> Result<Transcript, WorkFailure> {
        let script = options.initial_prompt.as_deref().unwrap_or_default();
        if word(script, "die").is_some() || word(script, "die_once").is_some_and(first_time) {
            kill(process::id(), Signal::KILL);
        }
        if self.broken {
            return Err(WorkFailure::Engine("there is no decoder".to_owned()));
        }
        if let Some(message) = word(script, "invalid") {
            return Err(WorkFailure::Invalid(message.to_owned()));
        }
        if word(script, "full").is_some() || word(script, "full_once").is_some_and(first_time) {
            let message = "BFCArena: Failed to allocate memory for requested buffer of size 1073741824";
            return Err(WorkFailure::of_engine(message.to_owned()));
        }
        if word(script, "engine").is_some() {
            return Err(WorkFailure::Engine("no".to_owned()));
        }
        let mut samples = vec![0.0; audio.len() as usize];
        let piece = word(script, "piece").map_or(48_000, |value| value.parse().unwrap());
        for (n, out) in samples.chunks_mut(piece).enumerate() {
            audio.read((n * piece) as u64, out).map_err(|error| WorkFailure::Engine(error.to_string()))?;
        }
        sink.first_token(FirstToken::default());
        let count = word(script, "segments").map_or(1, |value| value.parse().unwrap());
        for id in 0..count {
            // Many short tokens: cancellation and signs of life are per token.
            let until = Instant::now() + millis(script, "each");
            loop {
                if !sink.keep_going() {
                    return Err(WorkFailure::Cancelled);
                }
                if Instant::now() >= until {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
            let heard: f64 = samples.iter().map(|sample| f64::from(*sample) * 32_768.0).sum();
            sink.segment(Segment { id, ..segment(format!("{} {heard}", process::id())) });
            if word(script, "die_after").is_some_and(|after| after.parse() == Ok(id + 1)) {
                kill(process::id(), Signal::KILL);
            }
        }
        if word(script, "hang").is_some() || word(script, "hang_once").is_some_and(first_time) {
            loop {
                thread::park();
            }
        }
        let duration_seconds = samples.len() as f64 / 16e3;
        Ok(Transcript {
            language: "en".to_owned(),
            language_probability: None,
            duration_seconds,
            ..Transcript::default()
        })
    }

    fn detect_language(&self, audio: &mut dyn PcmSource) -> Result<Vec<LanguageProbability>, WorkFailure> {
        audio.read(0, &mut [0.0; 100]).map_err(|error| WorkFailure::Engine(error.to_string()))?;
        Ok(vec![LanguageProbability { code: "de".to_owned(), probability: 0.75 }])
    }
}

fn segment(text: String) -> Segment {
    Segment {
        id: 0,
        seek: 0,
        start_seconds: 0.0,
        end_seconds: 1.0,
        text,
        tokens: vec![1, 2],
        temperature: 0.0,
        avg_logprob: f64::NEG_INFINITY,
        compression_ratio: 1.0,
        no_speech_prob: f64::NAN,
        ..Segment::default()
    }
}

/// A process that is stopped stands still afterwards: its threads hear of it one after the other, and might still answer.
pub fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    while signal == Signal::STOP
        && fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|mut threads| {
            threads.any(|thread| {
                thread.is_ok_and(|thread| {
                    state(&thread.path().join("stat")).is_some_and(|state| !matches!(state, 'T' | 'Z'))
                })
            })
        })
    {
        thread::sleep(Duration::from_millis(1));
    }
}

/// State letter of a process; `None`: there is no such process, not even a zombie.
pub fn process_state(pid: u32) -> Option<char> {
    state(Path::new(&format!("/proc/{pid}/stat")))
}

fn state(stat: &Path) -> Option<char> {
    fs::read_to_string(stat).ok()?.rsplit_once(") ")?.1.chars().next()
}

/// Children of this process that ended and were not reaped.
pub fn zombies() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let children = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let pids = children.flat_map(|line| line.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>());
    pids.filter(|pid| process_state(*pid) == Some('Z')).collect()
}

/// Waits for a condition, with a deadline.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn flag(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}
