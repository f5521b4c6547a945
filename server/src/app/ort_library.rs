//! Where ONNX Runtime's library is, and which device it and the machine allow.

use std::path::{Path, PathBuf};

use hush_whisper::cuda::PROVIDER;

use crate::cli::env::Env;
use crate::cli::values::{Device, DeviceChoice};
use crate::gpu::CudaDevice;

const NAME: &str = "libonnxruntime.so";
/// Where a driver is loaded: Linux, and Linux inside Windows.
const GPU_FILES: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];
const USUAL: &[&str] = &[
    "/usr/local/lib",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/opt/onnxruntime/lib",
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OrtLibError {
    #[error("{origin} names {}, where there is no file", .path.display())]
    NoFile { origin: &'static str, path: PathBuf },
    #[error(
        "ONNX Runtime's library ({NAME}) was not found in {places}; give its path with --ort-lib or HUSH_ORT_LIB \
         (`make ort` fetches it into .hush/lib)"
    )]
    NotFound { places: String },
}

/// The option, else `ORT_DYLIB_PATH`, else beside the program, in `../lib` of it, and in the usual folders.
pub fn find(option: Option<&Path>, env: &Env, program: &Path) -> Result<PathBuf, OrtLibError> {
    find_in(option, env, program, USUAL)
}

fn find_in(option: Option<&Path>, env: &Env, program: &Path, usual: &[&str]) -> Result<PathBuf, OrtLibError> {
    let given = option.map(|path| ("--ort-lib (or HUSH_ORT_LIB)", path.to_owned()));
    let given = given.or_else(|| Some(("ORT_DYLIB_PATH", env.path("ORT_DYLIB_PATH")?)));
    if let Some((origin, path)) = given {
        return if path.is_file() { Ok(path) } else { Err(OrtLibError::NoFile { origin, path }) };
    }
    let beside = program.parent().into_iter().flat_map(|folder| [folder.to_owned(), folder.join("../lib")]);
    let folders: Vec<PathBuf> = beside.chain(usual.iter().map(PathBuf::from)).collect();
    let found = folders.iter().map(|folder| folder.join(NAME)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let places: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        OrtLibError::NotFound { places: places.join(", ") }
    })
}

/// Where models run, and why elsewhere than on the best that `auto` may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub device: Device,
    /// Why it is the CPU although a GPU would do.
    pub reason: Option<String>,
}

/// What the choice means here. `auto` takes a GPU only where CUDA works: `probe` says what is missing. A device that is asked
/// for by name is not doubted: the engine fails loudly if it is not there.
pub fn placement(
    choice: DeviceChoice,
    ort_lib: Option<&Path>,
    probe: impl FnOnce() -> Result<(), String>,
) -> Placement {
    place(choice, ort_lib, has_gpu(), probe)
}

/// For the reason alone: whether CUDA works is asked of its driver.
fn has_gpu() -> bool {
    GPU_FILES.iter().any(|file| Path::new(file).exists())
}

fn place(
    choice: DeviceChoice,
    ort_lib: Option<&Path>,
    has_gpu: bool,
    probe: impl FnOnce() -> Result<(), String>,
) -> Placement {
    let cpu = |reason: String| Placement { device: Device::Cpu, reason: Some(reason) };
    match choice {
        DeviceChoice::Cpu => Placement { device: Device::Cpu, reason: None },
        DeviceChoice::Cuda(gpu) => Placement { device: Device::Cuda(gpu), reason: None },
        DeviceChoice::Auto if !ort_lib.is_some_and(|library| library.with_file_name(PROVIDER).exists()) => {
            cpu(if has_gpu {
                format!("ONNX Runtime's library has no {PROVIDER} beside it: it is the build for CPUs")
            } else {
                "this machine has no NVIDIA GPU (/dev/nvidiactl is not there)".to_owned()
            })
        }
        DeviceChoice::Auto => match probe() {
            Ok(()) => Placement { device: Device::Cuda(CudaDevice::Index(0)), reason: None },
            Err(missing) => cpu(missing),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_paths_are_taken_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (library, other) = (folder.path().join("a.so"), folder.path().join("b.so"));
        std::fs::write(&library, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let env: Env = [("ORT_DYLIB_PATH", other.as_os_str())].into_iter().collect();
        let program = Path::new("/nowhere/bin/hush-server");
        assert_eq!(find(Some(&library), &env, program), Ok(library));
        assert_eq!(find(None, &env, program), Ok(other));
        let gone = Path::new("/nowhere/x.so");
        let error = find(Some(gone), &env, program).unwrap_err().to_string();
        assert!(error.contains("--ort-lib") && error.contains("/nowhere/x.so"), "{error}");
    }

    #[test]
    fn found_beside_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("bin/hush-server");
        std::fs::create_dir_all(folder.path().join("bin")).unwrap();
        std::fs::create_dir_all(folder.path().join("lib")).unwrap();
        let find = || find_in(None, &Env::default(), &program, &["/nowhere"]);
        assert!(find().unwrap_err().to_string().contains("HUSH_ORT_LIB"));
        std::fs::write(folder.path().join("lib").join(NAME), "").unwrap();
        assert!(find().unwrap().ends_with("bin/../lib/libonnxruntime.so"));
        std::fs::write(folder.path().join("bin").join(NAME), "").unwrap();
        assert!(find().unwrap().ends_with("bin/libonnxruntime.so"));
    }

    #[test]
    fn auto_needs_the_gpu_the_library_and_a_cuda_that_works() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join(NAME);
        let auto = |has_gpu, works: Result<(), &str>| {
            let placement = place(DeviceChoice::Auto, Some(&library), has_gpu, || works.map_err(str::to_owned));
            (placement.device, placement.reason.unwrap_or_default())
        };
        let (device, reason) = auto(true, Ok(()));
        assert!(device == Device::Cpu && reason.contains(PROVIDER), "{reason}");
        let (device, reason) = auto(false, Ok(()));
        assert!(device == Device::Cpu && reason.contains("no NVIDIA GPU"), "{reason}");
        std::fs::write(folder.path().join(PROVIDER), "").unwrap();
        assert_eq!(auto(true, Ok(())), (Device::Cuda(CudaDevice::Index(0)), String::new()));
        assert_eq!(
            auto(true, Err("libcublas.so.13 is missing")),
            (Device::Cpu, "libcublas.so.13 is missing".to_owned())
        );
        assert_eq!(auto(false, Ok(())), (Device::Cuda(CudaDevice::Index(0)), String::new()), "the driver knows better");
        let named = DeviceChoice::Cuda(CudaDevice::Index(2));
        let placement = place(named, None, false, || Err("no".to_owned()));
        assert_eq!(placement, Placement { device: Device::Cuda(CudaDevice::Index(2)), reason: None });
        assert_eq!(place(DeviceChoice::Cpu, Some(&library), true, || Ok(())).device, Device::Cpu);
    }
}
