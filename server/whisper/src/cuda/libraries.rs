//! The libraries that ONNX Runtime's CUDA provider is linked with.
//!
//! The provider names no folder in which the loader should look for them. Those that lie beside it are opened here by
//! their path, in the order in which they need each other; the loader then takes an open library for each name that the
//! provider asks for, and nothing has to be said in `LD_LIBRARY_PATH`.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::io;
use std::mem;
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::elf;

/// The driver's library. It comes with the driver and not with CUDA.
pub(super) const DRIVER: &str = "libcuda.so.1";
const RUNTIME: &str = "libcudart.so.";

/// What NVIDIA ships: the start of a library's name, its package on PyPI, and the start of its package's name in NVIDIA's
/// repositories for distributions, which ends with the version of CUDA.
const PACKAGES: [(&str, &str, &str); 7] = [
    ("libcudart.so", "nvidia-cuda-runtime", "cuda-cudart"),
    ("libcublasLt.so", "nvidia-cublas", "libcublas"),
    ("libcublas.so", "nvidia-cublas", "libcublas"),
    ("libcurand.so", "nvidia-curand", "libcurand"),
    ("libcufft.so", "nvidia-cufft", "libcufft"),
    ("libnvrtc.so", "nvidia-cuda-nvrtc", "cuda-nvrtc"),
    ("libcudnn.so", "nvidia-cudnn", "libcudnn9-cuda"),
];
/// Names of NVIDIA's libraries begin so; the system's own are the loader's business.
const NVIDIA: [&str; 2] = ["libcu", "libnv"];

/// A library that the provider needs and the loader does not find or cannot load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingLibrary {
    name: String,
    /// The loader's own words.
    cause: String,
    /// The CUDA that the provider is made for.
    cuda: Option<u32>,
}

impl fmt::Display for MissingLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;

        if let Some((_, pypi, distribution)) = PACKAGES.iter().find(|(start, ..)| self.name.starts_with(start)) {
            write!(f, " (package {pypi}")?;

            match self.cuda {
                // From CUDA 13 on, the packages on PyPI are named without its version, but for cuDNN's.
                Some(cuda) if cuda < 13 || pypi.ends_with("cudnn") => write!(f, "-cu{cuda}")?,
                _ => {}
            }

            write!(f, " on PyPI, {distribution}-")?;

            match self.cuda {
                Some(cuda) => write!(f, "{cuda}-*")?,
                None => f.write_str("*")?,
            }

            f.write_str(" in NVIDIA's repositories)")?;
        }

        write!(f, ": {}", self.cause)
    }
}

/// The provider's libraries, all of which are open now and stay so as long as the process lives.
pub(super) struct Opened {
    /// The CUDA that the provider is made for; `None`: it does not tell.
    pub cuda: Option<u32>,
    /// Libraries that are not there, without the driver.
    pub missing: Vec<MissingLibrary>,
    /// Why the driver's library cannot be loaded.
    pub driver: Option<String>,
}

/// Opens what the provider needs, as the loader will when it loads the provider.
pub(super) fn open_all(provider: &Path) -> io::Result<Opened> {
    let needed = elf::Library::open(provider)?.needed()?;
    let cuda = needed.iter().find_map(|name| name.strip_prefix(RUNTIME)?.split('.').next()?.parse().ok());
    let mut opened = Opened { cuda, missing: Vec::new(), driver: None };
    let mut seen = BTreeSet::new();

    for name in needed.iter().filter(|name| is_nvidia(name)) {
        let Err(cause) = open_one(provider, name, &mut seen) else { continue };
        if name == DRIVER {
            opened.driver = Some(cause);
        } else {
            // The loader begins with the name.
            let cause = cause.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&cause);
            opened.missing.push(MissingLibrary { name: name.clone(), cause: cause.to_owned(), cuda });
        }
    }

    Ok(opened)
}

fn is_nvidia(name: &str) -> bool {
    NVIDIA.iter().any(|start| name.starts_with(start))
}

/// Opens `name` and before it what it needs itself: from beside the provider, else where the loader looks for any library.
fn open_one(provider: &Path, name: &str, seen: &mut BTreeSet<String>) -> Result<(), String> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }

    let beside = provider.with_file_name(name);
    if !beside.exists() {
        return open(Path::new(name)).map(mem::forget);
    }

    let needed = elf::Library::open(&beside).and_then(|library| library.needed());

    // A file that is no library is the loader's to explain.
    for needed in needed.unwrap_or_default().iter().filter(|name| is_nvidia(name)) {
        // What is missing is named by the loader when it opens the library that needs it.
        let _ = open_one(provider, needed, seen);
    }

    open(&beside).map(mem::forget)
}

#[allow(unsafe_code, reason = "opening a library runs its constructors; NVIDIA's are made to be opened so")]
pub(super) fn open(name: &Path) -> Result<Library, String> {
    // SAFETY: see above.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| explain(&error))
}

/// The loader's own words, which name the library.
pub(super) fn explain(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_names_its_package() {
        let missing = |name: &str, cuda| {
            MissingLibrary { name: name.to_owned(), cause: "no such file".to_owned(), cuda }.to_string()
        };

        assert_eq!(
            missing("libcublasLt.so.13", Some(13)),
            "libcublasLt.so.13 (package nvidia-cublas on PyPI, libcublas-13-* in NVIDIA's repositories): no such file"
        );
        assert!(missing("libcudart.so.12", Some(12)).contains("nvidia-cuda-runtime-cu12 on PyPI, cuda-cudart-12-*"));
        assert!(missing("libcudnn.so.9", Some(13)).contains("nvidia-cudnn-cu13 on PyPI, libcudnn9-cuda-13-*"));
        assert_eq!(missing("libnvidia-other.so.1", Some(13)), "libnvidia-other.so.1: no such file");

        let cause = open(Path::new("libhush-none.so.13")).unwrap_err();

        assert!(cause.contains("libhush-none.so.13"), "{cause}");
    }
}
