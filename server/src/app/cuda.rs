//! CUDA as the server sees it: it never opens its libraries itself, but asks a child process, and tells runners which GPU is
//! theirs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{env, io, thread};

use hush_whisper::{
    cuda::{self, Trial},
    runtime,
};

use super::ort_library::{self, Placement};
use crate::cli::env::Env;
use crate::cli::settings::{PROBE_CUDA, SettingError};
use crate::cli::values::{Device, DeviceChoice};
use crate::gpu::{CudaDevice, GpuRef, Visible};
use crate::runner::inherited_environment;

/// A driver that hangs must not keep the server from starting on the CPU. Libraries of a gigabyte that come from a slow disk,
/// and a driver that starts eight GPUs, take tens of seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// What the child prints where CUDA works; anything else is the reason why it does not.
const WORKS: &str = "works";

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
        let visible = visible(asked, env)?;
        Ok(Self { device: format!("cuda:{}", visible.index), env: visible.env, gpu: visible.gpu })
    }
}

fn visible(asked: CudaDevice, env: &Env) -> Result<Visible, SettingError> {
    // Set and empty means no GPU at all, which `Env` does not tell apart from not set: CUDA will.
    Ok(Visible::resolve(asked, env.text("CUDA_VISIBLE_DEVICES")?, env.text(cuda::ORDER_VARIABLE)?))
}

/// The index at which CUDA finds `asked` in this process. CUDA reads its variables before anything else of it runs: where they
/// have to be others, this process starts itself anew with them, under the same number.
pub fn index_here(asked: CudaDevice, env: &Env) -> anyhow::Result<u32> {
    let Visible { index, env: needed, .. } = visible(asked, env)?;
    let is_set = |(name, value): &(OsString, OsString)| env::var_os(name).as_ref() == Some(value);
    if needed.iter().all(is_set) {
        return Ok(index);
    }
    let program = env::current_exe()?;
    // Returns only where it fails.
    let error = Command::new(program).args(env::args_os().skip(1)).envs(needed).exec();
    Err(anyhow::Error::new(error).context("starting anew with the variables of CUDA"))
}

/// What `choice` means here, for a command that runs one model in this process.
pub fn placement(choice: DeviceChoice, program: &Path, ort_lib: Option<&Path>, env: &Env) -> Placement {
    ort_library::placement(choice, ort_lib, || {
        let seat = Seat::of(Device::Cuda(CudaDevice::Index(0)), env).map_err(|error| error.to_string())?;
        let library = ort_lib.ok_or_else(|| "ONNX Runtime's library was not found".to_owned())?;
        probe(program, library, 0, &seat.env)
    })
}

/// Whether CUDA works here, asked of `program runner probe-cuda`: what it opens, the memory of the GPU that it takes and
/// whatever goes wrong stays there. `variables` are those of runners.
pub fn probe(program: &Path, ort_lib: &Path, index: u32, variables: &[(OsString, OsString)]) -> Result<(), String> {
    probe_within(PROBE_TIMEOUT, program, ort_lib, index, variables)
}

fn probe_within(
    timeout: Duration,
    program: &Path,
    ort_lib: &Path,
    index: u32,
    variables: &[(OsString, OsString)],
) -> Result<(), String> {
    let not_tried = |error: io::Error| format!("CUDA could not be tried: {error}");
    let mut command = Command::new(program);
    command.args(["runner", PROBE_CUDA]).arg(ort_lib).arg(index.to_string());
    command.env_clear().envs(inherited_environment()).envs(variables.iter().cloned());
    command.env(runtime::TELEMETRY_VARIABLE, runtime::NO_TELEMETRY);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = spawned.map_err(not_tried)?;

    let (sender, answer) = mpsc::channel();
    let output = child.stdout.take();
    let reader = thread::Builder::new().name("probe-cuda".to_owned()).spawn(move || {
        let mut line = String::new();
        if let Some(output) = output {
            // What cannot be read of the answer is not there.
            let _ = BufReader::new(output).read_line(&mut line);
        }
        // The other end is gone where the answer came too late.
        let _ = sender.send(line);
    });
    let answer = reader.map_err(not_tried).map(|_| answer.recv_timeout(timeout));

    // With the answer its work is done: how it would end by itself says nothing, and may take long. An end of its own that
    // came before is what is to be told. Both calls fail only where it has ended.
    let is_silent = matches!(&answer, Ok(Ok(line)) if line.trim().is_empty());
    if !is_silent {
        let _ = child.kill();
    }
    let status = child.wait();
    match answer?.as_deref().map(str::trim) {
        Ok(WORKS) => Ok(()),
        Ok("") => Err(match status {
            Ok(status) => format!("trying CUDA ended with {status}"),
            Err(error) => not_tried(error),
        }),
        Ok(reason) => Err(reason.to_owned()),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(format!("CUDA did not answer within {} s", timeout.as_secs()))
        }
    }
}

