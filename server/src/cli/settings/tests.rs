use std::collections::BTreeMap;

use hush_whisper::VadOptions;

use super::*;
use crate::auth::ReviewSettings;
use crate::cli::values::{
    AsrEngine, DeviceChoice, LogFormat, OutputFormat, Percent, Precision, PrecisionChoice, Residency, TaskWord,
};
use crate::cli::{config, parse};
use crate::format::{Layout, Words};
use crate::gpu::{CudaDevice, GpuRef};

fn env(variables: &[(&str, &str)]) -> Env {
    [("HOME", "/home/u")].iter().chain(variables).copied().collect()
}

fn try_serve(argv: &[&str], variables: &[(&str, &str)]) -> Result<ServeSettings, SettingError> {
    let cli = parse([&["hush-server", "serve"], argv].concat()).expect("arguments parse");
    match resolve(cli, &env(variables))? {
        Settings::Serve(settings) => Ok(*settings),
        other => panic!("{other:?}"),
    }
}

/// The settings of `serve` without arguments.
fn with_file(env: &Env, file: &ConfigFile) -> Result<ServeSettings, SettingError> {
    serve(&parse(["hush-server", "serve"]).unwrap(), env, file)
}

fn settled(argv: &[&str], variables: &[(&str, &str)]) -> ServeSettings {
    try_serve(argv, variables).expect("settings")
}

#[test]
fn defaults() {
    let settings = settled(&[], &[]);
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
        residency: Residency::Idle,
        idle_timeout: Some(Duration::from_secs(300)),
        spare_runner: false,
        load_timeout: Duration::from_secs(300),
        stall_timeout: Duration::from_secs(120),
        busy_timeout: None,
        drain_timeout: Duration::from_secs(30),
        max_queue: 256,
        max_batch: 8,
        max_upload_bytes: 4 << 30,
        limits: LimitSettings {
            max_audio: Duration::from_secs(6 * 3600),
            max_decoded_bytes: 4 << 30,
            max_spool_bytes: 16 << 30,
            spool_memory_total_bytes: 128 << 20,
            least_upload_bytes_per_second: 1 << 10,
            max_connections: 1024,
        },
        spool_dir: None,
        spool_memory_bytes: 1 << 20,
        asr_engine: AsrEngine::OpenaiWhisper,
        cold_hold: Duration::from_secs(60),
        memory: MemorySettings {
            nvml_lib: None,
            sample_interval: Duration::from_secs(1),
            headroom_bytes: 256 << 20,
            reclaim_timeout: Duration::from_secs(5),
            reclaimer: Percent(None),
            account_gpu: None,
        },
        security_options: settings.security_options.clone(),
        security: SecuritySettings::default(),
        engine: EngineSettings {
            device: DeviceChoice::Auto,
            precision: PrecisionChoice::Auto,
            threads: None,
            ort_lib: None,
            vad_model: None,
            ffmpeg: None,
            fallback: FallbackSettings { tokens: Some(2_400), time: Some(Duration::from_secs(20)) },
        },
        log: LogSettings { format: LogFormat::Text, level: "info".into() },
        legacy: vec![],
    };
    assert_eq!(settings, expected);
}

#[test]
fn flag_beats_hush_beats_legacy() {
    let legacy = ("MODEL_IDLE_TIMEOUT", "60");
    let ours = ("HUSH_IDLE_TIMEOUT", "2m");
    assert_eq!(settled(&[], &[legacy]).idle_timeout, Some(Duration::from_secs(60)));
    assert_eq!(settled(&[], &[legacy, ours]).idle_timeout, Some(Duration::from_secs(120)));
    let all = settled(&["--idle-timeout", "3m"], &[legacy, ours]);
    assert_eq!(all.idle_timeout, Some(Duration::from_secs(180)));
    assert_eq!(all.legacy, vec![]);

    assert_eq!(settled(&[], &[("ASR_MODEL", "small")]).models, ["small"]);
    assert_eq!(settled(&[], &[("ASR_MODEL", "small"), ("HUSH_MODEL", "tiny, base")]).models, ["tiny", "base"]);
    assert_eq!(settled(&["--model", "a", "--model", "b"], &[("HUSH_MODEL", "tiny")]).models, ["a", "b"]);
}

