//! On which device a model runs: the choice of the settings, the devices of the machine and the precisions that are
//! installed must agree.

use std::path::Path;

use hush_whisper::cuda::PROVIDER;

use super::cuda_binding::CudaBinding;
use super::cuda_probe::{CudaProbeError, probe};
use super::model_install::InstallCommandError;
use super::model_store::{ModelStoreError, StoredModel};
use crate::cli::env::Env;
use crate::cli::values::{ComputeDevice, DeviceChoice, PrecisionChoice, PrecisionWord};
use crate::gpu::CudaDevice;

/// Files that exist where a driver of NVIDIA is loaded: on Linux, and on Linux inside Windows.
const GPU_FILES: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];

/// The device that a choice comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlacement {
    pub device: ComputeDevice,
    /// Why `auto` is the CPU.
    pub reason: Option<String>,
}

impl DevicePlacement {
    const fn on(device: ComputeDevice) -> Self {
        Self { device, reason: None }
    }

    const fn on_cpu(reason: String) -> Self {
        Self { device: ComputeDevice::Cpu, reason: Some(reason) }
    }
}

/// The device that `choice` means on this machine. `auto` takes a GPU only if CUDA works, which `probe` finds out. A device
/// that is chosen by name is not checked: the engine reports an error if it is not there.
pub fn place(
    choice: DeviceChoice,
    ort_library: Option<&Path>,
    probe: impl FnOnce() -> Result<(), CudaProbeError>,
) -> DevicePlacement {
    place_with(choice, ort_library, has_gpu_files(), probe)
}

/// The device that `choice` means for a command that runs one model in its own process.
pub fn place_in_this_process(
    choice: DeviceChoice,
    program: &Path,
    ort_library: Option<&Path>,
    env: &Env,
) -> DevicePlacement {
    place(choice, ort_library, || {
        let binding = CudaBinding::new(ComputeDevice::Cuda(CudaDevice::Index(0)), env)?;
        let library = ort_library.ok_or(CudaProbeError::NoLibrary)?;
        probe(program, library, 0, &binding.env)
    })
}

/// Only chooses between two texts of the reason: the driver of CUDA decides whether there is a GPU.
fn has_gpu_files() -> bool {
    GPU_FILES.iter().any(|file| Path::new(file).exists())
}

fn place_with(
    choice: DeviceChoice,
    ort_library: Option<&Path>,
    has_gpu_files: bool,
    probe: impl FnOnce() -> Result<(), CudaProbeError>,
) -> DevicePlacement {
    match choice {
        DeviceChoice::Cpu => return DevicePlacement::on(ComputeDevice::Cpu),
        DeviceChoice::Cuda(gpu) => return DevicePlacement::on(ComputeDevice::Cuda(gpu)),
        DeviceChoice::Auto => {}
    }

    let has_provider = ort_library.is_some_and(|library| library.with_file_name(PROVIDER).exists());
    if !has_provider {
        return DevicePlacement::on_cpu(if has_gpu_files {
            format!("ONNX Runtime's library has no {PROVIDER} beside it: it is the build for CPUs")
        } else {
            "this machine has no NVIDIA GPU (/dev/nvidiactl is not there)".to_owned()
        });
    }

    match probe() {
        Ok(()) => DevicePlacement::on(ComputeDevice::Cuda(CudaDevice::Index(0))),
        Err(error) => DevicePlacement::on_cpu(error.to_string()),
    }
}

