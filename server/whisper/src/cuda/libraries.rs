//! The libraries that ONNX Runtime's CUDA provider is linked with.
//!
//! The provider names no folder in which the loader should look for them. The libraries beside it are opened here by their
//! paths, in the order of their dependencies; the loader then uses an open library for each name that the provider needs,
//! and `LD_LIBRARY_PATH` is not necessary.

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

/// NVIDIA's libraries: the start of the file name, the package on PyPI, and the start of the package name in NVIDIA's
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
/// Starts of the names of NVIDIA's libraries; the loader finds the system's own libraries.
const NVIDIA: [&str; 2] = ["libcu", "libnv"];

/// A library that the provider needs and that the loader does not find or cannot load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingLibrary {
    name: String,
    /// The loader's message.
    cause: String,
    /// The CUDA version for which the provider was built.
    cuda: Option<u32>,
}

impl fmt::Display for MissingLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some((_, pypi, distribution)) = PACKAGES.iter().find(|(start, ..)| self.name.starts_with(start)) {
            write!(f, " (package {pypi}")?;
            match self.cuda {
                // Since CUDA 13 the names of the packages on PyPI do not contain its version, except for cuDNN's.
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

/// The provider's libraries, which stay open as long as the process lives.
pub(super) struct OpenedLibraries {
    /// The CUDA version for which the provider was built; `None` if unknown.
    pub cuda: Option<u32>,
    /// Libraries that could not be opened, without the driver.
    pub missing: Vec<MissingLibrary>,
    /// Why the driver's library could not be loaded; `None` if it was.
    pub driver: Option<String>,
}

/// Opens the libraries that the provider needs, in the same way as the loader when it loads the provider.
pub(super) fn open_all(provider: &Path) -> io::Result<OpenedLibraries> {
    let needed = elf::ElfLibrary::open(provider)?.needed()?;
    let cuda = needed.iter().find_map(|name| name.strip_prefix(RUNTIME)?.split('.').next()?.parse().ok());
    let mut opened = OpenedLibraries { cuda, missing: Vec::new(), driver: None };
    let mut seen = BTreeSet::new();

    for name in needed.iter().filter(|name| is_nvidia(name)) {
        let Err(cause) = open_one(provider, name, &mut seen) else { continue };
        if name == DRIVER {
            opened.driver = Some(cause);
        } else {
            // The loader's message begins with the name.
            let cause = cause.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&cause);
            opened.missing.push(MissingLibrary { name: name.clone(), cause: cause.to_owned(), cuda });
        }
    }

    Ok(opened)
}

fn is_nvidia(name: &str) -> bool {
    NVIDIA.iter().any(|start| name.starts_with(start))
}

/// Opens `name` after its dependencies: from the provider's folder, or else from where the loader finds any library.
fn open_one(provider: &Path, name: &str, seen: &mut BTreeSet<String>) -> Result<(), String> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }

    let beside = provider.with_file_name(name);
    if !beside.exists() {
        return open(Path::new(name)).map(mem::forget);
    }

    let needed = elf::ElfLibrary::open(&beside).and_then(|library| library.needed());

    // A file that is not a library has no dependencies; the loader reports the error when it opens the file.
    for needed in needed.unwrap_or_default().iter().filter(|name| is_nvidia(name)) {
        // The loader names a missing dependency when it opens the library that needs it.
        let _ = open_one(provider, needed, seen);
    }

    open(&beside).map(mem::forget)
}

#[allow(unsafe_code, reason = "opening a library runs its constructors; NVIDIA's are made to be opened so")]
pub(super) fn open(name: &Path) -> Result<Library, String> {
    // SAFETY: NVIDIA's libraries are made to be opened in this way.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| explain(&error))
}

/// The loader's message, which contains the name of the library.
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
