//! Which checkpoints the reader accepts, and its errors for those that it refuses.

use std::fs;
use std::path::Path;

use hush_whisper::checkpoint::{Checkpoint, CheckpointError as E};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::support::bundled;
use crate::support::checkpoints::{self, CONFIG, WEIGHTS, edit, edit_weights};

const FC1: &str = "model.encoder.layers.1.fc1.weight";
const GENERATION: &str = "generation_config.json";

/// The error of a damaged copy of the bundled checkpoint.
fn refusal(spoil: impl FnOnce(&Path)) -> E {
    let folder = checkpoints::copy();
    spoil(folder.path());
    let Err(error) = Checkpoint::open(folder.path()) else { panic!("it was accepted") };
    error
}

/// Asserts that the message contains all of `parts`.
fn assert_says(error: &E, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn the_bundled_checkpoint_is_whole() {
    let checkpoint = Checkpoint::open(&bundled()).unwrap();
    assert_eq!((checkpoint.config.d_model, checkpoint.config.decoder_layers), (128, 2));
    assert_eq!(checkpoint.alignment_heads, [[1, 0], [1, 1]]);
    let tokens = &checkpoint.tokens;
    assert_eq!((tokens.eot, tokens.sot, tokens.timestamp_begin), (50257, 50258, 50364));
    assert_eq!((tokens.languages.len(), tokens.languages["de"]), (99, 50261));
    assert!(tokens.multilingual && tokens.suppress.contains(&50361) && tokens.begin_suppress == [220, 50257]);
}

/// The bundled `generation_config.json` was written from the reference's own values.
#[test]
fn the_content_of_generation_config_follows_from_the_tokenizer() {
    let stated = Checkpoint::open(&bundled()).unwrap();
    let folder = checkpoints::copy();
    fs::remove_file(folder.path().join(GENERATION)).unwrap();
    fs::remove_file(folder.path().join("preprocessor_config.json")).unwrap();
    edit(folder.path(), CONFIG, |c| {
        c.as_object_mut().unwrap().remove("begin_suppress_tokens");
    });
    let derived = Checkpoint::open(folder.path()).unwrap();

    assert_eq!(derived.tokens, stated.tokens);
    assert_eq!(derived.alignment_heads, stated.alignment_heads);
}

#[test]
fn a_tokenizer_of_separate_files_is_the_same_tokenizer() {
    let folder = checkpoints::copy();
    let path = folder.path();
    let whole: Value = serde_json::from_slice(&fs::read(path.join("tokenizer.json")).unwrap()).unwrap();

    fs::remove_file(path.join("tokenizer.json")).unwrap();
    let merges = whole["model"]["merges"].as_array().unwrap();
    let lines: Vec<String> = merges
        .iter()
        .map(|m| {
            m.as_str().map_or_else(|| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()), Into::into)
        })
        .collect();

    fs::write(path.join("merges.txt"), format!("#version: 0.2\n{}\n", lines.join("\n"))).unwrap();
    fs::write(path.join("vocab.json"), whole["model"]["vocab"].to_string()).unwrap();
    let added = whole["added_tokens"].as_array().unwrap();
    let added: serde_json::Map<_, _> =
        added.iter().map(|t| (t["content"].as_str().unwrap().to_owned(), t["id"].clone())).collect();
    fs::write(path.join("added_tokens.json"), Value::Object(added).to_string()).unwrap();

    let (one, other) = (Checkpoint::open(&bundled()).unwrap(), Checkpoint::open(path).unwrap());
    assert_eq!(other.tokens, one.tokens);

    let [one, other] = [one, other].map(|c| Tokenizer::from_bytes(c.tokenizer_json).unwrap());
    for text in ["The server is open.", " Grüße, ça va? 你好 \u{1f600}", "<|en|> a<|0.00|>b", "  x\n\n1,234.5"] {
        let (a, b) = (one.encode(text, false).unwrap(), other.encode(text, false).unwrap());
        assert_eq!(a.get_ids(), b.get_ids(), "{text}");
        assert_eq!(one.decode(a.get_ids(), true).unwrap(), other.decode(b.get_ids(), true).unwrap());
    }

    edit(path, "added_tokens.json", |t| t["<|30.00|>"] = 60_000.into());
    let error = Checkpoint::open(path).err().unwrap();

    assert_says(&error, &["added_tokens.json", "<|30.00|>", "60000"]);

    fs::remove_file(path.join("merges.txt")).unwrap();
    assert_says(&Checkpoint::open(path).err().unwrap(), &["tokenizer.json", "merges.txt"]);
}

