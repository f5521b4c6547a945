//! What a sidecar leaves on the disk for the next one: a file and a lock for each app.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Identifies the time since the machine was started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A file of JSON. Cheap to clone; clones are the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The file of the app at `authority` (`host:port`).
    pub fn new(folder: &Path, authority: &str) -> Self {
        Self { path: folder.join(format!("app-{}.json", file_name(authority))) }
    }

    /// `None`: there is no such file.
    ///
    /// # Errors
    /// If the file cannot be read, or says something else.
    pub fn read<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        match std::fs::read(&self.path) {
            Ok(content) => serde_json::from_slice(&content).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file at once. Not made safe against a loss of power: the app's memory is lost with it.
    pub fn write<T: Serialize>(&self, content: &T) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = NamedTempFile::new_in(folder)?;

        file.write_all(&serde_json::to_vec(content)?)?;
        file.persist(&self.path).map_err(|failed| failed.error)?;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The right to govern an app. Its drop, and the end of the process, give it back.
#[derive(Debug)]
pub struct AppLock {
    _file: File,
}

/// Why an app cannot be governed from here.
#[derive(Debug, thiserror::Error)]
pub enum AppLockError {
    #[error("another hush-sidecar governs the app at {authority} already: end one of the two")]
    Taken { authority: String },
    #[error("{path} cannot be locked")]
    Unusable { path: PathBuf, source: io::Error },
}

impl AppLock {
    /// Takes the right to govern the app at `authority` (`host:port`), unless another process has it.
    ///
    /// # Errors
    /// If another process has it, or the file cannot be used.
    pub fn take(folder: &Path, authority: &str) -> Result<Self, AppLockError> {
        let path = folder.join(format!("app-{}.lock", file_name(authority)));
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(FILE_MODE).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(AppLockError::Unusable { path, source }),
        };

        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(AppLockError::Taken { authority: authority.to_owned() }),
            Err(TryLockError::Error(source)) => Err(AppLockError::Unusable { path, source }),
        }
    }
}

/// The first of these folders that can be used, made if need be: the configured one alone, or else those where programs
/// keep their state. `variable` reads the environment.
pub fn find_state_folder(
    configured: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, io::Error> {
    if let Some(folder) = configured {
        return prepare_folder(folder, true).map(|()| folder.to_owned());
    }

    let own = format!("hush-sidecar-{}", rustix::process::geteuid().as_raw());
    let set = |name: &str| variable(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let candidates = [
        set("XDG_STATE_HOME").map(|folder| folder.join("hush-sidecar")),
        set("HOME").map(|folder| folder.join(".local/state/hush-sidecar")),
        Some(std::env::temp_dir().join(own)),
    ];

    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for folder in candidates.into_iter().flatten() {
        match prepare_folder(&folder, false) {
            Ok(()) => return Ok(folder),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Makes the folder, and sees that one can write there. The temporary folder is open to all users, so one of them
/// could have made it; a configured folder may belong to another user.
fn prepare_folder(folder: &Path, is_configured: bool) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;

    let own = rustix::process::geteuid().as_raw();
    let owner = std::fs::symlink_metadata(folder)?.uid();
    if !is_configured && owner != own {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the folder belongs to another user"));
    }
    NamedTempFile::new_in(folder).map(drop)
}

/// Identifies the time since the machine was started; empty where the kernel does not say.
pub fn boot_id() -> String {
    std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// An address as a part of a file name.
fn file_name(authority: &str) -> String {
    authority.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_broken_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path(), "[::1]:80/../x");
        assert_eq!(file.path().parent(), Some(folder.path()));
        assert_eq!(file.read::<Vec<u64>>().unwrap(), None);

        file.write(&vec![1_u64, 2]).unwrap();
        assert_eq!(file.read::<Vec<u64>>().unwrap(), Some(vec![1, 2]));

        std::fs::write(file.path(), "[1").unwrap();
        assert!(file.read::<Vec<u64>>().is_err());
    }

    #[test]
    fn one_process_governs_an_app() {
        let folder = tempfile::tempdir().unwrap();
        let first = AppLock::take(folder.path(), "a:1").unwrap();

        let second = AppLock::take(folder.path(), "a:1").unwrap_err().to_string();
        assert!(second.contains("another hush-sidecar governs the app at a:1"), "{second}");
        AppLock::take(folder.path(), "a:2").unwrap();
        drop(first);
        AppLock::take(folder.path(), "a:1").unwrap();
    }

    #[test]
    fn a_folder_is_found_where_the_first_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_owned().into_os_string();
        let variable = |name: &str| match name {
            "XDG_STATE_HOME" => Some(OsString::from("/proc/nothing")),
            "HOME" => Some(home.clone()),
            _ => None,
        };

        let found = find_state_folder(None, variable).unwrap();
        assert_eq!(found, folder.path().join(".local/state/hush-sidecar"));
        assert!(find_state_folder(Some(Path::new("/proc/nothing")), variable).is_err());
    }
}
