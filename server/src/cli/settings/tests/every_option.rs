//! Every option of `serve`: its default, and its variable.

#![allow(clippy::needless_update, reason = "an option that is added to a group needs no line here")]

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::cli::values::{
    AsrEngine, DeviceChoice, EncoderContextWord, LogFormat, Percent, PrecisionChoice, PrecisionWord, ResidencyChoice,
};
use crate::gpu::{CudaDevice, GpuRef};
use hush_access::ReviewSettings;

const EVERY_VARIABLE: [(&str, &str); 62] = [
    ("HUSH_MODEL", "tiny"),
    ("HUSH_MODELS_DIR", "/m"),
    ("HUSH_INSTALL_MISSING", "false"),
    ("HUSH_WEB_UI", "false"),
    ("HUSH_LISTEN", ":8000"),
    ("HUSH_OPS_LISTEN", "localhost:8001"),
    ("HUSH_RESIDENCY", "on-demand"),
    ("HUSH_IDLE_TIMEOUT", "90"),
    ("HUSH_SPARE_RUNNER", "1"),
    ("HUSH_LOAD_TIMEOUT", "1m"),
    ("HUSH_STALL_TIMEOUT", "10s"),
    ("HUSH_BUSY_TIMEOUT", "1h"),
    ("HUSH_DRAIN_TIMEOUT", "0"),
    ("HUSH_MAX_QUEUE", "7"),
    ("HUSH_MAX_BATCH", "3"),
    ("HUSH_MAX_UPLOAD", "1MiB"),
    ("HUSH_MAX_AUDIO_DURATION", "2h"),
    ("HUSH_MAX_DECODED", "1GiB"),
    ("HUSH_MAX_SPOOL", "2GiB"),
    ("HUSH_MIN_UPLOAD_RATE", "0"),
    ("HUSH_MAX_CONNECTIONS", "9"),
    ("HUSH_SPOOL_MEMORY_TOTAL", "1MiB"),
    ("HUSH_SPOOL_DIR", "/spool"),
    ("HUSH_CHECK_CONFIG", "true"),
    ("HUSH_DEFAULT_ALIAS", "a, b"),
    ("HUSH_SERVE_INSTALLED", "yes"),
    ("HUSH_MAX_LOADED", "2"),
    ("HUSH_SPOOL_MEMORY", "0"),
    ("HUSH_ASR_ENGINE", "faster_whisper"),
    ("HUSH_COLD_HOLD", "10s"),
    ("HUSH_NVML_LIB", "/nvml.so"),
    ("HUSH_GPU_SAMPLE_INTERVAL", "200ms"),
    ("HUSH_HEADROOM", "1GiB"),
    ("HUSH_RECLAIM_TIMEOUT", "2s"),
    ("HUSH_MEMORY_RECLAIMER", "95%"),
    ("HUSH_ACCOUNT_GPU", "1"),
    ("HUSH_TLS_CERT", "/tls.crt"),
    ("HUSH_TLS_KEY", "/tls.key"),
    ("HUSH_OPS_TLS_CERT", "/ops.crt"),
    ("HUSH_OPS_TLS_KEY", "/ops.key"),
    ("HUSH_API_KEYS_FILE", "/keys"),
    ("HUSH_ADMIN_TOKEN_FILE", "/tokens"),
    ("HUSH_ADMIN_TOKEN_REVIEW", "true"),
    ("HUSH_ADMIN_ACCOUNT", "hush:controller, ops:admin"),
    ("HUSH_ADMIN_AUDIENCE", "speech"),
    ("HUSH_POD_NAMESPACE", "media"),
    ("HUSH_POD_UID", "0b8a-1"),
    ("HUSH_KUBERNETES_API", "https://10.0.0.1:6443"),
    ("HUSH_KUBERNETES_CA", "/ca.crt"),
    ("HUSH_KUBERNETES_TOKEN", "/token"),
    ("HUSH_CORS_ORIGIN", "https://a.example, http://localhost:5173/"),
    ("HUSH_DEVICE", "cuda:1"),
    ("HUSH_PRECISION", "fp16"),
    ("HUSH_THREADS", "3"),
    ("HUSH_ORT_LIB", "/o.so"),
    ("HUSH_FFMPEG", "/f"),
    ("HUSH_FALLBACK_TOKENS", "0"),
    ("HUSH_FALLBACK_TIME", "5s"),
    ("HUSH_ENCODER_CONTEXT", "full"),
    ("HUSH_VAD_MODEL", "/m.onnx"),
    ("HUSH_LOG_FORMAT", "json"),
    ("HUSH_LOG_LEVEL", "debug"),
];

fn default_limits(settings: &ServeSettings) -> LimitSettings {
    LimitSettings {
        max_audio: Duration::from_secs(6 * 3600),
        max_decoded_bytes: 4 << 30,
        max_spool_bytes: 16 << 30,
        spool_memory_total_bytes: 128 << 20,
        least_upload_bytes_per_second: 1 << 10,
        max_connections: 1024,
        ..settings.limits.clone()
    }
}

fn default_memory(settings: &ServeSettings) -> MemorySettings {
    MemorySettings {
        nvml_lib: None,
        sample_interval: Duration::from_secs(1),
        headroom_bytes: 256 << 20,
        reclaim_timeout: Duration::from_secs(5),
        reclaimer: Percent(None),
        account_gpu: None,
        ..settings.memory.clone()
    }
}

fn default_engine(settings: &ServeSettings) -> EngineSettings {
    EngineSettings {
        device: DeviceChoice::Auto,
        precision: PrecisionChoice::Auto,
        threads: None,
        ort_lib: None,
        vad_model: None,
        ffmpeg: None,
        fallback: FallbackSettings { tokens: Some(2_400), time: Some(Duration::from_secs(20)) },
        encoder_context: EncoderContextWord::Auto,
        ..settings.engine.clone()
    }
}

