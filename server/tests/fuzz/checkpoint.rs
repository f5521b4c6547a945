//! Checkpoints: the header of their tensors, and the JSON files beside it.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use hush_server::hub;
use hush_whisper::ModelDir;
use hush_whisper::checkpoint::{Checkpoint, Config};
use hush_whisper::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::audio_support::fixtures;
use crate::damage::damages;
use crate::harness::{FuzzLimits, fuzz};

/// The largest tensor of the small checkpoint is 13 MB as f32; its tokenizer needs about as much again, twice.
const LIMITS: FuzzLimits = FuzzLimits { bytes: 160 << 20, time: Duration::from_secs(60) };

const WEIGHTS: &str = "model.safetensors";

fn config() -> Config {
    Config {
        d_model: 64,
        encoder_layers: 1,
        encoder_attention_heads: 1,
        encoder_ffn_dim: 128,
        decoder_layers: 1,
        decoder_attention_heads: 1,
        decoder_ffn_dim: 128,
        num_mel_bins: 80,
        max_source_positions: 1500,
        max_target_positions: 448,
        vocab_size: 51_865,
    }
}

/// A checkpoint folder without weights.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut fields = serde_json::to_value(config()).unwrap();
    fields["model_type"] = "whisper".into();
    fs::write(folder.path().join("config.json"), fields.to_string()).unwrap();
    let bundled = fixtures().join("model/whisper-hush-tiny");
    fs::copy(bundled.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    folder
}

/// The header of every tensor, in order, and the length of their data.
fn header() -> (Map<String, Value>, u64) {
    let mut end = 0;
    let mut fields = Map::new();
    for (name, shape) in config().tensors() {
        let start = end;
        end += 2 * shape.iter().product::<usize>() as u64;
        fields.insert(format!("model.{name}"), json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }

    (fields, end)
}

/// Writes the weights file. Its data is a hole in the file: zeros that occupy no disk space.
fn write(folder: &Path, length: u64, header: &[u8], data: u64) {
    let path = folder.join(WEIGHTS);
    fs::write(&path, [&length.to_le_bytes()[..], header].concat()).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + data).unwrap();
}

/// Opens the checkpoint and reads all its tensors.
fn read(folder: &Path) {
    let Ok(checkpoint) = Checkpoint::open(folder) else { return };

    for (name, shape) in checkpoint.config.tensors() {
        let tensor = checkpoint.weights.tensor(&name).unwrap();
        assert_eq!(tensor.shape(), shape);

        // Values that are not numbers are an error; a tensor with fewer values than its shape must not occur.
        if let Ok(values) = tensor.to_vec() {
            assert_eq!(values.len(), shape.iter().product::<usize>());
        }
    }
}

#[test]
fn damaged_headers() {
    let (fields, data) = header();
    let text = Value::Object(fields).to_string().into_bytes();
    let folder = folder();
    let length = prop_oneof![
        6 => Just(None),
        1 => any::<u64>().prop_map(Some),
        1 => prop::sample::select(vec![0, 1, u64::MAX, 1 << 63, 100 << 20]).prop_map(Some),
    ];

    fuzz("damaged_headers", 200, LIMITS, (damages(), length, any::<bool>()), |(damages, length, padded)| {
        let mut header = text.clone();
        damages.apply(&mut header);

        // Lost bytes may be replaced by spaces, so that the lengths are consistent again.
        if padded {
            header.resize(text.len(), b' ');
        }

        write(folder.path(), length.unwrap_or(header.len() as u64), &header, data);
        read(folder.path());
    });
}

