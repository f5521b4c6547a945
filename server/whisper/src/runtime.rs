//! ONNX Runtime, loaded at run time from a path. No library is mapped before [`init`].

use std::error::Error as _;
use std::{
    env, fs,
    io::{self, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use ort::{environment::Environment, logging::LogLevel};

use crate::{kernels::InstructionSet, operators};

/// The oldest minor version of ONNX Runtime 1.x that the engine supports.
pub const OLDEST_MINOR: u32 = ort::MINOR_VERSION;

const FILE: &str = "libonnxruntime.so";
/// The environment variable with the path of the library; without it the usual folders are searched.
pub const PATH_VARIABLE: &str = "ORT_DYLIB_PATH";
/// Disables ONNX Runtime's telemetry if it is set before the library is opened. Without it the library's builds write a
/// device id and a store of events below the home directory and look up a host of Microsoft's, and the API for this
/// (`with_telemetry(false)`) takes effect too late. [`init`] refuses to open the library without the variable.
pub const TELEMETRY_VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
pub const NO_TELEMETRY: &str = "1";
const BESIDE_EXECUTABLE: [&str; 3] = [".", "lib", "../lib"];
const USUAL_PLACES: [&str; 5] =
    ["/usr/local/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/opt/onnxruntime/lib"];

/// Microseconds for which idle threads of a session look for work before they sleep: longer than the time between two
/// operators or two steps. ONNX Runtime's default is some 50 ms, after each run and from the moment at which the session
/// is opened; for that time the threads take cores from the next session.
pub(crate) const SPIN_MICROSECONDS: &str = "1000";

/// The loaded library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// The version of the release; the whole build description if that is unknown.
    pub version: String,
    pub library: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(
        "ONNX Runtime was not found; looked at {}. Give its path with --ort-lib or {PATH_VARIABLE}, or put {FILE} \
         into one of these folders",
        list(.tried)
    )]
    NotFound { tried: Vec<PathBuf> },
    #[error("{} (from {source_of_path}) does not exist; it must be ONNX Runtime's {FILE} or the folder that holds it", path.display())]
    Missing { path: PathBuf, source_of_path: &'static str },
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} could not be loaded as a library: {cause}. Use {FILE} from an ONNX Runtime release", path.display())]
    NotALibrary { path: PathBuf, cause: String },
    #[error("{} is a library, but not ONNX Runtime. Use {FILE} from an ONNX Runtime release", path.display())]
    NotOnnxRuntime { path: PathBuf },
    #[error("{} is ONNX Runtime {version}, which is too old; use 1.{OLDEST_MINOR} or later", path.display())]
    TooOld { path: PathBuf, version: String },
    #[error(
        "ONNX Runtime was already loaded from {}; one process can load only one, so {} was not", loaded.display(),
        asked.display()
    )]
    AlreadyLoaded { loaded: PathBuf, asked: PathBuf },
    #[error(
        "ONNX Runtime would send telemetry, so it is not opened: set {TELEMETRY_VARIABLE}={NO_TELEMETRY} before the program \
         starts"
    )]
    Telemetry,
    #[error("ONNX Runtime refused to start: {0}")]
    Start(#[source] ort::Error),
    #[error("ONNX Runtime is not loaded; call `runtime::init` first")]
    NotLoaded,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

struct LoadedRuntime {
    info: RuntimeInfo,
    environment: Environment,
}

/// ONNX Runtime allows one environment per process, for its whole lifetime.
static LOADED: Mutex<Option<LoadedRuntime>> = Mutex::new(None);

/// Loads ONNX Runtime from `library`. A second call with the same library returns the same info.
pub fn init(library: &Path) -> Result<RuntimeInfo, RuntimeError> {
    let library = fs::canonicalize(library).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => RuntimeError::Missing { path: library.into(), source_of_path: "the caller" },
        _ => RuntimeError::Read { path: library.into(), source },
    })?;

    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(LoadedRuntime { info, .. }) = &*loaded {
        if info.library == library {
            return Ok(info.clone());
        }
        return Err(RuntimeError::AlreadyLoaded { loaded: info.library.clone(), asked: library });
    }

    if !is_telemetry_off() {
        return Err(RuntimeError::Telemetry);
    }

    let builder = ort::init_from(&library).map_err(|error| refused(&library, error))?;
    let environment = builder.with_telemetry(false).build().map_err(RuntimeError::Start)?;
    environment.set_log_level(log_level());
    operators::register(&environment).map_err(RuntimeError::Start)?;

    let info = RuntimeInfo { version: release(&library).unwrap_or_else(|| ort::info().to_owned()), library };
    let instructions = InstructionSet::detect();
    tracing::info!(version = info.version, library = %info.library.display(), ?instructions, "loaded ONNX Runtime");
    *loaded = Some(LoadedRuntime { info: info.clone(), environment });

    Ok(info)
}

fn is_telemetry_off() -> bool {
    env::var_os(TELEMETRY_VARIABLE).is_some_and(|value| value == NO_TELEMETRY)
}

/// Ensures that this process has [`TELEMETRY_VARIABLE`]: without it the process replaces itself by the same program with
/// the same arguments. Must be called at the beginning of `main`, while there is no state to lose. Changing the variable of
/// a running process is unsafe, since another thread, also one of a C library, may read variables at that moment.
pub fn restart_without_telemetry() -> io::Result<()> {
    if is_telemetry_off() {
        return Ok(());
    }

    let mut arguments = env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }

    // `exec` returns only if it fails.
    Err(command.args(arguments).env(TELEMETRY_VARIABLE, NO_TELEMETRY).exec())
}

