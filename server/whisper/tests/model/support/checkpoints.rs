//! Checkpoint folders that are made for one test.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use hush_whisper::checkpoint::Config;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{bundled, random};

pub const CONFIG: &str = "config.json";
pub const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const ENGLISH_VOCABULARY: usize = 51864;

/// A copy of the bundled checkpoint that a test may damage.
pub fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(bundled()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Changes a JSON file.
pub fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

/// A tensor that can be changed: type, shape, bytes.
pub type OwnedTensor = (Dtype, Vec<usize>, Vec<u8>);

pub fn load(path: &Path) -> HashMap<String, OwnedTensor> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

pub fn save(tensors: &HashMap<String, OwnedTensor>, path: &Path) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Rewrites the weights of a folder.
pub fn edit_weights(folder: &Path, change: impl FnOnce(&mut HashMap<String, OwnedTensor>)) {
    let path = folder.join(WEIGHTS);
    let mut tensors = load(&path);
    change(&mut tensors);
    fs::remove_file(&path).unwrap();
    save(&tensors, &path);
}

/// The same values in another type. From f16 to bf16 this rounds.
pub fn convert(tensors: &mut HashMap<String, OwnedTensor>, to: Dtype) {
    for (dtype, _, bytes) in tensors.values_mut() {
        assert_eq!(*dtype, Dtype::F16);

        let values = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
        *bytes = match to {
            Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
            Dtype::BF16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
            other => panic!("{other:?}"),
        };
        *dtype = to;
    }
}

/// Splits `model.safetensors` into two shards, with every other tensor in the first; returns the names of the files.
pub fn shard(folder: &Path) -> [&'static str; 2] {
    let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut names: Vec<(String, OwnedTensor)> = load(&folder.join(WEIGHTS)).into_iter().collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let mut parts = [HashMap::new(), HashMap::new()];

    let mut weight_map = serde_json::Map::new();
    for (i, (name, tensor)) in names.into_iter().enumerate() {
        weight_map.insert(name.clone(), files[i % 2].into());
        parts[i % 2].insert(name, tensor);
    }

    for (part, file) in parts.iter().zip(files) {
        save(part, &folder.join(file));
    }

    let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(folder.join(WEIGHTS)).unwrap();

    files
}

/// A checkpoint with random weights in the shapes of `config`, in a folder of its own.
pub fn random(config: &Config, alignment_heads: &[[usize; 2]], seed: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensors: HashMap<String, OwnedTensor> = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let values = random::tensor(seed, &name, &shape);
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (format!("model.{name}"), (Dtype::BF16, shape, bytes))
        })
        .collect();

    save(&tensors, &folder.path().join(WEIGHTS));
    let mut fields = serde_json::to_value(config).unwrap();
    fields["model_type"] = "whisper".into();
    fields["activation_function"] = "gelu".into();
    write(&folder, CONFIG, &fields);
    write(&folder, "generation_config.json", &json!({"alignment_heads": alignment_heads}));
    fs::copy(bundled().join(TOKENIZER), folder.path().join(TOKENIZER)).unwrap();
    if config.vocab_size == ENGLISH_VOCABULARY {
        edit(folder.path(), TOKENIZER, english);
    }

    folder
}

/// Turns a tokenizer into one of the `.en` models': it has one word less, so that control tokens have an id one lower.
fn english(tokenizer: &mut Value) {
    let last = 50256;
    tokenizer["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| *id != last);
    tokenizer["model"]["merges"].as_array_mut().unwrap().pop();
    for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
        token["id"] = (token["id"].as_u64().unwrap() - 1).into();
    }
}

fn write(folder: &TempDir, name: &str, value: &Value) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, value.to_string()).unwrap();
    path
}
