//! CUDA as `serve` sees it: it never opens its libraries itself, but asks a child process, and tells runners which GPU is
//! theirs.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hush_whisper::{cuda, runtime};

use super::env::Env;
use super::settings::{PROBE_CUDA, SettingError};
use super::values::Device;
use crate::gpu::{GpuRef, Visible};

/// A driver that hangs must not keep the server from starting on the CPU.
const PROBE_PATIENCE: Duration = Duration::from_secs(20);

/// How runners are told where to run, and how NVML calls that place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// For [`crate::runner::wire::LoadSpec`].
    pub device: String,
    pub env: Vec<(OsString, OsString)>,
    pub gpu: Option<GpuRef>,
}

impl Seat {
    pub fn of(device: Device, env: &Env) -> Result<Self, SettingError> {
        let Device::Cuda(asked) = device else {
            return Ok(Self { device: device.to_string(), env: Vec::new(), gpu: None });
        };
        // Set and empty means no GPU at all, which `Env` does not tell apart from not set: CUDA will.
        let visible = Visible::resolve(asked, env.text("CUDA_VISIBLE_DEVICES")?, env.text("CUDA_DEVICE_ORDER")?);
        Ok(Self { device: format!("cuda:{}", visible.index), env: visible.env, gpu: visible.gpu })
    }
}

/// Whether CUDA works here, asked of `program runner probe-cuda`: what it opens and whatever goes wrong stays there.
pub fn probe(program: &Path, ort_lib: &Path, index: u32) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(["runner", PROBE_CUDA]).arg(ort_lib).arg(index.to_string());
    command.env(runtime::TELEMETRY_VARIABLE, runtime::NO_TELEMETRY);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = spawned.map_err(|error| format!("CUDA could not be tried: {error}"))?;
    let deadline = Instant::now() + PROBE_PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            Ok(None) | Err(_) => {
                // Both fail only when it has ended after all.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("CUDA did not answer within {} s", PROBE_PATIENCE.as_secs()));
            }
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut missing = String::new();
    if let Some(mut out) = child.stdout.take() {
        // The answer is a line; what cannot be read of it is not there.
        let _ = out.read_to_string(&mut missing);
    }
    let missing = missing.trim();
    Err(if missing.is_empty() { format!("trying CUDA ended with {status}") } else { missing.to_owned() })
}

/// The child's side: status 0, or what is missing on standard output and status 1.
pub fn answer_probe(ort_lib: &Path, index: u32) -> ExitCode {
    match cuda::probe(ort_lib, i32::try_from(index).unwrap_or(i32::MAX)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody listens when this fails.
            let _ = writeln!(std::io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_child_says_is_the_reason() {
        assert!(probe(Path::new("/nonexistent"), Path::new("/o.so"), 0).unwrap_err().contains("could not be tried"));
        assert_eq!(probe(Path::new("/bin/true"), Path::new("/o.so"), 0), Ok(()));
        assert!(probe(Path::new("/bin/false"), Path::new("/o.so"), 0).unwrap_err().contains("exit status: 1"));
        // It prints its arguments and succeeds or not as the shell does: here it cannot find such a script.
        assert!(probe(Path::new("/bin/sh"), Path::new("/o.so"), 0).is_err());
    }

    #[test]
    fn the_cpu_has_no_gpu() {
        let seat = Seat::of(Device::Cpu, &Env::default()).unwrap();
        assert_eq!(seat, Seat { device: "cpu".to_owned(), env: Vec::new(), gpu: None });
    }
}
