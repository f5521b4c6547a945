//! Device memory ([`hush_residency::gpu`]), and what a Whisper model needs of it.

mod estimate;

pub use estimate::estimate_bytes;
pub use hush_residency::gpu::{
    AccountSettings, Accounts, CudaDevice, GpuCollector, GpuDevice, GpuMemory, GpuReading, GpuRef, GpuSampler, GpuUuid,
    ModelAccount, ModelMemory, Needs, RoomMeasurement, SamplerSettings, UuidKind, VisibleDevice,
};
