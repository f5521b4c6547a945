//! `cuda:N` and `cuda:UUID` in CUDA's own count, which `CUDA_VISIBLE_DEVICES` changes, and in NVML's, which it does not.

use std::ffi::OsString;

use super::uuid::{GpuUuid, UuidKind};
use super::view::GpuRef;

/// A GPU as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaDevice {
    /// As CUDA counts, from 0.
    Index(u32),
    Uuid(GpuUuid),
}

/// How a runner gets the GPU that was asked for, and how NVML calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    /// As CUDA counts in a runner with `env`.
    pub index: u32,
    pub env: Vec<(OsString, OsString)>,
    /// `None`: it has no such device.
    pub gpu: Option<GpuRef>,
}

impl Visible {
    /// `visible` and `order`: the server's own `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`.
    pub fn resolve(asked: CudaDevice, visible: Option<&str>, order: Option<&str>) -> Self {
        // By default CUDA puts the fastest first; NVML, `nvidia-smi` and whoever writes `cuda:1` count by bus.
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
            // CUDA finds it by itself, and sees nothing else. An instance of MIG cannot be chosen in any other way.
            CudaDevice::Uuid(uuid) => {
                env.push(("CUDA_VISIBLE_DEVICES".into(), uuid.to_string().into()));
                Self { index: 0, env, gpu: Some(GpuRef::Uuid(uuid)) }
            }
        }
    }
}

/// An entry of `CUDA_VISIBLE_DEVICES`. CUDA stops at the first that it cannot use.
fn nth(list: &str, index: u32) -> Option<GpuRef> {
    let entries = list.split(',').map(str::trim).map_while(|entry| match entry.parse::<GpuUuid>() {
        Ok(uuid) => Some(GpuRef::Uuid(uuid)),
        Err(_) => entry.parse().ok().map(GpuRef::Index),
    });
    entries.clone().nth(index as usize).filter(|gpu| match gpu {
        // Of several instances of MIG, CUDA takes the first.
        GpuRef::Uuid(uuid) if uuid.kind == UuidKind::Mig => index == 0,
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "GPU-8d1e1c0b-0123-4567-89ab-0123456789ab";

    fn by_index(index: u32, visible: Option<&str>) -> Option<GpuRef> {
        Visible::resolve(CudaDevice::Index(index), visible, Some("PCI_BUS_ID")).gpu
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
    fn a_uuid_is_the_only_one_that_its_runner_sees() {
        let uuid = A.parse().unwrap();
        let visible = Visible::resolve(CudaDevice::Uuid(uuid), Some("0"), None);
        assert_eq!((visible.index, visible.gpu), (0, Some(GpuRef::Uuid(uuid))));
        let expected: Vec<(OsString, OsString)> =
            vec![("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()), ("CUDA_VISIBLE_DEVICES".into(), A.into())];
        assert_eq!(visible.env, expected);
    }
}
