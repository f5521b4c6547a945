//! Device memory: what NVML says of it, how much of it each model holds, whether a load fits, and whether an unload gave
//! its memory back.
//!
//! ```text
//! NVML --thread--> GpuSampler --GpuReading--> Accounts --MemoryAvailability, ReclaimReport--> model actors
//!                                        \--> GpuCollector --> /metrics
//! ```
//! A call of NVML may hang with the driver, so one thread makes all of them and everything else uses the last
//! [`GpuReading`]. Nothing here decides: the machine of the model does.

mod account;
mod collector;
mod holding;
mod need;
mod nvml;
mod reading;
mod reclaim;
mod sampler;
mod uuid;
mod visible;

pub use account::{AccountSettings, Accounts, ModelAccount, ModelMemory, RoomMeasurement};
pub use collector::GpuCollector;
pub use need::Needs;
pub use reading::{GpuDevice, GpuMemory, GpuReading, GpuRef};
pub use sampler::{GpuSampler, SamplerSettings};
pub use uuid::{GpuUuid, UuidKind};
pub use visible::{CudaDevice, VisibleDevice};
