//! Which source decides, and how a wrong value is reported.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::cli::config;
use crate::cli::values::{AsrEngine, DeviceChoice, Percent, PrecisionChoice, PrecisionWord};

#[test]
fn flag_beats_hush_beats_legacy() {
    let legacy = ("MODEL_IDLE_TIMEOUT", "60");
    let ours = ("HUSH_IDLE_TIMEOUT", "2m");

    assert_eq!(resolved(&[], &[legacy]).idle_timeout, Some(Duration::from_secs(60)));
    assert_eq!(resolved(&[], &[legacy, ours]).idle_timeout, Some(Duration::from_secs(120)));

    let all = resolved(&["--idle-timeout", "3m"], &[legacy, ours]);
    assert_eq!(all.idle_timeout, Some(Duration::from_secs(180)));
    assert_eq!(all.legacy, vec![]);

    assert_eq!(resolved(&[], &[("ASR_MODEL", "small")]).models, ["small"]);
    assert_eq!(resolved(&[], &[("ASR_MODEL", "small"), ("HUSH_MODEL", "tiny, base")]).models, ["tiny", "base"]);
    assert_eq!(resolved(&["--model", "a", "--model", "b"], &[("HUSH_MODEL", "tiny")]).models, ["a", "b"]);
}

#[test]
fn legacy_variables_work_and_are_reported() {
    let settings = resolved(
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
    assert_eq!(settings.engine.precision, PrecisionChoice::Exactly(PrecisionWord::Fp16));
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
    let settings = resolved(&["--device", "cpu"], &[("ASR_DEVICE", "nonsense")]);
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

    assert_eq!(resolved(&[], &empty), resolved(&[], &[]));

    let behind = resolved(&[], &[("HUSH_DEVICE", ""), ("ASR_DEVICE", "cpu")]);
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
fn the_models_folder() {
    let dir = |variables: &[(&str, &str)]| resolved(&[], variables).store.models_dir;
    assert_eq!(dir(&[("XDG_DATA_HOME", "/xdg")]), PathBuf::from("/xdg/hush/models"));
    assert_eq!(dir(&[("XDG_DATA_HOME", "xdg")]), PathBuf::from("/home/u/.local/share/hush/models"));
    assert_eq!(dir(&[("ASR_MODEL_PATH", "/a"), ("XDG_DATA_HOME", "/xdg")]), PathBuf::from("/a"));
    assert_eq!(dir(&[("ASR_MODEL_PATH", "/a"), ("HUSH_MODELS_DIR", "/h")]), PathBuf::from("/h"));

    let error = with_file(&Env::default(), &ConfigFile::default()).unwrap_err().to_string();
    assert!(error.contains("HUSH_MODELS_DIR"), "{error}");
}

#[test]
fn the_file_sets_access_and_the_memory_that_must_stay_free() {
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

#[test]
fn a_reload_compares_every_option_of_the_file() {
    let before = resolved(&[], &[]);
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
