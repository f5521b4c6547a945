//! Installs are complete or leave nothing, and the errors of unusable model directories.

use std::fs;
use std::path::Path;

use hush_whisper::checkpoint::Config;
use hush_whisper::model_dir::{ALIGN, DECODER, FILES, MANIFEST, WEIGHTS};
use hush_whisper::{InstallError, InstallProgress, ModelDir, ModelDirError, Precision, install};
use ndarray::Axis;

use crate::support::checkpoints::{self, edit, edit_weights};
use crate::support::run::GraphModel;
use crate::support::{bundled, installed, options, random};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_install_is_complete_and_reports_its_progress() {
    let models = tempfile::tempdir().unwrap();
    let mut seen: Vec<InstallProgress> = Vec::new();
    let path = install(&bundled(), models.path(), &options(Precision::Int8), &mut |p| seen.push(p)).unwrap();

    assert_eq!(path, models.path().join("model/int8"));

    let mut expected: Vec<String> = FILES.iter().chain([&MANIFEST]).map(|n| (*n).to_owned()).collect();
    expected.sort();

    assert_eq!(names(&path), expected);

    let dir = ModelDir::open(&path).unwrap();
    dir.verify_digests().unwrap();

    assert_eq!((dir.manifest().name.as_str(), dir.manifest().precision), ("model", Precision::Int8));

    let last = seen.last().unwrap();
    assert!(last.total_bytes > 0 && seen.iter().all(|p| p.done_bytes <= p.total_bytes));
    assert_eq!(last.done_bytes, last.total_bytes);

    // Four times smaller than fp32, including the vocabulary, which is stored once.
    assert!(fs::metadata(path.join(WEIGHTS)).unwrap().len() < 10_000_000);
}

#[test]
fn an_older_install_is_replaced_and_leftovers_are_removed() {
    let models = tempfile::tempdir().unwrap();
    let first = installed(&bundled(), models.path(), Precision::Fp32);
    fs::write(first.file("stray"), "x").unwrap();
    let leftover = models.path().join(".hush-install-dead");
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join(WEIGHTS), "half").unwrap();
    installed(&bundled(), models.path(), Precision::Fp32);

    assert_eq!(names(models.path()), [".hush-install.lock", "model"]);
    assert!(!first.file("stray").exists());
    assert_eq!(names(&models.path().join("model")), ["fp32"]);
}

#[test]
fn a_failed_install_leaves_the_old_model_and_nothing_else() {
    let models = tempfile::tempdir().unwrap();
    let dir = installed(&bundled(), models.path(), Precision::Fp32);
    let folder = checkpoints::copy();

    // The error is found only while the weights are written.
    edit_weights(folder.path(), |t| {
        t.get_mut("model.decoder.layers.1.fc2.weight").unwrap().2[..2].copy_from_slice(&[0, 0x7e]);
    });
    let error = install(folder.path(), models.path(), &options(Precision::Fp32), &mut |_| {}).unwrap_err();

    assert!(error.to_string().contains("decoder.layers.1.fc2.weight"), "{error}");
    assert_eq!(names(models.path()), [".hush-install.lock", "model"]);

    ModelDir::open(dir.path()).unwrap().verify_digests().unwrap();
    let new = tempfile::tempdir().unwrap();
    install(folder.path(), new.path(), &options(Precision::Fp32), &mut |_| {}).unwrap_err();

    assert_eq!(names(new.path()), [".hush-install.lock"]);
}

#[test]
fn names_and_targets_are_checked_before_anything_is_written() {
    let models = tempfile::tempdir().unwrap();
    for name in ["", "../x", "a/b", ".x"] {
        let options = hush_whisper::InstallOptions { name: name.to_owned(), ..options(Precision::Fp32) };
        let error = install(&bundled(), models.path(), &options, &mut |_| {}).unwrap_err();
        assert!(matches!(error, InstallError::Name(_)), "{error}");
    }

    let own = models.path().join("model/fp32");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("precious"), "x").unwrap();
    let error = install(&bundled(), models.path(), &options(Precision::Fp32), &mut |_| {}).unwrap_err();

    assert!(matches!(error, InstallError::NotAModel(_)), "{error}");
    assert_eq!(names(&own), ["precious"]);
}

