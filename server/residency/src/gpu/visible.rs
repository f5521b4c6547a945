//! `cuda:N` and `cuda:UUID` in CUDA's own count, which `CUDA_VISIBLE_DEVICES` changes, and in NVML's, which it does not.

use std::ffi::OsString;

use super::reading::GpuRef;
use super::uuid::{GpuUuid, UuidKind};

/// A GPU as a setting names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaDevice {
    /// The number in CUDA's count, from 0.
    Index(u32),
    Uuid(GpuUuid),
}

/// How a runner gets the GPU that was asked for, and which of NVML's GPUs that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VisibleDevice {
    /// The number in CUDA's count in a runner with `env`.
    pub index: u32,
    pub env: Vec<(OsString, OsString)>,
    /// `None`: there is no such device.
    pub gpu: Option<GpuRef>,
}

impl VisibleDevice {
    /// `visible` and `order`: the server's own `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`.
    pub fn resolve(asked: CudaDevice, visible: Option<&str>, order: Option<&str>) -> Self {
        // By default CUDA counts the fastest GPU first. NVML, `nvidia-smi` and people who write `cuda:1` count by bus.
        let mut env: Vec<(OsString, OsString)> = Vec::new();
        if order.is_none() {
            env.push(("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()));
        }

        match asked {
            CudaDevice::Index(index) => {
                let gpu = match visible {
                    None => Some(GpuRef::Index(index)),
                    Some(list) => nth(list, index),
                };
                Self { index, env, gpu }
            }
            // CUDA finds the device by its UUID and sees no other. There is no other way to choose an instance of MIG.
            CudaDevice::Uuid(uuid) => {
                env.push(("CUDA_VISIBLE_DEVICES".into(), uuid.to_string().into()));
                Self { index: 0, env, gpu: Some(GpuRef::Uuid(uuid)) }
            }
        }
    }
}

/// The n-th entry of `CUDA_VISIBLE_DEVICES`. CUDA stops at the first entry that it cannot use.
fn nth(list: &str, index: u32) -> Option<GpuRef> {
    let entries = list.split(',').map(str::trim).map_while(|entry| match entry.parse::<GpuUuid>() {
        Ok(uuid) => Some(GpuRef::Uuid(uuid)),
        Err(_) => entry.parse().ok().map(GpuRef::Index),
    });

    entries.clone().nth(index as usize).filter(|gpu| match gpu {
        // CUDA uses only the first of several instances of MIG.
        GpuRef::Uuid(uuid) if uuid.kind == UuidKind::Mig => index == 0,
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "GPU-8d1e1c0b-0123-4567-89ab-0123456789ab";

    fn by_index(index: u32, visible: Option<&str>) -> Option<GpuRef> {
        VisibleDevice::resolve(CudaDevice::Index(index), visible, Some("PCI_BUS_ID")).gpu
    }

    #[test]
    fn numbers_are_counted_as_cuda_counts() {
        let uuid = GpuRef::Uuid(A.parse().unwrap());
        assert_eq!(by_index(1, None), Some(GpuRef::Index(1)));
        assert_eq!(by_index(0, Some("2,0")), Some(GpuRef::Index(2)));
        assert_eq!(by_index(1, Some(&format!("3, {A}"))), Some(uuid));
        assert_eq!(by_index(1, Some("3,-1,2")), None, "CUDA sees one device");
        assert_eq!(by_index(2, Some("0,1")), None);
        assert_eq!(by_index(0, Some("")), None);
    }

    #[test]
    fn a_runner_sees_only_the_device_of_its_uuid() {
        let uuid = A.parse().unwrap();
        let visible = VisibleDevice::resolve(CudaDevice::Uuid(uuid), Some("0"), None);
        assert_eq!((visible.index, visible.gpu), (0, Some(GpuRef::Uuid(uuid))));

        let expected: Vec<(OsString, OsString)> =
            vec![("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()), ("CUDA_VISIBLE_DEVICES".into(), A.into())];
        assert_eq!(visible.env, expected);
    }
}
