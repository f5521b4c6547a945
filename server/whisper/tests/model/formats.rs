//! The same model in every file format gives the same checkpoint; the error of a damaged file names what is damaged.

use std::fs;
use std::path::Path;

use hush_whisper::checkpoint::{Checkpoint, CheckpointError, Config};
use hush_whisper::{ModelDir, Precision, install};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::support::checkpoints;
use crate::support::formats::{
    Pickler, Quantisation, Tensors, ggml_f16, ggml_f32, read, write_archive, write_ctranslate2, write_ggml,
    write_openai,
};
use crate::support::{bundled, options};

fn whole(_: &str, _: &mut Vec<usize>, _: &mut Vec<usize>) {}

fn error(path: &Path) -> String {
    Checkpoint::open(path).err().expect("it was accepted").to_string()
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

/// Asserts that every tensor has exactly these values.
fn assert_values(checkpoint: &Checkpoint, expected: &Tensors) {
    for (name, shape) in checkpoint.config.tensors() {
        let tensor = checkpoint.weights.tensor(&name).unwrap();
        assert_eq!(tensor.shape(), shape, "{name}");
        assert!(tensor.to_vec().unwrap() == expected[&name].1, "the values of {name} differ");
    }
}

fn assert_same_tokenizer(checkpoint: &Checkpoint) {
    let one = Tokenizer::from_bytes(fs::read(bundled().join("tokenizer.json")).unwrap()).unwrap();
    let other = Tokenizer::from_bytes(&checkpoint.tokenizer_json).unwrap();
    for text in
        ["The server is open.", " Grüße, ça va? 你好 \u{1f600}", "<|en|> a<|0.00|>b<|30.00|>", "  x\n\n1,234.5'll"]
    {
        let (a, b) = (one.encode(text, false).unwrap(), other.encode(text, false).unwrap());
        assert_eq!(a.get_ids(), b.get_ids(), "{text}");
        assert_eq!(one.decode(a.get_ids(), true).unwrap(), other.decode(b.get_ids(), true).unwrap());
    }

    for id in 0..51_865 {
        assert_eq!(one.id_to_token(id), other.id_to_token(id), "token {id}");
    }
}

#[test]
fn every_format_is_the_same_checkpoint() {
    let reference = Checkpoint::open(&bundled()).unwrap();
    let (_, values) = read(&bundled());
    let folder = tempfile::tempdir().unwrap();
    let folders = ["with", "without"].map(|name| folder.path().join(name));

    for (target, tokenizer) in folders.iter().zip([true, false]) {
        fs::create_dir(target).unwrap();
        write_ctranslate2(&bundled(), target, Quantisation::Float16, tokenizer);
    }

    let pt = write_openai(&bundled(), folder.path(), whole);
    let half = write_ggml(&bundled(), folder.path(), "ggml-half.bin", |_, values| ggml_f16(values));
    let full = write_ggml(&bundled(), folder.path(), "ggml-full.bin", |_, values| ggml_f32(values));

    let [with, without] = folders;

    for path in [with, without, pt, half, full] {
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(checkpoint.config, reference.config, "{}", path.display());
        assert_eq!(checkpoint.tokens, reference.tokens, "{}", path.display());
        assert_eq!(checkpoint.alignment_heads, reference.alignment_heads);
        assert_values(&checkpoint, &values);
        assert_same_tokenizer(&checkpoint);
    }
}

#[test]
fn an_install_from_any_format_writes_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let ctranslate2 = folder.path().join("ct2");
    fs::create_dir(&ctranslate2).unwrap();
    write_ctranslate2(&bundled(), &ctranslate2, Quantisation::Float16, false);
    let pt = write_openai(&bundled(), folder.path(), whole);
    let ggml = write_ggml(&bundled(), folder.path(), "ggml-tiny.bin", |_, values| ggml_f16(values));

    for precision in [Precision::Fp32, Precision::Int8] {
        let digests: Vec<String> = [bundled(), ctranslate2.clone(), pt.clone(), ggml.clone()]
            .iter()
            .map(|source| {
                let models = tempfile::tempdir().unwrap();
                let path = install(source, models.path(), &options(precision), &mut |_| {}).unwrap();
                ModelDir::open(&path).unwrap().manifest().files["weights.bin"].sha256.clone()
            })
            .collect();

        assert!(digests.iter().all(|digest| *digest == digests[0]), "{precision}: {digests:?}");
    }
}

#[test]
fn quantised_matrices_of_ctranslate2_have_their_values() {
    for quantisation in [
        Quantisation::Float32,
        Quantisation::Bfloat16,
        Quantisation::Int8Float16,
        Quantisation::Int8Float32,
        Quantisation::Int16,
    ] {
        let folder = tempfile::tempdir().unwrap();
        let expected = write_ctranslate2(&bundled(), folder.path(), quantisation, true);
        let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{quantisation:?}: {e}"));
        assert_values(&checkpoint, &expected);
    }
}

