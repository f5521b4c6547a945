//! Checkpoints in the file formats of other programs: CTranslate2, OpenAI and whisper.cpp.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hush_whisper::checkpoint::{Checkpoint, Config};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::damage::damages;
use crate::harness::{FuzzLimits, fuzz};
use crate::model_support::checkpoints;
use crate::model_support::formats::{
    Quantisation, ggml_f16, write_archive, write_ctranslate2, write_ggml, write_openai,
};

/// Most of it is for the tokenizer of the family, if a file is intact enough to need one.
const LIMITS: FuzzLimits = FuzzLimits { bytes: 160 << 20, time: Duration::from_secs(60) };

/// A model that is mostly headers: its tensors have a few thousand values.
fn source() -> TempDir {
    let config = Config {
        d_model: 8,
        encoder_layers: 1,
        encoder_attention_heads: 1,
        encoder_ffn_dim: 32,
        decoder_layers: 1,
        decoder_attention_heads: 1,
        decoder_ffn_dim: 32,
        num_mel_bins: 4,
        max_source_positions: 4,
        max_target_positions: 16,
        vocab_size: 16,
    };

    let folder = checkpoints::random(&config, &[[0, 0]], 1);
    fs::write(folder.path().join("tokenizer.json"), r#"{"model": {"vocab": {"a": 0, "b": 1}}}"#).unwrap();

    folder
}

/// Opens the checkpoint and reads all its tensors.
fn read(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    for (name, shape) in checkpoint.config.tensors() {
        let tensor = checkpoint.weights.tensor(&name).unwrap();
        assert_eq!(tensor.shape(), shape);
        if let Ok(values) = tensor.to_vec() {
            assert_eq!(values.len(), shape.iter().product::<usize>());
        }
    }
}

/// The only problem of the undamaged file is its tiny vocabulary, so everything before that was read.
fn assert_read_up_to_the_vocabulary(path: &Path) {
    let error = Checkpoint::open(path).err().expect("a vocabulary of 16 tokens was accepted").to_string();
    assert!(error.contains("it has 16 tokens"), "{error}");
}

fn damaged_file(name: &'static str, cases: u32, folder: &Path, path: &Path) {
    assert_read_up_to_the_vocabulary(folder);

    let good = fs::read(path).unwrap();
    fuzz(name, cases, LIMITS, damages(), |damages| {
        let mut bytes = good.clone();
        damages.apply(&mut bytes);
        fs::write(path, bytes).unwrap();
        read(folder);
    });
}

#[test]
fn damaged_ctranslate2_files() {
    let source = source();
    let folder = tempfile::tempdir().unwrap();
    write_ctranslate2(source.path(), folder.path(), Quantisation::Int8Float16, false);
    damaged_file("damaged_ctranslate2_files", 400, folder.path(), &folder.path().join("model.bin"));
}

#[test]
fn damaged_ggml_files() {
    let source = source();
    let path = write_ggml(source.path(), source.path(), "ggml-small.bin", |_, values| ggml_f16(values));
    damaged_file("damaged_ggml_files", 400, &path, &path);
}

#[test]
fn damaged_openai_files() {
    let source = source();
    let path = write_openai(source.path(), source.path(), |_, _, _| {});
    damaged_file("damaged_openai_files", 400, &path, &path);
}

/// Pickles with random opcodes, in an intact archive.
#[test]
fn wild_pickles() {
    let folder = tempfile::tempdir().unwrap();
    let opcodes: Vec<u8> = b"\x80\x95.N\x88\x89JKM\x8aGX\x8c\x8d(}])t\x85\x86\x87aesuqr\x94hjc\x93QRb".to_vec();
    let opcode = prop_oneof![4 => prop::sample::select(opcodes), 1 => any::<u8>()];
    let piece = (opcode, prop::collection::vec(prop_oneof![Just(0), Just(1), Just(255), any::<u8>()], 0..5));
    let words = prop::sample::select(vec![
        &b"ctorch\nHalfStorage\n"[..],
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cos\nsystem\n",
        b"X\x04\x00\x00\x00dims",
        b"X\x10\x00\x00\x00model_state_dict",
        b"X\x07\x00\x00\x00storage",
    ]);

    let piece = prop_oneof![
        3 => piece.prop_map(|(opcode, operand)| [vec![opcode], operand].concat()),
        1 => words.prop_map(<[u8]>::to_vec),
    ];

    fuzz("wild_pickles", 400, LIMITS, prop::collection::vec(piece, 0..60), |pieces| {
        let path = write_archive(folder.path(), "wild.pt", &pieces.concat(), []);
        read(&path);
    });
}
