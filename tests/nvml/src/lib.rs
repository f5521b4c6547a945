//! `libnvidia-ml.so.1` without a GPU: NVML's C ABI over a script that a test writes and rewrites.
//!
//! ```text
//! test --Script::write--> $HUSH_NVML_SCRIPT <--read at each call-- the double, in every process that opened it
//! ```
//! Each process sees the same world: the file is replaced as a whole, and what the double itself must remember (when a
//! process died) lies beside the file, under a lock.

mod abi;
mod code;
mod observed;
mod procfs;
mod script;
mod session;
mod usage;
mod world;

pub use code::NvmlCode;
pub use script::{
    MemoryTaker, ProcessList, ProcessMemory, SCRIPT_VARIABLE, Script, ScriptedChange, ScriptedDevice, ScriptedProcess,
    library, unix_millis,
};
pub use usage::{hold_memory, used_bytes};