/// Blocks of every quantised type and their values, computed with the `gguf` package of ggml-org (0.19.0).
#[test]
fn quantised_blocks_of_ggml_have_their_values() {
    let cases: Value = serde_json::from_str(include_str!("ggml_blocks.json")).unwrap();
    let cases = cases.as_object().unwrap();
    let config = Config {
        d_model: 256,
        encoder_layers: 3,
        encoder_attention_heads: 4,
        encoder_ffn_dim: 1024,
        decoder_layers: 1,
        decoder_attention_heads: 4,
        decoder_ffn_dim: 1024,
        num_mel_bins: 80,
        max_source_positions: 1500,
        max_target_positions: 448,
        vocab_size: 51_864,
    };

    let source = checkpoints::random(&config, &[[0, 0]], 1);
    let projections = ["attn.query", "attn.key", "attn.value", "attn.out"];
    let names: Vec<(String, String)> = (0..3)
        .flat_map(|layer| projections.map(|p| (layer, p)))
        .map(|(layer, p)| (format!("encoder.blocks.{layer}.{p}.weight"), canonical(layer, p)))
        .collect();

    let encode = |name: &str, values: &[f32]| {
        let Some(at) = names.iter().position(|(stored, _)| stored == name) else { return ggml_f16(values) };
        let Some(case) = cases.values().nth(at) else { return ggml_f16(values) };
        let block = hex(case["hex"].as_str().unwrap());
        let repeats = values.len() / case["values"].as_array().unwrap().len();
        (case["type"].as_i64().unwrap() as i32, block.repeat(repeats))
    };

    let path = write_ggml(source.path(), source.path(), "ggml-blocks.bin", encode);
    let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));

    for ((_, canonical), (kind, case)) in names.iter().zip(cases) {
        let expected: Vec<f32> = case["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|bits| f32::from_bits(bits.as_u64().unwrap() as u32))
            .collect();

        let tensor = checkpoint.weights.tensor(canonical).unwrap();
        let found = tensor.to_vec().unwrap();

        for (chunk, _) in found.chunks_exact(expected.len()).zip(0..3) {
            for (found, expected) in chunk.iter().zip(&expected) {
                assert!((found - expected).abs() <= expected.abs() * 1e-6 + 1e-9, "{kind}: {found} {expected}");
            }
        }

        // A piece that begins and ends in the middle of a block.
        let mut piece = [0.0; 300];
        tensor.read(77, &mut piece).unwrap();

        assert_eq!(piece[..], found[77..377], "{kind}");
    }
}

fn canonical(layer: usize, projection: &str) -> String {
    let name = match projection {
        "attn.query" => "q_proj",
        "attn.key" => "k_proj",
        "attn.value" => "v_proj",
        _ => "out_proj",
    };
    format!("encoder.layers.{layer}.self_attn.{name}.weight")
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[test]
fn errors_of_files_that_end_early_say_where() {
    let folder = tempfile::tempdir().unwrap();
    write_ctranslate2(&bundled(), folder.path(), Quantisation::Int8Float16, true);
    let ggml = write_ggml(&bundled(), folder.path(), "ggml-tiny.bin", |_, values| ggml_f16(values));
    let pt = write_openai(&bundled(), folder.path(), whole);
    let cut = |path: &Path, part: f64| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..(bytes.len() as f64 * part) as usize]).unwrap();
        error(path)
    };

    assert_says(&cut(&ggml, 0.99), &["ggml-tiny.bin", "truncated", "tensor `", "bytes"]);
    assert_says(&cut(&ggml, 0.00001), &["ggml-tiny.bin", "truncated"]);
    assert_says(&cut(&pt, 0.99), &["model.pt", "ZIP archive"]);

    let model = folder.path().join("model.bin");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();

    assert_says(&error(folder.path()), &["model.bin", "truncated", "variable `"]);
}

#[test]
fn tensors_of_another_shape_are_named_as_their_file_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let (_, values) = read(&bundled());
    let shape = values["encoder.layers.1.fc1.weight"].0.clone();
    let named = "encoder.blocks.1.mlp.0.weight";
    let swapped = |name: &str, shape: &mut Vec<usize>, strides: &mut Vec<usize>| {
        if name == named {
            shape.reverse();
            *strides = vec![shape[1], 1];
        }
    };

    let pt = write_openai(&bundled(), folder.path(), swapped);
    assert_says(&error(&pt), &["model.pt", named, &format!("{shape:?}")]);

    let transposed = |name: &str, _: &mut Vec<usize>, strides: &mut Vec<usize>| {
        if name == named {
            strides.reverse();
        }
    };

    let pt = write_openai(&bundled(), folder.path(), transposed);
    assert_says(&error(&pt), &[named, "strides"]);

    let beyond = |name: &str, shape: &mut Vec<usize>, _: &mut Vec<usize>| {
        if name == named {
            shape[0] = 1 << 40;
        }
    };

    let pt = write_openai(&bundled(), folder.path(), beyond);
    assert_says(&error(&pt), &[named]);
}

#[test]
fn a_pickle_that_would_run_code_is_refused_and_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let mut pickle = Pickler(vec![0x80, 2]);

    pickle.global("posix", "system");
    pickle.0.push(b'(');
    pickle.text(&format!("touch {}", witness.display()));
    pickle.0.extend(b"tR.");
    let path = write_archive(folder.path(), "hostile.pt", &pickle.0, []);

    assert_says(&error(&path), &["hostile.pt", "posix.system", "nothing was run"]);
    assert!(!witness.exists());

    let endless = write_archive(folder.path(), "self.pt", b"\x80\x02}q\x00X\x04\x00\x00\x00dimsh\x00s.", []);

    assert_says(&error(&endless), &["self.pt", "model_state_dict"]);

    let empty = write_archive(folder.path(), "empty.pt", b"", []);

    assert_says(&error(&empty), &["the pickle at byte 0", "ends"]);
}

#[test]
fn errors_for_other_files_name_their_kind() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        error(&path)
    };

    assert_says(&file("model.gguf", b"GGUF\x03\0\0\0"), &["model.gguf", "ggml-*.bin"]);
    assert_says(&file("old.pt", b"\x80\x02\x8a\x0a"), &["old.pt", "torch.save"]);
    assert_says(&file("notes.txt", b"notes"), &["notes.txt", "CTranslate2", ".pt", "ggml"]);
    assert!(matches!(Checkpoint::open(Path::new("/no/such")), Err(CheckpointError::NotACheckpoint(_))));
}
