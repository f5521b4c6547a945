//! `kubectl hush`: `hush-controller` under the name by which kubectl finds plugins.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::fixtures;

/// The program with these arguments and nothing of the person who runs the tests.
pub fn command(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(fixtures::controller()?);
    command.arg0("kubectl-hush").args(args).stdin(Stdio::null());
    for variable in ["KUBECONFIG", "HOME", "HUSH_CONTROLLER_URL", "HUSH_TOKEN_FILE"] {
        command.env_remove(variable);
    }
    Ok(command)
}

pub fn run(args: &[&str]) -> Result<Output> {
    Ok(command(args)?.output()?)
}

/// What it prints; its complaint when it fails.
pub fn said(args: &[&str]) -> Result<String> {
    let output = run(args)?;
    ensure!(output.status.success(), "kubectl hush {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Its complaint; an error when it succeeds.
pub fn complaint(args: &[&str]) -> Result<String> {
    let output = run(args)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(1), "kubectl hush {args:?}: {:?} {said}", output.status);
    String::from_utf8(output.stderr).context("no text")
}
