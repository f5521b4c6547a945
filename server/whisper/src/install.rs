//! Checkpoint folder -> model directory `<models>/<name>/<precision>`. An install is complete or leaves nothing.

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

/// Prefix of the folders of unfinished installs, beside the models. Lists of models skip names that begin with a dot.
const UNFINISHED: &str = ".hush-install-";
const LOCK: &str = ".hush-install.lock";
const LONGEST_NAME: usize = 128;
/// Space for the graphs and the file system's own data.
const SPARE_BYTES: u64 = 16 << 20;
/// Bytes between two reports of progress.
const REPORT_EVERY: u64 = 8 << 20;

#[derive(Clone, Debug)]
pub struct InstallOptions {
    /// Name of the model, and of the folder that holds its precisions.
    pub name: String,
    pub precision: Precision,
    /// The origin of the checkpoint, for information: a hub name or a path.
    pub source_label: String,
}

/// The progress of an install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallProgress {
    pub step: InstallStep,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// A step of an install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallStep {
    /// Another install into the same folder is running.
    Waiting,
    /// Converting the weights.
    Writing,
    /// Reading back the written files.
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

/// Installs the checkpoint folder `source` as `models_dir/name/precision` and returns that path. An older install there is
/// replaced atomically; a failed install leaves nothing behind.
pub fn install(
    source: &Path,
    models_dir: &Path,
    options: &InstallOptions,
    progress: &mut dyn FnMut(InstallProgress),
) -> Result<PathBuf, InstallError> {
    if !is_valid_name(&options.name) {
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

    // Held until the end: every other unfinished folder is then one of an install that was killed.
    let _lock = lock(models_dir, progress)?;
    remove_leftovers(models_dir).map_err(in_models)?;

    let mut planned = WeightsFile::plan();
    let unchecked = InstallTarget { models_dir, needed: 0 };
    graph::build(&checkpoint, options.precision, &mut planned).map_err(|error| unchecked.build_error(error))?;
    let total_bytes = planned.planned_bytes();

    let install_target = InstallTarget { models_dir, needed: total_bytes + SPARE_BYTES };
    install_target.check_space()?;

    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(models_dir)
        .map_err(|e| install_target.io_error(models_dir, e))?;

    write_model(&checkpoint, options, unfinished.path(), total_bytes, &install_target, progress)?;
    check(unfinished.path(), total_bytes, progress)?;

    fs::create_dir_all(&named).map_err(|e| install_target.io_error(&named, e))?;
    move_into_place(unfinished, models_dir, &target).map_err(|e| install_target.io_error(&target, e))?;
    for folder in [named.as_path(), models_dir] {
        File::open(folder).and_then(|d| d.sync_all()).map_err(|e| install_target.io_error(folder, e))?;
    }

    Ok(target)
}

/// Whether a model can have this name: one path component that is neither like an option nor a hidden file.
pub fn is_valid_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn lock(models_dir: &Path, progress: &mut dyn FnMut(InstallProgress)) -> Result<File, InstallError> {
    let path = models_dir.join(LOCK);
    let failed = |source| InstallError::Io { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    if file.try_lock().is_err() {
        progress(InstallProgress { step: InstallStep::Waiting, done_bytes: 0, total_bytes: 0 });
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

/// The destination of an install and the space that it needs, for errors.
struct InstallTarget<'a> {
    models_dir: &'a Path,
    needed: u64,
}

impl InstallTarget<'_> {
    fn check_space(&self) -> Result<(), InstallError> {
        // If the file system does not report its free space, writing fails when it is full.
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
    install_target: &InstallTarget<'_>,
    progress: &mut dyn FnMut(InstallProgress),
) -> Result<(), InstallError> {
    let weights_path = folder.join(WEIGHTS);
    let failed = |e| install_target.io_error(&weights_path, e);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&weights_path).map_err(failed)?);
    let mut reported = 0;
    let mut report = |done_bytes: u64| {
        if done_bytes >= reported + REPORT_EVERY || done_bytes == total_bytes {
            reported = done_bytes;
            progress(InstallProgress { step: InstallStep::Writing, done_bytes, total_bytes });
        }
    };

    let mut weights = WeightsFile::write(&mut out, &mut report);
    let graphs =
        graph::build(checkpoint, options.precision, &mut weights).map_err(|e| install_target.build_error(e))?;
    let written = weights.finish();
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;

    let mut files = BTreeMap::new();
    files.insert(WEIGHTS.to_owned(), FileEntry { bytes: written.bytes, sha256: written.sha256 });
    let texts = graphs.iter().map(|g| (g.name, g.bytes.as_slice()));
    for (name, bytes) in texts.chain([(TOKENIZER, checkpoint.tokenizer_json.as_slice())]) {
        let path = folder.join(name);
        write_synced(&path, bytes).map_err(|e| install_target.io_error(&path, e))?;
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
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| install_target.io_error(&path, e.into()))?;
    write_synced(&path, &text).map_err(|e| install_target.io_error(&path, e))?;
    File::open(folder).and_then(|d| d.sync_all()).map_err(|e| install_target.io_error(folder, e))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn check(folder: &Path, total_bytes: u64, progress: &mut dyn FnMut(InstallProgress)) -> Result<(), InstallError> {
    progress(InstallProgress { step: InstallStep::Checking, done_bytes: 0, total_bytes });
    ModelDir::open(folder)?.verify_digests()?;
    progress(InstallProgress { step: InstallStep::Checking, done_bytes: total_bytes, total_bytes });
    Ok(())
}

/// Renames the folder to its final name. An older install is exchanged with it, so that a reader finds one of them.
fn move_into_place(unfinished: TempDir, models_dir: &Path, target: &Path) -> io::Result<()> {
    if !target.exists() {
        return fs::rename(unfinished.keep(), target);
    }

    match renameat_with(CWD, unfinished.path(), CWD, target, RenameFlags::EXCHANGE) {
        // The temporary name is now that of the old model, which is removed with it.
        Ok(()) => unfinished.close(),
        // Some file systems cannot exchange two names: for a moment there is no folder with the final name.
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
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_full_disk_is_reported_as_such() {
        let install_target = InstallTarget { models_dir: Path::new("/models"), needed: 7 };
        let error = install_target.io_error(Path::new("/models/x"), io::ErrorKind::StorageFull.into());
        assert!(matches!(error, InstallError::DiskFull { needed: 7, available: None, .. }), "{error}");
    }
}
