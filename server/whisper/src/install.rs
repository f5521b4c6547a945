//! Checkpoint folder -> model directory `<models>/<name>/<precision>`. What is installed is there whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with, statvfs};
use tempfile::TempDir;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::graph::{self, BuildError, Precision};
use crate::model_dir::{self, FileEntry, MANIFEST, Manifest, ModelDir, ModelDirError, TOKENIZER, WEIGHTS};
use crate::onnx::WeightsFile;

/// Folders of an install that has not ended, beside the models. Whoever lists models skips names that begin with a dot.
const UNFINISHED: &str = ".hush-install-";
const LOCK: &str = ".hush-install.lock";
const LONGEST_NAME: usize = 128;
/// Room for the graphs and what the file system needs for itself.
const SPARE_BYTES: u64 = 16 << 20;
/// Bytes between two reports of progress.
const REPORT_EVERY: u64 = 8 << 20;

#[derive(Clone, Debug)]
pub struct InstallOptions {
    /// Name of the model, and of the folder that holds its precisions.
    pub name: String,
    pub precision: Precision,
    /// Where the checkpoint came from, for people: a hub name, a path.
    pub source_label: String,
}

/// How far an install has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub step: Step,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another install into the same folder is running.
    Waiting,
    /// Converting the weights.
    Writing,
    /// Reading back what was written.
    Checking,
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(
        "`{0}` cannot be the name of a model; expected letters, digits, `.`, `_` and `-`, \
         a letter or digit first, {LONGEST_NAME} characters at most"
    )]
    Name(String),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{precision} is not possible for this model: {problem}")]
    Unsupported { precision: Precision, problem: String },
    #[error("{}: no room on the disk: {needed} bytes are needed{}", path.display(),
        available.map_or_else(String::new, |n| format!(", {n} are free")))]
    DiskFull { path: PathBuf, needed: u64, available: Option<u64> },
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} exists and is not a model directory; it is left as it is", .0.display())]
    NotAModel(PathBuf),
    #[error("what was written cannot be read back: {0}")]
    Check(#[from] ModelDirError),
}

/// Installs the checkpoint folder `source` as `models_dir/name/precision` and returns that path. An older install there
/// is replaced in one step; a failed one leaves nothing behind.
pub fn install(
    source: &Path,
    models_dir: &Path,
    options: &InstallOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, InstallError> {
    if !valid_name(&options.name) {
        return Err(InstallError::Name(options.name.clone()));
    }
    let named = models_dir.join(&options.name);
    let target = named.join(options.precision.as_str());
    if target.exists() && !target.join(MANIFEST).exists() {
        return Err(InstallError::NotAModel(target));
    }
    let checkpoint = Checkpoint::open(source)?;

    let in_models = |source| InstallError::Io { path: models_dir.to_owned(), source };
    fs::create_dir_all(models_dir).map_err(in_models)?;
    // Held until the end: while it is, every unfinished folder is one that a dead install left.
    let _lock = lock(models_dir, progress)?;
    remove_leftovers(models_dir).map_err(in_models)?;

    let mut planned = WeightsFile::plan();
    let place = Place { models_dir, needed: 0 };
    graph::build(&checkpoint, options.precision, &mut planned).map_err(|e| place.build_error(e))?;
    let total_bytes = planned.planned_bytes();
    let place = Place { models_dir, needed: total_bytes + SPARE_BYTES };
    place.check_room()?;

    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(models_dir)
        .map_err(|e| place.io_error(models_dir, e))?;
    write_model(&checkpoint, options, unfinished.path(), total_bytes, &place, progress)?;
    check(unfinished.path(), total_bytes, progress)?;
    fs::create_dir_all(&named).map_err(|e| place.io_error(&named, e))?;
    put_in_place(unfinished, models_dir, &target).map_err(|e| place.io_error(&target, e))?;
    for folder in [named.as_path(), models_dir] {
        File::open(folder).and_then(|d| d.sync_all()).map_err(|e| place.io_error(folder, e))?;
    }
    Ok(target)
}

/// Whether a model can have this name: one path component that no tool takes for an option or a hidden file.
pub fn valid_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn lock(models_dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<File, InstallError> {
    let path = models_dir.join(LOCK);
    let failed = |source| InstallError::Io { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    if file.try_lock().is_err() {
        progress(Progress { step: Step::Waiting, done_bytes: 0, total_bytes: 0 });
        file.lock().map_err(failed)?;
    }

    Ok(file)
}

fn remove_leftovers(models_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(models_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) && entry.file_type()?.is_dir() {
            tracing::info!(folder = %entry.path().display(), "removing what an unfinished install left");
            fs::remove_dir_all(entry.path())?;
        }
    }

    Ok(())
}

/// Where the install goes, for its errors.
struct Place<'a> {
    models_dir: &'a Path,
    needed: u64,
}

impl Place<'_> {
    fn check_room(&self) -> Result<(), InstallError> {
        // A file system that cannot tell is written to until it says no.
        let Ok(stat) = statvfs(self.models_dir) else { return Ok(()) };
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        if available < self.needed {
            return Err(self.disk_full(Some(available)));
        }
        Ok(())
    }

    fn disk_full(&self, available: Option<u64>) -> InstallError {
        InstallError::DiskFull { path: self.models_dir.to_owned(), needed: self.needed, available }
    }

    fn io_error(&self, path: &Path, source: io::Error) -> InstallError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.disk_full(None),
            _ => InstallError::Io { path: path.to_owned(), source },
        }
    }

    fn build_error(&self, error: BuildError) -> InstallError {
        match error {
            BuildError::Checkpoint(e) => e.into(),
            BuildError::Write(e) => self.io_error(&self.models_dir.join(WEIGHTS), e),
            BuildError::Unsupported { precision, problem } => InstallError::Unsupported { precision, problem },
        }
    }
}

