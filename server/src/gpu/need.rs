//! What models were seen to need, kept beside them over restarts.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, thread};

use hush_whisper::{ModelDir, Precision};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

/// Below the models folder. A hidden file is no model.
const FILE: &str = ".device-needs.json";

/// CUDA's context and its libraries, before any weight: 0.25 to 0.6 GB where it was measured.
const RUNTIME_BYTES: u64 = 600 << 20;

/// Rows of one search that have caches of their own: the reference's `best_of` and `beam_size`.
const ROWS: u64 = 5;

/// A first guess for a model that has never been seen on a device: its files, the runtime, and what it works on.
/// `max_batch`: windows that it may hold at once; the engine takes the memory of all of them when it loads.
pub fn estimate_bytes(model: &ModelDir, max_batch: usize) -> u64 {
    let manifest = model.manifest();
    let config = &manifest.config;
    let real: u64 = if manifest.precision == Precision::Fp16 { 2 } else { 4 };
    let [layers, width, heads, heard, written] = [
        config.decoder_layers,
        config.d_model,
        config.encoder_attention_heads,
        config.max_source_positions,
        config.max_target_positions,
    ]
    .map(|size| size as u64);
    // One place more, by which two windows change places.
    let windows = if max_batch > 1 { max_batch as u64 + 1 } else { 1 };
    // A search over several rows has a copy of its window.
    let cross = 2 * layers * heard * width * real * (windows + 1);
    let own = 2 * layers * written * width * real * (ROWS + windows);
    // The scores of one layer's attention, and its widest activations, in and out.
    let work = heads * heard * heard * real + 2 * 4 * heard * width * real;
    model.bytes() + RUNTIME_BYTES + cross + own + work
}

/// Which model on which device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NeedKey {
    pub model: String,
    pub precision: String,
    pub gpu_uuid: String,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Needs {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// `None`: nothing is kept.
    path: Option<PathBuf>,
    bytes: Mutex<BTreeMap<NeedKey, u64>>,
    /// One writer at a time, so that the last state is the one that stays.
    writing: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    key: NeedKey,
    bytes: u64,
}

impl Needs {
    /// Reads what is kept in `folder`. A damaged file only means that models are learnt anew.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Vec<Entry>>(&text).unwrap_or_else(|error| {
                tracing::warn!("{} is damaged and is written anew: {error}", path.display());
                Vec::new()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("{} cannot be read: {error}", path.display());
                }
                Vec::new()
            }
        };
        let bytes = bytes.into_iter().map(|entry| (entry.key, entry.bytes)).collect();
        Self { inner: Arc::new(Inner { path: Some(path), bytes: Mutex::new(bytes), writing: Mutex::default() }) }
    }

    pub fn get(&self, key: &NeedKey) -> Option<u64> {
        self.inner.bytes.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// At least this much, at once.
    pub fn raise(&self, key: &NeedKey, bytes: u64) {
        self.change(key, |known| known.map_or(bytes, |known| known.max(bytes)));
    }

    /// The most that a whole stay took. What was once more is forgotten slowly: one quiet stay proves little.
    pub fn settle(&self, key: &NeedKey, peak: u64) {
        self.change(key, |known| known.map_or(peak, |known| peak.max(known - known.saturating_sub(peak) / 4)));
    }

    fn change(&self, key: &NeedKey, change: impl FnOnce(Option<u64>) -> u64) {
        let mut all = self.inner.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(key).copied();
        let bytes = change(known);
        if known == Some(bytes) || bytes == 0 {
            return;
        }
        all.insert(key.clone(), bytes);
        drop(all);
        tracing::debug!(model = key.model, precision = key.precision, gpu = key.gpu_uuid, bytes, "learnt need");
        let inner = self.inner.clone();
        // A disk may be slow or away; who learns must not wait for it.
        let spawned = thread::Builder::new().name("needs".to_owned()).spawn(move || inner.write());
        if let Err(error) = spawned {
            tracing::warn!("what the models need could not be written down: {error}");
        }
    }
}

impl Inner {
    fn write(&self) {
        let Some(path) = &self.path else { return };
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let entries: Vec<Entry> = all.into_iter().map(|(key, bytes)| Entry { key, bytes }).collect();
        if let Err(error) = replace(path, &entries) {
            tracing::warn!("{} cannot be written; what models need is learnt anew: {error}", path.display());
        }
    }
}

fn replace(path: &Path, entries: &[Entry]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, entries)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: &str) -> NeedKey {
        NeedKey { model: model.to_owned(), precision: "fp16".to_owned(), gpu_uuid: "GPU-1".to_owned() }
    }

    #[test]
    fn a_need_is_raised_at_once_and_sinks_slowly() {
        let needs = Needs::default();
        assert_eq!(needs.get(&key("a")), None);
        needs.raise(&key("a"), 800);
        needs.raise(&key("a"), 500);
        assert_eq!(needs.get(&key("a")), Some(800));
        needs.settle(&key("a"), 400);
        assert_eq!(needs.get(&key("a")), Some(700));
        needs.settle(&key("a"), 900);
        assert_eq!(needs.get(&key("a")), Some(900));
        needs.settle(&key("b"), 0);
        assert_eq!((needs.get(&key("b")), needs.get(&key("c"))), (None, None));
    }

    #[test]
    fn it_outlives_the_server_and_damage() {
        let folder = tempfile::tempdir().unwrap();
        let needs = Needs::open(folder.path());
        needs.raise(&key("a"), 5 << 30);
        needs.raise(&key("b"), 1 << 30);
        needs.inner.write();
        let again = Needs::open(folder.path());
        assert_eq!((again.get(&key("a")), again.get(&key("b"))), (Some(5 << 30), Some(1 << 30)));
        for damage in ["", "{", "[{\"model\":1}]", "\0\0"] {
            // Its own, because what was learnt before is still being written to the other.
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(FILE), damage).unwrap();
            let needs = Needs::open(folder.path());
            assert_eq!(needs.get(&key("a")), None, "{damage}");
            needs.raise(&key("a"), 7);
            needs.inner.write();
            assert_eq!(Needs::open(folder.path()).get(&key("a")), Some(7));
        }
        let nowhere = Needs::open(Path::new("/nonexistent"));
        nowhere.raise(&key("a"), 7);
        nowhere.inner.write();
        assert_eq!(nowhere.get(&key("a")), Some(7), "in memory all the same");
    }
}