/// The lowest level that is logged: otherwise ort makes ONNX Runtime write everything, and opening a session writes
/// thousands of lines, which takes time.
fn log_level() -> LogLevel {
    if tracing::enabled!(target: "ort::logging", tracing::Level::TRACE) {
        LogLevel::Verbose
    } else if tracing::enabled!(target: "ort::logging", tracing::Level::INFO) {
        LogLevel::Info
    } else {
        LogLevel::Warning
    }
}

pub(crate) fn environment() -> Result<Environment, RuntimeError> {
    let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.as_ref().map(|loaded| loaded.environment.clone()).ok_or(RuntimeError::NotLoaded)
}

/// The path from which the library was loaded.
pub(crate) fn library() -> Result<PathBuf, RuntimeError> {
    let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.as_ref().map(|loaded| loaded.info.library.clone()).ok_or(RuntimeError::NotLoaded)
}

fn refused(library: &Path, error: ort::LoadDynamicError) -> RuntimeError {
    let path = library.to_path_buf();
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => {
            // The loader's own text begins with the path, which this error names already.
            let text = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            let cause = text.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&text).to_owned();
            RuntimeError::NotALibrary { path, cause }
        }
        ort::LoadDynamicError::BadVersion { version_str, .. } => RuntimeError::TooOld { path, version: version_str },
        ort::LoadDynamicError::MissingApi { .. } | ort::LoadDynamicError::InvalidVersionString => {
            RuntimeError::NotOnnxRuntime { path }
        }
    }
}

/// `1.32.0`: the version under which the library exports its symbols. ort reports it only for versions that it rejects.
fn release(library: &Path) -> Option<String> {
    const MARK: &[u8] = b"VERS_";

    // The symbol names are near the start of the file.
    let mut start = Vec::new();
    fs::File::open(library).ok()?.take(1 << 20).read_to_end(&mut start).ok()?;

    let at = start.windows(MARK.len() + 1).position(|six| six.starts_with(MARK) && six[MARK.len()].is_ascii_digit())?;
    let version = start[at + MARK.len()..].iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.');

    Some(version.map(|byte| char::from(*byte)).collect())
}

/// The library to load: `explicit`, then `ORT_DYLIB_PATH`, then beside the executable, then the usual folders.
pub fn find_library(explicit: Option<&Path>) -> Result<PathBuf, RuntimeError> {
    if let Some(path) = explicit {
        return named(path, "--ort-lib");
    }

    if let Some(path) = env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()) {
        return named(Path::new(&path), PATH_VARIABLE);
    }

    let beside = env::current_exe().ok().and_then(|executable| executable.parent().map(Path::to_path_buf));
    let beside = beside.iter().flat_map(|folder| BESIDE_EXECUTABLE.map(|place| folder.join(place)));

    search(beside.chain(USUAL_PLACES.map(PathBuf::from)).collect())
}

fn named(path: &Path, source_of_path: &'static str) -> Result<PathBuf, RuntimeError> {
    let found = if path.is_dir() { in_folder(path) } else { path.exists().then(|| path.to_path_buf()) };
    found.ok_or_else(|| RuntimeError::Missing { path: path.into(), source_of_path })
}

fn search(folders: Vec<PathBuf>) -> Result<PathBuf, RuntimeError> {
    match folders.iter().find_map(|folder| in_folder(folder)) {
        Some(library) => Ok(library),
        None => Err(RuntimeError::NotFound { tried: folders.into_iter().map(|folder| folder.join(FILE)).collect() }),
    }
}

/// `libonnxruntime.so`, or the versioned file that it would link to: a release names its file `libonnxruntime.so.1.32.0`.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    let plain = folder.join(FILE);
    if plain.is_file() {
        return Some(plain);
    }

    let mut versioned: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so.")))
        .collect();

    versioned.sort();

    versioned.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_library_must_exist() {
        let error = find_library(Some(Path::new("/nowhere/libonnxruntime.so"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/libonnxruntime.so") && error.contains("--ort-lib"), "{error}");
    }

    #[test]
    fn a_folder_means_the_library_in_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find_library(Some(folder.path())).is_err());

        let versioned = folder.path().join("libonnxruntime.so.1.32.0");
        fs::write(&versioned, "").unwrap();

        assert_eq!(find_library(Some(folder.path())).unwrap(), versioned);

        let plain = folder.path().join(FILE);
        fs::write(&plain, "").unwrap();

        assert_eq!(find_library(Some(folder.path())).unwrap(), plain);
    }

    #[test]
    fn the_error_lists_every_folder() {
        let error = search(vec!["/a".into(), "/b/lib".into()]).unwrap_err().to_string();
        assert!(error.contains("/a/libonnxruntime.so, /b/lib/libonnxruntime.so"), "{error}");
    }

    #[test]
    fn what_is_no_runtime_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text.so");
        fs::write(&text, "not a library").unwrap();

        assert!(matches!(init(&text), Err(RuntimeError::NotALibrary { .. })));
        assert!(matches!(init(&folder.path().join("none.so")), Err(RuntimeError::Missing { .. })));

        let other = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/usr/lib/libm.so.6"];
        if let Some(other) = other.into_iter().map(Path::new).find(|path| path.exists()) {
            assert!(matches!(init(other), Err(RuntimeError::NotOnnxRuntime { .. })));
        }
    }

    #[test]
    fn the_version_is_read_from_the_names_of_symbols() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join(FILE);
        fs::write(&library, b"\x7fELF\0VERS_\0GLIBC_2.2\0VERS_1.32.0\0more").unwrap();
        assert_eq!(release(&library).unwrap(), "1.32.0");
        fs::write(&library, b"nothing").unwrap();
        assert_eq!(release(&library), None);
    }
}
