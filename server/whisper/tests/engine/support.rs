//! The installed model, the recordings and the reference values.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use hush_whisper::{
    Engine, EngineDevice, EngineOptions, InstallOptions, ModelDir, Precision, Segment, TranscriptSink, cuda, install,
    runtime,
};
use symphonia::core::{
    codecs::audio::AudioDecoderOptions,
    formats::{FormatOptions, TrackType, probe::Hint},
    io::MediaSourceStream,
    meta::MetadataOptions,
};
use tempfile::TempDir;

/// The root of the repository. `HUSH_TEST_ROOT` sets it on a machine that did not build the tests.
pub fn root() -> PathBuf {
    env::var_os("HUSH_TEST_ROOT").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), PathBuf::from)
}

pub fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

/// The bundled model, installed once per test program.
pub fn model(precision: Precision) -> ModelDir {
    static MODELS: OnceLock<(TempDir, Vec<(Precision, PathBuf)>)> = OnceLock::new();

    let (_, installed) = MODELS.get_or_init(|| {
        let models = tempfile::tempdir().unwrap();
        let install = |precision: Precision| {
            let options = InstallOptions { name: "tiny".into(), precision, source_label: "bundled".into() };
            install(&fixture("model/whisper-hush-tiny"), models.path(), &options, &mut |_| ()).unwrap()
        };
        let installed = Precision::ALL.map(|precision| (precision, install(precision))).to_vec();
        (models, installed)
    });

    let (_, path) = installed.iter().find(|(installed, _)| *installed == precision).unwrap();

    ModelDir::open(path).unwrap()
}

pub fn engine(precision: Precision) -> Engine {
    batched(precision, 1)
}

pub fn start_runtime() {
    let library = match env::var_os(runtime::PATH_VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => root().join(".hush/lib/libonnxruntime.so"),
    };
    runtime::init(&library).unwrap_or_else(|error| panic!("{error}; `scripts/fetch-onnxruntime` fetches it"));
}

/// An engine that holds so many windows at the same time.
pub fn batched(precision: Precision, max_batch: usize) -> Engine {
    start_runtime();
    let (device, precision) = (device(), on_device(precision));
    cuda::prepare(device, precision).unwrap_or_else(|error| panic!("{error}"));

    // One thread, because the tests run in parallel.
    let options =
        EngineOptions { device, threads: 1, prepack: false, max_batch, memory_limit_bytes: None, cuda_graphs: true };
    Engine::load(&model(precision), &options).unwrap()
}

/// The precision that a test for `precision` uses: only fp16 runs on a GPU.
pub fn on_device(precision: Precision) -> Precision {
    match device() {
        EngineDevice::Cpu => precision,
        EngineDevice::Cuda { .. } => Precision::Fp16,
    }
}

/// `HUSH_TEST_CUDA=N` runs the engine's tests on that GPU; see `make test-gpu`.
fn device() -> EngineDevice {
    match env::var("HUSH_TEST_CUDA") {
        Ok(index) => EngineDevice::Cuda { index: index.parse().unwrap() },
        Err(_) => EngineDevice::Cpu,
    }
}

/// Samples of a 16 kHz mono recording.
pub fn audio(path: &str) -> Vec<f32> {
    let file = fs::File::open(fixture(path)).unwrap();
    let stream = MediaSourceStream::new(Box::new(file), Default::default());
    let (format_options, metadata_options) = (FormatOptions::default(), MetadataOptions::default());
    let mut format =
        symphonia::default::get_probe().probe(&Hint::new(), stream, format_options, metadata_options).unwrap();
    let track = format.default_track(TrackType::Audio).unwrap();
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(track.codec_params.as_ref().unwrap().audio().unwrap(), &AudioDecoderOptions::default())
        .unwrap();
    let (mut samples, mut packet_samples) = (Vec::new(), Vec::new());

    while let Some(packet) = format.next_packet().unwrap() {
        decoder.decode(&packet).unwrap().copy_to_vec_interleaved::<f32>(&mut packet_samples);
        samples.extend_from_slice(&packet_samples);
    }

    samples
}

pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(fixture(path)).unwrap()).unwrap()
}

/// A NumPy array of f32: its shape and values.
pub fn array(path: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(fixture(path)).unwrap();
    let header_end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..header_end]).unwrap();
    assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{header}");

    let shape = header.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let shape = shape.split(',').filter_map(|side| side.trim().parse().ok()).collect();
    let values = bytes[header_end..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();

    (shape, values)
}

/// A recording of `audio` in any of the formats.
pub fn recording(name: &str) -> Vec<f32> {
    let file = ["wav", "flac"].map(|kind| format!("audio/{name}.{kind}"));
    audio(file.iter().find(|file| fixture(file).exists()).unwrap())
}

/// The reference's segments of a recording in the form in which they leave the engine: segments without text are left out,
/// no time is after the end, and windows of digital silence have no segments.
pub fn expected_segments(transcript: &serde_json::Value, samples: &[f32]) -> Vec<serde_json::Value> {
    let end = (samples.len() / 16) as f64 / 1000.0;
    let is_silent = |seek: u64| samples[seek as usize * 160..].iter().take(480_000).all(|sample| sample.abs() < 1e-4);
    let seconds = |value: &serde_json::Value| value.as_f64().unwrap();
    let mut kept = Vec::new();

    for segment in transcript["segments"].as_array().unwrap() {
        let mut segment = segment.clone();
        if is_silent(segment["seek"].as_u64().unwrap())
            || segment["text"].as_str().unwrap().trim().is_empty()
            || seconds(&segment["start"]) >= end
        {
            continue;
        }

        let (mut from, mut to) = (seconds(&segment["start"]), seconds(&segment["end"]));
        for word in segment["words"].as_array_mut().into_iter().flatten() {
            for key in ["start", "end"] {
                word[key] = seconds(&word[key]).min(end).into();
            }
            from = from.min(seconds(&word["start"]));
            to = to.max(seconds(&word["end"]));
        }

        segment["start"] = from.into();
        segment["end"] = to.min(end).into();
        segment["id"] = kept.len().into();
        kept.push(segment);
    }

    kept
}

/// The names of all recordings with reference transcripts.
pub fn recordings() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(fixture("parity"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().unwrap().strip_suffix(".json").map(str::to_owned))
        .filter(|name| !name.contains('.'))
        .collect();
    names.sort();
    assert!(names.len() >= 20, "{names:?}");

    names
}

/// Collects what the engine sends, and cancels the request if the test wants it.
#[derive(Default)]
pub struct CollectedTranscript {
    pub segments: Vec<Segment>,
    pub progress: Vec<(f64, f64)>,
    pub first_tokens: usize,
    /// Number of segments at each report of progress.
    pub segments_at_progress: Vec<usize>,
    pub keep_going_calls: usize,
    /// `keep_going` returns `false` at this call.
    pub stop_at: Option<usize>,
}

impl TranscriptSink for CollectedTranscript {
    fn segment(&mut self, segment: Segment) {
        self.segments.push(segment);
    }

    fn first_token(&mut self, timings: hush_whisper::FirstToken) {
        assert!(timings.mel_seconds > 0.0 && timings.encode_seconds > 0.0 && timings.prefill_seconds > 0.0);
        assert!(self.segments.is_empty());
        self.first_tokens += 1;
    }

    fn progress(&mut self, done_seconds: f64, total_seconds: f64) {
        self.progress.push((done_seconds, total_seconds));
        self.segments_at_progress.push(self.segments.len());
    }

    fn keep_going(&mut self) -> bool {
        self.keep_going_calls += 1;
        self.stop_at.is_none_or(|stop| self.keep_going_calls < stop)
    }
}

impl CollectedTranscript {
    pub fn text(&self) -> String {
        self.segments.iter().map(|segment| segment.text.as_str()).collect()
    }
}
