//! Values that are refused together.

use super::*;
use crate::cli::config;
use crate::cli::settings::tests::commands::transcription;

#[test]
fn limits_that_cannot_be_kept_are_refused() {
    for (argv, words) in [
        (&["--max-upload", "2GiB", "--max-spool", "1GiB"][..], "--max-spool"),
        (&["--max-connections", "0"], "--max-connections"),
        (&["--max-audio-duration", "0"], "max-audio-duration"),
        (&["--max-decoded", "0"], "--max-decoded must be more than 0 bytes"),
        (&["--max-upload", "0"], "--max-upload must be more than 0 bytes"),
    ] {
        let error = try_serve(argv, &[]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }

    let by_variable = try_serve(&[], &[("HUSH_MAX_DECODED", "0B")]).unwrap_err().to_string();
    assert!(by_variable.contains("--max-decoded must be more than 0 bytes"), "{by_variable}");
    assert_eq!(resolved(&["--max-decoded", "1B"], &[]).limits.max_decoded_bytes, 1);
    assert_eq!(resolved(&["--max-upload", "32GiB"], &[]).limits.max_spool_bytes, 32 << 30);
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
