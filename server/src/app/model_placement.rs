//! Which device a model gets: what was asked for, what the machine has and the precisions that are installed must agree.

use super::model_install::InstallCommandError;
use super::model_store::{ResolveError, Resolved};
use super::ort_library::Placement;
use crate::cli::values::{Device, DeviceChoice, Precision, PrecisionChoice};

/// Finds a model for the device that `asked` comes to on this machine, which `place` finds out. `find` looks for the model as a
/// device wants it, and may install it; `find_installed` only looks.
///
/// `auto` gives way: a precision that CUDA does not take, and a model that cannot be had in fp16 but is there in another
/// precision, run on the CPU, and the placement says why. A device that was asked for by name is an error instead.
pub fn find_model(
    asked: DeviceChoice,
    place: impl FnOnce() -> Placement,
    wanted: PrecisionChoice,
    find: impl Fn(Device) -> Result<Resolved, InstallCommandError>,
    find_installed: impl Fn(Device) -> Result<Resolved, ResolveError>,
) -> Result<(Resolved, Placement), InstallCommandError> {
    if asked == DeviceChoice::Auto
        && let PrecisionChoice::Exactly(precision) = wanted
        && precision != Precision::Fp16
    {
        let found = find(Device::Cpu)?;
        return Ok((found, cpu(format!("--precision {precision} does not run on CUDA, which takes fp16 only"))));
    }
    let placement = place();
    let gives_way = asked == DeviceChoice::Auto && placement.device != Device::Cpu;
    match find(placement.device) {
        Ok(found) => Ok((found, placement)),
        Err(error) if gives_way => match find_installed(Device::Cpu) {
            Ok(found) => Ok((found, cpu(error.to_string()))),
            Err(_) => Err(error),
        },
        Err(error) => Err(error),
    }
}

fn cpu(reason: String) -> Placement {
    Placement { device: Device::Cpu, reason: Some(reason) }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::model_store::{Store, tests::store};
    use super::*;
    use crate::gpu::CudaDevice;

    const GPU: Device = Device::Cuda(CudaDevice::Index(0));
    const AUTO: PrecisionChoice = PrecisionChoice::Auto;

    fn decide(
        store: &Store,
        asked: DeviceChoice,
        wanted: PrecisionChoice,
    ) -> Result<(Precision, Placement), InstallCommandError> {
        let place = || Placement { device: GPU, reason: None };
        let find = |device| store.find("mine", wanted, device);
        let (found, placement) = find_model(asked, place, wanted, |device| find(device).map_err(Into::into), find)?;
        Ok((found.precision, placement))
    }

    #[test]
    fn fp16_runs_on_the_gpu_and_what_is_there_otherwise_on_the_cpu() {
        let (_folder, both) = store(&["mine/fp16", "mine/int8"]);
        let (precision, placement) = decide(&both, DeviceChoice::Auto, AUTO).unwrap();
        assert_eq!((precision, placement), (Precision::Fp16, Placement { device: GPU, reason: None }));

        let (_folder, int8) = store(&["mine/int8"]);
        let (precision, placement) = decide(&int8, DeviceChoice::Auto, AUTO).unwrap();
        assert_eq!((precision, placement.device), (Precision::Int8, Device::Cpu));
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
        let (precision, placement) =
            decide(&both, DeviceChoice::Auto, PrecisionChoice::Exactly(Precision::Int8)).unwrap();
        assert_eq!((precision, placement.device), (Precision::Int8, Device::Cpu));
        assert!(placement.reason.unwrap().contains("--precision int8"));
        let (precision, placement) =
            decide(&both, DeviceChoice::Auto, PrecisionChoice::Exactly(Precision::Fp16)).unwrap();
        assert_eq!((precision, placement.device), (Precision::Fp16, GPU));
    }

    #[test]
    fn nothing_is_installed_for_the_cpu_that_was_meant_for_the_gpu() {
        let (_folder, int8) = store(&["mine/int8"]);
        let asked = RefCell::new(Vec::new());
        let find = |device| {
            asked.borrow_mut().push(device);
            Err(InstallCommandError::BadName("the hub does not answer".to_owned()))
        };
        let place = || Placement { device: GPU, reason: None };
        let (found, placement) =
            find_model(DeviceChoice::Auto, place, AUTO, find, |device| int8.find("mine", AUTO, device)).unwrap();
        assert_eq!((found.precision, placement.device), (Precision::Int8, Device::Cpu));
        assert!(placement.reason.unwrap().contains("the hub does not answer"));
        assert_eq!(*asked.borrow(), [GPU]);
    }
}
