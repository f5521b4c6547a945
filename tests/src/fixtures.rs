//! Paths of the workspace: fixtures, the binary under test, installed models.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

pub const MODEL: &str = "hush-tiny";

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub fn fixture(name: &str) -> PathBuf {
    workspace().join("tests/fixtures").join(name)
}

pub fn audio(name: &str) -> Result<Vec<u8>> {
    let path = fixture("audio").join(name);
    fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// The checkpoint folder of the bundled model.
pub fn checkpoint() -> PathBuf {
    fixture("model/whisper-hush-tiny")
}

pub fn onnxruntime() -> PathBuf {
    match std::env::var_os("ORT_DYLIB_PATH") {
        Some(path) => path.into(),
        None => workspace().join(".hush/lib/libonnxruntime.so"),
    }
}

/// `hush-server` of the profile that this test was built with.
pub fn binary() -> Result<PathBuf> {
    program("hush-server")
}

/// `hush-controller`, likewise.
pub fn controller() -> Result<PathBuf> {
    program("hush-controller")
}

/// `hush-sidecar`, likewise.
pub fn sidecar() -> Result<PathBuf> {
    program("hush-sidecar")
}

/// `hush-app-standin`, likewise.
pub fn app_standin() -> Result<PathBuf> {
    program("hush-app-standin")
}

/// Cargo does not build another package's binary for a test: `make test` builds both first.
pub fn program(name: &str) -> Result<PathBuf> {
    // A test lies in `deps` beside it, a program of this crate right beside it.
    let this = std::env::current_exe()?;
    let found = this.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is missing near {}: run `cargo build -p {name}` first", this.display()))
}

/// A models directory that holds the bundled model at this precision. Installed once per build of the binary, shared
/// by all tests: they only read it.
pub fn models_dir(precision: &str) -> Result<PathBuf> {
    let binary = binary()?;
    let dir = binary.with_file_name("test-models");
    fs::create_dir_all(&dir)?;
    let lock = File::create(dir.join(format!(".{precision}.lock")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let installed = dir.join(MODEL).join(precision).join("model.json");
    let newer = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    if newer(&installed) < newer(&binary) {
        install_into(&dir, precision)?;
    }
    Ok(dir)
}

pub fn install_into(models_dir: &Path, precision: &str) -> Result<()> {
    let output = Command::new(binary()?)
        .args(["install", "--force", "--name", MODEL, "--precision", precision, "--models-dir"])
        .arg(models_dir)
        .arg(checkpoint())
        .output()?;
    ensure!(output.status.success(), "install failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
