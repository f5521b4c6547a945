pub mod checkpoints;
pub mod formats;
pub mod npy;
pub mod random;
pub mod run;

use std::path::{Path, PathBuf};

use hush_whisper::{InstallOptions, ModelDir, Precision, install};

/// The files that all tests share.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// The bundled checkpoint.
pub fn bundled() -> PathBuf {
    fixtures().join("model/whisper-hush-tiny")
}

pub fn options(precision: Precision) -> InstallOptions {
    InstallOptions { name: "model".to_owned(), precision, source_label: "a test".to_owned() }
}

/// Installs `source` under `models` and opens the result.
pub fn installed(source: &Path, models: &Path, precision: Precision) -> ModelDir {
    let path = install(source, models, &options(precision), &mut |_| {}).unwrap();
    ModelDir::open(&path).unwrap()
}