fn write_model(
    checkpoint: &Checkpoint,
    options: &InstallOptions,
    folder: &Path,
    total_bytes: u64,
    place: &Place<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), InstallError> {
    let weights_path = folder.join(WEIGHTS);
    let failed = |e| place.io_error(&weights_path, e);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&weights_path).map_err(failed)?);
    let mut reported = 0;
    let mut report = |done_bytes: u64| {
        if done_bytes >= reported + REPORT_EVERY || done_bytes == total_bytes {
            reported = done_bytes;
            progress(Progress { step: Step::Writing, done_bytes, total_bytes });
        }
    };
    let mut weights = WeightsFile::write(&mut out, &mut report);
    let graphs = graph::build(checkpoint, options.precision, &mut weights).map_err(|e| place.build_error(e))?;
    let written = weights.finish();
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;

    let mut files = BTreeMap::new();
    files.insert(WEIGHTS.to_owned(), FileEntry { bytes: written.bytes, sha256: written.sha256 });
    let texts = graphs.iter().map(|g| (g.name, g.bytes.as_slice()));
    for (name, bytes) in texts.chain([(TOKENIZER, checkpoint.tokenizer_json.as_slice())]) {
        let path = folder.join(name);
        write_synced(&path, bytes).map_err(|e| place.io_error(&path, e))?;
        files.insert(name.to_owned(), model_dir::entry(bytes));
    }
    let manifest = Manifest {
        format_version: model_dir::format_version(options.precision),
        name: options.name.clone(),
        precision: options.precision,
        source: options.source_label.clone(),
        config: checkpoint.config.clone(),
        tokens: checkpoint.tokens.clone(),
        alignment_heads: checkpoint.alignment_heads.clone(),
        files,
    };
    let path = folder.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| place.io_error(&path, e.into()))?;
    write_synced(&path, &text).map_err(|e| place.io_error(&path, e))?;
    File::open(folder).and_then(|d| d.sync_all()).map_err(|e| place.io_error(folder, e))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn check(folder: &Path, total_bytes: u64, progress: &mut dyn FnMut(Progress)) -> Result<(), InstallError> {
    progress(Progress { step: Step::Checking, done_bytes: 0, total_bytes });
    ModelDir::open(folder)?.verify_digests()?;
    progress(Progress { step: Step::Checking, done_bytes: total_bytes, total_bytes });
    Ok(())
}

/// Renames the folder to its name. An older one changes places with it, so a reader finds the old or the new.
fn put_in_place(unfinished: TempDir, models_dir: &Path, target: &Path) -> io::Result<()> {
    if !target.exists() {
        return fs::rename(unfinished.keep(), target);
    }

    match renameat_with(CWD, unfinished.path(), CWD, target, RenameFlags::EXCHANGE) {
        // What is at the temporary name now is the old model, and goes with it.
        Ok(()) => unfinished.close(),
        // Not every file system can exchange: for a moment the name is free.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            let old = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(models_dir)?;
            fs::rename(target, old.path().join("old"))?;

            if let Err(e) = fs::rename(unfinished.path(), target) {
                fs::rename(old.path().join("old"), target)?;
                return Err(e);
            }

            let _ = unfinished.keep();
            old.close()
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_plain_component() {
        for good in ["tiny", "large-v3", "whisper-large-v3-turbo.int8", "a_b", "0"] {
            assert!(valid_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(!valid_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_full_disk_is_told_as_such() {
        let place = Place { models_dir: Path::new("/models"), needed: 7 };
        let error = place.io_error(Path::new("/models/x"), io::ErrorKind::StorageFull.into());
        assert!(matches!(error, InstallError::DiskFull { needed: 7, available: None, .. }), "{error}");
    }
}