#[test]
fn an_unusable_model_directory_names_the_file_and_gives_advice() {
    let models = tempfile::tempdir().unwrap();
    let path = installed(&bundled(), models.path(), Precision::Fp32).path().to_owned();
    let refusal = |expected: &str| {
        let error = ModelDir::open(&path).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("hush-server install"), "{text}");
        error
    };

    let whole = fs::read(path.join(DECODER)).unwrap();
    fs::write(path.join(DECODER), &whole[..100]).unwrap();
    assert!(matches!(refusal(DECODER), ModelDirError::Length { found: 100, .. }));

    let mut changed = whole.clone();
    changed[500] ^= 1;
    fs::write(path.join(DECODER), &changed).unwrap();
    let error = ModelDir::open(&path).unwrap().verify_digests().unwrap_err();

    assert!(matches!(&error, ModelDirError::Digest { path, .. } if path.ends_with(DECODER)), "{error}");

    fs::write(path.join(DECODER), &whole).unwrap();

    fs::rename(path.join(ALIGN), path.join("away")).unwrap();
    assert!(matches!(refusal(ALIGN), ModelDirError::MissingFile(_)));

    fs::rename(path.join("away"), path.join(ALIGN)).unwrap();

    edit(&path, MANIFEST, |m| m["files"].as_object_mut().unwrap().retain(|name, _| name != ALIGN));
    assert!(matches!(refusal(ALIGN), ModelDirError::Manifest { .. }));

    edit(&path, MANIFEST, |m| *m = serde_json::json!({"format_version": 1}));
    assert!(matches!(refusal(MANIFEST), ModelDirError::OldVersion { found: 1, .. }));

    edit(&path, MANIFEST, |m| *m = serde_json::json!({"format_version": 99}));
    assert!(matches!(refusal(MANIFEST), ModelDirError::NewVersion { found: 99, .. }));
    assert!(refusal("update Hush").to_string().contains("format 99"));

    fs::write(path.join(MANIFEST), "{").unwrap();
    assert!(matches!(refusal(MANIFEST), ModelDirError::Manifest { .. }));

    fs::remove_file(path.join(MANIFEST)).unwrap();
    assert!(matches!(refusal(MANIFEST), ModelDirError::NoManifest(_)));
    assert!(matches!(ModelDir::open(&bundled()).unwrap_err(), ModelDirError::Checkpoint(_)));
    assert!(matches!(ModelDir::open(&path.join("nowhere")).unwrap_err(), ModelDirError::NotFound(_)));
}

/// The format that earlier versions of Hush wrote, and the only one that they read, is still read.
#[test]
fn an_earlier_format_is_read_and_known_as_such() {
    let models = tempfile::tempdir().unwrap();

    for (precision, earlier) in [(Precision::Fp32, 2), (Precision::Fp16, 3)] {
        let model = installed(&bundled(), models.path(), precision);
        assert!(model.is_newest_format());
        assert!(model.manifest().format_version > earlier, "earlier versions would load graphs that they cannot run");

        edit(model.path(), MANIFEST, |m| m["format_version"] = earlier.into());
        assert!(!ModelDir::open(model.path()).unwrap().is_newest_format());
    }
}

