//! A log that cannot be written: its reader is gone or stuck, its disk is full. Lines are lost and counted; work goes on.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::{fixtures, http, process, wait::wait_for};
use rustix::process::Signal;

const START: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(60);

/// Where a program's standard error goes.
#[derive(Clone, Copy, Debug)]
enum StderrSink {
    /// A full disk, from the start.
    Full,
    /// A pipe whose reader leaves once the program serves.
    ReaderLeaves,
    /// A pipe that is full, with a reader that does not read.
    ReaderIsStuck,
}

impl StderrSink {
    const ALL: [Self; 3] = [Self::Full, Self::ReaderLeaves, Self::ReaderIsStuck];

    /// Standard error for the program, and what the test holds of it.
    fn open(self) -> Result<(Stdio, Option<std::io::PipeReader>)> {
        match self {
            Self::Full => Ok((File::options().write(true).open("/dev/full")?.into(), None)),
            Self::ReaderLeaves => {
                let (reader, writer) = std::io::pipe()?;
                Ok((writer.into(), Some(reader)))
            }
            Self::ReaderIsStuck => {
                let (reader, mut writer) = std::io::pipe()?;
                let capacity = rustix::pipe::fcntl_getpipe_size(&writer)?;
                writer.write_all(&vec![b'x'; capacity])?;
                Ok((writer.into(), Some(reader)))
            }
        }
    }
}

struct LoggingProgram {
    child: Child,
    /// `None`: it is gone.
    reader: Option<std::io::PipeReader>,
}

impl LoggingProgram {
    fn start(mut command: Command, sink: StderrSink, health: SocketAddr) -> Result<Self> {
        let (stderr, reader) = sink.open()?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn()?;
        // The write end of the pipe is the program's alone.
        drop(command);
        let mut program = Self { child, reader };
        wait_for("it answers", START, || {
            if let Some(status) = program.child.try_wait()? {
                anyhow::bail!("it ended with {status}");
            }
            Ok(http::get(health, "/healthz").ok().filter(|answer| answer.status == 200))
        })?;
        if let StderrSink::ReaderLeaves = sink {
            let mut said = [0; 4096];
            let length = program.reader.take().context("no reader")?.read(&mut said)?;
            ensure!(length > 0, "nothing was logged");
        }
        Ok(program)
    }

    fn end(mut self) -> Result<ExitStatus> {
        process::send(self.child.id(), Signal::TERM)?;
        wait_for("it ends", SOON, || Ok(self.child.try_wait()?))
    }
}