#[test]
fn defaults() {
    let settings = resolved(&[], &[]);

    let expected = ServeSettings {
        check_config: false,
        default_aliases: ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe"]
            .map(str::to_owned)
            .to_vec(),
        serve_installed: true,
        max_loaded: 0,
        overrides: BTreeMap::new(),
        models: vec![],
        store: StoreSettings { models_dir: "/home/u/.local/share/hush/models".into() },
        config: None,
        install_missing: true,
        web_ui: true,
        listen: "0.0.0.0:9000".parse().unwrap(),
        ops_listen: "127.0.0.1:9001".parse().unwrap(),
        cors_origins: Vec::new(),
        residency: ResidencyChoice::Idle,
        idle_timeout: Some(Duration::from_secs(300)),
        spare_runner: false,
        load_timeout: Duration::from_secs(300),
        stall_timeout: Duration::from_secs(120),
        busy_timeout: None,
        drain_timeout: Duration::from_secs(30),
        max_queue: 256,
        max_batch: 8,
        max_upload_bytes: 4 << 30,
        limits: default_limits(&settings),
        spool_dir: None,
        spool_memory_bytes: 1 << 20,
        asr_engine: AsrEngine::OpenaiWhisper,
        cold_hold: Duration::from_secs(60),
        memory: default_memory(&settings),
        security: SecuritySettings::default(),
        engine: default_engine(&settings),
        log: LogSettings { format: LogFormat::Text, level: "info".into() },
        legacy: vec![],
        ..settings.clone()
    };

    assert_eq!(settings, expected);
}

fn given_limits(settings: &ServeSettings) -> LimitSettings {
    LimitSettings {
        max_audio: Duration::from_secs(2 * 3600),
        max_decoded_bytes: 1 << 30,
        max_spool_bytes: 2 << 30,
        spool_memory_total_bytes: 1 << 20,
        least_upload_bytes_per_second: 0,
        max_connections: 9,
        ..settings.limits.clone()
    }
}

fn given_memory(settings: &ServeSettings) -> MemorySettings {
    MemorySettings {
        nvml_lib: Some("/nvml.so".into()),
        sample_interval: Duration::from_millis(200),
        headroom_bytes: 1 << 30,
        reclaim_timeout: Duration::from_secs(2),
        reclaimer: Percent(Some(95)),
        account_gpu: Some(GpuRef::Index(1)),
        ..settings.memory.clone()
    }
}

fn given_engine(settings: &ServeSettings) -> EngineSettings {
    EngineSettings {
        device: DeviceChoice::Cuda(CudaDevice::Index(1)),
        precision: PrecisionChoice::Exactly(PrecisionWord::Fp16),
        threads: Some(3),
        ort_lib: Some("/o.so".into()),
        ffmpeg: Some("/f".into()),
        vad_model: Some("/m.onnx".into()),
        fallback: FallbackSettings { tokens: None, time: Some(Duration::from_secs(5)) },
        encoder_context: EncoderContextWord::Full,
        ..settings.engine.clone()
    }
}

fn given_security() -> SecuritySettings {
    SecuritySettings {
        tls: Some(TlsFiles { certificate: "/tls.crt".into(), key: "/tls.key".into() }),
        ops_tls: Some(TlsFiles { certificate: "/ops.crt".into(), key: "/ops.key".into() }),
        api_keys_file: Some("/keys".into()),
        admin_token_file: Some("/tokens".into()),
        admin_token_review: Some(ReviewSettings {
            api: "https://10.0.0.1:6443".parse().unwrap(),
            ca_file: "/ca.crt".into(),
            token_file: "/token".into(),
            audience: "speech".to_owned(),
            pod_uid: Some("0b8a-1".to_owned()),
            accounts: vec!["hush:controller".parse().unwrap(), "ops:admin".parse().unwrap()],
            timeout: Duration::from_secs(5),
            remember: Duration::from_secs(10),
            remember_refusal: Duration::from_secs(2),
        }),
    }
}

#[test]
fn every_hush_variable_reaches_its_setting() {
    let settings = resolved(&[], &EVERY_VARIABLE);

    let expected = ServeSettings {
        check_config: true,
        default_aliases: vec!["a".into(), "b".into()],
        serve_installed: true,
        max_loaded: 2,
        overrides: BTreeMap::new(),
        models: vec!["tiny".into()],
        store: StoreSettings { models_dir: "/m".into() },
        config: None,
        install_missing: false,
        web_ui: false,
        listen: "0.0.0.0:8000".parse().unwrap(),
        ops_listen: "127.0.0.1:8001".parse().unwrap(),
        cors_origins: vec!["https://a.example".parse().unwrap(), "http://localhost:5173".parse().unwrap()],
        residency: ResidencyChoice::OnDemand,
        idle_timeout: Some(Duration::from_secs(90)),
        spare_runner: true,
        load_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(10),
        busy_timeout: Some(Duration::from_secs(3600)),
        drain_timeout: Duration::ZERO,
        max_queue: 7,
        max_batch: 3,
        max_upload_bytes: 1 << 20,
        limits: given_limits(&settings),
        spool_dir: Some("/spool".into()),
        spool_memory_bytes: 0,
        asr_engine: AsrEngine::FasterWhisper,
        cold_hold: Duration::from_secs(10),
        memory: given_memory(&settings),
        security: given_security(),
        engine: given_engine(&settings),
        log: LogSettings { format: LogFormat::Json, level: "debug".into() },
        legacy: vec![],
        ..settings.clone()
    };

    assert_eq!(settings, expected);
}
