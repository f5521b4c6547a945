//! The device memory that models were seen to need, kept in a file so that it survives a restart.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, thread};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

/// The name of the file in the models folder. It is hidden, so that it is not taken for a model.
const NEEDS_FILE: &str = ".device-needs.json";

/// A model in one precision on one device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NeedKey {
    pub model: String,
    pub precision: String,
    pub gpu_uuid: String,
}

/// What each model needs. Cheap to clone; clones are the same record.
#[derive(Clone, Default)]
pub struct Needs {
    inner: Arc<NeedsInner>,
}

#[derive(Default)]
struct NeedsInner {
    /// `None`: the needs are not written to a file.
    path: Option<PathBuf>,
    bytes: Mutex<BTreeMap<NeedKey, u64>>,
    /// Locked by the thread that writes the file, so that the last state is the one that stays.
    writing: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct NeedRecord {
    #[serde(flatten)]
    key: NeedKey,
    bytes: u64,
}

impl Needs {
    /// Reads the file in `folder`. When it is damaged, needs are learnt anew.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join(NEEDS_FILE);
        let records = read_records(&path);

        let bytes = records.into_iter().map(|record| (record.key, record.bytes)).collect();
        Self { inner: Arc::new(NeedsInner { path: Some(path), bytes: Mutex::new(bytes), writing: Mutex::default() }) }
    }

    pub fn get(&self, key: &NeedKey) -> Option<u64> {
        self.inner.bytes.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// The need is at least this much. It is raised at once.
    pub fn raise(&self, key: &NeedKey, bytes: u64) {
        self.change(key, |known| known.map_or(bytes, |known| known.max(bytes)));
    }

    /// `peak`: the most that the model held between a load and an unload. A need that was higher sinks slowly, because
    /// one quiet time in memory proves little.
    pub fn record_peak(&self, key: &NeedKey, peak: u64) {
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

        // A disk may be slow or away: the caller does not wait for it.
        let inner = self.inner.clone();
        let spawned = thread::Builder::new().name("needs".to_owned()).spawn(move || inner.write());
        if let Err(error) = spawned {
            tracing::warn!("what the models need could not be written down: {error}");
        }
    }
}

impl NeedsInner {
    fn write(&self) {
        let Some(path) = &self.path else { return };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);

        let all = self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let records: Vec<NeedRecord> = all.into_iter().map(|(key, bytes)| NeedRecord { key, bytes }).collect();

        if let Err(error) = replace_file(path, &records) {
            tracing::warn!("{} cannot be written; what models need is learnt anew: {error}", path.display());
        }
    }
}

fn read_records(path: &Path) -> Vec<NeedRecord> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!("{} cannot be read: {error}", path.display());
            }
            return Vec::new();
        }
    };

    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!("{} is damaged and is written anew: {error}", path.display());
        Vec::new()
    })
}

fn replace_file(path: &Path, records: &[NeedRecord]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder)?;

    serde_json::to_writer_pretty(&mut file, records)?;
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

        needs.record_peak(&key("a"), 400);
        assert_eq!(needs.get(&key("a")), Some(700));

        needs.record_peak(&key("a"), 900);
        assert_eq!(needs.get(&key("a")), Some(900));

        needs.record_peak(&key("b"), 0);
        assert_eq!((needs.get(&key("b")), needs.get(&key("c"))), (None, None));
    }

    #[test]
    fn the_needs_outlive_the_server_and_damage() {
        let folder = tempfile::tempdir().unwrap();
        let needs = Needs::open(folder.path());
        needs.raise(&key("a"), 5 << 30);
        needs.raise(&key("b"), 1 << 30);
        needs.inner.write();

        let again = Needs::open(folder.path());
        assert_eq!((again.get(&key("a")), again.get(&key("b"))), (Some(5 << 30), Some(1 << 30)));

        for damage in ["", "{", "[{\"model\":1}]", "\0\0"] {
            // A folder of its own: what was learnt before is still being written to the other.
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(NEEDS_FILE), damage).unwrap();
            let needs = Needs::open(folder.path());
            assert_eq!(needs.get(&key("a")), None, "{damage}");
            needs.raise(&key("a"), 7);
            needs.inner.write();
            assert_eq!(Needs::open(folder.path()).get(&key("a")), Some(7));
        }

        let nowhere = Needs::open(Path::new("/nonexistent"));
        nowhere.raise(&key("a"), 7);
        nowhere.inner.write();
        assert_eq!(nowhere.get(&key("a")), Some(7), "kept in memory all the same");
    }
}
