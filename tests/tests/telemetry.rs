//! Nothing leaves the machine: ONNX Runtime's builds have telemetry, and it stays off in every process that opens them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::{fixtures, http, process, wait::wait_for};
use rustix::process::Signal;

const START: Duration = Duration::from_secs(60);
/// The telemetry looks its host up some nine seconds after the library was opened.
const OBSERVED: Duration = Duration::from_secs(14);

/// A command with an empty home and nothing else of this machine in its environment.
fn in_home(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files.append(&mut files_below(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

fn assert_untouched(home: &Path) -> Result<()> {
    let files = files_below(home)?;
    ensure!(files.is_empty(), "written below the home directory: {files:?}");
    Ok(())
}

/// Whether this machine lets one process trace another.
fn can_trace() -> bool {
    let tried = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

#[test]
fn a_server_with_a_loaded_model_writes_no_file_and_looks_up_no_name() -> Result<()> {
    let (home, traces) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let trace = traces.path().join("calls");
    let (api, ops) = (http::free_address()?, http::free_address()?);
    let traced = can_trace();
    let binary = fixtures::binary()?;
    let mut command = if traced {
        let mut strace = in_home(Path::new("strace"), home.path());
        strace.args(["-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg,openat", "-o"]).arg(&trace).arg(&binary);
        strace
    } else {
        eprintln!("skipped: names that are looked up are not observed, because strace is missing or may not trace");
        in_home(&binary, home.path())
    };
    command
        .args(["serve", "--model", fixtures::MODEL, "--listen", &api.to_string(), "--ops-listen", &ops.to_string()])
        .arg("--models-dir")
        .arg(fixtures::models_dir("int8")?)
        .arg("--ort-lib")
        .arg(fs::canonicalize(fixtures::onnxruntime())?);
    let mut server = KilledOnDrop(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    wait_for("the server", START, || Ok(http::get(api, "/healthz").ok().filter(|answer| answer.status == 200)))?;
    let answer = http::upload(api, "/asr?language=en", "en-1.wav", &fixtures::audio("en-1.wav")?)?;
    ensure!(answer.status == 200, "{}", answer.text());
    sleep(OBSERVED);

    let pid = if traced { *process::children(server.0.id())?.first().context("no server")? } else { server.0.id() };
    process::send(pid, Signal::TERM)?;
    server.0.wait()?;
    assert_untouched(home.path())?;
    if traced {
        let calls = fs::read_to_string(&trace)?;
        ensure!(calls.contains("libonnxruntime.so"), "the runner was not traced");
        let outward = |call: &&str| ["resolv.conf", "nscd", "AF_INET"].iter().any(|sign| call.contains(sign));
        let outward: Vec<&str> = calls.lines().filter(outward).collect();
        ensure!(outward.is_empty(), "asked of the network:\n{}", outward.join("\n"));
    }
    Ok(())
}

/// The same of what opens the library in a process of its own.
#[test]
fn transcribe_and_probes_write_no_file() -> Result<()> {
    let library = fs::canonicalize(fixtures::onnxruntime())?;
    let run = |arguments: &[OsString]| -> Result<Output> {
        let home = tempfile::tempdir()?;
        let output = in_home(&fixtures::binary()?, home.path()).args(arguments).output()?;
        assert_untouched(home.path())?;
        Ok(output)
    };
    let audio = fixtures::fixture("audio/en-1.wav");
    let models = fixtures::models_dir("int8")?;
    let arguments = ["transcribe", "--model", fixtures::MODEL, "--ort-lib"].map(OsString::from).into_iter();
    let rest = [library.clone().into(), "--models-dir".into(), models.into_os_string(), audio.into_os_string()];
    let output = run(&arguments.chain(rest).collect::<Vec<_>>())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Clean the light.\n");
    // It fails where there is no GPU, and must not leave anything behind all the same.
    run(&["runner".into(), "probe-cuda".into(), library.into(), "0".into()])?;
    Ok(())
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