#[test]
fn legacy_variables_work_and_are_reported() {
    let settings = settled(
        &[],
        &[
            ("ASR_MODEL", "large-v3"),
            ("ASR_MODEL_PATH", "/data/whisper"),
            ("ASR_DEVICE", "cuda"),
            ("ASR_QUANTIZATION", "float16"),
            ("MODEL_IDLE_TIMEOUT", "0"),
            ("ASR_ENGINE", "faster_whisper"),
        ],
    );
    assert_eq!(settings.models, ["large-v3"]);
    assert_eq!(settings.store.models_dir, PathBuf::from("/data/whisper"));
    assert_eq!(settings.engine.device, DeviceChoice::CUDA);
    assert_eq!(settings.engine.precision, PrecisionChoice::Exactly(Precision::Fp16));
    assert_eq!(settings.idle_timeout, None);
    assert_eq!(settings.asr_engine, AsrEngine::FasterWhisper);
    let mut used: Vec<_> = settings.legacy.iter().map(|used| used.variable).collect();
    used.sort_unstable();
    let all = ["ASR_DEVICE", "ASR_ENGINE", "ASR_MODEL", "ASR_MODEL_PATH", "ASR_QUANTIZATION", "MODEL_IDLE_TIMEOUT"];
    assert_eq!(used, all);
    let line = settings.legacy.iter().find(|used| used.variable == "ASR_DEVICE").unwrap().to_string();
    assert_eq!(line, "ASR_DEVICE=cuda is used for --device; its name here is HUSH_DEVICE");
}

#[test]
fn an_overridden_legacy_variable_is_not_even_read() {
    let settings = settled(&["--device", "cpu"], &[("ASR_DEVICE", "nonsense")]);
    assert_eq!(settings.engine.device, DeviceChoice::Cpu);
    assert_eq!(settings.legacy, vec![]);
}

#[test]
fn an_empty_variable_is_not_set() {
    let empty = [
        ("HUSH_LISTEN", ""),
        ("HUSH_IDLE_TIMEOUT", ""),
        ("HUSH_MODEL", ""),
        ("HUSH_MODELS_DIR", ""),
        ("ASR_MODEL", ""),
        ("ASR_MODEL_PATH", ""),
        ("ASR_DEVICE", ""),
        ("ASR_QUANTIZATION", ""),
        ("ASR_ENGINE", ""),
        ("MODEL_IDLE_TIMEOUT", ""),
        ("XDG_DATA_HOME", ""),
    ];
    assert_eq!(settled(&[], &empty), settled(&[], &[]));
    let behind = settled(&[], &[("HUSH_DEVICE", ""), ("ASR_DEVICE", "cpu")]);
    assert_eq!(behind.engine.device, DeviceChoice::Cpu);
}