/// Finds a model for the device that `choice` comes to on this machine, which `place` finds out. `find` looks for the model
/// in the precision that a device needs, and may install it; `find_installed` only looks.
///
/// `auto` falls back to the CPU for a precision that CUDA does not take, and for a model that cannot be had in fp16 but is
/// installed in another precision; the placement then holds the reason.
///
/// # Errors
/// If the model cannot be had for a device that was chosen by name, or for no device at all.
pub fn find_model_for_device(
    choice: DeviceChoice,
    place: impl FnOnce() -> DevicePlacement,
    wanted: PrecisionChoice,
    find: impl Fn(ComputeDevice) -> Result<StoredModel, InstallCommandError>,
    find_installed: impl Fn(ComputeDevice) -> Result<StoredModel, ModelStoreError>,
) -> Result<(StoredModel, DevicePlacement), InstallCommandError> {
    if choice == DeviceChoice::Auto
        && let PrecisionChoice::Exactly(precision) = wanted
        && precision != PrecisionWord::Fp16
    {
        let found = find(ComputeDevice::Cpu)?;
        let reason = format!("--precision {precision} does not run on CUDA, which takes fp16 only");
        return Ok((found, DevicePlacement::on_cpu(reason)));
    }

    let placement = place();
    let may_fall_back = choice == DeviceChoice::Auto && placement.device != ComputeDevice::Cpu;
    match find(placement.device) {
        Ok(found) => Ok((found, placement)),
        Err(error) if may_fall_back => match find_installed(ComputeDevice::Cpu) {
            Ok(found) => Ok((found, DevicePlacement::on_cpu(error.to_string()))),
            Err(_) => Err(error),
        },
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::app::model_store::{ModelStore, tests::store};
    use crate::app::ort_library::FILE_NAME;

    const GPU: ComputeDevice = ComputeDevice::Cuda(CudaDevice::Index(0));
    const AUTO: PrecisionChoice = PrecisionChoice::Auto;

    fn decide(
        store: &ModelStore,
        choice: DeviceChoice,
        wanted: PrecisionChoice,
    ) -> Result<(PrecisionWord, DevicePlacement), InstallCommandError> {
        let place = || DevicePlacement::on(GPU);
        let find_installed = |device| store.find("mine", wanted, device);
        let find = |device| find_installed(device).map_err(Into::into);
        let (found, placement) = find_model_for_device(choice, place, wanted, find, find_installed)?;
        Ok((found.precision, placement))
    }

    #[test]
    fn fp16_runs_on_the_gpu_and_what_is_there_otherwise_on_the_cpu() {
        let (_folder, both) = store(&["mine/fp16", "mine/int8"]);
        let (precision, placement) = decide(&both, DeviceChoice::Auto, AUTO).unwrap();
        assert_eq!((precision, placement), (PrecisionWord::Fp16, DevicePlacement { device: GPU, reason: None }));

        let (_folder, int8) = store(&["mine/int8"]);
        let (precision, placement) = decide(&int8, DeviceChoice::Auto, AUTO).unwrap();
        assert_eq!((precision, placement.device), (PrecisionWord::Int8, ComputeDevice::Cpu));
        let reason = placement.reason.unwrap();
        assert!(["`mine`", "int8", "fp16"].iter().all(|part| reason.contains(part)), "{reason}");

        let error = decide(&int8, DeviceChoice::CUDA, AUTO).unwrap_err().to_string();
        assert!(["int8", "fp16", "--precision fp16"].iter().all(|part| error.contains(part)), "{error}");

        let (_folder, none) = store(&[]);
        assert!(decide(&none, DeviceChoice::Auto, AUTO).is_err());
    }

    #[test]
    fn a_precision_that_is_asked_for_decides_what_auto_is() {
        let (_folder, both) = store(&["mine/fp16", "mine/int8"]);

        let wanted = PrecisionChoice::Exactly(PrecisionWord::Int8);
        let (precision, placement) = decide(&both, DeviceChoice::Auto, wanted).unwrap();
        assert_eq!((precision, placement.device), (PrecisionWord::Int8, ComputeDevice::Cpu));
        assert!(placement.reason.unwrap().contains("--precision int8"));

        let wanted = PrecisionChoice::Exactly(PrecisionWord::Fp16);
        let (precision, placement) = decide(&both, DeviceChoice::Auto, wanted).unwrap();
        assert_eq!((precision, placement.device), (PrecisionWord::Fp16, GPU));
    }

    #[test]
    fn nothing_is_installed_for_the_cpu_that_was_meant_for_the_gpu() {
        let (_folder, int8) = store(&["mine/int8"]);
        let asked = RefCell::new(Vec::new());
        let find = |device| {
            asked.borrow_mut().push(device);
            Err(InstallCommandError::BadName("the hub does not answer".to_owned()))
        };
        let place = || DevicePlacement::on(GPU);
        let find_installed = |device| int8.find("mine", AUTO, device);

        let (found, placement) = find_model_for_device(DeviceChoice::Auto, place, AUTO, find, find_installed).unwrap();
        assert_eq!((found.precision, placement.device), (PrecisionWord::Int8, ComputeDevice::Cpu));
        assert!(placement.reason.unwrap().contains("the hub does not answer"));
        assert_eq!(*asked.borrow(), [GPU]);
    }

    #[test]
    fn auto_needs_the_gpu_the_library_and_a_cuda_that_works() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join(FILE_NAME);
        let auto = |has_gpu_files, works: Result<(), &str>| {
            let probe = || works.map_err(|reason| CudaProbeError::Unusable(reason.to_owned()));
            let placement = place_with(DeviceChoice::Auto, Some(&library), has_gpu_files, probe);
            (placement.device, placement.reason.unwrap_or_default())
        };

        let (device, reason) = auto(true, Ok(()));
        assert!(device == ComputeDevice::Cpu && reason.contains(PROVIDER), "{reason}");
        let (device, reason) = auto(false, Ok(()));
        assert!(device == ComputeDevice::Cpu && reason.contains("no NVIDIA GPU"), "{reason}");

        std::fs::write(folder.path().join(PROVIDER), "").unwrap();
        assert_eq!(auto(true, Ok(())), (ComputeDevice::Cuda(CudaDevice::Index(0)), String::new()));
        let missing = "libcublas.so.13 is missing";
        assert_eq!(auto(true, Err(missing)), (ComputeDevice::Cpu, missing.to_owned()));
        assert_eq!(
            auto(false, Ok(())),
            (ComputeDevice::Cuda(CudaDevice::Index(0)), String::new()),
            "the driver knows better"
        );

        let named = DeviceChoice::Cuda(CudaDevice::Index(2));
        let unusable = || Err(CudaProbeError::Unusable("no".to_owned()));
        let placement = place_with(named, None, false, unusable);
        assert_eq!(placement, DevicePlacement { device: ComputeDevice::Cuda(CudaDevice::Index(2)), reason: None });
        assert_eq!(place_with(DeviceChoice::Cpu, Some(&library), true, || Ok(())).device, ComputeDevice::Cpu);
    }
}
