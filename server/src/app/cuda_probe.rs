//! Finds out whether CUDA works on this machine. The server never opens CUDA's libraries itself: a child process does,
//! so that the memory of the GPU that CUDA takes, and every failure of its driver, end with that process.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdout, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use std::{io, thread};

use hush_whisper::{
    cuda::{self, Trial},
    runtime,
};

use crate::cli::settings::{PROBE_CUDA, SettingError};
use crate::runner::inherited_environment;

/// A driver that hangs must not keep the server from starting on the CPU. Reading libraries of a gigabyte from a slow disk
/// and starting the driver for eight GPUs take tens of seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// The line that the child prints if CUDA works; any other line is the reason why CUDA does not work.
const WORKS: &str = "works";

/// Why CUDA cannot be used on this machine.
#[derive(Debug, thiserror::Error)]
pub enum CudaProbeError {
    #[error("CUDA could not be tried: {0}")]
    NotTried(#[source] io::Error),
    #[error("trying CUDA ended with {0}")]
    Ended(ExitStatus),
    #[error("CUDA did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The answer of the child.
    #[error("{0}")]
    Unusable(String),
    #[error("ONNX Runtime's library was not found")]
    NoLibrary,
    #[error(transparent)]
    Variables(#[from] SettingError),
}

/// Runs `program runner probe-cuda` with `variables`, which are those of runners, and reads its answer.
///
/// # Errors
/// The reason why CUDA does not work.
pub fn probe(
    program: &Path,
    ort_library: &Path,
    index: u32,
    variables: &[(OsString, OsString)],
) -> Result<(), CudaProbeError> {
    probe_within(PROBE_TIMEOUT, program, ort_library, index, variables)
}

fn probe_within(
    timeout: Duration,
    program: &Path,
    ort_library: &Path,
    index: u32,
    variables: &[(OsString, OsString)],
) -> Result<(), CudaProbeError> {
    let mut command = Command::new(program);
    command.args(["runner", PROBE_CUDA]).arg(ort_library).arg(index.to_string());
    command.env_clear().envs(inherited_environment()).envs(variables.iter().cloned());
    command.env(runtime::TELEMETRY_VARIABLE, runtime::NO_TELEMETRY);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(CudaProbeError::NotTried)?;

    let first_line = read_first_line(child.stdout.take()).map(|line| line.recv_timeout(timeout));

    // A child that has answered is done: it is killed because its exit may take long, and its exit status then says
    // nothing. If it has printed nothing, its exit status is the answer. Both calls fail only after its end.
    let is_silent = matches!(&first_line, Ok(Ok(line)) if line.trim().is_empty());
    if !is_silent {
        let _ = child.kill();
    }
    let status = child.wait();

    match first_line.map_err(CudaProbeError::NotTried)?.as_deref().map(str::trim) {
        Ok(WORKS) => Ok(()),
        Ok("") => Err(status.map_or_else(CudaProbeError::NotTried, CudaProbeError::Ended)),
        Ok(reason) => Err(CudaProbeError::Unusable(reason.to_owned())),
        Err(_) => Err(CudaProbeError::TimedOut(timeout)),
    }
}

/// Reads on a thread of its own, because a read of a pipe has no timeout.
fn read_first_line(output: Option<ChildStdout>) -> io::Result<Receiver<String>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("probe-cuda".to_owned()).spawn(move || {
        let mut line = String::new();
        if let Some(output) = output {
            // A line that cannot be read counts as empty.
            let _ = BufReader::new(output).read_line(&mut line);
        }

        // The receiver is gone if the answer comes after the timeout.
        let _ = sender.send(line);
    })?;
    Ok(receiver)
}

/// The child's side: tries CUDA and prints one line on standard output.
pub fn answer_probe(ort_library: &Path, index: u32) -> ExitCode {
    let answer = match cuda::try_cuda(ort_library, i32::try_from(index).unwrap_or(i32::MAX)) {
        // A GPU whose memory is full now is usable: the load of a model waits for room.
        Ok(Trial::Works | Trial::Full(_)) => WORKS.to_owned(),
        Err(error) => error.to_string().replace(['\n', '\r'], " "),
    };

    // The write fails only if the server has stopped reading.
    let _ = writeln!(io::stdout(), "{answer}");
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;
    use std::{env, fs};

    use super::*;
    use crate::app::cuda_binding::CudaBinding;
    use crate::cli::env::Env;
    use crate::cli::values::ComputeDevice;
    use crate::gpu::CudaDevice;

    /// A program that ignores its arguments.
    fn program(folder: &Path, script: &str) -> std::path::PathBuf {
        let path = folder.join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn probe_for_reason(program: &Path, variables: &[(OsString, OsString)]) -> Result<(), String> {
        probe(program, Path::new("/o.so"), 0, variables).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_child_prints_is_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let ask = |script: &str| probe_for_reason(&program(folder.path(), script), &[]);

        assert_eq!(ask("echo works"), Ok(()));
        assert_eq!(ask("echo works; exit 3"), Ok(()), "how it ends by itself says nothing");
        assert_eq!(ask("echo libcublas is missing"), Err("libcublas is missing".to_owned()));
        assert!(ask("exit 3").unwrap_err().contains("exit status: 3"));
        assert!(ask("kill -SEGV $$").unwrap_err().contains("signal: 11"));
        assert!(probe_for_reason(Path::new("/nonexistent"), &[]).unwrap_err().contains("could not be tried"));
    }

    #[test]
    fn a_child_that_hangs_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let begun = Instant::now();

        let hangs = program(folder.path(), "exec sleep 600");
        let answer = probe_within(Duration::from_secs(1), &hangs, Path::new("/o.so"), 0, &[]);
        assert!(answer.unwrap_err().to_string().contains("did not answer within 1 s"));

        let ends_late = program(folder.path(), "echo works; exec sleep 600");
        assert_eq!(probe_for_reason(&ends_late, &[]), Ok(()));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn the_child_counts_gpus_as_runners_do() {
        let folder = tempfile::tempdir().unwrap();
        let program = program(folder.path(), "echo order is $CUDA_DEVICE_ORDER");
        let binding = CudaBinding::new(ComputeDevice::Cuda(CudaDevice::Index(0)), &Env::default()).unwrap();
        let answer = probe_for_reason(&program, &binding.env);
        assert_eq!(answer, Err("order is PCI_BUS_ID".to_owned()));
    }

    #[test]
    fn the_child_inherits_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        // This variable stands for a token: tests have it, and it is not in the list of inherited variables.
        assert!(env::var_os("CARGO_MANIFEST_DIR").is_some());
        let program = program(folder.path(), "echo \"folder is $CARGO_MANIFEST_DIR, path is ${PATH:+there}\"");
        let answer = probe_for_reason(&program, &[]);
        assert_eq!(answer, Err("folder is , path is there".to_owned()));
    }
}