#[test]
fn a_bad_variable_is_named_with_its_fix() {
    for (name, value, fix) in [
        ("HUSH_IDLE_TIMEOUT", "soon", "1h30m"),
        ("HUSH_LISTEN", "9000", "0.0.0.0:9000"),
        ("HUSH_DEVICE", "gpu", "cuda:N"),
        ("HUSH_PRECISION", "half", "fp16"),
        ("HUSH_MEMORY_RECLAIMER", "0.95", "95%"),
        ("HUSH_ACCOUNT_GPU", "first", "nvidia-smi -L"),
        ("HUSH_HEADROOM", "much", "4GiB"),
        ("HUSH_COLD_HOLD", "long", "1h30m"),
        ("HUSH_RESIDENCY", "lazy", "on-demand"),
        ("HUSH_MAX_UPLOAD", "big", "4GiB"),
        ("HUSH_MAX_QUEUE", "-1", "whole number"),
        ("HUSH_THREADS", "two", "whole number"),
        ("HUSH_SPARE_RUNNER", "perhaps", "true or false"),
        ("HUSH_INSTALL_MISSING", "perhaps", "true or false"),
        ("HUSH_WEB_UI", "perhaps", "true or false"),
        ("HUSH_ASR_ENGINE", "whisperx", "faster_whisper"),
        ("HUSH_BUSY_TIMEOUT", "long", "1h30m"),
        ("HUSH_ADMIN_TOKEN_REVIEW", "perhaps", "true or false"),
        ("HUSH_LOG_FORMAT", "xml", "json"),
        ("HUSH_LOG_LEVEL", "loud", "debug"),
        ("ASR_DEVICE", "gpu", "cuda or cpu"),
        ("ASR_QUANTIZATION", "fp16", "float16"),
        ("ASR_ENGINE", "whisperx", "faster_whisper"),
        ("MODEL_IDLE_TIMEOUT", "5m", "whole seconds"),
        ("MODEL_IDLE_TIMEOUT", "-1", "whole seconds"),
    ] {
        let error = try_serve(&[], &[(name, value)]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, SettingError::Variable { .. }), "{text}");
        assert!(text.contains(name) && text.contains(value) && text.contains(fix), "{text}");
    }
}

#[test]
fn a_variable_that_is_not_text() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = std::ffi::OsString::from_vec(vec![0xff]);
    let env: Env = [("HUSH_LISTEN".into(), bytes.clone()), ("HUSH_MODELS_DIR".into(), bytes.clone())]
        .into_iter()
        .collect::<Vec<(std::ffi::OsString, _)>>()
        .into_iter()
        .collect();
    assert!(with_file(&env, &ConfigFile::default()).unwrap_err().to_string().contains("HUSH_LISTEN"));
    let env: Env = [("HUSH_MODELS_DIR", bytes.clone())].into_iter().collect();
    assert_eq!(with_file(&env, &ConfigFile::default()).unwrap().store.models_dir, PathBuf::from(bytes));
}

#[test]
fn every_hush_variable_reaches_its_setting() {
    let settings = settled(
        &[],
        &[
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
            ("HUSH_VAD_MODEL", "/m.onnx"),
            ("HUSH_LOG_FORMAT", "json"),
            ("HUSH_LOG_LEVEL", "debug"),
        ],
    );
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
        residency: Residency::OnDemand,
        idle_timeout: Some(Duration::from_secs(90)),
        spare_runner: true,
        load_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(10),
        busy_timeout: Some(Duration::from_secs(3600)),
        drain_timeout: Duration::ZERO,
        max_queue: 7,
        max_batch: 3,
        max_upload_bytes: 1 << 20,
        limits: LimitSettings {
            max_audio: Duration::from_secs(2 * 3600),
            max_decoded_bytes: 1 << 30,
            max_spool_bytes: 2 << 30,
            spool_memory_total_bytes: 1 << 20,
            least_upload_bytes_per_second: 0,
            max_connections: 9,
        },
        spool_dir: Some("/spool".into()),
        spool_memory_bytes: 0,
        asr_engine: AsrEngine::FasterWhisper,
        cold_hold: Duration::from_secs(10),
        memory: MemorySettings {
            nvml_lib: Some("/nvml.so".into()),
            sample_interval: Duration::from_millis(200),
            headroom_bytes: 1 << 30,
            reclaim_timeout: Duration::from_secs(2),
            reclaimer: Percent(Some(95)),
            account_gpu: Some(GpuRef::Index(1)),
        },
        security_options: settings.security_options.clone(),
        security: SecuritySettings {
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
        },
        engine: EngineSettings {
            device: DeviceChoice::Cuda(CudaDevice::Index(1)),
            precision: PrecisionChoice::Exactly(Precision::Fp16),
            threads: Some(3),
            ort_lib: Some("/o.so".into()),
            ffmpeg: Some("/f".into()),
            vad_model: Some("/m.onnx".into()),
            fallback: FallbackSettings { tokens: None, time: Some(Duration::from_secs(5)) },
        },
        log: LogSettings { format: LogFormat::Json, level: "debug".into() },
        legacy: vec![],
    };
    assert_eq!(settings, expected);
}