/// The child's side: one line on standard output.
pub fn answer_probe(ort_lib: &Path, index: u32) -> ExitCode {
    let answer = match cuda::try_cuda(ort_lib, i32::try_from(index).unwrap_or(i32::MAX)) {
        // A model waits for room, so that a GPU which is full now is no reason to do without it.
        Ok(Trial::Works | Trial::Full(_)) => WORKS.to_owned(),
        Err(error) => error.to_string().replace(['\n', '\r'], " "),
    };
    // The other end is gone where this fails.
    let _ = writeln!(io::stdout(), "{answer}");
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    /// A program that ignores its arguments.
    fn program(folder: &Path, script: &str) -> std::path::PathBuf {
        let path = folder.join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn what_the_child_says_is_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let ask = |script: &str| probe(&program(folder.path(), script), Path::new("/o.so"), 0, &[]);
        assert_eq!(ask("echo works"), Ok(()));
        assert_eq!(ask("echo works; exit 3"), Ok(()), "how it ends by itself says nothing");
        assert_eq!(ask("echo libcublas is missing"), Err("libcublas is missing".to_owned()));
        assert!(ask("exit 3").unwrap_err().contains("exit status: 3"));
        assert!(ask("kill -SEGV $$").unwrap_err().contains("signal: 11"));
        assert!(
            probe(Path::new("/nonexistent"), Path::new("/o.so"), 0, &[]).unwrap_err().contains("could not be tried")
        );
    }

    #[test]
    fn a_child_that_hangs_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let hangs = program(folder.path(), "exec sleep 600");
        let answer = probe_within(Duration::from_secs(1), &hangs, Path::new("/o.so"), 0, &[]);
        assert!(answer.unwrap_err().contains("did not answer within 1 s"));
        let ends_late = program(folder.path(), "echo works; exec sleep 600");
        assert_eq!(probe(&ends_late, Path::new("/o.so"), 0, &[]), Ok(()));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn the_child_counts_gpus_as_runners_do() {
        let folder = tempfile::tempdir().unwrap();
        let program = program(folder.path(), "echo order is $CUDA_DEVICE_ORDER");
        let seat = Seat::of(Device::Cuda(CudaDevice::Index(0)), &Env::default()).unwrap();
        let answer = probe(&program, Path::new("/o.so"), 0, &seat.env);
        assert_eq!(answer, Err("order is PCI_BUS_ID".to_owned()));
    }

    #[test]
    fn the_child_inherits_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        // Stands for a token: the tests have it, and no list of ours.
        assert!(env::var_os("CARGO_MANIFEST_DIR").is_some());
        let program = program(folder.path(), "echo \"folder is $CARGO_MANIFEST_DIR, path is ${PATH:+there}\"");
        let answer = probe(&program, Path::new("/o.so"), 0, &[]);
        assert_eq!(answer, Err("folder is , path is there".to_owned()));
    }

    #[test]
    fn the_cpu_has_no_gpu() {
        let seat = Seat::of(Device::Cpu, &Env::default()).unwrap();
        assert_eq!(seat, Seat { device: "cpu".to_owned(), env: Vec::new(), gpu: None });
    }
}