#[test]
fn every_float_type_and_both_layouts_give_the_same_values() {
    let name = "decoder.layers.0.fc1.weight";
    let original = Checkpoint::open(&bundled()).unwrap().weights.tensor(name).unwrap().to_vec().unwrap();
    let read = |spoil: &dyn Fn(&Path)| {
        let folder = checkpoints::copy();
        spoil(folder.path());
        Checkpoint::open(folder.path()).unwrap().weights.tensor(name).unwrap().to_vec().unwrap()
    };

    let as_type = |to| move |folder: &Path| edit_weights(folder, |t| checkpoints::convert(t, to));
    assert_eq!(read(&as_type(Dtype::F32)), original);

    for (rounded, exact) in read(&as_type(Dtype::BF16)).iter().zip(&original) {
        assert!((rounded - exact).abs() <= exact.abs() / 256.0, "{rounded} {exact}");
    }

    assert_eq!(
        read(&|folder| {
            checkpoints::shard(folder);
        }),
        original
    );

    let bare = |folder: &Path| {
        edit_weights(folder, |t| {
            *t = t.drain().map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_owned(), tensor)).collect();
            // Some checkpoints also store the tied projection.
            t.insert("proj_out.weight".into(), (Dtype::F16, vec![1], vec![0; 2]));
        });
    };

    assert_eq!(read(&bare), original);
}

#[test]
fn checkpoints_of_other_models_are_refused() {
    assert_says(&refusal(|f| edit(f, CONFIG, |c| c["model_type"] = "bart".into())), &[CONFIG, "\"bart\"", "whisper"]);
    assert_says(&refusal(|f| fs::remove_file(f.join(CONFIG)).unwrap()), &[CONFIG, "missing"]);
    assert_says(&refusal(|f| fs::write(f.join(CONFIG), "{").unwrap()), &[CONFIG, "JSON"]);
    let Err(error) = Checkpoint::open(&bundled().join(CONFIG)) else { panic!() };
    assert!(matches!(error, E::NotACheckpoint(_)), "{error}");
}

#[test]
fn dimensions_must_be_stated_and_fit() {
    let remove = |field: &'static str| {
        move |f: &Path| {
            edit(f, CONFIG, |c| {
                c.as_object_mut().unwrap().remove(field);
            })
        }
    };

    for field in ["d_model", "encoder_layers", "decoder_ffn_dim", "num_mel_bins", "vocab_size", "max_source_positions"]
    {
        assert_says(&refusal(remove(field)), &[CONFIG, field, "missing"]);
    }

    let set = |field: &'static str, value: Value| move |f: &Path| edit(f, CONFIG, |c| c[field] = value);
    assert_says(&refusal(set("d_model", json!(0))), &["d_model", "is 0"]);
    assert_says(&refusal(set("d_model", json!("x"))), &["d_model", "\"x\""]);
    assert_says(&refusal(set("decoder_attention_heads", json!(3))), &["decoder_attention_heads", "3", "128"]);
    assert_says(&refusal(set("activation_function", json!("relu"))), &["activation_function", "relu", "gelu"]);
    assert_says(&refusal(set("tie_word_embeddings", json!(false))), &["tie_word_embeddings"]);

    // The error for dimensions that do not fit the weights names the field and the tensor.
    assert_says(
        &refusal(set("encoder_ffn_dim", json!(256))),
        &["`encoder_ffn_dim`", "fc1.weight", "[512, 128]", "[256, 128]"],
    );

    let bins = |f: &Path| edit(f, "preprocessor_config.json", |c| c["feature_size"] = 128.into());
    assert_says(&refusal(bins), &["preprocessor_config.json", "feature_size", "128", "80"]);
    assert_says(&refusal(|f| edit(f, GENERATION, |c| c["suppress_tokens"] = json!([-1]))), &["suppress_tokens", "-1"]);
    assert_says(&refusal(|f| edit(f, GENERATION, |c| c["alignment_heads"] = json!("x"))), &["alignment_heads"]);
}

/// Every size of config.json is set to zero, to absurd values, and to another value than that of the weights.
#[test]
fn every_size_is_checked_and_named() {
    for (field, other) in [
        ("d_model", 256),
        ("encoder_layers", 2),
        ("encoder_layers", 4),
        ("encoder_attention_heads", 3),
        ("encoder_ffn_dim", 511),
        ("decoder_layers", 1),
        ("decoder_layers", 3),
        ("decoder_attention_heads", 129),
        ("decoder_ffn_dim", 1024),
        ("num_mel_bins", 128),
        ("max_source_positions", 1499),
        ("max_target_positions", 449),
        ("vocab_size", 51_866),
    ] {
        for wrong in
            [json!(0), json!(-1), json!(1_u64 << 40), json!(u64::MAX), json!(1 << 24), json!(1.5), json!(other)]
        {
            // The number of bins is also in the other file, which is removed, so that the weights decide.
            let spoil = |f: &Path| {
                edit(f, CONFIG, |c| c[field] = wrong.clone());
                fs::remove_file(f.join("preprocessor_config.json")).unwrap();
            };
            let error = refusal(spoil);
            assert!(matches!(&error, E::Field { field: named, .. } if named == field), "{field} {wrong}: {error}");
            assert_says(&error, &[CONFIG, field]);
        }
    }
}