/// Headers that are JSON, with values that no tensor has.
#[test]
fn wild_headers() {
    let (fields, data) = header();
    let folder = folder();
    let number = prop_oneof![
        Just(json!(0)),
        Just(json!(u64::MAX)),
        Just(json!(1_u64 << 63)),
        Just(json!(-1)),
        Just(json!(1.5)),
        Just(json!(null)),
        Just(json!("1")),
        any::<u32>().prop_map(|n| json!(n)),
        Just(json!(data)),
        Just(json!(data + 1)),
    ];

    let change = (
        any::<prop::sample::Index>(),
        prop::sample::select(vec!["shape", "start", "end", "dtype", "gone", "other", "all"]),
        prop::collection::vec(number, 1..6),
        prop::sample::select(vec!["F32", "F16", "BF16", "F64", "I8", "F8_E4M3", "BOOL", "f16", ""]),
    );

    fuzz("wild_headers", 200, LIMITS, prop::collection::vec(change, 1..4), |changes| {
        let mut fields = fields.clone();

        for (at, what, numbers, dtype) in &changes {
            let name = at.get(&fields.keys().cloned().collect::<Vec<_>>()).clone();
            let field = &mut fields[&name];
            let number = numbers[0].clone();

            match (*what, field.pointer_mut("/data_offsets").and_then(Value::as_array_mut)) {
                ("shape", Some(_)) => field["shape"] = Value::Array(numbers.clone()),
                ("start", Some(offsets)) => offsets[0] = number,
                ("end", Some(offsets)) => {
                    offsets.pop();
                    offsets.push(number);
                }
                ("dtype", Some(_)) => field["dtype"] = (*dtype).into(),
                ("other", Some(_)) => field["more"] = number,
                ("all", _) => *field = json!({"dtype": dtype, "shape": numbers, "data_offsets": numbers}),
                _ => *field = number,
            }
        }

        let header = Value::Object(fields).to_string().into_bytes();
        write(folder.path(), header.len() as u64, &header, data);
        read(folder.path());
    });
}

#[test]
fn configurations_of_models() {
    let (fields, data) = header();
    let header = Value::Object(fields).to_string().into_bytes();
    let folder = folder();

    write(folder.path(), header.len() as u64, &header, data);
    let good = fs::read(folder.path().join("config.json")).unwrap();
    let names: Vec<String> = serde_json::from_slice::<Map<String, Value>>(&good).unwrap().keys().cloned().collect();
    let value = prop_oneof![
        any::<u64>().prop_map(|n| json!(n)),
        (0_u64..1 << 25).prop_map(|n| json!(n)),
        Just(json!(-1)),
        Just(json!(null)),
        Just(json!([])),
        Just(json!("64")),
    ];

    let wild = prop::collection::vec((prop::sample::select(names), value), 0..4);

    fuzz("configurations_of_models", 200, LIMITS, (wild, prop::option::weighted(0.3, damages())), |(wild, damages)| {
        let mut fields: Map<String, Value> = serde_json::from_slice(&good).unwrap();
        fields.extend(wild);
        let mut text = Value::Object(fields).to_string().into_bytes();
        if let Some(damages) = damages {
            damages.apply(&mut text);
        }

        fs::write(folder.path().join("config.json"), text).unwrap();
        read(folder.path());
    });
}

#[test]
fn manifests_of_models() {
    let folder = tempfile::tempdir().unwrap();
    let good = manifest().to_string().into_bytes();
    for name in hush_whisper::model_dir::FILES {
        File::create(folder.path().join(name)).unwrap();
    }

    fs::write(folder.path().join("model.json"), &good).unwrap();
    ModelDir::open(folder.path()).unwrap();
    let limits = FuzzLimits { bytes: 4 << 20, ..LIMITS };
    fuzz("manifests_of_models", 500, limits, damages(), |damages| {
        let mut text = good.clone();
        damages.apply(&mut text);
        fs::write(folder.path().join("model.json"), text).unwrap();
        let _ = ModelDir::open(folder.path());
    });
}

/// The manifest of a model whose files are empty.
fn manifest() -> Value {
    json!({
        "format_version": hush_whisper::model_dir::format_version(hush_whisper::Precision::Int8),
        "name": "m",
        "precision": "int8",
        "source": "a test",
        "config": config(),
        "tokens": {
            "eot": 50257, "sot": 50258, "sot_prev": 50361, "sot_lm": 50360, "no_speech": 50362, "no_timestamps": 50363,
            "timestamp_begin": 50364, "transcribe": 50359, "translate": 50358, "languages": {"en": 50259},
            "multilingual": true, "suppress": [1], "begin_suppress": [220], "max_initial_timestamp_index": 50,
        },
        "alignment_heads": [[0, 0]],
        "files": hush_whisper::model_dir::FILES
            .map(|name| (name.to_owned(), json!({"bytes": 0, "sha256": "0"})))
            .into_iter()
            .collect::<Map<_, _>>(),
    })
}