impl Drop for LoggingProgram {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(api: SocketAddr, ops: SocketAddr, more: &[&str]) -> Result<Command> {
    let mut command = Command::new(fixtures::binary()?);
    command
        .args(["serve", "--model", fixtures::MODEL, "--listen", &api.to_string(), "--ops-listen", &ops.to_string()])
        .arg("--models-dir")
        .arg(fixtures::models_dir("int8")?)
        .arg("--ort-lib")
        .arg(fixtures::onnxruntime())
        .args(more);
    Ok(command)
}

fn transcribes(api: SocketAddr) -> Result<()> {
    let answer = http::upload(api, "/asr?language=en", "en-1.wav", &fixtures::audio("en-1.wav")?)?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    assert_eq!(answer.text(), "Clean the light.\n");
    Ok(())
}

fn dropped(ops: SocketAddr, name: &str) -> Result<f64> {
    http::series(&http::get(ops, "/metrics")?.text(), name)?.context("no such metric")
}

#[test]
fn a_server_works_on_without_its_log() -> Result<()> {
    for sink in StderrSink::ALL {
        let (api, ops) = (http::free_address()?, http::free_address()?);
        let server = LoggingProgram::start(serve(api, ops, &[])?, sink, api).with_context(|| format!("{sink:?}"))?;
        for _ in 0..2 {
            transcribes(api).with_context(|| format!("{sink:?}"))?;
        }
        assert_eq!(http::get(api, "/readyz")?.status, 200, "{sink:?}");
        // Unloads and loads are logged too, and so are requests that fail.
        let unload = format!(
            "POST /admin/v1/models/{}/unload HTTP/1.1\r\nHost: {ops}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            fixtures::MODEL
        );
        let answer = http::exchange(ops, unload.as_bytes())?;
        assert_eq!(answer.status, 200, "{sink:?}: {}", answer.text());
        assert_eq!(http::upload(api, "/asr", "a.wav", b"no audio")?.status, 400, "{sink:?}");
        transcribes(api).with_context(|| format!("{sink:?}, after an unload"))?;
        let lost = dropped(ops, "hush_log_lines_dropped_total")?;
        assert!(lost >= 3.0, "{sink:?}: {lost} lines");
        let status = server.end().with_context(|| format!("{sink:?}"))?;
        assert!(status.success(), "{sink:?}: {status}");
    }
    Ok(())
}

/// The server counts what its runners could not write.
#[test]
fn lines_of_runners_are_counted() -> Result<()> {
    let (api, ops) = (http::free_address()?, http::free_address()?);
    // Only runners load ONNX Runtime, and that is all that is logged.
    let command = serve(api, ops, &["--log-level", "off,hush_whisper=info"])?;
    let server = LoggingProgram::start(command, StderrSink::Full, api)?;
    assert_eq!(dropped(ops, "hush_log_lines_dropped_total")?, 0.0);
    transcribes(api)?;
    wait_for("the lines of the runner", SOON, || {
        Ok((dropped(ops, "hush_log_lines_dropped_total")? >= 1.0).then_some(()))
    })?;
    assert!(server.end()?.success());
    Ok(())
}

#[test]
fn a_controller_works_on_without_its_log() -> Result<()> {
    let (api, ops) = (http::free_address()?, http::free_address()?);
    let log = tempfile::tempfile()?;
    let mut command = serve(api, ops, &["--idle-timeout", "0"])?;
    let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
    let _server = LoggingProgram { child: server, reader: None };
    wait_for("the server", START, || Ok(http::get(api, "/healthz").ok()))?;
    let folder = tempfile::tempdir()?;
    let policies = folder.path().join("policies.yaml");
    fs::write(
        &policies,
        "apiVersion: gpu.hush.dev/v1beta1\nkind: GpuModelPolicy\nmetadata: {name: speech}\nspec:\n  \
         selector: {matchLabels: {gpu.hush.dev/server: \"true\"}}\n  residency: {mode: Idle, idleTimeout: 1s}\n",
    )?;
    for sink in StderrSink::ALL {
        let listen = http::free_address()?;
        let mut command = Command::new(fixtures::controller()?);
        command
            .args(["run", "--interval", "200ms", "--listen", &listen.to_string(), "--policy"])
            .arg(&policies)
            .args(["--target", &format!("here=http://{ops}")]);
        let controller = LoggingProgram::start(command, sink, listen).with_context(|| format!("{sink:?}"))?;
        transcribes(api)?;
        let unloaded = format!("hush_model_state{{model=\"{}\",state=\"unloaded\"}}", fixtures::MODEL);
        wait_for("the controller unloads the model", SOON, || {
            let state = http::series(&http::get(ops, "/metrics")?.text(), &unloaded)?;
            Ok((state == Some(1.0)).then_some(()))
        })
        .with_context(|| format!("{sink:?}"))?;
        let lost = dropped(listen, "hush_controller_log_lines_dropped_total")?;
        assert!(lost >= 1.0, "{sink:?}: {lost} lines");
        let status = controller.end().with_context(|| format!("{sink:?}"))?;
        assert!(status.success(), "{sink:?}: {status}");
    }
    Ok(())
}

/// Errors that end a program are said on standard error, too.
#[test]
fn a_program_that_cannot_say_its_error_ends_with_its_status() -> Result<()> {
    for (program, arguments, expected) in [
        (fixtures::binary()?, ["models", "--log-level", "no=such=level"].as_slice(), 2),
        (fixtures::binary()?, ["serve", "--model", "/nowhere"].as_slice(), 1),
        (fixtures::controller()?, ["run"].as_slice(), 1),
        (fixtures::controller()?, ["check", "/nowhere"].as_slice(), 1),
    ] {
        let mut command = Command::new(&program);
        let status = command.args(arguments).stderr(File::options().write(true).open("/dev/full")?).status()?;
        assert_eq!(status.code(), Some(expected), "{} {arguments:?}", program.display());
    }
    Ok(())
}
