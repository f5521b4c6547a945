//! Which devices a process sees, and in which order.

use hush_nvml::{Script, ScriptedDevice};
use hush_tests::cuda_double::CudaDouble;
use hush_tests::gpus::GIB;

use crate::api::{SUCCESS, child};

const OLD: &str = "GPU-aaaa1111-0000-0000-0000-000000000001";
const NEW: &str = "GPU-aaaa2222-0000-0000-0000-000000000002";
const OTHER: &str = "GPU-bbbb3333-0000-0000-0000-000000000003";

/// An old card in the first place, and two faster ones; the total tells which is which.
fn three() -> Script {
    let device = |uuid, gib: u64, capability| ScriptedDevice {
        compute_capability: capability,
        ..ScriptedDevice::new(uuid, gib * GIB)
    };
    Script::of([device(OLD, 1, [7, 5]), device(NEW, 2, [9, 0]), device(OTHER, 3, [8, 9])])
}

#[test]
fn variables_choose_and_order_the_devices() {
    const TEST: &str = "devices::variables_choose_and_order_the_devices";
    let cuda = CudaDouble::with(three()).unwrap();
    let by_bus = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
    let visible = |text| vec![by_bus, ("CUDA_VISIBLE_DEVICES", text)];
    let cases = [
        (vec![by_bus], "1 2 3"),
        (vec![("CUDA_DEVICE_ORDER", "FASTEST_FIRST")], "2 3 1"),
        (visible("2,0"), "3 1"),
        (visible("1,7,0"), "2"),
        (visible("GPU-bbbb,GPU-aaaa1111"), "3 1"),
        (visible("GPU-aaaa"), ""),
        (visible("0,0"), ""),
        (visible(""), ""),
        (visible("-1"), ""),
    ];
    for (env, expected) in cases {
        let output = child(TEST, cuda.as_ref(), &env, |api| {
            let mut count = 0;
            let error = api.cudaGetDeviceCount(&mut count);
            assert_eq!(error, if count == 0 { 100 } else { SUCCESS });
            let gib = |device| {
                assert_eq!(api.cudaSetDevice(device), SUCCESS);
                let (mut free, mut total) = (0, 0);
                assert_eq!(api.cudaMemGetInfo(&mut free, &mut total), SUCCESS);
                (total as u64 / GIB).to_string()
            };
            println!("seen:{}", (0..count).map(gib).collect::<Vec<_>>().join(" "));
        });
        let Some(output) = output else { return };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let seen = text.lines().find_map(|line| line.split_once("seen:")).map(|(_, seen)| seen);
        assert_eq!(seen, Some(expected), "{env:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
}
