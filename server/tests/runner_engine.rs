//! The real engine in a real runner: the bundled model is installed, loaded, asked, and gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, process};

use hush_contract::UnloadReason;
use hush_listener::spool::Spooled;
use hush_server::audio::{self, DecodeOptions, Pcm};
use hush_server::job::{JobError, JobOutcome, JobTask};
use hush_server::metrics::ServerMetrics;
use hush_server::residency::{LifecycleSettings, SpeechJobs, SpeechModelSettings, SpeechModels, UnloadCommand};
use hush_server::runner::child::{self, PARENT_VARIABLE};
use hush_server::runner::wire::LoadSpec;
use hush_server::runner::{EngineBackend, RunnerSettings};
use hush_whisper::{InstallOptions, Precision, TranscribeOptions, install};
use tokio::sync::mpsc;

#[test]
fn runner_child() {
    if env::var_os(PARENT_VARIABLE).is_some() {
        let _ = child::main::<EngineBackend>();
        process::exit(1);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read_wav(name: &str) -> Pcm {
    let file = File::open(root().join("tests/fixtures/audio").join(name)).unwrap();
    audio::decode(&Spooled::from_file(file).unwrap(), None, &DecodeOptions::default(), &|| true).unwrap()
}

fn start(model_dir: PathBuf, library: PathBuf) -> SpeechModels {
    let (device, threads) = ("cpu".to_owned(), Some(2));
    let spec = LoadSpec { model_dir, device, threads, prepack: false, max_batch: 8, memory_limit_bytes: None };
    let lifecycle = LifecycleSettings { concurrency: NonZeroUsize::new(8).unwrap(), ..LifecycleSettings::default() };
    let model = SpeechModelSettings { name: "tiny".to_owned(), spec, precision: None, lifecycle, account: None };
    let args = ["--exact", "runner_child", "--nocapture", "--test-threads=1", "-q"].map(Into::into).to_vec();
    let env = vec![("ORT_DYLIB_PATH".into(), library.into())];
    let runners = RunnerSettings { env, ..RunnerSettings::this_program(args) };
    SpeechModels::start(vec![model], runners, None, &ServerMetrics::new().unwrap().residency).unwrap()
}

fn library() -> PathBuf {
    env::var_os("ORT_DYLIB_PATH").map_or_else(|| root().join(".hush/lib/libonnxruntime.so"), PathBuf::from)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_becomes_text_in_a_child_process() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        InstallOptions { name: "tiny".to_owned(), precision: Precision::Int8, source_label: "bundled".to_owned() };
    let checkpoint = root().join("tests/fixtures/model/whisper-hush-tiny");
    let model_dir = install(&checkpoint, dir.path(), &options, &mut |_| {}).unwrap();
    let models = start(model_dir, library());
    let model = models.default_model();

    let parity = fs::read_to_string(root().join("tests/fixtures/parity/en-1.json")).unwrap();
    let parity: serde_json::Value = serde_json::from_str(&parity).unwrap();
    let expected = parity["greedy"]["text"].as_str().unwrap_or_else(|| panic!("no text in {parity}")).trim();
    let mut pids = Vec::new();
    for _ in 0..3 {
        let asked = Instant::now();
        let (sender, mut receiver) = mpsc::channel(64);
        let work = JobTask::Transcribe(TranscribeOptions::default());
        let outcome = model.run(read_wav("en-1.wav"), work, sender, None).await.unwrap();
        let mut text = String::new();
        while let Some(segment) = receiver.recv().await {
            text.push_str(&segment.text);
        }
        println!("unloaded -> text: {:?}", asked.elapsed());
        assert_eq!(text.trim(), expected);
        assert!(matches!(outcome, JobOutcome::Transcribed(transcript) if transcript.language == "en"));
        let klingon = TranscribeOptions { language: Some("klingon".to_owned()), ..TranscribeOptions::default() };
        let refused = model.gather(read_wav("en-1.wav"), JobTask::Transcribe(klingon), None).await;
        assert!(matches!(refused, Err(JobError::Invalid(_))), "{refused:?}");
        pids.push(model.snapshot().runner_pid);
        let asked = Instant::now();
        model.unload(UnloadCommand::now(UnloadReason::Manual)).await.unwrap();
        println!("unload, request -> reaped: {:?}", asked.elapsed());
    }
    pids.dedup();
    assert_eq!(pids.len(), 3);

    // Many at once, of which some leave.
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..12 {
        let model = model.clone();
        requests.spawn(async move {
            let request = model.gather(read_wav("en-1.wav"), JobTask::Transcribe(TranscribeOptions::default()), None);
            if number % 3 == 2 {
                let _ = tokio::time::timeout(Duration::from_millis(20 * number), request).await;
                return None;
            }
            let (_, segments) = request.await.unwrap();
            Some(segments.into_iter().map(|segment| segment.text).collect::<String>())
        });
    }
    let texts = requests.join_all().await;
    assert_eq!(texts.iter().flatten().count(), 8);
    assert!(texts.iter().flatten().all(|text| text.trim() == expected), "{texts:?}");
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("libonnxruntime"), "the server never maps it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let work = || JobTask::Transcribe(TranscribeOptions::default());
    let models = start(dir.path().join("no-such-model"), library());
    let error = models.default_model().gather(read_wav("en-1.wav"), work(), None).await.unwrap_err().to_string();
    assert!(error.contains("no-such-model"), "{error}");
    let models = start(dir.path().to_owned(), dir.path().join("no-such-library.so"));
    let error = models.default_model().gather(read_wav("en-1.wav"), work(), None).await.unwrap_err().to_string();
    assert!(error.contains("no-such-library.so"), "{error}");
}
