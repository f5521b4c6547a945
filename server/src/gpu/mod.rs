//! Device memory: what NVML says of it, which of it is ours, whether a load fits, and whether an unload gave it back.
//!
//! ```text
//! NVML --thread--> Sampler --View--> Accounts --DeviceMemory, Reclaimed--> residency's owners
//!                               \--> GpuCollector --> /metrics
//! ```
//! NVML's calls may hang with the driver, so that one thread makes all of them and everybody else looks at the last
//! [`View`]. Nothing here decides: the residency machine does.

mod account;
mod collector;
mod need;
mod nvml;
mod reclaim;
mod sampler;
mod uuid;
mod view;
mod visible;

pub use account::{Account, AccountSettings, Accounts, Measured, ModelMemory};
pub use collector::GpuCollector;
pub use need::{Needs, estimate_bytes};
pub use sampler::{Sampler, SamplerSettings};
pub use uuid::{GpuUuid, UuidKind};
pub use view::{Device, GpuRef, Memory, View};
pub use visible::{CudaDevice, Visible};