#[test]
fn tokens_beyond_the_vocabulary_are_refused() {
    let huge = |f: &Path| edit(f, "tokenizer.json", |t| t["added_tokens"][1500]["id"] = json!(u32::MAX));
    let error = refusal(huge);

    assert_says(&error, &["tokenizer.json", "4294967295", "`vocab_size`", "51865"]);

    // A vocabulary with one id too many.
    let one_more = |f: &Path| {
        edit(f, "tokenizer.json", |t| {
            let vocabulary = t["model"]["vocab"].as_object_mut().unwrap();
            vocabulary.insert("hush".to_owned(), json!(51_865));
        });
    };

    assert_says(&refusal(one_more), &["tokenizer.json", "\"hush\" has id 51865", "`vocab_size`"]);
}

#[test]
fn endless_files_are_not_read() {
    for name in [CONFIG, "tokenizer.json", GENERATION] {
        let device = |f: &Path| {
            fs::remove_file(f.join(name)).unwrap();
            std::os::unix::fs::symlink("/dev/zero", f.join(name)).unwrap();
        };
        assert_says(&refusal(device), &[name, "regular file"]);
    }
}

#[test]
fn weights_must_be_whole() {
    let without = |f: &Path| edit_weights(f, |t| drop(t.remove(FC1)));
    assert_says(&refusal(without), &[WEIGHTS, "encoder.layers.1.fc1.weight", "missing", "[512, 128]"]);
    let reshaped = |f: &Path| edit_weights(f, |t| t.get_mut(FC1).unwrap().1 = vec![128, 512]);
    assert_says(&refusal(reshaped), &[WEIGHTS, "fc1.weight", "[128, 512]", "[512, 128]"]);
    let integers = |f: &Path| edit_weights(f, |t| t.get_mut(FC1).unwrap().0 = Dtype::I16);
    assert_says(&refusal(integers), &[WEIGHTS, "fc1.weight", "I16", "BF16"]);
    assert_says(&refusal(|f| fs::remove_file(f.join(WEIGHTS)).unwrap()), &[WEIGHTS, "missing"]);
}

#[test]
fn damaged_files_are_distinguished() {
    let cut = |length: u64| {
        refusal(|f| fs::OpenOptions::new().write(true).open(f.join(WEIGHTS)).unwrap().set_len(length).unwrap())
    };

    assert!(matches!(cut(16_000_000), E::Truncated { expected: 16_195_232, found: 16_000_000, .. }));
    assert!(matches!(cut(1000), E::Truncated { found: 1000, .. }));
    assert!(matches!(cut(4), E::Malformed { .. }), "{}", cut(4));

    let garbage = refusal(|f| {
        let path = f.join(WEIGHTS);
        let mut bytes = fs::read(&path).unwrap();
        bytes[8..40].fill(b'x');
        fs::write(path, bytes).unwrap();
    });

    assert_says(&garbage, &[WEIGHTS, "safetensors"]);
}

#[test]
fn shards_must_be_complete() {
    const INDEX: &str = "model.safetensors.index.json";

    let missing = refusal(|f| {
        let [_, second] = checkpoints::shard(f);
        fs::remove_file(f.join(second)).unwrap();
    });

    assert_says(&missing, &[INDEX, "model-00002-of-00002.safetensors", "missing"]);

    let absent = refusal(|f| {
        let [first, _] = checkpoints::shard(f);
        edit(f, INDEX, |i| i["weight_map"]["model.extra"] = first.into());
    });

    assert_says(&absent, &[INDEX, "model.extra", "model-00001-of-00002.safetensors"]);

    let elsewhere = refusal(|f| {
        checkpoints::shard(f);
        edit(f, INDEX, |i| i["weight_map"][FC1] = "../other/x.safetensors".into());
    });

    assert_says(&elsewhere, &[INDEX, FC1, "beside"]);
}

#[test]
fn pickled_weights_are_refused_with_advice() {
    let error = refusal(|f| fs::rename(f.join(WEIGHTS), f.join("pytorch_model.bin")).unwrap());
    assert!(matches!(error, E::PickleOnly(_)));
    assert_says(&error, &["convert", "safetensors"]);
}

/// Distilled models publish the alignment heads of their teacher.
#[test]
fn alignment_heads_of_another_decoder_are_not_used() {
    let folder = checkpoints::copy();
    edit(folder.path(), GENERATION, |c| c["alignment_heads"] = json!([[1, 0], [10, 3], [24, 7]]));
    assert_eq!(Checkpoint::open(folder.path()).unwrap().alignment_heads, [[1, 0], [1, 1]]);
}

#[test]
fn values_that_are_no_numbers_are_found_when_they_are_read() {
    let folder = checkpoints::copy();
    edit_weights(folder.path(), |t| t.get_mut(FC1).unwrap().2[20..22].copy_from_slice(&[0, 0x7c]));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = checkpoint.weights.tensor("encoder.layers.1.fc1.weight").unwrap().to_vec().unwrap_err();
    assert_says(&error, &[WEIGHTS, "fc1.weight", "10"]);
}