/// The numbers of an edited or a hostile manifest are checked before the engine lays out memory by them.
#[test]
fn every_number_of_a_manifest_is_checked_and_named() {
    let models = tempfile::tempdir().unwrap();
    let path = installed(&bundled(), models.path(), Precision::Fp32).path().to_owned();
    let good = fs::read(path.join(MANIFEST)).unwrap();
    let changes: &[(&str, &[serde_json::Value])] = &[
        ("config.d_model", &[0.into(), (1_u64 << 40).into(), 127.into()]),
        ("config.encoder_layers", &[0.into(), 1_000_000.into()]),
        ("config.encoder_attention_heads", &[0.into(), 7.into()]),
        ("config.encoder_ffn_dim", &[0.into(), (1_u64 << 40).into()]),
        ("config.decoder_layers", &[0.into(), 1_000_000.into()]),
        ("config.decoder_attention_heads", &[0.into(), 7.into()]),
        ("config.decoder_ffn_dim", &[0.into(), u64::MAX.into()]),
        ("config.num_mel_bins", &[0.into(), u64::MAX.into()]),
        ("config.max_source_positions", &[0.into(), u64::MAX.into()]),
        ("config.max_target_positions", &[0.into(), 1.into(), (1_u64 << 40).into()]),
        ("config.vocab_size", &[0.into(), u64::MAX.into()]),
        ("tokens.eot", &[4_000_000_000_u32.into(), 51_865.into()]),
        ("tokens.sot", &[51_865.into()]),
        ("tokens.sot_prev", &[51_865.into()]),
        ("tokens.sot_lm", &[51_865.into()]),
        ("tokens.no_speech", &[51_865.into()]),
        ("tokens.no_timestamps", &[u32::MAX.into()]),
        ("tokens.timestamp_begin", &[0.into(), u32::MAX.into()]),
        ("tokens.transcribe", &[51_865.into()]),
        ("tokens.translate", &[51_865.into()]),
        ("tokens.max_initial_timestamp_index", &[u32::MAX.into()]),
        ("tokens.suppress", &[serde_json::json!([1, u32::MAX])]),
        ("tokens.begin_suppress", &[serde_json::json!([51_865])]),
        ("tokens.languages", &[serde_json::json!({})]),
        ("tokens.languages.de", &[51_865.into()]),
        ("alignment_heads", &[serde_json::json!([[99, 0]]), serde_json::json!([[0, 99]])]),
    ];

    for (field, values) in changes {
        for value in *values {
            edit(&path, MANIFEST, |m| {
                *m.pointer_mut(&format!("/{}", field.replace('.', "/"))).unwrap() = value.clone();
            });
            let error = ModelDir::open(&path).unwrap_err();
            let text = error.to_string();

            // The error for a width that its heads do not divide names the number of heads.
            let named = if *value == 127 { "config.encoder_attention_heads" } else { *field };
            assert!(matches!(&error, ModelDirError::Field { field, .. } if field == named), "{field} {value}: {error}");
            assert!(text.contains(MANIFEST) && text.contains("hush-server install"), "{text}");

            fs::write(path.join(MANIFEST), &good).unwrap();
        }
    }

    assert!(ModelDir::open(&path).is_ok());

    fs::remove_file(path.join(MANIFEST)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", path.join(MANIFEST)).unwrap();

    assert!(matches!(ModelDir::open(&path).unwrap_err(), ModelDirError::Io { .. }));
}

/// Small models in the shapes of other families: every precision installs and runs.
#[test]
fn every_shape_of_whisper_installs_and_runs() {
    let small = Config {
        d_model: 64,
        encoder_layers: 1,
        encoder_attention_heads: 2,
        encoder_ffn_dim: 256,
        decoder_layers: 2,
        decoder_attention_heads: 2,
        decoder_ffn_dim: 256,
        num_mel_bins: 80,
        max_source_positions: 1500,
        max_target_positions: 448,
        vocab_size: 51865,
    };

    let shapes = [
        // large-v3: 128 bins and one more language; turbo: fewer decoder layers than encoder layers.
        (
            Config { num_mel_bins: 128, vocab_size: 51866, encoder_layers: 3, decoder_layers: 1, ..small.clone() },
            vec![[0, 1]],
        ),
        // Decoder heads of another width, no list of alignment heads, and a width that blocks of 128 do not divide.
        (Config { d_model: 96, decoder_attention_heads: 3, ..small.clone() }, vec![]),
        // The .en models.
        (Config { vocab_size: 51864, ..small }, vec![[0, 0], [1, 1]]),
    ];

    for (config, heads) in shapes {
        let folder = checkpoints::random(&config, &heads, 7);
        let mel = random::mel(7, &config);

        for precision in Precision::ALL {
            let models = tempfile::tempdir().unwrap();
            let dir = installed(folder.path(), models.path(), precision);
            let mut model = GraphModel::load(&dir);
            let (hidden, cross) = model.encode(&[&mel]);

            assert_eq!(hidden.shape(), [1, 1500, config.d_model]);

            let tokens = &dir.manifest().tokens;
            let english = config.vocab_size == 51864;

            assert_eq!(tokens.multilingual, !english);
            assert_eq!(tokens.sot, if english { 50257 } else { 50258 });

            let mut cache = model.empty(1);
            let logits = model.decode(&[&[50258, 50259, 50359]], &[0], &cross, &mut cache);

            assert_eq!(logits.shape(), [1, config.vocab_size]);
            assert!(logits.iter().all(|v| v.is_finite()));

            let weights = model.align(&[&[50258, 50259, 50359, 11]], &cross);
            assert_eq!(weights.shape(), [1, dir.manifest().alignment_heads.len(), 4, 1500]);
            assert!(weights.sum_axis(Axis(3)).iter().all(|s| (s - 1.0).abs() < 1e-3));
        }
    }
}