#[test]
fn limits_that_cannot_be_kept_are_refused() {
    for (argv, words) in [
        (&["--max-upload", "2GiB", "--max-spool", "1GiB"][..], "--max-spool"),
        (&["--max-connections", "0"], "--max-connections"),
        (&["--max-audio-duration", "0"], "max-audio-duration"),
    ] {
        let error = try_serve(argv, &[]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(settled(&["--max-upload", "32GiB"], &[]).limits.max_spool_bytes, 32 << 30);
}

#[test]
fn the_models_folder() {
    let dir = |variables: &[(&str, &str)]| settled(&[], variables).store.models_dir;
    assert_eq!(dir(&[("XDG_DATA_HOME", "/xdg")]), PathBuf::from("/xdg/hush/models"));
    assert_eq!(dir(&[("XDG_DATA_HOME", "xdg")]), PathBuf::from("/home/u/.local/share/hush/models"));
    assert_eq!(dir(&[("ASR_MODEL_PATH", "/a"), ("XDG_DATA_HOME", "/xdg")]), PathBuf::from("/a"));
    assert_eq!(dir(&[("ASR_MODEL_PATH", "/a"), ("HUSH_MODELS_DIR", "/h")]), PathBuf::from("/h"));
    let error = with_file(&Env::default(), &ConfigFile::default()).unwrap_err().to_string();
    assert!(error.contains("HUSH_MODELS_DIR"), "{error}");
}

#[test]
fn combinations_that_cannot_work() {
    assert!(try_serve(&["--listen", ":9001"], &[]).unwrap_err().to_string().contains("--ops-listen"));
    assert!(try_serve(&["--listen", ":0", "--ops-listen", ":0"], &[]).is_ok());
    assert!(try_serve(&["--max-queue", "0"], &[]).is_err());
    assert!(try_serve(&["--max-batch", "0"], &[]).unwrap_err().to_string().contains("--max-batch"));
    assert!(try_serve(&[], &[("HUSH_MAX_BATCH", "257")]).is_err());
    assert!(try_serve(&["--load-timeout", "0"], &[]).is_err());
    assert!(try_serve(&["--gpu-sample-interval", "0"], &[]).is_err());
    let cli = parse(["hush-server", "install", "a", "b", "--name", "c"]).unwrap();
    assert!(resolve(cli, &env(&[])).unwrap_err().to_string().contains("--name"));
}

#[test]
fn cuda_takes_fp16_only() {
    let says = |error: SettingError, parts: &[&str]| {
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    let fix = ["fp16 only", "--precision fp16", "--device cpu"];
    for precision in ["int8", "fp32"] {
        let both = ["--device", "cuda:1", "--precision", precision];
        says(
            try_serve(&both, &[]).unwrap_err(),
            &[&fix[..], &[&format!("--precision {precision}"), "cuda:1"]].concat(),
        );
        says(transcription(&both, &[]).unwrap_err(), &fix);
        let cli = parse([&["hush-server", "install", "tiny"], &both[..]].concat()).unwrap();
        says(resolve(cli, &env(&[])).unwrap_err(), &fix);
    }
    let legacy = try_serve(&[], &[("ASR_DEVICE", "cuda"), ("ASR_QUANTIZATION", "int8")]).unwrap_err();
    says(legacy, &["ASR_QUANTIZATION=int8 is used for --precision", "ASR_DEVICE=cuda is used for --device"]);
    let of_file = |text: &str| with_file(&env(&[("HOME", "/h")]), &config::parse(text).unwrap());
    says(of_file("device: cuda\nprecision: int8\n").unwrap_err(), &fix);
    says(of_file("models:\n  - name: a\n    device: cuda\n    precision: fp32\n").unwrap_err(), &["model `a`", "fp32"]);
    says(of_file("device: cuda\nmodels:\n  - name: a\n    precision: int8\n").unwrap_err(), &["model `a`"]);
    for fine in [
        &["--device", "cuda", "--precision", "fp16"][..],
        &["--device", "cuda", "--precision", "auto"],
        &["--device", "auto", "--precision", "int8"],
        &["--device", "cpu", "--precision", "fp32"],
    ] {
        assert!(try_serve(fine, &[]).is_ok(), "{fine:?}");
    }
    assert!(of_file("device: cuda\nmodels:\n  - name: a\n    device: cpu\n    precision: int8\n").is_ok());
}

#[test]
fn a_runner_may_only_be_asked_whether_cuda_works() {
    let asked = |argv: &[&str]| resolve(parse([&["hush-server", "runner"], argv].concat()).unwrap(), &env(&[]));
    let Settings::ProbeCuda { library, index } = asked(&["probe-cuda", "/o.so", "1"]).unwrap() else { panic!() };
    assert_eq!((library, index), (PathBuf::from("/o.so"), 1));
    assert!(asked(&["probe-cuda", "/o.so"]).is_err());
    assert!(matches!(asked(&[]).unwrap(), Settings::Runner(_)));
}

#[test]
fn token_review_takes_the_api_server_of_the_pod() {
    let pod = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "6443")];
    let review = ["--admin-token-review", "--admin-account", "hush:controller"];
    let on = [&review[..], &["--pod-namespace", "media", "--pod-uid", "0b8a-1"]].concat();
    let review = settled(&on, &pod).security.admin_token_review.unwrap();
    assert_eq!(
        (review.api.to_string().as_str(), review.audience.as_str()),
        ("10.96.0.1:6443", "hush-server/media/0b8a-1")
    );
    assert_eq!(review.pod_uid.as_deref(), Some("0b8a-1"));
    let dir = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!((review.ca_file, review.token_file), (dir.join("ca.crt"), dir.join("token")));
    assert_eq!(settled(&["--admin-account", "hush:controller"], &pod).security, SecuritySettings::default());

    let refused = |argv: &[&str], variables: &[(&str, &str)]| try_serve(argv, variables).unwrap_err().to_string();
    assert!(refused(&on, &[]).contains("KUBERNETES_SERVICE_HOST"));
    assert!(refused(&["--admin-token-review"], &pod).contains("--admin-account"));
    let bad_port = [pod[0], ("KUBERNETES_SERVICE_PORT", "tcp")];
    assert!(refused(&on, &bad_port).contains("KUBERNETES_SERVICE_PORT"));
    let plain = [pod[0], ("HUSH_KUBERNETES_API", "http://10.96.0.1")];
    assert!(refused(&on, &plain).contains("https://"));
    let account = [pod[0], ("HUSH_ADMIN_TOKEN_REVIEW", "true"), ("HUSH_ADMIN_ACCOUNT", "controller")];
    assert!(refused(&[], &account).contains("namespace:name"));
    assert!(refused(&["--tls-cert", "/c"], &[]).contains("--tls-key"));
    assert!(refused(&[], &[("HUSH_OPS_TLS_KEY", "/k")]).contains("--ops-tls-cert"));
}

#[test]
fn a_server_that_reviews_tokens_must_know_for_which_server_they_are_made() {
    let pod = [("KUBERNETES_SERVICE_HOST", "10.96.0.1")];
    let on = ["--admin-token-review", "--admin-account", "hush:controller"];
    let refused = |more: &[&str]| try_serve(&[&on[..], more].concat(), &pod).unwrap_err().to_string();
    assert!(refused(&[]).contains("--pod-namespace"));
    assert!(refused(&["--pod-uid", "0b8a-1"]).contains("need each other"));
    assert!(refused(&["--pod-uid", "0b8a-1", "--pod-namespace", "a/b"]).contains("the namespace must be"));
    assert!(refused(&["--pod-uid", "$(POD_UID)", "--pod-namespace", "media"]).contains("the pod's UID must be"));

    let own = settled(&[&on[..], &["--admin-audience", "mine"]].concat(), &pod).security.admin_token_review.unwrap();
    assert_eq!((own.audience.as_str(), own.pod_uid), ("mine", None));
}

#[test]
fn install_settings() {
    let cli = parse(["hush-server", "install", "tiny", "--precision", "int8,fp32", "--force"]).unwrap();
    let Settings::Install(settings) = resolve(cli, &env(&[("HUSH_KEEP_DOWNLOAD", "yes")])).unwrap() else { panic!() };
    let exactly = |p| PrecisionChoice::Exactly(p);
    assert_eq!(settings.precisions, [exactly(Precision::Int8), exactly(Precision::Fp32)]);
    assert!(settings.force && settings.keep_download);
    let cli = parse(["hush-server", "install", "tiny"]).unwrap();
    let Settings::Install(settings) = resolve(cli, &env(&[("HUSH_PRECISION", "fp16")])).unwrap() else { panic!() };
    assert_eq!(settings.precisions, [exactly(Precision::Fp16)]);
}

#[test]
fn transcribe_settings() {
    let cli = parse(["hush-server", "transcribe", "a.wav", "b.wav", "--output", "srt", "--language", "de"]).unwrap();
    let variables = [("ASR_MODEL", "small"), ("HUSH_TASK", "translate"), ("HUSH_INITIAL_PROMPT", "Hush.")];
    let Settings::Transcribe(settings) = resolve(cli, &env(&variables)).unwrap() else { panic!() };
    assert_eq!(settings.files.len(), 2);
    assert_eq!((settings.output, settings.task), (OutputFormat::Srt, TaskWord::Translate));
    assert_eq!(settings.language.as_deref(), Some("de"));
    assert_eq!(settings.model.as_deref(), Some("small"));
    assert_eq!(settings.initial_prompt.as_deref(), Some("Hush."));
    assert_eq!(settings.search, SearchSettings::default());
}

#[test]
fn how_transcribe_searches() {
    let cli = parse(["hush-server", "transcribe", "a.wav", "--beam-size", "5", "--patience=1.5"]).unwrap();
    let variables = [("HUSH_LENGTH_PENALTY", "0.5"), ("HUSH_BEST_OF", "3"), ("HUSH_TEMPERATURE", "0")];
    let Settings::Transcribe(settings) = resolve(cli, &env(&variables)).unwrap() else { panic!() };
    let expected = SearchSettings {
        beam_size: Some(5),
        patience: Some(1.5),
        best_of: Some(3),
        length_penalty: Some(0.5),
        temperature: Some(0.0),
    };
    assert_eq!(settings.search, expected);
    let cli = parse(["hush-server", "transcribe", "a.wav"]).unwrap();
    let error = resolve(cli, &env(&[("HUSH_PATIENCE", "much")])).unwrap_err().to_string();
    assert!(error.contains("HUSH_PATIENCE"), "{error}");
}

#[test]
fn the_file_says_who_gets_in_and_what_memory_must_stay_free() {
    let text = "busyTimeout: 10m\ncoldHold: 5s\nheadroom: 1GiB\nmemoryReclaimer: 90%\ntlsCert: /c.pem\ntlsKey: /k.pem\n\
                apiKeysFile: /keys\nadminTokenFile: /token\nwebUi: false\n";
    let file = config::parse(text).unwrap();
    let settings = with_file(&env(&[("HUSH_HEADROOM", "2GiB"), ("HOME", "/h")]), &file).unwrap();
    assert_eq!((settings.busy_timeout, settings.cold_hold), (Some(Duration::from_secs(600)), Duration::from_secs(5)));
    assert_eq!(
        (settings.memory.headroom_bytes, settings.memory.reclaimer),
        (2 << 30, Percent(Some(90))),
        "a variable beats it"
    );
    let tls = TlsFiles { certificate: "/c.pem".into(), key: "/k.pem".into() };
    assert_eq!(settings.security.tls, Some(tls));
    assert_eq!(settings.security.api_keys_file, Some("/keys".into()));
    assert_eq!(settings.security.admin_token_file, Some("/token".into()));
    assert!(!settings.web_ui);
    let half = config::parse("opsTlsCert: /c.pem\n").unwrap();
    let error = with_file(&env(&[("HOME", "/h")]), &half).unwrap_err().to_string();
    assert!(error.contains("--ops-tls-key"), "{error}");
}

fn transcription(argv: &[&str], variables: &[(&str, &str)]) -> Result<TranscribeSettings, SettingError> {
    let cli = parse([&["hush-server", "transcribe", "a.wav"], argv].concat()).expect("arguments parse");
    match resolve(cli, &env(variables))? {
        Settings::Transcribe(settings) => Ok(*settings),
        other => panic!("{other:?}"),
    }
}

#[test]
fn subtitles_are_laid_out_as_asked() {
    let plain = transcription(&[], &[]).unwrap();
    assert_eq!((plain.words, plain.vad, plain.engine.vad_model), (Words::Without, None, None));
    let flags = ["--word-timestamps", "--max-line-width", "42", "--max-line-count", "2", "--vad-filter"];
    let settings = transcription(&flags, &[("HUSH_VAD_MODEL", "/m.onnx"), ("HUSH_HIGHLIGHT_WORDS", "yes")]).unwrap();
    let layout =
        Layout { highlight_words: true, max_line_width: Some(42), max_line_count: Some(2), max_words_per_line: None };
    assert_eq!(settings.words, Words::LaidOut(layout));
    assert_eq!(settings.vad, Some(VadOptions::default()));
    let parallel = Some(VadOptions { parallel: true, ..VadOptions::default() });
    assert_eq!(transcription(&["--vad-parallel"], &[]).unwrap().vad, parallel);
    assert_eq!(settings.engine.vad_model, Some("/m.onnx".into()));
    let by_variables =
        transcription(&[], &[("HUSH_WORD_TIMESTAMPS", "true"), ("HUSH_MAX_WORDS_PER_LINE", "3")]).unwrap();
    let layout = Layout { max_words_per_line: Some(3), ..Layout::default() };
    assert_eq!(by_variables.words, Words::LaidOut(layout));
}

#[test]
fn subtitles_of_words_need_words_and_room() {
    let refused = |argv: &[&str]| transcription(argv, &[]).unwrap_err().to_string();
    assert!(refused(&["--max-line-width", "42"]).contains("--word-timestamps"));
    assert!(refused(&["--highlight-words"]).contains("--word-timestamps"));
    assert!(refused(&["--word-timestamps", "--max-words-per-line", "0"]).contains("--max-words-per-line"));
}

#[test]
fn a_reload_compares_every_option_of_the_file() {
    let before = settled(&[], &[]);
    for known in config::file_options() {
        assert!(before.values().get(known.field()).is_some(), "{} is not compared", known.key);
    }

    let file = |text: &str| with_file(&env(&[]), &config::parse(text).unwrap()).unwrap();
    assert!(before.restart_for(&file("loadTimeout: 300s\nlisten: '0.0.0.0:9000'\n")).is_empty(), "the same values");
    let after = file(
        "residency: resident\nmaxSpool: 17GiB\nmemoryReclaimer: 90%\ncorsOrigins: ['*']\ntlsCert: /c\ntlsKey: /k\n",
    );
    assert_eq!(before.restart_for(&after), ["corsOrigins", "maxSpool", "memoryReclaimer", "tlsCert", "tlsKey"]);
}

#[test]
fn an_empty_list_of_the_file_is_not_the_default() {
    let file = |text: &str| with_file(&env(&[]), &config::parse(text).unwrap()).unwrap();
    assert_eq!(file("defaultAliases: []\n").default_aliases, Vec::<String>::new());
    assert_eq!(file("defaultAliases: [a]\n").default_aliases, ["a"]);
    assert_eq!(file("defaultAliases:\n").default_aliases.len(), 4);
    let from_variable =
        with_file(&env(&[("HUSH_DEFAULT_ALIAS", "b")]), &config::parse("defaultAliases: []\n").unwrap());
    assert_eq!(from_variable.unwrap().default_aliases, ["b"]);
}