/// Manifests that are JSON, with numbers that no model has. The engine can lay out memory by the accepted ones.
#[test]
fn wild_manifests() {
    let folder = tempfile::tempdir().unwrap();
    let good = manifest();
    for name in hush_whisper::model_dir::FILES {
        File::create(folder.path().join(name)).unwrap();
    }

    let leaves: Vec<String> = ["config", "tokens"]
        .iter()
        .flat_map(|part| good[part].as_object().unwrap().keys().map(move |field| format!("/{part}/{field}")))
        .chain(["/alignment_heads".to_owned()])
        .collect();

    let value = prop_oneof![
        any::<u64>().prop_map(|n| json!(n)),
        (0_u64..1 << 25).prop_map(|n| json!(n)),
        (0_u64..2_000).prop_map(|n| json!(n)),
        prop::collection::vec(any::<u32>(), 0..3).prop_map(|list| json!(list)),
        (any::<usize>(), any::<usize>()).prop_map(|(layer, head)| json!([[layer, head]])),
    ];

    let limits = FuzzLimits { bytes: 4 << 20, ..LIMITS };
    let wild = prop::collection::vec((prop::sample::select(leaves), value), 1..4);

    fuzz("wild_manifests", 500, limits, wild, |wild| {
        let mut changed = good.clone();
        for (field, value) in wild {
            *changed.pointer_mut(&field).unwrap() = value;
        }

        fs::write(folder.path().join("model.json"), changed.to_string()).unwrap();
        let Ok(model) = ModelDir::open(folder.path()) else { return };
        let (config, tokens) = (&model.manifest().config, &model.manifest().tokens);

        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.head_width() * config.decoder_attention_heads, config.d_model);
        assert!(tokens.suppress.iter().all(|id| (*id as usize) < config.vocab_size));
        assert!((tokens.timestamp_begin as usize) < config.vocab_size);

        let heads = &model.manifest().alignment_heads;

        assert!(
            heads
                .iter()
                .all(|[layer, head]| { *layer < config.decoder_layers && *head < config.decoder_attention_heads })
        );
    });
}

/// Tokenizers with ids that no model has; no table is allocated for them.
#[test]
fn tokenizers_of_models() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let id = || prop_oneof![0_u32..2_000, any::<u32>(), Just(u32::MAX)];
    let tokens =
        (prop::collection::vec(("[a-z]{0,4}", id()), 0..20), prop::collection::vec(("[a-z|<>]{0,8}", id()), 0..5));
    let limits = FuzzLimits { bytes: 1 << 20, ..LIMITS };

    fuzz("tokenizers_of_models", 500, limits, (tokens, prop::option::weighted(0.3, damages())), |(tokens, damages)| {
        let (vocabulary, added) = tokens;
        let vocabulary: Map<_, _> = vocabulary.into_iter().map(|(text, id)| (text, json!(id))).collect();
        let added: Vec<_> = added.into_iter().map(|(content, id)| json!({"id": id, "content": content})).collect();
        let mut text = json!({"added_tokens": added, "model": {"vocab": vocabulary}}).to_string().into_bytes();

        if let Some(damages) = damages {
            damages.apply(&mut text);
        }

        fs::write(&path, text).unwrap();

        if let Ok(tokenizer) = Tokenizer::open(&path, 1_000) {
            assert!(tokenizer.size() <= 1_000);
            let _ = tokenizer.decode([0, 999, u32::MAX]);
        }
    });
}

/// Names for models, which become folders and addresses.
#[test]
fn names_of_models() {
    let limits = FuzzLimits { bytes: 1 << 20, ..LIMITS };
    fuzz("names_of_models", 1000, limits, "[ -~\\n\u{e9}/.]{0,120}", |name| {
        if let Some(repo) = hub::Repo::of(&name) {
            assert!(!repo.as_str().contains("..") && !repo.as_str().starts_with('/'), "{repo:?}");
        }

        let folder = hub::folder_of(&name);
        assert!(hub::Repo::of(&name).is_none() || !folder.contains('/'), "{folder}");
    });
}
