//! One `hush-controller run` process over static targets; killed when the test lets go of it.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::child::ChildProgram;
use crate::wait::wait_for;
use crate::{fixtures, http};

pub struct Controller {
    program: ChildProgram,
    pub ops: SocketAddr,
    folder: TempDir,
}

impl Controller {
    /// By these policies; looks five times a second unless the arguments say otherwise.
    pub fn start(policies: &str, args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("policies.yaml");
        fs::write(&file, policies)?;
        Self::launch(folder, |command| command.arg("--policy").arg(file).args(args))
    }

    /// Servers and policies come from Kubernetes, as this kubeconfig reaches it.
    pub fn in_cluster(kubeconfig: &str, args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("kubeconfig");
        fs::write(&file, kubeconfig)?;
        Self::launch(folder, |command| command.env("KUBECONFIG", file).args(args))
    }

    fn launch(folder: TempDir, with: impl FnOnce(&mut Command) -> &mut Command) -> Result<Self> {
        let mut command = Command::new(fixtures::controller()?);
        command.args(["run", "--log-format", "json"]);
        command.arg("--audit-log").arg(folder.path().join("audit.jsonl"));
        with(&mut command);
        for (option, value) in [("--interval", "200ms"), ("--listen", "127.0.0.1:0")] {
            if !command.get_args().any(|arg| arg == option) {
                command.args([option, value]);
            }
        }
        let mut program = ChildProgram::start("hush-controller", command, &["HUSH_CONTROLLER_"])?;
        let ops = program.wait_for_entry("where it listens", |entry| entry["ops"].as_str()?.parse().ok())?;
        Ok(Self { program, ops, folder })
    }

    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// A JSON object a line.
    pub fn log(&self) -> Vec<String> {
        self.program.log()
    }

    pub fn policies(&self) -> PathBuf {
        self.folder.path().join("policies.yaml")
    }

    /// Every command so far and how it ended.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// The audit lines of commands that were sent. A controller that does not lead decides too and writes that it did not send
    /// the command; so does a leader whose lease lapses for a moment on a slow machine.
    pub fn sent(&self) -> Result<Vec<Value>> {
        Ok(self.audit()?.into_iter().filter(|record| record["outcome"] != "Withheld").collect())
    }

    /// Waits until the audit log has this many lines: the sender of a command may hear of its end before the line is written.
    pub fn wait_for_audit(&self, lines: usize, deadline: Duration) -> Result<Vec<Value>> {
        wait_for(&format!("{lines} audit lines"), deadline, || Ok(Some(self.audit()?).filter(|all| all.len() >= lines)))
    }

    pub fn metric(&self, series: &str) -> Result<Option<f64>> {
        http::series(&http::get(self.ops, "/metrics")?.text(), series)
    }

    pub fn wait_for_metric(&self, series: &str, expected: f64, deadline: Duration) -> Result<()> {
        let waited = wait_for(&format!("{series} {expected}"), deadline, || {
            Ok(self.metric(series)?.filter(|value| (value - expected).abs() < 1e-9).map(|_| ()))
        });
        waited.with_context(|| format!("log of the controller:\n{}", self.log().join("\n")))
    }

    /// Waits for a line of the log that holds all of these.
    pub fn wait_for_log(&self, parts: &[&str], deadline: Duration) -> Result<String> {
        let waited = wait_for(&format!("a line with {parts:?}"), deadline, || {
            Ok(self.log().into_iter().find(|line| parts.iter().all(|part| line.contains(part))))
        });
        waited.with_context(|| format!("log of the controller:\n{}", self.log().join("\n")))
    }

    /// Waits until the process has ended by itself.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.program.wait_for_exit(deadline)
    }
}
